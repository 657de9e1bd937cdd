"""Where this process appends: claims a volume, rotates at the size limit, keeps room for deletes on a full disk.

Must not know: LMDB, what the records mean.

Invariants:
* All appends of a process go through one volume at a time, under one lock.
* A volume is synced and sealed before the next one takes its first record, so nothing committed later can rest on
  bytes of the earlier volume that are not durable.
* Zeros are laid ahead only of small batches that come one after another: room that nobody will use in such pieces is
  written twice for nothing.
* `watermarks` tells, under the lock of a batch, how far each volume of this process is written with that batch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from cordwood.engine.clock import tick
from cordwood.engine.errors import Closed, Full, ReadOnly
from cordwood.engine.format import (
    Flag,
    RecordType,
    chunk_record_length,
    encode_chunk_head,
)
from cordwood.engine.fs import Buffer, FileSystem
from cordwood.engine.health import Health
from cordwood.engine.rows import VolumeRow, VolumeState
from cordwood.engine.volume import ROOM_MAX, ActiveVolume, NewRecord, Place, Volumes

# Left free by writes that add data: deletes and the index still have room, and compaction has some to copy into. The
# larger its volumes are the more a compaction needs; but of a small disk not much is taken.
RESERVE_BYTES = 8 << 20
_RESERVE_OF_VOLUME = 16
_RESERVE_OF_DISK = 64

# Of how much room is laid ahead at once, how little is not worth it, and from which size on a batch is none of those
# that wait for the file system's journal longer than for their own bytes.
_ROOM_OF_VOLUME = 16
_ROOM_MIN_OF_MAX = 64
_SMALL_BATCH_OF_ROOM = 4


class Appender:
    """`claim` finds a volume to go on with (recovered and locked), or returns None when a new one is to be made."""

    def __init__(
        self,
        fs: FileSystem,
        volumes: Volumes,
        health: Health,
        claim: Callable[[], ActiveVolume | None],
        *,
        volume_size: int,
        lays_room: bool,
    ) -> None:
        self._fs = fs
        self._volumes = volumes
        self._health = health
        self._claim = claim
        self._volume_size = volume_size
        of_disk = fs.total_bytes(volumes.directory) // _RESERVE_OF_DISK
        self._reserve = max(RESERVE_BYTES, min(volume_size // _RESERVE_OF_VOLUME, of_disk))
        self._room = min(ROOM_MAX, volume_size // _ROOM_OF_VOLUME) if lays_room else 0
        self._small_bytes = 0  # of the batches since something large was appended
        self._active: ActiveVolume | None = None
        self._sealed: list[ActiveVolume] = []
        self._is_closed = False
        self._lock = threading.RLock()

    def append_chunk(self, chunk_id: bytes, payload: Buffer, *, is_digest: bool) -> Place:
        """Writes one chunk, not yet synced and not yet referenced by anything."""
        length = chunk_record_length(len(payload))
        head, body_crc = encode_chunk_head(chunk_id, payload)
        flags = Flag.DIGEST if is_digest else 0
        body = payload if isinstance(payload, bytes) else memoryview(payload)
        record = NewRecord(RecordType.CHUNK, flags, tick(0), head, body, body_crc=body_crc)
        with self._lock, self._failing():
            self._health.check()
            self._check_room(length)
            volume = self._with_room(length)
            self._small_bytes = 0
            place = volume.append([record])[0]
        with self._failing():
            volume.begin_sync()
        return place

    def prepare(self) -> None:
        """Sees to an active volume before the caller takes the index's writer lock, which claiming one needs, too."""
        if self._active is None:
            with self._lock, self._failing():
                self._with_room(0)

    @contextmanager
    def batch(self, size: int, *, frees: bool) -> Iterator[ActiveVolume]:
        """The active volume, held for one batch of about `size` bytes of records, which `frees` space or needs it."""
        with self._lock, self._failing():
            if not frees:
                self._check_room(size)
            active = self._with_room(size)
            self._lay_room(active, size)
            yield active

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """A failure of the disk other than a lack of space ends all writing."""
        try:
            yield
        except ReadOnly as error:
            self._health.fail(str(error))
            raise
        except OSError as error:
            self._health.fail(f"{self._volumes.directory}: {error}")
            raise ReadOnly(f"{self._volumes.directory}: {error}; reopen the store to recover") from error

    def _lay_room(self, active: ActiveVolume, size: int) -> None:
        """Sees to zeros where a small batch will be written, as many as were written by such batches before."""
        if size > self._room // _SMALL_BATCH_OF_ROOM:
            self._small_bytes = 0
            return
        self._small_bytes += size
        if active.room() >= size:
            return
        room = min(self._room, self._small_bytes, self._volume_size - active.tail)
        if room < max(size, self._room // _ROOM_MIN_OF_MAX):
            return
        if self._fs.free_bytes(self._volumes.directory) < room + 2 * self._reserve:
            return
        try:
            active.lay_room(room)
        except Full:
            self._room = 0  # a quota, which the free bytes of the disk do not tell

    def watermarks(self, end: int) -> dict[int, VolumeRow]:
        """State and end of every volume of ours that the index does not know in full, `end` being that of the active
        one once the batch is written; call within `batch`."""
        rows = {sealed.id: VolumeRow(VolumeState.SEALED, sealed.tail) for sealed in self._sealed}
        if self._active is not None:
            rows[self._active.id] = VolumeRow(VolumeState.ACTIVE, end)
        return rows

    def indexed(self, watermarks: dict[int, VolumeRow]) -> None:
        """The index has committed these watermarks: sealed volumes among them need no more care."""
        with self._lock:
            # A volume may have been sealed after the watermarks were taken: then it is not known in full yet.
            known = {volume for volume, row in watermarks.items() if row.state == VolumeState.SEALED}
            done = [sealed for sealed in self._sealed if sealed.id in known]
            self._sealed = [sealed for sealed in self._sealed if sealed.id not in known]
        for sealed in done:
            sealed.close()

    def sync(self) -> None:
        """Makes all appended bytes durable (for the relaxed mode's timer)."""
        with self._lock:
            active = self._active
        if active is not None:
            active.sync()

    def close(self) -> None:
        with self._lock:
            if self._active is not None and self._health.failure is None:
                with suppress(OSError):  # what stays is cut by who claims the volume next
                    self._active.give_up_room()
            for volume in [*self._sealed, *([self._active] if self._active else [])]:
                volume.close()
            self._sealed = []
            self._active = None
            self._is_closed = True

    def _check_room(self, size: int) -> None:
        free = self._fs.free_bytes(self._volumes.directory)
        if free < size + self._reserve:
            raise Full(
                f"{self._volumes.directory}: {free} bytes free, {size + self._reserve} needed; "
                "delete something or add space, then write again"
            )

    def _with_room(self, size: int) -> ActiveVolume:
        if self._is_closed:
            raise Closed("the store is closed")
        active = self._active
        if active is not None and active.tail + size <= self._volume_size:
            return active
        if active is None:
            active = self._claim()
            if active is not None:
                self._active = active
                if active.tail + size <= self._volume_size:
                    return active
        if active is not None and active.is_empty():
            return active  # one record alone is larger than the limit
        fresh = self._volumes.create(tick(0))
        if active is not None:
            try:
                active.seal(tick(0))
            except BaseException:
                fresh.close()
                raise
            self._sealed.append(active)
        self._active = fresh
        return fresh
