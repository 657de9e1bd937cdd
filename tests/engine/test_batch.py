"""A batch happens whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from cordwood.engine import Conditions, Store, errors
from cordwood.engine.format import Flag, RecordType
from tests.engine.support import check_accounts, check_rebuilt, keys_of, noise, records_of, small


def test_a_batch_appears_at_its_end_and_all_at_once(store: Store, path: Path) -> None:
    store.put("wood", "old", noise(9000))
    with store.batch() as batch:
        batch.put("wood", "a/1", b"1", metadata={"m": "1"}, headers={"content-type": "x/y"})
        batch.put("wood", "a/2", noise(9000))
        batch.delete("wood", "old")
        assert keys_of(store, "wood") == ["old"]
    assert keys_of(store, "wood") == ["a/1", "a/2"]
    info = store.head("wood", "a/1")
    assert (info.metadata, info.headers) == ({"m": "1"}, {"content-type": "x/y"})
    check_accounts(store)
    store.close()
    check_rebuilt(path)


def test_a_member_that_fails_leaves_nothing_of_the_others(store: Store, path: Path) -> None:
    store.put("wood", "there", noise(9000))
    dump = store.logical_dump()
    for conditions, bucket, error in (
        (Conditions(if_none_match=("*",)), "wood", errors.PreconditionFailed),
        (Conditions(if_match=("x",)), "wood", errors.PreconditionFailed),
        (None, "nowhere", errors.BucketNotFound),
    ):
        with pytest.raises(error):
            with store.batch() as batch:
                batch.put("wood", "new/1", b"1")
                batch.put("wood", "new/2", noise(5000))
                batch.put("wood", "there", noise(5000, 2))
                batch.put(bucket, "there", b"x", conditions=conditions)
        assert store.logical_dump() == dump
    check_accounts(store)
    store.put("wood", "later", noise(5000))
    store.close()
    check_rebuilt(path)


def test_an_error_inside_the_block_commits_nothing(store: Store) -> None:
    with pytest.raises(ZeroDivisionError):
        with store.batch() as batch:
            batch.put("wood", "a", b"1")
            raise ZeroDivisionError
    assert keys_of(store, "wood") == []


def test_within_a_batch_the_last_word_on_a_key_counts_and_earlier_chunks_are_released(
    store: Store, path: Path
) -> None:
    with store.batch() as batch:
        batch.put("wood", "k", noise(9000, 1))
        batch.put("wood", "k", noise(9000, 2))
        batch.put("wood", "gone", noise(9000, 3))
        batch.delete("wood", "gone")
    assert keys_of(store, "wood") == ["k"]
    assert store.get("wood", "k").read() == noise(9000, 2)
    check_accounts(store)
    store.close()
    check_rebuilt(path)


def test_a_member_sees_what_the_members_before_it_did(store: Store) -> None:
    with store.batch() as batch:
        batch.put("wood", "k", b"1", conditions=Conditions(if_none_match=("*",)))
        batch.put("wood", "k", b"2", conditions=Conditions(if_match=("*",)))
    with pytest.raises(errors.PreconditionFailed):
        with store.batch() as batch:
            batch.put("wood", "j", b"1")
            batch.put("wood", "j", b"2", conditions=Conditions(if_none_match=("*",)))
    assert keys_of(store, "wood") == ["k"]


def test_a_refused_batch_does_not_disturb_what_is_committed_together_with_it(store: Store) -> None:
    """Several operations in one LMDB transaction: the batch's part is undone, the others' stays."""
    import threading

    store.put("wood", "there", b"")
    stop = threading.Event()

    def refuse() -> None:
        while not stop.is_set():
            with pytest.raises(errors.PreconditionFailed):
                with store.batch() as batch:
                    batch.put("wood", "d/new", noise(5000))
                    batch.put("wood", "there", b"", conditions=Conditions(if_none_match=("*",)))

    thread = threading.Thread(target=refuse)
    thread.start()
    try:
        for number in range(100):
            store.put("wood", f"e/{number}", noise(300, number))
            store.delete("wood", f"e/{number - 1}")
    finally:
        stop.set()
        thread.join()
    assert keys_of(store, "wood") == ["e/99", "there"]
    check_accounts(store)


def test_an_empty_batch_writes_nothing(store: Store, path: Path) -> None:
    before = len(records_of(path))
    with store.batch():
        pass
    assert len(records_of(path)) == before


def test_the_records_of_a_batch_are_one_transaction_in_the_log(store: Store, path: Path) -> None:
    with store.batch() as batch:
        for number in range(5):
            batch.put("wood", f"d{number}/k", b"")
    store.close()
    flags = [
        record.header.flags & Flag.MORE
        for _, record in records_of(path)
        if record.header.type in (RecordType.OBJECT, RecordType.DIRECTORY)
    ]
    assert flags == [Flag.MORE] * 9 + [0]


def test_a_batch_that_has_ended_takes_nothing_more(store: Store) -> None:
    with store.batch() as batch:
        batch.put("wood", "a", b"1")
    with pytest.raises(errors.InvalidState):
        batch.put("wood", "b", b"lost otherwise")
    with pytest.raises(errors.InvalidState):
        batch.delete("wood", "a")
    with pytest.raises(ZeroDivisionError):
        with store.batch() as failed:
            raise ZeroDivisionError
    with pytest.raises(errors.InvalidState):
        failed.put("wood", "b", b"")
    assert keys_of(store, "wood") == ["a"]


def test_a_batch_on_a_closed_store_is_refused(store: Store, path: Path) -> None:
    store.close()
    with pytest.raises(errors.Closed):
        with store.batch():
            pass
    with small(path) as again:
        with pytest.raises(errors.Closed):
            with again.batch() as batch:
                batch.put("wood", "k", b"")
                again.close()
