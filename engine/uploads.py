"""The operations of multipart uploads: begin, put a part, complete, abort.

Must not know: batches, syncs, where records go, how a part's bytes were written.

Invariants are those of operations.py; and an upload's id is good for its own key and bucket only.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from cordwood.engine.clock import milliseconds
from cordwood.engine.commit import Decision
from cordwood.engine.errors import Conflict, PreconditionFailed, UploadNotFound
from cordwood.engine.format import BucketHead, Manifest, PartHead, UploadHead
from cordwood.engine.index import Txn
from cordwood.engine.model import ObjectInfo, PartInfo, UploadInfo
from cordwood.engine.operations import (
    RECORD_OVERHEAD,
    Content,
    Description,
    PutObject,
    check_checksums,
    check_chunks,
    check_kept,
    check_lockable,
    require_bucket,
    write_chunked,
)
from cordwood.engine.rows import UploadRow

_SECRET_SIZE = 8
_UPLOAD_ID = re.compile(rf"[0-9a-f]{{{16 + 2 * _SECRET_SIZE}}}")


def upload_id_of(upload: int, secret: bytes) -> str:
    """S3's upload id: 16 digits of the upload's clock, 16 of a random secret, so that it cannot be guessed."""
    return f"{upload:016x}{secret.hex()}"


def parse_upload_id(upload_id: str) -> tuple[int, bytes] | None:
    if not _UPLOAD_ID.fullmatch(upload_id):
        return None
    return int(upload_id[:16], 16), bytes.fromhex(upload_id[16:])


def require_upload(txn: Txn, bucket: str, key: bytes, upload_id: str) -> tuple[BucketHead, int, UploadRow]:
    """The bucket, the upload's clock and its row. An id that belongs to another key or bucket is not found."""
    head = require_bucket(txn, bucket).head
    parsed = parse_upload_id(upload_id)
    row = txn.upload(head.bucket, parsed[0]) if parsed is not None else None
    if parsed is None or row is None or row.key != key or not secrets.compare_digest(row.secret, parsed[1]):
        raise UploadNotFound(bucket, key.decode(), upload_id)
    return head, parsed[0], row


def upload_info(bucket: str, head: UploadHead, clock: int) -> UploadInfo:
    return UploadInfo(
        bucket=bucket,
        key=head.key.decode(),
        upload_id=upload_id_of(head.upload, head.secret),
        initiated_ms=milliseconds(clock),
        headers=head.headers,
        metadata=head.metadata,
        storage_class=head.storage_class,
        attrs=head.attrs,
        checksum_algorithm=head.checksum_algorithm,
        checksum_type=head.checksum_type,
    )


@dataclass(slots=True)
class CreateUpload:
    bucket: str
    key: bytes
    description: Description
    checksum_algorithm: str = ""
    nested: bool = False
    frees: bool = False

    def __post_init__(self) -> None:
        self.description.check()

    def size_hint(self) -> int:
        return RECORD_OVERHEAD + len(self.key)

    def decide(self, decision: Decision) -> UploadInfo:
        bucket = require_bucket(decision.txn, self.bucket).head
        about = self.description
        check_lockable(about.attrs, bucket)
        clock = decision.tick()
        head = UploadHead(
            bucket=bucket.bucket,
            upload=clock,
            secret=secrets.token_bytes(_SECRET_SIZE),
            key=self.key,
            storage_class=about.storage_class,
            headers=dict(about.headers),
            metadata=dict(about.metadata),
            checksum_algorithm=self.checksum_algorithm,
            checksum_type=about.checksum_type,
            attrs=dict(about.attrs),
        )
        decision.write(head, clock=clock)
        return upload_info(self.bucket, head, clock)


@dataclass(slots=True)
class PutPart:
    bucket: str
    key: bytes
    upload_id: str
    number: int
    content: Content
    checksums: Mapping[str, str] = field(default_factory=dict)
    nested: bool = False
    frees: bool = False

    def __post_init__(self) -> None:
        if self.checksums:
            check_checksums(self.checksums, "")
            check_kept((self.checksums,), {})

    def size_hint(self) -> int:
        return self.content.record_size()

    def decide(self, decision: Decision) -> PartInfo:
        bucket, upload, _ = require_upload(decision.txn, self.bucket, self.key, self.upload_id)
        content = self.content
        check_chunks(decision.txn, content)
        head = PartHead(
            bucket.bucket,
            upload,
            self.number,
            content.size,
            content.md5,
            dict(self.checksums),
            content.overhead,
        )
        clock = write_chunked(decision, head, content, Manifest.pack(content.chunks))
        return PartInfo(self.number, content.size, content.md5.hex(), milliseconds(clock), head.checksums)


@dataclass(slots=True)
class CompleteUpload:
    """Publishes an upload: `put` was prepared from parts whose records had these clocks; no byte is copied."""

    put: PutObject
    upload_id: str
    part_clocks: Mapping[int, int]
    nested: bool = False
    frees: bool = False

    def size_hint(self) -> int:
        return self.put.size_hint() + RECORD_OVERHEAD

    def decide(self, decision: Decision) -> ObjectInfo:
        put = self.put
        bucket, upload, _ = require_upload(decision.txn, put.bucket, put.key, self.upload_id)
        for number, clock in self.part_clocks.items():
            row = decision.txn.part(upload, number)
            if row is None or row.clock != clock:
                raise Conflict(f"part {number} was replaced while the upload was being completed")
        info = put.decide(decision)
        # Tells a rebuild that the upload is over even when the object's own record is long gone.
        decision.write(UploadHead(bucket.bucket, upload, bytes(_SECRET_SIZE), b"", True))
        return info


@dataclass(slots=True)
class AbortUpload:
    """`if_initiated_ms`: only if the upload began in that second."""

    bucket: str
    key: bytes
    upload_id: str
    if_initiated_ms: int | None = None
    nested: bool = False
    frees: bool = True

    def size_hint(self) -> int:
        return RECORD_OVERHEAD

    def decide(self, decision: Decision) -> None:
        bucket, upload, _ = require_upload(decision.txn, self.bucket, self.key, self.upload_id)
        wanted_ms = self.if_initiated_ms
        if wanted_ms is not None and milliseconds(upload) // 1000 != wanted_ms // 1000:
            raise PreconditionFailed("x-amz-if-match-initiated-time", self.bucket, self.key.decode())
        decision.write(UploadHead(bucket.bucket, upload, bytes(_SECRET_SIZE), b"", True))
