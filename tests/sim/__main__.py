"""Run the simulation by itself: see driver.py."""

from __future__ import annotations

import argparse
import logging
import time

from tests.sim.crash import scratch_directory
from tests.sim.driver import cut_power, wander


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.sim", description="Simulate a store beside its model."
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=1, help="seeds to try, one after another")
    parser.add_argument("--crashes", action="store_true", help="cut the power at every call of each run")
    parser.add_argument("--durability", choices=("strict", "relaxed"), default="strict")
    chosen = parser.parse_args()
    logging.disable(logging.CRITICAL)
    started = time.monotonic()
    images = 0
    for seed in range(chosen.seed, chosen.seed + chosen.runs):
        if chosen.crashes:
            images += cut_power(seed, chosen.steps, durability=chosen.durability)
        else:
            with scratch_directory() as top:
                wander(top / "store", seed, chosen.steps, durability=chosen.durability).close()
    print(
        f"{chosen.runs * chosen.steps} steps from seed {chosen.seed} on, {images} images after power cuts, "
        f"0 violations, {time.monotonic() - started:.1f} s"
    )


if __name__ == "__main__":
    main()
