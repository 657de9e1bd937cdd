"""Versions as S3 has them: enabled, suspended, the null version, delete markers, and what stands up when one goes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cordwood.engine import Store, errors
from tests.engine.support import check_accounts, check_rebuilt, noise, small


def history(store: Store, key: str = "k") -> list[tuple[str, bool, bool]]:
    return [
        (entry.version_id, entry.is_latest, entry.is_delete_marker)
        for entry in store.list_versions("wood").entries
        if entry.key == key
    ]


def test_every_version_is_kept_while_versioning_is_enabled(versioned: Store) -> None:
    ids = [versioned.put("wood", "k", str(number).encode()).version_id for number in range(5)]
    assert len(set(ids)) == 5 and ids == sorted(ids)
    for number, version_id in enumerate(ids):
        with versioned.get("wood", "k", version_id=version_id) as reader:
            assert reader.read() == str(number).encode()
            assert reader.info.version_id == version_id
            assert reader.info.is_latest == (number == 4)
    assert versioned.get("wood", "k").info.version_id == ids[-1]
    assert [version_id for version_id, _, _ in history(versioned)] == ids[::-1]


def test_a_delete_puts_a_marker_on_top_and_removing_the_marker_brings_the_object_back(
    versioned: Store,
) -> None:
    put = versioned.put("wood", "k", b"1")
    deleted = versioned.delete("wood", "k")
    assert deleted.is_delete_marker and deleted.existed and deleted.version_id is not None
    with pytest.raises(errors.DeleteMarkerFound) as found:
        versioned.get("wood", "k")
    assert (found.value.version_id, found.value.is_latest) == (deleted.version_id, True)
    with pytest.raises(errors.DeleteMarkerFound):
        versioned.head("wood", "k", version_id=deleted.version_id)
    assert versioned.get("wood", "k", version_id=put.version_id).read() == b"1"
    assert versioned.list("wood").objects == []
    removed = versioned.delete("wood", "k", version_id=deleted.version_id)
    assert (removed.version_id, removed.is_delete_marker, removed.existed) == (deleted.version_id, True, True)
    assert versioned.get("wood", "k").read() == b"1"


def test_deleting_a_key_that_never_was_leaves_a_marker_under_versioning(versioned: Store) -> None:
    result = versioned.delete("wood", "deep/k")
    assert result.is_delete_marker and not result.existed
    with pytest.raises(errors.BucketNotEmpty):
        versioned.delete_bucket("wood")
    assert result.version_id is not None
    versioned.delete("wood", "deep/k", version_id=result.version_id)
    assert versioned.index_info()["directories"] == 0
    versioned.delete_bucket("wood")


def test_a_noncurrent_marker_is_told_apart_from_the_latest(versioned: Store) -> None:
    marker = versioned.delete("wood", "k").version_id
    versioned.put("wood", "k", b"2")
    with pytest.raises(errors.DeleteMarkerFound) as found:
        versioned.get("wood", "k", version_id=marker)
    assert not found.value.is_latest


def test_removing_the_current_version_promotes_the_one_before(versioned: Store) -> None:
    ids = [versioned.put("wood", "k", noise(1000, number)).version_id for number in range(4)]
    versioned.delete("wood", "k", version_id=ids[3])
    assert versioned.get("wood", "k").read() == noise(1000, 2)
    versioned.delete("wood", "k", version_id=ids[1])
    assert history(versioned) == [(ids[2], True, False), (ids[0], False, False)]
    versioned.delete("wood", "k", version_id=ids[2])
    versioned.delete("wood", "k", version_id=ids[0])
    assert history(versioned) == [] and versioned.index_info()["versions"] == 0
    assert not versioned.delete("wood", "k", version_id=ids[0]).existed
    check_accounts(versioned)


def test_objects_from_before_versioning_are_the_null_version_and_stay(store: Store) -> None:
    assert store.put("wood", "k", b"old").version_id == "null"
    store.update_bucket("wood", versioning="Enabled")
    new = store.put("wood", "k", b"new")
    assert store.get("wood", "k", version_id="null").read() == b"old"
    assert history(store) == [(new.version_id, True, False), ("null", False, False)]
    assert store.delete("wood", "k", version_id="null").existed
    with pytest.raises(errors.VersionNotFound):
        store.get("wood", "k", version_id="null")
    assert history(store) == [(new.version_id, True, False)]


def test_a_clock_does_not_name_the_null_version(store: Store) -> None:
    """The null version has one name only, though inside it has a clock like the others."""
    store.put("wood", "k", b"old")
    with store._core.index.read() as txn:
        from cordwood.engine.operations import current_row

        row = current_row(txn, store.head_bucket("wood").id, b"k")
    assert row is not None
    name = f"{row.clock:016x}"
    for _ in range(2):
        with pytest.raises(errors.VersionNotFound):
            store.get("wood", "k", version_id=name)
        assert not store.delete("wood", "k", version_id=name).existed
        store.update_bucket("wood", versioning="Enabled")
        store.put("wood", "k", b"new")


def test_suspended_writes_replace_the_null_version_and_nothing_else(versioned: Store) -> None:
    kept = versioned.put("wood", "k", b"1").version_id
    versioned.update_bucket("wood", versioning="Suspended")
    assert versioned.put("wood", "k", b"2").version_id == "null"
    assert versioned.put("wood", "k", b"3" * 1000).version_id == "null"
    assert history(versioned) == [("null", True, False), (kept, False, False)]
    versioned.update_bucket("wood", versioning="Enabled")
    last = versioned.put("wood", "k", b"4").version_id
    versioned.update_bucket("wood", versioning="Suspended")
    assert versioned.put("wood", "k", b"5").version_id == "null"  # the null version further down goes
    assert history(versioned) == [("null", True, False), (last, False, False), (kept, False, False)]
    assert versioned.get("wood", "k", version_id="null").read() == b"5"
    check_accounts(versioned)


def test_a_delete_while_suspended_puts_a_null_marker_in_place_of_the_null_version(versioned: Store) -> None:
    kept = versioned.put("wood", "k", b"1").version_id
    versioned.update_bucket("wood", versioning="Suspended")
    versioned.put("wood", "k", b"2")
    result = versioned.delete("wood", "k")
    assert (result.version_id, result.is_delete_marker) == ("null", True)
    assert history(versioned) == [("null", True, True), (kept, False, False)]
    assert versioned.delete("wood", "k", version_id="null").is_delete_marker
    assert versioned.get("wood", "k").read() == b"1"


def test_an_unversioned_bucket_keeps_one_version_and_no_markers(store: Store) -> None:
    store.put("wood", "k", b"1")
    store.put("wood", "k", b"2")
    assert history(store) == [("null", True, False)]
    assert store.get("wood", "k", version_id="null").read() == b"2"
    result = store.delete("wood", "k")
    assert (result.version_id, result.is_delete_marker, result.existed) == (None, False, True)
    assert not store.delete("wood", "k").existed
    assert history(store) == []
    store.put("wood", "k", b"3")
    assert store.delete("wood", "k", version_id="null").existed
    assert store.list("wood").objects == []


def test_a_page_of_versions_may_end_between_two_versions_of_a_key(versioned: Store) -> None:
    ids = {key: [versioned.put("wood", key, b"").version_id for _ in range(3)][::-1] for key in "abc"}
    page = versioned.list_versions("wood", max_keys=4)
    assert page.truncated
    assert (page.next_key_marker, page.next_version_id_marker) == ("b", ids["b"][0])
    rest = versioned.list_versions("wood", key_marker="b", version_id_marker=ids["b"][0])
    assert [(entry.key, entry.version_id) for entry in rest.entries] == [
        ("b", ids["b"][1]),
        ("b", ids["b"][2]),
        *(("c", version_id) for version_id in ids["c"]),
    ]
    assert [entry.is_latest for entry in rest.entries] == [False, False, True, False, False]
    behind = versioned.list_versions("wood", key_marker="b")
    assert [entry.key for entry in behind.entries] == ["c", "c", "c"]


def test_paging_goes_on_when_the_marked_version_was_removed_meanwhile(versioned: Store) -> None:
    ids = [versioned.put("wood", "k", b"").version_id for _ in range(4)][::-1]
    page = versioned.list_versions("wood", max_keys=2)
    assert page.next_version_id_marker == ids[1]
    versioned.delete("wood", "k", version_id=ids[1])
    rest = versioned.list_versions("wood", key_marker="k", version_id_marker=ids[1])
    assert [entry.version_id for entry in rest.entries] == ids[2:]


def test_the_null_version_can_be_a_marker_of_a_page(store: Store) -> None:
    store.put("wood", "k", b"")
    store.update_bucket("wood", versioning="Enabled")
    store.put("wood", "k", b"")
    store.update_bucket("wood", versioning="Suspended")
    store.put("wood", "k", b"")
    page = store.list_versions("wood", max_keys=1)
    assert page.next_version_id_marker == "null"
    rest = store.list_versions("wood", key_marker="k", version_id_marker="null")
    assert len(rest.entries) == 1 and rest.entries[0].version_id != "null"


def test_delete_many_decides_each_alone_and_commits_all_at_once(versioned: Store) -> None:
    one = versioned.put("wood", "one", b"1")
    versioned.put("wood", "two", b"2")
    from cordwood.engine import Conditions

    results = versioned.delete_many(
        "wood",
        [
            ("one", one.version_id, None),
            ("two", None, Conditions(if_match=("wrong",))),
            ("three", None, None),
            ("two", "0" * 15 + "1", Conditions(if_match=("*",))),
            ("four", "null", None),
        ],
    )
    assert [type(result).__name__ for result in results] == [
        "DeleteResult",
        "PreconditionFailed",
        "DeleteResult",
        "VersionNotFound",
        "DeleteResult",
    ]
    assert versioned.get("wood", "two").read() == b"2"


events = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from("ab"), st.sampled_from([1, 600])),
        st.tuples(st.just("delete"), st.sampled_from("ab"), st.just(0)),
        st.tuples(st.just("remove"), st.sampled_from("ab"), st.integers(0, 5)),
        st.tuples(st.just("set"), st.sampled_from(["Enabled", "Suspended"]), st.just(0)),
    ),
    max_size=25,
)


@given(events=events)
@settings(max_examples=80, deadline=None)
def test_any_history_of_versions_equals_the_model_and_its_own_rebuild(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, str, int]]
) -> None:
    """The model is S3's text: a list of versions per key, newest first, at most one of them null."""
    path = tmp_path_factory.mktemp("versions") / "store"
    model: dict[str, list[tuple[str, bytes | None]]] = {"a": [], "b": []}
    mode = ""
    with small(path, durability="relaxed") as store:
        store.create_bucket("wood")
        for number, (what, name, value) in enumerate(events):
            if what == "set":
                mode = name
                store.update_bucket("wood", versioning=name)
            elif what == "remove":
                if model[name]:
                    victim = model[name].pop(value % len(model[name]))
                    assert store.delete("wood", name, version_id=victim[0]).existed
            else:
                data = noise(value, number) if what == "put" else None
                if what == "put":
                    assert data is not None
                    version_id = store.put("wood", name, data).version_id
                else:
                    version_id = store.delete("wood", name).version_id or "null"
                if mode != "Enabled":
                    assert version_id == "null"
                    model[name] = [each for each in model[name] if each[0] != "null"]
                if mode or data is not None:
                    model[name].insert(0, (version_id, data))
        check_model(store, model)
    check_rebuilt(path)
    with small(path) as store:
        check_model(store, model)


def check_model(store: Store, model: dict[str, list[tuple[str, bytes | None]]]) -> None:
    for key, versions in model.items():
        expected: list[Any] = [
            (version_id, number == 0, data is None) for number, (version_id, data) in enumerate(versions)
        ]
        assert history(store, key) == expected
        for version_id, data in versions:
            if data is not None:
                assert store.get("wood", key, version_id=version_id).read() == data
    live = [key for key, versions in model.items() if versions and versions[0][1] is not None]
    assert [entry.key for entry in store.list("wood").objects] == live
