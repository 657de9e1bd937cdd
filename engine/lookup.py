"""From a key to its record: the version that is asked for, the preconditions of a read, the bytes selected.

Must not know: how bytes of large objects are fetched (reader.py), anything about writes.

Invariants:
* Preconditions are evaluated on the index row, before a record is read.
* The record that is read must be the one the index meant: its type, clock and name are compared, its CRCs checked.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from cordwood.engine import namespace
from cordwood.engine.clock import milliseconds
from cordwood.engine.core import MOVED_RETRIES, Core, Moved
from cordwood.engine.errors import (
    Corrupt,
    DeleteMarkerFound,
    InvalidPart,
    InvalidRange,
    KeyNotFound,
    NotModified,
    PreconditionFailed,
    VersionNotFound,
    WouldBlock,
)
from cordwood.engine.format import AttrsHead, Layout, Manifest, ObjectHead, RecordType, decode_head
from cordwood.engine.index import Txn
from cordwood.engine.model import Conditions, ObjectInfo, lookup_key, version_clock, version_id_of
from cordwood.engine.operations import find_version, object_info, require_bucket, row_etag
from cordwood.engine.reader import ObjectReader
from cordwood.engine.rows import AttrsRow, ObjectRow, RowFlag

Range = tuple[int | None, int | None]
_OBJECT = int(RecordType.OBJECT)
_INLINE = int(Layout.INLINE)
_SMALL_RECORD = 1024  # up to this size the whole record is read even where only its head is wanted


class Found(NamedTuple):
    """A version's metadata, the body of its record (None where it was not wanted), and the version's clock with that of
    the last change of its attributes (0: none)."""

    info: ObjectInfo
    layout: int
    body: bytes | None
    clock: int = 0
    attrs_clock: int = 0


_Target = tuple[ObjectRow, bool, tuple[int, bytes], AttrsRow | None]


def open_object(
    core: Core,
    bucket: str,
    key: str,
    version_id: str | None,
    conditions: Conditions | None,
    wanted: Range | None,
    part_number: int | None,
    *,
    wait: bool,
) -> ObjectReader:
    """A reader on the selected bytes; see `Store.get`."""
    info, layout, body, *_ = find(core, bucket, key, version_id, conditions, want_body=True, wait=wait)
    assert body is not None
    inline = body if layout == _INLINE else None
    if inline is not None and len(inline) != info.size + info.overhead:
        raise Corrupt(
            f"key {key!r} of bucket {bucket!r}: its record holds {len(inline)} bytes and speaks of {info.size}"
        )
    manifest = Manifest(body, f"object {key!r}", info.overhead) if inline is None else None
    if part_number is not None:
        start, length = _part_range(info, manifest, part_number)
    else:
        start, length = _byte_range(info.size, wanted)
    return ObjectReader(core, info, inline, manifest, start, length)


def find(
    core: Core,
    bucket: str,
    key: str,
    version_id: str | None,
    conditions: Conditions | None,
    *,
    want_body: bool,
    wait: bool,
) -> Found:
    """Looks a version up and reads its record; the errors are those of `Store.get`."""
    raw = lookup_key(key)
    for _ in range(MOVED_RETRIES):
        row, is_latest, place, about = _find_row(core, bucket, raw, key, version_id)
        clock = row.clock
        if row.flags & RowFlag.MARKER:
            marker = version_id_of(clock, is_null=bool(row.flags & RowFlag.NULL))
            raise DeleteMarkerFound(bucket, key, marker, is_latest=is_latest)
        is_modified = conditions is None or _check_read(conditions, row, bucket, key)
        try:
            head, body = _read_object(core, row, place, want_body=want_body and is_modified, wait=wait)
            changed = _read_attrs(core, row, about, wait=wait) if about is not None and about.clock else None
        except Moved:
            continue
        info = object_info(bucket, key, head, clock, is_latest=is_latest)
        if changed is not None:
            info = msgspec.structs.replace(info, attrs=changed.attrs)
        if not is_modified:
            raise NotModified(info)
        return Found(info, head.layout, body, clock, about.clock if about is not None else 0)
    raise Corrupt(f"a volume that the index names is missing; it holds key {key!r} of bucket {bucket!r}")


def _find_row(core: Core, bucket: str, raw: bytes, key: str, version_id: str | None) -> _Target:
    """The version's row, whether it is the newest, the directory and name that its record must have, its AttrsRow."""
    txn = core.index.read()
    try:
        place = namespace.resolve(txn, require_bucket(txn, bucket).head.bucket, raw)
        packed = namespace.get_entry(txn, *place) if place is not None else None
        newest = ObjectRow.unpack(packed) if packed is not None else None
        if version_id is None:
            if newest is None or place is None:
                raise KeyNotFound(bucket, key)
            return newest, True, place, _about(txn, newest)
        row = find_version(txn, newest, version_clock(version_id))
        if row is None or newest is None or place is None:
            raise VersionNotFound(bucket, key, version_id)
        return row, row.clock == newest.clock, place, _about(txn, row)
    finally:
        txn.end()


def _about(txn: Txn, row: ObjectRow) -> AttrsRow | None:
    return txn.attrs(row.clock) if row.flags & RowFlag.NOTED else None


def _read_attrs(core: Core, row: ObjectRow, about: AttrsRow, *, wait: bool) -> AttrsHead:
    """The attributes that took the place of those in the version's record."""
    file = core.volume(about.place.volume)
    record = file.read_record(about.place, cached_only=not wait)
    if record is None:
        raise WouldBlock("the object's attributes are not in memory")
    where = file.where(about.place.offset)
    head = decode_head(record.header.type, record.head, where)
    if not isinstance(head, AttrsHead) or (record.header.clock, head.version) != (about.clock, row.clock):
        raise Corrupt(f"{where}: another record stands where the index expects an object's attributes")
    return head


def _read_object(
    core: Core, row: ObjectRow, expected: tuple[int, bytes], *, want_body: bool, wait: bool
) -> tuple[ObjectHead, bytes | None]:
    file = core.volume(row.volume)
    place = row.place
    if want_body or place.length <= _SMALL_RECORD:
        record = file.read_record(place, cached_only=not wait)
    else:
        record = file.read_head(place) if wait else file.read_head_cached(place)
    if record is None:
        raise WouldBlock("the object's record is not in memory")
    header, head_bytes, body = record
    if header.type != _OBJECT or header.clock != row.clock:
        raise Corrupt(f"{place}: another record stands where the index expects an object")
    head: ObjectHead = decode_head(header.type, head_bytes, place)
    if (head.directory, head.name) != expected:
        raise Corrupt(
            f"{place}: another record stands where the index expects an object: the index is damaged"
        )
    return head, body


def _check_read(conditions: Conditions, row: ObjectRow, bucket: str, key: str) -> bool:
    """Evaluates a read's preconditions in the order of RFC 9110 section 13.2.2; False means "not modified"."""
    etag = row_etag(row)
    modified_s = milliseconds(row.clock) // 1000
    if conditions.if_match:
        if "*" not in conditions.if_match and etag not in conditions.if_match:
            raise PreconditionFailed("If-Match", bucket, key)
    elif conditions.if_unmodified_since_s is not None and modified_s > conditions.if_unmodified_since_s:
        raise PreconditionFailed("If-Unmodified-Since", bucket, key)
    if conditions.if_none_match:
        return "*" not in conditions.if_none_match and etag not in conditions.if_none_match
    return conditions.if_modified_since_s is None or modified_s > conditions.if_modified_since_s


def _byte_range(size: int, wanted: Range | None) -> tuple[int, int]:
    """(start, length) of a range as HTTP means it (RFC 9110 section 14.1.2)."""
    if wanted is None:
        return 0, size
    first, last = wanted
    if first is None:
        if not last or not size:
            raise InvalidRange(size)
        return max(0, size - last), min(last, size)
    if first < 0 or first >= size or (last is not None and last < first):
        raise InvalidRange(size)
    return first, (size if last is None else min(last + 1, size)) - first


def _part_range(info: ObjectInfo, manifest: Manifest | None, part_number: int) -> tuple[int, int]:
    parts = manifest.parts() if manifest is not None else []
    if not parts:
        if part_number == 1:
            return 0, info.size
        raise InvalidPart(part_number, f"key {info.key!r} has 1 part")
    if not 1 <= part_number <= len(parts):
        raise InvalidPart(part_number, f"key {info.key!r} has {len(parts)} parts")
    return sum(part.size for part in parts[: part_number - 1]), parts[part_number - 1].size
