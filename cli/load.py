"""A load generator that costs little: prepared HTTP/1.1 requests over non-blocking sockets, one epoll loop.

Theory: everything that a client usually does per request (sign, format, hash) is done before the clock starts. What
is left is one send, one wait and one or more receives. The CPU that even this costs is measured and reported with
every result, since on a small machine it is taken from the server.

Must not know: S3, commands, what the requests mean.

Invariants:
* A request's latency is counted from its first byte sent to the last byte of its answer.
* Bodies differ from each other in every 64 KiB, so that a store which deduplicates has nothing to find.
* Ends after its time or its requests, whichever comes first; requests under way are finished, up to a bound.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_STRIPE = 64 << 10
_UNIQUE = 16
_STRIPES_PER_SEND = 16
_RECEIVE = 512 << 10
_LAST_CHUNK = b"0\r\n\r\n"
_GRACE_S = 120.0  # for requests that are under way when the time is over

_filler = os.urandom(_STRIPE)


@dataclass(frozen=True)
class Place:
    """Where to connect."""

    host: str
    port: int
    tls: ssl.SSLContext | None


@dataclass(frozen=True)
class Prepared:
    """One request, ready to be sent."""

    head: bytes
    body_size: int = 0
    is_head: bool = False
    """The answer has no body whatever its headers say (RFC 9112 section 6.3)."""


@dataclass
class Tally:
    """What happened. Latencies are those of successful requests, in seconds."""

    latencies_s: array[float] = field(default_factory=lambda: array("d"))
    sent: int = 0
    """Requests taken from the list: the first `sent` of them were tried."""
    failed: int = 0
    first_failure: str = ""
    received_bytes: int = 0
    took_s: float = 0.0
    cpu_s: float = 0.0

    def add(self, other: Tally) -> None:
        self.latencies_s.extend(other.latencies_s)
        self.sent += other.sent
        self.failed += other.failed
        self.first_failure = self.first_failure or other.first_failure
        self.received_bytes += other.received_bytes
        self.took_s = max(self.took_s, other.took_s)
        self.cpu_s += other.cpu_s


def run(
    place: Place, requests: Sequence[Prepared], *, connections: int, seconds: float, repeats: bool
) -> Tally:
    """Send the requests over `connections` sockets. `repeats` starts again at the first when they run out."""
    loop = _Loop(place, requests, repeats)
    for _ in range(min(connections, len(requests)) if not repeats else connections):
        loop.connect()
    cpu_s = time.process_time()
    began_s = time.perf_counter()
    loop.run(began_s + seconds)
    loop.tally.took_s = time.perf_counter() - began_s
    loop.tally.cpu_s = time.process_time() - cpu_s
    loop.close()
    return loop.tally


class _Connection:
    __slots__ = (
        "body_left",
        "body_size",
        "buffer",
        "chunked",
        "closes",
        "head_done",
        "is_busy",
        "is_head",
        "left",
        "out",
        "sock",
        "start_s",
    )

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.out: list[memoryview] = []
        self.body_left = 0
        self.body_size = 0
        self.start_s = 0.0
        self.is_head = False
        self.is_busy = False
        self.closes = False
        self._expect()

    def _expect(self) -> None:
        self.buffer = b""
        self.head_done = False
        self.chunked = False
        self.left = 0

    def begin(self, request: Prepared) -> None:
        self._expect()
        self.out = [memoryview(request.head)]
        self.body_left = self.body_size = request.body_size
        self.is_head = request.is_head
        self._more()

    def _more(self) -> None:
        """The next stripes of the body: a few fresh bytes and the common filler, each."""
        for _ in range(_STRIPES_PER_SEND):
            if not self.body_left:
                return
            size = min(_STRIPE, self.body_left)
            unique = os.urandom(min(_UNIQUE, size))
            self.out.append(memoryview(unique))
            if size > _UNIQUE:
                self.out.append(memoryview(_filler)[_UNIQUE:size])
            self.body_left -= size

    def send(self) -> bool:
        """True when the whole request has left."""
        while self.out:
            if isinstance(self.sock, ssl.SSLSocket):
                count = self.sock.send(b"".join(self.out))
            else:
                count = self.sock.sendmsg(self.out)
            while count and count >= len(self.out[0]):
                count -= len(self.out.pop(0))
                if not self.out:
                    break
            if count:
                self.out[0] = self.out[0][count:]
            if len(self.out) < _STRIPES_PER_SEND:
                self._more()
        return True


class _Loop:
    def __init__(self, place: Place, requests: Sequence[Prepared], repeats: bool) -> None:
        self.tally = Tally()
        self._place = place
        self._requests = self._endless(requests) if repeats else iter(requests)
        self._epoll = select.epoll()
        self._connections: dict[int, _Connection] = {}
        self._buffer = memoryview(bytearray(_RECEIVE))
        self._ends_s = 0.0
        self._busy = 0

    @staticmethod
    def _endless(requests: Sequence[Prepared]) -> Iterator[Prepared]:
        while True:
            yield from requests

    def connect(self) -> _Connection:
        sock = socket.create_connection((self._place.host, self._place.port), timeout=15)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._place.tls is not None:
            sock = self._place.tls.wrap_socket(sock, server_hostname=self._place.host)
        sock.setblocking(False)
        connection = self._connections[sock.fileno()] = _Connection(sock)
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        return connection

    def run(self, ends_s: float) -> None:
        self._ends_s = ends_s
        for connection in list(self._connections.values()):
            self._begin(connection)
        while self._busy:
            events = self._epoll.poll(1.0)
            if not events and time.perf_counter() > ends_s + _GRACE_S:
                self._failed(f"{self._busy} requests were not answered within {_GRACE_S:.0f} s", self._busy)
                return
            for fd, event in events:
                if fd not in self._connections:
                    continue  # dropped while an earlier event of this round was handled
                connection = self._connections[fd]
                if event & select.EPOLLOUT:
                    self._send(connection)
                else:
                    self._receive(connection)

    def close(self) -> None:
        for connection in self._connections.values():
            connection.sock.close()
        self._epoll.close()

    def _begin(self, connection: _Connection) -> None:
        now = time.perf_counter()
        request = next(self._requests, None) if now < self._ends_s else None
        if request is None:
            return
        if connection.closes:
            self._drop(connection)
            connection = self.connect()
        connection.is_busy = True
        self._busy += 1
        self.tally.sent += 1
        connection.begin(request)
        connection.start_s = now
        self._send(connection)

    def _send(self, connection: _Connection) -> None:
        try:
            connection.send()
            self._epoll.modify(connection.sock.fileno(), select.EPOLLIN)
        except (BlockingIOError, ssl.SSLWantWriteError):
            self._epoll.modify(connection.sock.fileno(), select.EPOLLIN | select.EPOLLOUT)
        except OSError:
            # Refused before it was read whole: the answer, if there is one, says why.
            connection.out = []
            self._epoll.modify(connection.sock.fileno(), select.EPOLLIN)

    def _receive(self, connection: _Connection) -> None:
        while True:
            try:
                count = connection.sock.recv_into(self._buffer)
            except (BlockingIOError, ssl.SSLWantReadError):
                return
            except OSError as error:
                self._lost(connection, str(error))
                return
            if not count:
                self._lost(connection, "the connection was closed before the answer")
                return
            if self._take(connection, count) or not isinstance(connection.sock, ssl.SSLSocket):
                return  # level-triggered: what is left wakes us again (TLS may hold it where epoll cannot see it)

    def _take(self, connection: _Connection, count: int) -> bool:
        """Handle `count` received bytes; True when the answer is complete."""
        self.tally.received_bytes += count
        if connection.head_done and not connection.chunked:
            connection.left -= count
            if connection.left > 0:
                return False
            self._done(connection, 200)
            return True
        connection.buffer += bytes(self._buffer[:count])
        status = 200
        if not connection.head_done:
            end = connection.buffer.find(b"\r\n\r\n")
            if end < 0:
                return False
            head = connection.buffer[:end].lower() + b"\r\n"
            status = int(head[9:12])
            connection.head_done = True
            connection.closes = b"\r\nconnection: close\r\n" in head
            connection.buffer = connection.buffer[end + 4 :]
            if status >= 300:
                self._refused(connection, status)
                return True
            if connection.is_head or status == 204:
                self._done(connection, status)
                return True
            connection.chunked = b"transfer-encoding: chunked" in head
            if not connection.chunked:
                at = head.find(b"\r\ncontent-length:")
                length = int(head[at + 17 : head.index(b"\r\n", at + 17)]) if at >= 0 else 0
                connection.left = length - len(connection.buffer)
                if connection.left > 0:
                    return False
        if connection.chunked:
            connection.buffer = connection.buffer[-(1 << 20) :]
            if not connection.buffer.endswith(_LAST_CHUNK):
                return False
        self._done(connection, status)
        return True

    def _done(self, connection: _Connection, _status: int) -> None:
        self.tally.latencies_s.append(time.perf_counter() - connection.start_s)
        self._busy -= 1
        connection.is_busy = False
        try:
            self._begin(connection)
        except OSError as error:  # a server that closes after each answer did not take the next connection
            self.tally.first_failure = self.tally.first_failure or str(error)

    def _refused(self, connection: _Connection, status: int) -> None:
        """An error may have a body of any form, and the request may be half sent: a new connection is simplest."""
        text = connection.buffer[:300].decode("utf-8", "replace").replace("\n", " ")
        self._lost(connection, f"HTTP {status} {text}".strip())

    def _lost(self, connection: _Connection, why: str) -> None:
        is_busy = connection.is_busy
        self._drop(connection)
        if not is_busy:
            return  # an idle connection was closed: nobody waits for it
        self._failed(why, 1)
        try:
            self._begin(self.connect())
        except OSError as error:
            self.tally.first_failure = self.tally.first_failure or str(error)

    def _drop(self, connection: _Connection) -> None:
        self._epoll.unregister(connection.sock.fileno())
        del self._connections[connection.sock.fileno()]
        connection.sock.close()

    def _failed(self, why: str, count: int) -> None:
        self.tally.failed += count
        self.tally.first_failure = self.tally.first_failure or why
        self._busy -= count


def run_in_processes(
    place: Place,
    requests: Sequence[Prepared],
    *,
    connections: int,
    seconds: float,
    repeats: bool,
    processes: int,
) -> Tally:
    """Share the requests and connections out over forked processes; `sent` is then not a prefix any more."""
    if processes == 1:
        return run(place, requests, connections=connections, seconds=seconds, repeats=repeats)
    import pickle

    pipes = []
    for number in range(processes):
        share = connections // processes + (number < connections % processes)
        if not share:
            continue
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            code = 1
            try:
                os.close(read)
                mine = requests if repeats else requests[number::processes]
                tally = run(place, mine, connections=share, seconds=seconds, repeats=repeats)
                with open(write, "wb") as pipe:
                    pickle.dump(tally, pipe)
                code = 0
            finally:
                os._exit(code)
        os.close(write)
        pipes.append((pid, read))
    total = Tally()
    for pid, read in pipes:
        with open(read, "rb") as pipe:
            data = pipe.read()
        os.waitpid(pid, 0)
        if data:
            total.add(pickle.loads(data))
        else:
            total.failed += 1
            total.first_failure = total.first_failure or "a load process died"
    return total
