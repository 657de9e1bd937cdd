"""CopyObject, and the copy source that it shares with UploadPartCopy.

Must not know: how chunks are shared between objects.
Invariants:
* A copy reads its source only when the same identity may read it: the source is authorised like a GetObject.
* No bytes move between equal states of encryption; when a checksum is asked for that the source lacks, its bytes are
  read once and not written. From one state to another they are decrypted and encrypted anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import unquote_to_bytes

from cordwood.engine import BucketInfo, ObjectInfo, ObjectReader, ObjectWriter, PartWriter, errors
from cordwood.server.encryption import AES256, ENVELOPE, DataKey, Wish, envelope_of
from cordwood.server.gate import Demand
from cordwood.server.handlers.annotations import has_annotations
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
from cordwood.server.handlers.encryption import (
    SOURCE_MEMBERS,
    WISH_MEMBERS,
    bucket_id,
    encryption_members,
    key_for,
    plain_checksums,
    requested,
    unlock,
)
from cordwood.server.handlers.ingest import DEFAULT_ALGORITHM
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


FULL_OBJECT: Final = "FULL_OBJECT"
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
        raise _bad_source(text, "Invalid copy source encoding") from None
    if _BAD_ESCAPE.search(path):
        raise _bad_source(text, "Invalid copy source encoding")
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


_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")


def _bad_source(
    text: str, message: str = "Copy Source must mention the source bucket and key: sourcebucket/sourcekey"
) -> Exception:
    return s3_error(
        "InvalidArgument",
        message,
        argument_name="x-amz-copy-source",
        argument_value=text,
    )


MayLeave = Callable[[Mapping[str, Any]], bool]


async def what_may_leave(request: Request, bucket: str, key: str, version_id: str | None = None) -> MayLeave:
    """Tags and annotations go along with an object only for whoever could have read them where they are; annotations
    also only for whoever could have put them where they go. The answer says of attributes whether all of them may."""
    params = request.params
    of_version = "Version" if version_id is not None else ""
    may_tags = params.get("TaggingDirective", "COPY") != "COPY" or await _may(
        request, f"s3:GetObject{of_version}Tagging", bucket, key, version_id
    )
    may_annotations = params.get("AnnotationDirective", "COPY") != "COPY" or (
        await _may(request, "s3:GetObjectAnnotation", bucket, key, version_id)
        and await _may(request, "s3:PutObjectAnnotation", request.bucket, request.key, None)
    )
    return lambda attrs: (may_tags or TAGS not in attrs) and (may_annotations or not has_annotations(attrs))


async def _may(request: Request, action: str, bucket: str, key: str, version_id: str | None) -> bool:
    try:
        await request.decide(action, bucket, key, version_id)
    except S3Error:
        return False
    return True


async def authorise_source(request: Request, source: Source) -> BucketInfo:
    """May the identity read the source? Returns the source's bucket."""
    action = "s3:GetObjectVersion" if source.version_id is not None else "s3:GetObject"
    info = await request.authorise(action, source.bucket, source.key, source.version_id)
    expected = request.params.get("ExpectedSourceBucketOwner")
    if expected is not None and expected != info.attrs.get("owner", {}).get("id"):
        raise s3_error("AccessDenied")
    source.info = info
    return info


def log_copy(request: Request, source: Source, operation: str, version_id: str | None, size: int) -> None:
    """For the access log of the source's bucket."""
    assert source.info is not None
    demand = Demand(request.identity, request.head, request.peer)
    logs = request.service.access_logs
    logs.copied_from(source.info, demand, operation, source.key, version_id or "", size)


@handles(
    "CopyObject",
    f"{DESCRIPTION} {SOURCE_CONDITIONS} MetadataDirective ChecksumAlgorithm IfMatch IfNoneMatch "
    f"TaggingDirective AnnotationDirective ExpectedSourceBucketOwner {WISH_MEMBERS} {SOURCE_MEMBERS}",
)
async def copy_object(request: Request) -> Response:
    params = request.params
    source = parse_source(params["CopySource"])
    source_bucket = await authorise_source(request, source)
    if (source.bucket, source.key) == (request.bucket, request.key) and source.version_id is None:
        _check_self_copy(request)
    may_leave = await what_may_leave(request, source.bucket, source.key, source.version_id)
    copied = await request.service.bridge.run(_Copy(request, source, source_bucket, may_leave).make)
    info = copied.info
    log_copy(request, source, "REST.COPY.OBJECT_GET", copied.source_version, info.size)
    result = {
        "ETag": f'"{info.etag}"',
        "LastModified": info.modified_ms,
        **checksum_members(copied.checksums, info.checksum_type),
    }
    members: dict[str, Any] = {
        "CopyObjectResult": result,
        "CopySourceVersionId": copied.source_version,
        **encryption_members(request, envelope_of(info.attrs)),
    }
    members.update(expiration_member(request, info))
    if info.version_id != NULL_VERSION:
        members["VersionId"] = info.version_id
    return respond(request.operation, members)


def _check_self_copy(request: Request) -> None:
    params = request.params
    changes = (
        "StorageClass",
        "WebsiteRedirectLocation",
        "ServerSideEncryption",
        "SSECustomerAlgorithm",
        "CopySourceSSECustomerAlgorithm",  # what is under a customer's key gets another, or the bucket's default
    )
    if not _is_described(request) and not any(member in params for member in changes):
        raise s3_error(
            "InvalidRequest",
            "This copy request is illegal because it is trying to copy an object to itself without changing the "
            "object's metadata, storage class, website redirect location or encryption attributes.",
        )


def _is_described(request: Request) -> bool:
    return bool(request.params.get("MetadataDirective", "COPY") == "REPLACE")


class Copied(NamedTuple):
    """A copy, its checksums in plain, and which version was copied where versions are kept."""

    info: ObjectInfo
    checksums: Mapping[str, str]
    source_version: str | None


class _Copy:
    """One CopyObject. Blocking."""

    def __init__(
        self, request: Request, source: Source, source_bucket: BucketInfo, may_leave: MayLeave
    ) -> None:
        self._request = request
        self._store = request.service.store
        self._told = request.announcing(created, "ObjectCreated:Copy")
        self._may_leave = may_leave
        self._keys = request.service.encryption.keys
        self._source = source
        self._source_bucket = source_bucket
        self._is_versioned = source_bucket.versioning != ""
        self._algorithm = request.params.get("ChecksumAlgorithm")

    def make(self) -> Copied:
        """Looks again when the source became another object between the look at it and the copy."""
        for _ in range(_COPY_TRIES):
            try:
                return self._make()
            except errors.Conflict:
                continue
        return self._make()

    def _make(self) -> Copied:
        request, source = self._request, self._source
        original = self._store.head(source.bucket, source.key, version_id=source.version_id)
        request.confirm(original)
        if self._is_versioned:
            # From here on it is this version, whatever becomes the current one meanwhile.
            self._source = Source(source.bucket, source.key, original.version_id)
        key = source_key(request, original, self._source_bucket)
        wish = requested(request)
        if wish is None and key is not None:
            wish = Wish(AES256)  # a copy never loses its encryption in silence
        if wish is not None and has_annotations(copied_attrs(request, original.attrs)):
            raise s3_error(
                "InvalidRequest",
                "Annotations of encrypted objects are not supported: copy with the directive EXCLUDE.",
            )
        is_shared = key is None if wish is None else key is not None and key.can_become(wish)
        return self._share(original, key, wish) if is_shared else self._write_anew(wish)

    def _share(self, original: ObjectInfo, key: DataKey | None, wish: Wish | None) -> Copied:
        """No bytes move; what is encrypted stays as it is, its data key is wrapped anew."""
        request, source = self._request, self._source
        checksums = plain_checksums(original, key)
        stored = checksum_type = None
        if self._algorithm is not None and self._algorithm not in checksums:
            value = checksum_of(request, source, self._source_bucket, self._algorithm, original.etag)
            checksums, checksum_type = {self._algorithm: value}, FULL_OBJECT
            stored = checksums if key is None else key.encrypt_checksums(checksums, original.size)

        def attrs(info: ObjectInfo) -> dict[str, Any]:
            if wish is None or key is None:
                return self._attrs(info)
            if info.attrs[ENVELOPE] != original.attrs[ENVELOPE]:
                raise errors.Conflict("the source was given another key while it was being copied")
            envelope = self._keys.rewrap(key, wish, bucket_id(request))
            return {**self._attrs(info), ENVELOPE: envelope}

        info = self._told.copy(
            source.bucket,
            source.key,
            request.bucket,
            request.key,
            src_version_id=source.version_id,
            src_conditions=source_conditions(request.params),
            conditions=write_conditions(request.params),
            checksums=stored,
            checksum_type=checksum_type,
            attrs=attrs,
            seen=original
            if original.version_id == NULL_VERSION
            else None,  # any other version cannot change its bytes
            **self._description(original),
        )
        return Copied(info, checksums, source.version_id if self._is_versioned else None)

    def _write_anew(self, wish: Wish | None) -> Copied:
        """From one state of encryption to another: every byte is read, decrypted, encrypted and written."""
        request, source = self._request, self._source
        assert wish is not None
        new = self._keys.make(wish, bucket_id(request))
        conditions = source_conditions(request.params)
        with self._store.get(
            source.bucket, source.key, version_id=source.version_id, conditions=conditions
        ) as reader:
            original = reader.info
            request.confirm(original)
            unlock_source(request, reader, self._source_bucket)
            algorithm = self._algorithm or next(iter(original.checksums), DEFAULT_ALGORITHM)
            writer = self._told.writer(
                request.bucket,
                request.key,
                attrs=self._attrs(original),
                cipher=new.cipher,
                **{"metadata": original.metadata, "headers": original.headers, **self._description(original)},
            )
            checksums = poured(reader, writer, algorithm)
        info = writer.commit(
            conditions=write_conditions(request.params),
            checksum_type=FULL_OBJECT,
            **new.about(checksums, writer.size, writer.md5_digest()),
        )
        return Copied(info, checksums, source.version_id if self._is_versioned else None)

    def _attrs(self, original: ObjectInfo) -> dict[str, Any]:
        if not self._may_leave(original.attrs):
            raise s3_error("AccessDenied")
        return copied_attrs(self._request, original.attrs)

    def _description(self, original: ObjectInfo) -> dict[str, Any]:
        """What the request says about the copy; what it leaves to the source is left out."""
        params = self._request.params
        about: dict[str, Any] = {"storage_class": storage_class(params)}
        if _is_described(self._request):
            about["headers"] = system_headers(params)
            about["metadata"] = user_metadata(params)
        elif "WebsiteRedirectLocation" in params or _REDIRECT in original.headers:
            # The redirect is never copied: it belongs to the page, not to the object (as AWS).
            headers = {name: value for name, value in original.headers.items() if name != _REDIRECT}
            redirect = system_headers({"WebsiteRedirectLocation": params.get("WebsiteRedirectLocation")})
            if _REDIRECT in redirect:
                headers[_REDIRECT] = redirect[_REDIRECT]
            about["headers"] = headers
        return about


def source_key(request: Request, info: ObjectInfo, bucket: BucketInfo) -> DataKey | None:
    return key_for(request, info, bucket=bucket.id, prefix="CopySource")


def unlock_source(request: Request, reader: ObjectReader, bucket: BucketInfo) -> DataKey | None:
    return unlock(request, reader, bucket=bucket.id, prefix="CopySource")


def checksum_of(
    request: Request,
    source: Source,
    bucket: BucketInfo,
    algorithm: str,
    etag: str,
    byte_range: tuple[int, int] | None = None,
) -> str:
    """Read the source once for its checksum. Blocking. The source must still be the one with `etag`."""
    digest = hasher(algorithm)
    with request.service.store.get(
        source.bucket, source.key, version_id=source.version_id, range=byte_range
    ) as reader:
        if reader.info.etag != etag:
            raise s3_error("OperationAborted")
        unlock_source(request, reader, bucket)
        for block in reader:
            digest.update(block)
    return digest.base64()


def poured(reader: ObjectReader, writer: ObjectWriter | PartWriter, algorithm: str) -> dict[str, str]:
    """Writes all that is read; returns the checksum of it. On any failure the writer is aborted."""
    digest = hasher(algorithm)
    try:
        for block in reader:
            digest.update(block)
            writer.write(block)
    except BaseException:
        writer.abort()
        raise
    return {algorithm: digest.base64()}
