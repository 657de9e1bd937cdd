"""CompleteMultipartUpload: what the client lists is held against what was uploaded, and becomes one object.

Must not know: where parts live.
Invariants:
* No byte of a part is read again: the object's checksum is made from those of its parts.
* A request that is repeated because its first answer was lost gets the same answer.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

from cordwood.engine import PartInfo, Store, UploadInfo
from cordwood.engine import errors as engine_errors
from cordwood.server.encryption import ENVELOPE, envelope_of
from cordwood.server.handlers.conditions import NULL_VERSION, bare, write_conditions
from cordwood.server.handlers.describe import ALGORITHMS, checksum_members
from cordwood.server.handlers.encryption import (
    CUSTOMER_MEMBERS,
    bucket_id,
    customer_headers,
    encryption_members,
    object_checksums,
    part_checksums,
    part_key,
    upload_key,
)
from cordwood.server.handlers.ingest import (
    DEFAULT_ALGORITHM,
    check_digest,
    is_digest,
    receive_structure,
    several_checksums,
)
from cordwood.server.handlers.lifecycle import expiration_member
from cordwood.server.handlers.multipart import COMPOSITE, FULL_OBJECT, MAX_PAGE, MAX_PARTS, upload_of
from cordwood.server.handlers.request import Request, handles
from cordwood.server.notifications import created
from cordwood.server.wire.checksums import combine, composite
from cordwood.server.wire.errors import s3_error
from cordwood.server.wire.interpret import respond
from cordwood.server.wire.message import Response
from cordwood.server.wire.xml import malformed

_PART_CHECKSUMS: Final = {f"Checksum{algorithm}": algorithm for algorithm in ALGORITHMS}


@handles(
    "CompleteMultipartUpload",
    f"MultipartUpload UploadId MpuObjectSize ChecksumType IfMatch IfNoneMatch {CUSTOMER_MEMBERS} "
    f"{' '.join(_PART_CHECKSUMS)}",
)
async def complete_multipart_upload(request: Request) -> Response:
    conditions = write_conditions(request.params)
    document = await receive_structure(request, is_object_checksum=True)
    parts = document.get("Parts")
    if not parts:
        raise malformed("a completed upload needs at least one part")
    if len(parts) > MAX_PARTS:
        raise malformed(f"more than {MAX_PARTS} parts")
    for part in parts:
        if "PartNumber" not in part or "ETag" not in part:
            raise malformed("a part needs PartNumber and ETag")
        _check_part(part)
    if sum(member in request.params for member in _PART_CHECKSUMS) > 1:
        raise several_checksums()
    if request.params.get("MpuObjectSize", 0) < 0:
        raise s3_error(
            "InvalidRequest",
            f"Value for x-amz-mp-object-size header is less than zero: '{request.params['MpuObjectSize']}'",
        )
    numbers = [part["PartNumber"] for part in parts]
    if any(later < earlier for earlier, later in pairwise(numbers)):
        raise s3_error("InvalidPartOrder", upload_id=request.params["UploadId"])
    # A part that was sent twice may be named twice; the last one counts.
    parts = list({part["PartNumber"]: part for part in parts}.values())

    def complete() -> Response:
        wanted = [(part["PartNumber"], bare(part["ETag"])) for part in parts]
        about: dict[str, Any] = {}
        try:
            about = _about(request, upload_of(request), parts)
        except engine_errors.UploadNotFound:
            # Perhaps a repeat of a request that was answered, or is about to be: the engine knows what it completed.
            pass
        told = request.announcing(created, "ObjectCreated:CompleteMultipartUpload")
        info = told.complete_upload(
            request.bucket, request.key, request.params["UploadId"], wanted, conditions=conditions, **about
        )
        envelope = envelope_of(info.attrs)
        members = {
            "Location": _location(request),
            "Bucket": request.bucket,
            "Key": request.key,
            "ETag": f'"{info.etag}"',
            **checksum_members(object_checksums(request, info), info.checksum_type),
            **encryption_members(request, envelope),
        }
        members.update(expiration_member(request, info))
        if info.version_id != NULL_VERSION:
            members["VersionId"] = info.version_id
        response = respond(request.operation, members)
        response.headers += customer_headers(request, envelope)
        return response

    return await request.service.bridge.run(complete)


def _check_part(part: dict[str, Any]) -> None:
    if part["PartNumber"] < 1:
        raise s3_error(
            "InvalidArgument",
            "PartNumber must be >= 1",
            argument_name="PartNumber",
            argument_value=part["PartNumber"],
        )
    given = {name: part[member].strip() for member, name in _PART_CHECKSUMS.items() if member in part}
    if len(given) > 1 or not all(is_digest(name, value) for name, value in given.items()):
        raise s3_error(
            "InvalidArgument",
            "Invalid Base64 or multiple checksums present in request",
            argument_name="Checksum",
            argument_value="".join(f"{name}:{value};" for name, value in given.items())
            if len(given) > 1
            else "".join(given.values()),
        )


def _about(request: Request, upload: UploadInfo, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """What the engine is told of the object: its checksum and, of an encrypted one, its envelope."""
    chosen = _chosen_parts(request.service.store, upload, parts)
    envelope = envelope_of(upload.attrs)
    if envelope is None:
        checksums, kind = _object_checksums(request, upload, parts, chosen)
        return {"checksums": checksums, "checksum_type": kind}
    # Without the customer's key there are no checksums, neither to compare nor to keep. So AWS asks for the key where
    # the upload or a part came with a checksum; older clients, which send none, do not send it.
    has_checksums = any(part.checksums.keys() - {DEFAULT_ALGORITHM} for part in chosen)
    is_needed = bool(upload.checksum_algorithm) or has_checksums
    key = part_key(request, upload) if is_needed else upload_key(request, upload)
    plain = [
        PartInfo(
            part.number,
            part.size,
            part.etag,
            part.modified_ms,
            part_checksums(part, key) if key is not None else {},
        )
        for part in chosen
    ]
    checksums, kind = _object_checksums(request, upload, parts, plain)
    size = sum(part.size for part in chosen)
    sizes = [(part.number, part.size) for part in chosen]
    if key is None:
        finished = request.service.encryption.keys.finish(envelope, bucket_id(request), size, sizes)
    else:
        checksums, finished = key.encrypt_checksums(checksums, size), key.finished(size, sizes)
    return {"checksums": checksums, "checksum_type": kind, "attrs": {ENVELOPE: finished}}


def _location(request: Request) -> str:
    scheme = "https" if request.is_tls else "http"
    path = request.head.raw_path.decode("latin-1")
    return f"{scheme}://{request.head.headers.get('host', '')}{path}"


def _chosen_parts(store: Store, upload: UploadInfo, parts: list[dict[str, Any]]) -> list[PartInfo]:
    """The uploaded parts that the client lists, by number and ETag."""
    stored: dict[int, PartInfo] = {}
    after = 0
    while True:
        page = store.list_parts(upload.bucket, upload.key, upload.upload_id, after=after, max_parts=MAX_PAGE)
        stored.update((part.number, part) for part in page.parts)
        if not page.truncated or page.next is None:
            break
        after = page.next
    chosen: list[PartInfo] = []
    for part in parts:
        found = stored.get(part["PartNumber"])
        if found is None or found.etag != bare(part["ETag"]):
            raise _invalid_part(upload, part)
        chosen.append(found)
    return chosen


def _object_checksums(
    request: Request, upload: UploadInfo, parts: list[dict[str, Any]], chosen: list[PartInfo]
) -> tuple[dict[str, str], str]:
    """Check what the client says of the parts and the whole, and derive the object's checksum from its parts'."""
    for part, found in zip(parts, chosen, strict=True):
        for member, algorithm in _PART_CHECKSUMS.items():
            if member not in part:
                continue
            if upload.checksum_algorithm not in ("", algorithm):
                raise s3_error(
                    "BadDigest",
                    f"The {algorithm.lower()} you specified for part {found.number} did not match what we received.",
                )
            if found.checksums.get(algorithm, part[member]) != part[member]:
                raise _invalid_part(upload, part)
    size = request.params.get("MpuObjectSize")
    total = sum(part.size for part in chosen)
    if size is not None and size != total:
        raise s3_error(
            "InvalidRequest",
            f"The provided 'x-amz-mp-object-size' header value {size} does not match what was computed: {total}",
        )
    algorithm = upload.checksum_algorithm or DEFAULT_ALGORITHM
    kind = upload.checksum_type or FULL_OBJECT
    said_kind = request.params.get("ChecksumType")
    if said_kind is not None and said_kind != kind:
        raise s3_error(
            "InvalidRequest",
            f"The upload was created using the {kind} checksum mode. The complete request must use the same "
            "checksum mode.",
        )
    if any(algorithm not in part.checksums for part in chosen):
        return {}, ""
    if kind == COMPOSITE:
        value = composite(algorithm, [part.checksums[algorithm] for part in chosen])
    else:
        value = combine(algorithm, [(part.checksums[algorithm], part.size) for part in chosen])
    _check_whole(request, upload, algorithm, value)
    return {algorithm: value}, kind


def _check_whole(request: Request, upload: UploadInfo, algorithm: str, value: str) -> None:
    """x-amz-checksum-* of the finished object, with or without the number of parts behind it."""
    for member, named in _PART_CHECKSUMS.items():
        said = request.params.get(member)
        if said is None:
            continue
        digest = said.strip().partition("-")[0]
        check_digest(named, digest)
        if named != algorithm:
            if upload.checksum_algorithm:
                raise s3_error(
                    "InvalidRequest",
                    f"Checksum Type mismatch occurred, expected checksum Type: {algorithm.lower()}, "
                    f"actual checksum Type: {named.lower()}",
                )
            continue
        if said.strip() != value and said.strip() != value.partition("-")[0]:
            raise s3_error("BadDigest", f"The {named} you specified did not match the calculated checksum.")


def _invalid_part(upload: UploadInfo, part: dict[str, Any]) -> Exception:
    return s3_error(
        "InvalidPart", upload_id=upload.upload_id, part_number=part["PartNumber"], ETag=bare(part["ETag"])
    )
