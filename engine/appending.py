"""Bytes added at the end of an object: what stands there is neither read nor written again, only listed again.

Must not know: how a checksum of the whole is made from those of its parts (the caller does), requests.

Theory: an object that was appended to is a multipart object. Its first part is what there was, and each append adds a
part, whose bytes are chunks of their own; so its ETag, its checksums and reads by part number are those of any other
multipart object. Nothing else about it changes: headers, metadata and attributes stay.

Invariants:
* The offset is compared with the object's size inside the commit: of two appends to one place exactly one succeeds.
* The new list of chunks is made from the very version that the commit finds (Conflict, and tried again, otherwise).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cordwood.engine import lookup
from cordwood.engine.commit import Decision
from cordwood.engine.copying import of_a_copy
from cordwood.engine.core import Core
from cordwood.engine.errors import (
    Conflict,
    InvalidState,
    InvalidWriteOffset,
    KeyNotFound,
    TooManyParts,
)
from cordwood.engine.format import ChunkRef, Layout, Manifest, PartInManifest
from cordwood.engine.model import Conditions, ObjectInfo
from cordwood.engine.moving import Standing, live_row
from cordwood.engine.operations import Content, Description, PutObject, check_write, require_bucket
from cordwood.engine.writer import ContentWriter

PARTS_MAX = 10_000
_CONFLICT_RETRIES = 20

Whole = Callable[[ObjectInfo, list[PartInManifest]], tuple[Mapping[str, str], str]]
"""The checksums, and their type, of an object that consists of these parts from now on. The first argument is the
object as it was."""


@dataclass(slots=True)
class Append:
    put: PutObject
    offset: int
    standing: Standing
    conditions: Conditions | None
    nested: bool = False
    frees: bool = False

    def size_hint(self) -> int:
        return self.put.size_hint()

    def decide(self, decision: Decision) -> ObjectInfo:
        txn = decision.txn
        bucket, key = self.put.bucket, self.put.key
        row = live_row(txn, require_bucket(txn, bucket).head.bucket, key)
        check_write(self.conditions, row, bucket, key.decode())
        size = row.size if row is not None else 0
        if self.offset != size:
            raise InvalidWriteOffset(bucket, key.decode(), self.offset, size)
        self.standing.check(txn, row)
        return self.put.decide(decision)


class AppendWriter(ContentWriter):
    """Writes what is to be added."""

    def __init__(self, core: Core, bucket: str, key: bytes, description: Description) -> None:
        super().__init__(core, -1)
        self._bucket = bucket
        self._key = key
        self._description = description

    def commit(
        self,
        offset: int,
        *,
        conditions: Conditions | None = None,
        checksums: Mapping[str, str] | None = None,
        checksum_type: str = "",
        whole: Whole | None = None,
    ) -> ObjectInfo:
        """Adds the bytes at `offset`, which must be the object's size, or 0 where there is none; durable on return.

        `checksums` are of the bytes that were written. `whole` combines them with what was there; without it the
        longer object has no checksum. InvalidWriteOffset, TooManyParts, PreconditionFailed, KeyNotFound, Conflict;
        InvalidState for an object that is encrypted.
        """
        self.flush()
        added = self.take()
        core = self._core
        _, committer = core.writing()
        for _ in range(_CONFLICT_RETRIES):
            try:
                return committer.execute(
                    self._change(added, offset, conditions, checksums or {}, checksum_type, whole)
                )
            except Conflict:
                continue
        raise Conflict(f"key {self._key.decode()!r} is changed all the time; try again")

    def _change(
        self,
        added: Content,
        offset: int,
        conditions: Conditions | None,
        checksums: Mapping[str, str],
        checksum_type: str,
        whole: Whole | None,
    ) -> Append:
        """What the bytes that were written make of the object that stands there now."""
        try:
            found = lookup.find(
                self._core, self._bucket, self._key.decode(), None, None, want_body=True, wait=True
            )
        except KeyNotFound:
            found = None
        if found is not None and found.info.is_encrypted:
            raise InvalidState(f"key {found.info.key!r} is encrypted, so nothing can be appended to it")
        if found is None or not found.info.size:
            about = _described(found.info if found is not None else None, self._description)
            if checksums:
                about.checksums, about.checksum_type = checksums, checksum_type or "FULL_OBJECT"
            put = PutObject(self._bucket, self._key, added, about)
        else:
            put = self._longer(found, added, checksums, whole)
        standing = Standing(found.clock, found.attrs_clock) if found is not None else Standing()
        return Append(put, offset, standing, conditions)

    def _longer(
        self, found: lookup.Found, added: Content, checksums: Mapping[str, str], whole: Whole | None
    ) -> PutObject:
        info = found.info
        refs, fresh, parts = self._before(found)
        if len(parts) >= PARTS_MAX:
            raise TooManyParts(self._bucket, info.key, PARTS_MAX)
        parts.append(PartInManifest(parts[-1].number + 1, added.size, added.md5, dict(checksums)))
        digests = hashlib.md5(b"".join(part.md5 for part in parts), usedforsecurity=False)
        about = _described(info, self._description)
        if whole is not None:
            about.checksums, about.checksum_type = whole(info, parts)
        content = Content(
            info.size + added.size,
            digests.digest(),
            chunks=[*refs, *added.chunks],
            fresh=added.fresh | fresh,
            repaired=added.repaired,
        )
        return PutObject(self._bucket, self._key, content, about, parts=parts)

    def _before(self, found: lookup.Found) -> tuple[list[ChunkRef], frozenset[bytes], list[PartInManifest]]:
        """The chunks and parts of the object as it is. What stands in its record becomes a chunk, once."""
        info, body = found.info, found.body
        assert body is not None
        whole_md5 = bytes.fromhex(info.etag.partition("-")[0])
        if found.layout == Layout.INLINE:
            first = ContentWriter(self._core, -1)
            first.write(body)
            first.flush()
            content = first.take()
            chunks, fresh, parts = content.chunks, content.fresh, []
        else:
            manifest = Manifest(body, f"object {info.key!r}")
            chunks, fresh, parts = manifest.chunks(), frozenset[bytes](), manifest.parts()
        if not parts:
            parts = [PartInManifest(1, info.size, whole_md5, dict(info.checksums))]
        return chunks, fresh, parts


def _described(info: ObjectInfo | None, given: Description) -> Description:
    """What is said of the object before, or what is said of a new one."""
    if info is None:
        return Description(given.headers, given.metadata, {}, "", given.storage_class, given.attrs)
    return Description(info.headers, info.metadata, {}, "", info.storage_class, of_a_copy(info.attrs))
