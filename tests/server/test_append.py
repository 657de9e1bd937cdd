"""PutObject with x-amz-write-offset-bytes."""

from __future__ import annotations

import base64
import hashlib
import zlib
from typing import Any

import pytest
from botocore.exceptions import ClientError

from cordwood.server.wire.checksums import hasher
from tests.server.conftest import LiveServer


def digest(algorithm: str, data: bytes) -> str:
    running = hasher(algorithm)
    running.update(data)
    return running.base64()


def refused(call: Any, **arguments: Any) -> str:
    with pytest.raises(ClientError) as caught:
        call(Bucket="bkt", **arguments)
    return str(caught.value.response["Error"]["Code"])


def test_appends_add_up_and_each_answer_says_how_long_the_object_is(s3: Any) -> None:
    data = b""
    for piece in (b"one", b"x" * 200_000, b"", b"three"):
        answer = s3.put_object(Bucket="bkt", Key="k", Body=piece, WriteOffsetBytes=len(data))
        data += piece
        assert answer["Size"] == len(data)
    found = s3.get_object(Bucket="bkt", Key="k", ChecksumMode="ENABLED")
    assert found["Body"].read() == data and found["ETag"] == answer["ETag"]
    assert found["ChecksumCRC32"] == base64.b64encode(zlib.crc32(data).to_bytes(4)).decode()
    assert found["ChecksumType"] == "FULL_OBJECT"
    assert s3.get_object(Bucket="bkt", Key="k", PartNumber=2)["Body"].read() == b"x" * 200_000


@pytest.mark.parametrize("offset", [0, 2, 4, 10**15])
def test_a_wrong_offset_is_invalid_write_offset_and_changes_nothing(s3: Any, offset: int) -> None:
    s3.put_object(Bucket="bkt", Key="k", Body=b"abc")
    assert refused(s3.put_object, Key="k", Body=b"d", WriteOffsetBytes=offset) == "InvalidWriteOffset"
    assert s3.get_object(Bucket="bkt", Key="k")["Body"].read() == b"abc"
    if offset:
        assert refused(s3.put_object, Key="none", Body=b"d", WriteOffsetBytes=offset) == "InvalidWriteOffset"


def test_an_offset_that_is_no_number_of_bytes_is_an_invalid_argument(server: LiveServer, s3: Any) -> None:
    for text in ("-1", "x", "1.5", ""):
        answer = server.request("PUT", "/bkt/k", b"d", {"x-amz-write-offset-bytes": text})
        assert (answer.status, answer.code) == (400, "InvalidArgument"), text
    assert "Contents" not in s3.list_objects_v2(Bucket="bkt")


def test_an_append_is_conditional_like_any_write(s3: Any) -> None:
    etag = s3.put_object(Bucket="bkt", Key="k", Body=b"abc")["ETag"]
    no = {"Key": "k", "Body": b"d", "WriteOffsetBytes": 3}
    assert refused(s3.put_object, **no, IfMatch='"0"') == "PreconditionFailed"
    assert refused(s3.put_object, **no, IfNoneMatch="*") == "PreconditionFailed"
    s3.put_object(Bucket="bkt", **no, IfMatch=etag)


def test_what_an_object_is_does_not_change_with_its_length(s3: Any) -> None:
    s3.put_object(
        Bucket="bkt", Key="k", Body=b"abc", Metadata={"m": "1"}, ContentType="text/x", Tagging="t=1"
    )
    s3.put_object(Bucket="bkt", Key="k", Body=b"d", WriteOffsetBytes=3, ContentType="text/y")
    found = s3.head_object(Bucket="bkt", Key="k")
    assert (found["Metadata"], found["ContentType"], found["TagCount"]) == ({"m": "1"}, "text/x", 1)
    for more in (
        {"Metadata": {"m": "2"}},
        {"Tagging": "t=2"},
        {"ACL": "public-read"},
        {"StorageClass": "STANDARD_IA"},
    ):
        assert refused(s3.put_object, Key="k", Body=b"e", WriteOffsetBytes=4, **more) == "InvalidRequest"
    s3.put_object(Bucket="bkt", Key="new", Body=b"e", WriteOffsetBytes=0, Metadata={"n": "3"})
    assert s3.head_object(Bucket="bkt", Key="new")["Metadata"] == {"n": "3"}


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME", "SHA256", "XXHASH64"])
def test_the_checksum_of_the_longer_object_is_made_from_its_parts(s3: Any, algorithm: str) -> None:
    pieces = [b"a" * 70_000, b"b" * 10, b"c" * 100_000]
    data = b"".join(pieces)
    size = 0
    for piece in pieces:
        header = {f"Checksum{algorithm}": digest(algorithm, piece)}
        offset = {"WriteOffsetBytes": size} if size else {}
        answer = s3.put_object(Bucket="bkt", Key="k", Body=piece, **header, **offset)
        size += len(piece)
    if algorithm.startswith("CRC"):
        wanted, kind = digest(algorithm, data), "FULL_OBJECT"
    else:
        both = b"".join(base64.b64decode(digest(algorithm, piece)) for piece in pieces)
        wanted, kind = f"{digest(algorithm, both)}-3", "COMPOSITE"
    assert (answer[f"Checksum{algorithm}"], answer["ChecksumType"]) == (wanted, kind)
    found = s3.head_object(Bucket="bkt", Key="k", ChecksumMode="ENABLED")
    assert found[f"Checksum{algorithm}"] == wanted


def test_a_body_is_verified_by_any_checksum_before_it_is_added(server: LiveServer, s3: Any) -> None:
    server.request("PUT", "/bkt/k", b"abc")  # a CRC64NVME, since none was named
    assert refused(
        s3.put_object, Key="k", Body=b"d", WriteOffsetBytes=3, ChecksumSHA1=digest("SHA1", b"e")
    ) == ("BadDigest")
    md5 = base64.b64encode(hashlib.md5(b"e").digest()).decode()
    bad = {"x-amz-write-offset-bytes": "3", "content-md5": md5}
    assert server.request("PUT", "/bkt/k", b"d", bad).code == "BadDigest"
    s3.put_object(Bucket="bkt", Key="k", Body=b"d", WriteOffsetBytes=3, ChecksumSHA1=digest("SHA1", b"d"))
    found = s3.get_object(Bucket="bkt", Key="k", ChecksumMode="ENABLED")
    assert found["ChecksumCRC64NVME"] == digest("CRC64NVME", b"abcd") and found["Body"].read() == b"abcd"


def test_a_multipart_object_is_appended_to_as_another_part(s3: Any) -> None:
    upload = s3.create_multipart_upload(Bucket="bkt", Key="k")["UploadId"]
    where = {"Bucket": "bkt", "Key": "k", "UploadId": upload}
    first = b"a" * (5 << 20)
    parts = [
        {"PartNumber": number, "ETag": s3.upload_part(**where, PartNumber=number, Body=body)["ETag"]}
        for number, body in ((3, first), (7, b"b"))
    ]
    s3.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})
    answer = s3.put_object(Bucket="bkt", Key="k", Body=b"c", WriteOffsetBytes=len(first) + 1)
    assert answer["ETag"].endswith('-3"')
    assert s3.get_object(Bucket="bkt", Key="k")["Body"].read() == first + b"bc"
    assert answer["ChecksumCRC64NVME"] == digest("CRC64NVME", first + b"bc")
