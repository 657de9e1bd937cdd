"""Listings over HTTP against a model of them, a few lines that say what S3 documents, by random keys and requests.

Invariant of the model: what a listing can show are keys and common prefixes, in byte order of their names, greater than
where it starts; each page is the next so many of these.
"""

from __future__ import annotations

import http.client
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, unquote
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cordwood.engine import Store
from cordwood.server.wire.signing import EMPTY_SHA256, sign_headers
from tests.server.conftest import ALICE, LiveServer

NAMESPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"
_numbers = itertools.count()

# Every character that is awkward in a path, a query, XML or UTF-8 order, and few enough that keys share prefixes.
ODD = [
    chr(code) for code in (*range(1, 0x20), 0x7F, 0x80, 0xA0, 0x2028, 0xD7FF, 0xE000, 0xFFFD, 0xFFFE, 0xFFFF)
]
ODD += [*" !\"#$%&'()*+,-.:;<=>?@[\\]^`{|}~", "é", "e\u0301", "ﷺ", "😀", "\U0010ffff"]
LETTERS = ["a", "b", "/", "//", "ab", "-", "0"]
piece = st.one_of(st.sampled_from(LETTERS), st.sampled_from(LETTERS), st.sampled_from(ODD))
name = st.lists(piece, min_size=1, max_size=6).map("".join)
text = st.one_of(st.just(""), name)
delimiters = st.sampled_from(["", "/", "/", "a", "ab", "//", "b/", "é", "😀", "%", "&", " ", "+", "x"])


@dataclass
class Page:
    items: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    truncated: bool = False
    next: dict[str, str] = field(default_factory=dict)
    document: Any = None


class Client:
    """Asks for listings, always url-encoded, over one connection."""

    def __init__(self, live: LiveServer) -> None:
        self.live = live
        self.connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=60)

    def get(self, bucket: str, **query: str) -> Any:
        pairs = [(key.replace("_", "-"), value) for key, value in query.items()]
        path = f"/{bucket}?" + "&".join(f"{quote(key)}={quote(value, safe='')}" for key, value in pairs)
        headers = sign_headers(
            "GET", f"{self.live.url}{path}", {}, EMPTY_SHA256, ALICE, "us-east-1", datetime.now(UTC)
        )
        self.connection.request("GET", path, headers=headers)
        answer = self.connection.getresponse()
        body = answer.read()
        assert answer.status == 200, body
        return ElementTree.fromstring(body)

    def page(self, bucket: str, version: int, **query: str) -> Page:
        """One page of ListObjects (1), ListObjectsV2 (2) or ListObjectVersions (3)."""
        kind = {1: {}, 2: {"list_type": "2"}, 3: {"versions": ""}}[version]
        root = self.get(bucket, encoding_type="url", **kind, **query)
        page = Page(truncated=root.findtext(f"{NAMESPACE}IsTruncated") == "true", document=root)
        for element in root:
            tag = element.tag.removeprefix(NAMESPACE)
            if tag in ("Contents", "Version", "DeleteMarker"):
                key = unquote(element.findtext(f"{NAMESPACE}Key") or "")
                version_id = element.findtext(f"{NAMESPACE}VersionId")
                page.keys.append(key if version_id is None else f"{key}\0{version_id}")
            elif tag == "CommonPrefixes":
                page.prefixes.append(unquote(element.findtext(f"{NAMESPACE}Prefix") or ""))
        names = {1: "NextMarker", 2: "NextContinuationToken", 3: "NextKeyMarker"}
        following = root.findtext(f"{NAMESPACE}{names[version]}")
        if page.truncated and version == 1:
            page.next = {"marker": unquote(following) if following is not None else page.keys[-1]}
        elif page.truncated and version == 2:
            page.next = {"continuation_token": following or ""}
        elif page.truncated:
            page.next = {"key_marker": unquote(following or "")}
            page.next["version_id_marker"] = root.findtext(f"{NAMESPACE}NextVersionIdMarker") or ""
            if not page.next["version_id_marker"]:
                del page.next["version_id_marker"]
        return page

    def walk(self, bucket: str, version: int, start: dict[str, str], **query: str) -> Iterator[Page]:
        following = start
        for _ in range(10_000):
            page = self.page(bucket, version, **following, **query)
            yield page
            if not page.truncated:
                return
            following = page.next
        raise AssertionError("a listing does not end")


def shown(keys: list[str], prefix: str, delimiter: str, after: str = "") -> tuple[list[str], list[str]]:
    """The model: (keys, common prefixes) of a listing."""
    plain: list[str] = []
    rolled: dict[str, None] = {}
    for key in sorted(keys, key=str.encode):
        if not key.startswith(prefix):
            continue
        at = key.find(delimiter, len(prefix)) if delimiter else -1
        item = key if at < 0 else key[: at + len(delimiter)]
        if item.encode() > after.encode() or not after:
            if at < 0:
                plain.append(key)
            else:
                rolled[item] = None
    return plain, list(rolled)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with Store.open(tmp_path_factory.mktemp("listing") / "store", volume_size=64 << 20) as store:
        live = LiveServer(store)
        live.start()
        yield Client(live)
        live.stop()


def bucket_with(store: Store, keys: list[str]) -> str:
    bucket = f"bucket-{next(_numbers)}"
    store.create_bucket(bucket)
    with store.batch() as batch:
        for key in keys:
            batch.put(bucket, key, b"")
    return bucket


relaxed = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@relaxed
@given(
    keys=st.lists(name, max_size=25, unique=True),
    prefix=text,
    delimiter=delimiters,
    after=text,
    size=st.sampled_from([1, 2, 3, 7, 1000, 5000]),
    version=st.sampled_from([1, 2]),
)
@example(["a/b", "a/c", "b"], "", "/", "a/b", 1, 2)  # a start inside a common prefix
@example(["a/b", "a/c", "b"], "", "/", "a/", 1, 1)
@example(["aab", "ab", "abab", "b"], "a", "ab", "", 1, 2)
@example(["a", "a/", "a//", "a///b"], "a/", "//", "", 1, 1)
@example(["\x01", "\x7f", "\uffff", "\U0010ffff"], "", "\uffff", "", 1, 2)
def test_every_page_of_a_listing_is_what_the_model_says(
    client: Client, keys: list[str], prefix: str, delimiter: str, after: str, size: int, version: int
) -> None:
    bucket = bucket_with(client.live.store, keys)
    wanted_keys, wanted_prefixes = shown(keys, prefix, delimiter, after)
    wanted = sorted((*wanted_keys, *wanted_prefixes), key=str.encode)
    query = {"prefix": prefix, "delimiter": delimiter, "max_keys": str(size)}
    query = {key: value for key, value in query.items() if value}
    start = {("marker" if version == 1 else "start_after"): after} if after else {}
    seen_keys: list[str] = []
    seen_prefixes: list[str] = []
    size = min(size, 1000)
    pages = list(client.walk(bucket, version, start, **query))
    for number, page in enumerate(pages):
        items = sorted((*page.keys, *page.prefixes), key=str.encode)
        assert items == wanted[number * size : (number + 1) * size]
        assert page.document.findtext(f"{NAMESPACE}MaxKeys") == str(size)
        assert unquote(page.document.findtext(f"{NAMESPACE}Prefix") or "") == prefix or version == 1
        if version == 2:
            assert page.document.findtext(f"{NAMESPACE}KeyCount") == str(len(items))
        seen_keys += page.keys
        seen_prefixes += page.prefixes
    assert (seen_keys, seen_prefixes) == (wanted_keys, wanted_prefixes)
    assert len(pages) == max(1, -(-len(wanted) // size))


@relaxed
@given(
    keys=st.lists(name, min_size=1, max_size=12, unique=True),
    changes=st.lists(st.tuples(st.integers(0, 11), st.booleans()), max_size=30),
    prefix=text,
    delimiter=delimiters,
    size=st.sampled_from([1, 2, 3, 1000]),
)
def test_every_page_of_a_listing_of_versions_is_what_the_model_says(
    client: Client, keys: list[str], changes: list[tuple[int, bool]], prefix: str, delimiter: str, size: int
) -> None:
    store = client.live.store
    bucket = f"bucket-{next(_numbers)}"
    store.create_bucket(bucket, versioning="Enabled")
    versions: dict[str, list[str]] = {}
    for number, is_delete in changes:
        key = keys[number % len(keys)]
        if is_delete:
            made = store.delete(bucket, key).version_id
            assert made is not None
        else:
            made = store.put(bucket, key, b"").version_id
        versions.setdefault(key, []).insert(0, made)
    plain, rolled = shown(list(versions), prefix, delimiter)
    wanted = [f"{key}\0{each}" for key in plain for each in versions[key]]
    query = {"prefix": prefix, "delimiter": delimiter, "max_keys": str(size)}
    pages = list(client.walk(bucket, 3, {}, **{key: value for key, value in query.items() if value}))
    assert [key for page in pages for key in page.keys] == wanted
    assert [each for page in pages for each in page.prefixes] == rolled
    assert all(len(page.keys) + len(page.prefixes) <= size for page in pages)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("version", [1, 2])
def test_a_walk_is_right_for_all_that_stays_while_other_keys_come_and_go(
    client: Client, seed: int, version: int
) -> None:
    rng = random.Random(seed)
    store = client.live.store
    letters = [*LETTERS, *rng.sample(ODD, 6)]
    pool = sorted({"".join(rng.choices(letters, k=rng.randint(1, 5))) for _ in range(150)}, key=str.encode)
    staying, moving = set(rng.sample(pool, 60)), set()
    bucket = bucket_with(store, list(staying))
    delimiter = rng.choice(["", "/", "a", "ab", "😀"])
    query = {"delimiter": delimiter} if delimiter else {}
    seen: list[str] = []
    ever: set[str] = set(staying)
    for page in client.walk(bucket, version, {}, max_keys=str(rng.randint(1, 9)), **query):
        seen += sorted((*page.keys, *page.prefixes), key=str.encode)
        for key in rng.sample(pool, 6):
            if key in staying:
                continue
            if key in moving:
                store.delete(bucket, key)
                moving.discard(key)
            else:
                store.put(bucket, key, b"")
                moving.add(key)
                ever.add(key)
    assert seen == sorted(set(seen), key=str.encode), "an item came twice, or out of order"
    always = shown(list(staying), "", delimiter)
    assert set(always[0]) | set(always[1]) <= set(seen)
    possible = shown(list(ever), "", delimiter)
    assert set(seen) <= set(possible[0]) | set(possible[1])


def test_max_keys_of_nothing_of_much_and_of_nonsense(client: Client) -> None:
    bucket = bucket_with(client.live.store, [f"{number:04}" for number in range(1005)])
    for version in (1, 2, 3):
        nothing = client.page(bucket, version, max_keys="0")
        assert (nothing.keys, nothing.truncated) == ([], False)
        assert nothing.document.findtext(f"{NAMESPACE}MaxKeys") == "0"
        for much in ("1001", "2147483647"):
            page = client.page(bucket, version, max_keys=much)
            assert (len(page.keys), page.truncated) == (1000, True)
            assert page.document.findtext(f"{NAMESPACE}MaxKeys") == "1000"
    for nonsense in ("-1", "x", "2147483648", "1.5"):
        answer = client.live.request("GET", f"/{bucket}?max-keys={nonsense}")
        assert (answer.status, answer.code) == (400, "InvalidArgument")


def test_without_an_encoding_a_listing_is_well_formed_whatever_the_keys_are(client: Client) -> None:
    keys = [f"k{char}" for char in ODD]
    bucket = bucket_with(client.live.store, keys)
    for query in ({}, {"list_type": "2"}, {"versions": ""}):
        found = [element.text or "" for element in client.get(bucket, **query).iter(f"{NAMESPACE}Key")]
        assert len(found) == len(keys)
        for key, listed in zip(sorted(keys, key=str.encode), found, strict=True):
            assert listed == key or "\ufffd" in listed, key
