"""Fuzz the scan of a volume's bytes: whatever a disk gives back.

Invariant: a scan of any bytes ends, yields records in order whose CRCs hold and which lie within the file, and raises
nothing but a CordwoodError; what was sealed for another volume's salt is never believed.

Must not know: how records come to be.
"""

from __future__ import annotations

import os
from pathlib import Path

from cordwood.engine.errors import CordwoodError
from cordwood.engine.format import SUPERBLOCK_SIZE, RecordType, Superblock, decode_head
from cordwood.engine.fs import FileSystem
from cordwood.engine.volume import VolumeFile

STORE = bytes(range(16))
SALT = b"salt of the fuzz"
FRONT = Superblock(STORE, 1, SALT, 7, 0).pack()


class _Memory(FileSystem):
    """A file system of one file, in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, fd: int, length: int, offset: int) -> bytes:
        return self.data[offset : offset + length]

    def size(self, fd: int) -> int:
        return len(self.data)

    def close(self, fd: int) -> None:
        pass


def one(data: bytes) -> None:
    """The data stand behind a good superblock."""
    content = FRONT + data
    file = VolumeFile(_Memory(content), Path(os.devnull), 1, STORE, fd=1 << 30)
    position = SUPERBLOCK_SIZE
    for bodies in (True, False):
        position = SUPERBLOCK_SIZE
        for record in file.scan(position, len(content), bodies=bodies):
            header = record.header
            assert header.offset == position and header.length > 0
            position += header.length
            assert position <= len(content)
            assert len(record.head) == header.head_length
            assert not bodies or (record.body is not None and len(record.body) == header.body_length)
            if header.type not in (RecordType.CHUNK, 0):
                try:
                    decode_head(header.type, record.head, "fuzz")
                except CordwoodError:
                    pass
    found = file.find_valid(SUPERBLOCK_SIZE, len(content))
    assert found is None or found.offset + found.length <= len(content)
