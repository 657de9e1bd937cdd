"""One volume file: what is appended is scanned back, what is damaged is not, and nobody else's file is taken."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cordwood.engine import errors
from cordwood.engine.format import (
    HEADER_SIZE,
    SUPERBLOCK_SIZE,
    DeleteHead,
    RecordType,
    SealHead,
    Superblock,
    encode_head,
    header_seed,
    pack_record,
    parse_header,
    record_length,
)
from cordwood.engine.fs import REAL
from cordwood.engine.volume import ActiveVolume, NewRecord, Place, Volumes, volume_id_of, volume_name
from tests.engine.support import FaultyFileSystem, flip, noise

STORE = b"s" * 16


def record(name: bytes, body: bytes = b"", clock: int = 1) -> NewRecord:
    return NewRecord(RecordType.DELETE, 0, clock, encode_head(DeleteHead(1, 2, name, 0)), body)


@pytest.fixture
def volumes(tmp_path: Path) -> Iterator[Volumes]:
    opened = Volumes(REAL, tmp_path, STORE, 7)
    yield opened
    opened.close()


@pytest.fixture
def active(volumes: Volumes) -> Iterator[ActiveVolume]:
    made = volumes.create(5)
    yield made
    made.close()


bodies = st.lists(st.binary(max_size=100), max_size=12)


@given(groups=st.lists(bodies, max_size=6))
@settings(max_examples=40, deadline=None)
def test_what_was_appended_is_scanned_back_at_its_places(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[bytes]]
) -> None:
    volumes = Volumes(REAL, tmp_path_factory.mktemp("volume"), STORE, 7)
    active = volumes.create(5)
    places: list[Place] = []
    for number, group in enumerate(groups):
        places += active.append([record(b"%d" % number, body, clock=number) for body in group])
    found = list(active.file.scan(SUPERBLOCK_SIZE, active.tail, bodies=True))
    assert [each.body for each in found] == [body for group in groups for body in group]
    assert [Place(active.id, each.header.offset, each.header.length) for each in found] == places
    assert all(place.offset % 8 == 0 and place.length % 8 == 0 for place in places)
    for place, each in zip(places, found, strict=True):
        assert active.file.read_record(place) == each
        assert active.file.read_head(place) == each._replace(body=None)
    assert [each.head for each in active.file.scan(SUPERBLOCK_SIZE, active.tail, bodies=False)] == [
        each.head for each in found
    ]
    active.close()


def test_a_scan_goes_over_records_larger_than_its_window(active: ActiveVolume) -> None:
    sizes = [10, (1 << 20) - 100, 1 << 20, (1 << 20) + 5, 3 << 20, 0, 1 << 19]
    active.append([record(b"x" * (size % 97), noise(size)) for size in sizes])
    for with_bodies in (True, False):
        found = list(active.file.scan(SUPERBLOCK_SIZE, active.tail, bodies=with_bodies))
        assert [each.header.body_length for each in found] == sizes
    big = [NewRecord(RecordType.DELETE, 0, 1, encode_head(DeleteHead(1, 2, noise(3 << 20), 0)), b"")]
    (place,) = active.append(big)
    assert active.file.read_head(place).head == big[0].head


def test_a_scan_ends_before_the_first_damaged_record_and_the_search_goes_on_behind_it(
    volumes: Volumes, active: ActiveVolume
) -> None:
    places = active.append([record(b"%d" % number, b"body" * 10) for number in range(5)])
    for at in (0, 10, 61, HEADER_SIZE + 2, HEADER_SIZE + 20):
        flip(volumes.path(1), places[2].offset + at)
        found = list(active.file.scan(SUPERBLOCK_SIZE, active.tail, bodies=True))
        assert len(found) == 2
        behind = active.file.find_valid(places[2].offset + 8, active.tail)
        assert behind is not None and behind.offset == places[3].offset
        with pytest.raises(errors.Corrupt, match=f"volume 1 offset {places[2].offset}"):
            active.file.read_record(places[2])
        flip(volumes.path(1), places[2].offset + at)
    assert active.file.find_valid(active.tail, active.tail) is None
    assert active.file.find_valid(places[4].offset + 1, active.tail) is None


def test_the_search_for_a_valid_record_crosses_its_windows(active: ActiveVolume) -> None:
    active.append([record(b"a", b"CWR1" * (5 << 18))])
    (last,) = active.append([record(b"b")])
    found = active.file.find_valid(SUPERBLOCK_SIZE + 8, active.tail)
    assert found is not None and found.offset == last.offset


def test_each_record_says_how_much_of_the_volume_was_synced_before_it(active: ActiveVolume) -> None:
    (one,) = active.append([record(b"a")])
    (two,) = active.append([record(b"b")])
    active.sync()
    active.append([record(b"c")])
    found = list(active.file.scan(SUPERBLOCK_SIZE, active.tail, bodies=True))
    assert [each.header.durable for each in found] == [
        SUPERBLOCK_SIZE,
        SUPERBLOCK_SIZE,
        two.offset + two.length,
    ]
    assert [each.header.node for each in found] == [7, 7, 7]
    assert one.offset == SUPERBLOCK_SIZE


def test_a_place_of_the_wrong_length_is_refused(active: ActiveVolume) -> None:
    (place,) = active.append([record(b"a" * 50)])
    with pytest.raises(errors.Corrupt, match="expected"):
        active.file.read_record(place._replace(length=place.length + 8))
    active.append([record(b"b" * 50)])
    with pytest.raises(errors.Corrupt, match="expected"):
        active.file.read_record(place._replace(length=place.length + 8))


def test_a_volume_belongs_to_one_appender_at_a_time(volumes: Volumes) -> None:
    active = volumes.create(5)
    assert volumes.claim(active.id) is None
    active.append([record(b"a")])
    active.close()
    fd = volumes.claim(active.id)
    assert fd is not None
    resumed = volumes.resume(active.id, fd, active.tail)
    resumed.append([record(b"b")])
    assert len(list(resumed.file.scan(SUPERBLOCK_SIZE, resumed.tail, bodies=True))) == 2
    assert volumes.claim(active.id) is None
    resumed.close()


def test_new_volumes_count_upwards_and_each_has_its_own_salt(volumes: Volumes) -> None:
    made = [volumes.create(clock) for clock in (1, 2, 3)]
    assert [each.id for each in made] == volumes.ids() == [1, 2, 3]
    assert len({each.file.superblock.salt for each in made}) == 3
    for each in made:
        each.close()


def test_two_makers_of_one_number_get_two_volumes(tmp_path: Path) -> None:
    """The other one was faster between the look and the link."""
    other = Volumes(REAL, tmp_path, STORE, 8)

    class Slow(FaultyFileSystem):
        raced = False

        def link(self, source: Path, target: Path) -> None:
            if not self.raced:
                self.raced = True
                other.create(1).close()
            super().link(source, target)

    volumes = Volumes(Slow(), tmp_path, STORE, 7)
    made = volumes.create(2)
    assert made.id == 2 and volumes.ids() == [1, 2]
    assert [name for name in os.listdir(tmp_path) if name.endswith(".tmp")] == []
    made.close()


def test_a_new_volume_that_is_taken_for_a_leftover_is_made_again(tmp_path: Path) -> None:
    other = Volumes(REAL, tmp_path, STORE, 8)

    class Raced(FaultyFileSystem):
        def lock(self, fd: int, *, shared: bool) -> bool:
            if self.calls["raced"] == 0:
                self.calls["raced"] += 1
                other.remove_leftovers()  # just between the creation and the lock
            return super().lock(fd, shared=shared)

    volumes = Volumes(Raced(), tmp_path, STORE, 7)
    made = volumes.create(2)
    assert made.id == 1
    made.append([record(b"a")])
    assert volumes.get(1).size() > SUPERBLOCK_SIZE
    made.close()


def test_the_disk_begins_with_what_was_appended_when_that_has_become_much(
    volumes: Volumes, monkeypatch: pytest.MonkeyPatch
) -> None:
    active = volumes.create(1)
    begun: list[tuple[int, int]] = []
    monkeypatch.setattr(REAL, "begin_datasync", lambda fd, offset, length: begun.append((offset, length)))
    start = active.tail
    for _ in range(20):
        active.append([record(b"x", noise(1 << 20))])
        active.begin_sync()
    step = (active.tail - start) // 20 * 8
    assert begun == [(start, step), (start + step, step)]
    assert active.durable == start  # it is a hint, and says nothing about durability
    active.close()


def test_a_disk_that_fails_when_it_begins_ends_all_syncs(tmp_path: Path) -> None:
    fs = FaultyFileSystem()
    active = Volumes(fs, tmp_path, STORE, 7).create(1)
    active.append([record(b"x", noise(9 << 20))])
    fs.fail("begin_datasync", times=1)
    with pytest.raises(errors.ReadOnly, match="Input/output"):
        active.begin_sync()
    with pytest.raises(errors.ReadOnly, match="Input/output"):
        active.sync()
    active.close()


def test_what_the_disk_was_told_to_begin_with_reads_back_and_a_bad_descriptor_is_an_error(
    tmp_path: Path,
) -> None:
    path = tmp_path / "file"
    fd = REAL.create(path)
    REAL.write_all(fd, [noise(100_000)], 0)
    REAL.begin_datasync(fd, 0, 100_000)
    assert REAL.read(fd, 100_000, 0) == noise(100_000)
    REAL.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        REAL.begin_datasync(fd, 0, 1)


def test_a_seal_is_the_last_record_and_says_where_it_stands(active: ActiveVolume) -> None:
    active.append([record(b"a")])
    end = active.tail
    active.seal(9)
    last = list(active.file.scan(SUPERBLOCK_SIZE, active.tail, bodies=True))[-1]
    assert (last.header.type, last.header.offset, last.head) == (
        RecordType.SEAL,
        end,
        encode_head(SealHead(end)),
    )


def test_only_ten_digits_and_vol_name_a_volume() -> None:
    assert volume_id_of(volume_name(12)) == 12
    for name in ("1.vol", "0000000001.VOL", "00000000001.vol", "0000000001.vol.tmp", ".0000000001.vol", "x"):
        assert volume_id_of(name) is None


def test_descriptors_of_volumes_that_nobody_reads_any_more_are_closed(volumes: Volumes) -> None:
    volumes.create(1).close()
    file = volumes.get(1)
    descriptor = file.fd
    volumes.forget(1)
    os.fstat(descriptor)
    del file
    with pytest.raises(OSError):
        os.fstat(descriptor)


# --- the bytes themselves -------------------------------------------------------------------------------------


@given(data=st.binary(max_size=200), offset=st.integers(0, 1 << 40), seed=st.integers(0, (1 << 32) - 1))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_any_bytes_parse_to_a_header_or_to_none(data: bytes, offset: int, seed: int) -> None:
    assert parse_header(data, offset, seed, 1 << 62) is None
    assert parse_header(b"CWR1\1" + data, offset, seed, 1 << 62) is None


def test_a_header_is_valid_only_at_its_offset_in_its_volume_and_within_its_end() -> None:
    head = encode_head(DeleteHead(1, 2, b"n", 0))
    seed = header_seed(b"salt" * 4)
    data = b"".join(pack_record(RecordType.DELETE, 0, 4096, 1, 0, 7, head, b"body", seed))
    length = record_length(len(head), 4)
    assert len(data) == length
    assert parse_header(data, 4096, seed, 4096 + length) is not None
    assert parse_header(data, 4104, seed, 1 << 40) is None
    assert parse_header(data, 4096, header_seed(b"Salt" * 4), 1 << 40) is None
    assert parse_header(data, 4096, seed, 4096 + length - 1) is None
    assert parse_header(data[:63], 4096, seed, 1 << 40) is None
    for bit in range(8 * HEADER_SIZE):
        bad = bytearray(data)
        bad[bit // 8] ^= 1 << bit % 8
        assert parse_header(bytes(bad), 4096, seed, 1 << 40) is None


def test_every_flipped_bit_of_a_superblock_is_found() -> None:
    block = Superblock(STORE, 3, b"t" * 16, 4, 5).pack()
    for at in [*range(80), 1000, 4091, 4092, 4095]:
        bad = bytearray(block)
        bad[at] ^= 1
        with pytest.raises(errors.Corrupt):
            Superblock.unpack(bytes(bad), "here")
    with pytest.raises(errors.Corrupt):
        Superblock.unpack(block[:-1], "here")
