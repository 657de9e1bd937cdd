"""A rebuild takes its records in slices and in runs; nothing of that may show in the index it makes."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cordwood.engine import rebuild, rescan
from cordwood.engine.format import HEADER_SIZE, RecordType
from cordwood.engine.rebuild import in_clock_order
from cordwood.engine.rescan import Item, VolumeScan
from tests.engine.history import History
from tests.engine.support import check_rebuilt, flip, noise, records_of, small

REBUILD = sys.modules["cordwood.engine.rebuild"]  # the package gives a function by this name


@pytest.mark.parametrize(("slice_records", "block_records"), [(1, 1), (7, 3), (100, 1000)])
def test_slices_and_blocks_of_any_size_give_the_index_that_the_store_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slice_records: int, block_records: int
) -> None:
    monkeypatch.setattr(REBUILD, "_SLICE_RECORDS", slice_records)
    monkeypatch.setattr(rescan, "_BLOCK_RECORDS", block_records)
    monkeypatch.setattr(rescan, "_WINDOW", 4096)
    history = History(tmp_path / "store", slice_records)
    for _ in range(250):
        history.step()
    history.close()
    check_rebuilt(tmp_path / "store", volume_size=1 << 17)
    history.reopen()
    history.check()
    history.close()


def test_keys_that_come_in_their_order_and_keys_that_do_not_are_indexed_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows behind all others are appended, any others put between them; an object replaced later must not win."""
    monkeypatch.setattr(REBUILD, "_SLICE_RECORDS", 10)
    with small(tmp_path / "store") as store:
        store.create_bucket("wood")
        for number in [*range(25), *range(40, 30, -1), *range(5), 3, 3]:
            store.put("wood", f"k{number:03d}", noise(20, number))
        for number in range(0, 40, 3):
            store.delete("wood", f"k{number:03d}")
    check_rebuilt(tmp_path / "store")


class _Scan(VolumeScan):
    def __init__(self, items: list[Item], block: int) -> None:
        self._items = items
        self._block = block
        self.was_read = False

    def first_clock(self) -> int:
        return self._items[0][0] if self._items else 0

    def blocks(self) -> Iterator[list[Item]]:
        self.was_read = True
        yield []
        for at in range(0, len(self._items), self._block):
            yield self._items[at : at + self._block]


@pytest.mark.parametrize("seed", range(30))
def test_the_records_of_all_volumes_come_by_clock_and_of_equal_clocks_by_volume(seed: int) -> None:
    rng = random.Random(seed)
    volumes: list[list[Item]] = []
    for number in range(rng.randrange(1, 6)):
        first = rng.randrange(50)
        clocks = sorted(rng.sample(range(first, first + 60), rng.randrange(40)))
        volumes.append([(clock, b"", number) for clock in clocks])
    scans = [_Scan(items, rng.randrange(1, 9)) for items in volumes]
    got = [(clock, number) for run in in_clock_order(scans) for clock, _, number in run]
    assert got == sorted((clock, number) for items in volumes for clock, _, number in items)
    assert all(scan.was_read for scan in scans)


def test_a_volume_is_read_only_when_its_first_record_is_next() -> None:
    early = _Scan([(clock, b"", 0) for clock in range(1, 9)], 2)
    late = _Scan([(clock, b"", 1) for clock in range(20, 24)], 2)
    runs = in_clock_order([early, late])
    assert next(runs) and next(runs)
    assert early.was_read and not late.was_read
    assert sum(len(run) for run in runs) > 0
    assert late.was_read


@pytest.mark.parametrize("rotten", [0, 1])
def test_of_two_copies_of_a_chunk_a_rebuild_takes_the_one_that_can_be_read(
    tmp_path: Path, rotten: int
) -> None:
    path = tmp_path / "store"
    with small(path) as store:
        store.create_bucket("wood")
        store.put("wood", "a", noise(4096))

    def payloads() -> list[tuple[Path, int]]:
        return [
            (file.path, record.header.offset + HEADER_SIZE + record.header.head_length + 100)
            for file, record in records_of(path)
            if record.header.type == RecordType.CHUNK
        ]

    (first,) = payloads()
    flip(*first)
    with small(path) as store:  # the rot is found by the next writer of these bytes, who writes them again
        store.put("wood", "b", noise(4096))
        store.put("wood", "c", b"so that what stands before it is known to be synced")
    flip(*first)  # as it was: two good copies
    flip(*payloads()[rotten])
    rebuild(path, map_size=1 << 28)
    with small(path) as store:
        assert store.get("wood", "a").read() == noise(4096)
        assert store.get("wood", "b").read() == noise(4096)
