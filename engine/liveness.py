"""Which records of a volume the index still points to; and moving such a pointer to a copy.

Must not know: why anybody asks, how copies are made.

Invariants:
* A record lives when a row points to exactly its place; a chunk when that row has references, too.
* `move` changes a row only if it still points to the old place.
* A tombstone with clock t is needed while any volume's oldest dead record is older than t (`oldest_dead` < t): without
  it, a rebuild would bring that record back to life. It is needed by nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

from cordwood.engine import namespace
from cordwood.engine.format import (
    CHUNK_ID_SIZE,
    AttrsHead,
    BucketHead,
    Header,
    ObjectHead,
    PartHead,
    RecordType,
    UploadHead,
    chunk_record_length,
)
from cordwood.engine.index import Index, Txn
from cordwood.engine.rows import (
    AttrsRow,
    BucketRow,
    ChunkRow,
    DirectoryRow,
    ObjectRow,
    PartRow,
    UploadRow,
    VolumeRow,
    id_key,
    part_key,
    upload_key,
    version_key,
)
from cordwood.engine.volume import Place


class Life(IntEnum):
    DEAD = 0
    LIVE = 1
    IDLE = 2  # a chunk that has a row but no references
    TOMBSTONE = 3
    SEAL = 4


class Told(Protocol):
    """What of a record's header says which row is its own."""

    @property
    def type(self) -> int: ...

    @property
    def clock(self) -> int: ...


class Pointer(NamedTuple):
    """The row that points to a record: its table, its key, the row."""

    table: Any
    key: bytes
    row: ObjectRow | ChunkRow | DirectoryRow | BucketRow | UploadRow | PartRow | AttrsRow

    def moved(self, place: Place) -> bytes:
        """The row as it is to be once the record is at another place."""
        if isinstance(self.row, ObjectRow):
            return self.row._replace(volume=place.volume, offset=place.offset, length=place.length).pack()
        if isinstance(self.row, ChunkRow):
            return self.row._replace(volume=place.volume, offset=place.offset).pack()
        return self.row._replace(place=place).pack()


def is_tombstone(header: Header, head: Any) -> bool:
    """Whether a record only says that something is gone."""
    if header.type == RecordType.DELETE:
        return True
    return (isinstance(head, BucketHead) and head.deleted) or (isinstance(head, UploadHead) and head.ended)


def life_of(txn: Txn, header: Header, head: Any, place: Place) -> Life:
    """What the index makes of the record at a place; `head` as `read_head` gives it."""
    if header.type == RecordType.SEAL:
        return Life.SEAL
    if is_tombstone(header, head):
        return Life.TOMBSTONE
    pointer = find_pointer(txn, header, head, place)
    if pointer is None:
        return Life.DEAD
    if isinstance(pointer.row, ChunkRow) and not pointer.row.references:
        return Life.IDLE
    return Life.LIVE


def find_pointer(txn: Txn, header: Told, head: Any, place: Place) -> Pointer | None:
    """The row that points to the record at `place`, or None when none does."""
    tables = txn.tables
    type_ = header.type
    if type_ == RecordType.OBJECT:
        return _find_object(txn, header, head, place)
    if type_ == RecordType.CHUNK:
        chunk_id = bytes(head[:CHUNK_ID_SIZE])
        chunk = txn.chunk(chunk_id)
        if chunk is not None and chunk.volume == place.volume and chunk.offset == place.offset:
            return Pointer(tables.chunks, chunk_id, chunk)
        return None
    found: Pointer | None = None
    if type_ == RecordType.DIRECTORY:
        directory = txn.directory(head.directory)
        if directory is not None:
            found = Pointer(tables.directories, id_key(head.directory), directory)
    elif type_ == RecordType.BUCKET:
        bucket = txn.bucket(head.name)
        if bucket is not None:
            found = Pointer(tables.buckets, head.name.encode(), bucket)
    elif type_ == RecordType.UPLOAD:
        upload = txn.upload(head.bucket, head.upload)
        if upload is not None:
            found = Pointer(tables.uploads, upload_key(head.bucket, head.upload), upload)
    elif type_ == RecordType.PART:
        part = txn.part(head.upload, head.number)
        if part is not None:
            found = Pointer(tables.parts, part_key(head.upload, head.number), part)
    elif type_ == RecordType.ATTRS:
        about = txn.attrs(head.version)
        if about is not None:
            found = Pointer(tables.attrs, id_key(head.version), about)
    if found is None or isinstance(found.row, ChunkRow) or found.row.place != place:
        return None
    return found


def _find_object(txn: Txn, header: Told, head: ObjectHead, place: Place) -> Pointer | None:
    tables = txn.tables
    key = namespace.entry_key(id_key(head.directory), head.name)[0]
    packed = txn.get(key, tables.entries)
    if packed is None:
        return None
    row = ObjectRow.unpack(packed)
    if row.place == place:
        return Pointer(tables.entries, key, row)
    if not row.group:
        return None
    key = version_key(row.group, header.clock)
    packed = txn.get(key, tables.versions)
    if packed is None:
        return None
    row = ObjectRow.unpack(packed)
    return Pointer(tables.versions, key, row) if row.place == place else None


class Accounts:
    """Changes to the volumes' rows, collected during a transaction and written at its end."""

    def __init__(self) -> None:
        self._live: dict[int, int] = {}
        self._oldest_dead: dict[int, int] = {}

    def moved(self, pointer: Pointer, header: Header, old: Place, new: Place) -> None:
        """A live record is at a new place; what stays at the old one is dead."""
        if not (isinstance(pointer.row, ChunkRow) and not pointer.row.references):
            self._live[old.volume] = self._live.get(old.volume, 0) - old.length
            self._live[new.volume] = self._live.get(new.volume, 0) + new.length
        self.dead(header, old.volume)

    def dead(self, header: Header, volume: int) -> None:
        """A volume holds a record that nothing points to, and that replay would believe."""
        if header.type != RecordType.CHUNK:
            self._oldest_dead[volume] = min(header.clock, self._oldest_dead.get(volume, header.clock))

    def write(self, txn: Txn) -> None:
        for volume in self._live.keys() | self._oldest_dead.keys():
            row = txn.volume(volume) or VolumeRow()
            dead = [clock for clock in (row.oldest_dead, self._oldest_dead.get(volume, 0)) if clock]
            txn.put_volume(
                volume,
                row._replace(
                    live_bytes=row.live_bytes + self._live.get(volume, 0), oldest_dead=min(dead, default=0)
                ),
            )


def horizon(rows: dict[int, VolumeRow]) -> int:
    """Tombstones with a clock up to this are needed no more (see the invariant); 0 stands for "all of them"."""
    return min((row.oldest_dead for row in rows.values() if row.oldest_dead), default=0)


def is_needed(tombstone_clock: int, oldest_dead: int) -> bool:
    """Whether a tombstone must stay, given the `horizon`."""
    return oldest_dead != 0 and oldest_dead < tombstone_clock


# --- naming what is at a place --------------------------------------------------------------------------------


def describe(txn: Txn, header: Header, head: Any) -> str:
    """What a record is, as a person would say it: the object's bucket, key and version where there is one."""
    if isinstance(head, ObjectHead):
        name = bucket_name(txn, head.bucket)
        key = namespace.path_of(txn, head.bucket, head.directory) + head.name
        version = "null" if head.null else f"{header.clock:016x}"
        return f"object {key.decode(errors='replace')!r} of bucket {name!r}, version {version}"
    if isinstance(head, AttrsHead):
        key = namespace.path_of(txn, head.bucket, head.directory) + head.name
        name = bucket_name(txn, head.bucket)
        return (
            f"attributes of {key.decode(errors='replace')!r} of bucket {name!r}, version {head.version:016x}"
        )
    if isinstance(head, PartHead):
        return f"part {head.number} of upload {head.upload:016x} in bucket {bucket_name(txn, head.bucket)!r}"
    if isinstance(head, UploadHead):
        return f"upload {head.upload:016x} of key {head.key.decode(errors='replace')!r}"
    if isinstance(head, BucketHead):
        return f"bucket {head.name!r}"
    if header.type == RecordType.CHUNK:
        return f"chunk {bytes(head[:CHUNK_ID_SIZE]).hex()}"
    return f"{RecordType(header.type).name.lower()} record"


def bucket_name(txn: Txn, bucket: int) -> str:
    for row in txn.buckets():
        if row.head.bucket == bucket:
            return row.head.name
    return f"#{bucket:016x}"


class Reference(NamedTuple):
    """A row that points into a volume, with the name of what it stands for."""

    offset: int
    length: int
    name: str


def references_into(index: Index, volume: int) -> Iterator[Reference]:
    """Every live thing that the index places in a volume, found by reading the whole index: slow, for reports."""
    with index.read() as txn:
        for bucket in txn.buckets():
            name = bucket.head.name
            if bucket.place.volume == volume:
                yield Reference(bucket.place.offset, bucket.place.length, f"bucket {name!r}")
            for key, packed in namespace.walk(txn, bucket.head.bucket):
                assert isinstance(packed, bytes)
                current = ObjectRow.unpack(packed)
                versions = [current]
                if current.group:
                    versions += [
                        ObjectRow.unpack(row)
                        for _, row in txn.items(id_key(current.group), txn.tables.versions)
                    ]
                for row in versions:
                    if row.volume == volume:
                        what = f"object {key.decode(errors='replace')!r} of bucket {name!r}"
                        yield Reference(row.offset, row.length, f"{what}, version {row.clock:016x}")
        yield from _small_references(txn, volume)


def _small_references(txn: Txn, volume: int) -> Iterator[Reference]:
    for key, packed in txn.items(b"", txn.tables.chunks):
        chunk = ChunkRow.unpack(packed)
        if chunk.volume == volume and chunk.references:
            yield Reference(chunk.offset, chunk_record_length(chunk.length), f"chunk {key.hex()}")
    for _, packed in txn.items(b"", txn.tables.directories):
        directory = DirectoryRow.unpack(packed)
        if directory.place.volume == volume:
            yield Reference(directory.place.offset, directory.place.length, f"directory {directory.name!r}")
    for key, packed in txn.items(b"", txn.tables.uploads):
        upload = UploadRow.unpack(packed)
        if upload.place.volume == volume:
            yield Reference(upload.place.offset, upload.place.length, f"upload {key[8:].hex()}")
    for key, packed in txn.items(b"", txn.tables.attrs):
        about = AttrsRow.unpack(packed)
        if about.place.volume == volume:
            yield Reference(about.place.offset, about.place.length, f"attributes of version {key.hex()}")
    for key, packed in txn.items(b"", txn.tables.parts):
        part = PartRow.unpack(packed)
        if part.place.volume == volume:
            yield Reference(part.place.offset, part.place.length, f"part of upload {key[:8].hex()}")
