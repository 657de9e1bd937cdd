"""Reading: whole, ranges, files and spans give the same bytes; damage is found and never handed out."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cordwood.engine import ObjectReader, Store, errors
from cordwood.engine.format import BLOCK_SIZE, HEADER_SIZE, SUPERBLOCK_SIZE, RecordType
from cordwood.engine.volume import volume_name
from tests.engine.support import FaultyFileSystem, first_volume, flip, noise, records_of, small

SIZES = [0, 1, 256, 257, 4095, 4096, 4097, 8192, 50_000]


def span_bytes(reader: ObjectReader) -> bytes:
    return b"".join(os.pread(span.fd, span.length, span.offset) for span in reader.spans())


@pytest.mark.parametrize("size", SIZES)
def test_every_way_of_reading_gives_the_same_bytes(store: Store, size: int) -> None:
    data = noise(size)
    store.put("wood", "k", data)
    with store.get("wood", "k") as reader:
        assert (reader.start, reader.length, reader.content_range) == (0, size, None)
        assert reader.read() == data
        blocks = list(reader)
        assert b"".join(blocks) == data and all(0 < len(block) <= 4096 for block in blocks)
        assert reader.as_file().read() == data
        if size <= 256:
            assert reader.inline == data
        else:
            assert reader.inline is None
            assert span_bytes(reader) == data


sizes = st.sampled_from([*SIZES, 200_000])


@given(size=sizes, first=st.integers(0, 200_001), last=st.none() | st.integers(0, 300_000))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_range_is_the_slice_that_http_means(ranges: Store, size: int, first: int, last: int | None) -> None:
    data = noise(size)
    expected = data[first:] if last is None else data[first : last + 1]
    if first >= size or (last is not None and last < first):
        with pytest.raises(errors.InvalidRange) as refused:
            ranges.get("wood", f"k{size}", range=(first, last))
        assert refused.value.size == size
        return
    with ranges.get("wood", f"k{size}", range=(first, last)) as reader:
        assert reader.read() == expected == b"".join(reader)
        assert (reader.start, reader.length) == (first, len(expected))
        if len(expected) < size:
            assert reader.content_range == f"bytes {first}-{first + len(expected) - 1}/{size}"
        if reader.inline is None:
            assert span_bytes(reader) == expected


@pytest.fixture(scope="module")
def ranges(tmp_path_factory: pytest.TempPathFactory) -> object:
    path = tmp_path_factory.mktemp("ranges") / "store"
    store = small(path, chunk_size=1 << 17)  # two blocks of 64 KiB to a chunk
    store.create_bucket("wood")
    for size in (*SIZES, 200_000):
        store.put("wood", f"k{size}", noise(size))
    yield store
    store.close()


def test_the_last_bytes_can_be_asked_for_by_their_number(store: Store) -> None:
    for size in (10, 10_000):
        store.put("wood", "k", noise(size))
        assert store.get("wood", "k", range=(None, 4)).read() == noise(size)[-4:]
        with store.get("wood", "k", range=(None, 1 << 40)) as reader:
            assert (reader.start, reader.length) == (0, size)
        for bad in ((None, 0), (None, None), (-1, 5), (size, None), (5, 4)):
            with pytest.raises(errors.InvalidRange):
                store.get("wood", "k", range=bad)
    store.put("wood", "k", b"")
    for bad in ((0, None), (0, 0), (None, 5)):
        with pytest.raises(errors.InvalidRange):
            store.get("wood", "k", range=bad)


@given(
    moves=st.lists(st.tuples(st.sampled_from([0, 1, 2]), st.integers(-60_000, 60_000), st.integers(0, 9000)))
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_reader_as_a_file_seeks_and_reads_as_a_file_in_memory_does(
    ranges: Store, moves: list[tuple[int, int, int]]
) -> None:
    plain = io.BytesIO(noise(50_000)[10:40_001])
    with ranges.get("wood", "k50000", range=(10, 40_000)) as reader, reader.as_file() as file:
        assert file.readable() and file.seekable() and not file.writable()
        for whence, offset, count in moves:
            try:
                expected = plain.seek(offset, whence)
            except ValueError:
                expected = -1
            if expected < 0 or (whence != 0 and {1: plain.tell(), 2: 39_991}[whence] < 0):
                with pytest.raises(ValueError):
                    file.seek(offset, whence)
            else:
                if whence and (expected := [0, file.tell(), 39_991][whence] + offset) < 0:
                    with pytest.raises(ValueError):
                        file.seek(offset, whence)
                    plain.seek(file.tell())
                    continue
                assert file.seek(offset, whence) == plain.seek(expected)
            assert file.read(count) == plain.read(count)
            assert file.tell() == plain.tell()


def test_a_small_range_of_a_large_chunk_reads_only_its_blocks(path: Path) -> None:
    fs = FaultyFileSystem()
    with Store.open(path, fs=fs, map_size=1 << 28, chunk_size=1 << 20) as store:
        store.create_bucket("wood")
        store.put("wood", "k", noise(1 << 20))
        read: list[int] = []
        original = fs.read

        def counting(fd: int, length: int, offset: int) -> bytes:
            read.append(length)
            return original(fd, length, offset)

        fs.read = counting  # type: ignore[method-assign]
        with store.get("wood", "k", range=(500_000, 500_009)) as reader:
            assert reader.read() == noise(1 << 20)[500_000:500_010]
        assert sum(read) < 2 * BLOCK_SIZE


def test_a_reader_goes_on_over_an_object_that_was_deleted_or_replaced_meanwhile(store: Store) -> None:
    store.put("wood", "k", noise(20_000, 1))
    with store.get("wood", "k") as reader:
        blocks = iter(reader)
        first = next(blocks)
        store.put("wood", "k", noise(20_000, 2))
        store.delete("wood", "k")
        assert first + b"".join(blocks) == noise(20_000, 1)


def test_a_call_that_may_not_wait_answers_from_memory_or_says_so(store: Store) -> None:
    store.put("wood", "k", b"1")
    store.put("wood", "long body", noise(100_000))
    store.put("wood", "long head", b"3" * 3000, metadata={"x": "4" * 2000})
    try:
        assert store.get("wood", "k", wait=False).read() == b"1"
        assert store.head("wood", "k", wait=False).size == 1
        assert store.head("wood", "long body", wait=False).size == 100_000
    except errors.WouldBlock:
        pass
    with pytest.raises(errors.WouldBlock):
        store.head("wood", "long head", wait=False)
    assert store.head("wood", "long head").metadata == {"x": "4" * 2000}
    fs = store._core.fs
    fs.read_cached = lambda fd, length, offset: None  # type: ignore[method-assign]
    try:
        with pytest.raises(errors.WouldBlock):
            store.get("wood", "k", wait=False)
        for key in ("k", "long body"):
            with pytest.raises(errors.WouldBlock):
                store.head("wood", key, wait=False)
        assert store.get("wood", "k").read() == b"1"
    finally:
        del fs.read_cached


# --- damage ---------------------------------------------------------------------------------------------------


def test_no_flipped_bit_of_a_volume_is_ever_handed_out(tmp_path: Path) -> None:
    """One bit in every region of every record, and of the superblock: a read gives the true bytes or `Corrupt`."""
    path = tmp_path / "store"
    objects = {"small": b"s" * 100, "large": noise(9000), "dir/x": b"x" * 50}
    with small(path) as store:
        store.create_bucket("wood")
        for key, data in objects.items():
            store.put("wood", key, data, metadata={"name": key})
    offsets = [0, 9, 16, 32, 40, 4092]
    for _, record in records_of(path):
        at = record.header.offset
        body_at = at + HEADER_SIZE + record.header.head_length
        offsets += [at, at + 4, at + 5, at + 6, *range(at + 8, at + 64, 4)]
        offsets += [at + HEADER_SIZE, body_at - 1]
        if record.header.body_length:
            offsets += [
                body_at,
                body_at + record.header.body_length // 2,
                body_at + record.header.body_length - 1,
            ]
    found = 0
    volume = path / "volumes" / volume_name(1)
    good = volume.read_bytes()
    for number, offset in enumerate(offsets):
        volume.write_bytes(good)
        flip(volume, offset, number % 8)
        try:
            store = small(path)
        except errors.CordwoodError:
            found += 1
            continue
        with store:
            for key, data in objects.items():
                for wanted in (None, (10, 19)):
                    try:
                        with store.get("wood", key, range=wanted) as reader:
                            assert reader.info.metadata == {"name": key}
                            assert reader.info.key == key and reader.info.size == len(data)
                            assert reader.read() == (data if wanted is None else data[10:20]), offset
                    except (errors.Corrupt, errors.UnsupportedFormat):
                        found += 1
    assert found > len(offsets) / 2


def test_damage_names_the_volume_and_the_offset_and_leaves_other_objects_alone(
    store: Store, path: Path
) -> None:
    store.put("wood", "bad", noise(9000, 1))
    store.put("wood", "good", noise(9000, 2))
    _, record = next(item for item in records_of(path) if item[1].header.type == RecordType.CHUNK)
    flip(first_volume(path), record.header.offset + record.header.length - 100)
    with pytest.raises(errors.Corrupt, match=f"volume 1 offset {record.header.offset}"):
        store.get("wood", "bad").read()
    assert store.head("wood", "bad").size == 9000
    assert store.get("wood", "bad", range=(4096, 8999)).read() == noise(9000, 1)[4096:]
    assert store.get("wood", "good").read() == noise(9000, 2)
    assert store.read_only_reason is None


def test_a_span_is_only_given_after_its_bytes_were_verified(store: Store, path: Path) -> None:
    store.put("wood", "k", noise(9000))
    records = [record for _, record in records_of(path) if record.header.type == RecordType.CHUNK]
    flip(first_volume(path), records[1].header.offset + records[1].header.length - 100)
    with store.get("wood", "k") as reader:
        spans = reader.spans()
        span = spans.take()
        assert span is not None and os.pread(span.fd, span.length, span.offset) == noise(9000)[:4096]
        with pytest.raises(errors.Corrupt):
            spans.take()


@pytest.mark.parametrize("size", [100, 9000])
def test_a_volume_whose_end_was_lost_gives_corrupt_and_keeps_the_rest(path: Path, size: int) -> None:
    with small(path) as store:
        store.create_bucket("wood")
        store.put("wood", "first", noise(size, 1))
        end = first_volume(path).stat().st_size
        store.put("wood", "second", noise(size, 2))
    os.truncate(first_volume(path), end + 10)
    with small(path) as store:
        assert store.get("wood", "first").read() == noise(size, 1)
        with pytest.raises(errors.Corrupt):
            store.get("wood", "second").read()
        store.put("wood", "third", noise(size, 3))
        assert store.get("wood", "third").read() == noise(size, 3)


def test_a_volume_that_is_gone_gives_corrupt_and_names_it(path: Path) -> None:
    with small(path) as store:
        store.create_bucket("wood")
        store.put("wood", "small", b"1")
        store.put("wood", "large", noise(9000))
        upload = store.create_upload("wood", "up").upload_id
        writer = store.part_writer("wood", "up", upload, 1)
        writer.write(b"part")
        writer.commit()
    first_volume(path).unlink()
    with small(path) as store:
        for key in ("small", "large"):
            with pytest.raises(errors.Corrupt, match="missing"):
                store.get("wood", key).read()
        with pytest.raises(errors.Corrupt, match="missing"):
            store.head_upload("wood", "up", upload)
        with pytest.raises(errors.Corrupt, match="missing"):
            store.list_uploads("wood")


def test_an_index_that_mixes_up_two_objects_is_found_out(path: Path) -> None:
    """LMDB has no checksums: a flipped bit in a key gives an object another's name. Its record knows better."""
    with small(path) as store:
        bucket = store.create_bucket("wood")
        store.put("wood", "a", b"of a")
        store.put("wood", "d/b", b"of b")
        store.put("wood", "e/b", b"of another b")
        core = store._core
        txn = core.index.begin()
        from cordwood.engine import namespace

        places = [namespace.resolve(txn, bucket.id, key) for key in (b"a", b"d/b", b"e/b")]
        assert None not in places
        rows = [namespace.get_entry(txn, *place) for place in places if place is not None]
        for place, row in zip(places, [rows[1], rows[2], rows[0]], strict=True):
            assert place is not None and row is not None
            namespace.put_entry(txn, *place, row)
        core.index.commit(txn)
        for key in ("a", "d/b", "e/b"):
            for call in (store.get, store.head):
                with pytest.raises(errors.Corrupt, match="another record"):
                    call("wood", key)


def test_a_row_that_points_nowhere_sensible_is_corrupt(path: Path) -> None:
    with small(path) as store:
        store.create_bucket("wood")
        store.put("wood", "k", noise(9000))
        core = store._core
        with core.index.read() as txn:
            rows = list(txn.items(b"", txn.tables.chunks))
        from cordwood.engine.rows import ChunkRow

        chunk_id, packed = rows[0]
        good = ChunkRow.unpack(packed)
        other = ChunkRow.unpack(rows[1][1])
        for bad in (
            good._replace(offset=SUPERBLOCK_SIZE),
            good._replace(offset=good.offset + 8),
            good._replace(offset=1 << 40),
            good._replace(volume=77),
            good._replace(offset=other.offset, length=other.length),
        ):
            txn = core.index.begin()
            txn.put(chunk_id, bad.pack(), txn.tables.chunks)
            core.index.commit(txn)
            with pytest.raises(errors.Corrupt):
                store.get("wood", "k").read()
            with pytest.raises(errors.Corrupt):
                for first in (0, 4096, 8192):
                    store.get("wood", "k", range=(first, first + 10)).read()


def test_a_copied_store_directory_is_the_same_store(store: Store, path: Path) -> None:
    store.put("wood", "k", noise(9000))
    store.close()
    shutil.copytree(path, path.with_name("copy"))
    with small(path.with_name("copy")) as copy, small(path) as original:
        assert copy.get("wood", "k").read() == original.get("wood", "k").read() == noise(9000)
