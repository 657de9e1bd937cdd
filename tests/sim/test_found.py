"""What the simulation and its authors found in the engine, each as the shortest story that shows it.

Must not know: how the bugs were fixed.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from cordwood.engine import Store, errors, rebuild
from cordwood.engine.format import HEADER_SIZE, RecordType
from cordwood.engine.index import Index
from cordwood.engine.lengths import check_lengths
from cordwood.engine.operations import Content, Description, PutObject
from cordwood.engine.volume import volume_id_of
from tests.engine.support import FaultyFileSystem, flip, python, records_of, small, used_index_bytes
from tests.sim.crash import scratch
from tests.sim.faulty_fs import FaultyFileSystem as PowerCutFileSystem
from tests.sim.faulty_fs import watching_index

CHILD = """
import sys, os
sys.path.insert(0, os.getcwd())
from cordwood.engine import Store
from cordwood.engine.index import Index
from tests.engine.support import small
path = sys.argv[1]
def die(*_): os._exit(0)
"""


@pytest.fixture
def path() -> Iterator[Path]:
    top = scratch()
    yield top / "store"
    shutil.rmtree(top)


def volume_files(path: Path) -> list[Path]:
    return [each for each in sorted((path / "volumes").iterdir()) if volume_id_of(each.name) is not None]


def rebuilt_equals_live(path: Path, **options: Any) -> None:
    with small(path, **options) as store:
        live = store.logical_dump()
    rebuild(path, map_size=1 << 28)
    with small(path, **options) as store:
        assert store.logical_dump() == live


def test_a_sync_that_failed_once_is_not_believed_the_next_time(path: Path) -> None:
    """Two threads sync one volume: the kernel tells the first of the failure, and the second of a success."""
    fs = FaultyFileSystem()
    with small(path, fs=fs) as store:
        store.create_bucket("wood")
        appender = store._core.appender
        assert appender is not None
        with appender.batch(100, frees=False) as active:
            fs.fail("datasync", times=1)
            for _ in range(2):
                with pytest.raises(errors.ReadOnly):
                    active.sync()
        store._core.health.fail("for this test")  # so that closing does not sync a third time


def test_no_room_for_a_new_volume_does_not_make_the_store_read_only(path: Path) -> None:
    fs = FaultyFileSystem()
    with small(path, fs=fs, volume_size=1 << 16) as store:
        store.create_bucket("wood")
        fs.fail("create", errno.ENOSPC)
        with pytest.raises(errors.Full):
            for number in range(20):
                store.put("wood", str(number), os.urandom(5000))
        fs.heal()
        assert store.read_only_reason is None
        store.put("wood", "k", os.urandom(50_000))


def test_a_full_index_loses_nothing_and_goes_on_with_a_larger_map(path: Path) -> None:
    with small(path, map_size=400_000) as store:
        store.create_bucket("wood")
        keys = []
        with pytest.raises((errors.Full, errors.ReadOnly)):  # by where in the batch the last page went
            for number in range(10_000):
                store.put("wood", f"{number:05} {'x' * 400}", b"")
                keys.append(number)
    with small(path) as store:
        found = [int(entry.key[:5]) for entry in store.list("wood", max_keys=10_000).objects]
        assert found in (keys, [*keys, len(keys)])
        store.put("wood", "k", b"")
    rebuilt_equals_live(path)


def test_an_old_manifest_that_cannot_be_read_does_not_stop_its_object_from_being_deleted(path: Path) -> None:
    fs = FaultyFileSystem()
    with small(path, fs=fs) as store:
        store.create_bucket("wood")
        store.put("wood", "k", os.urandom(9000))
        fs.fail("read", errno.EIO)
        store.delete("wood", "k")
        fs.heal()
        assert store.read_only_reason is None
        assert not store.list("wood").objects


def test_closing_waits_for_those_who_are_committing(path: Path) -> None:
    """Each put under way ends: it is there after the next open, or its caller heard that the store was closed."""
    with small(path) as store:
        store.create_bucket("wood")
    for round_ in range(15):
        store = small(path, inline_max=4096)
        acknowledged: list[str] = []

        def put_many(name: str, store: Store = store, acknowledged: list[str] = acknowledged) -> None:
            for number in range(200):
                key = f"{name}-{number}"
                try:
                    store.put("wood", key, b"x" * 3000)
                except (errors.Closed, errors.Corrupt):
                    return
                acknowledged.append(key)

        threads = [
            threading.Thread(target=put_many, args=(f"{round_}-{each}",), daemon=True) for each in range(4)
        ]
        for thread in threads:
            thread.start()
        closer = threading.Thread(target=store.close, daemon=True)
        threading.Event().wait(0.002 * round_)
        closer.start()
        for thread in [*threads, closer]:
            thread.join(20)
            assert not thread.is_alive(), "somebody waits for ever"
        assert store.read_only_reason is None
        with small(path) as store:
            assert {entry.key for entry in store.list("wood", max_keys=10_000).objects} >= set(acknowledged)


def test_what_was_overtaken_by_a_later_commit_is_cut_even_from_a_sealed_volume(path: Path) -> None:
    """A process dies between the append of a batch and its commit, after another thread had sealed the volume."""
    with small(path, volume_size=1 << 16) as store:
        store.create_bucket("wood")
        python(
            CHILD
            + """
with small(path, volume_size=1 << 16) as store:
    store.put("wood", "before", b"b")
    commit = Index.commit
    def rotate_and_die(self, txn):
        for _ in range(20):
            store._core.appender.append_chunk(os.urandom(32), os.urandom(4096), is_digest=False)
        os._exit(0)
    Index.commit = rotate_and_die
    store.put("wood", "overtaken", b"o")
""",
            path,
        )
        store.put("wood", "after", b"a")
    with small(path, volume_size=1 << 16) as store:
        assert [entry.key for entry in store.list("wood").objects] == ["after", "before"]
    rebuilt_equals_live(path, volume_size=1 << 16)


def test_a_batch_that_was_overtaken_is_cut_as_a_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one millisecond the clocks of a dead batch and of a later commit overlap."""
    now = 2_000_000_000_000_000_000
    monkeypatch.setattr("cordwood.engine.clock.time.time_ns", lambda: now)
    with small(path) as store:
        store.create_bucket("wood")
        store.put("wood", "first", b"1")
        python(
            CHILD
            + f"""
import cordwood.engine.clock
cordwood.engine.clock.time.time_ns = lambda: {now}
from cordwood.engine.operations import Content, Description, PutObject
with small(path) as store:
    committer = store._core.committer
    with committer._working:
        for key in (b"new/x", b"new/y", b"new/z"):
            committer.submit(PutObject("wood", key, Content(1, bytes(16), inline=b"d"), Description()))
    Index.commit = die
    store.put("wood", "last", b"l")
""",
            path,
        )
        store.put("wood", "after", b"a")
    with small(path) as store:
        assert [entry.key for entry in store.list("wood").objects] == ["after", "first"]
    rebuilt_equals_live(path)


def test_what_was_overtaken_is_cut_even_if_its_clock_was_ahead(path: Path) -> None:
    """The dead writer's wall clock ran an hour ahead: only the chain of bases tells that others came after it."""
    with small(path) as store:
        store.create_bucket("wood")
        python(
            CHILD
            + """
import cordwood.engine.clock
import time
ahead = time.time_ns() + 3600 * 10**9
cordwood.engine.clock.time.time_ns = lambda: ahead
with small(path) as store:
    Index.commit = die
    store.put("wood", "key", b"overtaken")
""",
            path,
        )
        store.put("wood", "key", b"acknowledged")
    with small(path) as store:
        assert store.get("wood", "key").read() == b"acknowledged"
    rebuilt_equals_live(path)


def test_a_torn_second_copy_of_a_chunk_does_not_hide_the_whole_one_from_a_rebuild(path: Path) -> None:
    data = os.urandom(4096)
    with small(path) as store:
        store.create_bucket("wood")
        store.put("wood", "small", b"s")
        python(
            CHILD
            + """
data = bytes.fromhex(sys.argv[2])
store = small(path)
writer = store.writer("wood", "lost")
writer.write(data)
os._exit(0)
""",
            path,
            data.hex(),
        )
        store.put("wood", "kept", data)
    _, torn = volume_files(path)
    (record,) = [each for _, each in records_of(path, 2) if each.header.type == RecordType.CHUNK]
    flip(torn, record.header.offset + HEADER_SIZE + 2000)
    shutil.rmtree(path / "index")
    for _ in range(2):
        with small(path) as store:
            assert store.get("wood", "kept").read() == data


def test_the_mark_of_unsynced_writes_stays_while_one_relaxed_process_is_left(path: Path) -> None:
    with small(path, durability="relaxed") as store:
        store.create_bucket("wood")
        python(CHILD + "small(path, durability='relaxed').close()", path)
        assert [each.name for each in path.iterdir() if each.name.startswith("UNSYNCED")]
        store.put("wood", "k", b"v")
    assert not [each.name for each in path.iterdir() if each.name.startswith("UNSYNCED")]


def test_an_empty_index_file_is_a_missing_index_and_not_an_empty_store(path: Path) -> None:
    """LMDB makes a new index of an empty file; recovery would then have cut every volume down to nothing."""
    with small(path) as store:
        store.create_bucket("wood")
        store.put("wood", "k", b"v")
    (path / "index" / "data.mdb").write_bytes(b"")
    with small(path) as store:
        assert store.get("wood", "k").read() == b"v"


def test_a_fresh_index_beside_volumes_is_refused_before_anything_is_cut(path: Path) -> None:
    with small(path) as store:
        store.create_bucket("wood")
        store.put("wood", "k", b"v")
    shutil.rmtree(path / "index")
    (path / "index").mkdir()
    lmdb.open(str(path / "index"), map_size=1 << 20, max_dbs=16).close()
    sizes = [each.stat().st_size for each in volume_files(path)]
    with pytest.raises(errors.Corrupt):
        small(path)
    assert [each.stat().st_size for each in volume_files(path)] == sizes
    rebuild(path, map_size=1 << 28)
    with small(path) as store:
        assert store.get("wood", "k").read() == b"v"


def test_records_planted_inside_an_object_of_the_same_volume_are_not_believed(path: Path) -> None:
    """A client stores its volume's own bytes; then the chunk's header rots, and a rebuild looks into its body."""
    with small(path) as store:
        store.create_bucket("wood")
        store.put("wood", "ghost", b"g" * 100)
        records = volume_files(path)[0].read_bytes()[4096:]
        store.delete("wood", "ghost")
        store.put("wood", "planted", (b"1234" + records).ljust(1000, b"."))
        store.put("wood", "last", b"l")
    (chunk,) = [each for _, each in records_of(path) if each.header.type == RecordType.CHUNK]
    flip(volume_files(path)[0], chunk.header.offset + 20)
    rebuild(path, map_size=1 << 28)
    with small(path) as store:
        assert [entry.key for entry in store.list("wood").objects] == ["last", "planted"]


def test_what_was_refused_for_lack_of_room_does_not_come_back_after_a_crash(path: Path) -> None:
    """Two puts share one append that fails near its end: the first record is whole on the disk, but it was refused."""
    path.mkdir()
    fs = PowerCutFileSystem(path)
    with watching_index(), small(path, fs=fs) as store:
        store.create_bucket("wood")
        committer = store._core.committer
        assert committer is not None
        with committer._working:
            pending = [
                committer.submit(PutObject("wood", key, Content(1, bytes(16), inline=b"d"), Description()))
                for key in (b"first", b"second")
            ]
            fs.short, fs.error, fs.fail_at = 0.95, errno.ENOSPC, fs.count
        committer.wake()
        for each in pending:
            with pytest.raises(errors.Full):
                each.result(20)
        fs.image().write(path.with_name("crashed"), "all", random.Random(0))
    with small(path.with_name("crashed")) as store:
        assert not store.list("wood").objects


def test_the_index_is_synced_by_what_the_tests_believe_syncs_it() -> None:
    """The power cuts of this folder hook these methods; a rename must not silence them."""
    assert all(hasattr(Index, name) for name in ("commit", "sync", "_cover_last_page"))


def test_the_first_index_appears_under_its_name_when_it_is_whole(path: Path) -> None:
    """LMDB makes its file with writes that are not synced: a power cut left a store that did not open."""

    class Watching(FaultyFileSystem):
        seen: list[str] = []  # noqa: RUF012  # one test, one list

        def sync_directory(self, path: Path) -> None:
            self.seen.append(path.name)
            super().sync_directory(path)

        def rename(self, source: Path, target: Path) -> None:
            if target.name == "index":
                assert "index.new" in self.seen, "its directory was synced before"
                assert (source / "data.mdb").stat().st_size > 8192
                self.seen.append("published")
            super().rename(source, target)

    fs = Watching()
    with small(path, fs=fs):
        assert "published" in fs.seen


def test_an_index_that_grows_while_it_is_opened_is_not_taken_for_a_truncated_one(path: Path) -> None:
    """Its length was taken before its meta page was read: a process that opened while another committed was refused."""
    data = path / "index" / "data.mdb"
    with small(path) as store:
        store.create_bucket("wood")
    before = data.read_bytes()
    with small(path) as store, store.batch() as batch:
        for number in range(6000):
            batch.put("wood", f"{number:0100}", b"x")
    after = data.read_bytes()
    assert len(after) > len(before)

    class Growing(FaultyFileSystem):
        """Between the first look at the length and the next call the other process commits."""

        def size_of(self, path: Path) -> int | None:
            size = super().size_of(path)
            if path == data and size == len(before):
                data.write_bytes(after)
            return size

    data.write_bytes(before)
    check_lengths(Growing(), data.parent)
    data.write_bytes(after[: used_index_bytes(path) // 2])
    with pytest.raises(errors.Corrupt, match="truncated"):
        check_lengths(Growing(), data.parent)
