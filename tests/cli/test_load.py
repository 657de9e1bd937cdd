"""The load generator: every answer is counted once, whatever the server does with its connections."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cordwood.cli.load import Place, Prepared, run

REQUEST = Prepared(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")


@contextmanager
def answering(answer: bytes, *, closes: bool) -> Iterator[Place]:
    """A server that gives one answer to everything, and closes after each when told to."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(sock: socket.socket) -> None:
        with sock:
            while sock.recv(4096):
                sock.sendall(answer)
                if closes:
                    return

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(sock,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield Place("127.0.0.1", listener.getsockname()[1], None)
    finally:
        listener.close()


def test_a_server_that_closes_after_each_answer_has_refused_nothing() -> None:
    answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
    with answering(answer, closes=True) as place:
        tally = run(place, [REQUEST] * 40, connections=4, seconds=20, repeats=False)
    assert (len(tally.latencies_s), tally.sent, tally.failed) == (40, 40, 0)


def test_connections_that_are_closed_when_idle_are_no_failures() -> None:
    # Each connection is closed after its only answer, which does not say so; nobody waits on it any more.
    with answering(b"HTTP/1.1 204 No Content\r\n\r\n", closes=True) as place:
        tally = run(place, [REQUEST] * 4, connections=4, seconds=20, repeats=False)
    assert (len(tally.latencies_s), tally.failed) == (4, 0)


def test_a_refused_request_is_counted_and_the_load_goes_on() -> None:
    with answering(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n", closes=False) as place:
        tally = run(place, [REQUEST] * 6, connections=2, seconds=20, repeats=False)
    assert (tally.sent, tally.failed, len(tally.latencies_s)) == (6, 6, 0)
    assert tally.first_failure.startswith("HTTP 503")
