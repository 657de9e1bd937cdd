"""Arguments that a program got wrong: each is refused by name, at once, and never costs more than its own call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cordwood.engine import Store, check_bucket_name, errors
from tests.engine.support import keys_of, small

BAD_BUCKETS = ["", "x", "ab", "x" * 64, "x" * 600, "\ud800abc", "wood\0", "WOOD", "a..b", "1.2.3.4"]
UPLOAD_ID = "0123456789abcdef" * 2


def buckets_by_call(store: Store, bucket: str) -> list[Callable[[], object]]:
    return [
        lambda: store.head_bucket(bucket),
        lambda: store.delete_bucket(bucket),
        lambda: store.update_bucket(bucket, versioning="Enabled"),
        lambda: store.put(bucket, "k", b""),
        lambda: store.get(bucket, "k"),
        lambda: store.head(bucket, "k"),
        lambda: store.delete(bucket, "k"),
        lambda: store.delete_many(bucket, [("k", None, None)]),
        lambda: store.copy(bucket, "k", "wood", "k"),
        lambda: store.copy("wood", "k", bucket, "k"),
        lambda: store.rename(bucket, "a/", "b/"),
        lambda: store.list(bucket),
        lambda: store.list_versions(bucket),
        lambda: store.list_uploads(bucket),
        lambda: store.create_upload(bucket, "k"),
        lambda: store.head_upload(bucket, "k", UPLOAD_ID),
        lambda: store.abort_upload(bucket, "k", UPLOAD_ID),
    ]


@pytest.mark.parametrize("bucket", [repr(each)[:20] for each in BAD_BUCKETS])
def test_a_bucket_name_that_cannot_exist_is_not_found_by_any_call_and_harms_nobody(
    store: Store, bucket: str
) -> None:
    name = next(each for each in BAD_BUCKETS if repr(each)[:20] == bucket)
    store.put("wood", "k", b"here")
    for call in buckets_by_call(store, name):
        try:
            result = call()
        except errors.NotFound:
            continue
        assert isinstance(result, list) and isinstance(result[0], errors.BucketNotFound)  # delete_many
    assert store.read_only_reason is None
    with pytest.raises(errors.InvalidBucketName):
        store.create_bucket(name)


@pytest.mark.parametrize("name", ["abc", "a-b", "a.b", "0" * 63, "x1y", "a.1.2.3"])
def test_names_that_s3_allows_make_buckets(name: str) -> None:
    check_bucket_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "ab",
        "a" * 64,
        "Abc",
        "-ab",
        "ab-",
        "a_b",
        "a..b",
        "10.0.0.1",
        "xn--ab",
        "a-s3alias",
        "b--ol-s3",
        "ü-ab",
    ],
)
def test_names_that_s3_forbids_make_no_buckets(name: str) -> None:
    with pytest.raises(errors.InvalidBucketName, match="not valid"):
        check_bucket_name(name)


BAD_DESCRIPTIONS: list[dict[str, Any]] = [
    {"metadata": {"a": 1}},
    {"metadata": {1: "a"}},
    {"metadata": {"a": "\ud800"}},
    {"headers": {"content-type": None}},
    {"headers": {"content-type": b"text/plain"}},
    {"attrs": {"a": object}},
    {"attrs": {"a": "\ud800"}},
    {"attrs": {"a": 1 << 70}},
    {"attrs": {"a": "x" * (17 << 20)}},
    {"storage_class": "GRANITE"},
]
BAD_CHECKSUMS: list[dict[str, Any]] = [
    {"checksums": {"CRC99": "AAAAAA=="}},
    {"checksums": {"CRC32": 7}},
    {"checksums": {"CRC32": "AAAAAA=="}, "checksum_type": "PARTIAL"},
]


def ids(value: object) -> str:
    return repr(value)[:40]


@pytest.mark.parametrize("about", [*BAD_DESCRIPTIONS, *BAD_CHECKSUMS], ids=ids)
def test_a_description_that_cannot_be_kept_is_refused_and_the_store_goes_on(
    store: Store, about: dict[str, Any]
) -> None:
    for size in (10, 5000):
        with pytest.raises(errors.InvalidArgument):
            store.put("wood", "a/k", b"x" * size, **about)
    store.put("wood", "src", b"x" * 5000)
    with pytest.raises(errors.InvalidArgument):
        store.copy("wood", "src", "wood", "a/k", **about)
    assert store.read_only_reason is None
    assert keys_of(store, "wood") == ["src"]


@pytest.mark.parametrize("about", BAD_DESCRIPTIONS, ids=ids)
def test_an_upload_whose_description_cannot_be_kept_is_refused(store: Store, about: dict[str, Any]) -> None:
    with pytest.raises(errors.InvalidArgument):
        store.create_upload("wood", "k", **about)
    assert store.read_only_reason is None
    assert store.list_uploads("wood").uploads == []


@pytest.mark.parametrize("about", BAD_CHECKSUMS, ids=ids)
def test_a_completion_with_checksums_that_cannot_be_kept_is_refused(
    store: Store, about: dict[str, Any]
) -> None:
    upload = store.create_upload("wood", "k").upload_id
    writer = store.part_writer("wood", "k", upload, 1)
    writer.write(b"part")
    part = writer.commit()
    with pytest.raises(errors.InvalidArgument):
        store.complete_upload("wood", "k", upload, [(1, part.etag)], **about)
    assert store.read_only_reason is None
    assert store.complete_upload("wood", "k", upload, [(1, part.etag)]).size == 4


def test_part_checksums_that_cannot_be_kept_are_refused(store: Store) -> None:
    upload = store.create_upload("wood", "k").upload_id
    for checksums in ({"CRC99": "x"}, {"CRC32": 7}):
        writer = store.part_writer("wood", "k", upload, 1)
        writer.write(b"part")
        with pytest.raises(errors.InvalidArgument):
            writer.commit(checksums=checksums)  # type: ignore[arg-type]
    assert store.read_only_reason is None


@pytest.mark.parametrize("attrs", [{"a": object}, {"a": "\ud800"}, {"a": 1 << 70}, {1: "a"}], ids=ids)
def test_bucket_attributes_that_cannot_be_kept_are_refused(store: Store, attrs: dict[Any, Any]) -> None:
    with pytest.raises(errors.InvalidArgument):
        store.create_bucket("other", attrs=attrs)
    with pytest.raises(errors.InvalidArgument):
        store.update_bucket("wood", attrs=attrs)
    assert store.read_only_reason is None
    assert [bucket.name for bucket in store.list_buckets()] == ["wood"]


@pytest.mark.parametrize(
    "version_id",
    [
        "",
        "x",
        "0" * 16,
        "-00000000000001f",
        "+",
        "\ud800",
        "f" * 16,
        "F" * 16,
        "0x00000000000001",
        "٠" * 16,
        "Null",
    ],
)
def test_a_version_id_that_was_never_given_out_is_not_found(versioned: Store, version_id: str) -> None:
    versioned.put("wood", "k", b"1")
    versioned.put("wood", "k", b"2")
    for call in (versioned.get, versioned.head):
        with pytest.raises(errors.VersionNotFound):
            call("wood", "k", version_id=version_id)
    assert not versioned.delete("wood", "k", version_id=version_id).existed
    assert versioned.list_versions("wood", key_marker="k", version_id_marker=version_id) is not None
    assert versioned.get("wood", "k").read() == b"2"


def test_another_spelling_of_a_version_id_does_not_name_the_version(versioned: Store) -> None:
    real = versioned.put("wood", "k", b"1").version_id
    assert real.startswith("0")
    for other in (
        real.upper(),
        "+" + real[1:],
        " " + real[1:],
        real[:3] + "_" + real[3:],
        real + " ",
        "0" + real,
    ):
        if other != real:
            with pytest.raises(errors.VersionNotFound):
                versioned.get("wood", "k", version_id=other)


@pytest.mark.parametrize(
    "upload_id",
    [
        "",
        "x",
        "-00000000000001f" + "0" * 16,
        "f" * 32,
        "٠" * 32,
        "0" * 32,
        "\ud800" * 32,
        "0" * 16 + " " * 16,
    ],
)
def test_an_upload_id_that_was_never_given_out_is_not_found(store: Store, upload_id: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.head_upload("wood", "k", upload_id),
        lambda: store.part_writer("wood", "k", upload_id, 1),
        lambda: store.list_parts("wood", "k", upload_id),
        lambda: store.complete_upload("wood", "k", upload_id, [(1, "0" * 32)]),
        lambda: store.abort_upload("wood", "k", upload_id),
    ]
    for call in calls:
        with pytest.raises(errors.UploadNotFound):
            call()
    assert store.read_only_reason is None


def test_listing_arguments_that_are_no_text_are_refused_by_name(store: Store) -> None:
    bad = "\ud800"
    calls: list[Callable[[], object]] = [
        lambda: store.list("wood", prefix=bad),
        lambda: store.list("wood", delimiter=bad),
        lambda: store.list("wood", start_after=bad),
        lambda: store.list_versions("wood", prefix=bad),
        lambda: store.list_versions("wood", key_marker=bad),
        lambda: store.list_uploads("wood", prefix=bad),
        lambda: store.list_uploads("wood", delimiter=bad),
        lambda: store.list_uploads("wood", key_marker=bad),
    ]
    for call in calls:
        with pytest.raises(errors.InvalidArgument):
            call()


@pytest.mark.parametrize(
    "options",
    [
        {"durability": "eventual"},
        {"inline_max": -1},
        {"inline_max": 5000},
        {"head_cache_size": -1},
        {"chunk_size": 100},
        {"chunk_size": 1 << 30},
        {"volume_size": 1000},
    ],
    ids=ids,
)
def test_options_outside_their_range_are_refused_before_anything_is_made(
    path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(errors.InvalidArgument):
        small(path, **options)
    assert not path.exists()


def test_versioning_takes_only_the_words_of_s3(store: Store) -> None:
    for word in ("enabled", "Off", "x"):
        with pytest.raises(errors.InvalidArgument):
            store.update_bucket("wood", versioning=word)
        with pytest.raises(errors.InvalidArgument):
            store.create_bucket("other", versioning=word)


def test_a_bucket_that_had_versions_never_goes_back_to_having_none(versioned: Store) -> None:
    """S3 knows no such step; without this a delete would not find the version that it is to remove."""
    versioned.put("wood", "k", b"1")
    with pytest.raises(errors.InvalidArgument):
        versioned.update_bucket("wood", versioning="")
    assert versioned.head_bucket("wood").versioning == "Enabled"
    assert versioned.update_bucket("wood", versioning="Suspended").versioning == "Suspended"


def test_part_numbers_outside_1_to_10000_are_refused(store: Store) -> None:
    upload = store.create_upload("wood", "k").upload_id
    for number in (-1, 0, 10_001, 70_000):
        with pytest.raises(errors.InvalidArgument):
            store.part_writer("wood", "k", upload, number)
        with pytest.raises(errors.InvalidPart):
            store.complete_upload("wood", "k", upload, [(number, "0" * 32)])
    assert store.list_parts("wood", "k", upload, after=-5).parts == []
    assert store.list_parts("wood", "k", upload, after=1 << 40).parts == []
