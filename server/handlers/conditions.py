"""Conditional headers as the engine's Conditions, and HTTP ranges.

Must not know: how conditions are decided (the engine does that, inside the commit for writes).
Invariant: an ETag reaches the engine bare; `*` stays `*`; a header that cannot be read is ignored or refused as AWS
does, never half understood.

Sources: RFC 9110 sections 13 and 14; the conditional-request pages of the Amazon S3 User Guide.
"""

from __future__ import annotations

import re

from cordwood.engine import Conditions, ObjectInfo
from cordwood.server.wire.errors import s3_error
from cordwood.server.wire.interpret import Params, parse_http_date

# Answers to writes do not name this version; those to reads do.
NULL_VERSION = "null"

_ETAG = re.compile(r'\s*(?:W/)?(?:"([^"]*)"|([^",\s][^",]*?))\s*(?:,|$)')


def etags(text: str) -> tuple[str, ...]:
    """A list of entity tags; AWS and its SDKs also send them without quotes."""
    found = []
    position = 0
    while position < len(text):
        match = _ETAG.match(text, position)
        if match is None:
            break
        found.append(match.group(1) if match.group(1) is not None else match.group(2))
        position = match.end()
    return tuple(found)


def bare(etag: str) -> str:
    """One entity tag without quotes, as in a list of parts."""
    return etag.strip().strip('"')


def read_conditions(params: Params) -> Conditions | None:
    """If-Match, If-None-Match, If-Modified-Since and If-Unmodified-Since of GET and HEAD."""
    return _conditions(params, "")


def source_conditions(params: Params) -> Conditions | None:
    """The x-amz-copy-source-if-* family."""
    return _conditions(params, "CopySource")


def _conditions(params: Params, family: str) -> Conditions | None:
    match = params.get(f"{family}IfMatch")
    none_match = params.get(f"{family}IfNoneMatch")
    modified_s = params.get(f"{family}IfModifiedSince")
    unmodified_s = params.get(f"{family}IfUnmodifiedSince")
    if match is None and none_match is None and modified_s is None and unmodified_s is None:
        return None
    return Conditions(
        if_match=etags(match) if match is not None else (),
        if_none_match=etags(none_match) if none_match is not None else (),
        if_modified_since_s=modified_s,
        if_unmodified_since_s=unmodified_s,
    )


def write_conditions(params: Params) -> Conditions | None:
    """If-Match and If-None-Match of a write. An ETag in the latter goes beyond AWS, which takes only `*`."""
    match, none_match = params.get("IfMatch"), params.get("IfNoneMatch")
    if match is None and none_match is None:
        return None
    return Conditions(
        if_match=etags(match) if match is not None else (),
        if_none_match=etags(none_match) if none_match is not None else (),
    )


_VERSION_ID = re.compile(f"[0-9a-f]{{16}}|{NULL_VERSION}")


def version_text(params: Params) -> str | None:
    """The versionId parameter. AWS tells a version that is gone from a text that never was one."""
    value: str | None = params.get("VersionId")
    if value is not None and not is_version_id(value):
        raise s3_error(
            "InvalidArgument",
            "Invalid version id specified" if value else "Version id cannot be the empty string",
            argument_name="versionId",
            argument_value=value,
        )
    return value


def is_version_id(text: str) -> bool:
    """Has it the form of those that this server gives?"""
    return _VERSION_ID.fullmatch(text) is not None


_RANGE = re.compile(r"bytes=([0-9]*)-([0-9]*)\Z")


def parse_range(text: str) -> tuple[int | None, int | None] | None:
    """One byte range as (first, last), (first, None) or (None, suffix length).

    None when the header is to be ignored: another unit, a syntax error, last before first (RFC 9110 section 14.2), or
    several ranges (AWS then answers with the whole object).
    """
    match = _RANGE.match(text.strip())
    if match is None:
        return None
    first, last = match.groups()
    if not first and not last:
        return None
    if len(first) > 19 or len(last) > 19:
        # Beyond any object: keep the sense without the digits.
        first, last = first and str(min(int(first[:19]), 1 << 62)), last and str(1 << 62)
    if first and last and int(first) > int(last):
        return None
    return (int(first) if first else None, int(last) if last else None)


def if_range_holds(text: str, info: ObjectInfo) -> bool:
    """RFC 9110 section 13.1.5: a strong entity tag that matches, or the very date of the last modification."""
    text = text.strip()
    if text.startswith("W/"):
        return False
    if text.startswith('"'):
        return text.strip('"') == info.etag
    try:
        return parse_http_date(text) == info.modified_ms // 1000
    except ValueError:
        return text == info.etag
