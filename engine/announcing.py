"""Messages about changes, durable exactly with them: each goes into the outbox in the commit of its change.

Must not know: what a message says, who takes it and how (outbox.py reads, something above the engine delivers).

Theory: the outbox is a bucket of its own that no caller can name; a message is a small object in it, under its topic
and the clock of its commit. So everything that keeps objects keeps messages: the batch that makes them durable together
with the change, replay, rebuild, compaction, fsck. A message that was delivered is deleted like any object.

Invariants:
* A change and its messages are one transaction of the log: after a crash both are there, or neither.
* Messages of a topic are in the order of the commits they tell of, across all processes.
* A change that decided to write nothing has no messages. What `announce` raises costs its messages, never the change.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from cordwood.engine.commit import Commits, Decision, Operation, Pending
from cordwood.engine.format import BucketHead, Layout, ObjectHead

_log = logging.getLogger("cordwood.engine")

OUTBOX = ".outbox"
_SIZE_HINT = 2048

Announce = Callable[[Any, int], Sequence[tuple[str, bytes]]]
"""From the result of an operation and the clock of its commit: (topic, body) of each message, quickly and without I/O.
Called inside the commit. A topic is text without spaces and slashes."""

T = TypeVar("T")


def message_name(topic: str, clock: int, number: int) -> str:
    return f"{topic} {clock:016x}{number:04x}"


class Announced(Generic[T]):
    """An operation together with the messages about it."""

    __slots__ = ("_announce", "_operation", "frees", "nested")

    def __init__(self, operation: Operation[T], announce: Announce) -> None:
        self._operation = operation
        self._announce = announce
        self.nested = operation.nested
        self.frees = operation.frees

    def size_hint(self) -> int:
        return self._operation.size_hint() + _SIZE_HINT

    def decide(self, decision: Decision) -> T:
        first = len(decision.records)
        result = self._operation.decide(decision)
        if len(decision.records) > first:
            clock = decision.tick()
            for number, (topic, body) in enumerate(self._messages(result, clock)):
                _put(decision, message_name(topic, clock, number), body)
        return result

    def _messages(self, result: T, clock: int) -> Sequence[tuple[str, bytes]]:
        try:
            messages = self._announce(result, clock)
        except Exception:
            _log.exception("the messages about a change could not be made; the change stands")
            return ()
        assert not any(" " in topic or "/" in topic for topic, _ in messages)
        return messages


def _put(decision: Decision, name: str, body: bytes) -> None:
    row = decision.txn.bucket(OUTBOX)
    if row is not None:
        root = row.head.bucket
    else:
        root = decision.tick()
        decision.write(BucketHead(root, OUTBOX), clock=root)
    head = ObjectHead(
        bucket=root,
        directory=root,
        name=name.encode(),
        null=True,
        layout=Layout.INLINE,
        size=len(body),
        md5=hashlib.md5(body, usedforsecurity=False).digest(),
    )
    decision.write(head, body)


class AnnouncingCommits:
    """A way to commit on which each operation takes its messages along."""

    def __init__(self, commits: Commits, announce: Announce) -> None:
        self._commits = commits
        self._announce = announce

    def submit(self, operation: Operation[T], *, wake: bool = True) -> Pending[T]:
        return self._commits.submit(Announced(operation, self._announce), wake=wake)

    def execute(self, operation: Operation[T]) -> T:
        return self._commits.execute(Announced(operation, self._announce))
