"""Renaming one object, and appending: one commit, no chunk written twice, decided on what stands there then."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cordwood.engine import Conditions, ObjectInfo, Store, errors
from tests.engine.support import check_accounts, check_rebuilt, count_types, keys_of, noise, small

ABOUT: dict[str, Any] = {
    "headers": {"content-type": "text/plain"},
    "metadata": {"m": "1"},
    "storage_class": "STANDARD_IA",
    "attrs": {"tags": {"a": "b"}},
}


def md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


# --- renaming -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 10, 256, 257, 100_000])
def test_a_renamed_object_is_all_that_it_was_under_its_new_key_alone(
    store: Store, path: Path, size: int
) -> None:
    before = store.put("wood", "a/b", noise(size), checksums={"CRC32": "AAAAAA=="}, **ABOUT)
    after = store.rename_object("wood", "a/b", "c/d/e")
    assert keys_of(store, "wood") == ["c/d/e"]
    assert store.get("wood", "c/d/e").read() == noise(size)
    for name in ("size", "etag", "headers", "metadata", "checksums", "checksum_type", "storage_class"):
        assert getattr(after, name) == getattr(before, name), name
    assert after.attrs == ABOUT["attrs"] and store.head("wood", "c/d/e") == after
    assert store.index_info()["directories"] == 2  # c/ and c/d/; a/ went with what was in it
    check_accounts(store)
    store.close()
    check_rebuilt(path)


def test_a_rename_writes_no_chunk_and_one_transaction(store: Store, path: Path) -> None:
    store.put("wood", "a", noise(100_000))
    store.close()
    before = count_types(path)
    with small(path) as again:
        again.rename_object("wood", "a", "b")
    assert count_types(path) - before == Counter({"OBJECT": 1, "DELETE": 1})


def test_a_rename_replaces_what_is_there_and_frees_its_chunks(store: Store) -> None:
    store.put("wood", "a", noise(50_000, 1))
    store.put("wood", "b", noise(50_000, 2))
    store.rename_object("wood", "a", "b")
    assert store.get("wood", "b").read() == noise(50_000, 1) and keys_of(store, "wood") == ["b"]
    check_accounts(store)


def test_a_rename_in_a_bucket_with_versions_leaves_a_marker_and_loses_nothing(versioned: Store) -> None:
    old = versioned.put("wood", "a", b"old")
    there = versioned.put("wood", "b", b"there")
    new = versioned.rename_object("wood", "a", "b")
    assert versioned.get("wood", "b").read() == b"old" and new.version_id != there.version_id
    assert versioned.get("wood", "b", version_id=there.version_id).read() == b"there"
    assert versioned.get("wood", "a", version_id=old.version_id).read() == b"old"
    with pytest.raises(errors.DeleteMarkerFound):
        versioned.head("wood", "a")


@pytest.mark.parametrize(
    ("source", "target", "condition"),
    [
        ({"if_match": ("x",)}, {}, "If-Match"),
        ({"if_none_match": ("*",)}, {}, "If-None-Match"),
        ({"if_modified_since_s": 4e9}, {}, "If-Modified-Since"),
        ({"if_unmodified_since_s": 1.0}, {}, "If-Unmodified-Since"),
        ({}, {"if_match": ("x",)}, "If-Match"),
        ({}, {"if_none_match": ("*",)}, "If-None-Match"),
        ({}, {"if_modified_since_s": 4e9}, "If-Modified-Since"),
        ({}, {"if_unmodified_since_s": 1.0}, "If-Unmodified-Since"),
    ],
)
def test_each_condition_of_a_rename_is_decided_for_its_own_side(
    store: Store, source: dict[str, Any], target: dict[str, Any], condition: str
) -> None:
    store.put("wood", "a", b"a")
    store.put("wood", "b", b"b")
    with pytest.raises(errors.PreconditionFailed) as failed:
        store.rename_object(
            "wood", "a", "b", source_conditions=Conditions(**source), conditions=Conditions(**target)
        )
    assert failed.value.condition == condition and failed.value.key == ("a" if source else "b")
    assert keys_of(store, "wood") == ["a", "b"] and store.get("wood", "b").read() == b"b"


def test_conditions_that_want_something_there_fail_where_nothing_is(store: Store) -> None:
    store.put("wood", "a", b"a")
    for wanted in ({"if_match": ("*",)}, {"if_modified_since_s": 1.0}):
        with pytest.raises(errors.PreconditionFailed):
            store.rename_object("wood", "a", "b", conditions=Conditions(**wanted))
    held = Conditions(if_none_match=("*",), if_unmodified_since_s=1.0)
    store.rename_object("wood", "a", "b", conditions=held)
    assert keys_of(store, "wood") == ["b"]


def test_what_is_not_there_or_is_the_same_cannot_be_renamed(store: Store, versioned: Store) -> None:
    store.put("wood", "a", b"a")
    with pytest.raises(errors.InvalidArgument):
        store.rename_object("wood", "a", "a")
    with pytest.raises(errors.KeyNotFound):
        store.rename_object("wood", "none", "b")
    versioned.delete("wood", "a")
    with pytest.raises(errors.DeleteMarkerFound):
        versioned.rename_object("wood", "a", "b")


def test_a_rename_asked_for_twice_with_one_token_is_done_once(store: Store, path: Path) -> None:
    store.put("wood", "a", b"first")
    first = store.rename_object("wood", "a", "b", token="t1")
    store.put("wood", "a", b"second")
    assert store.rename_object("wood", "a", "b", token="t1") == first
    assert store.get("wood", "a").read() == b"second" and store.get("wood", "b").read() == b"first"
    store.close()
    with small(path) as again:  # also after a restart
        assert again.rename_object("wood", "a", "b", token="t1").etag == first.etag
        again.put("wood", "c", b"c")
        with pytest.raises(errors.TokenReused):
            again.rename_object("wood", "c", "b", token="t1")
        with pytest.raises(errors.TokenReused):
            again.rename_object("wood", "a", "b", token="t1", conditions=Conditions(if_match=("x",)))
        again.rename_object("wood", "a", "b", token="t2")
        assert again.get("wood", "b").read() == b"second"
        assert "renamed" not in again.copy("wood", "b", "wood", "d").attrs


def test_of_two_renames_to_one_absent_key_one_wins(store: Store) -> None:
    for number in range(8):
        store.put("wood", f"a{number}", b"%d" % number)
    lost: list[str] = []

    def rename(number: int) -> None:
        try:
            store.rename_object("wood", f"a{number}", "b", conditions=Conditions(if_none_match=("*",)))
        except errors.PreconditionFailed as error:
            lost.append(error.condition)

    threads = [threading.Thread(target=rename, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lost == ["If-None-Match"] * 7 and len(keys_of(store, "wood")) == 8


# --- appending ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [10, 256, 5000, 100_000])
@pytest.mark.parametrize("more", [0, 1, 300, 50_000])
def test_an_append_lists_what_was_there_and_writes_only_what_is_new(
    store: Store, path: Path, first: int, more: int
) -> None:
    store.put("wood", "k", noise(first), **ABOUT)
    info = store.append("wood", "k", noise(more, 1), offset=first)
    data = noise(first) + noise(more, 1)
    assert store.get("wood", "k").read() == data and info.size == len(data)
    assert info.etag == f"{md5(md5(noise(first)) + md5(noise(more, 1))).hex()}-2"
    assert store.get("wood", "k", part_number=2).read() == noise(more, 1)
    assert (info.headers, info.metadata, info.storage_class, info.attrs) == tuple(
        ABOUT[name] for name in ("headers", "metadata", "storage_class", "attrs")
    )
    check_accounts(store)
    store.close()
    check_rebuilt(path)


def test_an_append_does_not_write_stored_chunks_again(store: Store, path: Path) -> None:
    store.put("wood", "k", noise(40_960))
    store.close()
    before = count_types(path)
    with small(path) as again:
        again.append("wood", "k", b"x", offset=40_960)
    assert count_types(path) - before == Counter({"CHUNK": 1, "OBJECT": 1})


def test_an_append_at_offset_0_makes_an_object_or_fills_an_empty_one(store: Store) -> None:
    writer = store.append_writer("wood", "k", metadata={"a": "1"})
    writer.write(b"one")
    made = writer.commit(0, checksums={"CRC32": "AAAAAA=="})
    assert (made.etag, made.metadata, made.checksum_type) == (md5(b"one").hex(), {"a": "1"}, "FULL_OBJECT")
    store.put("wood", "empty", b"", metadata={"b": "2"})
    filled = store.append("wood", "empty", b"two", offset=0)
    assert (filled.etag, filled.metadata, filled.parts_count) == (md5(b"two").hex(), {"b": "2"}, 0)


@pytest.mark.parametrize("offset", [0, 2, 4, 1 << 40, -1])
def test_an_append_at_any_other_offset_than_the_size_is_refused(store: Store, offset: int) -> None:
    store.put("wood", "k", b"abc")
    with pytest.raises(errors.InvalidWriteOffset) as refused:
        store.append("wood", "k", b"x", offset=offset)
    assert refused.value.size == 3 and store.get("wood", "k").read() == b"abc"
    if offset:
        with pytest.raises(errors.InvalidWriteOffset):
            store.append("wood", "none", b"x", offset=offset)


def test_the_preconditions_of_an_append_are_those_of_a_write(store: Store) -> None:
    etag = store.put("wood", "k", b"abc").etag
    with pytest.raises(errors.PreconditionFailed):
        store.append("wood", "k", b"d", offset=3, conditions=Conditions(if_match=("0" * 32,)))
    with pytest.raises(errors.KeyNotFound):
        store.append("wood", "none", b"d", offset=0, conditions=Conditions(if_match=(etag,)))
    store.append("wood", "k", b"d", offset=3, conditions=Conditions(if_match=(etag,)))
    assert store.get("wood", "k").read() == b"abcd"


def test_an_append_in_a_bucket_with_versions_makes_a_version(versioned: Store) -> None:
    first = versioned.put("wood", "k", noise(9000))
    second = versioned.append("wood", "k", b"more", offset=9000)
    assert versioned.get("wood", "k", version_id=first.version_id).read() == noise(9000)
    assert versioned.get("wood", "k", version_id=second.version_id).read() == noise(9000) + b"more"
    versioned.delete("wood", "k")
    with pytest.raises(errors.InvalidWriteOffset):
        versioned.append("wood", "k", b"x", offset=9004)
    check_accounts(versioned)


def test_an_object_ends_at_ten_thousand_parts_and_a_fresh_copy_goes_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cordwood.engine import appending

    monkeypatch.setattr(appending, "PARTS_MAX", 3)
    assert store.append("wood", "k", b"1", offset=0).parts_count == 0
    for size in (1, 2):
        info = store.append("wood", "k", b"x", offset=size)
    assert info.parts_count == 3
    with pytest.raises(errors.TooManyParts):
        store.append("wood", "k", b"x", offset=3)
    store.put("wood", "k", store.get("wood", "k").read())
    assert store.append("wood", "k", b"x", offset=3).size == 4


def test_whoever_combines_checksums_is_told_of_all_parts(store: Store) -> None:
    seen: list[tuple[int, list[tuple[int, Mapping[str, str]]]]] = []

    def whole(before: ObjectInfo, parts: list[Any]) -> tuple[dict[str, str], str]:
        seen.append((before.size, [(part.size, part.checksums) for part in parts]))
        return {"CRC32": "BBBBBB=="}, "FULL_OBJECT"

    store.put("wood", "k", b"abc", checksums={"CRC32": "AAAAAA=="})
    info = store.append("wood", "k", b"de", offset=3, checksums={"CRC32": "CCCCCC=="}, whole=whole)
    assert seen == [(3, [(3, {"CRC32": "AAAAAA=="}), (2, {"CRC32": "CCCCCC=="})])]
    assert info.checksums == {"CRC32": "BBBBBB=="} and store.head("wood", "k") == info


def test_racing_appends_lose_no_byte_and_write_none_twice(store: Store) -> None:
    store.put("wood", "k", b"")

    def add(letter: bytes) -> None:
        done = 0
        while done < 10:
            try:
                store.append("wood", "k", letter, offset=store.head("wood", "k").size)
            except errors.InvalidWriteOffset:
                continue
            done += 1

    threads = [threading.Thread(target=add, args=(letter,)) for letter in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(store.get("wood", "k").read()) == Counter(b"abc" * 10)
    check_accounts(store)
