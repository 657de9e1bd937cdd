"""One volume read once from its first record to its last, for a rebuild: what its records do, in few objects.

Theory: nearly all records of a large store are objects that need no more than a row under their key. Those become that
row at once; any other record becomes a `Change`, as recovery has it. What stands before the newest `durable` that was
met is sure, and is handed on in blocks; what stands behind it may be torn, and waits for the end of the volume, where
bodies are read.

Must not know: other volumes, what the index holds.

Invariants:
* Items come in the order of their records, which is clock order; each is of a whole, valid record below `end`.
* A volume without damage is read once; of its bodies only those are read that no later record vouches for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import Any

from crc32c import crc32c

from cordwood.engine.apply import is_plain, pack_row
from cordwood.engine.clock import CLOCK_MAX
from cordwood.engine.errors import Corrupt
from cordwood.engine.format import (
    CHUNK_ID_SIZE,
    HEADER_SIZE,
    SUPERBLOCK_SIZE,
    AttrsHead,
    DeleteHead,
    Flag,
    Header,
    ObjectHead,
    RecordType,
    check_header,
    chunk_head_length,
    decode_head,
    parse_at,
    read_head,
    record_length,
)
from cordwood.engine.recovery import change_of
from cordwood.engine.rows import ChunkRow, id_key
from cordwood.engine.volume import Record, VolumeFile

_WINDOW = 4 << 20
_SMALL_WINDOW = 8 << 10
_LARGE_BODY = 64 << 10
_BLOCK_RECORDS = 10_000
_OBJECT, _CHUNK, _SEAL = int(RecordType.OBJECT), int(RecordType.CHUNK), int(RecordType.SEAL)
_MORE = int(Flag.MORE)  # an enum's own "&" costs as much as reading the record

# (clock, entry key, packed ObjectRow) of a plain object; (clock, entry key or b"", Change) of any other record.
Item = tuple[int, bytes, Any]
ChunkItem = tuple[bytes, ChunkRow]


class VolumeScan:
    """What a pass over a volume finds. Its chunks go to `chunks`, which the caller empties now and then.

    `end`, `is_sealed` and `is_damaged` are known once `blocks` has come to its end.
    """

    def __init__(
        self,
        file: VolumeFile,
        limit: int | None,
        chunks: list[ChunkItem],
        passed: Callable[[int, int], None],
    ) -> None:
        self.file = file
        self.size = file.size() if limit is None else min(limit, file.size())
        self.end = SUPERBLOCK_SIZE
        self.is_sealed = False
        self.is_damaged = False
        self.unreadable: list[str] = []  # records whose checksums hold and whose heads make no sense
        self._chunks = chunks
        self._passed = passed
        self._durable = SUPERBLOCK_SIZE
        self._unsure: list[Item] = []
        self._unsure_chunks: list[ChunkItem] = []
        self._ends: list[int] = []  # where the records of the unsure items end

    def first_clock(self) -> int:
        """The clock of the first item; 0 where that cannot be said without reading on."""
        for record in self.file.scan(SUPERBLOCK_SIZE, self.size, bodies=False):
            if record.header.type not in (_CHUNK, _SEAL):
                return record.header.clock
        return 0

    def blocks(self) -> Iterator[list[Item]]:
        """All items in their order, some thousands at a time."""
        position = end = SUPERBLOCK_SIZE
        ends = []
        while True:
            start = position
            for behind in self._stretch(start):
                position = behind
                yield self._settled(self._durable)
            if position > start:
                end = position
                ends.append(end)
            following = None
            if not self.is_sealed:
                following = self.file.find_valid(max(position, start + 8), self.size)
            if following is None:
                break
            position = following.offset
        self.end = self._verified_end(end)
        self.is_sealed = self.is_sealed and self.end == end
        self.is_damaged = bool(self.unreadable) or any(stop < self.end for stop in ends[:-1])
        yield self._settled(self.end)

    def _settled(self, end: int) -> list[Item]:
        """Takes what stands before `end`; the rest stays unsure."""
        count = bisect_right(self._ends, end)
        items = self._unsure[:count]
        del self._unsure[:count], self._ends[:count]
        sure = 0
        for _, row in self._unsure_chunks:
            if row.offset >= end:
                break
            sure += 1
        self._chunks += self._unsure_chunks[:sure]
        del self._unsure_chunks[:sure]
        return items

    def _verified_end(self, end: int) -> int:
        """Where the whole transactions end whose bodies are whole too; only what lies past `durable` can be torn.

        A torn transaction must stay outside: once records stood behind it, the next rebuild would take it for a part of
        theirs. Nor is a torn second copy of a chunk taken for the whole one.
        """
        position = self._durable
        in_transaction = False
        for record in self.file.scan(position, end, bodies=True):
            if record.header.type != _CHUNK:
                in_transaction = bool(record.header.flags & _MORE)
            if not in_transaction:
                position = record.header.offset + record.header.length
        return position

    def _stretch(self, position: int) -> Iterator[int]:
        """Takes records until the first that is not valid; gives the offset behind them now and then, and at last."""
        file, size, seed, take = self.file, self.size, self.file.seed, self._take
        window = memoryview(b"")
        window_at = position
        wanted = _WINDOW
        count = 0
        told = position
        while position + HEADER_SIZE <= size:
            at = position - window_at
            if at + HEADER_SIZE > len(window):
                window = memoryview(file.read_up_to(position, min(wanted, size - position)))
                window_at, at = position, 0
            fields = parse_at(window, at, position, seed, size)
            if fields is None:
                break
            head_length, body_length = fields[8], fields[9]
            if at + HEADER_SIZE + head_length > len(window):
                needed = max(wanted, HEADER_SIZE + head_length)
                window = memoryview(file.read_up_to(position, min(needed, size - position)))
                window_at, at = position, 0
            head = bytes(window[at + HEADER_SIZE : at + HEADER_SIZE + head_length])
            if crc32c(head) != fields[10]:
                break
            length = record_length(head_length, body_length)
            try:
                take(fields, head, length)
            except Corrupt as error:
                self.unreadable.append(f"{file.where(position)}: {error}")
            position += length
            # Where bodies are large and not wanted, reading them all would cost more than many small reads.
            wanted = _WINDOW if body_length < _LARGE_BODY else _SMALL_WINDOW
            count += 1
            if count == _BLOCK_RECORDS:
                self._passed(count, position - told)
                count, told = 0, position
                yield position
        self._passed(count, position - told)
        yield position

    def _take(self, fields: tuple[Any, ...], head: bytes, length: int) -> None:
        """Makes of a valid record what it does."""
        type_, offset, clock, durable = fields[2], fields[4], fields[5], fields[6]
        if clock > CLOCK_MAX or durable > offset:
            check_header(clock, durable, offset, "a record")
        if durable > self._durable:
            self._durable = durable
        self.is_sealed = type_ == _SEAL
        volume = self.file.id
        if type_ == _CHUNK:
            if len(head) != chunk_head_length(fields[9]) or not fields[9]:
                read_head(Header(*fields[2:13]), head, "a chunk")
            self._unsure_chunks.append((head[:CHUNK_ID_SIZE], ChunkRow(volume, offset, fields[9], 0)))
            return
        if type_ == _SEAL:
            return
        key = b""
        what: Any = None
        if type_ == _OBJECT:
            about: ObjectHead = decode_head(type_, head, "an object")
            key = id_key(about.directory) + about.name
            if is_plain(about):
                what = pack_row(clock, volume, offset, length, about)
        if what is None:
            header = Header(*fields[2:13])
            what = change_of(self.file, Record(header, head, None))
            if isinstance(what.head, DeleteHead | AttrsHead):
                key = id_key(what.head.directory) + what.head.name
        self._ends.append(offset + length)
        self._unsure.append((clock, key, what))
