"""The CORS configuration of a bucket, and the answers to preflight requests.

Must not know: which rule fits (server/cors.py).
Invariant: a preflight needs no signature and tells nothing but whether the browser may ask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cordwood.engine import Store
from cordwood.engine import errors as engine_errors
from cordwood.server.cors import METHODS, CorsError, check, find, is_header_name, response_headers
from cordwood.server.handlers.ingest import receive_structure
from cordwood.server.handlers.request import Request, handles
from cordwood.server.wire.errors import S3Error, s3_error
from cordwood.server.wire.interpret import respond
from cordwood.server.wire.message import RequestHead, Response

_REFUSED = (
    "CORSResponse: This CORS request is not allowed. This is usually because the evalution of Origin, request method / "
    "Access-Control-Request-Method or Access-Control-Request-Headers are not whitelisted by the resource's CORS spec."
)


@handles("PutBucketCors", "CORSConfiguration", has_body=True)
async def put_bucket_cors(request: Request) -> Response:
    document = await receive_structure(request)
    rules = document["CORSRules"]
    try:
        check(rules)
    except CorsError as error:
        raise s3_error("InvalidRequest", str(error)) from None
    await _update(request, rules)
    return respond(request.operation, {})


@handles("GetBucketCors")
async def get_bucket_cors(request: Request) -> Response:
    assert request.bucket_info is not None
    rules = request.bucket_info.attrs.get("cors")
    if rules is None:
        raise s3_error("NoSuchCORSConfiguration", bucket_name=request.bucket)
    return respond(request.operation, {"CORSRules": rules})


@handles("DeleteBucketCors")
async def delete_bucket_cors(request: Request) -> Response:
    await _update(request, None)
    return respond(request.operation, {})


async def _update(request: Request, rules: Sequence[Mapping[str, Any]] | None) -> None:
    service = request.service
    await service.bridge.run(lambda: service.store.update_bucket(request.bucket, attrs={"cors": rules}))


def _rules(store: Store, bucket: str) -> Sequence[Mapping[str, Any]] | None:
    found: Sequence[Mapping[str, Any]] | None = store.head_bucket(bucket).attrs.get("cors")
    return found


def preflight(store: Store, head: RequestHead, bucket: str, key: str) -> Response:
    """OPTIONS: may a page of this origin send that request?"""
    origin = head.headers.get("origin")
    method = head.headers.get("access-control-request-method")
    if not origin:
        raise s3_error("BadRequest", "Insufficient information. Origin request header needed.")
    if method and method not in METHODS:
        raise s3_error("BadRequest", f"Invalid Access-Control-Request-Method: {method}")
    wanted = head.headers.get("access-control-request-headers", "")
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    for name in names:
        if not is_header_name(name):
            raise s3_error(
                "BadRequest", f'Access-Control-Request-Headers "{name}" contains invalid character.'
            )
    try:
        rules = _rules(store, bucket)
    except engine_errors.BucketNotFound:
        raise _forbidden("CORSResponse: Bucket not found", method) from None
    if rules is None:
        raise _forbidden("CORSResponse: CORS is not enabled for this bucket.", method)
    if not method:
        raise s3_error("BadRequest", "Invalid Access-Control-Request-Method: null")
    rule = find(rules, origin, method, names)
    if rule is None:
        raise _forbidden(_REFUSED, method, key)
    return Response(200, response_headers(rule, origin, names, is_preflight=True))


def _forbidden(message: str, method: str | None, key: str = "") -> S3Error:
    return s3_error(
        "AccessForbidden",
        message,
        method=method or "OPTIONS",
        resource_type="OBJECT" if key else "BUCKET",
    )


def sharing_headers(store: Store, head: RequestHead, bucket: str) -> list[tuple[str, str]]:
    """What the answer to a request with an Origin gets besides; nothing where no rule fits."""
    try:
        rules = _rules(store, bucket) if bucket else None
    except engine_errors.BucketNotFound:
        return []
    if not rules:
        return []
    origin = head.headers["origin"]
    # A page that names the method asks about that one.
    method = head.headers.get("access-control-request-method") or head.method
    rule = find(rules, origin, method)
    return response_headers(rule, origin) if rule is not None else []
