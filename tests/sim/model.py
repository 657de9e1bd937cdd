"""What a store should do, in plain dictionaries: the oracle of the simulation.

Must not know: files, records, indexes. Names of errors are the engine's, so that answers can be compared.

Invariant: an operation that raises has changed nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from cordwood.engine import Conditions, errors

Pairs = list[tuple[str, str]]
Attrs = tuple[tuple[str, Any], ...]  # sorted; a retention is (mode, until)

# Ends of a retention. The default of a bucket ends at a time that the store chooses, DEFAULT stands for it.
PAST, DEFAULT, FAR, FARTHER = 1_000, 3_000_000_000_000, 4_000_000_000_000, 4_000_000_001_000


@dataclass(frozen=True)
class Version:
    """One version of a key. `parts`: sizes of the parts of a multipart object. Equality leaves the id out."""

    data: bytes = b""
    etag: str = ""
    marker: bool = False
    null: bool = True
    metadata: tuple[tuple[str, str], ...] = ()
    parts: tuple[int, ...] = ()
    attrs: Attrs = ()
    id: str = field(default="null", compare=False)

    @property
    def key(self) -> int:
        """The number of the key that it is encrypted under; 0 when it is not. Copies take it along."""
        return key_of(self.metadata)

    @property
    def retention(self) -> tuple[str, int]:
        """(mode, until) of a retention that has not ended; ("", 0) without one."""
        mode, until = dict(self.attrs).get("retention", ("", 0))
        return (mode, until) if until > PAST else ("", 0)

    def is_locked(self, *, bypass: bool) -> bool:
        """Whether it may not be removed."""
        mode = self.retention[0]
        return ("hold", True) in self.attrs or mode == "COMPLIANCE" or (mode == "GOVERNANCE" and not bypass)


@dataclass
class Upload:
    key: str
    parts: dict[int, bytes] = field(default_factory=dict)
    metadata: tuple[tuple[str, str], ...] = ()
    attrs: Attrs = ()


@dataclass
class Bucket:
    """`lock`: None without object lock, else the mode of the default retention, or "" for none."""

    versioning: str = ""
    lock: str | None = None
    keys: dict[str, list[Version]] = field(default_factory=dict)  # newest first
    uploads: dict[str, Upload] = field(default_factory=dict)


def key_of(metadata: Iterable[tuple[str, str]]) -> int:
    return int(dict(metadata).get("key", 0))


@lru_cache(maxsize=512)
def etag_of(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def is_lock(attrs: Attrs) -> bool:
    return any(name in ("retention", "hold") for name, _ in attrs)


def free(attrs: Attrs) -> Attrs:
    """The attributes that go along with a copy."""
    return merged(attrs, {"retention": None, "hold": None})


def merged(attrs: Attrs, changes: Mapping[str, Any]) -> Attrs:
    """A change of attributes; a value of None removes a name."""
    both = dict(attrs) | dict(changes)
    return tuple(sorted((name, value) for name, value in both.items() if value is not None))


class Model:
    def __init__(self) -> None:
        self.buckets: dict[str, Bucket] = {}

    def copy(self) -> Model:
        """Versions are never changed, only replaced, so that they may be shared."""
        twin = Model()
        for name, about in self.buckets.items():
            keys = {key: list(versions) for key, versions in about.keys.items()}
            uploads = {each: replace(up, parts=dict(up.parts)) for each, up in about.uploads.items()}
            twin.buckets[name] = Bucket(about.versioning, about.lock, keys, uploads)
        return twin

    def bucket(self, name: str) -> Bucket:
        if name not in self.buckets:
            raise errors.BucketNotFound(name)
        return self.buckets[name]

    def create_bucket(self, name: str, versioning: str = "", lock: str | None = None) -> None:
        if name in self.buckets:
            raise errors.BucketExists(name)
        self.buckets[name] = Bucket(versioning, lock)

    def delete_bucket(self, name: str) -> None:
        if self.bucket(name).keys:
            raise errors.BucketNotEmpty(name)
        del self.buckets[name]

    def set_versioning(self, name: str, versioning: str) -> None:
        about = self.bucket(name)
        if about.lock is not None and versioning != "Enabled":
            raise errors.InvalidState("object lock needs versions")
        about.versioning = versioning

    def set_lock(self, name: str, lock: str | None) -> None:
        about = self.bucket(name)
        if about.lock is not None and lock is None:
            raise errors.InvalidState("object lock cannot be undone")
        if lock is not None and about.versioning != "Enabled":
            raise errors.InvalidState("object lock needs versions")
        about.lock = lock

    # --- objects ----------------------------------------------------------------------------------------------

    def current(self, bucket: str, key: str) -> Version | None:
        versions = self.bucket(bucket).keys.get(key)
        return versions[0] if versions else None

    def find(self, bucket: str, key: str, version_id: str | None = None) -> Version:
        """What a read gets."""
        versions = self.bucket(bucket).keys.get(key, [])
        if version_id is not None:
            versions = [each for each in versions if each.id == version_id]
            if not versions:
                raise errors.VersionNotFound(bucket, key, version_id)
        if not versions:
            raise errors.KeyNotFound(bucket, key)
        if versions[0].marker:
            raise errors.DeleteMarkerFound(bucket, key, versions[0].id, is_latest=True)
        return versions[0]

    def check(self, version: Version | None, conditions: Conditions | None, bucket: str, key: str) -> None:
        if conditions is None:
            return
        if version is not None and version.marker:
            version = None
        if conditions.if_match:
            if version is None:
                raise errors.KeyNotFound(bucket, key)
            if not {"*", version.etag} & set(conditions.if_match):
                raise errors.PreconditionFailed("If-Match", bucket, key)
        if version is not None and {"*", version.etag} & set(conditions.if_none_match):
            raise errors.PreconditionFailed("If-None-Match", bucket, key)
        if conditions.if_size is not None and (version is None or len(version.data) != conditions.if_size):
            raise errors.PreconditionFailed("x-amz-if-match-size", bucket, key)

    def _push(self, bucket: str, key: str, version: Version) -> None:
        about = self.bucket(bucket)
        version = replace(version, null=about.versioning != "Enabled")
        if about.lock and not version.marker and "retention" not in dict(version.attrs):
            version = replace(version, attrs=merged(version.attrs, {"retention": (about.lock, DEFAULT)}))
        versions = about.keys.setdefault(key, [])
        if version.null:
            versions[:] = [each for each in versions if not each.null]
        versions.insert(0, version)

    def put(self, bucket: str, key: str, version: Version, conditions: Conditions | None = None) -> None:
        self.check(self.current(bucket, key), conditions, bucket, key)
        self.check_lockable(bucket, version.attrs)
        self._push(bucket, key, version)

    def check_lockable(self, bucket: str, attrs: Attrs) -> None:
        if is_lock(attrs) and self.bucket(bucket).lock is None:
            raise errors.InvalidState("without object lock nothing is locked")

    def change_attrs(
        self, bucket: str, key: str, version_id: str | None, changes: Mapping[str, Any], *, bypass: bool
    ) -> Attrs:
        found = self.find(bucket, key, version_id)
        changed = replace(found, attrs=merged(found.attrs, changes))
        self.check_lockable(bucket, changed.attrs)
        (mode, until), (new_mode, new_until) = found.retention, changed.retention
        shorter = mode and not (mode == new_mode and new_until >= until)
        if shorter and (mode == "COMPLIANCE" or not bypass):
            raise errors.Locked(bucket, key, found.id)
        versions = self.bucket(bucket).keys[key]
        versions[next(at for at, each in enumerate(versions) if each is found)] = changed
        return changed.attrs

    def delete(
        self,
        bucket: str,
        key: str,
        version_id: str | None = None,
        conditions: Conditions | None = None,
        *,
        bypass: bool = False,
    ) -> tuple[bool, bool]:
        """(a delete marker was made or removed, something was there)"""
        about = self.bucket(bucket)
        versions = about.keys.get(key, [])
        if version_id is not None:
            found = next((each for each in versions if each.id == version_id), None)
            if conditions is not None:
                if found is None:
                    raise errors.VersionNotFound(bucket, key, version_id)
                self.check(found, conditions, bucket, key)
            if found is None:
                return False, False
            if found.is_locked(bypass=bypass):
                raise errors.Locked(bucket, key, version_id)
            versions[:] = [each for each in versions if each is not found]
            if not versions:
                del about.keys[key]
            return found.marker, True
        self.check(versions[0] if versions else None, conditions, bucket, key)
        existed = bool(versions)
        if about.versioning:
            self._push(bucket, key, Version(marker=True))
            return True, existed
        about.keys.pop(key, None)
        return False, existed

    def copy_object(
        self, source: tuple[str, str, str | None], bucket: str, key: str, conditions: Conditions | None = None
    ) -> Version:
        found = self.find(*source)
        self.put(bucket, key, replace(found, attrs=free(found.attrs)), conditions)
        return found

    def rename(self, bucket: str, old: str, new: str) -> None:
        keys = self.bucket(bucket).keys
        if self.bucket(bucket).lock is not None:
            raise errors.InvalidState("what is locked keeps its name")
        moving = [key for key in keys if key.startswith(old)]
        if not moving:
            raise errors.KeyNotFound(bucket, old)
        if new == old:
            return
        if new.startswith(old):
            raise errors.InvalidArgument("below itself")
        if any(key.startswith(new) for key in keys):
            raise errors.DestinationExists(new)
        for key in moving:
            keys[new + key[len(old) :]] = keys.pop(key)

    def rename_object(
        self, bucket: str, old: str, new: str, source: Conditions | None, target: Conditions | None
    ) -> Version:
        if old == new:
            raise errors.InvalidArgument("to itself")
        found = self.find(bucket, old)
        there = self.current(bucket, new)
        for version, conditions, key in ((found, source, old), (there, target, new)):
            try:
                self.check(version, conditions, bucket, key)
            except errors.KeyNotFound:
                raise errors.PreconditionFailed("If-Match", bucket, key) from None
        self._push(bucket, new, replace(found, attrs=free(found.attrs)))
        self.delete(bucket, old)
        return found

    def append(
        self, bucket: str, key: str, offset: int, more: Version, conditions: Conditions | None
    ) -> Version:
        """`more`: what is added, with the metadata that it would have alone."""
        there = self.current(bucket, key)
        before = None if there is None or there.marker else there
        if before is not None and before.key:
            raise errors.InvalidState("what is encrypted takes no more bytes")
        self.check(before, conditions, bucket, key)
        if offset != (len(before.data) if before is not None else 0):
            raise errors.InvalidWriteOffset(bucket, key, offset, 0)
        if before is None or not before.data:
            if before is not None:
                more = replace(more, metadata=before.metadata, attrs=free(before.attrs))
            self._push(bucket, key, more)
        else:
            data = before.data + more.data
            sizes = (*(before.parts or (len(before.data),)), len(more.data))
            at = 0
            digests = b""
            for size in sizes:
                digests += bytes.fromhex(etag_of(data[at : at + size]))
                at += size
            etag = f"{etag_of(digests)}-{len(sizes)}"
            self._push(
                bucket, key, Version(data, etag, False, True, before.metadata, sizes, free(before.attrs))
            )
        now = self.current(bucket, key)
        assert now is not None
        return now

    def set_id(self, bucket: str, key: str, version_id: str) -> None:
        """What the store called the newest version of a key."""
        versions = self.bucket(bucket).keys[key]
        versions[0] = replace(versions[0], id=version_id)

    def set_upload_id(self, bucket: str, upload_id: str) -> None:
        """What the store called the newest upload."""
        uploads = self.bucket(bucket).uploads
        uploads[upload_id] = uploads.pop("new")

    # --- multipart --------------------------------------------------------------------------------------------

    def upload(self, bucket: str, key: str, upload_id: str) -> Upload:
        found = self.bucket(bucket).uploads.get(upload_id)
        if found is None or found.key != key:
            raise errors.UploadNotFound(bucket, key, upload_id)
        return found

    def complete(self, bucket: str, key: str, upload_id: str, parts: list[tuple[int, str]]) -> None:
        upload = self.upload(bucket, key, upload_id)
        last = 0
        for number, etag in parts:
            if number <= last:
                raise errors.InvalidPartOrder
            if number not in upload.parts or etag_of(upload.parts[number]) != etag:
                raise errors.InvalidPart(number, "")
            last = number
        if not parts:
            raise errors.InvalidPart(0, "")
        bodies = [upload.parts[number] for number, _ in parts]
        digests = b"".join(bytes.fromhex(etag_of(body)) for body in bodies)
        etag = f"{etag_of(digests)}-{len(parts)}"
        sizes = tuple(map(len, bodies))
        version = Version(b"".join(bodies), etag, metadata=upload.metadata, parts=sizes, attrs=upload.attrs)
        self._push(bucket, key, version)
        del self.bucket(bucket).uploads[upload_id]

    # --- listings ---------------------------------------------------------------------------------------------

    def list_keys(self, bucket: str, prefix: str, delimiter: str) -> tuple[list[str], list[str]]:
        """All keys and common prefixes of a listing, in byte order."""
        keys: list[str] = []
        prefixes: dict[str, None] = {}
        for key in sorted(self.bucket(bucket).keys, key=str.encode):
            if not key.startswith(prefix) or self.bucket(bucket).keys[key][0].marker:
                continue
            at = key.find(delimiter, len(prefix)) if delimiter else -1
            if at >= 0:
                prefixes[key[: at + len(delimiter)]] = None
            else:
                keys.append(key)
        return keys, list(prefixes)

    def list_versions(self, bucket: str, prefix: str, delimiter: str) -> tuple[Pairs, list[str]]:
        """All (key, version id) and common prefixes."""
        found: Pairs = []
        prefixes: dict[str, None] = {}
        for key in sorted(self.bucket(bucket).keys, key=str.encode):
            at = key.find(delimiter, len(prefix)) if delimiter else -1
            if key.startswith(prefix) and at >= 0:
                prefixes[key[: at + len(delimiter)]] = None
            elif key.startswith(prefix):
                found += [(key, version.id) for version in self.bucket(bucket).keys[key]]
        return found, list(prefixes)

    def observe(self) -> dict[str, Any]:
        """Everything that a client could see, without the ids that the store chose."""
        return {
            name: (
                bucket.versioning,
                bucket.lock,
                {key: tuple(versions) for key, versions in bucket.keys.items()},
                sorted(
                    (
                        upload.key,
                        upload.metadata,
                        upload.attrs,
                        tuple((number, etag_of(data)) for number, data in sorted(upload.parts.items())),
                    )
                    for upload in bucket.uploads.values()
                ),
            )
            for name, bucket in self.buckets.items()
        }
