"""Carries lifecycle rules out: one walk over each bucket that has some.

Must not know: processes, settings, requests.
Invariants:
* What is removed is what was judged: every removal is decided again inside its commit, against the version that was
  looked at (an object that was overwritten meanwhile, or a version that became current again, stays).
* A locked version stays, whatever the rules say.
* Memory is bounded by a page of the listing, however large the bucket.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from cordwood.engine import BucketInfo, Conditions, DeleteResult, ObjectEntry, Store, errors
from cordwood.server.lifecycle import DAY_MS, LIFECYCLE, Rule, after, compiled
from cordwood.server.log_record import LOGGING, Record, entry_of
from cordwood.server.log_spool import SPOOL, LogSpool
from cordwood.server.notifications import Announcer, Cause, removed

log = logging.getLogger("cordwood.lifecycle")

_PAGE = 1000
_OURSELVES = Cause("s3.amazonaws.com", "s3.amazonaws.com")  # who asked, and from where, when nobody did

Removal = tuple[str, str | None, Conditions | None]


@dataclass(slots=True)
class LifecycleReport:
    """What a run did, or would have done. `kept`: refused inside the commit, by a lock or a change meanwhile."""

    objects: int = 0
    noncurrent_versions: int = 0
    markers: int = 0
    uploads: int = 0
    kept: int = 0

    @property
    def total(self) -> int:
        return self.objects + self.noncurrent_versions + self.markers + self.uploads


class LifecycleWorker:
    """`day_ms` is the length of a day; only tests have another than the usual one. `targets`: who can be told."""

    def __init__(
        self,
        store: Store,
        *,
        day_ms: int = DAY_MS,
        dry_run: bool = False,
        should_stop: Callable[[], bool] = lambda: False,
        region: str = "us-east-1",
        targets: frozenset[str] = frozenset(),
    ) -> None:
        self._store = store
        self._announcer = Announcer(store, targets, region)
        self._spool = LogSpool(store.path / SPOOL)
        self._day_ms = day_ms
        self._dry_run = dry_run
        self._should_stop = should_stop
        self._report = LifecycleReport()
        self._now_ms = 0

    def run(self, now_ms: int | None = None) -> LifecycleReport:
        """One walk over all buckets with rules."""
        self._report = LifecycleReport()
        self._now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
        try:
            for bucket in self._store.list_buckets():
                configuration = bucket.attrs.get(LIFECYCLE)
                if configuration is None or self._should_stop():
                    continue
                try:
                    self._run_bucket(bucket, compiled(configuration))
                except errors.BucketNotFound:
                    continue  # it went while we looked
        finally:
            self._spool.close()  # the workers deliver what is in it
        return self._report

    def _run_bucket(self, info: BucketInfo, rules: list[Rule]) -> None:
        bucket = info.name
        batch: list[Removal] = []
        ending = [rule for rule in rules if rule.ends_versions]
        if ending:
            for removal in self._removals(bucket, ending):
                batch.append(removal)
                if len(batch) >= _PAGE:
                    self._remove(info, batch)
                    batch = []
        self._remove(info, batch)
        self._abort_uploads(bucket, [rule for rule in rules if rule.abort_days is not None])

    # --- versions ---------------------------------------------------------------------------------------------

    def _removals(self, bucket: str, rules: list[Rule]) -> Iterator[Removal]:
        """What is due, in the order of the listing: of each key the newest version first."""
        above: ObjectEntry | None = None  # the next newer version of the same key
        noncurrent = 0
        lone_marker: ObjectEntry | None = None
        for entry in self._entries(bucket):
            if above is None or entry.key != above.key:
                if lone_marker is not None and self._is_marker_due(lone_marker, rules):
                    yield self._marker(lone_marker)
                lone_marker = entry if entry.is_delete_marker else None
                noncurrent = 0
                if not entry.is_delete_marker and self._is_due(bucket, entry, rules):
                    self._report.objects += 1
                    seen = Conditions(if_match=(entry.etag,), if_modified_ms=entry.modified_ms)
                    yield entry.key, None, seen
            else:
                lone_marker = None
                if self._is_noncurrent_due(bucket, entry, above.modified_ms, noncurrent, rules):
                    self._report.noncurrent_versions += 1
                    yield entry.key, entry.version_id, Conditions(if_noncurrent=True)
                noncurrent += 1
            above = entry
        if lone_marker is not None and self._is_marker_due(lone_marker, rules):
            yield self._marker(lone_marker)

    def _entries(self, bucket: str) -> Iterator[ObjectEntry]:
        key_marker = version_marker = ""
        while not self._should_stop():
            page = self._store.list_versions(
                bucket, key_marker=key_marker, version_id_marker=version_marker, max_keys=_PAGE
            )
            yield from page.entries
            if not page.truncated:
                return
            key_marker, version_marker = page.next_key_marker or "", page.next_version_id_marker or ""

    def _is_due(self, bucket: str, entry: ObjectEntry, rules: list[Rule]) -> bool:
        for rule in rules:
            end_ms = rule.end_ms(entry.modified_ms, self._day_ms)
            if end_ms is not None and end_ms <= self._now_ms and self._matches(bucket, entry, rule):
                return True
        return False

    def _is_noncurrent_due(
        self, bucket: str, entry: ObjectEntry, since_ms: int, newer: int, rules: list[Rule]
    ) -> bool:
        for rule in rules:
            if rule.noncurrent_days is None or newer < rule.newer_to_keep:
                continue
            due_ms = after(since_ms, rule.noncurrent_days, self._day_ms)
            if due_ms <= self._now_ms and self._matches(bucket, entry, rule):
                return True
        return False

    def _is_marker_due(self, entry: ObjectEntry, rules: list[Rule]) -> bool:
        for rule in rules:
            if rule.has_filter_by_content or not entry.key.startswith(rule.prefix):
                continue
            end_ms = rule.end_ms(entry.modified_ms, self._day_ms)
            if rule.ends_markers or (end_ms is not None and end_ms <= self._now_ms):
                return True
        return False

    def _marker(self, entry: ObjectEntry) -> Removal:
        self._report.markers += 1
        return entry.key, entry.version_id, None

    def _matches(self, bucket: str, entry: ObjectEntry, rule: Rule) -> bool:
        if entry.is_delete_marker and rule.has_filter_by_content:
            return False

        def tags() -> Mapping[str, str]:
            try:
                info = self._store.head(bucket, entry.key, version_id=entry.version_id)
            except errors.NotFound:
                return {}
            found: Mapping[str, str] = info.attrs.get("tags", {})
            return found

        return rule.matches(entry.key, entry.size, tags)

    def _remove(self, info: BucketInfo, batch: list[Removal]) -> None:
        if not batch or self._dry_run:
            return
        results = self._announcing(info, batch).delete_many(info.name, batch)
        self._report.kept += sum(isinstance(result, errors.CordwoodError) for result in results)
        if LOGGING in info.attrs:
            for removal, result in zip(batch, results, strict=True):
                if isinstance(result, DeleteResult):
                    self._spool.append(entry_of(info.name, info.attrs, _record(info, removal, result)))

    def _announcing(self, info: BucketInfo, batch: list[Removal]) -> Store:
        """The store, with messages about the removals where the bucket's configuration wants them."""
        wanted = [(key, version_id) for key, version_id, _ in batch]
        return self._announcer(info, _OURSELVES, removed, wanted, "LifecycleExpiration")

    # --- uploads ----------------------------------------------------------------------------------------------

    def _abort_uploads(self, bucket: str, rules: list[Rule]) -> None:
        if not rules:
            return
        key_marker = upload_marker = ""
        while not self._should_stop():
            page = self._store.list_uploads(
                bucket, key_marker=key_marker, upload_id_marker=upload_marker, max_uploads=_PAGE
            )
            for upload in page.uploads:
                if not any(
                    upload.key.startswith(rule.prefix)
                    and after(upload.initiated_ms, rule.abort_days or 0, self._day_ms) <= self._now_ms
                    for rule in rules
                ):
                    continue
                self._report.uploads += 1
                if self._dry_run:
                    continue
                try:
                    self._store.abort_upload(bucket, upload.key, upload.upload_id)
                except errors.UploadNotFound:
                    self._report.kept += 1
            if not page.truncated:
                return
            key_marker, upload_marker = page.next_key_marker or "", page.next_upload_id_marker or ""


def _record(info: BucketInfo, removal: Removal, result: DeleteResult) -> Record:
    """For the access log of the bucket, as AWS writes down what lifecycle rules do."""
    key, version_id, _ = removal
    is_marker = version_id is None and result.is_delete_marker
    return Record(
        owner_id=info.attrs.get("owner", {"id": ""})["id"],
        bucket=info.name,
        time_s=time.time(),
        address="",
        requester="AmazonS3",
        request_id=secrets.token_hex(8).upper(),
        operation="S3.CREATE.DELETEMARKER" if is_marker else "S3.EXPIRE.OBJECT",
        key=key,
        request_line="",
        status=None,
        total_ms=None,
        version_id=result.version_id or "",
    )
