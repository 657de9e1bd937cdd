"""s3fs, the file system of fsspec over S3; s3fs_client.py says what is done with it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.e2e.harness import ROOT, Server, cached_install, client_environment, run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def install(folder: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-compile",
        "--target",
        str(folder),
        *wanted(),
    ]
    subprocess.run(command, check=True, capture_output=True)


def wanted() -> list[str]:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    requirements: list[str] = extras["clients-apart"]
    return requirements


def test_s3fs_finds_an_s3(shop: Server) -> None:
    key = f"{sys.version} {wanted()}".encode()
    packages = cached_install("s3fs", key, install)
    program = str(Path(__file__).with_name("s3fs_client.py"))
    environment = client_environment(shop) | {"PYTHONPATH": str(packages), "PYTHONSAFEPATH": "1"}
    run([sys.executable, program, shop.endpoint], environment)
