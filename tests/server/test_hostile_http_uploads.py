"""Uploads in every framing through the whole server: the good ones are stored, the broken ones leave nothing behind.

Invariant: after a refused upload the key still has what it had before, and the same connection or a new one works on.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cordwood.server.wire.checksums import hasher
from cordwood.server.wire.signing import (
    EMPTY_SHA256,
    UNSIGNED_PAYLOAD,
    presign_url,
    sign,
    sign_headers,
    signing_key,
)
from tests.server.conftest import ALICE, Answer, LiveServer

CRC = "x-amz-checksum-crc32c"
SIGNED = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
SIGNED_TRAILER = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
UNSIGNED_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
PATH = "/bucket/key"
OLD = b"what was there before"


def crc32c(data: bytes) -> str:
    running = hasher("CRC32C")
    running.update(data)
    return running.base64()


@dataclass
class Upload:
    """One PUT, signed, with its body framed as its payload kind says; each field can be made wrong."""

    payload: str
    data: bytes
    chunk_bytes: int = 8192
    headers: dict[str, str | None] = field(default_factory=dict)
    """Replaced before signing; None removes."""
    harm: Callable[[bytes], bytes] = bytes
    """Applied to the framed body before its length is taken."""
    transfer_chunked: bool = False
    trailer: tuple[str, str] | None = None

    def send(self, server: LiveServer) -> Answer:
        now = datetime.now(UTC)
        host = f"127.0.0.1:{server.port}"
        is_streaming = self.payload.startswith("STREAMING-")
        headers: dict[str, str | None] = {"host": host}
        if is_streaming:
            headers |= {
                "content-encoding": "aws-chunked",
                "x-amz-decoded-content-length": str(len(self.data)),
            }
        if self.payload.endswith("-TRAILER"):
            headers["x-amz-trailer"] = CRC
        sent = {name: value for name, value in (headers | self.headers).items() if value is not None}
        sent |= sign_headers("PUT", f"http://{host}{PATH}", sent, self.payload, ALICE, "us-east-1", now)
        body = self.frame(sent["authorization"][-64:], now) if is_streaming else self.data
        body = self.harm(body)
        if self.transfer_chunked:
            sent["transfer-encoding"] = "chunked"
            body = b"".join(
                b"%x\r\n%b\r\n" % (len(body[i : i + 5000]), body[i : i + 5000])
                for i in range(0, len(body), 5000)
            )
            body += b"0\r\n\r\n"
        else:
            sent["content-length"] = str(len(body))
        return raw_request(server, "PUT", PATH, sent, body)

    def frame(self, seed: str, now: datetime) -> bytes:
        chunks = [
            self.data[start : start + self.chunk_bytes]
            for start in range(0, len(self.data), self.chunk_bytes)
        ]
        is_signed = self.payload != UNSIGNED_TRAILER
        stamp = now.strftime("%Y%m%dT%H%M%SZ")
        scope = f"{stamp[:8]}/us-east-1/s3/aws4_request"
        key = signing_key(ALICE.secret_key, stamp[:8], "us-east-1", "s3")
        body = bytearray()
        for chunk in [*chunks, b""]:
            body += b"%x" % len(chunk)
            if is_signed:
                hashes = [EMPTY_SHA256, hashlib.sha256(chunk).hexdigest()]
                seed = sign(key, "\n".join(["AWS4-HMAC-SHA256-PAYLOAD", stamp, scope, seed, *hashes]))
                body += f";chunk-signature={seed}".encode()
            body += b"\r\n" + chunk + (b"\r\n" if chunk else b"")
        if self.payload.endswith("-TRAILER"):
            name, value = self.trailer or (CRC, crc32c(self.data))
            body += f"{name}:{value}\r\n".encode()
            if is_signed:
                digest = hashlib.sha256(f"{name}:{value}\n".encode()).hexdigest()
                signature = sign(key, "\n".join(["AWS4-HMAC-SHA256-TRAILER", stamp, scope, seed, digest]))
                body += f"x-amz-trailer-signature:{signature}\r\n".encode()
        return bytes(body + b"\r\n")


def raw_request(
    server: LiveServer, method: str, target: str, headers: dict[str, str], body: bytes = b""
) -> Answer:
    """Bytes as they are; the server may answer before it has read them all."""
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall("\r\n".join(lines).encode() + body)
        received = b""
        while b"\r\n\r\n" not in received:
            received += connection.recv(65536) or b"\r\n\r\n"
        start, _, rest = received.partition(b"\r\n\r\n")
        line, *fields = start.decode().split("\r\n")
        answer_headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in fields)}
        while len(rest) < int(answer_headers.get("content-length", "0")):
            rest += connection.recv(65536) or b"\0"
    return Answer(int(line.split()[1]), answer_headers, rest)


@pytest.fixture
def old(s3: Any) -> bytes:
    """The bucket holds an object under the key."""
    s3.create_bucket(Bucket="bucket")
    s3.put_object(Bucket="bucket", Key="key", Body=OLD)
    return OLD


def stored(s3: Any) -> bytes:
    data: bytes = s3.get_object(Bucket="bucket", Key="key")["Body"].read()
    return data


SIZES = [0, 5, 8192, 20_000, 300_000]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("transfer_chunked", [False, True])
@pytest.mark.parametrize("payload", [SIGNED, SIGNED_TRAILER, UNSIGNED_TRAILER])
def test_a_good_upload_is_stored_in_every_framing(
    server: LiveServer, s3: Any, old: bytes, payload: str, size: int, transfer_chunked: bool
) -> None:
    data = hashlib.shake_128(b"seed").digest(size)
    answer = Upload(payload, data, transfer_chunked=transfer_chunked).send(server)
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["etag"] == f'"{hashlib.md5(data).hexdigest()}"'
    assert stored(s3) == data
    assert s3.head_object(Bucket="bucket", Key="key").get("ContentEncoding", "") == ""


@pytest.mark.parametrize("payload", [SIGNED, SIGNED_TRAILER, UNSIGNED_TRAILER])
def test_a_framed_body_needs_no_content_encoding(
    server: LiveServer, s3: Any, old: bytes, payload: str
) -> None:
    """As minio-go sends it; what is not said is not stored either."""
    assert Upload(payload, SMALL, headers={"content-encoding": None}).send(server).status == 200
    assert stored(s3) == SMALL
    assert "ContentEncoding" not in s3.head_object(Bucket="bucket", Key="key")


@pytest.mark.parametrize("size", SIZES)
def test_a_good_upload_with_one_hash_or_none_is_stored(
    server: LiveServer, s3: Any, old: bytes, size: int
) -> None:
    data = hashlib.shake_128(b"seed").digest(size)
    for payload in (UNSIGNED_PAYLOAD, hashlib.sha256(data).hexdigest()):
        assert Upload(payload, data).send(server).status == 200
        assert stored(s3) == data


def cut(count: int) -> Callable[[bytes], bytes]:
    return lambda body: body[:-count]


def add(extra: bytes) -> Callable[[bytes], bytes]:
    return lambda body: body + extra


def swap(before: bytes, after: bytes) -> Callable[[bytes], bytes]:
    def harm(body: bytes) -> bytes:
        assert before in body
        return body.replace(before, after, 1)

    return harm


def flip(body: bytes) -> bytes:
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]


def break_last_signature(body: bytes) -> bytes:
    place = body.rindex(b"signature") + 12
    return body[:place] + (b"0" if body[place : place + 1] != b"0" else b"1") + body[place + 1 :]


SMALL = b"x" * 5
LARGE = b"x" * 200_000
BAD = [
    pytest.param(
        Upload(UNSIGNED_TRAILER, SMALL, harm=swap(b"5\r\n", b"0x5\r\n")), "IncompleteBody", id="size 0x5"
    ),
    pytest.param(
        Upload(UNSIGNED_TRAILER, SMALL, harm=swap(b"5\r\n", b"+5\r\n")), "IncompleteBody", id="size +5"
    ),
    pytest.param(
        Upload(UNSIGNED_TRAILER, SMALL, harm=swap(b"5\r\n", b"0" * 16 + b"5\r\n")),
        "IncompleteBody",
        id="17 digits",
    ),
    pytest.param(
        Upload(UNSIGNED_TRAILER, SMALL, harm=swap(b"5\r\n", b"5\n")), "IncompleteBody", id="bare LF"
    ),
    pytest.param(
        Upload(UNSIGNED_TRAILER, SMALL, harm=lambda _: b"5\r\nxxxxx\r\n"),
        "IncompleteBody",
        id="no last chunk",
    ),
    pytest.param(Upload(SIGNED, LARGE, harm=cut(88)), "IncompleteBody", id="no last signed chunk"),
    pytest.param(Upload(UNSIGNED_TRAILER, SMALL, harm=add(b"x")), "IncompleteBody", id="bytes after the end"),
    pytest.param(
        Upload(SIGNED, LARGE, harm=add(b"0\r\n\r\n")), "IncompleteBody", id="bytes after the signed end"
    ),
    pytest.param(
        Upload(SIGNED, SMALL, harm=break_last_signature), "SignatureDoesNotMatch", id="bad last signature"
    ),
    pytest.param(Upload(SIGNED, LARGE, harm=flip), "SignatureDoesNotMatch", id="changed data"),
    pytest.param(
        Upload(SIGNED, LARGE, harm=swap(b"xx", b"yx")), "SignatureDoesNotMatch", id="changed first chunk"
    ),
    pytest.param(
        Upload(SIGNED_TRAILER, SMALL, harm=break_last_signature),
        "SignatureDoesNotMatch",
        id="bad trailer signature",
    ),
    pytest.param(Upload(SIGNED, LARGE, chunk_bytes=8191), "InvalidChunkSizeError", id="small chunks"),
    pytest.param(
        Upload(UNSIGNED_TRAILER, LARGE, trailer=(CRC, "AAAAAA==")), "BadDigest", id="wrong checksum"
    ),
    pytest.param(
        Upload(SIGNED_TRAILER, SMALL, trailer=(CRC, "AAAAAA==")), "BadDigest", id="wrong signed checksum"
    ),
    pytest.param(
        Upload(UNSIGNED_TRAILER, SMALL, trailer=("x-amz-acl", "public-read")),
        "MalformedTrailerError",
        id="other trailer",
    ),
    pytest.param(
        Upload(UNSIGNED_TRAILER, SMALL, harm=lambda _: b"5\r\nxxxxx\r\n0\r\n\r\n"),
        "MalformedTrailerError",
        id="no trailer",
    ),
    pytest.param(
        Upload(UNSIGNED_TRAILER, SMALL, headers={"x-amz-trailer": "x-amz-acl"}),
        "InvalidRequest",
        id="forbidden trailer",
    ),
    pytest.param(
        Upload(UNSIGNED_TRAILER, SMALL, headers={"x-amz-decoded-content-length": "4"}),
        "IncompleteBody",
        id="too long",
    ),
    pytest.param(
        Upload(SIGNED, LARGE, headers={"x-amz-decoded-content-length": "200001"}),
        "IncompleteBody",
        id="too short",
    ),
    pytest.param(
        Upload(SIGNED, SMALL, headers={"x-amz-decoded-content-length": None}),
        "MissingContentLength",
        id="no length",
    ),
    pytest.param(
        Upload(UNSIGNED_PAYLOAD, SMALL, headers={"content-encoding": "aws-chunked"}),
        "InvalidRequest",
        id="not streaming",
    ),
    pytest.param(Upload("0" * 64, SMALL), "XAmzContentSHA256Mismatch", id="wrong payload hash"),
    pytest.param(
        Upload("0" * 64, LARGE), "XAmzContentSHA256Mismatch", id="wrong payload hash of a large body"
    ),
    pytest.param(
        Upload(UNSIGNED_PAYLOAD, SMALL, headers={"content-md5": "AAAAAAAAAAAAAAAAAAAAAA=="}),
        "BadDigest",
        id="wrong MD5",
    ),
    pytest.param(
        Upload(UNSIGNED_PAYLOAD, LARGE, headers={CRC: "AAAAAA=="}), "BadDigest", id="wrong header checksum"
    ),
]


@pytest.mark.parametrize(("upload", "code"), BAD)
def test_a_broken_upload_is_refused_and_leaves_what_was_there(
    server: LiveServer, s3: Any, old: bytes, upload: Upload, code: str
) -> None:
    answer = upload.send(server)
    assert 400 <= answer.status < 500
    assert answer.code == code
    assert stored(s3) == old
    listing = s3.list_objects_v2(Bucket="bucket")
    assert [(each["Key"], each["Size"]) for each in listing["Contents"]] == [("key", len(old))]


# -- who asks ------------------------------------------------------------------------------------------------


def signed_get(server: LiveServer, **changes: Any) -> dict[str, str]:
    headers = {"host": f"127.0.0.1:{server.port}"}
    arguments = {"credential": ALICE, "region": "us-east-1", "now": datetime.now(UTC), **changes}
    return headers | sign_headers("GET", f"{server.url}{PATH}", headers, EMPTY_SHA256, **arguments)


def test_requests_signed_wrongly_learn_nothing(server: LiveServer, s3: Any, old: bytes) -> None:
    assert raw_request(server, "GET", PATH, signed_get(server)).body == old
    forged = signed_get(server)
    forged["authorization"] = forged["authorization"][:-4] + "0000"
    truncated = signed_get(server)
    truncated["authorization"] = truncated["authorization"][:-1]
    late = signed_get(server, now=datetime.now(UTC) - timedelta(minutes=16))
    for headers, status, code in (
        (forged, 403, "SignatureDoesNotMatch"),
        (truncated, 403, "SignatureDoesNotMatch"),
        (late, 403, "RequestTimeTooSkewed"),
        (signed_get(server, region="eu-north-1"), 400, "AuthorizationHeaderMalformed"),
        (signed_get(server, service="ec2"), 400, "AuthorizationHeaderMalformed"),
        (signed_get(server) | {"x-amz-acl": "private"}, 403, "AccessDenied"),
        ({"host": "h"}, 403, "AccessDenied"),
    ):
        answer = raw_request(server, "GET", PATH, headers)
        assert (answer.status, answer.code) == (status, code)
        assert old not in answer.body
        assert ALICE.secret_key.encode() not in answer.body


def test_a_presigned_url_works_once_signed_and_only_so(server: LiveServer, s3: Any, old: bytes) -> None:
    url = presign_url("GET", f"{server.url}{PATH}", ALICE, "us-east-1", datetime.now(UTC), 60)
    target = url.removeprefix(server.url)
    host = {"host": f"127.0.0.1:{server.port}"}
    assert raw_request(server, "GET", target, host).body == old
    for wrong, code in (
        (target.replace("key", "kex"), "SignatureDoesNotMatch"),
        (target.replace("Expires=60", "Expires=61"), "SignatureDoesNotMatch"),
        (target[:-1], "SignatureDoesNotMatch"),
        (f"{target}&X-Amz-Date=20130524T000000Z", "AuthorizationQueryParametersError"),
        (target.replace("SignedHeaders=host", "SignedHeaders="), "AuthorizationQueryParametersError"),
    ):
        assert raw_request(server, "GET", wrong, host).code == code
    assert raw_request(server, "GET", target, signed_get(server)).code == "InvalidArgument"
    assert (
        raw_request(server, "PUT", target, host | {"content-length": "3"}, b"new").code
        == "SignatureDoesNotMatch"
    )
    assert stored(s3) == old


def test_an_upload_that_is_not_allowed_is_refused_before_its_body_is_asked_for(
    server: LiveServer, s3: Any
) -> None:
    headers = {"host": "h", "content-length": "1000000", "expect": "100-continue"}
    answer = raw_request(server, "PUT", "/bkt/key", headers)
    assert (answer.status, answer.code, answer.headers["connection"]) == (403, "AccessDenied", "close")
