"""The access control lists that requests ask for: canned, in headers, in documents.

Must not know: where lists are kept, what they allow.
Invariant: every grantee is somebody: an owner of a configured key pair, or one of AWS's groups.
"""

from __future__ import annotations

import re
from typing import Any, Final

from cordwood.engine import BucketInfo
from cordwood.server.acl import FULL_CONTROL, KNOWN_GROUPS, MAX_GRANTS, Acl, Grant, canned, is_public
from cordwood.server.handlers.request import Request
from cordwood.server.wire.errors import s3_error
from cordwood.server.wire.interpret import Params
from cordwood.server.wire.operations import ENUMS

PERMISSIONS: Final = {
    "GrantRead": "READ",
    "GrantWrite": "WRITE",
    "GrantReadACP": "READ_ACP",
    "GrantWriteACP": "WRITE_ACP",
    "GrantFullControl": FULL_CONTROL,
}
_GRANTEE: Final = re.compile(r'\s*(id|uri|emailAddress)\s*=\s*("?)([^",]*)\2\s*\Z', re.IGNORECASE)


def requested_acl(request: Request, params: Params, owner_id: str, bucket_owner_id: str) -> Acl | None:
    """What the x-amz-acl or the x-amz-grant-* headers ask for; None when there are none."""
    name = params.get("ACL")
    if name is not None:
        if has_grants(params):
            raise s3_error("InvalidRequest", "Specifying both Canned ACLs and Header Grants is not allowed")
        return canned(name, owner_id, bucket_owner_id)
    grants = [
        Grant(_grantee(request, part), permission)
        for member, permission in PERMISSIONS.items()
        if member in params
        for part in params[member].split(",")
    ]
    return _bounded(tuple(grants)) if grants else None


def has_grants(params: Params) -> bool:
    return any(member in params for member in PERMISSIONS)


def _grantee(request: Request, text: str) -> str:
    match = _GRANTEE.match(text)
    if match is None:
        raise s3_error("InvalidArgument", "Argument format not recognized", argument_value=text)
    kind, value = match[1].lower(), match[3]
    if kind == "id":
        return _known_owner(request, value)
    if kind == "uri":
        return _known_group(value)
    raise s3_error("UnresolvableGrantByEmailAddress")


def _known_owner(request: Request, owner_id: str) -> str:
    info = request.bucket_info
    bucket_owner = info.attrs.get("owner") if info is not None else None
    if owner_id not in request.service.gate.owners and (
        bucket_owner is None or owner_id != bucket_owner["id"]
    ):
        raise s3_error(
            "InvalidArgument", "Invalid id", argument_name="CanonicalUser/ID", argument_value=owner_id
        )
    return owner_id


def _known_group(uri: str) -> str:
    if uri not in KNOWN_GROUPS:
        raise s3_error("InvalidArgument", "Invalid group uri", argument_name="uri", argument_value=uri)
    return uri


def _bounded(acl: Acl) -> Acl:
    if len(acl) > MAX_GRANTS:
        raise s3_error("InvalidRequest", f"An access control list has at most {MAX_GRANTS} grants")
    return tuple(dict.fromkeys(acl))


def document_acl(request: Request, document: dict[str, Any], owner_id: str) -> Acl:
    if "Owner" not in document or "Grants" not in document:
        raise s3_error("MalformedACLError")
    if "ID" not in document["Owner"]:
        raise s3_error("MalformedACLError")
    if _known_owner(request, document["Owner"]["ID"]) != owner_id:
        raise s3_error("AccessDenied")
    grants = []
    for entry in document["Grants"]:
        grantee, permission = entry.get("Grantee"), entry.get("Permission")
        if grantee is None or permission is None:
            raise s3_error("MalformedACLError")
        grants.append(Grant(known_grantee(request, grantee), permission))
    return _bounded(tuple(grants))


def known_grantee(request: Request, grantee: dict[str, Any]) -> str:
    """The owner id or the group of a Grantee element."""
    if grantee.get("Type", "CanonicalUser") not in ENUMS["Type"]:
        raise s3_error("MalformedACLError")
    if "URI" in grantee:
        return _known_group(grantee["URI"])
    if "ID" in grantee:
        return _known_owner(request, grantee["ID"])
    raise s3_error("UnresolvableGrantByEmailAddress" if "EmailAddress" in grantee else "MalformedACLError")


def refuse_public(acl: Acl, info: BucketInfo | None) -> None:
    """BlockPublicAcls."""
    block = info.attrs.get("public_access_block") if info is not None else None
    if block and block.get("BlockPublicAcls") and is_public(acl):
        raise s3_error("AccessDenied")
