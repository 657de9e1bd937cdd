"""Puts the records of access logs into the buckets they are meant for.

Must not know: how records come into being, trio, requests.
Invariants:
* Nothing is put where the bucket's policy (or its list) no longer lets the log service write: such records are dropped,
  and the log of the server says so.
* What cannot be put for another reason (no space, a store that takes no writes) stays in the spool.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterable
from typing import Any, Final

from cordwood.engine import BucketInfo, Store, errors
from cordwood.server.acl import Grant, dumped, private
from cordwood.server.encryption import Encryption
from cordwood.server.log_record import EVENT_TIME, SERVICE, SIMPLE, Destination, Entry, may_deliver
from cordwood.server.log_spool import LogSpool
from cordwood.server.notifications import Announcer, Cause, created
from cordwood.server.wire.checksums import hasher
from cordwood.server.wire.errors import S3Error

log = logging.getLogger("cordwood.log_delivery")

_DAY_MS: Final = 86_400_000
_UNIQUE_BYTES: Final = 8
_CAUSE: Final = Cause(SERVICE.service, SERVICE.service)

Group = tuple[Destination, str, str, int]
"""Destination, source bucket and its owner (both "" where an object may hold records of several), day."""


class LogDelivery:
    """Blocking; for a thread."""

    def __init__(
        self, store: Store, spool: LogSpool, announcer: Announcer, encryption: Encryption, region: str
    ) -> None:
        self._store = store
        self._announcer = announcer
        self._encryption = encryption
        self._spool = spool
        self._region = region

    def run(self) -> None:
        """Deliver what waits in the spool."""
        try:
            due = self._spool.due()
        except OSError as error:
            log.error("access logs cannot be looked for: %s", error)
            return
        for spooled in due:
            try:
                self._deliver(self._spool.read(spooled))
            except (errors.CordwoodError, S3Error, OSError) as error:
                self._spool.keep(spooled)
                log.error("access logs could not be delivered, to be tried again: %s", error)
            else:
                self._spool.done(spooled)

    def _deliver(self, entries: list[Entry]) -> None:
        for group, members in _grouped(entries).items():
            destination = group[0]
            try:
                self._put(group, members)
            except errors.BucketNotFound:
                log.warning("%d access log records dropped: no bucket %r", len(members), destination.bucket)

    def _put(self, group: Group, members: list[Entry]) -> None:
        destination, source, account, day = group
        target = self._store.head_bucket(destination.bucket)
        key = destination.object_key(
            account=account,
            region=self._region,
            source=source,
            unique=secrets.token_hex(_UNIQUE_BYTES).upper(),
            time_s=day * _DAY_MS / 1000 if destination.key_format == EVENT_TIME else time.time(),
        )
        allowed = {
            each: may_deliver(target.attrs, destination.bucket, key, source=each[0], source_owner_id=each[1])
            for each in {(entry.source, entry.source_owner_id) for entry in members}
        }
        for (name, _), is_allowed in allowed.items():
            if not is_allowed:
                log.warning(
                    "access log records of %r dropped: bucket %r does not let logging.s3.amazonaws.com write %r",
                    name,
                    destination.bucket,
                    key,
                )
        lines = [each.line for each in members if allowed[each.source, each.source_owner_id]]
        if not lines:
            return
        body = "".join(f"{line}\n" for line in lines).encode()
        self._write(target, key, body, _attrs(target, destination.grants))

    def _write(self, target: BucketInfo, key: str, body: bytes, attrs: dict[str, Any]) -> None:
        """One log object, encrypted where its bucket's default says so."""
        digest = hasher("CRC64NVME")
        digest.update(body)
        checksums = {"CRC64NVME": digest.base64()}
        wish = self._encryption.default_of(target.attrs)
        data_key = self._encryption.keys.make(wish, target.id) if wish is not None else None
        writer = self._announcer(target, _CAUSE, created, "ObjectCreated:Put").writer(
            target.name,
            key,
            headers={"content-type": "text/plain"},
            attrs=attrs,
            cipher=data_key.cipher if data_key is not None else None,
        )
        writer.write(body)
        more: dict[str, Any] = {"checksums": checksums}
        if data_key is not None:
            more = data_key.about(checksums, writer.size, writer.md5_digest())
        writer.commit(checksum_type="FULL_OBJECT", **more)


def _grouped(entries: Iterable[Entry]) -> dict[Group, list[Entry]]:
    groups: dict[Group, list[Entry]] = {}
    for entry in entries:
        destination = Destination(entry.bucket, entry.prefix, entry.key_format, entry.grants)
        is_simple = entry.key_format == SIMPLE
        day = entry.time_ms // _DAY_MS if entry.key_format == EVENT_TIME else 0
        source = "" if is_simple else entry.source
        account = "" if is_simple else entry.source_owner_id
        groups.setdefault((destination, source, account, day), []).append(entry)
    return groups


def _attrs(target: BucketInfo, grants: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """A log object belongs to the owner of its bucket, as objects do that say nothing; others get what was granted."""
    others = tuple(Grant(grantee, permission) for grantee, permission in grants)
    if not others:
        return {}
    return {"acl": dumped((*private(target.attrs.get("owner", {"id": ""})["id"]), *others))}
