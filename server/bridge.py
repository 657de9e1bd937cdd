"""The only place where threads meet trio.

Must not know: HTTP, S3, what the calls that it runs do.
Invariants:
* Nothing that may block runs on the loop: `submit` and `run` hand it to one of at most `threads` worker threads. What
  takes only the processor, and much of it, has threads of its own (`compute`), one for each core: it must not keep
  those from their work who only need to read a file.
* A commit that finishes in the engine's own thread wakes the loop once, however many requests it finishes: the first
  finished future schedules one drain, the others only join the queue.
* Commits that begin in one pass of the loop go to the engine together: `committed` wakes its thread once, behind them.
* A cancelled waiter leaves the future alone: what was submitted is decided by the engine, not by the client's
  patience. `run` is not cancellable at all, so nothing that it touches is used by two threads.

Why the drain cannot miss a future: a producer appends first and looks at `_scheduled` second; the drain clears
`_scheduled` first and empties the queue second. Whatever the interleaving, an appended waiter is seen by this drain or
schedules the next one.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

import trio

from cordwood.engine import Pending

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Bridge:
    """Made inside a running trio loop, one per worker process."""

    def __init__(self, start_commits: Callable[[], None] = lambda: None, threads: int = 16) -> None:
        self._start_commits = start_commits
        self._starter: trio.lowlevel.Task | None = None
        trio.lowlevel.spawn_system_task(self._start_commits_behind)
        self._pool = ThreadPoolExecutor(threads, "cordwood-bridge")
        self._computing = ThreadPoolExecutor(os.cpu_count() or 1, "cordwood-compute")
        self._token = trio.lowlevel.current_trio_token()
        self._finished: deque[_Waiter] = deque()
        self._scheduled = False

    def submit(self, function: Callable[[*Ts], T], *args: *Ts) -> Future[T]:
        """Start `function` in a thread; whoever submits must `wait` or `join`."""
        return self._pool.submit(function, *args)

    def compute(self, function: Callable[[*Ts], T], *args: *Ts) -> Future[T]:
        """Start `function`, which never blocks, in a thread for such."""
        return self._computing.submit(function, *args)

    async def run(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Call `function` in a thread and wait for its end, come what may."""
        future = self._pool.submit(function, *args)
        await self.join(future)
        return future.result()

    async def join(self, future: Future[T]) -> None:
        """Wait for the end of a submitted call, whatever its outcome."""
        with trio.CancelScope(shield=True):
            try:
                await self.wait(future)
            except Exception:
                return

    async def committed(self, future: Pending[T] | Future[T]) -> T:
        """The outcome of a commit that was begun with `wake=False`."""
        starter, self._starter = self._starter, None
        if starter is not None:
            trio.lowlevel.reschedule(starter)
        return await self.wait(future)

    async def _start_commits_behind(self) -> None:
        """Runs one pass of the loop after the first commit of a pass, so behind those that came with it."""

        def abort(_: Callable[[], None]) -> trio.lowlevel.Abort:
            self._starter = None
            return trio.lowlevel.Abort.SUCCEEDED

        while True:
            # First of all, too: a commit may have begun before this task ran for the first time.
            self._start_commits()
            self._starter = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(abort)

    async def wait(self, future: Pending[T] | Future[T]) -> T:
        """The result of what another thread completes."""
        if future.done():
            return future.result()
        waiter = _Waiter(trio.lowlevel.current_task())

        def finished(_: object) -> None:
            self._finished.append(waiter)
            if not self._scheduled:
                self._scheduled = True
                try:
                    self._token.run_sync_soon(self._drain)
                except trio.RunFinishedError:
                    pass

        def abort(_: Callable[[], None]) -> trio.lowlevel.Abort:
            waiter.task = None
            return trio.lowlevel.Abort.SUCCEEDED

        future.add_done_callback(finished)
        await trio.lowlevel.wait_task_rescheduled(abort)
        return future.result()

    def _drain(self) -> None:
        self._scheduled = False
        finished = self._finished
        while finished:
            task = finished.popleft().task
            if task is not None:
                trio.lowlevel.reschedule(task)


class _Waiter:
    """`task` is None once the waiting task was cancelled."""

    __slots__ = ("task",)

    def __init__(self, task: trio.lowlevel.Task) -> None:
        self.task: trio.lowlevel.Task | None = task
