"""The store: the one name that everything above the engine uses.

Opens a directory, and offers buckets, objects, versions, listings, multipart uploads, renames and batches, to all
threads of the process and to several processes at once. All calls block; nothing here knows of HTTP or event loops.

Invariants:
* A call that changes something returns only when the change is durable (in `durability="strict"`, the default).
* A directory is opened at most once per process; `Busy` otherwise. A fork must open its own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from cordwood.engine import copying, listing, lookup, opening
from cordwood.engine.announcing import OUTBOX
from cordwood.engine.attributes import SetAttrs
from cordwood.engine.batch import Batch
from cordwood.engine.cipher import Cipher
from cordwood.engine.commit import Commits, Operation, Pending
from cordwood.engine.core import Core
from cordwood.engine.dump import logical_dump
from cordwood.engine.edits import Edits, retrying
from cordwood.engine.errors import (
    BucketNotFound,
    Closed,
    Conflict,
    CordwoodError,
    InvalidArgument,
)
from cordwood.engine.fs import REAL, FileSystem
from cordwood.engine.index import Txn
from cordwood.engine.lookup import Range
from cordwood.engine.maintenance import Maintenance
from cordwood.engine.model import (
    BucketInfo,
    Conditions,
    DeleteResult,
    Listing,
    ObjectInfo,
    VersionListing,
    check_bucket_name,
    encode_key,
    encode_text,
    lookup_key,
)
from cordwood.engine.multipart import Multipart
from cordwood.engine.operations import (
    CreateBucket,
    DeleteBucket,
    DeleteMany,
    DeleteObject,
    Description,
    PutObject,
    Rename,
    UpdateBucket,
    bucket_info,
    check_storage_class,
    require_bucket,
)
from cordwood.engine.reader import ObjectReader
from cordwood.engine.writer import Data, ObjectWriter, describe, fill, small_content

T = TypeVar("T")


class Store(Edits, Multipart):
    """An open store; use `Store.open`, as a context manager where that fits. Safe to use from many threads."""

    def __init__(self, path: Path, core: Core, session: opening.Session) -> None:
        self.path = path
        self._core = core
        self._session = session
        self._generation = opening.fork_generation()
        self._lock = threading.Lock()
        self._closed = False

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        create: bool = True,
        read_only: bool = False,
        durability: str = "strict",
        dedup: bool = True,
        volume_size: int = 1 << 30,
        chunk_size: int = 1 << 20,
        inline_max: int = 64 << 10,
        head_cache_size: int = 16 << 20,
        map_size: int = 1 << 40,
        node_id: int | None = None,
        fs: FileSystem = REAL,
    ) -> Store:
        """Opens the store in a directory, and recovers it if it was not closed cleanly.

        `durability`: "strict" syncs before each acknowledgement; "relaxed" syncs once a second. Sizes are in bytes:
        `volume_size` a volume's limit, `chunk_size` the unit in which large objects are kept and shared, `inline_max`
        the largest object that stands in its own record, `head_cache_size` the memory for the decoded heads of objects
        that were read lately (0: none), `map_size` the address space reserved for the index.
        `node_id` is only used when the store is created. `fs` is for fault injection.

        Raises StoreNotFound, UnsupportedFormat, Busy, Corrupt, InvalidArgument, OSError.
        """
        if durability not in ("strict", "relaxed"):
            raise InvalidArgument(f"durability is {durability!r}; it must be 'strict' or 'relaxed'")
        if not 0 <= inline_max <= chunk_size:
            raise InvalidArgument(f"inline_max must lie between 0 and chunk_size, it is {inline_max}")
        if not 4096 <= chunk_size <= 64 << 20:
            raise InvalidArgument(f"chunk_size must lie between 4 KiB and 64 MiB, it is {chunk_size}")
        if head_cache_size < 0:
            raise InvalidArgument(f"head_cache_size must not be negative, it is {head_cache_size}")
        if volume_size < 1 << 16:
            raise InvalidArgument(f"volume_size must be at least 64 KiB, it is {volume_size}")
        options = opening.Options(
            create=create,
            read_only=read_only,
            strict=durability == "strict",
            dedup=dedup,
            volume_size=volume_size,
            chunk_size=chunk_size,
            inline_max=inline_max,
            head_cache_size=head_cache_size,
            map_size=map_size,
            node_id=node_id,
        )
        directory = Path(path).absolute()
        core, session = opening.open_store(fs, directory, options)
        return cls(directory, core, session)

    @classmethod
    def beside(cls, maintenance: Maintenance) -> Store:
        """The store that is open for maintenance, which also closes it: a directory is open once per process."""
        return cls(maintenance.path, *maintenance.opened)

    def close(self) -> None:
        """Finishes what is under way and lets go of the directory. May be called twice."""
        with self._lock:
            if self._closed or self._generation != opening.fork_generation():
                return
            self._closed = True
        self._session.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def inline_max(self) -> int:
        """Objects of up to so many bytes stand in their own record."""
        return self._core.inline_max

    @property
    def read_only_reason(self) -> str | None:
        """Why the store takes no writes; None while it does."""
        return self._core.health.failure

    # --- buckets ----------------------------------------------------------------------------------------------

    def create_bucket(
        self, name: str, *, versioning: str = "", attrs: Mapping[str, Any] | None = None
    ) -> BucketInfo:
        """Makes a bucket. BucketExists, InvalidBucketName."""
        check_bucket_name(name)
        _check_versioning(versioning)
        return self._execute(CreateBucket(name, versioning, attrs or {}))

    def delete_bucket(self, name: str) -> None:
        """Removes an empty bucket; uploads that are open in it are aborted. BucketNotFound, BucketNotEmpty."""
        self._execute(DeleteBucket(name))

    def head_bucket(self, name: str) -> BucketInfo:
        if name == OUTBOX:
            raise BucketNotFound(name)
        with self._read() as txn:
            return bucket_info(require_bucket(txn, name))

    def list_buckets(self) -> list[BucketInfo]:
        """All buckets by name."""
        with self._read() as txn:
            return [bucket_info(row) for row in txn.buckets() if row.head.name != OUTBOX]

    def update_bucket(
        self, name: str, *, versioning: str | None = None, attrs: Mapping[str, Any] | None = None
    ) -> BucketInfo:
        """Changes versioning ("Enabled", "Suspended"), and merges `attrs`; a value of None removes a name."""
        if versioning is not None:
            _check_versioning(versioning)
        return self._execute(UpdateBucket(name, versioning, attrs or {}))

    # --- writing objects --------------------------------------------------------------------------------------

    def put(
        self,
        bucket: str,
        key: str,
        data: Data,
        *,
        headers: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        checksums: Mapping[str, str] | None = None,
        checksum_type: str = "",
        storage_class: str = "STANDARD",
        attrs: Mapping[str, Any] | None = None,
        conditions: Conditions | None = None,
        cipher: Cipher | None = None,
    ) -> ObjectInfo:
        """Stores an object from bytes, a binary file or an iterable of bytes of any length; durable on return.

        With a `cipher` it is encrypted, and can only be read after `ObjectReader.unlock` with the same one.
        """
        content = small_content(self._core, data) if cipher is None else None
        if content is not None:
            raw = encode_key(key)
            check_storage_class(storage_class)
            about = describe(headers, metadata, storage_class, attrs)
            if checksums:
                about.checksums, about.checksum_type = checksums, checksum_type or "FULL_OBJECT"
            return self._execute(PutObject(bucket, raw, content, about, conditions))
        writer = self.writer(
            bucket,
            key,
            headers=headers,
            metadata=metadata,
            storage_class=storage_class,
            attrs=attrs,
            cipher=cipher,
        )
        return fill(writer, data).commit(
            conditions=conditions, checksums=checksums, checksum_type=checksum_type
        )

    def put_async(
        self,
        bucket: str,
        key: str,
        data: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        checksums: Mapping[str, str] | None = None,
        checksum_type: str = "",
        storage_class: str = "STANDARD",
        attrs: Mapping[str, Any] | None = None,
        conditions: Conditions | None = None,
        md5: bytes | None = None,
        wake: bool = True,
    ) -> Pending[ObjectInfo]:
        """Like `put` of at most `inline_max` bytes, without waiting; InvalidArgument for more. `md5` is theirs, if it
        is known. `wake` as in `ObjectWriter.commit_async`."""
        content = small_content(self._core, data, md5)
        if content is None:
            raise InvalidArgument(f"{len(data)} bytes are no small object; the limit is {self.inline_max}")
        raw = encode_key(key)
        check_storage_class(storage_class)
        about = describe(headers, metadata, storage_class, attrs)
        if checksums:
            about.checksums, about.checksum_type = checksums, checksum_type or "FULL_OBJECT"
        return self._committer().submit(PutObject(bucket, raw, content, about, conditions), wake=wake)

    def writer(
        self,
        bucket: str,
        key: str,
        *,
        headers: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        storage_class: str = "STANDARD",
        attrs: Mapping[str, Any] | None = None,
        cipher: Cipher | None = None,
    ) -> ObjectWriter:
        """A writer to fill piece by piece. BucketNotFound, KeyTooLong, InvalidKey, ReadOnly at once."""
        raw = encode_key(key)
        check_storage_class(storage_class)
        with self._read() as txn:
            require_bucket(txn, bucket)
        return ObjectWriter(
            self._core, bucket, raw, describe(headers, metadata, storage_class, attrs), cipher
        )

    def delete(
        self,
        bucket: str,
        key: str,
        *,
        version_id: str | None = None,
        conditions: Conditions | None = None,
        bypass_governance: bool = False,
    ) -> DeleteResult:
        """Deletes an object, or puts a delete marker on it, or removes one version. A missing key is no error.

        Locked for a version under object lock; `bypass_governance` lifts a GOVERNANCE retention.
        """
        return self._execute(DeleteObject(bucket, lookup_key(key), version_id, conditions, bypass_governance))

    def delete_async(
        self,
        bucket: str,
        key: str,
        *,
        version_id: str | None = None,
        conditions: Conditions | None = None,
        bypass_governance: bool = False,
        wake: bool = True,
    ) -> Pending[DeleteResult]:
        """Like `delete` without waiting. `wake` as in `ObjectWriter.commit_async`."""
        operation = DeleteObject(bucket, lookup_key(key), version_id, conditions, bypass_governance)
        return self._committer().submit(operation, wake=wake)

    def update_attrs(
        self,
        bucket: str,
        key: str,
        attrs: copying.Attrs,
        *,
        version_id: str | None = None,
        bypass_governance: bool = False,
    ) -> ObjectInfo:
        """Merges `attrs` into those of a version that is there; a value of None removes a name. Version, time and
        ETag stay. `attrs` may be made from what is there, by a function. KeyNotFound, VersionNotFound,
        DeleteMarkerFound; Locked for a retention that may not change so."""

        def attempt() -> ObjectInfo:
            self._check_open()
            found = lookup.find(self._core, bucket, key, version_id, None, want_body=False, wait=True)
            merged = {**found.info.attrs, **copying.attrs_of(found.info, attrs)}
            kept = {name: value for name, value in merged.items() if value is not None}
            self._execute(
                SetAttrs(
                    bucket,
                    lookup_key(key),
                    version_id,
                    found.clock,
                    found.attrs_clock,
                    kept,
                    bypass_governance,
                )
            )
            return msgspec.structs.replace(found.info, attrs=kept)

        return retrying(attempt)

    def start_commits(self) -> None:
        """Lets what was handed over with `wake=False` be committed, together."""
        if self._core.committer is not None:
            self._core.committer.wake()

    def delete_many(
        self,
        bucket: str,
        deletes: Sequence[tuple[str, str | None, Conditions | None]],
        *,
        bypass_governance: bool = False,
    ) -> list[DeleteResult | CordwoodError]:
        """Many deletes (key, version id, conditions) in one commit; each one's result, or the error it met."""
        operations = [
            DeleteObject(bucket, lookup_key(key), version, when, bypass_governance)
            for key, version, when in deletes
        ]
        return self._execute(DeleteMany(operations))

    def copy(
        self,
        src_bucket: str,
        src_key: str,
        dst_bucket: str,
        dst_key: str,
        *,
        src_version_id: str | None = None,
        src_conditions: Conditions | None = None,
        conditions: Conditions | None = None,
        headers: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        checksums: Mapping[str, str] | None = None,
        checksum_type: str | None = None,
        storage_class: str | None = None,
        attrs: copying.Attrs | None = None,
        seen: ObjectInfo | None = None,
    ) -> ObjectInfo:
        """Copies an object without moving its chunks. What is None is taken from the source, but never its lock.

        With `seen`, what an earlier look at the source gave: Conflict if it has changed in any way since.

        What is encrypted is copied as it is stored. `attrs` may be made from what is copied, by a function.
        """
        raw = encode_key(dst_key)
        check_storage_class(storage_class or "STANDARD")

        def attempt() -> ObjectInfo:
            with self.get(
                src_bucket, src_key, version_id=src_version_id, conditions=src_conditions
            ) as reader:
                info = reader.info
                if seen is not None and info != seen:
                    raise Conflict(f"the source {src_key!r} was changed meanwhile; look at it again")
                about = Description(
                    info.headers if headers is None else headers,
                    info.metadata if metadata is None else metadata,
                    info.checksums if checksums is None else checksums,
                    info.checksum_type if checksum_type is None else checksum_type,
                    storage_class or info.storage_class,
                    copying.attrs_of(info, attrs),
                )
                return self._execute(copying.copy_operation(reader, dst_bucket, raw, about, conditions))

        return retrying(attempt)

    def rename(self, bucket: str, old_prefix: str, new_prefix: str) -> None:
        """Moves everything below a prefix, in one record whatever its size. Both prefixes end in "/".

        KeyNotFound when nothing is below `old_prefix`, DestinationExists when something is below `new_prefix`.
        """
        source, target = lookup_key(old_prefix), encode_key(new_prefix)
        if not source.endswith(b"/") or not target.endswith(b"/"):
            raise InvalidArgument('both prefixes of a rename must end in "/"')
        self._execute(Rename(bucket, source, target))

    @contextmanager
    def batch(self) -> Iterator[Batch]:
        """Many puts and deletes as one: `with store.batch() as b: b.put(...)`. All happen at the end, or none."""
        self._check_open()
        batch = Batch(self._core)
        try:
            yield batch
            batch.commit()
        finally:
            batch.end()

    # --- reading objects --------------------------------------------------------------------------------------

    def get(
        self,
        bucket: str,
        key: str,
        *,
        version_id: str | None = None,
        conditions: Conditions | None = None,
        range: Range | None = None,
        part_number: int | None = None,
        wait: bool = True,
    ) -> ObjectReader:
        """Finds an object and selects bytes of it: `range` (first, last) inclusive; (first, None) to the end;
        (None, n) the last n; or one part of a multipart object.

        With `wait` false, WouldBlock is raised where the disk would have to be waited for.
        Raises BucketNotFound, KeyNotFound, DeleteMarkerFound, VersionNotFound, PreconditionFailed, NotModified,
        InvalidRange, InvalidPart, Corrupt.
        """
        self._check_open()
        return lookup.open_object(
            self._core, bucket, key, version_id, conditions, range, part_number, wait=wait
        )

    def head(
        self,
        bucket: str,
        key: str,
        *,
        version_id: str | None = None,
        conditions: Conditions | None = None,
        part_number: int | None = None,
        wait: bool = True,
    ) -> ObjectInfo:
        """The metadata of an object; the same errors as `get`."""
        if part_number is not None:
            with self.get(
                bucket, key, version_id=version_id, conditions=conditions, part_number=part_number, wait=wait
            ) as reader:
                return reader.info
        self._check_open()
        return lookup.find(self._core, bucket, key, version_id, conditions, want_body=False, wait=wait).info

    def look_up(self, bucket: str, key: str, *, want_body: bool, wait: bool = True) -> lookup.Found:
        """For whoever makes the same answers over and over: what `head` gives, with a place to keep something about it;
        and with `want_body` the object itself, if it is small, and else what `reader` makes a reader of."""
        self._check_open()
        return lookup.find(self._core, bucket, key, None, None, want_body=want_body, wait=wait)

    def reader(self, found: lookup.Found) -> ObjectReader:
        """All bytes of what was looked up with its body."""
        return lookup.open_found(self._core, found)

    # --- listings ---------------------------------------------------------------------------------------------

    def list(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        start_after: str = "",
        max_keys: int = 1000,
    ) -> Listing:
        """Keys and common prefixes greater than `start_after`; pass `next` as `start_after` to go on."""
        with self._read() as txn:
            row = require_bucket(txn, bucket)
            return listing.list_objects(
                txn, row, encode_text(prefix), encode_text(delimiter), encode_text(start_after), max_keys
            )

    def list_versions(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        key_marker: str = "",
        version_id_marker: str = "",
        max_keys: int = 1000,
    ) -> VersionListing:
        """All versions and delete markers, keys in byte order and the newest first."""
        with self._read() as txn:
            row = require_bucket(txn, bucket)
            return listing.list_versions(
                txn,
                row,
                encode_text(prefix),
                encode_text(delimiter),
                encode_text(key_marker),
                version_id_marker,
                max_keys,
            )

    # --- the whole --------------------------------------------------------------------------------------------

    def logical_dump(self) -> dict[str, Any]:
        """Everything the index says, without what may lawfully differ after a rebuild. For tests and fsck."""
        with self._read() as txn:
            return logical_dump(txn)

    def index_info(self) -> dict[str, int]:
        """Bytes the index uses, and the rows of each of its tables."""
        self._check_open()
        return self._core.index.info()

    # --- helpers ----------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(f"the store {self.path} is closed")
        if self._generation != opening.fork_generation():
            raise Closed(f"the store {self.path} was opened before a fork; open it again in this process")

    def _read(self) -> AbstractContextManager[Txn]:
        self._check_open()
        return self._core.index.read()

    def _committer(self) -> Commits:
        self._check_open()
        return self._core.writing()[1]

    def _execute(self, operation: Operation[T]) -> T:
        return self._committer().execute(operation)


def _check_versioning(versioning: str) -> None:
    if versioning not in ("", "Enabled", "Suspended"):
        raise InvalidArgument(f"versioning is {versioning!r}; it must be 'Enabled' or 'Suspended'")
