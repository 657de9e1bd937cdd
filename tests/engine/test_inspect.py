"""What dump and stat say agrees with what was put in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cordwood.engine import Outbox, Store, dump_volume, errors, measure_store
from tests.engine.history import SIZES
from tests.engine.support import flip, noise, records_of, volume_paths

MAP = 1 << 28


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with Store.open(tmp_path, **SIZES) as store:
        store.create_bucket("bucket", versioning="Enabled")
        store.put("bucket", "a/large", noise(20_000))
        store.copy("bucket", "a/large", "bucket", "a/copy")
        store.put("bucket", "a/small", b"small")
        store.put("bucket", "a/small", b"smaller")
        store.delete("bucket", "a/large")
        store.create_upload("bucket", "unfinished")
    return tmp_path


def test_a_dump_shows_every_record_as_json(path: Path) -> None:
    shown = [json.loads(json.dumps(each)) for each in dump_volume(volume_paths(path)[0], chunks=True)]
    assert shown[0]["type"] == "SUPERBLOCK"
    assert [each["offset"] for each in shown[1:]] == [record.header.offset for _, record in records_of(path)]
    large = next(each for each in shown if each.get("head", {}).get("name") == "large")
    assert large["head"]["size"] == 20_000
    assert [each["length"] for each in large["chunks"]] == [4096] * 4 + [20_000 - 4 * 4096]


def test_a_dump_goes_on_behind_damage(path: Path) -> None:
    records = records_of(path)
    flip(volume_paths(path)[0], records[3][1].header.offset)
    shown = list(dump_volume(volume_paths(path)[0]))
    assert len(shown) == len(records) + 1
    assert [each["type"] for each in shown].count("DAMAGE") == 1


def test_a_file_that_is_no_volume_is_not_dumped(tmp_path: Path) -> None:
    (tmp_path / "0000000001.vol").write_bytes(bytes(10_000))
    with pytest.raises(errors.Corrupt, match="not a Cordwood volume"):
        list(dump_volume(tmp_path / "0000000001.vol"))


def test_the_figures_of_a_store_are_those_of_what_was_put_in(path: Path) -> None:
    figures = measure_store(path, map_size=MAP)
    assert (figures.buckets, figures.objects, figures.noncurrent_versions) == (1, 2, 2)
    assert (figures.delete_markers, figures.directories, figures.uploads) == (1, 1, 1)
    assert figures.object_bytes == 2 * 20_000 + 5 + 7
    assert figures.chunk_bytes == 20_000 and figures.dedup_ratio == 2
    assert figures.volume_bytes == sum(each.stat().st_size for each in volume_paths(path))
    assert 20_000 < figures.live_bytes < figures.volume_bytes
    assert [each.state for each in figures.volumes] == ["active"]
    assert figures.messages == 0
    assert figures.index_bytes_per_object > 0


def test_messages_that_wait_are_counted_apart_from_objects(path: Path) -> None:
    before = measure_store(path, map_size=MAP)
    with Store.open(path, **SIZES) as store:
        told = Outbox(store).announcing(lambda _result, _clock: [("a", b"first"), ("b", b"second")])
        told.put("bucket", "told", b"12345")
    after = measure_store(path, map_size=MAP)
    assert (after.messages, after.buckets, after.objects) == (2, before.buckets, before.objects + 1)
    assert (after.object_bytes, after.directories) == (before.object_bytes + 5, before.directories)
