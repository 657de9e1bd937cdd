"""s3fs, the file system of fsspec over S3; s3fs_client.py says what is done with it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.e2e.harness import Server, client_environment, run
from tests.e2e.installed import packages_apart

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def test_s3fs_finds_an_s3(shop: Server) -> None:
    program = str(Path(__file__).with_name("s3fs_client.py"))
    environment = client_environment(shop) | {"PYTHONPATH": str(packages_apart()), "PYTHONSAFEPATH": "1"}
    run([sys.executable, program, shop.endpoint], environment)
