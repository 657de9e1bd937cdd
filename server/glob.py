"""Matching by `*` and `?`, as policies do it.

Must not know: policies.
Invariants: time is proportional to the text times the number of pieces of the pattern, whatever the pattern, so that
nobody can write one that stalls the server; what a variable stands for is never read as a wildcard.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final

_VARIABLE: Final = re.compile(r"\$\{([^}]*)\}")
_LITERALS: Final = {"*": "*", "?": "?", "$": "$"}

# A wildcard of the pattern is one of these two characters, which no text that is compared can hold.
_ANY: Final = "\ufdd0"
_ONE: Final = "\ufdd1"


def matches(pattern: str, text: str) -> bool:
    """Does the whole `text` match?"""
    return _compiled(pattern.replace("*", _ANY).replace("?", _ONE))(text)


def matches_with(pattern: str, text: str, value_of: Callable[[str], str | None]) -> bool:
    """Like `matches`, with policy variables: `${aws:userid}`, `${*}`. A variable without a value matches nothing."""
    prepared = prepare(pattern, value_of)
    return prepared is not None and _compiled(prepared)(text)


def substituted(pattern: str, value_of: Callable[[str], str | None]) -> str | None:
    """A text without wildcards, its variables replaced; None when one has no value."""
    parts: list[str] = []
    end = 0
    for match in _VARIABLE.finditer(pattern):
        value = _value(match[1], value_of)
        if value is None:
            return None
        parts += (pattern[end : match.start()], value)
        end = match.end()
    parts.append(pattern[end:])
    return "".join(parts)


def prepare(pattern: str, value_of: Callable[[str], str | None]) -> str | None:
    parts: list[str] = []
    end = 0
    for match in _VARIABLE.finditer(pattern):
        value = _value(match[1], value_of)
        if value is None:
            return None
        parts += (_marked(pattern[end : match.start()]), value)
        end = match.end()
    parts.append(_marked(pattern[end:]))
    return "".join(parts)


def _marked(text: str) -> str:
    return text.replace("*", _ANY).replace("?", _ONE)


def _value(name: str, value_of: Callable[[str], str | None]) -> str | None:
    """`${aws:username, 'default'}` has a default."""
    name, comma, default = name.partition(",")
    name = name.strip()
    if name in _LITERALS:
        return _LITERALS[name]
    value = value_of(name.lower())
    if value is None:
        return default.strip().strip("'") if comma else None
    # Nobody may smuggle a wildcard in through what he sends.
    return None if _ANY in value or _ONE in value else value


@lru_cache(maxsize=4096)
def _compiled(prepared: str) -> Callable[[str], bool]:
    """The pieces between the stars are looked for from left to right: for such patterns the first place is as good as
    any later one."""
    pieces = [_piece(each) for each in prepared.split(_ANY)]
    first, last = pieces[0], pieces[-1]
    if len(pieces) == 1:
        return lambda text: first.fullmatch(text) is not None
    middle = [each for each in pieces[1:-1] if each.pattern]
    last_size = len(prepared.rpartition(_ANY)[2])

    def match(text: str) -> bool:
        found = first.match(text)
        if found is None:
            return False
        position = found.end()
        limit = len(text) - last_size
        for each in middle:
            found = each.search(text, position, max(limit, 0))
            if found is None:
                return False
            position = found.end()
        return position <= limit and last.match(text, limit) is not None

    return match


def _piece(text: str) -> re.Pattern[str]:
    return re.compile("".join("." if char == _ONE else re.escape(char) for char in text), re.DOTALL)
