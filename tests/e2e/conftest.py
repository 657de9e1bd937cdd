"""The files that the end-to-end tests move, made once per test process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.harness import MIB, make_big_file, make_tree


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory, long_run: bool) -> Path:
    """The whole standard library with --long; a few hundred files of it without. Read-only for the tests."""
    target = tmp_path_factory.mktemp("tree")
    make_tree(target, whole=long_run)
    return target


@pytest.fixture(scope="session")
def big_file(tmp_path_factory: pytest.TempPathFactory, long_run: bool) -> Path:
    target = tmp_path_factory.mktemp("big") / "big.bin"
    make_big_file(target, (2048 if long_run else 160) * MIB)
    return target
