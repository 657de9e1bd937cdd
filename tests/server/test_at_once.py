"""What a connection answers at once, without its task, in between what takes its time."""

from __future__ import annotations

import trio

from cordwood.server.wire.errors import s3_error
from cordwood.server.wire.message import Body, PeerInfo, RequestHead, Response
from tests.server.wire_harness import echo, serving

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
NOW = GET.replace(b"/ ", b"/now ")
PUT = b"PUT /put HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody"


def at_once(head: RequestHead, body: Body, peer: PeerInfo) -> Response | None:
    """Answers /now and refuses /no at once, is at fault for /fault, and leaves the rest."""
    if head.path == "/no":
        raise s3_error("NoSuchKey", key="no")
    if head.path == "/fault":
        raise RuntimeError("a fault of ours")
    if head.path == "/large":
        return Response(200, body=bytes(8 << 20))
    if head.path == "/now":
        return Response(200, [("x-more", "1")], b"at once", fields=b"\r\nx-target: now\r\ncontent-length: 7")
    return None


async def test_what_is_answered_at_once_takes_its_turn_among_the_rest() -> None:
    async with serving(echo, at_once=at_once) as served:
        client = await served.connect()
        for target, status, said in (
            ("/now", 200, "now"),
            ("/now", 200, "now"),
            ("/other", 200, "GET /other"),
            ("/now", 200, "now"),
            ("/no", 404, None),
            ("/fault", 200, "GET /fault"),
            ("/now", 200, "now"),
        ):
            await client.send(GET.replace(b"/ ", f"{target} ".encode()))
            reply = await client.reply()
            assert (reply.status, reply.headers.get("x-target")) == (status, said)
            assert reply.headers["x-amz-request-id"]
        await client.send(PUT)
        assert (await client.reply()).headers["x-target"] == "PUT /put", "what has a body is not asked for"
        await client.send(b"HEAD /now HTTP/1.1\r\nHost: h\r\n\r\n")
        reply = await client.reply(to_head=True)
        assert (reply.headers["x-target"], reply.headers["x-more"]) == ("now", "1")
        await client.send(NOW.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert (await client.reply()).headers["x-target"] == "GET /now"
        assert await client.is_closed()


async def test_an_answer_at_once_may_be_longer_than_what_the_socket_takes() -> None:
    async with serving(echo, at_once=at_once) as served:
        client = await served.connect()
        for _ in range(3):
            await client.send(GET.replace(b"/ ", b"/large "))
            assert (await client.reply()).body == bytes(8 << 20)
        await client.send(NOW)
        assert (await client.reply()).body == b"at once"


async def test_requests_in_pieces_and_in_heaps_are_all_answered_in_order() -> None:
    async with serving(echo, at_once=at_once) as served:
        client = await served.connect()
        for cut in range(1, len(NOW), 7):
            await client.send(NOW[:cut])
            await trio.sleep(0.01)
            await client.send(NOW[cut:] + NOW)
            for _ in range(2):
                assert (await client.reply()).headers["x-target"] in ("now", "GET /now")
        filler = b"GET /fill HTTP/1.1\r\nHost: h\r\nX-Filler: "
        filler += b"x" * ((16 << 10) - len(NOW) - len(filler) - 4) + b"\r\n\r\n"
        large = b"PUT /put HTTP/1.1\r\nHost: h\r\nContent-Length: 40000\r\n\r\n" + bytes(40000)
        for heap in (NOW * 2000 + PUT, (filler + NOW) * 20 + PUT, (large + NOW) * 9 + PUT, NOW + PUT + PUT):
            await client.send(heap)
            for _ in range(heap.count(b"HTTP/1.1") - 1):
                assert (await client.reply()).status == 200
            assert (await client.reply()).headers["x-target"] == "PUT /put"


async def test_what_came_while_an_answer_was_made_is_read_afterwards() -> None:
    went_on = trio.Event()

    async def slow(head: RequestHead, body: Body, peer: PeerInfo) -> Response:
        await went_on.wait()
        return await echo(head, body, peer)

    async with serving(slow, at_once=at_once) as served:
        client = await served.connect()
        await client.send(GET)
        await trio.sleep(0.05)
        await client.send(NOW)
        await trio.sleep(0.05)
        went_on.set()
        assert (await client.reply()).headers["x-target"] == "GET /"
        assert (await client.reply()).body == b"at once"


async def test_an_idle_connection_ends_after_its_last_answer_at_once() -> None:
    async with serving(echo, at_once=at_once) as served:
        client = await served.connect()
        for _ in range(4):
            await client.send(NOW)
            assert (await client.reply()).body == b"at once"
            await trio.sleep(0.4)
        with trio.fail_after(3):
            assert await client.is_closed()
        other = await served.connect()
        await other.send(NOW)
        await other.reply()
        served.stopping.set()
        with trio.fail_after(1):
            assert await other.is_closed()


async def test_who_closes_its_half_with_the_last_request_gets_the_answer_and_the_end() -> None:
    async with serving(echo, at_once=at_once) as served:
        for before in (b"", NOW, NOW * 2, GET):
            client = await served.connect()
            if before:
                await client.send(before)
                for _ in range(before.count(GET[:4])):
                    await client.reply()
            # Without a turn of the loop in between, so that both come at once.
            client.stream.socket.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_CORK, 1)
            await client.send(NOW)
            client.stream.socket.shutdown(trio.socket.SHUT_WR)
            assert (await client.reply()).body == b"at once"
            with trio.fail_after(0.8):
                assert await client.is_closed()
