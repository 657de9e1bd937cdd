"""Listings: objects, versions and uploads, in byte order of keys, rolled up at a delimiter.

Must not know: how records look on disk (uploads' details come through a callback), S3's XML.

Invariants:
* A page is a view of one moment; the next page goes on strictly behind the last item, whatever changed meanwhile.
* A common prefix is emitted only when it is greater than the marker, so no page repeats one.
* With "/" as the delimiter only what is returned is touched; any other delimiter skips over what it rolled up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cordwood.engine import namespace
from cordwood.engine.clock import milliseconds
from cordwood.engine.errors import Corrupt
from cordwood.engine.format import CHECKSUM_ALGORITHMS, STORAGE_CLASSES
from cordwood.engine.index import Txn
from cordwood.engine.model import (
    Listing,
    ObjectEntry,
    UploadInfo,
    UploadListing,
    VersionListing,
    etag_of,
    version_clock,
    version_id_of,
)
from cordwood.engine.operations import find_version
from cordwood.engine.rows import (
    BucketRow,
    ObjectRow,
    RowFlag,
    UploadRow,
    id_key,
)
from cordwood.engine.uploads import upload_id_of

_ALGORITHMS_OF_BITS: dict[int, tuple[str, ...]] = {0: ()}


def _algorithms(bits: int) -> tuple[str, ...]:
    known = _ALGORITHMS_OF_BITS.get(bits)
    if known is None:
        known = tuple(name for number, name in enumerate(CHECKSUM_ALGORITHMS) if bits >> number & 1)
        _ALGORITHMS_OF_BITS[bits] = known
    return known


def _entry(key: str, row: ObjectRow, *, is_latest: bool = True) -> ObjectEntry:
    flags, storage_class, algorithms, parts_count, _, _, _, clock, size, md5, _, _ = row
    checksum_type = (
        "COMPOSITE" if flags & RowFlag.COMPOSITE else "FULL_OBJECT" if flags & RowFlag.FULL_OBJECT else ""
    )
    if storage_class >= len(STORAGE_CLASSES):
        raise Corrupt(
            f"the index row of key {key!r} has no such storage class; `cordwood rebuild` makes a new index"
        )
    return ObjectEntry(
        key,
        size,
        etag_of(md5, parts_count),
        milliseconds(clock),
        STORAGE_CLASSES[storage_class],
        _algorithms(algorithms),
        checksum_type,
        version_id_of(clock, is_null=bool(flags & RowFlag.NULL)),
        is_latest,
        bool(flags & RowFlag.MARKER),
    )


def _roll_up(
    txn: Txn, root: int, prefix: bytes, delimiter: bytes, start: bytes, *, hide_markers: bool
) -> Iterator[tuple[bytes, bytes | None]]:
    """Keys with their rows, and common prefixes with None, in order; all are >= `start`."""
    if delimiter in (b"", b"/"):
        for path, row in namespace.walk(txn, root, prefix=prefix, start=start, collapse=bool(delimiter)):
            if isinstance(row, bytes):
                if not (hide_markers and row[1] & RowFlag.MARKER):
                    yield path, row
            elif not hide_markers or namespace.has_live_object(txn, row):
                yield path, None
        return
    position: bytes | None = start
    while position is not None:
        seek, position = position, None
        for path, row in namespace.walk(txn, root, prefix=prefix, start=seek):
            assert isinstance(row, bytes)
            if hide_markers and row[1] & RowFlag.MARKER:
                continue
            at = path.find(delimiter, len(prefix))
            if at < 0:
                yield path, row
                continue
            common = path[: at + len(delimiter)]
            if common >= start:
                yield common, None
            position = namespace.successor(common)
            break


def list_objects(
    txn: Txn, bucket: BucketRow, prefix: bytes, delimiter: bytes, start_after: bytes, max_keys: int
) -> Listing:
    objects: list[ObjectEntry] = []
    prefixes: list[str] = []
    last: str | None = None
    if max_keys <= 0:
        return Listing(objects, prefixes, False, None)
    start = start_after + b"\0" if start_after else b""
    items = _roll_up(
        txn, bucket.head.bucket, prefix, delimiter, start, hide_markers=bool(bucket.head.versioning)
    )
    for count, (path, row) in enumerate(items):
        if count == max_keys:
            return Listing(objects, prefixes, True, last)
        last = path.decode()
        if row is None:
            prefixes.append(last)
        else:
            objects.append(_entry(last, ObjectRow.unpack(row)))
    return Listing(objects, prefixes, False, None)


def list_versions(
    txn: Txn,
    bucket: BucketRow,
    prefix: bytes,
    delimiter: bytes,
    key_marker: bytes,
    version_id_marker: str,
    max_keys: int,
) -> VersionListing:
    """Versions and delete markers: keys in byte order, of each key the newest first."""
    entries: list[ObjectEntry] = []
    prefixes: list[str] = []
    last_key: str | None = None
    last_version: str | None = None
    if max_keys <= 0:
        return VersionListing(entries, prefixes, False, None, None)
    start = key_marker if version_id_marker and key_marker else key_marker + b"\0" if key_marker else b""
    count = 0
    for path, packed in _roll_up(txn, bucket.head.bucket, prefix, delimiter, start, hide_markers=False):
        key = path.decode()
        if packed is None:
            if path <= key_marker:
                continue
            if count == max_keys:
                return VersionListing(entries, prefixes, True, last_key, last_version)
            count += 1
            prefixes.append(key)
            last_key, last_version = key, None
            continue
        current = ObjectRow.unpack(packed)
        below = _clock_of_marker(txn, current, version_id_marker) if path == key_marker else None
        for number, row in enumerate(_versions_of(txn, current)):
            if below is not None and row.clock >= below:
                continue
            if count == max_keys:
                return VersionListing(entries, prefixes, True, last_key, last_version)
            count += 1
            entry = _entry(key, row, is_latest=number == 0)
            entries.append(entry)
            last_key, last_version = key, entry.version_id
    return VersionListing(entries, prefixes, False, None, None)


def _versions_of(txn: Txn, current: ObjectRow) -> Iterator[ObjectRow]:
    yield current
    if current.group:
        for _, row in txn.items(id_key(current.group), txn.tables.versions):
            yield ObjectRow.unpack(row)


def _clock_of_marker(txn: Txn, current: ObjectRow, version_id: str) -> int:
    """The clock that versions must be older than. A null version that is gone meanwhile lets nothing be repeated."""
    clock = version_clock(version_id)
    if clock:
        return clock
    row = find_version(txn, current, clock)
    return row.clock if row is not None else 0


def list_uploads(
    txn: Txn,
    bucket: BucketRow,
    prefix: bytes,
    delimiter: bytes,
    key_marker: bytes,
    upload_id_marker: str,
    max_uploads: int,
    describe: Callable[[UploadRow], UploadInfo],
) -> UploadListing:
    """Open uploads by key, and of one key by age. All of a bucket's upload rows are looked at for each page."""
    found: list[tuple[bytes, str, UploadRow]] = []
    for key, packed in txn.items(id_key(bucket.head.bucket), txn.tables.uploads):
        row = UploadRow.unpack(packed)
        if row.key.startswith(prefix):
            found.append((row.key, upload_id_of(int.from_bytes(key[8:], "big"), row.secret), row))
    found.sort(key=lambda item: item[:2])
    uploads: list[UploadInfo] = []
    prefixes: list[str] = []
    last_key: str | None = None
    last_upload: str | None = None
    for key, upload_id, row in found:
        at = key.find(delimiter, len(prefix)) if delimiter else -1
        common = key[: at + len(delimiter)].decode() if at >= 0 else None
        if common is not None:
            if common.encode() <= key_marker or (prefixes and prefixes[-1] == common):
                continue
        elif not _is_behind(key, upload_id, key_marker, upload_id_marker):
            continue
        if len(uploads) + len(prefixes) >= max_uploads:
            return UploadListing(uploads, prefixes, max_uploads > 0, last_key, last_upload)
        if common is not None:
            prefixes.append(common)
            last_key, last_upload = common, None
        else:
            uploads.append(describe(row))
            last_key, last_upload = key.decode(), upload_id
    return UploadListing(uploads, prefixes, False, None, None)


def _is_behind(key: bytes, upload_id: str, key_marker: bytes, upload_id_marker: str) -> bool:
    """Whether an upload comes after the markers; without an upload id the marker stands for the whole key."""
    if not key_marker or key > key_marker:
        return True
    return key == key_marker and bool(upload_id_marker) and upload_id > upload_id_marker
