"""What fsck, scrub, rebuild and recovery seldom meet: each state is made here once, named by the tool, and mended."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest
from blake3 import blake3

from cordwood.engine import (
    CompactionPolicy,
    Maintenance,
    Store,
    check_store,
    compact,
    errors,
    measure_store,
    probe,
    rebuild,
    rescan,
    scrub_status,
)
from cordwood.engine.format import (
    HEADER_SIZE,
    SUPERBLOCK_SIZE,
    Flag,
    Manifest,
    RecordType,
    Superblock,
    encode_chunk_head,
)
from cordwood.engine.fs import FileSystem
from cordwood.engine.index import Txn
from cordwood.engine.probe import probe_index, read_all
from cordwood.engine.rows import ChunkRow, ObjectRow, VolumeRow, VolumeState
from cordwood.engine.volume import Record
from cordwood.engine.walk import Damage, walk
from tests.engine.support import first_volume, flip, noise, records_of, small, volume_paths, volumes_of
from tests.engine.test_forged import Forged, Known, forge, object_head

MAP = 1 << 28
OPTIONS: dict[str, Any] = {"volume_size": 1 << 16}


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


@pytest.fixture
def closed(path: Path) -> Path:
    """Three volumes, of which the last is open; versions, chunks, a deleted chunk."""
    with small(path, **OPTIONS) as store:
        store.create_bucket("wood")
        store.put("wood", "null", b"0")
        store.update_bucket("wood", versioning="Enabled")
        store.put("wood", "null", b"1")
        store.put("wood", "gone", noise(300, 50))
        store.delete("wood", "gone", version_id=store.head("wood", "gone").version_id)
        for number in range(16):
            store.put("wood", f"k{number}", noise(9000, number))
    assert len(volume_paths(path)) == 3
    return path


def said(path: Path, *, repair: bool = False) -> str:
    report = check_store(path, data=True, repair=repair, map_size=MAP)
    return "\n".join([*(f"{each.where} {each.text}" for each in report.problems), *report.notes])


def change(path: Path, body: Callable[[Txn], None]) -> None:
    with small(path, **OPTIONS) as store:
        txn = store._core.index.begin()
        body(txn)
        store._core.index.commit(txn)


def is_whole(path: Path) -> None:
    with small(path, **OPTIONS) as store:
        assert store.get("wood", "null").read() == b"1"
        for number in range(16):
            assert store.get("wood", f"k{number}").read() == noise(9000, number)


# --- rows that say something else -----------------------------------------------------------------------------


def null_lost(txn: Txn) -> None:
    for key, packed in list(txn.items(b"", txn.tables.entries)):
        row = ObjectRow.unpack(packed)
        if row.group:
            txn.put(key, row._replace(null_clock=0).pack(), txn.tables.entries)


def chunk_longer(txn: Txn) -> None:
    key, packed = next(
        (key, packed)
        for key, packed in txn.items(b"", txn.tables.chunks)
        if ChunkRow.unpack(packed).references
    )
    row = ChunkRow.unpack(packed)
    txn.put(key, row._replace(length=row.length - 1).pack(), txn.tables.chunks)


def sealed(txn: Txn) -> None:
    row = txn.volume(3)
    assert row is not None
    txn.put_volume(3, row._replace(state=VolumeState.SEALED))


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (null_lost, "does not know where its null version is"),
        (chunk_longer, "are right"),
        (sealed, "ends without a SEAL"),
    ],
)
def test_a_row_that_says_something_else_is_named_and_mended(
    closed: Path, body: Callable[[Txn], None], sentence: str
) -> None:
    change(closed, body)
    assert sentence in said(closed)
    said(closed, repair=True)
    rebuild(closed, map_size=MAP)
    assert said(closed) == ""
    is_whole(closed)


def test_a_chunk_that_nothing_refers_to_may_be_anywhere(closed: Path) -> None:
    def idle(txn: Txn) -> None:
        for key, packed in list(txn.items(b"", txn.tables.chunks)):
            row = ChunkRow.unpack(packed)
            if not row.references:
                txn.put(key, row._replace(offset=row.offset + 8).pack(), txn.tables.chunks)

    change(closed, idle)
    assert said(closed) == ""


def test_a_chunk_whose_row_has_another_length_is_not_shared_and_what_is_written_reads_back(
    closed: Path,
) -> None:
    """The same bytes come again: the row lies, so they are written again, and the row is put right with them."""
    change(closed, chunk_longer)
    with small(closed, **OPTIONS) as store:
        for number in range(16):
            store.put("wood", f"again{number}", noise(9000, number))
        for number in range(16):
            assert store.get("wood", f"again{number}").read() == noise(9000, number)


def test_a_read_that_meets_another_record_says_so(closed: Path) -> None:
    with small(closed, **OPTIONS) as store:
        store.update_attrs("wood", "k1", {"n": 1})
        core = store._core
        with core.index.read() as txn:
            bucket = txn.bucket("wood")
            about = next(key for key, _ in txn.items(b"", txn.tables.attrs))
            attrs = txn.attrs(int.from_bytes(about, "big"))
        assert bucket is not None and attrs is not None
        txn = core.index.begin()
        txn.put(about, attrs._replace(place=bucket.place).pack(), txn.tables.attrs)
        for key, packed in list(txn.items(b"", txn.tables.entries)):
            if key.endswith(b"k2"):
                volume, offset, length = bucket.place
                row = ObjectRow.unpack(packed)._replace(volume=volume, offset=offset, length=length)
                txn.put(key, row.pack(), txn.tables.entries)
        core.index.commit(txn)
        with pytest.raises(errors.Corrupt, match="expects an object's attributes"):
            store.get("wood", "k1")
        with pytest.raises(errors.Corrupt, match="expects an object"):
            store.get("wood", "k2")
        assert store.get("wood", "k3").read() == noise(9000, 3)


def test_a_chunk_with_fewer_references_than_names_refuses_the_delete_that_would_forget_it(
    closed: Path,
) -> None:
    def forget(txn: Txn) -> None:
        for key, packed in list(txn.items(b"", txn.tables.chunks)):
            txn.put(key, ChunkRow.unpack(packed)._replace(references=0).pack(), txn.tables.chunks)

    change(closed, forget)
    with small(closed, **OPTIONS) as store:
        version = store.head("wood", "k1").version_id
        with pytest.raises(errors.Corrupt, match="cordwood fsck --repair"):
            store.delete("wood", "k1", version_id=version)
        assert store.get("wood", "k1").read() == noise(9000, 1)
        store.put("wood", "new", b"and others go on")
    assert not check_store(closed, repair=True, map_size=MAP).uncorrected
    with small(closed, **OPTIONS) as store:
        assert store.delete("wood", "k1", version_id=version).existed


# --- files ----------------------------------------------------------------------------------------------------


def test_a_volume_of_a_compaction_that_was_killed_is_noted_before_it_goes(closed: Path) -> None:
    with small(closed, **OPTIONS) as store:
        fresh = store._core.volumes.create(1 << 60)
        fresh.close()
    change(closed, lambda txn: txn.put_volume(fresh.id, VolumeRow(VolumeState.ACTIVE, SUPERBLOCK_SIZE)))
    with lmdb.open(str(closed / "index"), max_dbs=16, map_size=MAP) as env:
        table = env.open_db(b"volumes", create=False)
        with env.begin(write=True) as raw:
            raw.put(fresh.id.to_bytes(4, "big"), VolumeRow(VolumeState.RETIRED).pack(), db=table)
    assert "is retired; opening the store removes it" in said(closed)
    is_whole(closed)
    assert len(volume_paths(closed)) == 3 and said(closed) == ""


def test_leftovers_of_a_crash_are_noted_and_a_half_made_index_is_passed_over(closed: Path) -> None:
    (closed / "volumes" / ".0000000004.vol.aaaa.tmp").write_bytes(b"half")
    (closed / "index.new").mkdir()
    (closed / "index.new" / "data.mdb").write_bytes(b"half")
    report = check_store(closed, map_size=MAP)
    assert report.is_clean and any("was left by a crash" in note for note in report.notes)
    is_whole(closed)


def test_a_store_that_was_only_just_made_is_clean_with_and_without_its_index(path: Path) -> None:
    small(path).close()
    assert check_store(path, map_size=MAP).is_clean
    shutil.rmtree(path / "index")
    assert check_store(path, map_size=MAP).is_clean


def test_a_volume_that_lost_its_synced_end_is_named_and_the_rest_is_read(closed: Path) -> None:
    victim = volume_paths(closed)[1]
    content = victim.read_bytes()
    victim.write_bytes(content[: len(content) // 2])
    assert "its end was lost" in said(closed)
    said(closed, repair=True)
    with small(closed, **OPTIONS) as store:
        assert store.get("wood", "null").read() == b"1"
        assert store.get("wood", "k15").read() == noise(9000, 15)
    file = volumes_of(closed).get(2)
    cut = list(walk(file, SUPERBLOCK_SIZE, len(content), bodies=True))
    assert isinstance(cut[-1], Damage) and cut[-1].why == "the file ends inside the record"


class Unreadable(FileSystem):
    """The second volume gives its superblock once, and then nothing."""

    opened = 0

    def open_read(self, path: Path) -> int:
        if path.name == "0000000002.vol":
            self.opened += 1
            if self.opened > 1:
                raise PermissionError(13, "told to", str(path))
        return super().open_read(path)


def test_a_volume_that_the_system_refuses_to_open_is_named(closed: Path) -> None:
    report = check_store(closed, map_size=MAP, fs=Unreadable())
    assert any(each.kind == "superblock" and "told to" in each.text for each in report.problems)
    assert check_store(closed, map_size=MAP).is_clean


def test_a_superblock_of_a_newer_format_is_not_read(closed: Path) -> None:
    content = bytearray(first_volume(closed).read_bytes()[:SUPERBLOCK_SIZE])
    content[8] = 2
    from crc32c import crc32c

    content[-4:] = crc32c(bytes(content[:-4])).to_bytes(4, "little")
    with pytest.raises(errors.UnsupportedFormat, match="volume format 2"):
        Superblock.unpack(bytes(content), "here")


@pytest.mark.parametrize("use", [measure_store, scrub_status, check_store, compact])
def test_a_folder_without_a_store_is_called_that(tmp_path: Path, use: Callable[[Path], object]) -> None:
    with pytest.raises(errors.StoreNotFound):
        use(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_which_uploads_it_would_abort(closed: Path) -> None:
    with small(closed, **OPTIONS) as store:
        store.create_upload("wood", "k")
    policy = CompactionPolicy(full=True, grace_s=0, dry_run=True)
    assert compact(closed, policy, abandoned_after_s=0, map_size=MAP).uploads_aborted == 1
    with small(closed, **OPTIONS) as store:
        assert len(store.list_uploads("wood").uploads) == 1


# --- the probe ------------------------------------------------------------------------------------------------


def test_a_probe_that_is_killed_by_what_it_reads_says_by_which_signal(
    closed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_CODE", f"import os; os.kill(os.getpid(), {int(signal.SIGBUS)})")
    assert (
        probe_index(closed / "index", 1, MAP) == f"reading the index ended with signal {int(signal.SIGBUS)}"
    )


def test_a_probe_that_goes_round_in_circles_is_ended(closed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_CODE", "while True: pass")
    monkeypatch.setattr(probe, "_SECONDS_BASE", 0.2)
    assert "did not end within" in str(probe_index(closed / "index", 1, MAP))


def test_keys_out_of_order_are_found_by_the_probe(closed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """LMDB keeps in a table's own flags how its keys compare: one flipped bit there turns them around."""
    with lmdb.open(str(closed / "index"), max_dbs=16, map_size=MAP) as env:
        with env.begin(write=True) as raw:
            raw.drop(env.open_db(b"uploads", txn=raw))
        table = env.open_db(b"uploads", reverse_key=True)
        with env.begin(write=True) as raw:
            for key in (b"\x01\x02", b"\x02\x01"):
                raw.put(key * 8, b"", db=table)
    assert read_all(str(closed / "index"), MAP) == 1
    assert "out of order" in capfd.readouterr().err
    assert "out of order" in str(probe_index(closed / "index", 1 << 20, MAP))


# --- scrub ----------------------------------------------------------------------------------------------------


def test_a_chunk_that_has_not_the_digest_it_is_named_by_is_bad(closed: Path) -> None:
    """Whole by its CRCs: it was in bad memory when it was written."""
    payload = noise(5000, 9)
    with small(closed, **OPTIONS) as store, store._core.index.read() as txn:
        row = txn.bucket("wood")
        assert row is not None
        known = Known(row.head.bucket, row.head.bucket, 0, 0, b"")
    last = volume_paths(closed)[-1]
    for each in volume_paths(closed)[:-1]:
        assert each < last
    chunk = Forged(
        RecordType.CHUNK, encode_chunk_head(blake3(b"other").digest(), payload)[0], payload, Flag.DIGEST
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.engine.test_forged.first_volume", lambda path: last)
        patch.setattr("tests.engine.test_forged.volumes_of", lambda path: {1: volumes_of(path).get(3)})
        forge(closed, [chunk, Forged(RecordType.OBJECT, object_head(known, size=2), b"ok", later=2)])
    with Maintenance.open(closed, map_size=MAP) as upkeep:
        bad = upkeep.scrubber().run_cycle().bad
    assert len(bad) == 1 and "digest that it is named by" in bad[0].why
    assert bad[0].name == "nothing that lives"
    assert "digest that it is named by" in said(closed)
    is_whole(closed)


def test_a_scrub_tells_how_far_it_is(path: Path) -> None:
    with small(path, chunk_size=1 << 20) as store:
        store.create_bucket("wood")
        store.put("wood", "k", noise(34 << 20))
    told: list[tuple[int, int]] = []
    with Maintenance.open(path, map_size=MAP) as upkeep:
        upkeep.scrubber().run_cycle(lambda done, total: told.append((done, total)))
        upkeep.scrubber().run_cycle()
    assert told and all(32 << 20 <= done <= total for done, total in told)


# --- rebuild and recovery -------------------------------------------------------------------------------------


def chunks_in(path: Path) -> list[int]:
    """Where the first volume has chunks, whole or rotten."""
    items = walk(volumes_of(path).get(1), SUPERBLOCK_SIZE, first_volume(path).stat().st_size)
    return [
        item.header.offset
        for item in items
        if isinstance(item, Record) and item.header.type == RecordType.CHUNK
    ]


def test_of_copies_of_a_chunk_that_are_all_rotten_the_last_is_kept_and_named(path: Path) -> None:
    with small(path) as store:
        store.create_bucket("wood")
        store.put("wood", "k", noise(300))
    for _ in range(2):
        flip(first_volume(path), chunks_in(path)[-1] + HEADER_SIZE + 40)
        with small(path) as store:
            store.put("wood", "k", noise(300))
            assert store.get("wood", "k").read() == noise(300)
            store.put("wood", "later", b"and so all before it had been synced")
    copies = chunks_in(path)
    assert len(copies) == 3
    flip(first_volume(path), copies[-1] + HEADER_SIZE + 40)
    rebuild(path, map_size=MAP)
    with small(path) as store:
        with pytest.raises(errors.Corrupt):
            store.get("wood", "k").read()
        chunk = store.get("wood", "k").manifest.chunk(0)
        with store._core.index.read() as txn:
            row = txn.chunk(chunk.id)
    assert row is not None and row.offset == copies[-1]


def test_copies_of_a_chunk_that_are_read_far_apart_are_known_for_copies(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rebuild of a large store puts chunks into the index now and then, and so meets the second copy there."""
    with small(path) as store:
        store.create_bucket("wood")
        for number in range(4):
            store.put("wood", f"k{number}", noise(300, number))
    record = next(each for _, each in records_of(path) if each.header.type == RecordType.CHUNK)
    flip(first_volume(path), record.header.offset + HEADER_SIZE + record.header.head_length)
    with small(path, **OPTIONS) as store:
        store.put("wood", "k0", noise(300, 0))
        for number in range(20):
            store.put("wood", f"more{number}", noise(9000, number))
    monkeypatch.setattr(sys.modules["cordwood.engine.rebuild"], "_SLICE_RECORDS", 1)
    monkeypatch.setattr(rescan, "_BLOCK_RECORDS", 1)
    rebuild(path, map_size=MAP)
    with small(path) as store:
        assert store.get("wood", "k0").read() == noise(300, 0)
        assert store.get("wood", "more7").read() == noise(9000, 7)


def test_watermarks_that_rotted_beside_a_damaged_volume_cut_nothing(closed: Path) -> None:
    """Where a volume is damaged, links of the chain may be missing, and the clock alone tells what is new."""

    def back(txn: Txn) -> None:
        for volume in (2, 3):
            row = txn.volume(volume)
            assert row is not None
            txn.put_volume(volume, row._replace(state=VolumeState.ACTIVE, watermark=SUPERBLOCK_SIZE))

    change(closed, back)
    second = volume_paths(closed)[1]
    records = [each for file, each in records_of(closed) if file.id == 2]
    flip(second, records[3].header.offset + 9)
    before = {each.name: each.read_bytes() for each in volume_paths(closed)}
    with pytest.raises(errors.Corrupt, match="cordwood rebuild"):
        small(closed, **OPTIONS)
    assert {each.name: each.read_bytes() for each in volume_paths(closed)} == before
    rebuild(closed, map_size=MAP)
    with small(closed, **OPTIONS) as store:
        readable = 0
        for number in range(16):
            try:
                assert store.get("wood", f"k{number}").read() == noise(9000, number)
                readable += 1
            except errors.CordwoodError:
                pass
        assert readable >= 14


def test_a_manifest_that_is_too_short_or_too_long_is_corrupt() -> None:
    for data in (b"", b"\x01\0\0", Manifest.pack([]) + b"x", b"\x05" + bytes(7)):
        with pytest.raises(errors.Corrupt, match="manifest of"):
            Manifest(data)


def test_a_store_that_only_reads_starts_no_commits(closed: Path) -> None:
    with Store.open(closed, read_only=True, map_size=MAP) as store:
        store.start_commits()
        assert store.get("wood", "k1").read() == noise(9000, 1)
        assert os.path.exists(closed / "index" / "data.mdb")
