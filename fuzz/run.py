"""Run one fuzz target: `python fuzz/run.py TARGET [SECONDS]`, for example `python fuzz/run.py http1 60`.

With atheris installed it is guided by coverage; without, inputs are random mutations of the corpus. Either way an
input that breaks the invariant is written to fuzz/corpus/TARGET/ under its digest, for tests/test_fuzz_corpus.py.

Must not know: what any target does.
"""

from __future__ import annotations

import hashlib
import importlib
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if not name or not (HERE / f"{name}.py").is_file():
        print(__doc__)
        return 2
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 60.0
    corpus = HERE / "corpus" / name
    sys.path.insert(0, str(HERE.parent))
    try:
        import atheris
    except ImportError:
        return mutate(importlib.import_module(f"fuzz.{name}").one, corpus, seconds)
    with atheris.instrument_imports(include=["cordwood", "fuzz"]):
        one = importlib.import_module(f"fuzz.{name}").one
    # What atheris finds interesting on its way goes to the first folder and is forgotten.
    with tempfile.TemporaryDirectory() as found:
        arguments = [name, f"-max_total_time={seconds:.0f}", f"-artifact_prefix={found}/", found, str(corpus)]
        atheris.Setup(arguments, keeping(one, corpus))
        atheris.Fuzz()
    return 0


def keeping(one: Callable[[bytes], None], corpus: Path) -> Callable[[bytes], None]:
    """`one`, but an input that breaks it is kept."""

    def run(data: bytes) -> None:
        try:
            one(data)
        except Exception:
            path = corpus / f"crash-{hashlib.sha256(data).hexdigest()[:16]}"
            path.write_bytes(data)
            print(f"kept as {path}", file=sys.stderr)
            raise

    return run


def mutate(one: Callable[[bytes], None], corpus: Path, seconds: float) -> int:
    seed = random.randrange(1 << 32)
    print(f"atheris is not installed; random mutations for {seconds:g} s, seed {seed}")
    rng = random.Random(seed)
    inputs = [path.read_bytes() for path in sorted(corpus.iterdir())]
    run = keeping(one, corpus)
    stop = time.monotonic() + seconds
    count = 0
    while time.monotonic() < stop:
        run(mutated(rng, inputs))
        count += 1
    print(f"{count} inputs, none broke the invariant")
    return 0


def mutated(rng: random.Random, inputs: list[bytes]) -> bytes:
    data = bytearray(rng.choice(inputs))
    for _ in range(rng.randrange(1, 6)):
        place = rng.randrange(len(data) + 1)
        other = rng.choice(inputs)
        start = rng.randrange(len(other) + 1)
        match rng.randrange(5):
            case 0 if data:
                data[min(place, len(data) - 1)] = rng.randrange(256)
            case 1:
                data[place:place] = bytes(rng.choices(b"\r\n:; ,=%/0x+-a\x00\xff", k=rng.randrange(1, 4)))
            case 2:
                del data[place : place + rng.randrange(1, 20)]
            case 3:
                data[place:place] = other[start : start + rng.randrange(1, 60)]
            case _:
                data[place:] = other[start:]
    return bytes(data)


if __name__ == "__main__":
    sys.exit(main())
