"""A process under strace: its writes, in order, or one of its system calls made to fail or to kill it.

LMDB writes its file by itself, past fs.py. Here its calls are seen from outside: `Trace` replays them, so that a disk
can be made as it may look after a power cut between any two of them.

Must not know: pages of LMDB, records, steps.

Invariant: what was synced is in every image; of what was not, any part in sectors of 512 bytes.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.sim.faulty_fs import File, _apply, survivors

ROOT = Path(__file__).resolve().parent.parent.parent
CALLS = (
    "openat,close,lseek,write,writev,pwrite64,pwritev,pwritev2,fdatasync,fsync,ftruncate,fallocate,"
    "mkdir,mkdirat,link,linkat,rename,renameat,renameat2,unlink,unlinkat"
)


@cache
def why_not() -> str | None:
    """Why nothing can be traced here; None when it can."""
    if shutil.which("strace") is None:
        return "strace is not installed (apt-get install strace)"
    done = subprocess.run(
        ["strace", "-f", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        return f"strace may not trace a process here: {done.stderr.strip()}"
    return None


def run(arguments: Sequence[str], output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs this Python with arguments under strace; what strace saw goes to `output`."""
    command = ["strace", "-f", "-o", str(output), *options, sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@dataclass
class Event:
    """One call that changed a file: `what` is write, sync, size, grow, directory, name or say (to the journal)."""

    what: str
    file: File | None = None
    offset: int = 0
    data: bytes = b""
    path: Path | None = None


class Trace:
    """The calls of one run that changed files below `top`, which was empty, and its lines in a journal, in order."""

    def __init__(self, output: Path, top: Path, journal: Path) -> None:
        self.top = top
        self.journal = journal
        self.events: list[Event] = []
        self._files: dict[Path, File] = {}
        self._open: dict[
            int, tuple[Path, File, bool]
        ] = {}  # the journal too; the last: every write is synced
        self._positions: dict[int, int] = {}
        for call, arguments, result in _calls(output):
            if result < 0:
                continue
            if call == "openat":
                self._opened(arguments, result)
            elif call.startswith("mkdir"):
                path = Path(_texts(arguments)[0].decode())
                if path.is_relative_to(top):
                    self.events.append(Event("directory", path=path))
            elif call.startswith(("link", "rename", "unlink")):
                self._renamed(call, [Path(text.decode()) for text in _texts(arguments)])
            else:
                fd = re.match(r"\d+", arguments)
                if fd is not None and int(fd[0]) in self._open:
                    self._used(call, int(fd[0]), arguments, result)

    def _opened(self, arguments: str, fd: int) -> None:
        path = Path(_texts(arguments)[0].decode())
        self._open.pop(fd, None)
        if "O_DIRECTORY" in arguments or (path != self.journal and not path.is_relative_to(self.top)):
            return
        if path not in self._files:
            self._files[path] = File()
            if path != self.journal:
                self.events.append(Event("name", self._files[path], path=path))
        self._open[fd] = (path, self._files[path], "O_DSYNC" in arguments)
        self._positions[fd] = 0

    def _used(self, call: str, fd: int, arguments: str, result: int) -> None:
        path, file, is_synced = self._open[fd]
        if call == "close":
            del self._open[fd]
        elif call == "lseek":
            self._positions[fd] = result
        elif "write" in call:
            data = b"".join(_texts(arguments))[:result]
            if path == self.journal:
                self.events.append(Event("say", data=data))
                return
            numbers = arguments.rsplit(", ", 2)
            if call in ("write", "writev"):
                offset = self._positions[fd]
                self._positions[fd] += result
            else:
                offset = int(numbers[-2 if call == "pwritev2" else -1])
            self.events.append(Event("write", file, offset, data))
            if is_synced:
                self.events.append(Event("sync", file))
        elif call in ("fdatasync", "fsync"):
            self.events.append(Event("sync", file))
        elif call == "ftruncate":
            self.events.append(Event("size", file, int(arguments.split(", ")[1])))
        elif call == "fallocate":
            start, length = map(int, arguments.split(", ")[2:])
            self.events.append(Event("grow", file, start + length))

    def _renamed(self, call: str, paths: list[Path]) -> None:
        node = self._files.get(paths[0])
        if node is None:
            below = [path for path in self._files if path.is_relative_to(paths[0])]
            if below and call.startswith("rename"):  # a directory
                self.events.append(Event("directory", path=paths[1]))
                for path in below:
                    self._renamed(call, [path, paths[1] / path.relative_to(paths[0])])
            return
        if not call.startswith("unlink"):
            self._files[paths[1]] = node
            self.events.append(Event("name", node, path=paths[1]))
        if not call.startswith("link"):
            del self._files[paths[0]]
            self.events.append(Event("name", None, path=paths[0]))


def _calls(output: Path) -> Iterator[tuple[str, str, int]]:
    """(name, arguments, result) of each call that came back, in the order in which they did."""
    begun: dict[str, str] = {}
    for line in output.read_text().splitlines():
        pid, _, text = line.partition(" ")
        text = text.strip()
        if text.endswith("<unfinished ...>"):
            begun[pid] = text.removesuffix("<unfinished ...>").rstrip()
            continue
        resumed = re.match(r"<\.\.\. \w+ resumed>\s?(.*)", text)
        if resumed is not None:
            text = begun.pop(pid) + resumed[1]
        found = re.match(r"(\w+)\((.*)\)\s+= (-?\d+)", text)
        if found is not None:
            yield found[1], found[2], int(found[3])


def _texts(arguments: str) -> list[bytes]:
    """The strings among the arguments; strace -xx writes each byte as \\x and two digits."""
    return [
        bytes.fromhex(text.replace("\\x", "")) for text in re.findall(r'"((?:\\x[0-9a-f]{2})*)"', arguments)
    ]


class Replay:
    """Goes through a trace event by event. At any moment the disk as it may look can be written down."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.said: list[str] = []
        self._names: dict[Path, File] = {}
        self._directories: set[Path] = set()

    def take(self, event: Event) -> None:
        file = event.file
        if event.what == "say":
            self.said += event.data.decode().splitlines()
        elif event.what == "directory":
            assert event.path is not None
            self._directories.add(event.path)
        elif event.what == "name":
            assert event.path is not None
            if file is None:
                self._names.pop(event.path, None)
            else:
                self._names[event.path] = file
        elif event.what == "write":
            assert file is not None
            file.pending += ((event.offset, event.data),)
        elif event.what in ("size", "grow"):
            assert file is not None
            present = len(survivors(file, "all", random.Random(0))) if event.what == "grow" else 0
            file.pending += ((None, max(event.offset, present)),)
        else:
            assert file is not None
            content = bytearray(file.durable)
            for change in file.pending:
                _apply(content, change)
            file.durable, file.pending = bytes(content), ()

    def write(self, target: Path, keep: dict[str, str], rng: random.Random) -> int:
        """Writes a disk as it may look now; returns a number that tells different ones apart.

        `keep`: for each name of a file, or "" for the others, "all", "none" or "some" of what was not synced.
        """
        target.mkdir()
        written: list[tuple[Path, bytes]] = []
        for path in self._directories:
            (target / path.relative_to(self.trace.top)).mkdir(parents=True, exist_ok=True)
        for path, file in self._names.items():
            place = target / path.relative_to(self.trace.top)
            content = survivors(file, keep.get(path.name, keep[""]), rng)
            place.write_bytes(content)
            written.append((place, content))
        return hash(tuple(written))
