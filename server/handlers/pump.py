"""A large body on its way into a writer: the loop fills buffers, one thread decodes and stores, another takes the MD5.

Must not know: sockets, which operation it serves, what a digest is compared with.

Theory. Of all that is done to a body MD5 takes longest (1.2 ms of processor time a MiB; the rest together half of
that), and one MD5 cannot be divided. So it has a lane of its own and never waits while there are bytes: a lane does its
work in order, in a thread of the bridge, for as long as it has any. A buffer goes round: filled by the loop, decoded
and stored by the first lane, digested by the second, free again when both are done with it.

Invariants:
* When `pump` returns or raises, no thread uses the writer, the sink or a buffer.
* Nothing is stored or digested behind the first failure, and that failure is what `pump` raises.
* A body holds at most _MOST_BUFFERS buffers, one when there is a crowd, and what its writer gathers for a chunk.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Final, Generic, Protocol, TypeVar

from cordwood.server.bridge import Bridge
from cordwood.server.buffers import Buffers
from cordwood.server.wire.aws_chunked import Piece
from cordwood.server.wire.message import Body

_MOST_BUFFERS: Final = 4
_ALONE_BYTES: Final = 256 << 10  # up to this a second thread's waking costs more than it gains
_ITEMS_IN_A_ROW: Final = 2  # then a lane lets others have the thread

T = TypeVar("T")


class Sink(Protocol):
    """What happens to the bytes. `decode` and `store` are called by one thread at a time, `digest` by another."""

    def decode(self, data: memoryview) -> Sequence[Piece]:
        """The payload within what was received; its pieces may be views of `data`."""
        ...

    def store(self, piece: Piece) -> None: ...
    def digest(self, piece: Piece) -> None: ...
    def flush(self) -> None:
        """Everything has been stored."""
        ...


async def pump(bridge: Bridge, buffers: Buffers, body: Body, size: int | None, sink: Sink) -> None:
    """Move a body of `size` raw bytes (None: only its end will tell) into `sink`."""
    flow = _Flow(bridge, buffers, sink, is_short=size is not None and size <= _ALONE_BYTES)
    try:
        left = size
        while left != 0:
            filled = await flow.take()
            view = memoryview(filled.buffer)
            if left is not None:
                view = view[:left]
            have = 0
            while have < len(view) and (got := await body.receive_into(view[have:])):
                have += got
            if left is not None:
                left -= have
            is_last = left == 0 or have < len(view)
            flow.push(filled, view[:have], is_last=is_last)
            if is_last:
                break
    finally:
        await flow.end()
    flow.check()


class _Filled:
    __slots__ = ("buffer", "pieces", "users", "view")

    def __init__(self, buffer: bytearray) -> None:
        self.buffer = buffer
        self.view = memoryview(buffer)
        self.pieces: Sequence[Piece] = ()
        self.users = 0


class _Flow:
    """One body: its buffers, its two lanes, its failure."""

    def __init__(self, bridge: Bridge, buffers: Buffers, sink: Sink, *, is_short: bool) -> None:
        self._bridge = bridge
        self._buffers = buffers
        self._sink = sink
        self._storing = _Lane(bridge.submit, self._store)
        self._digesting = None if is_short else _Lane(bridge.compute, self._digest)
        self._all: list[_Filled] = []
        self._free: deque[_Filled] = deque()
        self._lock = threading.Lock()
        self._awaited: Future[None] | None = None
        self._last: _Filled | None = None
        self._failure: BaseException | None = None

    # -- on the loop -----------------------------------------------------------------------------------------

    async def take(self) -> _Filled:
        """A free buffer; raises the failure of an earlier one."""
        while True:
            self.check()
            with self._lock:
                if self._free:
                    return self._free.popleft()
                may_grow = not self._all or (len(self._all) < _MOST_BUFFERS and self._buffers.is_plentiful)
                if not may_grow:
                    awaited = self._awaited = Future()
            if may_grow:
                filled = _Filled(self._buffers.take())
                self._all.append(filled)
                return filled
            await self._bridge.wait(awaited)

    def push(self, filled: _Filled, view: memoryview, *, is_last: bool) -> None:
        filled.view = view
        filled.users = 1
        if is_last:
            self._last = filled
        self._storing.push(filled)

    async def end(self) -> None:
        """Wait until no thread has a buffer any more, and give them back."""
        while True:
            with self._lock:
                if not any(filled.users for filled in self._all):
                    break
                awaited = self._awaited = Future()
            await self._bridge.join(awaited)
        for filled in self._all:
            filled.pieces = ()
            self._buffers.give_back(filled.buffer)
        self._all.clear()

    def check(self) -> None:
        if self._failure is not None:
            raise self._failure

    # -- in threads ------------------------------------------------------------------------------------------

    def _store(self, filled: _Filled) -> None:
        sink = self._sink
        try:
            if self._failure is None:
                pieces = sink.decode(filled.view)
                if self._digesting is not None:
                    filled.pieces = pieces
                    with self._lock:
                        filled.users += 1
                    self._digesting.push(filled)
                for piece in pieces:
                    if self._digesting is None:
                        sink.digest(piece)
                    sink.store(piece)
                if filled is self._last:
                    sink.flush()
        except BaseException as failure:
            self._failure = self._failure or failure
        self._release(filled)

    def _digest(self, filled: _Filled) -> None:
        try:
            if self._failure is None:
                for piece in filled.pieces:
                    self._sink.digest(piece)
        except BaseException as failure:
            self._failure = self._failure or failure
        self._release(filled)

    def _release(self, filled: _Filled) -> None:
        with self._lock:
            filled.users -= 1
            if filled.users:
                return
            self._free.append(filled)
            awaited, self._awaited = self._awaited, None
        if awaited is not None:
            awaited.set_result(None)


class _Lane(Generic[T]):
    """Work for one body, done in order, by at most one thread at a time. `work` must not raise."""

    def __init__(self, start: Callable[[Callable[[], None]], object], work: Callable[[T], None]) -> None:
        self._start = start
        self._work = work
        self._items: deque[T] = deque()
        self._lock = threading.Lock()
        self._is_running = False

    def push(self, item: T) -> None:
        with self._lock:
            self._items.append(item)
            if self._is_running:
                return
            self._is_running = True
        self._start(self._run)

    def _run(self) -> None:
        for _ in range(_ITEMS_IN_A_ROW):
            with self._lock:
                if not self._items:
                    self._is_running = False
                    return
                item = self._items.popleft()
            self._work(item)
        self._start(self._run)
