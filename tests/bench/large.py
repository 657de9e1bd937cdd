"""Large objects beside the limits of the machine, in one run: `python -m tests.bench.large`.

A PUT is set beside bare MD5 and appends with one sync at the end, a GET beside nginx with sendfile, each in the same
run and in turn. Processor time is the server's own, from /proc, and the load's: on a machine that others use it tells
more than the wall clock does.

Must not know: how the server works inside.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cordwood.cli.client import Client
from cordwood.cli.common import make_client
from cordwood.cli.load import Prepared, Tally, run
from cordwood.cli.s3 import S3, Part, Upload
from cordwood.cli.uri import S3Uri
from tests.bench.limits import bare_put
from tests.bench.neighbours import ACCESS_KEY, SECRET_KEY, free_port, known_server

_BUCKET = "large"
_MIB = 1 << 20
_START_TIMEOUT_S = 60.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_RANGE_BYTES = 4 << 10
_PARTS = 8
_FOREVER_S = 3600.0


@dataclass(frozen=True)
class Figure:
    """One measurement: bytes moved (or requests, for small ones), and what they cost."""

    wall_s: float
    bytes: int
    count: int
    server_cpu_s: float
    load_cpu_s: float
    p99_s: float = 0.0

    @property
    def mib_per_s(self) -> float:
        return self.bytes / _MIB / self.wall_s

    @property
    def is_small(self) -> bool:
        return self.bytes < self.count * _MIB

    @property
    def speed(self) -> float:
        return (self.count if self.is_small else self.bytes) / self.wall_s

    def line(self, name: str) -> str:
        mib = max(self.bytes / _MIB, 1e-9)
        if self.is_small:
            rest = (
                f"{self.count / self.wall_s:9,.0f} op/s   p99 {self.p99_s * 1e3:7.2f} ms   "
                f"server {self.server_cpu_s / self.count * 1e6:6.0f} us/op"
            )
        else:
            rest = (
                f"{self.mib_per_s:9,.0f} MiB/s   CPU a MiB: server {self.server_cpu_s / mib * 1e3:6.3f} ms, "
                f"load {self.load_cpu_s / mib * 1e3:6.3f} ms"
            )
        return f"  {name:34} {rest}"


# --- servers ----------------------------------------------------------------------------------------------------


class Server:
    """A started server, and what its processes have used."""

    def __init__(self, command: list[str], port: int, log: Path, environment: dict[str, str]) -> None:
        self.port = port
        environment = {**os.environ, **environment}
        with open(log, "wb") as output:
            self._process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.1)
        raise SystemExit(f"{command[0]} did not start: {log.read_text()}")

    def processes(self) -> list[int]:
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]

    def cpu_s(self) -> float:
        total = 0
        for pid in self.processes():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / _TICKS_PER_S

    def peak_mib(self) -> float:
        """The most memory that any process had since `forget_peaks`."""
        peaks = []
        for pid in self.processes():
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    peaks.append(int(line.split()[1]) / 1024)
        return max(peaks)

    def forget_peaks(self) -> None:
        for pid in self.processes():
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _start_cordwood(base: Path, workers: int, extra: list[str]) -> Server:
    port = free_port()
    command = [str(Path(sys.executable).parent / "cordwood"), "serve", str(base / "store")]
    command += ["--bind", f"127.0.0.1:{port}", "--no-profile", "--workers", str(workers), *extra]
    keys = {"CORDWOOD_ACCESS_KEY": ACCESS_KEY, "CORDWOOD_SECRET_KEY": SECRET_KEY}
    return Server(command, port, base / "cordwood.log", keys)


_NGINX = """\
daemon off; worker_processes {workers}; pid {base}/nginx.pid; error_log {base}/nginx-error.log; user root;
events {{ worker_connections 4096; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;
  client_body_temp_path {base}/t1; proxy_temp_path {base}/t2; fastcgi_temp_path {base}/t3;
  uwsgi_temp_path {base}/t4; scgi_temp_path {base}/t5;
  server {{ listen 127.0.0.1:{port} reuseport; root {base}/www; }}
}}
"""


def _start_nginx(base: Path, workers: int, size: int) -> Server | None:
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        print("nginx is not installed: its lines are left out", file=sys.stderr)
        return None
    port = free_port()
    (base / "www" / _BUCKET).mkdir(parents=True)
    with open(base / "www" / _BUCKET / "object", "wb") as file:
        for _ in range(size // _MIB):
            file.write(os.urandom(_MIB))
    config = base / "nginx.conf"
    config.write_text(_NGINX.format(base=base, workers=workers, port=port))
    return Server([program, "-p", str(base), "-c", str(config)], port, base / "nginx.log", {})


def _start_receiver(base: Path) -> Server:
    port = free_port()
    (base / "received").mkdir()
    command = [sys.executable, "-m", "tests.bench.limits", str(port), str(base / "received")]
    return Server(command, port, base / "receiver.log", {})


def _client(server: Server) -> Client:
    return make_client(f"http://127.0.0.1:{server.port}", ACCESS_KEY, SECRET_KEY, "us-east-1", None, False)


# --- one measurement --------------------------------------------------------------------------------------------


def _request(
    client: Client, method: str, key: str, *, size: int = 0, query: str = "", more: str = ""
) -> Prepared:
    head = client.prepared_head(method, _BUCKET, key, query, size, datetime.now(UTC))
    return Prepared(head[:-2] + more.encode() + b"\r\n", size)


def _measure(
    server: Server,
    requests: list[Prepared],
    connections: int,
    *,
    seconds: float = _FOREVER_S,
    repeats: bool = False,
) -> Figure:
    before_s = server.cpu_s()
    tally = run(
        _client(server).load_place(), requests, connections=connections, seconds=seconds, repeats=repeats
    )
    return _figure(tally, requests, server.cpu_s() - before_s)


def _figure(tally: Tally, requests: list[Prepared], server_cpu_s: float) -> Figure:
    if tally.failed:
        raise SystemExit(f"{tally.failed} requests failed: {tally.first_failure}")
    count = len(tally.latencies_s)
    moved = sum(request.body_size for request in requests) or tally.received_bytes
    latencies = sorted(tally.latencies_s)
    p99_s = latencies[max(0, -(-count * 99 // 100) - 1)]
    return Figure(tally.took_s, moved, count, server_cpu_s, tally.cpu_s, p99_s)


def _bare_put(directory: Path, streams: int, size: int) -> Figure:
    took_s, cpu_s = bare_put(directory, streams, size)
    return Figure(took_s, streams * size, streams, cpu_s, 0.0)


def _multipart(server: Server, key: str, part_size: int) -> Figure:
    client = _client(server)
    s3 = S3(client)
    before_s = server.cpu_s()
    began_s = time.perf_counter()
    upload = s3.create_upload(S3Uri(_BUCKET, key), {})
    requests = [
        _request(
            client, "PUT", key, size=part_size, query=f"?partNumber={number}&uploadId={upload.upload_id}"
        )
        for number in range(1, _PARTS + 1)
    ]
    tally = run(client.load_place(), requests, connections=_PARTS, seconds=_FOREVER_S, repeats=False)
    _complete(client, s3, upload)
    took_s = time.perf_counter() - began_s
    figure = _figure(tally, requests, server.cpu_s() - before_s)
    return Figure(took_s, figure.bytes, 1, figure.server_cpu_s, figure.load_cpu_s)


def _complete(client: Client, s3: S3, upload: Upload) -> None:
    listed = client.request("GET", upload.uri.bucket, upload.uri.key, query=[("uploadId", upload.upload_id)])
    etags = re.findall(r"<ETag>[^<]*?([0-9a-f]{32})", listed.body.decode())
    s3.complete(upload, [Part(number, 0, etag, "") for number, etag in enumerate(etags, start=1)])


# --- what others feel -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _idle(server: Server, count: int) -> Iterator[None]:
    """Connections that say nothing."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        yield


@contextlib.contextmanager
def _slow_readers(server: Server, count: int, key: str) -> Iterator[None]:
    """Readers of a large object who take 64 KiB ten times a second."""
    stop = threading.Event()
    head = _request(_client(server), "GET", key).head

    def read() -> None:
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.sendall(head)
            while not stop.wait(0.1):
                sock.recv(64 << 10)

    threads = [threading.Thread(target=read) for _ in range(count)]
    for each in threads:
        each.start()
    time.sleep(0.3)
    try:
        yield
    finally:
        stop.set()
        for each in threads:
            each.join()


# --- the rows ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    base: Path
    ours: Server
    others: dict[str, Server]
    nginx: Server | None
    receiver: Server
    size: int
    rounds: int
    seconds: float

    def s3_servers(self) -> dict[str, Server]:
        return {"cordwood": self.ours, **self.others}

    def puts(self) -> None:
        """256 MiB in one stream, and as 8 parts at once."""
        numbers = iter(range(1_000_000))

        def put(server: Server) -> Figure:
            request = _request(_client(server), "PUT", f"put{next(numbers)}", size=self.size)
            return _measure(server, [request], 1)

        def parts(server: Server) -> Figure:
            return _multipart(server, f"parts{next(numbers)}", part_size)

        mib, part_size = self.size // _MIB, self.size // _PARTS
        limits = {
            "MD5 and the disk": lambda: _bare_put(self.base, 1, self.size),
            "the same, received": lambda: put(self.receiver),
        }
        self._table(f"PUT {mib} MiB, one stream", put, limits)
        request = _request(_client(self.receiver), "PUT", "x", size=part_size)
        limits = {
            "MD5 and the disk": lambda: _bare_put(self.base, _PARTS, part_size),
            "the same, received": lambda: _measure(self.receiver, [request] * _PARTS, _PARTS),
        }
        self._table(f"multipart, {_PARTS} x {mib // _PARTS} MiB at once", parts, limits)

    def gets(self, streams: int) -> None:
        def get(server: Server) -> Figure:
            return _measure(server, [_request(_client(server), "GET", "object")] * max(streams, 2), streams)

        nginx = self.nginx
        limits = {} if nginx is None else {"nginx, sendfile": lambda: get(nginx)}
        self._table(f"GET {self.size // _MIB} MiB, {streams} streams", get, limits)

    def ranges(self, connections: int) -> None:
        picker = random.Random(4)
        texts = [
            f"Range: bytes={first}-{first + _RANGE_BYTES - 1}\r\n"
            for first in (picker.randrange(4 * self.size - _RANGE_BYTES) for _ in range(2000))
        ]

        def get(server: Server) -> Figure:
            client = _client(server)
            requests = [_request(client, "GET", "wide", more=text) for text in texts]
            return _measure(server, requests, connections, seconds=self.seconds, repeats=True)

        self._table(f"GET 4 KiB ranges of {4 * self.size // _MIB} MiB, {connections} connections", get, {})

    def _table(
        self, title: str, ours: Callable[[Server], Figure], limits: dict[str, Callable[[], Figure]]
    ) -> None:
        print(title)
        found: dict[str, list[Figure]] = {}
        for _ in range(self.rounds):
            for name, limit in limits.items():
                found.setdefault(name, []).append(limit())
            for name, server in self.s3_servers().items():
                found.setdefault(name, []).append(ours(server))
        medians = {name: sorted(figures, key=lambda each: each.wall_s / each.count)[len(figures) // 2]
                   for name, figures in found.items()}  # fmt: skip
        for name, figure in medians.items():
            print(figure.line(name))
        mine = medians["cordwood"]
        for name, figure in medians.items():
            if name != "cordwood":
                ratio = mine.speed / figure.speed
                print(f"  cordwood : {name} = {ratio:.2f}")
        sys.stdout.flush()

    def memory(self, streams: int) -> None:
        """The most that one process takes while `streams` objects come, and while they go."""
        client = _client(self.ours)
        size = self.size // 4
        for method in ("PUT", "GET"):
            self.ours.forget_peaks()
            keys = [f"m{number}" for number in range(streams)]
            requests = [_request(client, method, key, size=size if method == "PUT" else 0) for key in keys]
            _measure(self.ours, requests, streams)
            print(
                f"memory of a process, {streams} streams of {method}: {self.ours.peak_mib():.0f} MiB at most"
            )
        sys.stdout.flush()

    def others_feel(self) -> None:
        """p99 of small GETs: alone, beside idle connections, beside slow readers."""
        client = _client(self.ours)
        request = _request(client, "GET", "small")

        def small() -> Figure:
            return _measure(self.ours, [request], 16, seconds=self.seconds, repeats=True)

        print("GET 4 KiB, 16 connections")
        figures: dict[str, list[Figure]] = {}
        for _ in range(self.rounds):
            figures.setdefault("alone", []).append(small())
            with _idle(self.ours, 1000):
                figures.setdefault("beside 1,000 idle connections", []).append(small())
            with _slow_readers(self.ours, 10, "object"):
                figures.setdefault("beside 10 slow readers", []).append(small())
        alone_s = 0.0
        for name, found in figures.items():
            median = sorted(found, key=lambda each: each.p99_s)[len(found) // 2]
            alone_s = alone_s or median.p99_s
            print(f"{median.line(name)}   p99 x {median.p99_s / alone_s:.2f}")
        sys.stdout.flush()


def _fill(server: Server, size: int) -> None:
    client = _client(server)
    S3(client).make_bucket(_BUCKET)
    for key, length in (("object", size), ("wide", 4 * size), ("small", 4 << 10)):
        _measure(server, [_request(client, "PUT", key, size=length)], 1)


_ROWS = ("put", "get", "get64", "ranges", "memory", "others")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.large", description=__doc__)
    parser.add_argument("--rows", default=",".join(_ROWS), help=f"some of {','.join(_ROWS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="for each line of small requests (default: 3)"
    )
    parser.add_argument("--mib", type=int, default=256, help="size of a large object (default: 256)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--peers", default="", help="also measure these: seaweedfs, rclone")
    parser.add_argument(
        "--directory", type=Path, help="on the disk to be measured (default: a temporary one)"
    )
    parser.add_argument("serve", nargs=argparse.REMAINDER, help="after --: given to `cordwood serve`")
    options = parser.parse_args()
    rows = options.rows.split(",")
    size = options.mib * _MIB
    base = Path(tempfile.mkdtemp(prefix="cordwood-large-", dir=options.directory))
    servers: list[Server] = []
    try:
        ours = _start_cordwood(base, options.workers, [each for each in options.serve if each != "--"])
        servers.append(ours)
        others = {}
        for name in filter(None, options.peers.split(",")):
            port = free_port()
            (base / name).mkdir()
            command, environment = known_server(name, port, base / name, options.workers)
            others[name] = Server(command, port, base / f"{name}.log", environment)
            servers.append(others[name])
            time.sleep(3)  # some listen before they can serve
        nginx = _start_nginx(base, options.workers, size)
        servers += [nginx] if nginx is not None else []
        receiver = _start_receiver(base)
        servers.append(receiver)
        bench = Bench(base, ours, others, nginx, receiver, size, options.rounds, options.seconds)
        for server in bench.s3_servers().values():
            _fill(server, size)
        if "put" in rows:
            bench.puts()
        if "get" in rows:
            bench.gets(1)
        if "get64" in rows:
            bench.gets(64)
        if "ranges" in rows:
            bench.ranges(1)
            bench.ranges(16)
        if "memory" in rows:
            bench.memory(64)
        if "others" in rows:
            bench.others_feel()
    finally:
        for server in servers:
            server.stop()
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    main()
