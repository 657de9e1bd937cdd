"""The payload of an upload: removing the aws-chunked framing and holding the client to what it promised.

Must not know: sockets, the engine; which checksum algorithms there are (a trailer is a name and a text here).

The grammar (CRLF written as `\\r\\n`; `signature` is 64 lower-case hexadecimal digits):

    payload   = *chunk last trailers "\\r\\n"
    chunk     = size [ ";chunk-signature=" signature ] "\\r\\n" data "\\r\\n"
    last      = "0" [ ";chunk-signature=" signature ] "\\r\\n"
    trailers  = *( name ":" value "\\r\\n" ) [ "x-amz-trailer-signature:" signature "\\r\\n" ]

A size is 1 to 16 hexadecimal digits and not 0. The signatures are there exactly when the plan is signed.
One deviation: AWS's own document shows a checksum trailer that ends in "\\n\\r\\n", and minio-go sends its trailers so,
each line with LF and all of them with CRLF; that is accepted too.

Invariants:
* The decoded bytes and errors do not depend on how the input is cut into feeds. Work is linear in the input; memory is
  one line (at most 8 KiB) besides the piece fed; pieces of data are views of what was fed, not copies.
* Pieces come out before they are verified (a chunk's signature covers its end): nobody may act on them before `finish`.
* `finish` returns only after: the last chunk was read, nothing followed, the decoded length is as declared, each
  signature matches, and the trailers are exactly the declared ones.

Source: "Signature calculations for the authorization header: transferring payload in multiple chunks" and the same for
trailing headers, Amazon S3 API Reference.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from typing import Final, Protocol

from cordwood.server.wire.errors import S3Error, s3_error
from cordwood.server.wire.message import RequestHead
from cordwood.server.wire.signing import EMPTY_SHA256, sign
from cordwood.server.wire.sigv4 import PayloadPlan

MIN_CHUNK_BYTES: Final = 8 << 10
_MAX_SIZE_LINE_BYTES: Final = 16 + len(";chunk-signature=") + 64 + 2
_MAX_TRAILER_BYTES: Final = 8 << 10

Piece = bytes | memoryview
Data = bytes | memoryview


class PayloadDecoder(Protocol):
    """Takes the body as received; gives the payload."""

    def feed(self, data: Data) -> Sequence[Piece]:
        """Decoded pieces. Raises S3Error on what can no longer become valid."""
        ...

    def finish(self) -> dict[str, str]:
        """To be called at the end of the body: every promise is checked, and the trailers are returned."""
        ...


def payload_decoder(plan: PayloadPlan, head: RequestHead) -> PayloadDecoder:
    """The decoder for a request."""
    if plan.is_streaming:
        return _AwsChunkedDecoder(plan)
    if plan.kind == "sha256":
        return _Sha256Decoder(plan.sha256_hex, head.content_length)
    return _PlainDecoder(head.content_length)


class _PlainDecoder:
    """UNSIGNED-PAYLOAD: only the length is promised."""

    __slots__ = ("_expected", "_received")

    def __init__(self, expected: int | None) -> None:
        self._expected = expected  # None with chunked transfer coding
        self._received = 0

    def feed(self, data: Data) -> Sequence[Piece]:
        self._received += len(data)
        return (data,)

    def finish(self) -> dict[str, str]:
        if self._expected is not None and self._received != self._expected:
            raise _incomplete(self._expected, self._received)
        return {}


class _Sha256Decoder(_PlainDecoder):
    """The hash of the payload is in x-amz-content-sha256, which is signed."""

    __slots__ = ("_hash", "_promised")

    def __init__(self, promised: str, expected: int | None) -> None:
        super().__init__(expected)
        self._promised = promised
        self._hash = hashlib.sha256()

    def feed(self, data: Data) -> Sequence[Piece]:
        self._hash.update(data)
        return super().feed(data)

    def finish(self) -> dict[str, str]:
        trailers = super().finish()
        computed = self._hash.hexdigest()
        if not hmac.compare_digest(computed, self._promised):
            raise s3_error(
                "XAmzContentSHA256Mismatch",
                ClientComputedContentSHA256=self._promised,
                S3ComputedContentSHA256=computed,
            )
        return trailers


class _AwsChunkedDecoder:
    """The three STREAMING- kinds."""

    __slots__ = (
        "_chunk_hash",
        "_chunk_signature",
        "_expected",
        "_had_small_chunk",
        "_has_bare_lines",
        "_is_done",
        "_is_signed",
        "_left",
        "_line",
        "_plan",
        "_previous_signature",
        "_read",
        "_received",
        "_trailer_bytes",
        "_trailer_lines",
        "_trailer_signature",
    )

    def __init__(self, plan: PayloadPlan) -> None:
        self._plan = plan
        self._is_signed = plan.kind != "streaming-unsigned-trailer"
        self._expected = plan.decoded_length
        self._received = 0
        self._previous_signature = plan.seed_signature
        self._chunk_signature = ""
        self._chunk_hash = hashlib.sha256()
        self._had_small_chunk = False
        self._left = 0  # data bytes left of the current chunk
        self._line = b""  # the beginning of a line whose end has not arrived
        self._read = self._read_size
        self._trailer_bytes = 0
        self._has_bare_lines = False  # trailers that end in LF, and not yet all of them in CRLF
        self._trailer_lines: dict[str, str] = {}
        self._trailer_signature = ""
        self._is_done = False

    def feed(self, data: Data) -> Sequence[Piece]:
        pieces: list[Piece] = []
        view = memoryview(data)
        position, end = 0, len(data)
        while position < end:
            if self._left:
                piece = view[position : position + self._left]
                position += len(piece)
                self._left -= len(piece)
                if self._is_signed:
                    self._chunk_hash.update(piece)
                pieces.append(piece)
            elif self._is_done:
                raise _malformed("bytes follow its end")
            else:
                position = self._take_line(view, position)
        return pieces

    def finish(self) -> dict[str, str]:
        if not self._is_done:
            raise _malformed("it ends early")
        return self._trailer_lines

    def _take_line(self, view: memoryview, position: int) -> int:
        limit = _MAX_TRAILER_BYTES if self._read == self._read_trailer else _MAX_SIZE_LINE_BYTES
        front = bytes(view[position : position + limit + 1])
        newline = front.find(b"\n")
        part = front if newline < 0 else front[: newline + 1]
        line = self._line + part if self._line else part
        if len(line) > limit:
            raise _malformed("a line is too long")
        if newline < 0:
            self._line = line
        else:
            self._line = b""
            self._read(line)
        return position + len(part)

    # -- one function per kind of line -----------------------------------------------------------------------

    def _read_size(self, line: bytes) -> None:
        match = (_SIGNED_SIZE_LINE if self._is_signed else _SIZE_LINE)(line)
        if match is None:
            raise _malformed("a chunk header is not as the grammar has it")
        size = int(match[1], 16)
        if self._is_signed:
            self._chunk_signature = match[2].decode("ascii")
        if size:
            self._begin_chunk(size)
            return
        if self._received != self._expected:
            raise _incomplete(self._expected, self._received)
        if self._is_signed:
            self._check_chunk()
        self._read = self._read_last_line if self._plan.kind == "streaming-signed" else self._read_trailer

    def _begin_chunk(self, size: int) -> None:
        self._received += size
        if self._received > self._expected:
            raise _incomplete(self._expected, self._received)
        if self._is_signed:
            if self._had_small_chunk:
                raise s3_error("InvalidChunkSizeError")
            self._had_small_chunk = size < MIN_CHUNK_BYTES
        self._left = size
        self._read = self._read_end_of_data

    def _read_end_of_data(self, line: bytes) -> None:
        if line != b"\r\n":
            raise _malformed("a chunk is longer than its size")
        if self._is_signed:
            self._check_chunk()
        self._read = self._read_size

    def _read_last_line(self, line: bytes) -> None:
        if line != b"\r\n":
            raise _malformed("something other than an empty line follows the last chunk")
        self._is_done = True

    def _read_trailer(self, line: bytes) -> None:
        self._trailer_bytes += len(line)
        if self._trailer_bytes > _MAX_TRAILER_BYTES:
            raise _bad_trailer("the trailers are too long")
        if line == b"\r\n":
            if self._has_bare_lines:
                self._has_bare_lines = False  # these are ended; see the deviation above
            else:
                self._end_trailers()
            return
        if self._trailer_signature:
            raise _bad_trailer("x-amz-trailer-signature is not the last one")
        match = _TRAILER_LINE(line)
        if match is None:
            raise _bad_trailer("a line is not NAME:VALUE")
        name, value = match[1].decode("ascii").lower(), match[2].decode("ascii").strip(" ")
        is_bare = match[3] == b"\n"
        if is_bare < self._has_bare_lines or (is_bare and name == "x-amz-trailer-signature"):
            raise _bad_trailer("some lines end in LF without CR, others do not")
        self._has_bare_lines = is_bare
        if name == "x-amz-trailer-signature":
            if not self._is_signed or not _SIGNATURE(value):
                raise _bad_trailer("x-amz-trailer-signature is not expected, or not a signature")
            self._trailer_signature = value
        elif name not in self._plan.trailer_names or name in self._trailer_lines:
            raise _bad_trailer(f"{name} is not declared in x-amz-trailer, or given twice")
        else:
            self._trailer_lines[name] = value

    def _end_trailers(self) -> None:
        missing = [name for name in self._plan.trailer_names if name not in self._trailer_lines]
        if missing:
            raise _bad_trailer(f"{missing[0]} is declared in x-amz-trailer, but missing")
        if self._is_signed:
            self._check_trailers()
        self._is_done = True

    # -- signatures ------------------------------------------------------------------------------------------

    def _check_chunk(self) -> None:
        digest = self._chunk_hash.hexdigest()
        self._chunk_hash = hashlib.sha256()
        self._check("AWS4-HMAC-SHA256-PAYLOAD", f"{EMPTY_SHA256}\n{digest}", self._chunk_signature)

    def _check_trailers(self) -> None:
        if not self._trailer_signature:
            raise _bad_trailer("x-amz-trailer-signature is missing")
        text = "".join([f"{name}:{value}\n" for name, value in self._trailer_lines.items()])
        digest = hashlib.sha256(text.encode()).hexdigest()
        self._check("AWS4-HMAC-SHA256-TRAILER", digest, self._trailer_signature)

    def _check(self, algorithm: str, hashes: str, signature: str) -> None:
        """Each signature covers the one before it, back to the seed in the Authorization header."""
        plan = self._plan
        text = f"{algorithm}\n{plan.amz_date}\n{plan.scope}\n{self._previous_signature}\n{hashes}"
        if not hmac.compare_digest(sign(plan.signing_key, text), signature):
            raise s3_error("SignatureDoesNotMatch", StringToSign=text, SignatureProvided=signature)
        self._previous_signature = signature


_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})\r\n").fullmatch
_SIGNED_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,16});chunk-signature=([0-9a-f]{64})\r\n").fullmatch
_TRAILER_LINE: Final = re.compile(rb"([A-Za-z0-9-]+):([\x20-\x7e]*)(\r?\n)").fullmatch
_SIGNATURE: Final = re.compile(r"[0-9a-f]{64}").fullmatch


def _incomplete(expected: int, received: int) -> S3Error:
    return s3_error(
        "IncompleteBody",
        "You did not provide the number of bytes specified by the Content-Length HTTP header",
        NumberBytesExpected=expected,
        NumberBytesProvided=received,
    )


def _malformed(detail: str) -> S3Error:
    """AWS speaks of the end of the body whatever is wrong with the framing; the detail is ours."""
    return s3_error(
        "IncompleteBody", "The request body terminated unexpectedly", Detail=f"aws-chunked: {detail}"
    )


def _bad_trailer(detail: str) -> S3Error:
    return s3_error("MalformedTrailerError", Detail=detail)
