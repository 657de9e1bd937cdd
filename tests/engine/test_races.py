"""What another thread or process does between two looks: each is refused, tried again or passed over, as it should be.

The other one's part is played by a callback or a file system at exactly the moment that matters.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lmdb
import pytest

from cordwood.engine import CompactionPolicy, Conditions, Store, compact, errors, opening, volume
from cordwood.engine.attributes import SetAttrs
from cordwood.engine.compactor import Compactor
from cordwood.engine.fs import REAL, Buffer, FileSystem
from cordwood.engine.health import Health
from cordwood.engine.index import MAX_READERS, Index, translate
from cordwood.engine.opening import read_identity
from cordwood.engine.recovery import Recovery
from cordwood.engine.rows import VolumeState
from tests.engine.support import SMALL, KeyedCipher, noise, small, volume_paths

FULL = CompactionPolicy(full=True, grace_s=0, volume_size=1 << 17)


def void(_: object) -> None:
    return None


# --- one object, two who change it ----------------------------------------------------------------------------------


def test_an_object_that_changes_under_each_attempt_to_rename_it_is_a_conflict(store: Store) -> None:
    store.put("wood", "k", b"0")
    seen = []

    def meddle(info: Any) -> None:
        seen.append(info.etag)
        store.put("wood", "k", b"%d" % len(seen))

    with pytest.raises(errors.Conflict):
        store.rename_object("wood", "k", "new", confirm=meddle)
    assert len(set(seen)) == len(seen) > 2, "each attempt looked again"
    assert [entry.key for entry in store.list("wood").objects] == ["k"]


def test_an_object_that_is_deleted_under_its_rename_is_not_found(store: Store) -> None:
    store.put("wood", "k", b"0")
    with pytest.raises(errors.KeyNotFound):
        store.rename_object("wood", "k", "new", confirm=lambda _: void(store.delete("wood", "k")))
    assert not store.list("wood").objects


def test_attributes_of_what_is_gone_by_then_are_not_found(versioned: Store) -> None:
    """Between the look at an object and the commit of its new attributes."""
    store = versioned
    info = store.put("wood", "k", b"1")
    _, committer = store._core.writing()

    def change(key: bytes, version_id: str | None) -> None:
        committer.execute(SetAttrs("wood", key, version_id, 1, 0, {"n": 1}))

    with pytest.raises(errors.KeyNotFound):
        change(b"none", None)
    with pytest.raises(errors.VersionNotFound):
        change(b"k", "0123456789abcdef")
    store.delete("wood", "k")
    with pytest.raises(errors.DeleteMarkerFound):
        change(b"k", None)
    with pytest.raises(errors.Conflict):
        change(b"k", info.version_id)


def test_a_version_that_has_become_the_newest_is_not_deleted_as_noncurrent(versioned: Store) -> None:
    old = versioned.put("wood", "k", b"1").version_id
    new = versioned.put("wood", "k", b"2").version_id
    condition = Conditions(if_noncurrent=True)
    with pytest.raises(errors.PreconditionFailed):
        versioned.delete("wood", "k", version_id=new, conditions=condition)
    assert versioned.delete("wood", "k", version_id=old, conditions=condition).existed
    assert versioned.get("wood", "k").read() == b"2"


def test_an_upload_of_another_second_is_not_aborted(store: Store) -> None:
    upload = store.create_upload("wood", "k")
    with pytest.raises(errors.PreconditionFailed):
        store.abort_upload("wood", "k", upload.upload_id, if_initiated_ms=upload.initiated_ms - 5000)
    assert store.list_uploads("wood").uploads
    store.abort_upload("wood", "k", upload.upload_id, if_initiated_ms=upload.initiated_ms)
    assert not store.list_uploads("wood").uploads


def test_bytes_are_not_added_while_the_object_changes_all_the_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("wood", "k", b"0")
    _, committer = store._core.writing()
    execute = committer.execute
    tries = []

    def meddle(operation: Any) -> Any:
        if type(operation).__name__ == "Append":
            tries.append(1)
            store.put("wood", "k", b"%d" % (len(tries) % 10))
        return execute(operation)

    monkeypatch.setattr(committer, "execute", meddle)
    with pytest.raises(errors.Conflict, match="changed all the time"):
        store.append("wood", "k", b"more", offset=1)
    assert len(tries) > 2 and len(store.get("wood", "k").read()) == 1


# --- reading while a compaction removes -------------------------------------------------------------------------------


def test_a_reader_of_what_was_deleted_and_compacted_away_is_told_and_gets_no_other_bytes(path: Path) -> None:
    with small(path, volume_size=1 << 17) as store:
        store.create_bucket("wood")
        for number in range(20):
            store.put("wood", f"k{number}", noise(9000, number))
        reader = store.get("wood", "k0")
        for number in range(20):
            store.delete("wood", f"k{number}")
        Compactor(store._core, FULL).run()
        store._core.volumes.forget_unlinked()
        with pytest.raises(errors.Corrupt, match="is missing"):
            reader.read()


def test_an_encrypted_object_is_read_in_small_steps_and_never_without_waiting(store: Store) -> None:
    cipher = KeyedCipher()
    data = noise(9000)
    store.put("wood", "k", data, cipher=cipher)
    with store.get("wood", "k") as reader:
        with pytest.raises(errors.InvalidState, match="encrypted"):
            reader.read_cached()
        reader.unlock(cipher)
        steps = [reader.read_at(at, 100) for at in range(0, 9000, 100)]
    assert b"".join(steps) == data


class NothingCached(FileSystem):
    """A page cache in which `missing` says what is not there."""

    missing = False

    def read_into(self, fd: int, buffer: memoryview, offset: int, *, cached_only: bool = False) -> int:
        if cached_only and self.missing:
            return 0
        return super().read_into(fd, buffer, offset, cached_only=cached_only)

    def read_cached(self, fd: int, length: int, offset: int) -> bytes | None:
        return None if self.missing else super().read_cached(fd, length, offset)


def test_a_span_and_attributes_that_are_not_in_memory_are_waited_for_only_by_whoever_may(path: Path) -> None:
    fs = NothingCached()
    with small(path, fs=fs) as store:
        store.create_bucket("wood")
        store.put("wood", "k", noise(9000))
        store.update_attrs("wood", "k", {"n": 1})
        spans = store.get("wood", "k").spans()
        fs.missing = True
        assert spans.take(wait=False) is None
        assert store.get("wood", "k", range=(10, 5000)).read_cached() is None
        with pytest.raises(errors.WouldBlock):
            store.get("wood", "k", wait=False)
        fs.missing = False
        taken = spans.take(wait=False)
        assert taken is not None and os.pread(taken.fd, taken.length, taken.offset) == noise(9000)[:4096]
        fs.missing = True
        rest = [os.pread(span.fd, span.length, span.offset) for span in spans]
        assert b"".join(rest) == noise(9000)[4096:]


def test_attributes_alone_may_be_what_is_not_in_memory(path: Path) -> None:
    class Second(FileSystem):
        reads = -1

        def read_cached(self, fd: int, length: int, offset: int) -> bytes | None:
            self.reads -= 1
            return None if self.reads == 0 else super().read_cached(fd, length, offset)

    fs = Second()
    with small(path, fs=fs) as store:
        store.create_bucket("wood")
        store.put("wood", "k", b"small")
        store.update_attrs("wood", "k", {"n": 1})
        fs.reads = 2
        with pytest.raises(errors.WouldBlock, match="attributes"):
            store.get("wood", "k", wait=False)
        assert store.get("wood", "k", wait=False).info.attrs == {"n": 1}


# --- volumes ---------------------------------------------------------------------------------------------------------


def test_a_volume_that_another_process_sealed_meanwhile_is_not_appended_to(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small(path) as store:
        store.create_bucket("wood")
    before = volume_paths(path)[0].read_bytes()
    with small(path) as store:
        core = store._core
        rows = Recovery(REAL, core.index, core.volumes, path / "RECOVERY", 1 << 20)._unsealed()
        assert [volume for volume, _ in rows] == [1]
        txn = core.index.begin()
        row = txn.volume(1)
        assert row is not None
        txn.put_volume(1, row._replace(state=VolumeState.SEALED))
        core.index.commit(txn)
        monkeypatch.setattr(Recovery, "_unsealed", lambda self: rows)
        store.put("wood", "k", b"1")
        assert store.get("wood", "k").read() == b"1"
    assert volume_paths(path)[0].read_bytes() == before and len(volume_paths(path)) == 2


def test_a_volume_that_has_no_room_is_not_gone_on_with_and_one_record_may_be_longer_than_a_volume(
    path: Path,
) -> None:
    with small(path, volume_size=1 << 16) as store:
        store.create_bucket("wood", attrs={"long": "x" * 100_000})
        assert len(volume_paths(path)) == 1
    for key, options, volumes in (
        ("no room", {"volume_size": 1 << 16}, 2),
        ("room in the first", {"volume_size": 1 << 18}, 2),
        ("room, but not enough", {"volume_size": 1 << 16, "chunk_size": 1 << 16}, 3),
    ):
        with small(path, **options) as store:
            store.put("wood", key, noise(40_000, volumes))
            assert len(volume_paths(path)) == volumes, key
    with small(path) as store:
        assert store.get("wood", "no room").read() == noise(40_000, 2)
        assert store.get("wood", "room, but not enough").read() == noise(40_000, 3)


def test_no_more_volumes_are_open_for_reading_than_may_be(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume, "_OPEN_VOLUMES_MAX", 3)
    with small(path, volume_size=1 << 16) as store:
        store.create_bucket("wood")
        for number in range(12):
            store.put("wood", f"k{number}", noise(50_000, number))
        for _ in range(2):
            for number in range(12):
                assert store.get("wood", f"k{number}").read() == noise(50_000, number)
        assert len(volume_paths(path)) > 6
        assert len(store._core.volumes._open) <= 3


class Taken(FileSystem):
    """Another process holds the first temporary file, as one that clears leftovers away would."""

    taken = 0

    def lock(self, fd: int, *, shared: bool) -> bool:
        name = os.readlink(f"/proc/self/fd/{fd}")
        if name.endswith(".tmp") and not self.taken:
            self.taken += 1
            return False
        return super().lock(fd, shared=shared)


def test_a_new_volume_that_is_taken_for_a_leftover_is_made_again(path: Path) -> None:
    fs = Taken()
    with small(path, fs=fs) as store:
        store.create_bucket("wood")
        store.put("wood", "k", b"1")
        assert fs.taken == 1
    assert [each.name for each in (path / "volumes").iterdir()] == ["0000000001.vol"]


class Interrupted(FileSystem):
    """Somebody presses Ctrl-C in the middle of a write."""

    armed = False

    def write_all(self, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
        if self.armed:
            self.armed = False
            super().write_all(fd, [b"".join(bytes(each) for each in buffers)[:-8]], offset)
            raise KeyboardInterrupt
        super().write_all(fd, buffers, offset)


def test_an_interrupt_in_the_middle_of_an_append_leaves_nothing_of_it(path: Path) -> None:
    fs = Interrupted()
    with small(path, fs=fs) as store:
        store.create_bucket("wood")
        size = volume_paths(path)[0].stat().st_size
        writer = store.writer("wood", "k")
        fs.armed = True
        with pytest.raises(KeyboardInterrupt):
            writer.write(noise(9000))
        assert volume_paths(path)[0].stat().st_size == size
        store.put("wood", "k", noise(9000))
        assert store.get("wood", "k").read() == noise(9000)


# --- opening ---------------------------------------------------------------------------------------------------------


class Faster(FileSystem):
    """Another process makes the store while this one waits for its turn."""

    def lock_wait(self, fd: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if name.name == "RECOVERY" and not (name.parent / "FORMAT").exists():
            opening._identify(REAL, name.parent, opening.Options())
        super().lock_wait(fd)


def test_of_two_processes_that_make_one_store_both_take_the_identity_of_the_faster(path: Path) -> None:
    with small(path, fs=Faster()) as store:
        store.create_bucket("wood")
    identity = read_identity(REAL, path)
    assert identity is not None
    assert identity.store in volume_paths(path)[0].read_bytes()[:64]


def test_an_empty_index_of_a_store_without_volumes_is_taken_over(path: Path) -> None:
    """As a process leaves it that dies between making the index and writing to it."""
    with small(path) as store:
        txn = store._core.index.begin()
        txn.delete(b"store", txn.tables.meta)
        store._core.index.commit(txn)
    with small(path) as store:
        store.create_bucket("wood")
    with small(path) as store:
        assert [bucket.name for bucket in store.list_buckets()] == ["wood"]


def test_an_index_that_a_compaction_left_half_rewritten_is_begun_anew(path: Path) -> None:
    with small(path) as store:
        store.create_bucket("wood")
        store.put("wood", "k", noise(9000))
    real = opening.shrink_index
    leftovers = []

    def leave(directory: Path, **options: Any) -> None:
        (path / "index.new").mkdir()
        (path / "index.new" / "data.mdb").write_bytes(b"half")
        leftovers.append(1)
        real(directory, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "shrink_index", leave)
        compact(path, FULL, map_size=SMALL["map_size"])
    assert leftovers and not (path / "index.new").exists()
    with small(path) as store:
        assert store.get("wood", "k").read() == noise(9000)


def test_the_first_failure_is_the_one_that_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    health = Health()
    health.check()
    health.fail("first")
    health.fail("second")
    with pytest.raises(errors.ReadOnly, match="first"):
        health.check()


def test_errors_of_lmdb_have_names_and_ways_out(store: Store, path: Path) -> None:
    assert isinstance(translate(lmdb.MapFullError("m"), path), errors.Full)
    readers = translate(lmdb.ReadersFullError("r"), path)
    assert isinstance(readers, errors.Busy) and str(MAX_READERS) in str(readers)
    assert isinstance(translate(lmdb.DiskError("d"), path), errors.Full)
    assert isinstance(translate(lmdb.Error(f"write: {errno.ENOSPC}"), path), errors.Full)
    assert isinstance(translate(lmdb.Error("closed by a fork"), path), errors.Closed)
    with pytest.raises(errors.Busy, match="open in this process already"):
        Index(REAL, path / "index", map_size=SMALL["map_size"], sync=True, read_only=True)
    numbered = path / "28" / "122"
    assert isinstance(translate(lmdb.Error(f"{numbered}: bad"), numbered), errors.Corrupt)
    with pytest.raises(errors.Corrupt, match="cordwood rebuild"):
        raise translate(lmdb.CorruptedError("page"), path)


class NoRoom(FileSystem):
    """The index can be made no longer, and is shorter than it says."""

    armed = False

    def size_of(self, path: Path) -> int | None:
        return 4096 if self.armed and path.name == "data.mdb" else super().size_of(path)

    def extend(self, path: Path, size: int) -> None:
        if self.armed:
            raise OSError(errno.ENOSPC, "told to")
        super().extend(path, size)


def test_an_index_that_stays_shorter_than_it_says_ends_all_writing(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    fs = NoRoom()
    with small(path, fs=fs) as store:
        store.create_bucket("wood")
        fs.armed = True
        store._core.index._file_size = 0
        with pytest.raises(errors.ReadOnly, match="reopen the store"):
            store.put("wood", "k", b"1")
        fs.armed = False
        assert store.read_only_reason is not None
    with small(path) as store:
        store.put("wood", "k", b"1")
