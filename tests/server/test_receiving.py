"""Bodies received into buffers: the same bytes, ends and errors as those received in pieces."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import trio

from cordwood.server.client_socket import Limits
from cordwood.server.wire.message import (
    Body,
    BodyError,
    ClientDisconnected,
    MalformedBody,
    PeerInfo,
    RequestHead,
    RequestTimeout,
    Response,
)
from tests.server.wire_harness import serving


class Receiver:
    """Answers with the body, which it receives into a buffer of `size` bytes, again and again."""

    def __init__(self, size: int) -> None:
        self._buffer = memoryview(bytearray(size))
        self.failed: BodyError | None = None

    async def app(self, head: RequestHead, body: Body, peer: PeerInfo) -> Response:
        data = b""
        try:
            while count := await body.receive_into(self._buffer):
                assert count <= len(self._buffer)
                data += self._buffer[:count]
            assert await body.receive_into(self._buffer) == 0
        except BodyError as error:
            self.failed = error
            raise
        return Response(200, [], data)


def sized(data: bytes, *headers: str) -> bytes:
    lines = "".join(f"{header}\r\n" for header in headers)
    return f"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: {len(data)}\r\n{lines}\r\n".encode() + data


def chunked(data: bytes) -> bytes:
    third = len(data) // 3
    pieces = [piece for piece in (data[:third], data[third:]) if piece]
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return b"PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


@pytest.mark.parametrize("buffer_size", [1, 7, 100_000, 1 << 20])
@pytest.mark.parametrize("framed", [sized, chunked])
@pytest.mark.parametrize("size", [0, 1, 20, 300_000])
async def test_a_body_arrives_whole_in_a_buffer_of_any_size(
    size: int, framed: Callable[[bytes], bytes], buffer_size: int
) -> None:
    if size > 10_000 and buffer_size < 10_000:
        size = 2000
    data = os.urandom(size)
    async with serving(Receiver(buffer_size).app, Limits()) as served:
        client = await served.connect()
        request = framed(data)
        # Head and body together, then the body by itself, then both requests at once.
        await client.send(request)
        assert (await client.reply()).body == data
        cut = request.index(b"\r\n\r\n") + 4
        await client.send(request[:cut])
        await trio.sleep(0.02)
        await client.send(request[cut:])
        assert (await client.reply()).body == data
        await client.send(request + request)
        assert (await client.reply()).body == data
        assert (await client.reply()).body == data


async def test_continue_is_sent_before_the_first_bytes_are_waited_for() -> None:
    async with serving(Receiver(10).app) as served:
        client = await served.connect()
        await client.send(sized(b"abc", "Expect: 100-continue")[:-3])
        assert (await client.reply()).status == 100
        await client.send(b"abc")
        assert (await client.reply()).body == b"abc"


async def test_a_client_that_leaves_in_the_middle_is_noticed() -> None:
    receiver = Receiver(10)
    async with serving(receiver.app) as served:
        client = await served.connect()
        await client.send(sized(b"abc")[:-1])
        await client.stream.send_eof()
        assert b"<Code>IncompleteBody</Code>" in (await client.reply()).body
    assert isinstance(receiver.failed, ClientDisconnected)


async def test_a_client_that_falls_silent_is_timed_out() -> None:
    receiver = Receiver(10)
    async with serving(receiver.app) as served:
        client = await served.connect()
        await client.send(sized(b"abc")[:-1])
        assert b"<Code>RequestTimeout</Code>" in (await client.reply()).body
    assert isinstance(receiver.failed, RequestTimeout)


async def test_a_broken_chunked_body_is_a_bad_request() -> None:
    receiver = Receiver(10)
    async with serving(receiver.app) as served:
        client = await served.connect()
        await client.send(chunked(b"abcdef").replace(b"4\r\n", b"0x4\r\n"))
        reply = await client.reply()
        assert (reply.status, reply.headers["connection"]) == (400, "close")
    assert isinstance(receiver.failed, MalformedBody)
