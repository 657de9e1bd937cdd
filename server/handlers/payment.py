"""Who pays for requests: the configuration, and what a request has to say where the requester does.

Must not know: prices; nothing is charged here, but what works here must work at AWS.
Invariant: in a bucket whose requester pays, everybody but its owner declares that he will, or is refused (gate.py).

Source: "Using Requester Pays buckets", Amazon S3 User Guide.
"""

from __future__ import annotations

from cordwood.server.gate import PAYER, REQUESTER
from cordwood.server.handlers.ingest import receive_structure
from cordwood.server.handlers.request import Request, handles
from cordwood.server.wire.interpret import respond
from cordwood.server.wire.message import Response


@handles("PutBucketRequestPayment", "RequestPaymentConfiguration", has_body=True)
async def put_bucket_request_payment(request: Request) -> Response:
    document = await receive_structure(request)
    payer = REQUESTER if document["Payer"] == REQUESTER else None
    service = request.service
    await service.bridge.run(lambda: service.store.update_bucket(request.bucket, attrs={PAYER: payer}))
    return respond(request.operation, {})


@handles("GetBucketRequestPayment")
async def get_bucket_request_payment(request: Request) -> Response:
    assert request.bucket_info is not None
    return respond(request.operation, {"Payer": request.bucket_info.attrs.get(PAYER, "BucketOwner")})
