"""From a key to its record: the version that is asked for, the preconditions of a read, the bytes selected.

Must not know: how bytes of large objects are fetched (reader.py), anything about writes.

Invariants:
* Preconditions are evaluated on the index row, before a record is read.
* The record that is read must be the one the index meant: its type, clock and name are compared, its CRCs checked.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
from crc32c import crc32c

from cordwood.engine import namespace
from cordwood.engine.clock import milliseconds
from cordwood.engine.core import MOVED_RETRIES, Core, Moved
from cordwood.engine.decoded import Entry, Memo
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
from cordwood.engine.model import Conditions, ObjectInfo, lookup_key, version_clock, version_id_of
from cordwood.engine.operations import find_version, object_info, require_bucket, row_etag
from cordwood.engine.reader import ObjectReader
from cordwood.engine.rows import AttrsRow, ObjectRow, RowFlag
from cordwood.engine.volume import HEAD_WINDOW

Range = tuple[int | None, int | None]
_OBJECT = int(RecordType.OBJECT)
_INLINE = int(Layout.INLINE)
_MARKER = int(RowFlag.MARKER)
_NOTED = int(RowFlag.NOTED)
_tuple = tuple.__new__  # what a NamedTuple's own __new__ ends in, without the call around it
_SMALL_RECORD = 1024  # up to this size the whole record is read even where only its head is wanted


class Found(NamedTuple):
    """A version's metadata, the body of its record (None where it was not wanted), and the version's clock with that of
    the last change of its attributes (0: none). `memo` is that of the entry in decoded.py that tells just this."""

    info: ObjectInfo
    layout: int
    body: bytes | None
    clock: int = 0
    attrs_clock: int = 0
    memo: Memo | None = None

    @property
    def inline(self) -> bytes | None:
        """The object's bytes, if they stand in its record and are not encrypted."""
        return self.body if self.layout == _INLINE and not self.info.overhead else None


# A version's row, plain and packed (None: it is not the newest), and what is known of its record; whether it is the
# newest; the directory and name that its record must have; its AttrsRow.
_Target = tuple[ObjectRow, bytes | None, Entry | None, bool, tuple[int, bytes], AttrsRow | None]
_Content = tuple[ObjectInfo, int, bytes | None, Memo | None]


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
    found = find(core, bucket, key, version_id, conditions, want_body=True, wait=wait)
    return open_found(core, found, wanted, part_number)


def open_found(
    core: Core, found: Found, wanted: Range | None = None, part_number: int | None = None
) -> ObjectReader:
    """The same of what was found with its body."""
    info, layout, body, *_ = found
    assert body is not None
    inline = body if layout == _INLINE else None
    manifest = Manifest(body, f"object {info.key!r}", info.overhead) if inline is None else None
    if part_number is not None:
        start, length = _part_range(info, manifest, part_number)
    elif wanted is not None:
        start, length = _byte_range(info.size, wanted)
    else:
        start, length = 0, info.size
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
        target = _find_row(core, bucket, raw, key, version_id)
        row, _, known, is_latest, _, about = target
        if row.flags & _MARKER:
            marker = version_id_of(row.clock, is_null=bool(row.flags & RowFlag.NULL))
            raise DeleteMarkerFound(bucket, key, marker, is_latest=is_latest)
        is_modified = conditions is None or _check_read(conditions, row, bucket, key)
        reads_body = want_body and is_modified
        try:
            content = None
            if known is not None:
                content = _read_known(core, known, target, bucket, key, reads_body, wait)
            if content is None:
                content = _read_object(core, target, bucket, key, reads_body, wait)
            info, layout, body, memo = content
            if about is not None and about.clock:
                info = msgspec.structs.replace(info, attrs=_read_attrs(core, row, about, wait=wait).attrs)
                memo = None
        except Moved:
            continue
        if not is_modified:
            raise NotModified(info)
        return _tuple(Found, (info, layout, body, row.clock, about.clock if about is not None else 0, memo))
    raise Corrupt(f"a volume that the index names is missing; it holds key {key!r} of bucket {bucket!r}")


def _find_row(core: Core, bucket: str, raw: bytes, key: str, version_id: str | None) -> _Target:
    txn = core.index.read()
    try:
        found = namespace.find_entry(txn, require_bucket(txn, bucket).head.bucket, raw)
        if found is None:
            raise KeyNotFound(bucket, key) if version_id is None else VersionNotFound(bucket, key, version_id)
        expected, packed = found
        known = core.decoded.get(packed)
        newest = known.row if known is not None else ObjectRow.unpack(packed)
        if version_id is None:
            about = txn.attrs(newest.clock) if newest.flags & _NOTED else None
            return newest, packed, known, True, expected, about
        row = find_version(txn, newest, version_clock(version_id))
        if row is None:
            raise VersionNotFound(bucket, key, version_id)
        about = txn.attrs(row.clock) if row.flags & _NOTED else None
        return row, None, None, row.clock == newest.clock, expected, about
    finally:
        txn.end()


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


def _read_known(
    core: Core, known: Entry, target: _Target, bucket: str, key: str, reads_body: bool, wait: bool
) -> _Content | None:
    """Reads a record again. None: it must be read in full, because what is there now is not what was there then, or its
    body was not read then."""
    volume, offset, length = known.place
    if reads_body or length <= _SMALL_RECORD:
        size, crc = length, known.whole_crc
    else:
        size, crc = known.front_size, known.front_crc
    file = core.volume(volume)
    data = file.read(offset, size) if wait else file.read_cached(offset, size)
    if data is None:
        raise WouldBlock("the object's record is not in memory")
    if crc32c(data) != crc or known.expected != target[4]:
        return None
    body = data[known.front_size : known.body_end] if reads_body else None
    info = known.info
    if info.key == key and info.bucket == bucket:
        return info, known.layout, body, known.memo
    return msgspec.structs.replace(info, bucket=bucket, key=key), known.layout, body, None


def _read_object(
    core: Core, target: _Target, bucket: str, key: str, reads_body: bool, wait: bool
) -> _Content:
    row, packed, _, is_latest, expected, _ = target
    place = row.place
    _, offset, length = place
    is_whole = reads_body or length <= _SMALL_RECORD
    size = length if is_whole else min(length, HEAD_WINDOW)
    file = core.volume(row.volume)
    data = file.read(offset, size) if wait else file.read_cached(offset, size)
    if data is None:
        raise WouldBlock("the object's record is not in memory")
    record = file.record_in(data, place) if is_whole else file.front_in(data, place)
    if record is None:  # of a head so long, nothing is kept
        if not wait:
            raise WouldBlock("the object's head is unusually long")
        record, packed = file.read_head(place), None
    header, head_bytes, body = record
    if header.type != _OBJECT or header.clock != row.clock:
        raise Corrupt(f"{place}: another record stands where the index expects an object")
    head: ObjectHead = decode_head(header.type, head_bytes, place)
    if (head.directory, head.name) != expected:
        raise Corrupt(
            f"{place}: another record stands where the index expects an object: the index is damaged"
        )
    if head.layout == _INLINE and body is not None and len(body) != head.size + head.overhead:
        raise Corrupt(
            f"key {key!r} of bucket {bucket!r}: its record holds {len(body)} bytes and speaks of {head.size}"
        )
    info = object_info(bucket, key, head, row.clock, is_latest=is_latest)
    if packed is None or not core.decoded.admits():
        return info, head.layout, body, None
    entry = Entry(row, expected, info, head.layout, header, data, is_whole=is_whole)
    core.decoded.add(packed, entry)
    return info, head.layout, body, entry.memo


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
