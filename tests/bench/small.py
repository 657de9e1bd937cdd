"""What a small request costs the server: `python -m tests.bench.small`.

Starts a server with one worker on a free port of 127.0.0.1, sends it prepared and signed requests, and prints the
processor time of the worker per request, that of its loop apart from that of its other threads (the commit thread, the
threads of the bridge). Processor time hardly depends on what else the machine does, so it shows what a change of the
code is worth where throughput cannot. On a crowded machine it still grows with the caches' emptiness: compare two
versions in turn, never a figure of today with one of yesterday.

Must not know: how the load is made.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from cordwood.cli.load import Place, Prepared, run
from cordwood.server.wire.signing import EMPTY_SHA256, UNSIGNED_PAYLOAD, Credential, sign_headers

_CREDENTIAL = Credential("benchmark", "benchmark-secret-key")
_START_TIMEOUT_S = 30.0
_OPERATIONS = ("PUT", "GET", "HEAD", "LIST", "DELETE")


class Cost(NamedTuple):
    """Microseconds of processor time per request."""

    loop_us: float
    other_us: float


class _Worker:
    def __init__(self, port: int, pid: int, size: int, keys: int, seconds: float) -> None:
        self._host = f"127.0.0.1:{port}"
        self._place = Place("127.0.0.1", port, None)
        self._pid = pid
        self._size = size
        self._keys = [f"small/{number:06d}" for number in range(keys)]
        self._seconds = seconds

    def prepare(self) -> None:
        self._send([self._request("PUT", "")], 1, repeats=False)

    def cost(self, operation: str, connections: int) -> Cost:
        """Of one run; GET, HEAD and DELETE find every key there."""
        if operation != "PUT":
            self._send([self._request("PUT", key) for key in self._keys], 64, repeats=False)
        if operation == "LIST":
            page = "?list-type=2&max-keys=100&prefix=small%2F&start-after=small%2F"
            requests = [self._request("GET", "", f"{page}{number:06d}") for number in range(len(self._keys))]
        else:
            requests = [self._request(operation, key) for key in self._keys]
        repeats = operation in ("GET", "HEAD", "LIST")
        loop_ns, other_ns = self._spent_ns()
        count = self._send(requests, connections, repeats=repeats)
        loop_after_ns, other_after_ns = self._spent_ns()
        return Cost((loop_after_ns - loop_ns) / count / 1000, (other_after_ns - other_ns) / count / 1000)

    def _send(self, requests: list[Prepared], connections: int, *, repeats: bool) -> int:
        seconds = self._seconds if repeats else 60.0
        tally = run(self._place, requests, connections=connections, seconds=seconds, repeats=repeats)
        if tally.failed:
            raise SystemExit(f"{tally.failed} requests failed: {tally.first_failure}")
        return len(tally.latencies_s)

    def _request(self, method: str, key: str, query: str = "") -> Prepared:
        path = f"/bench/{key}" if key else "/bench"
        size = self._size if method == "PUT" and key else 0
        headers = {"host": self._host}
        if method == "PUT":
            headers["content-length"] = str(size)
        digest = UNSIGNED_PAYLOAD if size else EMPTY_SHA256
        url = f"http://{self._host}{path}{query}"
        headers |= sign_headers(method, url, headers, digest, _CREDENTIAL, "us-east-1", datetime.now(UTC))
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return Prepared(f"{method} {path}{query} HTTP/1.1\r\n{lines}\r\n".encode(), size, method == "HEAD")

    def _spent_ns(self) -> tuple[int, int]:
        """Of the main thread, which runs the loop, and of all others."""
        loop_ns = other_ns = 0
        for thread in Path(f"/proc/{self._pid}/task").iterdir():
            spent_ns = int((thread / "schedstat").read_text().split()[0])
            if thread.name == str(self._pid):
                loop_ns += spent_ns
            else:
                other_ns += spent_ns
        return loop_ns, other_ns


@contextmanager
def _serving(directory: str) -> Iterator[tuple[int, int]]:
    """The port, and the process id of the one worker."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    command = [str(Path(sys.executable).parent / "cordwood"), "serve", directory, "--no-profile"]
    keys = {
        "CORDWOOD_ACCESS_KEY": _CREDENTIAL.access_key,
        "CORDWOOD_SECRET_KEY": _CREDENTIAL.secret_key,
    }
    process = subprocess.Popen(
        [*command, "--workers", "1", "--bind", f"127.0.0.1:{port}"],
        env={**os.environ, **keys},
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    try:
        assert process.stdout is not None
        deadline = time.monotonic() + _START_TIMEOUT_S
        while "cordwood is listening" not in process.stdout.readline():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the server did not start; its messages are above")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        (worker,) = [pid for pid in children if "worker" in Path(f"/proc/{pid}/comm").read_text()]
        yield port, int(worker)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.small", description=__doc__)
    parser.add_argument("--operations", default=",".join(_OPERATIONS))
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--size", type=int, default=4096, help="bytes per object (default: 4096)")
    parser.add_argument("--keys", type=int, default=4000)
    parser.add_argument("--seconds", type=float, default=1.5, help="per run of GET, HEAD and LIST")
    parser.add_argument("--rounds", type=int, default=3, help="the least of them is printed (default: 3)")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="cordwood-small-") as directory,
        _serving(directory) as (port, pid),
    ):
        worker = _Worker(port, pid, options.size, options.keys, options.seconds)
        worker.prepare()
        print("| operation | loop, µs per request | other threads, µs per request |\n|---|---|---|")
        for operation in options.operations.split(","):
            costs = [worker.cost(operation, options.connections) for _ in range(options.rounds)]
            least = min(costs, key=sum)
            print(f"| {operation} | {least.loop_us:.0f} | {least.other_us:.0f} |", flush=True)


if __name__ == "__main__":
    main()
