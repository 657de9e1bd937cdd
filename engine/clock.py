"""The hybrid logical clock that orders every change of a store.

One 64-bit number: 48 bits of Unix milliseconds above 16 bits of counter (Kulkarni et al., "Logical Physical Clocks",
2014, in the packed form). Bucket, directory, version and upload ids are clock values too, so ids never repeat.

Must not know: where the last value is kept (the index does that) or what is being ordered.

Invariant: `tick(last)` is greater than `last`, whatever the wall clock does.
"""

from __future__ import annotations

import time

COUNTER_BITS = 16
CLOCK_MAX = (1 << 63) - 1  # the top bit stays clear, so an id's first byte is never 0xFF (see namespace.py)


def tick(last: int) -> int:
    """The next clock value after `last`; follows the wall clock unless that stands still or runs backwards."""
    return max(last + 1, time.time_ns() // 1_000_000 << COUNTER_BITS)


def milliseconds(clock: int) -> int:
    """The Unix time in milliseconds that a clock value carries."""
    return clock >> COUNTER_BITS
