"""Annotations: named texts that are attached to a version of an object, and go when it goes.

Must not know: how attributes are stored.
Invariants:
* An annotation is an attribute of its version. So it changes neither the object's time nor its ETag, and what is
  decided by looking at the object (ETag, lock, how many there are) is decided for the very state that is changed.
* All annotations of a version together are at most MAX_TOTAL_BYTES, since they are read with the version's attributes.
* An encrypted object has none: they would lie beside it in the clear.

Source: Put-, Get-, List- and DeleteObjectAnnotation, Amazon S3 API Reference.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from cordwood.engine import ObjectInfo
from cordwood.server.handlers.conditions import bare, version_text
from cordwood.server.handlers.describe import checksum_members
from cordwood.server.handlers.ingest import DEFAULT_ALGORITHM, integrity, receive_document
from cordwood.server.handlers.locking import HOLD, RETENTION
from cordwood.server.handlers.request import Request, handles
from cordwood.server.notifications import touched
from cordwood.server.wire.checksums import hasher
from cordwood.server.wire.errors import s3_error
from cordwood.server.wire.interpret import respond
from cordwood.server.wire.message import Response

MAX_COUNT: Final = 1000
MAX_NAME_BYTES: Final = 512
MAX_BYTES: Final = 1 << 20
MAX_TOTAL_BYTES: Final = 2 << 20
START: Final = "annotation:"

_RESERVED: Final = re.compile("aws|s3", re.IGNORECASE)
_UNUSABLE: Final = re.compile("[\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_BYPASS: Final = "x-amz-bypass-governance-retention"


def has_annotations(attrs: Mapping[str, Any]) -> bool:
    return any(name.startswith(START) for name in attrs)


@handles("PutObjectAnnotation", "VersionId AnnotationName AnnotationPayload ObjectIfMatch", has_body=True)
async def put_object_annotation(request: Request) -> Response:
    name = _name(request)
    checks = integrity(request)
    payload = await receive_document(request)
    _check_payload(payload)
    algorithm = checks.algorithm or DEFAULT_ALGORITHM
    digest = hasher(algorithm)
    digest.update(payload)
    annotation = {
        "data": payload,
        "md5": hashlib.md5(payload, usedforsecurity=False).hexdigest(),
        "modified_ms": int(time.time() * 1000),
        "checksums": {algorithm: digest.base64()},
    }

    def changes(info: ObjectInfo) -> dict[str, Any]:
        if info.is_encrypted:
            raise s3_error("InvalidRequest", "Annotations of encrypted objects are not supported.")
        found = _annotations(info)
        if name in found:
            _check_unlocked(request, info)
        found[name] = annotation
        size = sum(len(each["data"]) for each in found.values())
        if len(found) > MAX_COUNT or size > MAX_TOTAL_BYTES:
            raise s3_error("AnnotationLimitExceeded")
        return {START + name: annotation}

    info = await _change(request, "ObjectAnnotation:Put", changes)
    members: dict[str, Any] = {
        "Key": request.key,
        "AnnotationName": name,
        **_of(annotation),
        **_version(request, info),
    }
    return respond(request.operation, members)


@handles("GetObjectAnnotation", "AnnotationName VersionId ChecksumMode")
async def get_object_annotation(request: Request) -> Response:
    info = await _head(request)
    name = _name(request)
    annotation = info.attrs.get(START + name)
    if annotation is None:
        raise s3_error("NoSuchAnnotation", annotation_name=name)
    members = {
        "ETag": f'"{annotation["md5"]}"',
        "LastModified": annotation["modified_ms"],
        **_version(request, info),
    }
    if "ChecksumMode" in request.params:
        members.update(_of(annotation))
    response = respond(request.operation, members)
    response.headers.append(("content-type", "text/plain; charset=utf-8"))
    response.body = annotation["data"]
    return response


@handles("DeleteObjectAnnotation", "AnnotationName VersionId ObjectIfMatch")
async def delete_object_annotation(request: Request) -> Response:
    name = _name(request)

    def changes(info: ObjectInfo) -> dict[str, Any]:
        if START + name not in info.attrs:
            raise s3_error("NoSuchAnnotation", annotation_name=name)
        _check_unlocked(request, info)
        return {START + name: None}

    info = await _change(request, "ObjectAnnotation:Delete", changes)
    return respond(request.operation, _version(request, info))


@handles("ListObjectAnnotations", "VersionId MaxAnnotationResults AnnotationPrefix ContinuationToken")
async def list_object_annotations(request: Request) -> Response:
    params = request.params
    limit = params.get("MaxAnnotationResults", MAX_COUNT)
    if not 1 <= limit <= MAX_COUNT:
        raise s3_error(
            "InvalidArgument",
            f"Argument max-annotation-results must be an integer between 1 and {MAX_COUNT}",
            argument_name="max-annotation-results",
            argument_value=limit,
        )
    prefix, token = params.get("AnnotationPrefix", ""), params.get("ContinuationToken")
    if len(prefix.encode("utf-8", "replace")) > MAX_NAME_BYTES or _UNUSABLE.search(prefix):
        raise s3_error("InvalidPrefix")
    after = _name_of(token) if token else ""
    info = await _head(request)
    found = _annotations(info)
    names = sorted((each for each in found if each.startswith(prefix)), key=str.encode)
    names = [each for each in names if each.encode() > after.encode()]
    page = names[:limit]
    members: dict[str, Any] = {
        "Annotations": [_entry(each, found[each]) for each in page],
        "Bucket": request.bucket,
        "Key": request.key,
        "AnnotationPrefix": params.get("AnnotationPrefix"),
        "MaxAnnotationResults": params.get("MaxAnnotationResults"),
        "AnnotationCount": len(page),
        "ContinuationToken": token,
        **_version(request, info),
    }
    if len(names) > len(page):
        members["NextContinuationToken"] = base64.urlsafe_b64encode(f"a1:{page[-1]}".encode()).decode()
    return respond(request.operation, members)


def _entry(name: str, annotation: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "AnnotationName": name,
        "LastModified": annotation["modified_ms"],
        "ETag": f'"{annotation["md5"]}"',
        "ChecksumAlgorithm": list(annotation["checksums"]),
        "Size": len(annotation["data"]),
    }


def _of(annotation: Mapping[str, Any]) -> dict[str, Any]:
    checksums = checksum_members(annotation["checksums"], "FULL_OBJECT")
    return {"ETag": f'"{annotation["md5"]}"', **checksums}


def _version(request: Request, info: ObjectInfo) -> dict[str, Any]:
    return {"ObjectVersionId": info.version_id} if request.has_versioning else {}


def _annotations(info: ObjectInfo) -> dict[str, Any]:
    return {name.removeprefix(START): value for name, value in info.attrs.items() if name.startswith(START)}


async def _head(request: Request) -> ObjectInfo:
    store, version_id = request.service.store, version_text(request.params)
    return await request.service.bridge.run(
        lambda: store.head(request.bucket, request.key, version_id=version_id)
    )


async def _change(
    request: Request, event: str, changes: Callable[[ObjectInfo], dict[str, Any]]
) -> ObjectInfo:
    wanted = request.params.get("ObjectIfMatch")

    def checked(info: ObjectInfo) -> dict[str, Any]:
        if wanted is not None and bare(wanted) != info.etag:
            raise s3_error("PreconditionFailed", condition="x-amz-object-if-match")
        return changes(info)

    store, version_id = request.announcing(touched, event, request.key), version_text(request.params)
    return await request.service.bridge.run(
        lambda: store.update_attrs(request.bucket, request.key, checked, version_id=version_id)
    )


def _check_unlocked(request: Request, info: ObjectInfo) -> None:
    """A locked object keeps its annotations as they are. Whether a bypass is allowed was decided before the handler."""
    retention = info.attrs.get(RETENTION, {"mode": "", "until_ms": 0})
    is_retained = retention["until_ms"] > time.time() * 1000
    if retention["mode"] == "GOVERNANCE" and request.head.headers.get(_BYPASS, "").lower() == "true":
        is_retained = False
    if is_retained or info.attrs.get(HOLD):
        raise s3_error("AccessDenied", "Access Denied because object protected by object lock.")


def _name(request: Request) -> str:
    name: str = request.params["AnnotationName"]
    if len(name.encode("utf-8", "replace")) > MAX_NAME_BYTES:
        raise s3_error("AnnotationNameTooLong")
    if not name:
        raise s3_error("UserAnnotationNameMustBeSpecified")
    if _RESERVED.match(name) or _UNUSABLE.search(name):
        raise s3_error("InvalidAnnotationName")
    return name


def _check_payload(payload: bytes) -> None:
    if len(payload) > MAX_BYTES:
        raise s3_error("EntityTooLarge", proposed_size=len(payload), max_size_allowed=MAX_BYTES)
    if not payload:
        raise s3_error("InvalidRequest", "An annotation has 1 byte to 1 MiB.")
    try:
        payload.decode("utf-8")
    except UnicodeDecodeError:
        raise s3_error("UnsupportedMediaType") from None


def _name_of(token: str) -> str:
    try:
        text = base64.urlsafe_b64decode(token.encode("ascii")).decode()
    except (binascii.Error, ValueError):
        text = ""
    if not text.startswith("a1:"):
        raise s3_error(
            "InvalidArgument",
            "The continuation token provided is incorrect",
            argument_name="continuation-token",
        )
    return text[3:]
