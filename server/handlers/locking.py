"""Object lock: the bucket's configuration, retention and legal hold of a version, the headers of a write.

Must not know: what a lock forbids (the engine decides that inside the commit).
Invariants:
* A bucket with object lock has versioning, from the moment on that it has object lock, and never loses either.
* A retention that is set ends in the future, and is only set in a bucket with object lock.

Source: "Locking objects with Object Lock", Amazon S3 User Guide.
"""

from __future__ import annotations

import time
from typing import Any, Final

from cordwood.engine import ObjectInfo
from cordwood.engine import errors as engine_errors
from cordwood.server.handlers.conditions import version_text
from cordwood.server.handlers.ingest import receive_structure
from cordwood.server.handlers.request import Request, handles
from cordwood.server.notifications import touched
from cordwood.server.wire.errors import S3Error, s3_error
from cordwood.server.wire.interpret import Params, respond
from cordwood.server.wire.message import Response
from cordwood.server.wire.xml import iso8601, malformed

OBJECT_LOCK: Final = "object_lock"
RETENTION: Final = "retention"
HOLD: Final = "hold"
DAYS_OF_A_YEAR: Final = 365
MAX_DAYS: Final = 36_500
HEADERS: Final = "ObjectLockMode ObjectLockRetainUntilDate ObjectLockLegalHoldStatus"


def lock_attrs(request: Request) -> dict[str, Any]:
    """The attributes that the object-lock headers of a write give its object."""
    params = request.params
    mode, until_s = params.get("ObjectLockMode"), params.get("ObjectLockRetainUntilDate")
    hold = params.get("ObjectLockLegalHoldStatus")
    if mode is None and until_s is None and hold is None:
        return {}
    attrs: dict[str, Any] = {}
    if (mode is None) != (until_s is None):
        raise s3_error(
            "InvalidArgument",
            "x-amz-object-lock-retain-until-date and x-amz-object-lock-mode must both be supplied",
            argument_name="x-amz-object-lock-mode" if mode is None else "x-amz-object-lock-retain-until-date",
        )
    if mode is not None and until_s is not None:
        attrs[RETENTION] = {"mode": mode, "until_ms": _future_ms(until_s)}
    _require_lock(request, "Bucket is missing ObjectLockConfiguration")
    if hold == "ON":
        attrs[HOLD] = True
    return attrs


def lock_members(attrs: Any) -> dict[str, Any]:
    """The members of GetObject and HeadObject that tell of a lock."""
    members: dict[str, Any] = {}
    retention = attrs.get(RETENTION)
    if retention is not None:
        members["ObjectLockMode"] = retention["mode"]
        members["ObjectLockRetainUntilDate"] = iso8601(retention["until_ms"])
    if HOLD in attrs:
        members["ObjectLockLegalHoldStatus"] = "ON" if attrs[HOLD] else "OFF"
    return members


def _require_lock(request: Request, message: str = "Bucket is missing Object Lock Configuration") -> None:
    assert request.bucket_info is not None
    if OBJECT_LOCK not in request.bucket_info.attrs:
        raise s3_error("InvalidRequest", message)


def _future_ms(until_s: float) -> int:
    if until_s <= time.time():
        raise s3_error(
            "InvalidArgument",
            "The retain until date must be in the future!",
            argument_name="x-amz-object-lock-retain-until-date",
            argument_value=iso8601(int(until_s * 1000)),
        )
    return int(until_s * 1000)


# --- buckets --------------------------------------------------------------------------------------------------


@handles("GetObjectLockConfiguration")
async def get_object_lock_configuration(request: Request) -> Response:
    assert request.bucket_info is not None
    default = request.bucket_info.attrs.get(OBJECT_LOCK)
    if default is None:
        raise s3_error("ObjectLockConfigurationNotFoundError", bucket_name=request.bucket)
    configuration: dict[str, Any] = {"ObjectLockEnabled": "Enabled"}
    if default:
        given = {"Years": default["years"]} if "years" in default else {"Days": default["days"]}
        configuration["Rule"] = {"DefaultRetention": {"Mode": default["mode"], **given}}
    return respond(request.operation, {"ObjectLockConfiguration": configuration})


# The token was handed out by AWS's support, to add object lock to an old bucket; now nobody needs one.
@handles("PutObjectLockConfiguration", "ObjectLockConfiguration", ignores="Token", has_body=True)
async def put_object_lock_configuration(request: Request) -> Response:
    wanted = await receive_structure(request)
    if not wanted:
        raise s3_error("MissingRequestBodyError")
    if wanted.get("ObjectLockEnabled") != "Enabled":
        raise malformed("ObjectLockEnabled must be Enabled")
    default: dict[str, Any] = {}
    if "Rule" in wanted:
        default = _default_retention(wanted["Rule"].get("DefaultRetention"))
    service = request.service
    try:
        await service.bridge.run(
            lambda: service.store.update_bucket(request.bucket, attrs={OBJECT_LOCK: default})
        )
    except engine_errors.InvalidState:
        raise s3_error(
            "InvalidBucketState",
            "Versioning must be 'Enabled' on the bucket to apply a Object Lock configuration",
        ) from None
    return respond(request.operation, {})


def _default_retention(document: dict[str, Any] | None) -> dict[str, Any]:
    if document is None or "Mode" not in document:
        raise malformed("a rule needs a DefaultRetention with a Mode")
    if "DefaultEventHold" in document:
        raise s3_error("NotImplemented", "Event holds are not implemented.")
    if ("Days" in document) == ("Years" in document):
        raise malformed("either Days or Years")
    years: int | None = document.get("Years")
    total: int = document["Days"] if years is None else years * DAYS_OF_A_YEAR
    if total <= 0:
        raise s3_error("InvalidRetentionPeriod", "Default retention period must be a positive integer value.")
    if total > MAX_DAYS:
        raise s3_error(
            "InvalidRetentionPeriod", f"Default retention period exceeds the limit of {MAX_DAYS} days."
        )
    default = {"mode": document["Mode"], "days": total}
    if years is not None:
        default["years"] = years
    return default


# --- versions -------------------------------------------------------------------------------------------------


async def _head(request: Request) -> ObjectInfo:
    store, version_id = request.service.store, version_text(request.params)
    found = await request.service.bridge.run(
        lambda: store.head(request.bucket, request.key, version_id=version_id)
    )
    _require_lock(request)
    return found


def _nothing_set() -> S3Error:
    return s3_error("NoSuchObjectLockConfiguration")


@handles("GetObjectRetention", "VersionId")
async def get_object_retention(request: Request) -> Response:
    retention = (await _head(request)).attrs.get(RETENTION)
    if retention is None:
        raise _nothing_set()
    members = {"Mode": retention["mode"], "RetainUntilDate": retention["until_ms"]}
    return respond(request.operation, {"Retention": members})


@handles("PutObjectRetention", "Retention VersionId BypassGovernanceRetention", has_body=True)
async def put_object_retention(request: Request) -> Response:
    wanted = await receive_structure(request)
    _require_lock(request)
    if "EventHold" in wanted or "EventHoldDuration" in wanted:
        raise s3_error("NotImplemented", "Event holds are not implemented.")
    retention = None
    if wanted:
        if "Mode" not in wanted or "RetainUntilDate" not in wanted:
            raise malformed("a retention needs Mode and RetainUntilDate")
        retention = {"mode": wanted["Mode"], "until_ms": _future_ms(wanted["RetainUntilDate"])}
    return await _set(request, {RETENTION: retention}, "ObjectRetention:Put")


@handles("GetObjectLegalHold", "VersionId")
async def get_object_legal_hold(request: Request) -> Response:
    attrs = (await _head(request)).attrs
    if HOLD not in attrs:
        raise _nothing_set()
    return respond(request.operation, {"LegalHold": {"Status": "ON" if attrs[HOLD] else "OFF"}})


@handles("PutObjectLegalHold", "LegalHold VersionId", has_body=True)
async def put_object_legal_hold(request: Request) -> Response:
    wanted = await receive_structure(request)
    if "Status" not in wanted:
        raise malformed("a legal hold needs a Status")
    _require_lock(request)
    return await _set(request, {HOLD: wanted["Status"] == "ON"})


async def _set(request: Request, attrs: dict[str, Any], event: str | None = None) -> Response:
    """`event`: what is told of it, if anything is."""
    store, version_id = request.service.store, version_text(request.params)
    if event is not None:
        store = request.announcing(touched, event, request.key)
    bypass = may_bypass(request.params)
    await request.service.bridge.run(
        lambda: store.update_attrs(
            request.bucket, request.key, attrs, version_id=version_id, bypass_governance=bypass
        )
    )
    return respond(request.operation, {})


def may_bypass(params: Params) -> bool:
    """Was the bypass of GOVERNANCE asked for? Whether that is allowed was decided before the handler."""
    return bool(params.get("BypassGovernanceRetention"))
