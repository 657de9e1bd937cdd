"""The store answers as the model does, whatever is done to it: random steps from seeds, and from Hypothesis.

Must not know: crashes and faults; test_power_cuts.py and test_faults.py make those.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.sim.campaign import Campaign
from tests.sim.crash import scratch, scratch_directory
from tests.sim.draws import DRAWS, MAINTENANCE, draw
from tests.sim.driver import WAYS, replay, wander
from tests.sim.rules import World, observe


@pytest.mark.parametrize("seed", range(6))
def test_random_steps_get_the_answers_of_the_model(seed: int) -> None:
    with scratch_directory() as top:
        wander(top / "store", seed, 1500).close()


@pytest.mark.long
@pytest.mark.timeout(12 * 3600)
def test_ten_million_random_steps_get_the_answers_of_the_model(tmp_path: Path) -> None:
    progress = Campaign("answers", tmp_path, 1_000_000).run(10_000_000)
    assert not progress.violations and progress.counts["steps"] >= 10_000_000


@pytest.mark.parametrize("seed", range(2))
def test_sizes_modes_processes_and_the_time_of_maintenance_do_not_change_an_answer(seed: int) -> None:
    """Metamorphic: one run of steps, then the same steps in other circumstances, each answer compared."""
    with scratch_directory() as top:
        first = wander(top / "first", 100 + seed, 400, maintenance=0.0)
        steps, wanted = first.steps, observe(first.store)
        first.close()
        for number, options in enumerate(WAYS):
            assert replay(top / str(number), steps, number, maintenance=0.01, **options) == wanted


class Choices:
    """Hypothesis as the source of choices."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data

    def pick(self, options: Any) -> Any:
        return self._data.draw(st.sampled_from(options))

    def number(self, low: int, high: int) -> int:
        return self._data.draw(st.integers(low, high))


class Machine(RuleBasedStateMachine):
    """The rules of rules.py, drawn by Hypothesis: slower than the driver, but it shrinks what it finds."""

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


@pytest.mark.parametrize("seed", range(2))
def test_two_processes_give_the_answers_of_one(seed: int) -> None:
    """Steps are done here and in another process in turn; both have the store open all the time."""
    with scratch_directory() as top:
        wander(top / "store", 300 + seed, 500, elsewhere=0.5).close()
