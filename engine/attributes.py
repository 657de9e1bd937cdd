"""Changing the attributes of a version that exists: tags, locks, access lists. No new version, no new time.

Must not know: what the attributes mean, but for locks.

Theory: objects are immutable records, so a change is an ATTRS record of its own, with its own clock, that names the
version by that one's clock; it holds all attributes as they are from then on. The newest such record of a version wins,
and dies with the version.

Invariants:
* The merge is made from what was read before, and the commit refuses (Conflict, so it is tried again) if another
  change came between: none is lost.
* A lock is only ever changed as locks.py allows, decided inside the commit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from cordwood.engine import locks, namespace
from cordwood.engine.clock import milliseconds, tick
from cordwood.engine.commit import Decision
from cordwood.engine.errors import Conflict, DeleteMarkerFound, KeyNotFound, Locked, VersionNotFound
from cordwood.engine.format import AttrsHead, encoded_size
from cordwood.engine.index import Txn
from cordwood.engine.model import version_clock, version_id_of
from cordwood.engine.operations import (
    check_kept,
    check_lockable,
    current_row,
    find_version,
    lock_of_row,
    require_bucket,
    row_etag,
)
from cordwood.engine.rows import ObjectRow, RowFlag


class Touched(NamedTuple):
    """The version whose attributes were changed."""

    version_id: str
    size: int
    etag: str


@dataclass(slots=True)
class SetAttrs:
    """Gives a version (`clock`) the attributes `attrs`, if its last change is still the one of `seen` (0: none)."""

    bucket: str
    key: bytes
    version_id: str | None
    clock: int
    seen: int
    attrs: Mapping[str, Any]
    bypass: bool = False
    nested: bool = False
    frees: bool = False

    def __post_init__(self) -> None:
        check_kept((), self.attrs)
        locks.check(self.attrs)

    def size_hint(self) -> int:
        return 4096 + len(self.key) + encoded_size(self.attrs)

    def decide(self, decision: Decision) -> Touched:
        txn = decision.txn
        bucket = require_bucket(txn, self.bucket).head
        root = bucket.bucket
        row = require_version(txn, root, self.bucket, self.key, self.version_id)
        if row.clock != self.clock or seen_clock(txn, row) != self.seen:
            raise Conflict("the object was changed meanwhile; try again")
        check_lockable(self.attrs, bucket)
        now_ms = milliseconds(tick(decision.clock))
        if not locks.may_become(lock_of_row(txn, row), locks.lock_of(self.attrs), now_ms, bypass=self.bypass):
            raise Locked(self.bucket, self.key.decode(), version_id_of(row.clock, is_null=_is_null(row)))
        place = namespace.resolve(txn, root, self.key)
        assert place is not None
        decision.write(AttrsHead(root, *place, row.clock, dict(self.attrs)))
        return Touched(version_id_of(row.clock, is_null=_is_null(row)), row.size, row_etag(row))


def require_version(txn: Txn, root: int, bucket: str, key: bytes, version_id: str | None) -> ObjectRow:
    """The row of a version that is no delete marker. KeyNotFound, VersionNotFound, DeleteMarkerFound."""
    current = current_row(txn, root, key)
    if version_id is None:
        row = current
        if row is None:
            raise KeyNotFound(bucket, key.decode())
    else:
        row = find_version(txn, current, version_clock(version_id))
        if row is None:
            raise VersionNotFound(bucket, key.decode(), version_id)
    if row.flags & RowFlag.MARKER:
        marker = version_id_of(row.clock, is_null=_is_null(row))
        assert current is not None
        raise DeleteMarkerFound(bucket, key.decode(), marker, is_latest=row.clock == current.clock)
    return row


def seen_clock(txn: Txn, row: ObjectRow) -> int:
    """The clock of the last change of a version's attributes; 0 when there was none since it was written."""
    about = txn.attrs(row.clock) if row.flags & RowFlag.NOTED else None
    return about.clock if about is not None else 0


def _is_null(row: ObjectRow) -> bool:
    return bool(row.flags & RowFlag.NULL)
