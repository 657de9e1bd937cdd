"""Multipart uploads through a real server."""

from __future__ import annotations

import base64
import hashlib
import os
from typing import Any

import pytest
from botocore.exceptions import ClientError

from cordwood.engine import Store
from cordwood.server.wire.checksums import composite, hasher
from cordwood.server.wire.operations import ENUMS
from tests.server.conftest import LiveServer

PART = 5 << 20
ALGORITHMS = ENUMS["ChecksumAlgorithm"]


def refusal(call: Any, **arguments: Any) -> tuple[int, str]:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    response = caught.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


def checksum_of(algorithm: str, data: bytes) -> str:
    digest = hasher(algorithm)
    digest.update(data)
    return digest.base64()


def begin(s3: Any, **options: Any) -> dict[str, str]:
    made = s3.create_multipart_upload(Bucket="bkt", Key="k", **options)
    return {"Bucket": "bkt", "Key": "k", "UploadId": made["UploadId"]}


def send(s3: Any, upload: dict[str, str], *bodies: bytes, **options: Any) -> list[dict[str, Any]]:
    return [
        {"PartNumber": n, "ETag": s3.upload_part(PartNumber=n, Body=body, **upload, **options)["ETag"]}
        for n, body in enumerate(bodies, 1)
    ]


def finish(s3: Any, upload: dict[str, str], parts: list[dict[str, Any]], **options: Any) -> Any:
    return s3.complete_multipart_upload(MultipartUpload={"Parts": parts}, **upload, **options)


def test_parts_become_one_object_with_the_etag_of_aws(s3: Any) -> None:
    bodies = [os.urandom(PART), os.urandom(PART), b"tail"]
    upload = begin(s3, Metadata={"a": "1"}, ContentType="x/y")
    answer = finish(s3, upload, send(s3, upload, *bodies))
    digest = hashlib.md5(b"".join(hashlib.md5(body).digest() for body in bodies)).hexdigest()
    assert answer["ETag"] == f'"{digest}-3"'
    got = s3.get_object(Bucket="bkt", Key="k")
    assert got["Body"].read() == b"".join(bodies)
    assert (got["Metadata"], got["ContentType"]) == ({"a": "1"}, "x/y")
    assert refusal(s3.list_parts, **upload) == (404, "NoSuchUpload")


def test_a_part_can_be_replaced_and_parts_can_be_left_out(s3: Any) -> None:
    upload = begin(s3)
    send(s3, upload, b"a" * PART, b"b" * PART, b"c" * PART)
    again = s3.upload_part(PartNumber=1, Body=b"z" * PART, **upload)["ETag"]
    last = s3.upload_part(PartNumber=7, Body=b"end", **upload)["ETag"]
    finish(s3, upload, [{"PartNumber": 1, "ETag": again}, {"PartNumber": 7, "ETag": last}])
    assert s3.get_object(Bucket="bkt", Key="k")["Body"].read() == b"z" * PART + b"end"
    # The parts of an object are counted through, so that a client can fetch 1 to PartsCount.
    part = s3.get_object(Bucket="bkt", Key="k", PartNumber=2)
    assert part["Body"].read() == b"end"
    assert part["PartsCount"] == 2
    assert part["ContentRange"] == f"bytes {PART}-{PART + 2}/{PART + 3}"
    assert s3.head_object(Bucket="bkt", Key="k", PartNumber=1)["ContentLength"] == PART
    assert refusal(s3.get_object, Bucket="bkt", Key="k", PartNumber=3) == (400, "InvalidPart")


def test_a_completion_that_does_not_fit_is_refused_and_the_upload_lives_on(s3: Any) -> None:
    upload = begin(s3)
    parts = send(s3, upload, b"a" * PART, b"b" * PART, b"c")
    other = {"PartNumber": 1, "ETag": '"' + "0" * 32 + '"'}
    assert refusal(finish, s3=s3, upload=upload, parts=parts[::-1]) == (400, "InvalidPartOrder")
    assert refusal(finish, s3=s3, upload=upload, parts=[other]) == (400, "InvalidPart")
    missing = [*parts, {"PartNumber": 9, "ETag": parts[0]["ETag"]}]
    assert refusal(finish, s3=s3, upload=upload, parts=missing) == (400, "InvalidPart")
    assert refusal(finish, s3=s3, upload=upload, parts=[]) == (400, "MalformedXML")
    assert refusal(finish, s3=s3, upload=upload, parts=parts, MpuObjectSize=5) == (400, "InvalidRequest")
    assert len(s3.list_parts(**upload)["Parts"]) == 3
    finish(s3, upload, parts, MpuObjectSize=2 * PART + 1)


def test_every_part_but_the_last_has_five_mebibytes(s3: Any) -> None:
    upload = begin(s3)
    parts = send(s3, upload, b"a" * (PART - 1), b"b")
    assert refusal(finish, s3=s3, upload=upload, parts=parts) == (400, "EntityTooSmall")
    assert refusal(s3.head_object, Bucket="bkt", Key="k")[0] == 404


def test_ten_thousand_and_one_parts_are_refused(server: LiveServer, s3: Any) -> None:
    upload = begin(s3)
    part = "<Part><PartNumber>{}</PartNumber><ETag>{}</ETag></Part>"
    parts = "".join(part.format(number, "0" * 32) for number in range(1, 10_002))
    body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
    path = f"/bkt/k?uploadId={upload['UploadId']}"
    assert server.request("POST", path, body).code == "MalformedXML"
    for number in ("0", "10001", "-1", "x"):
        part_path = f"{path}&partNumber={number}"
        assert server.request("PUT", part_path, b"x").code == "InvalidArgument"


def test_an_upload_id_is_good_for_its_own_key_only(s3: Any) -> None:
    upload = begin(s3)
    for foreign in ({**upload, "Key": "other"}, {**upload, "UploadId": "x"}, {**upload, "UploadId": "../.."}):
        assert refusal(s3.upload_part, PartNumber=1, Body=b"", **foreign) == (404, "NoSuchUpload")
        assert refusal(s3.list_parts, **foreign) == (404, "NoSuchUpload")
        assert refusal(s3.abort_multipart_upload, **foreign) == (404, "NoSuchUpload")
        parts = [{"PartNumber": 1, "ETag": "0" * 32}]
        assert refusal(finish, s3=s3, upload=foreign, parts=parts) == (404, "NoSuchUpload")


def test_an_aborted_upload_is_gone(s3: Any) -> None:
    upload = begin(s3)
    parts = send(s3, upload, b"x")
    s3.abort_multipart_upload(**upload)
    assert "Uploads" not in s3.list_multipart_uploads(Bucket="bkt")
    assert refusal(finish, s3=s3, upload=upload, parts=parts) == (404, "NoSuchUpload")


def test_completing_again_gives_the_same_answer(s3: Any) -> None:
    upload = begin(s3, ChecksumAlgorithm="SHA256")
    parts = send(s3, upload, b"x", ChecksumAlgorithm="SHA256")
    first = finish(s3, upload, parts)
    second = finish(s3, upload, parts)
    assert first["ETag"] == second["ETag"]
    assert first["ChecksumSHA256"] == second["ChecksumSHA256"]


def test_conditions_hold_at_the_moment_of_completion(s3: Any) -> None:
    upload = begin(s3)
    parts = send(s3, upload, b"x")
    s3.put_object(Bucket="bkt", Key="k", Body=b"first")
    refused = refusal(finish, s3=s3, upload=upload, parts=parts, IfNoneMatch="*")
    assert refused == (412, "PreconditionFailed")
    assert s3.get_object(Bucket="bkt", Key="k")["Body"].read() == b"first"
    finish(s3, upload, parts)
    assert s3.get_object(Bucket="bkt", Key="k")["Body"].read() == b"x"


# --- checksums -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_checksum_of_the_whole_follows_from_those_of_the_parts(s3: Any, algorithm: str) -> None:
    bodies = [b"a" * PART, b"b" * 100]
    member = f"Checksum{algorithm}"
    upload = begin(s3, ChecksumAlgorithm=algorithm)
    parts = []
    for number, body in enumerate(bodies, 1):
        value = checksum_of(algorithm, body)
        sent = s3.upload_part(PartNumber=number, Body=body, **upload, **{member: value})
        assert sent[member] == value
        parts.append({"PartNumber": number, "ETag": sent["ETag"], member: value})
    assert [part[member] for part in s3.list_parts(**upload)["Parts"]] == [part[member] for part in parts]
    if algorithm == "CRC64NVME":
        whole, kind = checksum_of(algorithm, b"".join(bodies)), "FULL_OBJECT"
    else:
        whole, kind = composite(algorithm, [checksum_of(algorithm, body) for body in bodies]), "COMPOSITE"
    wrong = checksum_of(algorithm, b"!")
    assert refusal(finish, s3=s3, upload=upload, parts=parts, **{member: wrong}) == (400, "BadDigest")
    answer = finish(s3, upload, parts, **{member: whole})
    assert (answer[member], answer["ChecksumType"]) == (whole, kind)
    head = s3.head_object(Bucket="bkt", Key="k", ChecksumMode="ENABLED")
    assert (head[member], head["ChecksumType"]) == (whole, kind)
    part = s3.head_object(Bucket="bkt", Key="k", ChecksumMode="ENABLED", PartNumber=2)
    assert part[member] == checksum_of(algorithm, bodies[1])


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME"])
def test_a_full_object_checksum_is_that_of_the_bytes(s3: Any, algorithm: str) -> None:
    bodies = [os.urandom(PART), os.urandom(77)]
    upload = begin(s3, ChecksumAlgorithm=algorithm, ChecksumType="FULL_OBJECT")
    answer = finish(s3, upload, send(s3, upload, *bodies, ChecksumAlgorithm=algorithm))
    assert answer[f"Checksum{algorithm}"] == checksum_of(algorithm, b"".join(bodies))
    assert answer["ChecksumType"] == "FULL_OBJECT"


def test_an_upload_without_an_algorithm_gets_a_full_object_crc64nvme(s3: Any) -> None:
    bodies = [os.urandom(PART), os.urandom(77)]
    upload = begin(s3)
    answer = finish(s3, upload, send(s3, upload, *bodies))
    assert answer["ChecksumCRC64NVME"] == checksum_of("CRC64NVME", b"".join(bodies))


def test_checksums_that_do_not_belong_together_are_refused(s3: Any) -> None:
    for algorithm, kind in (("SHA256", "FULL_OBJECT"), ("CRC64NVME", "COMPOSITE")):
        refused = refusal(begin, s3=s3, ChecksumAlgorithm=algorithm, ChecksumType=kind)
        assert refused == (400, "InvalidRequest")
    upload = begin(s3, ChecksumAlgorithm="SHA256")
    crc = checksum_of("CRC32", b"x")
    assert refusal(s3.upload_part, PartNumber=1, Body=b"x", ChecksumCRC32=crc, **upload) == (
        400,
        "InvalidRequest",
    )
    parts = send(s3, upload, b"x", ChecksumAlgorithm="SHA256")
    parts[0]["ChecksumSHA256"] = checksum_of("SHA256", b"y")
    assert refusal(finish, s3=s3, upload=upload, parts=parts) == (400, "InvalidPart")


def test_a_part_that_does_not_arrive_as_promised_is_not_stored(server: LiveServer, s3: Any) -> None:
    upload = begin(s3)
    path = f"/bkt/k?uploadId={upload['UploadId']}&partNumber=1"
    wrong = base64.b64encode(hashlib.md5(b"other").digest()).decode()
    assert server.request("PUT", path, b"x", {"content-md5": wrong}).code == "BadDigest"
    assert server.request("PUT", path, b"x", {"x-amz-checksum-crc32": "AAAAAA=="}).code == "BadDigest"
    assert "Parts" not in s3.list_parts(**upload)


# --- copied parts --------------------------------------------------------------------------------------------


def test_parts_can_be_copied_whole_and_by_range(s3: Any) -> None:
    source = os.urandom(2 * PART)
    s3.put_object(Bucket="bkt", Key="source", Body=source)
    for algorithm in ("", "SHA256", "CRC32"):
        upload = begin(s3, **({"ChecksumAlgorithm": algorithm} if algorithm else {}))
        parts = []
        for number, byte_range in ((1, None), (2, f"bytes=1-{PART}"), (3, "bytes=5-9")):
            ranged = {"CopySourceRange": byte_range} if byte_range else {}
            result = s3.upload_part_copy(PartNumber=number, CopySource="bkt/source", **ranged, **upload)
            parts.append({"PartNumber": number, "ETag": result["CopyPartResult"]["ETag"]})
        answer = finish(s3, upload, parts)
        whole = source + source[1 : PART + 1] + source[5:10]
        assert s3.get_object(Bucket="bkt", Key="k")["Body"].read() == whole
        if not algorithm:
            assert answer["ChecksumCRC64NVME"] == checksum_of("CRC64NVME", whole)


@pytest.mark.parametrize(
    ("byte_range", "code"),
    [
        ("0-2", "InvalidArgument"),
        ("bytes=0", "InvalidArgument"),
        ("bytes=-5", "InvalidArgument"),
        ("bytes=3-1", "InvalidArgument"),
        ("bytes=0-1,3-4", "InvalidArgument"),
        ("bytes=0-5", "InvalidRange"),
    ],
)
def test_a_range_to_copy_must_lie_within_the_source(s3: Any, byte_range: str, code: str) -> None:
    s3.put_object(Bucket="bkt", Key="source", Body=b"01234")
    upload = begin(s3)
    call = {"PartNumber": 1, "CopySource": "bkt/source", "CopySourceRange": byte_range}
    assert refusal(s3.upload_part_copy, **call, **upload)[1] == code


# --- listings ------------------------------------------------------------------------------------------------


def test_parts_are_listed_in_pages(s3: Any) -> None:
    upload = begin(s3)
    send(s3, upload, *[bytes([number]) for number in range(5)])
    found = []
    for page in s3.get_paginator("list_parts").paginate(**upload, PaginationConfig={"PageSize": 2}):
        assert len(page["Parts"]) <= 2
        found += [part["PartNumber"] for part in page["Parts"]]
    assert found == [1, 2, 3, 4, 5]
    assert refusal(s3.list_parts, **upload, PartNumberMarker=-1)[1] == "InvalidArgument"


def test_uploads_are_listed_by_key_and_then_by_time(server: LiveServer, store: Store) -> None:
    store.create_bucket("bkt")
    keys = ["a/1", "a/1", "a/2", "b c", "z"]
    ids = [store.create_upload("bkt", key).upload_id for key in keys]
    client = server.client()
    found = []
    paginator = client.get_paginator("list_multipart_uploads")
    for page in paginator.paginate(Bucket="bkt", PaginationConfig={"PageSize": 2}):
        found += [(upload["Key"], upload["UploadId"]) for upload in page.get("Uploads", [])]
    assert found == list(zip(keys, ids, strict=True))
    grouped = client.list_multipart_uploads(Bucket="bkt", Delimiter="/")
    assert [each["Prefix"] for each in grouped["CommonPrefixes"]] == ["a/"]
    assert [each["Key"] for each in grouped["Uploads"]] == ["b c", "z"]
    assert len(client.list_multipart_uploads(Bucket="bkt", Prefix="a/")["Uploads"]) == 3


def test_s3transfer_moves_a_large_file_in_both_directions(s3: Any, tmp_path: Any) -> None:
    from boto3.s3.transfer import TransferConfig

    data = os.urandom(23 << 20)
    (tmp_path / "in").write_bytes(data)
    config = TransferConfig(multipart_threshold=8 << 20, multipart_chunksize=8 << 20)
    s3.upload_file(str(tmp_path / "in"), "bkt", "big", Config=config)
    s3.download_file("bkt", "big", str(tmp_path / "out"), Config=config)
    assert (tmp_path / "out").read_bytes() == data
