"""Steps, drawn from a source of choices: random numbers, or Hypothesis.

Must not know: which driver draws, how a step is done.

Invariant: the same choices in the same world give the same step.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from cordwood.engine import Conditions
from tests.sim.model import FAR, FARTHER, PAST, Attrs, Model
from tests.sim.rules import LONG, Step

T = TypeVar("T")

BUCKETS = ("one", "two")
KEYS = (
    *("a", "a/", "a/b", "a/b/c", "a/b/d", "a/c", "b/a", "b/x/y", "a-b", "a.b", "ä/ö", "z/"),
    *(LONG, LONG + "y", LONG + "/y", LONG + "yy/z", "q/" + LONG + "é", "a/" + LONG * 2),
)
PREFIXES = ("", "a", "a/", "a/b", "a/b/", "b/", "x", LONG, LONG + "y", "q/", "z/", "ä/", "none/", "a/b/c/d/")
FOLDERS = tuple(prefix for prefix in PREFIXES if prefix.endswith("/"))
DELIMITERS = ("", "/", "b", "ö", "xx")
SIZES = (0, 1, 100, 256, 257, 4096, 4097, 9000, 20_000)


class Choice(Protocol):
    """Where choices come from."""

    def pick(self, options: Sequence[T]) -> T: ...

    def number(self, low: int, high: int) -> int: ...


class RandomChoice:
    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def pick(self, options: Sequence[T]) -> T:
        return self.rng.choice(options)

    def number(self, low: int, high: int) -> int:
        return self.rng.randint(low, high)


def draw_conditions(choice: Choice, model: Model, bucket: str, key: str) -> Conditions | None:
    kind = choice.number(0, 9)
    if kind > 3:
        return None
    current = model.buckets[bucket].keys.get(key) if bucket in model.buckets else None
    etag = current[0].etag if current and choice.number(0, 3) else "0" * 32
    return (
        Conditions(if_none_match=("*",)),
        Conditions(if_match=(etag,)),
        Conditions(if_none_match=(etag,)),
        Conditions(if_match=("*",)),
    )[kind]


def draw_range(choice: Choice) -> tuple[int | None, int | None] | None:
    kind = choice.number(0, 4)
    first = choice.pick((0, 1, 255, 4095, 4096, 5000))
    return (None, None, (first, None), (None, choice.pick((1, 300, 5000))), (first, first + 4500))[kind]


def draw_key(choice: Choice) -> int:
    """Of what new objects are encrypted under: mostly nothing."""
    return choice.pick((0, 0, 0, 0, 1, 2))


def _version(choice: Choice) -> int | None:
    return choice.pick((None, None, None, 0, 1, 2))


def draw_attrs(choice: Choice) -> Attrs:
    """What a new object has: mostly nothing."""
    if choice.number(0, 5):
        return ()
    return choice.pick(NEW_ATTRS)


def draw_bucket(choice: Choice) -> tuple[str, ...]:
    """Versioning, and perhaps object lock, of a new bucket."""
    return choice.pick((("",), ("",), ("Enabled",), ("Enabled", ""), ("Enabled", "GOVERNANCE")))


RETENTIONS = (
    ("GOVERNANCE", PAST),
    ("GOVERNANCE", FAR),
    ("GOVERNANCE", FARTHER),
    ("COMPLIANCE", PAST),
    ("COMPLIANCE", FAR),
)
NEW_ATTRS: tuple[Attrs, ...] = (
    (("tags", "a=1"),),
    (("tags", "a=1&b=2"),),
    (("hold", True),),
    (("retention", ("GOVERNANCE", FAR)),),
    (("retention", ("GOVERNANCE", PAST)),),
    (("retention", ("COMPLIANCE", FAR)), ("tags", "x")),
)
CHANGES: tuple[Attrs, ...] = (
    (("tags", "n=1"),),
    (("tags", "n=2"),),
    (("tags", None),),
    (("tags", "t"), ("acl", "private")),
    (("hold", True),),
    (("hold", None),),
    (("hold", None),),
    (("retention", None),),
    *((("retention", each),) for each in RETENTIONS),
)


def _size_of(model: Model, bucket: str, key: str) -> int:
    versions = model.buckets[bucket].keys.get(key) if bucket in model.buckets else None
    return len(versions[0].data) if versions else 0


DRAWS: dict[str, tuple[int, Callable[[Choice, Model, str, str], Step]]] = {
    "create_bucket": (1, lambda c, m, b, k: (b, *draw_bucket(c))),
    "delete_bucket": (1, lambda c, m, b, k: (b,)),
    "set_versioning": (1, lambda c, m, b, k: (b, c.pick(("Enabled", "Suspended")))),
    "set_lock": (1, lambda c, m, b, k: (b, c.pick((None, "", "GOVERNANCE")))),
    "put": (
        14,
        lambda c, m, b, k: (
            b,
            k,
            c.pick(SIZES),
            c.number(0, 3),
            draw_conditions(c, m, b, k),
            draw_attrs(c),
            draw_key(c),
        ),
    ),
    "attrs": (4, lambda c, m, b, k: (b, k, _version(c), c.pick(CHANGES), c.pick((False, False, True)))),
    "delete": (
        7,
        lambda c, m, b, k: (
            b,
            k,
            _version(c),
            None if c.number(0, 4) else draw_conditions(c, m, b, k),
            c.pick((False, True)),
        ),
    ),
    "delete_many": (1, lambda c, m, b, k: (b, tuple(c.pick(KEYS) for _ in range(c.number(1, 4))))),
    "batch": (
        2,
        lambda c, m, b, k: (b, tuple(_change(c, m, b) for _ in range(c.number(1, 4)))),
    ),
    "copy": (
        3,
        lambda c, m, b, k: ((c.pick(BUCKETS), c.pick(KEYS), _version(c)), b, k, draw_conditions(c, m, b, k)),
    ),
    "rename": (3, lambda c, m, b, k: (b, c.pick(FOLDERS), c.pick(FOLDERS))),
    "rename_object": (
        3,
        lambda c, m, b, k: (
            b,
            c.pick(KEYS),
            k,
            None,
            None if c.number(0, 2) else draw_conditions(c, m, b, k),
        ),
    ),
    "append": (
        4,
        lambda c, m, b, k: (
            b,
            k,
            _size_of(m, b, k) + c.pick((0, 0, 0, 0, 1)),
            c.pick(SIZES),
            c.number(0, 3),
            None if c.number(0, 3) else draw_conditions(c, m, b, k),
        ),
    ),
    "create_upload": (2, lambda c, m, b, k: (b, k, c.number(0, 3), draw_attrs(c), draw_key(c))),
    "put_part": (4, lambda c, m, b, k: (b, c.number(0, 2), c.number(1, 3), c.pick(SIZES), c.number(0, 3))),
    "copy_part": (
        2,
        lambda c, m, b, k: (
            b,
            c.number(0, 2),
            c.number(1, 3),
            (b, k),
            c.pick((None, (0, 5000), (4096, 9000))),
        ),
    ),
    "complete": (2, lambda c, m, b, k: (b, c.number(0, 2), c.number(0, 9))),
    "abort": (1, lambda c, m, b, k: (b, c.number(0, 2))),
    "get": (6, lambda c, m, b, k: (b, k, _version(c), draw_range(c), c.pick((None, None, None, 0, 1, 2)))),
    "list": (4, lambda c, m, b, k: (b, c.pick(PREFIXES), c.pick(DELIMITERS), c.pick((1, 2, 3, 1000)))),
    "list_versions": (
        2,
        lambda c, m, b, k: (b, c.pick(PREFIXES), c.pick(DELIMITERS), c.pick((1, 2, 3, 1000))),
    ),
}
MAINTENANCE: dict[str, Callable[[Choice], Step]] = {
    "reopen": lambda c: (
        (
            ("volume_size", c.pick((1 << 16, 1 << 18))),
            ("chunk_size", c.pick((4096, 8192))),
            ("inline_max", c.pick((0, 256, 4096))),
            ("dedup", c.pick((True, True, False))),
        ),
    ),
    "rebuild": lambda c: (),
    "compact": lambda c: (),
    "compact_alone": lambda c: (),
    "scrub": lambda c: (),
}
_WEIGHTED = [name for name, (weight, _) in DRAWS.items() for _ in range(weight)]


def _change(choice: Choice, model: Model, bucket: str) -> tuple[Any, ...]:
    key = choice.pick(KEYS)
    if not choice.number(0, 2):
        return (key,)
    conditions = None if choice.number(0, 4) else draw_conditions(choice, model, bucket, key)
    return key, choice.pick(SIZES), choice.number(0, 3), conditions


def draw(choice: Choice, model: Model, name: str | None = None) -> Step:
    """A step of a kind, or of any."""
    name = name or choice.pick(_WEIGHTED)
    bucket, key = choice.pick((*BUCKETS[:1] * 3, *BUCKETS)), choice.pick(KEYS)
    return (name, *DRAWS[name][1](choice, model, bucket, key))


def draw_maintenance(choice: Choice, *, sizes: bool = True) -> Step:
    """`sizes`: opening again may change them."""
    name = choice.pick(tuple(MAINTENANCE))
    return (name, *MAINTENANCE[name](choice)) if sizes or name != "reopen" else (name,)
