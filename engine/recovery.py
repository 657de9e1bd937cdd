"""After a crash: replays what the index may have lost, cuts what nobody was told of, and nothing else.

Must not know: how records came to be decided; `apply.py` says what they do.

What is in a volume past its watermark, and what becomes of it:
* a chunk: kept only if a kept transaction follows; nothing in the index refers to it yet;
* a transaction whose clock is greater than the index's: it may have been acknowledged (LMDB can lose its newest commit
  in a power cut, `metasync=False`), so it is replayed;
* a transaction whose clock is not: later commits exist, so its own commit never happened, nobody was told: cut;
* an incomplete transaction, or bytes that are no valid record: a torn write: cut;
* unless a later record says (`durable`) that those bytes had been synced: then they are damage, not a torn write.
  The volume is quarantined: what can be read is replayed, nothing is cut, nothing is appended any more.

Invariants:
* Only an unsealed volume that no living process has claimed is ever changed, and only past its watermark.
* Recovering twice changes nothing the second time.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cordwood.engine import namespace
from cordwood.engine.apply import Applier
from cordwood.engine.core import read_manifest
from cordwood.engine.errors import Corrupt
from cordwood.engine.format import (
    SUPERBLOCK_SIZE,
    Flag,
    Layout,
    Manifest,
    ObjectHead,
    PartHead,
    RecordType,
    decode_head,
)
from cordwood.engine.fs import FileSystem
from cordwood.engine.index import (
    ChunkRow,
    Index,
    Kind,
    ObjectRow,
    PartRow,
    RowFlag,
    Txn,
    VolumeRow,
    VolumeState,
)
from cordwood.engine.volume import ActiveVolume, Place, Record, VolumeFile, Volumes

_log = logging.getLogger("cordwood.engine")
_REBUILD_BATCH = 50_000


class Change(NamedTuple):
    """A decoded record, ready to be applied."""

    type: int
    clock: int
    place: Place
    head: Any
    manifest: Manifest | None


class Group(NamedTuple):
    """The changes of one transaction and the volume offset behind them."""

    clock: int
    end: int
    changes: list[Change]


@dataclass
class Tail:
    """What was found in one claimed volume past its watermark. Bytes from `keep` on are to be cut."""

    file: VolumeFile
    fd: int
    start: int
    size: int
    groups: list[Group] = field(default_factory=list)
    keep: int = 0
    sealed: bool = False
    damaged: bool = False

    @property
    def state(self) -> int:
        if self.damaged:
            return VolumeState.QUARANTINED
        return VolumeState.SEALED if self.sealed else VolumeState.ACTIVE


def _change(file: VolumeFile, record: Record) -> Change:
    header = record.header
    where = file.where(header.offset)
    head = decode_head(header.type, record.head, where)
    is_chunked = isinstance(head, PartHead) or (
        isinstance(head, ObjectHead) and head.layout == Layout.CHUNKED
    )
    manifest = Manifest(record.body, where) if is_chunked and record.body is not None else None
    return Change(header.type, header.clock, Place(file.id, header.offset, header.length), head, manifest)


def _is_synced(file: VolumeFile, position: int, size: int) -> int | None:
    """Where valid records go on behind a bad place, if one of them proves that the bad place had been synced."""
    first = file.find_valid(position, size)
    header = first
    while header is not None:
        end = header.offset
        for record in file.scan(header.offset, size, bodies=False):
            if record.header.durable > position:
                assert first is not None
                return first.offset
            end = record.header.offset + record.header.length
        header = file.find_valid(max(end, header.offset + 8), size)
    return None


def read_tail(file: VolumeFile, fd: int, start: int) -> Tail:
    """Reads a volume from its watermark on."""
    tail = Tail(file, fd, start, file.size(), keep=start)
    if tail.size < start:
        _log.error("%s is %d bytes, %d of it are indexed: its end was lost", file.path, tail.size, start)
        tail.damaged = True
        return tail
    position = start
    group: list[Change] = []
    while True:
        for record in file.scan(position, tail.size, bodies=True):
            position = record.header.offset + record.header.length
            if record.header.type == RecordType.SEAL:
                tail.sealed = True
            elif record.header.type != RecordType.CHUNK:
                group.append(_change(file, record))
                if not record.header.flags & Flag.MORE:
                    tail.groups.append(Group(group[0].clock, position, group))
                    group = []
        if tail.sealed or position >= tail.size:
            break
        resume = _is_synced(file, position, tail.size)
        if resume is None:
            break
        _log.error("%s: bytes %d to %d are damaged; the volume is quarantined", file.path, position, resume)
        tail.damaged = True
        group = []
        position = resume
    return tail


def remove_retired(fs: FileSystem, index: Index, volumes: Volumes) -> list[int]:
    """Unlinks the volumes that the index says are retired; returns those that were still there.

    Until a file is gone for good its dead records count: only then is `oldest_dead` cleared, which frees tombstones.
    """
    with index.read() as txn:
        rows = txn.volumes()
        retired = {volume for volume, row in rows.items() if row.state == VolumeState.RETIRED}
        pending = {volume for volume in retired if rows[volume].oldest_dead}
    there = sorted(retired.intersection(volumes.ids()))
    if not there and not pending:
        return []
    index.sync()  # a power cut must not bring the rows back that pointed there
    for volume in there:
        fs.unlink_if_there(volumes.path(volume))
        volumes.forget(volume)
    fs.sync_directory(volumes.directory)
    txn = index.begin()
    try:
        for volume in pending:
            txn.put_volume(volume, VolumeRow(VolumeState.RETIRED))
        index.commit(txn)
    except BaseException:
        txn.raw.abort()
        raise
    return there


class Recovery:
    """Brings the volumes that no living process owns up to date, and claims one of them for appending."""

    def __init__(
        self, fs: FileSystem, index: Index, volumes: Volumes, lock_path: Path, volume_size: int
    ) -> None:
        self._fs = fs
        self._index = index
        self._volumes = volumes
        self._lock_path = lock_path
        self._volume_size = volume_size

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One process at a time recovers or claims."""
        fd = self._fs.open_lock(self._lock_path)
        try:
            self._fs.lock_wait(fd)
            yield
        finally:
            self._fs.close(fd)

    def run(self) -> None:
        """Recovers every volume that can be claimed. Call within `alone`."""
        tails: list[Tail] = []
        try:
            for volume, row in self._unsealed():
                tail = self._claim_tail(volume, row)
                if tail is not None:
                    tails.append(tail)
            self._settle(tails)
        finally:
            for tail in tails:
                self._volumes.release(tail.fd)

    def remove_retired(self) -> None:
        """Finishes what a compaction had decided: unlinks retired volumes. Call within `alone`."""
        remove_retired(self._fs, self._index, self._volumes)

    def claim(self) -> ActiveVolume | None:
        """A volume with room, recovered and held for appending; None when a new one has to be made."""
        with self.alone():
            for volume, row in self._unsealed():
                if row is not None and row.state == VolumeState.QUARANTINED:
                    continue
                tail = self._claim_tail(volume, row)
                if tail is None:
                    continue
                self._settle([tail])
                if tail.state == VolumeState.ACTIVE and tail.keep < self._volume_size:
                    return self._volumes.resume(volume, tail.fd, tail.keep)
                self._volumes.release(tail.fd)
        return None

    def _unsealed(self) -> list[tuple[int, VolumeRow | None]]:
        with self._index.read() as txn:
            rows = txn.volumes()
        return [
            (volume, rows.get(volume))
            for volume in self._volumes.ids()
            if volume not in rows or rows[volume].state == VolumeState.ACTIVE
        ]

    def _claim_tail(self, volume: int, row: VolumeRow | None) -> Tail | None:
        try:
            fd = self._volumes.claim(volume)
        except OSError as error:
            _log.error("volume %d cannot be opened: %s", volume, error)
            return None
        if fd is None:
            return None
        try:
            with self._index.read() as txn:  # again, now that nobody else appends to it
                row = txn.volume(volume)
            if row is not None and row.state not in (VolumeState.ACTIVE, VolumeState.QUARANTINED):
                self._volumes.release(fd)  # sealed by another process meanwhile
                return None
            start = max(row.watermark if row else 0, SUPERBLOCK_SIZE)
            return read_tail(self._volumes.get(volume), fd, start)
        except (Corrupt, OSError) as error:
            _log.error("volume %d cannot be recovered: %s", volume, error)
            self._volumes.release(fd)
            return None

    def _settle(self, tails: list[Tail]) -> None:
        """Replays, commits, then cuts. A crash in between leaves what the next recovery settles the same way."""
        if any(tail.groups or tail.size != tail.start or tail.damaged for tail in tails):
            self._replay(tails)
        for tail in tails:
            if not tail.sealed and not tail.damaged and tail.size > tail.keep:
                _log.info("%s: %d uncommitted bytes cut off", tail.file.path, tail.size - tail.keep)
                self._volumes.truncate(tail.fd, tail.keep)

    def _replay(self, tails: list[Tail]) -> None:
        for tail in tails:
            self._fs.datasync(tail.fd)
        txn = self._index.begin()
        try:
            clock = txn.clock()
            accepted: list[Group] = []
            for tail in tails:
                for group in tail.groups:
                    if group.clock > clock:
                        accepted.append(group)
                        tail.keep = group.end
            applier = Applier(txn, lambda place: read_manifest(self._volumes, place))
            for group in sorted(accepted, key=lambda group: group.clock):
                for change in group.changes:
                    applier.apply(change.type, change.clock, change.place, change.head, change.manifest)
                    clock = max(clock, change.clock)
            if accepted:
                _log.info("%d transactions replayed from the volumes", len(accepted))
            txn.put_clock(clock)
            applier.finish({tail.file.id: self._settled_row(tail) for tail in tails})
            self._index.commit(txn)
        except BaseException:
            txn.raw.abort()
            raise
        self._index.sync()

    @staticmethod
    def _settled_row(tail: Tail) -> VolumeRow:
        if tail.damaged or tail.sealed:
            tail.keep = max(tail.size, tail.start)
        return VolumeRow(tail.state, tail.keep)


# --- a new index from the volumes alone -----------------------------------------------------------------------


class _Survey(NamedTuple):
    """What a first pass found in a volume: stretches of valid records, and whether the last one is the SEAL."""

    file: VolumeFile
    stretches: list[tuple[int, int]]
    end: int
    sealed: bool
    damaged: bool


def _survey(file: VolumeFile, txn: Txn) -> _Survey:
    """Finds the valid stretches of a volume and enters its chunks into the index, unreferenced."""
    size = file.size()
    stretches: list[tuple[int, int]] = []
    position = SUPERBLOCK_SIZE
    durable = SUPERBLOCK_SIZE
    sealed = False
    chunks: list[tuple[bytes, ChunkRow]] = []
    while True:
        start = position
        for record in file.scan(position, size, bodies=False):
            header = record.header
            position = header.offset + header.length
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
    if not sealed:
        end = _verified_end(file, durable, end)
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


def _changes(survey: _Survey) -> Iterator[Change]:
    """The changes of a volume in the order they were written, which is clock order; whole transactions only.

    One by one, not in groups: compaction writes the records of a transaction singly, and while both copies are there
    the merge must bring the two of each record together.
    """
    file = survey.file
    for start, stop in survey.stretches:
        group: list[Change] = []
        for record in file.scan(start, min(stop, survey.end), bodies=False):
            if record.header.type in (RecordType.CHUNK, RecordType.SEAL):
                continue
            group.append(_change(file, record))
            if not record.header.flags & Flag.MORE:
                yield from group
                group = []
        if stop < survey.end:
            yield from group  # damage behind it, but it had been committed


def rebuild_index(fs: FileSystem, directory: Path, volumes: Volumes, store: bytes, *, map_size: int) -> None:
    """Writes a new index in `directory`, which must not exist, from nothing but the volumes. Needs the store alone."""
    index = Index(fs, directory, map_size=map_size, sync=False, read_only=False)
    try:
        txn = index.begin()
        txn.put_store(store)
        surveys = []
        for volume in volumes.ids():
            try:
                surveys.append(_survey(volumes.get(volume), txn))
            except Corrupt as error:
                _log.error("volume %d is left out of the index: %s", volume, error)
        applier = Applier(txn, lambda place: read_manifest(volumes, place), counting=False)
        clock = 0
        count = 0
        for change in heapq.merge(*map(_changes, surveys), key=lambda change: change.clock):
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
        _count_references(txn, applier, volumes)
        txn.put_clock(clock)
        applier.finish({survey.file.id: _survey_row(survey) for survey in surveys})
        index.commit(txn)
        index.sync()
    finally:
        index.close()


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


def _count_references(txn: Txn, applier: Applier, volumes: Volumes) -> None:
    """Counts how often live objects and parts name each chunk; drops the chunks that none does."""
    for place in _chunked_places(txn):
        try:
            manifest = read_manifest(volumes, place)
        except Corrupt as error:
            _log.error("an object cannot be read: %s", error)
            continue
        for ref in manifest.chunks():
            applier.reference_chunk(ref)
    unused = [key for key, row in txn.items(b"", txn.tables.chunks) if not ChunkRow.unpack(row).references]
    for key in unused:
        txn.delete(key, txn.tables.chunks)


def _chunked_places(txn: Txn) -> Iterator[Place]:
    for table in (txn.tables.entries, txn.tables.versions):
        for _, packed in txn.items(b"", table):
            if packed[0] == Kind.OBJECT:
                row = ObjectRow.unpack(packed)
                if not row.flags & (RowFlag.INLINE | RowFlag.MARKER):
                    yield row.place
    for _, packed in txn.items(b"", txn.tables.parts):
        yield PartRow.unpack(packed).place
