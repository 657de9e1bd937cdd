"""Bucket policies, the public access block and ownership controls: configuration that decides who may do what.

Must not know: how any of it is evaluated.
Invariants: a policy comes back byte for byte as it was stored, and is stored only if it can be evaluated; whatever may
let somebody else into a bucket marks it as shared, in the same commit.
"""

from __future__ import annotations

from typing import Any, Final

from cordwood.engine import BucketInfo
from cordwood.server.acl import is_public, loaded, private
from cordwood.server.gate import SHARED
from cordwood.server.handlers.acls import ENFORCED
from cordwood.server.handlers.buckets import owner_members
from cordwood.server.handlers.ingest import receive_document, receive_structure
from cordwood.server.handlers.request import Request, handles
from cordwood.server.policy import Policy, cached, parse
from cordwood.server.policy_conditions import PolicyError
from cordwood.server.wire.errors import s3_error
from cordwood.server.wire.interpret import respond
from cordwood.server.wire.message import Response
from cordwood.server.wire.xml import malformed

_SWITCHES: Final = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")


def _info(request: Request) -> BucketInfo:
    assert request.bucket_info is not None
    return request.bucket_info


async def _update(request: Request, attrs: dict[str, Any]) -> None:
    service = request.service
    await service.bridge.run(lambda: service.store.update_bucket(request.bucket, attrs=attrs))


@handles(
    "PutBucketPolicy",
    "Policy",
    # An owner can always change his policy here, so there is nothing to confirm.
    ignores="ConfirmRemoveSelfBucketAccess",
    has_body=True,
)
async def put_bucket_policy(request: Request) -> Response:
    data = await receive_document(request)
    if not data.strip():
        raise s3_error("MissingRequestBodyError")
    try:
        text = data.decode("utf-8")
        policy = parse(text, request.bucket)
        _check_principals(request, policy)
    except UnicodeDecodeError:
        raise s3_error("MalformedPolicy", "Policies must be UTF-8") from None
    except PolicyError as error:
        raise s3_error("MalformedPolicy", str(error)) from None
    block = _info(request).attrs.get("public_access_block", {})
    if block.get("BlockPublicPolicy") and policy.is_public:
        raise s3_error("AccessDenied")
    await _update(request, {"policy": text, SHARED: True})
    return respond(request.operation, {}, status=204)


def _check_principals(request: Request, policy: Policy) -> None:
    """A canonical id must be somebody's. ARNs are not looked at: they may name sessions."""
    known = {*request.service.gate.owners, owner_members(request)["ID"]}
    for statement in policy.statements:
        for kind, value in statement.principals:
            is_id = kind == "CanonicalUser" or (
                kind == "AWS" and value != "*" and not value.startswith("arn:")
            )
            if is_id and value not in known:
                raise PolicyError("Invalid principal in policy")


def _policy_text(request: Request) -> str:
    text = _info(request).attrs.get("policy")
    if text is None:
        raise s3_error("NoSuchBucketPolicy", bucket_name=request.bucket)
    return str(text)


@handles("GetBucketPolicy")
async def get_bucket_policy(request: Request) -> Response:
    return Response(200, [("content-type", "application/json")], _policy_text(request).encode())


@handles("DeleteBucketPolicy")
async def delete_bucket_policy(request: Request) -> Response:
    await _update(request, {"policy": None})
    return respond(request.operation, {})


@handles("GetBucketPolicyStatus")
async def get_bucket_policy_status(request: Request) -> Response:
    attrs = _info(request).attrs
    block = attrs.get("public_access_block", {})
    text = attrs.get("policy")
    is_open = text is not None and cached(text).is_public and not block.get("RestrictPublicBuckets")
    has_acl = "acl" in attrs and attrs.get("ownership") != ENFORCED and not block.get("IgnorePublicAcls")
    if has_acl and is_public(loaded(attrs["acl"])):
        is_open = True
    return respond(request.operation, {"PolicyStatus": {"IsPublic": is_open}})


# --- public access block -------------------------------------------------------------------------------------


@handles("PutPublicAccessBlock", "PublicAccessBlockConfiguration", has_body=True)
async def put_public_access_block(request: Request) -> Response:
    document = await receive_structure(request)
    await _update(request, {"public_access_block": {name: bool(document.get(name)) for name in _SWITCHES}})
    return respond(request.operation, {})


@handles("GetPublicAccessBlock")
async def get_public_access_block(request: Request) -> Response:
    block = _info(request).attrs.get("public_access_block")
    if block is None:
        raise s3_error("NoSuchPublicAccessBlockConfiguration", bucket_name=request.bucket)
    return respond(request.operation, {"PublicAccessBlockConfiguration": dict(block)})


@handles("DeletePublicAccessBlock")
async def delete_public_access_block(request: Request) -> Response:
    await _update(request, {"public_access_block": None})
    return respond(request.operation, {})


# --- ownership controls --------------------------------------------------------------------------------------


@handles("PutBucketOwnershipControls", "OwnershipControls", has_body=True)
async def put_bucket_ownership_controls(request: Request) -> Response:
    document = await receive_structure(request)
    if len(document["Rules"]) != 1:
        raise malformed("ownership controls have one rule")
    wanted = document["Rules"][0]["ObjectOwnership"]
    attrs = _info(request).attrs
    owner_id = owner_members(request)["ID"]
    if wanted == ENFORCED and "acl" in attrs and loaded(attrs["acl"]) != private(owner_id):
        raise s3_error("InvalidBucketAclWithObjectOwnership")
    await _update(request, {"ownership": wanted})
    return respond(request.operation, {})


@handles("GetBucketOwnershipControls")
async def get_bucket_ownership_controls(request: Request) -> Response:
    ownership = _info(request).attrs.get("ownership")
    if ownership is None:
        raise s3_error("OwnershipControlsNotFoundError", bucket_name=request.bucket)
    return respond(request.operation, {"OwnershipControls": {"Rules": [{"ObjectOwnership": ownership}]}})


@handles("DeleteBucketOwnershipControls")
async def delete_bucket_ownership_controls(request: Request) -> Response:
    await _update(request, {"ownership": None})
    return respond(request.operation, {})
