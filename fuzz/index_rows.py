"""Fuzz the rows of the index, which LMDB does not checksum.

Invariant: any bytes unpack to a row that packs and unpacks to itself, or raise Corrupt; nothing else, and nothing
endless.

Must not know: LMDB.
"""

from __future__ import annotations

from cordwood.engine.errors import Corrupt
from cordwood.engine.rows import (
    BucketRow,
    ChunkRow,
    DirectoryRow,
    ObjectRow,
    PartRow,
    UploadRow,
    VolumeRow,
    unpack_directory_entry,
)

ROWS = (ObjectRow, DirectoryRow, BucketRow, ChunkRow, UploadRow, PartRow, VolumeRow)


def one(data: bytes) -> None:
    """The first byte chooses the kind of row."""
    if not data:
        return
    kind = data[0] % (len(ROWS) + 1)
    try:
        if kind == len(ROWS):
            assert unpack_directory_entry(data[1:]) >= 0
            return
        row = ROWS[kind].unpack(data[1:])
    except Corrupt:
        return
    assert ROWS[kind].unpack(row.pack()).pack() == row.pack()
