"""Server access logging of a bucket: where its records go.

Must not know: how records are made, kept and delivered.
Invariants:
* Only the owner of a bucket says where its log goes, whatever a policy lets others do.
* What is stored can be delivered now: the target is there, lets the log service write, and does not log itself.

Source: PutBucketLogging, Amazon S3 API Reference; "Enabling Amazon S3 server access logging", Amazon S3 User Guide.
"""

from __future__ import annotations

from typing import Any, Final

from cordwood.engine import BucketInfo
from cordwood.engine import errors as engine_errors
from cordwood.server.encryption import ENCRYPTION
from cordwood.server.gate import NOBODY, PAYER, REQUESTER, SHARED
from cordwood.server.handlers.acls import ENFORCED
from cordwood.server.handlers.grants import known_grantee
from cordwood.server.handlers.ingest import receive_structure
from cordwood.server.handlers.locking import OBJECT_LOCK
from cordwood.server.handlers.request import Request, handles
from cordwood.server.log_record import DELIVERY_TIME, LOGGING, SIMPLE, Destination, may_deliver
from cordwood.server.wire.errors import S3Error, s3_error
from cordwood.server.wire.interpret import respond
from cordwood.server.wire.message import Response
from cordwood.server.wire.xml import malformed

MAX_PREFIX_BYTES: Final = 512


@handles("GetBucketLogging")
async def get_bucket_logging(request: Request) -> Response:
    assert request.bucket_info is not None
    stored = request.bucket_info.attrs.get(LOGGING)
    if stored is None:
        return respond(request.operation, {})
    destination = Destination.loaded(stored)
    key_format: dict[str, Any] = {SIMPLE: {}}
    if destination.key_format != SIMPLE:
        key_format = {"PartitionedPrefix": {"PartitionDateSource": destination.key_format}}
    members: dict[str, Any] = {
        "TargetBucket": destination.bucket,
        "TargetPrefix": destination.prefix,
        "TargetObjectKeyFormat": key_format,
    }
    if destination.grants:
        members["TargetGrants"] = [
            {"Grantee": _grantee(request, grantee), "Permission": permission}
            for grantee, permission in destination.grants
        ]
    return respond(request.operation, {"LoggingEnabled": members})


def _grantee(request: Request, grantee: str) -> dict[str, str]:
    if grantee.startswith("http"):
        return {"URI": grantee, "Type": "Group"}
    name = request.service.gate.owners.get(grantee, grantee)
    return {"ID": grantee, "DisplayName": name, "Type": "CanonicalUser"}


@handles("PutBucketLogging", "BucketLoggingStatus", has_body=True)
async def put_bucket_logging(request: Request) -> Response:
    info = request.bucket_info
    assert info is not None
    wanted = (await receive_structure(request)).get("LoggingEnabled")
    service = request.service
    if not service.gate.is_insider(request.identity, info):
        raise s3_error("AccessDenied")
    if wanted is None:
        await service.bridge.run(lambda: service.store.update_bucket(info.name, attrs={LOGGING: None}))
        return respond(request.operation, {})
    target = _target(request, info, wanted["TargetBucket"])
    destination = _destination(request, target, wanted)
    if not may_deliver(
        target.attrs,
        target.name,
        destination.prefix,
        source=info.name,
        source_owner_id=info.attrs.get("owner", NOBODY)["id"],
    ):
        raise s3_error("AccessDenied")

    def update() -> None:
        if destination.grants and SHARED not in target.attrs:
            service.store.update_bucket(target.name, attrs={SHARED: True})
        service.store.update_bucket(info.name, attrs={LOGGING: destination.dumped()})

    await service.bridge.run(update)
    return respond(request.operation, {})


def _bad(message: str) -> S3Error:
    return s3_error("InvalidArgument", message)


def _target(request: Request, info: BucketInfo, name: str) -> BucketInfo:
    if name == info.name:
        raise _bad("A bucket cannot keep its own access log: each delivery would be logged again.")
    try:
        target = request.service.store.head_bucket(name)
    except engine_errors.BucketNotFound:
        raise s3_error("NoSuchKey", "The target bucket for logging does not exist", key=name) from None
    if LOGGING in target.attrs:
        raise _bad("The target bucket for logging has server access logging itself.")
    if target.attrs.get(PAYER) == REQUESTER:
        raise _bad("The target bucket for logging lets the requester pay.")
    if ENCRYPTION in target.attrs:
        raise _bad("The target bucket for logging has a default encryption.")
    if target.attrs.get(OBJECT_LOCK):
        raise _bad("The target bucket for logging has a default retention period.")
    return target


def _destination(request: Request, target: BucketInfo, wanted: dict[str, Any]) -> Destination:
    prefix: str = wanted["TargetPrefix"]
    if len(prefix.encode()) > MAX_PREFIX_BYTES or "\0" in prefix:
        raise _bad(f"The target prefix for logging has at most {MAX_PREFIX_BYTES} bytes and no NUL.")
    key_format = SIMPLE
    chosen = wanted.get("TargetObjectKeyFormat")
    if chosen is not None:
        if len(chosen) != 1:
            raise malformed("a TargetObjectKeyFormat has one of SimplePrefix and PartitionedPrefix")
        if "PartitionedPrefix" in chosen:
            key_format = chosen["PartitionedPrefix"].get("PartitionDateSource", DELIVERY_TIME)
    owner_id = target.attrs.get("owner", NOBODY)["id"]
    grants = []
    for entry in wanted.get("TargetGrants", ()):
        if "Grantee" not in entry or "Permission" not in entry:
            raise malformed("a grant has a Grantee and a Permission")
        grantee = known_grantee(request, entry["Grantee"])
        # The owner of the target owns the log objects: to grant him something says nothing.
        if grantee != owner_id:
            grants.append((grantee, entry["Permission"]))
    if grants and target.attrs.get("ownership") == ENFORCED:
        raise s3_error("InvalidBucketAclWithObjectOwnership")
    return Destination(target.name, prefix, key_format, tuple(dict.fromkeys(grants)))
