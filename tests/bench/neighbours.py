"""The servers that are measured: Cordwood and its neighbours, each on a free port with a directory of its own.

Neighbours run with their own defaults; Cordwood with `durability = "strict"`, its default.

Must not know: what is measured, or how.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ACCESS_KEY, SECRET_KEY = "benchmark", "benchmark-secret-key"
_START_TIMEOUT_S = 60.0
_SETTLING_S = 3.0  # some listen before they can serve
_STOP_TIMEOUT_S = 15.0


class Server(NamedTuple):
    command: list[str]
    environment: dict[str, str]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _cordwood(program: str, port: int, directory: Path, workers: int) -> Server:
    command = [program, "serve", str(directory), "--bind", f"127.0.0.1:{port}", "--no-profile"]
    keys = {"CORDWOOD_ACCESS_KEY": ACCESS_KEY, "CORDWOOD_SECRET_KEY": SECRET_KEY}
    return Server([*command, "--workers", str(workers)], keys)


def _seaweedfs(program: str, port: int, directory: Path, _workers: int) -> Server:
    command = [program, "mini", f"-dir={directory}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    return Server([*command, f"-s3.port={port}", "-admin.ui=false", "-webdav=false"], keys)


def _rclone(program: str, port: int, directory: Path, _workers: int) -> Server:
    command = [program, "serve", "s3", str(directory), "--addr", f"127.0.0.1:{port}"]
    return Server([*command, "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}"], {})


def _minio(program: str, port: int, directory: Path, _workers: int) -> Server:
    command = [program, "server", "--quiet", "--address", f"127.0.0.1:{port}"]
    keys = {"MINIO_ROOT_USER": ACCESS_KEY, "MINIO_ROOT_PASSWORD": SECRET_KEY, "MINIO_BROWSER": "off"}
    return Server([*command, "--console-address", f"127.0.0.1:{free_port()}", str(directory)], keys)


def _versitygw(program: str, port: int, directory: Path, _workers: int) -> Server:
    command = [
        program,
        "--access",
        ACCESS_KEY,
        "--secret",
        SECRET_KEY,
        "--port",
        f"127.0.0.1:{port}",
        "--quiet",
    ]
    return Server([*command, "posix", str(directory)], {})


_KNOWN: dict[str, tuple[str, Callable[[str, int, Path, int], Server]]] = {
    "cordwood": ("cordwood", _cordwood),
    "seaweedfs": ("weed", _seaweedfs),
    "rclone": ("rclone", _rclone),
    "minio": ("minio", _minio),
    "versitygw": ("versitygw", _versitygw),
}
NAMES = tuple(_KNOWN)


def add_earlier(program: Path) -> None:
    """Another version of this server by its `cordwood`, as a neighbour called "before"."""
    _KNOWN["before"] = (str(program.absolute()), _cordwood)


def find_program(name: str) -> str | None:
    """The program of a server: beside this Python, or on PATH."""
    beside = Path(sys.executable).parent / _KNOWN[name][0]
    return str(beside) if beside.exists() else shutil.which(_KNOWN[name][0])


def known_server(name: str, port: int, directory: Path, workers: int) -> Server:
    """How a server is started; `workers` is for ours."""
    program = find_program(name)
    if program is None:
        raise SystemExit(f"{name}: its program {_KNOWN[name][0]!r} is not on PATH")
    return _KNOWN[name][1](program, port, directory, workers)


@contextmanager
def serving(names: Iterable[str], base: Path, workers: int) -> Iterator[dict[str, int]]:
    """Starts the servers below `base`, and stops them at the end; gives the port of each."""
    ports: dict[str, int] = {}
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for name in names:
            directory = base / name
            directory.mkdir()
            ports[name] = free_port()
            server = known_server(name, ports[name], directory, workers)
            process = _start(server, base / f"{name}.log")
            processes.append(process)
            _wait_until_listening(process, ports[name], base / f"{name}.log")
        time.sleep(_SETTLING_S)
        yield ports
    finally:
        for process in processes:
            _stop(process)


def _start(server: Server, log: Path) -> subprocess.Popen[bytes]:
    with open(log, "wb") as output:
        return subprocess.Popen(
            server.command,
            env={**os.environ, **server.environment},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _wait_until_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise SystemExit(f"a server did not start: {log.read_text(errors='replace')[-2000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
