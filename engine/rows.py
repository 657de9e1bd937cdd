"""The rows and keys of the index: bytes <-> values.

Must not know: LMDB, who reads or writes them.

Invariants:
* Integers in keys are big-endian, so byte order is their order. Rows are little-endian structs.
* `unpack` of what `pack` gave is the same value.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import msgspec

from cordwood.engine.errors import Corrupt
from cordwood.engine.format import BucketHead
from cordwood.engine.volume import Place

_U64 = struct.Struct(">Q")
NO_PLACE = Place(0, 0, 0)

_UNREADABLE = (struct.error, msgspec.DecodeError, UnicodeDecodeError)


def _damaged(what: str, error: Exception) -> Corrupt:
    return Corrupt(
        f"the index has {what} that cannot be read ({error}); `cordwood rebuild` makes a new index from the volumes"
    )


# --- rows -----------------------------------------------------------------------------------------------------


class Kind:
    """First byte of a row in `entries`."""

    OBJECT = 1
    DIRECTORY = 2
    CONTINUATION = 3


class RowFlag:
    """Flags of an ObjectRow. NOTED: the version has a row in `attrs`."""

    NULL = 1
    MARKER = 2
    INLINE = 4
    GROUPED = 8
    COMPOSITE = 16
    FULL_OBJECT = 32
    NOTED = 64


_OBJECT = struct.Struct("<BBBxHHIIQQQ16s")
_GROUP = struct.Struct("<QQ")
_NO_GROUP = (0, 0)
_tuple = tuple.__new__  # what a NamedTuple's own __new__ ends in, without the call around it
_ENTRY_ID = struct.Struct("<BQ")
OBJECT_ROW_SIZE = _OBJECT.size
assert OBJECT_ROW_SIZE == 56


class ObjectRow(NamedTuple):
    """What the index keeps of one version: enough for listings and to find the record.

    `group` and `null_clock` are only kept in the current row of a key that has had several versions: the id under
    which the others stand in `versions`, and the clock of the null version among those (0: none).
    """

    flags: int
    storage_class: int
    algorithms: int
    parts_count: int
    volume: int
    length: int
    offset: int
    clock: int
    size: int
    md5: bytes
    group: int = 0
    null_clock: int = 0

    def pack(self) -> bytes:
        group = self[10]
        if not group and not self[0] & RowFlag.GROUPED:
            return _OBJECT.pack(Kind.OBJECT, *self[:10])
        flags = self[0] | RowFlag.GROUPED if group else self[0] & ~RowFlag.GROUPED
        row = _OBJECT.pack(Kind.OBJECT, flags, *self[1:10])
        return row + _GROUP.pack(group, self[11]) if group else row

    @staticmethod
    def unpack(row: bytes | memoryview) -> ObjectRow:
        try:
            fields = _OBJECT.unpack_from(row)
            group = _GROUP.unpack_from(row, _OBJECT.size) if fields[1] & RowFlag.GROUPED else _NO_GROUP
            return _tuple(ObjectRow, fields[1:] + group)
        except _UNREADABLE as error:
            raise _damaged("an object's row", error) from None

    @property
    def place(self) -> Place:
        return _tuple(Place, (self[4], self[6], self[5]))


_WHERE = struct.Struct("<II")


def where_of(packed: bytes) -> tuple[int, int]:
    """Volume and record length of a packed ObjectRow."""
    volume, length = _WHERE.unpack_from(packed, 8)
    return volume, length


# A packed ObjectRow without a group, from the fields up to `md5`.
pack_object: Callable[[int, int, int, int, int, int, int, int, int, bytes], bytes] = partial(
    _OBJECT.pack, Kind.OBJECT
)


def pack_directory_entry(directory: int) -> bytes:
    return _ENTRY_ID.pack(Kind.DIRECTORY, directory)


def unpack_directory_entry(row: bytes | memoryview) -> int:
    try:
        directory: int = _ENTRY_ID.unpack_from(row)[1]
    except struct.error as error:
        raise _damaged("a directory's entry", error) from None
    return directory


_DIRECTORY = struct.Struct("<QQQIQI")


class DirectoryRow(NamedTuple):
    bucket: int
    parent: int
    clock: int
    place: Place
    name: bytes

    def pack(self) -> bytes:
        return _DIRECTORY.pack(self.bucket, self.parent, self.clock, *self.place) + self.name

    @staticmethod
    def unpack(row: bytes | memoryview) -> DirectoryRow:
        try:
            bucket, parent, clock, *place = _DIRECTORY.unpack_from(row)
            return DirectoryRow(bucket, parent, clock, Place(*place), bytes(row[_DIRECTORY.size :]))
        except _UNREADABLE as error:
            raise _damaged("a directory's row", error) from None


_BUCKET = struct.Struct("<QIQI")
_bucket_decoder = msgspec.msgpack.Decoder(BucketHead)


class BucketRow(NamedTuple):
    clock: int
    place: Place
    head: BucketHead

    def pack(self) -> bytes:
        return _BUCKET.pack(self.clock, *self.place) + msgspec.msgpack.encode(self.head)

    @staticmethod
    @lru_cache(maxsize=1024)
    def unpack(row: bytes) -> BucketRow:
        try:
            clock, *place = _BUCKET.unpack_from(row)
            return BucketRow(clock, Place(*place), _bucket_decoder.decode(row[_BUCKET.size :]))
        except _UNREADABLE as error:
            raise _damaged("a bucket's row", error) from None


_CHUNK = struct.Struct("<IQIQ")


class ChunkRow(NamedTuple):
    """`length` is that of the payload. A row with no references left stays until its volume is compacted."""

    volume: int
    offset: int
    length: int
    references: int

    def pack(self) -> bytes:
        return _CHUNK.pack(*self)

    @staticmethod
    def unpack(row: bytes | memoryview) -> ChunkRow:
        try:
            return ChunkRow(*_CHUNK.unpack(row))
        except _UNREADABLE as error:
            raise _damaged("a chunk's row", error) from None


_UPLOAD = struct.Struct("<QIQI8s")


class UploadRow(NamedTuple):
    clock: int
    place: Place
    secret: bytes
    key: bytes

    def pack(self) -> bytes:
        return _UPLOAD.pack(self.clock, *self.place, self.secret) + self.key

    @staticmethod
    def unpack(row: bytes | memoryview) -> UploadRow:
        try:
            clock, volume, offset, length, secret = _UPLOAD.unpack_from(row)
            return UploadRow(clock, Place(volume, offset, length), secret, bytes(row[_UPLOAD.size :]))
        except _UNREADABLE as error:
            raise _damaged("an upload's row", error) from None


_PART = struct.Struct("<QIQIQ16s")
_checksums_decoder = msgspec.msgpack.Decoder(dict[str, str])


class PartRow(NamedTuple):
    clock: int
    place: Place
    size: int
    md5: bytes
    checksums: dict[str, str]

    def pack(self) -> bytes:
        fixed = _PART.pack(self.clock, *self.place, self.size, self.md5)
        return fixed + (msgspec.msgpack.encode(self.checksums) if self.checksums else b"")

    @staticmethod
    def unpack(row: bytes | memoryview) -> PartRow:
        try:
            clock, volume, offset, length, size, md5 = _PART.unpack_from(row)
            rest = row[_PART.size :]
            checksums = _checksums_decoder.decode(rest) if len(rest) else {}
            return PartRow(clock, Place(volume, offset, length), size, md5, checksums)
        except _UNREADABLE as error:
            raise _damaged("a part's row", error) from None


_ATTRS = struct.Struct("<QIQIBBQ")


class AttrsRow(NamedTuple):
    """What is to be known of a version without its record: its lock, and where its attributes are.

    `place` is NO_PLACE and `clock` is 0 while they are those in the version's own record. `mode`, `hold` and `until_ms`
    are the lock (locks.py).
    """

    clock: int
    place: Place
    mode: int
    hold: bool
    until_ms: int

    def pack(self) -> bytes:
        return _ATTRS.pack(self.clock, *self.place, self.mode, self.hold, self.until_ms)

    @staticmethod
    def unpack(row: bytes | memoryview) -> AttrsRow:
        try:
            clock, volume, offset, length, mode, hold, until_ms = _ATTRS.unpack(row)
            return AttrsRow(clock, Place(volume, offset, length), mode, bool(hold), until_ms)
        except _UNREADABLE as error:
            raise _damaged("a row of attributes", error) from None


class VolumeState:
    """FILLING: a compaction writes it; what is in it counts only where a row points to it. RETIRED: nothing lives in
    it, its file is being removed or gone; the row stays, so that an upload in flight can tell it from a new volume."""

    ACTIVE = 0
    SEALED = 1
    QUARANTINED = 2
    RETIRED = 3
    FILLING = 4


_VOLUME = struct.Struct("<B7xQQQ")


class VolumeRow(NamedTuple):
    """`watermark`: the index reflects every record below it. `oldest_dead`: the smallest clock of a record in this
    volume that is superseded (0: none); a tombstone older than all of these may be forgotten."""

    state: int = VolumeState.ACTIVE
    watermark: int = 0
    live_bytes: int = 0
    oldest_dead: int = 0

    def pack(self) -> bytes:
        return _VOLUME.pack(*self)

    @staticmethod
    def unpack(row: bytes | memoryview) -> VolumeRow:
        try:
            return VolumeRow(*_VOLUME.unpack(row))
        except _UNREADABLE as error:
            raise _damaged("a volume's row", error) from None


# --- keys -----------------------------------------------------------------------------------------------------


# The key of a table that is keyed by one id; also the node of a directory in `entries`.
id_key: Callable[[int], bytes] = _U64.pack


def volume_key(volume: int) -> bytes:
    return volume.to_bytes(4, "big")


def version_key(group: int, clock: int) -> bytes:
    return _U64.pack(group) + _U64.pack(~clock & 0xFFFF_FFFF_FFFF_FFFF)


def upload_key(bucket: int, upload: int) -> bytes:
    return _U64.pack(bucket) + _U64.pack(upload)


def part_key(upload: int, number: int) -> bytes:
    return _U64.pack(upload) + number.to_bytes(2, "big")
