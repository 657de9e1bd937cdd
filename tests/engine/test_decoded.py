"""Records that were read lately are decoded once, and read and checked every time all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from cordwood.engine import Store, errors
from tests.engine.support import flip, noise, records_of, small, volume_paths

SIZES = {"inline": 200, "inline, with a long body": 4000, "chunked": 9000}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = small(tmp_path / "store", inline_max=4096)
    store.create_bucket("wood")
    return store


def both(store: Store, key: str) -> tuple[object, bytes]:
    assert store.head("wood", key) == store.get("wood", key).info
    return store.head("wood", key), store.get("wood", key).read()


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_what_is_read_again_is_the_same_in_everything(store: Store, size: int) -> None:
    made = store.put("wood", "d/x", noise(size), headers={"content-type": "text/plain"}, metadata={"a": "b"})
    first = both(store, "d/x")
    assert first == (made, noise(size)) and both(store, "d/x") == first
    assert store.get("wood", "d/x", range=(1, 3)).read() == noise(size)[1:4]
    assert store.get("wood", "d/x", version_id=made.version_id).info == made


@pytest.mark.parametrize("part", ["header", "head", "body"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_damage_to_a_record_that_was_read_before_is_found_by_the_next_read(
    store: Store, size: int, part: str
) -> None:
    store.put("wood", "x", noise(size), metadata={"a": "b" * 50})
    for _ in range(2):
        both(store, "x")
    file, record = records_of(store.path)[-1]
    at = {"header": 9, "head": 80, "body": 64 + record.header.head_length}[part]
    flip(volume_paths(store.path)[-1], record.header.offset + at)
    with pytest.raises(errors.Corrupt):
        store.get("wood", "x")
    if part != "body":
        with pytest.raises(errors.Corrupt):
            store.head("wood", "x")
    flip(file.path, record.header.offset + at)
    assert both(store, "x")[1] == noise(size)


def test_a_read_tells_what_was_written_last(store: Store) -> None:
    for number in range(4):
        store.put("wood", "x", noise(300, number), metadata={"n": str(number)})
        assert both(store, "x")[1] == noise(300, number)
        assert store.head("wood", "x").metadata == {"n": str(number)}
    store.update_attrs("wood", "x", {"a": 1})
    assert store.head("wood", "x").attrs == {"a": 1}
    store.update_attrs("wood", "x", {"a": 2})
    assert store.head("wood", "x").attrs == {"a": 2}
    store.delete("wood", "x")
    with pytest.raises(errors.KeyNotFound):
        store.head("wood", "x")


def test_an_object_under_a_new_name_is_told_of_under_that_name(store: Store) -> None:
    store.put("wood", "old/x", b"same")
    both(store, "old/x")
    store.rename("wood", "old/", "new/")
    assert store.head("wood", "new/x").key == "new/x" and both(store, "new/x")[1] == b"same"
    with pytest.raises(errors.KeyNotFound):
        store.get("wood", "old/x")


def test_what_a_caller_keeps_with_an_object_is_found_again_only_with_the_same_state(store: Store) -> None:
    def memo(key: str = "d/x") -> dict[object, object] | None:
        return store.look_up("wood", key, want_body=True).memo

    store.put("wood", "d/x", b"1")
    kept = memo()
    assert kept == {}
    kept["a"] = 1
    assert memo() == {"a": 1}
    store.put("wood", "d/x", b"2")
    assert memo() == {}
    kept = memo()
    assert kept is not None
    kept["a"] = 2
    store.rename("wood", "d/", "e/")
    assert memo("e/x") is None, "its name is another"
    store.rename("wood", "e/", "d/")
    store.update_attrs("wood", "d/x", {"a": 1})
    assert memo() is None, "its attributes are others"


def test_without_memory_nothing_is_kept_and_all_is_read(tmp_path: Path) -> None:
    with small(tmp_path / "store", head_cache_size=0) as store:
        store.create_bucket("wood")
        store.put("wood", "x", b"1")
        for _ in range(20):
            assert (
                store.get("wood", "x").read() == b"1"
                and store.look_up("wood", "x", want_body=True).memo is None
            )


def test_what_is_kept_is_bounded_and_a_walk_does_not_push_out_what_is_asked_for_often(tmp_path: Path) -> None:
    with small(tmp_path / "store", head_cache_size=30_000, durability="relaxed") as store:
        store.create_bucket("wood")
        with store.batch() as batch:
            for number in range(500):
                batch.put("wood", f"{number}", b"1")

        def is_kept(key: str) -> bool:
            memo = store.look_up("wood", key, want_body=False).memo
            was_kept = bool(memo)
            if memo is not None:
                memo["kept"] = True
            return was_kept

        often = walked = 0
        for _ in range(3):
            for number in range(500):
                walked += is_kept(f"{number}")
                often += is_kept("7")
        assert 5 < len(store._core.decoded) < 20
        assert often > 1000 and walked < 150
