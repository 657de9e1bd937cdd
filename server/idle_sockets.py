"""The sockets on which no request is under way: which of them have something to read.

Theory of operation. Most requests are small, and answered at once; to wake a task of trio's for each of them, and to
tell the kernel each time to watch its socket once more, would cost as much as a third of what they are about. So all
sockets of a process stay in one epoll set, edge-triggered, from their first to their last day, and a single task asks
it. When something has come on a socket whose task waits here, that task's `look` is called in its place; the task wakes
only when there is something that `look` leaves to it.

Must not know: HTTP, what is read.

Invariant: `look` is called only for a task that waits here, and never again once it has returned False.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Final

import trio

_EVENTS: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET


class IdleSockets:
    """Made inside a running trio loop, one per process."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._waiting: dict[int, tuple[trio.lowlevel.Task, Callable[[], bool]]] = {}
        self._half_closed: set[int] = (
            set()
        )  # the kernel tells of an end only once, maybe together with what came before
        trio.lowlevel.spawn_system_task(self._run, name="cordwood idle sockets")

    def add(self, fd: int) -> None:
        self._epoll.register(fd, _EVENTS)

    def remove(self, fd: int) -> None:
        """To be called before the socket is closed."""
        self._epoll.unregister(fd)
        self._half_closed.discard(fd)

    async def wait(self, fd: int, look: Callable[[], bool]) -> None:
        """Until `look`, called now and whenever something has come, returns False.

        It must not raise, and has to read all that is there before it returns True: of the rest nobody would be told.
        """
        if not self._is_quiet(fd, look):
            return
        self._waiting[fd] = (trio.lowlevel.current_task(), look)

        def abort(_: Callable[[], None]) -> trio.lowlevel.Abort:
            del self._waiting[fd]
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def _is_quiet(self, fd: int, look: Callable[[], bool]) -> bool:
        """Whether `look` has seen to all that has come, the end of the stream among it."""
        while look():
            if fd not in self._half_closed:
                return True
        return False

    async def _run(self) -> None:
        waiting = self._waiting
        try:
            while True:
                await trio.lowlevel.wait_readable(self._epoll)
                for fd, events in self._epoll.poll(0):
                    if events & select.EPOLLRDHUP:
                        self._half_closed.add(fd)
                    entry = waiting.get(fd)
                    if entry is None:
                        continue  # its task looks by itself before it waits again
                    task, look = entry
                    if not self._is_quiet(fd, look):
                        del waiting[fd]
                        trio.lowlevel.reschedule(task)
        finally:
            self._epoll.close()
