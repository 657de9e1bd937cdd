"""Writers: any way of handing bytes in gives the same object; what is not committed never was."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cordwood.engine import Store, errors
from tests.engine.support import (
    FaultyFileSystem,
    check_accounts,
    check_rebuilt,
    keys_of,
    noise,
    python,
    small,
)


@given(sizes=st.lists(st.sampled_from([0, 1, 100, 255, 256, 257, 4000, 4095, 4096, 4097, 9000]), max_size=8))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("inline_max", [0, 256, 4096])
def test_bytes_handed_in_pieces_of_any_size_are_the_object(
    writers: dict[int, Store], inline_max: int, sizes: list[int]
) -> None:
    store = writers[inline_max]
    pieces = [noise(size, number) for number, size in enumerate(sizes)]
    whole = b"".join(pieces)
    writer = store.writer("wood", "k")
    for piece in pieces:
        writer.write(piece)
    assert writer.size == len(whole) and writer.inline_max == inline_max
    assert writer.md5_hex() == hashlib.md5(whole).hexdigest()
    info = writer.commit()
    assert (info.size, info.etag) == (len(whole), hashlib.md5(whole).hexdigest())
    with store.get("wood", "k") as reader:
        assert reader.read() == whole
        assert (reader.inline is not None) == (len(whole) <= inline_max)


@pytest.fixture(scope="module")
def writers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Store]]:
    stores = {}
    for inline_max in (0, 256, 4096):
        path = tmp_path_factory.mktemp("writer") / "store"
        stores[inline_max] = small(path, inline_max=inline_max, durability="relaxed")
        stores[inline_max].create_bucket("wood")
    yield stores
    for store in stores.values():
        store.close()


@pytest.mark.parametrize("size", [0, 10, 20_000])
def test_bytes_files_and_iterables_are_all_taken(store: Store, tmp_path: Path, size: int) -> None:
    data = noise(size)
    (tmp_path / "file").write_bytes(data)
    with open(tmp_path / "file", "rb") as file:
        sources: list[Any] = [
            data,
            bytearray(data),
            memoryview(data),
            memoryview(data).cast("b") if size else memoryview(b""),
            file,
            io.BytesIO(data),
            iter([data[at : at + 777] for at in range(0, size, 777)]),
            (bytes([byte]) for byte in data[:300]),
        ]
        for number, source in enumerate(sources):
            store.put("wood", f"k{number}", source)
            expected = data[:300] if number == 7 else data
            assert store.get("wood", f"k{number}").read() == expected


def test_a_buffer_may_be_reused_as_soon_as_write_returns(store: Store) -> None:
    buffer = bytearray(100)
    writer = store.writer("wood", "k")
    expected = b""
    for number in range(100):
        buffer[:] = bytes([number]) * 100
        writer.write(buffer)
        expected += bytes(buffer)
    writer.commit()
    assert store.get("wood", "k").read() == expected


def test_everything_said_about_an_object_comes_back(store: Store, path: Path) -> None:
    about = {
        "headers": {
            "content-type": "text/plain; charset=utf-8",
            "expires": "never",
            "content-language": "de",
        },
        "metadata": {"name": "ünïcode 🪵", "empty": "", "long": "x" * 2000},
        "checksums": {"CRC32C": "AAAAAA==", "XXHASH128": "x"},
        "checksum_type": "FULL_OBJECT",
        "storage_class": "INTELLIGENT_TIERING",
        "attrs": {"tags": {"a": "b"}, "n": 7, "list": [1, "2", None, True, 1.5], "bytes": b"\0\xff"},
    }
    infos = {}
    for key, size in (("small", 5), ("large", 9000)):
        infos[key] = store.put("wood", key, noise(size), **about)  # type: ignore[arg-type]
        for name, value in about.items():
            assert getattr(infos[key], name) == value, name
        assert store.head("wood", key) == infos[key] == store.get("wood", key).info
    store.close()
    check_rebuilt(path)
    with small(path) as again:
        for key, info in infos.items():
            assert again.head("wood", key) == info


def test_metadata_of_many_kilobytes_is_kept_and_read_without_the_body(store: Store) -> None:
    metadata = {f"name{number}": "v" * 1000 for number in range(100)}
    store.put("wood", "k", noise(200), metadata=metadata)
    assert store.head("wood", "k").metadata == metadata
    store.put("wood", "k", noise(9000), metadata=metadata)
    assert store.head("wood", "k").metadata == metadata


def test_what_was_not_committed_is_not_there_and_costs_nothing_after_a_reopening(
    store: Store, path: Path
) -> None:
    store.put("wood", "there", b"1")
    size = (path / "volumes" / "0000000001.vol").stat().st_size
    for end in ("abort", "forget", "raise"):
        writer = store.writer("wood", "k")
        writer.write(noise(50_000))
        if end == "abort":
            writer.abort()
            writer.abort()
            with pytest.raises(errors.InvalidState):
                writer.write(b"x")
            with pytest.raises(errors.InvalidState):
                writer.commit()

    def failing() -> Iterator[bytes]:
        yield noise(50_000, 2)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.put("wood", "k", failing())
    assert keys_of(store, "wood") == ["there"]
    store.close()
    check_rebuilt(path)
    assert (path / "volumes" / "0000000001.vol").stat().st_size == size


def test_a_writer_takes_nothing_after_its_commit(store: Store) -> None:
    writer = store.writer("wood", "k")
    writer.write(b"1")
    writer.commit()
    for call in (lambda: writer.write(b"2"), writer.commit, writer.commit_async):
        with pytest.raises(errors.InvalidState):
            call()
    assert store.get("wood", "k").read() == b"1"


def test_an_asynchronous_commit_of_a_large_object_asks_for_a_flush_first(store: Store) -> None:
    writer = store.writer("wood", "k")
    writer.write(noise(5000))
    with pytest.raises(errors.InvalidState, match="flush"):
        writer.commit_async()
    assert keys_of(store, "wood") == []


def test_a_small_object_is_written_without_io_until_its_commit(path: Path) -> None:
    fs = FaultyFileSystem()
    with small(path, fs=fs) as store:
        store.create_bucket("wood")
        before = dict(fs.calls)
        writer = store.writer("wood", "k")
        for _ in range(4):
            writer.write(b"x" * 64)
        writer.flush()
        assert dict(fs.calls) == before
        writer.commit()
        assert fs.calls["write_all"] == before["write_all"] + 1


def test_a_bucket_that_vanishes_before_the_commit_refuses_it(store: Store) -> None:
    writer = store.writer("wood", "k")
    writer.write(noise(9000))
    store.delete_bucket("wood")
    with pytest.raises(errors.BucketNotFound):
        writer.commit()
    with pytest.raises(errors.BucketNotFound):
        store.writer("wood", "k")
    store.create_bucket("wood")
    assert keys_of(store, "wood") == []
    check_accounts(store)


STREAM = """if True:
    import sys
    from cordwood.engine import Store
    size = int(sys.argv[2]) << 20
    block = bytearray(range(256)) * 4096
    def blocks(count):
        for number in range(count):
            block[:8] = number.to_bytes(8, "big")
            yield block
    with Store.open(sys.argv[1]) as store:
        store.create_bucket("wood")
        info = store.put("wood", "big", blocks(size >> 20))
        assert info.size == size
        total = 0
        with store.get("wood", "big") as reader:
            for number, piece in enumerate(reader):
                assert piece[:8] == number.to_bytes(8, "big")
                total += len(piece)
        with store.get("wood", "big") as reader:
            total += sum(span.length for span in reader.spans())
        assert total == 2 * size
    # Not ru_maxrss: that survives exec, and so tells how large the process was that started this one.
    with open("/proc/self/status") as status:
        print(next(line.split()[1] for line in status if line.startswith("VmHWM:")))
"""


def test_memory_stays_flat_while_a_large_object_streams_in_and_out(tmp_path: Path, long_run: bool) -> None:
    """256 MiB, or 5 GiB with --long, under 150 MiB of resident memory."""
    resident_kib = int(python(STREAM, tmp_path / "store", 5120 if long_run else 256).stdout)
    assert resident_kib < 150 << 10


def test_a_writer_whose_chunk_found_no_room_cannot_be_committed(path: Path) -> None:
    """What follows the missing chunk must not become an object with a hole."""
    fs = FaultyFileSystem()
    with small(path, fs=fs) as store:
        store.create_bucket("wood")
        writer = store.writer("wood", "k")
        fs.free = 0
        with pytest.raises(errors.Full):
            writer.write(noise(20_000))
        fs.heal()
        with pytest.raises(errors.InvalidState):
            writer.commit()
        assert not store.list("wood").objects
