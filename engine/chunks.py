"""Chunk records in volume files: the bytes wanted of one, or only the proof that they are good where they stand.

Must not know: objects, manifests, the index, ciphers.

Invariants:
* Nothing is returned, and nothing counts as verified, whose CRC did not match: the whole body's, or those of the 64 KiB
  blocks that the bytes lie in; and only of the record that was asked for.
* What `verify` proved is remembered for at most `MEMORY_S` seconds, by the volume's salt and the record's offset, so
  that nothing carries over to another file under the same name. A look never prolongs it.
"""

from __future__ import annotations

import threading
import time

from crc32c import crc32c

from cordwood.engine.errors import Corrupt
from cordwood.engine.format import (
    BLOCK_SIZE,
    CHUNK_ID_SIZE,
    HEADER_SIZE,
    ChunkRef,
    Header,
    RecordType,
    chunk_head_length,
    decode_chunk_head,
)
from cordwood.engine.volume import Place, VolumeFile

MEMORY_S = 60.0
_GENERATION_MAX = 16_384
_WINDOW = 4 * BLOCK_SIZE  # stays in a core's own cache between the read and the CRC
_KEEP_GIL = 0  # a window takes some 10 us, less than it can take to get the interpreter back

_threads = threading.local()


class Verified:
    """Which chunks this process verified lately. Bounded: two generations, the older one dropped as a whole."""

    def __init__(self) -> None:
        self._young: dict[tuple[bytes, int], bytes] = {}
        self._old: dict[tuple[bytes, int], bytes] = {}
        self._until_s = time.monotonic() + MEMORY_S / 2

    def knows(self, file: VolumeFile, offset: int, chunk_id: bytes) -> bool:
        """Whether that chunk was verified at `offset` within the last MEMORY_S seconds."""
        self._forget()
        key = (file.superblock.salt, offset)
        return (self._young.get(key) or self._old.get(key)) == chunk_id

    def add(self, file: VolumeFile, offset: int, chunk_id: bytes) -> None:
        self._forget()
        if len(self._young) >= _GENERATION_MAX:
            self._old, self._young = self._young, {}
        self._young[file.superblock.salt, offset] = chunk_id

    def _forget(self) -> None:
        """Of two threads that come here at once both may turn: then more is forgotten than need be, never less."""
        now_s = time.monotonic()
        until_s = self._until_s
        if now_s < until_s:
            return
        is_stale = now_s >= until_s + MEMORY_S / 2
        self._old = {} if is_stale else self._young
        self._young = {}
        # From the end of the last term, not from now: or what came at its beginning would stay too long.
        self._until_s = (now_s if is_stale else until_s) + MEMORY_S / 2


def body_offset(offset: int, ref: ChunkRef) -> int:
    """Where the payload begins of a chunk whose record begins at `offset`."""
    return offset + HEADER_SIZE + chunk_head_length(ref.length)


def read_chunk(file: VolumeFile, place: Place, ref: ChunkRef) -> bytes:
    """The whole payload, in memory once."""
    front = memoryview(file.read(place.offset, HEADER_SIZE + chunk_head_length(ref.length)))
    header = _check_front(file, place, ref, front)
    body = file.read(body_offset(place.offset, ref), ref.length)
    if crc32c(body) != header.body_crc:
        raise Corrupt(f"{file.where(place.offset)}: body CRC does not match")
    return body


def read_blocks(
    file: VolumeFile, place: Place, ref: ChunkRef, first: int, last: int, *, cached_only: bool = False
) -> bytes | None:
    """Bytes `first` to `last` of a chunk, reading and verifying only the 64 KiB blocks they lie in.

    None: `cached_only`, and they are not in memory.
    """
    front = memoryview(bytearray(HEADER_SIZE + chunk_head_length(ref.length)))
    if not file.read_into(front, place.offset, cached_only=cached_only):
        return None
    head = front[HEADER_SIZE:]
    header = _check_front(file, place, ref, front)
    _, blocks = decode_chunk_head(head, ref.length, file.where(header.offset))
    start = first // BLOCK_SIZE * BLOCK_SIZE
    stop = min(-(-last // BLOCK_SIZE) * BLOCK_SIZE, ref.length)
    window = _window()
    pieces: list[bytes] = []
    for at in range(start, stop, BLOCK_SIZE):
        block = window[: min(BLOCK_SIZE, ref.length - at)]
        if not file.read_into(block, body_offset(place.offset, ref) + at, cached_only=cached_only):
            return None
        if crc32c(block, 0, _KEEP_GIL) != blocks[at // BLOCK_SIZE]:
            raise Corrupt(f"{file.where(place.offset)}: CRC of block {at // BLOCK_SIZE} does not match")
        pieces.append(bytes(block[max(first - at, 0) : last - at]))
    return b"".join(pieces)


def is_ready(verified: Verified, file: VolumeFile, offset: int, ref: ChunkRef, first: int, last: int) -> bool:
    """Whether bytes `first` to `last` of the chunk at `offset` were verified lately and are still in memory, as far as
    four of their pages tell: whoever sends them from a file need not wait for the disk then."""
    if not verified.knows(file, offset, ref.id):
        return False
    begin = body_offset(offset, ref)
    third = (last - first) // 3
    byte = memoryview(bytearray(1))
    return all(
        file.read_into(byte, begin + at, cached_only=True)
        for at in (first, first + third, last - 1 - third, last - 1)
    )


def verify(
    verified: Verified,
    file: VolumeFile,
    place: Place,
    ref: ChunkRef,
    first: int,
    last: int,
    *,
    cached_only: bool,
) -> bool:
    """See that bytes `first` to `last` of a chunk are good where they stand, and have them in memory then.

    False: `cached_only`, and they are not in memory. Corrupt when they are not good.
    """
    if is_ready(verified, file, place.offset, ref, first, last):
        return True
    if first or last != ref.length:
        return read_blocks(file, place, ref, first, last, cached_only=cached_only) is not None
    window = _window()
    end = body_offset(place.offset, ref) + ref.length
    front_size = HEADER_SIZE + chunk_head_length(ref.length)
    at = place.offset
    crc = 0
    header: Header | None = None
    while at < end:
        piece = window[: min(_WINDOW, end - at)]
        if not file.read_into(piece, at, cached_only=cached_only):
            return False
        at += len(piece)
        if header is None:
            header = _check_front(file, place, ref, piece[:front_size])
            piece = piece[front_size:]
        crc = crc32c(piece, crc, _KEEP_GIL)
    if header is None or crc != header.body_crc:
        raise Corrupt(f"{file.where(place.offset)}: body CRC does not match")
    verified.add(file, place.offset, ref.id)
    return True


def _window() -> memoryview:
    window: memoryview | None = getattr(_threads, "window", None)
    if window is None:
        window = _threads.window = memoryview(bytearray(_WINDOW))
    return window


def _check_front(file: VolumeFile, place: Place, ref: ChunkRef, front: memoryview) -> Header:
    """Header and head of a chunk record, verified and those of `ref`."""
    header = file.read_header(front, place.offset)
    head = front[HEADER_SIZE:]
    if header.head_length != len(head) or crc32c(head) != header.head_crc:
        raise Corrupt(f"{file.where(place.offset)}: chunk head does not match")
    _check_identity(file, place, ref, header, bytes(head[:CHUNK_ID_SIZE]))
    return header


def _check_identity(file: VolumeFile, place: Place, ref: ChunkRef, header: Header, chunk_id: bytes) -> None:
    if header.type != RecordType.CHUNK or chunk_id != ref.id or header.body_length != ref.length:
        raise Corrupt(
            f"{file.where(place.offset)}: another record stands where chunk {ref.id.hex()} should be"
        )
