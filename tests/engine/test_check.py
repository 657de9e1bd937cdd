"""fsck finds what is wrong with a store, repairs what can be repaired, and survives what it is given to read."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from cordwood.engine import CheckReport, Store, check_store, errors
from cordwood.engine.format import RecordType
from cordwood.engine.rows import ChunkRow, VolumeRow, volume_key
from tests.engine.history import SIZES, History
from tests.engine.support import copy_store, flip, noise, records_of, used_index_bytes, volume_paths

MAP = 1 << 28


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with everything in it, closed; copy it before touching it."""
    history = History(tmp_path_factory.mktemp("origin") / "store", 7)
    for _ in range(300):
        history.step()
    history.close()
    return history.path


@pytest.fixture
def path(origin: Path, tmp_path: Path) -> Path:
    return copy_store(origin, tmp_path / "store")


def check(path: Path, *, data: bool = False, repair: bool = False) -> CheckReport:
    return check_store(path, data=data, repair=repair, map_size=MAP)


def content(path: Path) -> object:
    with Store.open(path, **SIZES) as store:
        return store.logical_dump()


def snapshot(path: Path) -> dict[str, bytes]:
    """Every file but the lock table of LMDB, which readers write their process ids to."""
    return {
        str(each.relative_to(path)): each.read_bytes()
        for each in path.rglob("*")
        if each.is_file() and each.name != "lock.mdb"
    }


def assert_repaired(path: Path, kind: str, before: object) -> CheckReport:
    """Found without repair, repaired with it, clean afterwards, and with the same content."""
    found = check(path)
    assert kind in {problem.kind for problem in found.problems}, found
    repaired = check(path, repair=True)
    assert repaired.problems and not repaired.uncorrected and repaired.repairs, repaired
    assert check(path, data=True).is_clean
    assert content(path) == before
    return repaired


# --- a good store ---------------------------------------------------------------------------------------------


def test_a_good_store_is_clean_and_not_changed(path: Path) -> None:
    before = snapshot(path)
    report = check(path, data=True)
    assert report.is_clean, report.problems
    assert report.volumes == len(volume_paths(path)) and report.records == len(records_of(path))
    assert snapshot(path) == before


def test_a_store_that_was_killed_is_clean_and_its_tail_is_left_to_the_next_opening(tmp_path: Path) -> None:
    with Store.open(tmp_path / "live", **SIZES) as store:
        store.create_bucket("bucket")
        store.put("bucket", "k", noise(9000))
        writer = store.writer("bucket", "unfinished")
        writer.write(noise(50_000, 1))
        path = copy_store(tmp_path / "live", tmp_path / "killed")
    report = check(path)
    assert report.is_clean, report.problems
    assert any("behind the watermark" in note for note in report.notes)
    assert check(path, repair=True).is_clean
    assert not check(path).notes


def test_a_store_in_use_is_not_checked(path: Path) -> None:
    with Store.open(path, **SIZES), pytest.raises(errors.Busy):
        check(path)


def test_what_is_no_store_is_not_checked(tmp_path: Path) -> None:
    with pytest.raises(errors.StoreNotFound):
        check(tmp_path)


# --- the index ------------------------------------------------------------------------------------------------


def test_a_lost_index_is_rebuilt(path: Path) -> None:
    before = content(path)
    shutil.rmtree(path / "index")
    assert_repaired(path, "index", before)


@pytest.mark.parametrize("keep", [0.9, 0.5, 0.1, 0.0])
def test_a_truncated_index_is_found_and_rebuilt(path: Path, keep: float) -> None:
    before = content(path)
    file = path / "index" / "data.mdb"
    file.write_bytes(file.read_bytes()[: max(100, int(used_index_bytes(path) * keep))])
    assert_repaired(path, "index", before)


def test_bits_that_flipped_in_the_index_are_survived_and_never_left_unnoticed(
    path: Path, tmp_path: Path, long_run: bool
) -> None:
    before = content(path)
    size = used_index_bytes(path)
    dice = random.Random(11)
    noticed = 0
    for number in range(300 if long_run else 5):
        damaged = copy_store(path, tmp_path / f"flipped-{number}")
        for _ in range(8):
            flip(damaged / "index" / "data.mdb", dice.randrange(8192, size), dice.randrange(8))
        noticed += not check(damaged).is_clean
        assert not check(damaged, repair=True).uncorrected
        assert check(damaged, data=True).is_clean
        assert content(damaged) == before
        shutil.rmtree(damaged)
    assert noticed


def test_a_page_of_the_index_that_ends_the_process_ends_only_the_probe(path: Path) -> None:
    before = content(path)
    file = path / "index" / "data.mdb"
    pages = bytearray(file.read_bytes())
    for page in range(2, len(pages) // 4096):
        at = page * 4096
        pages[at + 12 : at + 16] = b"\xff\x0f\xff\x0f"  # lower and upper bound of the page's free space
    file.write_bytes(pages)
    report = assert_repaired(path, "index", before)
    assert any("rebuilt" in text for text in report.repairs)


@pytest.mark.parametrize("table", ["entries", "chunks", "directories", "buckets", "versions", "parts"])
def test_a_row_that_is_missing_or_wrong_is_found_and_put_right(path: Path, table: str) -> None:
    before = content(path)
    with Store.open(path, **SIZES) as store:
        txn = store._core.index.begin()
        handle = getattr(txn.tables, table)
        rows = list(txn.items(b"", handle))
        if table == "chunks":  # without references a row may be there or not
            rows = [each for each in rows if ChunkRow.unpack(each[1]).references]
        if not rows:
            txn.raw.abort()
            pytest.skip("the history left none of these")
        txn.delete(rows[0][0], handle)
        store._core.index.commit(txn)
    assert_repaired(path, "index", before)


def test_wrong_accounts_are_found_and_put_right(path: Path) -> None:
    before = content(path)
    with Store.open(path, **SIZES) as store:
        txn = store._core.index.begin()
        volume, row = next(iter(txn.volumes().items()))
        txn.put(volume_key(volume), row._replace(live_bytes=row.live_bytes + 8).pack(), txn.tables.volumes)
        store._core.index.commit(txn)
    assert_repaired(path, "index", before)


def test_an_index_that_forgot_how_old_the_dead_are_is_put_right(path: Path) -> None:
    """Otherwise a compaction would drop a tombstone too early, and the dead would come back."""
    before = content(path)
    with Store.open(path, **SIZES) as store:
        txn = store._core.index.begin()
        for volume, row in txn.volumes().items():
            txn.put_volume(volume, VolumeRow(*row[:3], 0))
        store._core.index.commit(txn)
    assert_repaired(path, "index", before)


# --- volumes --------------------------------------------------------------------------------------------------


def test_a_damaged_body_is_found_by_reading_the_data_and_named(path: Path) -> None:
    with Store.open(path, **SIZES) as store:
        rows = [entry for entry in store.list("plain").objects if entry.size > 4096]
        ref = store.get("plain", rows[0].key).manifest.chunk(0)
    volume = next(each for each in volume_paths(path) if int(each.stem) == ref.volume)
    flip(volume, ref.offset + 300)
    assert check(path).is_clean
    report = check(path, data=True)
    assert [problem.kind for problem in report.problems] == ["damage"]
    assert f"live chunk {ref.id.hex()}" in report.problems[0].text
    repaired = check(path, data=True, repair=True)
    assert repaired.uncorrected == 1 and any("quarantined" in text for text in repaired.repairs)


def test_a_damaged_header_is_found_without_reading_the_data(path: Path) -> None:
    file, record = next(each for each in records_of(path) if each[1].header.type == RecordType.CHUNK)
    flip(file.path, record.header.offset + 9)
    report = check(path)
    assert any(problem.kind == "damage" for problem in report.problems)
    assert check(path, repair=True).uncorrected


def test_a_volume_that_is_missing_is_named_and_what_the_index_knows_is_kept(path: Path) -> None:
    volume_paths(path)[1].unlink()
    report = check(path, repair=True)
    assert any(problem.kind == "missing" for problem in report.problems)
    assert report.uncorrected
    assert any("the index was kept" in note for note in report.notes)


def test_hostile_lengths_in_a_volume_are_not_believed(path: Path) -> None:
    volume = volume_paths(path)[0]
    bytes_ = bytearray(volume.read_bytes())
    bytes_[4096 + 40 : 4096 + 48] = b"\xff" * 8
    volume.write_bytes(bytes_)
    assert any(problem.kind == "damage" for problem in check(path).problems)


def test_a_volume_stored_as_an_object_is_nothing_but_bytes(tmp_path: Path, origin: Path) -> None:
    with Store.open(tmp_path, **SIZES) as store:
        store.create_bucket("bucket")
        store.put("bucket", "planted", volume_paths(origin)[0].read_bytes())
    report = check(tmp_path, data=True)
    assert report.is_clean, report.problems
    assert report.records == len(records_of(tmp_path))


def test_links_and_strangers_are_moved_out_and_never_followed(path: Path, tmp_path: Path) -> None:
    before = content(path)
    secret = tmp_path / "secret"
    secret.write_bytes(noise(5000))
    (path / "volumes" / "0000000900.vol").symlink_to(secret)
    (path / "volumes" / "0000000901.vol").mkdir()
    assert_repaired(path, "stranger", before)
    assert (path / "quarantine" / "0000000900.vol").is_symlink()
    assert secret.read_bytes() == noise(5000)


def test_a_volume_of_another_store_is_moved_out(path: Path, tmp_path: Path) -> None:
    before = content(path)
    with Store.open(tmp_path / "other", **SIZES) as store:
        store.create_bucket("bucket")
    shutil.copy(volume_paths(tmp_path / "other")[0], path / "volumes" / "0000000900.vol")
    assert_repaired(path, "stranger", before)


def test_a_second_copy_of_a_volume_under_another_number_is_moved_out(path: Path) -> None:
    before = content(path)
    shutil.copy(volume_paths(path)[0], path / "volumes" / "0000000900.vol")
    assert_repaired(path, "stranger", before)


def test_a_volume_under_a_wrong_number_gets_its_own_back(path: Path) -> None:
    before = content(path)
    volume_paths(path)[0].rename(path / "volumes" / "0000000900.vol")
    assert_repaired(path, "name", before)


def test_a_lost_format_file_is_written_again_from_the_volumes(path: Path) -> None:
    before = content(path)
    (path / "FORMAT").unlink()
    assert_repaired(path, "format", before)


def test_a_format_file_of_a_later_version_is_refused_and_not_touched(path: Path) -> None:
    text = (path / "FORMAT").read_text()
    (path / "FORMAT").write_text(text.replace('"version": ', '"version": 9'))
    with pytest.raises(errors.UnsupportedFormat):
        check(path, repair=True)


def test_a_first_commit_that_was_cut_off_is_no_damage(tmp_path: Path) -> None:
    """The index has no row of any volume then, and is right all the same."""
    with Store.open(tmp_path, **SIZES):
        pass
    shutil.copytree(tmp_path / "index", tmp_path / "before")
    with Store.open(tmp_path, **SIZES) as store:
        store.create_bucket("bucket")
    shutil.rmtree(tmp_path / "index")
    (tmp_path / "before").rename(tmp_path / "index")
    report = check(tmp_path)
    assert report.is_clean and any("settled when the store is opened" in note for note in report.notes)
    with Store.open(tmp_path, **SIZES) as store:
        assert [bucket.name for bucket in store.list_buckets()] == ["bucket"]
    assert check(tmp_path).is_clean


def test_an_index_from_the_day_the_store_was_made_is_brought_up_to_date(path: Path, tmp_path: Path) -> None:
    """A restore of an old index beside the volumes of today."""
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    shutil.copy(path / "FORMAT", fresh)
    (fresh / "volumes").mkdir()
    with Store.open(fresh, **SIZES):
        pass
    shutil.rmtree(path / "index")
    before = content(copy_store(path, tmp_path / "copy"))
    shutil.copytree(fresh / "index", path / "index")
    assert content(path) == before, "everything stands behind its watermarks, so recovery replays it"
    assert check(path, data=True).is_clean
