"""Scrubbing reads everything once per cycle, goes on where it stopped, and names what has rotted."""

from __future__ import annotations

from pathlib import Path

import pytest

from cordwood.engine import Maintenance, Store, scrub_status
from cordwood.engine.rows import VolumeState
from cordwood.engine.scrub import STATUS_NAME
from tests.engine.history import SIZES, History
from tests.engine.support import flip, volume_paths

MAP = 1 << 28


@pytest.fixture
def path(tmp_path: Path) -> Path:
    history = History(tmp_path / "store", 5)
    for _ in range(150):
        history.step()
    history.close()
    return history.path


def opened(path: Path) -> Maintenance:
    return Maintenance.open(path, volume_size=1 << 17, map_size=MAP)


def damage(path: Path) -> tuple[int, int, str]:
    """Spoils the first chunk of an object; its volume, its offset, the object's key."""
    with Store.open(path, **SIZES) as store:
        key = next(entry.key for entry in store.list("plain").objects if entry.size > 4096)
        ref = store.get("plain", key).manifest.chunk(0)
    flip(next(each for each in volume_paths(path) if int(each.stem) == ref.volume), ref.offset + 400)
    return ref.volume, ref.offset, key


def test_a_cycle_reads_every_byte_of_every_volume_once(path: Path) -> None:
    with opened(path) as store:
        status = store.scrubber().run_cycle()
    indexed = sum(each.stat().st_size - 4096 for each in volume_paths(path))
    assert status.bad == [] and status.last_cycle_bytes == indexed


def test_a_scrub_goes_on_where_the_last_process_stopped(path: Path) -> None:
    rounds = 0
    is_done = False
    while not is_done:
        with opened(path) as store:
            scrubber = store.scrubber()
            is_done = scrubber.read_on(100_000)
            scrubber.save()
        rounds += 1
    status = scrub_status(path)
    assert status is not None and rounds > 3
    assert status.last_cycle_bytes == sum(each.stat().st_size - 4096 for each in volume_paths(path))


def test_a_rotten_chunk_is_named_by_the_objects_that_need_it_and_its_volume_quarantined(path: Path) -> None:
    volume, offset, key = damage(path)
    with opened(path) as store:
        store.scrubber().run_cycle()
    status = scrub_status(path)
    assert status is not None
    (bad,) = status.bad
    assert (bad.volume, bad.offset) == (volume, offset)
    assert f"plain/{key} version" in bad.name and "CRC" in bad.why
    with Store.open(path, **SIZES) as reopened, reopened._core.index.read() as txn:
        row = txn.volume(volume)
        assert row is not None and row.state in (VolumeState.QUARANTINED, VolumeState.ACTIVE)


def test_a_finding_stays_over_cycles_and_goes_when_the_bytes_are_right_again(path: Path) -> None:
    volume, offset, _ = damage(path)
    with opened(path) as store:
        scrubber = store.scrubber()
        assert len(scrubber.run_cycle().bad) == 1
        assert len(scrubber.run_cycle().bad) == 1
        flip(path / "volumes" / f"{volume:010d}.vol", offset + 400)
        assert scrubber.run_cycle().bad == []


def test_a_status_file_that_cannot_be_read_only_restarts_the_cycle(path: Path) -> None:
    (path / STATUS_NAME).write_text("{")
    assert scrub_status(path) is None
    with opened(path) as store:
        assert store.scrubber().run_cycle().cycle == 2
