"""Every kind of record, rotten: it is named by whoever finds it, kept where it is, and nothing else is lost with it.

And records that are whole by their checksums and wrong all the same, as only a bug or a forger writes them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from cordwood.engine import CompactionPolicy, Maintenance, Store, check_store, compact, errors, measure_store
from cordwood.engine.format import (
    HEADER_SIZE,
    BucketHead,
    Flag,
    Layout,
    Manifest,
    ObjectHead,
    RecordType,
    Superblock,
    encode_chunk_head,
    encode_head,
    header_seed,
    pack_record,
)
from cordwood.engine.rows import (
    AttrsRow,
    BucketRow,
    ChunkRow,
    DirectoryRow,
    ObjectRow,
    PartRow,
    UploadRow,
    VolumeState,
    volume_key,
)
from tests.engine.support import first_volume, flip, noise, records_of, volume_paths

SIZES = {"volume_size": 1 << 17, "chunk_size": 4096, "inline_max": 256, "map_size": 1 << 28}
FULL = CompactionPolicy(full=True, grace_s=0, volume_size=1 << 17)
# What is in the first volume, and what each kind of it is called when it is damaged.
NAMES = {
    RecordType.BUCKET: "bucket 'wood'",
    RecordType.DIRECTORY: "directory",
    RecordType.OBJECT: "object 'd/",
    RecordType.CHUNK: "chunk ",
    RecordType.UPLOAD: "upload ",
    RecordType.PART: "part ",
    RecordType.ATTRS: "attributes of ",
}


def opened(path: Path) -> Store:
    return Store.open(path, **SIZES)  # type: ignore[arg-type]  # one dictionary of four numbers


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose first, sealed volume has one record of each kind that lives; copy it before touching it."""
    path = tmp_path_factory.mktemp("origin") / "store"
    with opened(path) as store:
        store.create_bucket("wood", versioning="Enabled")
        store.put("wood", "d/versions", noise(5000, 1))
        store.put("wood", "d/versions", b"inline")
        store.put("wood", "d/marked", b"inline, too")
        store.update_attrs("wood", "d/marked", {"n": 1})
        upload = store.create_upload("wood", "parted").upload_id
        writer = store.part_writer("wood", "parted", upload, 1)
        writer.write(noise(6000, 2))
        writer.commit()
        for number in range(40):
            store.put("wood", f"fill/{number}", noise(9000, 10 + number))
        for number in range(0, 40, 2):
            found = store.list_versions("wood", prefix=f"fill/{number}").entries[0]
            store.delete("wood", found.key, version_id=found.version_id)
    return path


@pytest.fixture
def path(origin: Path, tmp_path: Path) -> Path:
    shutil.copytree(origin, tmp_path / "store")
    return tmp_path / "store"


def place_of(path: Path, type_: RecordType, part: str) -> int:
    """The offset in the first volume of a bit in a record of that kind that lives."""
    for file, record in records_of(path):
        header = record.header
        if file.id == 1 and header.type == type_:
            if part == "head":
                return header.offset + HEADER_SIZE + header.head_length // 2
            if part == "header":
                return header.offset + 9
            if header.body_length:
                return header.offset + HEADER_SIZE + header.head_length
    raise LookupError(f"{type_.name} has no {part}")


def rest_is_whole(path: Path, name: str) -> None:
    """What the damage does not concern reads as before."""
    with opened(path) as store:
        if name == "bucket 'wood'" or name == "directory":
            return  # the index still knows it
        for number in range(1, 40, 2):
            key = f"fill/{number}"
            assert store.get("wood", key).read() == noise(9000, 10 + number)


@pytest.mark.parametrize("part", ["header", "head", "body"])
@pytest.mark.parametrize("type_", NAMES, ids=[type_.name for type_ in NAMES])
def test_a_rotten_record_is_named_by_scrub_and_by_compaction_and_keeps_its_volume(
    path: Path, type_: RecordType, part: str
) -> None:
    try:
        flip(first_volume(path), place_of(path, type_, part))
    except LookupError:
        assert part == "body" and type_ not in (RecordType.OBJECT, RecordType.CHUNK, RecordType.PART)
        return
    name = NAMES[type_]
    with Maintenance.open(path, volume_size=SIZES["volume_size"]) as store:
        (bad,) = store.scrubber().run_cycle().bad
        assert bad.volume == 1 and name in bad.name, bad
    report = compact(path, FULL, map_size=SIZES["map_size"])
    assert 1 in report.quarantined and 1 not in report.removed
    assert any(name in text for text in report.lost), report.lost
    assert first_volume(path).exists()
    rest_is_whole(path, name)
    states = {each.volume: each.state for each in measure_store(path, map_size=SIZES["map_size"]).volumes}
    assert states[1] == "quarantined"


def test_a_volume_that_cannot_be_opened_is_named_with_all_that_is_in_it(path: Path) -> None:
    flip(first_volume(path), 0)
    with Maintenance.open(path, volume_size=SIZES["volume_size"]) as store:
        (bad,) = store.scrubber().run_cycle().bad
        assert bad.volume == 1 and bad.offset == 0
        assert "bucket 'wood'" in bad.name or "object" in bad.name
        report = store.compact(FULL)
        assert 1 in report.kept and 1 not in report.removed
    rest = {name.name for name in volume_paths(path)}
    assert first_volume(path).name in rest


def test_what_read_badly_once_and_then_well_is_no_finding(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Maintenance.open(path, volume_size=SIZES["volume_size"]) as store:
        scrubber = store.scrubber()
        read, turns = scrubber._core.fs.read, iter(range(1000))

        def shaky(fd: int, length: int, offset: int) -> bytes:
            data = read(fd, length, offset)
            return bytes(len(data)) if length > 8192 and next(turns) == 0 else data

        monkeypatch.setattr(scrubber._core.fs, "read", shaky)
        assert scrubber.run_cycle().bad == []


# --- whole by their checksums, and wrong --------------------------------------------------------------------------


def forge(path: Path, *records: tuple[RecordType, int, bytes, bytes, int]) -> None:
    """Appends (type, flags, head, body, clock) behind the SEAL of the first volume, as who knows its salt can."""
    volume = first_volume(path)
    block = Superblock.unpack(volume.read_bytes()[:4096], volume.name)
    with volume.open("ab") as file:
        for type_, flags, head, body, clock in records:
            offset = file.tell()
            seed = header_seed(block.salt)
            file.write(b"".join(pack_record(type_, flags, offset, clock, offset, 7, head, body, seed)))


def problems_of(path: Path) -> str:
    report = check_store(path, data=True, map_size=SIZES["map_size"])
    return "\n".join(f"{problem.where} {problem.text}" for problem in report.problems)


def object_head(size: int, layout: Layout) -> bytes:
    head = ObjectHead(
        bucket=1, directory=1, name=b"forged", null=True, layout=layout, size=size, md5=bytes(16)
    )
    return encode_head(head)


def test_forged_records_behind_a_seal_are_found_one_by_one(path: Path) -> None:
    payload = noise(5000, 99)
    wrong_digest = encode_chunk_head(blake3(b"other").digest(), payload)[0]
    bucket = encode_head(BucketHead(1, "forged", "", False))
    forge(
        path,
        (RecordType.CHUNK, int(Flag.DIGEST), wrong_digest, payload, 1 << 60),
        (RecordType.BUCKET, 0, bucket, b"", 1 << 60),
        (RecordType.BUCKET, 0, bucket, b"", 1 << 59),
        (RecordType.OBJECT, 0, object_head(7, Layout.INLINE), b"not seven", (1 << 60) + 1),
        (RecordType.OBJECT, 0, object_head(7, Layout.CHUNKED), Manifest.pack([]), (1 << 60) + 2),
        (RecordType.DELETE, 0, b"\xc1 is no head", b"", (1 << 60) + 3),
    )
    said = problems_of(path)
    for text in (
        "a record stands behind the SEAL",
        "do not have the digest that it is named by",
        "its clock is not greater than that of the record before",
        "its body is 9 bytes, its head says 7",
        "its chunks are 0 bytes, its head says 7",
    ):
        assert text in said, said
    with opened(path) as store:
        with pytest.raises(errors.BucketNotFound):
            store.head_bucket("forged")
        assert store.get("wood", "fill/1").read() == noise(9000, 11)


def test_a_forged_head_does_not_stop_a_compaction(path: Path) -> None:
    forge(path, (RecordType.DELETE, 0, b"\xc1 is no head", b"", 1 << 60))
    with opened(path) as store:
        for entry in store.list_versions("wood", prefix="fill/").entries:
            store.delete("wood", entry.key, version_id=entry.version_id)
    compact(path, FULL, map_size=SIZES["map_size"])
    with opened(path) as store:
        assert store.get("wood", "d/marked").read() == b"inline, too"
        assert store.head("wood", "d/marked").attrs == {"n": 1}


def test_a_full_report_ends_in_a_count(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cordwood.engine.check._PROBLEMS_MAX", 1)
    for place in [place_of(path, type_, "head") for type_ in (RecordType.BUCKET, RecordType.PART)]:
        flip(first_volume(path), place)
    report = check_store(path, data=True, map_size=SIZES["map_size"])
    assert len(report.problems) == 1 and report.more_problems >= 1
    assert report.uncorrected == 1 + report.more_problems


def test_volumes_of_two_stores_without_format_need_a_backup(path: Path, tmp_path: Path) -> None:
    with Store.open(tmp_path / "other") as other:
        other.create_bucket("wood")
    shutil.copy(first_volume(tmp_path / "other"), path / "volumes" / "0000000077.vol")
    (path / "FORMAT").write_text("{")
    report = check_store(path, repair=True, map_size=SIZES["map_size"])
    assert "must come from a backup" in report.problems[0].text and report.uncorrected


def test_states_of_volumes_between_two_steps_of_a_compaction_are_noted_and_no_problem(path: Path) -> None:
    """FILLING and RETIRED, as a compaction that was killed leaves them."""
    with opened(path) as store:
        core = store._core
        fresh = core.volumes.create(1 << 60)
        fresh.close()
        txn = core.index.begin()
        row = txn.volume(1)
        assert row is not None
        txn.put_volume(fresh.id, row._replace(state=VolumeState.FILLING, live_bytes=0, watermark=4096))
        core.index.commit(txn)
    notes = check_store(path, map_size=SIZES["map_size"]).notes
    assert any("was being written by a compaction" in note for note in notes)


# --- rows of the index --------------------------------------------------------------------------------------------

TABLES = ("buckets", "directories", "entries", "versions", "chunks", "uploads", "parts", "attrs", "volumes")


def tamper(path: Path, table: str, change: Callable[[bytes], bytes | None]) -> None:
    """Replaces, or takes away, the last row of a table."""
    with opened(path) as store:
        index = store._core.index
        txn = index.begin()
        where = getattr(txn.tables, table)
        rows = list(txn.items(b"", where))
        if table == "chunks":  # without references a row may be there or not
            rows = [each for each in rows if ChunkRow.unpack(each[1]).references]
        key, row = rows[0] if table == "volumes" else rows[-1]
        changed = change(bytes(row))
        if changed is None:
            txn.delete(key, where)
        else:
            txn.put(key, changed, where)
        index.commit(txn)


def moved(table: str) -> Callable[[bytes], bytes | None]:
    """A row that points 8 bytes further than its record is."""

    def change(packed: bytes) -> bytes:
        if table == "chunks":
            chunk = ChunkRow.unpack(packed)
            return chunk._replace(offset=chunk.offset + 8).pack()
        if table in ("entries", "versions"):
            row = ObjectRow.unpack(packed)
            return row._replace(offset=row.offset + 8).pack()
        kinds: dict[str, Any] = {
            "buckets": BucketRow,
            "directories": DirectoryRow,
            "uploads": UploadRow,
            "parts": PartRow,
            "attrs": AttrsRow,
        }
        found = kinds[table].unpack(packed)
        place = found.place
        changed: bytes = found._replace(place=place._replace(offset=place.offset + 8)).pack()
        return changed

    return change


def is_mended(path: Path) -> None:
    before = check_store(path, map_size=SIZES["map_size"])
    assert before.problems and {problem.kind for problem in before.problems} <= {"index"}, before.problems
    after = check_store(path, repair=True, map_size=SIZES["map_size"])
    assert not after.uncorrected, after.problems
    assert check_store(path, data=True, map_size=SIZES["map_size"]).is_clean
    rest_is_whole(path, "")


@pytest.mark.parametrize("table", TABLES)
def test_a_row_that_makes_no_sense_is_found_and_mended(path: Path, table: str) -> None:
    tamper(path, table, lambda row: b"\x01")
    is_mended(path)


@pytest.mark.parametrize("table", TABLES)
def test_a_row_that_is_gone_is_found_and_mended(path: Path, table: str) -> None:
    tamper(path, table, lambda row: None)
    is_mended(path)


@pytest.mark.parametrize("table", [table for table in TABLES if table != "volumes"])
def test_a_row_that_points_beside_its_record_is_found_and_mended(path: Path, table: str) -> None:
    tamper(path, table, moved(table))
    is_mended(path)


def test_an_index_of_another_store_with_another_clock_is_found_and_mended(path: Path) -> None:
    with opened(path) as store:
        txn = store._core.index.begin()
        txn.put_store(bytes(16))
        txn.put_clock(1)
        store._core.index.commit(txn)
    said = problems_of(path)
    assert "the index belongs to another store" in said and "clock is behind the records" in said
    is_mended(path)


@pytest.mark.parametrize("back", ["to its beginning", "by one batch", "to nothing"])
@pytest.mark.parametrize("kind", ["small", "large"])
def test_a_watermark_that_rotted_costs_no_acknowledged_byte(path: Path, back: str, kind: str) -> None:
    """Recovery cuts what is behind the watermark and was overtaken; a wrong index must not make it cut more."""
    with opened(path) as store:
        for number in range(3):
            store.put(
                "wood", f"late/{number}", b"%d" % number if kind == "small" else noise(5000, 200 + number)
            )
        core = store._core
        with core.index.read() as txn:
            volume, row = max(txn.volumes().items())
        before = row.watermark
        store.put("wood", "last", b"last" if kind == "small" else noise(5000, 300))
    with opened(path) as store:
        txn = store._core.index.begin()
        now = txn.volume(volume)
        assert now is not None and now.state == VolumeState.ACTIVE and now.watermark > before > 4096
        if back == "to nothing":
            txn.delete(volume_key(volume), txn.tables.volumes)
        else:
            watermark = 4096 if back == "to its beginning" else before
            txn.put_volume(volume, now._replace(watermark=watermark))
        store._core.index.commit(txn)
    volumes = {each.name: each.read_bytes() for each in volume_paths(path)}
    with pytest.raises(errors.Corrupt, match="cordwood rebuild"):
        opened(path)
    assert {each.name: each.read_bytes() for each in volume_paths(path)} == volumes
    assert not check_store(path, repair=True, map_size=SIZES["map_size"]).uncorrected
    with opened(path) as store:
        last = b"last" if kind == "small" else noise(5000, 300)
        assert store.get("wood", "last").read() == last
        assert store.get("wood", "late/1").read() == (b"1" if kind == "small" else noise(5000, 201))
    rest_is_whole(path, "")
