"""CopyObject, and the copy source that it shares with UploadPartCopy.

Must not know: how chunks are shared between objects.
Invariants:
* A copy reads its source only when the same identity may read it: the source is authorised like a GetObject.
* No bytes move; when a checksum is asked for that the source lacks, its bytes are read once and not written.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import unquote_to_bytes

from cordwood.engine import BucketInfo, ObjectInfo, Store, errors
from cordwood.server.gate import Demand
from cordwood.server.handlers.conditions import (
    NULL_VERSION,
    is_version_id,
    source_conditions,
    write_conditions,
)
from cordwood.server.handlers.describe import (
    DESCRIPTION,
    checksum_members,
    storage_class,
    system_headers,
    user_metadata,
)
from cordwood.server.handlers.lifecycle import expiration_member
from cordwood.server.handlers.new_object import copied_attrs
from cordwood.server.handlers.request import Request, handles
from cordwood.server.handlers.tagging import TAGS
from cordwood.server.notifications import created
from cordwood.server.wire.checksums import hasher
from cordwood.server.wire.errors import S3Error, s3_error
from cordwood.server.wire.interpret import respond
from cordwood.server.wire.message import Response
from cordwood.server.wire.route import check_key

SOURCE_CONDITIONS: Final = (
    "CopySource CopySourceIfMatch CopySourceIfNoneMatch CopySourceIfModifiedSince CopySourceIfUnmodifiedSince"
)


_COPY_TRIES: Final = 3
_REDIRECT: Final = "x-amz-website-redirect-location"


class Source:
    """A parsed x-amz-copy-source."""

    __slots__ = ("bucket", "info", "key", "version_id")

    def __init__(self, bucket: str, key: str, version_id: str | None) -> None:
        self.bucket = bucket
        self.key = key
        self.version_id = version_id
        self.info: BucketInfo | None = None
        """Of the source's bucket, once reading there was allowed."""


def parse_source(text: str) -> Source:
    """`[/]bucket/key[?versionId=id]`, percent-encoded once. The path is taken literally: `..` is a name like any."""
    path, mark, query = text.partition("?versionId=")
    try:
        decoded = unquote_to_bytes(path).decode("utf-8")
    except UnicodeDecodeError:
        raise _bad_source(text) from None
    bucket, _, key = decoded.removeprefix("/").partition("/")
    if not bucket or not key or bucket.startswith("arn:"):
        raise _bad_source(text)
    check_key(key)
    if mark and not is_version_id(query):
        raise s3_error(
            "InvalidArgument",
            "Invalid version id specified" if query else "Version id cannot be the empty string",
            argument_name="x-amz-copy-source",
            argument_value=text,
        )
    return Source(bucket, key, query if mark else None)


def _bad_source(text: str) -> Exception:
    return s3_error(
        "InvalidArgument",
        "Copy Source must mention the source bucket and key: sourcebucket/sourcekey",
        argument_name="x-amz-copy-source",
        argument_value=text,
    )


async def may_read_tags(request: Request, bucket: str, key: str, version_id: str | None = None) -> bool:
    """Tags go along with an object only for whoever could have read them where they are."""
    action = "s3:GetObjectTagging" if version_id is None else "s3:GetObjectVersionTagging"
    try:
        await request.decide(action, bucket, key, version_id)
    except S3Error:
        return False
    return True


async def authorise_source(request: Request, source: Source) -> bool:
    """May the identity read the source? Returns whether the source's bucket keeps versions."""
    action = "s3:GetObjectVersion" if source.version_id is not None else "s3:GetObject"
    info = await request.authorise(action, source.bucket, source.key, source.version_id)
    expected = request.params.get("ExpectedSourceBucketOwner")
    if expected is not None and expected != info.attrs.get("owner", {}).get("id"):
        raise s3_error("AccessDenied")
    source.info = info
    return info.versioning != ""


def log_copy(request: Request, source: Source, operation: str, version_id: str | None, size: int) -> None:
    """For the access log of the source's bucket."""
    assert source.info is not None
    demand = Demand(request.identity, request.head, request.peer)
    logs = request.service.access_logs
    logs.copied_from(source.info, demand, operation, source.key, version_id or "", size)


@handles(
    "CopyObject",
    f"{DESCRIPTION} {SOURCE_CONDITIONS} MetadataDirective ChecksumAlgorithm IfMatch IfNoneMatch "
    "TaggingDirective ExpectedSourceBucketOwner",
    # Objects have no annotations yet: copying none and replacing them by none are the same.
    ignores="AnnotationDirective",
)
async def copy_object(request: Request) -> Response:
    params = request.params
    source = parse_source(params["CopySource"])
    is_source_versioned = await authorise_source(request, source)
    store = request.service.store
    described = params.get("MetadataDirective", "COPY") == "REPLACE"
    if (source.bucket, source.key) == (request.bucket, request.key) and source.version_id is None:
        _check_self_copy(params, described)
    may_take_tags = params.get("TaggingDirective", "COPY") != "COPY" or await may_read_tags(
        request, source.bucket, source.key, source.version_id
    )
    info, copied_version = await request.service.bridge.run(
        _copy_what_was_seen, store, request, source, described, is_source_versioned, may_take_tags
    )
    log_copy(request, source, "REST.COPY.OBJECT_GET", copied_version, info.size)
    result = {
        "ETag": f'"{info.etag}"',
        "LastModified": info.modified_ms,
        **checksum_members(info.checksums, info.checksum_type),
    }
    members: dict[str, Any] = {"CopyObjectResult": result, "CopySourceVersionId": copied_version}
    members.update(expiration_member(request, info))
    if info.version_id != NULL_VERSION:
        members["VersionId"] = info.version_id
    return respond(request.operation, members)


def _check_self_copy(params: dict[str, Any], described: bool) -> None:
    if not described and "StorageClass" not in params and "WebsiteRedirectLocation" not in params:
        raise s3_error(
            "InvalidRequest",
            "This copy request is illegal because it is trying to copy an object to itself without changing the "
            "object's metadata, storage class, website redirect location or encryption attributes.",
        )


def _copy_what_was_seen(
    store: Store,
    request: Request,
    source: Source,
    described: bool,
    is_source_versioned: bool,
    may_take_tags: bool,
) -> tuple[ObjectInfo, str | None]:
    """Looks again when the source became another object between the look at it and the copy."""
    for _ in range(_COPY_TRIES):
        try:
            return _copy(store, request, source, described, is_source_versioned, may_take_tags)
        except errors.Conflict:
            continue
    return _copy(store, request, source, described, is_source_versioned, may_take_tags)


def _copy(
    store: Store,
    request: Request,
    source: Source,
    described: bool,
    is_source_versioned: bool,
    may_take_tags: bool,
) -> tuple[ObjectInfo, str | None]:
    """The copy, and which version was copied where versions are kept."""
    params = request.params
    original = store.head(source.bucket, source.key, version_id=source.version_id)
    request.confirm(original)
    if TAGS in original.attrs and not may_take_tags:
        raise s3_error("AccessDenied")
    if is_source_versioned:
        # From here on it is this version, whatever becomes the current one meanwhile.
        source = Source(source.bucket, source.key, original.version_id)
    headers: dict[str, str] | None = None
    if described:
        headers = system_headers(params)
    elif "WebsiteRedirectLocation" in params or _REDIRECT in original.headers:
        # The redirect is never copied: it belongs to the page, not to the object (as AWS).
        headers = {name: value for name, value in original.headers.items() if name != _REDIRECT}
        redirect = system_headers({"WebsiteRedirectLocation": params.get("WebsiteRedirectLocation")})
        if _REDIRECT in redirect:
            headers[_REDIRECT] = redirect[_REDIRECT]
    checksums = checksum_type = None
    algorithm = params.get("ChecksumAlgorithm")
    if algorithm is not None and algorithm not in original.checksums:
        checksums = {algorithm: checksum_of(store, source, algorithm, original.etag)}
        checksum_type = "FULL_OBJECT"
    info = request.announcing(created, "ObjectCreated:Copy").copy(
        source.bucket,
        source.key,
        request.bucket,
        request.key,
        src_version_id=source.version_id,
        src_conditions=source_conditions(params),
        conditions=write_conditions(params),
        headers=headers,
        metadata=user_metadata(params) if described else None,
        checksums=checksums,
        checksum_type=checksum_type,
        storage_class=storage_class(params),
        attrs=copied_attrs(request, original.attrs),
        seen=original
        if original.version_id == NULL_VERSION
        else None,  # any other version cannot change its bytes
    )
    return info, source.version_id if is_source_versioned else None


def checksum_of(
    store: Store,
    source: Source,
    algorithm: str,
    etag: str,
    byte_range: tuple[int, int] | None = None,
) -> str:
    """Read the source once for its checksum. Blocking. The source must still be the one with `etag`."""
    digest = hasher(algorithm)
    with store.get(source.bucket, source.key, version_id=source.version_id, range=byte_range) as reader:
        if reader.info.etag != etag:
            raise s3_error("OperationAborted")
        for block in reader:
            digest.update(block)
    return digest.base64()
