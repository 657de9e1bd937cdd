"""LMDB writes its own file. Here its calls are failed, killed at, and put on the disk in every order that is lawful.

Two ways, both from outside: strace makes the Nth call on data.mdb fail, or kills the process at it; and the calls of a
whole run are recorded and replayed, so that power may fail between any two of them, with any part of what was not
synced on the disk.

What must hold is what must hold after every crash (crash.py). Where an index cannot be used, opening says so and names
the way out, and the way out works. It never ends in a signal and never shows anything else.

Must not know: what LMDB's pages mean.
"""

from __future__ import annotations

import multiprocessing
import random
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from cordwood.engine import errors, rebuild
from tests.sim import traced
from tests.sim.crash import recover, scratch_directory
from tests.sim.rules import OPTIONS, Step, World
from tests.sim.teller import write_script
from tests.sim.test_faults import STORY

SHORT: tuple[Step, ...] = (
    ("create_bucket", "one", ""),
    ("put", "one", "d/old", 5000, 0),
    ("batch", "one", (("x/1", 5000, 5, None), ("d/old",), ("x/2", 100, 6, None))),
    ("delete", "one", "x/1", None),
)
CALLS_ON_INDEX = ("pwrite64", "writev", "fdatasync")
State = dict[str, Any]


@pytest.fixture(autouse=True)
def tracing() -> None:
    reason = traced.why_not()
    if reason is not None:
        pytest.skip(f"NOT PROVED HERE: the index under faults from outside: {reason}")


def states_of(steps: Sequence[Step]) -> list[State]:
    """What a client sees before the first step, and after each."""
    with scratch_directory() as top:
        world = World(top / "store")
        states = [world.model.observe()]
        for step in steps:
            world.run(step)
            states.append(world.model.observe())
        world.close()
    return states


def allowed_after(said: Sequence[str], states: Sequence[State]) -> list[State]:
    """What may be seen when this was the last that the journal says."""
    done = sum(1 for line in said if line.startswith("="))
    is_under_way = bool(said) and said[-1].startswith("+")
    return list(states[done : done + 1 + is_under_way])


# --- replay -------------------------------------------------------------------------------------------------------

# What is kept of the index, and of everything else: in strict mode LMDB's own calls are the ones in question.
KEEPS = (
    ("none", "none"),
    ("some", "all"),
    ("some", "none"),
    ("some", "some"),
    ("some", "all"),
    ("all", "none"),
)


def look(pipe: Connection, path: Path, allowed: list[State]) -> None:
    """In a process of its own: recovers, or is refused with the way out and goes it."""
    try:
        try:
            recover(path, allowed, "some")
        except errors.Corrupt as refused:
            assert "cordwood rebuild" in str(refused), f"no way out is named: {refused}"
            rebuild(path, map_size=OPTIONS["map_size"])
            recover(path, allowed, "some")
            pipe.send("refused")
        else:
            pipe.send("whole")
    except BaseException as error:
        pipe.send(f"wrong: {type(error).__name__}: {error}")


def looks(pipe: Connection) -> None:
    while True:
        try:
            path, allowed = pipe.recv()
        except EOFError:
            return
        look(pipe, path, allowed)


class Looker:
    """Looks at stores in a child process, so that what LMDB does with a damaged file ends the child alone."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=looks, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def look(self, path: Path, allowed: list[State]) -> str:
        self._pipe.send((path, allowed))
        try:
            return str(self._pipe.recv())
        except EOFError:
            self._process.join(10)
            return f"wrong: the process ended with {self._process.exitcode}"

    def close(self) -> None:
        self._pipe.close()
        self._process.join(10)


@pytest.fixture
def looker() -> Iterator[Looker]:
    found = Looker()
    yield found
    found.close()


def record(top: Path, steps: Sequence[Step]) -> traced.Trace:
    write_script(top / "script", steps)
    done = traced.run(
        ["-m", "tests.sim.teller", str(top / "store"), str(top / "journal"), str(top / "script")],
        top / "trace",
        *("-xx", "-s", "10000000", "-e", f"trace={traced.CALLS}"),
    )
    assert done.returncode == 0 and not done.stdout.strip(), done.stdout + done.stderr
    assert (top / "journal").read_text().endswith("ended well\n")
    return traced.Trace(top / "trace", top / "store", top / "journal")


def test_a_replayed_run_is_the_run() -> None:
    """The recorder misses no write: all of them together make the store, byte for byte."""
    with scratch_directory() as top:
        trace = record(top, SHORT)
        replay = traced.Replay(trace)
        for event in trace.events:
            replay.take(event)
        replay.write(top / "again", {"": "all"}, random.Random(0))
        names = [each.relative_to(top / "store") for each in (top / "store").rglob("*") if each.is_file()]
        assert Path("index/data.mdb") in names
        for name in names:
            if name.name != "lock.mdb":  # written through a mapping, and made anew by whoever opens first
                assert (top / "again" / name).read_bytes() == (top / "store" / name).read_bytes(), name


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("story", ["short", "whole"])
def test_power_may_fail_between_any_two_writes_of_the_index(
    looker: Looker, story: str, long_run: bool
) -> None:
    steps = SHORT if story == "short" else STORY
    states = states_of(steps)
    seen: set[tuple[int, int]] = set()
    answers: Counter[str] = Counter()
    with scratch_directory() as top:
        replay = traced.Replay(record(top, steps))
        for number, event in enumerate(replay.trace.events):
            replay.take(event)
            allowed = allowed_after([line for line in replay.said if line[0] in "+="], states)
            for variant, (index, others) in enumerate(KEEPS * (8 if long_run else 1)):
                if story == "whole" and not long_run and (number + variant) % 3:
                    continue
                target = top / "cut"
                keep = {"data.mdb": index, "": others, "lock.mdb": "none"}
                image = (replay.write(target, keep, random.Random(f"{number} {variant}")), len(allowed))
                if image not in seen:
                    seen.add(image)
                    said = looker.look(target, allowed)
                    where = (
                        f"after event {number} ({event.what}), kept {index} and {others}, variant {variant}"
                    )
                    assert not said.startswith("wrong"), f"{where}: {said}"
                    answers[said] += 1
                shutil.rmtree(target)
    assert answers["whole"] > 100
    assert not answers["refused"], "no lawful order leaves an index that has to be refused"


# --- one call that fails, or kills --------------------------------------------------------------------------------


def attempt(top: Path, base: Path, steps: Sequence[Step], fault: str) -> tuple[list[str], bool]:
    """Takes the steps on a copy of a store with a fault in a call on the index: the journal, and whether it struck."""
    store = top / "store"
    shutil.copytree(base, store)
    write_script(top / "script", steps)
    traced.run(
        ["-m", "tests.sim.teller", str(store), str(top / "journal"), str(top / "script")],
        top / "trace",
        *("-P", str(store / "index" / "data.mdb")),
        *("-e", f"trace={','.join(CALLS_ON_INDEX)}", "-e", f"inject={fault}"),
    )
    journal = top / "journal"
    said = journal.read_text().splitlines() if journal.exists() else []
    trace = (top / "trace").read_text()
    return said, "INJECTED" in trace or "killed by SIGKILL" in trace


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("call", CALLS_ON_INDEX)
@pytest.mark.parametrize("fault", ["error=EIO", "error=ENOSPC", "signal=KILL"])
def test_any_call_on_the_index_may_fail_or_be_the_last(call: str, fault: str, long_run: bool) -> None:
    """All of them with --long; here each third, beginning at another one for each fault."""
    states = states_of(SHORT)
    stride = 1 if long_run else 3
    first = 1 + (CALLS_ON_INDEX.index(call) + len(fault)) % stride
    struck = 0
    with scratch_directory() as base:
        World(base / "store").close()
        for number in range(first, 200, stride):
            with scratch_directory() as top:
                said, is_struck = attempt(top, base / "store", SHORT, f"{call}:{fault}:when={number}")
                if not is_struck:
                    assert said[-1] == "ended well"
                    break
                struck += 1
                allowed = allowed_after([line for line in said if line[0] in "+=!"], states)
                if said and said[-1].startswith("ended") and not said[-1].endswith("well"):
                    assert said[-1].split()[1] in ("ReadOnly", "Corrupt", "Full", "OSError"), said
                try:
                    recover(top / "store", allowed, "all")
                except BaseException as error:
                    error.add_note(f"{fault} at {call} {number}; the journal says {said[-3:]}")
                    raise
        else:
            raise AssertionError("there is no end of calls")
    assert struck >= (5 if long_run else 1)
