"""Fixtures of the engine's tests: a small store on a real disk, with one bucket.

Must not know: what is tested.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cordwood.engine import Store
from tests.engine.support import small


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a test keeps its store."""
    return tmp_path / "store"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    """A small store with an empty bucket named "wood"."""
    with small(path) as opened:
        opened.create_bucket("wood")
        yield opened


@pytest.fixture
def versioned(store: Store) -> Store:
    """The same with versioning enabled."""
    store.update_bucket("wood", versioning="Enabled")
    return store
