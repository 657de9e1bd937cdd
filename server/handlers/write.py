"""PutObject.

Must not know: how the body is framed or verified (ingest.py), how commits are grouped.
Invariant: a 200 leaves only after the engine's future says that the object is durable.
"""

from __future__ import annotations

from typing import Any

from cordwood.server.handlers.append import append_object
from cordwood.server.handlers.conditions import NULL_VERSION, write_conditions
from cordwood.server.handlers.describe import (
    DESCRIPTION,
    checksum_members,
    storage_class,
    system_headers,
    user_metadata,
)
from cordwood.server.handlers.encryption import WISH_MEMBERS, cipher_of, key_members, new_key
from cordwood.server.handlers.ingest import DEFAULT_ALGORITHM, ingest, integrity, is_small, receive_small
from cordwood.server.handlers.lifecycle import expiration_member
from cordwood.server.handlers.new_object import new_attrs
from cordwood.server.handlers.request import Request, handles
from cordwood.server.notifications import created
from cordwood.server.wire.interpret import respond
from cordwood.server.wire.message import Response

FULL_OBJECT = "FULL_OBJECT"


@handles(
    "PutObject",
    f"Body ContentLength {DESCRIPTION} {WISH_MEMBERS} IfMatch IfNoneMatch WriteOffsetBytes",
    has_body=True,
)
async def put_object(request: Request) -> Response:
    params = request.params
    if "WriteOffsetBytes" in params:
        return await append_object(request)
    checks = integrity(request)
    conditions = write_conditions(params)
    key = await new_key(request)
    event = "ObjectCreated:Post" if request.head.method == "POST" else "ObjectCreated:Put"
    store = request.announcing(created, event)
    algorithm = checks.algorithm or DEFAULT_ALGORITHM
    about: dict[str, Any] = {
        "headers": system_headers(params),
        "metadata": user_metadata(params),
        "storage_class": storage_class(params),
        "attrs": new_attrs(request),
    }
    if key is None and is_small(request, store.inline_max):
        data, md5, checksums = await receive_small(request, checks, algorithm)
        about |= {"checksums": checksums, "checksum_type": FULL_OBJECT, "conditions": conditions}
        future = store.put_async(request.bucket, request.key, data, md5=md5, wake=False, **about)
    else:
        writer = store.writer(request.bucket, request.key, cipher=cipher_of(key), **about)
        checksums = await ingest(request, writer, checks, (algorithm,))
        try:
            told: dict[str, Any] = {"checksums": checksums}
            if key is not None:
                told = key.about(checksums, writer.size, writer.md5_digest())
            future = writer.commit_async(conditions=conditions, checksum_type=FULL_OBJECT, wake=False, **told)
        except BaseException:
            writer.abort()
            raise
    info = await request.service.bridge.committed(future)
    members = {"ETag": f'"{info.etag}"', **checksum_members(checksums, info.checksum_type)}
    if key is not None:
        members.update(key_members(request, key))
    expiration = expiration_member(request, info)
    if expiration:
        members.update(expiration)
    if info.version_id != NULL_VERSION:
        members["VersionId"] = info.version_id
    return respond(request.operation, members)
