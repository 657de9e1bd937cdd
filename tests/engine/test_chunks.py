"""What is known to be good, and for how long; and reading without waiting for the disk."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import cast

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from cordwood.engine import ObjectReader, Store, chunks, errors
from cordwood.engine.chunks import MEMORY_S, Verified
from cordwood.engine.format import BLOCK_SIZE, RecordType, Superblock, decode_chunk_head, encode_chunk_head
from cordwood.engine.volume import VolumeFile
from tests.engine.support import FaultyFileSystem, first_volume, flip, noise, python, records_of, small


def span_bytes(reader: ObjectReader) -> bytes:
    return b"".join(os.pread(span.fd, span.length, span.offset) for span in reader.spans())


class Clock:
    def __init__(self) -> None:
        self.now_s = time.monotonic()

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(chunks, "time", clock)
    return clock


class Salted:
    """As much of a volume file as a memory of verified chunks looks at."""

    def __init__(self, salt: bytes) -> None:
        self.superblock = Superblock(b"", 1, salt, 0, 0)


def salted(salt: bytes) -> VolumeFile:
    return cast(VolumeFile, Salted(salt))


steps = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.booleans(), st.floats(0, 40)), max_size=40
)


@given(steps=steps)
def test_nothing_counts_as_verified_longer_than_promised_nor_in_another_volume(
    steps: list[tuple[str, int, bool, float]],
) -> None:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "time", clock)
        verified = Verified()
        since: dict[tuple[str, int], float] = {}
        for name, offset, is_addition, pause_s in steps:
            clock.now_s += pause_s
            file = salted(name.encode())
            if is_addition:
                verified.add(file, offset, b"id")
                since[name, offset] = clock.now_s
            if verified.knows(file, offset, b"id"):
                assert clock.now_s - since[name, offset] <= MEMORY_S
                assert not verified.knows(file, offset, b"another")
            else:
                assert clock.now_s - since.get((name, offset), -1e9) >= MEMORY_S / 2


@given(size=st.integers(0, 5 * BLOCK_SIZE + 1), seed=st.integers(0, 3))
def test_the_crc_of_a_chunk_is_that_of_its_blocks_put_together(size: int, seed: int) -> None:
    data = noise(size, seed)
    head, crc = encode_chunk_head(b"i" * 32, data)
    assert crc == crc32c(data)
    blocks = tuple(crc32c(data[at : at + BLOCK_SIZE]) for at in range(0, size, BLOCK_SIZE))
    assert decode_chunk_head(head, size, "here") == (b"i" * 32, blocks)


def test_the_memory_of_verified_chunks_is_bounded() -> None:
    verified = Verified()
    for offset in range(100_000):
        verified.add(salted(b"s"), offset, b"id")
        assert verified.knows(salted(b"s"), offset, b"id")
    assert len(verified._young) + len(verified._old) <= 2 * 16_384


def test_a_span_is_verified_again_when_that_was_long_ago(store: Store, path: Path, clock: Clock) -> None:
    store.put("wood", "k", noise(9000))
    records = [record for _, record in records_of(path) if record.header.type == RecordType.CHUNK]
    with store.get("wood", "k") as reader:
        assert len(list(reader.spans())) == 3
    flip(first_volume(path), records[1].header.offset + records[1].header.length - 100)
    clock.now_s += MEMORY_S + 1
    with store.get("wood", "k") as reader, pytest.raises(errors.Corrupt):
        list(reader.spans())
    # Whoever reads the bytes instead of a place verifies them each time.
    with store.get("wood", "k") as reader, pytest.raises(errors.Corrupt):
        reader.read()


def test_a_span_that_was_verified_lately_is_not_read_again(path: Path) -> None:
    fs = FaultyFileSystem()
    with small(path, fs=fs) as store:
        store.create_bucket("wood")
        store.put("wood", "k", noise(9000))
        with store.get("wood", "k") as reader:
            first = list(reader.spans())
        read: list[int] = []
        original = fs.read_into

        def counting(fd: int, buffer: memoryview, offset: int, *, cached_only: bool = False) -> int:
            read.append(len(buffer))
            return original(fd, buffer, offset)

        fs.read_into = counting  # type: ignore[method-assign]
        with store.get("wood", "k") as reader:
            assert [span[:3] for span in reader.spans()] == [span[:3] for span in first]
        assert sum(read) == 4 * len(first)  # a look whether they are still in memory


_COMPACT = """
import sys
from pathlib import Path
from cordwood.engine.compactor import CompactionPolicy
from cordwood.engine.maintenance import Maintenance
with Maintenance.open(Path(sys.argv[1]), volume_size=1 << 17, map_size=1 << 28) as store:
    store.compact(CompactionPolicy(full=True, grace_s=0, volume_size=1 << 17))
"""


def test_spans_go_on_where_they_were_verified_though_the_chunks_were_moved_meanwhile(path: Path) -> None:
    with small(path, volume_size=1 << 17) as store:
        store.create_bucket("wood")
        store.put("wood", "k", noise(9000))
        with store.get("wood", "k") as reader:
            assert len(list(reader.spans())) == 3
            for number in range(50):
                store.put("wood", "filler", noise(9000, number))
            python(_COMPACT, path)
            assert not first_volume(path).exists()
            assert span_bytes(reader) == noise(9000)
        assert store._core.volumes.forget_unlinked() > 0
        with store.get("wood", "k") as reader:
            assert span_bytes(reader) == noise(9000)


def test_a_span_that_left_memory_is_read_and_verified_again(path: Path) -> None:
    fs = FaultyFileSystem()
    with small(path, fs=fs) as store:
        store.create_bucket("wood")
        store.put("wood", "k", noise(9000))
        with store.get("wood", "k") as reader:
            assert len(list(reader.spans())) == 3
        original = fs.read_into

        def cold(fd: int, buffer: memoryview, offset: int, *, cached_only: bool = False) -> int:
            return 0 if cached_only else original(fd, buffer, offset)

        fs.read_into = cold  # type: ignore[method-assign]
        records = [record for _, record in records_of(path) if record.header.type == RecordType.CHUNK]
        flip(first_volume(path), records[0].header.offset + records[0].header.length - 100)
        with store.get("wood", "k") as reader:
            spans = reader.spans()
            assert spans.take(wait=False) is None
            with pytest.raises(errors.Corrupt):
                spans.take()


@pytest.mark.parametrize("selected", [None, (100, 8000)])
def test_what_is_not_in_memory_is_only_read_by_whoever_may_wait(
    path: Path, selected: tuple[int, int] | None
) -> None:
    fs = FaultyFileSystem()
    with small(path, fs=fs) as store:
        store.create_bucket("wood")
        store.put("wood", "k", noise(9000))
        expected = noise(9000) if selected is None else noise(9000)[100:8001]
        original = fs.read_into

        def cold(fd: int, buffer: memoryview, offset: int, *, cached_only: bool = False) -> int:
            return 0 if cached_only else original(fd, buffer, offset)

        fs.read_into = cold  # type: ignore[method-assign]
        with store.get("wood", "k", range=selected) as reader:
            assert reader.read_cached() is None
            spans = reader.spans()
            data = b""
            while len(data) < len(expected):
                assert spans.take(wait=False) is None
                span = spans.take()
                assert span is not None
                data += os.pread(span.fd, span.length, span.offset)
            assert data == expected
            assert spans.take(wait=False) is None and spans.take() is None


def test_bytes_in_memory_are_read_and_verified_without_waiting(path: Path) -> None:
    fs = FaultyFileSystem()
    original = fs.read_into

    def warm(fd: int, buffer: memoryview, offset: int, *, cached_only: bool = False) -> int:
        return original(fd, buffer, offset)

    fs.read_into = warm  # type: ignore[method-assign]
    with small(path, fs=fs) as store:
        store.create_bucket("wood")
        store.put("wood", "small", b"inline")
        store.put("wood", "k", noise(9000))
        assert store.get("wood", "small").read_cached() == b"inline"
        for selected in ((0, 8999), (4000, 4200), (8999, 8999)):
            with store.get("wood", "k", range=selected) as reader:
                assert reader.read_cached() == noise(9000)[selected[0] : selected[1] + 1]
        records = [record for _, record in records_of(path) if record.header.type == RecordType.CHUNK]
        flip(first_volume(path), records[0].header.offset + records[0].header.length - 100)
        with store.get("wood", "k", range=(0, 10)) as reader, pytest.raises(errors.Corrupt):
            reader.read_cached()
