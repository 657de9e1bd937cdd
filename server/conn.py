"""One connection: a trio socket on one side, the application on the other, HTTP/1.1 in between, every timeout.

Must not know: S3 operations, signatures, the engine.

Theory of operation. The socket is taken out of trio's stream and used directly (non-blocking calls first, waiting only
on EAGAIN), because trio's own `recv` and `send` pass through the scheduler even when they need not. No call has a
cancel scope of its own: a connection writes down until when it is willing to wait (`_deadline`), and one sweep per
process, four times a second, shuts down the sockets of those whose time is over. A shut-down socket becomes readable
or writable at once, so the waiting call returns by itself, in its own place, and knows why from `_expired`.

Time is charged only while we wait for the client. A budget of seconds (`body_timeout_s`, `send_timeout_s`) drains while
waiting and is refilled by the bytes that pass, at `min_bytes_per_s`: so a client may pause, but not forever trickle.

Invariants:
* Requests of a connection are answered in order, one at a time.
* `Response.on_done` is called exactly once; streams and spans are closed.
* A response that cannot be sent whole ends with a reset, never looking complete.
* Nothing is read from the body, and no "100 Continue" is sent, before the application asks for it.
* Whatever a client does ends this connection at most: `serve_connection` raises nothing but cancellation.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import struct
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from email.utils import formatdate
from typing import Final

import trio

from cordwood.server.wire.errors import S3Error, render_error, s3_error
from cordwood.server.wire.http1 import (
    CONTINUE,
    LAST_CHUNK,
    STATUS_LINES,
    ProtocolError,
    RequestReceiver,
    render_fields,
)
from cordwood.server.wire.message import (
    App,
    ClientDisconnected,
    MalformedBody,
    PeerInfo,
    RequestHead,
    RequestTimeout,
    Response,
    Span,
)

log = logging.getLogger("cordwood.conn")

_HEAD_READ_BYTES: Final = 16 << 10
_BODY_READ_BYTES: Final = 256 << 10
_JOIN_BYTES: Final = 64 << 10  # bodies up to this are copied behind their head, larger ones go out beside it
_SENDFILE_BYTES: Final = 1 << 20
_TURN_BYTES: Final = 1 << 20  # bytes that may pass without giving other connections a turn
_TURN_REQUESTS: Final = 8  # the same for pipelined requests
_SWEEP_S: Final = 0.25
_ABANDON_AFTER_S: Final = 1.0  # from then on a running read is given up when its client has gone
_FOREVER: Final = float("inf")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may take. Timeouts are checked four times a second."""

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


async def serve_connection(
    stream: trio.SocketStream, app: App, limits: Limits, stopping: trio.Event, *, is_tls: bool = False
) -> None:
    """Serve requests until either side closes. Takes the socket over: `stream` is closed afterwards in any case.

    Once `stopping` is set, the request in flight is finished and answered, then the connection closes; an idle one
    closes within a quarter of a second. To bound the wait, cancel.
    """
    raw = socket.socket(fileno=stream.socket.detach())
    runtime = _runtime()
    connection = _Connection(raw, app, limits, stopping, runtime, is_tls)
    runtime.connections.add(connection)
    try:
        with connection.scope:
            await connection.run()
    except _Gone:
        connection.reset()
    except Exception:
        log.exception("a connection from %s ended by a fault of ours", connection.peer.address)
        connection.reset()
    finally:
        runtime.connections.discard(connection)
        trio.lowlevel.notify_closing(raw)
        raw.close()


class _Gone(Exception):
    """The client cannot be reached any more, or took too long to read."""


class _Connection:
    __slots__ = (
        "_app",
        "_body_budget_s",
        "_busy_since",
        "_deadline",
        "_expired",
        "_is_idle",
        "_is_read",
        "_is_sending",
        "_limits",
        "_runtime",
        "_send_budget_s",
        "_socket",
        "_stopping",
        "_turn_bytes",
        "peer",
        "receiver",
        "scope",
    )

    def __init__(
        self,
        raw: socket.socket,
        app: App,
        limits: Limits,
        stopping: trio.Event,
        runtime: _Runtime,
        is_tls: bool,
    ) -> None:
        raw.setblocking(False)
        address = ""
        try:
            if raw.family != socket.AF_UNIX:
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                address = raw.getpeername()[0]
        except OSError:
            pass  # gone already; the first read says so
        self._socket = raw
        self._app = app
        self._limits = limits
        self._stopping = stopping
        self._runtime = runtime
        self.peer = PeerInfo(address, is_tls)
        self.receiver = RequestReceiver(max_head_bytes=limits.max_head_bytes, max_headers=limits.max_headers)
        self.scope = trio.CancelScope()
        self._deadline = _FOREVER
        self._expired = False
        self._is_idle = False
        self._is_read = False  # the request in flight changes nothing
        self._is_sending = False
        self._busy_since = _FOREVER
        self._body_budget_s = self._send_budget_s = 0.0
        self._turn_bytes = 0

    # -- the life of a connection ----------------------------------------------------------------------------

    async def run(self) -> None:
        in_a_row = 0
        while True:
            try:
                head = self.receiver.next_head()
                if head is None:
                    in_a_row = 0
                    head = await self._receive_head()
                    if head is None:
                        return
            except ProtocolError as error:
                await self._refuse(error.code, error.status, error.message)
                return
            in_a_row += 1
            if in_a_row % _TURN_REQUESTS == 0:
                await trio.lowlevel.checkpoint()
            if not await self._exchange(head):
                return

    async def _receive_head(self) -> RequestHead | None:
        """Wait for a head; None when the connection is over."""
        receiver = self.receiver
        has_begun = receiver.buffered_bytes > 0
        limits = self._limits
        self._is_idle = not has_begun
        self._deadline = time.monotonic() + (limits.head_timeout_s if has_begun else limits.idle_timeout_s)
        if not has_begun and self._stopping.is_set():
            return None
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            data = self._receive_now(_HEAD_READ_BYTES)
            if data is None:
                continue
            if not data:
                if has_begun and self._expired:
                    await self._refuse("RequestTimeout", 400, "The request head did not arrive in time.")
                return None
            receiver.feed(data)
            head = receiver.next_head()
            if head is not None:
                self._is_idle = False
                self._deadline = _FOREVER
                return head
            if not has_begun:
                has_begun = True
                self._is_idle = False
                self._deadline = time.monotonic() + limits.head_timeout_s

    async def _exchange(self, head: RequestHead) -> bool:
        """Answer one request. Returns whether the connection can go on."""
        runtime = self._runtime
        head.request_id = request_id = runtime.next_request_id()
        head.host_id = runtime.host_id
        self._body_budget_s = self._limits.body_timeout_s
        self._send_budget_s = self._limits.send_timeout_s
        self._is_read = head.method in ("GET", "HEAD")
        self._busy_since = time.monotonic()
        body = _RequestBody(self, head.expect_continue)
        try:
            response = await self._app(head, body, self.peer)
        except S3Error as error:
            response = _error_response(error, head)
        except ClientDisconnected:  # it may have closed one direction only, and still read
            response = _error_response(s3_error("IncompleteBody"), head)
        except RequestTimeout:
            response = _error_response(s3_error("RequestTimeout"), head)
        except MalformedBody as malformed:
            response = _error_response(s3_error("BadRequest", str(malformed)), head)
        except Exception:
            log.exception("request %s: %s %r failed", request_id, head.method, head.target)
            response = _error_response(s3_error("InternalError"), head)
        body.close()
        self._busy_since = _FOREVER

        keep_alive = head.keep_alive and not (response.close or body.has_failed or self._stopping.is_set())
        if response.stream is not None and head.http_version == "1.0" and _content_length(response) is None:
            keep_alive = False  # only the end of the connection can end this body
        is_taken = self.receiver.is_body_complete
        if not is_taken:
            left = self.receiver.body_left
            is_small = left is not None and left <= self._limits.drain_bytes
            keep_alive = keep_alive and is_small and not body.is_continue_due
        await self._respond(head, response, keep_alive)
        if keep_alive:
            return is_taken or await self._drain()
        if (head.keep_alive or not is_taken) and not self._expired:
            await self._linger()
        return False

    # -- responses -------------------------------------------------------------------------------------------

    async def _respond(self, head: RequestHead, response: Response, keep_alive: bool) -> None:
        try:
            try:
                fields = render_fields(response.headers).encode()
            except ValueError:  # UnicodeEncodeError is one, too
                log.exception("request %s: the response headers cannot be sent", head.request_id)
                await self._respond_error(head, s3_error("InternalError"), keep_alive)
                return
            if response.spans is not None:
                await self._respond_spans(head, response, fields, response.spans, keep_alive)
            elif response.stream is not None:
                await self._respond_stream(head, response, fields, response.stream, keep_alive)
            else:
                await self._respond_bytes(head, response.status, fields, response.body or b"", keep_alive)
        finally:
            if response.stream is not None or response.spans is not None:
                await _close_source(response)
            if response.on_done is not None:
                response.on_done()

    async def _respond_error(self, head: RequestHead, error: S3Error, keep_alive: bool) -> None:
        response = _error_response(error, head)
        fields = render_fields(response.headers).encode()
        await self._respond_bytes(head, response.status, fields, response.body or b"", keep_alive)

    async def _respond_bytes(
        self, head: RequestHead, status: int, fields: bytes, body: bytes, keep_alive: bool
    ) -> None:
        if status not in _BODILESS and not _has_content_length(fields):
            fields += b"\r\nContent-Length: %d" % len(body)
        start = self._render(head, status, fields, keep_alive)
        if head.method == "HEAD" or status in _BODILESS:
            await self._send(start)
        elif len(body) <= _JOIN_BYTES:
            await self._send(start + body)
        else:
            await self._send(start, socket.MSG_MORE)
            await self._send(body)

    async def _respond_stream(
        self,
        head: RequestHead,
        response: Response,
        fields: bytes,
        stream: AsyncIterator[bytes],
        keep_alive: bool,
    ) -> None:
        length = _content_length(response)
        is_chunked = length is None and head.http_version == "1.1"
        if is_chunked:
            fields += b"\r\nTransfer-Encoding: chunked"
        await self._send(self._render(head, response.status, fields, keep_alive))
        if head.method == "HEAD" or response.status in _BODILESS:
            return
        sent = 0
        try:
            async for block in stream:
                sent += len(block)
                if length is not None and sent > length:
                    break
                if is_chunked:
                    await self._send_chunk(block)
                else:
                    await self._send(block)
        except _Gone:
            raise
        except Exception as fault:
            # The status line is out: only a reset can tell the client that this is not the whole body.
            log.exception("request %s: the response stream failed", head.request_id)
            raise _Gone from fault
        if is_chunked:
            await self._send(LAST_CHUNK)
        elif length is not None and sent != length:
            log.error("request %s: the response body is not %d bytes", head.request_id, length)
            raise _Gone

    async def _send_chunk(self, block: bytes) -> None:
        if not block:
            return  # an empty chunk would end the body
        size = b"%x\r\n" % len(block)
        if len(block) <= _JOIN_BYTES:
            await self._send(b"%b%b\r\n" % (size, block))
        else:
            await self._send(size, socket.MSG_MORE)
            await self._send(block, socket.MSG_MORE)
            await self._send(b"\r\n")

    async def _respond_spans(
        self, head: RequestHead, response: Response, fields: bytes, spans: Iterator[Span], keep_alive: bool
    ) -> None:
        length = _content_length(response)
        if length is None:
            raise ValueError("a response of spans needs a content-length")
        if head.method == "HEAD" or response.status in _BODILESS:
            await self._send(self._render(head, response.status, fields, keep_alive))
            return
        try:
            # The first span is verified before the status line leaves, so that a corrupt object is an error.
            span = await trio.to_thread.run_sync(next, spans, None)
        except Exception:
            log.exception("request %s: reading the body failed", head.request_id)
            await self._respond_error(head, s3_error("InternalError"), keep_alive)
            return
        await self._send(self._render(head, response.status, fields, keep_alive), socket.MSG_MORE)
        sent = 0
        try:
            while span is not None:
                sent += span.length
                await self._send_file(span.fd, span.offset, span.length)
                if sent == length:
                    break
                span = await trio.to_thread.run_sync(next, spans, None)
        except _Gone:
            raise
        except Exception as fault:
            log.exception("request %s: reading the body failed", head.request_id)
            raise _Gone from fault
        if sent != length:
            log.error("request %s: the response body is %d bytes, not %d", head.request_id, sent, length)
            raise _Gone

    def _render(self, head: RequestHead, status: int, fields: bytes, keep_alive: bool) -> bytes:
        """The response head; `fields` come from `render_fields`."""
        if not keep_alive:
            end = b"\r\nConnection: close\r\n\r\n"
        elif head.http_version == "1.0":
            end = b"\r\nConnection: keep-alive\r\n\r\n"
        else:
            end = b"\r\n\r\n"
        line = STATUS_LINES.get(status) or b"HTTP/1.1 %d " % status
        return b"".join((line, self._runtime.common_fields(), head.request_id.encode(), fields, end))

    async def _refuse(self, code: str, status: int, message: str) -> None:
        """Answer what is no request, and close."""
        head = _no_request(self.receiver.wants_head_only, self._runtime)
        self._is_idle = False
        self._deadline = _FOREVER
        self._send_budget_s = self._limits.send_timeout_s
        await self._respond_error(head, S3Error(code, status, message), keep_alive=False)
        if not self._expired:
            await self._linger()

    # -- the socket ------------------------------------------------------------------------------------------

    def _receive_now(self, size: int) -> bytes | None:
        """What is there; b"" when the client will send no more, None when one has to wait."""
        if self._expired:
            return b""
        try:
            return self._socket.recv(size)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return b""

    async def receive(self, size: int) -> bytes:
        """Body bytes, b"" when none will come (see `expired`). Waits within the body budget."""
        if self._turn_bytes > _TURN_BYTES:
            self._turn_bytes = 0
            await trio.lowlevel.checkpoint()
        data = self._receive_now(size)
        if data is None:
            begin = time.monotonic()
            self._deadline = begin + self._body_budget_s
            while data is None:
                await trio.lowlevel.wait_readable(self._socket)
                data = self._receive_now(size)
            self._deadline = _FOREVER
            limits = self._limits
            self._body_budget_s = min(
                limits.body_timeout_s,
                self._body_budget_s - (time.monotonic() - begin) + len(data) / limits.min_bytes_per_s,
            )
        self._turn_bytes += len(data)
        return data

    @property
    def expired(self) -> bool:
        """Whether the sweep has ended the waiting."""
        return self._expired

    async def send_continue(self) -> None:
        await self._send(CONTINUE)

    async def _send(self, data: bytes, flags: int = 0) -> None:
        try:
            sent = self._socket.send(data, flags)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            raise _Gone from error
        if sent < len(data):
            await self._send_rest(memoryview(data)[sent:], flags)

    async def _send_rest(self, rest: memoryview, flags: int) -> None:
        while rest:
            await self._wait_to_send()
            try:
                sent = self._socket.send(rest, flags)
            except (BlockingIOError, InterruptedError):
                continue
            except OSError as error:
                raise _Gone from error
            self._refill_send_budget(sent)
            rest = rest[sent:]

    async def _send_file(self, fd: int, offset: int, length: int) -> None:
        out = self._socket.fileno()
        end = offset + length
        while offset < end:
            try:
                sent = os.sendfile(out, fd, offset, min(end - offset, _SENDFILE_BYTES))
            except (BlockingIOError, InterruptedError):
                await self._wait_to_send()
                continue
            except OSError as error:
                raise _Gone from error
            if sent == 0:
                raise _Gone  # the file ends before the span does
            self._refill_send_budget(sent)
            offset += sent

    async def _wait_to_send(self) -> None:
        begin = time.monotonic()
        self._deadline = begin + self._send_budget_s
        self._is_sending = True
        await trio.lowlevel.wait_writable(self._socket)
        self._is_sending = False
        self._deadline = _FOREVER
        self._send_budget_s -= time.monotonic() - begin
        if self._expired:
            raise _Gone

    def _refill_send_budget(self, sent: int) -> None:
        limits = self._limits
        self._send_budget_s = min(limits.send_timeout_s, self._send_budget_s + sent / limits.min_bytes_per_s)

    # -- ends ------------------------------------------------------------------------------------------------

    async def _drain(self) -> bool:
        """Throw the rest of a request body away. Returns whether its end was reached."""
        try:
            while True:
                piece = self.receiver.next_body()
                if piece is None:
                    data = await self.receive(_BODY_READ_BYTES)
                    if not data:
                        return False
                    self.receiver.feed(data)
                elif not piece:
                    return True
        except ProtocolError:
            return False

    async def _linger(self) -> None:
        """Let the client read the answer: closing with unread input resets the connection (RFC 9112 section 9.6)."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            return
        self._deadline = time.monotonic() + self._limits.linger_s
        left = self._limits.linger_bytes
        while left > 0:
            data = self._receive_now(_BODY_READ_BYTES)
            if data is None:
                await trio.lowlevel.wait_readable(self._socket)
                continue
            if not data:
                return
            left -= len(data)
            await trio.lowlevel.checkpoint()

    def reset(self) -> None:
        """Make the coming close a reset, and forget what is still unsent."""
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            pass

    def sweep(self, now: float) -> None:
        """Called four times a second: end what has waited too long."""
        if now >= self._deadline or (self._is_idle and self._stopping.is_set()):
            self._expired = self._expired or now >= self._deadline
            self._deadline = _FOREVER
            # Whoever waits to read or to write returns at once.
            try:
                self._socket.shutdown(socket.SHUT_RDWR if self._is_sending else socket.SHUT_RD)
            except OSError:
                pass  # the client was faster
        elif self._is_read and now - self._busy_since > _ABANDON_AFTER_S and self._has_hung_up():
            self._busy_since = _FOREVER
            self.reset()
            self.scope.cancel()

    def _has_hung_up(self) -> bool:
        poll = select.poll()
        poll.register(self._socket, select.POLLRDHUP)
        return bool(poll.poll(0))


class _RequestBody:
    """`Body` for the application."""

    __slots__ = ("_connection", "_is_closed", "has_failed", "is_continue_due")

    def __init__(self, connection: _Connection, is_continue_due: bool) -> None:
        self._connection = connection
        self._is_closed = False
        self.is_continue_due = is_continue_due
        self.has_failed = False

    async def receive(self) -> bytes:
        assert not self._is_closed, "the request has been answered; its body can no longer be read"
        connection = self._connection
        receiver = connection.receiver
        if self.is_continue_due:
            self.is_continue_due = False
            if not receiver.buffered_bytes:  # a client that does not wait needs no invitation
                try:
                    await connection.send_continue()
                except _Gone as gone:
                    self.has_failed = True
                    raise ClientDisconnected("the client has gone") from gone
        try:
            while True:
                piece = receiver.next_body()
                if piece is not None:
                    return piece
                data = await connection.receive(_BODY_READ_BYTES)
                if not data:
                    self.has_failed = True
                    if connection.expired:
                        raise RequestTimeout("the request body arrived too slowly")
                    raise ClientDisconnected("the connection was closed before the end of the request body")
                receiver.feed(data)
        except ProtocolError as error:
            self.has_failed = True
            raise MalformedBody(error.message) from error

    def close(self) -> None:
        self._is_closed = True


class _Runtime:
    """What the connections of one process share: the sweep, the Date header, the request ids."""

    def __init__(self) -> None:
        self.connections: set[_Connection] = set()
        self.host_id = b64encode(os.urandom(24)).decode()
        self._prefix = os.urandom(4).hex().upper()
        self._count = 0
        self._second = 0
        self._common = b""

    def next_request_id(self) -> str:
        self._count += 1
        return f"{self._prefix}{self._count & 0xFFFFFFFF:08X}"

    def common_fields(self) -> bytes:
        """The fields of every response, up to the place of the request id."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._common = (
                f"\r\nServer: Cordwood\r\nDate: {formatdate(second, usegmt=True)}"
                f"\r\nx-amz-id-2: {self.host_id}\r\nx-amz-request-id: "
            ).encode()
        return self._common

    async def sweep(self) -> None:
        while True:
            await trio.sleep(_SWEEP_S)
            now = time.monotonic()
            for connection in tuple(self.connections):
                connection.sweep(now)


_RUNTIME: Final[trio.lowlevel.RunVar[_Runtime]] = trio.lowlevel.RunVar("cordwood.conn.runtime")


def _runtime() -> _Runtime:
    try:
        return _RUNTIME.get()
    except LookupError:
        runtime = _Runtime()
        _RUNTIME.set(runtime)
        trio.lowlevel.spawn_system_task(runtime.sweep, name="cordwood connection sweep")
        return runtime


_BODILESS: Final = frozenset({204, 304})


def _has_content_length(fields: bytes) -> bool:
    return b"\r\ncontent-length:" in fields.lower()


def _content_length(response: Response) -> int | None:
    for name, value in response.headers:
        if name.lower() == "content-length":
            return int(value)
    return None


def _error_response(error: S3Error, head: RequestHead) -> Response:
    body = render_error(error, resource=head.path, request_id=head.request_id, host_id=head.host_id)
    headers = [("Content-Type", "application/xml"), *error.headers]
    if error.status == 405 and not any(name.lower() == "allow" for name, _ in headers):
        headers.append(("Allow", "GET, HEAD, PUT, POST, DELETE"))
    return Response(error.status, headers, body)


def _no_request(is_head: bool, runtime: _Runtime) -> RequestHead:
    """A stand-in, for the answer to what could not be parsed."""
    return RequestHead(
        method="HEAD" if is_head else "GET",
        target=b"",
        raw_path=b"",
        path="",
        query=[],
        raw_query=b"",
        headers={},
        header_list=[],
        content_length=None,
        is_chunked=False,
        expect_continue=False,
        keep_alive=False,
        http_version="1.1",
        request_id=runtime.next_request_id(),
        host_id=runtime.host_id,
    )


async def _close_source(response: Response) -> None:
    """Close the generators of a response, whatever became of them."""
    close_spans = getattr(response.spans, "close", None)
    if close_spans is not None:
        close_spans()
    close_stream = getattr(response.stream, "aclose", None)
    if close_stream is not None:
        with trio.CancelScope(shield=True):
            await close_stream()
