"""The values that the store hands out and takes in: frozen, and free of anything about disks.

Must not know: records, rows, LMDB.

Invariants: ETags are bare (no quotes); times are Unix milliseconds; header and metadata names are lower-case.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from cordwood.engine.errors import InvalidArgument, InvalidBucketName, InvalidKey, KeyTooLong

NULL_VERSION = "null"
_CLOCK_DIGITS = re.compile(r"[0-9a-f]{16}")  # int() alone would also take signs, spaces and underscores
KEY_SIZE_MAX = 1024


class _Value(msgspec.Struct, frozen=True, gc=False):
    """A struct of msgspec is made ten times as fast as a frozen dataclass; a listing makes a thousand of them."""


class BucketInfo(_Value, frozen=True):
    """`versioning` is "", "Enabled" or "Suspended". `attrs` is free per-bucket configuration."""

    name: str
    id: int
    created_ms: int
    versioning: str = ""
    attrs: Mapping[str, Any] = {}


class ObjectInfo(_Value, frozen=True):
    """One version of an object with all its metadata.

    `headers` are S3's system headers by HTTP name; `metadata` the user's, without the x-amz-meta- prefix.
    `checksums` maps an algorithm as S3 spells it ("CRC32C") to its header value.
    `upload` is the id of the multipart upload it came from, or 0.
    `overhead` is not 0 when the bytes are encrypted, and can only be read with the cipher that wrote them.
    """

    bucket: str
    key: str
    size: int
    etag: str
    version_id: str
    modified_ms: int
    is_delete_marker: bool = False
    is_latest: bool = True
    headers: Mapping[str, str] = {}
    metadata: Mapping[str, str] = {}
    checksums: Mapping[str, str] = {}
    checksum_type: str = ""
    storage_class: str = "STANDARD"
    parts_count: int = 0
    attrs: Mapping[str, Any] = {}
    upload: int = 0
    overhead: int = 0

    @property
    def is_encrypted(self) -> bool:
        return self.overhead > 0


class ObjectEntry(_Value, frozen=True):
    """What a listing tells of one version, read from the index alone."""

    key: str
    size: int
    etag: str
    modified_ms: int
    storage_class: str
    checksum_algorithms: tuple[str, ...]
    checksum_type: str
    version_id: str
    is_latest: bool
    is_delete_marker: bool


class Listing(_Value, frozen=True):
    """Objects and common prefixes, each in byte order. `next` is the last item of both when `truncated`."""

    objects: list[ObjectEntry]
    prefixes: list[str]
    truncated: bool
    next: str | None


class VersionListing(_Value, frozen=True):
    entries: list[ObjectEntry]
    prefixes: list[str]
    truncated: bool
    next_key_marker: str | None
    next_version_id_marker: str | None


class DeleteResult(_Value, frozen=True):
    """`version_id` is that of the version removed or of the delete marker made; None where there are no versions."""

    version_id: str | None
    is_delete_marker: bool
    existed: bool


class UploadInfo(_Value, frozen=True):
    bucket: str
    key: str
    upload_id: str
    initiated_ms: int
    headers: Mapping[str, str] = {}
    metadata: Mapping[str, str] = {}
    storage_class: str = "STANDARD"
    attrs: Mapping[str, Any] = {}
    checksum_algorithm: str = ""
    checksum_type: str = ""


class PartInfo(_Value, frozen=True):
    number: int
    size: int
    etag: str
    modified_ms: int
    checksums: Mapping[str, str] = {}


class PartListing(_Value, frozen=True):
    parts: list[PartInfo]
    truncated: bool
    next: int | None


class UploadListing(_Value, frozen=True):
    uploads: list[UploadInfo]
    prefixes: list[str]
    truncated: bool
    next_key_marker: str | None
    next_upload_id_marker: str | None


class Conditions(_Value, frozen=True):
    """Preconditions of a read, write, copy or delete (RFC 9110 section 13; S3's conditional requests).

    `if_size` and `if_modified_ms` are DeleteObject's x-amz-if-match-size and x-amz-if-match-last-modified-time,
    the latter compared to the second. `if_noncurrent`: a version is only deleted while it is not the newest.
    """

    if_match: tuple[str, ...] = ()
    if_none_match: tuple[str, ...] = ()
    if_modified_since_s: float | None = None
    if_unmodified_since_s: float | None = None
    if_size: int | None = None
    if_modified_ms: int | None = None
    if_noncurrent: bool = False


def encode_key(key: str) -> bytes:
    """A key as UTF-8, refused when it is empty, not encodable or longer than 1,024 bytes."""
    raw = lookup_key(key)
    if len(raw) > KEY_SIZE_MAX:
        raise KeyTooLong(len(raw), KEY_SIZE_MAX)
    return raw


def lookup_key(key: str) -> bytes:
    """Like `encode_key` without the length limit: a rename may have made a key that no write could."""
    if not key:
        raise InvalidKey("the key is empty")
    try:
        return key.encode()
    except UnicodeEncodeError as error:
        raise InvalidKey(f"the key cannot be encoded as UTF-8: {error}") from None


def version_id_of(clock: int, *, is_null: bool) -> str:
    """S3's version id of a version: "null", or 16 hexadecimal digits that sort by age."""
    return NULL_VERSION if is_null else f"{clock:016x}"


def version_clock(version_id: str) -> int | None:
    """The clock behind a version id; 0 for "null", None when the id was never one of ours."""
    if version_id == NULL_VERSION:
        return 0
    return int(version_id, 16) or None if _CLOCK_DIGITS.fullmatch(version_id) else None


def etag_of(md5: bytes, parts_count: int) -> str:
    """The bare ETag: hexadecimal MD5, with "-N" for a multipart object of N parts."""
    return f"{md5.hex()}-{parts_count}" if parts_count else md5.hex()


def encode_text(text: str) -> bytes:
    """A prefix, delimiter or marker of a listing as UTF-8."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"{text!r} cannot be encoded as UTF-8: {error}") from None


_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_IP_ADDRESS = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+")
_RESERVED_PREFIXES = ("xn--", "sthree-", "amzn-s3-demo-")
_RESERVED_SUFFIXES = ("-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3")


def check_bucket_name(name: str) -> None:
    """S3's rules for general purpose bucket names (Amazon S3 User Guide, "General purpose bucket naming rules")."""
    if not 3 <= len(name) <= 63:
        raise InvalidBucketName(name, "it must be 3 to 63 characters long")
    if not _BUCKET_NAME.fullmatch(name):
        raise InvalidBucketName(
            name, "only a-z, 0-9, dots and hyphens are allowed, and a letter or digit at both ends"
        )
    if ".." in name:
        raise InvalidBucketName(name, "two dots may not stand side by side")
    if _IP_ADDRESS.fullmatch(name):
        raise InvalidBucketName(name, "it may not look like an IP address")
    if name.startswith(_RESERVED_PREFIXES) or name.endswith(_RESERVED_SUFFIXES):
        raise InvalidBucketName(name, "this prefix or suffix is reserved")
