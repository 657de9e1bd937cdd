"""Replay the corpus of every fuzz target: what once broke an invariant, and what a fuzzer should start from.

Must not know: what any target does.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

FUZZ = Path(__file__).resolve().parent.parent / "fuzz"
TARGETS = sorted(path.stem for path in FUZZ.glob("*.py") if path.stem not in ("__init__", "run"))
CASES = [(target, path) for target in TARGETS for path in sorted((FUZZ / "corpus" / target).glob("*"))]


@pytest.mark.parametrize(("target", "path"), CASES, ids=[f"{target}-{path.name}" for target, path in CASES])
def test_an_input_of_the_corpus_keeps_the_invariant(target: str, path: Path) -> None:
    importlib.import_module(f"fuzz.{target}").one(path.read_bytes())


def test_every_target_has_an_invariant_and_a_corpus() -> None:
    for target in TARGETS:
        module = importlib.import_module(f"fuzz.{target}")
        assert "Invariant:" in (module.__doc__ or ""), f"fuzz/{target}.py states no invariant"
        assert any((FUZZ / "corpus" / target).glob("*")), f"fuzz/corpus/{target} is empty"


def test_every_corpus_has_a_target() -> None:
    assert sorted(path.name for path in (FUZZ / "corpus").iterdir()) == TARGETS
