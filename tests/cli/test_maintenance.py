"""The operator's commands, as a person or a script meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cordwood.engine import Store
from tests.cli.harness import Person
from tests.engine.support import noise


@pytest.fixture
def operator(tmp_path: Path) -> Person:
    return Person(tmp_path / "home", {}, tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    with Store.open(path, volume_size=1 << 20, chunk_size=1 << 16) as opened:
        opened.create_bucket("bucket")
        for number in range(30):
            opened.put("bucket", f"d/k{number}", noise(100_000, number))
        for number in range(0, 30, 2):
            opened.delete("bucket", f"d/k{number}")
    return path


def volumes(store: Path) -> list[Path]:
    return sorted((store / "volumes").iterdir())


def last_json(text: str) -> dict[str, object]:
    fields: dict[str, object] = json.loads(text.strip().splitlines()[-1])
    return fields


def test_compact_gives_space_back_and_says_how_much(operator: Person, store: Path) -> None:
    assert "would be compacted" in operator.run("compact", str(store), "--dry-run").out
    report = last_json(operator.run("compact", str(store), "--json").out)
    assert int(str(report["bytes_reclaimed"])) > 1_400_000 and report["lost"] == []
    assert "0 of" in operator.run("compact", str(store)).out
    assert "clean" in operator.run("fsck", "--data", str(store)).out


def test_fsck_ends_as_fsck_8_has_it(operator: Person, store: Path, tmp_path: Path) -> None:
    assert "clean" in operator.run("fsck", str(store)).out
    (store / "index" / "data.mdb").unlink()
    assert "is missing" in operator.run("fsck", str(store), code=4).out
    assert "all repaired" in operator.run("fsck", "--repair", str(store), code=1).out
    operator.run("fsck", str(store))
    with volumes(store)[-1].open("r+b") as file:
        file.seek(10_000)
        file.write(b"rot")
    assert last_json(operator.run("fsck", "--data", "--json", str(store), code=4).out)["uncorrected"] == 1
    assert "holds no Cordwood store" in operator.run("fsck", str(tmp_path / "nothing"), code=8).err


def test_rebuild_says_how_many_records_it_read(operator: Person, store: Path) -> None:
    assert "records/s" in operator.run("rebuild", str(store)).out
    assert last_json(operator.run("rebuild", str(store), "--json").out)["volumes"] == len(volumes(store))


def test_scrub_finds_what_has_rotted_and_its_status_remembers(operator: Person, store: Path) -> None:
    assert "was never scrubbed" in operator.run("scrub", str(store), "--status", code=1).err
    assert "nothing bad was found" in operator.run("scrub", str(store)).out
    operator.run("compact", str(store))
    with volumes(store)[0].open("r+b") as file:
        file.seek(10_000)
        file.write(b"rot")
    assert "bucket/d/k" in operator.run("scrub", str(store), code=1).out
    status = last_json(operator.run("scrub", str(store), "--status", "--json", code=1).out)
    assert isinstance(status["bad"], list) and len(status["bad"]) == 1


def test_dump_prints_lines_for_a_person_and_for_a_program(operator: Person, store: Path) -> None:
    volume = str(volumes(store)[0])
    assert "name=k1 " in operator.run("dump", volume).out
    types = {json.loads(line)["type"] for line in operator.run("dump", volume, "--json").out.splitlines()}
    assert {"SUPERBLOCK", "CHUNK", "OBJECT", "BUCKET"} <= types


def test_stat_of_a_directory_shows_the_shape_of_the_store(operator: Person, store: Path) -> None:
    assert "15 (1.4 MiB with all versions)" in operator.run("stat", str(store)).out
    figures = last_json(operator.run("stat", str(store), "--json").out)
    assert figures["objects"] == 15 and figures["dedup_ratio"] == 1


def test_a_store_in_use_is_left_alone_by_what_needs_it_alone(operator: Person, store: Path) -> None:
    with Store.open(store):
        for command, code in (("compact", 1), ("rebuild", 1), ("fsck", 8)):
            assert "is open elsewhere" in operator.run(command, str(store), code=code).err
        assert "objects" in operator.run("stat", str(store)).out
        assert "nothing bad" in operator.run("scrub", str(store)).out
