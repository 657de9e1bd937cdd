"""Reads one object: whole, in ranges, as a file or as spans for sendfile; every byte is verified before it leaves.

Must not know: how the object was found (store.py does that), buckets, S3.

Invariants:
* No byte is handed out whose CRC was not checked: small objects by their record, large ones by chunk or 64 KiB block.
  For spans, whose bytes the kernel reads once more, checked at most `chunks.MEMORY_S` seconds before.
* A chunk that was moved by compaction while reading is looked up again; a reader never fails because of it.
* Of an encrypted object no byte is handed out before `unlock`, and then only what its cipher accepts, whole chunks.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import NamedTuple

from cordwood.engine.chunks import body_offset, is_ready, read_blocks, read_chunk, verify
from cordwood.engine.cipher import Cipher
from cordwood.engine.core import MOVED_RETRIES, Core, Moved
from cordwood.engine.errors import Corrupt, InvalidState
from cordwood.engine.format import (
    BLOCK_SIZE,
    CHUNK_ID_SIZE,
    ChunkRef,
    Manifest,
    chunk_record_length,
)
from cordwood.engine.model import ObjectInfo, PartInfo, etag_of
from cordwood.engine.volume import Place, VolumeFile

_Piece = tuple[ChunkRef, int, int, int]
_AHEAD_SIZE = 8 << 20  # what the kernel is asked to fetch behind a span that had to wait for the disk


class Span(NamedTuple):
    """Verified bytes in a file: for os.sendfile. The descriptor is valid as long as the span is kept."""

    fd: int
    offset: int
    length: int
    file: VolumeFile


class ObjectReader:
    """The selected bytes of one version. Iterate for blocks of at most a chunk; or `read`, `spans`, `as_file`.

    `inline` holds them when they are in memory already; None for a large object, or one that is not unlocked yet.
    """

    def __init__(
        self,
        core: Core,
        info: ObjectInfo,
        inline: bytes | None,
        manifest: Manifest | None,
        start: int,
        length: int,
    ) -> None:
        self._core = core
        self._manifest = manifest
        self.info = info
        self.start = start
        self.length = length
        self.inline: bytes | None = None
        self.stored_inline = inline
        """The body of an inline object as it is stored."""
        self._cipher: Cipher | None = None
        self._part_starts: list[int] = []
        self._part_numbers: list[int] = []
        self._last: tuple[bytes, bytes] | None = None
        if inline is not None and not info.overhead:
            self.inline = inline if length == len(inline) else inline[start : start + length]

    def __enter__(self) -> ObjectReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of what was decrypted. Reading again is possible."""
        self._last = None

    def unlock(self, cipher: Cipher) -> None:
        """Gives an encrypted object the cipher that wrote it. Corrupt when it is inline and the cipher refuses it."""
        assert self.info.overhead
        self._cipher = cipher
        body = self.stored_inline
        if body is not None:
            plain = self._decrypt(body[:CHUNK_ID_SIZE], 0, 0, memoryview(body)[CHUNK_ID_SIZE:])
            self.inline = plain[self.start : self.start + self.length]
            return
        at = 0
        for part in self.manifest.parts():
            self._part_starts.append(at)
            self._part_numbers.append(part.number)
            at += part.size

    @property
    def content_range(self) -> str | None:
        """The Content-Range value when less than the whole object was selected."""
        if self.length == self.info.size:
            return None
        return f"bytes {self.start}-{self.start + self.length - 1}/{self.info.size}"

    def read(self) -> bytes:
        """All selected bytes at once."""
        return self.inline if self.inline is not None else b"".join(self)

    def __iter__(self) -> Iterator[bytes]:
        """The selected bytes in order, in blocks of at most one chunk."""
        if self.inline is not None:
            if self.inline:
                yield self.inline
            return
        for ref, chunk_start, first, last in self._pieces(self.start, self.length):
            yield self._read(ref, chunk_start, first, last)

    def spans(self) -> Spans:
        """The selected bytes as verified places in volume files. Inline objects have none: use `inline`. Nor have
        encrypted ones: InvalidState."""
        assert self.stored_inline is None
        if self.info.overhead:
            raise InvalidState("an encrypted object has no plain bytes in a file; iterate over it instead")
        return Spans(self._core, self._pieces(self.start, self.length), self._find)

    def read_cached(self) -> bytes | None:
        """All selected bytes when they are in memory, for a thread that must not wait for the disk; else None.
        InvalidState for an encrypted object."""
        if self.inline is not None:
            return self.inline
        if self.info.overhead:
            raise InvalidState("an encrypted object is not read without waiting; iterate over it instead")
        blocks = []
        for ref, _, first, last in self._pieces(self.start, self.length):
            place, file = self._find(ref)
            block = read_blocks(file, place, ref, first, last, cached_only=True)
            if block is None:
                return None
            blocks.append(block)
        return blocks[0] if len(blocks) == 1 else b"".join(blocks)

    def read_at(self, position: int, length: int) -> bytes:
        """Up to `length` selected bytes from `position` within the selection; fewer at its end."""
        length = max(0, min(length, self.length - position))
        if self.inline is not None:
            return self.inline[position : position + length]
        return b"".join(self._read(*piece) for piece in self._pieces(self.start + position, length))

    def as_file(self) -> io.BufferedReader:
        """The selected bytes as a seekable binary file."""
        return io.BufferedReader(_ReaderFile(self), buffer_size=BLOCK_SIZE)

    @property
    def manifest(self) -> Manifest:
        """The chunk list of an object that is not inline."""
        assert self._manifest is not None
        return self._manifest

    def pieces(self) -> Iterator[tuple[ChunkRef, bytes]]:
        """Each chunk touched by the selection, with the verified bytes wanted of it."""
        for ref, chunk_start, first, last in self._pieces(self.start, self.length):
            yield ref, self._read(ref, chunk_start, first, last)

    def part_sizes(self) -> list[PartInfo]:
        """The parts of a completed multipart object; empty for any other."""
        if self._manifest is None:
            return []
        return [
            PartInfo(part.number, part.size, etag_of(part.md5, 0), self.info.modified_ms, part.checksums)
            for part in self._manifest.parts()
        ]

    def _pieces(self, start: int, length: int) -> Iterator[_Piece]:
        """Chunks that hold the bytes, each with its offset in the object, and the first and end offset wanted of it."""
        if self.info.overhead and self._cipher is None:
            raise InvalidState(f"{self.info.key!r} is encrypted; the reader needs its cipher first (unlock)")
        if length <= 0:
            return
        assert self._manifest is not None
        overhead = self.info.overhead
        index, chunk_start = self._manifest.find(start)
        end = start + length
        while start < end:
            if index >= self._manifest.count:
                raise self._no_such_chunk(start)
            ref = self._manifest.chunk(index)
            size = ref.length - overhead
            if size <= start - chunk_start:
                raise self._no_such_chunk(start)
            last = min(end - chunk_start, size)
            yield ref, chunk_start, start - chunk_start, last
            chunk_start += size
            start = chunk_start
            index += 1

    def _no_such_chunk(self, at: int) -> Corrupt:
        return Corrupt(
            f"key {self.info.key!r} of bucket {self.info.bucket!r}: its record names no chunk that holds byte {at}"
        )

    def _read(self, ref: ChunkRef, chunk_start: int, first: int, last: int) -> bytes:
        """Bytes `first` to `last` of the chunk that begins at `chunk_start` of the object."""
        if self._cipher is None:
            return self._read_piece(ref, first, last)
        if self._last is None or self._last[0] != ref.id:
            self._last = None  # or there would be three chunks in memory at once
            stored = self._read_piece(ref, 0, ref.length)
            part, offset = 0, chunk_start
            if self._part_starts:
                at = bisect_right(self._part_starts, chunk_start) - 1
                part, offset = self._part_numbers[at], chunk_start - self._part_starts[at]
            plain = self._decrypt(ref.id, part, offset, stored)
            if last - first == len(plain):
                return plain
            # Kept, for a reader in small steps would otherwise decrypt the chunk at each of them.
            self._last = ref.id, plain
        return self._last[1][first:last]

    def _decrypt(self, chunk_id: bytes, part: int, offset: int, data: bytes | memoryview) -> bytes:
        assert self._cipher is not None
        try:
            return self._cipher.decrypt(chunk_id, part, offset, data)
        except ValueError:
            raise Corrupt(
                f"key {self.info.key!r} of bucket {self.info.bucket!r}: the bytes at {offset} of part {part} were not "
                "encrypted for this place with this key"
            ) from None

    def _read_piece(self, ref: ChunkRef, first: int, last: int) -> bytes:
        place, file = self._find(ref)
        if first == 0 and last == ref.length:
            return read_chunk(file, place, ref)
        data = read_blocks(file, place, ref, first, last)
        assert data is not None
        return data

    def _find(self, ref: ChunkRef) -> tuple[Place, VolumeFile]:
        """Where a chunk is now, and the file that it is in: once open, that can be read though its name goes."""
        for _ in range(MOVED_RETRIES):
            place = self._locate(ref)
            try:
                return place, self._core.volume(place.volume)
            except Moved:
                continue
        raise Corrupt(f"volume {place.volume} is missing; it holds a chunk of {self.info.key!r}")

    def _locate(self, ref: ChunkRef) -> Place:
        with self._core.index.read() as txn:
            row = txn.chunk(ref.id)
        if row is None:
            # The object was deleted and its chunks compacted, or the index is damaged; the record's own hint is all.
            return Place(ref.volume, ref.offset, chunk_record_length(ref.length))
        return Place(row.volume, row.offset, chunk_record_length(row.length))


class Spans:
    """What `ObjectReader.spans` gives: a span at a time, by `take` or by iterating."""

    def __init__(
        self,
        core: Core,
        pieces: Iterator[_Piece],
        find: Callable[[ChunkRef], tuple[Place, VolumeFile]],
    ) -> None:
        self._core = core
        self._verified = core.verified
        self._pieces = pieces
        self._find = find
        self._put_back: _Piece | None = None

    def take(self, *, wait: bool = True) -> Span | None:
        """The next span, None behind the last. With `wait` false also None, and no harm done, when the disk would have
        to be waited for."""
        piece = self._put_back or next(self._pieces, None)
        if piece is None:
            return None
        ref, _, first, last = piece
        hinted = self._core.volumes.opened(ref.volume)
        if hinted is not None and is_ready(self._verified, hinted, ref.offset, ref, first, last):
            # Good bytes stay good though the chunk was copied elsewhere meanwhile: no need to ask the index.
            self._put_back = None
            return Span(hinted.fd, body_offset(ref.offset, ref) + first, last - first, hinted)
        place, file = self._find(ref)
        if not verify(self._verified, file, place, ref, first, last, cached_only=not wait):
            self._put_back = piece
            return None
        self._put_back = None
        if wait:
            file.will_read(place.offset + place.length, _AHEAD_SIZE)
        return Span(file.fd, body_offset(place.offset, ref) + first, last - first, file)

    def __iter__(self) -> Iterator[Span]:
        while (span := self.take()) is not None:
            yield span


class _ReaderFile(io.RawIOBase):
    """A seekable raw file over a reader's selection."""

    def __init__(self, reader: ObjectReader) -> None:
        self._reader = reader
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._reader.length}[whence]
        if base + offset < 0:
            raise ValueError("negative seek position")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed asks for a wider type
        data = self._reader.read_at(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._reader.close()
        super().close()
