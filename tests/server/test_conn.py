"""A connection from its first byte to its last: order, bodies in both directions, every timeout, stopping."""

from __future__ import annotations

import logging
import os
import socket
import struct
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import pytest
import trio

from cordwood.server.conn import Limits
from cordwood.server.wire.errors import s3_error
from cordwood.server.wire.message import (
    Body,
    ClientDisconnected,
    MalformedBody,
    PeerInfo,
    RequestHead,
    RequestTimeout,
    Response,
)
from tests.server.wire_harness import Served, echo, read_all, serving

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


def put(target: str, body: bytes, *fields: str) -> bytes:
    lines = [f"PUT {target} HTTP/1.1", "Host: h", f"Content-Length: {len(body)}", *fields, "", ""]
    return "\r\n".join(lines).encode() + body


async def until_ended(served: Served, count: int = 1) -> None:
    while len(served.ended) < count:
        await trio.sleep(0.01)


# -- requests and responses ----------------------------------------------------------------------------------


async def test_every_response_says_who_when_and_which_request() -> None:
    async with serving(echo) as served:
        client = await served.connect()
        ids = set()
        for _ in range(3):
            await client.send(GET)
            reply = await client.reply()
            assert reply.status == 200
            assert reply.headers["server"] == "Cordwood"
            assert parsedate_to_datetime(reply.headers["date"]).tzinfo is not None
            assert reply.headers["x-amz-id-2"]
            ids.add(reply.headers["x-amz-request-id"])
            assert "connection" not in reply.headers
        assert len(ids) == 3


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with serving(echo) as served:
        client = await served.connect()
        chunked = (
            b"PUT /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n"
        )
        batch = put("/a", b"first") + GET + chunked + put("/unread", b"skipped") + put("/z", b"last")
        await client.send(batch * 20)
        for _ in range(20):
            replies = [await client.reply() for _ in range(5)]
            assert [each.body for each in replies] == [b"first", b"", b"abc", b"", b"last"]
            assert [each.headers["x-target"] for each in replies] == [
                "PUT /a",
                "GET /",
                "PUT /c",
                "PUT /unread",
                "PUT /z",
            ]


async def test_a_request_may_come_byte_by_byte() -> None:
    async with serving(echo, Limits()) as served:
        client = await served.connect()
        for byte in put("/a", b"xyz"):
            await client.send(bytes([byte]))
        assert (await client.reply()).body == b"xyz"


async def test_a_large_body_passes_in_both_directions() -> None:
    data = os.urandom(5 << 20)
    async with serving(echo, Limits()) as served:
        client = await served.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, put("/a", data))
            reply = await client.reply()
        assert reply.body == data


async def test_head_gets_the_headers_of_the_body_but_no_body() -> None:
    async def app(head: RequestHead, body: Body, peer: PeerInfo) -> Response:
        return (
            Response(200, [("Content-Length", "12345")])
            if head.path == "/size"
            else Response(200, [], b"abc")
        )

    async with serving(app) as served:
        client = await served.connect()
        for path, length in (("/size", "12345"), ("/body", "3")):
            await client.send(f"HEAD {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
            assert (await client.reply(to_head=True)).headers["content-length"] == length
        await client.send(GET)
        assert (await client.reply()).body == b"abc"


@pytest.mark.parametrize("status", [204, 304])
async def test_a_response_without_body_has_no_length(status: int) -> None:
    async def app(head: RequestHead, body: Body, peer: PeerInfo) -> Response:
        return Response(status, [("ETag", '"x"')])

    async with serving(app) as served:
        client = await served.connect()
        await client.send(GET + GET)
        for _ in range(2):
            reply = await client.reply()
            assert reply.status == status
            assert "content-length" not in reply.headers


async def test_an_answer_of_not_modified_carries_no_trace_of_a_document() -> None:
    async def app(head: RequestHead, body: Body, peer: PeerInfo) -> Response:
        raise s3_error("NotModified", headers=[("ETag", '"x"')])

    async with serving(app) as served:
        client = await served.connect()
        await client.send(GET + GET)
        for _ in range(2):
            reply = await client.reply()
            assert (reply.status, reply.headers["etag"]) == (304, '"x"')
            assert not {"content-type", "content-length"} & reply.headers.keys()


@pytest.mark.parametrize(
    ("request_bytes", "connection"),
    [
        (b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", "close"),
        (b"GET / HTTP/1.0\r\n\r\n", "close"),
    ],
)
async def test_the_connection_closes_when_the_client_asks(request_bytes: bytes, connection: str) -> None:
    async with serving(echo) as served:
        client = await served.connect()
        await client.send(request_bytes)
        assert (await client.reply()).headers["connection"] == connection
        assert await client.is_closed()


async def test_http_1_0_may_ask_to_keep_the_connection() -> None:
    async with serving(echo) as served:
        client = await served.connect()
        for _ in range(2):
            await client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert (await client.reply()).headers["connection"] == "keep-alive"


async def test_the_application_may_close_the_connection() -> None:
    async def app(head: RequestHead, body: Body, peer: PeerInfo) -> Response:
        return Response(200, [], b"bye", close=True)

    async with serving(app) as served:
        client = await served.connect()
        await client.send(GET)
        assert (await client.reply()).headers["connection"] == "close"
        assert await client.is_closed()


# -- expectations and unread bodies --------------------------------------------------------------------------


async def test_continue_is_sent_when_the_application_first_asks_for_the_body() -> None:
    authenticated = trio.Event()

    async def app(head: RequestHead, body: Body, peer: PeerInfo) -> Response:
        await authenticated.wait()
        return Response(200, [], await read_all(body))

    async with serving(app) as served:
        client = await served.connect()
        await client.send(put("/", b"", "Expect: 100-continue").replace(b"Length: 0", b"Length: 3"))
        with trio.move_on_after(0.3) as waited:
            await client.reply()
        assert waited.cancelled_caught
        authenticated.set()
        assert (await client.reply()).status == 100
        await client.send(b"abc")
        assert (await client.reply()).body == b"abc"


async def test_a_refused_request_gets_no_continue_and_its_connection_closes() -> None:
    async def app(head: RequestHead, body: Body, peer: PeerInfo) -> Response:
        raise s3_error("AccessDenied")

    async with serving(app) as served:
        client = await served.connect()
        await client.send(put("/", b"", "Expect: 100-continue").replace(b"Length: 0", b"Length: 3"))
        reply = await client.reply()
        assert (reply.status, reply.headers["connection"]) == (403, "close")
        assert await client.is_closed()


async def test_a_client_that_does_not_wait_gets_no_continue() -> None:
    async with serving(echo) as served:
        client = await served.connect()
        await client.send(put("/", b"abc", "Expect: 100-continue"))
        assert (await client.reply()).body == b"abc"


async def test_a_small_unread_body_is_drained_and_a_large_one_closes_the_connection() -> None:
    async with serving(echo) as served:
        client = await served.connect()
        await client.send(put("/unread", b"x" * 1000) + GET)
        assert "connection" not in (await client.reply()).headers
        assert (await client.reply()).headers["x-target"] == "GET /"
        await client.send(put("/unread", b"x" * 1001) + GET)
        assert (await client.reply()).headers["connection"] == "close"
        assert await client.is_closed()


async def test_a_client_that_is_still_sending_can_read_why_it_was_refused() -> None:
    async def app(head: RequestHead, body: Body, peer: PeerInfo) -> Response:
        raise s3_error("AccessDenied")

    async with serving(app) as served:
        client = await served.connect()
        await client.send(put("/", b"x" * (3 << 20)))
        reply = await client.reply()
        assert reply.status == 403
        assert b"<Code>AccessDenied</Code>" in reply.body


async def test_an_unread_chunked_body_closes_the_connection() -> None:
    async with serving(echo) as served:
        client = await served.connect()
        await client.send(
            b"PUT /unread HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
            + GET
        )
        assert (await client.reply()).headers["connection"] == "close"
        assert await client.is_closed()


# -- streams and files ---------------------------------------------------------------------------------------


class Stream:
    """An async iterator that remembers being closed."""

    def __init__(self, blocks: list[bytes], *, fail: bool = False) -> None:
        self.blocks = blocks
        self.fail = fail
        self.closed = 0

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        if self.blocks:
            return self.blocks.pop(0)
        if self.fail:
            raise RuntimeError("out of order")
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.closed += 1


@dataclass
class Case:
    """An application that gives one response and counts the end of it."""

    response: Response
    done: int = 0

    def __post_init__(self) -> None:
        self.response.on_done = self.count

    def count(self) -> None:
        self.done += 1

    async def app(self, head: RequestHead, body: Body, peer: PeerInfo) -> Response:
        return self.response


async def test_a_stream_of_unknown_length_is_sent_in_chunks() -> None:
    stream = Stream([b"abc", b"", b"x" * 100_000, b"d"])
    case = Case(Response(200, [], None, stream))
    async with serving(case.app) as served:
        client = await served.connect()
        await client.send(GET)
        reply = await client.reply()
        assert reply.headers["transfer-encoding"] == "chunked"
        assert reply.body == b"abc" + b"x" * 100_000 + b"d"
        assert (stream.closed, case.done) == (1, 1)


async def test_a_stream_of_known_length_is_sent_plain() -> None:
    case = Case(Response(200, [("Content-Length", "6")], None, Stream([b"abc", b"def"])))
    async with serving(case.app) as served:
        client = await served.connect()
        await client.send(GET)
        reply = await client.reply()
        assert (reply.body, "transfer-encoding" in reply.headers) == (b"abcdef", False)


async def test_a_stream_to_http_1_0_ends_with_the_connection() -> None:
    case = Case(Response(200, [], None, Stream([b"abc", b"def"])))
    async with serving(case.app) as served:
        client = await served.connect()
        await client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        reply = await client.reply()
        assert (reply.headers["connection"], reply.body) == ("close", b"abcdef")


async def test_head_does_not_start_a_stream() -> None:
    stream = Stream([b"abc"])
    case = Case(Response(200, [("Content-Length", "3")], None, stream))
    async with serving(case.app) as served:
        client = await served.connect()
        await client.send(b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await client.reply(to_head=True)).headers["content-length"] == "3"
        while not case.done:
            await trio.sleep(0.01)
        assert (stream.blocks, stream.closed, case.done) == ([b"abc"], 1, 1)


@pytest.mark.parametrize(
    ("headers", "blocks", "fail"),
    [
        ([], [b"abc"], True),
        ([("Content-Length", "6")], [b"abc"], True),
        ([("Content-Length", "6")], [b"abc"], False),
        ([("Content-Length", "2")], [b"abc"], False),
    ],
)
async def test_a_response_that_cannot_be_completed_ends_in_a_reset(
    headers: list[tuple[str, str]], blocks: list[bytes], fail: bool, caplog: pytest.LogCaptureFixture
) -> None:
    case = Case(Response(200, headers, None, Stream(blocks, fail=fail)))
    async with serving(case.app) as served:
        client = await served.connect()
        await client.send(GET)
        with pytest.raises(trio.BrokenResourceError):
            await client.reply()
            await client.rest()
        await until_ended(served)
        assert case.done == 1
    assert len(caplog.records) == 1


@dataclass
class FileSpan:
    fd: int
    offset: int
    length: int


class FileSpans:
    """Spans back to back; every second one has to be waited for."""

    def __init__(self, fd: int, lengths: list[int], *, fail: bool = False) -> None:
        self._fd = fd
        self._lengths = lengths
        self._fail = fail
        self._offset = 100
        self.waited = 0

    def take(self, *, wait: bool = True) -> FileSpan | None:
        if not wait and len(self._lengths) % 2 == 0:
            return None
        self.waited += wait
        if not self._lengths:
            if self._fail:
                raise OSError("a bad sector")
            return None
        span = FileSpan(self._fd, self._offset, self._lengths.pop(0))
        self._offset += span.length
        return span


async def test_spans_of_a_file_are_sent() -> None:
    data = os.urandom(3_000_000)
    with tempfile.TemporaryFile() as file:
        file.write(bytes(100) + data)
        file.flush()
        spans = FileSpans(file.fileno(), [1_000_000, 1_500_000, 500_000])
        case = Case(Response(200, [("Content-Length", "3000000")], None, spans=spans))
        async with serving(case.app, Limits()) as served:
            client = await served.connect()
            await client.send(GET)
            reply = await client.reply()
            assert reply.body == data
            assert (case.done, spans.waited) == (1, 1)


async def test_a_file_that_fails_before_its_first_span_is_an_error_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    case = Case(Response(200, [("Content-Length", "3")], None, spans=FileSpans(-1, [], fail=True)))
    async with serving(case.app) as served:
        client = await served.connect()
        await client.send(GET)
        reply = await client.reply()
        assert (reply.status, case.done) == (500, 1)
        assert b"<Code>InternalError</Code>" in reply.body
    assert len(caplog.records) == 1


@pytest.mark.parametrize(("length", "fail"), [(100, True), (100, False), (4000, False)])
async def test_a_file_that_fails_later_resets_the_connection(
    length: int, fail: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(bytes(1000))
        file.flush()
        spans = FileSpans(file.fileno(), [length], fail=fail)
        case = Case(Response(200, [("Content-Length", "5000")], None, spans=spans))
        async with serving(case.app) as served:
            client = await served.connect()
            await client.send(GET)
            with pytest.raises(trio.BrokenResourceError):
                await client.reply()
                await client.rest()
            await until_ended(served)
            assert case.done == 1


# -- faults of ours ------------------------------------------------------------------------------------------


async def test_a_fault_in_the_application_is_an_internal_error_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def app(head: RequestHead, body: Body, peer: PeerInfo) -> Response:
        if head.path == "/bad":
            raise RuntimeError("a fault")
        return Response(200, [], b"fine")

    async with serving(app) as served:
        client = await served.connect()
        await client.send(b"GET /bad HTTP/1.1\r\nHost: h\r\n\r\n")
        reply = await client.reply()
        assert reply.status == 500
        request_id = reply.headers["x-amz-request-id"]
        assert "<Code>InternalError</Code>" in reply.body.decode()
        assert (
            f"<RequestId>{request_id}</RequestId><HostId>{reply.headers['x-amz-id-2']}</HostId>"
            in reply.body.decode()
        )
        assert [record.levelno for record in caplog.records] == [logging.ERROR]
        assert request_id in caplog.text
        await client.send(GET)
        assert (await client.reply()).body == b"fine"


async def test_a_response_header_that_would_split_the_response_is_an_internal_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    case = Case(Response(200, [("x-amz-meta-a", "b\r\nSet-Cookie: c")], b"secret"))
    async with serving(case.app) as served:
        client = await served.connect()
        await client.send(GET)
        reply = await client.reply()
        assert (reply.status, case.done) == (500, 1)
        assert "set-cookie" not in reply.headers


async def test_the_application_sees_who_is_asking() -> None:
    async def app(head: RequestHead, body: Body, peer: PeerInfo) -> Response:
        return Response(200, [], f"{peer.address} {peer.is_tls}".encode())

    async with serving(app) as served:
        client = await served.connect()
        await client.send(GET)
        assert (await client.reply()).body == b"127.0.0.1 False"


# -- slow and vanishing clients ------------------------------------------------------------------------------


async def test_an_idle_connection_is_closed_silently() -> None:
    async with serving(echo) as served:
        fresh, used = await served.connect(), await served.connect()
        await used.send(GET)
        assert (await used.reply()).status == 200
        assert await used.is_closed()
        assert await fresh.is_closed()


async def test_a_slow_head_times_out_however_it_trickles() -> None:
    async with serving(echo) as served:
        client = await served.connect()

        async def trickle() -> None:
            try:
                for byte in GET * 10:
                    await client.send(bytes([byte]))
                    await trio.sleep(0.1)
            except trio.BrokenResourceError:
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trickle)
            with trio.fail_after(6):
                reply = await client.reply()
            nursery.cancel_scope.cancel()
        assert reply.status == 400
        assert b"<Code>RequestTimeout</Code>" in reply.body


async def test_a_silent_body_times_out_and_the_client_is_told() -> None:
    async with serving(echo) as served:
        client = await served.connect()
        await client.send(put("/", b"abc")[:-1])
        reply = await client.reply()
        assert (reply.status, reply.headers["connection"]) == (400, "close")
        assert b"<Code>RequestTimeout</Code>" in reply.body
        assert await client.is_closed()


async def test_a_body_that_trickles_below_the_minimum_rate_times_out() -> None:
    async with serving(echo) as served:
        client = await served.connect()
        await client.send(put("/", b"x" * 100)[:-100])

        async def trickle() -> None:
            try:
                for _ in range(100):
                    await client.send(b"x")
                    await trio.sleep(0.1)
            except trio.BrokenResourceError:
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trickle)
            with trio.fail_after(6):
                reply = await client.reply()
            nursery.cancel_scope.cancel()
        assert b"<Code>RequestTimeout</Code>" in reply.body


async def test_a_body_above_the_minimum_rate_may_take_long() -> None:
    async with serving(echo) as served:
        client = await served.connect()
        await client.send(put("/", b"x" * 4000)[:-4000])
        for _ in range(10):
            await trio.sleep(0.15)
            await client.send(b"x" * 400)
        assert (await client.reply()).status == 200


async def test_the_time_an_application_takes_is_not_charged_to_the_client() -> None:
    async def app(head: RequestHead, body: Body, peer: PeerInfo) -> Response:
        await body.receive()
        await trio.sleep(1.6)
        return Response(200, [], await read_all(body))

    async with serving(app) as served:
        client = await served.connect()
        await client.send(put("/", b"abcd")[:-2])
        await trio.sleep(0.3)
        await client.send(b"cd")
        assert (await client.reply()).status == 200


async def test_a_slow_reader_is_cut_off() -> None:
    case = Case(Response(200, [], bytes(64 << 20)))
    async with serving(case.app) as served:
        client = await served.connect()
        await client.send(GET)
        with trio.fail_after(5):
            await until_ended(served)
        assert case.done == 1
        with pytest.raises(trio.BrokenResourceError):
            await client.rest()


async def test_a_slow_reader_of_a_file_is_cut_off() -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(64 << 20)
        spans = FileSpans(file.fileno(), [60 << 20])
        case = Case(Response(200, [("Content-Length", str(60 << 20))], None, spans=spans))
        async with serving(case.app) as served:
            client = await served.connect()
            await client.send(GET)
            with trio.fail_after(5):
                await until_ended(served)
            assert case.done == 1


@pytest.mark.parametrize("abruptly", [False, True])
async def test_a_client_that_leaves_in_the_middle_of_its_body_is_noticed(abruptly: bool) -> None:
    seen: list[Exception] = []

    async def app(head: RequestHead, body: Body, peer: PeerInfo) -> Response:
        try:
            await read_all(body)
        except ClientDisconnected as gone:
            seen.append(gone)
            raise
        raise AssertionError("the body was not whole")

    async with serving(app) as served:
        client = await served.connect()
        await client.send(put("/", b"abc")[:-1])
        if abruptly:
            client.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.stream.socket.close()
        else:
            await client.stream.send_eof()
            reply = await client.reply()
            assert b"<Code>IncompleteBody</Code>" in reply.body
        await until_ended(served)
        assert len(seen) == 1


async def test_a_client_that_leaves_while_it_is_answered_ends_only_its_connection() -> None:
    stream = Stream([b"x" * 100_000] * 1000)
    case = Case(Response(200, [], None, stream))
    async with serving(case.app) as served:
        client = await served.connect()
        await client.send(GET)
        await client.stream.receive_some(10)
        client.stream.socket.close()
        await until_ended(served)
        assert (stream.closed, case.done) == (1, 1)


async def test_a_long_read_is_given_up_when_its_client_leaves_but_a_write_is_finished() -> None:
    begun: list[str] = []
    finished: list[str] = []

    async def app(head: RequestHead, body: Body, peer: PeerInfo) -> Response:
        await read_all(body)
        begun.append(head.method)
        await trio.sleep(2.5)
        finished.append(head.method)
        return Response(200)

    async with serving(app) as served:
        for request in (GET, put("/", b"abc")):
            client = await served.connect()
            await client.send(request)
            while request[:3].decode() not in begun:
                await trio.sleep(0.01)
            client.stream.socket.close()
        await until_ended(served, 2)
        assert sorted(begun) == ["GET", "PUT"]
        assert finished == ["PUT"]


async def test_a_broken_chunked_body_is_a_bad_request() -> None:
    seen: list[Exception] = []

    async def app(head: RequestHead, body: Body, peer: PeerInfo) -> Response:
        try:
            await read_all(body)
        except MalformedBody as error:
            seen.append(error)
            raise
        return Response(200)

    async with serving(app) as served:
        client = await served.connect()
        await client.send(
            b"PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n" + GET
        )
        reply = await client.reply()
        assert (reply.status, reply.headers["connection"]) == (400, "close")
        assert await client.is_closed()
        assert len(seen) == 1


async def test_an_application_may_answer_a_timeout_itself_but_the_connection_closes() -> None:
    async def app(head: RequestHead, body: Body, peer: PeerInfo) -> Response:
        try:
            await read_all(body)
        except RequestTimeout:
            return Response(200, [], b"as you like")
        raise AssertionError("the body was whole")

    async with serving(app) as served:
        client = await served.connect()
        await client.send(put("/", b"abc")[:-1])
        reply = await client.reply()
        assert (reply.body, reply.headers["connection"]) == (b"as you like", "close")


# -- stopping ------------------------------------------------------------------------------------------------


async def test_stopping_closes_idle_connections_at_once() -> None:
    async with serving(echo, Limits()) as served:
        fresh, used = await served.connect(), await served.connect()
        await used.send(GET)
        assert (await used.reply()).status == 200
        served.stopping.set()
        with trio.fail_after(2):
            assert await fresh.is_closed()
            assert await used.is_closed()


async def test_stopping_finishes_the_request_in_flight_and_then_closes() -> None:
    arrived = trio.Event()

    async def app(head: RequestHead, body: Body, peer: PeerInfo) -> Response:
        arrived.set()
        return Response(200, [], await read_all(body))

    async with serving(app, Limits()) as served:
        client = await served.connect()
        await client.send(put("/", b"abc")[:-2])
        await arrived.wait()
        served.stopping.set()
        await trio.sleep(0.4)
        await client.send(b"bc" + GET)
        reply = await client.reply()
        assert (reply.body, reply.headers["connection"]) == (b"abc", "close")
        assert await client.is_closed()


async def test_cancelling_bounds_the_stop() -> None:
    arrived = trio.Event()

    async def app(head: RequestHead, body: Body, peer: PeerInfo) -> Response:
        arrived.set()
        await trio.sleep(1000)
        return Response(200)

    with trio.fail_after(5):
        async with serving(app, Limits()) as served:
            client = await served.connect()
            await client.send(GET)
            await arrived.wait()
