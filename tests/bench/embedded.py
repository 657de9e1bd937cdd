"""The embedded engine against what a Python program would use instead: `python -m tests.bench.embedded`.

Every store does the same work in turn, in a directory of its own: durable puts by one thread and by several, batches,
gets in random order, a scan of all keys. "durable" says whether a put that returned survives a power cut.

Must not know: the server.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Protocol

import lmdb

from cordwood.engine import Store

Item = tuple[str, bytes]


class Candidate(Protocol):
    """One store under measurement. Puts and gets come from several threads."""

    durable: bool

    def put(self, key: str, value: bytes) -> None: ...
    def put_many(self, items: list[Item]) -> None: ...
    def get(self, key: str) -> bytes: ...
    def scan(self) -> Iterable[str]: ...
    def close(self) -> None: ...


class Cordwood:
    durable = True

    def __init__(self, directory: Path) -> None:
        self._store = Store.open(directory)
        self._store.create_bucket("bench")

    def put(self, key: str, value: bytes) -> None:
        self._store.put("bench", key, value)

    def put_many(self, items: list[Item]) -> None:
        with self._store.batch() as batch:
            for key, value in items:
                batch.put("bench", key, value)

    def get(self, key: str) -> bytes:
        return self._store.get("bench", key).read()

    def scan(self) -> Iterator[str]:
        after = ""
        while True:
            page = self._store.list("bench", start_after=after)
            for entry in page.objects:
                yield entry.key
            if page.next is None:
                return
            after = page.next

    def close(self) -> None:
        self._store.close()


class Sqlite:
    """One table of BLOBs, WAL, synchronous=FULL; a connection for each thread."""

    durable = True

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._path = directory / "db.sqlite3"
        self._local = threading.local()
        self._all: list[sqlite3.Connection] = []
        self._db.execute("CREATE TABLE data (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID")

    @property
    def _db(self) -> sqlite3.Connection:
        if not hasattr(self._local, "db"):
            db = sqlite3.connect(self._path, timeout=60, isolation_level=None, check_same_thread=False)
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            self._local.db = db
            self._all.append(db)
        found: sqlite3.Connection = self._local.db
        return found

    def put(self, key: str, value: bytes) -> None:
        self._db.execute("INSERT OR REPLACE INTO data VALUES (?, ?)", (key, value))

    def put_many(self, items: list[Item]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany("INSERT OR REPLACE INTO data VALUES (?, ?)", items)
        self._db.execute("COMMIT")

    def get(self, key: str) -> bytes:
        row = self._db.execute("SELECT value FROM data WHERE key = ?", (key,)).fetchone()
        return bytes(row[0])

    def scan(self) -> Iterator[str]:
        for (key,) in self._db.execute("SELECT key FROM data ORDER BY key"):
            yield key

    def close(self) -> None:
        for db in self._all:
            db.close()


class FilePerValue:
    """A file per value, synced, under its name by rename, the directory synced."""

    durable = True

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._directory = directory

    def put(self, key: str, value: bytes) -> None:
        self._write(key, value)
        self._sync_directory()

    def put_many(self, items: list[Item]) -> None:
        for key, value in items:
            self._write(key, value)
        self._sync_directory()

    def _write(self, key: str, value: bytes) -> None:
        name = self._directory / key.replace("/", "%2F")
        temporary = name.with_suffix(f".{threading.get_ident()}.tmp")
        with open(temporary, "wb") as file:
            file.write(value)
            file.flush()
            os.fdatasync(file.fileno())
        os.rename(temporary, name)

    def _sync_directory(self) -> None:
        fd = os.open(self._directory, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)

    def get(self, key: str) -> bytes:
        return (self._directory / key.replace("/", "%2F")).read_bytes()

    def scan(self) -> Iterable[str]:
        return sorted(os.listdir(self._directory))

    def close(self) -> None:
        pass


class RawLmdb:
    """Values inside LMDB itself, synced at each commit: what the index alone would do."""

    durable = True

    def __init__(self, directory: Path) -> None:
        self._env = lmdb.open(str(directory), map_size=1 << 34, max_readers=256)

    def put(self, key: str, value: bytes) -> None:
        with self._env.begin(write=True) as txn:
            txn.put(key.encode(), value)

    def put_many(self, items: list[Item]) -> None:
        with self._env.begin(write=True) as txn:
            for key, value in items:
                txn.put(key.encode(), value)

    def get(self, key: str) -> bytes:
        with self._env.begin() as txn:
            return bytes(txn.get(key.encode()) or b"")

    def scan(self) -> Iterator[str]:
        with self._env.begin() as txn:
            for key in txn.cursor().iternext(values=False):
                yield bytes(key).decode()

    def close(self) -> None:
        self._env.close()


class DiskCache:
    """diskcache.Cache as it comes: it does not sync."""

    durable = False

    def __init__(self, directory: Path) -> None:
        import diskcache

        self._cache: Any = diskcache.Cache(str(directory), eviction_policy="none", size_limit=1 << 40)

    def put(self, key: str, value: bytes) -> None:
        self._cache[key] = value

    def put_many(self, items: list[Item]) -> None:
        with self._cache.transact():
            for key, value in items:
                self._cache[key] = value

    def get(self, key: str) -> bytes:
        value: bytes = self._cache[key]
        return value

    def scan(self) -> Iterator[str]:
        yield from self._cache.iterkeys()

    def close(self) -> None:
        self._cache.close()


class RocksDict:
    """RocksDB by rocksdict, as it comes: its log is written, not synced."""

    durable = False

    def __init__(self, directory: Path) -> None:
        import rocksdict

        self._batch = rocksdict.WriteBatch
        self._db: Any = rocksdict.Rdict(str(directory))
        if self.durable:
            options = rocksdict.WriteOptions()
            options.sync = True
            self._db.set_write_options(options)

    def put(self, key: str, value: bytes) -> None:
        self._db[key] = value

    def put_many(self, items: list[Item]) -> None:
        batch = self._batch()
        for key, value in items:
            batch[key] = value
        self._db.write(batch)

    def get(self, key: str) -> bytes:
        value: bytes = self._db[key]
        return value

    def scan(self) -> Iterator[str]:
        yield from self._db.keys()

    def close(self) -> None:
        self._db.close()


class RocksDictSync(RocksDict):
    """The same with a sync for each write."""

    durable = True


CANDIDATES: dict[str, Callable[[Path], Candidate]] = {
    "cordwood": Cordwood,
    "sqlite": Sqlite,
    "lmdb": RawLmdb,
    "files": FilePerValue,
    "diskcache": DiskCache,
    "rocksdict": RocksDict,
    "rocksdict-sync": RocksDictSync,
}


@contextmanager
def _timed(results: dict[str, float], name: str, count: int) -> Iterator[None]:
    started = time.perf_counter()
    yield
    results[name] = count / (time.perf_counter() - started)


def _parallel(threads: int, work: Callable[[int], None]) -> None:
    running = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()


def measure(
    make: Callable[[Path], Candidate], directory: Path, size: int, count: int, threads: int
) -> dict[str, float]:
    """Operations a second of one candidate, by kind of work."""
    results: dict[str, float] = {}
    store = make(directory)
    value = random.Random(0).randbytes(size)
    singles = [f"one/{number:08d}" for number in range(count // 4)]
    with _timed(results, "put 1 thread", len(singles)):
        for key in singles:
            store.put(key, value)
    each = count // threads

    def put_some(number: int) -> None:
        for at in range(each):
            store.put(f"many/{number:03d}/{at:08d}", value)

    with _timed(results, f"put {threads} threads", each * threads):
        _parallel(threads, put_some)
    batch = [(f"batch/{number:08d}", value) for number in range(1000)]
    rounds = max(1, count // 1000)
    with _timed(results, "put in batches of 1000", rounds * 1000):
        for number in range(rounds):
            store.put_many([(f"{number:04d}/{key}", data) for key, data in batch])
    wanted = random.Random(1).choices(singles, k=count * 2)
    with _timed(results, "get", len(wanted)):
        for key in wanted:
            store.get(key)
    with _timed(results, "scan", len(singles) + each * threads + rounds * 1000):
        found = sum(1 for _ in store.scan())
    assert found == len(singles) + each * threads + rounds * 1000
    store.close()
    return results


# --- several processes on one store ----------------------------------------------------------------------------


def _reader(path: str, count: int, go: Barrier, answers: Connection) -> None:
    with Store.open(path) as store:
        keys = random.Random(os.getpid()).choices(
            [f"one/{number:08d}" for number in range(count)], k=count * 4
        )
        go.wait()
        started = time.perf_counter()
        for key in keys:
            store.get("bench", key).read()
        answers.send(len(keys) / (time.perf_counter() - started))


def _writer(path: str, number: int, seconds: float, size: int, go: Barrier, answers: Connection) -> None:
    """Puts one after another; answers how many, and the longest wait for one in seconds."""
    with Store.open(path) as store:
        value = random.Random(number).randbytes(size)
        go.wait()
        end = time.perf_counter() + seconds
        count, longest_s, now = 0, 0.0, time.perf_counter()
        while now < end:
            store.put("bench", f"process/{number}/{count:08d}", value)
            before, now = now, time.perf_counter()
            longest_s = max(longest_s, now - before)
            count += 1
        answers.send((count, longest_s))


def _together(
    processes: int, target: Callable[..., None], arguments: Callable[[int], tuple[Any, ...]]
) -> list[Any]:
    """Runs a function in several processes that begin at one moment; what each of them answers."""
    context = multiprocessing.get_context("spawn")
    go = context.Barrier(processes)
    pipes = [context.Pipe(duplex=False) for _ in range(processes)]
    running = [
        context.Process(target=target, args=(*arguments(number), go, pipes[number][1]))
        for number in range(processes)
    ]
    for each in running:
        each.start()
    answers = [receive.recv() for receive, _ in pipes]
    for each in running:
        each.join()
    return answers


def measure_processes(
    directory: Path, processes: int, size: int, count: int, seconds: float
) -> dict[str, Any]:
    """Reads and writes of several processes on one store, beside those of one."""
    path = str(directory)
    with Store.open(path) as store:
        store.create_bucket("bench")
        with store.batch() as batch:
            for number in range(count):
                batch.put("bench", f"one/{number:08d}", random.Random(number).randbytes(size))
    found: dict[str, Any] = {}
    for each in (1, processes):
        reads = _together(each, _reader, lambda _number: (path, count))
        found[f"get, {each} processes, in all"] = sum(reads)
    for each in (1, processes):
        writes = _together(each, _writer, lambda number: (path, number, seconds, size))
        found[f"put, {each} processes, in all"] = sum(puts for puts, _ in writes) / seconds
        found[f"put, {each} processes, the slowest of them"] = min(puts for puts, _ in writes) / seconds
        found[f"put, {each} processes, longest wait in ms"] = max(wait_s for _, wait_s in writes) * 1e3
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.embedded", description=__doc__)
    parser.add_argument("--size", type=int, default=1024, help="bytes of each value (default: 1024)")
    parser.add_argument("--count", type=int, default=4000, help="puts of each kind (default: 4000)")
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument(
        "--rounds", type=int, default=3, help="interleaved runs; the median counts (default: 3)"
    )
    parser.add_argument(
        "--directory", type=Path, help="on the disk to be measured (default: a temporary one)"
    )
    parser.add_argument(
        "--processes", type=int, help="measure Cordwood alone, by so many processes on one store beside one"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of writing by processes (default: 5)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "stores", nargs="*", metavar="STORE", help=f"of {', '.join(CANDIDATES)} (default: all)"
    )
    options = parser.parse_args()
    if options.processes:
        _main_processes(options)
        return
    names = options.stores or list(CANDIDATES)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    base = Path(tempfile.mkdtemp(prefix="cordwood-bench-", dir=options.directory))
    try:
        for number in range(options.rounds):
            for name in names:
                try:
                    found = measure(
                        CANDIDATES[name],
                        base / f"{name}-{number}",
                        options.size,
                        options.count,
                        options.threads,
                    )
                except ImportError as error:
                    print(f"{name} is left out: {error} (pip install 'cordwood[bench]')", file=sys.stderr)
                    continue
                runs[name].append(found)
                shutil.rmtree(base / f"{name}-{number}", ignore_errors=True)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    report = {
        name: {kind: sorted(run[kind] for run in found)[len(found) // 2] for kind in found[0]}
        for name, found in runs.items()
        if found
    }
    if options.json:
        print(json.dumps({"size_bytes": options.size, "operations_per_second": report}))
        return
    kinds = list(next(iter(report.values())))
    print(f"operations a second, values of {options.size} bytes, median of {options.rounds}")
    print("| store | durable | " + " | ".join(kinds) + " |")
    print("|---|---|" + "---|" * len(kinds))
    for name, medians in report.items():
        durable = "yes" if getattr(CANDIDATES[name], "durable", False) else "no"
        print(f"| {name} | {durable} | " + " | ".join(f"{medians[kind]:,.0f}" for kind in kinds) + " |")


def _main_processes(options: argparse.Namespace) -> None:
    base = Path(tempfile.mkdtemp(prefix="cordwood-bench-", dir=options.directory))
    try:
        found = measure_processes(
            base / "store", options.processes, options.size, options.count, options.seconds
        )
    finally:
        shutil.rmtree(base, ignore_errors=True)
    if options.json:
        print(json.dumps({"size_bytes": options.size, "measured": found}))
        return
    print(
        f"values of {options.size} bytes, operations a second, {os.cpu_count()} processors\n| what | |\n|---|---|"
    )
    for name, value in found.items():
        print(f"| {name} | {value:,.1f} |")


if __name__ == "__main__":
    main()
