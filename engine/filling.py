"""The volumes a compaction writes: copies go in, are synced, read back, and only then the index is pointed at them.

Must not know: which records are copied, or why.

The life of such a volume, and what a crash leaves:
  1. created and entered into the index as FILLING, durably: recovery leaves it alone, nobody appends to it;
  2. filled: no row points into it, a crash leaves dead space, which the next compaction removes;
  3. sealed, synced and read back;
  4. rows are moved in slices, each only if it still points to the old place. A crash leaves some rows at the old places
     and some at the new ones, all of them good; the next compaction finishes step 5;
  5. a copy that no row was moved to counts as dead (`oldest_dead`); the volume becomes SEALED like any other.

Invariants:
* No row points to a copy that was not read back from a synced file and compared with the checksums of its source.
* Records other than chunks are added in clock order.
* Each write transaction is small: writers of objects never wait for more than one slice.
"""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Callable
from typing import Any

from cordwood.engine.clock import tick
from cordwood.engine.core import Core
from cordwood.engine.errors import Corrupt, ReadOnly
from cordwood.engine.format import (
    ALIGNMENT,
    HEADER_SIZE,
    SUPERBLOCK_SIZE,
    Flag,
    Header,
    RecordType,
    read_head,
)
from cordwood.engine.index import Txn
from cordwood.engine.liveness import Accounts, find_pointer, is_tombstone
from cordwood.engine.recovery import remove_retired
from cordwood.engine.rows import VolumeRow, VolumeState
from cordwood.engine.volume import ActiveVolume, NewRecord, Place, Record, VolumeFile
from cordwood.engine.walk import Damage, walk

_log = logging.getLogger("cordwood.compaction")
_FLUSH_BYTES = 4 << 20
_FLUSH_RECORDS = 1000
_SLICE_ROWS = 256
_SEAL_ROOM = 128


class Pacer:
    """Keeps maintenance slow enough: at most `rate_bytes_s` read and written (0: no limit), and pauses between
    transactions unless nobody else is there (`is_alone`). `on_bytes` hears of progress."""

    def __init__(
        self, rate_bytes_s: int = 0, *, is_alone: bool = False, on_bytes: Callable[[int], None] | None = None
    ) -> None:
        self._rate = rate_bytes_s
        self._is_alone = is_alone
        self._on_bytes = on_bytes
        self._due_s = time.monotonic()

    def spend(self, count: int) -> None:
        """Bytes were read or written: sleeps when they came too fast."""
        if self._on_bytes is not None:
            self._on_bytes(count)
        if self._rate:
            now_s = time.monotonic()
            self._due_s = max(self._due_s, now_s - 1.0) + count / self._rate
            if self._due_s > now_s:
                time.sleep(self._due_s - now_s)

    def give_way(self, held_s: float) -> None:
        """The index's writer lock was held this long: others get as much time."""
        if not self._is_alone:
            time.sleep(min(0.05, held_s))


def change(core: Core, body: Callable[[Txn], Any]) -> Any:
    """Runs `body` in one write transaction. A commit that fails ends all writing, as in the committer."""
    core.health.check()
    txn = core.index.begin()
    try:
        result = body(txn)
    except BaseException:
        txn.raw.abort()
        raise
    try:
        core.index.commit(txn)
    except BaseException as error:
        txn.raw.abort()
        why = f"commit could not be made durable: {error}; close and reopen the store to recover"
        core.health.fail(why)
        raise ReadOnly(why) from error
    return result


def set_state(core: Core, volume: int, state: int, *, watermark: int | None = None) -> None:
    def body(txn: Txn) -> None:
        row = txn.volume(volume) or VolumeRow()
        row = row._replace(state=state)
        txn.put_volume(volume, row if watermark is None else row._replace(watermark=watermark))

    change(core, body)


class _Ledger:
    """Where each copy in a volume came from, in the order of the copies, with the checksums of the source."""

    def __init__(self) -> None:
        self.offsets = array("Q")
        self.sources = array("Q")
        self.volumes = array("I")
        self.crcs = array("I")
        self._next = 0

    def add(self, offset: int, source: Place, header: Header) -> None:
        self.offsets.append(offset)
        self.sources.append(source.offset)
        self.volumes.append(source.volume)
        self.crcs.append(header.head_crc)
        self.crcs.append(header.body_crc)

    def source_of(self, header: Header) -> Place | None:
        """The source of the copy at this offset; offsets are asked for in ascending order."""
        while self._next < len(self.offsets) and self.offsets[self._next] < header.offset:
            self._next += 1
        at = self._next
        if at == len(self.offsets) or self.offsets[at] != header.offset:
            return None
        if (self.crcs[2 * at], self.crcs[2 * at + 1]) != (header.head_crc, header.body_crc):
            return None
        return Place(self.volumes[at], self.sources[at], header.length)


class Filling:
    """One volume being filled by a compaction."""

    def __init__(self, core: Core, limit: int, pacer: Pacer) -> None:
        self._core = core
        self._limit = limit
        self._pacer = pacer
        self._ledger = _Ledger()
        self._pending: list[NewRecord] = []
        self._sources: list[tuple[Place, Header]] = []
        self._pending_bytes = 0
        self._active: ActiveVolume = core.volumes.create(tick(0))
        self.id = self._active.id
        self.failures: list[str] = []
        self.is_sealed = False
        self._is_closed = False
        try:
            set_state(core, self.id, VolumeState.FILLING, watermark=SUPERBLOCK_SIZE)
            core.index.sync()
        except BaseException:
            self._active.close()
            raise

    def has_room(self, length: int) -> bool:
        end = self._active.tail + self._pending_bytes
        return end == SUPERBLOCK_SIZE or end + length + _SEAL_ROOM <= self._limit

    def add(self, source: Place, record: Record) -> None:
        """Takes a verified record. It is written with the next ones; Full when the disk has no room."""
        header = record.header
        assert record.body is not None
        flags = header.flags & ~Flag.MORE
        self._pending.append(
            NewRecord(header.type, flags, header.clock, record.head, record.body, header.node)
        )
        self._sources.append((source, header))
        self._pending_bytes += header.length
        if self._pending_bytes >= _FLUSH_BYTES or len(self._pending) >= _FLUSH_RECORDS:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        places = self._active.append(self._pending)
        for place, (source, header) in zip(places, self._sources, strict=True):
            self._ledger.add(place.offset, source, header)
        self._pacer.spend(self._pending_bytes)
        self._pending, self._sources, self._pending_bytes = [], [], 0

    def finish(self) -> int:
        """Seals, verifies, moves the rows. Returns the volume's length; `failures` names copies that were not good."""
        self._flush()
        active = self._active
        # Synced first, so that the SEAL says of all records that they had been durable: a rebuild then takes a body
        # that rots later for damage, which costs one record, and not for a torn end, which would cost all behind it.
        active.sync()
        active.seal(tick(0))
        self.is_sealed = True
        tail = active.tail
        self.close()
        set_state(self._core, self.id, VolumeState.FILLING, watermark=tail)
        self.failures = settle(self._core, self.id, tail, self._ledger, self._pacer)
        return tail

    def discard(self) -> None:
        """Gives it up before any row was moved: its file goes, its copies never counted."""
        self.close()
        discard(self._core, self.id)

    def close(self) -> None:
        """Lets go of the file; may be called twice. What is unfinished is settled by the next compaction."""
        if not self._is_closed:
            self._is_closed = True
            self._active.close()


def discard(core: Core, volume: int) -> None:
    """Retires a FILLING volume that was never sealed, so no row can point into it; Corrupt if the index disagrees."""

    def body(txn: Txn) -> None:
        row = txn.volume(volume)
        if row is not None and row.live_bytes:
            raise Corrupt(
                f"volume {volume} was never finished, yet the index places {row.live_bytes} live bytes in it; "
                "run `cordwood fsck --repair`"
            )
        # Until the file is gone its copies are dead records like others; the oldest possible clock stands for them.
        txn.put_volume(volume, VolumeRow(VolumeState.RETIRED, 0, 0, 1))

    keep_highest(core, volume)
    change(core, body)
    remove_retired(core.fs, core.index, core.volumes)


def keep_highest(core: Core, volume: int) -> None:
    """Volume ids are never used twice: the highest is not removed before there is a higher one."""
    if volume == max(core.volumes.ids(), default=0):
        core.volumes.create(tick(0)).close()


def settle(core: Core, volume: int, end: int, ledger: _Ledger | None, pacer: Pacer) -> list[str]:
    """Reads a sealed FILLING volume back and points the rows of its good copies to it; then it is SEALED.

    Without a ledger (after a crash) no row is moved: what has been moved by then lives, the rest is dead.
    """
    failures: list[str] = []
    file = core.volumes.get(volume)
    file.drop_cached(0, end)
    slice_: list[tuple[Header, Any, Place | None]] = []
    for item in walk(file, SUPERBLOCK_SIZE, end, bodies=True):
        if isinstance(item, Damage):
            failures.append(f"{file.where(item.offset)}: the copy is not good ({item.why})")
            continue
        header = item.header
        pacer.spend(header.length)
        if header.type == RecordType.SEAL:
            continue
        source = ledger.source_of(header) if ledger is not None else None
        if source is None and ledger is not None:
            failures.append(f"{file.where(header.offset)}: the copy differs from its source")
        try:
            head = read_head(header, item.head, file.where(header.offset))
        except Corrupt as error:
            failures.append(str(error))
            continue
        slice_.append((header, head, source))
        if len(slice_) >= _SLICE_ROWS:
            _move_slice(core, volume, slice_, pacer)
            slice_ = []
    if slice_:
        _move_slice(core, volume, slice_, pacer)
    set_state(core, volume, VolumeState.QUARANTINED if failures else VolumeState.SEALED)
    return failures


def _move_slice(core: Core, volume: int, items: list[tuple[Header, Any, Place | None]], pacer: Pacer) -> None:
    def body(txn: Txn) -> None:
        accounts = Accounts()
        for header, head, source in items:
            if is_tombstone(header, head):
                continue
            new = Place(volume, header.offset, header.length)
            pointer = find_pointer(txn, header, head, source) if source is not None else None
            if pointer is not None and source is not None:
                txn.put(pointer.key, pointer.moved(new), pointer.table)
                accounts.moved(pointer, header, source, new)
            elif find_pointer(txn, header, head, new) is None:
                accounts.dead(header, volume)
        accounts.write(txn)

    started_s = time.monotonic()
    change(core, body)
    pacer.give_way(time.monotonic() - started_s)


def settle_leftovers(core: Core, pacer: Pacer) -> list[str]:
    """Finishes or removes the volumes that an interrupted compaction was filling. Call while no other one runs."""
    with core.index.read() as txn:
        filling = [volume for volume, row in txn.volumes().items() if row.state == VolumeState.FILLING]
    done = []
    for volume in filling:
        try:
            file = core.volumes.get(volume)
            end = file.size()
            is_sealed = read_seal(file, end) is not None
        except (FileNotFoundError, Corrupt):
            is_sealed = False
        if not is_sealed:
            _log.info("volume %d of an interrupted compaction is removed", volume)
            discard(core, volume)
        else:
            _log.info("volume %d of an interrupted compaction is taken over", volume)
            set_state(core, volume, VolumeState.FILLING, watermark=end)
            settle(core, volume, end, None, pacer)
        done.append(f"volume {volume} of an interrupted compaction was settled")
    return done


def read_seal(file: VolumeFile, end: int) -> Header | None:
    """The SEAL record that ends at `end`; None when there is none: the volume was never sealed."""
    for length in range(HEADER_SIZE + ALIGNMENT, 96, ALIGNMENT):
        offset = end - length
        if offset < SUPERBLOCK_SIZE:
            return None
        try:
            header = file.read_header(file.read(offset, length), offset)
        except Corrupt:
            continue
        return header if header.type == RecordType.SEAL and header.length == length else None
    return None
