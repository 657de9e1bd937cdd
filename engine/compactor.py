"""Compaction: copies what lives out of volumes that are mostly dead, verifies the copies, and removes the volumes.

One round, for up to ten victims:
  1. read the victims once, side by side: of each record decide by the index whether it lives; read and verify those
     that do; add them to FILLING volumes (filling.py), records other than chunks merged in clock order;
  2. tombstones that are still needed go to a volume of their own kind, so that they can go without moving live data;
  3. each FILLING volume that is full is sealed, read back, and the rows are moved to it;
  4. a victim into which, by the index, nothing points any more becomes RETIRED, durably; then its file is removed.
A crash between any two steps leaves a whole store, and the next run goes on from there.

A record that cannot be read stays where it is: its volume is QUARANTINED and kept, everything else is copied out.

Must not know: threads, processes, settings files, who asked for it.

Invariants:
* A volume is removed only when no row points into it, by a second look at each of its records and by its account in
  the transaction that retires it; what lived in it was read back elsewhere before.
* A chunk without references loses its row first, in a transaction of its own: nobody can come to share it meanwhile.
* One compaction at a time per store (the COMPACTION lock). A volume id is never used again.
"""

from __future__ import annotations

import heapq
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from cordwood.engine.clock import milliseconds, tick
from cordwood.engine.core import Core
from cordwood.engine.errors import Busy, Corrupt, Full
from cordwood.engine.filling import (
    Filling,
    Pacer,
    change,
    keep_highest,
    read_seal,
    set_state,
    settle_leftovers,
)
from cordwood.engine.format import CHUNK_ID_SIZE, SUPERBLOCK_SIZE, Header, read_head
from cordwood.engine.index import Txn
from cordwood.engine.liveness import (
    Life,
    describe,
    horizon,
    is_needed,
    is_tombstone,
    life_of,
    references_into,
)
from cordwood.engine.recovery import remove_retired
from cordwood.engine.rows import VolumeRow, VolumeState
from cordwood.engine.volume import Place, Record, VolumeFile
from cordwood.engine.walk import Damage, walk

_log = logging.getLogger("cordwood.compaction")
LOCK_NAME = "COMPACTION"
_LOOKUPS = 512  # records decided on in one read transaction
_FULL_THRESHOLD = 0.01
_SMALL_SHARE = 4  # a volume is small below a fourth of the volume size
_SMALL_COUNT = 4
_SMALL_COUNT_FULL = 2
_SEAL_BYTES = 80
_ROOM_LEFT_BYTES = (
    2 << 20
)  # for the index and deletes; less than what writes leave, or a full store stayed full
_NAMED_MAX = 100


@dataclass(frozen=True, slots=True)
class CompactionPolicy:
    """Which volumes are worth compacting. Sizes in bytes, `threshold` is dead bytes / all bytes of a volume.

    `full` takes every volume with 1 % dead and merges small ones, without a limit per run. `grace_s` spares volumes
    sealed less long ago: uploads in flight may own chunks there that no row names yet.
    """

    threshold: float = 0.3
    min_dead_bytes: int = 10 << 20
    max_volumes: int = 10
    grace_s: float = 3600.0
    full: bool = False
    dry_run: bool = False
    rate_bytes_s: int = 0
    volume_size: int = 1 << 30


@dataclass(frozen=True, slots=True)
class Candidate:
    """A volume as compaction sees it. `dead_bytes` counts tombstones too; `why` is empty when it is left alone."""

    volume: int
    size: int
    live_bytes: int
    dead_bytes: int
    state: int
    why: str = ""


@dataclass(slots=True)
class CompactionReport:
    """What a run did, or with `dry_run` would do. `lost` names what could not be read."""

    dry_run: bool = False
    volumes_examined: int = 0
    victims: list[int] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)
    created: list[int] = field(default_factory=list)
    kept: dict[int, str] = field(default_factory=dict)
    quarantined: list[int] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    records_copied: int = 0
    bytes_copied: int = 0
    tombstones_copied: int = 0
    tombstones_dropped: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    uploads_aborted: int = 0
    is_complete: bool = True
    seconds: float = 0.0

    @property
    def bytes_reclaimed(self) -> int:
        return self.bytes_before - self.bytes_after


Progress = Callable[[int, int], None]  # bytes of the victims done, bytes of the victims in all


class _Stopped(Exception):
    """The caller asked to stop: what was copied is kept, the rest is for the next run."""


@dataclass(slots=True)
class _Victim:
    file: VolumeFile
    end: int
    size: int
    is_damaged: bool = False
    unreadable: list[tuple[Header, Any, str]] = field(default_factory=list)


class Compactor:
    """One run over a store. `is_alone`: nobody else has it open, so unsealed volumes may be taken as well."""

    def __init__(
        self,
        core: Core,
        policy: CompactionPolicy,
        *,
        is_alone: bool = False,
        progress: Progress | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        self._core = core
        self._policy = policy
        self._is_alone = is_alone
        self._progress = progress
        self._should_stop = should_stop or (lambda: False)
        self._pacer = Pacer(policy.rate_bytes_s, is_alone=is_alone)
        self._report = CompactionReport(dry_run=policy.dry_run)
        self._done: set[int] = set()
        self._mine: set[int] = set()
        self._live: Filling | None = None
        self._graves: Filling | None = None
        self._horizon = 0
        self._read_bytes = 0
        self._total_bytes = 0

    def run(self) -> CompactionReport:
        """Compacts what the policy asks for. Busy when another compaction is under way; Full, ReadOnly."""
        core, report = self._core, self._report
        started_s = time.monotonic()
        lock = core.fs.open_lock(core.volumes.directory.parent / LOCK_NAME)
        try:
            if not core.fs.lock(lock, shared=False):
                raise Busy(f"{core.volumes.directory.parent}: another compaction is under way")
            report.bytes_before = self._bytes_on_disk()
            if self._policy.dry_run:
                self._plan_only()
            else:
                self._run_rounds()
            report.bytes_after = self._bytes_on_disk()
        finally:
            core.fs.close(lock)
        report.seconds = time.monotonic() - started_s
        return report

    def _plan_only(self) -> None:
        candidates = self.candidates()
        self._report.volumes_examined = len(candidates)
        self._report.victims = [each.volume for each in candidates if each.why]

    def _run_rounds(self) -> None:
        settle_leftovers(self._core, self._pacer)
        remove_retired(self._core.fs, self._core.index, self._core.volumes)
        is_first = True
        examined: set[int] = set()
        while True:
            candidates = self.candidates()
            examined.update(each.volume for each in candidates)
            self._report.volumes_examined = len(examined)
            victims = [each for each in candidates if each.why]
            if not self._policy.full and not is_first:
                # What this run itself left behind and may go at once: tombstones that nothing needs any more.
                victims = [each for each in victims if each.volume in self._mine and not each.live_bytes]
            if not victims:
                return
            is_first = False
            fitting = self._that_fit(victims)
            if not fitting:
                return
            self._round(fitting[: self._policy.max_volumes])
            if not self._report.is_complete:
                return

    def _bytes_on_disk(self) -> int:
        volumes = self._core.volumes
        return sum(self._core.fs.size_of(volumes.path(volume)) or 0 for volume in volumes.ids())

    # --- choosing ---------------------------------------------------------------------------------------------

    def candidates(self) -> list[Candidate]:
        """Every volume that could be compacted, the deadest first, each with the reason to take it, if there is one."""
        core = self._core
        with core.index.read() as txn:
            rows = txn.volumes()
        self._horizon = horizon(rows)
        found = []
        for volume in core.volumes.ids():
            row = rows.get(volume)
            size = core.fs.size_of(core.volumes.path(volume))
            if row is None or size is None or volume in self._done or not self._may_take(volume, row, size):
                continue
            if volume in self._mine and row.live_bytes:
                continue  # just written: what died in it meanwhile is for the next run
            dead = max(0, size - SUPERBLOCK_SIZE - _SEAL_BYTES - row.live_bytes)
            candidate = Candidate(volume, size, row.live_bytes, dead, row.state)
            found.append(self._judged(candidate, row))
        found = self._with_small_ones(found)
        return sorted(found, key=lambda each: each.live_bytes / max(1, each.size))

    def _may_take(self, volume: int, row: VolumeRow, size: int) -> bool:
        if row.state == VolumeState.QUARANTINED:
            # A full run tries again to save what else is in it, and removes it once nothing in it lives.
            return row.live_bytes == 0 or self._policy.full
        if row.state == VolumeState.ACTIVE:
            return self._is_alone and row.watermark == size and size > SUPERBLOCK_SIZE
        if row.state != VolumeState.SEALED:
            return False
        return volume in self._mine or self._is_alone or self._sealed_long_ago(volume, row)

    def _sealed_long_ago(self, volume: int, row: VolumeRow) -> bool:
        if not self._policy.grace_s:
            return True
        try:
            seal = read_seal(self._core.volumes.get(volume), row.watermark)
        except (Corrupt, OSError):
            return True
        now_ms = milliseconds(tick(0))
        return seal is None or now_ms - milliseconds(seal.clock) >= self._policy.grace_s * 1000

    def _judged(self, candidate: Candidate, row: VolumeRow) -> Candidate:
        policy = self._policy
        threshold = min(policy.threshold, _FULL_THRESHOLD) if policy.full else policy.threshold
        min_dead = 1 if policy.full else policy.min_dead_bytes
        why = ""
        if candidate.state == VolumeState.QUARANTINED:
            why = "it is quarantined; what can be read is saved"
        elif not candidate.live_bytes and not row.oldest_dead and self._holds_needed_tombstones(candidate):
            pass  # only tombstones, and none may go yet
        elif not candidate.live_bytes and not row.oldest_dead:
            why = "nothing in it is needed any more"
        elif candidate.dead_bytes >= max(min_dead, threshold * candidate.size):
            why = f"{candidate.dead_bytes / candidate.size:.0%} of it are dead"
        if not why:
            return candidate
        return replace(candidate, why=why)

    def _holds_needed_tombstones(self, candidate: Candidate) -> bool:
        """Of a volume in which nothing lives or is dead: whether its newest tombstone is needed.

        They stand in clock order, so the newest may go only when all may; moving a part of them would gain little.
        """
        if not self._horizon:
            return False
        file = self._core.volumes.get(candidate.volume)
        newest = 0
        for item in walk(file, SUPERBLOCK_SIZE, candidate.size):
            if isinstance(item, Record) and _is_grave(file, item):
                newest = item.header.clock
                if is_needed(newest, self._horizon):
                    return True
        return False

    def _with_small_ones(self, found: list[Candidate]) -> list[Candidate]:
        """Marks small volumes, once there are several: merging them keeps the number of files in bounds.

        Those of live records and those of tombstones are kept apart, as everywhere.
        """
        limit = self._policy.volume_size // _SMALL_SHARE
        chosen: set[int] = set()
        for is_grave in (False, True):
            small = [
                each.volume
                for each in found
                if not each.why
                and each.size < limit
                and each.state == VolumeState.SEALED
                and is_grave == (not each.live_bytes)
                and each.volume not in self._mine
            ]
            if len(small) >= (_SMALL_COUNT_FULL if self._policy.full else _SMALL_COUNT):
                chosen.update(small)
        why = "it is small, like others"
        return [replace(each, why=why) if each.volume in chosen else each for each in found]

    # --- one round --------------------------------------------------------------------------------------------

    def _round(self, candidates: list[Candidate]) -> None:
        victims = []
        for candidate in candidates:
            self._done.add(candidate.volume)
            self._report.victims.append(candidate.volume)
            victim = self._open_victim(candidate)
            if victim is not None:
                victims.append(victim)
        self._total_bytes += sum(victim.end for victim in victims)
        try:
            self._copy_survivors(victims)
            self._finish_filling()
        except Full:
            self._give_up_filling()
            raise
        finally:
            for filling in (self._live, self._graves):
                if filling is not None:
                    filling.close()
            self._live = self._graves = None
        for victim in victims:
            self._retire(victim)
        remove_retired(self._core.fs, self._core.index, self._core.volumes)

    def _copy_survivors(self, victims: list[_Victim]) -> None:
        try:
            streams = [self._survivors(victim) for victim in victims]
            for source, record, is_grave in heapq.merge(*streams, key=lambda each: each[1].header.clock):
                self._copy(source, record, is_grave=is_grave)
        except _Stopped:
            self._report.is_complete = False

    def _that_fit(self, candidates: list[Candidate]) -> list[Candidate]:
        """Those for whose live bytes there is room, all together, the deadest first.

        Full when nothing at all can be done; later in a run what does not fit is only reported.
        """
        room = self._core.fs.free_bytes(self._core.volumes.directory) - _ROOM_LEFT_BYTES
        fitting: list[Candidate] = []
        for candidate in candidates:
            if candidate.live_bytes <= room or not candidate.live_bytes:
                room -= candidate.live_bytes
                fitting.append(candidate)
        if not fitting:
            first = candidates[0]
            why = f"no room to copy {first.live_bytes} live bytes of volume {first.volume}; free some space"
            if not self._report.victims:
                raise Full(f"{self._core.volumes.directory}: {why}")
            self._report.kept[first.volume] = why
            self._report.is_complete = False
        return fitting

    def _open_victim(self, candidate: Candidate) -> _Victim | None:
        core, volume = self._core, candidate.volume
        try:
            file = core.volumes.get(volume)
            if candidate.state == VolumeState.ACTIVE:
                fd = core.volumes.claim(volume)
                if fd is None:
                    return None
                active = core.volumes.resume(volume, fd, candidate.size)
                active.seal(tick(0))
                active.close()
                set_state(core, volume, VolumeState.SEALED, watermark=active.tail)
            return _Victim(file, file.size(), candidate.size)
        except (Corrupt, OSError) as error:
            self._report.kept[volume] = str(error)
            _log.error("volume %d cannot be compacted: %s", volume, error)
            return None

    def _survivors(self, victim: _Victim) -> Iterator[tuple[Place, Record, bool]]:
        """The records of a victim that must be kept, verified, in its order; live chunks are copied on the way."""
        items = walk(victim.file, SUPERBLOCK_SIZE, victim.end)
        while batch := list(islice(items, _LOOKUPS)):
            if self._should_stop():
                raise _Stopped
            for header, head, life in self._decide(victim, batch):
                place = Place(victim.file.id, header.offset, header.length)
                if life == Life.TOMBSTONE:
                    if not is_needed(header.clock, self._horizon):
                        self._report.tombstones_dropped += 1
                        continue
                elif life != Life.LIVE:
                    continue
                record = self._read(victim, place, header, head)
                if record is None:
                    continue
                if isinstance(head, bytes):
                    self._copy(place, record, is_grave=False)
                else:
                    yield place, record, life == Life.TOMBSTONE
            last = batch[-1]
            end = last.end if isinstance(last, Damage) else last.header.offset + last.header.length
            first = batch[0].offset if isinstance(batch[0], Damage) else batch[0].header.offset
            self._pacer.spend(end - first)
            self._read_bytes += end - first
            if self._progress is not None:
                self._progress(self._read_bytes, self._total_bytes)

    def _decide(self, victim: _Victim, batch: list[Record | Damage]) -> list[tuple[Header, Any, Life]]:
        """Which records of a batch live, by one look at the index."""
        decided: list[tuple[Header, Any, Life]] = []
        idle = []
        with self._core.index.read() as txn:
            for item in batch:
                if isinstance(item, Damage):
                    victim.is_damaged = True
                    where = victim.file.where(item.offset)
                    _log.error("%s: %d bytes are damaged: %s", where, item.end - item.offset, item.why)
                    continue
                header = item.header
                place = Place(victim.file.id, header.offset, header.length)
                try:
                    head = read_head(header, item.head, victim.file.where(header.offset))
                except Corrupt as error:
                    victim.is_damaged = True
                    _log.error("%s", error)
                    continue
                life = life_of(txn, header, head, place)
                if life == Life.IDLE:
                    idle.append(len(decided))
                decided.append((header, head, life))
        if idle:
            revived = change(
                self._core, lambda txn: _drop_idle(txn, victim.file.id, [decided[at] for at in idle])
            )
            for at, lives in zip(idle, revived, strict=True):
                header, head, _ = decided[at]
                decided[at] = (header, head, Life.LIVE if lives else Life.DEAD)
        return decided

    def _read(self, victim: _Victim, place: Place, header: Header, head: Any) -> Record | None:
        try:
            record = victim.file.read_record(place)
        except (Corrupt, OSError) as error:
            victim.is_damaged = True
            victim.unreadable.append((header, head, str(error)))
            _log.error("a live record cannot be copied: %s", error)
            return None
        assert record is not None
        return record

    # --- filling ----------------------------------------------------------------------------------------------

    def _copy(self, source: Place, record: Record, *, is_grave: bool) -> None:
        filling = self._graves if is_grave else self._live
        if filling is not None and not filling.has_room(record.header.length):
            self._finish(filling)
            filling = None
        if filling is None:
            filling = Filling(self._core, self._policy.volume_size, self._pacer)
            self._mine.add(filling.id)
            self._report.created.append(filling.id)
            if is_grave:
                self._graves = filling
            else:
                self._live = filling
        filling.add(source, record)
        if is_grave:
            self._report.tombstones_copied += 1
        else:
            self._report.records_copied += 1
            self._report.bytes_copied += record.header.length

    def _finish(self, filling: Filling) -> None:
        filling.finish()
        if filling.failures:
            self._report.lost += [f"{text}; its source is kept" for text in filling.failures]
            self._report.quarantined.append(filling.id)

    def _finish_filling(self) -> None:
        for filling in (self._live, self._graves):
            if filling is not None:
                self._finish(filling)
        self._live = self._graves = None

    def _give_up_filling(self) -> None:
        for filling in (self._live, self._graves):
            if filling is not None and not filling.is_sealed:
                filling.discard()
                self._report.created.remove(filling.id)

    # --- the end of a victim ----------------------------------------------------------------------------------

    def _retire(self, victim: _Victim) -> None:
        """Removes a victim that nothing points into; keeps, and if it is damaged quarantines, any other."""
        core, report, volume = self._core, self._report, victim.file.id
        if not self._report.is_complete:
            report.kept[volume] = "the run was stopped"
            return
        if victim.is_damaged and self._still_referenced(victim):
            return
        keep_highest(core, volume)
        rest = self._left_behind(victim) or change(core, lambda txn: _retire_row(txn, volume))
        if rest is None:
            report.removed.append(volume)
        else:
            report.kept[volume] = rest
            _log.warning("volume %d is kept: %s", volume, rest)

    def _left_behind(self, victim: _Victim) -> str | None:
        """Asks the index about every record once more: that nothing lives here must not rest on an account alone."""
        items = walk(victim.file, SUPERBLOCK_SIZE, victim.end)
        while batch := list(islice(items, _LOOKUPS)):
            with self._core.index.read() as txn:
                for item in batch:
                    if isinstance(item, Damage):
                        continue
                    header = item.header
                    where = victim.file.where(header.offset)
                    place = Place(victim.file.id, header.offset, header.length)
                    try:
                        head = read_head(header, item.head, where)
                    except Corrupt:
                        continue  # the victim is damaged then, and no row of the whole index points into it
                    if life_of(txn, header, head, place) == Life.LIVE:
                        return f"{describe(txn, header, head)} still lives at {where}; `cordwood fsck` tells more"
        return None

    def _still_referenced(self, victim: _Victim) -> bool:
        """Of a damaged victim: whether live records are left in it. They are named, and it is quarantined."""
        volume = victim.file.id
        references = list(references_into(self._core.index, volume))
        if not references:
            return False
        set_state(self._core, volume, VolumeState.QUARANTINED)
        report = self._report
        report.quarantined.append(volume)
        report.kept[volume] = f"{len(references)} live records in it cannot be read"
        with self._core.index.read() as txn:
            named = {
                header.offset: f"{describe(txn, header, head)}: {why}"
                for header, head, why in victim.unreadable
            }
        for reference in references[:_NAMED_MAX]:
            text = f"{reference.name}: {victim.file.where(reference.offset)} cannot be read"
            report.lost.append(named.get(reference.offset, text))
        return True


def _is_grave(file: VolumeFile, record: Record) -> bool:
    """Whether a scanned record is a tombstone."""
    header = record.header
    try:
        return is_tombstone(header, read_head(header, record.head, file.where(header.offset)))
    except Corrupt:
        return False


def _drop_idle(txn: Txn, volume: int, items: list[tuple[Header, Any, Life]]) -> list[bool]:
    """Removes the rows of chunks that nothing refers to; tells which of them came to be referred to meanwhile."""
    revived = []
    for header, head, _ in items:
        chunk_id = bytes(head[:CHUNK_ID_SIZE])
        row = txn.chunk(chunk_id)
        is_here = row is not None and (row.volume, row.offset) == (volume, header.offset)
        if is_here and row is not None and not row.references:
            txn.delete(chunk_id, txn.tables.chunks)
        revived.append(is_here and row is not None and row.references > 0)
    return revived


def _retire_row(txn: Txn, volume: int) -> str | None:
    """Retires a volume if nothing lives in it; else the reason why it stays."""
    row = txn.volume(volume)
    if row is None or row.state not in (VolumeState.SEALED, VolumeState.QUARANTINED):
        return "its state changed meanwhile"
    if row.live_bytes:
        return f"{row.live_bytes} live bytes are left in it"
    txn.put_volume(volume, row._replace(state=VolumeState.RETIRED))
    return None
