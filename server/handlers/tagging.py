"""Tags of objects and of buckets: as header, as document, as directive of a copy.

Must not know: who may read tags, which policies look at them.
Invariants:
* Tags are kept as {key: value} in the attribute `tags`, by key; no tags is no attribute.
* What is stored fits AWS's limits whichever way it came: 10 tags of an object, 50 of a bucket, keys of 1 to 128 and
  values of up to 256 characters of the allowed alphabet.

Source: "Categorizing your objects using tags", Amazon S3 User Guide.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import unquote_plus

from cordwood.engine import ObjectInfo
from cordwood.server.gate import SHARED, Demand
from cordwood.server.handlers.conditions import version_text
from cordwood.server.handlers.ingest import receive_structure
from cordwood.server.handlers.request import Request, handles
from cordwood.server.notifications import touched
from cordwood.server.wire.errors import s3_error
from cordwood.server.wire.interpret import Params, respond
from cordwood.server.wire.message import Response

MAX_OBJECT_TAGS: Final = 10
MAX_BUCKET_TAGS: Final = 50
MAX_KEY_CHARACTERS: Final = 128
MAX_VALUE_CHARACTERS: Final = 256
TAGS: Final = "tags"

# Letters, digits and spaces of any script, and these.
_FORBIDDEN: Final = re.compile(r"[^\w\s+\-=.:/@]")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")


def checked(pairs: Iterable[tuple[str, str]], limit: int) -> dict[str, str]:
    """The tags, or InvalidTag."""
    tags: dict[str, str] = {}
    for key, value in pairs:
        if not 1 <= len(key) <= MAX_KEY_CHARACTERS or _FORBIDDEN.search(key):
            raise s3_error("InvalidTag", "The TagKey you have provided is invalid", tag_key=key)
        if len(value) > MAX_VALUE_CHARACTERS or _FORBIDDEN.search(value):
            raise s3_error("InvalidTag", "The TagValue you have provided is invalid", tag_value=value)
        if key.startswith("aws:"):
            raise s3_error("InvalidTag", "System tags cannot be added/updated by requester", tag_key=key)
        if key in tags:
            raise s3_error("InvalidTag", "Cannot provide multiple Tags with the same key", tag_key=key)
        tags[key] = value
    if len(tags) > limit:
        if limit == MAX_BUCKET_TAGS:
            raise s3_error("BadRequest", f"Bucket tag count cannot be greater than {limit}")
        raise s3_error("InvalidTag", f"Object tags cannot be greater than {limit}")
    return dict(sorted(tags.items()))


def header_tags(params: Params) -> dict[str, str] | None:
    """The x-amz-tagging header, which is a query string; None when there is none."""
    text = params.get("Tagging")
    if text is None:
        return None
    pairs = []
    is_encoded = _BAD_ESCAPE.search(text) is None
    for part in text.split("&"):
        key, _, value = part.partition("=")
        if part:
            pairs.append((unquote_plus(key), unquote_plus(value)))
            is_encoded = is_encoded and key != ""
    if not is_encoded or len(dict(pairs)) < len(pairs):
        raise s3_error(
            "InvalidArgument",
            "The header 'x-amz-tagging' shall be encoded as UTF-8 then URLEncoded URL query parameters without tag "
            "name duplicates.",
            argument_name="x-amz-tagging",
            argument_value=text,
        )
    return checked(pairs, MAX_OBJECT_TAGS)


def tag_attrs(params: Params) -> dict[str, Any]:
    """The attribute that a write with these parameters gives its object."""
    tags = header_tags(params)
    return {TAGS: tags} if tags else {}


def _document(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


async def _wanted(request: Request, limit: int) -> dict[str, str]:
    document = await receive_structure(request)
    return checked(((tag["Key"], tag["Value"]) for tag in document["TagSet"]), limit)


def _version_member(request: Request, info: ObjectInfo) -> dict[str, Any]:
    return {"VersionId": info.version_id} if request.has_versioning else {}


# --- objects --------------------------------------------------------------------------------------------------


@handles("GetObjectTagging", "VersionId")
async def get_object_tagging(request: Request) -> Response:
    store, version_id = request.service.store, version_text(request.params)
    info = await request.service.bridge.run(
        lambda: store.head(request.bucket, request.key, version_id=version_id)
    )
    members = {"TagSet": _document(info.attrs.get(TAGS, {})), **_version_member(request, info)}
    return respond(request.operation, members)


@handles("PutObjectTagging", "Tagging VersionId", has_body=True)
async def put_object_tagging(request: Request) -> Response:
    tags = await _wanted(request, MAX_OBJECT_TAGS)
    info = request.bucket_info
    assert info is not None
    if SHARED in info.attrs:
        # Once more, since a policy may speak of the very tags.
        version_id = version_text(request.params)
        action = "s3:PutObjectTagging" if version_id is None else "s3:PutObjectVersionTagging"
        demand = Demand(request.identity, request.head, request.peer)
        await request.service.gate.check(demand, action, info, request.key, version_id, tags)
    return await _set(request, tags or None)


@handles("DeleteObjectTagging", "VersionId")
async def delete_object_tagging(request: Request) -> Response:
    return await _set(request, None)


async def _set(request: Request, tags: dict[str, str] | None) -> Response:
    event = "ObjectTagging:Put" if tags else "ObjectTagging:Delete"
    store, version_id = request.announcing(touched, event, request.key), version_text(request.params)
    info = await request.service.bridge.run(
        lambda: store.update_attrs(request.bucket, request.key, {TAGS: tags}, version_id=version_id)
    )
    return respond(request.operation, _version_member(request, info))


# --- buckets --------------------------------------------------------------------------------------------------


@handles("GetBucketTagging")
async def get_bucket_tagging(request: Request) -> Response:
    assert request.bucket_info is not None
    tags = request.bucket_info.attrs.get(TAGS)
    if not tags:
        raise s3_error("NoSuchTagSet", bucket_name=request.bucket)
    return respond(request.operation, {"TagSet": _document(tags)})


@handles("PutBucketTagging", "Tagging", has_body=True)
async def put_bucket_tagging(request: Request) -> Response:
    tags = await _wanted(request, MAX_BUCKET_TAGS)
    await _set_of_bucket(request, tags or None)
    return respond(request.operation, {}, status=204)


@handles("DeleteBucketTagging")
async def delete_bucket_tagging(request: Request) -> Response:
    await _set_of_bucket(request, None)
    return respond(request.operation, {})


async def _set_of_bucket(request: Request, tags: dict[str, str] | None) -> None:
    store = request.service.store
    await request.service.bridge.run(lambda: store.update_bucket(request.bucket, attrs={TAGS: tags}))
