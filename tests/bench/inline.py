"""Where an object should stand in its own record, and where chunks pay: `python -m tests.bench.inline`.

For each size, durable puts of distinct objects by several threads and gets, once inline and once as a chunk that is
named by its digest, looked up and shared. `inline_max`, the size from which deduplication works, is chosen by this.

Must not know: the server.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import threading
import time
from pathlib import Path

from cordwood.engine import Store

_KIB = 1 << 10


def _measure(directory: Path, size: int, count: int, threads: int, *, is_inline: bool) -> tuple[float, float]:
    """Puts and gets a second."""
    with Store.open(directory, inline_max=1 << 20 if is_inline else 0) as store:
        store.create_bucket("bench")
        values = [random.Random(number).randbytes(size) for number in range(64)]

        def put(thread: int) -> None:
            for number in range(count // threads):
                # A prefix makes each object, and so each chunk, a new one.
                value = f"{thread:04d}{number:08d}".encode() + values[number % 64][12:]
                store.put("bench", f"{thread}/{number}", value)

        started = time.perf_counter()
        running = [threading.Thread(target=put, args=(thread,)) for thread in range(threads)]
        for each in running:
            each.start()
        for each in running:
            each.join()
        puts = count / (time.perf_counter() - started)
        started = time.perf_counter()
        for number in range(count):
            store.get("bench", f"{number % threads}/{number // threads}").read()
        return puts, count / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.inline", description=__doc__)
    parser.add_argument("--count", type=int, default=640, help="objects of each size (default: 640)")
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument(
        "--directory", type=Path, help="on the disk to be measured (default: a temporary one)"
    )
    options = parser.parse_args()
    print(
        "| size | put/s inline | put/s as a chunk | get/s inline | get/s as a chunk |\n|---|---|---|---|---|"
    )
    for kib in (4, 16, 32, 64, 128, 256):
        figures = []
        for is_inline in (True, False):
            base = Path(tempfile.mkdtemp(prefix="cordwood-inline-", dir=options.directory))
            figures.append(
                _measure(base / "store", kib * _KIB, options.count, options.threads, is_inline=is_inline)
            )
            shutil.rmtree(base)
        (puts, gets), (chunk_puts, chunk_gets) = figures
        print(f"| {kib} KiB | {puts:,.0f} | {chunk_puts:,.0f} | {gets:,.0f} | {chunk_gets:,.0f} |")


if __name__ == "__main__":
    main()
