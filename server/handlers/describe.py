"""An object's metadata: from a request into the engine's terms, and back into response members.

Must not know: bodies, listings.
Invariants:
* What a client stored is returned as it was stored; nothing that was not asked for is added but the content type.
* Nothing is stored that a later response could not carry (control characters, more than 2 KiB of user metadata).
"""

from __future__ import annotations

import re
from typing import Any, Final

from cordwood.engine import ObjectInfo
from cordwood.server.handlers.request import Request
from cordwood.server.wire.errors import s3_error
from cordwood.server.wire.interpret import Params
from cordwood.server.wire.operations import ENUMS

ALGORITHMS: Final = tuple(ENUMS["ChecksumAlgorithm"])

# Members that are stored as system headers, with their names on the wire.
SYSTEM_HEADERS: Final = {
    "CacheControl": "cache-control",
    "ContentDisposition": "content-disposition",
    "ContentEncoding": "content-encoding",
    "ContentLanguage": "content-language",
    "ContentType": "content-type",
    "Expires": "expires",
    "WebsiteRedirectLocation": "x-amz-website-redirect-location",
}
_MEMBER_OF_HEADER: Final = {wire_name: member for member, wire_name in SYSTEM_HEADERS.items()}

# What handlers of writes take for the description of an object.
DESCRIPTION: Final = (
    f"{' '.join(SYSTEM_HEADERS)} Metadata StorageClass "
    "ACL GrantFullControl GrantRead GrantReadACP GrantWriteACP "
    "Tagging ObjectLockMode ObjectLockRetainUntilDate ObjectLockLegalHoldStatus"
)

MAX_METADATA_BYTES: Final = 2048
DEFAULT_CONTENT_TYPE: Final = "binary/octet-stream"

# Classes whose objects can be read at once; the archive classes would need RestoreObject.
STORAGE_CLASSES: Final = frozenset(
    ("STANDARD", "REDUCED_REDUNDANCY", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR")
)

_CONTROL: Final = re.compile("[\x00-\x08\x0a-\x1f\x7f]")


def system_headers(params: Params) -> dict[str, str]:
    if SYSTEM_HEADERS.keys().isdisjoint(params):
        return {"content-type": DEFAULT_CONTENT_TYPE}
    headers = {}
    for member, wire_name in SYSTEM_HEADERS.items():
        value = params.get(member)
        if value:
            headers[wire_name] = value
    encoding = headers.get("content-encoding")
    if encoding is not None and "aws-chunked" in encoding.lower():
        # A transfer coding in disguise: it describes the request, not the object.
        rest = [part.strip() for part in encoding.split(",") if part.strip().lower() != "aws-chunked"]
        del headers["content-encoding"]
        if rest and rest != [""]:
            headers["content-encoding"] = ",".join(rest)
    if "content-type" not in headers:
        headers["content-type"] = DEFAULT_CONTENT_TYPE
    location = headers.get("x-amz-website-redirect-location")
    if location is not None and not location.startswith(("/", "http://", "https://")):
        raise s3_error("InvalidRedirectLocation")
    return headers


def user_metadata(params: Params) -> dict[str, str]:
    metadata: dict[str, str] = params.get("Metadata", {})
    if metadata:
        size = sum(len(name.encode()) + len(value.encode()) for name, value in metadata.items())
        if size > MAX_METADATA_BYTES:
            raise s3_error("MetadataTooLarge", size=size, max_size_allowed=MAX_METADATA_BYTES)
    return metadata


def storage_class(params: Params) -> str:
    name: str = params.get("StorageClass", "STANDARD")
    if name not in STORAGE_CLASSES:
        raise s3_error("InvalidStorageClass", storage_class_requested=name)
    return name


def object_members(info: ObjectInfo, request: Request) -> dict[str, Any]:
    """The members that GetObject and HeadObject share."""
    members: dict[str, Any] = {
        "ETag": f'"{info.etag}"',
        "LastModified": info.modified_ms,
        "AcceptRanges": "bytes",
    }
    for wire_name, value in info.headers.items():
        members[_MEMBER_OF_HEADER[wire_name]] = value
    if info.metadata:
        members["Metadata"] = info.metadata
    if info.storage_class != "STANDARD":
        members["StorageClass"] = info.storage_class
    if request.has_versioning:
        members["VersionId"] = info.version_id
    return members


def checksum_members(checksums: dict[str, str] | Any, checksum_type: str) -> dict[str, Any]:
    members = {_CHECKSUM_MEMBERS[algorithm]: value for algorithm, value in checksums.items()}
    if members and checksum_type:
        members["ChecksumType"] = checksum_type
    return members


_CHECKSUM_MEMBERS: Final = {algorithm: f"Checksum{algorithm}" for algorithm in ALGORITHMS}


_OVERRIDES: Final = {
    "ResponseCacheControl": "CacheControl",
    "ResponseContentDisposition": "ContentDisposition",
    "ResponseContentEncoding": "ContentEncoding",
    "ResponseContentLanguage": "ContentLanguage",
    "ResponseContentType": "ContentType",
    "ResponseExpires": "Expires",
}
OVERRIDES: Final = " ".join(_OVERRIDES)


def override_members(members: dict[str, Any], request: Request) -> None:
    """The response-* query parameters, for signed requests only."""
    params = request.params
    for parameter, member in _OVERRIDES.items():
        value = params.get(parameter)
        if value is None:
            continue
        if request.verified.identity.is_anonymous:
            raise s3_error(
                "InvalidRequest",
                "Request specific response headers cannot be used for anonymous GET requests.",
            )
        if _CONTROL.search(value):
            raise s3_error("InvalidArgument", argument_name=parameter, argument_value=value)
        members[member] = value
