"""What the maintenance process does, and when: the daily full run, dry runs, abandoned uploads, what fails."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from cordwood.engine import Maintenance, Store, errors
from cordwood.server.config import Settings, load
from cordwood.server.maintenance import Loop, seconds_until

SMALL = {"volume_size": 1 << 16, "chunk_size": 4096, "inline_max": 256}


class Never:
    """It is never time to stop."""

    def __call__(self) -> bool:
        return False

    def wait(self, _seconds: float) -> bool:
        return False


def settings(path: Path, **flags: object) -> Settings:
    given = {"dir": str(path), "compaction_grace": "0", "volume_size": "2MiB", **flags}
    return load(flags=given, environ={}, config_file=None).settings


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with volumes of which little is dead, one that is wholly dead, and an upload."""
    path = tmp_path / "store"
    with Store.open(path, **SMALL) as store:  # type: ignore[arg-type]  # one dictionary of three numbers
        store.create_bucket("wood")
        for number in range(40):
            store.put("wood", f"{number}", b"%05d" % number * 2000)
        for number in range(0, 40, 7):
            store.delete("wood", f"{number}")
        store.create_upload("wood", "never-completed")
    return path


@pytest.fixture
def hour(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the process's clocks: `hour(3)` is three hours later."""
    monotonic, wall = time.monotonic, time.time
    passed = 0.0

    def later(hours: float) -> None:
        nonlocal passed
        passed += hours * 3600

    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + passed)
    monkeypatch.setattr(time, "time", lambda: wall() + passed)
    return later


def local_hour(hours_from_now: float) -> str:
    return time.strftime("%H:%M", time.localtime(time.time() + hours_from_now * 3600))


def volumes(path: Path) -> set[str]:
    return {each.name for each in (path / "volumes").iterdir()}


def test_a_full_compaction_is_done_once_a_day_at_its_hour(path: Path, hour: Callable[[float], None]) -> None:
    chosen = settings(path, compaction_full_time=local_hour(3), compaction_interval_hours="100")
    with Maintenance.open(path) as store:
        loop = Loop(chosen, store, cast(Any, Never()))
        before = volumes(path)
        hour(2.5)
        loop.compact_if_due()
        assert volumes(path) == before
        hour(0.6)
        loop.compact_if_due()
        after = volumes(path)
        assert not before <= after, "volumes with little dead in them are taken as well"
        Store.beside(store).delete("wood", "1")
        hour(20)
        loop.compact_if_due()
        assert volumes(path) == after
        hour(4.1)
        loop.compact_if_due()
        assert volumes(path) != after


def test_a_full_compaction_that_could_not_be_done_is_tried_again_soon(
    path: Path, hour: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(path, compaction_full_time=local_hour(3), compaction_interval_hours="100")
    with Maintenance.open(path) as store:
        loop = Loop(chosen, store, cast(Any, Never()))
        before = volumes(path)
        hour(3.1)
        with monkeypatch.context() as patch, pytest.raises(errors.Full):
            patch.setattr(store, "compact", _refuse)
            loop.compact_if_due()
        loop.compact_if_due()
        assert volumes(path) == before
        hour(0.2)
        loop.compact_if_due()
        assert volumes(path) != before


def _refuse(*_: object, **__: object) -> None:
    raise errors.Full("no room")


def test_a_dry_run_says_what_it_would_do_and_does_nothing(
    path: Path, hour: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    chosen = settings(
        path,
        compaction_dry_run="true",
        compaction_full_time=local_hour(1),
        compaction_multipart_ttl_secs="60",
    )
    with Maintenance.open(path) as store:
        loop = Loop(chosen, store, cast(Any, Never()))
        before = volumes(path)
        hour(2)
        loop.compact_if_due()
        assert volumes(path) == before
        assert len(Store.beside(store).list_uploads("wood").uploads) == 1
    assert "volumes would be compacted" in caplog.text
    assert "1 abandoned multipart uploads would be aborted" in caplog.text


def test_uploads_in_which_nothing_happened_for_the_set_time_are_aborted(
    path: Path, hour: Callable[[float], None]
) -> None:
    chosen = settings(path, compaction_interval_hours="1", compaction_multipart_ttl_secs="7200")
    with Maintenance.open(path) as store:
        loop = Loop(chosen, store, cast(Any, Never()))
        uploads = Store.beside(store)
        hour(1.1)
        loop.compact_if_due()
        assert len(uploads.list_uploads("wood").uploads) == 1
        hour(1.1)
        loop.compact_if_due()
        assert uploads.list_uploads("wood").uploads == []


@pytest.mark.parametrize("wanted", ["00:00", "02:00", "12:30", "23:59"])
def test_the_next_time_of_day_is_within_a_day_and_is_that_time(wanted: str) -> None:
    for now_s in range(1_700_000_000, 1_700_090_000, 1_777):
        seconds = seconds_until(wanted, now_s)
        assert 0 < seconds <= 86_400
        assert time.strftime("%H:%M:%S", time.localtime(now_s + seconds)) == f"{wanted}:00"
