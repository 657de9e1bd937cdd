"""Questions about configuration that nothing can set yet, answered with the truth: there is none.

Clients ask these in passing (s3cmd info, rclone, the SDKs' managers) and stumble over NotImplemented. An operation
leaves this module when the one that sets the configuration arrives.

Must not know: how such configuration will be stored.
Invariant: each answer here is what AWS says of a bucket or object for which it was never configured, and is true
because the operation that would configure it is NotImplemented.
"""

from __future__ import annotations

from typing import Final

from cordwood.server.handlers.request import Request, handles
from cordwood.server.wire.errors import s3_error
from cordwood.server.wire.interpret import respond
from cordwood.server.wire.message import Response

NOT_CONFIGURED: Final = {
    "GetBucketReplication": "ReplicationConfigurationNotFoundError",
}


def _not_configured(name: str, code: str) -> None:
    @handles(name)
    async def answer(request: Request) -> Response:
        raise s3_error(code, bucket_name=request.bucket)


for _name, _code in NOT_CONFIGURED.items():
    _not_configured(_name, _code)


@handles("DeleteBucketReplication")
async def delete_bucket_replication(request: Request) -> Response:
    return respond(request.operation, {})
