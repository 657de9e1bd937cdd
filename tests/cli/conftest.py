"""One server for all the tests of the client commands, and a fresh bucket for each of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.harness import Person, Served, serving

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def server(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(home, tmp_path_factory.mktemp("store") / "store", "--workers", "1") as served:
        yield served


@pytest.fixture
def person(home: Path, server: Served, tmp_path: Path) -> Person:
    """Somebody on the same machine who has typed nothing but `cordwood serve` before."""
    return Person(home, {}, tmp_path)


@pytest.fixture
def bucket(person: Person) -> str:
    name = f"bucket-{next(_numbers)}"
    person.run("mb", f"s3://{name}")
    return name
