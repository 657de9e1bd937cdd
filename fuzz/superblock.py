"""Fuzz the first 4 KiB of a volume.

Invariant: any bytes are a superblock that packs to the same bytes again, or are refused as Corrupt or of another
format.

Must not know: files.
"""

from __future__ import annotations

from cordwood.engine.errors import Corrupt, UnsupportedFormat
from cordwood.engine.format import SUPERBLOCK_SIZE, Superblock


def one(data: bytes) -> None:
    try:
        block = Superblock.unpack(data, "fuzz")
    except (Corrupt, UnsupportedFormat):
        return
    again = Superblock.unpack(block.pack(), "fuzz")
    assert again == block
    assert len(data) >= SUPERBLOCK_SIZE
