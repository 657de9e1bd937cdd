"""Fuzz the HTTP/1.1 reader.

Invariant: any input gives request heads and bodies or raises ProtocolError, never another exception; and where it is
read to its end, it gives the same when it comes in pieces.

Must not know: sockets.
"""

from __future__ import annotations

from collections.abc import Iterable

from cordwood.server.wire.http1 import ProtocolError, RequestReceiver


def one(data: bytes) -> None:
    """The first byte says how long the pieces are."""
    if not data:
        return
    step, stream = data[0] + 1, data[1:]
    whole, whole_refused = _read([stream])
    pieces, pieces_refused = _read(stream[start : start + step] for start in range(0, len(stream), step))
    assert whole == pieces, "cutting the input elsewhere changed what was read"
    # An error may be seen earlier in pieces, but then it is there in the whole, too.
    assert whole_refused == pieces_refused, "cutting the input elsewhere changed what is refused"


def _read(feeds: Iterable[bytes]) -> tuple[list[object], bool]:
    receiver = RequestReceiver()
    seen: list[object] = []
    body: bytes | None = None
    try:
        for feed in feeds:
            receiver.feed(feed)
            while True:
                if body is None:
                    head = receiver.next_head()
                    if head is None:
                        break
                    assert head.content_length is None or not head.is_chunked
                    assert head.http_version == "1.0" or head.headers["host"]
                    assert all("\r" not in value and "\n" not in value for value in head.headers.values())
                    seen.append((head.method, head.path, head.query, list(head.headers.items())))
                    body = b""
                piece = receiver.next_body()
                if piece is None:
                    break
                body += piece
                if not piece:
                    seen.append((body, list(receiver.trailers)))
                    body = None
    except ProtocolError as error:
        assert 400 <= error.status < 600
        return seen, True
    return seen, False
