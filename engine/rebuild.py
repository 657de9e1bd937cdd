"""A new index from nothing but the volumes: when it was lost, to check the one there is, or because somebody asks.

Theory: one pass over every volume finds the stretches of valid records and the chunks in them; a second merges the
other records of all volumes by their clock and applies them to an empty index, in the order in which they once
happened; references to chunks are counted at the end, from what lives then.

Must not know: what the live index says.

Invariants:
* Damage in one volume costs what it covers, never more; a volume that cannot be read at all is left out and named.
* The same volumes give the same index.
"""

from __future__ import annotations

import heapq
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from cordwood.engine import namespace
from cordwood.engine.apply import Applier
from cordwood.engine.core import read_manifest
from cordwood.engine.errors import Corrupt
from cordwood.engine.format import SUPERBLOCK_SIZE, ChunkRef, Flag, RecordType
from cordwood.engine.fs import FileSystem
from cordwood.engine.index import Index, Txn
from cordwood.engine.recovery import Change, change_of
from cordwood.engine.rows import ChunkRow, Kind, ObjectRow, PartRow, RowFlag, VolumeRow, VolumeState
from cordwood.engine.volume import Place, VolumeFile, Volumes

_log = logging.getLogger("cordwood.engine")
_REBUILD_BATCH = 50_000
_REPORT_EVERY = 4096
_MORE = int(Flag.MORE)  # an enum's own "&" costs as much as reading the record

Progress = Callable[[int, int], None]  # bytes of the volumes done, bytes in all (each is read twice)


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


class _Survey(NamedTuple):
    """What a first pass found in a volume: stretches of valid records, and whether the last one is the SEAL."""

    file: VolumeFile
    stretches: list[tuple[int, int]]
    end: int
    sealed: bool
    damaged: bool


def _survey(file: VolumeFile, txn: Txn, limit: int | None, progress: _Meter) -> _Survey:
    """Finds the valid stretches of a volume and enters its chunks into the index, unreferenced."""
    size = file.size() if limit is None else min(limit, file.size())
    stretches: list[tuple[int, int]] = []
    position = SUPERBLOCK_SIZE
    durable = SUPERBLOCK_SIZE
    sealed = False
    chunks: list[tuple[bytes, ChunkRow]] = []
    while True:
        start = position
        for record in file.scan(position, size, bodies=False):
            header = record.header
            length = header.length
            position = header.offset + length
            progress.passed(length)
            durable = max(durable, header.durable)
            sealed = header.type == RecordType.SEAL
            if header.type == RecordType.CHUNK:
                chunks.append((record.head[:32], ChunkRow(file.id, header.offset, header.body_length, 0)))
        if position > start:
            stretches.append((start, position))
        following = file.find_valid(max(position, start + 8), size) if not sealed else None
        if following is None:
            break
        position = following.offset
    end = stretches[-1][1] if stretches else SUPERBLOCK_SIZE
    verified = _verified_end(file, durable, end)
    if verified < end:
        end, sealed = verified, False
    for chunk_id, row in chunks:
        if row.offset < end:  # behind it may stand a torn copy of a chunk that is whole elsewhere
            txn.put(chunk_id, row.pack(), txn.tables.chunks)
    damaged = any(stop < end for _, stop in stretches[:-1])
    return _Survey(file, stretches, end, sealed, damaged)


def _verified_end(file: VolumeFile, durable: int, end: int) -> int:
    """Where the whole transactions end whose bodies are whole too; only what lies past `durable` can be torn.

    A torn transaction must stay outside: once records stood behind it, the next rebuild would take it for a part of
    theirs.
    """
    position = durable
    in_transaction = False
    for record in file.scan(durable, end, bodies=True):
        if record.header.type != RecordType.CHUNK:
            in_transaction = bool(record.header.flags & Flag.MORE)
        if not in_transaction:
            position = record.header.offset + record.header.length
    return position


def _changes(survey: _Survey, progress: _Meter) -> Iterator[Change]:
    """The changes of a volume in the order they were written, which is clock order; whole transactions only.

    One by one, not in groups: compaction writes the records of a transaction singly, and while both copies are there
    the merge must bring the two of each record together.
    """
    file = survey.file
    for start, stop in survey.stretches:
        group: list[Change] = []
        for record in file.scan(start, min(stop, survey.end), bodies=False):
            progress.passed(record.header.length)
            if record.header.type in (RecordType.CHUNK, RecordType.SEAL):
                continue
            group.append(change_of(file, record))
            if not record.header.flags & _MORE:
                yield from group
                group = []
        if stop < survey.end:
            yield from group  # damage behind it, but it had been committed


class _Meter:
    """Counts records and tells the caller, now and then, how far it is."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._bytes = 0
        self.records = 0

    def passed(self, length: int) -> None:
        self._bytes += length
        self.records += 1
        if self._progress is not None and not self.records % _REPORT_EVERY:
            self._progress(min(self._bytes, self._total), self._total)


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
        txn = index.begin()
        txn.put_store(store)
        ids = volumes.ids()
        meter = _Meter(progress, 2 * sum(fs.size_of(volumes.path(volume)) or 0 for volume in ids))
        surveys = []
        for volume in ids:
            try:
                surveys.append(_survey(volumes.get(volume), txn, (limits or {}).get(volume), meter))
            except (Corrupt, OSError) as error:
                report.left_out[volume] = str(error)
                _log.error("volume %d is left out of the index: %s", volume, error)
        report.records = meter.records
        applier = Applier(txn, lambda place: read_manifest(volumes, place), counting=False)
        clock = 0
        count = 0
        streams = [_changes(survey, meter) for survey in surveys]
        merged = heapq.merge(*streams, key=attrgetter("clock")) if len(streams) > 1 else chain(*streams)
        for change in merged:
            applier.apply(change.type, change.clock, change.place, change.head, change.manifest)
            clock = max(clock, change.clock)
            count += 1
            if count >= _REBUILD_BATCH:
                count = 0
                applier.finish({})
                index.commit(txn)
                txn = index.begin()
                applier.txn = txn
        _remove_empty_directories(txn, applier)
        _count_references(txn, applier, volumes, report)
        txn.put_clock(clock)
        applier.finish({survey.file.id: _survey_row(survey) for survey in surveys})
        index.commit(txn)
        index.sync()
        report.volumes = len(surveys)
        report.damaged = [survey.file.id for survey in surveys if survey.damaged]
    finally:
        index.close()
    report.seconds = time.monotonic() - started_s
    return report


def _survey_row(survey: _Survey) -> VolumeRow:
    if survey.damaged:
        return VolumeRow(VolumeState.QUARANTINED, survey.file.size())
    return VolumeRow(VolumeState.SEALED if survey.sealed else VolumeState.ACTIVE, survey.end)


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
            manifest = read_manifest(volumes, place)
        except Corrupt as error:
            report.unreadable.append(str(error))
            _log.error("an object cannot be read: %s", error)
            continue
        for ref in manifest.chunks():
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
            if packed[0] == Kind.OBJECT:
                row = ObjectRow.unpack(packed)
                if not row.flags & (RowFlag.INLINE | RowFlag.MARKER):
                    yield row.place
    for _, packed in txn.items(b"", txn.tables.parts):
        yield PartRow.unpack(packed).place
