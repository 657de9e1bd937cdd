"""GetObjectAttributes.

Must not know: how parts are stored.
Invariant: nothing is answered that was not asked for by name, and parts only of an object that has checksums of parts.
"""

from __future__ import annotations

from typing import Any, Final

from cordwood.engine import PartInfo
from cordwood.server.encryption import DataKey
from cordwood.server.handlers.conditions import version_text
from cordwood.server.handlers.describe import checksum_members
from cordwood.server.handlers.encryption import (
    CUSTOMER_MEMBERS,
    check_read_headers,
    key_for,
    part_checksums,
    plain_checksums,
)
from cordwood.server.handlers.request import Request, handles
from cordwood.server.wire.errors import s3_error
from cordwood.server.wire.interpret import respond
from cordwood.server.wire.message import Response
from cordwood.server.wire.route import missing_attributes

MAX_PARTS: Final = 1000


@handles("GetObjectAttributes", f"ObjectAttributes VersionId MaxParts PartNumberMarker {CUSTOMER_MEMBERS}")
async def get_object_attributes(request: Request) -> Response:
    check_read_headers(request)
    wanted = request.params["ObjectAttributes"]
    if not wanted:
        raise missing_attributes()
    return await request.service.bridge.run(_attributes, request, frozenset(wanted))


def _attributes(request: Request, wanted: frozenset[str]) -> Response:
    params = request.params
    store = request.service.store
    with store.get(request.bucket, request.key, version_id=version_text(params)) as reader:
        info = reader.info
        key = key_for(request, info)
        parts = reader.part_sizes() if info.parts_count and "ObjectParts" in wanted else []
    members: dict[str, Any] = {"LastModified": info.modified_ms}
    if request.has_versioning:
        members["VersionId"] = info.version_id
    if "ETag" in wanted:
        members["ETag"] = info.etag
    if "Checksum" in wanted and info.checksums:
        members["Checksum"] = checksum_members(plain_checksums(info, key), info.checksum_type)
    if parts:
        marker = _number(params, "PartNumberMarker", "x-amz-part-number-marker", 0)
        limit = min(_number(params, "MaxParts", "x-amz-max-parts", MAX_PARTS), MAX_PARTS)
        members["ObjectParts"] = _parts(parts, marker, limit, key)
    if "StorageClass" in wanted:
        members["StorageClass"] = info.storage_class
    if "ObjectSize" in wanted:
        members["ObjectSize"] = info.size
    return respond(request.operation, members)


def _number(params: dict[str, Any], member: str, wire_name: str, default: int) -> int:
    value: int = params.get(member, default)
    if not 0 <= value < 1 << 31:
        raise s3_error("InvalidArgument", argument_name=wire_name, argument_value=value)
    return value


def _parts(parts: list[PartInfo], marker: int, limit: int, key: DataKey | None) -> dict[str, Any]:
    """A page of parts. They are numbered anew from 1, as GetObject with a part number counts them."""
    numbered = list(enumerate(parts, 1))
    page = [(number, part) for number, part in numbered if number > marker][:limit]
    last = page[-1][0] if page else marker
    return {
        "TotalPartsCount": len(parts),
        "PartNumberMarker": marker,
        "NextPartNumberMarker": last,
        "MaxParts": limit,
        "IsTruncated": last < len(parts) and limit > 0,
        "Parts": [
            {
                "PartNumber": number,
                "Size": part.size,
                **checksum_members(part_checksums(part, key), ""),
            }
            for number, part in page
        ],
    }
