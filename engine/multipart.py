"""The store's calls about multipart uploads.

Must not know: how a store is opened or closed (store.py), how uploads are decided (uploads.py).

Invariant: a call that lost a race against compaction or another part is made again, from what stands there by then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from cordwood.engine import copying, listing, lookup
from cordwood.engine.cipher import Cipher
from cordwood.engine.commit import Operation
from cordwood.engine.core import MOVED_RETRIES, Core, Moved
from cordwood.engine.edits import retrying
from cordwood.engine.errors import Corrupt, InvalidArgument, KeyNotFound, UploadNotFound
from cordwood.engine.format import UploadHead, decode_head
from cordwood.engine.index import Txn
from cordwood.engine.model import (
    Conditions,
    ObjectInfo,
    PartInfo,
    PartListing,
    UploadInfo,
    UploadListing,
    encode_key,
    encode_text,
    lookup_key,
)
from cordwood.engine.operations import Description, check_storage_class, require_bucket
from cordwood.engine.rows import UploadRow
from cordwood.engine.uploads import AbortUpload, CreateUpload, require_upload, upload_info
from cordwood.engine.volume import Place
from cordwood.engine.writer import PartWriter, describe

PART_NUMBER_MAX = 10_000
MIN_PART_SIZE = 5 << 20

T = TypeVar("T")


class Multipart:
    """The part of `Store` that this module holds. What raises NotImplementedError here is what it needs of the rest."""

    _core: Core

    def _read(self) -> AbstractContextManager[Txn]:
        raise NotImplementedError

    def _execute(self, operation: Operation[T]) -> T:
        raise NotImplementedError

    def create_upload(
        self,
        bucket: str,
        key: str,
        *,
        headers: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        storage_class: str = "STANDARD",
        attrs: Mapping[str, Any] | None = None,
        checksum_algorithm: str = "",
        checksum_type: str = "",
    ) -> UploadInfo:
        """Begins a multipart upload."""
        check_storage_class(storage_class)
        about = describe(headers, metadata, storage_class, attrs)
        about.checksum_type = checksum_type
        return self._execute(CreateUpload(bucket, encode_key(key), about, checksum_algorithm))

    def head_upload(self, bucket: str, key: str, upload_id: str) -> UploadInfo:
        """What was said when the upload began. UploadNotFound, also for the id of another key."""
        raw = lookup_key(key)
        for _ in range(MOVED_RETRIES):
            with self._read() as txn:
                _, _, row = require_upload(txn, bucket, raw, upload_id)
            try:
                return self._upload_info(bucket, row)
            except Moved:
                continue
        raise Corrupt(f"volume {row.place.volume} is missing; it holds upload {upload_id}")

    def part_writer(
        self, bucket: str, key: str, upload_id: str, part_number: int, *, cipher: Cipher | None = None
    ) -> PartWriter:
        """A writer for one part (1 to 10,000); committing it replaces an earlier part of that number."""
        _check_part_number(part_number)
        raw = lookup_key(key)
        with self._read() as txn:
            require_upload(txn, bucket, raw, upload_id)
        return PartWriter(self._core, bucket, raw, upload_id, part_number, cipher)

    def copy_part(
        self,
        bucket: str,
        key: str,
        upload_id: str,
        part_number: int,
        src_bucket: str,
        src_key: str,
        *,
        src_version_id: str | None = None,
        src_conditions: Conditions | None = None,
        range: tuple[int, int] | None = None,
        checksums: Mapping[str, str] | None = None,
    ) -> PartInfo:
        """Makes a part from (a range of) an object. Chunks that lie wholly within the range are shared."""

        def attempt() -> PartInfo:
            writer = self.part_writer(bucket, key, upload_id, part_number)
            with lookup.open_object(
                self._core, src_bucket, src_key, src_version_id, src_conditions, range, None, wait=True
            ) as reader:
                md5 = copying.copy_bytes(reader, writer)
                return writer.commit(checksums=checksums, md5=md5)

        return retrying(attempt)

    def list_parts(
        self, bucket: str, key: str, upload_id: str, *, after: int = 0, max_parts: int = 1000
    ) -> PartListing:
        """Parts with a number greater than `after`, in order."""
        parts: list[PartInfo] = []
        with self._read() as txn:
            _, upload, _ = require_upload(txn, bucket, lookup_key(key), upload_id)
            for number, row in txn.parts(upload, min(max(after, 0), 0xFFFE)):
                if len(parts) >= max_parts:
                    return PartListing(parts, max_parts > 0, parts[-1].number if parts else after)
                parts.append(copying.part_info(number, row))
        return PartListing(parts, False, None)

    def list_uploads(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        key_marker: str = "",
        upload_id_marker: str = "",
        max_uploads: int = 1000,
    ) -> UploadListing:
        """Uploads that are neither completed nor aborted."""
        for _ in range(MOVED_RETRIES):
            try:
                with self._read() as txn:
                    return listing.list_uploads(
                        txn,
                        require_bucket(txn, bucket),
                        encode_text(prefix),
                        encode_text(delimiter),
                        encode_text(key_marker),
                        upload_id_marker,
                        max_uploads,
                        lambda row: self._upload_info(bucket, row),
                    )
            except Moved:
                continue
        raise Corrupt(f"a volume that holds uploads of bucket {bucket!r} is missing")

    def complete_upload(
        self,
        bucket: str,
        key: str,
        upload_id: str,
        parts: Sequence[tuple[int, str]],
        *,
        checksums: Mapping[str, str] | None = None,
        checksum_type: str = "",
        attrs: Mapping[str, Any] | None = None,
        conditions: Conditions | None = None,
        min_part_size: int = MIN_PART_SIZE,
    ) -> ObjectInfo:
        """Makes one object of the parts (number, bare ETag), copying no byte. Asked again, it answers the same.

        InvalidPart, InvalidPartOrder, EntityTooSmall, UploadNotFound, PreconditionFailed.
        """
        raw = lookup_key(key)

        def attempt() -> ObjectInfo:
            about = self.head_upload(bucket, key, upload_id)
            description = Description(
                about.headers,
                about.metadata,
                checksums or {},
                checksum_type,
                about.storage_class,
                {**about.attrs, **(attrs or {})},
            )
            with self._read() as txn:
                _, upload, _ = require_upload(txn, bucket, raw, upload_id)
                rows = copying.chosen_parts(txn, upload, parts, min_part_size)
            operation = copying.complete_operation(
                self._core, bucket, raw, upload, upload_id, rows, description, conditions
            )
            return self._execute(operation)

        try:
            return retrying(attempt)
        except UploadNotFound:  # or another call has completed it, earlier or this very moment
            return self._completed_before(bucket, key, upload_id)

    def abort_upload(
        self, bucket: str, key: str, upload_id: str, *, if_initiated_ms: int | None = None
    ) -> None:
        """Ends an upload and forgets its parts; only one of that second if `if_initiated_ms` is given. UploadNotFound,
        PreconditionFailed."""
        self._execute(AbortUpload(bucket, lookup_key(key), upload_id, if_initiated_ms))

    def _upload_info(self, bucket: str, row: UploadRow) -> UploadInfo:
        place: Place = row.place
        record = self._core.volume(place.volume).read_head(place)
        head: UploadHead = decode_head(record.header.type, record.head, f"upload in volume {place.volume}")
        return upload_info(bucket, head, row.clock)

    def _completed_before(self, bucket: str, key: str, upload_id: str) -> ObjectInfo:
        try:
            info = lookup.find(self._core, bucket, key, None, None, want_body=False, wait=True).info
        except KeyNotFound:
            raise UploadNotFound(bucket, key, upload_id) from None
        if not info.upload or f"{info.upload:016x}" != upload_id[:16]:
            raise UploadNotFound(bucket, key, upload_id)
        return info


def _check_part_number(part_number: int) -> None:
    if not 1 <= part_number <= PART_NUMBER_MAX:
        raise InvalidArgument(f"part number {part_number} is not between 1 and {PART_NUMBER_MAX}")
