"""Real processes on one store, killed at any moment, over and over: see killing.py.

Must not know: what a killed process was doing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cordwood.engine import Store
from tests.sim.campaign import Campaign
from tests.sim.killing import ROOT, journal_of, torment


def test_killed_processes_lose_nothing_that_was_acknowledged() -> None:
    assert torment(15, seed=1) >= 15


@pytest.mark.long
@pytest.mark.timeout(6 * 3600)
def test_a_thousand_kills_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    progress = Campaign("kills", tmp_path, 100).run(1000)
    assert not progress.violations and progress.counts["kills"] >= 1000


def test_the_journal_tells_what_was_acknowledged_from_what_was_asked_for(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    journal.write_text("+ a 1\n= a 1\n+ a 2 b 3\n= a 2 b")  # a torn line was not said
    assert journal_of(journal) == ({"a": "1"}, {"a": "2", "b": "3"})


MANY = """
import sys
from cordwood.engine import Store
store = Store.open(sys.argv[1])
store.create_bucket("one")
count = int(sys.argv[2])
for first in range(0, count, 1000):
    with store.batch() as batch:
        for number in range(first, first + 1000):
            batch.put("one", f"d/{number % 997}/{number}", b"%d" % number)
print("filled", flush=True)
number = 0
while True:
    store.put("one", "last", b"%d" % number)
    print(number, flush=True)
    number += 1
"""


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [10_000, pytest.param(1_000_000, marks=pytest.mark.long)])
def test_a_store_opens_in_less_than_a_second_after_kill_9(count: int, tmp_path: Path) -> None:
    """Nothing is read but what lies behind the watermarks, however many objects there are."""
    path = tmp_path / "store"
    command = [sys.executable, "-c", MANY, str(path), str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "filled\n"
        told = [writer.stdout.readline() for _ in range(20)][-1]
        os.kill(writer.pid, signal.SIGKILL)
        told = ([told, *writer.stdout.read().splitlines()])[-1]
    cpu_s, wall_s = time.process_time(), time.monotonic()
    store = Store.open(path)
    cpu_s, wall_s = time.process_time() - cpu_s, time.monotonic() - wall_s
    with store:
        assert int(store.get("one", "last").read()) >= int(told)
        assert store.get("one", f"d/7/{997 + 7}").read() == b"1004"
        assert store.index_info()["entries"] >= count
    print(f"{count} objects: opened in {wall_s * 1000:.0f} ms, {cpu_s * 1000:.0f} ms of them processor time")
    assert cpu_s < 1.0, "processor time: how long it waits for others is not the store's doing"
