"""Access control lists of buckets and objects, and who owns what somebody else uploads.

Must not know: how lists are evaluated (access.py).
Invariants:
* A list that the bucket's ownership or its public access block forbids is refused before anything is written.
* An object says whose it is only where that is not the bucket's owner, and which list it has only where that is not
  the private one: most objects say nothing.

Source: "Access control list (ACL) overview" and "Controlling ownership of objects", Amazon S3 User Guide.
"""

from __future__ import annotations

from typing import Any, Final

from cordwood.engine import BucketInfo
from cordwood.server.acl import Acl, dumped, loaded, private
from cordwood.server.gate import SHARED
from cordwood.server.handlers.buckets import owner_members
from cordwood.server.handlers.conditions import version_text
from cordwood.server.handlers.grants import (
    PERMISSIONS,
    document_acl,
    has_grants,
    refuse_public,
    requested_acl,
)
from cordwood.server.handlers.ingest import receive_structure
from cordwood.server.handlers.request import Request, handles
from cordwood.server.notifications import touched
from cordwood.server.wire.errors import S3Error, s3_error
from cordwood.server.wire.interpret import respond
from cordwood.server.wire.message import Response
from cordwood.server.wire.sigv4 import ANONYMOUS

ENFORCED: Final = "BucketOwnerEnforced"
PREFERRED: Final = "BucketOwnerPreferred"


# --- objects as they are written -----------------------------------------------------------------------------


def object_attrs(request: Request) -> dict[str, Any]:
    """The attributes `owner` and `acl` of the object that this request writes; usually none."""
    info = request.bucket_info
    params = request.params
    assert info is not None
    is_asked = "ACL" in params or has_grants(params)
    if not is_asked and SHARED not in info.attrs:
        return {}
    bucket_owner = owner_members(request)
    ownership = info.attrs.get("ownership")
    identity = request.identity
    if ownership == ENFORCED:
        _check_enforced(request, bucket_owner["ID"])
        return {}
    is_foreign = not request.service.gate.is_insider(identity, info)
    if is_foreign and ownership == PREFERRED and params.get("ACL") == "bucket-owner-full-control":
        is_foreign = False
    attrs: dict[str, Any] = {}
    owner_id = bucket_owner["ID"]
    if is_foreign:
        owner_id = identity.owner_id
        attrs["owner"] = {"id": owner_id, "name": identity.display_name}
    acl = requested_acl(request, params, owner_id, bucket_owner["ID"])
    if acl is not None and acl != private(owner_id):
        refuse_public(acl, info)
        attrs["acl"] = dumped(acl)
    return attrs


def _check_enforced(request: Request, bucket_owner_id: str) -> None:
    """Where lists are off, a request may only say what holds anyway."""
    params = request.params
    acl = requested_acl(request, {**params, "ACL": None} if "ACL" in params else params, "", "")
    if params.get("ACL") not in (None, "bucket-owner-full-control") or (
        acl is not None and acl != private(bucket_owner_id)
    ):
        raise s3_error("AccessControlListNotSupported")


# --- the operations ------------------------------------------------------------------------------------------

_GRANTS: Final = " ".join(PERMISSIONS)


@handles("GetBucketAcl")
async def get_bucket_acl(request: Request) -> Response:
    info = request.bucket_info
    assert info is not None
    owner = owner_members(request)
    is_listed = "acl" in info.attrs and info.attrs.get("ownership") != ENFORCED
    acl = loaded(info.attrs["acl"]) if is_listed else private(owner["ID"])
    return _answer(request, owner, acl)


@handles("PutBucketAcl", f"ACL AccessControlPolicy {_GRANTS}", has_body=True)
async def put_bucket_acl(request: Request) -> Response:
    info = request.bucket_info
    assert info is not None
    _refuse_enforced(info)
    owner_id = owner_members(request)["ID"]
    acl = await _wanted(request, owner_id, owner_id)
    refuse_public(acl, info)
    is_private = acl == private(owner_id)
    attrs = {"acl": None} if is_private else {"acl": dumped(acl), SHARED: True}
    service = request.service
    await service.bridge.run(lambda: service.store.update_bucket(request.bucket, attrs=attrs))
    return respond(request.operation, {})


def _refuse_enforced(info: BucketInfo) -> None:
    if info.attrs.get("ownership") == ENFORCED:
        raise s3_error("AccessControlListNotSupported")


async def _wanted(request: Request, owner_id: str, bucket_owner_id: str) -> Acl:
    """The list to set: from the headers or from the document, and never from both."""
    try:
        document = await receive_structure(request)
    except S3Error as error:
        raise s3_error("MalformedACLError") if error.code == "MalformedXML" else error from None
    if document and ("ACL" in request.params or has_grants(request.params)):
        raise s3_error("UnexpectedContent")
    acl = requested_acl(request, request.params, owner_id, bucket_owner_id)
    if acl is not None:
        return acl
    if not document:
        raise _missing()
    return document_acl(request, document, owner_id)


def _missing() -> S3Error:
    return s3_error(
        "MissingSecurityHeader",
        "Your request was missing a required header",
        missing_header_name="x-amz-acl",
    )


@handles("GetObjectAcl", "VersionId")
async def get_object_acl(request: Request) -> Response:
    service = request.service
    version_id = version_text(request.params)
    found = await service.bridge.run(
        lambda: service.store.head(request.bucket, request.key, version_id=version_id)
    )
    owner, acl = _of_object(request, found.attrs)
    return _answer(request, owner, acl)


@handles("PutObjectAcl", f"ACL AccessControlPolicy VersionId {_GRANTS}", has_body=True)
async def put_object_acl(request: Request) -> Response:
    service = request.service
    info = request.bucket_info
    assert info is not None
    _refuse_enforced(info)
    version_id = version_text(request.params)
    found = await service.bridge.run(
        lambda: service.store.head(request.bucket, request.key, version_id=version_id)
    )
    owner, _ = _of_object(request, found.attrs)
    bucket_owner_id = owner_members(request)["ID"]
    acl = await _wanted(request, owner["ID"], bucket_owner_id)
    refuse_public(acl, info)
    attrs = {"acl": None if acl == private(owner["ID"]) else dumped(acl)}
    store = request.announcing(touched, "ObjectAcl:Put", request.key)
    await service.bridge.run(
        lambda: store.update_attrs(
            request.bucket, request.key, attrs, version_id=version_id or found.version_id
        )
    )
    return respond(request.operation, {})


def _of_object(request: Request, attrs: Any) -> tuple[dict[str, str], Acl]:
    info = request.bucket_info
    assert info is not None
    owner = owner_members(request)
    if info.attrs.get("ownership") == ENFORCED:
        return owner, private(owner["ID"])
    if "owner" in attrs:
        owner = {"DisplayName": attrs["owner"]["name"], "ID": attrs["owner"]["id"]}
    return owner, loaded(attrs["acl"]) if "acl" in attrs else private(owner["ID"])


def _answer(request: Request, owner: dict[str, str], acl: Acl) -> Response:
    names = {
        ANONYMOUS.owner_id: ANONYMOUS.display_name,
        **request.service.gate.owners,
        owner["ID"]: owner["DisplayName"],
    }
    grants = []
    # Groups stand first, whatever the order in which they were given.
    for grant in sorted(acl, key=lambda each: not each.is_group):
        grantee = (
            {"Type": "Group", "URI": grant.grantee}
            if grant.is_group
            else {
                "Type": "CanonicalUser",
                "ID": grant.grantee,
                "DisplayName": names.get(grant.grantee),
            }
        )
        grants.append({"Grantee": grantee, "Permission": grant.permission})
    return respond(request.operation, {"Owner": owner, "Grants": grants})
