"""One tree of typed errors for everything the engine can refuse or find broken.

Must not know: HTTP, S3 error codes, how an error is shown. The server maps these classes to S3's codes.

Invariants: every error that comes from a disk, a caller or a socket is one of these; its text names the thing
(store, volume, offset, bucket, key) and, where there is one, the way out. `assert` is left for our own mistakes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cordwood.engine.model import ObjectInfo


class CordwoodError(Exception):
    """Base of every error the engine raises on purpose."""


# --- the store as a whole -------------------------------------------------------------------------------------


class StoreNotFound(CordwoodError):
    """The directory holds no store, and creating one was not asked for."""


class UnsupportedFormat(CordwoodError):
    """The directory was written by another format version; nothing in it was touched."""


class Busy(CordwoodError):
    """Another opener holds what this one needs alone."""


class Closed(CordwoodError):
    """The store was closed, or belongs to another process after a fork."""


class ReadOnly(CordwoodError):
    """The store takes no writes: opened so, or a sync failed and its outcome is unknown."""


class Full(CordwoodError):
    """The disk or a quota is exhausted; nothing of the refused write is visible."""


class Corrupt(CordwoodError):
    """Bytes on disk are not what was written. Reads name the volume and offset; other data is unaffected."""


class Conflict(CordwoodError):
    """A chunk this write relied on went away meanwhile; writing the same object again succeeds."""


class WouldBlock(CordwoodError):
    """A call that was told not to wait would have to wait for the disk; call again where waiting is allowed."""


# --- things that are not there --------------------------------------------------------------------------------


class NotFound(CordwoodError):
    """Base of the errors for names that lead nowhere."""


class BucketNotFound(NotFound):
    def __init__(self, bucket: str) -> None:
        super().__init__(f"bucket {bucket!r} does not exist")
        self.bucket = bucket


class KeyNotFound(NotFound):
    def __init__(self, bucket: str, key: str) -> None:
        super().__init__(f"key {key!r} does not exist in bucket {bucket!r}")
        self.bucket = bucket
        self.key = key


class DeleteMarkerFound(KeyNotFound):
    """The version asked for is a delete marker (`version_id` names it)."""

    def __init__(self, bucket: str, key: str, version_id: str, *, is_latest: bool) -> None:
        super().__init__(bucket, key)
        self.version_id = version_id
        self.is_latest = is_latest


class VersionNotFound(NotFound):
    def __init__(self, bucket: str, key: str, version_id: str) -> None:
        super().__init__(f"key {key!r} in bucket {bucket!r} has no version {version_id!r}")
        self.bucket = bucket
        self.key = key
        self.version_id = version_id


class UploadNotFound(NotFound):
    def __init__(self, bucket: str, key: str, upload_id: str) -> None:
        super().__init__(f"bucket {bucket!r} has no multipart upload {upload_id!r} for key {key!r}")
        self.bucket = bucket
        self.key = key
        self.upload_id = upload_id


# --- states that forbid the request ---------------------------------------------------------------------------


class BucketExists(CordwoodError):
    def __init__(self, bucket: str) -> None:
        super().__init__(f"bucket {bucket!r} exists already")
        self.bucket = bucket


class BucketNotEmpty(CordwoodError):
    def __init__(self, bucket: str) -> None:
        super().__init__(f"bucket {bucket!r} still holds objects or versions; remove them first")
        self.bucket = bucket


class Locked(CordwoodError):
    """A version is under object lock: it may not be removed, or its retention not be changed so."""

    def __init__(self, bucket: str, key: str, version_id: str) -> None:
        super().__init__(f"version {version_id!r} of key {key!r} in bucket {bucket!r} is locked")
        self.bucket = bucket
        self.key = key
        self.version_id = version_id


class DestinationExists(CordwoodError):
    """A rename would land on something that is there already."""


class PreconditionFailed(CordwoodError):
    """`condition` is the name of the one that failed: "If-Match", "If-None-Match", ..."""

    def __init__(self, condition: str, bucket: str, key: str) -> None:
        super().__init__(f"{condition} does not hold for key {key!r} in bucket {bucket!r}")
        self.condition = condition
        self.bucket = bucket
        self.key = key


class TokenReused(CordwoodError):
    """A token that names one call was given with another one."""

    def __init__(self, token: str, bucket: str, key: str) -> None:
        super().__init__(f"token {token!r} was used for another rename to key {key!r} in bucket {bucket!r}")
        self.token = token
        self.bucket = bucket
        self.key = key


class NotModified(CordwoodError):
    """A conditional read found what the caller already has; `info` is its metadata."""

    def __init__(self, info: ObjectInfo) -> None:
        super().__init__(f"key {info.key!r} in bucket {info.bucket!r} is not modified")
        self.info = info


# --- arguments ------------------------------------------------------------------------------------------------


class InvalidArgument(CordwoodError):
    """An argument is outside its documented range."""


class InvalidBucketName(InvalidArgument):
    def __init__(self, bucket: str, why: str) -> None:
        super().__init__(f"bucket name {bucket!r} is not valid: {why}")
        self.bucket = bucket


class InvalidKey(InvalidArgument):
    """The key is empty or cannot be encoded as UTF-8."""


class KeyTooLong(InvalidArgument):
    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"the key is {size} bytes of UTF-8; the limit is {limit}")
        self.size = size
        self.limit = limit


class InvalidRange(InvalidArgument):
    def __init__(self, size: int) -> None:
        super().__init__(f"the range lies outside the object, which is {size} bytes")
        self.size = size


class InvalidPart(InvalidArgument):
    def __init__(self, part_number: int, why: str) -> None:
        super().__init__(f"part {part_number}: {why}")
        self.part_number = part_number


class InvalidPartOrder(InvalidArgument):
    """The part list is not in strictly ascending order of part numbers."""


class InvalidWriteOffset(InvalidArgument):
    """An append that would leave a hole or overwrite something; `size` is what the object has."""

    def __init__(self, bucket: str, key: str, offset: int, size: int) -> None:
        super().__init__(f"offset {offset} is not the size, {size}, of key {key!r} in bucket {bucket!r}")
        self.bucket = bucket
        self.key = key
        self.offset = offset
        self.size = size


class TooManyParts(InvalidArgument):
    """An append to an object that consists of as many parts as it may; a copy of it made by a put can go on."""

    def __init__(self, bucket: str, key: str, limit: int) -> None:
        super().__init__(
            f"key {key!r} in bucket {bucket!r} has {limit} parts already; write it anew to go on"
        )
        self.bucket = bucket
        self.key = key
        self.limit = limit


class EntityTooSmall(InvalidArgument):
    def __init__(self, part_number: int, size: int, minimum: int, etag: str) -> None:
        super().__init__(f"part {part_number} is {size} bytes; every part but the last needs {minimum}")
        self.part_number = part_number
        self.size = size
        self.minimum = minimum
        self.etag = etag


class InvalidState(InvalidArgument):
    """The call does not fit the state of what it is about, or what was done before (a writer used after commit)."""
