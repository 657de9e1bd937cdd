"""Attribute-based access control of a bucket: whether its tags count when policies ask for tags of the resource.

Must not know: how conditions are evaluated (condition_keys.py reads the attribute).
Invariant: a bucket's tags are no condition keys unless it was enabled, as in AWS.
"""

from __future__ import annotations

from cordwood.server.gate import ABAC, ENABLED
from cordwood.server.handlers.ingest import receive_structure
from cordwood.server.handlers.request import Request, handles
from cordwood.server.wire.interpret import respond
from cordwood.server.wire.message import Response
from cordwood.server.wire.xml import malformed


@handles("PutBucketAbac", "AbacStatus", has_body=True)
async def put_bucket_abac(request: Request) -> Response:
    status = (await receive_structure(request)).get("Status")
    if status is None:
        raise malformed("an AbacStatus has a Status")
    service = request.service
    attrs = {ABAC: status if status == ENABLED else None}
    await service.bridge.run(lambda: service.store.update_bucket(request.bucket, attrs=attrs))
    return respond(request.operation, {})


@handles("GetBucketAbac")
async def get_bucket_abac(request: Request) -> Response:
    assert request.bucket_info is not None
    status = request.bucket_info.attrs.get(ABAC, "Disabled")
    return respond(request.operation, {"AbacStatus": {"Status": status}})
