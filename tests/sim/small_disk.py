"""A small file system of its own, in a file: a disk that can really be full.

Must not know: stores.

Invariant: what was mounted is unmounted when the context ends.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

MIB = 1 << 20


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")


@cache
def why_not() -> str | None:
    """Why no file system can be mounted here; None when one can."""
    if os.geteuid() != 0:
        return "mounting a file system needs root"
    import tempfile

    with tempfile.TemporaryDirectory() as top:
        try:
            with mounted(Path(top), 16 * MIB):
                return None
        except OSError as error:
            return f"a small ext4 cannot be mounted: {error}"


@contextmanager
def mounted(top: Path, size_bytes: int) -> Iterator[Path]:
    """An empty ext4 of about that size, below `top`."""
    image, point = top / "disk.img", top / "disk"
    with image.open("wb") as file:
        file.truncate(size_bytes)
    point.mkdir()
    _run("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
    _run("mount", "-o", "loop", str(image), str(point))
    try:
        yield point
    finally:
        _run("umount", "--lazy", str(point))
        image.unlink()


def free_bytes(path: Path) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def fill(path: Path) -> None:
    """Takes every byte that is left for a file of ours."""
    with path.open("wb", buffering=0) as file:
        for size in (MIB, 4096, 1):
            try:
                while True:
                    file.write(b"\xff" * size)
            except OSError:
                continue


def skip_without_mount() -> None:
    reason = why_not()
    if reason is not None:
        pytest.skip(f"NOT PROVED HERE: a really full disk: {reason}")
