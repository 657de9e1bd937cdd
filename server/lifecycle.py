"""Lifecycle rules: which object, version, marker or upload they end, and when.

Must not know: stores, requests, who carries the rules out.
Invariants:
* A rule only ever speaks of what its whole filter matches; a filter by tag or size never matches a delete marker.
* With days of the usual length, an end by age falls on a midnight UTC, the next one after the age is reached (as AWS).

Rules are kept in the attribute `lifecycle` of a bucket: {"rules": the Rule elements, Date in Unix milliseconds}.
Source: "Lifecycle configuration elements", Amazon S3 User Guide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

LIFECYCLE: Final = "lifecycle"
DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class Rule:
    """One enabled rule. What is None is not part of it."""

    id: str
    prefix: str = ""
    tags: Mapping[str, str] | None = None
    greater_than: int | None = None
    less_than: int | None = None
    days: int | None = None
    date_ms: int | None = None
    ends_markers: bool = False
    noncurrent_days: int | None = None
    newer_to_keep: int = 0
    abort_days: int | None = None

    @property
    def has_filter_by_content(self) -> bool:
        return self.tags is not None or self.greater_than is not None or self.less_than is not None

    @property
    def ends_versions(self) -> bool:
        """Does it speak of objects at all, or only of uploads?"""
        ages = (self.days, self.date_ms, self.noncurrent_days)
        return self.ends_markers or any(age is not None for age in ages)

    def matches(self, key: str, size: int, tags: Callable[[], Mapping[str, str]]) -> bool:
        """`tags` is only asked where the rest of the filter matches: it may cost a read."""
        if not key.startswith(self.prefix):
            return False
        if self.greater_than is not None and size <= self.greater_than:
            return False
        if self.less_than is not None and size >= self.less_than:
            return False
        if not self.tags:
            return True
        found = tags()
        return all(found.get(name) == value for name, value in self.tags.items())

    def end_ms(self, modified_ms: int, day_ms: int = DAY_MS) -> int | None:
        """When a current version of that age ends; None when this rule ends none."""
        if self.date_ms is not None:
            return self.date_ms
        return after(modified_ms, self.days, day_ms) if self.days is not None else None


def after(start_ms: int, days: int, day_ms: int = DAY_MS) -> int:
    """So many days later, at the next midnight UTC. Days of another length (tests) are not rounded."""
    end_ms = start_ms + days * day_ms
    return -(-end_ms // DAY_MS) * DAY_MS if day_ms == DAY_MS else end_ms


def compiled(configuration: Mapping[str, Any]) -> list[Rule]:
    """The enabled rules of a bucket's attribute."""
    return [_rule(each) for each in configuration["rules"] if each["Status"] == "Enabled"]


def _rule(document: Mapping[str, Any]) -> Rule:
    chosen = document.get("Filter", {})
    chosen = chosen.get("And", chosen)
    pairs = [*chosen.get("Tags", ()), *([chosen["Tag"]] if "Tag" in chosen else [])]
    expiration = document.get("Expiration", {})
    noncurrent = document.get("NoncurrentVersionExpiration", {})
    abort = document.get("AbortIncompleteMultipartUpload", {})
    return Rule(
        document["ID"],
        chosen.get("Prefix", document.get("Prefix", "")),
        {tag["Key"]: tag["Value"] for tag in pairs} or None,
        chosen.get("ObjectSizeGreaterThan"),
        chosen.get("ObjectSizeLessThan"),
        expiration.get("Days"),
        expiration.get("Date"),
        bool(expiration.get("ExpiredObjectDeleteMarker")),
        noncurrent.get("NoncurrentDays"),
        noncurrent.get("NewerNoncurrentVersions", 0),
        abort.get("DaysAfterInitiation"),
    )


def expiration(
    configuration: Mapping[str, Any], key: str, size: int, modified_ms: int, tags: Mapping[str, str]
) -> tuple[int, str] | None:
    """When the current version ends, in Unix milliseconds, and by which rule: the first one that does."""
    ends = [
        (end_ms, rule.id)
        for rule in compiled(configuration)
        if (end_ms := rule.end_ms(modified_ms)) is not None and rule.matches(key, size, lambda: tags)
    ]
    return min(ends, default=None)
