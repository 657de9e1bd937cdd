"""One connection: a client's socket on one side, the application on the other, HTTP/1.1 in between.

Must not know: S3 operations, signatures, the engine; how time is kept (client_socket.py).

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
import socket
import time
from base64 import b64encode
from collections.abc import AsyncIterator
from email.utils import formatdate
from typing import Final

import trio

from cordwood.server.bridge import Bridge
from cordwood.server.client_socket import FOREVER, ClientSocket, Gone, Limits
from cordwood.server.idle_sockets import IdleSockets
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
    AtOnce,
    ClientDisconnected,
    MalformedBody,
    PeerInfo,
    RequestHead,
    RequestTimeout,
    Response,
    Span,
    Spans,
)

__all__ = ["Limits", "serve_connection"]

log = logging.getLogger("cordwood.conn")

_HEAD_READ_BYTES: Final = 16 << 10
_BODY_READ_BYTES: Final = 256 << 10
_JOIN_BYTES: Final = (
    64 << 10
)  # blocks up to this are copied between their chunk framing, larger ones go out after it
_TURN_REQUESTS: Final = 8  # that may be answered without giving other connections a turn


async def serve_connection(
    stream: trio.SocketStream,
    app: App,
    limits: Limits,
    stopping: trio.Event,
    *,
    at_once: AtOnce | None = None,
    is_tls: bool = False,
) -> None:
    """Serve requests until either side closes. Takes the socket over: `stream` is closed afterwards in any case.

    `at_once` is asked before `app` for what has no body.

    Once `stopping` is set, the request in flight is finished and answered, then the connection closes; an idle one
    closes within a quarter of a second. To bound the wait, cancel.
    """
    client = ClientSocket(socket.socket(fileno=stream.socket.detach()), limits, stopping)
    connection = _Connection(client, app, limits, stopping, at_once, is_tls)
    try:
        with trio.CancelScope() as scope:
            client.abandon = scope.cancel
            await connection.run()
        if scope.cancelled_caught:
            client.reset()
    except Gone:
        client.reset()
    except Exception:
        log.exception("a connection from %s ended by a fault of ours", client.address)
        client.reset()
    finally:
        connection.forget()
        client.close()


class _Connection:
    __slots__ = (
        "_answer",
        "_app",
        "_at_once",
        "_client",
        "_fault",
        "_has_ended",
        "_head",
        "_limits",
        "_peer",
        "_receiver",
        "_runtime",
        "_stopping",
        "_unsent",
    )

    def __init__(
        self,
        client: ClientSocket,
        app: App,
        limits: Limits,
        stopping: trio.Event,
        at_once: AtOnce | None,
        is_tls: bool,
    ) -> None:
        self._client = client
        self._app = app
        self._at_once = at_once
        self._limits = limits
        self._stopping = stopping
        # What `_look` leaves to the task.
        self._head: RequestHead | None = None
        self._answer: Response | None = None
        self._unsent: bytes | memoryview = b""
        self._fault: Exception | None = None
        self._has_ended = False
        self._peer = PeerInfo(client.address, is_tls)
        self._receiver = RequestReceiver(max_head_bytes=limits.max_head_bytes, max_headers=limits.max_headers)
        self._runtime = _current_runtime()
        self._runtime.idle.add(client.fd)

    def forget(self) -> None:
        self._runtime.idle.remove(self._client.fd)

    # -- the life of a connection ----------------------------------------------------------------------------

    async def run(self) -> None:
        in_a_row = 0
        while True:
            try:
                head = self._receiver.next_head()
                if head is None:
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
        client, receiver = self._client, self._receiver
        if not receiver.buffered_bytes:
            head = await self._receive_whole_head()
            if head is not None or self._has_ended:
                return head
        client.is_idle = False
        client.deadline = time.monotonic() + self._limits.head_timeout_s
        while True:
            await trio.lowlevel.wait_readable(client.fd)
            data = client.receive_now(_HEAD_READ_BYTES)
            if data is None:
                continue
            if not data:
                if client.expired:
                    await self._refuse("RequestTimeout", 400, "The request head did not arrive in time.")
                return None
            receiver.feed(data)
            head = receiver.next_head()
            if head is not None:
                client.deadline = FOREVER
                return head

    async def _receive_whole_head(self) -> RequestHead | None:
        """Wait for a head to begin; None when it does not end with what came first, or when the connection is over."""
        client = self._client
        while not self._stopping.is_set():
            client.is_idle = True
            client.deadline = time.monotonic() + self._limits.idle_timeout_s
            await self._runtime.idle.wait(client.fd, self._look)
            client.is_idle = False
            client.deadline = FOREVER
            if self._fault is not None:
                raise self._fault
            if self._unsent:
                unsent, self._unsent = self._unsent, b""
                await client.send(unsent)
            head, self._head = self._head, None
            if head is not None or self._has_ended or self._receiver.buffered_bytes:
                return head
        self._has_ended = True
        return None

    def _look(self) -> bool:
        """Something has come while no request was under way (idle_sockets.py). What can be answered at once is answered
        here; False: the rest is for the task."""
        client, receiver = self._client, self._receiver
        try:
            data = client.receive_now(_HEAD_READ_BYTES)
            if data is None:
                return True
            if not data:
                self._has_ended = True
                return False
            receiver.feed(data)
            head = receiver.next_head()
            if head is None or not self._is_answered(head):
                self._head = head
                return False
            client.deadline = time.monotonic() + self._limits.idle_timeout_s
            return not self._unsent and len(data) < _HEAD_READ_BYTES  # else there may be more
        except Exception as fault:
            self._fault = fault
            return False

    def _is_answered(self, head: RequestHead) -> bool:
        """Answer at once, if that can be; `_unsent` is what then is left to be sent, `_answer` what else was found."""
        if (
            self._at_once is None
            or head.is_chunked
            or head.content_length is not None
            or not head.keep_alive
            or self._receiver.buffered_bytes
            or self._stopping.is_set()
        ):
            return False
        self._name(head)
        try:
            response = self._at_once(head, _NO_BODY, self._peer)
        except S3Error as error:
            response = _error_response(error, head)
        except Exception:
            response = None  # the application meets the same, and says so
        if response is None or not response.is_plain:
            self._answer = response
            return False
        fields = response.fields
        if response.headers:
            fields += render_fields(response.headers).encode()
        self._client.refill_budgets()
        self._unsent = self._send_bytes(head, response.status, fields, response.body or b"", True)
        return True

    async def _exchange(self, head: RequestHead) -> bool:
        """Answer one request. Returns whether the connection can go on."""
        client = self._client
        if not head.request_id:
            self._name(head)
        client.refill_budgets()
        if head.method in _ABANDONABLE:
            client.busy_since = time.monotonic()
        has_body = head.is_chunked or head.content_length is not None
        body = _RequestBody(client, self._receiver, head.expect_continue) if has_body else _NO_BODY
        answer, self._answer = self._answer, None
        try:
            response = answer or await self._app(head, body, self._peer)
        except S3Error as error:
            response = _error_response(error, head)
        except ClientDisconnected:  # it may have closed one direction only, and still read
            response = _error_response(s3_error("IncompleteBody"), head)
        except RequestTimeout:
            response = _error_response(s3_error("RequestTimeout"), head)
        except MalformedBody as malformed:
            response = _error_response(s3_error("BadRequest", str(malformed)), head)
        except Exception:
            log.exception("request %s: %s %r failed", head.request_id, head.method, head.target)
            response = _error_response(s3_error("InternalError"), head)
        body.close()
        client.busy_since = FOREVER

        keep_alive = head.keep_alive and not (response.close or body.has_failed or self._stopping.is_set())
        if response.stream is not None and head.http_version == "1.0" and _content_length(response) is None:
            keep_alive = False  # only the end of the connection can end this body
        keep_alive = keep_alive and not body.is_continue_due  # nobody knows whether it will send its body now
        is_taken = self._receiver.is_body_complete
        if not is_taken:
            left = self._receiver.body_left
            is_small = left is not None and left <= self._limits.drain_bytes
            keep_alive = keep_alive and is_small
        await self._respond(head, response, keep_alive)
        if keep_alive:
            return is_taken or await self._drain()
        if (head.keep_alive or not is_taken) and not client.expired:
            await self._linger()
        return False

    def _name(self, head: RequestHead) -> None:
        head.request_id = self._runtime.next_request_id()
        head.host_id = self._runtime.host_id

    # -- responses -------------------------------------------------------------------------------------------

    async def _respond(self, head: RequestHead, response: Response, keep_alive: bool) -> None:
        try:
            try:
                fields = response.fields + render_fields(response.headers).encode()
            except ValueError:  # UnicodeEncodeError is one, too
                log.exception("request %s: the response headers cannot be sent", head.request_id)
                await self._respond_error(head, s3_error("InternalError"), keep_alive)
                return
            if response.spans is not None:
                await self._respond_spans(head, response, fields, response.spans, keep_alive)
            elif response.stream is not None:
                await self._respond_stream(head, response, fields, response.stream, keep_alive)
            else:
                rest = self._send_bytes(head, response.status, fields, response.body or b"", keep_alive)
                if rest:
                    await self._client.send(rest)
        finally:
            if response.stream is not None:
                await _close_stream(response.stream)
            if response.on_done is not None:
                response.on_done()

    async def _respond_error(self, head: RequestHead, error: S3Error, keep_alive: bool) -> None:
        response = _error_response(error, head)
        fields = render_fields(response.headers).encode()
        rest = self._send_bytes(head, response.status, fields, response.body or b"", keep_alive)
        await self._client.send(rest)

    def _send_bytes(
        self, head: RequestHead, status: int, fields: bytes, body: bytes, keep_alive: bool
    ) -> bytes | memoryview:
        """Answer at once, as nearly always can be done. What did not fit is left to be sent."""
        is_bodiless = status in _BODILESS
        if not is_bodiless and b"\r\ncontent-length:" not in fields.lower():
            fields = b"%b\r\nContent-Length: %d" % (fields, len(body))
        start = self._render(head, status, fields, keep_alive)
        if is_bodiless or head.method == "HEAD":
            return self._client.send_now(start)
        return self._client.send_now(start + body)

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
        await self._client.send(self._render(head, response.status, fields, keep_alive))
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
                    await self._client.send(block)
                del block  # or it would stay until the next one is there
        except Gone:
            raise
        except Exception as fault:
            # The status line is out: only a reset can tell the client that this is not the whole body.
            log.exception("request %s: the response stream failed", head.request_id)
            raise Gone from fault
        if is_chunked:
            await self._client.send(LAST_CHUNK)
        elif length is not None and sent != length:
            log.error("request %s: the response body is not %d bytes", head.request_id, length)
            raise Gone

    async def _send_chunk(self, block: bytes) -> None:
        if not block:
            return  # an empty chunk would end the body
        size = b"%x\r\n" % len(block)
        if len(block) <= _JOIN_BYTES:
            await self._client.send(b"%b%b\r\n" % (size, block))
        else:
            await self._client.send(size, more=True)
            await self._client.send(block, more=True)
            await self._client.send(b"\r\n")

    async def _respond_spans(
        self, head: RequestHead, response: Response, fields: bytes, spans: Spans, keep_alive: bool
    ) -> None:
        length = _content_length(response)
        if length is None:
            raise ValueError("a response of spans needs a content-length")
        client = self._client
        if head.method == "HEAD" or response.status in _BODILESS:
            await client.send(self._render(head, response.status, fields, keep_alive))
            return
        try:
            # The first span is verified before the status line leaves, so that a corrupt object is an error.
            span = await self._next_span(spans)
        except Exception:
            log.exception("request %s: reading the body failed", head.request_id)
            await self._respond_error(head, s3_error("InternalError"), keep_alive)
            return
        await client.send(self._render(head, response.status, fields, keep_alive), more=True)
        sent = 0
        try:
            while span is not None:
                await client.send_file(span.fd, span.offset, span.length)
                sent += span.length
                if sent >= length:
                    break
                span = await self._next_span(spans)
        except Gone:
            raise
        except Exception as fault:
            log.exception("request %s: reading the body failed", head.request_id)
            raise Gone from fault
        if sent != length:
            log.error("request %s: the response body is %d bytes, not %d", head.request_id, sent, length)
            raise Gone

    async def _next_span(self, spans: Spans) -> Span | None:
        """On the loop while the bytes are in memory: to verify a span costs less than a thread's waking."""
        return spans.take(wait=False) or await self._runtime.bridge.run(spans.take)

    def _render(self, head: RequestHead, status: int, fields: bytes, keep_alive: bool) -> bytes:
        """The response head; `fields` come from `render_fields`."""
        if not keep_alive:
            end = b"\r\nConnection: close\r\n\r\n"
        elif head.http_version == "1.0":
            end = b"\r\nConnection: keep-alive\r\n\r\n"
        else:
            end = b"\r\n\r\n"
        return b"".join((self._runtime.start_of(status), head.request_id.encode(), fields, end))

    async def _refuse(self, code: str, status: int, message: str) -> None:
        """Answer what is no request, and close."""
        head = _no_request(self._receiver.wants_head_only, self._runtime)
        client = self._client
        client.is_idle = False
        client.deadline = FOREVER
        client.refill_budgets()
        await self._respond_error(head, S3Error(code, status, message), keep_alive=False)
        if not client.expired:
            await self._linger()

    # -- ends ------------------------------------------------------------------------------------------------

    async def _drain(self) -> bool:
        """Throw the rest of a request body away. Returns whether its end was reached."""
        while True:
            piece = self._receiver.next_body()
            if piece is None:
                data = await self._client.receive(_BODY_READ_BYTES)
                if not data:
                    return False
                self._receiver.feed(data)
            elif not piece:
                return True

    async def _linger(self) -> None:
        """Let the client read the answer: closing with unread input resets the connection (RFC 9112 section 9.6)."""
        client = self._client
        if not client.finish_sending():
            return
        client.deadline = time.monotonic() + self._limits.linger_s
        left = self._limits.linger_bytes
        while left > 0:
            data = client.receive_now(_BODY_READ_BYTES)
            if data is None:
                await trio.lowlevel.wait_readable(client.fd)
                continue
            if not data:
                return
            left -= len(data)
            await trio.lowlevel.checkpoint()


class _NoBody:
    """`Body` of a request without one."""

    __slots__ = ()
    is_continue_due = False
    has_failed = False

    async def receive(self) -> bytes:
        return b""

    async def receive_into(self, _: memoryview) -> int:
        return 0

    def close(self) -> None:
        """There is nothing that could be read later."""


_NO_BODY: Final = _NoBody()


class _RequestBody:
    """`Body` for the application."""

    __slots__ = ("_client", "_is_closed", "_receiver", "_rest", "has_failed", "is_continue_due")

    def __init__(self, client: ClientSocket, receiver: RequestReceiver, is_continue_due: bool) -> None:
        self._client = client
        self._receiver = receiver
        self._rest = memoryview(b"")
        self._is_closed = False
        self.is_continue_due = is_continue_due
        self.has_failed = False

    async def receive(self) -> bytes:
        assert not self._is_closed, "the request has been answered; its body can no longer be read"
        client, receiver = self._client, self._receiver
        if self.is_continue_due:
            self.is_continue_due = False
            if not receiver.buffered_bytes:  # a client that does not wait needs no invitation
                try:
                    await client.send(CONTINUE)
                except Gone as gone:
                    self.has_failed = True
                    raise ClientDisconnected("the client has gone") from gone
        try:
            while True:
                piece = receiver.next_body()
                if piece is not None:
                    if receiver.is_decoding:
                        await trio.lowlevel.checkpoint()
                    return piece
                data = await client.receive(_BODY_READ_BYTES)
                if not data:
                    raise self._ended_early()
                receiver.feed(data)
        except ProtocolError as error:
            self.has_failed = True
            raise MalformedBody(error.message) from error

    async def receive_into(self, buffer: memoryview) -> int:
        assert not self._is_closed, "the request has been answered; its body can no longer be read"
        receiver = self._receiver
        if not self._rest:
            left = receiver.body_left
            if left and not receiver.buffered_bytes and not self.is_continue_due:
                count = await self._client.receive_into(buffer[:left])
                if not count:
                    raise self._ended_early()
                receiver.pass_over(count)
                return count
            self._rest = memoryview(await self.receive())
        count = min(len(self._rest), len(buffer))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def _ended_early(self) -> ClientDisconnected | RequestTimeout:
        self.has_failed = True
        if self._client.expired:
            return RequestTimeout("the request body arrived too slowly")
        return ClientDisconnected("the connection was closed before the end of the request body")

    def close(self) -> None:
        self._is_closed = True


class _Runtime:
    """What the connections of one process share: the Date header, the request ids, threads to read files with."""

    def __init__(self) -> None:
        self.bridge = Bridge()
        self.idle = IdleSockets()
        self.host_id = b64encode(os.urandom(24)).decode()
        self._prefix = os.urandom(4).hex().upper()
        self._count = 0
        self._second = 0
        self._starts: dict[int, bytes] = {}

    def next_request_id(self) -> str:
        self._count += 1
        return f"{self._prefix}{self._count & 0xFFFFFFFF:08X}"

    def start_of(self, status: int) -> bytes:
        """A response head up to the place of the request id: the same for a second."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._starts = {}
        start = self._starts.get(status)
        if start is None:
            line = STATUS_LINES.get(status) or b"HTTP/1.1 %d " % status
            start = self._starts[status] = (
                line
                + (
                    f"\r\nServer: Cordwood\r\nDate: {formatdate(second, usegmt=True)}"
                    f"\r\nx-amz-id-2: {self.host_id}\r\nx-amz-request-id: "
                ).encode()
            )
        return start


# In the run, not in the module: worker processes are forked, and no two may give out the same request ids.
_RUNTIME: Final[trio.lowlevel.RunVar[_Runtime]] = trio.lowlevel.RunVar("cordwood.conn.runtime")


def _current_runtime() -> _Runtime:
    try:
        return _RUNTIME.get()
    except LookupError:
        runtime = _Runtime()
        _RUNTIME.set(runtime)
        return runtime


_BODILESS: Final = frozenset({204, 304})
# Nobody misses an unfinished read; what changes things runs to its end, whoever still listens.
_ABANDONABLE: Final = frozenset({"GET", "HEAD"})


def _content_length(response: Response) -> int | None:
    for name, value in response.headers:
        if name.lower() == "content-length":
            return int(value)
    return None


def _error_response(error: S3Error, head: RequestHead) -> Response:
    if error.status in _BODILESS:
        return Response(error.status, list(error.headers))
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
        content_length=None,
        is_chunked=False,
        expect_continue=False,
        keep_alive=False,
        http_version="1.1",
        request_id=runtime.next_request_id(),
        host_id=runtime.host_id,
    )


async def _close_stream(stream: AsyncIterator[bytes]) -> None:
    """Close a generator, whatever became of it."""
    close = getattr(stream, "aclose", None)
    if close is not None:
        with trio.CancelScope(shield=True):
            await close()
