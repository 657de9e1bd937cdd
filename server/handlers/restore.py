"""RestoreObject, for which there is never anything to do: every storage class here is read at once.

Must not know: how objects are stored.
Invariant: nothing is changed; what exists is InvalidObjectState, as AWS answers for whatever is not archived.
"""

from __future__ import annotations

from cordwood.server.handlers.conditions import version_text
from cordwood.server.handlers.ingest import receive_structure
from cordwood.server.handlers.request import Request, handles
from cordwood.server.wire.errors import s3_error
from cordwood.server.wire.message import Response


@handles("RestoreObject", "VersionId RestoreRequest", has_body=True)
async def restore_object(request: Request) -> Response:
    store, version_id = request.service.store, version_text(request.params)
    await receive_structure(request)
    info = await request.service.bridge.run(
        lambda: store.head(request.bucket, request.key, version_id=version_id)
    )
    request.confirm(info)
    raise s3_error("InvalidObjectState", "Restore is not allowed for the object's current storage class")
