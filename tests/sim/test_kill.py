"""Real processes on one store, killed at any moment, over and over: see killing.py.

Must not know: what a killed process was doing.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sim.campaign import Campaign
from tests.sim.killing import journal_of, torment


def test_killed_processes_lose_nothing_that_was_acknowledged() -> None:
    assert torment(15, seed=1) >= 15


@pytest.mark.long
@pytest.mark.timeout(6 * 3600)
def test_a_thousand_kills_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    progress = Campaign("kills", tmp_path, 100).run(1000)
    assert not progress.violations and progress.counts["kills"] >= 1000


def test_the_journal_tells_what_was_acknowledged_from_what_was_asked_for(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    journal.write_text("+ a 1\n= a 1\n+ a 2 b 3\n")
    assert journal_of(journal) == ({"a": "1"}, {"a": "2", "b": "3"})
