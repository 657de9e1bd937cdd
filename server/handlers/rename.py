"""RenameObject, and, as Cordwood's own extension, the rename of all that lies below a prefix.

Must not know: how a rename is committed, what the conditions are compared with.
Invariants:
* Whoever renames may read and delete under the old name and write under the new one; what was decided by looking at the
  object holds for that state of it alone.
* A prefix is moved without looking at what is below it. So only the bucket's owner may, and only where no policy
  could have refused any of it.

Source: RenameObject, Amazon S3 API Reference, where it is an operation of directory buckets; here it is one of every
bucket. docs/protocol.md says what that means in a bucket with versions.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote_to_bytes

from cordwood.engine import Conditions, ObjectInfo
from cordwood.engine import errors as engine_errors
from cordwood.server.handlers.conditions import NULL_VERSION, etags
from cordwood.server.handlers.copy import what_may_leave
from cordwood.server.handlers.request import Request, handles
from cordwood.server.notifications import renamed
from cordwood.server.wire.errors import S3Error, s3_error
from cordwood.server.wire.interpret import Params, respond
from cordwood.server.wire.message import Response
from cordwood.server.wire.route import check_key

_TOKEN: Final = re.compile(r"[!-~]{1,64}")
_OF_THE_SOURCE: Final = "Source"
_OF_THE_TARGET: Final = "Destination"
_KINDS: Final = ("IfMatch", "IfNoneMatch", "IfModifiedSince", "IfUnmodifiedSince")
_CONDITIONS: Final = " ".join(f"{side}{kind}" for side in (_OF_THE_SOURCE, _OF_THE_TARGET) for kind in _KINDS)


@handles("RenameObject", f"RenameSource ClientToken {_CONDITIONS}")
async def rename_object(request: Request) -> Response:
    """AWS's examples name the source as BUCKET/KEY, too: that is meant where no key begins with the bucket's name."""
    source = _source(request)
    within = source.removeprefix(f"{request.bucket}/")
    if within in ("", source):
        return await _rename(request, source)
    try:
        return await _rename(request, source)
    except engine_errors.KeyNotFound:
        return await _rename(request, within)


async def _rename(request: Request, source: str) -> Response:
    if source == request.key:
        raise s3_error("InvalidRequest", "This rename request is illegal: the source is the destination.")
    if source.endswith("/") and request.key.endswith("/"):
        return await _rename_prefix(request, source)
    token = request.params.get("ClientToken", "")
    if token and not _TOKEN.fullmatch(token):
        raise _bad("x-amz-client-token", token, "The client token must be 1 to 64 visible ASCII characters.")
    may_leave = await what_may_leave(request, request.bucket, source)
    decisions = [
        await request.decide(action, request.bucket, source) for action in ("s3:DeleteObject", "s3:GetObject")
    ]

    def confirm(info: ObjectInfo) -> None:
        if not may_leave(info.attrs):
            raise s3_error("AccessDenied")
        for seen in decisions:
            request.decided_on(seen)
            request.confirm(info)

    store = request.announcing(renamed, source, request.has_versioning)
    info = await request.service.bridge.run(
        lambda: store.rename_object(
            request.bucket,
            source,
            request.key,
            source_conditions=_conditions(request.params, _OF_THE_SOURCE),
            conditions=_conditions(request.params, _OF_THE_TARGET),
            token=token,
            confirm=confirm,
        )
    )
    response = respond(request.operation, {})
    if info.version_id != NULL_VERSION:
        response.headers.append(("x-amz-version-id", info.version_id))
    return response


async def _rename_prefix(request: Request, source: str) -> Response:
    """One record whatever is below. Nothing may be below the target, which is all the condition that there can be.

    The client token, which SDKs add by themselves, is not remembered: a repeated request finds nothing to rename.
    """
    for member in request.params.keys() - {"RenameSource", "ClientToken"}:
        if (member, request.params[member].strip()) != ("DestinationIfNoneMatch", "*"):
            header = request.operation.inputs[member][2]
            raise s3_error("InvalidRequest", f"{header} cannot be given when a prefix is renamed.")
    request.authorise_prefixes(source, request.key)
    store = request.service.store
    try:
        await request.service.bridge.run(store.rename, request.bucket, source, request.key)
    except engine_errors.InvalidState as error:
        raise s3_error("InvalidRequest", str(error)) from error
    return respond(request.operation, {})


def _source(request: Request) -> str:
    """The key in x-amz-rename-source: percent-encoded, either alone or behind /BUCKET/ of this very bucket."""
    text = request.params["RenameSource"]
    try:
        key = unquote_to_bytes(text).decode("utf-8")
    except UnicodeDecodeError:
        raise _bad("x-amz-rename-source", text, "The rename source is not UTF-8.") from None
    key = key.removeprefix(f"/{request.bucket}/")
    if not key:
        raise _bad("x-amz-rename-source", text, "The rename source must name a key of this bucket.")
    check_key(key)
    return key


def _bad(header: str, value: str, message: str) -> S3Error:
    return s3_error("InvalidArgument", message, argument_name=header, argument_value=value)


def _conditions(params: Params, side: str) -> Conditions | None:
    match, none_match, since_s, until_s = (params.get(f"{side}{kind}") for kind in _KINDS)
    if match is None and none_match is None and since_s is None and until_s is None:
        return None
    return Conditions(
        if_match=etags(match) if match is not None else (),
        if_none_match=etags(none_match) if none_match is not None else (),
        if_modified_since_s=since_s,
        if_unmodified_since_s=until_s,
    )
