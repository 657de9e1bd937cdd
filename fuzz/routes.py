"""Fuzz the way from a request head to an operation and its parameters.

Invariant: any head that the HTTP parser lets through leads to an operation of its method with parameters of the model's
types, or is refused by an S3Error; a key is never longer than 1,024 bytes, and a sub-resource of the model never leads
to an operation that does not have it.

Must not know: the engine, sockets.
"""

from __future__ import annotations

from cordwood.server.handlers.conditions import etags, parse_range
from cordwood.server.handlers.copy import parse_source
from cordwood.server.wire.errors import S3Error
from cordwood.server.wire.http1 import ProtocolError, RequestReceiver
from cordwood.server.wire.interpret import read_params
from cordwood.server.wire.route import OPERATION, Router

ROUTER = Router(("s3.test",))
SUBRESOURCES = {key for each in OPERATION.values() for key, value in each.literals if not value}


def one(data: bytes) -> None:
    receiver = RequestReceiver()
    receiver.feed(data)
    try:
        head = receiver.next_head()
    except ProtocolError:
        return
    if head is None:
        return
    try:
        route = ROUTER.route(head)
        params = read_params(route.operation, head)
        if "CopySource" in params:
            source = parse_source(params["CopySource"])
            assert source.bucket and source.key
    except S3Error:
        return
    assert route.operation.method == head.method
    assert len(route.key.encode()) <= 1024
    assert params.keys() <= route.operation.inputs.keys()
    wanted = {key for key, _ in head.query if key in SUBRESOURCES}
    assert wanted <= {key for key, _ in route.operation.literals} | route.operation.query.keys()
    if "Range" in params:
        found = parse_range(params["Range"])
        assert found is None or found != (None, None)
    for name in ("IfMatch", "IfNoneMatch"):
        assert all('"' not in etag for etag in etags(params.get(name, "")))
