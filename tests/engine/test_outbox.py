"""A change and the messages about it are one: through commits, refusals, crashes, compaction and rebuild."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cordwood.engine import (
    CompactionPolicy,
    Conditions,
    Maintenance,
    Outbox,
    Store,
    check_store,
    errors,
    rebuild,
)
from cordwood.engine.announcing import OUTBOX
from tests.engine.support import SMALL, check_accounts, check_rebuilt, noise, small
from tests.sim.crash import scratch_directory
from tests.sim.faulty_fs import FaultyFileSystem, watching_index


def telling(*topics: str) -> Callable[[Any, int], Sequence[tuple[str, bytes]]]:
    """Says of each change its result and its clock, to every topic."""
    return lambda result, clock: [(topic, f"{clock:016x} {result!r}".encode()) for topic in topics]


def about_key(info: Any, _: int) -> Sequence[tuple[str, bytes]]:
    return [("t", info.key.encode())]


def bodies(store: Store, topic: str = "t") -> list[bytes]:
    return [each.body for each in Outbox(store).peek(topic, 1000)]


def test_each_change_puts_its_messages_into_the_outbox_in_order(store: Store, path: Path) -> None:
    outbox = Outbox(store)
    assert outbox.topics() == []
    assert outbox.peek("t", 10) == []
    told = outbox.announcing(about_key)
    told.put("wood", "a", b"1")
    told.put("wood", "b", noise(9000))
    store.put("wood", "silent", b"")
    told.copy("wood", "a", "wood", "c")
    upload_id = store.create_upload("wood", "m").upload_id
    writer = store.part_writer("wood", "m", upload_id, 1)
    writer.write(b"part")
    part = writer.commit()
    told.complete_upload("wood", "m", upload_id, [(1, part.etag)])
    assert bodies(store) == [b"a", b"b", b"c", b"m"]
    check_accounts(store)
    store.close()
    check_rebuilt(path)


def test_what_was_refused_or_changed_nothing_has_no_message(store: Store) -> None:
    told = Outbox(store).announcing(telling("t"))
    with pytest.raises(errors.KeyNotFound):
        told.put("wood", "a", b"1", conditions=Conditions(if_match=("*",)))
    told.delete("wood", "never there")
    assert bodies(store) == []
    told.put("wood", "a", b"1")
    told.delete("wood", "a")
    assert len(bodies(store)) == 2


def test_topics_are_apart_and_a_removed_message_is_gone(store: Store, path: Path) -> None:
    outbox = Outbox(store)
    told = outbox.announcing(telling("one", "one-more", "two"))
    for number in range(5):
        told.put("wood", f"k{number}", b"")
    assert outbox.topics() == ["one", "one-more", "two"]
    assert [outbox.count(topic) for topic in outbox.topics()] == [5, 5, 5]
    first = outbox.peek("one", 2)
    outbox.remove(first)
    outbox.remove([])
    assert outbox.count("one") == 3
    assert outbox.peek("one", 1)[0].name > first[-1].name
    assert outbox.trim("two", 2) == 3
    assert outbox.trim("two", 2) == 0
    assert outbox.count("two") == 2
    assert abs(first[0].committed_ms - store.head("wood", "k0").modified_ms) < 1000
    store.close()
    check_rebuilt(path)


def test_an_announcement_that_fails_costs_its_message_and_not_the_change(store: Store) -> None:
    def broken(*_: Any) -> Sequence[tuple[str, bytes]]:
        raise ZeroDivisionError

    Outbox(store).announcing(broken).put("wood", "a", b"1")
    assert store.get("wood", "a").read() == b"1"
    assert store.read_only_reason is None
    assert Outbox(store).topics() == []


def test_nobody_meets_the_outbox_among_the_buckets(store: Store) -> None:
    Outbox(store).announcing(telling("t")).put("wood", "a", b"1")
    assert [bucket.name for bucket in store.list_buckets()] == ["wood"]
    with pytest.raises(errors.BucketNotFound):
        store.head_bucket(OUTBOX)
    with pytest.raises(errors.InvalidBucketName):
        store.create_bucket(OUTBOX)


def test_messages_survive_compaction_and_a_lost_index(path: Path) -> None:
    with small(path, volume_size=1 << 16) as store:
        store.create_bucket("wood")
        told = Outbox(store).announcing(about_key)
        for number in range(60):
            told.put("wood", f"k{number % 3}", noise(200, number))
            store.put("wood", "ballast", noise(20_000, number))
        before = bodies(store)
    with Maintenance.open(path, map_size=1 << 28) as upkeep:
        report = upkeep.compact(CompactionPolicy(threshold=0.01, min_dead_bytes=0, grace_s=0))
        assert report.victims
    rebuild(path, map_size=1 << 28)
    with small(path) as store:
        assert bodies(store) == before
        assert len(before) == 60
    assert check_store(path, data=True, map_size=1 << 28).is_clean


def test_power_may_fail_at_any_call_and_change_and_message_are_both_there_or_neither() -> None:
    moments = []
    with scratch_directory() as top, watching_index():
        path = top / "store"
        path.mkdir()
        fs = FaultyFileSystem(path)
        with Store.open(path, fs=fs, **SMALL) as store:
            store.create_bucket("wood")
            told = Outbox(store).announcing(about_key)
            fs.on_call = lambda _: moments.append(fs.image())
            for key in ("a", "b", "c"):
                told.put("wood", key, noise(700))
            moments.append(fs.image())
            fs.on_call = lambda _: None
    assert len(moments) > 6
    seen = set()
    for number, image in enumerate(moments):
        for keep in ("all", "none", "some"):
            with scratch_directory() as top:
                path = top / "store"
                image.write(path, keep, random.Random(f"{number} {keep}"))
                with Store.open(path, fs=FaultyFileSystem(path), **SMALL) as store:
                    keys = [entry.key for entry in store.list("wood").objects]
                    assert [key.encode() for key in keys] == bodies(store)
                    seen.add(len(keys))
    assert seen == {0, 1, 2, 3}
