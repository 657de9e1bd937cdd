"""A body on its way through threads: whole and in order, or a failure after which nobody touches anything."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable, Sequence

import pytest
import trio
import trio.testing

from cordwood.server.bridge import Bridge
from cordwood.server.buffers import LARGE_BYTES, SMALL_BYTES, Buffers
from cordwood.server.handlers.pump import pump
from cordwood.server.wire.aws_chunked import Piece
from cordwood.server.wire.message import ClientDisconnected

MIB = 1 << 20


class Source:
    """A body whose bytes arrive in pieces of random sizes, or that fails at `breaks_at`."""

    def __init__(self, data: bytes, seed: int, *, breaks_at: int | None = None) -> None:
        self._data = data
        self._at = 0
        self._random = random.Random(seed)
        self._breaks_at = breaks_at

    async def receive(self) -> bytes:
        raise AssertionError("it is received into buffers")

    async def receive_into(self, buffer: memoryview) -> int:
        await trio.lowlevel.checkpoint()
        if self._breaks_at is not None and self._at >= self._breaks_at:
            raise ClientDisconnected("gone")
        count = min(self._random.choice([1, 1000, 70_000, 3 * MIB]), len(buffer), len(self._data) - self._at)
        buffer[:count] = self._data[self._at : self._at + count]
        self._at += count
        return count


class Taker:
    """A sink that notices being used by two threads at once, or behind its end."""

    def __init__(self, *, fails: Callable[[str, int], bool] = lambda step, size: False) -> None:
        self.stored = bytearray()
        self.digested = hashlib.sha1()
        self.flushed = 0
        self.is_over = False
        self.faults: list[str] = []
        self._fails = fails
        self._busy = {"store": threading.Lock(), "digest": threading.Lock()}

    def _step(self, name: str, work: Callable[[], None]) -> None:
        lock = self._busy["digest" if name == "digest" else "store"]
        if self.is_over or not lock.acquire(blocking=False):
            self.faults.append(name)
            return
        try:
            if self._fails(name, len(self.stored)):
                raise OSError(f"{name} failed")
            work()
        finally:
            lock.release()

    def decode(self, data: memoryview) -> Sequence[Piece]:
        self._step("decode", lambda: None)
        middle = len(data) // 2
        return (data[:middle], data[middle:])

    def store(self, piece: Piece) -> None:
        self._step("store", lambda: self.stored.extend(piece))

    def digest(self, piece: Piece) -> None:
        self._step("digest", lambda: self.digested.update(piece))

    def flush(self) -> None:
        def flush() -> None:
            self.flushed += 1

        self._step("flush", flush)


def idle(buffers: Buffers) -> bool:
    return buffers._out == 0


@pytest.mark.parametrize("is_size_known", [True, False])
@pytest.mark.parametrize("size", [1, 1000, SMALL_BYTES, 300_000, MIB - 1, MIB, MIB + 1, 7 * MIB + 5])
async def test_what_arrives_is_stored_and_digested_whole_and_in_order(size: int, is_size_known: bool) -> None:
    bridge, buffers = Bridge(), Buffers()
    for seed in range(3):
        data = random.Random(seed).randbytes(size)
        taker = Taker()
        await pump(bridge, buffers, Source(data, seed), size if is_size_known else None, taker)
        taker.is_over = True
        assert taker.stored == data
        assert taker.digested.digest() == hashlib.sha1(data).digest()
        assert (taker.flushed, taker.faults) == (1, [])
        assert idle(buffers)


@pytest.mark.parametrize("step", ["decode", "store", "digest", "flush"])
async def test_the_first_failure_of_a_thread_ends_the_body(step: str) -> None:
    bridge, buffers = Bridge(), Buffers()
    failed: list[int] = []
    behind: list[str] = []

    def fails(name: str, size: int) -> bool:
        if failed and (name == "digest") == (step == "digest"):
            behind.append(name)
        if name == step and (size >= 2 * MIB or step == "flush"):
            failed.append(size)
        return bool(failed) and name == step

    taker = Taker(fails=fails)
    with pytest.raises(OSError, match=f"{step} failed"):
        await pump(bridge, buffers, Source(bytes(9 * MIB), 1), 9 * MIB, taker)
    taker.is_over = True
    stored = len(taker.stored)
    await trio.sleep(0.05)
    assert (len(taker.stored), taker.faults, behind) == (stored, [], [])
    assert idle(buffers)


async def test_a_client_that_leaves_ends_the_body_when_no_thread_works_on_it_any_more() -> None:
    bridge, buffers = Bridge(), Buffers()

    def slow(name: str, size: int) -> bool:
        time.sleep(0.02)
        return False

    taker = Taker(fails=slow)
    with pytest.raises(ClientDisconnected):
        await pump(bridge, buffers, Source(bytes(9 * MIB), 1, breaks_at=5 * MIB), 9 * MIB, taker)
    taker.is_over = True
    await trio.sleep(0.1)
    assert (taker.flushed, taker.faults) == (0, [])
    assert idle(buffers)


async def test_a_cancelled_body_leaves_nothing_running() -> None:
    bridge, buffers = Bridge(), Buffers()
    begun = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def slow(name: str, size: int) -> bool:
        token.run_sync_soon(begun.set)
        time.sleep(0.02)
        return False

    taker = Taker(fails=slow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump, bridge, buffers, Source(bytes(30 * MIB), 1), 30 * MIB, taker)
        await begun.wait()
        nursery.cancel_scope.cancel()
    taker.is_over = True
    await trio.sleep(0.1)
    assert (taker.flushed, taker.faults) == (0, [])
    assert idle(buffers)


async def test_many_bodies_at_once_share_a_bounded_number_of_buffers() -> None:
    bridge, buffers = Bridge(), Buffers(limit=4)
    most = 0
    takers = [Taker() for _ in range(12)]
    data = random.Random(1).randbytes(3 * MIB)

    class Watched(Source):
        async def receive_into(self, buffer: memoryview) -> int:
            nonlocal most
            most = max(most, buffers._out)
            return await super().receive_into(buffer)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for number, taker in enumerate(takers):
                nursery.start_soon(pump, bridge, buffers, Watched(data, number), len(data), taker)
    assert all(taker.stored == data and taker.faults == [] for taker in takers)
    assert most == 4 and idle(buffers)
    assert len(buffers.take()) == LARGE_BYTES
