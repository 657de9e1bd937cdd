"""Layouts of header fields: their names as spelled and in order. A client sends the same few all its life, and a head
laid out like one before it is taken apart by a pattern made for that layout, in half the time that llhttp needs, which
calls back for each field.

Must not know: sockets, where a head ends, what a field means.

Invariants:
* A pattern takes less than llhttp does (values of visible ASCII, blanks and tabs, no blank at their end), so whatever
  it takes would have come to the same there. All else is left to llhttp.
* A layout is made only of names that llhttp has taken, none of them twice, when they come for the second time.
* What is remembered is bounded, whatever clients send.
"""

from __future__ import annotations

import re
from typing import Final


class Layout:
    """One layout, and the pattern made for it."""

    __slots__ = ("_match", "_names")

    def __init__(self, names: tuple[bytes, ...]) -> None:
        self._names = tuple([lower_name(name) for name in names])
        # Possessive (`*+`): what does not match is refused at once, and not tried in every other way of sharing blanks.
        value = r":[ \t]*+([\t\x20-\x7e]*+)(?<![ \t])\r\n"
        lines = [re.escape(name.decode("ascii")) + value for name in names]
        self._match = re.compile("".join(lines) + r"\r\n").fullmatch

    def read(self, fields: bytes) -> dict[str, str] | None:
        """The headers, if the fields are laid out so."""
        if not fields.isascii():
            return None
        match = self._match(fields.decode("ascii"))
        return dict(zip(self._names, match.groups(), strict=True)) if match is not None else None


# Of this process, and bounded: a pattern takes 0.5 ms to make.
_MAX_LAYOUTS: Final = 64
_LAYOUTS: dict[tuple[bytes, ...], Layout] = {}
# Those seen once.
_MAX_NEW_LAYOUTS: Final = 256
_new_layouts: set[tuple[bytes, ...]] = set()


def learned(names: tuple[bytes, ...]) -> Layout | None:
    """The layout, when these names have come before."""
    layout = _LAYOUTS.get(names)
    if layout is None and len(_LAYOUTS) < _MAX_LAYOUTS:
        if names in _new_layouts:
            layout = _LAYOUTS[names] = Layout(names)
        elif len(_new_layouts) < _MAX_NEW_LAYOUTS:
            _new_layouts.add(names)
    return layout


_MAX_NAMES: Final = 512
_NAMES: dict[bytes, str] = {}  # spellings of header names seen so far; bounded


def lower_name(name: bytes) -> str:
    """A header name in lower case; the same object for the same spelling, mostly, so that comparing is quick."""
    known = _NAMES.get(name)
    if known is not None:
        return known
    lower = name.decode("ascii").lower()
    if len(_NAMES) < _MAX_NAMES and len(name) <= 64:
        _NAMES[name] = lower
    return lower
