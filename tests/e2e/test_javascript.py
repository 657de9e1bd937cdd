"""The AWS SDK for JavaScript, version 3: js/sdk.mjs runs in Node against a server.

Needs Node and npm. The packages, pinned by js/package-lock.json, are installed once into .check/ by npm.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.harness import DOMAIN, Server, cached_install, client_environment, run

OLDEST_NODE = 20


def has_node() -> bool:
    if not (shutil.which("node") and shutil.which("npm")):
        return False
    said = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout
    return int(said.strip().removeprefix("v").partition(".")[0] or 0) >= OLDEST_NODE


pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not has_node(), reason=f"no Node {OLDEST_NODE} or newer with npm on this machine: nodejs.org has it"
    ),
]

JS = Path(__file__).with_name("js")
NAMES = ("package.json", "package-lock.json")


def install(folder: Path) -> None:
    for name in NAMES:
        shutil.copy(JS / name, folder)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def test_the_javascript_sdk_finds_an_s3(shop: Server, tmp_path: Path) -> None:
    packages = cached_install("js", b"".join((JS / name).read_bytes() for name in NAMES), install)
    # Node looks for packages upwards from the script, so the script stands beside a link to them.
    (tmp_path / "node_modules").symlink_to(packages / "node_modules")
    shutil.copy(JS / "sdk.mjs", tmp_path)
    environment = client_environment(shop) | {"CORDWOOD_DOMAIN": DOMAIN, "NODE_NO_WARNINGS": "1"}
    said = run(["node", str(tmp_path / "sdk.mjs")], environment)
    assert said.splitlines()[-1] == "ok strangers", said
