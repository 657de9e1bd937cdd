"""Compares the index of a store with one rebuilt from its volumes: every row, in both directions.

Must not know: how either index was made, what to do about a difference.

Invariants:
* What may lawfully differ is passed over: ids of version groups, chunk rows without references, and the place of a
  record that stands in two volumes (an interrupted compaction, a repaired chunk), if it really stands at both.
* Memory is bounded: tables are read side by side in key order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from cordwood.engine.errors import Corrupt
from cordwood.engine.format import CHUNK_ID_SIZE, chunk_record_length
from cordwood.engine.index import Index, Txn
from cordwood.engine.rows import (
    AttrsRow,
    BucketRow,
    ChunkRow,
    DirectoryRow,
    Kind,
    ObjectRow,
    PartRow,
    RowFlag,
    UploadRow,
    VolumeRow,
    VolumeState,
    id_key,
)
from cordwood.engine.volume import Place, Volumes

UNREADABLE = (Corrupt, IndexError)


class Difference(NamedTuple):
    """Where the two differ: table, key as text, what is wrong with the live row; and its place, if it has one."""

    table: str
    key: str
    text: str
    place: Place | None = None


def compare(live: Index, rebuilt: Index, volumes: Volumes) -> Iterator[Difference]:
    """All differences of the live index from the rebuilt one."""
    with live.read() as ours, rebuilt.read() as theirs:
        yield from _Comparison(ours, theirs, volumes).run()


class _Comparison:
    def __init__(self, live: Txn, rebuilt: Txn, volumes: Volumes) -> None:
        self._live = live
        self._rebuilt = rebuilt
        self._volumes = volumes
        self._live_bytes: dict[int, int] = {}
        self._versions_seen = 0

    def run(self) -> Iterator[Difference]:
        if self._live.store() != self._rebuilt.store():
            yield Difference("meta", "store", "the index belongs to another store")
        if self._live.clock() < self._rebuilt.clock():
            yield Difference("meta", "clock", "the index's clock is behind the records of the volumes")
        simple: list[tuple[str, Callable[[bytes], Any]]] = [
            ("buckets", BucketRow.unpack),
            ("directories", DirectoryRow.unpack),
            ("uploads", UploadRow.unpack),
            ("parts", PartRow.unpack),
            ("attrs", AttrsRow.unpack),
        ]
        for name, unpack in simple:
            yield from self._compare_simple(name, unpack)
        yield from self._compare_entries()
        yield from self._compare_chunks()
        yield from self._compare_volumes()

    def _pairs(self, name: str) -> Iterator[tuple[bytes, bytes | None, bytes | None]]:
        """(key, live row, rebuilt row) of a table."""
        ours = self._live.items(b"", getattr(self._live.tables, name))
        theirs = self._rebuilt.items(b"", getattr(self._rebuilt.tables, name))
        left, right = next(ours, None), next(theirs, None)
        while left is not None or right is not None:
            if right is None or (left is not None and left[0] < right[0]):
                assert left is not None
                yield left[0], left[1], None
                left = next(ours, None)
            elif left is None or right[0] < left[0]:
                yield right[0], None, right[1]
                right = next(theirs, None)
            else:
                yield left[0], left[1], right[1]
                left, right = next(ours, None), next(theirs, None)

    def _compare_simple(self, name: str, unpack: Callable[[bytes], Any]) -> Iterator[Difference]:
        for key, ours, theirs in self._pairs(name):
            shown = _shown(key)
            try:
                row = unpack(ours) if ours is not None else None
            except UNREADABLE as error:
                yield Difference(name, shown, f"the row cannot be read: {error!r}")
                continue
            if row is not None:
                self._count(row.place)
            if row is None:
                yield Difference(name, shown, "is in the volumes but not in the index")
            elif theirs is None:
                yield Difference(name, shown, "is in the index but not in the volumes", row.place)
            elif ours != theirs:
                other = unpack(theirs)
                if row._replace(place=other.place) != other:
                    yield Difference(name, shown, "differs from what the volumes say", row.place)
                elif not self._is_same_record(row.place, other.place):
                    yield Difference(name, shown, f"points to {_at(row.place)}, where it is not", row.place)

    # --- objects ----------------------------------------------------------------------------------------------

    def _compare_entries(self) -> Iterator[Difference]:
        for key, ours, theirs in self._pairs("entries"):
            shown = _shown(key)
            try:
                versions = self._versions(self._live, ours)
            except UNREADABLE as error:
                yield Difference("entries", shown, f"the row cannot be read: {error!r}")
                continue
            self._versions_seen += max(0, len(versions) - 1)
            for row in versions:
                self._count(row.place)
            place = versions[0].place if versions else None
            if ours is None:
                yield Difference("entries", shown, "is in the volumes but not in the index")
            elif theirs is None:
                yield Difference("entries", shown, "is in the index but not in the volumes", place)
            elif ours[0] != theirs[0] or (ours[0] != Kind.OBJECT and ours != theirs):
                yield Difference("entries", shown, "differs from what the volumes say")
            elif versions:
                yield from self._compare_versions(shown, versions, self._versions(self._rebuilt, theirs))
        total = sum(1 for _ in self._live.items(b"", self._live.tables.versions))
        if total != self._versions_seen:
            text = f"{total} noncurrent versions are in the index, {self._versions_seen} belong to an object"
            yield Difference("versions", "", text)

    @staticmethod
    def _versions(txn: Txn, packed: bytes | None) -> list[ObjectRow]:
        """The row and its noncurrent versions; nothing for what is no object."""
        if packed is None or packed[0] != Kind.OBJECT:
            return []
        current = ObjectRow.unpack(packed)
        rows = [current]
        if current.group:
            rows += [
                ObjectRow.unpack(row) for _, row in txn.items(id_key(current.group), txn.tables.versions)
            ]
        return rows

    def _compare_versions(
        self, shown: str, ours: list[ObjectRow], theirs: list[ObjectRow]
    ) -> Iterator[Difference]:
        if [_bare(row) for row in ours] != [_bare(row) for row in theirs]:
            yield Difference("entries", shown, "differs from what the volumes say", ours[0].place)
            return
        if bool(ours[0].null_clock) != bool(theirs[0].null_clock):
            yield Difference("entries", shown, "does not know where its null version is", ours[0].place)
        for row, other in zip(ours, theirs, strict=True):
            if not self._is_same_record(row.place, other.place):
                yield Difference("entries", shown, f"points to {_at(row.place)}, where it is not", row.place)

    # --- chunks and volumes -----------------------------------------------------------------------------------

    def _compare_chunks(self) -> Iterator[Difference]:
        for key, ours, theirs in self._pairs("chunks"):
            shown = key.hex()
            try:
                row = ChunkRow.unpack(ours) if ours is not None else None
            except UNREADABLE as error:
                yield Difference("chunks", shown, f"the row cannot be read: {error!r}")
                continue
            other = ChunkRow.unpack(theirs) if theirs is not None else None
            if row is not None and row.references:
                self._count(Place(row.volume, row.offset, chunk_record_length(row.length)))
            mine, right = row.references if row else 0, other.references if other else 0
            if mine != right:
                yield Difference("chunks", shown, f"has {mine} references, {right} are right", _place(row))
            elif row is not None and other is not None and row != other:
                if row.length != other.length:
                    yield Difference(
                        "chunks", shown, f"is {row.length} bytes, {other.length} are right", _place(row)
                    )
                elif not self._is_chunk(row, key):
                    text = f"points to {_at(_place(row))}, where it is not"
                    yield Difference("chunks", shown, text, _place(row))

    def _compare_volumes(self) -> Iterator[Difference]:
        rebuilt = self._rebuilt.volumes()
        rows: dict[int, VolumeRow] = {}
        for key, packed in self._live.items(b"", self._live.tables.volumes):
            try:
                rows[int.from_bytes(key, "big")] = VolumeRow.unpack(packed)
            except UNREADABLE as error:
                yield Difference("volumes", _shown(key), f"the row cannot be read: {error!r}")
        for volume in sorted(rows.keys() | rebuilt.keys()):
            row, other = rows.get(volume), rebuilt.get(volume)
            live_bytes = self._live_bytes.get(volume, 0)
            if row is None:
                if other is not None and other.live_bytes:
                    yield Difference("volumes", str(volume), "is not in the index")
                continue
            if row.live_bytes != live_bytes:
                text = f"is said to hold {row.live_bytes} live bytes, {live_bytes} are right"
                yield Difference("volumes", str(volume), text)
            if other is None:
                continue
            if row.state == VolumeState.SEALED and other.state == VolumeState.ACTIVE:
                yield Difference("volumes", str(volume), "is said to be sealed, but has no SEAL record")
            if row.watermark > max(other.watermark, 0) and row.state != VolumeState.QUARANTINED:
                text = f"is said to be indexed up to {row.watermark}, its records end at {other.watermark}"
                yield Difference("volumes", str(volume), text)

    def _count(self, place: Place) -> None:
        self._live_bytes[place.volume] = self._live_bytes.get(place.volume, 0) + place.length

    def _is_same_record(self, place: Place, other: Place) -> bool:
        """Whether the live index may say `place` where the rebuilt one says `other`."""
        if place == other:
            return True
        try:
            ours = self._volumes.get(place.volume).read_head(place)
            theirs = self._volumes.get(other.volume).read_head(other)
        except (Corrupt, OSError):
            return False
        same = (ours.header.type, ours.header.clock, ours.head) == (
            theirs.header.type,
            theirs.header.clock,
            theirs.head,
        )
        return same and ours.header.length == place.length and ours.header.body_crc == theirs.header.body_crc

    def _is_chunk(self, row: ChunkRow, chunk_id: bytes) -> bool:
        place = _place(row)
        assert place is not None
        try:
            record = self._volumes.get(row.volume).read_head(place)
        except (Corrupt, OSError):
            return False
        return record.head[:CHUNK_ID_SIZE] == chunk_id and record.header.body_length == row.length


def _bare(row: ObjectRow) -> ObjectRow:
    return row._replace(
        flags=row.flags & ~RowFlag.GROUPED, group=0, null_clock=0, volume=0, offset=0, length=0
    )


def _place(row: ChunkRow | None) -> Place | None:
    return Place(row.volume, row.offset, chunk_record_length(row.length)) if row is not None else None


def _at(place: Place | None) -> str:
    return "nowhere" if place is None else f"volume {place.volume} offset {place.offset}"


def _shown(key: bytes) -> str:
    """A key of the index as a person may read it: ids in hexadecimal, the rest as text."""
    return f"{key[:8].hex()} {key[8:].decode(errors='backslashreplace')}".strip()
