"""Object lock as a rule: what keeps a version from being removed, and which changes of that are allowed.

Must not know: where a lock is kept, requests, who asks. Who may bypass GOVERNANCE is for the caller to know.

Invariants:
* A version whose lock holds is never removed; a COMPLIANCE retention never becomes shorter or weaker by any argument.
* "Now" is the store's own clock, which only goes forward: setting the machine's clock back ends no retention later, and
  what has ended once does not come back.

The attributes that carry it: of an object `retention` {"mode": "GOVERNANCE" or "COMPLIANCE", "until_ms": int} and
`hold` True; of a bucket `object_lock`, {} or the default for new versions {"mode": ..., "days": int}.
Source: "Locking objects with Object Lock", Amazon S3 User Guide.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from cordwood.engine.errors import Corrupt, InvalidArgument

RETENTION = "retention"
HOLD = "hold"
OBJECT_LOCK = "object_lock"
MODES = ("", "GOVERNANCE", "COMPLIANCE")
DAY_MS = 86_400_000
_UNTIL_MAX = (1 << 63) - 1


class Lock(NamedTuple):
    """`mode` is an index into MODES; `until_ms` is 0 without one."""

    mode: int = 0
    hold: bool = False
    until_ms: int = 0


OPEN = Lock()


def lock_of(attrs: Mapping[str, Any]) -> Lock:
    """The lock in a version's attributes. What is no lock by `check` is none."""
    if RETENTION not in attrs and HOLD not in attrs:
        return OPEN
    try:
        check(attrs)
    except InvalidArgument:
        return OPEN
    retention = attrs.get(RETENTION)
    hold = attrs.get(HOLD) is True
    if retention is None:
        return Lock(0, hold, 0)
    return Lock(MODES.index(retention["mode"]), hold, retention["until_ms"])


def check(attrs: Mapping[str, Any]) -> None:
    """InvalidArgument for lock attributes that nothing could enforce."""
    if not isinstance(attrs.get(HOLD), bool | None):
        raise InvalidArgument(f"attribute {HOLD!r} must be True, False or absent")
    retention = attrs.get(RETENTION)
    if retention is None:
        return
    if not isinstance(retention, Mapping) or retention.get("mode") not in MODES[1:]:
        raise InvalidArgument(f"attribute {RETENTION!r} must have a mode, GOVERNANCE or COMPLIANCE")
    until_ms = retention.get("until_ms")
    if type(until_ms) is not int or not 0 < until_ms <= _UNTIL_MAX:
        raise InvalidArgument(f"attribute {RETENTION!r} must have until_ms, in Unix milliseconds")


def unlocked(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes without a lock: what a copy takes along."""
    return {name: value for name, value in attrs.items() if name not in (RETENTION, HOLD)}


def holds(lock: Lock, now_ms: int, *, bypass: bool) -> bool:
    """Whether the lock forbids to remove the version now. `bypass` lifts GOVERNANCE, nothing else."""
    if lock.hold:
        return True
    if lock.mode == 0 or lock.until_ms <= now_ms:
        return False
    return MODES[lock.mode] == "COMPLIANCE" or not bypass


def may_become(old: Lock, new: Lock, now_ms: int, *, bypass: bool) -> bool:
    """Whether a retention may be replaced: always by a longer one of its mode. A legal hold comes and goes freely."""
    if old.mode == 0 or old.until_ms <= now_ms:
        return True
    if new.mode == old.mode and new.until_ms >= old.until_ms:
        return True
    return MODES[old.mode] == "GOVERNANCE" and bypass


def with_default(attrs: Mapping[str, Any], bucket_attrs: Mapping[str, Any], now_ms: int) -> dict[str, Any]:
    """The attributes of a new version in a bucket: with its default retention, unless they name one."""
    default = bucket_attrs.get(OBJECT_LOCK)
    if not default or "mode" not in default or RETENTION in attrs:
        return dict(attrs)
    if default["mode"] not in MODES[1:] or type(default.get("days")) is not int:
        raise Corrupt(f"the bucket's default retention {default!r} cannot be read; set it anew")
    until_ms = now_ms + default["days"] * DAY_MS
    return {**attrs, RETENTION: {"mode": default["mode"], "until_ms": until_ms}}
