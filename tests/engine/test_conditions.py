"""Preconditions of reads, writes and deletes, each decided at the right moment and in the right order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cordwood.engine import Conditions, ObjectInfo, Store, errors
from tests.engine.support import check_accounts, check_rebuilt, lines_of, noise, small, start

ANY = ("*",)


@pytest.fixture
def info(store: Store) -> ObjectInfo:
    return store.put("wood", "k", b"data")


def read(store: Store, **conditions: object) -> str:
    results = set()
    for call in (store.get, store.head):
        try:
            call("wood", "k", conditions=Conditions(**conditions))  # type: ignore[arg-type]
            results.add("ok")
        except errors.NotModified as error:
            assert error.info == store.head("wood", "k")
            results.add("not modified")
        except errors.PreconditionFailed as error:
            results.add(error.condition)
    (result,) = results
    return result


def test_reads_follow_the_order_of_rfc_9110(store: Store, info: ObjectInfo) -> None:
    etag, second = info.etag, info.modified_ms // 1000
    before, after = float(second - 1), float(second + 1)
    cases: list[tuple[dict[str, object], str]] = [
        ({}, "ok"),
        ({"if_match": (etag,)}, "ok"),
        ({"if_match": ("x", etag)}, "ok"),
        ({"if_match": ANY}, "ok"),
        ({"if_match": ("x",)}, "If-Match"),
        ({"if_unmodified_since_s": after}, "ok"),
        ({"if_unmodified_since_s": float(second)}, "ok"),
        ({"if_unmodified_since_s": before}, "If-Unmodified-Since"),
        ({"if_match": (etag,), "if_unmodified_since_s": before}, "ok"),
        ({"if_none_match": (etag,)}, "not modified"),
        ({"if_none_match": ("x", etag)}, "not modified"),
        ({"if_none_match": ANY}, "not modified"),
        ({"if_none_match": ("x",)}, "ok"),
        ({"if_modified_since_s": after}, "not modified"),
        ({"if_modified_since_s": float(second)}, "not modified"),
        ({"if_modified_since_s": before}, "ok"),
        ({"if_none_match": ("x",), "if_modified_since_s": after}, "ok"),
        ({"if_none_match": (etag,), "if_modified_since_s": before}, "not modified"),
        ({"if_match": ("x",), "if_none_match": (etag,)}, "If-Match"),
        ({"if_match": (etag,), "if_none_match": (etag,)}, "not modified"),
    ]
    for conditions, expected in cases:
        assert read(store, **conditions) == expected, conditions


def test_a_read_that_is_not_modified_reads_no_body(store: Store) -> None:
    """The object's record may be damaged: its metadata alone is told."""
    info = store.put("wood", "k", noise(100_000))
    with pytest.raises(errors.NotModified) as found:
        store.get("wood", "k", conditions=Conditions(if_none_match=(info.etag,)))
    assert found.value.info == info


def test_conditions_of_a_read_of_a_version_look_at_that_version(versioned: Store) -> None:
    old = versioned.put("wood", "k", b"old")
    new = versioned.put("wood", "k", b"new")
    with pytest.raises(errors.PreconditionFailed):
        versioned.get("wood", "k", version_id=old.version_id, conditions=Conditions(if_match=(new.etag,)))
    versioned.get("wood", "k", version_id=old.version_id, conditions=Conditions(if_match=(old.etag,)))


@pytest.mark.parametrize("size", [10, 10_000])
def test_writes_are_decided_against_the_current_version(store: Store, size: int) -> None:
    info = store.put("wood", "k", noise(size))
    cases: list[tuple[str, Conditions, type[errors.CordwoodError] | None]] = [
        ("k", Conditions(if_none_match=ANY), errors.PreconditionFailed),
        ("k", Conditions(if_none_match=(info.etag,)), errors.PreconditionFailed),
        ("k", Conditions(if_match=("x",)), errors.PreconditionFailed),
        ("new", Conditions(if_match=("x",)), errors.KeyNotFound),
        ("new", Conditions(if_match=ANY), errors.KeyNotFound),
        ("k", Conditions(if_match=ANY, if_none_match=("x",)), None),
        ("k", Conditions(if_match=(info.etag,)), None),
        ("new", Conditions(if_none_match=ANY), None),
    ]
    for key, conditions, error in cases:
        if error is None:
            store.put("wood", key, noise(size), conditions=conditions)
        else:
            with pytest.raises(error):
                store.put("wood", key, b"other" * size, conditions=conditions)
            assert store.get("wood", "k").read() == noise(size)
    check_accounts(store)


def test_a_delete_marker_counts_as_no_object_for_a_write(versioned: Store) -> None:
    versioned.put("wood", "k", b"1")
    versioned.delete("wood", "k")
    with pytest.raises(errors.KeyNotFound):
        versioned.put("wood", "k", b"2", conditions=Conditions(if_match=ANY))
    versioned.put("wood", "k", b"2", conditions=Conditions(if_none_match=ANY))
    assert versioned.get("wood", "k").read() == b"2"


def test_deletes_are_decided_by_etag_size_and_second(store: Store, info: ObjectInfo) -> None:
    refused = [
        Conditions(if_match=("x",)),
        Conditions(if_size=5),
        Conditions(if_modified_ms=info.modified_ms - 1000),
        Conditions(if_match=(info.etag,), if_size=5),
    ]
    for conditions in refused:
        with pytest.raises(errors.PreconditionFailed):
            store.delete("wood", "k", conditions=conditions)
    for conditions in refused[1:3]:
        with pytest.raises(errors.PreconditionFailed):
            store.delete("wood", "missing", conditions=conditions)
    with pytest.raises(errors.KeyNotFound):
        store.delete("wood", "missing", conditions=Conditions(if_match=ANY))
    assert store.get("wood", "k").read() == b"data"
    second = info.modified_ms // 1000 * 1000
    good = Conditions(if_match=(info.etag,), if_size=4, if_modified_ms=second + 999)
    assert store.delete("wood", "k", conditions=good).existed


def test_conditions_of_a_version_delete_look_at_that_version(versioned: Store) -> None:
    old = versioned.put("wood", "k", b"old")
    versioned.put("wood", "k", b"newer")
    with pytest.raises(errors.PreconditionFailed):
        versioned.delete("wood", "k", version_id=old.version_id, conditions=Conditions(if_size=5))
    with pytest.raises(errors.VersionNotFound):
        versioned.delete("wood", "k", version_id="f" * 16, conditions=Conditions(if_size=5))
    good = Conditions(if_size=3, if_match=(old.etag,))
    assert versioned.delete("wood", "k", version_id=old.version_id, conditions=good).existed


@pytest.mark.parametrize("size", [5, 5000])
def test_of_many_threads_that_create_one_key_exactly_one_wins(store: Store, size: int) -> None:
    for turn in range(8):
        barrier = threading.Barrier(8)
        won: list[int] = []
        lost: list[int] = []

        def race(number: int, key: str = f"k{turn}", barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            try:
                data = noise(size, number)
                store.put("wood", key, data, conditions=Conditions(if_none_match=ANY))
                won.append(number)  # noqa: B023
            except errors.PreconditionFailed:
                lost.append(number)  # noqa: B023

        run([lambda number=number: race(number) for number in range(8)])  # type: ignore[misc]
        assert len(won) == 1 and len(lost) == 7
        assert store.get("wood", f"k{turn}").read() == noise(size, won[0])
    check_accounts(store)


def test_of_many_threads_that_swap_one_value_each_swap_sees_the_one_before(store: Store) -> None:
    """A counter kept by compare-and-swap loses no step."""
    store.put("wood", "n", b"0")

    def add() -> None:
        for _ in range(10):
            while True:
                with store.get("wood", "n") as reader:
                    value, etag = int(reader.read()), reader.info.etag
                try:
                    store.put("wood", "n", str(value + 1).encode(), conditions=Conditions(if_match=(etag,)))
                    break
                except errors.PreconditionFailed:
                    continue

    run([add] * 4)
    assert store.get("wood", "n").read() == b"40"


def run(jobs: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


RACER = """
import sys
from cordwood.engine import Conditions, Store, errors
with Store.open(sys.argv[1], inline_max=256, chunk_size=4096, map_size=1 << 28) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    won = []
    for number in range(60):
        data = sys.argv[2].encode() * (1 if number % 2 else 1000)
        try:
            store.put("wood", f"k{number}", data, conditions=Conditions(if_none_match=("*",)))
            won.append(number)
        except errors.PreconditionFailed:
            pass
    print(*won, flush=True)
"""


def test_of_several_processes_that_create_the_same_keys_each_key_has_exactly_one_winner(
    store: Store, path: Path
) -> None:
    racers = [start(RACER, path, letter) for letter in "abc"]
    for racer in racers:
        assert next(lines_of(racer)) == "ready"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    won = [[int(number) for number in next(lines_of(racer)).split()] for racer in racers]
    for racer in racers:
        assert racer.wait(30) == 0
    assert sorted(number for numbers in won for number in numbers) == list(range(60))
    for letter, numbers in zip("abc", won, strict=True):
        for number in numbers:
            expected = letter.encode() * (1 if number % 2 else 1000)
            assert store.get("wood", f"k{number}").read() == expected
    store.close()
    check_rebuilt(path)
    with small(path) as again:
        check_accounts(again)
