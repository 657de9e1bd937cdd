"""How the engine behaves as a store grows: `python -m tests.bench.scale --objects 1000000`.

One store is filled with small objects in batches, and each line of the table is one thing measured on it: opening after
SIGKILL, walking, listing, renaming, rebuilding, and what a put and a get cost when it was small and when it is full.
Processor time is that of this process, so it tells something on a busy machine, too.

Must not know: the server.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cordwood.engine import Store, rebuild

_BATCH = 1000
_DIRECTORIES = 1000
_SMALL = 10_000
_PREFIXES = 100_000
_TRIES = 2000
_BUCKET = "bench"

_DIE = """
import os, signal, sys
from cordwood.engine import Store
store = Store.open(sys.argv[1])
for number in range(200):
    store.put("bench", f"killed/{number}", b"x" * 100)
os.kill(os.getpid(), signal.SIGKILL)
"""


def _key(number: int) -> str:
    return f"all/{number % _DIRECTORIES:04d}/{number:010d}"


class Scale:
    """The store, and what was found out about it."""

    def __init__(self, directory: Path, objects: int, size: int) -> None:
        self.path = directory / "store"
        self.objects = objects
        self.size = size
        self.found: dict[str, Any] = {}
        self.store = Store.open(self.path)
        self.store.create_bucket(_BUCKET)

    def run(self) -> None:
        self._fill(0, min(_SMALL, self.objects))
        small = self._costs(min(_SMALL, self.objects))
        self._fill(min(_SMALL, self.objects), self.objects)
        full = self._costs(self.objects)
        for name, cost_us in full.items():
            self.found[f"{name}, {_SMALL} objects, us"] = small[name]
            self.found[f"{name}, {self.objects} objects, us"] = cost_us
            self.found[f"{name}, ratio"] = cost_us / small[name]
        self._space()
        self._list()
        self._rename()
        self._kill()
        self._rebuild()

    def _fill(self, first: int, last: int) -> None:
        rng = random.Random(first)
        started, cpu = time.perf_counter(), time.process_time()
        for at in range(first, last, _BATCH):
            with self.store.batch() as batch:
                for number in range(at, min(at + _BATCH, last)):
                    batch.put(_BUCKET, _key(number), rng.randbytes(self.size))
        if last == self.objects:
            self.found["fill in batches of 1000, objects/s"] = (last - first) / (
                time.perf_counter() - started
            )
            self.found["fill, processor us an object"] = (time.process_time() - cpu) / (last - first) * 1e6

    def _costs(self, count: int) -> dict[str, float]:
        """Processor time of a put and a get of random keys, medians of five rounds."""
        rng = random.Random(count)
        keys = [_key(rng.randrange(count)) for _ in range(_TRIES)]
        names = ("get, processor", "put alone, processor", "put in a batch of 100, processor")
        rounds: dict[str, list[float]] = {name: [] for name in names}
        for key in keys:  # a first pass brings what these keys need into memory
            self.store.get(_BUCKET, key).read()
        for number in range(5):
            cpu = time.process_time()
            for key in keys:
                self.store.get(_BUCKET, key).read()
            rounds["get, processor"].append((time.process_time() - cpu) / _TRIES * 1e6)
            alone = keys[: _TRIES // 10]
            cpu = time.process_time()
            for key in alone:
                self.store.put(_BUCKET, f"{key}-{number}-{count}-alone", b"x" * self.size)
            rounds["put alone, processor"].append((time.process_time() - cpu) / len(alone) * 1e6)
            cpu = time.process_time()
            for at in range(0, _TRIES, 100):
                with self.store.batch() as batch:
                    for key in keys[at : at + 100]:
                        batch.put(_BUCKET, f"{key}-{number}-{count}", b"x" * self.size)
            rounds["put in a batch of 100, processor"].append((time.process_time() - cpu) / _TRIES * 1e6)
        return {name: sorted(costs)[len(costs) // 2] for name, costs in rounds.items()}

    def _space(self) -> None:
        info = self.store.index_info()
        self.found["index, bytes an object"] = info["used_bytes"] / info["entries"]

    def _list(self) -> None:
        started, cpu = time.perf_counter(), time.process_time()
        count = self._walk("")
        self.found[f"walk of {count} keys in pages of 1000, s"] = time.perf_counter() - started
        self.found["walk, processor us a key"] = (time.process_time() - cpu) / count * 1e6
        prefixes = min(_PREFIXES, self.objects)
        for at in range(0, prefixes, _BATCH):
            with self.store.batch() as batch:
                for number in range(at, at + _BATCH):
                    batch.put(_BUCKET, f"wide/{number:08d}/x", b"1")
        started = time.perf_counter()
        found = self._walk("/", "wide/")
        assert found == prefixes
        self.found[f"delimiter listing of {found} prefixes, s"] = time.perf_counter() - started

    def _walk(self, delimiter: str, prefix: str = "") -> int:
        count, after = 0, ""
        while True:
            page = self.store.list(_BUCKET, prefix=prefix, delimiter=delimiter, start_after=after)
            count += len(page.objects) + len(page.prefixes)
            if page.next is None:
                return count
            after = page.next

    def _rename(self) -> None:
        times_s = []
        for number in range(5):
            source, target = ("all/", "moved/") if number % 2 == 0 else ("moved/", "all/")
            started = time.perf_counter()
            self.store.rename(_BUCKET, source, target)
            times_s.append(time.perf_counter() - started)
        self.store.rename(_BUCKET, "moved/", "all/")
        self.found[f"rename of a prefix of {self.objects} keys, ms"] = sorted(times_s)[2] * 1e3

    def _kill(self) -> None:
        self.store.close()
        done = subprocess.run([sys.executable, "-c", _DIE, self.path], check=False)
        assert done.returncode == -signal.SIGKILL
        started = time.perf_counter()
        self.store = Store.open(self.path)
        self.store.get(_BUCKET, _key(self.objects // 2)).read()
        self.store.put(_BUCKET, "first/write", b"1")
        self.found["open after SIGKILL to the first answers, s"] = time.perf_counter() - started
        self.store.close()

    def _rebuild(self) -> None:
        cpu = time.process_time()
        report = rebuild(self.path)
        cpu = time.process_time() - cpu
        self.found["rebuild, records"] = report.records
        self.found["rebuild, records/s"] = report.records / report.seconds
        self.found["rebuild, records a second of processor time"] = report.records / cpu
        self.found["index after the rebuild, bytes an object"] = (
            self.path / "index" / "data.mdb"
        ).stat().st_size / self.objects


def _written(directory: Path, size: int, total_bytes: int, threads: int, batch_objects: int) -> float:
    """Bytes that the disk was given for each byte stored, the file system's journal among them. It counts for all who
    write to that disk, so nobody else should."""
    each = total_bytes // size // threads
    device = os.stat(directory.parent).st_dev
    before = _write_bytes(device)
    with Store.open(directory) as store:
        store.create_bucket(_BUCKET)

        def put(thread: int) -> None:
            rng = random.Random(thread)
            for at in range(0, each, batch_objects):
                if batch_objects == 1:
                    store.put(_BUCKET, f"load/{at * threads + thread:010d}", rng.randbytes(size))
                    continue
                with store.batch() as batch:
                    for number in range(at, min(at + batch_objects, each)):
                        batch.put(_BUCKET, f"load/{number * threads + thread:010d}", rng.randbytes(size))

        _parallel(threads, put)
    return (_write_bytes(device) - before) / (each * threads * size)


def _parallel(threads: int, work: Callable[[int], None]) -> None:
    running = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()


def _write_bytes(device: int) -> int:
    """What the kernel has written to a disk by now. What it counts for a process (/proc/self/io) is more: whole folios,
    where one page of each was changed."""
    os.sync()
    fields = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat").read_text().split()
    return int(fields[6]) * 512


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scale", description=__doc__)
    parser.add_argument("--objects", type=int, default=1_000_000, help="(default: 1000000)")
    parser.add_argument("--size", type=int, default=16, help="bytes of each object (default: 16)")
    parser.add_argument("--threads", type=int, default=64, help="of the loads whose writes are counted")
    parser.add_argument(
        "--directory", type=Path, help="on the disk to be measured (default: a temporary one)"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.objects % _BATCH:
        parser.error(f"--objects must be a multiple of {_BATCH}")
    base = Path(tempfile.mkdtemp(prefix="cordwood-bench-", dir=options.directory))
    try:
        scale = Scale(base, options.objects, options.size)
        scale.run()
        found = scale.found
        for name, size, total, threads, batch_objects in (
            ("4 KiB, one by one", 4096, 128 << 20, options.threads, 1),
            ("4 KiB, in batches of 1000", 4096, 128 << 20, 1, _BATCH),
            ("1 MiB, one by one", 1 << 20, 512 << 20, options.threads, 1),
        ):
            key = f"bytes written for each byte stored, {name}, {threads} threads"
            found[key] = _written(base / name, size, total, threads, batch_objects)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    if options.json:
        print(json.dumps({"objects": options.objects, "size_bytes": options.size, "measured": found}))
        return
    print(
        f"{options.objects} objects of {options.size} bytes, {os.cpu_count()} processors\n| what | |\n|---|---|"
    )
    for name, value in found.items():
        print(f"| {name} | {value:,.2f} |" if isinstance(value, float) else f"| {name} | {value:,} |")


if __name__ == "__main__":
    main()
