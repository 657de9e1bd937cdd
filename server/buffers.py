"""The buffers that request bodies are received into: made once, used again, and bounded for the whole process.

Must not know: sockets, who fills them.

Invariants:
* Of the large buffers at most `limit` are out at a time; who comes then gets a small one, so that many slow clients
  hold little.
* Used from the loop only, like everything that has no lock.
"""

from __future__ import annotations

import os
from typing import Final

import trio

LARGE_BYTES: Final = (
    1 << 20
)  # an engine's chunk by default: a body of plain bytes then goes to the disk from here
SMALL_BYTES: Final = 64 << 10
_MAKING: Final = 4


class Buffers:
    """One per worker process."""

    def __init__(self, limit: int = 32) -> None:
        self.making = trio.CapacityLimiter(max(_MAKING, os.cpu_count() or 1))
        """Held while a block is made that takes more memory than itself meanwhile."""
        self._limit = limit
        self._idle: list[bytearray] = []
        self._out = 0

    @property
    def is_plentiful(self) -> bool:
        """Whether somebody who has a buffer may take another one."""
        return self._out < self._limit // 2

    def borrow(self) -> bool:
        """Whether the caller may hold as much as a large buffer besides what it must; then it has to `repay`."""
        if self._out >= self._limit // 4:
            return False
        self._out += 1
        return True

    def repay(self) -> None:
        self._out -= 1

    def take(self) -> bytearray:
        """A buffer with anything in it."""
        if self._out >= self._limit:
            return bytearray(SMALL_BYTES)
        self._out += 1
        return self._idle.pop() if self._idle else bytearray(LARGE_BYTES)

    def give_back(self, buffer: bytearray) -> None:
        """What was taken, once nobody looks at it any more."""
        if len(buffer) == LARGE_BYTES:
            self._out -= 1
            self._idle.append(buffer)
