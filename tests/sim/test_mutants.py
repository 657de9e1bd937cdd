"""The list of deliberate bugs follows the engine: each one still fits. `python -m tests.sim.mutants` applies them.

Must not know: what the bugs are.
"""

from __future__ import annotations

import pytest

from tests.sim.mutants import MUTANTS, ROOT, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_a_deliberate_bug_still_has_its_place_in_the_engine(mutant: Mutant) -> None:
    for file, old, new in mutant.changes:
        source = (ROOT / "engine" / file).read_text(encoding="utf-8")
        assert source.count(old) == 1, f"{file} changed: find the bug's new place"
        assert old != new
