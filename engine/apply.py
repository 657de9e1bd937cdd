"""What a record does to the index: the one state machine that live commits, replay and rebuild all use.

Must not know: why a record was written, whether it is new or replayed, how it is stored.

Invariants:
* Records are applied in clock order; the same record twice in a row changes nothing but its place.
* `live_bytes` of a volume is the sum of the record lengths that the index points to, plus referenced chunks.
* A chunk's references are the number of times live objects and parts name it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from cordwood.engine import locks, namespace
from cordwood.engine.errors import Corrupt
from cordwood.engine.format import (
    CHECKSUM_ALGORITHMS,
    STORAGE_CLASSES,
    AttrsHead,
    BucketHead,
    ChunkRef,
    DeleteHead,
    DirectoryHead,
    Layout,
    Manifest,
    ObjectHead,
    PartHead,
    RecordType,
    UploadHead,
    chunk_record_length,
)
from cordwood.engine.index import Txn
from cordwood.engine.rows import (
    NO_PLACE,
    AttrsRow,
    BucketRow,
    ChunkRow,
    DirectoryRow,
    ObjectRow,
    PartRow,
    RowFlag,
    UploadRow,
    VolumeRow,
    id_key,
    pack_object,
    part_key,
    upload_key,
    version_key,
    where_of,
)
from cordwood.engine.volume import Place

_log = logging.getLogger("cordwood.engine")
_ALGORITHM_BIT = {name: 1 << number for number, name in enumerate(CHECKSUM_ALGORITHMS)}
_CLASS_NUMBER = {name: number for number, name in enumerate(STORAGE_CLASSES)}
_LAYOUT_FLAG: dict[int, int] = {
    Layout.INLINE: RowFlag.INLINE,
    Layout.CHUNKED: 0,
    Layout.MARKER: RowFlag.MARKER,
}
_CHECKSUM_TYPE_FLAG = {"": 0, "COMPOSITE": RowFlag.COMPOSITE, "FULL_OBJECT": RowFlag.FULL_OBJECT}


class Applier:
    """Applies records to one write transaction and keeps the volumes' accounts until `finish`.

    `read_manifest` fetches the chunk list of an object or part that is about to go. With `counting` off (rebuild)
    chunk references are left alone: they are counted once at the end.
    """

    def __init__(
        self, txn: Txn, read_manifest: Callable[[Place], Manifest], *, counting: bool = True
    ) -> None:
        self.txn = txn
        self._read_manifest = read_manifest
        self._counting = counting
        self._live: dict[int, int] = {}
        self._oldest_dead: dict[int, int] = {}
        # Chunk lists of this transaction's own records, which may not be in their volume yet: an object can be put and
        # replaced in one batch.
        self._manifests: dict[Place, Manifest] = {}
        self._by_type: dict[int, Callable[..., None]] = {
            RecordType.OBJECT: self._apply_object,
            RecordType.DELETE: self._apply_delete,
            RecordType.DIRECTORY: self._apply_directory,
            RecordType.BUCKET: self._apply_bucket,
            RecordType.UPLOAD: self._apply_upload,
            RecordType.PART: self._apply_part,
            RecordType.ATTRS: self._apply_attrs,
        }

    def apply(self, type_: int, clock: int, place: Place, head: Any, manifest: Manifest | None) -> None:
        """One record. `manifest` is the body of a chunked object or part (not needed when not counting)."""
        if manifest is not None:
            self._manifests[place] = manifest
        self._by_type[type_](clock, place, head, manifest)

    def finish(self, watermarks: dict[int, VolumeRow]) -> None:
        """Writes the volumes' rows: accounts, and state and watermark from `watermarks` where given."""
        for volume in self._live.keys() | self._oldest_dead.keys() | watermarks.keys():
            row = self.txn.volume(volume) or VolumeRow()
            given = watermarks.get(volume)
            dead = [clock for clock in (row.oldest_dead, self._oldest_dead.get(volume, 0)) if clock]
            row = VolumeRow(
                given.state if given else row.state,
                given.watermark if given else row.watermark,
                row.live_bytes + self._live.get(volume, 0),
                min(dead, default=0),
            )
            self.txn.put_volume(volume, row)
        self._live.clear()
        self._oldest_dead.clear()

    def snapshot(self) -> tuple[dict[int, int], dict[int, int]]:
        """The accounts as they are, for `restore` after a nested transaction was aborted."""
        return dict(self._live), dict(self._oldest_dead)

    def restore(self, txn: Txn, saved: tuple[dict[int, int], dict[int, int]]) -> None:
        self.txn = txn
        self._live, self._oldest_dead = saved

    # --- accounts ---------------------------------------------------------------------------------------------

    def _lives(self, place: Place) -> None:
        volume, _, length = place
        self._live[volume] = self._live.get(volume, 0) + length

    def _dies(self, place: Place, clock: int) -> None:
        self._live[place.volume] = self._live.get(place.volume, 0) - place.length
        oldest = self._oldest_dead.get(place.volume)
        if oldest is None or clock < oldest:
            self._oldest_dead[place.volume] = clock

    def _reference(self, manifest: Manifest | None) -> None:
        if not self._counting:
            return
        assert manifest is not None
        for ref in manifest.chunks():
            self.reference_chunk(ref)

    def reference_chunk(self, ref: ChunkRef) -> None:
        row = self.txn.chunk(ref.id)
        if row is None:
            row = ChunkRow(ref.volume, ref.offset, ref.length, 0)
        if row.references == 0:
            self._live[row.volume] = self._live.get(row.volume, 0) + chunk_record_length(row.length)
        self.txn.put(ref.id, row._replace(references=row.references + 1).pack(), self.txn.tables.chunks)

    def move_chunk(self, ref: ChunkRef) -> None:
        """The chunk is at another place from now on; its references stay."""
        row = self.txn.chunk(ref.id)
        if row is None:
            return
        if row.references:
            length = chunk_record_length(row.length)
            self._live[row.volume] = self._live.get(row.volume, 0) - length
            self._live[ref.volume] = self._live.get(ref.volume, 0) + length
        self.txn.put(
            ref.id,
            ChunkRow(ref.volume, ref.offset, row.length, row.references).pack(),
            self.txn.tables.chunks,
        )

    def _release(self, place: Place) -> None:
        if not self._counting:
            return
        try:
            chunks = (self._manifests.get(place) or self._read_manifest(place)).chunks()
        except (Corrupt, OSError) as error:
            # The chunks stay counted: space that fsck gives back, never data that is lost.
            _log.warning("chunk references of a removed object were kept: %s", error)
            return
        for ref in chunks:
            row = self.txn.chunk(ref.id)
            if row is None or not row.references:
                raise Corrupt(
                    f"the index counts no reference to chunk {ref.id.hex()}, which a removed object names; "
                    "`cordwood fsck --repair` counts anew"
                )
            if row.references == 1:
                self._live[row.volume] = self._live.get(row.volume, 0) - chunk_record_length(row.length)
            self.txn.put(ref.id, row._replace(references=row.references - 1).pack(), self.txn.tables.chunks)

    def _object_dies(self, row: ObjectRow) -> None:
        self._dies(row.place, row.clock)
        if not row.flags & (RowFlag.INLINE | RowFlag.MARKER):
            self._release(row.place)
        if row.flags & RowFlag.NOTED:
            about = self.txn.attrs(row.clock)
            if about is not None:
                if about.clock:
                    self._dies(about.place, about.clock)
                self.txn.delete(id_key(row.clock), self.txn.tables.attrs)

    # --- objects ----------------------------------------------------------------------------------------------

    def enter(self, key: bytes, packed: bytes) -> None:
        """A plain object (see `is_plain`) by its entry key and row, without its head. Not while counting."""
        assert not self._counting
        row = ObjectRow.unpack(packed)
        self._lives(row.place)
        txn = self.txn
        if not txn.add(key, packed, txn.tables.entries):
            before = txn.get(key, txn.tables.entries)
            assert before is not None
            txn.put(key, self._over(ObjectRow.unpack(before), row).pack(), txn.tables.entries)

    def enter_behind(self, rows: list[tuple[bytes, bytes]]) -> None:
        """Like `enter` for many, in the order of their keys, all of which come behind every key that is there."""
        assert not self._counting
        self.txn.append(rows, self.txn.tables.entries)
        live = self._live
        for _, packed in rows:
            volume, length = where_of(packed)
            live[volume] = live.get(volume, 0) + length

    def _apply_object(self, clock: int, place: Place, head: ObjectHead, manifest: Manifest | None) -> None:
        txn = self.txn
        packed = pack_row(clock, *place, head)
        self._lives(place)
        if not namespace.add_entry(txn, head.directory, head.name, packed):
            before = namespace.get_entry(txn, head.directory, head.name)
            assert before is not None
            old = ObjectRow.unpack(before)
            row = self._over(old, ObjectRow.unpack(packed))
            namespace.put_entry(txn, head.directory, head.name, row.pack())
            if old.clock == clock:
                return
        if head.attrs and (lock := locks.lock_of(head.attrs)) != locks.OPEN:
            txn.put(id_key(clock), AttrsRow(0, NO_PLACE, *lock).pack(), txn.tables.attrs)
        if head.layout == Layout.CHUNKED:
            if head.upload and txn.upload(head.bucket, head.upload) is not None:
                self._inherit_parts(head, manifest)
            else:
                self._reference(manifest)

    def _over(self, old: ObjectRow, row: ObjectRow) -> ObjectRow:
        if old.clock != row.clock:
            return self._on_top_of(old, row)
        # The same record at a second place: a compaction that was interrupted.
        self._dies(old.place, old.clock)
        return row._replace(group=old.group, null_clock=old.null_clock, flags=old.flags)

    def _on_top_of(self, old: ObjectRow, row: ObjectRow) -> ObjectRow:
        """The new current row; the old one dies or becomes noncurrent, as S3's versioning has it."""
        txn = self.txn
        is_null = row.flags & RowFlag.NULL
        if is_null and old.flags & RowFlag.NULL:
            self._object_dies(old)
            return row._replace(group=old.group, null_clock=0)
        group = old.group or old.clock
        null_clock = old.clock if old.flags & RowFlag.NULL else old.null_clock
        if is_null and null_clock:
            self._remove_noncurrent(group, null_clock)
            null_clock = 0
        noncurrent = old._replace(group=0, null_clock=0)
        txn.put(version_key(group, old.clock), noncurrent.pack(), txn.tables.versions)
        return row._replace(group=group, null_clock=null_clock)

    def _remove_noncurrent(self, group: int, clock: int) -> bool:
        key = version_key(group, clock)
        row = self.txn.get(key, self.txn.tables.versions)
        if row is None:
            return False
        self._object_dies(ObjectRow.unpack(row))
        self.txn.delete(key, self.txn.tables.versions)
        return True

    def _inherit_parts(self, head: ObjectHead, manifest: Manifest | None) -> None:
        """The parts' chunk references pass to the object, without touching a chunk row; other parts are released."""
        kept = {part.number for part in manifest.parts()} if manifest is not None else set()
        for number, part in list(self.txn.parts(head.upload)):
            self._dies(part.place, part.clock)
            if number not in kept:
                self._release(part.place)
            self.txn.delete(part_key(head.upload, number), self.txn.tables.parts)
        self._remove_upload(head.bucket, head.upload)

    def _apply_delete(self, _clock: int, _place: Place, head: DeleteHead, _manifest: Manifest | None) -> None:
        before = namespace.get_entry(self.txn, head.directory, head.name)
        if before is None:
            return
        current = ObjectRow.unpack(before)
        version = 0 if current.flags & RowFlag.NULL else current.clock
        if head.version == version:
            self._object_dies(current)
            self._promote(head, current)
            return
        clock = head.version or current.null_clock
        if not current.group or not clock or not self._remove_noncurrent(current.group, clock):
            return
        changed = current
        if clock == current.null_clock:
            changed = changed._replace(null_clock=0)
        if not self.txn.has_prefix(id_key(current.group), self.txn.tables.versions):
            changed = changed._replace(group=0)
        if changed != current:
            namespace.put_entry(self.txn, head.directory, head.name, changed.pack())

    def _promote(self, head: DeleteHead, current: ObjectRow) -> None:
        """The newest noncurrent version takes the place of a removed current one; without any the key vanishes."""
        txn = self.txn
        if current.group:
            prefix = id_key(current.group)
            newest = next(txn.items(prefix, txn.tables.versions), None)
            if newest is not None:
                key, packed = newest
                txn.delete(key, txn.tables.versions)
                row = ObjectRow.unpack(packed)
                null_clock = 0 if row.flags & RowFlag.NULL else current.null_clock
                group = current.group if txn.has_prefix(prefix, txn.tables.versions) else 0
                row = row._replace(group=group, null_clock=null_clock)
                namespace.put_entry(txn, head.directory, head.name, row.pack())
                return
        namespace.remove_entry(txn, head.directory, head.name)
        self._emptied(head.bucket, head.directory)

    def _apply_attrs(self, clock: int, place: Place, head: AttrsHead, _manifest: Manifest | None) -> None:
        txn = self.txn
        packed = namespace.get_entry(txn, head.directory, head.name)
        if packed is None:
            return  # the version is gone; this record may outlive it in another volume
        row = current = ObjectRow.unpack(packed)
        if current.clock != head.version:
            key = version_key(current.group, head.version)
            noncurrent = txn.get(key, txn.tables.versions) if current.group else None
            if noncurrent is None:
                return
            row = ObjectRow.unpack(noncurrent)
        if not row.flags & RowFlag.NOTED:
            row = row._replace(flags=row.flags | RowFlag.NOTED)
            if row.clock == current.clock:
                namespace.put_entry(txn, head.directory, head.name, row.pack())
            else:
                txn.put(version_key(current.group, head.version), row.pack(), txn.tables.versions)
        old = txn.attrs(head.version)
        if old is not None and old.clock:
            self._dies(old.place, old.clock)
        self._lives(place)
        new = AttrsRow(clock, place, *locks.lock_of(head.attrs))
        txn.put(id_key(head.version), new.pack(), txn.tables.attrs)

    # --- directories and buckets ------------------------------------------------------------------------------

    def _emptied(self, bucket: int, directory: int) -> None:
        # A rebuild sees a history with holes: what a compaction dropped may have kept this directory alive at the time,
        # and something that lives may yet come into it. It removes empty directories once, at its end.
        if self._counting:
            self.vanish_if_empty(bucket, directory)

    def vanish_if_empty(self, bucket: int, directory: int) -> None:
        """Removes a directory that holds nothing, and then its parents likewise, up to the bucket's root."""
        txn = self.txn
        while directory != bucket and namespace.is_empty(txn, directory):
            row = txn.directory(directory)
            if row is None:
                return
            self._dies(row.place, row.clock)
            txn.delete(id_key(directory), txn.tables.directories)
            if namespace.find_directory(txn, row.parent, row.name) != directory:
                return
            namespace.remove_entry(txn, row.parent, row.name)
            directory = row.parent

    def _apply_directory(
        self, clock: int, place: Place, head: DirectoryHead, _manifest: Manifest | None
    ) -> None:
        txn = self.txn
        old = txn.directory(head.directory)
        self._lives(place)
        row = DirectoryRow(head.bucket, head.parent, clock, place, head.name)
        txn.put(id_key(head.directory), row.pack(), txn.tables.directories)
        if old is not None:
            self._dies(old.place, old.clock)
            if namespace.find_directory(txn, old.parent, old.name) == head.directory:
                namespace.remove_entry(txn, old.parent, old.name)
        namespace.put_directory(txn, head.parent, head.name, head.directory)
        if old is not None and old.parent != head.parent:
            self._emptied(head.bucket, old.parent)

    def _apply_bucket(self, clock: int, place: Place, head: BucketHead, _manifest: Manifest | None) -> None:
        txn = self.txn
        old = txn.bucket(head.name)
        if old is not None:
            self._dies(old.place, old.clock)
        if head.deleted:
            if old is not None:
                txn.delete(head.name.encode(), txn.tables.buckets)
            return
        self._lives(place)
        txn.put(head.name.encode(), BucketRow(clock, place, head).pack(), txn.tables.buckets)

    # --- multipart uploads ------------------------------------------------------------------------------------

    def _apply_upload(self, clock: int, place: Place, head: UploadHead, _manifest: Manifest | None) -> None:
        txn = self.txn
        if not head.ended:
            self._remove_upload(head.bucket, head.upload)
            self._lives(place)
            row = UploadRow(clock, place, head.secret, head.key)
            txn.put(upload_key(head.bucket, head.upload), row.pack(), txn.tables.uploads)
            return
        for number, part in list(txn.parts(head.upload)):
            self._dies(part.place, part.clock)
            self._release(part.place)
            txn.delete(part_key(head.upload, number), txn.tables.parts)
        self._remove_upload(head.bucket, head.upload)

    def _remove_upload(self, bucket: int, upload: int) -> None:
        old = self.txn.upload(bucket, upload)
        if old is not None:
            self._dies(old.place, old.clock)
            self.txn.delete(upload_key(bucket, upload), self.txn.tables.uploads)

    def _apply_part(self, clock: int, place: Place, head: PartHead, manifest: Manifest | None) -> None:
        txn = self.txn
        if txn.upload(head.bucket, head.upload) is None:
            return  # the upload ended; its records may outlive it in other volumes
        old = txn.part(head.upload, head.number)
        self._lives(place)
        row = PartRow(clock, place, head.size, head.md5, head.checksums)
        txn.put(part_key(head.upload, head.number), row.pack(), txn.tables.parts)
        if old is None or old.clock != clock:
            self._reference(manifest)
        if old is not None:
            self._dies(old.place, old.clock)
            if old.clock != clock:
                self._release(old.place)


def is_plain(head: ObjectHead) -> bool:
    """Whether the row of an object says all that a rebuild needs of its record before references are counted."""
    if head.upload or len(head.name) > namespace.PIECE_MAX:
        return False
    return not head.attrs or locks.lock_of(head.attrs) == locks.OPEN


def pack_row(clock: int, volume: int, offset: int, length: int, head: ObjectHead) -> bytes:
    """The index row of an object record."""
    flags = _CHECKSUM_TYPE_FLAG[head.checksum_type] | _LAYOUT_FLAG[head.layout]
    if head.null:
        flags |= RowFlag.NULL
    if head.attrs and locks.lock_of(head.attrs) != locks.OPEN:
        flags |= RowFlag.NOTED
    algorithms = 0
    for name in head.checksums:
        algorithms |= _ALGORITHM_BIT[name]
    return pack_object(
        flags,
        _CLASS_NUMBER[head.storage_class],
        algorithms,
        head.parts_count,
        volume,
        length,
        offset,
        clock,
        head.size,
        head.md5,
    )
