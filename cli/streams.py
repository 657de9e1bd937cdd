"""Downloading one object as a stream that survives broken connections, and local files that appear only complete.

Must not know: jobs, threads, commands.

Invariants:
* A resumed download continues at the byte where it broke, on the same ETag, or fails.
* A file appears under its name complete or not at all: it is written beside and renamed.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from cordwood.cli.client import TRANSPORT_ERRORS, Unreachable
from cordwood.cli.errors import CliError
from cordwood.cli.s3 import S3, object_checksum, object_md5
from cordwood.cli.uri import S3Uri
from cordwood.server.wire.checksums import hasher

_STREAM_FAILURES = 5  # without a byte in between


def stream_object(
    s3: S3,
    uri: S3Uri,
    *,
    take: Callable[[memoryview], None],
    start: int = 0,
    length: int | None = None,
    byte_range: str = "",
    if_match: str = "",
    version_id: str = "",
    on_headers: Callable[[Mapping[str, str]], None] | None = None,
) -> Mapping[str, str]:
    """Hand all bytes to `take`, in order; a broken connection is resumed where it broke, on the same ETag.

    Either the whole object, `length` bytes from `start`, or a `byte_range` as in HTTP. Returns the first headers.
    """
    first: Mapping[str, str] | None = None
    received = failures = 0
    buffer = memoryview(bytearray(256 << 10))
    while True:
        wanted = byte_range
        if length is not None:
            wanted = f"{start + received}-{start + length - 1}"
        reply = s3.get(uri, byte_range=wanted, if_match=if_match, version_id=version_id)
        broken: BaseException | None = None
        try:
            if first is None:
                first = reply.headers
                if on_headers is not None:
                    on_headers(first)
                # From now on the stretch is known in absolute numbers: a second request continues exactly there.
                if length is None and "content-length" in first:
                    length = int(first["content-length"])
                    start = _range_start(first)
                if_match = if_match or first.get("etag", "").strip('"')
            while True:
                try:
                    count = reply.readinto(buffer)
                except TRANSPORT_ERRORS as error:
                    broken = error
                    break
                if not count:
                    break
                received += count
                failures = 0
                take(buffer[:count])
        finally:
            reply.close()
        if broken is None and (length is None or received == length):
            return first
        failures += 1
        if length is None or failures > _STREAM_FAILURES:
            why = str(broken) or "the connection was closed too early"
            raise Unreachable(f"{uri}: the download broke off after {received} bytes: {why}")
        time.sleep(min(5.0, 0.2 * 2**failures))


def _range_start(headers: Mapping[str, str]) -> int:
    """The first byte of a 206 answer: "bytes 5-9/10"."""
    digits = headers.get("content-range", "bytes 0-").removeprefix("bytes ").partition("-")[0]
    return int(digits) if digits.isdigit() else 0


class StreamDigest:
    """Verifies a whole object that passes by once. `expect` chooses the best proof that the headers offer."""

    def __init__(self) -> None:
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._algorithm = self._checksum = self._expected_md5 = ""

    def expect(self, headers: Mapping[str, str]) -> None:
        self._algorithm, self._checksum = object_checksum(headers)
        if self._algorithm:
            self._crc = hasher(self._algorithm)
        else:
            self._expected_md5 = object_md5(headers)

    def update(self, block: memoryview) -> None:
        if self._algorithm:
            self._crc.update(block)
        elif self._expected_md5:
            self._md5.update(block)

    def check(self, what: str) -> str:
        """What it was verified by; raises `CliError` when the bytes are not the object's."""
        if self._algorithm:
            name, found, expected = self._algorithm, self._crc.base64(), self._checksum
        elif self._expected_md5:
            name, found, expected = "md5", self._md5.hexdigest(), self._expected_md5
        else:
            return "size"
        if found != expected:
            raise CliError(f"{what}: received {name} {found}, expected {expected}")
        return name.lower()


class TemporaryFile:
    """A file beside its destination, renamed over it when it is complete."""

    def __init__(self, to: Path) -> None:
        self._to = to
        to.parent.mkdir(parents=True, exist_ok=True)
        self._path = to.with_name(f".cordwood-{secrets.token_hex(8)}.part")
        self.fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self._lock = threading.Lock()

    def publish(self, modified_s: float) -> None:
        self._close()
        if modified_s:
            os.utime(self._path, (modified_s, modified_s))
        os.replace(self._path, self._to)

    def discard(self) -> None:
        self._close()
        self._path.unlink(missing_ok=True)

    def _close(self) -> None:
        with self._lock:
            fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
