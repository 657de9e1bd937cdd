"""`cordwood` as a person has it: commands in processes of their own, with a home directory of their own.

Must not know: what is inside. Invariant: nothing started here outlives its context, and nothing reads or writes the
home directory or the S3 configuration of whoever runs the tests.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LISTENING = re.compile(r"cordwood is listening on (http://\S+)")
_START_S = 30


def environment(home: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    unwanted = ("AWS_", "CORDWOOD_", "XDG_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(unwanted)}
    home.mkdir(parents=True, exist_ok=True)
    return {**kept, "HOME": str(home), "PYTHONUNBUFFERED": "1", **(more or {})}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "cordwood.cli.main", *arguments]


@dataclass
class Result:
    code: int
    out: str
    err: str

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass
class Person:
    """Somebody with a home directory and some environment variables."""

    home: Path
    env: dict[str, str]
    cwd: Path

    def run(self, *arguments: str, data: bytes | None = None, code: int | None = 0) -> Result:
        """`code` is the exit code that is expected; None takes any."""
        done = self.run_bytes(*arguments, data=data)
        result = Result(done.returncode, done.stdout.decode(), done.stderr.decode())
        if code is not None:
            assert result.code == code, (
                f"cordwood {' '.join(arguments)}: exit {result.code}\n{result.err}{result.out}"
            )
        return result

    def run_bytes(self, *arguments: str, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            command(*arguments),
            input=data,
            stdin=subprocess.DEVNULL if data is None else None,
            capture_output=True,
            env=environment(self.home, self.env),
            cwd=self.cwd,
            timeout=90,
        )


class Served:
    """One `cordwood serve`. Its output is collected while it runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.url = ""
        self.lines: list[str] = []
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if match := _LISTENING.search(line):
                self.url = match[1]
                self._listening.set()
        self._listening.set()

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def wait_until_listening(self) -> None:
        assert self._listening.wait(_START_S), self.output
        assert self.url, f"the server ended with {self.process.wait(10)}:\n{self.output}"

    def workers(self) -> list[int]:
        """Process ids of the living workers, without the maintenance process."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children if _name_of(pid).startswith("cw-worker")]

    def maintenance(self) -> list[int]:
        """The process id of the maintenance process, if it lives."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children if _name_of(pid).startswith("cw-maintenance")]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(40)
        self._reader.join(10)
        return code


def _name_of(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except FileNotFoundError:
        return ""


@contextmanager
def serving(
    home: Path, directory: Path, *options: str, env: Mapping[str, str] | None = None
) -> Iterator[Served]:
    served = Served(
        subprocess.Popen(
            command("serve", str(directory), "--bind", "127.0.0.1:0", *options),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(home, env),
            start_new_session=True,
        )
    )
    try:
        served.wait_until_listening()
        yield served
    finally:
        if served.process.poll() is None:
            served.process.terminate()
            try:
                served.process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(served.process.pid, signal.SIGKILL)
                served.process.wait(10)
        assert served.process.stdout is not None
        served._reader.join(10)
        served.process.stdout.close()


def eventually(condition: Any, timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.02)
