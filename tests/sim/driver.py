"""The seeded random driver: many steps in little time, the same again from the same seed.

    python -m tests.sim --seed 7 --steps 100000              # answers compared with the model's
    python -m tests.sim --seed 7 --crashes --runs 20 --steps 12   # power cuts at every call

Must not know: how a step is done.

Invariant: a failure prints the seed and the steps that lead to it.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tests.sim.crash import record, scratch_directory, verify
from tests.sim.rules import RandomChoice, Step, World, draw, draw_maintenance

READS = ("get", "list", "list_versions")


def wander(path: Path, seed: int, steps: int, *, maintenance: float = 0.01, **options: Any) -> World:
    """Takes random steps in a new world, and checks all of it at the end. The world is left open."""
    rng = random.Random(seed)
    choice = RandomChoice(rng)
    world = World(path, **options)
    try:
        world.run(("create_bucket", "one", rng.choice(("", "Enabled"))))
        for _ in range(steps):
            world.run(draw_maintenance(choice) if rng.random() < maintenance else draw(choice, world.model))
        world.run(("check",))
        world.run(("rebuild",))
        world.run(("check",))
    except BaseException as error:
        error.add_note(f"seed {seed}, {len(world.steps)} steps, the last {world.steps[-3:]!r}")
        world.close()
        raise
    return world


def script(seed: int, steps: int) -> list[Step]:
    """Random steps that change something, drawn where they mean something."""
    with scratch_directory() as top:
        rng = random.Random(seed)
        choice = RandomChoice(rng)
        world = World(top / "store")
        world.run(("create_bucket", "one", rng.choice(("", "Enabled"))))
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
