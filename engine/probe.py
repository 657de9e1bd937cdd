"""Touches every page of an index in a process of its own: a damaged one may end it, and nobody else.

LMDB trusts its file. A flipped bit in a page may make it read behind the mapping (SIGBUS, SIGSEGV), abort, or go round
in circles; so whoever must survive that asks a child first.

Must not know: what the rows mean.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cordwood.engine.errors import CordwoodError
from cordwood.engine.fs import REAL
from cordwood.engine.index import Index

_SECONDS_BASE = 60.0
_BYTES_PER_SECOND = 20 << 20
_CODE = "import sys; from cordwood.engine.probe import read_all; sys.exit(read_all(sys.argv[1], int(sys.argv[2])))"


def probe_index(directory: Path, size: int, map_size: int) -> str | None:
    """Reads the whole index in a child process; None when that went well, else what happened."""
    command = [sys.executable, "-c", _CODE, str(directory), str(map_size)]
    limit_s = _SECONDS_BASE + size / _BYTES_PER_SECOND
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return f"reading the index did not end within {limit_s:.0f} s"
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return f"reading the index ended with signal {-done.returncode}"
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"reading the index ended with exit code {done.returncode}"


def read_all(directory: str, map_size: int) -> int:
    """The child: every key and row of every table, in order; 0 when all could be read."""
    try:
        index = Index(REAL, Path(directory), map_size=map_size, sync=True, read_only=True)
        with index.read() as txn:
            for table in txn.tables:
                before: bytes | None = None
                for key, row in txn.items(b"", table):
                    if before is not None and key <= before:
                        sys.stderr.write("the keys of a table are out of order\n")
                        return 1
                    before = key
                    row.count(b"\0")
        index.close()
    except (CordwoodError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0
