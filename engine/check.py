"""fsck: is this store what it should be? Reads everything, changes nothing, unless it is told to repair.

The heart of it: an index is rebuilt from the volumes beside the live one, and the two are compared row by row. As the
rebuild follows nothing but the records, equality proves both directions at once, reference counts, the directory tree
and the accounts. Before that: the directory's files, superblocks, every record header (and body, with `data`).

What repair does, in this order: writes a lost FORMAT from the superblocks, moves strange files out of volumes/ into
quarantine/, recovers as opening would, marks damaged volumes QUARANTINED, and puts the rebuilt index in the place of
one that is wrong. It never deletes and never changes a byte of a volume. While volumes are damaged it keeps an index
that can be read: that one may still know the names of what was lost.

Must not know: exit codes, how a report is shown.

Invariants: without `repair` nothing in the store is changed (a scratch index comes and goes). Hostile files are
reported, not believed: links are not followed, lengths are checked, LMDB is first opened by a child process.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any

from blake3 import blake3

from cordwood.engine import opening
from cordwood.engine.compare import UNREADABLE, compare
from cordwood.engine.errors import CordwoodError, Corrupt, StoreNotFound
from cordwood.engine.format import (
    CHUNK_ID_SIZE,
    FORMAT_VERSION,
    SUPERBLOCK_SIZE,
    Flag,
    Layout,
    Manifest,
    ObjectHead,
    PartHead,
    RecordType,
    Superblock,
    read_head,
)
from cordwood.engine.fs import REAL, FileSystem
from cordwood.engine.index import Index
from cordwood.engine.lengths import check_lengths
from cordwood.engine.liveness import Life, describe, life_of
from cordwood.engine.opening import Identity, Options
from cordwood.engine.probe import probe_index
from cordwood.engine.rebuild import RebuildReport, rebuild_index
from cordwood.engine.recovery import refusals
from cordwood.engine.rows import VolumeRow, VolumeState
from cordwood.engine.volume import Place, Record, VolumeFile, Volumes, volume_id_of, volume_name
from cordwood.engine.walk import Damage, is_room, walk

_log = logging.getLogger("cordwood.fsck")
QUARANTINE_NAME = "quarantine"
_PROBLEMS_MAX = 10_000
_LOOKUPS = 512

Progress = Callable[[str, int, int], None]  # phase, bytes done, bytes in all


@dataclass(slots=True)
class Problem:
    """One thing that is wrong. `where` names a file, a place or a key; `is_fixed` after a repair that worked."""

    kind: str
    where: str
    text: str
    is_fixed: bool = False


@dataclass(slots=True)
class CheckReport:
    """What fsck found. `notes` are lawful things worth knowing, such as a tail that the next opening recovers."""

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    repairs: list[str] = field(default_factory=list)
    volumes: int = 0
    records: int = 0
    bytes_read: int = 0
    more_problems: int = 0
    seconds: float = 0.0

    @property
    def is_clean(self) -> bool:
        return not self.problems

    @property
    def uncorrected(self) -> int:
        return self.more_problems + sum(1 for problem in self.problems if not problem.is_fixed)


def check_store(
    path: str | os.PathLike[str],
    *,
    data: bool = False,
    repair: bool = False,
    progress: Progress | None = None,
    fs: FileSystem = REAL,
    map_size: int = opening.DEFAULT_MAP_SIZE,
) -> CheckReport:
    """Checks a store that nobody has open. StoreNotFound, Busy, UnsupportedFormat; OSError when it cannot be read."""
    directory = Path(path).absolute()
    if not fs.is_directory(directory / opening.VOLUMES_NAME) and not fs.size_of(
        directory / opening.FORMAT_NAME
    ):
        raise StoreNotFound(f"{directory} holds no Cordwood store")
    started_s = time.monotonic()
    checker = _Checker(fs, directory, map_size, data=data, repair=repair, progress=progress)
    checker.run()
    checker.report.seconds = time.monotonic() - started_s
    return checker.report


class _Checker:
    def __init__(
        self,
        fs: FileSystem,
        directory: Path,
        map_size: int,
        *,
        data: bool,
        repair: bool,
        progress: Progress | None,
    ) -> None:
        self._fs = fs
        self._directory = directory
        self._map_size = map_size
        self._data = data
        self._repair = repair
        self._progress = progress
        self.report = CheckReport()
        self._damaged: set[int] = set()
        self._unknown: set[int] = set()  # volumes of which the index has no row
        self._is_index_usable = True
        self._index_problems: list[Problem] = []

    def run(self) -> None:
        identity = self._identity()
        if identity is None:
            return
        try:
            opening.require_volumes(self._fs, self._directory)
        except Corrupt as error:
            self._found("missing", str(self._directory / opening.VOLUMES_NAME), str(error))
            return
        with opening.alone_in(self._fs, self._directory):
            self._check_names(identity)
            self._check_index_opens()
        if self._repair and self._is_index_usable:
            self._recover()
        with opening.alone_in(self._fs, self._directory):
            volumes = Volumes(self._fs, self._directory / opening.VOLUMES_NAME, identity.store, identity.node)
            try:
                self._check_contents(identity, volumes)
            finally:
                volumes.close()

    def _found(self, kind: str, where: str, text: str) -> Problem:
        problem = Problem(kind, where, text)
        if len(self.report.problems) < _PROBLEMS_MAX:
            self.report.problems.append(problem)
        else:
            self.report.more_problems += 1
        return problem

    def _fixed(self, problem: Problem, how: str) -> None:
        problem.is_fixed = True
        self.report.repairs.append(how)

    # --- files ------------------------------------------------------------------------------------------------

    def _identity(self) -> Identity | None:
        """What FORMAT says; if it is lost or damaged, what the superblocks say."""
        path = self._directory / opening.FORMAT_NAME
        try:
            identity = opening.read_identity(self._fs, self._directory)
            if identity is not None:
                return identity
            problem = self._found("format", str(path), "is missing")
        except Corrupt as error:
            problem = self._found("format", str(path), str(error))
        blocks = [block for _, block in self._superblocks() if block is not None]
        if len({block.store for block in blocks}) != 1:
            problem.text += "; the volumes do not agree on whose they are, so it must come from a backup"
            return None
        identity = Identity(blocks[0].store, blocks[0].node)
        if self._repair:
            content = {
                "format": "cordwood",
                "version": FORMAT_VERSION,
                "store": identity.store.hex(),
                "node": f"{identity.node:016x}",
            }
            self._fs.publish(path, json.dumps(content, indent=1).encode() + b"\n")
            self._fixed(problem, f"{path} was written anew from the volumes' superblocks")
        return identity

    def _superblocks(self) -> list[tuple[str, Superblock | None]]:
        """Every file under a volume's name with its superblock; None where that cannot be read."""
        found: list[tuple[str, Superblock | None]] = []
        folder = self._directory / opening.VOLUMES_NAME
        for name in self._fs.names(folder):
            if volume_id_of(name) is None or self._fs.size_of(folder / name) is None:
                continue
            fd = self._fs.open_read(folder / name)
            try:
                found.append((name, Superblock.unpack(self._fs.read(fd, SUPERBLOCK_SIZE, 0), name)))
            except CordwoodError:
                found.append((name, None))
            finally:
                self._fs.close(fd)
        return found

    def _check_names(self, identity: Identity) -> None:
        """What is in volumes/ and should not be: links, strangers, one volume under two names."""
        folder = self._directory / opening.VOLUMES_NAME
        blocks = dict(self._superblocks())
        for name in self._fs.names(folder):
            path = folder / name
            volume = volume_id_of(name)
            if self._fs.size_of(path) is None:
                self._quarantine(path, "is not a plain file; links are never followed")
            elif volume is None:
                if name.startswith(".") and name.endswith(".tmp"):
                    self.report.notes.append(f"{path} was left by a crash; opening the store removes it")
                else:
                    self.report.notes.append(f"{path} is no volume; it is ignored")
            else:
                self._check_superblock(path, volume, blocks.get(name), identity)

    def _check_superblock(
        self, path: Path, volume: int, block: Superblock | None, identity: Identity
    ) -> None:
        if block is None:
            self._found("superblock", str(path), "has no valid superblock; nothing in it can be read")
        elif block.store != identity.store:
            self._quarantine(path, f"belongs to another store ({block.store.hex()})")
        elif block.volume != volume:
            right = path.with_name(volume_name(block.volume))
            if volume_id_of(right.name) is None:
                self._quarantine(path, f"says that it is volume {block.volume}, which no volume can be")
                return
            if self._fs.exists(right):
                self._quarantine(path, f"is a copy of {right.name} under another name")
                return
            problem = self._found("name", str(path), f"is volume {block.volume} under a wrong name")
            if self._repair:
                self._fs.rename(path, right)
                self._fs.sync_directory(path.parent)
                self._fixed(problem, f"{path.name} was renamed to {right.name}")

    def _quarantine(self, path: Path, text: str) -> None:
        problem = self._found("stranger", str(path), text)
        if self._repair:
            self._move_out(path, problem)

    def _move_out(self, path: Path, problem: Problem) -> None:
        folder = self._directory / QUARANTINE_NAME
        if self._fs.exists(folder) and not (self._fs.is_plain(folder) and self._fs.is_directory(folder)):
            self.report.notes.append(f"{folder} is a link or no folder, so nothing is moved there; remove it")
            return
        self._fs.make_directory(folder)
        # What an earlier repair put there under this name is somebody's last copy, perhaps.
        names = chain((path.name,), (f"{path.name}.{number}" for number in count(1)))
        target = next(folder / name for name in names if not self._fs.exists(folder / name))
        self._fs.rename(path, target)
        self._fs.sync_directory(folder)
        self._fs.sync_directory(path.parent)
        self._fixed(problem, f"{path.name} was moved to {target}")

    # --- the index --------------------------------------------------------------------------------------------

    def _check_index_opens(self) -> None:
        folder = self._directory / opening.INDEX_NAME
        size = self._fs.size_of(folder / "data.mdb")
        if size is None:
            try:
                check_lengths(self._fs, folder)
            except Corrupt as error:
                self._index_is_bad(str(error).removeprefix(f"{folder} "))
                return
            if self._fs.names(self._directory / opening.VOLUMES_NAME):
                self._index_is_bad("is missing")
            return
        self._say("index", 0, size)
        why = probe_index(folder, size, self._map_size)
        if why is not None:
            self._index_is_bad(why)
        self._say("index", size, size)

    def _index_is_bad(self, why: str) -> None:
        self._is_index_usable = False
        self._index_problems.append(self._found("index", str(self._directory / opening.INDEX_NAME), why))

    def _recover(self) -> None:
        """What opening would do anyway: the tails after a crash, retired volumes."""
        options = Options(create=False, map_size=self._map_size, alone=True)
        try:
            _, session = opening.open_store(self._fs, self._directory, options)
            session.close()
        except CordwoodError as error:
            self._index_is_bad(str(error))

    # --- contents ---------------------------------------------------------------------------------------------

    def _check_contents(self, identity: Identity, volumes: Volumes) -> None:
        folder = self._directory / opening.INDEX_NAME
        live: Index | None = None
        if self._is_index_usable and self._fs.size_of(folder / "data.mdb") is not None:
            live = Index(self._fs, folder, map_size=self._map_size, sync=True, read_only=True)
        scratch = self._directory / opening.NEW_INDEX_NAME
        try:
            rows = self._volume_rows(live)
            self._check_volumes(volumes, live, rows)
            if live is not None and self._is_index_usable:
                self._check_tails(live, volumes)
            if self._fs.exists(scratch):
                self._fs.remove_tree(scratch)
            rebuilt = rebuild_index(
                self._fs,
                scratch,
                volumes,
                identity.store,
                map_size=self._map_size,
                limits=self._limits(volumes, rows) if live is not None and self._is_index_usable else {},
                progress=lambda done, total: self._say("rebuild", done, total),
            )
            self._check_missing(rebuilt)
            if live is not None:
                self._compare(live, scratch, volumes)
        finally:
            if live is not None:
                live.close()
        self._decide(scratch)
        if self._fs.exists(scratch):
            self._fs.remove_tree(scratch)

    def _volume_rows(self, live: Index | None) -> dict[int, VolumeRow]:
        if live is None:
            return {}
        try:
            with live.read() as txn:
                return txn.volumes()
        except UNREADABLE as error:
            self._index_is_bad(f"a row of the volumes table cannot be read: {error!r}")
            return {}

    def _limits(self, volumes: Volumes, rows: dict[int, VolumeRow]) -> dict[int, int]:
        """Unsealed volumes count as far as the index knows them: what is behind is for the next recovery."""
        limits = {}
        self._unknown = set(volumes.ids()) - rows.keys()
        for volume in volumes.ids():
            row = rows.get(volume, VolumeRow())
            if row.state in (VolumeState.ACTIVE, VolumeState.FILLING):
                limits[volume] = max(row.watermark, SUPERBLOCK_SIZE)
        return limits

    def _check_volumes(self, volumes: Volumes, live: Index | None, rows: dict[int, VolumeRow]) -> None:
        ids = volumes.ids()
        total = sum(self._fs.size_of(volumes.path(volume)) or 0 for volume in ids)
        done = 0
        for volume in ids:
            size = self._fs.size_of(volumes.path(volume)) or 0
            try:
                file = volumes.get(volume)
            except (CordwoodError, OSError) as error:
                self._unreadable(volumes.path(volume), str(error), is_known=not rows or volume in rows)
                self._damaged.add(volume)
                continue
            self.report.volumes += 1
            self._check_volume(file, size, live, rows.get(volume), done, total)
            done += size
        for volume, row in sorted(rows.items()):
            if volume not in ids and row.state != VolumeState.RETIRED and row.watermark > SUPERBLOCK_SIZE:
                self._damaged.add(volume)
                text = f"is missing; {row.live_bytes} live bytes are lost with it"
                self._found("missing", str(volumes.path(volume)), text)

    def _check_tails(self, live: Index, volumes: Volumes) -> None:
        """Whether the next opening would go through: not where the index lags behind what was committed."""
        for where, why in refusals(live, volumes):
            self._index_problems.append(self._found("index", where, why))

    def _unreadable(self, path: Path, why: str, *, is_known: bool) -> None:
        """A file that is called a volume and cannot be opened as one. Where the index never heard of it, it goes."""
        problem = next((each for each in self.report.problems if each.where == str(path)), None)
        if problem is None:
            problem = self._found("superblock", str(path), why)
        if self._repair and not is_known and not problem.is_fixed:
            self._move_out(path, problem)

    def _check_volume(
        self, file: VolumeFile, size: int, live: Index | None, row: VolumeRow | None, done: int, total: int
    ) -> None:
        end = size
        state = row.state if row is not None else VolumeState.ACTIVE
        if state == VolumeState.RETIRED:
            self.report.notes.append(f"{file.path} is retired; opening the store removes it")
            return
        if state == VolumeState.FILLING:
            self.report.notes.append(
                f"{file.path} was being written by a compaction; the next one settles it"
            )
        if live is not None and state in (VolumeState.ACTIVE, VolumeState.FILLING):
            end = min(size, max(row.watermark if row else 0, SUPERBLOCK_SIZE))
            if size > end and state == VolumeState.ACTIVE:
                self.report.notes.append(
                    f"{file.path}: {size - end} bytes behind the watermark are settled when the store is opened"
                )
        if row is not None and size < row.watermark:
            self._damaged.add(file.id)
            text = f"is {size} bytes, {row.watermark} are indexed: its end was lost"
            self._found("truncated", str(file.path), text)
        volume_check = _VolumeCheck(self, file, live, self._data)
        batch: list[Record | Damage] = []
        for item in walk(file, SUPERBLOCK_SIZE, end, bodies=self._data):
            batch.append(item)
            if len(batch) >= _LOOKUPS:
                position = volume_check.take(batch)
                self._say("data" if self._data else "volumes", done + position, total)
                batch = []
        volume_check.take(batch)
        self.report.records += volume_check.records
        self.report.bytes_read += end
        if volume_check.is_damaged:
            self._damaged.add(file.id)
        if row is not None and row.state != VolumeState.FILLING:
            volume_check.finish(row)

    def _check_missing(self, rebuilt: RebuildReport) -> None:
        for ref in rebuilt.missing:
            if ref.volume in self._unknown:
                continue  # it was not read; that the index does not know it is found by the comparison
            self._damaged.add(ref.volume)
            text = f"is named by a live object, but no volume has it (it was in volume {ref.volume})"
            self._found("lost", f"chunk {ref.id.hex()}", text)
        for text in rebuilt.unreadable:
            self._found("lost", "object", text)

    def _compare(self, live: Index, scratch: Path, volumes: Volumes) -> None:
        rebuilt = Index(self._fs, scratch, map_size=self._map_size, sync=True, read_only=True)
        try:
            for difference in compare(live, rebuilt, volumes):
                where = f"{difference.table}: {difference.key}"
                problem = self._found("index", where, difference.text)
                place = difference.place
                if place is None or place.volume not in self._damaged:
                    self._index_problems.append(problem)
        finally:
            rebuilt.close()

    # --- the decision -----------------------------------------------------------------------------------------

    def _decide(self, scratch: Path) -> None:
        """Puts the rebuilt index in place, if that makes things better; marks damaged volumes."""
        if not self._repair:
            return
        is_swapped = bool(self._index_problems) and (not self._damaged or not self._is_index_usable)
        if is_swapped:
            opening.swap_index(self._fs, self._directory)
            self.report.repairs.append("the index was replaced by one rebuilt from the volumes")
            for problem in self._index_problems:
                problem.is_fixed = True
        elif self._index_problems:
            self.report.notes.append(
                "the index was kept, because volumes are damaged and it may know what was lost; "
                "`cordwood rebuild` makes one of what the volumes still hold"
            )
        self._mark_damaged()

    def _mark_damaged(self) -> None:
        folder = self._directory / opening.INDEX_NAME
        if not self._damaged or self._fs.size_of(folder / "data.mdb") is None:
            return
        index = Index(self._fs, folder, map_size=self._map_size, sync=True, read_only=False)
        try:
            txn = index.begin()
            marked = []
            for volume in sorted(self._damaged):
                row = txn.volume(volume)
                if row is not None and row.state in (VolumeState.ACTIVE, VolumeState.SEALED):
                    txn.put_volume(volume, row._replace(state=VolumeState.QUARANTINED))
                    marked.append(volume)
            index.commit(txn)
            index.sync()
        finally:
            index.close()
        for volume in marked:
            self.report.repairs.append(f"volume {volume} was quarantined: it is read, but no longer written")

    def found_in_volume(self, kind: str, where: str, text: str, *, is_index: bool = False) -> None:
        problem = self._found(kind, where, text)
        if is_index:
            self._index_problems.append(problem)

    def found_unreadable(self, why: str) -> None:
        """A row of the index makes no sense: told once for each text, and the index is not believed any more."""
        self._is_index_usable = False
        if not any(problem.text == why for problem in self._index_problems):
            self._index_is_bad(why)

    def _say(self, phase: str, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(phase, done, total)


class _VolumeCheck:
    """What is checked record by record in one volume."""

    def __init__(self, checker: _Checker, file: VolumeFile, live: Index | None, data: bool) -> None:
        self._checker = checker
        self._file = file
        self._live = live
        self._data = data
        self._clock = 0
        self._oldest_dead = 0
        self._is_sealed = False
        self.records = 0
        self.is_damaged = False

    def take(self, batch: list[Record | Damage]) -> int:
        """Checks a run of items; returns how far that reached into the volume."""
        if not batch:
            return 0
        if self._live is None:
            for item in batch:
                self._check(item)
        else:
            with self._live.read() as txn:
                for item in batch:
                    head = self._check(item)
                    if head is not None and isinstance(item, Record):
                        place = Place(self._file.id, item.header.offset, item.header.length)
                        try:
                            life = life_of(txn, item.header, head, place)
                        except Corrupt as error:
                            self._checker.found_unreadable(str(error))
                        else:
                            if life == Life.DEAD:
                                self._dead(item)
        last = batch[-1]
        return last.end if isinstance(last, Damage) else last.header.offset + last.header.length

    def _dead(self, item: Record) -> None:
        # Only these come back to life in a rebuild when the tombstone that ended them is forgotten.
        if item.header.type in (RecordType.OBJECT, RecordType.BUCKET, RecordType.UPLOAD):
            self._oldest_dead = min(self._oldest_dead or item.header.clock, item.header.clock)

    def _check(self, item: Record | Damage) -> Any:
        """The decoded head of a good record; None for anything else."""
        where = self._file.where(item.offset if isinstance(item, Damage) else item.header.offset)
        if isinstance(item, Damage):
            if self._live is None and not self._is_sealed and is_room(self._file, item):
                return None  # where there is an index, it says that nothing is behind the last record
            self.is_damaged = True
            what = self._name(item)
            text = f"{item.why}; {item.end - item.offset} bytes" + (f": {what}" if what else "")
            self._checker.found_in_volume("damage", where, text)
            return None
        header = item.header
        self.records += 1
        if self._is_sealed:
            self._bad("order", where, "a record stands behind the SEAL")
        try:
            head = read_head(header, item.head, where)
            self._check_shape(item, head, where)
        except Corrupt as error:
            self._bad("damage", where, str(error))
            return None
        if header.type == RecordType.SEAL:
            self._is_sealed = True
        elif header.type != RecordType.CHUNK:
            if header.clock <= self._clock:
                self._bad("order", where, "its clock is not greater than that of the record before")
            self._clock = header.clock
        return head

    def _bad(self, kind: str, where: str, text: str) -> None:
        self.is_damaged = True
        self._checker.found_in_volume(kind, where, text)

    def _name(self, item: Damage) -> str:
        """What a record was whose body is bad, if its head still tells."""
        if item.header is None or item.head is None or self._live is None:
            return ""
        try:
            with self._live.read() as txn:
                head = read_head(item.header, item.head, "")
                place = Place(self._file.id, item.header.offset, item.header.length)
                life = life_of(txn, item.header, head, place)
                return f"{life.name.lower()} {describe(txn, item.header, head)}"
        except Corrupt:
            return ""

    def _check_shape(self, item: Record, head: object, where: str) -> None:
        """That head and body fit each other; with the body at hand, its digest or manifest."""
        header, body = item.header, item.body
        if header.type == RecordType.CHUNK:
            is_named_by_digest = header.flags & Flag.DIGEST and body is not None
            if is_named_by_digest and blake3(body or b"").digest() != item.head[:CHUNK_ID_SIZE]:
                raise Corrupt(f"{where}: the chunk's bytes do not have the digest that it is named by")
            return
        if body is None:
            return
        chunked = isinstance(head, PartHead) or (
            isinstance(head, ObjectHead) and head.layout == Layout.CHUNKED
        )
        if chunked:
            assert isinstance(head, PartHead | ObjectHead)
            manifest = Manifest(body, where, head.overhead)
            manifest.check()
            size = manifest.size
            if size != head.size:
                raise Corrupt(f"{where}: its chunks are {size} bytes, its head says {head.size}")
        elif isinstance(head, ObjectHead) and len(body) != head.size + head.overhead:
            raise Corrupt(
                f"{where}: its body is {len(body)} bytes, its head says {head.size} and {head.overhead} of a cipher"
            )

    def finish(self, row: VolumeRow) -> None:
        """Compares the volume's row with what its records came to."""
        where = f"volumes: {self._file.id}"
        if row.state == VolumeState.SEALED and not self._is_sealed and not self.is_damaged:
            self._checker.found_in_volume("index", where, "is said to be sealed, but ends without a SEAL")
            self.is_damaged = True
        if self._oldest_dead and not 0 < row.oldest_dead <= self._oldest_dead:
            self._checker.found_in_volume(
                "index",
                where,
                f"its oldest dead record has clock {self._oldest_dead}, the index says {row.oldest_dead}: "
                "a compaction might forget a delete too early",
                is_index=True,
            )
