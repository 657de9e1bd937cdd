"""Listings through a real server, against a model that is five lines long."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cordwood.engine import ObjectEntry, Store
from cordwood.server.handlers.listing import entry_document, owner_document, version_document
from cordwood.server.wire.interpret import write_document
from cordwood.server.wire.operations import SHAPES
from cordwood.server.wire.route import OPERATION
from tests.server.conftest import LiveServer

KEYS = sorted(
    ["a", "a/b", "a/b/c", "a/d", "asdf+b", "foo+1/bar", "foo/bar/xyzzy", "quux ab/thud", "z//", "\N{WOOD}/x"],
    key=str.encode,
)


def model(keys: list[str], prefix: str, delimiter: str, after: str) -> list[tuple[str, str]]:
    """("key" or "prefix", name) in the order of the listing."""
    found: list[tuple[str, str]] = []
    for key in sorted(keys, key=str.encode):
        if not key.startswith(prefix):
            continue
        head, middle, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
        item = ("prefix", prefix + head + middle) if middle else ("key", key)
        if item[1].encode() > after.encode() and item not in found:
            found.append(item)
    return found


def items(page: dict[str, Any]) -> list[tuple[str, str]]:
    listed = [("key", each["Key"]) for each in page.get("Contents", [])]
    listed += [("prefix", each["Prefix"]) for each in page.get("CommonPrefixes", [])]
    return sorted(listed, key=lambda item: item[1].encode())


def fill(store: Store, keys: list[str]) -> None:
    store.create_bucket("bkt")
    with store.batch() as batch:
        for key in keys:
            batch.put("bkt", key, b"x")


@pytest.mark.parametrize("prefix", ["", "a", "a/", "foo", "none"])
@pytest.mark.parametrize("delimiter", ["", "/", "b", "o+", "//"])
@pytest.mark.parametrize("page_size", [1, 2, 3, 1000])
def test_paging_finds_everything_once_in_byte_order(
    server: LiveServer, store: Store, prefix: str, delimiter: str, page_size: int
) -> None:
    fill(store, KEYS)
    client = server.client()
    wanted = model(KEYS, prefix, delimiter, "")
    for name in ("list_objects", "list_objects_v2"):
        found = []
        for page in client.get_paginator(name).paginate(
            Bucket="bkt", Prefix=prefix, Delimiter=delimiter, PaginationConfig={"PageSize": page_size}
        ):
            listed = items(page)
            assert len(listed) <= page_size
            found += listed
        assert found == wanted, name


@pytest.mark.parametrize("after", ["", "a", "a/", "a/b", "foo", "zzz"])
def test_a_listing_starts_strictly_after_its_marker(server: LiveServer, store: Store, after: str) -> None:
    fill(store, KEYS)
    client = server.client()
    for delimiter in ("", "/"):
        wanted = model(KEYS, "", delimiter, after)
        assert items(client.list_objects(Bucket="bkt", Marker=after, Delimiter=delimiter)) == wanted
        assert items(client.list_objects_v2(Bucket="bkt", StartAfter=after, Delimiter=delimiter)) == wanted


def test_a_page_of_no_keys_is_empty_and_complete(server: LiveServer, store: Store) -> None:
    fill(store, KEYS)
    client = server.client()
    for listing in (
        client.list_objects(Bucket="bkt", MaxKeys=0),
        client.list_objects_v2(Bucket="bkt", MaxKeys=0),
    ):
        assert "Contents" not in listing
        assert listing["IsTruncated"] is False
        assert listing["MaxKeys"] == 0


@pytest.mark.parametrize("value", ["-1", "x", "1.5", "99999999999999999999"])
def test_a_wrong_number_of_keys_is_refused(server: LiveServer, s3: Any, value: str) -> None:
    for path in ("/bkt?max-keys=", "/bkt?list-type=2&max-keys=", "/bkt?versions&max-keys="):
        assert server.request("GET", path + value).code == "InvalidArgument"


@pytest.mark.parametrize(
    ("query", "message", "name", "value"),
    [
        ("max-keys=%205", "Provided max-keys not an integer or within integer range", "max-keys", " 5"),
        (
            "max-keys=2147483648",
            "Provided max-keys not an integer or within integer range", "max-keys", "2147483648",
        ),
        ("max-keys=-01", "Argument maxKeys must be an integer between 0 and 2147483647", "maxKeys", "-1"),
        (
            "list-type=2&max-keys=-1",
            "Argument maxKeys must be an integer between 0 and 2147483647", "maxKeys", "-1",
        ),
        ("versions&max-keys=-1", "max-keys cannot be negative", "max-keys", ""),
        (
            "uploads&max-uploads=-1",
            "Argument max-uploads must be an integer between 0 and 2147483647", "max-uploads", "-1",
        ),
        ("list-type=2&marker=", "Marker unsupported with REST.GET.BUCKET in list-type=2", "marker", ""),
        ("start-after=a", "startAfter only supported in REST.GET.BUCKET with list-type=2", "start-after", ""),
        (
            "start-after=a&continuation-token=b",
            "continuation-token only supported in REST.GET.BUCKET with list-type=2", "continuation-token", "",
        ),
        (
            "versions&key-marker=a&version-id-marker=",
            "A version-id marker cannot be empty.", "version-id-marker", "",
        ),
        (
            "versions&key-marker=a&version-id-marker=x",
            "Invalid version id specified", "version-id-marker", "x",
        ),
    ],
)  # fmt: skip
def test_a_parameter_that_a_listing_cannot_take_is_named(
    server: LiveServer, s3: Any, query: str, message: str, name: str, value: str
) -> None:
    refused = server.request("GET", f"/bkt?{query}")
    assert (refused.status, refused.code) == (400, "InvalidArgument")
    assert (refused.field("Message"), refused.field("ArgumentName")) == (message, name)
    assert refused.field("ArgumentValue") == value


@pytest.mark.parametrize("path", ["/bkt?max-keys=", "/bkt?list-type=2&max-keys=", "/bkt?versions&max-keys="])
@pytest.mark.parametrize(("sent", "used"), [("", 1000), ("05", 5), ("-0", 0), ("0" * 50 + "7", 7)])
def test_a_number_of_keys_may_be_empty_and_have_leading_zeros(
    server: LiveServer, s3: Any, path: str, sent: str, used: int
) -> None:
    assert server.request("GET", path + sent).field("MaxKeys") == str(used)


def test_more_than_a_thousand_keys_come_in_pages_of_a_thousand(server: LiveServer, store: Store) -> None:
    fill(store, [f"k{number:05}" for number in range(1005)])
    page = server.client().list_objects_v2(Bucket="bkt", MaxKeys=5000)
    assert (page["KeyCount"], page["MaxKeys"], page["IsTruncated"]) == (1000, 1000, True)


def test_a_token_of_another_kind_is_refused(server: LiveServer, s3: Any) -> None:
    for token in ("x", "YWJj", "azE6%2F%2F%21", "azE6_w%3D%3D"):
        assert server.request("GET", f"/bkt?list-type=2&continuation-token={token}").code == "InvalidArgument"


def test_names_are_encoded_when_asked(server: LiveServer, store: Store) -> None:
    fill(store, ["a b+c/\N{WOOD}", "a&b"])
    plain = server.request("GET", "/bkt?list-type=2&delimiter=%2F").body
    assert b"<Key>a&amp;b</Key>" in plain
    assert b"<Prefix>a b+c/</Prefix>" in plain
    encoded = server.request("GET", "/bkt?list-type=2&encoding-type=url").body
    assert b"<Key>a%26b</Key>" in encoded
    assert b"<Key>a%20b%2Bc/%F0%9F%AA%B5</Key>" in encoded
    assert server.request("GET", "/bkt?encoding-type=none").code == "InvalidArgument"
    loud = server.request("GET", "/bkt?encoding-type=URL")
    assert loud.field("EncodingType") == "URL" and b"<Key>a%26b</Key>" in loud.body


def test_the_owner_is_told_when_asked_and_always_in_version_1(server: LiveServer, store: Store) -> None:
    fill(store, ["k"])
    client = server.client()
    assert "Owner" not in client.list_objects_v2(Bucket="bkt")["Contents"][0]
    owner = {"DisplayName": "alice", "ID": "a" * 64}
    assert client.list_objects_v2(Bucket="bkt", FetchOwner=True)["Contents"][0]["Owner"] == owner
    assert client.list_objects(Bucket="bkt")["Contents"][0]["Owner"] == owner


def test_versions_and_delete_markers_are_listed_newest_first(server: LiveServer, store: Store) -> None:
    store.create_bucket("bkt", versioning="Enabled")
    ids = [store.put("bkt", "k", str(number).encode()).version_id for number in range(3)]
    marker = store.delete("bkt", "k").version_id
    client = server.client()
    page = client.list_object_versions(Bucket="bkt")
    assert [each["VersionId"] for each in page["Versions"]] == ids[::-1]
    assert [each["VersionId"] for each in page["DeleteMarkers"]] == [marker]
    assert page["DeleteMarkers"][0]["IsLatest"] is True
    found = []
    for each in client.get_paginator("list_object_versions").paginate(
        Bucket="bkt", PaginationConfig={"PageSize": 1}
    ):
        found += [v["VersionId"] for v in each.get("Versions", []) + each.get("DeleteMarkers", [])]
    assert found == [marker, *ids[::-1]]
    assert client.get_object(Bucket="bkt", Key="k", VersionId=ids[0])["Body"].read() == b"0"
    with pytest.raises(ClientError) as caught:
        client.get_object(Bucket="bkt", Key="k")
    assert caught.value.response["ResponseMetadata"]["HTTPHeaders"]["x-amz-delete-marker"] == "true"
    with pytest.raises(ClientError) as caught:
        client.get_object(Bucket="bkt", Key="k", VersionId=marker)
    assert caught.value.response["Error"]["Code"] == "MethodNotAllowed"
    assert server.request("GET", "/bkt?versions&version-id-marker=x").code == "InvalidArgument"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    keys=st.sets(st.text("ab/\u00e9", min_size=1, max_size=5), max_size=12),
    prefix=st.text("ab/", max_size=2),
    delimiter=st.sampled_from(["", "/", "b", "ab"]),
    limit=st.integers(1, 5),
)
def test_any_listing_agrees_with_the_model(
    server: LiveServer, store: Store, keys: set[str], prefix: str, delimiter: str, limit: int
) -> None:
    if not any(bucket.name == "bkt" for bucket in store.list_buckets()):
        store.create_bucket("bkt")
    for entry in store.list("bkt").objects:
        store.delete("bkt", entry.key)
    for key in keys:
        store.put("bkt", key, b"")
    found = []
    paginator = server.client().get_paginator("list_objects_v2")
    for page in paginator.paginate(
        Bucket="bkt", Prefix=prefix, Delimiter=delimiter, PaginationConfig={"PageSize": limit}
    ):
        found += items(page)
    assert found == model(list(keys), prefix, delimiter, "")


# --- the templates against the generic writer ----------------------------------------------------------------


def test_the_templates_write_what_the_generic_writer_writes() -> None:
    entry = ObjectEntry(
        "a<b", 5, "e" * 32, 1795230000123, "STANDARD", ("CRC32",), "FULL_OBJECT", "v1", True, False
    )
    owner = {"DisplayName": "n&m", "ID": "1"}
    shared = {
        "Key": "a<b",
        "LastModified": entry.modified_ms,
        "ETag": '"' + "e" * 32 + '"',
        "ChecksumAlgorithm": ["CRC32"],
        "ChecksumType": "FULL_OBJECT",
        "Size": 5,
        "StorageClass": "STANDARD",
        "Owner": owner,
    }
    generic = write_document(OPERATION["ListObjectsV2"], {"Contents": [shared]}).decode()
    assert "Object" in SHAPES
    assert entry_document(entry, lambda text: text, owner_document(owner)) in reordered(generic)
    version = {**shared, "VersionId": "v1", "IsLatest": True}
    generic = write_document(OPERATION["ListObjectVersions"], {"Versions": [version]}).decode()
    written = version_document(entry, lambda text: text, owner_document(owner))
    # The same elements; AWS's own order differs from the model's here.
    within = generic[generic.index("<Version>") : generic.index("</ListVersionsResult>")]
    assert sorted(written.split("<")) == sorted(within.split("<"))


def reordered(document: str) -> str:
    """AWS writes an owner's ID before the DisplayName; the model names them the other way round."""
    return document.replace(
        "<DisplayName>n&amp;m</DisplayName><ID>1</ID>", "<ID>1</ID><DisplayName>n&amp;m</DisplayName>"
    )
