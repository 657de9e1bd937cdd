"""One append-only volume file: read, scan, append, seal; and the set of a store's volumes.

Must not know: LMDB, what heads mean, who decides what is written.

Invariants:
* Bytes below `durable` are synced. Bytes at and past `tail` do not exist: a failed append is cut off before the next.
  The file may go on behind `tail` with zeros (`lay_room`), which recovery takes for an append that never began.
* Transactions are written whole by one call, so records of two transactions never mix.
* Records other than chunks stand in clock order within a volume; replay merges volumes by that.
* A volume file has one writer at a time: whoever holds its flock.
"""

from __future__ import annotations

import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from crc32c import crc32c

from cordwood.engine.errors import Corrupt, Full, ReadOnly
from cordwood.engine.format import (
    ALIGNMENT,
    HEADER_SIZE,
    RECORD_MAGIC,
    SALT_SIZE,
    SUPERBLOCK_SIZE,
    Flag,
    Header,
    RecordType,
    SealHead,
    Superblock,
    encode_head,
    header_seed,
    pack_record,
    parse_header,
    record_length,
)
from cordwood.engine.fs import FULL_ERRNOS, Buffer, FileSystem

VOLUME_MAX = 0xFFFF_FFFF  # a u32 in the index
_NAME = re.compile(r"([0-9]{10})\.vol")
_WINDOW = 1 << 20
_SMALL_WINDOW = 8 << 10
_LARGE_BODY = 64 << 10
HEAD_WINDOW = 1024  # most heads end within it
_BEGIN_SYNC_SIZE = 8 << 20
ROOM_MAX = 1 << 20  # more zeros than these behind the last record are no room
_OPEN_VOLUMES_MAX = 512
_JOINED_MAX = 4 << 20
_JOINED_FROM = 8  # the three pieces of a chunk are not worth a copy of a MiB


def volume_name(volume: int) -> str:
    return f"{volume:010d}.vol"


def volume_id_of(name: str) -> int | None:
    """The id in a volume's file name; None for any other file."""
    match = _NAME.fullmatch(name)
    volume = int(match[1]) if match else 0
    return volume if 0 < volume <= VOLUME_MAX else None


class Place(NamedTuple):
    """Where a record is: volume id, offset of its header, length with padding."""

    volume: int
    offset: int
    length: int

    def __str__(self) -> str:
        return f"volume {self.volume} offset {self.offset}"


class Record(NamedTuple):
    """A scanned record. `body` is None when the scan was told to skip bodies."""

    header: Header
    head: bytes
    body: bytes | None


class VolumeFile:
    """A volume open for reading. Its descriptor closes when nobody refers to the object any more."""

    def __init__(self, fs: FileSystem, path: Path, volume: int, store: bytes, fd: int | None = None) -> None:
        self._fs = fs
        self.path = path
        self.id = volume
        self.fd = fs.open_read(path) if fd is None else fd
        where = f"volume {path.name}"
        self.superblock = Superblock.unpack(fs.read(self.fd, SUPERBLOCK_SIZE, 0), where)
        if self.superblock.store != store:
            raise Corrupt(f"{where} belongs to another store ({self.superblock.store.hex()})")
        if self.superblock.volume != volume:
            raise Corrupt(f"{where} says that it is volume {self.superblock.volume}")
        self.seed = header_seed(self.superblock.salt)

    def __del__(self) -> None:
        fd = getattr(self, "fd", -1)
        if fd >= 0:
            self.fd = -1
            self._fs.close(fd)

    def where(self, offset: int) -> str:
        """How messages name a place in this volume."""
        return str(Place(self.id, offset, 0))

    def size(self) -> int:
        return self._fs.size(self.fd)

    def is_linked(self) -> bool:
        """False once the compactor removed the volume's name."""
        return self._fs.links(self.fd) > 0

    def read(self, offset: int, length: int) -> bytes:
        data = self._fs.read(self.fd, length, offset)
        if len(data) != length:
            raise Corrupt(f"{self.where(offset)}: {length} bytes expected, the file ends after {len(data)}")
        return data

    def read_up_to(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes; fewer at the end of the file."""
        return self._fs.read(self.fd, length, offset)

    def drop_cached(self, offset: int, length: int) -> None:
        """The next read of these bytes comes from the disk, not from memory, where the kernel allows it."""
        self._fs.drop_cached(self.fd, offset, length)

    def read_cached(self, offset: int, length: int) -> bytes | None:
        return self._fs.read_cached(self.fd, length, offset)

    def read_into(self, buffer: memoryview, offset: int, *, cached_only: bool = False) -> bool:
        """Fills the buffer. False: `cached_only`, and not all of it is in memory."""
        got = self._fs.read_into(self.fd, buffer, offset, cached_only=cached_only)
        if got == len(buffer):
            return True
        if cached_only:
            return False
        raise Corrupt(f"{self.where(offset)}: {len(buffer)} bytes expected, the file ends after {got}")

    def will_read(self, offset: int, length: int) -> None:
        """These bytes will be wanted soon: the kernel may fetch them from the disk meanwhile."""
        self._fs.will_read(self.fd, offset, length)

    def read_header(self, data: bytes | memoryview, offset: int) -> Header:
        """The header at the front of `data`, which was read at `offset`."""
        header = parse_header(data, offset, self.seed, 1 << 63)
        if header is None:
            raise Corrupt(f"{self.where(offset)}: no valid record header")
        return header

    def read_record(self, place: Place, *, cached_only: bool = False) -> Record | None:
        """The whole record at a place, its header, head and body verified. None: `cached_only` and not in memory."""
        _, offset, length = place
        data = self._fs.read_cached(self.fd, length, offset) if cached_only else self.read(offset, length)
        return self.record_in(data, place) if data is not None else None

    def record_in(self, data: bytes, place: Place) -> Record:
        """The record at a place, whose bytes these are, verified."""
        _, offset, length = place
        header = self.read_header(data, offset)
        if header.length != length:
            raise Corrupt(f"{self.where(offset)}: record of {header.length} bytes, {length} expected")
        body_at = HEADER_SIZE + header.head_length
        head = data[HEADER_SIZE:body_at]
        body = data[body_at : body_at + header.body_length]
        self._check(header, head, body)
        return Record(header, head, body)

    def front_in(self, data: bytes, place: Place) -> Record | None:
        """Header and head of the record at a place, which begins with these bytes, verified; its body is left out. None
        when the head does not end within them."""
        header = self.read_header(data, place.offset)
        body_at = HEADER_SIZE + header.head_length
        if body_at > len(data):
            return None
        head = data[HEADER_SIZE:body_at]
        self._check(header, head, None)
        return Record(header, head, None)

    def read_head(self, place: Place) -> Record:
        """Header and head of the record at a place, verified; the body is not read."""
        _, offset, length = place
        first = self.read(offset, min(length, HEAD_WINDOW))
        record = self.front_in(first, place)
        if record is not None:
            return record
        header = self.read_header(first, offset)
        head = self.read(offset + HEADER_SIZE, header.head_length)
        self._check(header, head, None)
        return Record(header, head, None)

    def _check(self, header: Header, head: bytes, body: bytes | None) -> None:
        if crc32c(head) != header.head_crc:
            raise Corrupt(f"{self.where(header.offset)}: head CRC does not match")
        if body is not None and crc32c(body) != header.body_crc:
            raise Corrupt(f"{self.where(header.offset)}: body CRC does not match")

    def scan(self, start: int, end: int, *, bodies: bool) -> Iterator[Record]:
        """Records from `start` on, until `end` or the first one that is not valid.

        With `bodies` each body is read and verified too. The caller finds where the scan stopped from the last
        record: its offset plus its length.
        """
        window = b""
        size = _WINDOW
        window_at = start
        position = start
        while position + HEADER_SIZE <= end:
            if position + HEADER_SIZE > window_at + len(window) or position < window_at:
                window_at = position
                window = self._fs.read(self.fd, min(size, end - position), position)
            view = memoryview(window)[position - window_at :]
            header = parse_header(view, position, self.seed, end)
            if header is None:
                return
            body_at = HEADER_SIZE + header.head_length
            wanted = header.length if bodies else body_at
            if wanted > len(view):
                window_at = position
                window = self._fs.read(self.fd, max(wanted, min(_WINDOW, end - position)), position)
                view = memoryview(window)
                if wanted > len(view):
                    return
            head = bytes(view[HEADER_SIZE:body_at])
            body = bytes(view[body_at : body_at + header.body_length]) if bodies else None
            try:
                self._check(header, head, body)
            except Corrupt:
                return
            yield Record(header, head, body)
            position += header.length
            # Where bodies are large and not wanted, reading them all would cost more than many small reads.
            size = _WINDOW if bodies or header.body_length < _LARGE_BODY else _SMALL_WINDOW

    def find_valid(self, start: int, end: int) -> Header | None:
        """The first valid record header at or after `start`: how a scan goes on behind damage."""
        position = (start + ALIGNMENT - 1) & -ALIGNMENT
        while position + HEADER_SIZE <= end:
            window = self._fs.read(self.fd, min(_WINDOW + HEADER_SIZE, end - position), position)
            at = window.find(RECORD_MAGIC)
            while at >= 0 and at + HEADER_SIZE <= len(window):
                if (position + at) % ALIGNMENT == 0:
                    header = parse_header(memoryview(window)[at:], position + at, self.seed, end)
                    if header is not None:
                        return header
                at = window.find(RECORD_MAGIC, at + 1)
            if len(window) < _WINDOW + HEADER_SIZE:
                return None
            position += _WINDOW
        return None


class NewRecord(msgspec.Struct, gc=False):
    """A record about to be written: its type, flags, clock and encoded head, its body, the node that decided it
    (None: this one), the `base` of its header, and the CRC32C of its body when that is known."""

    type: int
    flags: int
    clock: int
    head: bytes
    body: bytes | memoryview
    node: int | None = None
    base: int = 0
    body_crc: int | None = None


class ActiveVolume:
    """The one volume a process appends to. All methods hold `lock`; `lock` may be taken around several calls."""

    def __init__(self, fs: FileSystem, file: VolumeFile, fd: int, tail: int, node: int) -> None:
        self._fs = fs
        self._fd = fd
        self._node = node
        self.file = file
        self.id = file.id
        self.tail = tail
        self.durable = tail
        self._begun = tail
        self._end = tail  # of the file: what lies between it and `tail` are zeros
        self.lock = threading.RLock()
        self._syncing = threading.Lock()
        self._sync_failure: str | None = None

    def append(self, records: Sequence[NewRecord]) -> list[Place]:
        """Writes records back to back; returns their places. Nothing of them stays when it fails (`Full`)."""
        with self.lock:
            buffers: list[Buffer] = []
            places = []
            position = self.tail
            durable, own_node, seed = self.durable, self._node, self.file.seed
            for record in records:
                head, body, node = record.head, record.body, record.node
                buffers += pack_record(
                    record.type,
                    record.flags,
                    position,
                    record.clock,
                    durable,
                    own_node if node is None else node,
                    head,
                    body,
                    seed,
                    record.base,
                    record.body_crc,
                )
                length = record_length(len(head), len(body))
                places.append(Place(self.id, position, length))
                position += length
            if len(buffers) >= _JOINED_FROM and position - self.tail <= _JOINED_MAX:
                buffers = [b"".join(buffers)]  # one copy costs less than handing over thousands of pieces
            try:
                self._fs.write_all(self._fd, buffers, self.tail)
            except BaseException as error:
                self._cut_failed_append(error)
            self.tail = position
            self._end = max(self._end, position)
            return places

    def room(self) -> int:
        """Bytes of laid zeros behind the tail."""
        return self._end - self.tail

    def lay_room(self, size: int) -> None:
        """Writes zeros behind the tail, `size` bytes in all. What is appended there changes neither the file's size nor
        its extents, so a sync of it need not wait for the file system's journal. `Full` and `ReadOnly` as of an append.
        """
        with self.lock:
            end = self.tail + size
            try:
                self._fs.write_all(self._fd, [bytes(end - self._end)], self._end)
            except BaseException as error:
                self._cut_failed_append(error)
            self._end = end

    def give_up_room(self) -> None:
        """The file ends at the tail again."""
        with self.lock:
            if self._end > self.tail:
                self._fs.truncate(self._fd, self.tail)
                self._end = self.tail

    def _cut_failed_append(self, error: BaseException) -> None:
        """Removes what was written, durably: parts of it may be whole records, which a recovery would believe."""
        try:
            self._fs.truncate(self._fd, self.tail)
            self._end = self.tail
        except OSError as second:
            raise ReadOnly(
                f"volume {self.id}: append failed ({error}) and could not be cut off ({second})"
            ) from error
        self.sync()
        if not isinstance(error, OSError):
            raise error
        if error.errno in FULL_ERRNOS:
            raise Full(f"volume {self.id}: {error.strerror}; free some space, then write again") from error
        raise ReadOnly(f"volume {self.id}: append failed: {error}") from error

    def sync(self) -> None:
        """Makes everything appended so far durable. A failure is final: the caller must stop writing."""
        with self.lock:
            tail = self.tail
        # One at a time: the kernel tells of a failure once, and calls the next sync of the same file a success.
        with self._syncing:
            if self._sync_failure is not None:
                raise ReadOnly(self._sync_failure)
            try:
                self._fs.datasync(self._fd)
            except OSError as error:
                self._sync_failure = f"volume {self.id}: sync failed: {error}; reopen the store to recover"
                raise ReadOnly(self._sync_failure) from error
        self.durable = max(self.durable, tail)

    def begin_sync(self) -> None:
        """Lets the kernel begin with what a later `sync` would have to wait for, when that has become much. A failure
        is final, too."""
        with self.lock:
            begin, self._begun = self._begun, max(self._begun, self.tail)
            size = self._begun - begin
            if size < _BEGIN_SYNC_SIZE:
                self._begun = begin
                return
        try:
            # The descriptor for reading, since the other one may be closed meanwhile.
            self._fs.begin_datasync(self.file.fd, begin, size)
        except OSError as error:
            with self._syncing:
                self._sync_failure = f"volume {self.id}: writing failed: {error}; reopen the store to recover"
            raise ReadOnly(self._sync_failure) from error

    def is_empty(self) -> bool:
        return self.tail == SUPERBLOCK_SIZE

    def seal(self, clock: int) -> None:
        """Appends the SEAL record and syncs: the volume will not change any more. What it seals is synced before, so
        that a rebuild may believe all that stands before a SEAL without reading it; and nothing stands behind it."""
        self.give_up_room()
        self.sync()
        self.append([NewRecord(RecordType.SEAL, Flag(0), clock, encode_head(SealHead(self.tail)), b"")])
        self.sync()

    def close(self) -> None:
        """Gives up the claim on the volume."""
        self._fs.close(self._fd)


class Volumes:
    """The volume files of one store: finding, opening for reading, creating, claiming."""

    def __init__(self, fs: FileSystem, directory: Path, store: bytes, node: int) -> None:
        self._fs = fs
        self.directory = directory
        self._store = store
        self._node = node
        self._open: OrderedDict[int, VolumeFile] = OrderedDict()
        self._lock = threading.Lock()

    def path(self, volume: int) -> Path:
        return self.directory / volume_name(volume)

    def ids(self) -> list[int]:
        found = (volume_id_of(name) for name in self._fs.names(self.directory))
        return sorted(volume for volume in found if volume is not None)

    def get(self, volume: int) -> VolumeFile:
        """The volume open for reading. FileNotFoundError when it was compacted away: look the place up again."""
        file = self._open.get(volume)
        if file is not None:
            return file
        with self._lock:
            file = self._open.get(volume)
            if file is None:
                self._drop_unlinked()  # what was compacted away is often why another volume is wanted now
                file = VolumeFile(self._fs, self.path(volume), volume, self._store)
                self._open[volume] = file
                if len(self._open) > _OPEN_VOLUMES_MAX:
                    self._open.popitem(last=False)
            return file

    def opened(self, volume: int) -> VolumeFile | None:
        """The volume if it is open already."""
        return self._open.get(volume)

    def sync(self, volume: int) -> None:
        """Makes durable what any process has written to a volume. OSError when that fails, or when it is gone."""
        self._fs.datasync(self.get(volume).fd)

    def forget(self, volume: int) -> None:
        """Drops the cached descriptor of a volume that is gone."""
        with self._lock:
            self._open.pop(volume, None)

    def forget_unlinked(self) -> int:
        """Drops the descriptors of volumes that a compaction removed: only then does their space come back."""
        with self._lock:
            return self._drop_unlinked()

    def _drop_unlinked(self) -> int:
        gone = [volume for volume, file in self._open.items() if not file.is_linked()]
        for volume in gone:
            del self._open[volume]
        return len(gone)

    def close(self) -> None:
        with self._lock:
            self._open.clear()

    def create(self, clock: int) -> ActiveVolume:
        """A new empty volume, its superblock durable under its name, claimed by this process."""
        salt = secrets.token_bytes(SALT_SIZE)
        while True:
            highest = max(self.ids(), default=0)
            volume = highest + 1
            if volume > VOLUME_MAX:
                raise Corrupt(
                    f"{self.path(highest)} has the last id there is; was it put there? Look with fsck"
                )
            path = self.path(volume)
            temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
            try:
                fd = self._fs.create(temporary)
            except OSError as error:
                if error.errno in FULL_ERRNOS:
                    raise Full(f"no room for a new volume: {error.strerror}") from error
                raise
            try:
                if not self._fs.lock(fd, shared=False):
                    raise FileExistsError(f"{temporary} was taken for a leftover by another process")
                superblock = Superblock(self._store, volume, salt, self._node, clock)
                self._fs.write_all(fd, [superblock.pack()], 0)
                self._fs.datasync(fd)
                self._fs.link(temporary, path)
            except OSError as error:
                self._fs.close(fd)
                self._fs.unlink_if_there(temporary)
                if isinstance(error, FileExistsError | FileNotFoundError):
                    continue  # another process took this id, or the temporary file for a leftover
                if error.errno in FULL_ERRNOS:
                    raise Full(f"no room for a new volume: {error.strerror}") from error
                raise
            self._fs.unlink(temporary)
            self._fs.sync_directory(self.directory)
            return ActiveVolume(self._fs, self.get(volume), fd, SUPERBLOCK_SIZE, self._node)

    def claim(self, volume: int) -> int | None:
        """A descriptor that holds the volume's flock, or None when another process appends to it."""
        fd = self._fs.open_write(self.path(volume))
        if self._fs.lock(fd, shared=False):
            return fd
        self._fs.close(fd)
        return None

    def resume(self, volume: int, fd: int, tail: int) -> ActiveVolume:
        """Goes on appending to a claimed volume whose valid bytes end at `tail`."""
        return ActiveVolume(self._fs, self.get(volume), fd, tail, self._node)

    def remove_leftovers(self) -> None:
        """Removes volumes that a crash left half made. Nobody else may be creating one meanwhile."""
        for name in self._fs.names(self.directory):
            if name.startswith(".") and name.endswith(".tmp"):
                path = self.directory / name
                try:
                    fd = self._fs.open_write(path)
                except FileNotFoundError:
                    continue  # it was no leftover: another process has just given it its final name
                try:
                    if self._fs.lock(fd, shared=False):
                        self._fs.unlink_if_there(path)
                finally:
                    self._fs.close(fd)

    def truncate(self, fd: int, size: int) -> None:
        self._fs.truncate(fd, size)
        self._fs.datasync(fd)

    def release(self, fd: int) -> None:
        self._fs.close(fd)
