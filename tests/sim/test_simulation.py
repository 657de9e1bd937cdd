"""The store answers as the model does, whatever is done to it: random steps from seeds, and from Hypothesis.

Must not know: crashes and faults; test_power_cuts.py and test_faults.py make those.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.sim.crash import scratch, scratch_directory
from tests.sim.driver import wander
from tests.sim.rules import DRAWS, MAINTENANCE, OPTIONS, Step, World, draw, observe

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize("seed", range(6))
def test_random_steps_get_the_answers_of_the_model(seed: int) -> None:
    with scratch_directory() as top:
        wander(top / "store", seed, 1500).close()


@pytest.mark.long
@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize("seed", range(1000, 1010))
def test_a_million_random_steps_get_the_answers_of_the_model(seed: int) -> None:
    for number in range(100):
        with scratch_directory() as top:
            wander(top / "store", seed * 100 + number, 10_000).close()


WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"volume_size": 1 << 30, "chunk_size": 1 << 20, "inline_max": 64 << 10},
    {"chunk_size": 16384, "inline_max": 0},
    {"inline_max": 4096, "dedup": False},
    {"durability": "relaxed"},
)


@pytest.mark.parametrize("seed", range(2))
def test_sizes_and_modes_do_not_change_an_answer(seed: int) -> None:
    """Metamorphic: one run of steps, then the same steps with other settings, step by step."""
    with scratch_directory() as top:
        first = wander(top / "first", 100 + seed, 400, maintenance=0.0)
        steps, wanted = first.steps, observe(first.store)
        first.close()
        for number, options in enumerate(WAYS[1:]):
            world = World(top / str(number), **options)
            for step in steps:
                world.run(step)
            assert observe(world.store) == wanted
            world.close()


class Choices:
    """Hypothesis as the source of choices."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data

    def pick(self, options: Any) -> Any:
        return self._data.draw(st.sampled_from(options))

    def number(self, low: int, high: int) -> int:
        return self._data.draw(st.integers(low, high))


class Machine(RuleBasedStateMachine):
    """The rules of rules.py, driven by Hypothesis: slower than the driver, but it shrinks what it finds."""

    def __init__(self) -> None:
        super().__init__()
        self.top = scratch()
        self.world = World(self.top / "store")

    @initialize(versioning=st.sampled_from(("", "Enabled")))
    def begin(self, versioning: str) -> None:
        self.world.run(("create_bucket", "one", versioning))

    @rule(data=st.data(), name=st.sampled_from(sorted(DRAWS)))
    def step(self, data: st.DataObject, name: str) -> None:
        self.world.run(draw(Choices(data), self.world.model, name))

    @rule(data=st.data(), name=st.sampled_from(sorted(MAINTENANCE)))
    def maintain(self, data: st.DataObject, name: str) -> None:
        self.world.run((name, *MAINTENANCE[name](Choices(data))))

    @rule()
    def check(self) -> None:
        self.world.run(("check",))

    def teardown(self) -> None:
        try:
            self.world.run(("check",))
            self.world.run(("rebuild",))
            self.world.close()
        finally:
            shutil.rmtree(self.top)


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def test_two_processes_write_one_store_and_each_sees_what_the_other_did() -> None:
    """Steps go to this process and to another in turn; both have the store open all the time."""
    with scratch_directory() as top:
        script = wander(top / "script", 42, 250, maintenance=0.0)
        steps: list[Step] = [step for step in script.steps if step[0] != "rebuild"]
        wanted = observe(script.store)
        script.close()
        world = World(top / "store")
        with subprocess.Popen(
            [sys.executable, "-c", OTHER, str(top / "store")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        ) as other:
            assert other.stdin is not None and other.stdout is not None
            for number, step in enumerate(steps):
                if number % 2 and step[0] in ("put", "delete", "rename", "delete_many", "batch"):
                    before = world.model.copy()
                    wanted_answer, _ = Remote(world, other).outcomes(step)
                    if isinstance(wanted_answer, type):
                        world.model = before
                else:
                    world.run(step)
            other.stdin.close()
            assert other.wait(20) == 0
        assert observe(world.store) == wanted
        world.run(("rebuild",))
        assert observe(world.store) == wanted
        world.close()


class Remote:
    """Does a step in the other process, and in the model here."""

    def __init__(self, world: World, other: subprocess.Popen[str]) -> None:
        self.world = world
        self.other = other

    def outcomes(self, step: Step) -> tuple[Any, Any]:
        name, *arguments = step
        world = self.world
        version = None
        try:
            wanted = getattr(world, "do_" + name)(0, *arguments)
            version = world._version
        except Exception as error:
            wanted = type(error)
            version = world._version
        assert self.other.stdin is not None and self.other.stdout is not None
        self.other.stdin.write(repr((step, version)) + "\n")
        self.other.stdin.flush()
        given = self.other.stdout.readline().strip()
        said = wanted.__name__ if isinstance(wanted, type) else repr(wanted)
        assert given == said, f"{step}: the other process says {given}, not {said}"
        if not isinstance(wanted, type):
            world.learn_all()
        return wanted, given


OTHER = f"""
import sys, os
sys.path.insert(0, os.getcwd())
from cordwood.engine import Conditions, Store
from tests.sim.rules import World

class Blind(World):
    def _learn_ids(self, *_): pass

world = Blind.__new__(Blind)
world.store = Store.open(sys.argv[1], **{OPTIONS!r})
class Nothing:
    def set_id(self, *_): pass
world.model = Nothing()
for line in sys.stdin:
    step, version = eval(line)
    world._version = version
    try:
        print(repr(getattr(world, "do_" + step[0])(1, *step[1:])), flush=True)
    except Exception as error:
        print(type(error).__name__, flush=True)
world.store.close()
"""
