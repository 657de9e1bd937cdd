"""What is deleted gives its space back: half of a store of everything is deleted, then it is measured.

Must not know: which volumes compaction chooses.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cordwood.engine import CompactionPolicy, Store, check_store, compact, measure_store

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def bytes_on_disk(path: Path) -> int:
    """What the directory takes: blocks, so that a sparse file is not counted for more than it is."""
    return sum(each.stat().st_blocks * 512 for each in path.rglob("*") if each.is_file())


@dataclass
class Pile:
    """A store full of objects of all kinds. `pieces`: for each key the contents it is made of, by their seed."""

    store: Store
    rng: random.Random
    pieces: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    seed: int = 0

    def fresh(self, size: int) -> tuple[int, int]:
        self.seed += 1
        return self.seed, size

    @staticmethod
    def content(piece: tuple[int, int]) -> bytes:
        return random.Random(piece[0]).randbytes(piece[1])

    def put(self, kind: str, piece: tuple[int, int]) -> str:
        key = f"{kind}/{len(self.pieces)}"
        self.store.put("wood", key, self.content(piece))
        self.pieces[key] = [piece]
        return key

    def small(self) -> None:
        self.put("small", self.fresh(self.rng.choice((1 * KIB, 16 * KIB, 40 * KIB, 64 * KIB))))

    def large(self) -> None:
        self.put("large", self.fresh(self.rng.randrange(300 * KIB, 6 * MIB)))

    def multipart(self) -> None:
        key = f"multipart/{len(self.pieces)}"
        upload = self.store.create_upload("wood", key).upload_id
        pieces = [self.fresh(5 * MIB), self.fresh(5 * MIB), self.fresh(self.rng.randrange(1, 3 * MIB))]
        parts = []
        for number, piece in enumerate(pieces, 1):
            writer = self.store.part_writer("wood", key, upload, number)
            writer.write(self.content(piece))
            parts.append((number, writer.commit().etag))
        self.store.complete_upload("wood", key, upload, parts)
        self.pieces[key] = pieces

    def copied(self) -> None:
        source = self.rng.choice(list(self.pieces))
        key = f"copied/{len(self.pieces)}"
        self.store.copy("wood", source, "wood", key)
        self.pieces[key] = self.pieces[source]

    def deduplicated(self) -> None:
        source = self.rng.choice([key for key in self.pieces if key.startswith("large/")])
        self.put("again", self.pieces[source][0])

    def unique_bytes(self) -> int:
        return sum(size for _, size in {piece for pieces in self.pieces.values() for piece in pieces})

    def fill(self, total_bytes: int) -> None:
        self.large()
        while self.unique_bytes() < total_bytes:
            for _ in range(20):
                self.small()
            for _ in range(4):
                self.large()
            self.multipart()
            self.copied()
            self.deduplicated()

    def delete_half(self) -> None:
        for key in self.rng.sample(sorted(self.pieces), len(self.pieces) // 2):
            self.store.delete("wood", key)
            del self.pieces[key]


def space_comes_back(path: Path, total_bytes: int, volume_size: int) -> str:
    """Returns the figures in a sentence."""
    started_s = time.monotonic()
    with Store.open(path, volume_size=volume_size) as store:
        store.create_bucket("wood")
        pile = Pile(store, random.Random(1))
        pile.fill(total_bytes)
        full = bytes_on_disk(path)
        pile.delete_half()
    filled_s = time.monotonic() - started_s
    report = compact(path, CompactionPolicy(full=True, grace_s=0, volume_size=volume_size))
    assert not report.lost and report.is_complete
    left = bytes_on_disk(path)
    figures = measure_store(path)
    said = (
        f"{full / MIB:,.0f} MiB before, {left / MIB:,.1f} MiB after; live records {figures.live_bytes / MIB:,.1f} MiB, "
        f"different contents {pile.unique_bytes() / MIB:,.1f} MiB; index {figures.index_file_bytes / MIB:.1f} MiB; "
        f"filled in {filled_s:.0f} s, compacted in {report.seconds:.0f} s"
    )
    assert left <= 1.05 * figures.live_bytes, said
    assert figures.live_bytes <= 1.05 * pile.unique_bytes(), said
    with Store.open(path) as store:
        for key, pieces in pile.pieces.items():
            with store.get("wood", key) as reader:
                assert reader.read() == b"".join(map(pile.content, pieces)), key
        assert len(store.list("wood", max_keys=1 << 20).objects) == len(pile.pieces)
    problems = check_store(path).problems
    assert not problems, problems[:3]
    return said


def test_after_deleting_half_of_a_small_store_its_directory_is_within_5_percent_of_what_lives(
    tmp_path: Path,
) -> None:
    space_comes_back(tmp_path / "store", 40 * MIB, 4 * MIB)


@pytest.mark.long
@pytest.mark.timeout(2 * 3600)
def test_after_deleting_half_of_5_gib_the_directory_is_within_5_percent_of_what_lives(tmp_path: Path) -> None:
    print(space_comes_back(tmp_path / "store", 5 * GIB, GIB))
