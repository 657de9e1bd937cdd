"""Blocks that pass through us: in order, one ahead, and no thread left behind when the client goes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import cast

import pytest
import trio.testing

from cordwood.engine import ObjectReader
from cordwood.server.bridge import Bridge
from cordwood.server.buffers import Buffers
from cordwood.server.handlers.read import _stream


class Reader:
    """Gives `count` blocks, then fails or ends."""

    def __init__(self, count: int, *, fails: bool = False, slow_s: float = 0.0) -> None:
        self._count = count
        self._fails = fails
        self._slow_s = slow_s
        self.made = 0
        self.is_busy = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        for number in range(self._count):
            self.is_busy.set()
            time.sleep(self._slow_s)
            self.is_busy.clear()
            self.made += 1
            yield b"%d" % number
        if self._fails:
            raise OSError("a bad sector")

    def as_reader(self) -> ObjectReader:
        return cast(ObjectReader, self)


async def test_blocks_come_in_order_while_the_next_one_is_being_made() -> None:
    reader = Reader(5)
    found = []
    async for block in _stream(Bridge(), Buffers(), reader.as_reader()):
        found.append(block)
        while reader.made < min(len(found) + 1, 5):
            await trio.sleep(0.001)
        assert reader.made <= len(found) + 1
    assert found == [b"0", b"1", b"2", b"3", b"4"]


async def test_in_a_crowd_nothing_is_made_ahead() -> None:
    buffers = Buffers(limit=4)
    first, second = Reader(3), Reader(3)
    ahead = _stream(Bridge(), buffers, first.as_reader())
    behind = _stream(Bridge(), buffers, second.as_reader())
    assert await anext(ahead) == await anext(behind) == b"0"
    await trio.sleep(0.05)
    assert (first.made, second.made) == (2, 1)
    assert [block async for block in ahead] == [block async for block in behind] == [b"1", b"2"]
    assert buffers._out == 0


async def test_a_failure_comes_behind_the_blocks_before_it() -> None:
    found = []
    with pytest.raises(OSError, match="a bad sector"):
        async for block in _stream(Bridge(), Buffers(), Reader(2, fails=True).as_reader()):
            found.append(block)
    assert found == [b"0", b"1"]


@pytest.mark.parametrize("is_cancelled", [True, False])
async def test_a_stream_that_is_left_ends_when_its_thread_has_ended(is_cancelled: bool) -> None:
    reader = Reader(5, slow_s=0.1)
    stream = _stream(Bridge(), Buffers(), reader.as_reader())
    assert await anext(stream) == b"0"
    if is_cancelled:
        with trio.move_on_after(0.02):
            await anext(stream)
    with trio.CancelScope(shield=True):
        await stream.aclose()  # type: ignore[attr-defined]  # it is a generator
    assert not reader.is_busy.is_set() and reader.made == 2
