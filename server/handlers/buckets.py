"""Buckets: ListBuckets, CreateBucket, DeleteBucket, HeadBucket, GetBucketLocation.

Must not know: objects, access policy.
Invariants: a bucket records its owner when it is made through the server; names follow AWS's rules for general purpose
buckets, whatever the engine alone would take.

Source: "General purpose bucket naming rules", Amazon S3 User Guide.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any, Final

from cordwood.engine import errors as engine_errors
from cordwood.server.acl import dumped, private
from cordwood.server.gate import SHARED
from cordwood.server.handlers.grants import requested_acl
from cordwood.server.handlers.ingest import receive_structure
from cordwood.server.handlers.locking import OBJECT_LOCK
from cordwood.server.handlers.request import Request, handles
from cordwood.server.handlers.tagging import MAX_BUCKET_TAGS, TAGS, checked
from cordwood.server.wire.errors import s3_error
from cordwood.server.wire.interpret import respond
from cordwood.server.wire.message import Response
from cordwood.server.wire.operations import ENUMS
from cordwood.server.wire.xml import DECLARATION, NAMESPACE, leaf

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]\Z")
_IP_ADDRESS: Final = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+\Z")
_RESERVED_PREFIXES: Final = ("xn--", "sthree-", "amzn-s3-demo-")
_RESERVED_SUFFIXES: Final = ("-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3")

MAX_BUCKETS: Final = 10_000


def check_name(name: str) -> None:
    if (
        not _NAME.match(name)
        or ".." in name
        or _IP_ADDRESS.match(name)
        or name.startswith(_RESERVED_PREFIXES)
        or name.endswith(_RESERVED_SUFFIXES)
    ):
        raise s3_error("InvalidBucketName", bucket_name=name)


def owner_members(request: Request) -> dict[str, str]:
    """The owner of the bucket that the request names, as listings and ACLs show it."""
    info = request.bucket_info
    owner = info.attrs.get("owner") if info is not None else None
    if owner is None:
        identity = request.verified.identity
        return {"DisplayName": identity.display_name, "ID": identity.owner_id}
    return {"DisplayName": owner["name"], "ID": owner["id"]}


@handles("ListBuckets", "MaxBuckets ContinuationToken Prefix BucketRegion")
async def list_buckets(request: Request) -> Response:
    params = request.params
    limit = params.get("MaxBuckets", MAX_BUCKETS)
    if not 1 <= limit <= MAX_BUCKETS:
        raise s3_error(
            "InvalidArgument",
            f"Argument max-buckets must be an integer between 1 and {MAX_BUCKETS}",
            argument_name="max-buckets",
            argument_value=limit,
        )
    prefix = params.get("Prefix", "")
    after = _bucket_of_token(params["ContinuationToken"]) if params.get("ContinuationToken") else ""
    service = request.service
    buckets = await service.bridge.run(service.store.list_buckets)
    identity = request.verified.identity
    _check_region(params.get("BucketRegion"), service.region)
    found = [
        bucket
        for bucket in buckets
        if bucket.name.startswith(prefix)
        and bucket.name > after
        and service.gate.is_insider(identity, bucket)
    ]
    members: dict[str, Any] = {
        "Buckets": [{"Name": bucket.name, "CreationDate": bucket.created_ms} for bucket in found[:limit]],
        "Owner": {"DisplayName": identity.display_name, "ID": identity.owner_id},
    }
    if params.keys() & {"MaxBuckets", "ContinuationToken", "Prefix", "BucketRegion"}:
        for bucket in members["Buckets"]:
            bucket["BucketRegion"] = service.region
    if "Prefix" in params:
        members["Prefix"] = prefix
    if len(found) > limit:
        members["ContinuationToken"] = _token_of_bucket(found[limit - 1].name)
    return respond(request.operation, members)


def _check_region(wanted: str | None, region: str) -> None:
    """A server has the buckets of its own region and no others."""
    if wanted is None or wanted.lower() == region.lower():
        return
    if wanted.lower() in ENUMS["BucketLocationConstraint"] or wanted.lower() == "us-east-1":
        message = "Requests with bucket-region specified must be made to the corresponding regional endpoint"
    else:
        message = f"Argument value {wanted} is not a valid AWS Region"
    raise s3_error("InvalidArgument", message, argument_name="bucket-region")


def _token_of_bucket(name: str) -> str:
    return base64.urlsafe_b64encode(f"b1:{name}".encode()).decode()


def _bucket_of_token(token: str) -> str:
    try:
        text = base64.urlsafe_b64decode(token).decode()
    except (binascii.Error, ValueError):
        text = ""
    if not text.startswith("b1:"):
        raise s3_error(
            "InvalidArgument",
            "The continuation token provided is incorrect",
            argument_name="continuation-token",
        )
    return text[3:]


@handles(
    "CreateBucket",
    "ACL CreateBucketConfiguration GrantFullControl GrantRead GrantReadACP GrantWrite GrantWriteACP ObjectOwnership "
    "ObjectLockEnabledForBucket BucketNamespace",
)
async def create_bucket(request: Request) -> Response:
    name = request.bucket
    if request.params.get("BucketNamespace", "global") != "global":
        # Its names hold the 12 digits of an account, and there are no accounts.
        raise s3_error("NotImplemented", "There is one namespace for buckets here, the global one.")
    check_name(name)
    configuration = await receive_structure(request)
    _check_location(configuration.get("LocationConstraint"), request.service.region)
    for member in ("Location", "Bucket"):
        if member in configuration:
            raise s3_error("NotImplemented", header=member)
    identity = request.verified.identity
    attrs = _access_attrs(request)
    tags = checked(((tag["Key"], tag["Value"]) for tag in configuration.get("Tags", ())), MAX_BUCKET_TAGS)
    if tags:
        attrs[TAGS] = tags
    versioning = ""
    if request.params.get("ObjectLockEnabledForBucket"):
        attrs[OBJECT_LOCK], versioning = {}, "Enabled"
    service = request.service
    try:
        await service.bridge.run(
            lambda: service.store.create_bucket(name, versioning=versioning, attrs=attrs)
        )
    except engine_errors.BucketExists:
        existing = service.store.head_bucket(name)
        has_same_acl = existing.attrs.get("acl") == attrs.get("acl")
        if service.gate.is_insider(identity, existing) and has_same_acl:
            if service.region == "us-east-1":
                # AWS's oldest region answers a repeated request with success, and clients rely on it.
                return respond(request.operation, {"Location": f"/{name}"})
            raise s3_error("BucketAlreadyOwnedByYou", bucket_name=name) from None
        raise s3_error("BucketAlreadyExists", bucket_name=name) from None
    return respond(request.operation, {"Location": f"/{name}"})


def _access_attrs(request: Request) -> dict[str, Any]:
    """Whose the new bucket is, and who else may enter."""
    identity = request.identity
    ownership = request.params.get("ObjectOwnership")
    attrs: dict[str, Any] = {}
    if not identity.is_anonymous:
        attrs["owner"] = {"id": identity.owner_id, "name": identity.display_name}
    if ownership is not None:
        attrs["ownership"] = ownership
    acl = requested_acl(request, request.params, identity.owner_id, identity.owner_id)
    if acl is not None and acl != private(identity.owner_id):
        if ownership == "BucketOwnerEnforced":
            raise s3_error("InvalidBucketAclWithObjectOwnership")
        attrs.update({"acl": dumped(acl), SHARED: True})
    return attrs


def _check_location(constraint: str | None, region: str) -> None:
    """A server has one region, whatever its name. Old requests spell eu-west-1 `EU`; us-east-1 is left out."""
    if not constraint or constraint == region or (constraint == "EU" and region == "eu-west-1"):
        return
    if constraint not in ENUMS["BucketLocationConstraint"]:
        raise s3_error("InvalidLocationConstraint", location_constraint=constraint)
    raise s3_error(
        "IllegalLocationConstraintException",
        f"The {constraint} location constraint is incompatible for the region specific endpoint this request was "
        "sent to.",
    )


@handles("DeleteBucket")
async def delete_bucket(request: Request) -> Response:
    try:
        await request.service.bridge.run(request.service.store.delete_bucket, request.bucket)
    except engine_errors.BucketNotEmpty:
        message = None
        if request.has_versioning:
            message = (
                "The bucket you tried to delete is not empty. You must delete all versions in the bucket."
            )
        raise s3_error("BucketNotEmpty", message, bucket_name=request.bucket) from None
    return respond(request.operation, {})


@handles("HeadBucket")
async def head_bucket(request: Request) -> Response:
    return respond(request.operation, {"BucketRegion": request.service.region, "AccessPointAlias": False})


@handles("GetBucketLocation")
async def get_bucket_location(request: Request) -> Response:
    region = request.service.region
    # Buckets of us-east-1 have an empty constraint.
    text = "" if region == "us-east-1" else region
    body = leaf("LocationConstraint", text).replace(
        "<LocationConstraint>", f'<LocationConstraint xmlns="{NAMESPACE}">'
    )
    return Response(200, [("content-type", "application/xml")], (DECLARATION + body).encode())
