"""Looks into a store: the records of one volume as plain values, and the shape of the whole in figures.

Must not know: how either is printed.

Invariants: nothing is changed. A volume that is damaged is shown as far as it can be read.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from cordwood.engine import namespace, opening
from cordwood.engine.announcing import OUTBOX
from cordwood.engine.clock import milliseconds
from cordwood.engine.core import read_manifest
from cordwood.engine.errors import Corrupt, StoreNotFound
from cordwood.engine.format import (
    SUPERBLOCK_SIZE,
    Flag,
    Layout,
    Manifest,
    ObjectHead,
    PartHead,
    RecordType,
    Superblock,
    decode_chunk_head,
    read_head,
)
from cordwood.engine.fs import REAL, FileSystem
from cordwood.engine.index import Index
from cordwood.engine.rows import ChunkRow, ObjectRow, RowFlag, VolumeState, id_key
from cordwood.engine.volume import Record, VolumeFile, Volumes
from cordwood.engine.walk import Damage, is_room, walk

_TYPE_NAMES = {int(type_): type_.name for type_ in RecordType}
STATE_NAMES = {
    VolumeState.ACTIVE: "active",
    VolumeState.SEALED: "sealed",
    VolumeState.QUARANTINED: "quarantined",
    VolumeState.RETIRED: "retired",
    VolumeState.FILLING: "filling",
}


# --- one volume -----------------------------------------------------------------------------------------------


def dump_volume(
    path: str | os.PathLike[str], *, chunks: bool = False, fs: FileSystem = REAL
) -> Iterator[dict[str, Any]]:
    """The superblock and then every record of a volume file, as values that JSON can hold.

    With `chunks` the manifest of each object and part is listed too. Corrupt when the superblock cannot be read.
    """
    where = Path(path)
    fd = fs.open_read(where)
    block = Superblock.unpack(fs.read(fd, SUPERBLOCK_SIZE, 0), str(where))
    file = VolumeFile(fs, where, block.volume, block.store, fd)
    yield {
        "type": "SUPERBLOCK",
        "offset": 0,
        "length": SUPERBLOCK_SIZE,
        "volume": block.volume,
        "store": block.store.hex(),
        "node": f"{block.node:016x}",
        "created_ms": milliseconds(block.created),
    }
    for item in walk(file, SUPERBLOCK_SIZE, file.size(), bodies=True):
        if isinstance(item, Damage):
            type_, why = ("ROOM", "zeros laid ahead") if is_room(file, item) else ("DAMAGE", item.why)
            yield {"type": type_, "offset": item.offset, "length": item.end - item.offset, "why": why}
        else:
            yield _shown(file, item, chunks=chunks)


def _shown(file: VolumeFile, record: Record, *, chunks: bool) -> dict[str, Any]:
    header = record.header
    shown: dict[str, Any] = {
        "type": _TYPE_NAMES.get(header.type, f"TYPE {header.type}"),
        "offset": header.offset,
        "length": header.length,
        "clock": header.clock,
        "time_ms": milliseconds(header.clock),
        "node": f"{header.node:016x}",
        "flags": [flag.name for flag in Flag if header.flags & flag],
        "durable": header.durable,
        "body_length": header.body_length,
    }
    where = file.where(header.offset)
    try:
        head = read_head(header, record.head, where)
        if isinstance(head, bytes):
            shown["chunk"] = decode_chunk_head(head, header.body_length, where)[0].hex()
            return shown
        shown["head"] = _plain(msgspec.structs.asdict(head))
        is_chunked = isinstance(head, PartHead) or (
            isinstance(head, ObjectHead) and head.layout == Layout.CHUNKED
        )
        if chunks and is_chunked:
            manifest = Manifest(record.body or b"", where)
            shown["chunks"] = [
                {"id": ref.id.hex(), "length": ref.length, "volume": ref.volume, "offset": ref.offset}
                for ref in manifest.chunks()
            ]
    except Corrupt as error:
        shown["error"] = str(error)
    return shown


def _plain(value: Any) -> Any:
    """What JSON can hold: bytes as text where they are text, else in hexadecimal; all else as it prints."""
    if isinstance(value, dict):
        return {str(_plain(key)): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, bytes):
        try:
            text = value.decode()
        except UnicodeDecodeError:
            return value.hex()
        return text if text.isprintable() else value.hex()
    return value if isinstance(value, str | int | float | None) else str(value)


# --- the whole store ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class VolumeFigures:
    volume: int
    state: str
    size: int
    live_bytes: int


@dataclass(slots=True)
class StoreFigures:
    """The shape of a store. `object_bytes` is what clients stored in current and noncurrent versions; `live_bytes` what
    of the volumes is needed for it; `referenced_bytes` / `chunk_bytes` is what deduplication saves. `messages` wait in
    the outbox, whose bucket and objects are not counted among the others."""

    buckets: int = 0
    objects: int = 0
    noncurrent_versions: int = 0
    delete_markers: int = 0
    directories: int = 0
    uploads: int = 0
    parts: int = 0
    messages: int = 0
    object_bytes: int = 0
    chunks: int = 0
    chunk_bytes: int = 0
    referenced_bytes: int = 0
    volume_bytes: int = 0
    live_bytes: int = 0
    index_used_bytes: int = 0
    index_file_bytes: int = 0
    volumes: list[VolumeFigures] = field(default_factory=list)

    @property
    def dead_bytes(self) -> int:
        return max(0, self.volume_bytes - self.live_bytes)

    @property
    def dedup_ratio(self) -> float:
        """Chunk bytes that objects refer to, over chunk bytes stored: 1 when nothing is shared."""
        return self.referenced_bytes / self.chunk_bytes if self.chunk_bytes else 1.0

    @property
    def index_bytes_per_object(self) -> float:
        count = self.objects + self.noncurrent_versions + self.delete_markers
        return self.index_used_bytes / count if count else 0.0


def measure_store(
    path: str | os.PathLike[str], *, fs: FileSystem = REAL, map_size: int = opening.DEFAULT_MAP_SIZE
) -> StoreFigures:
    """Counts what is in a store, also while it is in use. StoreNotFound, Busy, Corrupt."""
    directory = Path(path).absolute()
    if opening.read_identity(fs, directory) is None:
        raise StoreNotFound(f"{directory} holds no Cordwood store")
    options = opening.Options(create=False, read_only=True, map_size=map_size)
    core, session = opening.open_store(fs, directory, options)
    try:
        figures = _count_rows(core.index)
        figures.index_file_bytes = fs.size_of(directory / opening.INDEX_NAME / "data.mdb") or 0
        with core.index.read() as txn:
            rows = txn.volumes()
        for volume in core.volumes.ids():
            row = rows.get(volume)
            size = fs.size_of(core.volumes.path(volume)) or 0
            state = STATE_NAMES.get(row.state, "unknown") if row is not None else "new"
            live_bytes = row.live_bytes if row is not None else 0
            figures.volumes.append(VolumeFigures(volume, state, size, live_bytes))
            figures.volume_bytes += size
            figures.live_bytes += live_bytes
        return figures
    finally:
        session.close()


def _count_rows(index: Index) -> StoreFigures:
    figures = StoreFigures()
    info = index.info()
    figures.index_used_bytes = info["used_bytes"]
    figures.directories = info["directories"]
    figures.uploads = info["uploads"]
    figures.parts = info["parts"]
    with index.read() as txn:
        for bucket in txn.buckets():
            if bucket.head.name == OUTBOX:
                figures.messages = sum(1 for _ in namespace.walk(txn, bucket.head.bucket))
                continue
            figures.buckets += 1
            for _, packed in namespace.walk(txn, bucket.head.bucket):
                assert isinstance(packed, bytes)
                _count_version(figures, ObjectRow.unpack(packed), is_current=True)
        for _, packed in txn.items(b"", txn.tables.versions):
            _count_version(figures, ObjectRow.unpack(packed), is_current=False)
        for _, packed in txn.items(b"", txn.tables.chunks):
            chunk = ChunkRow.unpack(packed)
            if chunk.references:
                figures.chunks += 1
                figures.chunk_bytes += chunk.length
                figures.referenced_bytes += chunk.length * chunk.references
    return figures


def _count_version(figures: StoreFigures, row: ObjectRow, *, is_current: bool) -> None:
    figures.object_bytes += row.size
    if row.flags & RowFlag.MARKER:
        figures.delete_markers += 1
    elif is_current:
        figures.objects += 1
    else:
        figures.noncurrent_versions += 1


# --- who needs a chunk ----------------------------------------------------------------------------------------


def objects_with_chunks(index: Index, volumes: Volumes, wanted: Iterable[bytes]) -> dict[bytes, list[str]]:
    """The names of the versions that contain given chunks. Reads the chunk list of every large object: for reports."""
    ids = set(wanted)
    found: dict[bytes, list[str]] = defaultdict(list)
    with index.read() as txn:
        for bucket in txn.buckets():
            for key, packed in namespace.walk(txn, bucket.head.bucket):
                assert isinstance(packed, bytes)
                current = ObjectRow.unpack(packed)
                rows = [current]
                if current.group:
                    rows += [
                        ObjectRow.unpack(row)
                        for _, row in txn.items(id_key(current.group), txn.tables.versions)
                    ]
                for row in rows:
                    if row.flags & (RowFlag.INLINE | RowFlag.MARKER):
                        continue
                    try:
                        manifest = read_manifest(volumes, row.place)
                    except Corrupt:
                        continue
                    version = "null" if row.flags & RowFlag.NULL else f"{row.clock:016x}"
                    name = f"{bucket.head.name}/{key.decode(errors='replace')} version {version}"
                    for chunk_id in ids.intersection(ref.id for ref in manifest.chunks()):
                        found[chunk_id].append(name)
    return dict(found)
