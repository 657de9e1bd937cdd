"""A compaction on a disk that fails: any call, any commit; copies that come back other than they were written.

Must not know: which calls a compaction makes.
"""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from cordwood.engine import CompactionPolicy, CordwoodError, Store, check_store, errors, filling
from cordwood.engine.compactor import Compactor
from cordwood.engine.filling import Pacer
from cordwood.engine.format import HEADER_SIZE, SUPERBLOCK_SIZE, Header, RecordType, header_seed, pack_record
from cordwood.engine.index import Index, Txn
from cordwood.engine.rows import VolumeState
from cordwood.engine.volume import Record, VolumeFile, volume_name
from tests.engine.support import flip, records_of
from tests.sim.crash import recover, scratch_directory
from tests.sim.faulty_fs import FaultyFileSystem, watching_index
from tests.sim.model import Model
from tests.sim.rules import OPTIONS, World, observe
from tests.sim.test_faults import STORY

POLICY = CompactionPolicy(full=True, grace_s=0, volume_size=OPTIONS["volume_size"])
Origin = tuple[Path, Model]


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    """A store in which much is dead, and its model."""
    with scratch_directory() as top:
        world = World(top / "store")
        for step in STORY:
            world.run(step)
        for number in range(9):
            world.run(("put", "one", f"gone/{number}", 20_000, number))
            world.run(("put", "one", f"kept/{number}", 200, number))
        for number in range(9):
            world.run(("delete", "one", f"gone/{number}", 0, None, True))
        world.close()
        yield top / "store", world.model


@contextmanager
def copied(origin: Origin) -> Iterator[tuple[Path, FaultyFileSystem]]:
    with scratch_directory() as top, watching_index():
        shutil.copytree(origin[0], top / "store")
        yield top / "store", FaultyFileSystem(top / "store")


def compacted(store: Store, policy: CompactionPolicy = POLICY) -> CordwoodError | OSError | None:
    try:
        report = Compactor(store._core, policy, is_alone=True).run()
    except (CordwoodError, OSError) as error:
        return error
    assert not report.lost and not report.quarantined
    return None


def assert_nothing_is_lost(path: Path, store: Store, model: Model) -> None:
    """Now, by a compaction that goes through, and after a recovery."""
    wanted = model.observe()
    assert observe(store) == wanted
    if store.read_only_reason is None:
        assert compacted(store) is None
        assert observe(store) == wanted
    try:
        store.close()
    except errors.ReadOnly:
        pass
    recover(path, [wanted], "all", check=True)


@pytest.mark.parametrize("sticky", [False, True], ids=["once", "from-then-on"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO], ids=["full", "io-error"])
def test_any_call_of_a_compaction_may_fail_and_nothing_is_lost(
    origin: Origin, error: int, sticky: bool, long_run: bool
) -> None:
    number = 0
    while True:
        with copied(origin) as (path, fs):
            store = Store.open(path, fs=fs, **OPTIONS)
            fs.fail_at, fs.error, fs.sticky = fs.count + number, error, sticky
            said = compacted(store)
            failed = fs.failed
            fs.fail_at, fs.failed = -1, None
            if failed is None:
                store.close()
                break
            try:
                if error == errno.ENOSPC and isinstance(said, CordwoodError):
                    assert isinstance(said, errors.Full | errors.ReadOnly)
                assert_nothing_is_lost(path, store, origin[1])
            except BaseException as failure:
                failure.add_note(f"call {number} failed: {failed}; the compaction said {said!r}")
                raise
        number += 1 if long_run else 5
    assert number > 40


@contextmanager
def failing_commit(number: int, *, when: str) -> Iterator[list[int]]:
    """The commit of that number fails, before or after it reached the disk; the list counts them."""
    commit = Index.commit
    seen = [0]

    def new_commit(self: Index, txn: Txn) -> None:
        seen[0] += 1
        if seen[0] - 1 != number:
            return commit(self, txn)
        if when == "after":
            commit(self, txn)
        else:
            txn.raw.abort()
        raise OSError(errno.EIO, "the index could not be written")

    with mock.patch.object(Index, "commit", new_commit):
        yield seen


@pytest.mark.parametrize("when", ["before", "after"])
def test_any_commit_of_a_compaction_may_fail_and_ends_all_writing(origin: Origin, when: str) -> None:
    """Whether it reached the disk is not known then: only a recovery can tell."""
    number = 0
    while True:
        with copied(origin) as (path, fs):
            store = Store.open(path, fs=fs, **OPTIONS)
            with failing_commit(number, when=when) as seen:
                said = compacted(store)
            if seen[0] <= number:
                store.close()
                break
            if not isinstance(
                said, OSError
            ):  # one commit is not the compactor's own: that of an unlinked volume
                assert isinstance(said, errors.ReadOnly) and store.read_only_reason is not None
                with pytest.raises(errors.ReadOnly):
                    store.put("one", "new", b"new")
            assert_nothing_is_lost(path, store, origin[1])
        number += 1
    assert number > 8


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_commit_of_a_recovery_may_fail_and_the_next_recovery_goes_through(
    origin: Origin, when: str
) -> None:
    with copied(origin) as (path, fs):
        shutil.copytree(path / "index", path.with_name("index.before"))
        world = World(path, fs=fs)
        world.model = origin[1].copy()
        world.run(("put", "one", "late", 5000, 3))
        world.close()
        shutil.rmtree(path / "index")
        shutil.copytree(path.with_name("index.before"), path / "index")
        with failing_commit(0, when=when), pytest.raises(OSError, match="could not be written"):
            Store.open(path, **OPTIONS)
        recover(path, [world.model.observe()], "all", check=True)


# --- copies that are not what was copied ----------------------------------------------------------------------------


def sealed_copies(path: Path, fs: FaultyFileSystem, spoil: Callable[[Path], None]) -> None:
    """Calls `spoil` with each volume of copies, once it is synced and before it is read back."""
    drop = fs.drop_cached
    done: set[int] = set()

    def dropped(fd: int, offset: int, length: int) -> None:
        drop(fd, offset, length)
        volume = int.from_bytes(fs.read(fd, SUPERBLOCK_SIZE, 0)[32:40], "little")
        if volume not in done:
            done.add(volume)
            spoil(path / "volumes" / volume_name(volume))

    fs.drop_cached = dropped  # type: ignore[method-assign]  # a fault, injected into this one disk


def records_in(volume: Path) -> list[tuple[VolumeFile, Record]]:
    return records_of(volume.parent.parent, int(volume.stem))


def flip_head(volume: Path) -> None:
    flip(volume, SUPERBLOCK_SIZE + HEADER_SIZE)


def flip_body(volume: Path) -> None:
    for _, record in records_in(volume):
        if record.header.body_length:
            flip(volume, record.header.offset + HEADER_SIZE + record.header.head_length)
            return


def write_instead(
    volume: Path, file: VolumeFile, header: Header, offset: int, head: bytes, body: bytes
) -> None:
    """A record that is whole by its checksums."""
    seed = header_seed(file.superblock.salt)
    pieces = pack_record(header.type, 0, offset, header.clock, 4096, header.node, head, body, seed)
    with open(volume, "r+b") as raw:
        raw.seek(offset)
        raw.write(b"".join(bytes(piece) for piece in pieces))


def forge_one(volume: Path) -> None:
    """In the place of a copy stands a record of its length with another content."""
    file, record = records_in(volume)[0]
    assert record.body is not None
    write_instead(volume, file, record.header, record.header.offset, bytes(len(record.head)), record.body)


def split_one(volume: Path) -> None:
    """Two records stand where one was copied, the second where none was expected."""
    for file, record in records_in(volume):
        header = record.header
        if header.type == RecordType.OBJECT and header.length > 160:
            half = header.length - 80
            write_instead(volume, file, header, header.offset, bytes(half - HEADER_SIZE), b"")
            write_instead(volume, file, header, header.offset + half, bytes(80 - HEADER_SIZE), b"")
            return


@pytest.mark.parametrize("spoil", [flip_head, flip_body, forge_one, split_one])
def test_a_copy_that_reads_back_otherwise_is_named_and_its_source_is_kept(
    origin: Origin, spoil: Callable[[Path], None]
) -> None:
    with copied(origin) as (path, fs):
        store = Store.open(path, fs=fs, **OPTIONS)
        sealed_copies(path, fs, spoil)
        report = Compactor(store._core, POLICY, is_alone=True).run()
        assert any("its source is kept" in each for each in report.lost)
        assert report.quarantined and report.kept
        assert observe(store) == origin[1].observe()
        with store._core.index.read() as txn:
            states = {volume: row.state for volume, row in txn.volumes().items()}
        assert {states[volume] for volume in report.quarantined} <= {
            VolumeState.QUARANTINED,
            VolumeState.RETIRED,
        }
        store.close()
        fs.drop_cached = FaultyFileSystem.drop_cached.__get__(fs)  # type: ignore[method-assign]  # and taken out
        with Store.open(path, fs=fs, **OPTIONS) as store:
            report = Compactor(store._core, POLICY, is_alone=True).run()
            assert not report.lost
            assert observe(store) == origin[1].observe()
        assert check_store(path, data=True, map_size=OPTIONS["map_size"]).is_clean


# --- stopping, and the rate ----------------------------------------------------------------------------------------


def test_a_compaction_that_is_stopped_in_any_round_keeps_what_it_copied_and_is_finished_by_the_next(
    origin: Origin,
) -> None:
    asked_most = 0
    for stop_at in range(20):
        with copied(origin) as (path, fs), Store.open(path, fs=fs, **OPTIONS) as store:
            asked = 0

            def should_stop(stop_at: int = stop_at) -> bool:
                nonlocal asked
                asked += 1
                return asked > stop_at

            report = Compactor(store._core, POLICY, is_alone=True, should_stop=should_stop).run()
            assert report.is_complete == (asked <= stop_at)
            if not report.is_complete:
                assert "the run was stopped" in report.kept.values()
            asked_most = max(asked_most, asked)
            assert_nothing_is_lost(path, store, origin[1])
            if report.is_complete:
                break
    assert asked_most > 2


class Clock:
    """Time that passes only while somebody sleeps, or is said to."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.slept_s += seconds


def test_maintenance_sleeps_as_long_as_its_rate_asks_for_and_saves_up_a_second_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(filling, "time", clock)
    heard: list[int] = []
    pacer = Pacer(1000, on_bytes=heard.append)
    for _ in range(10):
        pacer.spend(500)
    assert clock.slept_s == pytest.approx(5.0)
    clock.now_s += 100
    pacer.spend(500)
    assert clock.slept_s == pytest.approx(5.0), "half a second's worth after a long pause"
    pacer.spend(1500)
    assert clock.slept_s == pytest.approx(6.0)
    assert sum(heard) == 7000
    pacer.give_way(0.01)
    pacer.give_way(10)
    assert clock.slept_s == pytest.approx(6.06), "as long as the lock was held, within reason"
    Pacer(0, is_alone=True).give_way(1)
    Pacer(0).spend(1 << 40)
    assert clock.slept_s == pytest.approx(6.06)


def test_a_compaction_with_a_rate_does_the_same(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(filling, "time", clock)
    with copied(origin) as (path, fs), Store.open(path, fs=fs, **OPTIONS) as store:
        policy = CompactionPolicy(full=True, grace_s=0, volume_size=1 << 16, rate_bytes_s=100_000)
        report = Compactor(store._core, policy, is_alone=True).run()
        # Read once, written once, read back once; the victims' dead bytes are read too.
        assert clock.slept_s > 3 * report.bytes_copied / 100_000 - 1
        assert_nothing_is_lost(path, store, origin[1])


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"live_bytes": 8}, "8 live bytes are left in it"),
        ({"state": VolumeState.FILLING}, "its state changed meanwhile"),
    ],
    ids=["account", "state"],
)
def test_a_volume_whose_row_says_otherwise_at_the_last_look_is_kept(
    origin: Origin, row: dict[str, int], why: str
) -> None:
    with copied(origin) as (path, fs), Store.open(path, fs=fs, **OPTIONS) as store:
        look = Compactor._left_behind

        def look_and_change(self: Compactor, victim: Any) -> str | None:
            def body(txn: Txn) -> None:
                found = txn.volume(victim.file.id)
                assert found is not None
                txn.put_volume(victim.file.id, found._replace(**row))

            filling.change(store._core, body)
            return look(self, victim)

        with mock.patch.object(Compactor, "_left_behind", look_and_change):
            report = Compactor(store._core, POLICY, is_alone=True).run()
        assert report.kept and set(report.kept.values()) == {why}
        assert not report.removed
        assert observe(store) == origin[1].observe()
