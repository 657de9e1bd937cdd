"""Contents made from what is stored already: copies, parts from ranges, and uploads completed from their parts.

Must not know: preconditions, how the source was found.

Invariant: no byte of a chunk is moved when the whole chunk is wanted; the commit checks that it still exists.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cordwood.engine import locks
from cordwood.engine.clock import milliseconds
from cordwood.engine.core import Core, Moved
from cordwood.engine.errors import Conflict, EntityTooSmall, InvalidPart, InvalidPartOrder, InvalidState
from cordwood.engine.format import ChunkRef, Manifest, PartHead, PartInManifest, decode_head
from cordwood.engine.index import Txn
from cordwood.engine.model import Conditions, ObjectInfo, PartInfo
from cordwood.engine.operations import Content, Description, PutObject
from cordwood.engine.reader import ObjectReader
from cordwood.engine.rows import PartRow
from cordwood.engine.uploads import CompleteUpload
from cordwood.engine.writer import PartWriter

# What belongs to a version where it is: a lock, and the memory of a rename.
RENAMED = "renamed"


def of_a_copy(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes that a copy takes along."""
    return {name: value for name, value in locks.unlocked(attrs).items() if name != RENAMED}


Attrs = Mapping[str, Any] | Callable[[ObjectInfo], Mapping[str, Any]]
"""Attributes, or how they are made from the object as it is."""


def attrs_of(info: ObjectInfo, given: Attrs | None) -> Mapping[str, Any]:
    if given is None:
        return of_a_copy(info.attrs)
    return given(info) if callable(given) else given


def part_info(number: int, row: PartRow) -> PartInfo:
    return PartInfo(number, row.size, row.md5.hex(), milliseconds(row.clock), row.checksums)


def copy_operation(
    reader: ObjectReader, bucket: str, key: bytes, about: Description, conditions: Conditions | None
) -> PutObject:
    """A put that shares the source's chunks, or repeats its few bytes when it is small. What is encrypted stays so, for
    the cipher that wrote it."""
    info = reader.info
    md5 = bytes.fromhex(info.etag.partition("-")[0])
    overhead = info.overhead
    if reader.stored_inline is not None:
        content = Content(info.size, md5, inline=reader.stored_inline, overhead=overhead)
        return PutObject(bucket, key, content, about, conditions)
    manifest = reader.manifest
    return PutObject(
        bucket,
        key,
        Content(info.size, md5, chunks=manifest.chunks(), overhead=overhead),
        about,
        conditions,
        parts=manifest.parts() or None,
    )


def copy_bytes(reader: ObjectReader, writer: PartWriter) -> bytes:
    """Fills a part from the reader's selection; returns the MD5 of the bytes, which all had to be read for it."""
    md5 = hashlib.md5(usedforsecurity=False)
    if reader.inline is not None:
        writer.write(reader.inline)
        return writer.md5_digest()
    for ref, block in reader.pieces():
        md5.update(block)
        if len(block) == ref.length:
            writer.share(ref)
        else:
            writer.write(block)
    return md5.digest()


def chosen_parts(
    txn: Txn, upload: int, parts: Sequence[tuple[int, str]], min_part_size: int
) -> list[tuple[int, PartRow]]:
    """The rows of the parts a client lists, checked: order, existence, ETags, sizes."""
    rows: list[tuple[int, PartRow]] = []
    if not parts:
        raise InvalidPart(0, "the list of parts is empty")
    for number, etag in parts:
        if rows and number <= rows[-1][0]:
            raise InvalidPartOrder(f"part {number} is listed after part {rows[-1][0]}")
        row = txn.part(upload, number) if 1 <= number <= 0xFFFF else None
        if row is None:
            raise InvalidPart(number, "it was not uploaded")
        if row.md5.hex() != etag.lower():
            raise InvalidPart(number, f"its ETag is {row.md5.hex()}, not {etag}")
        rows.append((number, row))
    for number, row in rows[:-1]:
        if row.size < min_part_size:
            raise EntityTooSmall(number, row.size, min_part_size, row.md5.hex())
    return rows


def complete_operation(
    core: Core,
    bucket: str,
    key: bytes,
    upload: int,
    upload_id: str,
    rows: Sequence[tuple[int, PartRow]],
    about: Description,
    conditions: Conditions | None,
) -> CompleteUpload:
    """The change that turns parts into an object: their chunk lists one after another."""
    chunks: list[ChunkRef] = []
    parts: list[PartInManifest] = []
    digests = hashlib.md5(usedforsecurity=False)
    overheads: set[int] = set()
    for number, row in rows:
        try:
            record = core.read_record(row.place)
        except Moved:
            raise Conflict(f"part {number} was moved by compaction") from None
        assert record.body is not None
        head: PartHead = decode_head(record.header.type, record.head, f"part {number}")
        overheads.add(head.overhead)
        chunks += Manifest(record.body, f"part {number}").chunks()
        parts.append(PartInManifest(number, row.size, row.md5, row.checksums))
        digests.update(row.md5)
    if len(overheads) > 1:
        raise InvalidState("some parts of the upload are encrypted and others are not")
    size = sum(row.size for _, row in rows)
    content = Content(size, digests.digest(), chunks=chunks, overhead=overheads.pop())
    put = PutObject(bucket, key, content, about, conditions, parts=parts, upload=upload)
    return CompleteUpload(put, upload_id, {number: row.clock for number, row in rows})
