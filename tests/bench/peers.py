"""Cordwood's server beside its neighbours on one machine, in one run: `python -m tests.bench.peers`.

Starts each server on a free port of 127.0.0.1 with a directory of its own, measures them in turn with
`cordwood speedtest`, several rounds interleaved, and prints medians and our ratio to the best of the others.
Neighbours run with their own defaults; Cordwood with `durability = "strict"`.

Must not know: how the load is made.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

_ACCESS, _SECRET = "benchmark", "benchmark-secret-key"
_START_TIMEOUT_S = 60.0


class Server(NamedTuple):
    command: list[str]
    environment: dict[str, str]


class Row(NamedTuple):
    operation: str
    size: int
    connections: int


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def servers(port: int, directory: Path, workers: int) -> dict[str, Server]:
    """How each server is started, by name."""
    bin_ = Path(sys.executable).parent
    keys = {"AWS_ACCESS_KEY_ID": _ACCESS, "AWS_SECRET_ACCESS_KEY": _SECRET}
    cordwood = [
        str(bin_ / "cordwood"),
        "serve",
        str(directory),
        "--bind",
        f"127.0.0.1:{port}",
        "--no-profile",
    ]
    rclone = [str(bin_ / "rclone"), "serve", "s3", str(directory), "--addr", f"127.0.0.1:{port}"]
    weed = [str(bin_ / "weed"), "mini", f"-dir={directory}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    return {
        "cordwood": Server(
            [*cordwood, "--workers", str(workers)],
            {"CORDWOOD_ACCESS_KEY": _ACCESS, "CORDWOOD_SECRET_KEY": _SECRET},
        ),
        "seaweedfs": Server([*weed, f"-s3.port={port}", "-admin.ui=false", "-webdav=false"], keys),
        "rclone": Server([*rclone, "--auth-key", f"{_ACCESS},{_SECRET}"], {}),
    }


def _start(server: Server, port: int, log: Path) -> subprocess.Popen[bytes]:
    with open(log, "wb") as output:
        process = subprocess.Popen(
            server.command,
            env={**os.environ, **server.environment},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                time.sleep(3)  # some listen before they can serve
                return process
        time.sleep(0.2)
    raise SystemExit(f"{server.command[0]} did not start; see {log}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _measure(port: int, arguments: list[str]) -> list[dict[str, Any]]:
    command = [str(Path(sys.executable).parent / "cordwood"), "speedtest", "--json"]
    command += ["--endpoint", f"http://127.0.0.1:{port}", *arguments]
    environment = {**os.environ, "CORDWOOD_SECRET_KEY": _SECRET, "CORDWOOD_ACCESS_KEY": _ACCESS}
    found = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    if found.returncode:
        print(found.stderr.strip(), file=sys.stderr)
    # A line with failed requests is no figure: it is left out, and the message above says why.
    return [line for line in lines if not line["failed"]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.peers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="workers of our server (default: 2)")
    parser.add_argument(
        "--directory", type=Path, help="on the disk to be measured (default: a temporary one)"
    )
    parser.add_argument("--peers", default="seaweedfs,rclone")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="after --: given to `cordwood speedtest`")
    options = parser.parse_args()
    arguments = [argument for argument in options.arguments if argument != "--"]
    base = Path(tempfile.mkdtemp(prefix="cordwood-peers-", dir=options.directory))
    names = ["cordwood", *options.peers.split(",")]
    ports: dict[str, int] = {}
    processes = []
    try:
        for name in names:
            ports[name] = _free_port()
            directory = base / name
            directory.mkdir()
            server = servers(ports[name], directory, options.workers)[name]
            processes.append(_start(server, ports[name], base / f"{name}.log"))
        figures: dict[Row, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
        for number in range(options.rounds):
            for name in names:
                print(f"round {number + 1} of {options.rounds}: {name}", file=sys.stderr)
                for line in _measure(ports[name], arguments):
                    row = Row(line["operation"], line["size"], line["connections"])
                    figures[row][name].append(line)
        _report(figures, names, as_json=options.json)
    finally:
        for process in processes:
            _stop(process)
        shutil.rmtree(base, ignore_errors=True)


def _median(lines: list[dict[str, Any]], field: str) -> float:
    values = sorted(float(line[field]) for line in lines)
    return values[len(values) // 2] if values else 0.0


def _report(figures: dict[Row, dict[str, list[dict[str, Any]]]], names: list[str], *, as_json: bool) -> None:
    if not as_json:
        print(
            "| operation | size | connections | "
            + " | ".join(f"{n} op/s (p99 ms)" for n in names)
            + " | ratio |"
        )
        print("|---|---|---|" + "---|" * (len(names) + 1))
    for row, found in figures.items():
        rates = {name: _median(found[name], "ops_per_s") for name in names}
        tails = {name: _median(found[name], "p99_ms") for name in names}
        best = max(rates[name] for name in names[1:])
        ratio = rates[names[0]] / best if best else 0.0
        if as_json:
            print(json.dumps({**row._asdict(), "ops_per_s": rates, "p99_ms": tails, "ratio": ratio}))
        else:
            cells = " | ".join(f"{rates[name]:,.1f} ({tails[name]:.1f})" for name in names)
            print(f"| {row.operation} | {row.size} | {row.connections} | {cells} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
