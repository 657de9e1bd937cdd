"""A new index from nothing but the volumes: when it was lost, to check the one there is, or because somebody asks.

Theory: one pass over every volume (rescan.py) gives its chunks, and its other records, which are merged by their clock
and applied to an empty index in the order in which they once happened, but for what order cannot touch; references to
chunks are counted at the end, from what lives then.

Must not know: what the live index says.

Invariants:
* Damage in one volume costs what it covers, never more; a volume that cannot be read at all is left out and named.
* The same volumes give the same index.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path

from cordwood.engine import namespace
from cordwood.engine.apply import Applier
from cordwood.engine.core import read_manifest
from cordwood.engine.errors import Corrupt
from cordwood.engine.format import CHUNK_ID_SIZE, ChunkRef, chunk_record_length
from cordwood.engine.fs import FileSystem
from cordwood.engine.index import Index, Txn
from cordwood.engine.rescan import ChunkItem, Item, VolumeScan
from cordwood.engine.rows import (
    ChunkRow,
    Kind,
    ObjectRow,
    PartRow,
    RowFlag,
    VolumeRow,
    VolumeState,
)
from cordwood.engine.volume import Place, Volumes

_log = logging.getLogger("cordwood.engine")
_SLICE_RECORDS = 200_000
_NO_CHUNKS = RowFlag.INLINE | RowFlag.MARKER

Progress = Callable[[int, int], None]  # bytes of the volumes done, bytes in all


@dataclass(slots=True)
class RebuildReport:
    """What a rebuild read. `left_out` are volumes that could not be read; `missing` chunks that live objects name but
    no volume has, with the place where each one was said to be."""

    volumes: int = 0
    records: int = 0
    seconds: float = 0.0
    left_out: dict[int, str] = field(default_factory=dict)
    damaged: list[int] = field(default_factory=list)
    missing: list[ChunkRef] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def rebuild_index(
    fs: FileSystem,
    directory: Path,
    volumes: Volumes,
    store: bytes,
    *,
    map_size: int,
    limits: Mapping[int, int] | None = None,
    progress: Progress | None = None,
) -> RebuildReport:
    """Writes a new index in `directory`, which must not exist, from nothing but the volumes. Needs the store alone.

    `limits` tells of some volumes where to stop reading: for a comparison with an index that knows no more.
    """
    started_s = time.monotonic()
    report = RebuildReport()
    index = Index(fs, directory, map_size=map_size, sync=False, read_only=False)
    try:
        ids = volumes.ids()
        meter = _Meter(progress, sum(fs.size_of(volumes.path(volume)) or 0 for volume in ids))
        loader = _Loader(index, volumes, store)
        scans: list[VolumeScan] = []
        chunks: list[ChunkItem] = []
        for volume in ids:
            try:
                limit = (limits or {}).get(volume)
                scans.append(VolumeScan(volumes.get(volume), limit, chunks, meter.passed))
            except (Corrupt, OSError) as error:
                report.left_out[volume] = str(error)
                _log.error("volume %d is left out of the index: %s", volume, error)
        for items in in_clock_order(scans):
            loader.take(items)
            loader.take_chunks(chunks)
            chunks.clear()
        loader.finish(scans, report)
        report.records = meter.records
        report.volumes = len(scans)
        report.damaged = [scan.file.id for scan in scans if scan.is_damaged]
        report.unreadable += [text for scan in scans for text in scan.unreadable]
    finally:
        index.close()
    report.seconds = time.monotonic() - started_s
    return report


class _Stream:
    """A scan that is under way: the block at hand, and how much of it was taken."""

    def __init__(self, number: int, scan: VolumeScan) -> None:
        self.number = number
        self.block: list[Item] = []
        self.position = 0
        self._blocks = scan.blocks()

    def front(self) -> tuple[int, int]:
        return self.block[self.position][0], self.number

    def refill(self) -> bool:
        """Fetches the next block that holds anything, once this one was taken whole. False: there is none."""
        while self.position >= len(self.block):
            block = next(self._blocks, None)
            if block is None:
                return False
            self.block, self.position = block, 0
        return True


def in_clock_order(scans: Sequence[VolumeScan]) -> Iterator[list[Item]]:
    """The items of all volumes by clock, of equal ones that of the first volume first. In runs: where volumes were
    written one after another a run is a block. A volume is read only once its first record comes to be next."""
    waiting = sorted(((scan.first_clock(), number) for number, scan in enumerate(scans)), reverse=True)
    active: list[_Stream] = []
    while active or waiting:
        front = min(active, key=_Stream.front) if active else None
        if front is None or (waiting and waiting[-1] < front.front()):
            number = waiting.pop()[1]
            stream = _Stream(number, scans[number])
            if stream.refill():
                active.append(stream)
            else:
                yield []
            continue
        others = [each.front() for each in active if each is not front] + waiting[-1:]
        stop = len(front.block)
        if others:
            bound = min(others)
            cut = bisect_right if front.number < bound[1] else bisect_left
            stop = cut(front.block, bound[0], lo=front.position, key=itemgetter(0))
        yield front.block[front.position : stop]
        front.position = stop
        if not front.refill():
            active.remove(front)


class _Loader:
    """Applies what the volumes say to an empty index, some hundred thousand records at a time.

    Of such a slice the plain objects whose key comes for the first time go in by the order of their keys, which LMDB
    takes several times faster; all other records after them, by clock. Records of one key keep their order, and those
    of different keys do not touch each other: empty directories and references are left for the end.
    """

    def __init__(self, index: Index, volumes: Volumes, store: bytes) -> None:
        self._index = index
        self._volumes = volumes
        self._txn = index.begin()
        self._txn.put_store(store)
        self._applier = Applier(self._txn, lambda place: read_manifest(volumes, place), counting=False)
        self._clock = 0
        self._first: dict[bytes, bytes] = {}
        self._touched: set[bytes] = set()
        self._later: list[Item] = []
        self._chunks: dict[bytes, ChunkRow] = {}
        self._copies: dict[bytes, list[ChunkRow]] = {}

    def take(self, items: list[Item]) -> None:
        """Items in clock order."""
        if not items:
            return
        first, touched, later = self._first, self._touched, self._later
        for item in items:
            _, key, what = item
            if type(what) is bytes and key not in first and key not in touched:
                first[key] = what
                continue
            touched.add(key)
            later.append(item)
        self._clock = max(self._clock, items[-1][0])
        if len(first) + len(later) >= _SLICE_RECORDS:
            self._flush()

    def take_chunks(self, chunks: list[ChunkItem]) -> None:
        for chunk_id, row in chunks:
            if self._chunks.setdefault(chunk_id, row) is not row:
                self._copies.setdefault(chunk_id, []).append(row)
        if len(self._chunks) >= _SLICE_RECORDS:
            self._flush()

    def finish(self, scans: Sequence[VolumeScan], report: RebuildReport) -> None:
        """Settles what can only be told at the end, and makes it all durable."""
        self._flush()
        txn, applier = self._txn, self._applier
        for chunk_id, rows in self._copies.items():
            first = txn.chunk(chunk_id)
            assert first is not None
            row = self._whole_one(chunk_id, sorted({first, *rows}))
            txn.put(chunk_id, row.pack(), txn.tables.chunks)
        _remove_empty_directories(txn, applier)
        _count_references(txn, applier, self._volumes, report)
        txn.put_clock(self._clock)
        applier.finish({scan.file.id: _row_of(scan) for scan in scans})
        self._index.commit(txn)
        self._index.sync()

    def _flush(self) -> None:
        txn, applier = self._txn, self._applier
        rows = sorted(self._first.items())
        if rows and rows[0][0] > txn.last_key(txn.tables.entries):
            applier.enter_behind(rows)
        else:
            for key, packed in rows:
                applier.enter(key, packed)
        for clock, key, what in self._later:
            if type(what) is bytes:
                applier.enter(key, what)
            else:
                applier.apply(what.type, clock, what.place, what.head, None)
        for chunk_id in sorted(self._chunks):
            row = self._chunks[chunk_id]
            if not txn.add(chunk_id, row.pack(), txn.tables.chunks):
                self._copies.setdefault(chunk_id, []).append(row)
        for gathered in (self._first, self._touched, self._later, self._chunks):
            gathered.clear()
        applier.finish({})
        self._index.commit(txn)
        self._txn = applier.txn = self._index.begin()

    def _whole_one(self, chunk_id: bytes, rows: list[ChunkRow]) -> ChunkRow:
        """Of several copies of a chunk the last that can be read: one that had rotted was written again behind it."""
        for row in reversed(rows):  # by volume and offset
            place = Place(row.volume, row.offset, chunk_record_length(row.length))
            try:
                record = self._volumes.get(row.volume).read_record(place)
            except (Corrupt, OSError) as error:
                _log.warning("a copy of chunk %s is not used: %s", chunk_id.hex(), error)
                continue
            if record is not None and record.head[:CHUNK_ID_SIZE] == chunk_id:
                return row
        return rows[-1]


def _row_of(scan: VolumeScan) -> VolumeRow:
    if scan.is_damaged:
        return VolumeRow(VolumeState.QUARANTINED, scan.file.size())
    return VolumeRow(VolumeState.SEALED if scan.is_sealed else VolumeState.ACTIVE, scan.end)


class _Meter:
    """Counts records and tells the caller, now and then, how far it is."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._bytes = 0
        self.records = 0

    def passed(self, records: int, length: int) -> None:
        self._bytes += length
        self.records += records
        if self._progress is not None:
            self._progress(min(self._bytes, self._total), self._total)


def _remove_empty_directories(txn: Txn, applier: Applier) -> None:
    """Directories whose last object went before their newest record: live, they vanished without a record."""
    empty = []
    for key, row in txn.items(b"", txn.tables.directories):
        directory = int.from_bytes(key, "big")
        if namespace.is_empty(txn, directory):
            empty.append((int.from_bytes(row[:8], "little"), directory))
    for bucket, directory in empty:
        applier.vanish_if_empty(bucket, directory)


def _count_references(txn: Txn, applier: Applier, volumes: Volumes, report: RebuildReport) -> None:
    """Counts how often live objects and parts name each chunk; drops the chunks that none does."""
    for place in chunked_places(txn):
        try:
            chunks = read_manifest(volumes, place).chunks()
        except (Corrupt, OSError) as error:
            report.unreadable.append(f"volume {place.volume} offset {place.offset}: {error}")
            _log.error("an object cannot be read: %s", error)
            continue
        for ref in chunks:
            if txn.chunk(ref.id) is None:
                report.missing.append(ref)
            applier.reference_chunk(ref)
    unused = [key for key, row in txn.items(b"", txn.tables.chunks) if not ChunkRow.unpack(row).references]
    for key in unused:
        txn.delete(key, txn.tables.chunks)


def chunked_places(txn: Txn) -> Iterator[Place]:
    """Where every record stands that lists chunks."""
    for table in (txn.tables.entries, txn.tables.versions):
        for _, packed in txn.items(b"", table):
            if packed[0] == Kind.OBJECT and not packed[1] & _NO_CHUNKS:
                yield ObjectRow.unpack(packed).place
    for _, packed in txn.items(b"", txn.tables.parts):
        yield PartRow.unpack(packed).place
