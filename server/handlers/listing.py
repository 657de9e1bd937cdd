"""ListObjects, ListObjectsV2 and ListObjectVersions.

Must not know: how the engine walks its index.
Invariants:
* Tokens are opaque to clients and stateless here: they say after which name to go on, and nothing else.
* The documents are written by templates, an order of magnitude faster than the generic writer; a test compares both.
* Index walk and document of a long page are made in one thread call, so that the loop never waits for 1,000 keys.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote

from cordwood.engine import ObjectEntry
from cordwood.server.handlers.buckets import owner_members
from cordwood.server.handlers.conditions import is_version_id
from cordwood.server.handlers.request import Request, handles
from cordwood.server.wire.errors import escape_text, s3_error
from cordwood.server.wire.message import Response
from cordwood.server.wire.xml import DECLARATION, NAMESPACE, iso8601, leaf

MAX_KEYS: Final = 1000
_QUICK_KEYS: Final = 100

_XML: Final = [("content-type", "application/xml")]


@handles(
    "ListObjects",
    "Delimiter EncodingType Marker MaxKeys Prefix",
    # Only RestoreStatus can be asked for, and no object here is ever being restored.
    ignores="OptionalObjectAttributes",
)
async def list_objects(request: Request) -> Response:
    for name, written in (("continuation-token", "continuation-token"), ("start-after", "startAfter")):
        if request.head.parameter(name) is not None:
            raise s3_error(
                "InvalidArgument",
                f"{written} only supported in REST.GET.BUCKET with list-type=2",
                argument_name=name,
            )
    if _is_quick(request):
        return _list_objects(request)
    return await request.service.bridge.run(_list_objects, request)


def _list_objects(request: Request) -> Response:
    params = request.params
    prefix, delimiter, marker = (
        params.get("Prefix", ""),
        params.get("Delimiter", ""),
        params.get("Marker", ""),
    )
    limit = page_size(params, "MaxKeys", "maxKeys")
    encode = encoder(params)
    listing = request.service.store.list(
        request.bucket, prefix=prefix, delimiter=delimiter, start_after=marker, max_keys=limit
    )
    is_truncated = listing.truncated and limit > 0
    parts = [
        DECLARATION,
        f'<ListBucketResult xmlns="{NAMESPACE}">',
        leaf("Name", request.bucket),
        # Not encoded, unlike everywhere else: the SDKs do not decode it here.
        leaf("Prefix", prefix),
        leaf("Marker", encode(marker)),
    ]
    if is_truncated and delimiter and listing.next is not None:
        # AWS gives a NextMarker only beside a delimiter; else the last key is the marker.
        parts.append(leaf("NextMarker", encode(listing.next)))
    parts += _common(params, limit, delimiter, encode, is_truncated)
    owner = owner_document(owner_members(request))
    parts += [entry_document(entry, encode, owner) for entry in listing.objects]
    parts += prefix_documents(listing.prefixes, encode)
    parts.append("</ListBucketResult>")
    return Response(200, list(_XML), "".join(parts).encode())


@handles(
    "ListObjectsV2",
    "Delimiter EncodingType MaxKeys Prefix ContinuationToken FetchOwner StartAfter",
    ignores="OptionalObjectAttributes",
)
async def list_objects_v2(request: Request) -> Response:
    if request.head.parameter("marker") is not None:
        raise s3_error(
            "InvalidArgument",
            "Marker unsupported with REST.GET.BUCKET in list-type=2",
            argument_name="marker",
        )
    if _is_quick(request):
        return _list_objects_v2(request)
    return await request.service.bridge.run(_list_objects_v2, request)


def _is_quick(request: Request) -> bool:
    """Would a thread cost more than the page? A short one, and nothing on its way that is walked and not shown."""
    params = request.params
    return (
        0 <= params.get("MaxKeys", MAX_KEYS) <= _QUICK_KEYS
        and params.get("Delimiter", "") in ("", "/")
        and not request.has_versioning
    )


def _list_objects_v2(request: Request) -> Response:
    params = request.params
    prefix, delimiter = params.get("Prefix", ""), params.get("Delimiter", "")
    token, start_after = params.get("ContinuationToken"), params.get("StartAfter", "")
    after = key_of_token(token) if token else start_after
    limit = page_size(params, "MaxKeys", "maxKeys")
    encode = encoder(params)
    listing = request.service.store.list(
        request.bucket, prefix=prefix, delimiter=delimiter, start_after=after, max_keys=limit
    )
    is_truncated = listing.truncated and limit > 0
    parts = [
        DECLARATION,
        f'<ListBucketResult xmlns="{NAMESPACE}">',
        leaf("Name", request.bucket),
        leaf("Prefix", encode(prefix)),
        f"<KeyCount>{len(listing.objects) + len(listing.prefixes)}</KeyCount>",
    ]
    if token is not None:
        parts.append(leaf("ContinuationToken", token))
    if is_truncated and listing.next is not None:
        parts.append(leaf("NextContinuationToken", token_of_key(listing.next)))
    if "StartAfter" in params:
        parts.append(leaf("StartAfter", encode(start_after)))
    parts += _common(params, limit, delimiter, encode, is_truncated)
    owner = owner_document(owner_members(request)) if params.get("FetchOwner") else ""
    parts += [entry_document(entry, encode, owner) for entry in listing.objects]
    parts += prefix_documents(listing.prefixes, encode)
    parts.append("</ListBucketResult>")
    return Response(200, list(_XML), "".join(parts).encode())


@handles(
    "ListObjectVersions",
    "Delimiter EncodingType KeyMarker MaxKeys Prefix VersionIdMarker",
    ignores="OptionalObjectAttributes",
)
async def list_object_versions(request: Request) -> Response:
    return await request.service.bridge.run(_list_object_versions, request)


def _list_object_versions(request: Request) -> Response:
    params = request.params
    prefix, delimiter = params.get("Prefix", ""), params.get("Delimiter", "")
    key_marker, version_marker = params.get("KeyMarker", ""), params.get("VersionIdMarker", "")
    if version_marker and not key_marker:
        raise s3_error(
            "InvalidArgument",
            "A version-id marker cannot be specified without a key marker.",
            argument_name="version-id-marker",
            argument_value=version_marker,
        )
    if key_marker and "VersionIdMarker" in params and not is_version_id(version_marker):
        raise s3_error(
            "InvalidArgument",
            "Invalid version id specified" if version_marker else "A version-id marker cannot be empty.",
            argument_name="version-id-marker",
            argument_value=version_marker,
        )
    if params.get("MaxKeys", 0) < 0:
        raise s3_error("InvalidArgument", "max-keys cannot be negative", argument_name="max-keys")
    limit = page_size(params, "MaxKeys", "max-keys")
    encode = encoder(params)
    listing = request.service.store.list_versions(
        request.bucket,
        prefix=prefix,
        delimiter=delimiter,
        key_marker=key_marker,
        version_id_marker=version_marker,
        max_keys=limit,
    )
    is_truncated = listing.truncated and limit > 0
    parts = [
        DECLARATION,
        f'<ListVersionsResult xmlns="{NAMESPACE}">',
        leaf("Name", request.bucket),
        leaf("Prefix", encode(prefix)),
        leaf("KeyMarker", encode(key_marker)),
        leaf("VersionIdMarker", version_marker),
    ]
    if is_truncated:
        parts.append(leaf("NextKeyMarker", encode(listing.next_key_marker or "")))
        if listing.next_version_id_marker:
            parts.append(leaf("NextVersionIdMarker", listing.next_version_id_marker))
    parts += _common(params, limit, delimiter, encode, is_truncated)
    owner = owner_document(owner_members(request))
    parts += [version_document(entry, encode, owner) for entry in listing.entries]
    parts += prefix_documents(listing.prefixes, encode)
    parts.append("</ListVersionsResult>")
    return Response(200, list(_XML), "".join(parts).encode())


def _common(
    params: dict[str, Any], limit: int, delimiter: str, encode: Callable[[str], str], is_truncated: bool
) -> list[str]:
    parts = [f"<MaxKeys>{limit}</MaxKeys>"]
    if delimiter:
        parts.append(leaf("Delimiter", encode(delimiter)))
    if "EncodingType" in params:
        parts.append(leaf("EncodingType", params["EncodingType"]))
    parts.append(f"<IsTruncated>{'true' if is_truncated else 'false'}</IsTruncated>")
    return parts


def page_size(params: dict[str, Any], member: str, name: str, maximum: int = MAX_KEYS) -> int:
    """What the client asked for, at most `maximum`; AWS answers with what it used. `name` is AWS's for the argument."""
    value: int = params.get(member, maximum)
    if value < 0:
        raise s3_error(
            "InvalidArgument",
            f"Argument {name} must be an integer between 0 and 2147483647",
            argument_name=name,
            argument_value=value,
        )
    return min(value, maximum)


def encoder(params: dict[str, Any]) -> Callable[[str], str]:
    """How names appear in the document: percent-encoded when the client asks for encoding-type=url."""
    return _url_encode if "EncodingType" in params else _identity


def _url_encode(text: str) -> str:
    return quote(text, safe="/")


def _identity(text: str) -> str:
    return text


def entry_document(entry: ObjectEntry, encode: Callable[[str], str], owner: str) -> str:
    checksums = _checksums(entry.checksum_algorithms, entry.checksum_type)
    return (
        f"<Contents><Key>{escape_text(encode(entry.key))}</Key>"
        f"<LastModified>{iso8601(entry.modified_ms)}</LastModified>"
        f"<ETag>&quot;{entry.etag}&quot;</ETag>{checksums}<Size>{entry.size}</Size>"
        f"<StorageClass>{entry.storage_class}</StorageClass>{owner}</Contents>"
    )


def version_document(entry: ObjectEntry, encode: Callable[[str], str], owner: str) -> str:
    start = (
        f"<Key>{escape_text(encode(entry.key))}</Key><VersionId>{escape_text(entry.version_id)}</VersionId>"
        f"<IsLatest>{'true' if entry.is_latest else 'false'}</IsLatest>"
        f"<LastModified>{iso8601(entry.modified_ms)}</LastModified>"
    )
    if entry.is_delete_marker:
        return f"<DeleteMarker>{start}{owner}</DeleteMarker>"
    checksums = _checksums(entry.checksum_algorithms, entry.checksum_type)
    return (
        f"<Version>{start}<ETag>&quot;{entry.etag}&quot;</ETag>{checksums}<Size>{entry.size}</Size>"
        f"<StorageClass>{entry.storage_class}</StorageClass>{owner}</Version>"
    )


@lru_cache(maxsize=256)
def _checksums(algorithms: tuple[str, ...], checksum_type: str) -> str:
    if not algorithms:
        return ""
    names = "".join(f"<ChecksumAlgorithm>{algorithm}</ChecksumAlgorithm>" for algorithm in algorithms)
    return f"{names}<ChecksumType>{checksum_type}</ChecksumType>"


def owner_document(owner: dict[str, str]) -> str:
    return f"<Owner>{leaf('ID', owner['ID'])}{leaf('DisplayName', owner['DisplayName'])}</Owner>"


def prefix_documents(prefixes: list[str], encode: Callable[[str], str]) -> list[str]:
    return [
        f"<CommonPrefixes><Prefix>{escape_text(encode(prefix))}</Prefix></CommonPrefixes>"
        for prefix in prefixes
    ]


def token_of_key(key: str) -> str:
    return base64.urlsafe_b64encode(b"k1:" + key.encode()).decode()


def key_of_token(token: str) -> str:
    try:
        data = base64.b64decode(token, altchars=b"-_", validate=True)
        if not data.startswith(b"k1:"):
            raise ValueError(token)
        return data[3:].decode()
    except (binascii.Error, ValueError):
        raise s3_error(
            "InvalidArgument",
            "The continuation token provided is incorrect",
            argument_name="continuation-token",
        ) from None
