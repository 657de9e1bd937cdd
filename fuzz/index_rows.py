"""Fuzz the rows of the index, which LMDB does not checksum.

Invariant: any bytes unpack to a row that packs and unpacks to itself, or raise one of the errors that stand for a
damaged row (struct.error, msgspec's, ValueError, IndexError); nothing else, and nothing endless.

Must not know: LMDB.
"""

from __future__ import annotations

import struct

import msgspec

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
DAMAGED = (struct.error, msgspec.MsgspecError, ValueError, IndexError)


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
    except DAMAGED:
        return
    assert ROWS[kind].unpack(row.pack()).pack() == row.pack()
