"""Stores that are open in several processes: what one leaves behind or has not synced does not hurt the others."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from cordwood.engine import Store, namespace, opening
from cordwood.engine.fs import REAL, FileSystem
from tests.engine.support import SMALL, first_volume, lines_of, noise, small, start

RELAXED = """
import sys
from cordwood.engine import Store
store = Store.open(sys.argv[1], durability=sys.argv[2])
store.create_bucket("wood")
store.put("wood", "dir/theirs", b"1")
print("written", flush=True)
input()
"""


class Syncs(FileSystem):
    """Remembers the names of the files that were synced."""

    def __init__(self) -> None:
        self.synced: list[str] = []

    def datasync(self, fd: int) -> None:
        self.synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
        super().datasync(fd)


@pytest.mark.parametrize(("durability", "others"), [("relaxed", True), ("strict", False)])
def test_what_a_strict_commit_rests_on_in_the_volume_of_a_relaxed_process_is_synced_with_it(
    path: Path, durability: str, others: bool
) -> None:
    other = start(RELAXED, path, durability)
    assert next(lines_of(other)) == "written"
    fs = Syncs()
    with Store.open(path, fs=fs, **SMALL) as store:
        store.put("wood", "dir/first", b"2")  # claims a volume of its own
        fs.synced.clear()
        store.put("wood", "dir/ours", b"3")
        theirs = first_volume(path).name
        assert len(set(fs.synced) - {theirs}) == 1
        assert (theirs in fs.synced) == others
    assert other.stdin is not None
    other.stdin.write("\n")
    other.stdin.flush()
    assert other.wait(30) == 0


@pytest.mark.parametrize("read_only", [False, True])
def test_a_process_that_opens_no_other_volume_still_lets_go_of_one_that_was_removed(
    path: Path, monkeypatch: pytest.MonkeyPatch, read_only: bool
) -> None:
    with small(path) as store:
        store.create_bucket("wood")
        store.put("wood", "a", noise(9000))
    monkeypatch.setattr(opening, "_UPKEEP_INTERVAL_S", 0.02)
    with small(path, read_only=read_only) as store:
        assert store.get("wood", "a").read() == noise(9000)
        volume = first_volume(path)
        held = [fd for fd in os.listdir("/proc/self/fd") if _target(fd) == str(volume)]
        assert held
        moved = volume.rename(volume.with_name("gone"))
        moved.unlink()
        deadline = time.monotonic() + 20
        while store._core.volumes._open and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not store._core.volumes._open


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        return ""


WAITER = """
import sys
from cordwood.engine import Store
store = Store.open(sys.argv[1])
print("open", flush=True)
input()
store.put("wood", "theirs", b"1")
print("done", flush=True)
"""


def test_a_writer_that_gives_the_lock_back_and_asks_again_lets_the_one_that_waits_go_first(
    path: Path,
) -> None:
    with small(path) as store:
        store.create_bucket("wood")
        store.put("wood", "ours", b"1")
        other = start(WAITER, path)
        lines = lines_of(other)
        assert next(lines) == "open"
        index = store._core.index
        txn = index.begin()
        assert other.stdin is not None
        other.stdin.write("\n")
        other.stdin.flush()
        turn = REAL.open_lock(path / "index" / "turn")
        deadline = time.monotonic() + 30
        while REAL.lock(turn, shared=False) and time.monotonic() < deadline:
            REAL.unlock(turn)
            time.sleep(0.001)
        txn.raw.abort()
        txn = index.begin()
        bucket = txn.bucket("wood")
        assert bucket is not None
        assert namespace.get_entry(txn, bucket.head.bucket, b"theirs") is not None
        txn.raw.abort()
        REAL.close(turn)
        assert next(lines) == "done"
        assert other.wait(30) == 0
