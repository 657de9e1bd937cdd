"""Reads one object: whole, in ranges, as a file or as spans for sendfile; every byte is verified before it leaves.

Must not know: how the object was found (store.py does that), buckets, S3.

Invariants:
* No byte is handed out whose CRC was not checked: small objects by their record, large ones by chunk or 64 KiB block.
* A chunk that was moved by compaction while reading is looked up again; a reader never fails because of it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import NamedTuple

from crc32c import crc32c

from cordwood.engine.core import MOVED_RETRIES, Core, Moved
from cordwood.engine.errors import Corrupt
from cordwood.engine.format import (
    BLOCK_SIZE,
    CHUNK_ID_SIZE,
    HEADER_SIZE,
    ChunkRef,
    Manifest,
    RecordType,
    chunk_head_length,
    chunk_record_length,
    decode_chunk_head,
)
from cordwood.engine.model import ObjectInfo, PartInfo, etag_of
from cordwood.engine.volume import Place, VolumeFile


class Span(NamedTuple):
    """Verified bytes in a file: for os.sendfile. The descriptor stays valid until the next span or `close`."""

    fd: int
    offset: int
    length: int


class ObjectReader:
    """The selected bytes of one version. Iterate for blocks of at most a chunk; or `read`, `spans`, `as_file`."""

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
        self._held: VolumeFile | None = None
        self.info = info
        self.start = start
        self.length = length
        self.inline: bytes | None = None
        if inline is not None:
            self.inline = inline if length == len(inline) else inline[start : start + length]

    def __enter__(self) -> ObjectReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the volume. Reading again is possible and takes it up anew."""
        self._held = None

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
        for ref, first, last in self._pieces(self.start, self.length):
            yield self._read_piece(ref, first, last)[0]

    def spans(self) -> Iterator[Span]:
        """The selected bytes as verified places in volume files. Inline objects have none: use `inline`."""
        assert self.inline is None
        for ref, first, last in self._pieces(self.start, self.length):
            _, place, file = self._read_piece(ref, first, last)
            self._held = file
            body_at = place.offset + HEADER_SIZE + chunk_head_length(ref.length)
            yield Span(file.fd, body_at + first, last - first)

    def read_at(self, position: int, length: int) -> bytes:
        """Up to `length` selected bytes from `position` within the selection; fewer at its end."""
        length = max(0, min(length, self.length - position))
        if self.inline is not None:
            return self.inline[position : position + length]
        return b"".join(self._read_piece(*piece)[0] for piece in self._pieces(self.start + position, length))

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
        for ref, first, last in self._pieces(self.start, self.length):
            yield ref, self._read_piece(ref, first, last)[0]

    def part_sizes(self) -> list[PartInfo]:
        """The parts of a completed multipart object; empty for any other."""
        if self._manifest is None:
            return []
        return [
            PartInfo(part.number, part.size, etag_of(part.md5, 0), self.info.modified_ms, part.checksums)
            for part in self._manifest.parts()
        ]

    def _pieces(self, start: int, length: int) -> Iterator[tuple[ChunkRef, int, int]]:
        """Chunks that hold the bytes, each with the first and the end offset wanted of it."""
        if length <= 0:
            return
        assert self._manifest is not None
        index, chunk_start = self._manifest.find(start)
        end = start + length
        while start < end:
            ref = self._manifest.chunk(index)
            last = min(end - chunk_start, ref.length)
            yield ref, start - chunk_start, last
            chunk_start += ref.length
            start = chunk_start
            index += 1

    def _read_piece(self, ref: ChunkRef, first: int, last: int) -> tuple[bytes, Place, VolumeFile]:
        for _ in range(MOVED_RETRIES):
            place = self._locate(ref)
            try:
                file = self._core.volume(place.volume)
            except Moved:
                continue
            if first == 0 and last == ref.length:
                return _read_chunk(file, place, ref), place, file
            return _read_blocks(file, place, ref, first, last), place, file
        raise Corrupt(f"volume {place.volume} is missing; it holds a chunk of {self.info.key!r}")

    def _locate(self, ref: ChunkRef) -> Place:
        with self._core.index.read() as txn:
            row = txn.chunk(ref.id)
        if row is None:
            # The object was deleted and its chunks compacted, or the index is damaged; the record's own hint is all.
            return Place(ref.volume, ref.offset, chunk_record_length(ref.length))
        return Place(row.volume, row.offset, chunk_record_length(row.length))


def _check_identity(
    file: VolumeFile, place: Place, ref: ChunkRef, type_: int, chunk_id: bytes, length: int
) -> None:
    if type_ != RecordType.CHUNK or chunk_id != ref.id or length != ref.length:
        raise Corrupt(
            f"{file.where(place.offset)}: another record stands where chunk {ref.id.hex()} should be"
        )


def _read_chunk(file: VolumeFile, place: Place, ref: ChunkRef) -> bytes:
    record = file.read_record(place)
    assert record is not None and record.body is not None
    _check_identity(file, place, ref, record.header.type, record.head[:CHUNK_ID_SIZE], len(record.body))
    return record.body


def _read_blocks(file: VolumeFile, place: Place, ref: ChunkRef, first: int, last: int) -> bytes:
    """Bytes `first` to `last` of a chunk, reading and verifying only the 64 KiB blocks they lie in."""
    where = file.where(place.offset)
    head_length = chunk_head_length(ref.length)
    start = first // BLOCK_SIZE * BLOCK_SIZE
    stop = min(-(-last // BLOCK_SIZE) * BLOCK_SIZE, ref.length)
    front = file.read(place.offset, HEADER_SIZE + head_length)
    header = file.read_header(front, place.offset)
    head = front[HEADER_SIZE:]
    if header.head_length != head_length or crc32c(head) != header.head_crc:
        raise Corrupt(f"{where}: chunk head does not match")
    chunk_id, blocks = decode_chunk_head(head, ref.length, where)
    _check_identity(file, place, ref, header.type, chunk_id, header.body_length)
    data = memoryview(file.read(place.offset + HEADER_SIZE + head_length + start, stop - start))
    for number in range(start // BLOCK_SIZE, -(-stop // BLOCK_SIZE)):
        at = number * BLOCK_SIZE - start
        if crc32c(data[at : at + BLOCK_SIZE]) != blocks[number]:
            raise Corrupt(f"{where}: CRC of block {number} does not match")
    return bytes(data[first - start : last - start])


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
