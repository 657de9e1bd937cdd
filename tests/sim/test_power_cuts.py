"""Power fails before every call that changes the disk: of short stories, of all stories of three steps, of recoveries.

Must not know: which calls the engine makes.
"""

from __future__ import annotations

import itertools
import logging
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.sim.campaign import Campaign
from tests.sim.crash import Crash, Recording, record, recover, scratch_directory, verify
from tests.sim.driver import cut_power
from tests.sim.faulty_fs import Directory, FaultyFileSystem, File, watching_index
from tests.sim.rules import OPTIONS, Step, World, observe
from tests.sim.test_faults import STORY


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


PRELUDE: tuple[Step, ...] = (
    ("create_bucket", "one", ""),
    ("put", "one", "d/old", 5000, 0),
    ("create_upload", "one", "up", 1),
    ("put_part", "one", 0, 1, 5000, 2),
)
ALPHABET: tuple[Step, ...] = (
    ("put", "one", "d/old", 100, 3),
    ("put", "one", "e/new", 9000, 0),
    ("delete", "one", "d/old", None),
    ("rename", "one", "d/", "e/f/"),
    ("copy", ("one", "d/old", None), "one", "copy", None),
    ("put_part", "one", 0, 1, 300, 4),
    ("complete", "one", 0, 9),
    ("abort", "one", 0),
    ("batch", "one", (("x/1", 5000, 5, None), ("d/old",), ("x/1", 5000, 6, None))),
    ("set_versioning", "one", "Enabled"),
    ("attrs", "one", "d/old", None, (("tags", "n=1"),), False),
    ("put", "one", "big", 70_000, 7),
    ("reopen",),
    ("rebuild",),
    ("compact",),
)


def three_steps(sequences: Sequence[tuple[Step, ...]], keeps: Sequence[str]) -> int:
    """Each sequence after the same prelude. Power cuts during the prelude itself are looked at once."""
    seen: set[bytes] = set()
    count = 0
    with scratch_directory() as top:
        world = World(top / "start")
        for step in PRELUDE:
            world.run(step)
        world.close()
        model = world.model
        for number, steps in enumerate(sequences):
            found = record(steps, start=top / "start", model=model)
            count += verify(found, number, keeps, seen)
    return count


def test_three_steps_of_any_kind_survive_a_power_cut_at_any_call() -> None:
    """A sample of all sequences here; each step stands in each place. All of them under `long`."""
    rng = random.Random(5)
    every = list(itertools.product(ALPHABET, repeat=3))
    assert three_steps(rng.sample(every, 24), ("none", "some")) > 200


@pytest.mark.long
@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize("first", range(len(ALPHABET)))
def test_all_sequences_of_three_steps_survive_a_power_cut_at_every_call(first: int) -> None:
    sequences = [(ALPHABET[first], *rest) for rest in itertools.product(ALPHABET, repeat=2)]
    assert three_steps(sequences, ("all", "none", "some", "some")) > 1000


def test_the_whole_story_survives_a_power_cut_at_every_call() -> None:
    assert verify(record(STORY), 1) > 100


@pytest.mark.parametrize("seed", range(4))
def test_random_steps_survive_a_power_cut_at_every_call(seed: int) -> None:
    cut_power(seed, 10, images=30)


@pytest.mark.long
@pytest.mark.timeout(12 * 3600)
def test_half_a_million_disks_after_power_cuts_hold_what_was_acknowledged(tmp_path: Path) -> None:
    progress = Campaign("crashes", tmp_path, 2_000_000).run(500_000)
    assert not progress.violations and progress.counts["images"] >= 500_000


@pytest.mark.parametrize("seed", range(3))
def test_what_was_not_synced_may_be_lost_in_relaxed_mode_but_only_from_the_end(seed: int) -> None:
    cut_power(seed, 10, images=25, durability="relaxed")


@pytest.mark.parametrize("index", ["newest", "older", "lost"])
def test_an_append_may_be_torn_at_any_byte(index: str, long_run: bool) -> None:
    """Beside the index of the last commit, or the one before (which recovery makes good first), or none."""
    steps: list[Step] = [
        ("create_bucket", "one", ""),
        ("put", "one", "old", 10, 0, None),
        ("batch", "one", (("new/1", 20, 1, None), ("old",), ("new/2", 300, 2, None))),
    ]
    found = record(steps)
    crash = next(each for each in reversed(found.crashes[:-2]) if each.before == "datasync")
    volumes = crash.image.root.live["volumes"]
    assert isinstance(volumes, Directory)
    (volume,) = volumes.live.values()
    assert isinstance(volume, File)
    (offset, data) = volume.pending[-1]
    assert offset is not None and isinstance(data, bytes)
    if index == "older":
        directory = crash.image.root.live["index"]
        assert isinstance(directory, Directory)
        file = directory.live["data.mdb"]
        assert isinstance(file, File) and len(file.states) > 1
        file.states = file.states[:1]
    for length in range(0, len(data) + 1, 1 if long_run else 24):
        volume.pending = (*volume.pending[:-1], (offset, data[:length]))
        with scratch_directory() as top:
            crash.image.write(top / "store", "all", random.Random(0))
            if index == "lost":
                shutil.rmtree(top / "store" / "index")
            recover(top / "store", found.states[2 : 3 + (length == len(data))], "all")


def crashed(steps: Sequence[Step], call: str, keep: str, seed: int, path: Path) -> list[dict[str, Any]]:
    """Writes the disk as a crash before the last call of a name left it; returns the states it may show."""
    found = record(steps)
    crash = next(each for each in reversed(found.crashes) if each.before == call)
    crash.image.write(path, keep, random.Random(seed))
    return [found.states[at] for at in crash.states if at < len(found.states)]


@pytest.mark.parametrize("call", ["datasync", "index committed", "write_all"])
@pytest.mark.parametrize("keep", ["all", "some"])
def test_a_recovery_may_itself_be_cut_off_at_any_call(call: str, keep: str) -> None:
    with scratch_directory() as top, watching_index():
        allowed = crashed(STORY[:6], call, keep, 1, top / "first")
        shutil.copytree(top / "first", top / "second")
        fs = FaultyFileSystem(top / "second", boot=b"boot-2")
        again = Recording(list(STORY[:6]))
        fs.on_call = lambda name: again.crashes.append(Crash(name, fs.image(), ()))
        world = World(top / "second", fs=fs)
        assert observe(world.store) in allowed
        world.close()
        for number, crash in enumerate(again.crashes):
            for variant in range(3):
                target = top / f"{number}-{variant}"
                crash.image.write(target, "some", random.Random(variant))
                recover(target, allowed, "some")
                shutil.rmtree(target)


def test_a_store_that_is_only_being_made_is_made_by_the_next_open() -> None:
    found = record([])
    for seed in range(3):
        verify(found, seed, ("none", "some", "some", "some", "some"))


def test_an_index_that_is_lost_comes_back_from_the_volumes() -> None:
    with scratch_directory() as top:
        world = World(top / "store", **OPTIONS)
        for step in STORY:
            world.run(step)
        world.close()
        shutil.rmtree(top / "store" / "index")
        recover(top / "store", [world.model.observe()], "all")
