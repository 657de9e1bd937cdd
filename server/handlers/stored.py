"""Configuration that is stored and returned, and changes nothing, because one machine has nothing that it could change.

Must not know: any operation on objects.
Invariant: an operation is here only if no request could tell whether its configuration has an effect: acceleration is
about the way to a distant endpoint, and here is one endpoint.
"""

from __future__ import annotations

from cordwood.server.handlers.ingest import receive_structure
from cordwood.server.handlers.request import Request, handles
from cordwood.server.wire.errors import s3_error
from cordwood.server.wire.interpret import respond
from cordwood.server.wire.message import Response
from cordwood.server.wire.xml import malformed

_ACCELERATION = "acceleration"


@handles("PutBucketAccelerateConfiguration", "AccelerateConfiguration", has_body=True)
async def put_bucket_accelerate_configuration(request: Request) -> Response:
    document = await receive_structure(request)
    if "Status" not in document:
        raise malformed("an acceleration has a Status")
    if "." in request.bucket:
        raise s3_error(
            "InvalidRequest",
            "S3 Transfer Acceleration is not supported for buckets with periods (.) in their names",
        )
    service = request.service
    attrs = {_ACCELERATION: document["Status"]}
    await service.bridge.run(lambda: service.store.update_bucket(request.bucket, attrs=attrs))
    return respond(request.operation, {})


@handles("GetBucketAccelerateConfiguration")
async def get_bucket_accelerate_configuration(request: Request) -> Response:
    assert request.bucket_info is not None
    return respond(request.operation, {"Status": request.bucket_info.attrs.get(_ACCELERATION)})
