"""One object under another name of its bucket, in one commit: the new name appears and the old one goes, or neither.

Must not know: how prefixes are moved (operations.Rename), who asks.

Theory: the object is written again under its new name with the chunks that it has, and deleted under the old one, in
one transaction. In a bucket that keeps versions the old name gets a delete marker, and what it was stays below that.

Invariants:
* Both names are decided on inside the commit: what was read to prepare it is still what stands there, or it is tried
  again (Conflict).
* With a token, the same call once more finds its own work and does nothing; another call with that token is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cordwood.engine import copying, lookup
from cordwood.engine.attributes import seen_clock
from cordwood.engine.clock import milliseconds
from cordwood.engine.commit import Decision
from cordwood.engine.copying import RENAMED
from cordwood.engine.core import Core
from cordwood.engine.errors import Conflict, InvalidArgument, KeyNotFound, PreconditionFailed, TokenReused
from cordwood.engine.format import Layout, Manifest
from cordwood.engine.index import Txn
from cordwood.engine.model import Conditions, ObjectInfo, encode_key, lookup_key
from cordwood.engine.operations import (
    DeleteObject,
    Description,
    PutObject,
    current_row,
    require_bucket,
    row_etag,
)
from cordwood.engine.reader import ObjectReader
from cordwood.engine.rows import ObjectRow, RowFlag


@dataclass(slots=True)
class Standing:
    """What stood under a name when a change was prepared: clocks of version and attributes, 0 for nothing."""

    clock: int = 0
    attrs_clock: int = 0

    def check(self, txn: Txn, row: ObjectRow | None) -> None:
        """Conflict when something else stands there now."""
        now = Standing(row.clock, seen_clock(txn, row)) if row is not None else Standing()
        if now != self:
            raise Conflict("the object was changed meanwhile; try again")


@dataclass(slots=True)
class RenameObject:
    put: PutObject
    delete: DeleteObject
    source: Standing
    target: Standing
    source_conditions: Conditions | None
    target_conditions: Conditions | None
    nested: bool = False
    frees: bool = False

    def size_hint(self) -> int:
        return self.put.size_hint() + self.delete.size_hint()

    def decide(self, decision: Decision) -> ObjectInfo:
        txn = decision.txn
        bucket, key = self.put.bucket, self.put.key.decode()
        root = require_bucket(txn, bucket).head.bucket
        source = live_row(txn, root, self.delete.key)
        if source is None:
            raise KeyNotFound(bucket, self.delete.key.decode())
        check_conditions(self.source_conditions, source, bucket, self.delete.key.decode())
        target = live_row(txn, root, self.put.key)
        check_conditions(self.target_conditions, target, bucket, key)
        self.source.check(txn, source)
        self.target.check(txn, target)
        info = self.put.decide(decision)
        self.delete.decide(decision)
        return info


def live_row(txn: Txn, root: int, key: bytes) -> ObjectRow | None:
    """The row of the newest version, if that is no delete marker."""
    row = current_row(txn, root, key)
    return None if row is None or row.flags & RowFlag.MARKER else row


def check_conditions(conditions: Conditions | None, row: ObjectRow | None, bucket: str, key: str) -> None:
    """PreconditionFailed, each condition for itself. What asks for an ETag or a change asks for an object, too."""
    if conditions is None:
        return
    etag = row_etag(row) if row is not None else None
    modified_s = milliseconds(row.clock) // 1000 if row is not None else None
    wanted, unwanted = conditions.if_match, conditions.if_none_match
    if wanted and (etag is None or ("*" not in wanted and etag not in wanted)):
        raise PreconditionFailed("If-Match", bucket, key)
    if unwanted and etag is not None and ("*" in unwanted or etag in unwanted):
        raise PreconditionFailed("If-None-Match", bucket, key)
    since_s = conditions.if_modified_since_s
    if since_s is not None and (modified_s is None or modified_s <= since_s):
        raise PreconditionFailed("If-Modified-Since", bucket, key)
    until_s = conditions.if_unmodified_since_s
    if until_s is not None and modified_s is not None and modified_s > until_s:
        raise PreconditionFailed("If-Unmodified-Since", bucket, key)


def prepare(
    core: Core,
    bucket: str,
    source: str,
    target: str,
    source_conditions: Conditions | None,
    target_conditions: Conditions | None,
    token: str,
    confirm: Callable[[ObjectInfo], None],
) -> RenameObject | ObjectInfo:
    """The change, or the object that it made already when it was asked for with this token."""
    raw_source, raw_target = lookup_key(source), encode_key(target)
    if raw_source == raw_target:
        raise InvalidArgument(f"{source!r} cannot be renamed to itself")
    memory = _memory(token, source, source_conditions, target_conditions)
    there = _found(core, bucket, target)
    if token and there is not None and there.info.attrs.get(RENAMED, {}).get("token") == token:
        if there.info.attrs[RENAMED] != memory[RENAMED]:
            raise TokenReused(token, bucket, target)
        return there.info
    found = lookup.find(core, bucket, source, None, None, want_body=True, wait=True)
    info, body = found.info, found.body
    confirm(info)
    assert body is not None
    inline = body if found.layout == Layout.INLINE else None
    manifest = Manifest(body, f"object {source!r}", info.overhead) if inline is None else None
    about = Description(
        info.headers,
        info.metadata,
        info.checksums,
        info.checksum_type,
        info.storage_class,
        {**copying.of_a_copy(info.attrs), **memory},
    )
    reader = ObjectReader(core, info, inline, manifest, 0, info.size)
    return RenameObject(
        copying.copy_operation(reader, bucket, raw_target, about, None),
        DeleteObject(bucket, raw_source),
        Standing(found.clock, found.attrs_clock),
        Standing(there.clock, there.attrs_clock) if there is not None else Standing(),
        source_conditions,
        target_conditions,
    )


def _found(core: Core, bucket: str, key: str) -> lookup.Found | None:
    try:
        return lookup.find(core, bucket, key, None, None, want_body=False, wait=True)
    except KeyNotFound:
        return None


def _memory(
    token: str, source: str, source_conditions: Conditions | None, target_conditions: Conditions | None
) -> Mapping[str, Any]:
    """The attribute by which a repeated call knows its work. It names the arguments by a digest, to stay small."""
    if not token:
        return {}
    arguments = repr((source, source_conditions or Conditions(), target_conditions or Conditions()))
    return {RENAMED: {"token": token, "arguments": hashlib.sha256(arguments.encode()).hexdigest()}}
