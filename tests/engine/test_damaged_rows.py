"""Rows of the index that rotted: LMDB has no checksums, so any bytes may come back. They are Corrupt, never a crash."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cordwood.engine import Store, errors
from cordwood.engine.operations import Description, PutObject
from cordwood.engine.rows import Kind, ObjectRow
from cordwood.engine.writer import small_content
from tests.engine.support import noise, small

GARBAGE = [
    b"",
    b"\x00",
    bytes([Kind.OBJECT]),
    bytes([Kind.DIRECTORY]),
    bytes([Kind.DIRECTORY]) + b"x",
    b"\xff" * 40,
]

READS: dict[str, Callable[[Store], object]] = {
    "get": lambda store: store.get("wood", "d/a").read(),
    "head": lambda store: store.head("wood", "d/a"),
    "list": lambda store: store.list("wood"),
    "delimiter": lambda store: store.list("wood", prefix="d/", delimiter="/"),
    "versions": lambda store: store.list_versions("wood"),
    "put": lambda store: store.put("wood", "d/a", b"new"),
    "delete": lambda store: store.delete("wood", "d/a"),
}


def spoil(path: Path, table: str, choose: Callable[[bytes], bool], garbage: bytes) -> None:
    """Replaces the rows of a table whose key is chosen."""
    with small(path) as store:
        index = store._core.index
        txn = index.begin()
        handle = getattr(txn.tables, table)
        for key, _ in list(txn.items(b"", handle)):
            if choose(key):
                txn.put(key, garbage, handle)
        index.commit(txn)


@pytest.fixture
def closed(path: Path) -> Path:
    with small(path) as store:
        store.create_bucket("wood")
        store.put("wood", "d/a", noise(9000))
    return path


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("name", ["a", "d/"])
@pytest.mark.parametrize("call", READS)
def test_a_spoilt_row_of_a_key_or_directory_is_corrupt(
    closed: Path, call: str, name: str, garbage: bytes
) -> None:
    spoil(closed, "entries", lambda key: key[8:] == name.encode(), garbage)
    with small(closed) as store:
        try:
            READS[call](store)
        except errors.Corrupt:
            return
        except errors.NotFound:
            assert (
                len(garbage) >= 9
            )  # a directory entry that leads elsewhere is not told from a right one by itself
        assert store.read_only_reason is None


def test_a_spoilt_row_fails_the_write_that_meets_it_and_no_other(closed: Path) -> None:
    spoil(closed, "entries", lambda key: key[8:] == b"a", b"\x01")
    with small(closed) as store:
        together = [
            store._core.writing()[1].submit(_put(store, key), wake=False) for key in ("d/x", "d/a", "d/y")
        ]
        store.start_commits()
        assert together[0].result(30).key == "d/x"
        with pytest.raises(errors.Corrupt):
            together[1].result(30)
        assert together[2].result(30).key == "d/y"
        assert store.read_only_reason is None
        assert store.get("wood", "d/x").read() == store.get("wood", "d/y").read() == b"new"


def _put(store: Store, key: str) -> PutObject:
    content = small_content(store._core, b"new")
    assert content is not None
    return PutObject("wood", key.encode(), content, Description())


@pytest.mark.parametrize("garbage", [b"", b"\x00" * 7, b"\xff" * 60])
@pytest.mark.parametrize("table", ["buckets", "chunks"])
def test_a_spoilt_row_of_a_bucket_or_a_chunk_is_corrupt(closed: Path, table: str, garbage: bytes) -> None:
    spoil(closed, table, lambda _key: True, garbage)
    with small(closed) as store, pytest.raises(errors.Corrupt):
        store.get("wood", "d/a").read()


def test_a_storage_class_that_there_is_none_of_is_corrupt(closed: Path) -> None:
    with small(closed) as store, store._core.index.read() as txn:
        (packed,) = [row for key, row in txn.items(b"", txn.tables.entries) if key[8:] == b"a"]
    spoiled = ObjectRow.unpack(packed)._replace(storage_class=200).pack()
    spoil(closed, "entries", lambda key: key[8:] == b"a", spoiled)
    with small(closed) as store, pytest.raises(errors.Corrupt, match="storage class"):
        store.list("wood")
