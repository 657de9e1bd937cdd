"""Everything the index says, as plain values: two stores with equal dumps hold the same.

Must not know: volumes. It reads rows only.

Invariant: what may lawfully differ between a live index and one rebuilt from the same volumes is left out: ids of
version groups, chunk rows without references, the place of a chunk that was written twice.
"""

from __future__ import annotations

from typing import Any

from cordwood.engine import namespace
from cordwood.engine.index import Txn
from cordwood.engine.rows import AttrsRow, ChunkRow, ObjectRow, PartRow, RowFlag, UploadRow, id_key


def logical_dump(txn: Txn) -> dict[str, Any]:
    """Buckets, objects with all versions, directories, uploads, parts, chunk references and the live bytes."""
    objects = []
    for bucket in txn.buckets():
        for key, packed in namespace.walk(txn, bucket.head.bucket):
            assert isinstance(packed, bytes)
            current = ObjectRow.unpack(packed)
            objects.append((bucket.head.name, key, _version(current)))
            if current.group:
                for _, row in txn.items(id_key(current.group), txn.tables.versions):
                    objects.append((bucket.head.name, key, _version(ObjectRow.unpack(row))))
    chunks = {}
    for chunk_id, row in txn.items(b"", txn.tables.chunks):
        chunk = ChunkRow.unpack(row)
        if chunk.references:
            chunks[chunk_id] = (chunk.length, chunk.references)
    return {
        "buckets": [(row.clock, row.head) for row in txn.buckets()],
        "objects": objects,
        "versions": sum(1 for _ in txn.items(b"", txn.tables.versions)),
        "directories": list(txn.items(b"", txn.tables.directories)),
        "uploads": [(key, UploadRow.unpack(row)) for key, row in txn.items(b"", txn.tables.uploads)],
        "parts": [(key, PartRow.unpack(row)) for key, row in txn.items(b"", txn.tables.parts)],
        "attrs": [(key, AttrsRow.unpack(row)) for key, row in txn.items(b"", txn.tables.attrs)],
        "chunks": chunks,
        "live_bytes": sum(row.live_bytes for row in txn.volumes().values()),
    }


def _version(row: ObjectRow) -> ObjectRow:
    return row._replace(flags=row.flags & ~RowFlag.GROUPED, group=0, null_clock=0)
