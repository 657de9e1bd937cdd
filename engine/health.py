"""Whether a store may still be written: one flag that every writer looks at.

Must not know: what failed, beyond a sentence about it.

Invariant: once failed, failed until the store is opened again. A sync whose outcome is unknown cannot be repeated:
the kernel may have dropped the dirty pages and report success the second time.
"""

from __future__ import annotations

import logging

from cordwood.engine.errors import ReadOnly

_log = logging.getLogger("cordwood.engine")


class Health:
    """`failure` says why the store takes no writes; None while it does."""

    def __init__(self, failure: str | None = None) -> None:
        self.failure = failure

    def fail(self, why: str) -> None:
        if self.failure is None:
            self.failure = why
            _log.error("the store is read-only now: %s", why)

    def check(self) -> None:
        """Raises ReadOnly when the store takes no writes."""
        if self.failure is not None:
            raise ReadOnly(self.failure)
