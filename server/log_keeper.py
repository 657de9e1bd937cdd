"""Writes down the requests to buckets that have server access logging, and delivers the records behind the requests.

Must not know: sockets, what an operation does.
Invariants:
* A bucket without logging costs its requests nothing but the question whether it has.
* A record is written when the last byte has left, or could not: it tells what was sent, not what was meant to be.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Final

import trio

from cordwood.engine import BucketInfo, Store
from cordwood.engine import errors as engine_errors
from cordwood.server.bridge import Bridge
from cordwood.server.encryption import Encryption
from cordwood.server.gate import Demand, Gate
from cordwood.server.log_delivery import LogDelivery
from cordwood.server.log_record import LOGGING, Record, entry_of, operation_name
from cordwood.server.log_spool import SPOOL, LogSpool
from cordwood.server.notifications import Announcer
from cordwood.server.wire.errors import S3Error, render_error
from cordwood.server.wire.message import Body, PeerInfo, RequestHead, Response, Span, Spans
from cordwood.server.wire.route import Route
from cordwood.server.wire.sigv4 import Identity

_UNDIRECTED: Final = ("UNKNOWN", "", ())
_NO_BODY_STATUS: Final = frozenset((204, 304))


class LogKeeper:
    """One per worker."""

    def __init__(
        self,
        store: Store,
        bridge: Bridge,
        gate: Gate,
        announcer: Announcer,
        encryption: Encryption,
        region: str,
    ) -> None:
        self._store = store
        self._bridge = bridge
        self._gate = gate
        self._spool = LogSpool(store.path / SPOOL)
        self._delivery = LogDelivery(store, self._spool, announcer, encryption, region)
        self._is_full = trio.Event()

    async def run(self, interval_s: float) -> None:
        """Deliver every so often, until cancelled."""
        while True:
            with trio.move_on_after(interval_s):
                await self._is_full.wait()
            self._is_full = trio.Event()
            await self.deliver()

    async def deliver(self) -> None:
        """Deliver now what was written down so far."""
        await self._bridge.run(self._delivery.run)

    def close(self) -> None:
        self._spool.close()

    def watch(
        self,
        info: BucketInfo,
        head: RequestHead,
        peer: PeerInfo,
        route: Route,
        identity: Identity,
        *,
        is_website: bool = False,
    ) -> Watch:
        """Begin the record of a request to a bucket that is logged."""
        record = _record(info, head, peer, route, identity, is_website=is_website)
        return Watch(self, info, Demand(identity, head, peer), record)

    def refused(
        self,
        head: RequestHead,
        peer: PeerInfo,
        address: tuple[str, str],
        route: Route | None,
        identity: Identity | None,
        error: Exception,
    ) -> None:
        """Write down a request that ended in an error, if its bucket is logged."""
        bucket, key = address
        try:
            info = self._store.head_bucket(bucket) if bucket else None
        except engine_errors.CordwoodError:
            return
        if info is None or LOGGING not in info.attrs:
            return
        record = _record(info, head, peer, route, identity)
        record.key = key
        record.status, record.error_code = 400, "IncompleteBody"
        if isinstance(error, S3Error):
            record.status = error.status
            record.error_code = "" if error.status in _NO_BODY_STATUS else error.code
            if head.method != "HEAD" and error.status not in _NO_BODY_STATUS:
                document = render_error(
                    error, resource=head.path, request_id=head.request_id, host_id=head.host_id
                )
                record.bytes_sent = len(document)
        self.write(info, record)

    def copied_from(
        self, info: BucketInfo, demand: Demand, operation: str, key: str, version_id: str, size: int
    ) -> None:
        """Write down that an object of a bucket was read for a copy, if that bucket is logged."""
        if LOGGING not in info.attrs:
            return
        record = _record(info, demand.head, demand.peer, None, demand.identity)
        record.operation, record.key, record.version_id = operation, key, version_id
        record.status, record.object_size = 200, size
        self.write(info, record)

    def relied_on_list(self, demand: Demand, info: BucketInfo, key: str, action: str) -> bool:
        return self._gate.relied_on_list(demand, action, info, key)

    def write(self, info: BucketInfo, record: Record) -> None:
        """Keep a finished record."""
        if self._spool.append(entry_of(info.name, info.attrs, record)):
            self._is_full.set()


class Watch:
    """One request to a logged bucket, from its head to the last byte of its answer."""

    def __init__(
        self,
        keeper: LogKeeper,
        info: BucketInfo,
        demand: Demand,
        record: Record,
    ) -> None:
        self._keeper = keeper
        self._info = info
        self._demand = demand
        self._began_s = self._received_s = time.perf_counter()
        self._record = record
        self._others: list[Record] = []

    def body(self, body: Body) -> Body:
        """The body, observed: the turn-around time begins with its last byte."""
        return _TimedBody(body, self)

    def received(self) -> None:
        self._received_s = time.perf_counter()

    def also(self, operation: str, key: str, version_id: str, status: int, error_code: str = "") -> None:
        """A second record of the same request: what a batch did to one of its keys."""
        self._others.append(
            replace(
                self._record,
                operation=operation,
                key=key,
                version_id=version_id,
                status=status,
                error_code=error_code,
            )
        )

    def answered(self, response: Response, action: str, key: str, *, error_code: str = "") -> None:
        """The answer is decided; the record is written when it has been sent."""
        record = self._record
        record.error_code = error_code
        head = self._demand.head
        record.status = response.status
        headers = {name.lower(): value for name, value in response.headers}
        record.version_id = headers.get("x-amz-version-id", "") or head.parameter("versionId") or ""
        record.object_size = _object_size(record.operation, head, headers, response)
        record.is_acl_required = self._keeper.relied_on_list(self._demand, self._info, key, action)
        record.turnaround_ms = _ms_since(self._received_s)
        count = _Count()
        if head.method != "HEAD" and response.status not in _NO_BODY_STATUS:
            if response.spans is not None:
                response.spans = _CountedSpans(response.spans, count)
            elif response.stream is not None:
                response.stream = _counted_stream(response.stream, count)
            else:
                count.bytes = len(response.body or b"")
        on_done = response.on_done

        def done() -> None:
            record.bytes_sent = count.bytes
            record.total_ms = _ms_since(self._began_s)
            self._keeper.write(self._info, record)
            for other in self._others:
                self._keeper.write(self._info, other)
            if on_done is not None:
                on_done()

        response.on_done = done


def _record(
    info: BucketInfo,
    head: RequestHead,
    peer: PeerInfo,
    route: Route | None,
    identity: Identity | None,
    *,
    is_website: bool = False,
) -> Record:
    name, depth, literals = _UNDIRECTED if route is None else _direction(route)
    version, kind = _signature(head)
    return Record(
        owner_id=info.attrs.get("owner", {"id": ""})["id"],
        bucket=info.name,
        time_s=time.time(),
        address=peer.address,
        requester="" if identity is None or identity.is_anonymous else identity.owner_id,
        request_id=head.request_id,
        operation=operation_name(name, head.method, depth, literals, is_website=is_website)
        if route is not None
        else "",
        key=route.key if route is not None else "",
        request_line=f"{head.method} {head.target.decode('latin-1')} HTTP/{head.http_version}",
        status=500,
        headers=head.headers,
        host_id=head.host_id,
        signature_version=version,
        authentication=kind,
    )


def _direction(route: Route) -> tuple[str, str, tuple[tuple[str, str], ...]]:
    operation = route.operation
    return operation.name, operation.depth, operation.literals


def _signature(head: RequestHead) -> tuple[str, str]:
    """(version, place) of the signature, as the log names them."""
    if "authorization" in head.headers:
        return "SigV4" if head.headers["authorization"].startswith("AWS4") else "SigV2", "AuthHeader"
    if head.parameter("X-Amz-Signature") is not None:
        return "SigV4", "QueryString"
    if head.parameter("Signature") is not None:
        return "SigV2", "QueryString"
    return "", ""


def _object_size(
    operation: str, head: RequestHead, headers: Mapping[str, str], response: Response
) -> int | None:
    """The size of the object that was read or written, where the exchange tells it."""
    if operation in ("REST.PUT.OBJECT", "REST.PUT.PART"):
        text = head.headers.get("x-amz-decoded-content-length") or head.headers.get("content-length", "")
        return int(text) if text.isdigit() else None
    if operation not in ("REST.GET.OBJECT", "REST.HEAD.OBJECT", "WEBSITE.GET.OBJECT", "WEBSITE.HEAD.OBJECT"):
        return None
    total = headers.get("content-range", "").rpartition("/")[2]
    if total.isdigit():
        return int(total)
    length = headers.get("content-length", "")
    if length.isdigit():
        return int(length)
    return len(response.body) if response.status == 200 and response.body is not None else None


def _ms_since(began_s: float) -> int:
    return int((time.perf_counter() - began_s) * 1000)


class _TimedBody:
    __slots__ = ("_body", "_watch")

    def __init__(self, body: Body, watch: Watch) -> None:
        self._body = body
        self._watch = watch

    async def receive(self) -> bytes:
        data = await self._body.receive()
        self._watch.received()
        return data

    async def receive_into(self, buffer: memoryview) -> int:
        count = await self._body.receive_into(buffer)
        self._watch.received()
        return count


class _Count:
    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0


class _CountedSpans:
    """Counts a span when it is handed over: of a transfer that is cut off, the last one counts whole."""

    def __init__(self, spans: Spans, count: _Count) -> None:
        self._spans = spans
        self._count = count

    def take(self, *, wait: bool = True) -> Span | None:
        span = self._spans.take(wait=wait)
        if span is not None:
            self._count.bytes += span.length
        return span


async def _counted_stream(stream: AsyncIterator[bytes], count: _Count) -> AsyncIterator[bytes]:
    try:
        async for block in stream:
            count.bytes += len(block)
            yield block
            del block
    finally:
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()
