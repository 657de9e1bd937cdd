"""Streams bytes into a store: small objects wait in memory, large ones go to the volume chunk by chunk.

Must not know: the index's rows beyond the chunk table, S3, where the bytes come from.

Invariants:
* Nothing a writer did is visible before its commit; what an aborted or forgotten writer appended is dead space.
* While `size + len(data) <= inline_max`, `write` does no I/O.
* A chunk that is found by its digest is compared byte for byte before it is relied on.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO, TypeVar

from blake3 import blake3

from cordwood.engine.cipher import Cipher
from cordwood.engine.commit import Pending
from cordwood.engine.core import Core, Moved
from cordwood.engine.errors import Corrupt, InvalidState
from cordwood.engine.format import CHUNK_ID_SIZE, ChunkRef, chunk_record_length
from cordwood.engine.model import Conditions, ObjectInfo, PartInfo
from cordwood.engine.operations import Content, Description, PutObject
from cordwood.engine.rows import ChunkRow
from cordwood.engine.uploads import PutPart
from cordwood.engine.volume import Place

Data = bytes | bytearray | memoryview | BinaryIO | Iterable[bytes]
_READ_SIZE = 1 << 20
W = TypeVar("W", bound="ContentWriter")


class ContentWriter:
    """Takes bytes, hashes them and lays them down. Not thread-safe: one thread at a time.

    With a `cipher` the bytes are encrypted, chunk by chunk, as those of part number `part`. Sizes, offsets and the MD5
    stay those of the bytes that were given.
    """

    def __init__(self, core: Core, inline_max: int, cipher: Cipher | None = None, part: int = 0) -> None:
        core.writing()
        self._core = core
        self._cipher = cipher
        self._part = part
        self._placed = 0
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._buffer = bytearray()
        self._filled = 0  # bytes of the buffer that wait to be written
        self._chunks: list[ChunkRef] = []
        self._mine: dict[bytes, ChunkRef] = {}
        self._repaired: set[bytes] = set()
        self._open = True
        self.inline_max = inline_max
        self.size = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Adds bytes. May append full chunks to the volume: Full or ReadOnly when that fails."""
        self.digest(data)
        self.store(data)

    def digest(self, data: bytes | bytearray | memoryview) -> None:
        """The half of `write` that takes the MD5. The two halves may run in two threads, each given all bytes in order;
        both must have ended before anything else is asked of the writer."""
        self._md5.update(data)

    def store(self, data: bytes | bytearray | memoryview) -> None:
        """The other half: keeps the bytes, writes full chunks. `data` may be used again when it returns."""
        if not self._open:
            raise InvalidState("the writer was committed or aborted already")
        view = memoryview(data).cast("B")
        self.size += len(view)
        if self.size <= self.inline_max:
            self._buffer += view
            self._filled = self.size
            return
        chunk_size = self._core.chunk_size
        buffer = self._buffer
        at = 0
        while at < len(view):
            left = len(view) - at
            if not self._filled and left >= chunk_size:
                self._put_chunk(view[at : at + chunk_size])
                at += chunk_size
                continue
            filled = self._filled
            if filled == len(buffer):
                count = min(left, chunk_size - filled)
                buffer += view[at : at + count]
            else:  # memory of an earlier chunk, used again: to have it anew for each would cost more than the copy
                count = min(left, len(buffer) - filled)
                memoryview(buffer)[filled : filled + count] = view[at : at + count]
            self._filled += count
            at += count
            if self._filled == chunk_size:
                self._put_chunk(memoryview(buffer))
                self._filled = 0

    def md5_hex(self) -> str:
        """MD5 of all bytes so far."""
        return self._md5.hexdigest()

    def md5_digest(self) -> bytes:
        return self._md5.digest()

    def flush(self) -> None:
        """Writes what is left as the last chunk, unless the object is small enough to stand in its own record."""
        if self._filled and self.size > self.inline_max:
            self._put_chunk(memoryview(self._buffer)[: self._filled])
            self._filled = 0

    def abort(self) -> None:
        """Forgets everything. May be called at any time, also twice."""
        self._open = False
        self._buffer = bytearray()
        self._filled = 0
        self._chunks.clear()

    def share(self, ref: ChunkRef) -> None:
        """Adds a chunk that is in the store already. Its bytes do not go into the MD5: give that to `commit`."""
        assert self._cipher is None
        self.flush()
        self._chunks.append(ref)
        self.size += ref.length

    def _content(self, md5: bytes | None) -> Content:
        if not self._open:
            raise InvalidState("the writer was committed or aborted already")
        self._open = False
        digest = self._md5.digest() if md5 is None else md5
        cipher = self._cipher
        if self.size <= self.inline_max:
            inline = bytes(self._buffer)
            if cipher is None:
                return Content(self.size, digest, inline=inline)
            chunk_id = secrets.token_bytes(CHUNK_ID_SIZE)
            body = chunk_id + cipher.encrypt(chunk_id, self._part, 0, inline)
            return Content(self.size, digest, inline=body, overhead=len(body) - self.size)
        if self._filled:
            raise InvalidState("flush the writer before an asynchronous commit")
        return Content(
            self.size,
            digest,
            chunks=self._chunks,
            fresh=frozenset(self._mine),
            repaired=frozenset(self._repaired),
            overhead=cipher.overhead if cipher is not None else 0,
        )

    def take(self) -> Content:
        """What was written, for whoever builds a change around it; the writer takes no more bytes. `flush` before."""
        return self._content(None)

    def _put_chunk(self, payload: memoryview) -> None:
        try:
            self._store_chunk(payload)
        except BaseException:
            self.abort()  # a commit after this would publish an object with a hole
            raise

    def _store_chunk(self, payload: memoryview) -> None:
        core = self._core
        appender, _ = core.writing()
        is_named_by_digest = core.dedup and self._cipher is None
        if self._cipher is not None:
            chunk_id = secrets.token_bytes(CHUNK_ID_SIZE)
            plain_size = len(payload)
            payload = memoryview(self._cipher.encrypt(chunk_id, self._part, self._placed, payload))
            self._placed += plain_size
        elif not core.dedup:
            chunk_id = secrets.token_bytes(CHUNK_ID_SIZE)
        else:
            chunk_id = blake3(payload).digest()
            known = self._mine.get(chunk_id)
            if known is not None:
                self._chunks.append(known)
                return
            with core.index.read() as txn:
                row = txn.chunk(chunk_id)
            if row is not None:
                if self._is_stored(row, payload):
                    self._chunks.append(ChunkRef(chunk_id, row.length, row.volume, row.offset))
                    return
                self._repaired.add(chunk_id)
        place = appender.append_chunk(chunk_id, payload, is_digest=is_named_by_digest)
        ref = ChunkRef(chunk_id, len(payload), place.volume, place.offset)
        self._mine[chunk_id] = ref
        self._chunks.append(ref)

    def _is_stored(self, row: ChunkRow, payload: memoryview) -> bool:
        """Whether the chunk on disk really holds these bytes. If not (bit rot), a good copy will replace it."""
        if row.length != len(payload):
            return False
        place = Place(row.volume, row.offset, chunk_record_length(row.length))
        try:
            record = self._core.read_record(place)
        except (Corrupt, Moved, OSError):
            return False
        return record.body is not None and memoryview(record.body) == payload


class ObjectWriter(ContentWriter):
    """Writes one object; `commit` makes it the key's newest version."""

    def __init__(
        self, core: Core, bucket: str, key: bytes, description: Description, cipher: Cipher | None = None
    ) -> None:
        super().__init__(core, core.inline_max, cipher)
        self._bucket = bucket
        self._key = key
        self._description = description

    def commit(
        self,
        *,
        conditions: Conditions | None = None,
        checksums: Mapping[str, str] | None = None,
        checksum_type: str = "",
        attrs: Mapping[str, Any] | None = None,
        md5: bytes | None = None,
    ) -> ObjectInfo:
        """Publishes the object; returns once it is durable. PreconditionFailed, BucketNotFound, Full, ReadOnly.

        `attrs` are added to those that the writer was made with. `md5` stands in the place of the MD5 of the bytes, and
        so becomes the ETag.
        """
        self.flush()
        _, committer = self._core.writing()
        return committer.execute(self.operation(conditions, checksums, checksum_type, attrs, md5))

    def commit_async(
        self,
        *,
        conditions: Conditions | None = None,
        checksums: Mapping[str, str] | None = None,
        checksum_type: str = "",
        attrs: Mapping[str, Any] | None = None,
        md5: bytes | None = None,
        wake: bool = True,
    ) -> Pending[ObjectInfo]:
        """Like `commit` without waiting. Call `flush` before, unless `size <= inline_max`.

        With `wake` false the commit starts at the next `Store.start_commits`, so that many go together.
        """
        _, committer = self._core.writing()
        operation = self.operation(conditions, checksums, checksum_type, attrs, md5)
        return committer.submit(operation, wake=wake)

    def operation(
        self,
        conditions: Conditions | None,
        checksums: Mapping[str, str] | None,
        checksum_type: str,
        attrs: Mapping[str, Any] | None = None,
        md5: bytes | None = None,
    ) -> PutObject:
        """The change that this writer stands for; the writer takes no more bytes."""
        description = self._description
        if checksums:
            description.checksums = checksums
            description.checksum_type = checksum_type or "FULL_OBJECT"
        if attrs:
            description.attrs = {**description.attrs, **attrs}
        return PutObject(self._bucket, self._key, self._content(md5), description, conditions)


class PartWriter(ContentWriter):
    """Writes one part of a multipart upload."""

    def __init__(
        self, core: Core, bucket: str, key: bytes, upload_id: str, number: int, cipher: Cipher | None = None
    ) -> None:
        super().__init__(core, -1, cipher, number)
        self._bucket = bucket
        self._key = key
        self._upload_id = upload_id
        self._number = number

    def commit(self, *, checksums: Mapping[str, str] | None = None, md5: bytes | None = None) -> PartInfo:
        """Puts the part in the upload's list, in place of an earlier one with its number; durable on return."""
        self.flush()
        _, committer = self._core.writing()
        return committer.execute(self._operation(checksums, md5))

    def commit_async(
        self,
        *,
        checksums: Mapping[str, str] | None = None,
        md5: bytes | None = None,
        wake: bool = True,
    ) -> Pending[PartInfo]:
        """Like `commit` without waiting. Call `flush` before. `wake` as in `ObjectWriter.commit_async`."""
        _, committer = self._core.writing()
        return committer.submit(self._operation(checksums, md5), wake=wake)

    def _operation(self, checksums: Mapping[str, str] | None, md5: bytes | None) -> PutPart:
        content = self._content(md5)
        return PutPart(self._bucket, self._key, self._upload_id, self._number, content, checksums or {})


def small_content(core: Core, data: Data, md5: bytes | None = None) -> Content | None:
    """The content of an object whose bytes are all there and stand in its own record; None for any other: it takes a
    writer."""
    if type(data) is not bytes or len(data) > core.inline_max:
        return None
    core.health.check()
    return Content(len(data), md5 or hashlib.md5(data, usedforsecurity=False).digest(), data)


def describe(
    headers: Mapping[str, str] | None,
    metadata: Mapping[str, str] | None,
    storage_class: str,
    attrs: Mapping[str, Any] | None,
) -> Description:
    """A description from the optional arguments of the store's calls."""
    return Description(headers or {}, metadata or {}, {}, "", storage_class, attrs or {})


def fill(writer: W, data: Data) -> W:
    """Writes bytes, a binary file or an iterable of bytes into a writer, and returns it."""
    if isinstance(data, bytes | bytearray | memoryview):
        writer.write(data)
        return writer
    read: Callable[[int], bytes] | None = getattr(data, "read", None)
    if read is None:
        for block in data:
            writer.write(block)
        return writer
    while block := read(_READ_SIZE):
        writer.write(block)
    return writer
