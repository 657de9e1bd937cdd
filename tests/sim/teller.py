"""Takes the steps of a script in a process of its own, for others to kill it, or to fail its system calls.

    python -m tests.sim.teller STORE JOURNAL SCRIPT

SCRIPT is a file with one step a line, as Python literals. Into JOURNAL go, each as one write: "open" when the store is
open, "+ N" before step N, "= N" after it was acknowledged, "! N ERROR" when it was refused for want of space (it is
then tried a second time), "ended WORD" at the end; a store that fails to open, or that turns read-only, ends it too.

Must not know: what is done to it.
"""

from __future__ import annotations

import ast
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cordwood.engine import CordwoodError, errors
from tests.sim.rules import Step, World


def write_script(path: Path, steps: Sequence[Step]) -> None:
    path.write_text("".join(f"{step!r}\n" for step in steps))


def read_script(path: Path) -> list[Step]:
    return [ast.literal_eval(line) for line in path.read_text().splitlines()]


def tell(store: Path, journal: Path, steps: Sequence[Step]) -> str:
    fd = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def say(*words: object) -> None:
        os.write(fd, (" ".join(map(str, words)) + "\n").encode())

    try:
        world = World(store)
    except (CordwoodError, OSError) as error:
        say("ended", type(error).__name__)
        return f"it did not open: {error}"
    say("open")
    for number, step in enumerate(steps):
        for _ in range(2):
            say("+", number)
            before = world.model.copy()
            wanted, given = world.outcomes(step)
            if given == wanted:
                say("=", number)
                break
            world.model = before
            if given is not errors.Full or world.store.read_only_reason:
                say("ended", given.__name__ if isinstance(given, type) else "wrong")
                return f"step {number}, {step}: {given!r}, not {wanted!r}: {world.store.read_only_reason}"
            say("!", number, given.__name__)
    try:
        world.close()
    except (CordwoodError, OSError) as error:
        say("ended", type(error).__name__)
        return f"it did not close: {error}"
    say("ended", "well")
    return ""


def main() -> None:
    logging.disable(logging.CRITICAL)
    store, journal, script = map(Path, sys.argv[1:])
    print(tell(store, journal, read_script(script)))


if __name__ == "__main__":
    main()
