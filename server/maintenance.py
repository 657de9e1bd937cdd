"""The maintenance process of `cordwood serve`: compaction, lifecycle, abandoned uploads, scrubbing; slowly, always.

Theory: one loop in one process without a listener. Each round does what is due (a compaction every few hours and a full
one once a day; the uploads before it), then reads on with the scrub as far as its rate allows, then waits. What fails
is logged and tried again when it is next due; the loop never ends by itself.

Must not know: requests, trio, how compaction or scrubbing work.

Invariants:
* It yields: the process is niced, its rates are bounded, and between its index transactions it pauses.
* SIGTERM and the end of the supervisor stop it within seconds, also in the middle of a compaction.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from cordwood.engine import CompactionPolicy, Maintenance, Store, errors
from cordwood.server.config import Settings
from cordwood.server.lifecycle_worker import LifecycleWorker
from cordwood.server.supervisor import Child

log = logging.getLogger("cordwood.maintenance")

_ROUND_S = 10.0
_NICE = 10
_MIN_DEAD_BYTES = 10 << 20
_DAY_S = 86400.0
_RETRY_S = 600.0


def maintain(settings: Settings, child: Child) -> int:
    """The role's body; returns its exit code."""
    signal.signal(signal.SIGTERM, _ignore_and_wake)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    stop = _Stop(child.lifeline_fd)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    try:
        os.nice(_NICE)
        with Maintenance.open(
            settings.dir, durability=settings.durability, volume_size=settings.volume_size
        ) as store:
            child.ready()
            Loop(settings, store, stop).run()
    except errors.CordwoodError as error:
        child.cannot_start(str(error))
        return 1
    return 0


def _ignore_and_wake(_number: int, _frame: object) -> None:
    """Only there so that the signal ends a wait; `_Stop` reads the wakeup pipe."""


class _Stop:
    """Whether to stop: SIGTERM came, or the supervisor has gone."""

    def __init__(self, lifeline_fd: int) -> None:
        self._lifeline_fd = lifeline_fd
        self._wakeup_read, wakeup_write = os.pipe()
        os.set_blocking(wakeup_write, False)
        signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
        self._is_set = False

    def __call__(self) -> bool:
        return self.wait(0)

    def wait(self, seconds: float) -> bool:
        """Waits for so long, or until it is time to stop; says whether it is."""
        if not self._is_set:
            readable, _, _ = select.select([self._lifeline_fd, self._wakeup_read], [], [], seconds)
            self._is_set = bool(readable)
        return self._is_set


@dataclass(slots=True)
class _Due:
    """When something is to be done next, on the monotonic clock."""

    at_s: float

    def is_now(self) -> bool:
        return time.monotonic() >= self.at_s


class Loop:
    """What is done when. Its parts are for tests; `run` is all of it."""

    def __init__(self, settings: Settings, store: Maintenance, stop: _Stop) -> None:
        self._settings = settings
        self._store = store
        self._stop = stop
        now_s = time.monotonic()
        self._compaction = _Due(now_s + settings.compaction_interval_hours * 3600)
        self._full = _Due(now_s + seconds_until(settings.compaction_full_time, time.time()))
        self._lifecycle = _Due(now_s + settings.lifecycle_interval)
        self._lifecycle_worker = LifecycleWorker(
            Store.beside(store),
            day_ms=int(settings.lifecycle_day * 1000),
            dry_run=settings.lifecycle_dry_run,
            should_stop=stop,
            region=settings.region,
            targets=frozenset(target.arn for target in settings.notification_targets),
        )
        self._scrubber = store.scrubber(should_stop=stop)
        self._scrubbed_s = now_s

    def run(self) -> None:
        while not self._stop.wait(min(_ROUND_S, self._settings.lifecycle_interval)):
            self._try(self._expire_if_due)
            self._try(self.compact_if_due)
            self._try(self._scrub)
            self._store.release_removed()
        self._try(self._scrubber.save)

    @staticmethod
    def _try(job: Callable[[], None]) -> None:
        try:
            job()
        except errors.Busy as error:
            log.info("%s", error)
        except (errors.CordwoodError, OSError) as error:
            log.error("maintenance failed, to be tried again: %s", error)

    def _expire_if_due(self) -> None:
        if not self._lifecycle.is_now():
            return
        self._lifecycle.at_s = time.monotonic() + self._settings.lifecycle_interval
        report = self._lifecycle_worker.run()
        if report.total:
            log.info(
                "lifecycle: %d objects, %d noncurrent versions, %d delete markers, %d uploads %s, %d of them kept",
                report.objects,
                report.noncurrent_versions,
                report.markers,
                report.uploads,
                "would be removed" if self._settings.lifecycle_dry_run else "removed",
                report.kept,
            )

    def compact_if_due(self) -> None:
        """Aborts abandoned uploads and compacts, if the interval is over or the hour of the daily full run has come."""
        settings = self._settings
        if not settings.compaction_enabled:
            return
        is_full = bool(settings.compaction_full_time) and self._full.is_now()
        if not is_full and not self._compaction.is_now():
            return
        now_s = time.monotonic()
        self._compaction.at_s = now_s + settings.compaction_interval_hours * 3600
        if is_full:
            self._full.at_s = now_s + _RETRY_S  # in case that this one fails: a day would be long
        if settings.compaction_multipart_ttl_secs:
            aborted = self._store.abort_abandoned(
                settings.compaction_multipart_ttl_secs, dry_run=settings.compaction_dry_run
            )
            if aborted:
                would = "would be " if settings.compaction_dry_run else ""
                log.info("%d abandoned multipart uploads %saborted", len(aborted), would)
        policy = CompactionPolicy(
            threshold=settings.compaction_threshold,
            min_dead_bytes=_MIN_DEAD_BYTES,
            grace_s=settings.compaction_grace,
            full=is_full,
            dry_run=settings.compaction_dry_run,
            rate_bytes_s=settings.compaction_rate,
            volume_size=settings.volume_size,
        )
        report = self._store.compact(policy, should_stop=self._stop)
        if is_full:
            self._full.at_s = now_s + seconds_until(settings.compaction_full_time, time.time() + 60)
        if report.victims:
            log.info(
                "compaction: %d volumes %s, %d bytes reclaimed, %d records copied in %.1f s",
                len(report.victims),
                "would be compacted" if report.dry_run else "compacted",
                report.bytes_reclaimed,
                report.records_copied,
                report.seconds,
            )

    def _scrub(self) -> None:
        """Reads as many bytes as the time since the last round is worth."""
        settings = self._settings
        now_s = time.monotonic()
        passed_s, self._scrubbed_s = now_s - self._scrubbed_s, now_s
        if settings.scrub_days:
            rate = self._scrubber.total_bytes() / (settings.scrub_days * _DAY_S)
            if rate:
                self._scrubber.read_on(max(1, int(rate * passed_s)))


def seconds_until(clock_time: str, now_s: float) -> float:
    """Seconds from a Unix time to the next "HH:MM" in local time; a day when there is none."""
    if not clock_time:
        return _DAY_S
    hours, minutes = map(int, clock_time.split(":"))
    local = time.localtime(now_s)
    seconds = (hours - local.tm_hour) * 3600 + (minutes - local.tm_min) * 60 - local.tm_sec
    return seconds if seconds > 0 else seconds + _DAY_S
