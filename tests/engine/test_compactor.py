"""Compaction gives space back and changes nothing else: not for readers, not for a rebuild, not when it dies."""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cordwood.engine import (
    CompactionPolicy,
    CompactionReport,
    Maintenance,
    Store,
    check_store,
    compact,
    compactor,
    errors,
    rebuild,
)
from cordwood.engine.compactor import LOCK_NAME
from cordwood.engine.core import Core
from cordwood.engine.filling import change
from cordwood.engine.format import RecordType
from cordwood.engine.fs import REAL, Buffer, FileSystem
from cordwood.engine.index import Txn
from cordwood.engine.rows import VolumeState
from cordwood.engine.volume import Place
from tests.engine.history import SIZES, History
from tests.engine.support import (
    FaultyFileSystem,
    check_accounts,
    copy_store,
    count_types,
    flip,
    in_a_fork,
    noise,
    python,
    records_of,
    volume_paths,
)

MAP = 1 << 28
FULL = CompactionPolicy(full=True, grace_s=0, volume_size=1 << 17)
EAGER = CompactionPolicy(threshold=0.1, min_dead_bytes=1, grace_s=0, volume_size=1 << 17)


def offline(path: Path, policy: CompactionPolicy = FULL, **options: Any) -> CompactionReport:
    return compact(path, policy, map_size=MAP, **options)


def online(path: Path, policy: CompactionPolicy = EAGER) -> CompactionReport:
    with Maintenance.open(path, volume_size=1 << 17, map_size=MAP) as store:
        return store.compact(policy)


def assert_rebuild_changes_nothing(path: Path) -> None:
    with Store.open(path, **SIZES) as store:
        before = store.logical_dump()
        check_accounts(store)
    rebuild(path, map_size=MAP)
    with Store.open(path, **SIZES) as store:
        after = store.logical_dump()
    for name in before:
        assert before[name] == after[name], name


def disk_bytes(path: Path) -> int:
    return sum(each.stat().st_size for each in volume_paths(path))


def filled(path: Path, count: int = 60) -> dict[str, bytes]:
    """A store whose objects of even number have been deleted; returns what is left."""
    left = {}
    with Store.open(path, **SIZES) as store:
        store.create_bucket("bucket")
        for number in range(count):
            data = noise(9000 if number % 4 < 2 else 200, number)
            store.put("bucket", f"d{number % 3}/k{number}", data)
            left[f"d{number % 3}/k{number}"] = data
        for number in range(0, count, 2):
            key = f"d{number % 3}/k{number}"
            store.delete("bucket", key)
            del left[key]
    return left


def assert_holds(path: Path, expected: dict[str, bytes]) -> None:
    with Store.open(path, **SIZES) as store:
        found = [entry.key for entry in store.list("bucket").objects]
        assert sorted(expected) == found
        for key, data in expected.items():
            assert store.get("bucket", key).read() == data


def compact_beside(path: Path) -> None:
    """What the server's maintenance process does, while this process has the store open."""
    python(
        "import sys; from pathlib import Path; from tests.engine.test_compactor import online\n"
        "online(Path(sys.argv[1]))",
        path,
    )


# --- nothing else changes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_rebuild_equals_the_live_index_after_any_history_with_compactions(
    tmp_path: Path, seed: int, long_run: bool
) -> None:
    for number in range(40 if long_run else 1):
        history = History(tmp_path / f"store-{number}", seed + 1000 * number)
        for step in range(200):
            history.step()
            if history.random.random() < 0.03:
                history.close()
                if step % 2:
                    offline(history.path)
                else:
                    online(history.path)
                assert_rebuild_changes_nothing(history.path)
                history.reopen()
                history.check()
        history.close()
        offline(history.path)
        assert_rebuild_changes_nothing(history.path)
        report = check_store(history.path, data=True, map_size=MAP)
        assert report.is_clean, report.problems


def test_a_deleted_key_stays_deleted_after_compaction_and_rebuild(tmp_path: Path) -> None:
    left = filled(tmp_path)
    offline(tmp_path)
    rebuild(tmp_path, map_size=MAP)
    assert_holds(tmp_path, left)


def test_a_tombstone_stays_while_what_it_ended_is_in_any_volume_and_goes_afterwards(tmp_path: Path) -> None:
    with Store.open(tmp_path, **SIZES) as store:
        store.create_bucket("bucket")
        store.put("bucket", "victim", b"old")  # in volume 1, which is hardly dead
        store.put("bucket", "big", noise(120_000))
        store.put("bucket", "second", noise(120_000, 2))  # in volume 2
        store.delete("bucket", "victim")
        store.delete("bucket", "second")
        store.put("bucket", "last", noise(120_000, 3))
    before = count_types(tmp_path)
    assert before["DELETE"] == 2
    online(tmp_path, CompactionPolicy(threshold=0.5, min_dead_bytes=1, grace_s=0, volume_size=1 << 17))
    assert count_types(tmp_path)["DELETE"] == 2
    assert any(record.header.type == RecordType.OBJECT for _, record in records_of(tmp_path, 1))
    assert_rebuild_changes_nothing(tmp_path)
    offline(tmp_path, replace(FULL, threshold=0))
    assert count_types(tmp_path)["DELETE"] == 0
    assert_rebuild_changes_nothing(tmp_path)
    with Store.open(tmp_path, **SIZES) as store:
        assert [entry.key for entry in store.list("bucket").objects] == ["big", "last"]


def test_a_directory_survives_the_loss_of_what_once_kept_it_alive(tmp_path: Path) -> None:
    """x is deleted while y keeps the directory alive; y's old record goes; a rebuild must not let it vanish at x."""
    with Store.open(tmp_path, **SIZES) as store:
        store.create_bucket("bucket")
        store.put("bucket", "d/x", b"x")
        store.put("bucket", "filler-1", noise(125_000, 1))  # volume 1 ends here: hardly dead
        store.put("bucket", "d/y", b"y")
        store.put("bucket", "filler-2", noise(125_000, 2))  # volume 2
        store.delete("bucket", "d/x")
        store.put("bucket", "d/y", b"y again")
        store.delete("bucket", "filler-2")
        store.put("bucket", "filler-3", noise(125_000, 3))
    policy = CompactionPolicy(threshold=0.5, min_dead_bytes=1, grace_s=0, volume_size=1 << 17)
    assert online(tmp_path, policy).removed
    assert_rebuild_changes_nothing(tmp_path)
    with Store.open(tmp_path, **SIZES) as store:
        assert store.get("bucket", "d/y").read() == b"y again"


def test_copies_of_a_batch_that_stand_in_two_volumes_rebuild_to_one_history(tmp_path: Path) -> None:
    """Two versions of one key in one transaction, copied singly while the original volume is still there."""
    with Store.open(tmp_path, **SIZES) as store:
        store.create_bucket("bucket", versioning="Enabled")
        with store.batch() as batch:
            batch.put("bucket", "k", b"first")
            batch.put("bucket", "k", b"second")
        store.put("bucket", "dead", noise(60_000))
        store.delete("bucket", "dead", version_id=store.head("bucket", "dead").version_id)
    volume = volume_paths(tmp_path)[0]
    kept = volume.read_bytes()
    offline(tmp_path)
    volume.write_bytes(kept)  # as if the removal had been lost
    rebuild(tmp_path, map_size=MAP)
    with Store.open(tmp_path, **SIZES) as store:
        entries = store.list_versions("bucket").entries
        assert [(entry.key, entry.is_latest) for entry in entries] == [("k", True), ("k", False)]
        assert store.get("bucket", "k").read() == b"second"


# --- space ----------------------------------------------------------------------------------------------------


def test_a_full_compaction_brings_the_directory_close_to_its_live_bytes(
    tmp_path: Path, long_run: bool
) -> None:
    unit = 1 << 20 if long_run else 1 << 16
    rounds = 600 if long_run else 40
    options: dict[str, Any] = {"chunk_size": max(4096, unit // 4), "inline_max": unit // 16}
    path = tmp_path / "store"
    with Store.open(path, volume_size=64 * unit, **options) as store:
        store.create_bucket("bucket")
        for number in range(rounds):
            store.put("bucket", f"small/{number}", noise(unit // 20, number))
            store.put("bucket", f"large/{number}", noise(4 * unit, number))
            store.put("bucket", f"shared/{number}", noise(4 * unit, number % 10))
            store.copy("bucket", f"large/{number}", "bucket", f"copy/{number}")
            upload = store.create_upload("bucket", f"parts/{number}")
            for part in (1, 2):
                writer = store.part_writer("bucket", f"parts/{number}", upload.upload_id, part)
                writer.write(noise(2 * unit, number * 2 + part))
                writer.commit()
            parts = store.list_parts("bucket", f"parts/{number}", upload.upload_id).parts
            listed = [(part.number, part.etag) for part in parts]
            store.complete_upload("bucket", f"parts/{number}", upload.upload_id, listed, min_part_size=1)
        for number in range(0, rounds, 2):
            for kind in ("small", "large", "shared", "copy", "parts"):
                store.delete("bucket", f"{kind}/{number}")
        live = store.logical_dump()["live_bytes"]
    before = sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
    compact(path, CompactionPolicy(full=True, grace_s=0, volume_size=64 * unit))
    after = sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
    assert before > 1.5 * live
    assert after <= 1.05 * live, (before, live, after)
    assert check_store(path, data=True).is_clean


def test_the_space_of_a_removed_volume_comes_back_although_it_was_open_for_reading(tmp_path: Path) -> None:
    filled(tmp_path)
    with Store.open(tmp_path, **SIZES) as store:
        for entry in store.list("bucket").objects:
            store.get("bucket", entry.key).read()
        compact_beside(tmp_path)
        assert open_and_removed(tmp_path)
        for entry in store.list("bucket").objects:
            store.get("bucket", entry.key).read()  # from the new volume: opening that lets go of the old ones
        assert not open_and_removed(tmp_path)


def open_and_removed(path: Path) -> list[str]:
    """Files of a store that this process holds open although their names are gone."""
    links = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if fd_is_there(fd)]
    return [link for link in links if link.startswith(str(path)) and link.endswith(" (deleted)")]


def fd_is_there(fd: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{fd}")


def test_small_volumes_are_merged(tmp_path: Path) -> None:
    for number in range(5):
        with Store.open(tmp_path, **SIZES) as store:
            if not number:
                store.create_bucket("bucket")
            store.put("bucket", f"k{number}", noise(3000, number))
        offline(tmp_path, CompactionPolicy(threshold=0, min_dead_bytes=0, grace_s=0, volume_size=1 << 17))
    offline(tmp_path)
    assert len(volume_paths(tmp_path)) == 1


def test_the_index_gives_back_its_free_pages(tmp_path: Path) -> None:
    with Store.open(tmp_path, **SIZES) as store:
        store.create_bucket("bucket")
        for first in range(0, 4000, 200):
            with store.batch() as batch:
                for number in range(first, first + 200):
                    batch.put("bucket", f"key-{number:05}", b"")
        for first in range(0, 4000, 1000):
            store.delete_many("bucket", [(f"key-{n:05}", None, None) for n in range(first, first + 1000)])
    before = (tmp_path / "index" / "data.mdb").stat().st_size
    offline(tmp_path)
    assert (tmp_path / "index" / "data.mdb").stat().st_size < before / 4


# --- which volumes --------------------------------------------------------------------------------------------


def test_a_dry_run_names_the_victims_and_changes_nothing(tmp_path: Path) -> None:
    filled(tmp_path)
    before = {each: each.read_bytes() for each in volume_paths(tmp_path)}
    report = offline(tmp_path, CompactionPolicy(full=True, grace_s=0, dry_run=True))
    assert report.victims and not report.removed
    assert before == {each: each.read_bytes() for each in volume_paths(tmp_path)}


@pytest.mark.parametrize(
    "policy",
    [
        CompactionPolicy(threshold=0.99, min_dead_bytes=1, grace_s=0, volume_size=1 << 10),
        CompactionPolicy(threshold=0.1, min_dead_bytes=1 << 30, grace_s=0, volume_size=1 << 10),
        CompactionPolicy(threshold=0.1, min_dead_bytes=1, grace_s=3600, volume_size=1 << 10),
    ],
    ids=["too little of it is dead", "too few bytes are dead", "it was sealed a moment ago"],
)
def test_a_volume_is_left_alone_when(tmp_path: Path, policy: CompactionPolicy) -> None:
    filled(tmp_path)
    assert online(tmp_path, policy).victims == []


def test_a_run_takes_no_more_volumes_than_it_may(tmp_path: Path) -> None:
    filled(tmp_path, 120)
    policy = CompactionPolicy(threshold=0.1, min_dead_bytes=1, grace_s=0, max_volumes=2, volume_size=1 << 17)
    report = online(tmp_path, policy)
    assert len([volume for volume in report.victims if volume not in report.created]) == 2


def test_the_number_of_a_removed_volume_is_never_used_again(tmp_path: Path) -> None:
    with Store.open(tmp_path, **SIZES) as store:
        store.create_bucket("bucket")
        store.put("bucket", "k", noise(50_000))
        store.delete("bucket", "k")
        store.delete_bucket("bucket")
    highest = max(int(each.stem) for each in volume_paths(tmp_path))
    offline(tmp_path)
    with Store.open(tmp_path, **SIZES) as store:
        store.create_bucket("bucket")
    assert min(int(each.stem) for each in volume_paths(tmp_path)) > highest


def test_only_one_compaction_runs_at_a_time(tmp_path: Path) -> None:
    filled(tmp_path)
    lock = REAL.open_lock(tmp_path / LOCK_NAME)
    assert REAL.lock(lock, shared=False)
    with pytest.raises(errors.Busy, match="another compaction"):
        online(tmp_path)
    REAL.close(lock)


def test_a_compaction_offline_wants_the_store_alone(tmp_path: Path) -> None:
    filled(tmp_path)
    with Store.open(tmp_path, **SIZES):

        def try_it() -> None:
            with pytest.raises(errors.Busy, match="open elsewhere"):
                offline(tmp_path)

        assert in_a_fork(try_it) == 0


# --- beside others --------------------------------------------------------------------------------------------


def test_a_chunk_of_an_upload_in_flight_is_refused_once_its_volume_was_compacted_away(tmp_path: Path) -> None:
    with Store.open(tmp_path, **SIZES) as store:
        store.create_bucket("bucket")
        writer = store.writer("bucket", "in-flight")
        writer.write(noise(8192, 1))
        for number in range(20):
            store.put("bucket", "same", noise(20_000, 100 + number))
        compact_beside(tmp_path)
        assert 1 not in {int(each.stem) for each in volume_paths(tmp_path)}
        with pytest.raises(errors.Conflict, match="compacted away"):
            writer.commit()
        assert store.put("bucket", "in-flight", noise(8192, 1)).size == 8192
        assert store.get("bucket", "in-flight").read() == noise(8192, 1)


def test_readers_and_writers_never_notice_a_compaction(tmp_path: Path) -> None:
    left = filled(tmp_path, 120)
    stop = threading.Event()
    failures: list[BaseException] = []

    with Store.open(tmp_path, **SIZES) as store:

        def read() -> None:
            try:
                while not stop.is_set():
                    for key, data in left.items():
                        assert store.get("bucket", key).read() == data
            except BaseException as error:
                failures.append(error)

        def write() -> None:
            try:
                number = 0
                while not stop.is_set():
                    number += 1
                    try:
                        store.put("bucket", f"new/{number % 10}", noise(9000, number % 7))
                        if number % 3 == 0:
                            store.delete("bucket", f"new/{number % 10}")
                    except errors.Conflict:
                        pass  # the server answers 503 and the client comes again
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=read), threading.Thread(target=write)]
        for thread in threads:
            thread.start()
        for _ in range(4):
            compact_beside(tmp_path)
        stop.set()
        for thread in threads:
            thread.join()
        assert not failures, failures[0]
        check_accounts(store)
    assert_rebuild_changes_nothing(tmp_path)
    assert check_store(tmp_path, data=True, map_size=MAP).is_clean


# --- damage and crashes ---------------------------------------------------------------------------------------


def test_a_record_that_cannot_be_read_keeps_its_volume_and_everything_else_is_saved(tmp_path: Path) -> None:
    left = filled(tmp_path)
    bad_key = next(key for key, data in left.items() if len(data) > 4096)
    with Store.open(tmp_path, **SIZES) as store:
        ref = store.get("bucket", bad_key).manifest.chunk(0)
    path = next(each for each in volume_paths(tmp_path) if int(each.stem) == ref.volume)
    flip(path, ref.offset + 200)
    report = offline(tmp_path)
    assert report.quarantined == [ref.volume] and len(report.lost) == 1
    assert ref.volume in report.kept and path.exists()
    with Store.open(tmp_path, **SIZES) as store:
        with store._core.index.read() as txn:
            row = txn.volume(ref.volume)
        assert row is not None and row.state == VolumeState.QUARANTINED
        assert 0 < row.live_bytes < 5000  # one chunk, nothing else
        for key, data in left.items():
            if key == bad_key:
                with pytest.raises(errors.Corrupt):
                    store.get("bucket", key).read()
            else:
                assert store.get("bucket", key).read() == data
        store.delete("bucket", bad_key)
    offline(tmp_path)
    assert not path.exists()
    del left[bad_key]
    assert_holds(tmp_path, left)


def test_a_volume_is_kept_while_anything_lives_in_it_even_if_its_account_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = filled(tmp_path)
    forgotten: list[int] = []
    copy = compactor.Compactor._copy

    def forget_one(self: Any, source: Place, record: Any, *, is_grave: bool) -> None:
        if not forgotten and not is_grave:
            forgotten.append(source.volume)
        else:
            copy(self, source, record, is_grave=is_grave)

    def lie(core: Core, volume: int) -> None:
        def nothing_lives(txn: Txn) -> None:
            row = txn.volume(volume)
            assert row is not None
            txn.put_volume(volume, row._replace(live_bytes=0))

        change(core, nothing_lives)

    monkeypatch.setattr(compactor.Compactor, "_copy", forget_one)
    monkeypatch.setattr(compactor, "keep_highest", lie)
    report = offline(tmp_path)
    assert "still lives" in report.kept[forgotten[0]]
    assert report.removed
    assert_holds(tmp_path, left)


def test_a_body_that_rots_in_a_compacted_volume_costs_a_rebuild_nothing_else(tmp_path: Path) -> None:
    left = filled(tmp_path)
    offline(tmp_path)
    file, chunk = next(each for each in records_of(tmp_path) if each[1].header.type == RecordType.CHUNK)
    flip(file.path, chunk.header.offset + 300)
    rebuild(tmp_path, map_size=MAP)
    with Store.open(tmp_path, **SIZES) as store:
        bad = 0
        for key, data in left.items():
            try:
                assert store.get("bucket", key).read() == data
            except errors.Corrupt:
                bad += 1
        assert bad == 1


def test_a_full_disk_ends_a_compaction_and_nothing_else(tmp_path: Path) -> None:
    left = filled(tmp_path)
    faulty = FaultyFileSystem()
    with Store.open(tmp_path, **SIZES):
        pass
    faulty.fail("write_all", errno.ENOSPC, after=2)
    with pytest.raises(errors.Full):
        compact(tmp_path, FULL, map_size=MAP, fs=faulty)
    assert_holds(tmp_path, left)
    offline(tmp_path)
    assert_holds(tmp_path, left)
    assert_rebuild_changes_nothing(tmp_path)


class DyingFileSystem(FileSystem):
    """Ends the process at the nth call that changes something."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def _tick(self) -> None:
        self.calls -= 1
        if self.calls == 0:
            os._exit(99)

    def write_all(self, fd: int, buffers: Any, offset: int) -> None:
        whole: Buffer = b"".join(bytes(each) for each in buffers)
        self._tick()
        super().write_all(fd, [whole[: len(whole) // 2]], offset)
        self._tick()
        super().write_all(fd, [whole], offset)
        self._tick()

    def datasync(self, fd: int) -> None:
        self._tick()
        super().datasync(fd)
        self._tick()

    def link(self, source: Path, target: Path) -> None:
        self._tick()
        super().link(source, target)
        self._tick()

    def unlink(self, path: Path) -> None:
        self._tick()
        super().unlink(path)
        self._tick()

    def rename(self, source: Path, target: Path) -> None:
        self._tick()
        super().rename(source, target)
        self._tick()

    def sync_directory(self, path: Path) -> None:
        self._tick()
        super().sync_directory(path)

    def extend(self, path: Path, size: int) -> None:
        self._tick()
        super().extend(path, size)

    def drop_cached(self, fd: int, offset: int, length: int) -> None:
        self._tick()


def compact_until(path: Path, point: int) -> None:
    compact(path, FULL, map_size=MAP, fs=DyingFileSystem(point))


def test_a_compaction_that_dies_at_any_point_loses_nothing_and_is_finished_by_the_next(
    tmp_path: Path, long_run: bool
) -> None:
    left = filled(tmp_path / "origin", 40)
    point = 0
    while True:
        point += 1 if long_run else 7
        path = copy_store(tmp_path / "origin", tmp_path / f"at-{point}")
        status = in_a_fork(partial(compact_until, path, point))
        if status != 99:
            assert status == 0
            break
        assert_holds(path, left)
        copy = copy_store(path, tmp_path / f"rebuilt-{point}")
        rebuild(copy, map_size=MAP)
        assert_holds(copy, left)
        offline(path)
        assert_rebuild_changes_nothing(path)
        assert_holds(path, left)
        report = check_store(path, map_size=MAP)
        assert report.is_clean, report.problems
    assert point > 20


# --- uploads that nobody finishes -----------------------------------------------------------------------------


def test_uploads_in_which_nothing_happened_for_long_are_aborted(tmp_path: Path) -> None:
    with Store.open(tmp_path, **SIZES) as store:
        store.create_bucket("bucket")
        upload = store.create_upload("bucket", "k")
        writer = store.part_writer("bucket", "k", upload.upload_id, 1)
        writer.write(noise(9000))
        writer.commit()
    assert offline(tmp_path, abandoned_after_s=3600).uploads_aborted == 0
    assert offline(tmp_path, abandoned_after_s=0).uploads_aborted == 1
    assert disk_bytes(tmp_path) < 9000 + 2 * 4096
    with Store.open(tmp_path, **SIZES) as store:
        assert store.list_uploads("bucket").uploads == []
    assert_rebuild_changes_nothing(tmp_path)
