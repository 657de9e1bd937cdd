"""Jobs that are several tasks: large uploads, downloads and copies, and uploads from a pipe.

Must not know: threads; who runs the tasks, and in which order.

Invariants:
* `finish` runs once, after every part, and makes the result visible; `undo` leaves nothing behind on either side.
* Memory: a file's parts are read as they are sent, a pipe's parts are held until they are sent.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import BinaryIO

from cordwood.cli.client import BytesPayload, FilePayload, read_exactly
from cordwood.cli.errors import CliError
from cordwood.cli.jobs import Done, Job, Listener
from cordwood.cli.s3 import S3, Part, Upload, object_checksum, object_md5
from cordwood.cli.streams import TemporaryFile, stream_object
from cordwood.cli.uri import S3Uri
from cordwood.server.wire.checksums import combine, hasher

PART_SIZE = 8 << 20
LARGE_FROM = 16 << 20
COPY_LARGE_FROM = 5 << 30  # the largest object that CopyObject takes
COPY_PART_SIZE = 512 << 20
_MAX_PARTS = 10_000
_BLOCK = 1 << 20

# Headers of an object that a copy in parts must name itself.
_CARRIED = (
    "content-type",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "expires",
    "x-amz-website-redirect-location",
)


def part_size_for(size: int, least: int = PART_SIZE) -> int:
    """At most 10,000 parts, in whole MiB."""
    needed = -(-size // _MAX_PARTS)
    return max(least, -(-needed // (1 << 20)) << 20)


class _Uploading:
    """What the three kinds of multipart upload share."""

    def __init__(self, s3: S3, job: Job, headers: Mapping[str, str], listener: Listener) -> None:
        self.job = job
        self._s3 = s3
        self._headers = headers
        self._listener = listener
        self._done: dict[int, Part] = {}
        self._upload: Upload | None = None

    def start(self) -> None:
        assert isinstance(self.job.to, S3Uri)
        self._upload = self._s3.create_upload(self.job.to, self._headers)

    def finish(self) -> Done:
        assert self._upload is not None
        etag = self._s3.complete(self._upload, [self._done[number] for number in sorted(self._done)])
        size = sum(part.size for part in self._done.values())
        job = Job(self.job.source, self.job.to, size, self.job.etag, self.job.modified_s)
        return Done(job, etag, self._upload.checksum.lower() or "md5")

    def undo(self) -> None:
        if self._upload is not None:
            try:
                self._s3.abort(self._upload)
            except CliError:
                pass  # what made the upload fail was or will be told; this would only hide it

    def _received(self, part: Part) -> None:
        self._done[part.number] = part
        self._listener.advanced(part.size)


class LargeUpload(_Uploading):
    def parts(self) -> Iterator[Callable[[], None]]:
        step = part_size_for(self.job.size)
        for number, offset in enumerate(range(0, self.job.size, step), 1):
            payload = FilePayload(str(self.job.source), offset, min(step, self.job.size - offset))
            yield partial(self._put, number, payload)

    def _put(self, number: int, payload: FilePayload | BytesPayload) -> None:
        assert self._upload is not None
        self._received(self._s3.put_part(self._upload, number, payload))


class StreamUpload(LargeUpload):
    def __init__(
        self, s3: S3, job: Job, head: bytes, stream: BinaryIO, headers: Mapping[str, str], listener: Listener
    ) -> None:
        super().__init__(s3, job, headers, listener)
        self._head = head
        self._stream = stream

    def parts(self) -> Iterator[Callable[[], None]]:
        number = 1
        data = self._head
        self._head = b""
        while data:
            if number > _MAX_PARTS:
                raise CliError(f"{self.job.to}: standard input is longer than {_MAX_PARTS} parts can hold")
            payload = BytesPayload(data)
            yield partial(self._put, number, payload)
            number += 1
            # The length is unknown: parts grow, so that 10,000 of them reach 5 TiB and a short stream stays cheap.
            data = read_exactly(self._stream, PART_SIZE << min(6, number // 1000))


class LargeCopy(_Uploading):
    def start(self) -> None:
        assert isinstance(self.job.source, S3Uri)
        if not self._headers:
            source = self._s3.head(self.job.source)
            self._headers = {k: v for k, v in source.items() if k in _CARRIED or k.startswith("x-amz-meta-")}
        super().start()

    def parts(self) -> Iterator[Callable[[], None]]:
        step = part_size_for(self.job.size, COPY_PART_SIZE)
        for number, offset in enumerate(range(0, self.job.size, step), 1):
            size = min(step, self.job.size - offset)
            yield partial(self._copy, number, offset, size)

    def _copy(self, number: int, offset: int, size: int) -> None:
        assert self._upload is not None and isinstance(self.job.source, S3Uri)
        self._received(self._s3.copy_part(self._upload, number, self.job.source, offset, size, self.job.etag))


class LargeDownload:
    """Ranges in parallel into one file; their checksums are combined into that of the object."""

    def __init__(self, s3: S3, job: Job, listener: Listener) -> None:
        self.job = job
        self._s3 = s3
        self._listener = listener
        self._headers: Mapping[str, str] = {}
        self._temporary: TemporaryFile | None = None
        self._algorithm = ""
        self._checksum = ""
        self._sums: dict[int, tuple[str, int]] = {}

    def start(self) -> None:
        source, target = self.job.source, self.job.to
        assert isinstance(source, S3Uri) and isinstance(target, Path)
        self._headers = self._s3.head(source)
        self._algorithm, self._checksum = object_checksum(self._headers)
        size = int(self._headers.get("content-length", self.job.size))
        self.job = Job(source, target, size, self.job.etag, self.job.modified_s)
        self._temporary = TemporaryFile(target)
        try:
            os.truncate(self._temporary.fd, size)
        except OSError:
            self._temporary.discard()
            raise

    def parts(self) -> Iterator[Callable[[], None]]:
        step = part_size_for(self.job.size)
        for offset in range(0, self.job.size, step):
            size = min(step, self.job.size - offset)
            yield partial(self._fetch, offset, size)

    def _fetch(self, offset: int, size: int) -> None:
        assert isinstance(self.job.source, S3Uri) and self._temporary is not None
        crc = hasher(self._algorithm) if self._algorithm else None
        fd, position = self._temporary.fd, offset

        def take(block: memoryview) -> None:
            nonlocal position
            if crc is not None:
                crc.update(block)
            _write_at(fd, block, position)
            position += len(block)
            self._listener.advanced(len(block))

        etag = self._headers.get("etag", "").strip('"')
        stream_object(self._s3, self.job.source, start=offset, length=size, if_match=etag, take=take)
        self._sums[offset] = (crc.base64() if crc is not None else "", size)

    def finish(self) -> Done:
        assert self._temporary is not None
        verified = "size"
        md5 = object_md5(self._headers)
        if self._algorithm:
            found = combine(self._algorithm, [self._sums[offset] for offset in sorted(self._sums)])
            if found != self._checksum:
                raise CliError(
                    f"{self.job.source}: received {self._algorithm} {found}, expected {self._checksum}; "
                    "nothing was kept"
                )
            verified = self._algorithm.lower()
        elif md5:
            found = _md5_of(self._temporary.fd)
            if found != md5:
                raise CliError(f"{self.job.source}: received MD5 {found}, expected {md5}; nothing was kept")
            verified = "md5"
        self._temporary.publish(self.job.modified_s)
        return Done(self.job, self._headers.get("etag", "").strip('"'), verified)

    def undo(self) -> None:
        if self._temporary is not None:
            self._temporary.discard()


def _write_at(fd: int, block: memoryview, offset: int) -> None:
    while block:
        written = os.pwrite(fd, block, offset)
        block = block[written:]
        offset += written


def _md5_of(fd: int) -> str:
    md5 = hashlib.md5(usedforsecurity=False)
    offset = 0
    while block := os.pread(fd, _BLOCK, offset):
        md5.update(block)
        offset += len(block)
    return md5.hexdigest()
