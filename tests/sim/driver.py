"""The seeded random driver: many steps in little time, the same again from the same seed.

    python -m tests.sim --seed 7 --steps 100000              # answers compared with the model's
    python -m tests.sim --seed 7 --crashes --runs 20 --steps 12   # power cuts at every call

Must not know: how a step is done.

Invariant: a failure prints the seed and the steps that lead to it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.sim.crash import record, scratch_directory, verify
from tests.sim.draws import RandomChoice, draw, draw_bucket, draw_maintenance
from tests.sim.rules import Step, World, observe
from tests.sim.second import Pair

# Settings that must not change an answer.
WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"volume_size": 1 << 30, "chunk_size": 1 << 20, "inline_max": 64 << 10},
    {"chunk_size": 16384, "inline_max": 0, "head_cache_size": 1 << 15},
    {"inline_max": 4096, "dedup": False, "head_cache_size": 0},
    {"durability": "relaxed"},
)
READS = ("get", "list", "list_versions")


def wander(
    path: Path,
    seed: int,
    steps: int,
    *,
    maintenance: float = 0.01,
    elsewhere: float = 0.0,
    **options: Any,
) -> World:
    """Takes random steps in a new world, and checks all of it at the end. The world is left open.

    `maintenance` is the share of steps that are no client's, `elsewhere` the share of the others that a second process
    does.
    """
    rng = random.Random(seed)
    choice = RandomChoice(rng)
    may_lock = rng.random() < 0.4  # what is locked for good never goes: most worlds would only grow
    world = World(path, **options)
    pair = Pair(world)
    try:
        world.run(("create_bucket", "one", rng.choice(("", "Enabled"))))
        for _ in range(steps):
            if rng.random() < maintenance:
                pair.run(draw_maintenance(choice), elsewhere=False)
                continue
            step = draw(choice, world.model)
            while locks(step) and not may_lock:
                step = draw(choice, world.model)
            pair.run(step, elsewhere=elsewhere > 0 and rng.random() < elsewhere)
        world.run(("check",))
        pair.run(("rebuild",), elsewhere=False)
        world.run(("check",))
    except BaseException as error:
        error.add_note(f"seed {seed}, {len(world.steps)} steps, the last {world.steps[-3:]!r}")
        world.close()
        raise
    finally:
        pair.stop()
    return world


def locks(step: Step) -> bool:
    """Whether a step gives a bucket object lock."""
    return (step[0] == "set_lock" and step[2] is not None) or (step[0] == "create_bucket" and len(step) > 3)


def replay(
    path: Path, steps: Sequence[Step], seed: int, *, maintenance: float, **options: Any
) -> dict[str, Any]:
    """Takes known steps in a new world, with maintenance at other times and half of them in a second process.

    Returns what a client sees at the end.
    """
    rng = random.Random(seed)
    world = World(path, **options)
    pair = Pair(world)
    try:
        for step in steps:
            pair.run(step, elsewhere=rng.random() < 0.5)
            if rng.random() < maintenance:
                pair.run(draw_maintenance(RandomChoice(rng), sizes=False), elsewhere=False)
        return observe(world.store)
    finally:
        pair.stop()
        world.close()


def script(seed: int, steps: int) -> list[Step]:
    """Random steps that change something, drawn where they mean something."""
    with scratch_directory() as top:
        rng = random.Random(seed)
        choice = RandomChoice(rng)
        world = World(top / "store")
        world.run(("create_bucket", "one", *draw_bucket(choice)))
        while len(world.steps) < steps:
            step = draw_maintenance(choice) if rng.random() < 0.1 else draw(choice, world.model)
            if step[0] not in READS:
                world.run(step)
        world.close()
        return world.steps


def cut_power(seed: int, steps: int, *, images: int | None = None, **options: Any) -> int:
    """Runs a script and recovers from what a power cut at each call would leave (or at `images` of them)."""
    try:
        found = record(script(seed, steps), **options)
        if images is not None and len(found.crashes) > images:
            found.crashes = random.Random(seed).sample(found.crashes, images)
        return verify(found, seed)
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise
