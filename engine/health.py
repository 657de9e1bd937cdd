"""Whether a store may still be written: one flag that every writer looks at.

Must not know: what failed, beyond a sentence about it.

Invariant: once failed, failed until the store is opened again. A sync whose outcome is unknown cannot be repeated:
the kernel may have dropped the dirty pages and report success the second time.
"""

from __future__ import annotations

import logging
import os
import weakref

from cordwood.engine.errors import Closed, CordwoodError, ReadOnly

_log = logging.getLogger("cordwood.engine")


class Health:
    """`failure` says why the store takes no writes; None while it does."""

    def __init__(self, failure: str | None = None) -> None:
        self.failure = failure
        self._error: type[CordwoodError] = ReadOnly
        _alive.add(self)

    def fail(self, why: str) -> None:
        if self.failure is None:
            self.failure = why
            _log.error("the store is read-only now: %s", why)

    def check(self) -> None:
        """Raises ReadOnly when the store takes no writes; Closed in a process forked from the one that opened it."""
        if self.failure is not None:
            raise self._error(self.failure)

    def disown(self) -> None:
        """Called in a forked child: an append by it would overwrite its parent's."""
        self.failure = "the store was opened before a fork; open it again in this process"
        self._error = Closed


_alive: weakref.WeakSet[Health] = weakref.WeakSet()


def _disown_all_after_fork() -> None:
    for health in _alive:
        health.disown()


os.register_at_fork(after_in_child=_disown_all_after_fork)
