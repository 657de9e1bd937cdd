"""A disk that is really full: a small ext4 on a loop device, filled through the engine and from beside it.

Must not know: how much room the engine wants for what.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cordwood.engine import CompactionPolicy, Store, check_store, compact, errors, rebuild
from tests.sim.crash import scratch_directory
from tests.sim.rules import body
from tests.sim.small_disk import MIB, fill, free_bytes, mounted, skip_without_mount

OPTIONS: dict[str, Any] = {"volume_size": 4 * MIB, "map_size": 1 << 30}
SIZES = (10, 5_000, 60_000, 300_000, 1_500_000)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    skip_without_mount()
    with mounted(tmp_path, 96 * MIB) as point:
        yield point


def content(number: int, size: int) -> bytes:
    return b"%d " % number + body(size, number)


def fill_store(store: Store, prefix: str, seed: int) -> dict[str, bytes]:
    """Puts objects until there is no room; returns what was acknowledged."""
    rng = random.Random(seed)
    told: dict[str, bytes] = {}
    for number in range(100_000):
        key, data = f"{prefix}/{number}", content(number * 1000 + seed, rng.choice(SIZES))
        try:
            store.put("one", key, data)
        except errors.Full:
            return told
        told[key] = data
    raise AssertionError("the disk never became full")


def check(store: Store, told: dict[str, bytes]) -> None:
    """Everything that was acknowledged is there, and nothing else."""
    assert [entry.key for entry in store.list("one", max_keys=1 << 20).objects] == sorted(told)
    for key, data in told.items():
        assert store.get("one", key).read() == data, key


def check_all(path: Path, told: dict[str, bytes]) -> None:
    with Store.open(path, **OPTIONS) as store:
        check(store, told)
        assert store.read_only_reason is None
    report = check_store(path, data=True, map_size=OPTIONS["map_size"])
    assert report.is_clean, report.problems[:3]


def test_a_full_disk_refuses_writes_takes_deletes_and_comes_back(disk: Path) -> None:
    path = disk / "store"
    with Store.open(path, **OPTIONS) as store:
        store.create_bucket("one")
        told = fill_store(store, "a", 1)
        assert len(told) > 50 and store.read_only_reason is None
        check(store, told)
        for key in sorted(told)[::2]:
            store.delete("one", key)
            del told[key]
        check(store, told)
    before = free_bytes(disk)
    report = compact(path, CompactionPolicy(full=True, grace_s=0, volume_size=4 * MIB), map_size=1 << 30)
    assert not report.lost and report.is_complete
    assert free_bytes(disk) > before + 20 * MIB
    check_all(path, told)
    with Store.open(path, **OPTIONS) as store:
        more = fill_store(store, "b", 2)
        assert len(more) > 20
        told |= more
    check_all(path, told)


def test_not_one_byte_left_costs_the_write_and_nothing_that_was_acknowledged(disk: Path) -> None:
    """Somebody else takes the reserve as well, so that even the index's own writes find no room."""
    path = disk / "store"
    with Store.open(path, **OPTIONS) as store:
        store.create_bucket("one")
        told = fill_store(store, "a", 3)
        fill(disk / "ballast")
        assert free_bytes(disk) == 0
        asked: set[str] = set()
        for number, key in enumerate(sorted(told)[:20]):
            try:
                if number % 2:
                    store.delete("one", key)
                    del told[key]
                else:
                    store.put("one", f"more/{number}", b"x" * 100_000)
            except errors.Full:
                continue
            except errors.ReadOnly:
                if number % 2:
                    asked.add(key)
                break
        seen = {entry.key for entry in store.list("one", max_keys=1 << 20).objects}
        assert seen >= told.keys() - asked
    (disk / "ballast").unlink()
    with Store.open(path, **OPTIONS) as store:
        present = {entry.key for entry in store.list("one", max_keys=1 << 20).objects}
        told = {key: data for key, data in told.items() if key in present or key not in asked}
        check(store, told)
        store.put("one", "z", b"again")
        told["z"] = b"again"
    rebuild(path, map_size=1 << 30)
    check_all(path, told)


def test_a_compaction_without_room_gives_up_and_loses_nothing(disk: Path) -> None:
    path = disk / "store"
    with Store.open(path, **OPTIONS) as store:
        store.create_bucket("one")
        told = fill_store(store, "a", 4)
        for key in sorted(told)[::3]:
            store.delete("one", key)
            del told[key]
    fill(disk / "ballast")
    try:
        compact(path, CompactionPolicy(full=True, grace_s=0, volume_size=4 * MIB), map_size=1 << 30)
    except (errors.Full, errors.ReadOnly, OSError):
        pass
    (disk / "ballast").unlink()
    check_all(path, told)
    compact(path, CompactionPolicy(full=True, grace_s=0, volume_size=4 * MIB), map_size=1 << 30)
    check_all(path, told)


def test_an_index_that_cannot_grow_says_so_and_a_larger_one_takes_all_again() -> None:
    """Its address space is full, not the disk. Which of LMDB's pages is the one too many decides how it is told."""
    with scratch_directory() as top:
        path = top / "store"
        told: dict[str, bytes] = {}
        asked = ""
        with Store.open(path, **OPTIONS | {"map_size": 1 << 19}) as store:
            store.create_bucket("one")
            with pytest.raises((errors.Full, errors.ReadOnly), match="larger map_size"):
                while True:
                    asked = f"{len(told):06d}{'x' * 400}"
                    store.put("one", asked, b"1")
                    told[asked] = b"1"
            assert len(told) > 200
            check(store, told)
        with Store.open(path, **OPTIONS) as store:
            if store.list("one", prefix=asked).objects:
                told[asked] = b"1"  # it was durable before the index was found full
            check(store, told)
            store.put("one", "z", b"again")
            told["z"] = b"again"
        check_all(path, told)
