"""What records of objects that were read lately say, decoded once.

A record never changes. So whoever reads one whose bytes are those that were decoded before knows what they mean: one
CRC32C over all of them then takes the place of the three in the record and of the decoding.

Must not know: how a row is found, who asks.

Invariants:
* Nothing is taken on trust: the bytes are read and compared at each read, and only then does an entry count.
* An entry belongs to one row of the index, byte by byte. The row is looked up at each read, so no answer is stale: a
  version that was replaced, moved or removed leaves an entry that nobody asks for any more.
* What is kept is bounded in bytes. A walk over more objects than fit does not push out all that are asked for often.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from random import random
from typing import Any

from crc32c import crc32c

from cordwood.engine.format import HEADER_SIZE, Header
from cordwood.engine.model import ObjectInfo
from cordwood.engine.rows import ObjectRow

_ENTRY_BYTES = 2048  # of the objects of one entry, and of what callers keep with it
_HEAD_FACTOR = 4  # a head takes so much more memory when it is decoded
_ADMITTED = 1 / 32


Memo = dict[object, Any]


class Entry:
    """One object's record: its header and head are `front_size` bytes, its body ends at `body_end`. A CRC is -1 where
    its bytes were not read."""

    __slots__ = (
        "body_end",
        "expected",
        "front_crc",
        "front_size",
        "info",
        "layout",
        "memo",
        "place",
        "row",
        "size",
        "whole_crc",
    )

    def __init__(
        self,
        row: ObjectRow,
        expected: tuple[int, bytes],
        info: ObjectInfo,
        layout: int,
        header: Header,
        data: bytes,
        *,
        is_whole: bool,
    ) -> None:
        """`data` was verified, against `header` too; it is the whole record or at least header and head."""
        self.row = row
        self.place = row.place
        self.expected = expected
        self.info = info
        self.layout = layout
        self.front_size = HEADER_SIZE + header.head_length
        self.body_end = self.front_size + header.body_length
        self.front_crc = crc32c(data[: self.front_size])
        self.whole_crc = crc32c(data) if is_whole else -1
        self.memo: Memo = {}
        """What a caller made of `info` and wants to find again with it: a few small things."""
        self.size = _ENTRY_BYTES + _HEAD_FACTOR * self.front_size


class Decoded:
    """The entries of one process, by their packed row."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._bytes = 0
        # In order, for a plain dict takes long to find its first item when many before it are gone.
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self._is_full = not limit_bytes
        self._lock = threading.Lock()
        self.get = self._entries.get

    def __len__(self) -> int:
        return len(self._entries)

    def admits(self) -> bool:
        """Is it worth while to make another entry? Mostly not when one that is there would have to go for it."""
        if not self._is_full:
            return True
        # By chance, so that no order of reads keeps any object out for good.
        return random() < _ADMITTED and self._limit_bytes > 0

    def add(self, packed: bytes, entry: Entry) -> None:
        with self._lock:
            before = self._entries.pop(packed, None)
            if before is not None:
                self._bytes -= before.size
            if entry.size > self._limit_bytes:
                return
            while self._bytes + entry.size > self._limit_bytes:
                self._is_full = True
                self._bytes -= self._entries.popitem(last=False)[1].size
            self._entries[packed] = entry
            self._bytes += entry.size
