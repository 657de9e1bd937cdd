"""What the values of settings look like: sizes, durations, and checks that say what they would have accepted.

Must not know: which settings exist.
Invariant: every parser takes text (from a flag or the environment) as well as the TOML type, and raises
ValueError "expected ..." for anything else.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

_SIZE_UNITS = {
    "": 1, "B": 1,
    "K": 1 << 10, "KIB": 1 << 10, "KB": 10**3,
    "M": 1 << 20, "MIB": 1 << 20, "MB": 10**6,
    "G": 1 << 30, "GIB": 1 << 30, "GB": 10**9,
    "T": 1 << 40, "TIB": 1 << 40, "TB": 10**12,
}  # fmt: skip
_DURATION_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*\Z")


def parse_size(value: object) -> int:
    """Bytes from 1048576, "1048576", "1MiB", "1M" (both binary) or "1MB" (decimal)."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _QUANTITY.match(value) if isinstance(value, str) else None
    unit = _SIZE_UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None:
        raise ValueError("expected a size such as 65536, 64KiB, 10MiB or 1GiB")
    return int(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit


def parse_duration_s(value: object) -> float:
    """Seconds from 30, 0.5, "500ms", "30s", "5m", "2h" or "1d"."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return float(value)
    match = _QUANTITY.match(value) if isinstance(value, str) else None
    unit = _DURATION_UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ValueError("expected a duration such as 30, 500ms, 30s, 5m or 2h")
    return float(match[1]) * unit


def format_size(size: int) -> str:
    for unit, scale in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= scale and size % scale == 0:
            return f"{size // scale}{unit}"
    return str(size)


def format_duration(seconds: float) -> str:
    return f"{seconds:g}s"


def boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    known = {
        "true": True,
        "1": True,
        "yes": True,
        "on": True,
        "false": False,
        "0": False,
        "no": False,
        "off": False,
    }
    found = known.get(str(value).strip().lower())
    if found is None:
        raise ValueError("expected true or false")
    return found


def text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("expected text in quotes")
    return value


def path(value: object) -> Path:
    name = text(value) if not isinstance(value, Path) else str(value)
    if not name:
        raise ValueError("expected a directory")
    return Path(name).expanduser()


def between(low: int, high: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        try:
            number = int(value) if isinstance(value, int | str) and not isinstance(value, bool) else low - 1
        except ValueError:
            number = low - 1
        if not low <= number <= high:
            raise ValueError(f"expected a whole number from {low} to {high}")
        return number

    return parse


def size_between(low: int, high: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        size = parse_size(value)
        if not low <= size <= high:
            raise ValueError(f"expected a size from {format_size(low)} to {format_size(high)}")
        return size

    return parse


def duration_between(low: float, high: float) -> Callable[[object], float]:
    def parse(value: object) -> float:
        seconds = parse_duration_s(value)
        if not low <= seconds <= high:
            raise ValueError(f"expected a duration from {format_duration(low)} to {format_duration(high)}")
        return seconds

    return parse


def number_between(low: float, high: float) -> Callable[[object], float]:
    def parse(value: object) -> float:
        try:
            number = float(value) if isinstance(value, int | float | str) else low - 1
        except ValueError:
            number = low - 1
        if not low <= number <= high or isinstance(value, bool):
            raise ValueError(f"expected a number from {low:g} to {high:g}")
        return number

    return parse


def time_of_day(value: object) -> str:
    """A time of day as HH:MM; nothing for "never"."""
    if value == "never":
        return ""
    known = re.fullmatch(r"(?:([01][0-9]|2[0-3]):[0-5][0-9])", value) if isinstance(value, str) else None
    if known is None:
        raise ValueError("expected a time such as 02:00, or never")
    return known[0]


def one_of(*choices: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if value not in choices:
            raise ValueError("expected one of " + ", ".join(choices))
        return str(value)

    return parse
