"""Keys: every UTF-8 name up to 1,024 bytes is its own object, and order is byte order over the whole key."""

from __future__ import annotations

from pathlib import Path

import pytest

from cordwood.engine import Store, errors
from cordwood.engine.format import RecordType
from cordwood.engine.namespace import PIECE_MAX, entry_key, split_key, successor
from tests.engine.support import check_rebuilt, heads_of, keys_of, small

ZOO = [
    "a",
    "/",
    "//",
    "///",
    "/a",
    "//a",
    "a/",
    "a//",
    "a//b",
    "a/b",
    "a/b/",
    "a/b/c",
    "a.",
    "a/.",
    "a/..",
    "..",
    ".",
    "../..",
    "../../etc/passwd",
    "a b",
    " ",
    " a",
    "a ",
    "%2F",
    "a%2Fb",
    "a%2fb",
    "%00",
    "\0",
    "\0/\0",
    "a\0",
    "a\0b",
    "a\nb",
    "\x7f",
    "\x80",
    "ä",
    "a\u0308",
    "é/è",
    "日本/語",
    "🪵",
    "🪵/🪓",
    "\uffff",
    "\U0010ffff",
    "a" * 1024,
    "a" * 1023 + "/",
    "/" + "a" * 1023,
    "/" * 1024,
    "🪵" * 256,
    "-",
    "--flag",
    "~",
    "$HOME",
    "a\\b",
    "C:\\x",
    "con",
    "*",
    "?",
    "[a]",
    "+",
    "a+b",
    "&amp;",
    "<x>",
    '"',
    "'",
    *("x" * size for size in (479, 480, 481, 482, 959, 960, 961, 962)),
    *("x" * size + "/" for size in (479, 480, 481, 482, 959, 960, 961)),
    *("x" * size + "/x" for size in (478, 479, 480, 481, 959, 960, 961)),
    "x" * 480 + "\0",
    "x" * 480 + "\0a",
    "x" * 479 + "\0",
    "x" * 479 + "\0\0",
    "x" * 480 + "y",
    "x" * 480 + "y/z",
    "x" * 481 + "y",
    "x" * 960 + "\0",
    "y/" + "x" * 481,
    "y/" + "x" * 961 + "/" + "z" * 30,
]


def test_every_key_of_the_zoo_is_kept_apart_listed_in_byte_order_and_comes_back_whole(
    store: Store, path: Path
) -> None:
    assert len(set(ZOO)) == len(ZOO)
    with store.batch() as batch:
        for key in reversed(ZOO):
            batch.put("wood", key, key.encode())
    in_order = sorted(ZOO, key=str.encode)
    assert keys_of(store, "wood") == in_order
    assert keys_of(store, "wood", max_keys=1) == in_order
    for key in ZOO:
        assert store.get("wood", key).read() == key.encode()
        assert store.head("wood", key).key == key
    store.close()
    check_rebuilt(path)
    with small(path) as again:
        assert keys_of(again, "wood") == in_order
        for number, key in enumerate(ZOO):
            assert again.delete("wood", key).existed
            if number % 20 == 0:
                assert keys_of(again, "wood") == [each for each in in_order if each not in ZOO[: number + 1]]
        assert again.index_info()["entries"] == again.index_info()["directories"] == 0
        again.delete_bucket("wood")
    check_rebuilt(path)


def test_a_key_of_1025_bytes_is_refused_and_one_of_1024_is_not(store: Store) -> None:
    store.put("wood", "é" * 512, b"")
    for key in ("a" * 1025, "é" * 512 + "a", "a/" * 512 + "a"):
        with pytest.raises(errors.KeyTooLong) as refused:
            store.put("wood", key, b"")
        assert (refused.value.size, refused.value.limit) == (1025, 1024)
        with pytest.raises(errors.KeyTooLong):
            store.create_upload("wood", key)
        with pytest.raises(errors.KeyTooLong):
            store.copy("wood", "é" * 512, "wood", key)
        with pytest.raises(errors.KeyNotFound):
            store.get("wood", key)
        assert not store.delete("wood", key).existed


@pytest.mark.parametrize("key", ["", "\ud800", "a\udfffb"], ids=repr)
def test_a_key_that_is_empty_or_not_unicode_is_refused(store: Store, key: str) -> None:
    for call in (
        lambda: store.put("wood", key, b""),
        lambda: store.get("wood", key),
        lambda: store.delete("wood", key),
    ):
        with pytest.raises(errors.InvalidKey):
            call()


def test_a_lookup_of_a_huge_key_finds_nothing_and_harms_nothing(store: Store) -> None:
    store.put("wood", "x" * 1024, b"")
    for key in ("x" * 100_000, "/" * 100_000, "x" * 480 + "/" * 1000):
        with pytest.raises(errors.KeyNotFound):
            store.get("wood", key)
        assert not store.delete("wood", key).existed
        assert store.list("wood", prefix=key).objects == []
        assert store.list("wood", start_after=key, max_keys=5).truncated is False


@pytest.mark.parametrize("key", ["../../secret", "/etc/passwd", "a/../../b", "volumes/0000000001.vol"])
def test_a_key_never_becomes_a_file_name(store: Store, path: Path, key: str) -> None:
    before = {str(each) for each in path.parent.rglob("*")}
    store.put("wood", key, b"x" * 10_000)
    assert {str(each) for each in path.parent.rglob("*")} == before | {
        str(path / "volumes" / "0000000001.vol")
    }


def test_keys_that_only_differ_in_unicode_normal_form_are_two_objects(store: Store) -> None:
    store.put("wood", "\u00e4", b"composed")
    store.put("wood", "a\u0308", b"decomposed")
    assert store.get("wood", "\u00e4").read() == b"composed"
    assert store.get("wood", "a\u0308").read() == b"decomposed"


def test_a_directory_and_an_object_may_share_a_name(store: Store) -> None:
    for key in ("a", "a/", "a/b"):
        store.put("wood", key, key.encode())
    store.delete("wood", "a/b")
    assert keys_of(store, "wood") == ["a", "a/"]
    store.delete("wood", "a/")
    assert keys_of(store, "wood") == ["a"]
    assert store.index_info()["directories"] == 0


def test_empty_directories_vanish_up_to_the_first_that_holds_something(store: Store) -> None:
    store.put("wood", "a/b/c/d/e", b"")
    store.put("wood", "a/b/x", b"")
    assert store.index_info()["directories"] == 4
    store.delete("wood", "a/b/c/d/e")
    assert store.index_info()["directories"] == 2
    assert store.list("wood", prefix="a/b/", delimiter="/").prefixes == []
    store.delete("wood", "a/b/x")
    assert store.index_info()["directories"] == 0
    assert store.list("wood", delimiter="/").prefixes == []


def test_a_directory_is_written_once_however_many_objects_are_put_below(store: Store, path: Path) -> None:
    for number in range(5):
        store.put("wood", f"a/b/{number}", b"")
    store.close()
    assert [head.name for _, head in heads_of(path, RecordType.DIRECTORY)] == [b"a/", b"b/"]


def test_splitting_a_key_and_joining_it_again_gives_the_key() -> None:
    for key in ZOO:
        directories, name = split_key(key.encode())
        assert b"".join(directories) + name == key.encode()
        assert all(directory.endswith(b"/") and directory.count(b"/") == 1 for directory in directories)


def test_no_row_of_any_component_passes_the_key_limit_of_lmdb() -> None:
    for size in (1, PIECE_MAX, PIECE_MAX + 1, 2 * PIECE_MAX, 2 * PIECE_MAX + 1, 1024):
        key, continuations = entry_key(bytes(8), b"x" * size)
        assert all(len(each) <= 511 for each in [key, *continuations])
        assert len(continuations) == (size - 1) // PIECE_MAX


def test_the_successor_of_a_prefix_is_behind_all_that_begins_with_it() -> None:
    for prefix in (b"a", b"a/", "é".encode(), "🪵".encode(), "\U0010ffff".encode()):
        assert prefix + b"\xff" * 100 < successor(prefix)
        assert successor(prefix) <= prefix[:-1] + bytes([prefix[-1] + 1])


def test_the_way_up_from_a_directory_is_the_prefix_that_leads_to_it(store: Store) -> None:
    from cordwood.engine import namespace

    prefix = "a//" + "x" * 500 + "/é/"
    store.put("wood", prefix + "k", b"")
    root = store.head_bucket("wood").id
    with store._core.index.read() as txn:
        place = namespace.resolve(txn, root, prefix.encode())
        assert place is not None
        assert namespace.path_of(txn, root, place[0]) == prefix.encode()
        assert namespace.path_of(txn, root, root) == b""
        assert namespace.path_of(txn, root, 1).startswith(b"?/")  # an id that leads nowhere
