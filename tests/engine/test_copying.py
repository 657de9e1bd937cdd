"""Copies and parts made of what is stored: no chunk is written twice, and nothing of the source is left out."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cordwood.engine import Conditions, Store, errors
from tests.engine.support import check_accounts, check_rebuilt, count_types, noise

ABOUT = {
    "headers": {"content-type": "text/plain", "cache-control": "no-cache"},
    "metadata": {"m": "1"},
    "checksums": {"CRC32": "AAAAAA=="},
    "storage_class": "GLACIER",
    "attrs": {"tags": {"a": "b"}},
}


@pytest.mark.parametrize("size", [0, 10, 256, 257, 4096, 100_000])
def test_a_copy_has_the_bytes_and_the_description_of_its_source(store: Store, size: int) -> None:
    source = store.put("wood", "a", noise(size), **ABOUT)  # type: ignore[arg-type]
    store.create_bucket("other")
    copy = store.copy("wood", "a", "other", "b/c")
    assert store.get("other", "b/c").read() == noise(size)
    for name in (
        "size",
        "etag",
        "headers",
        "metadata",
        "checksums",
        "checksum_type",
        "storage_class",
        "attrs",
    ):
        assert getattr(copy, name) == getattr(source, name), name
    assert store.head("other", "b/c") == copy
    check_accounts(store)


def test_what_a_copy_is_told_replaces_what_the_source_says(store: Store) -> None:
    store.put("wood", "a", b"x", **ABOUT)  # type: ignore[arg-type]
    copy = store.copy(
        "wood",
        "a",
        "wood",
        "a",
        headers={},
        metadata={"n": "2"},
        checksums={"SHA1": "x"},
        checksum_type="FULL_OBJECT",
        storage_class="STANDARD",
        attrs={},
    )
    assert (copy.headers, copy.metadata, copy.attrs) == ({}, {"n": "2"}, {})
    assert (copy.checksums, copy.checksum_type, copy.storage_class) == (
        {"SHA1": "x"},
        "FULL_OBJECT",
        "STANDARD",
    )


def test_a_copy_writes_no_chunk_and_outlives_its_source(store: Store, path: Path) -> None:
    store.put("wood", "a", noise(100_000))
    for number in range(3):
        store.copy("wood", "a", "wood", f"b{number}")
    store.delete("wood", "a")
    store.copy("wood", "b0", "wood", "b0", metadata={"self": "yes"})
    check_accounts(store)
    assert store.get("wood", "b0").read() == noise(100_000)
    store.close()
    assert count_types(path)["CHUNK"] == 25
    check_rebuilt(path)


def test_a_copy_works_without_deduplication_too(path: Path) -> None:
    from tests.engine.support import small

    with small(path, dedup=False) as store:
        store.create_bucket("wood")
        store.put("wood", "a", noise(9000))
        store.copy("wood", "a", "wood", "b")
        store.delete("wood", "a")
        assert store.get("wood", "b").read() == noise(9000)
        check_accounts(store)
    assert count_types(path)["CHUNK"] == 3
    check_rebuilt(path)


def test_one_version_can_be_copied_over_the_newest(versioned: Store) -> None:
    old = versioned.put("wood", "k", noise(1000, 1))
    versioned.put("wood", "k", noise(1000, 2))
    copy = versioned.copy("wood", "k", "wood", "k", src_version_id=old.version_id)
    assert versioned.get("wood", "k").read() == noise(1000, 1)
    assert copy.version_id not in (old.version_id, "null")
    assert len(versioned.list_versions("wood").entries) == 3


def test_a_copy_of_a_multipart_object_keeps_its_parts_and_etag(store: Store, path: Path) -> None:
    upload = store.create_upload("wood", "a")
    parts = []
    for number in (1, 2):
        writer = store.part_writer("wood", "a", upload.upload_id, number)
        writer.write(noise(9000, number))
        parts.append((number, writer.commit().etag))
    source = store.complete_upload("wood", "a", upload.upload_id, parts, min_part_size=1)
    copy = store.copy("wood", "a", "wood", "b")
    assert (copy.etag, copy.parts_count) == (source.etag, 2)
    assert store.get("wood", "b", part_number=2).read() == noise(9000, 2)
    with pytest.raises(errors.UploadNotFound):
        store.complete_upload("wood", "b", upload.upload_id, parts)
    check_accounts(store)
    store.close()
    check_rebuilt(path)


def test_what_is_not_there_cannot_be_copied_and_conditions_hold_on_both_sides(versioned: Store) -> None:
    store = versioned
    source = store.put("wood", "a", b"1")
    store.put("wood", "b", b"2")
    store.delete("wood", "gone")
    cases: list[tuple[type[errors.CordwoodError], tuple[str, str, str, str], dict[str, object]]] = [
        (errors.KeyNotFound, ("wood", "x", "wood", "c"), {}),
        (errors.DeleteMarkerFound, ("wood", "gone", "wood", "c"), {}),
        (errors.VersionNotFound, ("wood", "a", "wood", "c"), {"src_version_id": "0" * 16}),
        (errors.BucketNotFound, ("nope", "a", "wood", "c"), {}),
        (errors.BucketNotFound, ("wood", "a", "nope", "c"), {}),
        (errors.InvalidKey, ("wood", "a", "wood", ""), {}),
        (errors.InvalidArgument, ("wood", "a", "wood", "c"), {"storage_class": "ICE"}),
        (
            errors.PreconditionFailed,
            ("wood", "a", "wood", "c"),
            {"src_conditions": Conditions(if_match=("x",))},
        ),
        (
            errors.NotModified,
            ("wood", "a", "wood", "c"),
            {"src_conditions": Conditions(if_none_match=(source.etag,))},
        ),
        (
            errors.PreconditionFailed,
            ("wood", "a", "wood", "b"),
            {"conditions": Conditions(if_none_match=("*",))},
        ),
        (errors.KeyNotFound, ("wood", "a", "wood", "c"), {"conditions": Conditions(if_match=("*",))}),
    ]
    for error, names, options in cases:
        with pytest.raises(error):
            store.copy(*names, **options)  # type: ignore[arg-type]
    assert store.get("wood", "b").read() == b"2"
    assert [entry.key for entry in store.list("wood").objects] == ["a", "b"]


@pytest.mark.parametrize("size", [0, 100, 30_000])
@pytest.mark.parametrize("wanted", [None, (0, 4095), (4096, 12_287), (1, 20_000), (29_999, 29_999), (0, 49)])
def test_a_part_made_of_a_range_is_the_range(store: Store, size: int, wanted: tuple[int, int] | None) -> None:
    data = noise(size)
    store.put("wood", "a", data)
    upload = store.create_upload("wood", "k").upload_id

    def attempt() -> None:
        expected = data if wanted is None else data[wanted[0] : wanted[1] + 1]
        part = store.copy_part("wood", "k", upload, 1, "wood", "a", range=wanted)
        assert (part.size, part.etag) == (len(expected), hashlib.md5(expected).hexdigest())
        check_accounts(store)
        store.complete_upload("wood", "k", upload, [(1, part.etag)])
        assert store.get("wood", "k").read() == expected
        check_accounts(store)

    if wanted is not None and wanted[0] >= size:
        with pytest.raises(errors.InvalidRange):
            attempt()
    else:
        attempt()


def test_whole_chunks_of_a_range_are_shared_and_only_the_edges_are_written(store: Store, path: Path) -> None:
    store.put("wood", "a", noise(40_960))
    upload = store.create_upload("wood", "k").upload_id
    part = store.copy_part("wood", "k", upload, 1, "wood", "a", range=(100, 40_000))
    store.complete_upload("wood", "k", upload, [(1, part.etag)])
    store.delete("wood", "a")
    assert store.get("wood", "k").read() == noise(40_960)[100:40_001]
    check_accounts(store)
    store.close()
    assert count_types(path)["CHUNK"] == 10 + 2
    check_rebuilt(path)


def test_a_part_cannot_be_made_of_what_is_not_there(store: Store) -> None:
    store.put("wood", "a", b"123")
    upload = store.create_upload("wood", "k").upload_id
    with pytest.raises(errors.KeyNotFound):
        store.copy_part("wood", "k", upload, 1, "wood", "x")
    with pytest.raises(errors.PreconditionFailed):
        store.copy_part("wood", "k", upload, 1, "wood", "a", src_conditions=Conditions(if_match=("x",)))
    with pytest.raises(errors.UploadNotFound):
        store.copy_part("wood", "j", upload, 1, "wood", "a")
    with pytest.raises(errors.InvalidArgument):
        store.copy_part("wood", "k", upload, 0, "wood", "a")
    assert store.list_parts("wood", "k", upload).parts == []


def test_a_source_that_became_another_object_since_it_was_looked_at_is_not_copied(store: Store) -> None:
    seen = store.put("wood", "a", b"old")
    store.put("wood", "a", b"new")
    with pytest.raises(errors.Conflict, match="'a' was changed"):
        store.copy("wood", "a", "wood", "b", seen=seen)
    with pytest.raises(errors.KeyNotFound):
        store.head("wood", "b")
    store.copy("wood", "a", "wood", "b", seen=store.head("wood", "a"))
    assert store.get("wood", "b").read() == b"new"
    seen = store.head("wood", "a")
    store.update_attrs("wood", "a", {"tags": {"secret": "yes"}})
    with pytest.raises(errors.Conflict):
        store.copy("wood", "a", "wood", "b", seen=seen)
