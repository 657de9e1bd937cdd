"""A served connection on 127.0.0.1, and a raw client for it: what test_conn and test_hostile_http share.

Must not know: S3 operations.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from cordwood.server.conn import Limits, serve_connection
from cordwood.server.wire.message import App, AtOnce, Body, PeerInfo, RequestHead, Response

# Short enough for a test, long enough for a busy machine.
QUICK = Limits(
    head_timeout_s=1.0,
    idle_timeout_s=1.0,
    body_timeout_s=1.0,
    send_timeout_s=1.0,
    linger_s=0.6,
    drain_bytes=1000,
)


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """Sends bytes as they are; reads responses one by one."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._buffer = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def _more(self) -> None:
        data = await self.stream.receive_some(65536)
        if not data:
            raise EOFError(self._buffer)
        self._buffer += data

    async def reply(self, *, to_head: bool = False) -> Reply:
        """The next response; EOFError when the connection ends first."""
        while b"\r\n\r\n" not in self._buffer:
            await self._more()
        start, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        line, *fields = start.decode().split("\r\n")
        headers = {}
        for each in fields:
            name, _, value = each.partition(": ")
            assert name.lower() not in headers, f"{name} twice"
            headers[name.lower()] = value
        status = int(line.split(" ")[1])
        body = b""
        if to_head or status in (204, 304) or status < 200:
            pass
        elif headers.get("transfer-encoding") == "chunked":
            body = await self._chunked()
        elif "content-length" in headers:
            size = int(headers["content-length"])
            while len(self._buffer) < size:
                await self._more()
            body, self._buffer = self._buffer[:size], self._buffer[size:]
        else:
            body = await self.rest()
        return Reply(status, headers, body)

    async def _chunked(self) -> bytes:
        body = b""
        while True:
            while b"\r\n" not in self._buffer:
                await self._more()
            line, _, self._buffer = self._buffer.partition(b"\r\n")
            size = int(line, 16)
            while len(self._buffer) < size + 2:
                await self._more()
            body += self._buffer[:size]
            assert self._buffer[size : size + 2] == b"\r\n"
            self._buffer = self._buffer[size + 2 :]
            if size == 0:
                return body

    async def rest(self) -> bytes:
        """Everything until the server closes."""
        while True:
            try:
                await self._more()
            except EOFError:
                data, self._buffer = self._buffer, b""
                return data

    async def is_closed(self) -> bool:
        try:
            return await self.rest() == b""
        except trio.BrokenResourceError:
            return True


@dataclass
class Served:
    connect: Callable[[], Awaitable[Client]]
    stopping: trio.Event
    ended: list[None] = field(default_factory=list)
    """One entry per connection that the server has let go of."""


@asynccontextmanager
async def serving(
    app: App, limits: Limits = QUICK, *, at_once: AtOnce | None = None
) -> AsyncIterator[Served]:
    """Serve `app` on a free port; yields how to reach it."""
    stopping = trio.Event()
    clients: list[Client] = []

    async def connect() -> Client:
        client = Client(await trio.open_tcp_stream("127.0.0.1", port))
        clients.append(client)
        return client

    served = Served(connect, stopping)

    async def handle(stream: trio.SocketStream) -> None:
        await serve_connection(stream, app, limits, stopping, at_once=at_once)
        served.ended.append(None)

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, handle, [listener])
        try:
            with trio.fail_after(20):
                yield served
        finally:
            for client in clients:
                await client.stream.aclose()
            nursery.cancel_scope.cancel()


async def read_all(body: Body) -> bytes:
    data = b""
    while piece := await body.receive():
        data += piece
    return data


async def echo(head: RequestHead, body: Body, peer: PeerInfo) -> Response:
    """Answers with the method, the target and the body; does not touch the body under /unread."""
    data = b"" if head.path.startswith("/unread") else await read_all(body)
    return Response(200, [("x-target", f"{head.method} {head.target.decode()}")], data)
