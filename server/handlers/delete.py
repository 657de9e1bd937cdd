"""DeleteObject and DeleteObjects.

Must not know: versions beyond their ids; the engine decides what a delete does in which bucket.
Invariant: in a batch every key is decided alone and every key is answered, in the order of the request.
"""

from __future__ import annotations

from typing import Any, Final

from cordwood.engine import Conditions, DeleteResult
from cordwood.engine import errors as engine_errors
from cordwood.server.handlers.conditions import etags, is_version_id, version_text
from cordwood.server.handlers.failures import translate
from cordwood.server.handlers.ingest import receive_structure
from cordwood.server.handlers.locking import may_bypass
from cordwood.server.handlers.request import Request, handles
from cordwood.server.notifications import removed
from cordwood.server.wire.errors import S3Error, s3_error
from cordwood.server.wire.interpret import respond
from cordwood.server.wire.message import Response
from cordwood.server.wire.route import check_key
from cordwood.server.wire.xml import malformed

MAX_KEYS: Final = 1000


@handles(
    "DeleteObject",
    "VersionId IfMatch IfMatchLastModifiedTime IfMatchSize BypassGovernanceRetention",
)
async def delete_object(request: Request) -> Response:
    params = request.params
    conditions = _conditions(
        params.get("IfMatch"), params.get("IfMatchLastModifiedTime"), params.get("IfMatchSize")
    )
    version_id = version_text(params)
    future = request.announcing(removed, ((request.key, version_id),)).delete_async(
        request.bucket,
        request.key,
        version_id=version_id,
        conditions=conditions,
        bypass_governance=may_bypass(params),
        wake=False,
    )
    try:
        result = await request.service.bridge.committed(future)
    except (engine_errors.NotFound, engine_errors.PreconditionFailed) as error:
        answer = _settled(error, request, version_id, conditions)
        if answer is not None:
            raise answer from error
        result = _NOTHING
    return respond(request.operation, _outcome(result))


_NOTHING: Final = DeleteResult(None, is_delete_marker=False, existed=False)


def _settled(
    error: engine_errors.CordwoodError,
    request: Request,
    version_id: str | None,
    conditions: Conditions | None,
) -> engine_errors.CordwoodError | None:
    """What a failed delete answers. None: a condition failed only because there is nothing to delete, and then AWS
    answers like any other such delete. A delete marker is something; only "*" takes it for nothing."""
    if isinstance(error, engine_errors.VersionNotFound):
        return None
    if version_id is not None or conditions is None:
        return error
    if not isinstance(error, engine_errors.KeyNotFound | engine_errors.PreconditionFailed):
        return error
    try:
        request.service.store.head(request.bucket, error.key)
    except engine_errors.DeleteMarkerFound:
        if conditions == Conditions(if_match=("*",)):
            return None
        return engine_errors.PreconditionFailed("If-Match", error.bucket, error.key)
    except engine_errors.KeyNotFound:
        return None
    return None if isinstance(error, engine_errors.KeyNotFound) else error


def _conditions(etag: str | None, modified_s: float | None, size: int | None) -> Conditions | None:
    if etag is None and modified_s is None and size is None:
        return None
    return Conditions(
        if_match=etags(etag) if etag is not None else (),
        if_modified_ms=int(modified_s * 1000) if modified_s is not None else None,
        if_size=size,
    )


def _outcome(result: DeleteResult) -> dict[str, Any]:
    """VersionId and DeleteMarker, present only where versions are kept."""
    members: dict[str, Any] = {}
    if result.version_id is not None:
        members["VersionId"] = result.version_id
    if result.is_delete_marker:
        members["DeleteMarker"] = True
    return members


@handles("DeleteObjects", "Delete BypassGovernanceRetention", has_body=True)
async def delete_objects(request: Request) -> Response:
    delete = await receive_structure(request, must_have_digest=True)
    entries = delete["Objects"]
    if not entries or len(entries) > MAX_KEYS:
        raise malformed(f"a request may name 1 to {MAX_KEYS} keys")
    if not all(entry["Key"] for entry in entries):
        raise s3_error("UserKeyMustBeSpecified", "User key must be specified.")
    outcomes: list[dict[str, Any] | S3Error] = [{} for _ in entries]
    wanted: list[tuple[str, str | None, Conditions | None]] = []
    places: list[int] = []
    is_free = request.is_free()
    for place, entry in enumerate(entries):
        try:
            check_key(entry["Key"])
            if entry.get("VersionId") and not is_version_id(entry["VersionId"]):
                raise s3_error("NoSuchVersion")
            conditions = _conditions(entry.get("ETag"), entry.get("LastModifiedTime"), entry.get("Size"))
            if not is_free:
                await _authorise(request, entry)
        except S3Error as error:
            outcomes[place] = error
            continue
        wanted.append((entry["Key"], entry.get("VersionId") or None, conditions))
        places.append(place)
    service = request.service
    bypass = may_bypass(request.params)
    told = request.announcing(removed, [(key, version_id) for key, version_id, _ in wanted])
    results = await service.bridge.run(
        lambda: told.delete_many(request.bucket, wanted, bypass_governance=bypass)
    )
    for place, (_, version_id, conditions), result in zip(places, wanted, results, strict=True):
        if isinstance(result, engine_errors.CordwoodError):
            answer = _settled(result, request, version_id, conditions)
            if answer is not None:
                outcomes[place] = translate(answer, request.head, request.params)
        elif isinstance(result, DeleteResult):
            outcomes[place] = _batch_outcome(result, entries[place])
    if request.watch is not None:
        for entry, outcome in zip(entries, outcomes, strict=True):
            status, code = (outcome.status, outcome.code) if isinstance(outcome, S3Error) else (204, "")
            version = entry.get("VersionId") or ""
            request.watch.also("BATCH.DELETE.OBJECT", entry["Key"], version, status, code)
    return _answer(request, entries, outcomes, is_quiet=bool(delete.get("Quiet")))


async def _authorise(request: Request, entry: dict[str, Any]) -> None:
    """Each key of a batch for itself: a policy may speak of some of them."""
    version_id = entry.get("VersionId") or None
    action = "s3:DeleteObject" if version_id is None else "s3:DeleteObjectVersion"
    await request.authorise(action, request.bucket, entry["Key"], version_id)


def _batch_outcome(result: DeleteResult, entry: dict[str, Any]) -> dict[str, Any]:
    """In a batch the version asked for and the marker made or removed have elements of their own."""
    members: dict[str, Any] = {}
    if entry.get("VersionId"):
        members["VersionId"] = entry["VersionId"]
    if result.is_delete_marker:
        members["DeleteMarker"] = True
        members["DeleteMarkerVersionId"] = result.version_id
    return members


def _answer(
    request: Request,
    entries: list[dict[str, Any]],
    outcomes: list[dict[str, Any] | S3Error],
    *,
    is_quiet: bool,
) -> Response:
    deleted = []
    failed = []
    for entry, outcome in zip(entries, outcomes, strict=True):
        if isinstance(outcome, S3Error):
            failed.append(
                {
                    "Key": entry["Key"],
                    "VersionId": entry.get("VersionId"),
                    "Code": outcome.code,
                    "Message": outcome.message,
                }
            )
        elif not is_quiet:
            deleted.append({"Key": entry["Key"], **outcome})
    return respond(request.operation, {"Deleted": deleted, "Errors": failed})
