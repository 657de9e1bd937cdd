"""multipart/form-data as browsers send it, parsed as it arrives: small fields, then one file that is never held whole.

Must not know: trio, what any field means.
Invariants:
* Any bytes, cut into any pieces, give the same events or S3Error, and never anything else.
* At most MAX_FIELDS_BYTES of what stands before the file are kept; of the file never more than one delimiter's length.
* The file's bytes end where its delimiter begins: a delimiter stands at the start of a line, after CRLF.

Source: RFC 7578, RFC 2046 section 5.1.1; "POST Object", Amazon S3 API Reference (20 KB of fields, the file last).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final
from urllib.parse import unquote

from cordwood.server.wire.errors import S3Error, s3_error

MAX_FIELDS_BYTES: Final = 20 << 10
_MAX_PART_HEADER_BYTES: Final = 4 << 10
_BOUNDARY: Final = re.compile(r';\s*boundary\s*=\s*(?:"([^"]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE)
_PARAMETER: Final = re.compile(
    r';\s*([a-z*]+)\s*=\s*(?:"((?:\\.|[^"\\])*)"|([^\s;]*))', re.IGNORECASE | re.DOTALL
)


def boundary_of(content_type: str) -> bytes:
    """The boundary parameter; MalformedPOSTRequest when there is none."""
    match = _BOUNDARY.search(content_type)
    if match is None:
        raise malformed_post()
    return (match[1] or match[2]).encode("utf-8", "replace")


def malformed_post() -> S3Error:
    return s3_error("MalformedPOSTRequest")


class FormParser:
    """Feed it pieces. `fields` (lower-case names) fills until `filename` is set; from then on the file comes out.

    What follows the file is ignored, as S3 does; `finished` says whether the file's end was seen.
    """

    def __init__(self, boundary: bytes) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.finished = False
        self._delimiter = b"\r\n--" + boundary
        # The first delimiter has no line before it; this one makes it like all others.
        self._buffer = bytearray(b"\r\n")
        self._step: Callable[[list[bytes]], bool] = self._begin
        self._name = ""
        self._skip = 0
        self._taken_bytes = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The bytes of the file that are certain by now."""
        pieces: list[bytes] = []
        if self.finished:
            return pieces
        self._buffer += data
        while self._step(pieces):
            pass
        if self.filename is None:
            self._check_size(len(self._buffer))
        return pieces

    def finish(self) -> None:
        """The body is over: the file must have ended."""
        if not self.finished:
            raise malformed_post()

    def _check_size(self, more: int) -> None:
        """All that stands before the file counts, wherever the pieces were cut."""
        if self._taken_bytes + more > MAX_FIELDS_BYTES:
            raise s3_error("MaxPostPreDataLengthExceededError")

    def _take(self, size: int) -> None:
        del self._buffer[:size]
        self._taken_bytes += size

    # Each step makes one transition, and answers whether there may be another one without more bytes.

    def _begin(self, pieces: list[bytes]) -> bool:
        """Browsers send no preamble, and what stands there otherwise is no form."""
        size = len(self._delimiter)
        head = bytes(self._buffer[:size])
        if not self._delimiter.startswith(head):
            raise malformed_post()
        if len(head) < size:
            return False
        self._take(size)
        self._step = self._after_delimiter
        return True

    def _after_delimiter(self, pieces: list[bytes]) -> bool:
        """`--` ends the form, which then has no file; a line break begins a part."""
        if self._buffer.startswith(b"--"):
            raise s3_error("IncorrectNumberOfFilesInPostRequest")
        end = self._buffer.find(b"\r\n")
        if end < 0:
            return False
        if bytes(self._buffer[:end]).strip(b" \t"):
            raise malformed_post()
        # The line break stays: it is part of the end of headers that are empty.
        self._take(end)
        self._step = self._headers
        return True

    def _headers(self, pieces: list[bytes]) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end > _MAX_PART_HEADER_BYTES or (end < 0 and len(self._buffer) > _MAX_PART_HEADER_BYTES + 3):
            raise malformed_post()
        if end < 0:
            return False
        self._name, filename = _disposition(bytes(self._buffer[:end]))
        # One line break stays: the delimiter of an empty value begins with it.
        self._take(end + 2)
        if self._name == "file":
            self._check_size(0)
            self.filename = filename
            self._skip = 2
            self._step = self._file
        else:
            self._step = self._field
        return True

    def _field(self, pieces: list[bytes]) -> bool:
        end = self._buffer.find(self._delimiter)
        if end < 0:
            return False
        self._check_size(end)
        try:
            value = self._buffer[2 : max(end, 2)].decode("utf-8")
        except UnicodeDecodeError:
            raise malformed_post() from None
        if self._name in self.fields:
            raise s3_error(
                "InvalidArgument",
                "A field stands in the form more than once.",
                argument_name=self._name,
                argument_value=value,
            )
        self.fields[self._name] = value
        self._take(end + len(self._delimiter))
        self._step = self._after_delimiter
        return True

    def _file(self, pieces: list[bytes]) -> bool:
        end = self._buffer.find(self._delimiter)
        self.finished = end >= 0
        if end < 0:
            # All but what may turn out to be the beginning of the delimiter.
            end = len(self._buffer) - len(self._delimiter) + 1
            if end <= 0:
                return False
        piece = bytes(self._buffer[self._skip : end])
        del self._buffer[:end]
        self._skip = max(0, self._skip - end)
        if piece:
            pieces.append(piece)
        return False


def _disposition(block: bytes) -> tuple[str, str]:
    """Name (lower case) and file name of a part, of its Content-Disposition."""
    for line in block.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if colon and name.strip().lower() == b"content-disposition":
            try:
                return _names(value.decode("utf-8"))
            except UnicodeDecodeError:
                raise malformed_post() from None
    raise malformed_post()


def _names(value: str) -> tuple[str, str]:
    kind, semicolon, _ = value.partition(";")
    if kind.strip().lower() != "form-data" or not semicolon:
        raise malformed_post()
    found: dict[str, str] = {}
    for match in _PARAMETER.finditer(value):
        # Browsers escape a quote as %22, others as \".
        text = match[3] if match[2] is None else re.sub(r'\\(["\\])', r"\1", match[2]).replace("%22", '"')
        found.setdefault(match[1].lower(), text)
    if not found.get("name"):
        raise malformed_post()
    filename = found.get("filename", "")
    if "filename*" in found:
        charset, _, rest = found["filename*"].partition("''")
        filename = unquote(rest) if charset.lower() == "utf-8" else filename
    # Some browsers send a path.
    return found["name"].lower(), re.split(r"[/\\]", filename)[-1]
