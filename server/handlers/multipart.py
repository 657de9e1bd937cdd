"""The multipart family: create, upload and copy parts, abort, list parts, list uploads (completing.py completes).

Must not know: where parts live.
Invariants:
* Every part carries the checksum that the finished object will need: that of the upload's algorithm, or CRC64NVME when
  the upload named none, so that completing never reads the parts' bytes again.
* An upload id is used only together with the bucket and key that it was made for (the engine checks).
"""

from __future__ import annotations

import re
from typing import Any, Final

from cordwood.engine import BucketInfo, PartInfo, UploadInfo
from cordwood.engine import errors as engine_errors
from cordwood.server.encryption import ENVELOPE, DataKey
from cordwood.server.handlers.buckets import owner_members
from cordwood.server.handlers.conditions import source_conditions
from cordwood.server.handlers.copy import (
    SOURCE_CONDITIONS,
    Source,
    authorise_source,
    checksum_of,
    log_copy,
    parse_source,
    poured,
    source_key,
    unlock_source,
)
from cordwood.server.handlers.describe import (
    DESCRIPTION,
    checksum_members,
    storage_class,
    system_headers,
    user_metadata,
)
from cordwood.server.handlers.encryption import (
    CUSTOMER_MEMBERS,
    SOURCE_MEMBERS,
    WISH_MEMBERS,
    cipher_of,
    key_members,
    new_key,
    part_checksums,
    part_key,
    upload_key,
)
from cordwood.server.handlers.ingest import DEFAULT_ALGORITHM, ingest, integrity
from cordwood.server.handlers.lifecycle import abort_members
from cordwood.server.handlers.listing import encoder, page_size
from cordwood.server.handlers.new_object import new_attrs
from cordwood.server.handlers.request import Request, handles
from cordwood.server.wire.errors import s3_error
from cordwood.server.wire.interpret import respond
from cordwood.server.wire.message import Response

MAX_PARTS: Final = 10_000
MAX_PART_BYTES: Final = 5 << 30
MAX_PAGE: Final = 1000
FULL_OBJECT: Final = "FULL_OBJECT"
COMPOSITE: Final = "COMPOSITE"

# Which types each algorithm has; the first is the default. Only CRCs can be combined without the bytes.
_TYPES: Final = {
    "CRC64NVME": (FULL_OBJECT,),
    "CRC32": (COMPOSITE, FULL_OBJECT),
    "CRC32C": (COMPOSITE, FULL_OBJECT),
}


@handles("CreateMultipartUpload", f"{DESCRIPTION} {WISH_MEMBERS} ChecksumAlgorithm ChecksumType")
async def create_multipart_upload(request: Request) -> Response:
    params = request.params
    algorithm = params.get("ChecksumAlgorithm", "")
    kind = params.get("ChecksumType", "")
    if kind and not algorithm:
        raise s3_error(
            "InvalidRequest",
            "The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header.",
        )
    if algorithm:
        types = _TYPES.get(algorithm, (COMPOSITE,))
        if kind and kind not in types:
            raise s3_error(
                "InvalidRequest",
                f"The {kind} checksum type cannot be used with the {algorithm.lower()} checksum algorithm.",
            )
        kind = kind or types[0]
    attrs = new_attrs(request)
    key = await new_key(request, for_parts=True)
    if key is not None:
        attrs[ENVELOPE] = key.envelope.attr()
    store = request.service.store

    def create() -> UploadInfo:
        return store.create_upload(
            request.bucket,
            request.key,
            headers=system_headers(params),
            metadata=user_metadata(params),
            storage_class=storage_class(params),
            attrs=attrs,
            checksum_algorithm=algorithm,
            checksum_type=kind,
        )

    upload = await request.service.bridge.run(create)
    return respond(
        request.operation,
        {
            "Bucket": request.bucket,
            "Key": request.key,
            "UploadId": upload.upload_id,
            "ChecksumAlgorithm": algorithm or None,
            "ChecksumType": kind or None,
            **abort_members(request, upload),
            **key_members(request, key),
        },
    )


def _part_number(request: Request) -> int:
    number: int = request.params["PartNumber"]
    if not 1 <= number <= MAX_PARTS:
        raise s3_error(
            "InvalidArgument",
            f"Part number must be an integer between 1 and {MAX_PARTS}, inclusive",
            argument_name="partNumber",
            argument_value=number,
        )
    return number


def upload_of(request: Request) -> UploadInfo:
    return request.service.store.head_upload(request.bucket, request.key, request.params["UploadId"])


@handles("UploadPart", f"Body ContentLength PartNumber UploadId {CUSTOMER_MEMBERS}", has_body=True)
async def upload_part(request: Request) -> Response:
    number = _part_number(request)
    checks = integrity(request)
    upload = upload_of(request)
    wanted = upload.checksum_algorithm or DEFAULT_ALGORITHM
    # Of a composite checksum each part brings its own; one over the whole can be had without them.
    may_be_without = upload.checksum_type != COMPOSITE and checks.algorithm is None
    if upload.checksum_algorithm and checks.algorithm != wanted and not may_be_without:
        raise s3_error(
            "InvalidRequest",
            f"Checksum Type mismatch occurred, expected checksum Type: {wanted.lower()}, "
            f"actual checksum Type: {(checks.algorithm or 'null').lower()}",
        )
    key = part_key(request, upload)
    writer = request.service.store.part_writer(
        request.bucket, request.key, upload.upload_id, number, cipher=cipher_of(key)
    )
    computed = await ingest(request, writer, checks, (wanted,))
    bridge = request.service.bridge
    try:
        stored, md5 = computed, None
        if key is not None:
            stored = key.encrypt_checksums(computed, writer.size, number)
            md5 = key.etag(writer.md5_digest(), number)
        future = writer.commit_async(checksums=stored, md5=md5, wake=False)
    except BaseException:
        writer.abort()
        raise
    part = await bridge.committed(future)
    named = checks.algorithm or wanted
    return respond(
        request.operation,
        {
            "ETag": f'"{part.etag}"',
            f"Checksum{named}": computed[named],
            **key_members(request, key),
        },
    )


_COPY_RANGE: Final = re.compile(r"bytes=([0-9]{1,19})-([0-9]{1,19})\Z")


@handles(
    "UploadPartCopy",
    f"{SOURCE_CONDITIONS} CopySourceRange PartNumber UploadId ExpectedSourceBucketOwner {CUSTOMER_MEMBERS} "
    f"{SOURCE_MEMBERS}",
)
async def upload_part_copy(request: Request) -> Response:
    params = request.params
    number = _part_number(request)
    source = parse_source(params["CopySource"])
    byte_range = _copy_range(params.get("CopySourceRange"))
    source_bucket = await authorise_source(request, source)
    upload = upload_of(request)
    key = part_key(request, upload)
    part, copied_version = await request.service.bridge.run(
        _copy_part, request, upload, key, number, source, source_bucket, byte_range
    )
    log_copy(request, source, "REST.COPY.PART_GET", copied_version, part.size)
    result: dict[str, Any] = {"ETag": f'"{part.etag}"', "LastModified": part.modified_ms}
    if upload.checksum_algorithm:
        result.update(checksum_members(part_checksums(part, key), ""))
    members: dict[str, Any] = {"CopyPartResult": result, **key_members(request, key)}
    if source_bucket.versioning:
        members["CopySourceVersionId"] = copied_version
    return respond(request.operation, members)


def _copy_range(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = _COPY_RANGE.match(text)
    if match is None or int(match[1]) > int(match[2]):
        raise s3_error(
            "InvalidArgument",
            "The x-amz-copy-source-range value must be of the form bytes=first-last where first and last are the "
            "zero-based offsets of the first and last bytes to copy",
            argument_name="x-amz-copy-source-range",
            argument_value=text,
        )
    return int(match[1]), int(match[2])


def _copy_part(
    request: Request,
    upload: UploadInfo,
    key: DataKey | None,
    number: int,
    source: Source,
    source_bucket: BucketInfo,
    byte_range: tuple[int, int] | None,
) -> tuple[PartInfo, str]:
    """The part, and which version of the source it is from."""
    store = request.service.store
    conditions = source_conditions(request.params)
    info = store.head(source.bucket, source.key, version_id=source.version_id, conditions=conditions)
    request.confirm(info)
    # From here on it is this version, whatever becomes the current one meanwhile.
    source = Source(source.bucket, source.key, info.version_id)
    if byte_range is not None and byte_range[1] >= info.size:
        raise s3_error(
            "InvalidRange",
            f"Range specified is not valid for source object of size: {info.size}",
            range_requested=request.params["CopySourceRange"],
            actual_object_size=info.size,
        )
    wanted = upload.checksum_algorithm or DEFAULT_ALGORITHM
    if source_key(request, info, source_bucket) is not None or key is not None:
        return _write_part(
            request, upload, key, number, source, source_bucket, byte_range, wanted
        ), info.version_id
    is_whole = byte_range is None or byte_range == (0, info.size - 1)
    known = info.checksums.get(wanted) if is_whole and info.checksum_type == FULL_OBJECT else None
    checksum = known or checksum_of(request, source, source_bucket, wanted, info.etag, byte_range)
    part = store.copy_part(
        request.bucket,
        request.key,
        upload.upload_id,
        number,
        source.bucket,
        source.key,
        src_version_id=source.version_id,
        src_conditions=conditions,
        range=byte_range,
        checksums={wanted: checksum},
    )
    return part, info.version_id


def _write_part(
    request: Request,
    upload: UploadInfo,
    key: DataKey | None,
    number: int,
    source: Source,
    source_bucket: BucketInfo,
    byte_range: tuple[int, int] | None,
    algorithm: str,
) -> PartInfo:
    """A part from a source where one of the two is encrypted: its bytes are read and written."""
    store = request.service.store
    conditions = source_conditions(request.params)
    with store.get(
        source.bucket, source.key, version_id=source.version_id, conditions=conditions, range=byte_range
    ) as reader:
        request.confirm(reader.info)
        unlock_source(request, reader, source_bucket)
        writer = store.part_writer(
            request.bucket, request.key, upload.upload_id, number, cipher=cipher_of(key)
        )
        checksums = poured(reader, writer, algorithm)
    if key is None:
        return writer.commit(checksums=checksums)
    return writer.commit(
        checksums=key.encrypt_checksums(checksums, writer.size, number),
        md5=key.etag(writer.md5_digest(), number),
    )


@handles("AbortMultipartUpload", "UploadId IfMatchInitiatedTime")
async def abort_multipart_upload(request: Request) -> Response:
    service = request.service
    initiated_s = request.params.get("IfMatchInitiatedTime")
    initiated_ms = int(initiated_s * 1000) if initiated_s is not None else None
    try:
        await service.bridge.run(
            lambda: service.store.abort_upload(
                request.bucket, request.key, request.params["UploadId"], if_initiated_ms=initiated_ms
            )
        )
    except engine_errors.UploadNotFound:
        if initiated_ms is None:
            raise
        # Asked so, AWS does not mind that the upload is gone.
    return respond(request.operation, {})


@handles("ListParts", f"MaxParts PartNumberMarker UploadId {CUSTOMER_MEMBERS}")
async def list_parts(request: Request) -> Response:
    params = request.params
    limit = page_size(params, "MaxParts", "max-parts", MAX_PAGE)
    marker = params.get("PartNumberMarker", 0)
    if not 0 <= marker < 1 << 31:
        raise s3_error(
            "InvalidArgument",
            "Argument part-number-marker must be an integer between 0 and 2147483647",
            argument_name="part-number-marker",
            argument_value=marker,
        )
    upload = upload_of(request)
    listing = await request.service.bridge.run(
        lambda: request.service.store.list_parts(
            request.bucket, request.key, upload.upload_id, after=marker, max_parts=limit
        )
    )
    owner = _initiator(request, upload)
    key = upload_key(request, upload)
    shows_checksums = upload.checksum_algorithm and (key is not None or ENVELOPE not in upload.attrs)
    parts = []
    for part in listing.parts:
        members: dict[str, Any] = {
            "PartNumber": part.number,
            "LastModified": part.modified_ms,
            "ETag": f'"{part.etag}"',
            "Size": part.size,
        }
        if shows_checksums:
            members.update(checksum_members(part_checksums(part, key), ""))
        parts.append(members)
    is_truncated = listing.truncated and limit > 0
    return respond(
        request.operation,
        {
            "Bucket": request.bucket,
            "Key": request.key,
            "UploadId": upload.upload_id,
            "PartNumberMarker": marker,
            "NextPartNumberMarker": listing.parts[-1].number if listing.parts else None,
            "MaxParts": limit,
            "IsTruncated": is_truncated,
            "Parts": parts,
            "Initiator": owner,
            "Owner": owner,
            "StorageClass": upload.storage_class,
            **abort_members(request, upload),
            "ChecksumAlgorithm": upload.checksum_algorithm or None,
            "ChecksumType": upload.checksum_type or None,
        },
    )


def _initiator(request: Request, upload: UploadInfo) -> dict[str, str]:
    owner = upload.attrs.get("owner")
    return owner_members(request) if owner is None else {"DisplayName": owner["name"], "ID": owner["id"]}


@handles("ListMultipartUploads", "Delimiter EncodingType KeyMarker MaxUploads Prefix UploadIdMarker")
async def list_multipart_uploads(request: Request) -> Response:
    params = request.params
    limit = page_size(params, "MaxUploads", "max-uploads", MAX_PAGE)
    prefix, delimiter = params.get("Prefix", ""), params.get("Delimiter", "")
    key_marker, upload_marker = params.get("KeyMarker", ""), params.get("UploadIdMarker", "")
    encode = encoder(params)
    listing = await request.service.bridge.run(
        lambda: request.service.store.list_uploads(
            request.bucket,
            prefix=prefix,
            delimiter=delimiter,
            key_marker=key_marker,
            # AWS ignores an upload id without a key.
            upload_id_marker=upload_marker if key_marker else "",
            max_uploads=limit,
        )
    )
    is_truncated = listing.truncated and limit > 0
    members = {
        "Bucket": request.bucket,
        "KeyMarker": encode(key_marker),
        "UploadIdMarker": upload_marker,
        "Prefix": encode(prefix),
        "Delimiter": encode(delimiter) or None,
        "EncodingType": params.get("EncodingType"),
        "MaxUploads": limit,
        "IsTruncated": is_truncated,
        "Uploads": [
            {
                "UploadId": upload.upload_id,
                "Key": encode(upload.key),
                "Initiated": upload.initiated_ms,
                "StorageClass": upload.storage_class,
                "Owner": _initiator(request, upload),
                "Initiator": _initiator(request, upload),
                "ChecksumAlgorithm": upload.checksum_algorithm or None,
                "ChecksumType": upload.checksum_type or None,
            }
            for upload in listing.uploads
        ],
        "CommonPrefixes": [{"Prefix": encode(each)} for each in listing.prefixes],
    }
    if is_truncated:
        members["NextKeyMarker"] = encode(listing.next_key_marker or "")
        members["NextUploadIdMarker"] = listing.next_upload_id_marker or ""
    return respond(request.operation, members)
