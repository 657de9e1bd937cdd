"""PutObject with x-amz-write-offset-bytes: the body is added at the end of an object.

Must not know: how the longer object is laid down.
Invariants:
* The body is verified like any other before it is added, and all of it is added or nothing.
* The checksum of the longer object is made from those of its parts: a CRC over the whole stays one over the whole, any
  other becomes a composite one, as of a multipart upload.
* An append cannot say anything about an object that exists: such headers are refused, not dropped.

Source: "Appending data to objects in directory buckets", Amazon S3 User Guide.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cordwood.engine import ObjectInfo
from cordwood.engine import errors as engine_errors
from cordwood.server.handlers.conditions import NULL_VERSION, write_conditions
from cordwood.server.handlers.describe import checksum_members, storage_class, system_headers, user_metadata
from cordwood.server.handlers.encryption import requested
from cordwood.server.handlers.ingest import DEFAULT_ALGORITHM, ingest, integrity
from cordwood.server.handlers.lifecycle import expiration_member
from cordwood.server.handlers.new_object import new_attrs
from cordwood.server.handlers.request import Request
from cordwood.server.notifications import created
from cordwood.server.wire.checksums import combine, composite
from cordwood.server.wire.errors import s3_error
from cordwood.server.wire.interpret import respond
from cordwood.server.wire.message import Response

FULL_OBJECT: Final = "FULL_OBJECT"
COMPOSITE: Final = "COMPOSITE"
_COMBINED: Final = frozenset(("CRC64NVME", "CRC32", "CRC32C"))

# Clients send these without being asked (a content type above all); they change nothing about an object that exists.
_HARMLESS: Final = frozenset(
    (
        "CacheControl",
        "ContentDisposition",
        "ContentEncoding",
        "ContentLanguage",
        "ContentLength",
        "ContentMD5",
        "ContentType",
        "ExpectedBucketOwner",
        "Expires",
        "IfMatch",
        "IfNoneMatch",
        "RequestPayer",
        "WriteOffsetBytes",
    )
)


async def append_object(request: Request) -> Response:
    params = request.params
    offset: int = params["WriteOffsetBytes"]
    if offset < 0:
        raise s3_error(
            "InvalidArgument",
            "The write offset must be a number of bytes.",
            argument_name="x-amz-write-offset-bytes",
            argument_value=offset,
        )
    service = request.service
    before = await service.bridge.run(_before, request)
    checks = integrity(request)
    if before is not None:
        if before.is_encrypted:
            raise s3_error("EncryptionTypeMismatch", "Nothing can be appended to an encrypted object.")
        _check_silence(request)
    elif requested(request) is not None:
        raise s3_error(
            "EncryptionTypeMismatch", "An object that begins with a write offset cannot be encrypted."
        )
    algorithm = _algorithm(before) or checks.algorithm or DEFAULT_ALGORITHM
    writer = request.announcing(created, "ObjectCreated:Put").append_writer(
        request.bucket,
        request.key,
        headers=system_headers(params),
        metadata=user_metadata(params),
        storage_class=storage_class(params),
        attrs=new_attrs(request),
    )
    computed = await ingest(request, writer, checks, (algorithm,))
    try:
        info = await service.bridge.run(
            lambda: writer.commit(
                offset, conditions=write_conditions(params), checksums=computed, whole=_whole_checksums
            )
        )
    except BaseException:
        writer.abort()
        raise
    members: dict[str, Any] = {
        "ETag": f'"{info.etag}"',
        "Size": info.size,
        **checksum_members(info.checksums, info.checksum_type),
    }
    members.update(expiration_member(request, info))
    if info.version_id != NULL_VERSION:
        members["VersionId"] = info.version_id
    return respond(request.operation, members)


def _before(request: Request) -> ObjectInfo | None:
    try:
        return request.service.store.head(request.bucket, request.key)
    except engine_errors.KeyNotFound:
        return None


def _check_silence(request: Request) -> None:
    for member in request.params.keys() - _HARMLESS:
        header = request.operation.inputs[member][2]
        if not header.startswith(("x-amz-checksum", "x-amz-sdk-checksum")):
            raise s3_error(
                "InvalidRequest", f"{header} cannot be given when data is appended to an object that exists."
            )


def _algorithm(before: ObjectInfo | None) -> str | None:
    """What the checksum of the longer object needs of the body."""
    return next(iter(before.checksums), None) if before is not None and before.size else None


def _whole_checksums(before: ObjectInfo, parts: list[Any]) -> tuple[Mapping[str, str], str]:
    algorithm = _algorithm(before)
    last = parts[-1]
    if algorithm is None or algorithm not in last.checksums:
        return {}, ""
    if before.checksum_type == FULL_OBJECT and algorithm in _COMBINED:
        known = [(before.checksums[algorithm], before.size), (last.checksums[algorithm], last.size)]
        return {algorithm: combine(algorithm, known)}, FULL_OBJECT
    if not all(algorithm in part.checksums for part in parts):
        return {}, ""
    return {algorithm: composite(algorithm, [part.checksums[algorithm] for part in parts])}, COMPOSITE
