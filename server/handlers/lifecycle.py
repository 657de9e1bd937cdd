"""Lifecycle configuration of a bucket, and the x-amz-expiration header.

Must not know: when and how rules are carried out.
Invariants: what is stored can be carried out in full (transitions to other storage classes cannot: NotImplemented);
every rule has an id.

Source: PutBucketLifecycleConfiguration, Amazon S3 API Reference.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from cordwood.engine import ObjectInfo, UploadInfo
from cordwood.server.handlers.ingest import receive_structure
from cordwood.server.handlers.request import Request, handles
from cordwood.server.handlers.tagging import MAX_OBJECT_TAGS, TAGS, checked
from cordwood.server.lifecycle import DAY_MS, LIFECYCLE, after, compiled, expiration
from cordwood.server.wire.errors import S3Error, s3_error
from cordwood.server.wire.interpret import http_date, respond
from cordwood.server.wire.message import Response
from cordwood.server.wire.xml import malformed

_LEAST_SIZE: Final = "transition_default_minimum_object_size"
MAX_RULES: Final = 1000
MAX_ID_CHARACTERS: Final = 255
MAX_NEWER_VERSIONS: Final = 100
_ACTIONS: Final = (
    "Expiration",
    "NoncurrentVersionExpiration",
    "AbortIncompleteMultipartUpload",
    "Transitions",
    "NoncurrentVersionTransitions",
)


def has_lifecycle(request: Request) -> bool:
    return request.bucket_info is not None and LIFECYCLE in request.bucket_info.attrs


def expiration_member(request: Request, info: ObjectInfo) -> dict[str, str]:
    """The Expiration member of an answer about a current version; empty when no rule will end it."""
    configuration = request.bucket_info.attrs.get(LIFECYCLE) if request.bucket_info is not None else None
    if configuration is None or not info.is_latest:
        return {}
    found = expiration(configuration, info.key, info.size, info.modified_ms, info.attrs.get(TAGS, {}))
    if found is None:
        return {}
    end_ms, rule_id = found
    return {"Expiration": f'expiry-date="{http_date(end_ms)}", rule-id="{quote(rule_id, safe="")}"'}


def abort_members(request: Request, upload: UploadInfo) -> dict[str, Any]:
    """AbortDate and AbortRuleId of an answer about an open upload; empty when no rule will abort it."""
    configuration = request.bucket_info.attrs.get(LIFECYCLE) if request.bucket_info is not None else None
    if configuration is None:
        return {}
    found = min(
        (
            (after(upload.initiated_ms, rule.abort_days), rule.id)
            for rule in compiled(configuration)
            if rule.abort_days is not None and upload.key.startswith(rule.prefix)
        ),
        default=None,
    )
    return {} if found is None else {"AbortDate": found[0], "AbortRuleId": found[1]}


@handles("GetBucketLifecycleConfiguration")
async def get_bucket_lifecycle_configuration(request: Request) -> Response:
    assert request.bucket_info is not None
    configuration = request.bucket_info.attrs.get(LIFECYCLE)
    if configuration is None:
        raise s3_error("NoSuchLifecycleConfiguration", bucket_name=request.bucket)
    return respond(
        request.operation,
        {"Rules": configuration["rules"], "TransitionDefaultMinimumObjectSize": _least_size(configuration)},
    )


@handles("DeleteBucketLifecycle")
async def delete_bucket_lifecycle(request: Request) -> Response:
    await _set(request, None)
    return respond(request.operation, {})


@handles(
    "PutBucketLifecycleConfiguration",
    "LifecycleConfiguration TransitionDefaultMinimumObjectSize",
    has_body=True,
)
async def put_bucket_lifecycle_configuration(request: Request) -> Response:
    rules = (await receive_structure(request)).get("Rules")
    if not rules or len(rules) > MAX_RULES:
        raise malformed(f"a configuration has 1 to {MAX_RULES} rules")
    for rule in rules:
        _check(rule)
    ids = [rule.setdefault("ID", secrets.token_urlsafe(36)) for rule in rules]
    if len(set(ids)) < len(ids):
        raise _bad("Rule ID must be unique. Found same ID for more than one rule")
    configuration: dict[str, Any] = {"rules": rules}
    if "TransitionDefaultMinimumObjectSize" in request.params:
        configuration[_LEAST_SIZE] = request.params["TransitionDefaultMinimumObjectSize"]
    await _set(request, configuration)
    return respond(request.operation, {"TransitionDefaultMinimumObjectSize": _least_size(configuration)})


def _least_size(configuration: Mapping[str, Any]) -> str:
    """Which objects a transition leaves alone by default. There are no transitions, so either value is kept."""
    value: str = configuration.get(_LEAST_SIZE, "all_storage_classes_128K")
    return value


async def _set(request: Request, configuration: dict[str, Any] | None) -> None:
    store = request.service.store
    await request.service.bridge.run(
        lambda: store.update_bucket(request.bucket, attrs={LIFECYCLE: configuration})
    )


def _bad(message: str) -> S3Error:
    return s3_error("InvalidArgument", message)


def _invalid(message: str) -> S3Error:
    return s3_error("InvalidRequest", message)


def _check(rule: dict[str, Any]) -> None:
    """Refuses what AWS refuses, and turns dates into what is stored."""
    if len(rule.get("ID", "")) > MAX_ID_CHARACTERS:
        raise _bad(f"ID length should not exceed allowed limit of {MAX_ID_CHARACTERS}")
    if not rule.get("ID", "x"):
        del rule["ID"]
    if ("Filter" in rule) == ("Prefix" in rule):
        raise malformed("a rule has either a Filter or a Prefix")
    if not any(action in rule for action in _ACTIONS):
        raise _invalid("At least one action needs to be specified in a rule")
    tags, has_size = _check_filter(rule.get("Filter", {}))
    if "Expiration" in rule:
        _check_expiration(rule["Expiration"], has_tags=bool(tags), has_size=has_size)
    if "NoncurrentVersionExpiration" in rule:
        _check_noncurrent(rule["NoncurrentVersionExpiration"])
    if "AbortIncompleteMultipartUpload" in rule:
        if tags or has_size:
            raise _invalid("AbortIncompleteMultipartUpload cannot be specified with Tags or ObjectSize.")
        days = rule["AbortIncompleteMultipartUpload"].get("DaysAfterInitiation")
        if days is None:
            raise malformed("AbortIncompleteMultipartUpload needs DaysAfterInitiation")
        _check_days(days, "DaysAfterInitiation", "AbortIncompleteMultipartUpload")
    for transition in rule.get("Transitions", ()):
        if "Date" in transition:
            _midnight_ms(transition["Date"])
    if "Transitions" in rule or "NoncurrentVersionTransitions" in rule:
        raise s3_error("NotImplemented", "Transitions to other storage classes are not implemented.")


def _check_filter(chosen: dict[str, Any]) -> tuple[dict[str, str], bool]:
    """The tags, and whether there is a bound on the size."""
    both = chosen.get("And")
    if len(chosen) > 1 and (both is not None or "Tag" in chosen):
        raise malformed("a Filter has one condition, or several within And")
    inner = chosen if both is None else both
    pairs = [*inner.get("Tags", ()), *([inner["Tag"]] if "Tag" in inner else [])]
    tags = checked(((tag["Key"], tag["Value"]) for tag in pairs), MAX_OBJECT_TAGS)
    greater, less = inner.get("ObjectSizeGreaterThan"), inner.get("ObjectSizeLessThan")
    if any(size is not None and size < 0 for size in (greater, less)):
        raise _bad("'ObjectSize' must not be negative")
    if greater is not None and less is not None and greater >= less:
        raise _invalid("'ObjectSizeLessThan' has to be a value greater than 'ObjectSizeGreaterThan'")
    return tags, greater is not None or less is not None


def _check_expiration(document: dict[str, Any], *, has_tags: bool, has_size: bool) -> None:
    if len(document) != 1:
        raise malformed("an Expiration has one of Days, Date and ExpiredObjectDeleteMarker")
    if "Days" in document:
        _check_days(document["Days"], "Days", "Expiration")
    if "Date" in document:
        document["Date"] = _midnight_ms(document["Date"])
    if "ExpiredObjectDeleteMarker" in document and (has_tags or has_size):
        raise _invalid("ExpiredObjectDeleteMarker cannot be specified with Tags or ObjectSize.")


def _check_noncurrent(document: dict[str, Any]) -> None:
    if "NoncurrentDays" not in document:
        raise malformed("NoncurrentVersionExpiration needs NoncurrentDays")
    _check_days(document["NoncurrentDays"], "NoncurrentDays", "NoncurrentVersionExpiration")
    newer = document.get("NewerNoncurrentVersions")
    if newer is not None and not 1 <= newer <= MAX_NEWER_VERSIONS:
        raise _bad(
            "'NewerNoncurrentVersions' for NoncurrentVersionExpiration action must be a positive integer of at most "
            f"{MAX_NEWER_VERSIONS}"
        )


def _check_days(days: int, name: str, action: str) -> None:
    if not 0 < days < 1 << 31:
        raise _bad(f"'{name}' for {action} action must be a positive integer")


def _midnight_ms(date_s: float) -> int:
    date_ms = int(date_s * 1000)
    if date_ms % DAY_MS:
        raise _bad("'Date' must be at midnight GMT")
    return date_ms
