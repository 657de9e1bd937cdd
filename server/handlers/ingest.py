"""From the request body to a writer of the engine: decoded, hashed, verified, then handed over for the commit.

Must not know: which operation it serves, signatures (the decoder checks them).
Invariants:
* Nothing is committed before the whole body has arrived and its length, payload hash, Content-MD5 and checksum hold.
* On any failure, a disconnect and a cancellation included, the writer is aborted, and never while a thread uses it.
* A body above the writer's `inline_max` is decoded, hashed and written by threads, and never held whole (pump.py).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Any, Final, Protocol

import msgspec

from cordwood.server.handlers.describe import ALGORITHMS
from cordwood.server.handlers.pump import pump
from cordwood.server.handlers.request import Request
from cordwood.server.wire.aws_chunked import PayloadDecoder, Piece, payload_decoder
from cordwood.server.wire.checksums import Hasher, digest_bytes, hasher
from cordwood.server.wire.errors import S3Error, s3_error
from cordwood.server.wire.interpret import read_document
from cordwood.server.wire.xml import MAX_BYTES

MAX_UPLOAD_BYTES: Final = 5 << 30

_PARSE_ON_LOOP_BYTES: Final = 16 << 10

# What AWS computes when the client names no algorithm.
DEFAULT_ALGORITHM: Final = "CRC64NVME"

_HEADER_OF: Final = {algorithm: f"x-amz-checksum-{algorithm.lower()}" for algorithm in ALGORITHMS}
_CHECKSUM: Final = "x-amz-checksum-"
_CHECKSUM_HEADERS: Final = frozenset(
    (*_HEADER_OF.values(), f"{_CHECKSUM}algorithm", f"{_CHECKSUM}type", f"{_CHECKSUM}mode")
)
_ALGORITHM_OF: Final = {header: algorithm for algorithm, header in _HEADER_OF.items()}


class Writer(Protocol):
    """What an ObjectWriter and a PartWriter have in common here."""

    @property
    def size(self) -> int: ...
    @property
    def inline_max(self) -> int: ...
    def write(self, data: bytes | bytearray | memoryview) -> None:
        """`digest` and `store`."""
        ...

    def digest(self, data: bytes | bytearray | memoryview) -> None:
        """Adds bytes to the MD5; may run beside `store` in another thread."""
        ...

    def store(self, data: bytes | bytearray | memoryview) -> None: ...
    def flush(self) -> None: ...
    def md5_hex(self) -> str: ...
    def abort(self) -> None: ...


class Integrity(msgspec.Struct, gc=False):
    """What the client promised about its body. `algorithm` is None when it named none."""

    md5_hex: str | None
    algorithm: str | None
    expected: str | None
    """The checksum in the header; None when it comes in the trailer, or not at all."""
    is_trailing: bool

    def verify(self, computed: dict[str, str], md5_hex: str | None, trailers: dict[str, str]) -> None:
        """Compare the promises with what arrived; S3Error("BadDigest") on the first that does not hold."""
        if self.md5_hex is not None and self.md5_hex != md5_hex:
            raise s3_error(
                "BadDigest",
                "The Content-MD5 you specified did not match what we received.",
                calculated_digest=base64.b64encode(bytes.fromhex(md5_hex or "")).decode(),
                expected_digest=self.md5_hex,
            )
        if self.algorithm is None:
            return
        expected = self.expected
        if self.is_trailing:
            expected = trailers.get(_HEADER_OF[self.algorithm])
            if expected is None:
                raise s3_error("MalformedTrailerError")
            check_digest(self.algorithm, expected)
        if expected is not None and expected != computed[self.algorithm]:
            raise s3_error(
                "BadDigest", f"The {self.algorithm} you specified did not match the calculated checksum."
            )


def integrity(request: Request) -> Integrity:
    """Read the checks from the headers, refusing those that cannot be meant."""
    headers = request.head.headers
    content_md5 = headers.get("content-md5")
    md5_hex = _content_md5(content_md5) if content_md5 is not None else None
    named = request.params.get("ChecksumAlgorithm")
    algorithm = expected = None
    given = headers.keys() & _ALGORITHM_OF.keys()
    if any(name.startswith(_CHECKSUM) and name not in _CHECKSUM_HEADERS for name in headers):
        raise s3_error(
            "InvalidRequest", "The algorithm type you specified in x-amz-checksum- header is invalid."
        )
    if len(given) > 1:
        raise several_checksums()
    for name in given:
        algorithm, expected = _ALGORITHM_OF[name], headers[name].strip()
        check_digest(algorithm, expected)
    is_trailing = False
    for name in request.verified.payload.trailer_names:
        trailing = _ALGORITHM_OF.get(name)
        if trailing is None:
            raise s3_error(
                "InvalidRequest", "The value specified in the x-amz-trailer header is not supported"
            )
        if algorithm is not None:
            raise several_checksums()
        algorithm, is_trailing = trailing, True
    if named is not None:
        if algorithm is None:
            raise s3_error(
                "InvalidRequest",
                "x-amz-sdk-checksum-algorithm specified, but no corresponding x-amz-checksum-* or x-amz-trailer "
                "headers were found.",
            )
        if named != algorithm:
            raise s3_error("InvalidRequest", "Value for x-amz-sdk-checksum-algorithm header is invalid.")
    return Integrity(md5_hex, algorithm, expected, is_trailing)


def several_checksums() -> S3Error:
    return s3_error(
        "InvalidRequest",
        "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.",
    )


def is_digest(algorithm: str, value: str) -> bool:
    """Is this base64 of a digest of the right length?"""
    try:
        return len(base64.b64decode(value, validate=True)) == digest_bytes(algorithm)
    except (binascii.Error, ValueError):
        return False


def check_digest(algorithm: str, value: str) -> None:
    if not is_digest(algorithm, value):
        raise s3_error("BadDigest", f"Value for {_HEADER_OF[algorithm]} header is invalid.")


def _content_md5(text: str) -> str:
    try:
        digest = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        digest = b""
    if len(digest) != 16:
        raise s3_error("InvalidDigest", None, (), **{"Content-MD5": text})
    return digest.hex()


def declared_bytes(
    request: Request, limit: int = MAX_UPLOAD_BYTES, *, needs_length: bool = True
) -> int | None:
    """The length of the decoded body as declared, None when only its end will tell. Refuses what is too large."""
    plan = request.verified.payload
    size = plan.decoded_length if plan.is_streaming else request.head.content_length
    if size is None and not request.head.is_chunked:
        if needs_length:
            raise s3_error("MissingContentLength")
        return 0
    if size is not None and size > limit:
        raise s3_error("EntityTooLarge", proposed_size=size, max_size_allowed=limit)
    return size


async def ingest(
    request: Request,
    writer: Writer,
    checks: Integrity,
    algorithms: tuple[str, ...],
    *,
    needs_length: bool = True,
) -> dict[str, str]:
    """Move the body into `writer` and verify it. Returns the checksum by each of `algorithms`.

    Aborts the writer on failure. The caller commits; nothing is left to be flushed.
    """
    try:
        hashers = {algorithm: hasher(algorithm) for algorithm in algorithms}
        if checks.algorithm is not None and checks.algorithm not in hashers:
            hashers[checks.algorithm] = hasher(checks.algorithm)
        decoder = payload_decoder(request.verified.payload, request.head)
        sink = _Sink(decoder, tuple(hashers.values()), writer)
        size = declared_bytes(request, needs_length=needs_length)
        raw_size = request.head.content_length
        if size is None or raw_size is None or raw_size > writer.inline_max:
            service = request.service
            await pump(service.bridge, service.buffers, request.body, raw_size, sink)
        else:
            receive = request.body.receive
            while data := await receive():
                for piece in sink.decode(data):
                    sink.store(piece)
                    writer.digest(piece)
        trailers = decoder.finish()
        computed = {algorithm: each.base64() for algorithm, each in hashers.items()}
        md5_hex = writer.md5_hex()
        checks.verify(computed, md5_hex, trailers)
    except BaseException:
        writer.abort()
        raise
    return computed


def is_small(request: Request, limit: int) -> bool:
    """Whether the body is the payload as it is, and no longer than `limit`."""
    size = request.head.content_length
    return size is not None and size <= limit and not request.verified.payload.is_streaming


async def receive_small(
    request: Request, checks: Integrity, algorithm: str
) -> tuple[bytes, bytes, dict[str, str]]:
    """A body that `is_small`, whole; its MD5 and its checksum by `algorithm`. Verified like any other."""
    receive = request.body.receive
    data = await receive()
    if len(data) != request.head.content_length:
        pieces = [data]
        while piece := await receive():
            pieces.append(piece)
        data = b"".join(pieces)
    decoder = payload_decoder(request.verified.payload, request.head)
    decoder.feed(data)
    trailers = decoder.finish()
    hashing = hasher(algorithm)
    hashing.update(data)
    computed = {algorithm: hashing.base64()}
    md5 = hashlib.md5(data, usedforsecurity=False)
    checks.verify(computed, md5.hexdigest(), trailers)
    return data, md5.digest(), computed


class _Sink:
    """Decodes, hashes and writes."""

    __slots__ = ("_size", "_updates", "decode", "digest", "flush", "_write")

    def __init__(self, decoder: PayloadDecoder, hashers: tuple[Hasher, ...], writer: Writer) -> None:
        self.decode = decoder.feed
        self.digest = writer.digest
        self.flush = writer.flush
        self._write = writer.store
        self._updates = tuple(each.update for each in hashers)
        self._size = 0

    def store(self, piece: Piece) -> None:
        self._size += len(piece)
        if self._size > MAX_UPLOAD_BYTES:
            raise s3_error("EntityTooLarge", max_size_allowed=MAX_UPLOAD_BYTES)
        for update in self._updates:
            update(piece)
        self._write(piece)


async def receive_document(
    request: Request, *, must_have_digest: bool = False, is_object_checksum: bool = False
) -> bytes:
    """A small body whole, verified like any other. Refuses more than MAX_BYTES before reading.

    `must_have_digest`: the operation is one of those for which AWS insists on a Content-MD5 or a checksum.
    `is_object_checksum`: the x-amz-checksum-* headers speak of an object, not of this body.
    """
    checks = Integrity(None, None, None, False) if is_object_checksum else integrity(request)
    if must_have_digest and checks.md5_hex is None and checks.algorithm is None:
        raise s3_error(
            "InvalidRequest", "Missing required header for this request: Content-MD5 OR x-amz-checksum-*"
        )
    # A request without any length has no body (RFC 9112 section 6.3): `curl -X PUT` makes a bucket so.
    size = declared_bytes(request, needs_length=False)
    if size is not None and size > MAX_BYTES:
        raise s3_error("MaxMessageLengthExceeded", max_message_length_bytes=MAX_BYTES)
    memory = _Memory()
    algorithms = (checks.algorithm,) if checks.algorithm is not None else ()
    await ingest(request, memory, checks, algorithms, needs_length=False)
    return bytes(memory.data)


async def receive_structure(
    request: Request, *, must_have_digest: bool = False, is_object_checksum: bool = False
) -> dict[str, Any]:
    """The document in the body, read by the model. A long one is parsed in a thread: 10,000 parts take 0.1 s."""
    data = await receive_document(
        request, must_have_digest=must_have_digest, is_object_checksum=is_object_checksum
    )
    if len(data) <= _PARSE_ON_LOOP_BYTES:
        return read_document(request.operation, data)
    return await request.service.bridge.run(read_document, request.operation, data)


class _Memory:
    """A writer that only keeps the bytes."""

    inline_max = MAX_BYTES

    def __init__(self) -> None:
        self.data = bytearray()

    @property
    def size(self) -> int:
        return len(self.data)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if len(self.data) + len(data) > MAX_BYTES:
            raise s3_error("MaxMessageLengthExceeded", max_message_length_bytes=MAX_BYTES)
        self.data += data

    store = write

    def digest(self, data: bytes | bytearray | memoryview) -> None:
        """The MD5 is taken at the end."""

    def flush(self) -> None:
        """There is nothing behind the memory."""

    def md5_hex(self) -> str:
        return hashlib.md5(self.data, usedforsecurity=False).hexdigest()

    def abort(self) -> None:
        self.data.clear()
