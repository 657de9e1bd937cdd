"""Clients that do not come with the tests' environment: looked for on the machine, or installed once below .check/.

Must not know: servers. Invariant: what is missing skips the test that wants it, with a reason that says how to get it.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
JS = Path(__file__).with_name("js")
JS_FILES = ("package.json", "package-lock.json")
OLDEST_NODE = 20

HOW_TO_GET = {
    "curl": "apt-get install curl",
    "node": f"Node {OLDEST_NODE} or newer with npm is on nodejs.org",
    "restic": "apt-get install restic",
}


def missing(program: str) -> str:
    """Why a test of this program cannot run; "" when it can."""
    if shutil.which(program) is None or (program == "node" and not _has_node()):
        return f"NOT PROVED HERE: no {program} on this machine: {HOW_TO_GET[program]}"
    return ""


def _has_node() -> bool:
    if shutil.which("npm") is None:
        return False
    said = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout
    return int(said.strip().removeprefix("v").partition(".")[0] or 0) >= OLDEST_NODE


def javascript_packages() -> Path:
    """A folder with node_modules/, as js/package-lock.json pins them."""

    def install(folder: Path) -> None:
        for name in JS_FILES:
            shutil.copy(JS / name, folder)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)

    return _once("js", b"".join((JS / name).read_bytes() for name in JS_FILES), install)


def packages_apart() -> Path:
    """A folder for PYTHONPATH with the extra `clients-apart`, whose dependencies disagree with those of `clients`."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted: list[str] = extras["clients-apart"]

    def install(folder: Path) -> None:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target", str(folder)]
        subprocess.run([*pip, *wanted], check=True, capture_output=True)

    return _once("apart", f"{sys.version} {wanted}".encode(), install)


def _once(name: str, key: bytes, install: Callable[[Path], None]) -> Path:
    target = ROOT / ".check" / f"{name}-{hashlib.sha256(key).hexdigest()[:16]}"
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=target.parent))
        try:
            install(fresh)
            with contextlib.suppress(OSError):  # another process was quicker
                fresh.rename(target)
        except subprocess.CalledProcessError as error:
            said = (error.stderr or b"").decode(errors="replace").strip()[-600:]
            pytest.skip(f"NOT PROVED HERE: {error.cmd[0]} ended with {error.returncode}: {said}")
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return target
