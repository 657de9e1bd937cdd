"""`cordwood speedtest`: how fast an S3 endpoint is, measured so that the client is not what is measured.

Must not know: sockets (load.py). Invariants:
* Works in a bucket of its own with a random name, and removes it at the end, also after Ctrl-C.
* Every case is bounded in time, requests and bytes.
* With --compare, both endpoints get the same cases in turn, so that a busy moment of the machine hits both.
"""

from __future__ import annotations

import os
import platform
import secrets
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from cordwood.cli.common import client_command, make_client
from cordwood.cli.errors import CliError
from cordwood.cli.load import Prepared, Tally, run_in_processes
from cordwood.cli.output import print_json, warn
from cordwood.server.units import format_size, parse_size

if TYPE_CHECKING:
    from cordwood.cli.client import Client

OPERATIONS = ("PUT", "GET", "HEAD", "LIST", "DELETE")
_MOST_REQUESTS = {1: 3000, 16: 12_000}
_MOST_REQUESTS_ELSE = 20_000
_LIST_KEYS = 100


@dataclass(frozen=True)
class Case:
    size: int
    connections: int
    count: int
    """Objects made by PUT, at most."""


def _sizes(_ctx: click.Context, _param: click.Parameter, value: str) -> list[int]:
    try:
        return [parse_size(text) for text in value.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{value!r}: {error}") from None


def _numbers(_ctx: click.Context, _param: click.Parameter, value: str) -> list[int]:
    try:
        numbers = [int(text) for text in value.split(",")]
    except ValueError:
        numbers = [0]
    if not all(1 <= number <= 1024 for number in numbers):
        raise click.BadParameter(f"{value!r}: expected numbers from 1 to 1024, such as 1,16,64")
    return numbers


def _operations(_ctx: click.Context, _param: click.Parameter, value: str) -> list[str]:
    names = value.upper().split(",")
    unknown = [name for name in names if name not in OPERATIONS]
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r}: expected some of {','.join(OPERATIONS)}")
    return names


@click.command()
@click.option(
    "--sizes",
    default="4KiB,64KiB,1MiB,256MiB",
    callback=_sizes,
    help="Object sizes. [4KiB,64KiB,1MiB,256MiB]",
)
@click.option("--concurrency", default="1,16,64", callback=_numbers, help="Connections at once. [1,16,64]")
@click.option(
    "--operations", default=",".join(OPERATIONS), callback=_operations, help="[PUT,GET,HEAD,LIST,DELETE]"
)
@click.option(
    "--seconds", type=click.FloatRange(0.1, 600), default=3.0, help="At most this long per line. [3]"
)
@click.option(
    "--budget", default="5GiB", callback=lambda ctx, param, value: _sizes(ctx, param, value)[0],
    help="Most bytes of objects at once; cases that need more for one object per connection are left out. [5GiB]",
)  # fmt: skip
@click.option("--processes", type=click.IntRange(1, 64), default=1, help="Processes that make the load. [1]")
@click.option("--compare", metavar="URL", help="Also measure this endpoint, in turn, and show the ratio.")
@click.option(
    "--compare-profile", metavar="NAME", help="Where the keys (or all) of the other endpoint come from."
)
@click.option("--compare-access-key", help="Key of the other endpoint. [the same]")
@click.option("--compare-secret-key", help="Secret of the other endpoint. [the same]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line of the table.")
@client_command
def speedtest(
    sizes: list[int],
    concurrency: list[int],
    operations: list[str],
    seconds: float,
    budget: int,
    processes: int,
    compare: str | None,
    compare_profile: str | None,
    compare_access_key: str | None,
    compare_secret_key: str | None,
    as_json: bool,
    client: Client,
) -> int:
    """Measure PUT, GET, HEAD, LIST and DELETE of an S3 endpoint.

    Requests are made and signed beforehand. The column `client` is the CPU that the load itself cost per request: on a
    machine that also runs the server, that much was not the server's.
    """
    clients = [client]
    if compare or compare_profile:
        target = client.target
        keys = (compare_access_key, compare_secret_key)
        if not compare_profile and not any(keys):
            keys = (target.access_key, target.secret_key)
        clients.append(make_client(compare, *keys, target.region, compare_profile, target.is_anonymous))
    if not as_json:
        print(
            f"{platform.node()}, {os.cpu_count()} CPUs, {processes} load process(es), {seconds:g} s per line"
        )
        for letter, each in zip("AB", clients, strict=False):
            print(f"{letter}: {each.target.endpoint}")
        print(_HEADING)
    failures = 0
    benches = [_Bench(each, operations, seconds, processes) for each in clients]
    try:
        for bench in benches:
            bench.prepare()
        for size in sizes:
            for connections in concurrency:
                if size * connections > budget:
                    warn(
                        f"{format_size(size)} x {connections} connections is more than --budget {format_size(budget)}"
                    )
                    continue
                most = _MOST_REQUESTS.get(connections, _MOST_REQUESTS_ELSE)
                case = Case(size, connections, max(connections, min(most, budget // max(size, 1))))
                for rows in _in_turn(benches, case, lists=size == sizes[0]):
                    failures += _print_rows(rows, clients, as_json=as_json)
    finally:
        for bench in benches:
            bench.clean_up()
        for each in clients[1:]:
            each.__exit__()
    return 1 if failures else 0


_CLEAN_UPS = 3


@dataclass(frozen=True)
class Row:
    operation: str
    case: Case
    tally: Tally


class _Bench:
    """One endpoint, its bucket, and the objects of the case at hand."""

    def __init__(self, client: Client, operations: list[str], seconds: float, processes: int) -> None:
        from cordwood.cli.s3 import S3

        self._client = client
        self._s3 = S3(client)
        self._operations = operations
        self._seconds = seconds
        self._processes = processes
        self._bucket = f"cordwood-speedtest-{secrets.token_hex(6)}"
        self._is_made = False

    def prepare(self) -> None:
        self._s3.make_bucket(self._bucket)
        self._is_made = True

    def clean_up(self) -> None:
        from cordwood.cli.removing import delete_all

        if not self._is_made:
            return
        # A server ends the writes of a client that was interrupted, maybe behind the first look into the bucket.
        for attempt in range(_CLEAN_UPS):
            try:
                entries = self._s3.objects(self._bucket)
                delete_all(self._s3, self._bucket, ((entry.key, "") for entry in entries))
                self._s3.remove_bucket(self._bucket)
                return
            except CliError as error:
                if attempt == _CLEAN_UPS - 1:
                    warn(f"bucket {self._bucket} could not be removed: {error}")
            time.sleep(0.5)

    def rows(self, case: Case, *, lists: bool) -> Iterator[Row]:
        """One row per operation. PUT always runs, for the others need objects."""
        prefix = f"{case.size}-{case.connections}/"
        keys = [f"{prefix}{number:06d}" for number in range(case.count)]
        put = self._load([("PUT", key, "") for key in keys], case, repeats=False)
        yield Row("PUT", case, put)
        # With several processes the requests that were tried are no prefix: then look.
        made = keys[: put.sent]
        if self._processes > 1 or put.failed:
            made = [entry.key for entry in self._s3.objects(self._bucket, prefix)]
        for operation in ("GET", "HEAD"):
            if operation in self._operations and made:
                tally = self._load([(operation, key, "") for key in made], case, repeats=True)
                yield Row(operation, case, tally)
        if "LIST" in self._operations and lists and made:
            queries = [
                ("GET", "", f"?list-type=2&max-keys={_LIST_KEYS}&prefix={quote(prefix, safe='')}"
                f"&start-after={quote(key, safe='')}")
                for key in made[:1000]
            ]  # fmt: skip
            yield Row("LIST", case, self._load(queries, case, repeats=True))
        delete = self._load([("DELETE", key, "") for key in made], case, repeats=False)
        if "DELETE" in self._operations and made:
            yield Row("DELETE", case, delete)

    def _load(self, wanted: list[tuple[str, str, str]], case: Case, *, repeats: bool) -> Tally:
        requests = [self._request(method, key, query, case.size) for method, key, query in wanted]
        return run_in_processes(
            self._client.load_place(),
            requests,
            connections=case.connections,
            seconds=self._seconds,
            repeats=repeats,
            processes=self._processes,
        )

    def _request(self, method: str, key: str, query: str, size: int) -> Prepared:
        body_size = size if method == "PUT" else 0
        head = self._client.prepared_head(method, self._bucket, key, query, body_size, datetime.now(UTC))
        return Prepared(head, body_size, method == "HEAD")


def _in_turn(benches: list[_Bench], case: Case, *, lists: bool) -> Iterator[list[Row]]:
    """The same operation on every endpoint, then the next operation."""
    yield from (
        list(rows) for rows in zip(*(bench.rows(case, lists=lists) for bench in benches), strict=False)
    )


_COLUMNS = ("ops/s", "MB/s", "p50 ms", "p99 ms", "client µs", "failed")
_HEADING = f"  {'op':7}{'size':>8}{'conns':>7}" + "".join(f"{name:>10}" for name in _COLUMNS)


def _print_rows(rows: list[Row], clients: list[Client], *, as_json: bool) -> int:
    fields = [_fields(row) for row in rows]
    for letter, client, row, values in zip("AB", clients, rows, fields, strict=False):
        if as_json:
            print_json(
                {"endpoint": client.target.endpoint, **values, "first_failure": row.tally.first_failure}
            )
        else:
            print(
                f"{letter if len(rows) > 1 else ' ':2}{row.operation:7}{format_size(row.case.size):>8}"
                f"{row.case.connections:7}{values['ops_per_s']:10.1f}{values['mb_per_s']:10.1f}"
                f"{values['p50_ms']:10.2f}{values['p99_ms']:10.2f}{values['client_cpu_us']:10.0f}{row.tally.failed:10}"
            )
        if row.tally.failed and not as_json:
            warn(f"{row.operation}: {row.tally.first_failure}")
    if len(rows) == 2 and not as_json:
        a, b = fields
        if b["ops_per_s"] and b["p99_ms"]:
            speed = f"{a['ops_per_s'] / b['ops_per_s']:.2f}x the speed"
            print(f"  A has {speed} of B, {a['p99_ms'] / b['p99_ms']:.2f}x the p99")
    sys.stdout.flush()
    return sum(row.tally.failed for row in rows)


def _fields(row: Row) -> dict[str, Any]:
    tally = row.tally
    latencies = sorted(tally.latencies_s)
    count = len(latencies)
    took_s = tally.took_s or 1e-9
    moved = row.case.size * count if row.operation in ("PUT", "GET") else 0
    return {
        "operation": row.operation,
        "size": row.case.size,
        "connections": row.case.connections,
        "requests": count,
        "failed": tally.failed,
        "seconds": round(tally.took_s, 4),
        "ops_per_s": round(count / took_s, 2),
        "mb_per_s": round(moved / took_s / 1e6, 3),
        "p50_ms": round(_percentile(latencies, 50) * 1000, 4),
        "p99_ms": round(_percentile(latencies, 99) * 1000, 4),
        "client_cpu_us": round(tally.cpu_s / max(count, 1) * 1e6, 2),
    }


def _percentile(values: list[float], percent: int) -> float:
    """Nearest rank."""
    return values[max(0, -(-len(values) * percent // 100) - 1)] if values else 0.0
