"""The condition keys of a request, as bucket policies ask for them.

Must not know: policies, how an answer is used.
Invariant: a value comes from what was verified or received (identity, signature, head, peer), never from a header that
a client could use to pretend: there is no X-Forwarded-For here.

Source: "Actions, resources, and condition keys for Amazon S3", Service Authorization Reference; "AWS global condition
context keys", IAM User Guide.
"""

from __future__ import annotations

import time
from calendar import timegm
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final
from urllib.parse import parse_qsl, unquote

from cordwood.server.access import principal_of
from cordwood.server.wire.message import PeerInfo, RequestHead
from cordwood.server.wire.sigv4 import Identity

_QUERY: Final = {
    "s3:prefix": "prefix",
    "s3:delimiter": "delimiter",
    "s3:max-keys": "max-keys",
    "s3:versionid": "versionId",
}
_HEADERS: Final = {
    "aws:referer": "referer",
    "aws:useragent": "user-agent",
    "s3:if-match": "if-match",
    "s3:if-none-match": "if-none-match",
    "s3:object-lock-mode": "x-amz-object-lock-mode",
    "s3:object-lock-retain-until-date": "x-amz-object-lock-retain-until-date",
    "s3:object-lock-legal-hold": "x-amz-object-lock-legal-hold",
}
_EXISTING: Final = "s3:existingobjecttag/"
_OF_THE_BUCKET: Final = ("aws:resourcetag/", "s3:buckettag/")
_REQUESTED: Final = "s3:requestobjecttag/"


class ConditionKeys:
    """A lookup over one request. `override` answers first: for what one request asks beside its own operation."""

    def __init__(
        self,
        head: RequestHead,
        identity: Identity,
        peer: PeerInfo,
        *,
        region: str,
        owner_id: str,
        override: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._head = head
        self._identity = identity
        self._peer = peer
        self._region = region
        self._owner_id = owner_id
        self._override = override or {}
        self.existing_tags: Mapping[str, str] = {}
        self.bucket_tags: Mapping[str, str] = {}
        """Those that count: none, unless the bucket has attribute-based access control enabled."""
        self.request_tags: Mapping[str, str] | None = None
        """None: those of the x-amz-tagging header."""
        self.of_upload: Mapping[str, str] = {}
        """Headers about encryption of the upload that a part is for; those of the part itself say nothing."""

    def __call__(self, key: str) -> Sequence[str] | None:
        if key in self._override:
            return self._override[key]
        if key in _QUERY:
            value = self._head.parameter(_QUERY[key])
            return None if value is None else (value,)
        if key in _HEADERS:
            value = self._head.headers.get(_HEADERS[key])
            return None if value is None else (value,)
        if key.startswith("s3:x-amz-"):
            return self._amz_header(key[3:])
        if key.startswith(_EXISTING):
            return _tag(self.existing_tags, key[len(_EXISTING) :])
        for prefix in _OF_THE_BUCKET:
            if key.startswith(prefix):
                return _tag(self.bucket_tags, key[len(prefix) :])
        if key.startswith(_REQUESTED):
            return _tag(self._requested_tags(), key[len(_REQUESTED) :])
        if key == "s3:requestobjecttagkeys":
            return tuple(self._requested_tags()) or None
        value = self._own(key)
        return None if value is None else (value,)

    def _amz_header(self, name: str) -> Sequence[str] | None:
        value = self.of_upload.get(name) or self._head.headers.get(name)
        if value is None:
            return None
        if name == "x-amz-copy-source":
            # The source may be written with and without a leading slash, and percent-encoded.
            value = unquote(value).removeprefix("/")
        return (value,)

    def _requested_tags(self) -> Mapping[str, str]:
        if self.request_tags is None:
            text = self._head.headers.get("x-amz-tagging", "")
            self.request_tags = dict(parse_qsl(text, keep_blank_values=True))
        return self.request_tags

    def _own(self, key: str) -> str | None:
        if key == "aws:sourceip":
            return self._peer.address
        if key == "aws:securetransport":
            return "true" if self._peer.is_tls else "false"
        if key == "aws:currenttime":
            return datetime.now(UTC).isoformat(timespec="seconds")
        if key == "aws:epochtime":
            return str(int(time.time()))
        if key == "aws:requestedregion":
            return self._region
        if key in ("aws:resourceaccount", "s3:resourceaccount"):
            return self._owner_id or None
        if key in ("s3:authtype", "s3:signatureversion", "s3:signatureage"):
            return self._signature(key)
        return self._caller(key)

    def _caller(self, key: str) -> str | None:
        identity = self._identity
        if identity.is_anonymous:
            return {"aws:principaltype": "Anonymous", "aws:principalaccount": "anonymous"}.get(key)
        session = identity.session
        if key == "aws:tokenissuetime":
            return None if session is None else datetime.fromtimestamp(session.issued_s, UTC).isoformat()
        is_role = session is not None and bool(session.role)
        if key == "aws:username":
            return None if is_role else identity.display_name
        if key == "aws:userid" and session is not None and is_role:
            return f"{session.role}:{session.name}"
        if key in ("aws:userid", "aws:principalaccount"):
            return identity.owner_id
        if key == "aws:principalarn":
            return principal_of(identity).role_arn
        if key == "aws:principaltype":
            return "AssumedRole" if is_role else "Account"
        if key in ("aws:viaawsservice", "aws:principalisawsservice"):
            return "false"
        return None

    def _signature(self, key: str) -> str | None:
        if self._identity.is_anonymous:
            return None
        query = {name.lower(): value for name, value in self._head.query}
        in_query = "x-amz-signature" in query or "signature" in query
        if key == "s3:authtype":
            if "authorization" not in self._head.headers and not in_query:
                return "POST"
            return "REST-QUERY-STRING" if in_query else "REST-HEADER"
        if key == "s3:signatureversion":
            return "AWS" if "signature" in query else "AWS4-HMAC-SHA256"
        stamp = query.get("x-amz-date") or self._head.headers.get("x-amz-date", "")
        try:
            signed_s = timegm(time.strptime(stamp, "%Y%m%dT%H%M%SZ"))
        except ValueError:
            return None
        return str(max(0, int((time.time() - signed_s) * 1000)))


def _tag(tags: Mapping[str, str], name: str) -> Sequence[str] | None:
    """Names of keys are compared in lower case in policies; the tag's own name is what follows the slash."""
    for key, value in tags.items():
        if key.lower() == name:
            return (value,)
    return None
