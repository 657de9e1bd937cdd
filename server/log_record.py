"""Server access logs: what a record says, where it goes, what its object is called.

Must not know: files, the store, trio, how a record is kept until it is delivered (log_spool.py).
Invariants:
* A record is one line: no field can end it or pretend to be another, whatever a client sent.
* No signature and no token is written: of a presigned URL they are the credential.

Source: "Amazon S3 server access log format" and "Logging requests with server access logging", Amazon S3 User Guide.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

import msgspec

from cordwood.server.acl import LOG_DELIVERY, loaded
from cordwood.server.policy import Principal, cached, evaluate
from cordwood.server.wire.resource_types import RESOURCE_TYPES, resource_type

LOGGING: Final = "logging"
"""The attribute of a bucket whose requests are logged: `Destination.dumped`."""

SERVICE: Final = Principal(service="logging.s3.amazonaws.com")
_ENFORCED: Final = "BucketOwnerEnforced"

SIMPLE: Final = "SimplePrefix"
EVENT_TIME: Final = "EventTime"
DELIVERY_TIME: Final = "DeliveryTime"


@dataclass(frozen=True, slots=True)
class Destination:
    """Where the records of a bucket go. `key_format` is SIMPLE, or the date source of partitioned keys."""

    bucket: str
    prefix: str
    key_format: str = SIMPLE
    grants: tuple[tuple[str, str], ...] = ()

    def dumped(self) -> dict[str, Any]:
        return {
            "bucket": self.bucket,
            "prefix": self.prefix,
            "format": self.key_format,
            "grants": [list(grant) for grant in self.grants],
        }

    @staticmethod
    def loaded(stored: Mapping[str, Any]) -> Destination:
        grants = tuple((str(grantee), str(permission)) for grantee, permission in stored["grants"])
        return Destination(stored["bucket"], stored["prefix"], stored["format"], grants)

    def object_key(self, *, account: str, region: str, source: str, unique: str, time_s: float) -> str:
        """The key of a log object. `time_s`: of its delivery, or of the day of its records for EVENT_TIME."""
        moment = datetime.fromtimestamp(time_s, UTC)
        if self.key_format == EVENT_TIME:
            moment = moment.replace(hour=0, minute=0, second=0)
        name = f"{moment:%Y-%m-%d-%H-%M-%S}-{unique}"
        if self.key_format == SIMPLE:
            return f"{self.prefix}{name}"
        return f"{self.prefix}{account}/{region}/{source}/{moment:%Y/%m/%d}/{name}"


def may_deliver(
    target: Mapping[str, Any], bucket: str, key: str, *, source: str, source_owner_id: str
) -> bool:
    """May the log service put `key` into the bucket with the attributes `target`?

    By the bucket's policy, which names the service; or, where lists are not switched off, by the grants of the log
    delivery group that AWS used before.
    """
    text = target.get("policy")
    if text is not None:
        keys = {
            "aws:sourcearn": (f"arn:aws:s3:::{source}",),
            "aws:sourceaccount": (source_owner_id,),
            "aws:principalisawsservice": ("true",),
            "aws:principalservicename": (SERVICE.service,),
        }
        verdict = evaluate(cached(text), SERVICE, "s3:PutObject", f"{bucket}/{key}", keys.get)
        if verdict != "none":
            return verdict == "allow"
    if target.get("ownership") == _ENFORCED:
        return False
    granted = {grant.permission for grant in loaded(target.get("acl", ())) if grant.grantee == LOG_DELIVERY}
    return "FULL_CONTROL" in granted or {"WRITE", "READ_ACP"} <= granted


class Entry(msgspec.Struct, array_like=True, frozen=True):
    """One record and where it goes. `key_format` and `grants` as in Destination."""

    bucket: str
    prefix: str
    key_format: str
    grants: tuple[tuple[str, str], ...]
    source: str
    source_owner_id: str
    time_ms: int
    line: str


# --- records -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Record:
    """One request, field by field; "" where AWS writes a dash."""

    owner_id: str
    bucket: str
    time_s: float
    address: str
    requester: str
    request_id: str
    operation: str
    key: str
    request_line: str
    status: int | None
    error_code: str = ""
    bytes_sent: int = 0
    object_size: int | None = None
    total_ms: int | None = 0
    turnaround_ms: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    version_id: str = ""
    host_id: str = ""
    signature_version: str = ""
    authentication: str = ""
    cipher: str = ""
    tls_version: str = ""
    is_acl_required: bool = False

    def line(self) -> str:
        """The record as AWS writes it, without the line end. The last field, the region that a request came from, is
        known of requests from inside AWS only."""
        moment = datetime.fromtimestamp(self.time_s, UTC)
        fields = (
            _word(self.owner_id),
            _word(self.bucket),
            f"[{moment:%d/%b/%Y:%H:%M:%S} +0000]",
            _word(self.address),
            _word(self.requester),
            _word(self.request_id),
            _word(self.operation),
            quote(self.key, safe="/*") or "-",
            _quoted(_SECRETS.sub(r"\1...", self.request_line)),
            _number(self.status),
            _word(self.error_code),
            str(self.bytes_sent or "-"),
            _number(self.object_size),
            _number(self.total_ms),
            _number(self.turnaround_ms),
            _quoted(_SECRETS.sub(r"\1...", self.headers.get("referer", ""))),
            _quoted(self.headers.get("user-agent", "")),
            _word(self.version_id),
            _word(self.host_id),
            _word(self.signature_version),
            _word(self.cipher),
            _word(self.authentication),
            _word(self.headers.get("host", "")),
            _word(self.tls_version),
            "-",
            "Yes" if self.is_acl_required else "-",
            "-",
        )
        return " ".join(fields)


def entry_of(bucket: str, attrs: Mapping[str, Any], record: Record) -> Entry:
    """What is kept of a record about a bucket that is logged."""
    destination = Destination.loaded(attrs[LOGGING])
    return Entry(
        destination.bucket,
        destination.prefix,
        destination.key_format,
        destination.grants,
        bucket,
        record.owner_id,
        int(record.time_s * 1000),
        record.line(),
    )


_SECRETS: Final = re.compile(r"((?:x-amz-signature|x-amz-security-token|signature)=)[^& ]*", re.IGNORECASE)
_UNSAFE: Final = re.compile(r"[\x00-\x20\x7f]")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


def _word(text: str) -> str:
    """A field without quotes ends at the next space."""
    return _UNSAFE.sub(lambda match: f"%{ord(match.group()):02X}", text).replace('"', "%22") or "-"


def _quoted(text: str) -> str:
    safe = _CONTROL.sub(lambda match: f"%{ord(match.group()):02X}", text).replace('"', "%22")
    return f'"{safe or "-"}"'


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


# --- the name of an operation --------------------------------------------------------------------------------

_NAMED: Final = {
    "CopyObject": "REST.COPY.OBJECT",
    "UploadPartCopy": "REST.COPY.PART",
    "UploadPart": "REST.PUT.PART",
    "CompleteMultipartUpload": "REST.POST.UPLOAD",
    "AbortMultipartUpload": "REST.DELETE.UPLOAD",
    "ListParts": "REST.GET.UPLOAD",
    "RestoreObject": "REST.POST.OBJECT_RESTORE",
    "SelectObjectContent": "REST.POST.OBJECT_SELECT_CONTENT",
}


def operation_name(
    operation: str,
    method: str,
    depth: str,
    literals: tuple[tuple[str, str], ...],
    *,
    is_website: bool = False,
) -> str:
    """AWS's name for what was asked: REST.GET.OBJECT, REST.PUT.LIFECYCLE, WEBSITE.GET.OBJECT, ..."""
    if is_website:
        return f"WEBSITE.{method}.OBJECT"
    if operation in _NAMED:
        return _NAMED[operation]
    for name, _ in literals:
        if name in RESOURCE_TYPES:
            return f"REST.{method}.{resource_type(name, depth)}"
    return f"REST.{method}.{depth.upper()}"
