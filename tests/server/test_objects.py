"""Objects through a real server: what was put is what is got, and what must be refused leaves nothing behind."""

from __future__ import annotations

import base64
import hashlib
import os
import zlib
from email.utils import formatdate
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cordwood.engine import Store
from cordwood.server.handlers.describe import system_headers
from cordwood.server.wire.checksums import hasher
from cordwood.server.wire.operations import ENUMS
from tests.server.conftest import LiveServer

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


# --- put and get ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 4096, 65_536, 65_537, 1 << 20, (5 << 20) + 7])
def test_an_object_comes_back_byte_for_byte_with_its_md5_as_etag(s3: Any, size: int) -> None:
    data = os.urandom(size)
    etag = s3.put_object(Bucket="bkt", Key="k", Body=data)["ETag"]
    assert etag == f'"{hashlib.md5(data).hexdigest()}"'
    answer = s3.get_object(Bucket="bkt", Key="k")
    assert answer["Body"].read() == data
    assert answer["ETag"] == etag
    assert s3.head_object(Bucket="bkt", Key="k")["ContentLength"] == size


KEYS = [
    "a//b",
    "/leading",
    "trailing/",
    "..",
    "a/../b",
    ".",
    "%2F",
    "a b+c",
    "a?b#c&d=e",
    "\N{WOOD}/\N{LATIN SMALL LETTER E WITH ACUTE}",
    "x" * 1024,
    "\u00e9" * 512,
    "line\nbreak",
    "~!@$^*()_-=[]{}|;:',.<>`\\\"",
    "\x01\x7f",
]


@pytest.mark.parametrize("key", KEYS)
def test_any_key_can_be_put_got_listed_copied_and_deleted(s3: Any, key: str) -> None:
    s3.put_object(Bucket="bkt", Key=key, Body=key.encode())
    assert s3.get_object(Bucket="bkt", Key=key)["Body"].read() == key.encode()
    assert [each["Key"] for each in s3.list_objects_v2(Bucket="bkt")["Contents"]] == [key]
    s3.copy_object(Bucket="bkt", Key="copy", CopySource={"Bucket": "bkt", "Key": key})
    assert s3.get_object(Bucket="bkt", Key="copy")["Body"].read() == key.encode()
    s3.delete_object(Bucket="bkt", Key=key)
    assert [each["Key"] for each in s3.list_objects_v2(Bucket="bkt")["Contents"]] == ["copy"]


def test_metadata_and_system_headers_come_back_as_they_were_stored(s3: Any) -> None:
    described = {
        "CacheControl": "max-age=1",
        "ContentDisposition": 'attachment; filename="a.txt"',
        "ContentEncoding": "gzip",
        "ContentLanguage": "de, en",
        "ContentType": "text/x-test; charset=utf-8",
        "WebsiteRedirectLocation": "/other",
        "StorageClass": "STANDARD_IA",
        "Metadata": {"one": "1", "two-words": "a b"},
    }
    s3.put_object(Bucket="bkt", Key="k", Body=b"x", Expires="2030-01-01", **described)
    for answer in (s3.get_object(Bucket="bkt", Key="k"), s3.head_object(Bucket="bkt", Key="k")):
        assert {name: answer[name] for name in described} == described
        assert answer["ExpiresString"] == "Tue, 01 Jan 2030 00:00:00 GMT"
        assert answer["AcceptRanges"] == "bytes"


def test_an_object_without_a_content_type_gets_the_one_of_aws(server: LiveServer, s3: Any) -> None:
    assert server.request("PUT", "/bkt/k", b"x").status == 200
    assert server.request("GET", "/bkt/k").headers["content-type"] == "binary/octet-stream"


def test_head_answers_with_the_headers_of_get(server: LiveServer, s3: Any) -> None:
    s3.put_object(Bucket="bkt", Key="k", Body=b"0123456789", Metadata={"a": "b"})
    for extra in ({}, {"range": "bytes=2-5"}, {"x-amz-checksum-mode": "ENABLED"}):
        got = server.request("GET", "/bkt/k", headers=extra)
        head = server.request("HEAD", "/bkt/k", headers=extra)
        assert head.status == got.status
        assert head.body == b""
        changing = {"date", "x-amz-request-id"}
        assert {n: v for n, v in head.headers.items() if n not in changing} == {
            n: v for n, v in got.headers.items() if n not in changing
        }


def test_response_headers_can_be_overridden_by_signed_requests_only(store: Store) -> None:
    live = LiveServer(store, is_open=True)
    live.start()
    try:
        client = live.client()
        client.create_bucket(Bucket="bkt")
        client.put_object(Bucket="bkt", Key="k", Body=b"x", ContentType="text/plain")
        answer = client.get_object(
            Bucket="bkt", Key="k", ResponseContentType="a/b", ResponseContentDisposition="inline"
        )
        assert (answer["ContentType"], answer["ContentDisposition"]) == ("a/b", "inline")
        path = "/bkt/k?response-content-type=a%2Fb"
        assert live.request("GET", path, credential=None).code == "InvalidRequest"
        assert live.request("GET", "/bkt/k", credential=None).body == b"x"
        split = live.request("GET", "/bkt/k?response-content-type=a%0D%0Ax-evil%3A%201")
        assert split.status == 400
        assert "x-evil" not in split.headers
    finally:
        live.stop()


def test_user_metadata_above_two_kibibytes_is_refused(s3: Any) -> None:
    s3.put_object(Bucket="bkt", Key="k", Body=b"", Metadata={"m": "x" * 2047})
    found = refusal(s3.put_object, Bucket="bkt", Key="l", Body=b"", Metadata={"m": "x" * 2048})
    assert found == (400, "MetadataTooLarge")
    assert refusal(s3.head_object, Bucket="bkt", Key="l")[0] == 404


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("aws-chunked", None),
        ("gzip,aws-chunked", "gzip"),
        ("aws-chunked, gzip", "gzip"),
        ("aws-chunked, aws-chunked", None),
        ("deflate, gzip", "deflate, gzip"),
    ],
)
def test_the_transfer_coding_aws_chunked_is_not_stored(sent: str, stored: str | None) -> None:
    assert system_headers({"ContentEncoding": sent}).get("content-encoding") == stored


# --- integrity -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [3, 300_000])
def test_a_wrong_content_md5_is_refused_and_leaves_nothing(server: LiveServer, s3: Any, size: int) -> None:
    data = b"x" * size
    right = base64.b64encode(hashlib.md5(data).digest()).decode()
    wrong = base64.b64encode(hashlib.md5(b"other").digest()).decode()
    assert server.request("PUT", "/bkt/k", data, {"content-md5": wrong}).code == "BadDigest"
    for invalid in ("", "abc", "AAAA", right[:-4]):
        assert server.request("PUT", "/bkt/k", data, {"content-md5": invalid}).code == "InvalidDigest"
    assert server.request("HEAD", "/bkt/k").status == 404
    assert server.request("PUT", "/bkt/k", data, {"content-md5": right}).status == 200


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("size", [5, 200_000])
def test_every_checksum_is_verified_stored_and_returned_on_request(
    server: LiveServer, s3: Any, algorithm: str, size: int
) -> None:
    data = os.urandom(size)
    header = f"x-amz-checksum-{algorithm.lower()}"
    value = checksum_of(algorithm, data)
    stored = server.request("PUT", "/bkt/k", data, {header: value})
    assert stored.status == 200
    assert stored.headers[header] == value
    assert stored.headers["x-amz-checksum-type"] == "FULL_OBJECT"
    assert header not in server.request("GET", "/bkt/k").headers
    got = server.request("GET", "/bkt/k", headers={"x-amz-checksum-mode": "ENABLED"})
    assert got.headers[header] == value
    ranged = server.request("GET", "/bkt/k", headers={"x-amz-checksum-mode": "ENABLED", "range": "bytes=0-1"})
    assert ranged.status == 206
    assert header not in ranged.headers
    wrong = checksum_of(algorithm, data + b"!")
    assert server.request("PUT", "/bkt/new", data, {header: wrong}).code == "BadDigest"
    assert server.request("PUT", "/bkt/new", data, {header: "bad"}).code == "BadDigest"
    assert server.request("HEAD", "/bkt/new").status == 404


def test_without_a_checksum_of_the_client_a_crc64nvme_is_stored(server: LiveServer, s3: Any) -> None:
    data = os.urandom(1000)
    stored = server.request("PUT", "/bkt/k", data)
    assert stored.headers["x-amz-checksum-crc64nvme"] == checksum_of("CRC64NVME", data)


@pytest.mark.parametrize("mode", ["ENABLED", "enabled"])
def test_the_checksum_mode_is_taken_in_any_case(server: LiveServer, s3: Any, mode: str) -> None:
    """The SDK for C++, and so pyarrow, says it in lower case."""
    s3.put_object(Bucket="bkt", Key="k", Body=b"x", ChecksumAlgorithm="SHA256")
    answer = server.request("GET", "/bkt/k", headers={"x-amz-checksum-mode": mode})
    assert answer.headers["x-amz-checksum-sha256"] == checksum_of("SHA256", b"x")
    assert server.request("GET", "/bkt/k", headers={"x-amz-checksum-mode": "off"}).code == "InvalidRequest"


def test_two_checksums_or_one_that_does_not_fit_its_name_are_refused(server: LiveServer, s3: Any) -> None:
    crc = base64.b64encode(zlib.crc32(b"x").to_bytes(4, "big")).decode()
    two = {"x-amz-checksum-crc32": crc, "x-amz-checksum-sha1": checksum_of("SHA1", b"x")}
    assert server.request("PUT", "/bkt/k", b"x", two).code == "InvalidRequest"
    misnamed = {"x-amz-checksum-crc32": crc, "x-amz-sdk-checksum-algorithm": "SHA1"}
    assert server.request("PUT", "/bkt/k", b"x", misnamed).code == "InvalidRequest"
    promised = {"x-amz-sdk-checksum-algorithm": "CRC32"}
    assert server.request("PUT", "/bkt/k", b"x", promised).code == "InvalidRequest"
    assert server.request("HEAD", "/bkt/k").status == 404


def test_a_wrong_payload_hash_is_refused_and_leaves_nothing(server: LiveServer, s3: Any) -> None:
    import http.client

    from tests.server.conftest import ALICE, sign

    headers = sign("PUT", f"{server.url}/bkt/k", {"host": f"127.0.0.1:{server.port}"}, b"right", ALICE)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("PUT", "/bkt/k", b"wrong", headers)
    answer = connection.getresponse()
    assert answer.status == 400
    assert b"XAmzContentSHA256Mismatch" in answer.read()
    connection.close()
    assert server.request("HEAD", "/bkt/k").status == 404


@pytest.mark.parametrize("size", [10, 2 << 20])
def test_a_client_that_leaves_in_the_middle_leaves_nothing(server: LiveServer, s3: Any, size: int) -> None:
    import socket

    from tests.server.conftest import ALICE, sign

    fields = {"host": f"127.0.0.1:{server.port}", "x-amz-content-sha256": "UNSIGNED-PAYLOAD"}
    headers = sign("PUT", f"{server.url}/bkt/k", fields, b"", ALICE)
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(
            f"PUT /bkt/k HTTP/1.1\r\n{head}content-length: {size}\r\n\r\n".encode() + b"x" * (size - 1)
        )
    assert server.request("GET", "/bkt/k").code == "NoSuchKey"


def without_a_length(server: LiveServer, path: str) -> bytes:
    """The answer to a PUT that says nothing of a body, as `curl -X PUT` sends it."""
    import socket

    from tests.server.conftest import ALICE, sign

    headers = sign("PUT", f"{server.url}{path}", {"host": f"127.0.0.1:{server.port}"}, b"", ALICE)
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(f"PUT {path} HTTP/1.1\r\n{head}connection: close\r\n\r\n".encode())
        answer = b""
        while data := sock.recv(65536):
            answer += data
    return answer


def test_a_body_needs_a_length(server: LiveServer, s3: Any) -> None:
    answer = without_a_length(server, "/bkt/k")
    assert b"411" in answer.split(b"\r\n")[0]
    assert b"MissingContentLength" in answer


def test_a_request_whose_document_may_be_left_out_needs_no_length(server: LiveServer, s3: Any) -> None:
    assert b"200" in without_a_length(server, "/new-bucket").split(b"\r\n")[0]
    assert b"MissingRequestBodyError" in without_a_length(server, "/bkt?tagging")


def test_an_object_above_five_gibibytes_is_refused_before_its_body(server: LiveServer, s3: Any) -> None:
    import socket

    from tests.server.conftest import ALICE, sign

    fields = {"host": f"127.0.0.1:{server.port}", "x-amz-content-sha256": "UNSIGNED-PAYLOAD"}
    headers = sign("PUT", f"{server.url}/bkt/k", fields, b"", ALICE)
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        length = (5 << 30) + 1
        sock.sendall(f"PUT /bkt/k HTTP/1.1\r\n{head}content-length: {length}\r\n\r\n".encode())
        assert b"EntityTooLarge" in sock.recv(65536)


# --- ranges --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "status", "first", "last"),
    [
        ("bytes=0-0", 206, 0, 0),
        ("bytes=2-5", 206, 2, 5),
        ("bytes=5-", 206, 5, 9),
        ("bytes=-3", 206, 7, 9),
        ("bytes=-100", 206, 0, 9),
        ("bytes=0-100", 206, 0, 9),
        ("bytes=9-9", 206, 9, 9),
        ("bytes=5-2", 200, 0, 9),
        ("bytes=0-1,3-4", 200, 0, 9),
        ("bytes=x-y", 200, 0, 9),
        ("lines=1-2", 200, 0, 9),
        ("bytes=-", 200, 0, 9),
        ("bytes= -3", 200, 0, 9),
        ("bytes=2 -5", 200, 0, 9),
        ("bytes=0-99999999999999999999999999", 206, 0, 9),
    ],
)
@pytest.mark.parametrize("scale", [1, 100_000])
def test_a_range_is_that_part_and_nonsense_is_the_whole(
    server: LiveServer, store: Store, header: str, status: int, first: int, last: int, scale: int
) -> None:
    """At a scale of 1 the object is inline, at 100,000 it is in chunks; the ranges are the same bytes."""
    data = b"0123456789" + b"z" * (scale - 1)
    store.create_bucket("bkt")
    store.put("bkt", "k", data)
    answer = server.request("GET", "/bkt/k", headers={"range": header})
    assert answer.status == status
    if scale == 1 or (last != 9 and first <= 5):
        assert answer.body == (data[first : last + 1] if status == 206 else data)
        if status == 206:
            assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(data)}"


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-20", "bytes=-0"])
def test_a_range_outside_the_object_is_416(server: LiveServer, store: Store, header: str) -> None:
    store.create_bucket("bkt")
    store.put("bkt", "k", b"0123456789")
    answer = server.request("GET", "/bkt/k", headers={"range": header})
    assert (answer.status, answer.code) == (416, "InvalidRange")
    assert answer.headers["content-range"] == "bytes */10"


@pytest.mark.parametrize(
    ("header", "status"), [("bytes=-1", 200), ("bytes=-0", 416), ("bytes=0-", 416), ("bytes=0-0", 416)]
)
def test_of_an_empty_object_only_its_last_bytes_can_be_had(
    server: LiveServer, store: Store, header: str, status: int
) -> None:
    store.create_bucket("bkt")
    store.put("bkt", "k", b"")
    for method in ("GET", "HEAD"):
        answer = server.request(method, "/bkt/k", headers={"range": header})
        assert (answer.status, "content-range" in answer.headers) == (status, status == 416)


def test_if_range_applies_the_range_only_to_the_same_object(server: LiveServer, store: Store) -> None:
    store.create_bucket("bkt")
    info = store.put("bkt", "k", b"0123456789")
    date = formatdate(info.modified_ms // 1000, usegmt=True)
    for validator, status in (
        (f'"{info.etag}"', 206),
        ('"other"', 200),
        (f'W/"{info.etag}"', 200),
        (date, 206),
        ("Sat, 01 Jan 2000 00:00:00 GMT", 200),
    ):
        answer = server.request("GET", "/bkt/k", headers={"range": "bytes=1-2", "if-range": validator})
        assert answer.status == status, validator


# --- conditions ----------------------------------------------------------------------------------------------

PAST = "Sat, 01 Jan 2000 00:00:00 GMT"
FUTURE = "Sat, 01 Jan 2050 00:00:00 GMT"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"if-match": "ETAG"}, 200),
        ({"if-match": "BARE"}, 200),
        ({"if-match": "*"}, 200),
        ({"if-match": '"a", ETAG'}, 200),
        ({"if-match": '"other"'}, 412),
        ({"if-none-match": "ETAG"}, 304),
        ({"if-none-match": "*"}, 304),
        ({"if-none-match": '"a", "b"'}, 200),
        ({"if-modified-since": PAST}, 200),
        ({"if-modified-since": FUTURE}, 304),
        ({"if-modified-since": "nonsense"}, 200),
        ({"if-unmodified-since": PAST}, 412),
        ({"if-unmodified-since": FUTURE}, 200),
        # RFC 9110 section 13.2.2: the entity tags go before the dates.
        ({"if-match": "ETAG", "if-unmodified-since": PAST}, 200),
        ({"if-none-match": '"other"', "if-modified-since": FUTURE}, 200),
        ({"if-none-match": "ETAG", "if-modified-since": PAST}, 304),
        ({"if-match": '"other"', "if-none-match": "ETAG"}, 412),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_conditions_on_a_read_follow_the_rfc(
    server: LiveServer, store: Store, method: str, headers: dict[str, str], status: int
) -> None:
    store.create_bucket("bkt")
    info = store.put("bkt", "k", b"data", headers={"cache-control": "no-cache"})
    filled = {n: v.replace("ETAG", f'"{info.etag}"').replace("BARE", info.etag) for n, v in headers.items()}
    answer = server.request(method, "/bkt/k", headers=filled)
    assert answer.status == status
    if status == 304:
        assert answer.body == b""
        assert answer.headers["etag"] == f'"{info.etag}"'
        assert answer.headers["cache-control"] == "no-cache"
    if status == 412 and method == "GET":
        assert answer.code == "PreconditionFailed"


def test_conditions_on_a_write_decide_before_anything_changes(s3: Any) -> None:
    etag = s3.put_object(Bucket="bkt", Key="k", Body=b"1", IfNoneMatch="*")["ETag"]
    assert refusal(s3.put_object, Bucket="bkt", Key="k", Body=b"2", IfNoneMatch="*") == (
        412,
        "PreconditionFailed",
    )
    assert refusal(s3.put_object, Bucket="bkt", Key="k", Body=b"2", IfMatch='"no"') == (
        412,
        "PreconditionFailed",
    )
    assert refusal(s3.put_object, Bucket="bkt", Key="none", Body=b"2", IfMatch=etag) == (404, "NoSuchKey")
    assert s3.get_object(Bucket="bkt", Key="k")["Body"].read() == b"1"
    s3.put_object(Bucket="bkt", Key="k", Body=b"2", IfMatch=etag)
    assert s3.get_object(Bucket="bkt", Key="k")["Body"].read() == b"2"
    now = s3.head_object(Bucket="bkt", Key="k")["ETag"]
    assert refusal(s3.put_object, Bucket="bkt", Key="k", Body=b"", IfNoneMatch=now) == (
        412,
        "PreconditionFailed",
    )


def test_conditions_on_a_delete_decide_before_anything_changes(s3: Any) -> None:
    etag = s3.put_object(Bucket="bkt", Key="k", Body=b"1")["ETag"]
    assert refusal(s3.delete_object, Bucket="bkt", Key="k", IfMatch='"no"') == (412, "PreconditionFailed")
    assert refusal(s3.delete_object, Bucket="bkt", Key="k", IfMatchSize=7) == (412, "PreconditionFailed")
    s3.delete_object(Bucket="bkt", Key="k", IfMatch=etag, IfMatchSize=1)
    for condition in ({"IfMatch": etag}, {"IfMatchSize": 7}, {"IfMatch": "*"}):
        s3.delete_object(Bucket="bkt", Key="k", **condition)
    assert refusal(s3.head_object, Bucket="bkt", Key="k")[0] == 404


# --- delete --------------------------------------------------------------------------------------------------


def test_deleting_what_is_not_there_is_no_error(s3: Any) -> None:
    assert s3.delete_object(Bucket="bkt", Key="none")["ResponseMetadata"]["HTTPStatusCode"] == 204


def test_a_batch_delete_answers_every_key_alone(s3: Any) -> None:
    for key in ("a", "b", "c"):
        s3.put_object(Bucket="bkt", Key=key, Body=b"")
    answer = s3.delete_objects(
        Bucket="bkt",
        Delete={
            "Objects": [
                {"Key": "a"},
                {"Key": "b", "ETag": '"no"'},
                {"Key": "none"},
                {"Key": "x" * 1025},
                {"Key": "c"},
            ]
        },
    )
    assert [each["Key"] for each in answer["Deleted"]] == ["a", "none", "c"]
    assert {each["Key"][:5]: each["Code"] for each in answer["Errors"]} == {
        "b": "PreconditionFailed",
        "xxxxx": "KeyTooLongError",
    }
    quiet = s3.delete_objects(Bucket="bkt", Delete={"Objects": [{"Key": "b"}], "Quiet": True})
    assert "Deleted" not in quiet
    assert "Contents" not in s3.list_objects_v2(Bucket="bkt")


def test_a_batch_delete_takes_a_thousand_keys_and_not_one_more(s3: Any) -> None:
    keys = [{"Key": f"k{number}"} for number in range(1001)]
    assert len(s3.delete_objects(Bucket="bkt", Delete={"Objects": keys[:1000]})["Deleted"]) == 1000
    assert refusal(s3.delete_objects, Bucket="bkt", Delete={"Objects": keys}) == (400, "MalformedXML")


def test_a_batch_delete_needs_a_digest_that_holds(server: LiveServer, s3: Any) -> None:
    body = b"<Delete><Object><Key>k</Key></Object></Delete>"
    assert server.request("POST", "/bkt?delete", body).code == "InvalidRequest"
    right = base64.b64encode(hashlib.md5(body).digest()).decode()
    wrong = base64.b64encode(hashlib.md5(b"").digest()).decode()
    assert server.request("POST", "/bkt?delete", body, {"content-md5": wrong}).code == "BadDigest"
    assert server.request("POST", "/bkt?delete", body, {"content-md5": right}).status == 200
    crc = checksum_of("CRC32C", body)
    assert server.request("POST", "/bkt?delete", body, {"x-amz-checksum-crc32c": crc}).status == 200


# --- copy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 300_000])
def test_a_copy_is_equal_and_keeps_or_replaces_the_metadata(s3: Any, size: int) -> None:
    data = os.urandom(size)
    s3.put_object(Bucket="bkt", Key="k", Body=data, Metadata={"a": "1"}, ContentType="text/a")
    s3.copy_object(Bucket="bkt", Key="kept", CopySource="bkt/k")
    kept = s3.get_object(Bucket="bkt", Key="kept")
    assert kept["Body"].read() == data
    assert (kept["Metadata"], kept["ContentType"]) == ({"a": "1"}, "text/a")
    s3.copy_object(
        Bucket="bkt",
        Key="new",
        CopySource="/bkt/k",
        MetadataDirective="REPLACE",
        Metadata={"z": "2"},
        ContentType="x/y",
    )
    new = s3.get_object(Bucket="bkt", Key="new")
    assert (new["Metadata"], new["ContentType"]) == ({"z": "2"}, "x/y")
    assert new["Body"].read() == data


def test_a_copy_onto_itself_must_change_something(s3: Any) -> None:
    s3.put_object(Bucket="bkt", Key="k", Body=b"x", Metadata={"a": "1"})
    assert refusal(s3.copy_object, Bucket="bkt", Key="k", CopySource="bkt/k") == (400, "InvalidRequest")
    s3.copy_object(
        Bucket="bkt", Key="k", CopySource="bkt/k", MetadataDirective="REPLACE", Metadata={"a": "2"}
    )
    assert s3.head_object(Bucket="bkt", Key="k")["Metadata"] == {"a": "2"}
    s3.copy_object(Bucket="bkt", Key="k", CopySource="bkt/k", StorageClass="STANDARD_IA")
    assert s3.head_object(Bucket="bkt", Key="k")["StorageClass"] == "STANDARD_IA"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_copy_can_ask_for_another_checksum(s3: Any, algorithm: str) -> None:
    s3.put_object(Bucket="bkt", Key="k", Body=b"data")
    result = s3.copy_object(Bucket="bkt", Key="c", CopySource="bkt/k", ChecksumAlgorithm=algorithm)[
        "CopyObjectResult"
    ]
    assert result[f"Checksum{algorithm}"] == checksum_of(algorithm, b"data")


def test_conditions_on_the_source_and_the_target_of_a_copy(s3: Any) -> None:
    etag = s3.put_object(Bucket="bkt", Key="k", Body=b"x")["ETag"]
    source = {"Bucket": "bkt", "CopySource": "bkt/k"}
    assert refusal(s3.copy_object, Key="c", CopySourceIfMatch='"no"', **source)[0] == 412
    assert refusal(s3.copy_object, Key="c", CopySourceIfNoneMatch=etag, **source)[0] == 412
    s3.copy_object(Key="c", CopySourceIfMatch=etag, IfNoneMatch="*", **source)
    assert refusal(s3.copy_object, Key="c", IfNoneMatch="*", **source)[0] == 412


@pytest.mark.parametrize(
    ("source", "status"),
    [
        ("", 400),
        ("bkt", 400),
        ("/bkt/", 400),
        ("/", 400),
        ("bkt/%FF", 400),
        ("bkt/k?versionId=", 400),
        ("bkt/" + "x" * 1025, 400),
        ("none/k", 404),
        ("bkt/none", 404),
        ("bkt/../bkt/k", 404),
        ("bkt/%2E%2E/k", 404),
        ("bkt/k%2525", 404),
        ("bkt%2Fk%2525", 404),
        ("/bkt/k", 200),
        ("bkt%2Fk", 200),
        ("%2Fbkt%2Fk", 200),
    ],
)
def test_a_copy_source_is_decoded_once_and_never_normalised(
    server: LiveServer, s3: Any, source: str, status: int
) -> None:
    s3.put_object(Bucket="bkt", Key="k", Body=b"x")
    answer = server.request("PUT", "/bkt/target", headers={"x-amz-copy-source": source})
    assert answer.status == status, answer.body


# --- what is not implemented is said, not forgotten ----------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        {"x-amz-object-lock-event-hold": "ON"},
    ],
)
def test_a_header_that_would_be_forgotten_is_refused(
    server: LiveServer, s3: Any, header: dict[str, str]
) -> None:
    answer = server.request("PUT", "/bkt/k", b"x", header)
    assert (answer.status, answer.code) == (501, "NotImplemented")
    assert server.request("HEAD", "/bkt/k").status == 404


@pytest.mark.parametrize("acl", ["private", "bucket-owner-full-control"])
def test_an_acl_that_changes_nothing_is_accepted(s3: Any, acl: str) -> None:
    s3.put_object(Bucket="bkt", Key="k", Body=b"", ACL=acl)


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ({"x-amz-storage-class": "NONE"}, "InvalidStorageClass"),
        ({"x-amz-storage-class": "GLACIER"}, "InvalidStorageClass"),
        ({"x-amz-acl": "nobody"}, "InvalidArgument"),
        ({"x-amz-website-redirect-location": "nowhere"}, "InvalidRedirectLocation"),
        ({"x-amz-server-side-encryption": "rot13"}, "InvalidArgument"),
    ],
)
def test_a_header_with_a_wrong_value_is_refused(
    server: LiveServer, s3: Any, header: dict[str, str], code: str
) -> None:
    assert server.request("PUT", "/bkt/k", b"x", header).code == code


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=60)
)
def test_whatever_its_key_an_object_is_found_again(s3: Any, key: str) -> None:
    s3.put_object(Bucket="bkt", Key=key, Body=b"x")
    assert s3.get_object(Bucket="bkt", Key=key)["Body"].read() == b"x"
    s3.delete_object(Bucket="bkt", Key=key)
