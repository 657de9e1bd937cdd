"""The attributes of an object that a request writes: whose it is, its tags, its lock.

Must not know: how the object's bytes arrive.
Invariant: every way to write an object (PUT, copy, multipart upload) asks here, so none forgets a header.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cordwood.server.encryption import ENVELOPE
from cordwood.server.gate import SHARED
from cordwood.server.handlers.acls import object_attrs
from cordwood.server.handlers.annotations import START as ANNOTATION
from cordwood.server.handlers.grants import PERMISSIONS
from cordwood.server.handlers.locking import HEADERS, HOLD, RETENTION, lock_attrs
from cordwood.server.handlers.request import Request
from cordwood.server.handlers.tagging import TAGS, tag_attrs

# The members that give an object attributes, in a bucket where only they can.
_ASKING: Final = frozenset(("Tagging", "ACL", *PERMISSIONS, *HEADERS.split()))

# What belongs to one version in one bucket, and never goes along with a copy.
_NOT_COPIED: Final = frozenset(("owner", "acl", "renamed", RETENTION, HOLD, ENVELOPE))


def new_attrs(request: Request) -> dict[str, Any]:
    """The attributes that the headers of a write give its object; usually none."""
    info = request.bucket_info
    if info is not None and SHARED not in info.attrs and _ASKING.isdisjoint(request.params):
        return {}
    return {**object_attrs(request), **tag_attrs(request.params), **lock_attrs(request)}


def copied_attrs(request: Request, original: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a copy: its own lock and access, and the source's tags unless others are given."""
    kept = {name: value for name, value in original.items() if name not in _NOT_COPIED}
    if request.params.get("AnnotationDirective") == "EXCLUDE":
        kept = {name: value for name, value in kept.items() if not name.startswith(ANNOTATION)}
    given = new_attrs(request)
    if request.params.get("TaggingDirective", "COPY") == "COPY":
        given.pop(TAGS, None)
    else:
        kept.pop(TAGS, None)
    return {**kept, **given}
