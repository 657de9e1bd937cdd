"""A disk that refuses: for every Nth call of every kind, what was acknowledged stays and what was refused is absent."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from cordwood.engine import Store, errors
from tests.engine.support import (
    FaultyFileSystem,
    check_accounts,
    check_rebuilt,
    first_volume,
    keys_of,
    noise,
    small,
    volume_paths,
)


@pytest.fixture
def fs() -> FaultyFileSystem:
    return FaultyFileSystem()


@pytest.fixture
def faulty(path: Path, fs: FaultyFileSystem) -> Store:
    """A store on a disk that can be made to fail; each test closes it itself."""
    store = small(path, fs=fs)
    store.create_bucket("wood")
    store.put("wood", "before", noise(9000, 9))
    return store


WRITES: dict[str, Callable[[Store], object]] = {
    "a small put": lambda store: store.put("wood", "k", b"x"),
    "a large put": lambda store: store.put("wood", "d/k", noise(20_000)),
    "a delete": lambda store: store.delete("wood", "before"),
    "a copy": lambda store: store.copy("wood", "before", "wood", "k"),
    "an upload": lambda store: store.create_upload("wood", "k"),
    "a bucket": lambda store: store.create_bucket("other"),
}


@pytest.mark.parametrize("what", WRITES)
def test_a_full_disk_refuses_the_write_leaves_nothing_and_the_store_goes_on(
    path: Path, fs: FaultyFileSystem, faulty: Store, what: str
) -> None:
    with faulty as store:
        dump = store.logical_dump()
        for after in range(100):
            size = first_volume(path).stat().st_size
            fs.fail("write_all", errno.ENOSPC, after=after, times=1)
            try:
                WRITES[what](store)
            except errors.Full:
                assert store.logical_dump() == dump
                assert store.read_only_reason is None
                assert first_volume(path).stat().st_size >= size
            else:
                break
        else:
            pytest.fail("it never succeeded")
        assert after >= 1
        fs.heal()
        store.put("wood", "after", noise(9000, 2))
        assert store.get("wood", "after").read() == noise(9000, 2)
        check_accounts(store)
    check_rebuilt(path)


def test_what_a_full_disk_wrote_in_part_is_cut_off_at_once(
    path: Path, fs: FaultyFileSystem, faulty: Store
) -> None:
    with faulty as store:
        size = first_volume(path).stat().st_size
        fs.fail("write_all", errno.ENOSPC, times=1)
        with pytest.raises(errors.Full, match="free some space"):
            store.put("wood", "k", b"x" * 200)
        assert first_volume(path).stat().st_size == size


def test_a_nearly_full_disk_takes_no_data_but_deletes(
    path: Path, fs: FaultyFileSystem, faulty: Store
) -> None:
    with faulty as store:
        fs.free = 1 << 20
        for call in (
            lambda: store.put("wood", "k", b"x"),
            lambda: store.put("wood", "k", noise(9000)),
            lambda: store.create_bucket("other"),
        ):
            with pytest.raises(errors.Full, match="delete something or add space"):
                call()
        assert keys_of(store, "wood") == ["before"]
        store.delete("wood", "before")
        assert keys_of(store, "wood") == []
        fs.heal()
        store.put("wood", "k", b"x")
        check_accounts(store)


def test_a_delete_that_is_queued_with_a_put_on_a_full_disk_still_succeeds(
    fs: FaultyFileSystem, faulty: Store
) -> None:
    """They are one batch; the batch as a whole finds no room."""
    with faulty as store:
        working = store._core.committer
        assert working is not None
        fs.free = 1 << 20
        writer = store.writer("wood", "k")
        writer.write(b"x")
        with working._working:  # nothing is committed until both are queued
            put = writer.commit_async()
            delete = store.delete_async("wood", "before")
        working.wake()
        with pytest.raises(errors.Full):
            put.result(30)
        assert delete.result(30).existed
        assert keys_of(store, "wood") == []


def test_a_failed_sync_is_final_reads_go_on_and_a_reopening_recovers(
    path: Path, fs: FaultyFileSystem, faulty: Store
) -> None:
    with faulty as store:
        fs.fail("datasync", times=1)
        with pytest.raises(errors.ReadOnly, match=r"sync failed.*reopen"):
            store.put("wood", "k", b"x")
        assert store.read_only_reason is not None and "sync failed" in store.read_only_reason
        for call in (
            lambda: store.put("wood", "k", b"x"),
            lambda: store.put("wood", "k", noise(9000)),
            lambda: store.delete("wood", "before"),
            lambda: store.writer("wood", "k"),
        ):
            with pytest.raises(errors.ReadOnly, match="sync failed"):
                call()
        assert fs.calls["datasync"] > 0
        assert store.get("wood", "before").read() == noise(9000, 9)
        assert keys_of(store, "wood") == ["before"]
    with small(path) as store:
        assert store.read_only_reason is None
        assert keys_of(store, "wood") in (["before"], ["before", "k"])  # its outcome is unknown
        store.put("wood", "after", b"y")
        check_accounts(store)
    check_rebuilt(path)


@pytest.mark.parametrize("call", ["write_all", "truncate"])
def test_a_write_error_turns_the_store_read_only_and_loses_nothing(
    path: Path, fs: FaultyFileSystem, faulty: Store, call: str
) -> None:
    with faulty as store:
        fs.fail("write_all", errno.EIO if call == "write_all" else errno.ENOSPC, times=1)
        if call == "truncate":
            fs.fail("truncate", errno.EIO, times=1)
        with pytest.raises(errors.ReadOnly, match="append failed"):
            store.put("wood", "k", b"x")
        assert store.read_only_reason is not None
        assert store.get("wood", "before").read() == noise(9000, 9)
    with small(path) as store:
        assert keys_of(store, "wood") == ["before"]
        check_accounts(store)
    check_rebuilt(path)


def test_a_read_error_is_not_taken_for_a_missing_object_and_not_for_rot(
    fs: FaultyFileSystem, faulty: Store
) -> None:
    with faulty as store:
        fs.fail("read", errno.EIO)
        with pytest.raises(OSError) as failed:
            store.get("wood", "before").read()
        assert failed.value.errno == errno.EIO
        fs.heal()
        assert store.get("wood", "before").read() == noise(9000, 9)
        assert store.read_only_reason is None


SCRIPT: list[tuple[str, Callable[[Store], object]]] = [
    ("bucket", lambda store: store.create_bucket("wood")),
    ("small", lambda store: store.put("wood", "small", b"1")),
    ("large", lambda store: store.put("wood", "d/large", noise(30_000, 1))),
    ("other", lambda store: store.put("wood", "d/other", noise(50_000, 2))),
    ("delete", lambda store: store.delete("wood", "small")),
    ("rename", lambda store: store.rename("wood", "d/", "e/f/")),
    ("again", lambda store: store.put("wood", "d/large", noise(30_000, 3))),
]
AFTER: dict[str, dict[str, bytes]] = {
    "bucket": {},
    "small": {"small": b"1"},
    "large": {"small": b"1", "d/large": noise(30_000, 1)},
    "other": {"small": b"1", "d/large": noise(30_000, 1), "d/other": noise(50_000, 2)},
    "delete": {"d/large": noise(30_000, 1), "d/other": noise(50_000, 2)},
    "rename": {"e/f/large": noise(30_000, 1), "e/f/other": noise(50_000, 2)},
    "again": {"e/f/large": noise(30_000, 1), "e/f/other": noise(50_000, 2), "d/large": noise(30_000, 3)},
}
CALLS = ["write_all", "datasync", "create", "link", "rename", "sync_directory", "extend", "truncate", "read"]


def content(store: Store) -> dict[str, bytes] | None:
    if not store.list_buckets():
        return None
    return {key: store.get("wood", key).read() for key in keys_of(store, "wood")}


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
@pytest.mark.parametrize("call", CALLS)
def test_whichever_call_fails_the_acknowledged_is_kept_and_the_next_opening_is_sound(
    tmp_path: Path, call: str, error: int, long_run: bool
) -> None:
    """The Nth call fails, for N = 1, 2, 3 and so on, until the whole script passes. From then on the disk is dead."""
    number = 0
    while True:
        path = tmp_path / f"{number}"
        fs = FaultyFileSystem()
        fs.fail(call, error, after=number)
        done: str | None = None
        under_way: str | None = None
        try:
            with small(path, fs=fs, volume_size=1 << 16) as store:
                for name, step in SCRIPT:
                    under_way = name
                    step(store)
                    done, under_way = name, None
        except (errors.CordwoodError, OSError):
            pass
        passed = fs.calls[call] <= number
        with small(path, volume_size=1 << 16) as store:
            found = content(store)
            allowed = [AFTER[done] if done else None, *([AFTER[under_way]] if under_way else [])]
            assert found in allowed, (number, done, under_way)
            check_accounts(store)
        check_rebuilt(path, volume_size=1 << 16)
        if passed:
            assert done == "again"
            return
        number += 1 if long_run or number < 6 else 4


def test_short_writes_are_gone_on_with(path: Path) -> None:
    """The kernel may write less than it was given, at any byte."""
    import os

    from cordwood.engine.fs import FileSystem

    class Short(FileSystem):
        def write_all(self, fd: int, buffers: object, offset: int) -> None:
            original = os.pwritev

            def some(fd: int, group: list[bytes], offset: int) -> int:
                data = b"".join(bytes(each) for each in group)
                return os.pwrite(fd, data[: max(1, len(data) // 3)], offset)

            os.pwritev = some  # type: ignore[assignment]
            try:
                super().write_all(fd, buffers, offset)  # type: ignore[arg-type]
            finally:
                os.pwritev = original

    with small(path, fs=Short()) as store:
        store.create_bucket("wood")
        with store.batch() as batch:
            for each in range(600):  # more buffers than one system call takes
                batch.put("wood", f"k{each}", noise(300, each), metadata={"n": str(each)})
            batch.put("wood", "large", noise(50_000))
        assert store.get("wood", "k599").read() == noise(300, 599)
        assert store.get("wood", "large").read() == noise(50_000)
    check_rebuilt(path)
    assert len(volume_paths(path)) >= 1
