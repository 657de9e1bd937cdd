"""What commands print: sizes, times, tables for people and JSON lines for programs.

Must not know: S3, the network. Invariant: with --json, stdout holds one JSON object per line and nothing else.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping


def print_json(fields: Mapping[str, object]) -> None:
    sys.stdout.write(json.dumps(fields, ensure_ascii=False) + "\n")


def human_size(size: float) -> str:
    """1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def local_time(timestamp_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(timestamp_s))


def printable(text: str) -> str:
    """A key may hold anything; a terminal should not obey it. Control characters are shown as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)


def warn(message: str) -> None:
    print(f"cordwood: {message}", file=sys.stderr)
