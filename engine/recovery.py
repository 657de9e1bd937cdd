"""After a crash: replays what the index may have lost, cuts what nobody was told of, and nothing else.

Must not know: how records came to be decided; `apply.py` says what they do.

What is in a volume past its watermark, and what becomes of it:
* a chunk: kept only if a kept transaction follows; nothing in the index refers to it yet;
* a transaction that was decided on the index's clock (`base`), or on that of a replayed one: it may have been
  acknowledged (LMDB can lose its newest commit in a power cut, `metasync=False`), so it is replayed;
* any other transaction was overtaken: later commits exist, so its own commit never happened, nobody was told: cut;
* an incomplete transaction, or bytes that are no valid record: a torn write: cut;
* unless a later record says (`durable`) that those bytes had been synced: then they are damage, not a torn write.
  The volume is quarantined: what can be read is replayed, nothing is cut, nothing is appended any more.

Before anything is cut the index is asked whether it points there, and the volume whether others followed: either means
that the watermark is wrong, not the record. An index can rot like any file (LMDB has no checksums), and must not take
the volumes along: then nothing is changed, and a rebuild is asked for.

Invariants:
* Only an unsealed volume that no living process has claimed is ever changed, and only past its watermark.
* Recovering twice changes nothing the second time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cordwood.engine.apply import Applier
from cordwood.engine.core import read_manifest
from cordwood.engine.errors import Corrupt
from cordwood.engine.format import (
    ALIGNMENT,
    CHUNK_ID_SIZE,
    SUPERBLOCK_SIZE,
    Flag,
    Layout,
    Manifest,
    ObjectHead,
    PartHead,
    RecordType,
    clock_base,
    read_head,
)
from cordwood.engine.fs import FileSystem
from cordwood.engine.index import Index, Txn
from cordwood.engine.liveness import find_pointer
from cordwood.engine.rows import VolumeRow, VolumeState
from cordwood.engine.volume import ActiveVolume, Place, Record, VolumeFile, Volumes

_log = logging.getLogger("cordwood.engine")


class Change(NamedTuple):
    """A decoded record, ready to be applied."""

    type: int
    clock: int
    place: Place
    head: Any
    manifest: Manifest | None


class Group(NamedTuple):
    """The changes of one transaction, the volume offset behind them, and the index clock they were decided on."""

    clock: int
    end: int
    changes: list[Change]
    base: int


@dataclass
class Tail:
    """What was found in one claimed volume past its watermark. Bytes from `keep` on are to be cut."""

    file: VolumeFile
    fd: int
    start: int
    size: int
    groups: list[Group] = field(default_factory=list)
    chunks: list[tuple[bytes, int]] = field(default_factory=list)  # (id, offset)
    keep: int = 0
    sealed: bool = False
    damaged: bool = False

    @property
    def state(self) -> int:
        if self.damaged:
            return VolumeState.QUARANTINED
        return VolumeState.SEALED if self.sealed else VolumeState.ACTIVE


def change_of(file: VolumeFile, record: Record) -> Change:
    header = record.header
    where = file.where(header.offset)
    head = read_head(header, record.head, where)
    is_chunked = isinstance(head, PartHead) or (
        isinstance(head, ObjectHead) and head.layout == Layout.CHUNKED
    )
    manifest = None
    if is_chunked and record.body is not None:
        try:
            manifest = Manifest(record.body, where)
            manifest.check()
        except Corrupt as error:
            # As a rebuild has it: the object keeps its name, and whoever reads it is told.
            _log.error("an object cannot be read: %s", error)
            manifest = Manifest(Manifest.pack([]))
    return Change(header.type, header.clock, Place(file.id, header.offset, header.length), head, manifest)


def _is_synced(file: VolumeFile, position: int, size: int) -> int | None:
    """Where valid records go on behind a bad place, if one of them proves that the bad place had been synced."""
    first = file.find_valid(
        position + ALIGNMENT, size
    )  # the header at `position` may be good, its head or body not
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
                continue
            try:
                if record.header.type == RecordType.CHUNK:
                    read_head(record.header, record.head, file.where(record.header.offset))
                    tail.chunks.append((record.head[:CHUNK_ID_SIZE], record.header.offset))
                    continue
                group.append(change_of(file, record))
            except Corrupt as error:
                # It is whole, so it was not torn: damage, which costs this record and nothing else.
                _log.error("%s; the volume is quarantined", error)
                tail.damaged = True
            if group and not record.header.flags & Flag.MORE:
                tail.groups.append(Group(group[0].clock, position, group, record.header.base))
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


def _not_overtaken(tails: list[Tail], clock: int) -> list[Group]:
    """The transactions to replay on top of the index's clock. Sets how much of each tail is kept.

    Each batch names the clock it was decided on, so those that were committed form a chain. Of two batches decided on
    the same clock at most one was committed: the later one, since its writer found the other's lock free.
    """
    if any(tail.damaged for tail in tails):
        return _later_than(
            tails, clock
        )  # links may be missing; nothing is cut that could have been acknowledged
    accepted: list[Group] = []
    taken = dict.fromkeys(range(len(tails)), 0)
    while True:
        base = clock_base(clock)
        heads = [
            (tail.groups[taken[number]].clock, number)
            for number, tail in enumerate(tails)
            if taken[number] < len(tail.groups)
            and tail.groups[taken[number]].base == base
            and tail.groups[taken[number]].clock > clock
        ]
        if not heads:
            break
        _, number = max(heads)
        tail = tails[number]
        first = tail.groups[taken[number]]
        for group in tail.groups[taken[number] :]:
            if group.base != first.base:
                break
            accepted.append(group)
            tail.keep = group.end
            clock = group.changes[-1].clock
            taken[number] += 1
    for number, tail in enumerate(tails):
        if taken[number] < len(tail.groups):
            tail.sealed = False  # it is cut, with the seal and all that was decided after it
    return accepted


def _later_than(tails: list[Tail], clock: int) -> list[Group]:
    accepted: list[Group] = []
    for tail in tails:
        for group in tail.groups:
            if group.clock > clock:
                accepted.append(group)
                tail.keep = group.end
            elif not tail.damaged:
                tail.sealed = False
                break
    return accepted


def _refuse_to_cut_what_counts(txn: Txn, tail: Tail) -> None:
    """Corrupt when what is to be cut off was committed: then the volume's row in the index is wrong.

    A writer goes on in a volume only after its last batch was committed, so of batches that never were there is one at
    most, the last. And no row points to what was never committed.
    """
    if tail.sealed or tail.damaged:
        return
    cut = [group for group in tail.groups if group.end > tail.keep]
    is_pointed_to = any(
        find_pointer(txn, change, change.head, change.place) is not None
        for group in cut
        for change in group.changes
    )
    for chunk_id, offset in tail.chunks:
        row = txn.chunk(chunk_id) if offset >= tail.keep else None
        is_pointed_to |= row is not None and (row.volume, row.offset) == (tail.file.id, offset)
    if is_pointed_to or len({group.base for group in cut}) > 1:
        raise Corrupt(
            f"{tail.file.path}: records behind {tail.keep} were committed, but the index does not know so; "
            "it is damaged, and `cordwood rebuild` makes a new one from the volumes"
        )


def refusals(index: Index, volumes: Volumes) -> Iterator[tuple[str, str]]:
    """The volumes over which a recovery would refuse to go on, and why. Reads only; nobody may be writing."""
    tails = []
    with index.read() as txn:
        for volume, row in _unsealed(txn, volumes):
            try:
                start = max(row.watermark if row else 0, SUPERBLOCK_SIZE)
                tails.append(read_tail(volumes.get(volume), -1, start))
            except (Corrupt, OSError):
                continue  # it cannot be recovered, and is passed over
        _not_overtaken(tails, txn.clock())
        for tail in tails:
            try:
                _refuse_to_cut_what_counts(txn, tail)
            except Corrupt as error:
                yield str(tail.file.path), str(error).removeprefix(f"{tail.file.path}: ")


def _unsealed(txn: Txn, volumes: Volumes) -> list[tuple[int, VolumeRow | None]]:
    rows = txn.volumes()
    return [
        (volume, rows.get(volume))
        for volume in volumes.ids()
        if volume not in rows or rows[volume].state == VolumeState.ACTIVE
    ]


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
                tail = self._claim_tail(volume, row)
                if tail is None:
                    continue
                try:
                    self._settle([tail])
                except Corrupt as error:
                    _log.error("%s", error)
                    self._volumes.release(tail.fd)
                    continue
                if tail.state == VolumeState.ACTIVE and tail.keep < self._volume_size:
                    return self._volumes.resume(volume, tail.fd, tail.keep)
                self._volumes.release(tail.fd)
        return None

    def _unsealed(self) -> list[tuple[int, VolumeRow | None]]:
        with self._index.read() as txn:
            return _unsealed(txn, self._volumes)

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
            if row is not None and row.state != VolumeState.ACTIVE:
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
        for tail in tails:
            self._fs.datasync(
                tail.fd
            )  # also what is indexed already: a process that died may have been relaxed
        if any(tail.groups or tail.size != tail.start or tail.damaged for tail in tails):
            self._replay(tails)
        for tail in tails:
            if not tail.sealed and not tail.damaged and tail.size > tail.keep:
                _log.info("%s: %d uncommitted bytes cut off", tail.file.path, tail.size - tail.keep)
                self._volumes.truncate(tail.fd, tail.keep)

    def _replay(self, tails: list[Tail]) -> None:
        txn = self._index.begin()
        try:
            clock = txn.clock()
            accepted = _not_overtaken(tails, clock)
            for tail in tails:
                _refuse_to_cut_what_counts(txn, tail)
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
