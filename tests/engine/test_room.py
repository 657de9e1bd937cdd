"""Zeros that are laid ahead of small appends: never taken for records, for damage or for a part of the volume."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

from cordwood.engine import Store, check_store, dump_volume
from cordwood.engine.format import RecordType
from cordwood.engine.fs import Buffer, FileSystem
from cordwood.engine.volume import ROOM_MAX
from tests.engine.support import first_volume, python, records_of, small, volume_paths

DIE = """
import os, sys
from pathlib import Path
from cordwood.engine import Store
store = Store.open(Path(sys.argv[1]), volume_size=1 << 30, map_size=1 << 28)
store.create_bucket("bucket")
for number in range(40):
    store.put("bucket", f"key {number}", bytes(1000))
os._exit(0)
"""


def end_of_records(path: Path) -> int:
    header = records_of(path)[-1][1].header
    return header.offset + header.length


def put_some(store: Store, count: int = 40, size: int = 200) -> None:
    for number in range(count):
        store.put("bucket", f"key {number}", bytes(size))


def test_small_puts_one_after_the_other_go_where_zeros_were_laid(tmp_path: Path) -> None:
    with small(tmp_path, volume_size=1 << 30) as store:
        store.create_bucket("bucket")
        put_some(store)
        room = first_volume(tmp_path).stat().st_size - end_of_records(tmp_path)
        assert 0 < room <= ROOM_MAX
        sizes = set()
        for number in range(8):
            store.put("bucket", f"later {number}", b"value")
            sizes.add(first_volume(tmp_path).stat().st_size)
        assert len(sizes) == 1
        assert store.get("bucket", "key 39").read() == bytes(200)


def test_a_closed_store_has_no_room(tmp_path: Path) -> None:
    with small(tmp_path, volume_size=1 << 30) as store:
        store.create_bucket("bucket")
        put_some(store)
    assert first_volume(tmp_path).stat().st_size == end_of_records(tmp_path)


def test_a_sealed_volume_ends_with_its_seal(tmp_path: Path) -> None:
    with small(tmp_path, volume_size=64 << 10) as store:
        store.create_bucket("bucket")
        put_some(store, 400)
    sealed = volume_paths(tmp_path)[:-1]
    assert sealed
    for number, path in enumerate(sealed, 1):
        header = records_of(tmp_path, number)[-1][1].header
        assert header.type == RecordType.SEAL
        assert path.stat().st_size == header.offset + header.length


def test_large_objects_lay_no_room(tmp_path: Path) -> None:
    with Store.open(tmp_path, volume_size=1 << 30, map_size=1 << 28) as store:
        store.create_bucket("bucket")
        for number in range(20):
            store.put("bucket", f"key {number}", number.to_bytes(4, "big") * (40 << 10))
        assert first_volume(tmp_path).stat().st_size == end_of_records(tmp_path)


def test_a_relaxed_store_waits_for_no_sync_and_lays_no_room(tmp_path: Path) -> None:
    with small(tmp_path, volume_size=1 << 30, durability="relaxed") as store:
        store.create_bucket("bucket")
        put_some(store)
        assert first_volume(tmp_path).stat().st_size == end_of_records(tmp_path)


def test_what_a_dead_writer_laid_is_room_to_fsck_and_dump_and_cut_when_the_store_is_opened(
    tmp_path: Path,
) -> None:
    python(DIE, tmp_path)
    end = end_of_records(tmp_path)
    assert first_volume(tmp_path).stat().st_size > end
    assert list(dump_volume(first_volume(tmp_path)))[-1]["type"] == "ROOM"
    assert check_store(tmp_path, data=True, map_size=1 << 28).is_clean
    (tmp_path / "index" / "data.mdb").unlink()
    assert {each.kind for each in check_store(tmp_path, data=True, map_size=1 << 28).problems} <= {"index"}
    with Store.open(tmp_path, map_size=1 << 28) as store:
        assert store.get("bucket", "key 39").read() == bytes(1000)
    assert first_volume(tmp_path).stat().st_size == end


def test_other_bytes_behind_the_last_record_and_too_many_zeros_are_damage(tmp_path: Path) -> None:
    with small(tmp_path) as store:
        store.create_bucket("bucket")
    volume = first_volume(tmp_path)
    size = volume.stat().st_size
    for tail, what in (
        (bytes(8), "ROOM"),
        (bytes(ROOM_MAX + 8), "DAMAGE"),
        (bytes(64) + b"12345678", "DAMAGE"),
    ):
        with open(volume, "r+b") as file:
            file.truncate(size)
            file.seek(size)
            file.write(tail)
        assert list(dump_volume(volume))[-1]["type"] == what


class _Quota(FileSystem):
    """Takes half of the zeros that are laid ahead, and no more."""

    refused = 0

    def write_all(self, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
        if len(buffers) == 1 and not any(buffers[0]):
            self.refused += 1
            super().write_all(fd, [buffers[0][: len(buffers[0]) // 2]], offset)
            raise OSError(errno.EDQUOT, "quota")
        super().write_all(fd, buffers, offset)


def test_a_quota_that_leaves_no_room_ends_no_put(tmp_path: Path) -> None:
    fs = _Quota()
    with Store.open(tmp_path, fs=fs, volume_size=1 << 30, map_size=1 << 28) as store:
        store.create_bucket("bucket")
        put_some(store, size=3000)
        assert fs.refused == 1
        assert first_volume(tmp_path).stat().st_size == end_of_records(tmp_path)
        assert store.get("bucket", "key 39").read() == bytes(3000)
