"""A directory in which somebody has planted things: links, pipes, folders, files with impossible names.

What must hold: nothing outside the store is read into it, written or removed; nothing waits for ever; what is wrong is
named, and `fsck --repair` or `rebuild` gets the store back.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cordwood.engine import Maintenance, Store, check_store, compact, errors, measure_store, rebuild
from cordwood.engine.format import SUPERBLOCK_SIZE, Superblock
from tests.engine.support import first_volume, noise, small

MAP = 1 << 28


@pytest.fixture
def closed(path: Path) -> Path:
    with small(path) as store:
        store.create_bucket("wood")
        for number in range(20):
            store.put("wood", f"d/{number}", noise(9000))
    return path


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of somebody else's."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "precious").write_bytes(b"precious")
    return folder


def link_index(path: Path, outside: Path) -> None:
    for each in (path / "index").iterdir():
        shutil.move(each, outside)
    (path / "index").rmdir()
    (path / "index").symlink_to(outside)


def link_data(path: Path, outside: Path) -> None:
    shutil.move(path / "index" / "data.mdb", outside / "precious")
    (path / "index" / "data.mdb").symlink_to(outside / "precious")


def link_lock(path: Path, outside: Path) -> None:
    (path / "index" / "lock.mdb").unlink()
    (path / "index" / "lock.mdb").symlink_to(outside / "precious")


def folder_as_data(path: Path, _outside: Path) -> None:
    (path / "index" / "data.mdb").unlink()
    (path / "index" / "data.mdb" / "below").mkdir(parents=True)


def pipe_as_data(path: Path, _outside: Path) -> None:
    (path / "index" / "data.mdb").unlink()
    os.mkfifo(path / "index" / "data.mdb")


PLANTED = (link_index, link_data, link_lock, folder_as_data, pipe_as_data)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("plant", PLANTED)
@pytest.mark.parametrize("mend", ["fsck", "rebuild"])
def test_what_is_planted_in_the_index_is_refused_and_mended_and_what_it_leads_to_is_left_alone(
    closed: Path, outside: Path, plant: Callable[[Path, Path], None], mend: str
) -> None:
    plant(closed, outside)
    before = {each.name: each.read_bytes() for each in outside.iterdir()}
    for use in (Store.open, measure_store, compact):
        with pytest.raises(errors.Corrupt, match="cordwood rebuild"):
            use(closed, map_size=MAP)
    report = check_store(closed, map_size=MAP)
    assert [problem.kind for problem in report.problems] == ["index"]
    if mend == "fsck":
        assert not check_store(closed, repair=True, map_size=MAP).uncorrected
    else:
        rebuild(closed, map_size=MAP)
    assert check_store(closed, data=True, map_size=MAP).is_clean
    with small(closed) as store:
        assert store.get("wood", "d/7").read() == noise(9000)
    assert {each.name: each.read_bytes() for each in outside.iterdir()} == before


@pytest.mark.timeout(60)
def test_pipes_folders_and_impossible_names_among_the_volumes_are_passed_over_and_moved_out(
    closed: Path,
) -> None:
    folder = closed / "volumes"
    os.mkfifo(folder / "0000000099.vol")
    (folder / "0000000098.vol").mkdir()
    for name in ("0000000000.vol", "4294967296.vol", "9999999999.vol"):
        (folder / name).write_bytes(b"junk")
    with small(closed) as store:
        assert store.get("wood", "d/7").read() == noise(9000)
        store.put("wood", "new", noise(5000))
    report = check_store(closed, map_size=MAP)
    assert sum("not a plain file" in problem.text for problem in report.problems) == 2
    assert sum("is no volume" in note for note in report.notes) == 3
    assert not check_store(closed, repair=True, map_size=MAP).uncorrected
    assert check_store(closed, data=True, map_size=MAP).is_clean


def test_a_file_that_is_called_the_last_volume_is_named_and_moved_out(closed: Path) -> None:
    """Ids only grow: behind the greatest there is no room for another volume."""
    (closed / "volumes" / "4294967295.vol").write_bytes(b"")
    with small(closed, volume_size=1 << 16) as store, pytest.raises(errors.Corrupt, match=r"4294967295\.vol"):
        for number in range(40):
            store.put("wood", f"new/{number}", noise(9000, number))
    assert not check_store(closed, repair=True, map_size=MAP).uncorrected
    with small(closed) as store:
        store.put("wood", "new", noise(90_000))
    assert check_store(closed, map_size=MAP).is_clean


def test_a_store_without_its_folder_of_volumes_is_not_taken_for_an_empty_one(closed: Path) -> None:
    shutil.move(closed / "volumes", closed / "elsewhere")
    index = (closed / "index" / "data.mdb").read_bytes()
    for use in (small, rebuild, compact, measure_store):
        with pytest.raises(errors.Corrupt, match="is missing, and with it everything"):
            use(closed)
    report = check_store(closed, repair=True, map_size=MAP)
    assert report.uncorrected == 1 and report.problems[0].kind == "missing"
    assert (closed / "index" / "data.mdb").read_bytes() == index
    shutil.move(closed / "elsewhere", closed / "volumes")
    assert check_store(closed, data=True, map_size=MAP).is_clean


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[" * 100_000,
        b'{"format": "cordwood", "version": 1, "store": "00", "node": "0"}',
        b'{"format": "cordwood", "version": 1, "store": "%s", "node": "-1"}' % (b"00" * 16),
        b'{"format": "cordwood", "version": 1, "store": "%s", "node": "%s"}' % (b"00" * 16, b"f" * 17),
        b'{"format": "cordwood", "version": 1, "store": 5, "node": []}',
    ],
    ids=range(7),
)
def test_a_format_file_that_makes_no_sense_is_named_and_written_anew(closed: Path, content: bytes) -> None:
    (closed / "FORMAT").write_bytes(content)
    for use in (small, rebuild, measure_store, compact):
        with pytest.raises(errors.Corrupt, match="FORMAT"):
            use(closed)
    assert not check_store(closed, repair=True, map_size=MAP).uncorrected
    with small(closed) as store:
        assert store.get("wood", "d/7").read() == noise(9000)


@pytest.mark.parametrize(
    "content",
    [b"", b"5", b"[" * 100_000, b'{"bad": 5}', b'{"volume": "x", "bad": []}', b'{"bad": [{"volume": 1}]}'],
    ids=range(6),
)
def test_a_scrub_begins_anew_when_its_notes_make_no_sense(closed: Path, content: bytes) -> None:
    (closed / "SCRUB").write_bytes(content)
    with Maintenance.open(closed, map_size=MAP) as store:
        status = store.scrubber().run_cycle()
    assert status.last_cycle_bytes > 9000 and not status.bad


def test_a_superblock_that_names_an_impossible_volume_is_moved_out(closed: Path) -> None:
    path = closed / "volumes" / "0000000002.vol"
    content = first_volume(closed).read_bytes()
    block = Superblock.unpack(content[:SUPERBLOCK_SIZE], "here")
    path.write_bytes(block._replace(volume=(1 << 64) - 1).pack() + content[SUPERBLOCK_SIZE:])
    report = check_store(closed, repair=True, map_size=MAP)
    assert "which no volume can be" in report.problems[0].text and not report.uncorrected
    assert not path.exists() and check_store(closed, map_size=MAP).is_clean


@pytest.mark.parametrize("name", ["LOCK", "RECOVERY", "COMPACTION", "index/turn"])
def test_a_link_in_the_place_of_a_lock_is_named_and_makes_no_file_elsewhere(
    closed: Path, outside: Path, name: str
) -> None:
    (closed / name).unlink(missing_ok=True)
    (closed / name).symlink_to(outside / "new")
    with pytest.raises(OSError, match="a link stands where a lock belongs"):
        compact(closed, map_size=MAP)
    assert [each.name for each in outside.iterdir()] == ["precious"]
    (closed / name).unlink()
    with small(closed) as store:
        assert store.get("wood", "d/7").read() == noise(9000)


def plant_copy(path: Path, content: bytes) -> None:
    (path / "volumes" / "0000000077.vol").write_bytes(content)


def test_what_is_quarantined_never_takes_the_place_of_what_was_before(closed: Path) -> None:
    content = first_volume(closed).read_bytes()
    for number in range(3):
        plant_copy(closed, content + bytes([number]))
        assert not check_store(closed, repair=True, map_size=MAP).uncorrected
    found = {each.name: each.read_bytes()[-1] for each in (closed / "quarantine").iterdir()}
    assert found == {"0000000077.vol": 0, "0000000077.vol.1": 1, "0000000077.vol.2": 2}


@pytest.mark.parametrize("kind", ["link", "file"])
def test_nothing_is_moved_into_a_quarantine_that_is_none(closed: Path, outside: Path, kind: str) -> None:
    if kind == "link":
        (closed / "quarantine").symlink_to(outside)
    else:
        (closed / "quarantine").write_bytes(b"")
    plant_copy(closed, first_volume(closed).read_bytes())
    report = check_store(closed, repair=True, map_size=MAP)
    assert report.uncorrected == 1 and any("nothing is moved there" in note for note in report.notes)
    assert [each.name for each in outside.iterdir()] == ["precious"]
    (closed / "quarantine").unlink()
    assert not check_store(closed, repair=True, map_size=MAP).uncorrected
    assert check_store(closed, data=True, map_size=MAP).is_clean


def test_notes_of_a_scrub_that_cannot_be_put_in_place_leave_nothing_behind(closed: Path) -> None:
    (closed / "SCRUB").mkdir()
    with Maintenance.open(closed, map_size=MAP) as store, pytest.raises(OSError, match="SCRUB"):
        store.scrubber().run_cycle()
    assert not [each.name for each in closed.iterdir() if each.name.startswith(".")]


def test_a_volume_that_a_rebuild_could_not_open_is_missed_by_fsck_until_it_is_back_in_the_index(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A rebuild by a user who may not read one of the files: it was left out, and fsck called the store clean."""
    caplog.set_level(logging.CRITICAL)
    with small(path, volume_size=1 << 16) as store:
        store.create_bucket("wood")
        for number in range(16):
            store.put("wood", f"d/{number}", noise(9000, number))
    aside = path / "0000000002.vol"
    (path / "volumes" / aside.name).rename(aside)
    rebuild(path, map_size=MAP)
    aside.rename(path / "volumes" / aside.name)
    with pytest.raises(errors.Corrupt, match="cordwood rebuild"):
        small(path)
    report = check_store(path, map_size=MAP)
    assert any("were committed, but the index does not know so" in each.text for each in report.problems)
    assert not check_store(path, repair=True, map_size=MAP).uncorrected
    assert check_store(path, data=True, map_size=MAP).is_clean
    with small(path) as store:
        for number in range(16):
            assert store.get("wood", f"d/{number}").read() == noise(9000, number)
