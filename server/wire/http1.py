"""HTTP/1.1 as a pure state machine: bytes in, request heads and body pieces out; response heads to bytes.

Must not know: sockets, time, trio, S3.

Theory of operation. A head is cut out of the input at its first empty line before anything looks inside it; then the
request line is matched here, and the header fields alone go to llhttp (through httptools) behind a constant request
line. So llhttp works as a fast, strict tokenizer of fields and never decides where a message ends: it is given exactly
one head, and a new parser is made for each (0.3 us). What llhttp lets pass is closed here: RTSP/ and ICE/ versions,
HTTP/0.9 and 2.0, Upgrade, blanks after values, codings before "chunked", chunked under HTTP/1.0, and every limit. What
it refuses without need is allowed here: raw UTF-8 in a target.
Fields laid out as those of an earlier head are read by a pattern made for that layout, which takes less than llhttp.

Invariants:
* Any input gives request heads and body bytes or raises `ProtocolError`, never another exception.
* The same input gives the same result however it is cut into feeds.
* Memory held is at most one head (`max_head_bytes`) plus the piece fed last.
* After `ProtocolError` the framing is lost: the connection must be closed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final
from urllib.parse import unquote_to_bytes

import httptools

from cordwood.server.wire.layouts import Layout, learned, lower_name
from cordwood.server.wire.message import RequestHead

MAX_HEAD_BYTES: Final = 32 << 10
MAX_HEADERS: Final = 200

_MAX_BLANK_LINES: Final = 8
_MAX_CHUNK_LINE_BYTES: Final = 256
_LINES_PER_CALL: Final = 2048  # some 5 ms of work, however small the chunks are
_MAX_CHUNK_EXTENSION_BYTES: Final = 16 << 10  # of one body
_MAX_TRAILER_BYTES: Final = 8 << 10


class ProtocolError(Exception):
    """The client does not speak HTTP/1.1 as we require. `status` and `code` (of the S3 catalogue) are the answer."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class RequestReceiver:
    """One connection's input. In turn: `next_head` until it gives a head, then `next_body` until it gives b""."""

    def __init__(self, *, max_head_bytes: int = MAX_HEAD_BYTES, max_headers: int = MAX_HEADERS) -> None:
        self._max_head_bytes = max_head_bytes
        self._max_headers = max_headers
        self._buffer = b""
        self._position = 0
        self._scanned = 0  # no end of head before this offset of the buffer
        self._blank_lines = 0
        self._fields: list[tuple[bytes, bytes]] = []
        self._fields_complete = False
        self._layout: Layout | None = None  # of the last head; most requests of a connection repeat it
        self._body_left = 0
        self._chunked: ChunkedDecoder | None = None
        self._good_host: str | None = None  # checked before; most requests of a connection repeat it

    # -- input -----------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Append received bytes."""
        if self._position < len(self._buffer):
            self._scanned = max(self._scanned - self._position, 0)
            self._buffer = self._buffer[self._position :] + data
        else:
            self._scanned = 0
            self._buffer = data
        self._position = 0

    @property
    def buffered_bytes(self) -> int:
        """Bytes received and not yet taken."""
        return len(self._buffer) - self._position

    @property
    def wants_head_only(self) -> bool:
        """Whether the head being received is of a HEAD request, as far as one can see."""
        return self._buffer.startswith(b"HEAD ", self._position)

    # -- head ------------------------------------------------------------------------------------------------

    def next_head(self) -> RequestHead | None:
        """The next request head; None when more input is needed. The previous body must have been taken whole."""
        buffer, start = self._buffer, self._position
        if start == len(buffer):
            return None
        assert self.is_body_complete, "the body comes before the next head"
        if buffer.startswith(b"\r\n", start):  # RFC 9112 section 2.2: to be ignored before the request line
            start = self._skip_blank_lines()
        end = buffer.find(b"\r\n\r\n", max(start, self._scanned - 3))
        size = (len(buffer) if end < 0 else end + 4) - start
        if size > self._max_head_bytes:
            raise ProtocolError(
                400,
                "RequestHeaderSectionTooLarge",
                f"The request line and headers exceed the maximum of {self._max_head_bytes} bytes.",
            )
        if end < 0:
            self._refuse_a_hopeless_start(start)
            self._scanned = len(buffer)
            return None
        line_end = buffer.find(b"\r\n", start)
        head = self._parse_head(buffer[start:line_end], buffer[line_end + 2 : end + 4])
        self._position = end + 4
        self._scanned = 0
        self._blank_lines = 0
        return head

    def _skip_blank_lines(self) -> int:
        while self._buffer.startswith(b"\r\n", self._position):
            self._position += 2
            self._blank_lines += 1
            if self._blank_lines > _MAX_BLANK_LINES:
                raise _bad_request("Too many empty lines before the request line.")
        return self._position

    def _refuse_a_hopeless_start(self, start: int) -> None:
        """Refuse now what waiting for the end of the head cannot mend (it might never come)."""
        buffer = self._buffer
        if buffer.count(b"\n", start) != buffer.count(b"\r\n", start):
            raise _bad_request("A line of the head ends in LF without CR.")
        if start < len(buffer) and buffer[start] not in _TOKEN_BYTES and buffer[start] != 0x0D:
            if buffer[start] == 0x16:
                raise _bad_request("This port speaks plain HTTP, and the client started a TLS handshake.")
            raise _bad_request("The request line is malformed.")

    def _parse_head(self, line: bytes, fields: bytes) -> RequestHead:
        match = _REQUEST_LINE(line)
        if match is None:
            raise _explain_request_line(line)
        method_bytes, target, minor = match.groups()
        headers = self._parse_fields(fields)
        is_11 = minor == b"1"

        host = headers.get("host")
        if target[0] != 0x2F:  # "/"
            authority, origin = _split_absolute(method_bytes, target)
            if authority is None:
                origin = target
            else:
                # RFC 9112 section 3.2.2: the authority of an absolute-form target replaces the Host field.
                if host is None and is_11:
                    raise _bad_request("The Host header is missing.")
                host = headers["host"] = authority
        else:
            origin = target
        if host is None:
            if is_11:
                raise _bad_request("The Host header is missing.")
        elif host != self._good_host:
            # Two Host fields were joined by a comma, which the pattern refuses.
            if _HOST(host) is None:
                raise _bad_request("The Host header must be present exactly once and name a host.")
            self._good_host = host

        raw_path, _, raw_query = origin.partition(b"?")
        content_length, is_chunked = self._parse_framing(headers, is_11)
        connection = headers.get("connection")
        if connection is None:
            keep_alive = is_11
        else:
            options = {option.strip(" \t") for option in connection.lower().split(",")}
            keep_alive = "close" not in options and (is_11 or "keep-alive" in options)
        # Other expectations are ignored, as AWS does (RFC 9110 section 10.1.1 would allow a 417, too).
        expects_continue = headers.get("expect", "").lower() == "100-continue"
        # In the order of the fields: names would cost as much as the rest of this function.
        return RequestHead(
            method_bytes.decode("ascii"),
            target,
            raw_path,
            decode_component(raw_path),
            parse_query(raw_query) if raw_query else [],
            raw_query,
            headers,
            content_length,
            is_chunked,
            # RFC 9110 section 10.1.1: ignored under HTTP/1.0, and without a body. A body of length 0 counts: awscli
            # announces one and waits.
            expects_continue and is_11 and (is_chunked or content_length is not None),
            keep_alive,
            "1.1" if is_11 else "1.0",
        )

    def _parse_fields(self, fields: bytes) -> dict[str, str]:
        layout = self._layout
        if layout is not None:
            headers = layout.read(fields)
            if headers is not None:
                return headers
        if fields.count(b"\r\n") - 1 > self._max_headers:
            raise ProtocolError(
                400, "RequestHeaderSectionTooLarge", f"More than {self._max_headers} header fields."
            )
        self._fields = []
        self._fields_complete = False
        try:
            httptools.HttpRequestParser(self).feed_data(b"POST / HTTP/1.1\r\n" + fields)
        except httptools.HttpParserUpgrade:
            pass  # RFC 9110 section 7.8: a server may ignore Upgrade
        except httptools.HttpParserError as error:
            raise _bad_request(f"The request headers are malformed: {error}.") from None
        if not self._fields_complete:
            raise _bad_request("The request headers are malformed.")
        headers = {}
        for name_bytes, value_bytes in self._fields:
            name = lower_name(name_bytes)
            value = _decode_value(value_bytes)
            headers[name] = f"{headers[name]},{value}" if name in headers else value
        if len(headers) == len(self._fields):
            self._layout = learned(tuple([name for name, _ in self._fields]))
        return headers

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by httptools."""
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        """Called by httptools."""
        self._fields_complete = True

    def _parse_framing(self, headers: dict[str, str], is_11: bool) -> tuple[int | None, bool]:
        """Decide once where the body ends (RFC 9112 section 6.3); everything ambiguous is refused."""
        length = headers.get("content-length")
        coding = headers.get("transfer-encoding")
        self._chunked = None
        self._body_left = 0
        if coding is not None:
            if length is not None:
                raise _bad_request("Content-Length and Transfer-Encoding exclude each other.")
            if not is_11:
                raise _bad_request("Transfer-Encoding needs HTTP/1.1.")
            if coding.lower() != "chunked":
                raise ProtocolError(501, "NotImplemented", "The only transfer coding known here is chunked.")
            self._chunked = ChunkedDecoder()
            return None, True
        if length is None:
            return None, False
        if not (length.isascii() and length.isdigit() and len(length) <= 18):
            raise _bad_request("The Content-Length is not a number.")
        self._body_left = int(length)
        return self._body_left, False

    # -- body ------------------------------------------------------------------------------------------------

    @property
    def is_body_complete(self) -> bool:
        """Whether the whole body of the last head has been taken."""
        return self._body_left == 0 if self._chunked is None else self._chunked.is_done

    @property
    def body_left(self) -> int | None:
        """Body bytes not yet taken; None when only their end will tell (chunked)."""
        return self._body_left if self._chunked is None or self._chunked.is_done else None

    @property
    def is_decoding(self) -> bool:
        """Whether there is more to decode at once: a chance to give others a turn."""
        return self._chunked is not None and not self._chunked.is_done and self._position < len(self._buffer)

    @property
    def trailers(self) -> list[tuple[str, str]]:
        """Trailer fields of a chunked body (lower-case names), kept apart from the headers."""
        return [] if self._chunked is None else self._chunked.trailers

    def next_body(self) -> bytes | None:
        """The next piece of the body; b"" at its end; None when more input is needed."""
        if self._chunked is not None:
            return self._next_chunked(self._chunked)
        left = self._body_left
        if left == 0:
            return b""
        buffer, start = self._buffer, self._position
        available = len(buffer) - start
        if available == 0:
            return None
        if start == 0 and available <= left:
            self._buffer = b""
            self._body_left = left - available
            return buffer
        piece = buffer[start : start + left]
        self._position = start + len(piece)
        self._body_left = left - len(piece)
        return piece

    def pass_over(self, count: int) -> None:
        """`count` bytes of a body without chunks were received past this buffer, which is empty."""
        assert self._chunked is None and count <= self._body_left and not self.buffered_bytes
        self._body_left -= count

    def _next_chunked(self, chunked: ChunkedDecoder) -> bytes | None:
        while self._position < len(self._buffer) and not chunked.is_done:
            piece, self._position = chunked.decode(self._buffer, self._position)
            if piece:
                return piece
        return b"" if chunked.is_done else None


class ChunkedDecoder:
    """The chunked transfer coding (RFC 9112 section 7.1), read strictly.

    A chunk size is 1 to 16 hexadecimal digits and nothing else, directly followed by CRLF or by ";" and an extension,
    which is bounded and ignored. Every line ends in CRLF.
    """

    def __init__(self) -> None:
        self.is_done = False
        self.trailers: list[tuple[str, str]] = []
        self._line = b""  # the beginning of a line whose end has not arrived
        self._left = 0  # data bytes left of the current chunk
        self._read = self._read_size
        self._extension_bytes = 0
        self._trailer_bytes = 0

    def decode(self, data: bytes, position: int) -> tuple[bytes, int]:
        """Decode from `position`; return (decoded bytes, where decoding stopped).

        Stops before the end of `data` when the body is done, and after some thousand lines.
        """
        pieces: list[bytes | memoryview] = []
        view = memoryview(data)
        end = len(data)
        lines_left = _LINES_PER_CALL
        while position < end and lines_left and not self.is_done:
            if self._left:
                piece = view[position : position + self._left]
                pieces.append(piece)
                position += len(piece)
                self._left -= len(piece)
                continue
            position = self._read_line(data, position)
            lines_left -= 1
        return b"".join(pieces), position

    def _read_line(self, data: bytes, position: int) -> int:
        newline = data.find(b"\n", position)
        stop = len(data) if newline < 0 else newline + 1
        if len(self._line) + stop - position > _MAX_CHUNK_LINE_BYTES and self._read != self._read_trailer:
            raise _bad_request("A chunk header is too long.")
        if len(self._line) + stop - position > _MAX_TRAILER_BYTES:
            raise _bad_request("A trailer field is too long.")
        line = self._line + data[position:stop]
        if newline < 0:
            self._line = line
            return stop
        self._line = b""
        if not line.endswith(b"\r\n"):
            raise _bad_request("A line of the chunked body ends in LF without CR.")
        self._read(line[:-2])
        return stop

    def _read_size(self, line: bytes) -> None:
        match = _CHUNK_LINE(line)
        if match is None:
            raise _bad_request("A chunk size is malformed.")
        self._extension_bytes += len(line) - match.end(1)
        if self._extension_bytes > _MAX_CHUNK_EXTENSION_BYTES:
            raise _bad_request("The chunk extensions are too long.")
        self._left = int(match[1], 16)
        if self._left:
            self._read = self._read_end_of_data
        else:
            self._read = self._read_trailer

    def _read_end_of_data(self, line: bytes) -> None:
        if line:
            raise _bad_request("A chunk is longer than its size.")
        self._read = self._read_size

    def _read_trailer(self, line: bytes) -> None:
        if not line:
            self.is_done = True
            return
        self._trailer_bytes += len(line) + 2
        match = _FIELD_LINE(line)
        if match is None or self._trailer_bytes > _MAX_TRAILER_BYTES:
            raise _bad_request("The trailer fields are malformed or too long.")
        self.trailers.append((match[1].decode("ascii").lower(), _decode_value(match[2])))


# -- responses -----------------------------------------------------------------------------------------------

STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}".encode("ascii") for status in HTTPStatus
}
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"


def render_fields(headers: Sequence[tuple[str, str]]) -> str:
    """Header fields as text, each *preceded* by CRLF. Raises ValueError when one would break out of its line."""
    text = "".join([f"\r\n{name}: {value}" for name, value in headers])
    count = len(headers)
    if text.count("\r") != count or text.count("\n") != count or "\0" in text:
        raise ValueError("a response header holds CR, LF or NUL")
    return text


# -- text ----------------------------------------------------------------------------------------------------


def decode_component(raw: bytes) -> str:
    """Percent-decode a path or one side of a query pair as strict UTF-8; "+" stays "+"."""
    try:
        if b"%" not in raw:
            return raw.decode()
        if _BAD_ESCAPE(raw):
            raise ProtocolError(
                400, "InvalidURI", "A percent sign is not followed by two hexadecimal digits."
            )
        return unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise ProtocolError(400, "InvalidURI", "The request target is not UTF-8.") from None


def parse_query(raw_query: bytes) -> list[tuple[str, str]]:
    """Split and decode a query string. Unlike in a path, "+" is a space here, as in HTML forms and on AWS."""
    if b"+" in raw_query:
        raw_query = raw_query.replace(b"+", b"%20")
    pairs = []
    for piece in raw_query.split(b"&"):
        if piece:
            name, _, value = piece.partition(b"=")
            pairs.append((decode_component(name), decode_component(value)))
    return pairs


_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"  # RFC 9110 section 5.6.2
_TOKEN_BYTES: Final = frozenset(
    b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)
# RFC 9112 section 3, with single spaces only; a target may hold raw UTF-8, but no fragment.
_REQUEST_LINE: Final = re.compile(
    rb"(" + _TOKEN + rb"{1,32}) ([\x21\x22\x24-\x7e\x80-\xff]+) HTTP/1\.([01])"
).fullmatch
# RFC 9110 section 7.2: uri-host [ ":" port ]; the comma of reg-name is left out (see its use).
_HOST: Final = re.compile(r"(?:[A-Za-z0-9\-._~!$&'()*+;=%]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?").fullmatch
_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t\x20-\x7e\x80-\xff]*)?").fullmatch
_FIELD_LINE: Final = re.compile(rb"(" + _TOKEN + rb"+):([\t\x20-\x7e\x80-\xff]*)").fullmatch
_ABSOLUTE: Final = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?://([^/?@]+)((?:[/?].*)?)", re.DOTALL).fullmatch
_BAD_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})").search


def _decode_value(value: bytes) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = value.decode("latin-1")
    return text.strip(" \t")


def _split_absolute(method: bytes, target: bytes) -> tuple[str | None, bytes]:
    """The authority and the origin-form of a target that does not begin with a slash; (None, b"*") for OPTIONS *."""
    if target == b"*" and method == b"OPTIONS":
        return None, target
    if method == b"CONNECT":
        raise ProtocolError(405, "MethodNotAllowed", "This is not a proxy.")
    match = _ABSOLUTE(target)
    if match is None:
        raise ProtocolError(400, "InvalidURI", "The request target must begin with a slash.")
    rest = match[2]
    return match[1].decode("latin-1"), rest if rest.startswith(b"/") else b"/" + rest


def _explain_request_line(line: bytes) -> ProtocolError:
    words = line.split(b" ")
    if len(words) == 3 and re.fullmatch(rb"HTTP/[0-9](\.[0-9])?", words[2]) and words[2][:7] != b"HTTP/1.":
        return ProtocolError(505, "BadRequest", "The only versions spoken here are HTTP/1.1 and HTTP/1.0.")
    if len(words) == 3 and b"#" in words[1]:
        return ProtocolError(400, "InvalidURI", "A request target has no fragment; write # as %23.")
    return _bad_request("The request line is malformed.")


def _bad_request(message: str) -> ProtocolError:
    return ProtocolError(400, "BadRequest", message)
