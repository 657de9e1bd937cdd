"""The slow background reading of everything: finds bytes that rotted before somebody needs them.

Theory: volumes are read in the order of their ids, every record's head, body and digest verified, at a rate that
comes round once in a settable number of days. A cursor and the findings are kept in DIR/SCRUB, so that a restart goes
on where the last process stopped. A record that reads badly is read once more, past the kernel's cache, before it
counts.

Must not know: threads, processes, where the status is shown.

Invariants:
* Nothing is changed but DIR/SCRUB and, for a volume with a bad record that lives, its state: QUARANTINED.
* A finding stays on the list until its record is gone or reads well again.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from blake3 import blake3

from cordwood.engine.core import Core
from cordwood.engine.errors import CordwoodError, Corrupt
from cordwood.engine.filling import Pacer, change
from cordwood.engine.format import CHUNK_ID_SIZE, SUPERBLOCK_SIZE, Flag, RecordType, read_head
from cordwood.engine.fs import REAL, FileSystem
from cordwood.engine.index import Txn
from cordwood.engine.inspect import objects_with_chunks
from cordwood.engine.liveness import Life, describe, life_of, references_into
from cordwood.engine.rows import VolumeRow, VolumeState
from cordwood.engine.volume import Place, Record, VolumeFile
from cordwood.engine.walk import Damage, walk

_log = logging.getLogger("cordwood.scrub")
STATUS_NAME = "SCRUB"
_BAD_MAX = 1000
_SAVE_EVERY_S = 60.0
_WINDOW = 1 << 20


@dataclass(slots=True)
class BadRecord:
    """A place that does not read as it was written, and what stood there."""

    volume: int
    offset: int
    length: int
    why: str
    name: str
    found_ms: int
    seen_ms: int


@dataclass(slots=True)
class ScrubStatus:
    """How far the present cycle is, and what is known to be bad. Times are Unix milliseconds."""

    volume: int = 0
    offset: int = 0
    cycle: int = 1
    cycle_started_ms: int = 0
    cycle_bytes: int = 0
    total_bytes: int = 0
    records: int = 0
    bytes_read: int = 0
    last_cycle_ended_ms: int = 0
    last_cycle_bytes: int = 0
    bad: list[BadRecord] = field(default_factory=list)


def read_status(directory: Path, fs: FileSystem = REAL) -> ScrubStatus | None:
    """The status that the last scrub left; None when there was none, or the file cannot be read as one."""
    path = directory / STATUS_NAME
    if fs.size_of(path) is None:
        return None
    try:
        return msgspec.json.decode(fs.read_file(path), type=ScrubStatus)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        _log.warning("%s cannot be read, scrubbing begins anew: %r", path, error)
        return None


class Scrubber:
    """Reads on from where the last scrub of this store stopped. One per store at a time."""

    def __init__(
        self, core: Core, *, rate_bytes_s: int = 0, should_stop: Callable[[], bool] | None = None
    ) -> None:
        self._core = core
        self._pacer = Pacer(rate_bytes_s)
        self._directory = core.volumes.directory.parent
        self._should_stop = should_stop or (lambda: False)
        self.status = read_status(self._directory, core.fs) or ScrubStatus()
        self._saved_s = time.monotonic()

    def total_bytes(self) -> int:
        volumes = self._core.volumes
        return sum(self._core.fs.size_of(volumes.path(volume)) or 0 for volume in volumes.ids())

    def read_on(self, budget_bytes: int) -> bool:
        """Verifies about so many bytes more; True when that brought a cycle to its end."""
        status = self.status
        if not status.cycle_started_ms:
            status.cycle_started_ms = _now_ms()
        status.total_bytes = self.total_bytes()
        is_done = False
        known_bad = len(status.bad)
        while budget_bytes > 0 and not self._should_stop():
            volume = next((each for each in self._core.volumes.ids() if each >= status.volume), None)
            if volume is None:
                self._end_cycle()
                is_done = True
                break
            if volume != status.volume:
                status.volume, status.offset = volume, 0
            budget_bytes -= self._read_volume(volume, budget_bytes)
        is_worth_it = is_done or len(status.bad) != known_bad
        if is_worth_it or time.monotonic() - self._saved_s > _SAVE_EVERY_S:
            self.save()
        return is_done

    def run_cycle(self, progress: Callable[[int, int], None] | None = None) -> ScrubStatus:
        """Verifies everything once, from the beginning."""
        self.status.volume = self.status.offset = self.status.cycle_bytes = 0
        self.status.cycle_started_ms = _now_ms()
        while not self._should_stop() and not self.read_on(32 << 20):
            if progress is not None:
                progress(self.status.cycle_bytes, self.status.total_bytes)
        self.save()
        return self.status

    def _end_cycle(self) -> None:
        status = self.status
        now_ms = _now_ms()
        _log.info("scrub cycle %d read %d bytes, %d bad", status.cycle, status.cycle_bytes, len(status.bad))
        status.last_cycle_ended_ms = now_ms
        status.last_cycle_bytes = status.cycle_bytes
        status.cycle += 1
        status.volume = status.offset = status.cycle_bytes = 0
        status.cycle_started_ms = now_ms

    def save(self) -> None:
        """Keeps the cursor and the findings for the next process."""
        self._saved_s = time.monotonic()
        content = json.dumps(asdict(self.status)).encode() + b"\n"
        self._core.fs.publish(self._directory / STATUS_NAME, content)

    def _read_volume(self, volume: int, budget: int) -> int:
        """Reads on in one volume; returns how many bytes were read, at least 1."""
        core, status = self._core, self.status
        with core.index.read() as txn:
            row = txn.volume(volume)
        if row is None or row.state in (VolumeState.RETIRED, VolumeState.FILLING):
            status.volume, status.offset = volume + 1, 0
            return 1
        try:
            file = core.volumes.get(volume)
            return self._read_records(file, row, budget)
        except FileNotFoundError:
            self._forgive(volume, 0, 1 << 63)
        except (CordwoodError, OSError) as error:
            self._is_bad(volume, row, 0, SUPERBLOCK_SIZE, str(error), None)
        status.volume, status.offset = volume + 1, 0
        return 1

    def _read_records(self, file: VolumeFile, row: VolumeRow, budget: int) -> int:
        status = self.status
        start = max(status.offset, SUPERBLOCK_SIZE)
        position = start
        file.drop_cached(start, budget + _WINDOW)
        for item in walk(file, start, row.watermark, bodies=True):
            if isinstance(item, Damage):
                self._look_again(file, row, item)
                position = item.end
            else:
                why = _digest_error(item)
                position = item.header.offset + item.header.length
                if why is not None:
                    damage = Damage(item.header.offset, position, why, item.header, item.head)
                    self._is_bad(file.id, row, damage.offset, position, why, damage)
                status.records += 1
                self._pacer.spend(item.header.length)
            if position - start >= budget or self._should_stop():
                break
        self._forgive_read(file.id, start, position)
        count = position - start
        status.bytes_read += count
        status.cycle_bytes += count
        if position >= row.watermark:
            status.volume, status.offset = file.id + 1, 0
        else:
            status.offset = position
        return max(count, 1)

    def _look_again(self, file: VolumeFile, row: VolumeRow, damage: Damage) -> None:
        file.drop_cached(damage.offset, damage.end - damage.offset)
        again = next(walk(file, damage.offset, damage.end, bodies=True), None)
        if isinstance(again, Record):
            _log.warning("%s read badly once (%s), then well", file.where(damage.offset), damage.why)
            return
        self._is_bad(file.id, row, damage.offset, damage.end, damage.why, damage)

    # --- findings ---------------------------------------------------------------------------------------------

    def _is_bad(
        self, volume: int, row: VolumeRow, offset: int, end: int, why: str, damage: Damage | None
    ) -> None:
        names = self._names(volume, offset, end, damage)
        name = "; ".join(names[:10]) if names else "nothing that lives"
        _log.error("volume %d offset %d is bad (%s): %s", volume, offset, why, name)
        now_ms = _now_ms()
        known = [bad for bad in self.status.bad if (bad.volume, bad.offset) == (volume, offset)]
        for bad in known:
            bad.seen_ms = now_ms
        if not known:
            self.status.bad.append(BadRecord(volume, offset, end - offset, why, name, now_ms, now_ms))
            del self.status.bad[:-_BAD_MAX]
        if names and row.state == VolumeState.SEALED:
            change(self._core, lambda txn: _quarantine(txn, volume))

    def _names(self, volume: int, offset: int, end: int, damage: Damage | None) -> list[str]:
        """What of the living stands in a bad stretch."""
        core = self._core
        if damage is None or damage.header is None or damage.head is None:
            inside = [
                each for each in references_into(core.index, volume) if offset <= each.offset < max(end, 1)
            ]
            if damage is None:
                inside = list(references_into(core.index, volume))
            return [each.name for each in inside]
        header = damage.header
        try:
            head = read_head(header, damage.head, "")
        except Corrupt:
            return ["a record whose head cannot be read"]
        with core.index.read() as txn:
            if life_of(txn, header, head, Place(volume, header.offset, header.length)) != Life.LIVE:
                return []
            name = describe(txn, header, head)
        if header.type == RecordType.CHUNK:
            chunk_id = bytes(head[:CHUNK_ID_SIZE])
            owners = objects_with_chunks(core.index, core.volumes, [chunk_id]).get(chunk_id, [])
            return [f"{name} of {owner}" for owner in owners] or [name]
        return [name]

    def _forgive_read(self, volume: int, start: int, end: int) -> None:
        """Findings in a stretch that was read again and not found bad again just now are taken back."""
        cycle_started = self.status.cycle_started_ms
        self.status.bad = [
            bad
            for bad in self.status.bad
            if bad.volume != volume or not start <= bad.offset < end or bad.seen_ms >= cycle_started
        ]

    def _forgive(self, volume: int, start: int, end: int) -> None:
        self.status.bad = [
            bad for bad in self.status.bad if bad.volume != volume or not start <= bad.offset < end
        ]


def _digest_error(record: Record) -> str | None:
    header = record.header
    if header.type != RecordType.CHUNK or not header.flags & Flag.DIGEST or record.body is None:
        return None
    if blake3(record.body).digest() == record.head[:CHUNK_ID_SIZE]:
        return None
    return "the chunk's bytes do not have the digest that it is named by"


def _quarantine(txn: Txn, volume: int) -> None:
    row = txn.volume(volume)
    if row is not None and row.state == VolumeState.SEALED:
        txn.put_volume(volume, row._replace(state=VolumeState.QUARANTINED))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def as_plain(status: ScrubStatus) -> dict[str, Any]:
    """The status as values that JSON can hold."""
    return asdict(status)
