"""The long campaigns: one kind of torment, seed after seed, for as long as it takes, over any number of sittings.

    python -m tests.sim.campaign answers DIR --goal 10000000     # steps compared with the model
    python -m tests.sim.campaign crashes DIR --goal 1000000      # disks after power cuts, recovered and compared
    python -m tests.sim.campaign kills DIR --goal 1000           # SIGKILLs
    python -m tests.sim.campaign fuzz DIR --goal 3600            # seconds of processor for each target, in rotation

What was reached stands in DIR/KIND.json, so the same command goes on where the last one stopped, and first tries again
what failed; each violation is told in DIR/KIND.log with its seed. A line of progress each minute, a line of figures at
the end; exit status 1 if anything is violated.

Must not know: what a violation is.

Invariant: a unit of work is counted when it has ended, and is named by its seed: the same seed does the same again.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.sim.crash import scratch_directory
from tests.sim.driver import WAYS, cut_power, wander
from tests.sim.killing import torment

ROOT = Path(__file__).resolve().parent.parent.parent
STEPS_PER_WORLD = 1000
STEPS_PER_CUT = 14
KILLS_PER_STORE = 30
FUZZ_SLICE_S = 60
REPORT_EVERY_S = 60.0
Figures = dict[str, int]


@dataclass
class Progress:
    """What a campaign has reached. `counts` holds at least the figure that its goal is about."""

    kind: str
    first_seed: int
    next_seed: int
    seconds: float = 0.0
    counts: Figures = field(default_factory=dict)
    violations: list[int] = field(default_factory=list)

    def line(self) -> str:
        counts = ", ".join(f"{count:,} {name}" for name, count in sorted(self.counts.items()))
        seeds = f"seeds {self.first_seed} to {self.next_seed - 1}"
        bad = f"{len(self.violations)} violations"
        return f"{self.kind}: {counts}; {seeds}; {bad}; {self.seconds / 60:.0f} minutes"


def answers(seed: int) -> Figures:
    """A world with the settings that its seed chooses; every eighth is shared by two processes."""
    elsewhere = 0.3 if seed % 8 == 7 else 0.0
    with scratch_directory() as top:
        options = WAYS[seed % len(WAYS)]
        wander(top / "store", seed, STEPS_PER_WORLD, elsewhere=elsewhere, **options).close()
    return {"steps": STEPS_PER_WORLD}


def crashes(seed: int) -> Figures:
    """Power cuts at every call of a short history; every fourth in relaxed mode."""
    durability = "relaxed" if seed % 4 == 3 else "strict"
    return {"images": cut_power(seed, STEPS_PER_CUT, durability=durability), "steps": STEPS_PER_CUT}


def kills(seed: int) -> Figures:
    return {"kills": torment(KILLS_PER_STORE, seed)}


def fuzz(seed: int) -> Figures:
    """One target for a minute, of which the processor's seconds count: on a busy machine a minute is less than one.

    The smallest count of seconds is what a goal means: each target had that much.
    """
    targets = sorted(
        path.stem for path in (ROOT / "fuzz").glob("*.py") if path.stem not in ("__init__", "run")
    )
    target = targets[seed % len(targets)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "fuzz/run.py", target, str(FUZZ_SLICE_S)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, f"{target}: {said[-4000:]}"
    found = re.search(r"Done (\d+) runs", said) or re.search(r"^(\d+) inputs", said, re.MULTILINE)
    assert found is not None, f"{target} does not say how many inputs it tried: {said[-1000:]}"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {f"{target} s": round(spent_s), f"{target} inputs": int(found[1])}


KINDS: dict[str, tuple[Callable[[int], Figures], Callable[[Figures], int]]] = {
    "answers": (answers, lambda counts: counts.get("steps", 0)),
    "crashes": (crashes, lambda counts: counts.get("images", 0)),
    "kills": (kills, lambda counts: counts.get("kills", 0)),
    "fuzz": (fuzz, lambda counts: min((n for name, n in counts.items() if name.endswith(" s")), default=0)),
}


class Campaign:
    def __init__(self, kind: str, directory: Path, seed: int) -> None:
        self.kind = kind
        self.directory = directory
        self._path = directory / f"{kind}.json"
        directory.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            self.progress = Progress(**json.loads(self._path.read_text()))
        else:
            self.progress = Progress(kind, seed, seed)
        self._asked_to_stop = False

    def run(self, goal: int, seconds: float = float("inf")) -> Progress:
        """Goes on until the goal is reached, the time is over, or it is asked to stop."""
        reached = KINDS[self.kind][1]
        progress = self.progress
        started = reported = last = time.monotonic()
        for seed in list(progress.violations):
            if self._try(seed):
                progress.violations.remove(seed)
        while reached(progress.counts) < goal and time.monotonic() - started < seconds:
            if self._asked_to_stop:
                break
            if not self._try(progress.next_seed):
                progress.violations.append(progress.next_seed)
            progress.next_seed += 1
            now = time.monotonic()
            progress.seconds += now - last
            last = now
            self._save()
            if now - reported > REPORT_EVERY_S:
                reported = now
                print(progress.line(), flush=True)
        return progress

    def _try(self, seed: int) -> bool:
        """One unit; False when something was violated, which is told in the log."""
        counts = self.progress.counts
        try:
            for name, count in KINDS[self.kind][0](seed).items():
                counts[name] = counts.get(name, 0) + count
        except Exception:
            with (self.directory / f"{self.kind}.log").open("a") as log:
                log.write(f"--- seed {seed}\n{traceback.format_exc()}\n")
            return False
        return True

    def stop(self, *_: object) -> None:
        """Stops after the unit under way."""
        self._asked_to_stop = True

    def _save(self) -> None:
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(self.progress), indent=1) + "\n")
        os.replace(temporary, self._path)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.campaign", description="A long campaign.")
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("directory", type=Path, help="where progress and violations are kept")
    parser.add_argument("--goal", type=int, required=True)
    parser.add_argument("--seed", type=int, default=None, help="the first seed of a new campaign [random]")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    chosen = parser.parse_args()
    logging.disable(logging.CRITICAL)
    seed = chosen.seed if chosen.seed is not None else random.SystemRandom().randrange(1 << 30)
    campaign = Campaign(chosen.kind, chosen.directory, seed)
    signal.signal(signal.SIGINT, campaign.stop)
    signal.signal(signal.SIGTERM, campaign.stop)
    progress = campaign.run(chosen.goal, chosen.seconds)
    print(progress.line(), flush=True)
    return 1 if progress.violations else 0


if __name__ == "__main__":
    sys.exit(main())
