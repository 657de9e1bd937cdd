"""The plain values that pass between the transport and the S3 surface.

Purpose: one place for what both sides of the seam agree on: a parsed request head, a response to be sent, a request
body to be received, and the shape of the application in between.
Must not know: trio, sockets, the engine, S3.
Invariants: values only. A `RequestHead` is made by the parser alone and has passed every check of RFC 9112 framing.
They are structs of msgspec, since one of each is made for every request.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

import msgspec


class RequestHead(msgspec.Struct, gc=False):
    """The request line and header fields of one request."""

    method: str
    target: bytes
    """The raw request-target, as received."""
    raw_path: bytes
    """The path of the target, up to "?", still percent-encoded."""
    path: str
    """`raw_path` percent-decoded as strict UTF-8; "+" is not a space."""
    query: list[tuple[str, str]]
    """Percent-decoded, in order, duplicates kept; "a" and "a=" both give ("a", "")."""
    raw_query: bytes
    headers: dict[str, str]
    """Lower-case names; values are UTF-8 where valid, else latin-1; repeated fields are joined with ","."""
    content_length: int | None
    is_chunked: bool
    expect_continue: bool
    keep_alive: bool
    http_version: str
    """1.1 or 1.0."""
    request_id: str = ""
    """Given by the connection; it also goes into the answer's x-amz-request-id and into every error document."""
    host_id: str = ""

    def parameter(self, name: str) -> str | None:
        """The value of a query parameter. Of several the last one counts, for whoever decides as for whoever acts."""
        for each, value in reversed(self.query):
            if each == name:
                return value
        return None


class Span(Protocol):
    """A stretch of an open file whose bytes have been verified."""

    @property
    def fd(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def length(self) -> int: ...


class Spans(Protocol):
    """The spans of a body, in order."""

    def take(self, *, wait: bool = True) -> Span | None:
        """The next one, whose bytes are verified when it is given; None behind the last. The span keeps its file open.

        With `wait` false also None when the disk would have to be waited for; else it may block, so in a thread.
        """
        ...


class Response(msgspec.Struct):
    """What the application answers. Exactly one of `body`, `stream` and `spans` carries the bytes."""

    status: int
    headers: list[tuple[str, str]] = []
    body: bytes | None = b""
    """A small body, sent together with the head."""
    stream: AsyncIterator[bytes] | None = None
    """Async blocks; sent chunked unless the headers hold a content-length."""
    spans: Spans | None = None
    """Verified file spans for sendfile (content-length required)."""
    on_done: Callable[[], None] | None = None
    """Called exactly once, after the last byte or on failure."""
    close: bool = False
    """Close the connection after this response."""
    fields: bytes = b""
    """Header fields that are rendered already (http1.py); those of `headers` come behind them."""

    @property
    def is_plain(self) -> bool:
        """Is `body` all there is to send, and nothing to be done afterwards?"""
        return self.stream is None and self.spans is None and self.on_done is None and not self.close


class PeerInfo(msgspec.Struct, frozen=True, gc=False):
    """The other end of the connection."""

    address: str
    is_tls: bool


class Body(Protocol):
    """The request body with transfer coding removed (aws-chunked is still in place)."""

    async def receive(self) -> bytes:
        """The next piece, b"" at the end.

        The first call sends "100 Continue" when the client waits for it, so authenticate before calling.
        Raises `BodyError` (one of `ClientDisconnected`, `RequestTimeout`, `MalformedBody`).
        """
        ...

    async def receive_into(self, buffer: memoryview) -> int:
        """Like `receive`, but puts what has arrived into `buffer`, as much as fits; returns its length, 0 at the end.

        A body is received by one of the two from its beginning to its end.
        """
        ...


class BodyError(Exception):
    """The request body could not be received whole."""


class ClientDisconnected(BodyError):
    """The client closed or reset the connection before the end of the body."""


class RequestTimeout(BodyError):
    """The client sent its body too slowly."""


class MalformedBody(BodyError):
    """The chunked transfer coding of the body is broken."""


App = Callable[[RequestHead, Body, PeerInfo], Awaitable[Response]]
AtOnce = Callable[[RequestHead, Body, PeerInfo], Response | None]
"""Answers a request without a body without waiting for anything; None: it is one for the `App`. Raises as the `App`."""
