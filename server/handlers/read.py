"""GetObject and HeadObject.

Must not know: how the engine stores bytes, how the transport sends them.
Metadata that is in memory is read on the loop; what would wait for the disk moves to a thread.
Invariants:
* HEAD answers with the very headers of the GET (RFC 9110 section 9.3.2).
* Checksums of the whole object go only with the whole object, those of a part with that part: SDKs verify what they
  get.
* Whatever happens after the engine's reader was opened, it is closed once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

from cordwood.engine import ObjectInfo, ObjectReader
from cordwood.engine import errors as engine_errors
from cordwood.server.bridge import Bridge
from cordwood.server.buffers import Buffers
from cordwood.server.encryption import DataKey
from cordwood.server.handlers.conditions import if_range_holds, parse_range, read_conditions, version_text
from cordwood.server.handlers.describe import OVERRIDES, checksum_members, object_members, override_members
from cordwood.server.handlers.encryption import (
    CUSTOMER_MEMBERS,
    check_read_headers,
    key_for,
    key_members,
    part_checksums,
    plain_checksums,
    unlock,
)
from cordwood.server.handlers.lifecycle import expiration_member, has_lifecycle
from cordwood.server.handlers.locking import lock_members
from cordwood.server.handlers.request import Request, handles
from cordwood.server.handlers.tagging import TAGS
from cordwood.server.wire.errors import s3_error
from cordwood.server.wire.http1 import render_fields
from cordwood.server.wire.interpret import respond
from cordwood.server.wire.message import Response

_TAKES = (
    "IfMatch IfNoneMatch IfModifiedSince IfUnmodifiedSince Range VersionId PartNumber ChecksumMode "
    f"{OVERRIDES} {CUSTOMER_MEMBERS}"
)

_AT_ONCE_BYTES = 64 << 10  # a range up to this size is read on the loop when it is in memory


@handles("GetObject", _TAKES)
async def get_object(request: Request) -> Response:
    check_read_headers(request)
    try:
        try:
            reader, is_partial = _open(request, wait=False)
        except engine_errors.WouldBlock:
            reader, is_partial = await request.service.bridge.run(lambda: _open(request))
    except engine_errors.NotModified as error:
        return not_modified(error.info, request)
    return _answer(request, reader, is_partial=is_partial)


def get_object_at_once(request: Request) -> Response | None:
    """What `AT_ONCE` says."""
    if not _is_plain(request):
        return None
    found = request.service.store.look_up(*request.target, want_body=True, wait=False)
    body = found.inline
    if body is None:
        return _answer(request, request.service.store.reader(found), is_partial=False)
    fields = _plain_fields(request, found.info, found.memo)
    return Response(200, body=body, fields=fields) if fields is not None else None


def _answer(request: Request, reader: ObjectReader, *, is_partial: bool) -> Response:
    try:
        request.confirm(reader.info)
        key = unlock(request, reader)
        members, status = _members(reader.info, reader, request, key, is_partial=is_partial)
        response = respond(request.operation, members, status=status)
        body = reader.inline
        if body is None and reader.length <= _AT_ONCE_BYTES and not reader.info.overhead:
            body = reader.read_cached()
        if body is not None:
            response.body = body
            reader.close()
        else:
            response.headers.append(("content-length", str(reader.length)))
            response.on_done = reader.close
            if request.is_tls or key is not None:
                response.stream = _stream(request.service.bridge, request.service.buffers, reader)
            else:
                response.spans = reader.spans()
    except BaseException:
        reader.close()
        raise
    return response


@handles("HeadObject", _TAKES)
async def head_object(request: Request) -> Response:
    check_read_headers(request)
    try:
        try:
            return _head(request, wait=False)
        except engine_errors.WouldBlock:
            return await request.service.bridge.run(lambda: _head(request))
    except engine_errors.NotModified as error:
        return not_modified(error.info, request)


def head_object_at_once(request: Request) -> Response | None:
    """What `AT_ONCE` says."""
    if not _is_plain(request):
        return None
    found = request.service.store.look_up(*request.target, want_body=False, wait=False)
    fields = _plain_fields(request, found.info, found.memo)
    return Response(200, fields=fields) if fields is not None else None


def _head(request: Request, *, wait: bool = True) -> Response:
    params = request.params
    if "Range" in params or "PartNumber" in params:
        reader, is_partial = _open(request, wait=wait)
        with reader:
            request.confirm(reader.info)
            key = key_for(request, reader.info)
            members, status = _members(reader.info, reader, request, key, is_partial=is_partial)
            members["ContentLength"] = reader.length
            return respond(request.operation, members, status=status)
    version = conditions = None
    if params:
        version, conditions = version_text(params), read_conditions(params)
    info = request.service.store.head(*request.target, version_id=version, conditions=conditions, wait=wait)
    request.confirm(info)
    members, status = _members(info, None, request, key_for(request, info))
    members["ContentLength"] = info.size
    return respond(request.operation, members, status=status)


def _is_plain(request: Request) -> bool:
    """Is all of the newest version asked for, with no more than its checksum, as SDKs ask by default?"""
    check_read_headers(request)
    params = request.params
    return not params or (len(params) == 1 and "ChecksumMode" in params)


def _plain_fields(request: Request, info: ObjectInfo, memo: dict[object, Any] | None) -> bytes | None:
    """The header fields of the answer to a plain request, made once for each state of an object; None where they do not
    depend on that alone."""
    if info.attrs or info.overhead or has_lifecycle(request):
        return None
    form = (request.has_versioning, bool(request.params))
    fields: bytes | None = memo.get(form) if memo is not None else None
    if fields is None:
        members, _ = _members(info, None, request, None)
        members["ContentLength"] = info.size
        fields = render_fields(respond(request.operation, members).headers).encode()
        if memo is not None:
            memo[form] = fields
    return fields


AT_ONCE: Final = {"GetObject": get_object_at_once, "HeadObject": head_object_at_once}
"""Operations whose plain requests are answered without waiting for the disk, else WouldBlock is raised. None: it takes
the handler."""


def not_modified(info: ObjectInfo, request: Request) -> Response:
    """304 with the headers that RFC 9110 section 15.4.5 wants."""
    headers = [("etag", f'"{info.etag}"')]
    members = respond(request.operation, {"LastModified": info.modified_ms}).headers
    headers.extend(members)
    headers.extend(
        (name, info.headers[name]) for name in ("cache-control", "expires") if name in info.headers
    )
    if request.has_versioning:
        headers.append(("x-amz-version-id", info.version_id))
    return Response(304, headers, body=None)


def _open(request: Request, *, wait: bool = True) -> tuple[ObjectReader, bool]:
    """The reader of what was asked for, and whether that was a part: then it is 206, even if it is all there is."""
    params = request.params
    store = request.service.store
    if not params:  # all of the newest version, as nearly every request asks
        return store.get(*request.target, wait=wait), False
    version = version_text(params)
    conditions = read_conditions(params)
    part_number = params.get("PartNumber")
    range_text = params.get("Range")
    byte_range = None
    if range_text is not None:
        if part_number is not None:
            raise s3_error(
                "InvalidRequest", "Cannot specify both Range header and partNumber query parameter"
            )
        byte_range = parse_range(range_text)
        if_range = request.head.headers.get("if-range")
        if byte_range is not None and if_range is not None:
            info = store.head(request.bucket, request.key, version_id=version, wait=wait)
            if not if_range_holds(if_range, info):
                byte_range = None
    if part_number is not None and not 1 <= part_number <= 10_000:
        raise s3_error(
            "InvalidArgument",
            "Part number must be an integer between 1 and 10000, inclusive",
            argument_name="partNumber",
            argument_value=part_number,
        )

    def opened(byte_range: tuple[int | None, int | None] | None) -> ObjectReader:
        return store.get(
            request.bucket,
            request.key,
            version_id=version,
            conditions=conditions,
            range=byte_range,
            part_number=part_number,
            wait=wait,
        )

    try:
        reader = opened(byte_range)
    except engine_errors.InvalidRange as error:
        if error.size or byte_range is None or byte_range[0] is not None or not byte_range[1]:
            raise
        # The last bytes of an object without any are, for AWS, the whole of it.
        reader = opened(None)
    return reader, (byte_range is not None or part_number is not None) and reader.length > 0


def _members(
    info: ObjectInfo,
    reader: ObjectReader | None,
    request: Request,
    key: DataKey | None,
    *,
    is_partial: bool = False,
) -> tuple[dict[str, Any], int]:
    members = object_members(info, request)
    expiration = expiration_member(request, info)
    if expiration:
        members.update(expiration)
    if key is not None:
        members.update(key_members(request, key))
    if info.attrs:
        members.update(lock_members(info.attrs))
        if TAGS in info.attrs:
            members["TagCount"] = len(info.attrs[TAGS])
    status = 200
    if reader is not None and is_partial:
        status = 206
        members["ContentRange"] = f"bytes {reader.start}-{reader.start + reader.length - 1}/{info.size}"
    if request.params:
        _add_what_was_asked_for(members, info, reader, request, key)
    return members, status


def _add_what_was_asked_for(
    members: dict[str, Any],
    info: ObjectInfo,
    reader: ObjectReader | None,
    request: Request,
    key: DataKey | None,
) -> None:
    params = request.params
    part_number = params.get("PartNumber")
    if part_number is not None and info.parts_count:
        members["PartsCount"] = info.parts_count
    if "ChecksumMode" in params:
        if part_number is not None and info.parts_count:
            assert reader is not None
            part = reader.part_sizes()[part_number - 1]
            members.update(checksum_members(part_checksums(part, key), info.checksum_type))
        elif reader is None or reader.length == info.size:
            members.update(checksum_members(plain_checksums(info, key), info.checksum_type))
    override_members(members, request)


async def _stream(bridge: Bridge, buffers: Buffers, reader: ObjectReader) -> AsyncIterator[bytes]:
    """Blocks for a connection whose bytes must pass through us. While one is sent, a thread makes the next, unless
    there is a crowd: then each holds one block, and few are made at a time."""
    blocks = iter(reader)
    if not buffers.borrow():
        while True:
            async with buffers.making:
                block = await bridge.run(next, blocks, None)
            if block is None:
                return
            yield block
            del block  # or there would be two
    job = bridge.submit(next, blocks, None)
    try:
        while (block := await bridge.wait(job)) is not None:
            job = bridge.submit(next, blocks, None)
            yield block
            del block
    finally:
        await bridge.join(job)
        buffers.repay()
