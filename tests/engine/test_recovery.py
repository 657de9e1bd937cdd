"""After a crash at any moment: what was acknowledged is there, what was under way is there whole or not at all."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cordwood.engine import Store, errors, rebuild
from cordwood.engine.format import HEADER_SIZE, RecordType
from cordwood.engine.rows import VolumeState
from tests.engine.support import (
    check_accounts,
    check_rebuilt,
    first_volume,
    flip,
    keys_of,
    lines_of,
    noise,
    records_of,
    small,
    start,
    volume_paths,
)


class Crash:
    """A store whose last change reached its volume but not its index: the state that a crash leaves."""

    def __init__(self, path: Path, before: Callable[[Store], None], last: Callable[[Store], None]) -> None:
        self.path = path
        with small(path) as store:
            store.create_bucket("wood")
            before(store)
            self.dump_before = store.logical_dump()
        self.end_before = first_volume(path).stat().st_size
        shutil.copytree(path / "index", path.with_name("index.before"))
        with small(path) as store:
            last(store)
            self.dump_after = store.logical_dump()
        self.volume = first_volume(path).read_bytes()

    def again(self, volume: bytes) -> dict[str, Any]:
        """Puts the old index beside these bytes of the volume, opens the store, and tells what it holds."""
        shutil.rmtree(self.path / "index")
        shutil.copytree(self.path.with_name("index.before"), self.path / "index")
        first_volume(self.path).write_bytes(volume)
        with small(self.path) as store:
            assert store.read_only_reason is None
            return store.logical_dump()


def put(key: str, data: bytes) -> Callable[[Store], None]:
    return lambda store: void(store.put("wood", key, data))


def void(_: object) -> None:
    return None


def many(store: Store) -> None:
    with store.batch() as batch:
        batch.put("wood", "x/y", b"1")
        batch.put("wood", "x/z", b"2")
        batch.delete("wood", "a")


LAST: dict[str, Callable[[Store], None]] = {
    "a small object": put("k", b"small"),
    "a large object": put("k", noise(9000, 5)),
    "a batch with directories": many,
    "an overwrite": put("a", noise(300)),
    "a delete": lambda store: void(store.delete("wood", "a")),
    "a rename": lambda store: store.rename("wood", "d/", "e/f/"),
    "a bucket": lambda store: void(store.create_bucket("other")),
    "a copy": lambda store: void(store.copy("wood", "a", "wood", "b")),
}


@pytest.mark.parametrize("what", LAST)
def test_a_tail_torn_at_any_byte_is_cut_and_a_whole_one_is_replayed(path: Path, what: str) -> None:
    def before(store: Store) -> None:
        store.put("wood", "a", noise(5000))
        store.put("wood", "d/1", b"1")

    crash = Crash(path, before, LAST[what])
    whole = crash.volume
    assert crash.again(whole) == crash.dump_after
    tail = len(whole) - crash.end_before
    every_byte = what == "a small object"
    cuts = range(crash.end_before, len(whole), 1 if every_byte else max(1, tail // 30))
    for cut in cuts:
        assert crash.again(whole[:cut]) == crash.dump_before
        assert first_volume(path).stat().st_size == crash.end_before
    with small(path) as store:
        store.put("wood", "after", noise(600))
        check_accounts(store)
    check_rebuilt(path)


def test_a_tail_with_a_wrong_byte_anywhere_is_cut(path: Path) -> None:
    crash = Crash(path, put("a", b"1"), put("k", b"x" * 50))
    whole = bytearray(crash.volume)
    padding = -(HEADER_SIZE + records_of(path)[-1][1].header.head_length + 50) % 8
    for at in range(crash.end_before, len(whole) - padding, 3):
        whole[at] ^= 0x40
        assert crash.again(bytes(whole)) == crash.dump_before
        whole[at] ^= 0x40
    for garbage in (b"\0" * 4096, noise(4096), crash.volume[4096:], crash.volume):
        assert crash.again(bytes(whole) + garbage) == crash.dump_after
        assert first_volume(path).stat().st_size == len(whole)


def test_recovering_twice_changes_nothing_the_second_time(path: Path) -> None:
    crash = Crash(path, put("a", b"1"), put("k", noise(9000)))
    dump = crash.again(crash.volume + b"garbage")
    files = {each: each.read_bytes() for each in volume_paths(path)}
    for _ in range(2):
        with small(path) as store:
            assert store.logical_dump() == dump
    assert {each: each.read_bytes() for each in volume_paths(path)} == files


def test_chunks_without_an_object_behind_them_are_cut(path: Path) -> None:
    with small(path) as store:
        store.create_bucket("wood")
        end = first_volume(path).stat().st_size
        writer = store.writer("wood", "k")
        writer.write(noise(20_000))
        writer.flush()
        writer.abort()
        assert first_volume(path).stat().st_size > end + 20_000
    with small(path):
        assert first_volume(path).stat().st_size == end


def test_a_change_that_later_commits_prove_to_have_failed_is_cut(path: Path) -> None:
    """A process died between its sync and its index commit; others went on. Nobody was told of its change."""
    crash = Crash(path, put("a", b"1"), put("lost", b"2"))
    shutil.rmtree(path / "index")
    shutil.copytree(path.with_name("index.before"), path / "index")
    with open(first_volume(path), "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # as if its writer were still alive
        with small(path) as store:
            store.put("wood", "later", b"3")
            assert keys_of(store, "wood") == ["a", "later"]
        assert first_volume(path).stat().st_size == len(crash.volume)
    assert len(volume_paths(path)) == 2
    with small(path) as store:
        assert keys_of(store, "wood") == ["a", "later"]
        assert first_volume(path).stat().st_size == crash.end_before
    check_rebuilt(path)


def test_damage_among_synced_records_is_quarantined_and_never_truncated(path: Path) -> None:
    """Later records say that the bad bytes had been synced: so it is rot, not a torn write."""

    def last(store: Store) -> None:
        for number in range(4):
            store.put("wood", f"k{number}", noise(300, number))

    crash = Crash(path, put("a", b"1"), last)
    records = [record for _, record in records_of(path) if record.header.offset >= crash.end_before]
    objects = [record for record in records if record.header.type == RecordType.OBJECT]
    bad = bytearray(crash.volume)
    bad[objects[1].header.offset + 70] ^= 1
    dump = crash.again(bytes(bad))
    assert [key for _, key, _ in dump["objects"]] == [b"a", b"k0", b"k2", b"k3"]
    assert first_volume(path).read_bytes() == bytes(bad)
    with small(path) as store:
        with store._core.index.read() as txn:
            row = txn.volume(1)
        assert row is not None and row.state == VolumeState.QUARANTINED
        store.put("wood", "new", b"n")
        assert store.get("wood", "k3").read() == noise(300, 3)
    assert first_volume(path).read_bytes() == bytes(bad)
    assert len(volume_paths(path)) == 2
    rebuild(path, map_size=1 << 28)
    with small(path) as store:
        assert keys_of(store, "wood") == ["a", "k0", "k2", "k3", "new"]
        check_accounts(store)


def test_a_torn_write_before_an_unsynced_record_is_no_damage(path: Path) -> None:
    """Two records of one sync, the first of them torn, the second whole: neither had been acknowledged."""

    def last(store: Store) -> None:
        with store.batch() as batch:
            batch.put("wood", "one", b"1" * 100)
            batch.put("wood", "two", b"2" * 100)

    crash = Crash(path, put("a", b"1"), last)
    torn = bytearray(crash.volume)
    torn[crash.end_before + 80] ^= 1
    assert crash.again(bytes(torn)) == crash.dump_before
    assert first_volume(path).stat().st_size == crash.end_before


def test_a_sealed_volume_that_the_index_does_not_know_to_be_sealed_is_not_appended_to(path: Path) -> None:
    with small(path, volume_size=1 << 16) as store:
        store.create_bucket("wood")
        store.put("wood", "a", noise(30_000, 1))
    shutil.copytree(path / "index", path.with_name("before"))
    with small(path, volume_size=1 << 16) as store:
        store.put("wood", "b", noise(30_000, 2))
        store.put("wood", "c", noise(30_000, 3))
        dump = store.logical_dump()
    assert len(volume_paths(path)) == 2
    sealed = first_volume(path).read_bytes()
    shutil.rmtree(path / "index")
    shutil.copytree(path.with_name("before"), path / "index")
    with small(path, volume_size=1 << 16) as store:
        assert store.logical_dump() == dump
        store.put("wood", "d", b"4")
    assert first_volume(path).read_bytes() == sealed
    assert records_of(path, 1)[-1][1].header.type == RecordType.SEAL
    check_rebuilt(path)


def test_volumes_rotate_are_sealed_and_every_object_stays_readable(path: Path) -> None:
    with small(path, volume_size=1 << 16) as store:
        store.create_bucket("wood")
        for number in range(20):
            store.put("wood", f"k{number}", noise(20_000, number))
        store.put("wood", "wide", noise(300_000))  # spans volumes
        with store._core.index.read() as txn:
            states = [row.state for row in txn.volumes().values()]
        for number in range(20):
            assert store.get("wood", f"k{number}").read() == noise(20_000, number)
        assert store.get("wood", "wide").read() == noise(300_000)
    paths = volume_paths(path)
    assert len(paths) > 8 and states.count(VolumeState.ACTIVE) == 1
    for each in paths[:-1]:
        assert each.stat().st_size <= (1 << 16) + 100
    check_rebuilt(path)


def test_a_record_larger_than_a_volume_gets_one_of_its_own(path: Path) -> None:
    with Store.open(path, volume_size=1 << 16, map_size=1 << 28) as store:
        store.create_bucket("wood")
        for number in range(3):
            store.put("wood", f"k{number}", noise(1 << 20, number))
        for number in range(3):
            assert store.get("wood", f"k{number}").read() == noise(1 << 20, number)
    check_rebuilt(path)


def test_a_reopened_store_goes_on_in_its_last_volume(path: Path) -> None:
    for number in range(4):
        with small(path) as store:
            if not number:
                store.create_bucket("wood")
            store.put("wood", f"k{number}", b"x")
    assert len(volume_paths(path)) == 1


# --- planted records ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["inline", "chunked"])
def test_records_planted_inside_an_object_are_never_believed(path: Path, size: str) -> None:
    """A client stores a volume file as an object: its records carry another place, and a salt it cannot know."""
    with small(path) as store:
        store.create_bucket("wood")
        store.put("wood", "real", b"1")
        store.put("wood", "real", b"2")
        store.delete("wood", "real")
    volume = first_volume(path).read_bytes()
    options = {"inline_max": 1 << 16, "chunk_size": 1 << 16} if size == "inline" else {}
    with small(path, **options) as store:
        store.put("wood", "planted", volume)
        store.put("wood", "shifted", volume[4096:] * 3)
        # Bytes that say the very offset at which they will stand, under the right salt of another volume.
        dump = store.logical_dump()
    check_rebuilt(path, **options)
    # Damage just before the payload makes a scan search for the next record: it must not find the planted ones.
    planted = next(
        record for _, record in records_of(path) if record.body is not None and volume[:100] in record.body
    )
    flip(first_volume(path), planted.header.offset + 10)
    rebuild(path, map_size=1 << 28)
    with small(path, **options) as store:
        for key in keys_of(store, "wood"):
            assert key in ("planted", "shifted")
        assert len(store.logical_dump()["objects"]) <= len(dump["objects"])


def test_a_record_planted_at_its_own_offset_without_the_salt_is_not_believed(path: Path) -> None:
    """The attacker guesses the offset right; the header CRC is seeded with 128 random bits of this volume."""
    from cordwood.engine.format import BucketHead, encode_head, header_seed, pack_record

    with small(path, inline_max=4096) as store:
        store.create_bucket("wood")
    end = first_volume(path).stat().st_size
    head = encode_head(BucketHead(1 << 40, "forged"))
    pieces = []
    for offset in range(end, end + 2000, 8):
        pieces.append(
            b"".join(
                pack_record(RecordType.BUCKET, 0, offset, 1 << 40, 0, 0, head, b"", header_seed(bytes(16)))
            )
        )
    with small(path, inline_max=4096) as store:
        for shift in range(0, 40, 8):
            store.put("wood", f"k{shift}", b"".join(pieces)[shift : shift + 4000])
    flip(first_volume(path), end + 10)
    rebuild(path, map_size=1 << 28)
    with small(path) as store:
        assert [bucket.name for bucket in store.list_buckets()] == ["wood"]


# --- kill -9 --------------------------------------------------------------------------------------------------

VICTIM = """
import random, sys
from cordwood.engine import Store
seed = int(sys.argv[2])
rng = random.Random(seed)
with Store.open(sys.argv[1], chunk_size=4096, inline_max=256, volume_size=1 << 17, map_size=1 << 28) as store:
    number = 0
    while True:
        number += 1
        key = f"d{rng.randrange(3)}/k{rng.randrange(8)}"
        what = rng.choice(["put", "put", "large", "delete", "batch"])
        print("start", what, key, number, flush=True)
        if what == "delete":
            store.delete("wood", key)
        elif what == "batch":
            with store.batch() as batch:
                batch.put("wood", key, b"%d" % number)
                batch.put("wood", key + "+", b"%d" % number)
        else:
            size = 20 if what == "put" else 9000
            store.put("wood", key, random.Random(number).randbytes(size))
        print("done", what, key, number, flush=True)
"""


def data_of(what: str, number: int) -> bytes:
    if what == "batch":
        return b"%d" % number
    return random.Random(number).randbytes(20 if what == "put" else 9000)


def test_a_process_killed_at_any_moment_loses_nothing_that_it_had_acknowledged(
    path: Path, long_run: bool
) -> None:
    with small(path) as store:
        store.create_bucket("wood")
    acknowledged: dict[str, bytes] = {}
    rng = random.Random(20)
    for turn in range(200 if long_run else 8):
        victim = start(VICTIM, path, turn)
        lines = lines_of(victim)
        next(lines)
        time.sleep(rng.random() * 0.08)
        os.kill(victim.pid, signal.SIGKILL)
        under_way: tuple[str, str, int] | None = None
        for line in ["start " + "put d0/none 0", *lines]:
            words = line.split()
            if len(words) != 4 or words[2] == "d0/none":
                continue  # the last line may be torn
            state, what, key, number = words[0], words[1], words[2], int(words[3])
            under_way = (what, key, number) if state == "start" else None
            if state == "done":
                if what == "delete":
                    acknowledged.pop(key, None)
                else:
                    acknowledged[key] = data_of(what, number)
                if what == "batch":
                    acknowledged[key + "+"] = data_of(what, number)
        victim.wait()
        with small(path, volume_size=1 << 17) as store:
            stored = {key: store.get("wood", key).read() for key in keys_of(store, "wood")}
            if stored != acknowledged:
                # Only the one change that was under way may differ, and only as a whole. (The first line was eaten.)
                possible = apply(acknowledged, under_way, turn)
                assert stored in possible, f"turn {turn}: {under_way}"
                acknowledged = stored
            check_accounts(store)
    check_rebuilt(path)


def apply(
    state: dict[str, bytes], under_way: tuple[str, str, int] | None, turn: int
) -> list[dict[str, bytes]]:
    if under_way is None:
        # Killed between the acknowledgement and the next line, or before the first change was told of.
        rng = random.Random(turn)
        key = f"d{rng.randrange(3)}/k{rng.randrange(8)}"
        under_way = (rng.choice(["put", "put", "large", "delete", "batch"]), key, 1)
    what, key, number = under_way
    if what == "delete":
        return [{name: data for name, data in state.items() if name != key}]
    changed = {**state, key: data_of(what, number)}
    if what == "batch":
        changed[key + "+"] = data_of(what, number)
    return [changed]


WRITER = """
import random, sys
from cordwood.engine import Store
with Store.open(sys.argv[1], chunk_size=4096, inline_max=256, volume_size=1 << 17, map_size=1 << 28) as store:
    name = sys.argv[2]
    for number in range(int(sys.argv[3])):
        size = 20 if number % 3 else 9000
        store.put("wood", f"{name}/{number % 10}", random.Random(name + str(number)).randbytes(size))
        if number % 7 == 6:
            store.delete("wood", f"{name}/{number % 10}")
        if number % 11 == 10:
            store.rename("wood", f"{name}/", f"{name}x/")
            name += "x"
    print(name, flush=True)
    sys.stdin.readline()
"""


def test_several_processes_write_at_once_and_each_sees_what_the_others_did(store: Store, path: Path) -> None:
    writers = [start(WRITER, path, letter, 60) for letter in "abc"]
    names = [next(lines_of(writer)) for writer in writers]
    for name in names:
        for number in range(50, 60):
            if number % 7 != 6 and number > 55:
                size = 20 if number % 3 else 9000
                expected = random.Random(name + str(number)).randbytes(size)
                assert store.get("wood", f"{name}/{number % 10}").read() == expected
    assert len(volume_paths(path)) >= 4  # each process appends to a volume of its own
    os.kill(writers[0].pid, signal.SIGKILL)  # hurts nobody else
    store.put("wood", "alive", b"1")
    for writer in writers[1:]:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
        assert writer.wait(30) == 0
    writers[0].wait()
    check_accounts(store)
    store.close()
    check_rebuilt(path, volume_size=1 << 17)


def test_a_rebuild_needs_the_store_alone(store: Store, path: Path) -> None:
    with pytest.raises(errors.Busy):
        rebuild(path)
    store.close()
    code = "import sys; from cordwood.engine import Store; s = Store.open(sys.argv[1]); print(1, flush=True); input()"
    other = start(code, path)
    assert next(lines_of(other)) == "1"
    with pytest.raises(errors.Busy, match="open elsewhere"):
        rebuild(path)
    assert other.stdin is not None
    other.stdin.write("\n")
    other.stdin.flush()
    assert other.wait(30) == 0
    rebuild(path)
    with pytest.raises(errors.StoreNotFound):
        rebuild(path.with_name("nothing"))
