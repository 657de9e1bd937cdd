"""What the engine's errors are called in S3.

Must not know: any one operation, HTTP beyond status and headers.
Invariant: every class of the engine's error tree has an answer here; a new subclass inherits its base's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from cordwood.engine import errors
from cordwood.server.wire.errors import S3Error, s3_error
from cordwood.server.wire.interpret import Params
from cordwood.server.wire.message import RequestHead

Maker = Callable[[Any, RequestHead, Params], S3Error]


def translate(error: errors.CordwoodError, head: RequestHead, params: Params) -> S3Error:
    """The S3 error for an engine error that a handler let through."""
    for cls in type(error).__mro__:
        maker = MAKERS.get(cls)
        if maker is not None:
            return maker(error, head, params)
    raise AssertionError(f"no S3 error for {type(error).__name__}") from error


def _delete_marker(error: Any, head: RequestHead, params: Params) -> S3Error:
    headers = [("x-amz-delete-marker", "true"), ("x-amz-version-id", error.version_id)]
    if "VersionId" in params:
        return s3_error(
            "MethodNotAllowed",
            headers=[*headers, ("allow", "DELETE")],
            method=head.method,
            resource_type="DeleteMarker",
        )
    return s3_error("NoSuchKey", headers=headers, key=error.key)


def _invalid_range(error: Any, head: RequestHead, params: Params) -> S3Error:
    return s3_error(
        "InvalidRange",
        headers=(("content-range", f"bytes */{error.size}"),),
        range_requested=head.headers.get("range"),
        actual_object_size=error.size,
    )


def _invalid_part(error: Any, head: RequestHead, params: Params) -> S3Error:
    return s3_error("InvalidPart", upload_id=params.get("UploadId"), part_number=error.part_number)


def _no_such_key(error: Any, head: RequestHead, params: Params) -> S3Error:
    # A key that never was, told from one whose newest version is a delete marker.
    headers = (("x-amz-delete-marker", "false"),) if head.method in ("GET", "HEAD") else ()
    return s3_error("NoSuchKey", headers=headers, key=error.key)


def _constant(code: str) -> Maker:
    return lambda error, head, params: s3_error(code)


MAKERS: Final[dict[type[BaseException], Maker]] = {
    errors.BucketNotFound: lambda e, head, params: s3_error("NoSuchBucket", bucket_name=e.bucket),
    errors.DeleteMarkerFound: _delete_marker,
    errors.KeyNotFound: _no_such_key,
    errors.VersionNotFound: lambda e, head, params: s3_error(
        "NoSuchVersion", key=e.key, version_id=e.version_id
    ),
    errors.UploadNotFound: lambda e, head, params: s3_error("NoSuchUpload", upload_id=e.upload_id),
    errors.NotFound: _constant("NoSuchKey"),
    errors.BucketExists: lambda e, head, params: s3_error("BucketAlreadyExists", bucket_name=e.bucket),
    errors.BucketNotEmpty: lambda e, head, params: s3_error("BucketNotEmpty", bucket_name=e.bucket),
    errors.Locked: lambda e, head, params: s3_error(
        "AccessDenied", "Access Denied because object protected by object lock."
    ),
    errors.DestinationExists: _constant("PreconditionFailed"),
    # Of a read it is a response, made by read.py; of a copy's source it is a failed condition.
    errors.NotModified: lambda e, head, params: s3_error("PreconditionFailed", condition="If-None-Match"),
    errors.PreconditionFailed: lambda e, head, params: s3_error("PreconditionFailed", condition=e.condition),
    errors.InvalidBucketName: lambda e, head, params: s3_error("InvalidBucketName", bucket_name=e.bucket),
    errors.KeyTooLong: lambda e, head, params: s3_error(
        "KeyTooLongError", size=e.size, max_size_allowed=e.limit
    ),
    errors.InvalidRange: _invalid_range,
    errors.InvalidPart: _invalid_part,
    errors.InvalidPartOrder: _constant("InvalidPartOrder"),
    errors.EntityTooSmall: lambda e, head, params: s3_error(
        "EntityTooSmall",
        proposed_size=e.size,
        min_size_allowed=e.minimum,
        part_number=e.part_number,
        ETag=e.etag,
    ),
    errors.InvalidWriteOffset: lambda e, head, params: s3_error(
        "InvalidWriteOffset", key=e.key, write_offset=e.offset, object_size=e.size
    ),
    errors.TooManyParts: _constant("TooManyParts"),
    errors.TokenReused: _constant("IdempotencyParameterMismatch"),
    errors.InvalidArgument: lambda e, head, params: s3_error("InvalidArgument", str(e)),
    errors.Conflict: _constant("SlowDown"),
    errors.Full: _constant("StorageFull"),
    errors.ReadOnly: lambda e, head, params: s3_error(
        "ServiceUnavailable", "The store takes no writes at present."
    ),
    errors.Busy: _constant("SlowDown"),
    errors.WouldBlock: _constant("SlowDown"),
    errors.Closed: _constant("ServiceUnavailable"),
    errors.CordwoodError: _constant("InternalError"),
}
