"""The operations that change a store: each decides against the transaction, then writes its records.

Must not know: batches, syncs, where records go.

Invariants:
* Every check that can refuse stands before the first record is written (the committer relies on it).
* Preconditions are decided here, inside the one write transaction, so of two racing writers one wins in every process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from cordwood.engine import locks, namespace
from cordwood.engine.clock import milliseconds, tick
from cordwood.engine.commit import Decision
from cordwood.engine.errors import (
    BucketExists,
    BucketNotEmpty,
    BucketNotFound,
    Conflict,
    CordwoodError,
    DestinationExists,
    InvalidArgument,
    InvalidState,
    KeyNotFound,
    Locked,
    PreconditionFailed,
    VersionNotFound,
)
from cordwood.engine.format import (
    CHECKSUM_ALGORITHMS,
    CHECKSUM_TYPES,
    HEAD_MAX,
    STORAGE_CLASSES,
    BucketHead,
    ChunkRef,
    DeleteHead,
    DirectoryHead,
    Layout,
    Manifest,
    ObjectHead,
    PartHead,
    PartInManifest,
    UploadHead,
    encoded_size,
)
from cordwood.engine.index import Txn
from cordwood.engine.model import (
    BucketInfo,
    Conditions,
    DeleteResult,
    ObjectInfo,
    etag_of,
    version_clock,
    version_id_of,
)
from cordwood.engine.rows import (
    BucketRow,
    ObjectRow,
    RowFlag,
    VolumeState,
    id_key,
    version_key,
)

RECORD_OVERHEAD = 512
_MARKER, _INLINE, _CHUNKED = int(Layout.MARKER), int(Layout.INLINE), int(Layout.CHUNKED)
DESCRIPTION_MAX = HEAD_MAX // 2  # leaves room in a record's head for everything else


def require_bucket(txn: Txn, name: str) -> BucketRow:
    row = txn.bucket(name)
    if row is None:
        raise BucketNotFound(name)
    return row


def current_row(txn: Txn, root: int, key: bytes) -> ObjectRow | None:
    """The row of the newest version of a key, be it a delete marker."""
    place = namespace.resolve(txn, root, key)
    if place is None:
        return None
    row = namespace.get_entry(txn, *place)
    return ObjectRow.unpack(row) if row is not None else None


def find_version(txn: Txn, current: ObjectRow | None, version: int | None) -> ObjectRow | None:
    """The row of one version of the key whose newest version is `current`; 0 asks for the null version."""
    if current is None or version is None:
        return None
    if version == (0 if current.flags & RowFlag.NULL else current.clock):
        return current
    clock = version or current.null_clock
    if not current.group or not clock:
        return None
    row = txn.get(version_key(current.group, clock), txn.tables.versions)
    if row is None:
        return None
    found = ObjectRow.unpack(row)
    return found if bool(found.flags & RowFlag.NULL) == (version == 0) else None


def lock_of_row(txn: Txn, row: ObjectRow) -> locks.Lock:
    """The lock of a version, by the index alone: its record may not be in its volume yet."""
    about = txn.attrs(row.clock) if row.flags & RowFlag.NOTED else None
    return locks.Lock(about.mode, about.hold, about.until_ms) if about is not None else locks.OPEN


def row_etag(row: ObjectRow) -> str:
    return etag_of(row.md5, row.parts_count)


def check_write(conditions: Conditions | None, row: ObjectRow | None, bucket: str, key: str) -> None:
    """Preconditions of a write or delete against the current version. A delete marker counts as no object."""
    if conditions is None:
        return
    if row is not None and row.flags & RowFlag.MARKER:
        row = None
    if conditions.if_match:
        if row is None:
            raise KeyNotFound(bucket, key)
        if "*" not in conditions.if_match and row_etag(row) not in conditions.if_match:
            raise PreconditionFailed("If-Match", bucket, key)
    unwanted = conditions.if_none_match
    if unwanted and row is not None and ("*" in unwanted or row_etag(row) in unwanted):
        raise PreconditionFailed("If-None-Match", bucket, key)
    if conditions.if_size is not None and (row is None or row.size != conditions.if_size):
        raise PreconditionFailed("x-amz-if-match-size", bucket, key)
    modified_ms = conditions.if_modified_ms
    if modified_ms is not None and (row is None or milliseconds(row.clock) // 1000 != modified_ms // 1000):
        raise PreconditionFailed("x-amz-if-match-last-modified-time", bucket, key)


def check_kept(texts: Iterable[Mapping[str, str]], attrs: Mapping[str, Any]) -> None:
    """InvalidArgument for what a record could not hold and give back. Called before an operation is queued: in the
    middle of a batch it would be too late to refuse."""
    for mapping in texts:
        for name, value in mapping.items():
            if type(name) is not str or type(value) is not str:
                raise InvalidArgument(f"{name!r}: {value!r} must be text on both sides")
    if not all(type(name) is str for name in attrs):
        raise InvalidArgument(f"names of attributes must be text: {list(attrs)!r}")
    try:
        size = encoded_size([*texts, attrs])
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidArgument(f"headers, metadata or attributes cannot be stored: {error}") from None
    if size > DESCRIPTION_MAX:
        raise InvalidArgument(
            f"headers, metadata and attributes take {size} bytes; the limit is {DESCRIPTION_MAX}"
        )


def check_storage_class(storage_class: str) -> None:
    """InvalidArgument for a storage class that S3 does not have."""
    if storage_class not in STORAGE_CLASSES:
        raise InvalidArgument(f"storage class {storage_class!r} is none of {', '.join(STORAGE_CLASSES)}")


def check_checksums(checksums: Mapping[str, str], checksum_type: str) -> None:
    """InvalidArgument for a checksum algorithm or type that S3 does not have."""
    for name in checksums:
        if name not in CHECKSUM_ALGORITHMS:
            raise InvalidArgument(f"checksum {name!r} is none of {', '.join(CHECKSUM_ALGORITHMS)}")
    if checksum_type not in CHECKSUM_TYPES:
        raise InvalidArgument(f"checksum type {checksum_type!r} must be COMPOSITE or FULL_OBJECT")


def check_chunks(txn: Txn, content: Content) -> None:
    """Every chunk must be known to the index, or be one that this writer appended; and its volume must still live."""
    volumes = set()
    for ref in content.chunks:
        if ref.id in content.fresh:
            volumes.add(ref.volume)
            continue
        row = txn.chunk(ref.id)
        if row is None:
            raise Conflict("a shared chunk was removed meanwhile; write the object again")
        volumes.add(row.volume)
    for volume in volumes:
        about = txn.volume(volume)
        if about is not None and about.state == VolumeState.RETIRED:
            raise Conflict(f"volume {volume} was compacted away meanwhile; write the object again")


def write_chunked(decision: Decision, head: ObjectHead | PartHead, content: Content, body: bytes) -> int:
    """Writes the record of a chunked object or part; returns its clock."""
    for ref in content.chunks:
        if ref.id in content.repaired:
            decision.move_chunk(ref)
    clock, _ = decision.write(head, body, manifest=Manifest(body))
    return clock


def directory_of(decision: Decision, root: int, path: bytes) -> int:
    """The id of the directory that a path of a bucket, empty or ending in "/", leads to; made if there is none."""
    if not path:
        return root
    known = decision.directories
    found = known.get((root, path))
    if found is None:
        found = make_directories(decision, root, namespace.split_key(path)[0])
        known[root, path] = found
    return found


def make_directories(decision: Decision, root: int, directories: Sequence[bytes]) -> int:
    """The id of the directory at the end of a path; writes a record for each one that does not exist yet."""
    parent = root
    known = True
    for name in directories:
        found = namespace.find_directory(decision.txn, parent, name) if known else None
        if found is None:
            known = False
            found = decision.tick()
            decision.write(DirectoryHead(root, found, parent, name), clock=found)
        parent = found
    return parent


def object_info(bucket: str, key: str, head: ObjectHead, clock: int, *, is_latest: bool = True) -> ObjectInfo:
    # In the order of the fields: names would cost more than all the rest.
    return ObjectInfo(
        bucket,
        key,
        head.size,
        etag_of(head.md5, head.parts_count),
        version_id_of(clock, is_null=head.null),
        milliseconds(clock),
        head.layout == _MARKER,
        is_latest,
        head.headers,
        head.metadata,
        head.checksums,
        head.checksum_type,
        head.storage_class,
        head.parts_count,
        head.attrs,
        head.upload,
        head.overhead,
    )


def bucket_info(row: BucketRow) -> BucketInfo:
    head = row.head
    return BucketInfo(head.name, head.bucket, milliseconds(head.bucket), head.versioning, head.attrs)


class Content(msgspec.Struct):
    """What an object or part consists of: `inline` bytes, or chunks.

    `fresh` chunks were appended by this writer; `repaired` ones among them replace a stored copy that had rotted.
    `overhead` as in the heads: not 0 when the bytes are encrypted.
    """

    size: int
    md5: bytes
    inline: bytes | None = None
    chunks: list[ChunkRef] = []  # (a struct copies such a default)
    fresh: frozenset[bytes] = frozenset()
    repaired: frozenset[bytes] = frozenset()
    overhead: int = 0

    def record_size(self) -> int:
        return RECORD_OVERHEAD + (len(self.inline) if self.inline is not None else 64 * len(self.chunks))


class Description(msgspec.Struct):
    """What is said about an object, apart from its bytes."""

    headers: Mapping[str, str] = {}
    metadata: Mapping[str, str] = {}
    checksums: Mapping[str, str] = {}
    checksum_type: str = ""
    storage_class: str = "STANDARD"
    attrs: Mapping[str, Any] = {}

    def check(self) -> None:
        """InvalidArgument for what cannot be stored."""
        if self.checksums or self.checksum_type:
            check_checksums(self.checksums, self.checksum_type)
        if self.headers or self.metadata or self.checksums or self.attrs:
            check_kept((self.headers, self.metadata, self.checksums), self.attrs)
        if self.attrs:
            locks.check(self.attrs)


class PutObject(msgspec.Struct):
    """A new version of an object, from bytes that were written, copied or uploaded in parts before."""

    bucket: str
    key: bytes
    content: Content
    description: Description
    conditions: Conditions | None = None
    parts: list[PartInManifest] | None = None
    upload: int = 0
    nested: bool = False
    frees: bool = False

    def __post_init__(self) -> None:
        self.description.check()

    def size_hint(self) -> int:
        return self.content.record_size() + len(self.key) + 64 * len(self.parts or ())

    def decide(self, decision: Decision) -> ObjectInfo:
        head, clock = self.put(decision)
        return object_info(self.bucket, self.key.decode(), head, clock)

    def put(self, decision: Decision) -> tuple[ObjectHead, int]:
        """Decides; returns the head that was written, and its clock."""
        txn = decision.txn
        row = decision.bucket(self.bucket)
        if row is None:
            raise BucketNotFound(self.bucket)
        bucket = row.head
        root = bucket.bucket
        if self.conditions is not None:
            check_write(self.conditions, current_row(txn, root, self.key), self.bucket, self.key.decode())
        content, about = self.content, self.description
        inline = content.inline
        if inline is None:
            check_chunks(txn, content)
        attrs = _attrs_of_new(about, bucket, decision)
        path, slash, name = self.key.rpartition(b"/")
        # In the order of the fields: names would cost more than all the rest.
        head = ObjectHead(
            root,
            directory_of(decision, root, path + slash),
            name,
            bucket.versioning != "Enabled",
            _CHUNKED if inline is None else _INLINE,
            content.size,
            content.md5,
            len(self.parts) if self.parts is not None else 0,
            about.storage_class,
            dict(about.headers),
            dict(about.metadata),
            dict(about.checksums),
            about.checksum_type,
            self.upload,
            attrs,
            content.overhead,
        )
        if inline is not None:
            clock, _ = decision.write(head, inline)
        else:
            clock = write_chunked(decision, head, content, Manifest.pack(content.chunks, self.parts))
        return head, clock


def check_lockable(attrs: Mapping[str, Any], bucket: BucketHead) -> None:
    """InvalidState for a lock in a bucket without object lock: there versions also go when others take their place."""
    if locks.OBJECT_LOCK not in bucket.attrs and locks.lock_of(attrs) != locks.OPEN:
        raise InvalidState(f"bucket {bucket.name!r} has no object lock: nothing in it can be locked")


def _attrs_of_new(about: Description, bucket: BucketHead, decision: Decision) -> dict[str, Any]:
    if locks.OBJECT_LOCK not in bucket.attrs:
        if not about.attrs:
            return {}
        check_lockable(about.attrs, bucket)
        return dict(about.attrs)
    return locks.with_default(about.attrs, bucket.attrs, milliseconds(tick(decision.clock)))


@dataclass(slots=True)
class DeleteObject:
    """Removes a version, or the object; in a bucket with versions puts a delete marker on top."""

    bucket: str
    key: bytes
    version_id: str | None = None
    conditions: Conditions | None = None
    bypass: bool = False
    nested: bool = False
    frees: bool = True

    def size_hint(self) -> int:
        return RECORD_OVERHEAD + len(self.key)

    def decide(self, decision: Decision) -> DeleteResult:
        txn = decision.txn
        bucket = require_bucket(txn, self.bucket).head
        key = self.key.decode()
        current = current_row(txn, bucket.bucket, self.key)
        if self.version_id is not None:
            return self._delete_version(decision, bucket, current, key)
        check_write(self.conditions, current, self.bucket, key)
        if bucket.versioning:
            return self._put_marker(decision, bucket, existed=current is not None)
        if current is None:
            return DeleteResult(None, False, False)
        place = namespace.resolve(txn, bucket.bucket, self.key)
        assert place is not None
        decision.write(DeleteHead(bucket.bucket, *place, 0))
        return DeleteResult(None, False, True)

    def _delete_version(
        self, decision: Decision, bucket: BucketHead, current: ObjectRow | None, key: str
    ) -> DeleteResult:
        assert self.version_id is not None
        version = version_clock(self.version_id)
        row = find_version(decision.txn, current, version)
        if self.conditions is not None:
            if row is None:
                raise VersionNotFound(self.bucket, key, self.version_id)
            check_write(self.conditions, row, self.bucket, key)
            if self.conditions.if_noncurrent and row == current:
                raise PreconditionFailed("noncurrent", self.bucket, key)
        if row is None or version is None:
            return DeleteResult(self.version_id, False, False)
        now_ms = milliseconds(tick(decision.clock))
        if locks.holds(lock_of_row(decision.txn, row), now_ms, bypass=self.bypass):
            raise Locked(self.bucket, key, self.version_id)
        place = namespace.resolve(decision.txn, bucket.bucket, self.key)
        assert place is not None
        decision.write(DeleteHead(bucket.bucket, *place, version))
        return DeleteResult(self.version_id, bool(row.flags & RowFlag.MARKER), True)

    def _put_marker(self, decision: Decision, bucket: BucketHead, *, existed: bool) -> DeleteResult:
        directories, name = namespace.split_key(self.key)
        head = ObjectHead(
            bucket=bucket.bucket,
            directory=make_directories(decision, bucket.bucket, directories),
            name=name,
            null=bucket.versioning != "Enabled",
            layout=Layout.MARKER,
            size=0,
            md5=bytes(16),
        )
        clock, _ = decision.write(head)
        return DeleteResult(version_id_of(clock, is_null=head.null), True, existed)


@dataclass(slots=True)
class DeleteMany:
    """Several deletes in one commit, each decided alone: one that is refused does not touch the others."""

    deletes: list[DeleteObject]
    nested: bool = False
    frees: bool = True

    def size_hint(self) -> int:
        return sum(delete.size_hint() for delete in self.deletes)

    def decide(self, decision: Decision) -> list[DeleteResult | CordwoodError]:
        results: list[DeleteResult | CordwoodError] = []
        for delete in self.deletes:
            first = len(decision.records)
            try:
                results.append(delete.decide(decision))
            except CordwoodError as refused:
                assert len(decision.records) == first
                results.append(refused)
        return results


@dataclass(slots=True)
class Together:
    """Several puts and deletes as one: all of them happen, or none."""

    operations: Sequence[PutObject | DeleteObject]
    nested: bool = True
    frees: bool = False

    def size_hint(self) -> int:
        return sum(operation.size_hint() for operation in self.operations)

    def decide(self, decision: Decision) -> None:
        for operation in self.operations:
            if isinstance(operation, PutObject):
                operation.put(decision)
            else:
                operation.decide(decision)


@dataclass(slots=True)
class Rename:
    """Moves a directory with all that is below: one record, one row, whatever its size."""

    bucket: str
    source: bytes
    target: bytes
    nested: bool = False
    frees: bool = True

    def size_hint(self) -> int:
        return RECORD_OVERHEAD + len(self.target)

    def decide(self, decision: Decision) -> None:
        txn = decision.txn
        bucket = require_bucket(txn, self.bucket).head
        root = bucket.bucket
        if locks.OBJECT_LOCK in bucket.attrs:
            raise InvalidState(f"bucket {self.bucket!r} has object lock: what is in it keeps its name")
        found = namespace.resolve(txn, root, self.source)
        if found is None:
            raise KeyNotFound(self.bucket, self.source.decode())
        if self.source == self.target:
            return
        if self.target.startswith(self.source):
            raise InvalidArgument(f"{self.source.decode()!r} cannot be moved below itself")
        if namespace.resolve(txn, root, self.target) is not None:
            raise DestinationExists(f"{self.target.decode()!r} exists already in bucket {self.bucket!r}")
        *parents, name = namespace.split_key(self.target)[0]
        parent = make_directories(decision, root, parents)
        decision.write(DirectoryHead(root, found[0], parent, name))


@dataclass(slots=True)
class CreateBucket:
    name: str
    versioning: str = ""
    attrs: Mapping[str, Any] = field(default_factory=dict)
    nested: bool = False
    frees: bool = False

    def __post_init__(self) -> None:
        check_kept((), self.attrs)

    def size_hint(self) -> int:
        return RECORD_OVERHEAD

    def decide(self, decision: Decision) -> BucketInfo:
        if decision.txn.bucket(self.name) is not None:
            raise BucketExists(self.name)
        clock = decision.tick()
        head = BucketHead(clock, self.name, self.versioning, False, dict(self.attrs))
        _, place = decision.write(head, clock=clock)
        return bucket_info(BucketRow(clock, place, head))


@dataclass(slots=True)
class UpdateBucket:
    """Changes a bucket's versioning and merges `attrs` into its own; a value of None removes a name."""

    name: str
    versioning: str | None = None
    attrs: Mapping[str, Any] = field(default_factory=dict)
    nested: bool = False
    frees: bool = False

    def __post_init__(self) -> None:
        check_kept((), self.attrs)

    def size_hint(self) -> int:
        return RECORD_OVERHEAD

    def decide(self, decision: Decision) -> BucketInfo:
        old = require_bucket(decision.txn, self.name).head
        if self.versioning == "" and old.versioning:
            raise InvalidArgument(f"versioning of bucket {self.name!r} can be suspended, but not undone")
        merged = {**old.attrs, **self.attrs}
        versioning = old.versioning if self.versioning is None else self.versioning
        if locks.OBJECT_LOCK in old.attrs and merged[locks.OBJECT_LOCK] is None:
            raise InvalidState(f"object lock of bucket {self.name!r} cannot be undone")
        if merged.get(locks.OBJECT_LOCK) is not None and versioning != "Enabled":
            raise InvalidState(f"bucket {self.name!r} needs versioning for object lock")
        head = BucketHead(
            old.bucket,
            old.name,
            versioning,
            False,
            {name: value for name, value in merged.items() if value is not None},
        )
        clock, place = decision.write(head)
        return bucket_info(BucketRow(clock, place, head))


@dataclass(slots=True)
class DeleteBucket:
    """Removes an empty bucket; multipart uploads that are still open in it are aborted."""

    name: str
    nested: bool = False
    frees: bool = True

    def size_hint(self) -> int:
        return RECORD_OVERHEAD

    def decide(self, decision: Decision) -> None:
        txn = decision.txn
        head = require_bucket(txn, self.name).head
        if not namespace.is_empty(txn, head.bucket):
            raise BucketNotEmpty(self.name)
        for key, _ in list(txn.items(id_key(head.bucket), txn.tables.uploads)):
            upload = int.from_bytes(key[8:], "big")
            decision.write(UploadHead(head.bucket, upload, bytes(8), b"", True))
        decision.write(BucketHead(head.bucket, head.name, head.versioning, True))
