"""Fuzz the look at data.mdb that must come before LMDB maps it.

Invariant: any file passes or is refused as Corrupt; one that passes is as long as its newest meta page says.

Must not know: LMDB's other pages.
"""

from __future__ import annotations

import os
from pathlib import Path

from cordwood.engine.errors import Corrupt
from cordwood.engine.fs import FileSystem
from cordwood.engine.lengths import _newest_meta, check_lengths


class _Memory(FileSystem):
    """One file in memory, under every name."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def size_of(self, path: Path) -> int | None:
        return len(self.data)

    def open_read(self, path: Path) -> int:
        return -1

    def read(self, fd: int, length: int, offset: int) -> bytes:
        return self.data[offset : offset + length]

    def close(self, fd: int) -> None:
        pass


def one(data: bytes) -> None:
    try:
        check_lengths(_Memory(data), Path(os.devnull))
    except Corrupt:
        return
    meta = _newest_meta(data)
    assert not data or (meta is not None and len(data) >= (meta[1] + 1) * meta[0])
