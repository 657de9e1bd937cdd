"""What an attacker sends to a connection: each attempt ends in one S3 error and a closed connection, nothing after it.

Invariant: bytes behind a request whose end is in doubt are never taken for a request.
"""

from __future__ import annotations

import re

import pytest
import trio

from cordwood.server.conn import Limits
from tests.server.wire_harness import echo, serving

TE = "Transfer-Encoding: chunked"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"


def head(*lines: str) -> bytes:
    return "\r\n".join(["POST /outer HTTP/1.1", "Host: h", *lines, "", ""]).encode("latin-1")


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        pytest.param(head("Content-Length: 5", TE) + b"0\r\n\r\n", 400, "BadRequest", id="CL.TE"),
        pytest.param(head(TE, "Content-Length: 5") + b"0\r\n\r\n", 400, "BadRequest", id="TE.CL"),
        pytest.param(head("Transfer-Encoding: xchunked") + b"0\r\n\r\n", 400, "BadRequest", id="TE unknown"),
        pytest.param(head("Transfer-Encoding : chunked") + b"0\r\n\r\n", 400, "BadRequest", id="TE with a blank"),
        pytest.param(head("Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n", 501, "NotImplemented", id="TE gzip"),
        pytest.param(head("Transfer-Encoding: chunked", "Transfer-Encoding: x"), 400, "BadRequest", id="TE.TE"),
        pytest.param(head("X: y\nTransfer-Encoding: chunked") + b"0\r\n\r\n", 400, "BadRequest", id="bare LF"),
        pytest.param(head("X: y\r Transfer-Encoding: chunked"), 400, "BadRequest", id="bare CR"),
        pytest.param(head("X: y", " Transfer-Encoding: chunked"), 400, "BadRequest", id="obs-fold"),
        pytest.param(head("Content-Length: 0", "Content-Length: 36"), 400, "BadRequest", id="CL twice"),
        pytest.param(head("Content-Length: 0, 36"), 400, "BadRequest", id="CL list"),
        pytest.param(head("Content-Length: +0"), 400, "BadRequest", id="CL plus"),
        pytest.param(head("Transfer-Encoding: chunked") + b"0x0\r\n\r\n", 400, "BadRequest", id="chunk 0x0"),
        pytest.param(head("Transfer-Encoding: chunked") + b"0;\n\r\n\r\n", 400, "BadRequest", id="LF in extension"),
        pytest.param(head("Transfer-Encoding: chunked") + b"1\r\naX0\r\n\r\n", 400, "BadRequest", id="chunk overrun"),
        pytest.param(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "BadRequest", id="TE 1.0"),
        pytest.param(head("Host: other"), 400, "BadRequest", id="two hosts"),
        pytest.param(b"POST / HTTP/1.1\r\n\r\n", 400, "BadRequest", id="no host"),
        pytest.param(b"POST http://u@h/ HTTP/1.1\r\nHost: h\r\n\r\n", 400, "InvalidURI", id="userinfo"),
        pytest.param(b"POST /\n\n", 400, "BadRequest", id="LF LF"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500, 400, "BadRequest", id="TLS"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "BadRequest", id="HTTP/2 preface"),
        pytest.param(b"CONNECT h:80 HTTP/1.1\r\nHost: h\r\n\r\n", 405, "MethodNotAllowed", id="CONNECT"),
        pytest.param(head(*["A: " + "x" * 990] * 200), 400, "RequestHeaderSectionTooLarge", id="200 kB of headers"),
        pytest.param(head(*["A: b"] * 2000), 400, "RequestHeaderSectionTooLarge", id="2,000 headers"),
        pytest.param(b"GET /" + b"x" * 100_000, 400, "RequestHeaderSectionTooLarge", id="endless target"),
        pytest.param(b"\r\n" * 5000, 400, "BadRequest", id="endless empty lines"),
    ],
)  # fmt: skip
async def test_an_attempt_is_answered_once_and_nothing_behind_it_is_read(
    data: bytes, status: int, code: str
) -> None:
    async with serving(echo, Limits(linger_s=1)) as served:
        client = await served.connect()
        await client.send(data + SMUGGLED * 3)
        with trio.fail_after(5):
            reply = await client.reply()
            assert (reply.status, reply.headers["connection"]) == (status, "close")
            assert f"<Code>{code}</Code>".encode() in reply.body
            assert reply.headers["content-type"] == "application/xml"
            request_id = re.search(rb"<RequestId>(.*)</RequestId><HostId>(.*)</HostId>", reply.body)
            assert request_id is not None
            assert request_id[1].decode() == reply.headers["x-amz-request-id"]
            assert await client.is_closed()


async def test_a_head_request_that_is_refused_gets_no_body() -> None:
    async with serving(echo) as served:
        client = await served.connect()
        await client.send(b"HEAD / HTTP/1.1\r\n\r\n")
        assert (await client.reply(to_head=True)).status == 400
        assert await client.is_closed()


async def test_a_smuggled_request_inside_a_body_stays_a_body() -> None:
    async with serving(echo) as served:
        client = await served.connect()
        chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)
        await client.send(
            head(f"Content-Length: {len(SMUGGLED)}") + SMUGGLED + head("Transfer-Encoding: chunked") + chunk
        )
        for _ in range(2):
            reply = await client.reply()
            assert (reply.headers["x-target"], reply.body) == ("POST /outer", SMUGGLED)


async def test_trailers_never_become_headers_of_the_next_request() -> None:
    async with serving(echo) as served:
        client = await served.connect()
        body = b"0\r\nContent-Length: 100\r\nTransfer-Encoding: chunked\r\nHost: evil\r\n\r\n"
        await client.send(
            head("Transfer-Encoding: chunked") + body + SMUGGLED.replace(b"smuggled", b"honest")
        )
        assert (await client.reply()).headers["x-target"] == "POST /outer"
        assert (await client.reply()).headers["x-target"] == "GET /honest"


async def test_an_upgrade_cannot_hide_a_body() -> None:
    async with serving(echo) as served:
        client = await served.connect()
        fields = head(
            "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", f"Content-Length: {len(SMUGGLED)}"
        )
        await client.send(fields + SMUGGLED)
        assert (await client.reply()).body == SMUGGLED


async def test_early_refusal_does_not_wait_for_the_end_of_the_head() -> None:
    async with serving(echo, Limits()) as served:
        client = await served.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: h\r\n")
        with trio.fail_after(5):
            sent = 0
            async with trio.open_nursery() as nursery:

                async def flood() -> None:
                    nonlocal sent
                    try:
                        while True:
                            await client.send(b"A: %b\r\n" % (b"x" * 1000))
                            sent += 1007
                            await trio.lowlevel.checkpoint()
                    except (trio.BrokenResourceError, trio.ClosedResourceError):
                        pass

                nursery.start_soon(flood)
                reply = await client.reply()
                nursery.cancel_scope.cancel()
        assert b"RequestHeaderSectionTooLarge" in reply.body


async def test_many_hostile_connections_leave_an_honest_one_alone() -> None:
    async with serving(echo, Limits(linger_s=0.3)) as served:
        honest = await served.connect()
        for junk in (
            b"\0",
            b"GET / HTTP/1.1\r\n",
            b"\xff" * 1000,
            b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nx",
        ):
            for _ in range(10):
                client = await served.connect()
                await client.send(junk)
        await honest.send(SMUGGLED.replace(b"smuggled", b"honest"))
        with trio.fail_after(5):
            assert (await honest.reply()).status == 200
