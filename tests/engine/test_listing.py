"""Listings against a model of a few lines: any keys, any prefix, delimiter, marker and page size."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cordwood.engine import Listing, Store, errors, namespace
from tests.engine.support import keys_of, small

LONG = ["x" * 479, "x" * 480, "x" * 481, "x" * 482, "y" * 480]
PIECES = ["a", "b", "ab", "aa", "/", "/", "/", "-", ".", "0", " ", "\0", "é", "\uffff", "🪵", *LONG]
pieces = st.sampled_from(PIECES)
keys = st.lists(pieces, min_size=1, max_size=6).map("".join).filter(lambda key: len(key.encode()) <= 1024)
texts = st.lists(pieces, max_size=4).map("".join)
delimiters = st.sampled_from(["", "/", "a", "//", "a/", "/a", "é", "x", "-", "ab", "\0", "x" * 480])


def naive(
    stored: set[str], prefix: str, delimiter: str, start_after: str, max_keys: int
) -> tuple[list[str], list[str], bool, str | None]:
    """What S3's documentation says a listing is."""
    items: dict[bytes, bool] = {}
    for key in stored:
        if not key.startswith(prefix):
            continue
        at = key.find(delimiter, len(prefix)) if delimiter else -1
        item = key if at < 0 else key[: at + len(delimiter)]
        if item.encode() > start_after.encode():
            items[item.encode()] = at >= 0
    page = sorted(items)[: max(max_keys, 0)]
    truncated = max_keys > 0 and len(items) > max_keys
    return (
        [item.decode() for item in page if not items[item]],
        [item.decode() for item in page if items[item]],
        truncated,
        page[-1].decode() if truncated else None,
    )


def plain(listing: Listing) -> tuple[list[str], list[str], bool, str | None]:
    return [entry.key for entry in listing.objects], listing.prefixes, listing.truncated, listing.next


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with small(tmp_path_factory.mktemp("listing") / "store", durability="relaxed") as opened:
        yield opened


numbers = itertools.count()


def bucket_of(store: Store, stored: set[str]) -> str:
    bucket = f"bucket-{next(numbers)}"
    store.create_bucket(bucket)
    with store.batch() as batch:
        for key in stored:
            batch.put(bucket, key, b"")
    return bucket


relaxed = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@given(
    stored=st.sets(keys, max_size=25),
    queries=st.lists(st.tuples(texts, delimiters, texts, st.integers(-1, 6)), min_size=1, max_size=8),
)
@relaxed
def test_a_page_is_what_the_model_says(
    shared: Store, stored: set[str], queries: list[tuple[str, str, str, int]]
) -> None:
    bucket = bucket_of(shared, stored)
    for prefix, delimiter, start_after, max_keys in queries:
        page = shared.list(
            bucket, prefix=prefix, delimiter=delimiter, start_after=start_after, max_keys=max_keys
        )
        assert plain(page) == naive(stored, prefix, delimiter, start_after, max_keys)


@given(stored=st.sets(keys, max_size=25), prefix=texts, delimiter=delimiters, max_keys=st.integers(1, 5))
@relaxed
def test_paging_gives_every_item_once_and_in_byte_order(
    shared: Store, stored: set[str], prefix: str, delimiter: str, max_keys: int
) -> None:
    bucket = bucket_of(shared, stored)
    seen: list[str] = []
    after = ""
    while True:
        page = shared.list(bucket, prefix=prefix, delimiter=delimiter, start_after=after, max_keys=max_keys)
        items = sorted([*(entry.key for entry in page.objects), *page.prefixes], key=str.encode)
        assert len(items) <= max_keys
        seen += items
        if not page.truncated:
            break
        assert page.next == items[-1]
        after = page.next
    objects, prefixes, _, _ = naive(stored, prefix, delimiter, "", 1 << 30)
    assert seen == sorted([*objects, *prefixes], key=str.encode)


@given(stored=st.sets(keys, max_size=25), gone=st.sets(st.integers(0, 24)))
@relaxed
def test_what_was_deleted_is_not_listed_and_leaves_no_row(
    shared: Store, stored: set[str], gone: set[int]
) -> None:
    bucket = bucket_of(shared, stored)
    removed = {key for number, key in enumerate(sorted(stored)) if number in gone}
    with shared.batch() as batch:
        for key in removed:
            batch.delete(bucket, key)
    kept = stored - removed
    assert keys_of(shared, bucket) == sorted(kept, key=str.encode)
    assert plain(shared.list(bucket, delimiter="/")) == naive(kept, "", "/", "", 1000)
    with shared.batch() as batch:
        for key in kept:
            batch.delete(bucket, key)
    shared.delete_bucket(bucket)


@given(
    stored=st.sets(keys, max_size=12),
    history=st.lists(st.tuples(st.integers(0, 11), st.booleans()), max_size=25),
    prefix=texts,
    delimiter=delimiters,
    max_keys=st.integers(1, 4),
)
@relaxed
def test_versions_and_markers_are_listed_as_the_model_says_page_by_page(
    shared: Store,
    stored: set[str],
    history: list[tuple[int, bool]],
    prefix: str,
    delimiter: str,
    max_keys: int,
) -> None:
    bucket = bucket_of(shared, set())
    shared.update_bucket(bucket, versioning="Enabled")
    names = sorted(stored)
    model: dict[str, list[tuple[str | None, bool]]] = {}
    with shared.batch() as batch:
        for number, is_delete in history:
            if number < len(names):
                if is_delete:
                    batch.delete(bucket, names[number])
                else:
                    batch.put(bucket, names[number], b"")
                model.setdefault(names[number], []).insert(0, (names[number], is_delete))
    live = {key for key, versions in model.items() if not versions[0][1]}
    assert plain(shared.list(bucket, prefix=prefix, delimiter=delimiter, max_keys=max_keys)) == naive(
        live, prefix, delimiter, "", max_keys
    )
    entries: list[tuple[str | None, bool]] = []
    prefixes: list[str] = []
    key_marker = version_marker = ""
    while True:
        page = shared.list_versions(
            bucket,
            prefix=prefix,
            delimiter=delimiter,
            key_marker=key_marker,
            version_id_marker=version_marker,
            max_keys=max_keys,
        )
        assert len(page.entries) + len(page.prefixes) <= max_keys
        entries += [(entry.key, entry.is_delete_marker) for entry in page.entries]
        prefixes += page.prefixes
        if not page.truncated:
            break
        assert page.next_key_marker is not None
        key_marker, version_marker = page.next_key_marker, page.next_version_id_marker or ""
    objects, common, _, _ = naive(set(model), prefix, delimiter, "", 1 << 30)
    assert prefixes == common
    assert entries == [version for key in objects for version in model[key]]


def test_a_marker_between_keys_and_inside_directories_goes_on_at_the_right_place(store: Store) -> None:
    stored = {"a", "a/b", "a/b/c", "a/c", "b", "b/", "b/x/y/z", "c-", "c/d", "c0"}
    with store.batch() as batch:
        for key in stored:
            batch.put("wood", key, b"")
    markers = {*stored, "a/", "a/b/", "a/b/b", "a/b0", "b/x", "b/x/", "b/x/y/", "b/x/y/zz", "zz", "c/", "c."}
    for marker in markers:
        for delimiter in ("", "/", "b"):
            page = store.list("wood", start_after=marker, delimiter=delimiter)
            assert plain(page) == naive(stored, "", delimiter, marker, 1000)


def test_a_listing_with_a_slash_touches_only_what_it_returns(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3,000 keys below one directory cost a listing of its parent one row."""
    with store.batch() as batch:
        for number in range(3000):
            batch.put("wood", f"many/{number:05}", b"")
        batch.put("wood", "z", b"")
    steps = 0
    advance = namespace._Frame.advance

    def counting(frame: namespace._Frame, bound: bytes) -> tuple[bytes, bytes] | None:
        nonlocal steps
        steps += 1
        return advance(frame, bound)

    monkeypatch.setattr(namespace._Frame, "advance", counting)
    assert plain(store.list("wood", delimiter="/")) == (["z"], ["many/"], False, None)
    assert plain(store.list("wood", delimiter="/", start_after="many/01500")) == (["z"], [], False, None)
    assert plain(store.list("wood", delimiter="an")) == (["z"], ["man"], False, None)
    assert len(store.list("wood", prefix="many/", start_after="many/02000", max_keys=5).objects) == 5
    assert steps < 30


def test_a_bucket_whose_keys_are_all_deleted_under_versioning_lists_no_prefixes(versioned: Store) -> None:
    for key in ("a/b", "a/c/d", "e"):
        versioned.put("wood", key, b"1")
        versioned.delete("wood", key)
    assert plain(versioned.list("wood", delimiter="/")) == ([], [], False, None)
    assert plain(versioned.list("wood", delimiter="a")) == ([], [], False, None)
    assert versioned.list_versions("wood", delimiter="/").prefixes == ["a/"]
    versioned.put("wood", "a/c/x", b"2")
    assert plain(versioned.list("wood", delimiter="/")) == ([], ["a/"], False, None)


def test_entries_tell_what_the_index_knows_without_reading_the_objects(store: Store, path: Path) -> None:
    put = store.put(
        "wood",
        "k",
        b"x" * 5000,
        storage_class="GLACIER_IR",
        checksums={"CRC32": "AAAAAA==", "SHA256": "x"},
        checksum_type="COMPOSITE",
    )
    (entry,) = store.list("wood").objects
    assert (entry.key, entry.size, entry.etag, entry.modified_ms) == ("k", 5000, put.etag, put.modified_ms)
    assert (entry.storage_class, entry.checksum_type) == ("GLACIER_IR", "COMPOSITE")
    assert entry.checksum_algorithms == ("CRC32", "SHA256")
    assert (entry.version_id, entry.is_latest, entry.is_delete_marker) == ("null", True, False)
    store.put("wood", "k", b"", checksums={"MD5": "x"})
    (entry,) = store.list("wood").objects
    assert (entry.checksum_type, entry.checksum_algorithms) == ("FULL_OBJECT", ("MD5",))


def test_pages_of_zero_keys_are_empty_and_say_that_nothing_is_left(store: Store) -> None:
    store.put("wood", "k", b"")
    assert plain(store.list("wood", max_keys=0)) == ([], [], False, None)
    assert store.list_versions("wood", max_keys=0).entries == []
    store.create_upload("wood", "k")
    assert store.list_uploads("wood", max_uploads=0).uploads == []
    with pytest.raises(errors.BucketNotFound):
        store.list("nowhere")
