"""GetBucketVersioning and PutBucketVersioning.

Must not know: what versioning does to objects (the engine's matter).
Invariant: once on, versioning is only ever suspended; with object lock not even that.
"""

from __future__ import annotations

from cordwood.engine import errors as engine_errors
from cordwood.server.handlers.ingest import receive_structure
from cordwood.server.handlers.request import Request, handles
from cordwood.server.wire.errors import s3_error
from cordwood.server.wire.interpret import respond
from cordwood.server.wire.message import Response


@handles("GetBucketVersioning")
async def get_bucket_versioning(request: Request) -> Response:
    assert request.bucket_info is not None
    return respond(request.operation, {"Status": request.bucket_info.versioning or None})


@handles("PutBucketVersioning", "VersioningConfiguration", has_body=True)
async def put_bucket_versioning(request: Request) -> Response:
    wanted = await receive_structure(request)
    if wanted.get("MFADelete") == "Enabled":
        raise s3_error("NotImplemented", "MFA delete is not implemented.")
    status = wanted.get("Status")
    if status is None:
        raise s3_error("IllegalVersioningConfigurationException")
    service = request.service
    try:
        await service.bridge.run(lambda: service.store.update_bucket(request.bucket, versioning=status))
    except engine_errors.InvalidState:
        raise s3_error(
            "InvalidBucketState",
            "An Object Lock configuration is present on this bucket, so the versioning state cannot be changed.",
        ) from None
    return respond(request.operation, {})
