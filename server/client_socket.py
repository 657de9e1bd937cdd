"""A client's socket under a trio loop: receive, send, sendfile, and the time that a client may take for each.

Must not know: HTTP, requests, the application.

Theory of operation. The socket is used directly (a non-blocking call first, waiting only on EAGAIN), because trio's own
`recv` and `send` pass through the scheduler even when they need not. No call has a cancel scope of its own: a socket
writes down until when it is willing to wait (`deadline`), and one sweep per process, four times a second, shuts down
those whose time is over. A shut-down socket becomes readable or writable at once, so the waiting call returns by
itself, in its own place, and `expired` tells why.

Time is charged only while we wait for the client. A budget of seconds (`body_timeout_s`, `send_timeout_s`) drains while
waiting and is refilled by the bytes that pass, at `min_bytes_per_s`: so a client may pause, but not trickle forever.

Invariants:
* At most one task waits on a socket.
* Once `expired` is set nothing more is received.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

_SENDFILE_BYTES: Final = 1 << 20
_TURN_BYTES: Final = 2 << 20  # bytes that may come or go without giving other connections a turn
_SWEEP_S: Final = 0.25
_ABANDON_AFTER_S: Final = 1.0
FOREVER: Final = float("inf")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may take. Timeouts are looked at four times a second."""

    max_head_bytes: int = 32 << 10
    max_headers: int = 200
    head_timeout_s: float = 30.0
    """From the first byte of a head to its end."""
    idle_timeout_s: float = 75.0
    """Between requests."""
    body_timeout_s: float = 60.0
    """Longest silence in a request body; drained by waiting and refilled by bytes."""
    send_timeout_s: float = 60.0
    """The same for a response and its reader."""
    min_bytes_per_s: int = 1024
    drain_bytes: int = 256 << 10
    """An unread request body up to this size is read and thrown away to keep the connection."""
    linger_s: float = 2.0
    """Before a connection with unread input is closed, how long its client may take to read the answer."""
    linger_bytes: int = 16 << 20


class Gone(Exception):
    """The client cannot be reached any more, or took too long to read."""


class ClientSocket:
    """Owns `raw`. Use `with`: leaving closes the socket, and resets the connection on `Gone`."""

    __slots__ = (
        "_body_budget_s",
        "_is_sending",
        "_limits",
        "_raw",
        "_send_budget_s",
        "_stopping",
        "_sweep",
        "_turn_bytes",
        "abandon",
        "address",
        "busy_since",
        "deadline",
        "expired",
        "fd",
        "is_idle",
    )

    def __init__(self, raw: socket.socket, limits: Limits, stopping: trio.Event) -> None:
        raw.setblocking(False)
        self._raw = raw
        self.fd = raw.fileno()
        self._limits = limits
        self._stopping = stopping
        self._is_sending = False
        self._turn_bytes = 0
        self._body_budget_s = limits.body_timeout_s
        self._send_budget_s = limits.send_timeout_s
        self.deadline = FOREVER
        self.expired = False
        """Set by the sweep when the deadline has passed."""
        self.is_idle = False
        """Waiting for a request that has not begun: ends when `stopping` is set."""
        self.busy_since = FOREVER
        """When work began that may be dropped if the client leaves; after a second of it, `abandon` is called."""
        self.abandon: Callable[[], None] = _nothing
        self.address = ""
        try:
            if raw.family != socket.AF_UNIX:
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.address = raw.getpeername()[0]
        except OSError:
            pass  # gone already; the first receive says so
        self._sweep = _current_sweep()
        self._sweep.sockets.add(self)

    def close(self) -> None:
        self._sweep.sockets.discard(self)
        trio.lowlevel.notify_closing(self._raw)
        self._raw.close()

    def reset(self) -> None:
        """Make the coming close a reset, and forget what is still unsent."""
        try:
            self._raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            pass

    def finish_sending(self) -> bool:
        """Tell the client that no more will come. Returns whether it is still there."""
        try:
            self._raw.shutdown(socket.SHUT_WR)
        except OSError:
            return False
        return True

    def refill_budgets(self) -> None:
        """To be called when a request begins."""
        self._body_budget_s = self._limits.body_timeout_s
        self._send_budget_s = self._limits.send_timeout_s

    # -- receiving -------------------------------------------------------------------------------------------

    def receive_now(self, size: int) -> bytes | None:
        """What is there; b"" when no more will come, None when one has to wait."""
        if self.expired:
            return b""
        try:
            return self._raw.recv(size)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return b""

    async def receive(self, size: int) -> bytes:
        """Body bytes, b"" when no more will come. Waits within the body budget."""
        await self._give_a_turn()
        data = self.receive_now(size)
        if data is None:
            begin = self._begin_to_wait()
            while data is None:
                await trio.lowlevel.wait_readable(self.fd)
                data = self.receive_now(size)
            self._end_waiting(begin, len(data))
        self._turn_bytes += len(data)
        return data

    async def receive_into(self, buffer: memoryview) -> int:
        """The same into a buffer: how many bytes, 0 when no more will come."""
        await self._give_a_turn()
        count = self._receive_into_now(buffer)
        if count is None:
            begin = self._begin_to_wait()
            while count is None:
                await trio.lowlevel.wait_readable(self._raw)
                count = self._receive_into_now(buffer)
            self._end_waiting(begin, count)
        self._turn_bytes += count
        return count

    def _receive_into_now(self, buffer: memoryview) -> int | None:
        if self.expired:
            return 0
        try:
            return self._raw.recv_into(buffer)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return 0

    def _begin_to_wait(self) -> float:
        self._turn_bytes = 0
        begin = time.monotonic()
        self.deadline = begin + self._body_budget_s
        return begin

    def _end_waiting(self, begin: float, count: int) -> None:
        self.deadline = FOREVER
        limits = self._limits
        self._body_budget_s = min(
            limits.body_timeout_s,
            self._body_budget_s - (time.monotonic() - begin) + count / limits.min_bytes_per_s,
        )

    async def _give_a_turn(self) -> None:
        """A client as fast as we are would never make us wait, and nobody else would be served."""
        if self._turn_bytes > _TURN_BYTES:
            self._turn_bytes = 0
            await trio.lowlevel.checkpoint()

    # -- sending ---------------------------------------------------------------------------------------------

    def send_now(self, data: bytes) -> bytes | memoryview:
        """Send what fits; the rest is returned. Raises Gone."""
        try:
            sent = self._raw.send(data)
        except (BlockingIOError, InterruptedError):
            return data
        except OSError as error:
            raise Gone from error
        return memoryview(data)[sent:] if sent < len(data) else b""

    async def send(self, data: bytes | memoryview, *, more: bool = False) -> None:
        """Send everything. `more`: hold the last partial packet back, for what follows at once. Raises Gone."""
        flags = socket.MSG_MORE if more else 0
        try:
            sent = self._raw.send(data, flags)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            raise Gone from error
        if sent < len(data):
            await self._send_rest(memoryview(data)[sent:], flags)

    async def _send_rest(self, rest: memoryview, flags: int) -> None:
        while rest:
            await self._wait_to_send()
            try:
                sent = self._raw.send(rest, flags)
            except (BlockingIOError, InterruptedError):
                continue
            except OSError as error:
                raise Gone from error
            self._refill_send_budget(sent)
            rest = rest[sent:]

    async def send_file(self, fd: int, offset: int, length: int) -> None:
        """Send a stretch of an open file from the page cache. Raises Gone."""
        out = self._raw.fileno()
        end = offset + length
        while offset < end:
            try:
                sent = os.sendfile(out, fd, offset, min(end - offset, _SENDFILE_BYTES))
            except (BlockingIOError, InterruptedError):
                await self._wait_to_send()
                continue
            except OSError as error:
                raise Gone from error
            if sent == 0:
                raise Gone("the file ends before the span does")
            self._refill_send_budget(sent)
            offset += sent
            self._turn_bytes += sent
            await self._give_a_turn()

    async def _wait_to_send(self) -> None:
        begin = time.monotonic()
        self._turn_bytes = 0
        self.deadline = begin + self._send_budget_s
        self._is_sending = True
        await trio.lowlevel.wait_writable(self.fd)
        self._is_sending = False
        self.deadline = FOREVER
        self._send_budget_s -= time.monotonic() - begin
        if self.expired:
            raise Gone("the client reads too slowly")

    def _refill_send_budget(self, sent: int) -> None:
        limits = self._limits
        self._send_budget_s = min(limits.send_timeout_s, self._send_budget_s + sent / limits.min_bytes_per_s)

    # -- the sweep -------------------------------------------------------------------------------------------

    def look(self, now: float) -> None:
        """Called by the sweep: end what has waited too long."""
        is_late = now >= self.deadline
        if is_late or (self.is_idle and self._stopping.is_set()):
            self.expired = self.expired or is_late
            self.deadline = FOREVER
            try:
                self._raw.shutdown(socket.SHUT_RDWR if self._is_sending else socket.SHUT_RD)
            except OSError:
                pass  # the client was faster
        elif now - self.busy_since > _ABANDON_AFTER_S and self._has_hung_up():
            self.busy_since = FOREVER
            self.abandon()

    def _has_hung_up(self) -> bool:
        poll = select.poll()
        poll.register(self._raw, select.POLLRDHUP)
        return bool(poll.poll(0))


class _Sweep:
    def __init__(self) -> None:
        self.sockets: set[ClientSocket] = set()

    async def run(self) -> None:
        while True:
            await trio.sleep(_SWEEP_S)
            now = time.monotonic()
            for each in tuple(self.sockets):
                each.look(now)


_SWEEP: Final[trio.lowlevel.RunVar[_Sweep]] = trio.lowlevel.RunVar("cordwood.client_socket.sweep")


def _current_sweep() -> _Sweep:
    try:
        return _SWEEP.get()
    except LookupError:
        sweep = _Sweep()
        _SWEEP.set(sweep)
        trio.lowlevel.spawn_system_task(sweep.run, name="cordwood connection sweep")
        return sweep


def _nothing() -> None:
    pass
