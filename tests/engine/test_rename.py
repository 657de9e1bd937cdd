"""Renaming a prefix: one record and one row whatever lies below, all at once or not at all."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cordwood.engine import Store, errors
from tests.engine.support import check_rebuilt, count_types, keys_of, small


def put_all(store: Store, *keys: str) -> None:
    with store.batch() as batch:
        for key in keys:
            batch.put("wood", key, key.encode())


def test_a_rename_of_ten_thousand_keys_is_one_record_and_one_row(store: Store, path: Path) -> None:
    put_all(store, *(f"old/{number % 7}/{number}" for number in range(10_000)), "other")
    rows = store.index_info()
    store.close()
    before = count_types(path)
    with small(path) as store:
        store.rename("wood", "old/", "new/")
        assert store.index_info() | {"used_bytes": 0} == rows | {"used_bytes": 0}
        page = store.list("wood", prefix="new/3/")
        assert len(page.objects) == 1000 and store.list("wood", prefix="old/").objects == []
        assert store.get("wood", "new/3/3").read() == b"old/3/3"
        with pytest.raises(errors.KeyNotFound):
            store.get("wood", "old/3/3")
    assert count_types(path) - before == Counter({"DIRECTORY": 1})
    check_rebuilt(path)


def test_a_rename_goes_below_parents_that_are_made_for_it_in_the_same_transaction(
    store: Store, path: Path
) -> None:
    put_all(store, "a/b/c/1", "a/b/c/2", "a/x")
    store.rename("wood", "a/b/c/", "p/q/r/s/")
    assert keys_of(store, "wood") == ["a/x", "p/q/r/s/1", "p/q/r/s/2"]
    assert store.list("wood", prefix="a/", delimiter="/").prefixes == []  # a/b/ had nothing else
    store.rename("wood", "p/", "a/b/")
    assert keys_of(store, "wood") == ["a/b/q/r/s/1", "a/b/q/r/s/2", "a/x"]
    store.close()
    assert count_types(path)["DIRECTORY"] == 3 + 4 + 1
    check_rebuilt(path)


def test_a_rename_of_the_whole_of_a_parent_removes_the_parent(store: Store) -> None:
    put_all(store, "a/b/c/d/1")
    store.rename("wood", "a/b/c/d/", "z/")
    assert keys_of(store, "wood") == ["z/1"]
    assert store.index_info()["directories"] == 1


def test_a_prefix_can_be_renamed_deeper_beside_itself_and_up_into_its_parent(store: Store) -> None:
    put_all(store, "a/b/1")
    store.rename("wood", "a/b/", "a/c/")
    assert keys_of(store, "wood") == ["a/c/1"]
    store.rename("wood", "a/c/", "a/d/e/f/")
    assert keys_of(store, "wood") == ["a/d/e/f/1"]
    store.rename("wood", "a/d/e/f/", "g/")
    assert keys_of(store, "wood") == ["g/1"]


def test_what_cannot_be_renamed_is_refused_and_nothing_changes(store: Store) -> None:
    put_all(store, "a/b/1", "c/2", "d")
    dump = store.logical_dump()
    cases: list[tuple[str, str, type[errors.CordwoodError]]] = [
        ("a/", "a/b/c/", errors.InvalidArgument),
        ("a/", "a/b/", errors.InvalidArgument),
        ("a/", "c/", errors.DestinationExists),
        ("a/b/", "a/", errors.DestinationExists),
        ("x/", "y/", errors.KeyNotFound),
        ("a/x/", "y/", errors.KeyNotFound),
        ("d/", "y/", errors.KeyNotFound),
        ("a", "y/", errors.InvalidArgument),
        ("a/", "y", errors.InvalidArgument),
        ("", "y/", errors.InvalidArgument),
        ("a/", "", errors.InvalidArgument),
        ("a/", "y" * 1024 + "/", errors.KeyTooLong),
    ]
    for old, new, error in cases:
        with pytest.raises(error):
            store.rename("wood", old, new)
    with pytest.raises(errors.BucketNotFound):
        store.rename("nowhere", "a/", "b/")
    store.rename("wood", "a/", "a/")
    assert store.logical_dump() == dump


def test_a_rename_carries_all_versions_and_markers(versioned: Store, path: Path) -> None:
    first = versioned.put("wood", "a/k", b"1")
    versioned.put("wood", "a/k", b"2" * 1000)
    versioned.delete("wood", "a/gone")
    versioned.update_bucket("wood", versioning="Suspended")
    versioned.put("wood", "a/k", b"3")
    before = [
        (entry.key.replace("a/", "b/c/"), entry.version_id, entry.is_delete_marker)
        for entry in versioned.list_versions("wood").entries
    ]
    versioned.rename("wood", "a/", "b/c/")
    after = [
        (entry.key, entry.version_id, entry.is_delete_marker)
        for entry in versioned.list_versions("wood").entries
    ]
    assert after == before
    assert versioned.get("wood", "b/c/k", version_id=first.version_id).read() == b"1"
    assert versioned.get("wood", "b/c/k", version_id="null").read() == b"3"
    versioned.delete("wood", "b/c/k", version_id="null")
    assert versioned.get("wood", "b/c/k").read() == b"2" * 1000
    versioned.close()
    check_rebuilt(path)


def test_names_that_were_freed_by_a_rename_can_be_used_again(store: Store, path: Path) -> None:
    put_all(store, "a/1", "a/2")
    store.rename("wood", "a/", "b/")
    put_all(store, "a/1", "a/3")
    store.rename("wood", "b/", "c/")
    store.rename("wood", "a/", "b/")
    assert keys_of(store, "wood") == ["b/1", "b/3", "c/1", "c/2"]
    assert store.get("wood", "c/1").read() == b"a/1"
    store.close()
    check_rebuilt(path)


def test_a_rename_can_make_keys_longer_than_a_put_may_and_they_stay_usable(store: Store, path: Path) -> None:
    put_all(store, "a/" + "k" * 1000)
    store.rename("wood", "a/", "b" * 900 + "/")
    key = "b" * 900 + "/" + "k" * 1000
    assert keys_of(store, "wood") == [key]
    assert store.get("wood", key).read() == ("a/" + "k" * 1000).encode()
    assert store.head("wood", key).key == key
    store.copy("wood", key, "wood", "short")
    assert store.delete("wood", key).existed
    assert keys_of(store, "wood") == ["short"]
    store.close()
    check_rebuilt(path)


def test_components_too_long_for_one_row_are_renamed_too(store: Store, path: Path) -> None:
    for size in (479, 480, 481, 961):
        name = "n" * size + "/"
        put_all(store, f"{name}1", f"{name}x/2")
        store.rename("wood", name, "m" * size + "/")
        assert keys_of(store, "wood") == ["m" * size + "/1", "m" * size + "/x/2"]
        store.rename("wood", "m" * size + "/x/", name)
        assert keys_of(store, "wood") == ["m" * size + "/1", f"{name}2"]
        store.delete("wood", "m" * size + "/1")
        store.delete("wood", f"{name}2")
    assert store.index_info()["entries"] == 0
    store.close()
    check_rebuilt(path)


steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "delete", "rename", "rename"]),
        st.sampled_from(["a/", "b/", "a/a/", "a/b/", "b/a/", "b/b/", "a/a/a/", "c" * 481 + "/", "/"]),
        st.sampled_from(["a/", "b/", "a/a/", "a/b/", "b/a/", "b/b/", "b/a/b/", "c" * 481 + "/", "//"]),
        st.sampled_from(["", "1", "2"]),
    ),
    max_size=25,
)


@given(steps=steps, versioning=st.sampled_from(["", "Enabled"]))
@settings(max_examples=60, deadline=None)
def test_any_history_with_renames_equals_a_plain_dictionary_and_its_own_rebuild(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str, str, str]], versioning: str
) -> None:
    path = tmp_path_factory.mktemp("rename") / "store"
    model: dict[str, bytes] = {}
    markers: set[str] = set()  # keys that only live on as delete markers still keep their directories
    with small(path, durability="relaxed") as store:
        store.create_bucket("wood", versioning=versioning)
        for number, (what, one, two, name) in enumerate(steps):
            data = str(number).encode()
            if what == "put":
                store.put("wood", one + name, data)
                model[one + name] = data
                markers.discard(one + name)
            elif what == "delete":
                store.delete("wood", one + name)
                model.pop(one + name, None)
                if versioning:
                    markers.add(one + name)
            else:
                names = [*model, *markers]
                has_source = any(key.startswith(one) for key in names)
                try:
                    store.rename("wood", one, two)
                except errors.CordwoodError as error:
                    if not has_source:
                        assert isinstance(error, errors.KeyNotFound)
                    elif two.startswith(one):
                        assert isinstance(error, errors.InvalidArgument)
                    else:
                        assert isinstance(error, errors.DestinationExists)
                        assert any(key.startswith(two) for key in names)
                else:
                    assert has_source
                    moved = {key: value for key, value in model.items() if key.startswith(one)}
                    for key in moved:
                        del model[key]
                    model |= {two + key[len(one) :]: value for key, value in moved.items()}
                    markers = {two + key[len(one) :] if key.startswith(one) else key for key in markers}
            assert keys_of(store, "wood") == sorted(model, key=str.encode)
        for key, data in model.items():
            assert store.get("wood", key).read() == data
    check_rebuilt(path)
