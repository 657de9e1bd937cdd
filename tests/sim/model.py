"""What a store should do, in plain dictionaries: the oracle of the simulation.

Must not know: files, records, indexes. Names of errors are the engine's, so that answers can be compared.

Invariant: an operation that raises has changed nothing.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

from cordwood.engine import Conditions, errors

Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Version:
    """One version of a key. `parts`: sizes of the parts of a multipart object. Equality leaves the id out."""

    data: bytes = b""
    etag: str = ""
    marker: bool = False
    null: bool = True
    metadata: tuple[tuple[str, str], ...] = ()
    parts: tuple[int, ...] = ()
    id: str = field(default="null", compare=False)


@dataclass
class Upload:
    key: str
    parts: dict[int, bytes] = field(default_factory=dict)
    metadata: tuple[tuple[str, str], ...] = ()


@dataclass
class Bucket:
    versioning: str = ""
    keys: dict[str, list[Version]] = field(default_factory=dict)  # newest first
    uploads: dict[str, Upload] = field(default_factory=dict)


def etag_of(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


class Model:
    def __init__(self) -> None:
        self.buckets: dict[str, Bucket] = {}

    def copy(self) -> Model:
        return copy.deepcopy(self)

    def bucket(self, name: str) -> Bucket:
        if name not in self.buckets:
            raise errors.BucketNotFound(name)
        return self.buckets[name]

    def create_bucket(self, name: str, versioning: str = "") -> None:
        if name in self.buckets:
            raise errors.BucketExists(name)
        self.buckets[name] = Bucket(versioning)

    def delete_bucket(self, name: str) -> None:
        if self.bucket(name).keys:
            raise errors.BucketNotEmpty(name)
        del self.buckets[name]

    def set_versioning(self, name: str, versioning: str) -> None:
        self.bucket(name).versioning = versioning

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
        versions = about.keys.setdefault(key, [])
        if version.null:
            versions[:] = [each for each in versions if not each.null]
        versions.insert(0, version)

    def put(self, bucket: str, key: str, version: Version, conditions: Conditions | None = None) -> None:
        self.check(self.current(bucket, key), conditions, bucket, key)
        self._push(bucket, key, version)

    def delete(
        self, bucket: str, key: str, version_id: str | None = None, conditions: Conditions | None = None
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
        self.put(bucket, key, found, conditions)
        return found

    def rename(self, bucket: str, old: str, new: str) -> None:
        keys = self.bucket(bucket).keys
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

    def set_id(self, bucket: str, key: str, version_id: str) -> None:
        """What the store called the newest version of a key."""
        versions = self.bucket(bucket).keys[key]
        versions[0] = replace(versions[0], id=version_id)

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
        self._push(bucket, key, Version(b"".join(bodies), etag, metadata=upload.metadata, parts=sizes))
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
                {key: tuple(versions) for key, versions in bucket.keys.items()},
                sorted(
                    (
                        upload.key,
                        upload.metadata,
                        tuple((number, etag_of(data)) for number, data in sorted(upload.parts.items())),
                    )
                    for upload in bucket.uploads.values()
                ),
            )
            for name, bucket in self.buckets.items()
        }
