"""Walks a volume record by record and goes on behind damage: what compaction, fsck, scrub and dump look at it with.

Must not know: the index, what heads mean.

Invariants:
* Every byte between the two ends is inside exactly one item, in order: a record, or damage.
* Memory is bounded by the window and one record.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from crc32c import crc32c

from cordwood.engine.format import ALIGNMENT, HEADER_SIZE, Header, parse_header
from cordwood.engine.volume import ROOM_MAX, Record, VolumeFile

_WINDOW = 1 << 20
_SMALL_WINDOW = 8 << 10
_LARGE_BODY = 64 << 10


class Damage(NamedTuple):
    """Bytes that are no valid record. `header` and `head` are there when only what follows them is bad."""

    offset: int
    end: int
    why: str
    header: Header | None = None
    head: bytes | None = None


def is_room(file: VolumeFile, item: Damage) -> bool:
    """Whether this is no damage but room: zeros at the end that a writer laid ahead, and left when it died."""
    if item.end - item.offset > ROOM_MAX or item.end != file.size():
        return False
    return not any(file.read_up_to(item.offset, item.end - item.offset))


class _Window:
    """A moving piece of a volume. Small reads suffice while bodies are large and not wanted."""

    def __init__(self, file: VolumeFile, end: int) -> None:
        self._file = file
        self._end = end
        self._at = 0
        self._data = b""
        self.size = _WINDOW

    def get(self, position: int, length: int) -> memoryview:
        """At least `length` bytes at `position`, fewer only at the end."""
        if not self._at <= position or position + length > self._at + len(self._data):
            wanted = min(max(length, self.size), self._end - position)
            self._data = self._file.read_up_to(position, wanted)
            self._at = position
        return memoryview(self._data)[position - self._at :]


def walk(file: VolumeFile, start: int, end: int, *, bodies: bool = False) -> Iterator[Record | Damage]:
    """Every record between two offsets; with `bodies` each body is read and verified too."""
    window = _Window(file, end)
    position = start
    while position < end:
        view = window.get(position, HEADER_SIZE)
        header = parse_header(view, position, file.seed, end)
        if header is None:
            following = file.find_valid(position + ALIGNMENT, end)
            stop = following.offset if following is not None else end
            yield Damage(position, stop, "no valid record header")
            position = stop
            continue
        body_at = HEADER_SIZE + header.head_length
        view = window.get(position, header.length if bodies else body_at)
        stop = position + header.length
        if len(view) < (header.length if bodies else body_at):
            yield Damage(position, stop, "the file ends inside the record", header)
            return
        head = bytes(view[HEADER_SIZE:body_at])
        if crc32c(head) != header.head_crc:
            yield Damage(position, stop, "head CRC does not match", header)
        elif not bodies:
            yield Record(header, head, None)
        else:
            body = bytes(view[body_at : body_at + header.body_length])
            if crc32c(body) != header.body_crc:
                yield Damage(position, stop, "body CRC does not match", header, head)
            else:
                yield Record(header, head, body)
        window.size = _SMALL_WINDOW if header.body_length > _LARGE_BODY and not bodies else _WINDOW
        position = stop
