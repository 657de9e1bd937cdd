"""Threads and the loop meet without losing a wake-up, and without one wake-up for every commit."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future

import pytest
import trio
import trio.testing

from cordwood.server.bridge import Bridge


async def test_a_result_and_an_error_come_through_from_a_thread() -> None:
    bridge = Bridge()

    def fail() -> None:
        raise ValueError("no")

    assert await bridge.run(lambda a, b: a + b, 1, 2) == 3
    with pytest.raises(ValueError, match="no"):
        await bridge.run(fail)


async def test_a_thousand_futures_of_one_batch_wake_the_loop_once() -> None:
    bridge = Bridge()
    futures: list[Future[int]] = [Future() for _ in range(1000)]
    results: list[int] = []
    drains = 0
    drain = bridge._drain

    def counted() -> None:
        nonlocal drains
        drains += 1
        drain()

    bridge._drain = counted  # type: ignore[method-assign]  # the count is the test

    async def wait(future: Future[int]) -> None:
        results.append(await bridge.wait(future))

    def finish() -> None:
        for number, future in enumerate(futures):
            future.set_result(number)

    async with trio.open_nursery() as nursery:
        for future in futures:
            nursery.start_soon(wait, future)
        await trio.testing.wait_all_tasks_blocked()
        thread = threading.Thread(target=finish)
        thread.start()
        # The loop does not run while this thread of execution waits, so the whole batch is one drain.
        thread.join()
    assert sorted(results) == list(range(1000))
    assert drains == 1


async def test_futures_finished_at_any_moment_are_all_seen() -> None:
    bridge = Bridge()
    seen = 0

    async def wait_for_many(delay_s: float) -> None:
        nonlocal seen
        for _ in range(200):
            future: Future[None] = Future()
            timer = threading.Timer(delay_s, future.set_result, (None,))
            timer.start()
            await bridge.wait(future)
            timer.join()
            seen += 1

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for delay_s in (0, 0.0001, 0.0003):
                nursery.start_soon(wait_for_many, delay_s)
    assert seen == 600


async def test_a_cancelled_waiter_leaves_the_future_to_finish() -> None:
    bridge = Bridge()
    future: Future[int] = Future()
    with trio.move_on_after(0.01) as scope:
        await bridge.wait(future)
    assert scope.cancelled_caught
    future.set_result(7)
    await trio.sleep(0.01)
    assert await bridge.wait(future) == 7


async def test_a_call_in_a_thread_is_waited_for_even_when_cancelled() -> None:
    bridge = Bridge()
    finished = []

    def slow() -> None:
        time.sleep(0.05)
        finished.append(1)

    with trio.move_on_after(0.001):
        await bridge.run(slow)
    assert finished == [1]


async def test_a_commit_begun_before_the_first_pass_of_the_loop_is_started() -> None:
    future: Future[int] = Future()
    begun: list[Future[int]] = []

    def start() -> None:
        for each in begun:
            each.set_result(1)

    bridge = Bridge(start)
    begun.append(future)
    with trio.fail_after(5):
        assert await bridge.committed(future) == 1


async def test_commits_of_one_pass_are_started_together_and_none_is_forgotten() -> None:
    begun: list[Future[int]] = []
    starts: list[int] = []

    def start() -> None:
        if begun:
            starts.append(len(begun))
        for each in begun:
            each.set_result(1)
        begun.clear()

    bridge = Bridge(start)
    await trio.testing.wait_all_tasks_blocked()

    async def commit_ten_times() -> None:
        for _ in range(10):
            future: Future[int] = Future()
            begun.append(future)
            assert await bridge.committed(future) == 1

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(commit_ten_times)
    assert sum(starts) == 200
    assert len(starts) < 60
