"""The outbox: changes that take messages along, and the messages that wait, oldest first, topic by topic.

Must not know: what a message says, how it is delivered.

Invariant: a message stays until it is removed, however often it was read; removing it is durable on return.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cordwood.engine.announcing import OUTBOX, Announce
from cordwood.engine.clock import milliseconds
from cordwood.engine.errors import BucketNotFound, NotFound
from cordwood.engine.store import Store

_PAGE = 1000
_AFTER_SPACE = "!"


@dataclass(frozen=True, slots=True)
class Message:
    """`name` is its place in the outbox."""

    name: str
    body: bytes

    @property
    def committed_ms(self) -> int:
        """When the change was made that the message tells of, in Unix milliseconds."""
        return milliseconds(int(self.name.rpartition(" ")[2][:16], 16))


class Outbox:
    """The messages of one store, also of changes that other processes make."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def announcing(self, announce: Announce) -> Store:
        """The store, for changes with messages: what is changed through the answer goes together with what `announce`
        says of it, in one commit. It is closed with the store."""
        store = self._store
        return Store(store.path, replace(store._core, announce=announce), store._session)

    def topics(self) -> list[str]:
        """Those that have a message."""
        found: list[str] = []
        after = ""
        while names := self._names("", after, 1):
            topic = names[0].partition(" ")[0]
            found.append(topic)
            after = topic + _AFTER_SPACE
        return found

    def peek(self, topic: str, limit: int) -> list[Message]:
        """The oldest messages of a topic."""
        messages = []
        for name in self._names(topic, "", limit):
            try:
                with self._store.get(OUTBOX, name) as reader:
                    messages.append(Message(name, b"".join(reader)))
            except NotFound:
                continue  # somebody else removed it just now
        return messages

    def count(self, topic: str) -> int:
        """How many messages of a topic wait. Walks over all of them."""
        return sum(1 for _ in self._all_names(topic))

    def trim(self, topic: str, keep: int) -> int:
        """Removes the oldest messages of a topic until at most `keep` are left. Returns how many went."""
        surplus = self.count(topic) - keep
        gone = 0
        while gone < surplus:
            names = self._names(topic, "", min(_PAGE, surplus - gone))
            if not names:
                break
            self._remove(names)
            gone += len(names)
        return gone

    def remove(self, messages: Sequence[Message]) -> None:
        """They were delivered."""
        if messages:
            self._remove([message.name for message in messages])

    def _remove(self, names: Sequence[str]) -> None:
        self._store.delete_many(OUTBOX, [(name, None, None) for name in names])

    def _all_names(self, topic: str) -> Iterator[str]:
        after = ""
        while names := self._names(topic, after, _PAGE):
            yield from names
            after = names[-1]

    def _names(self, topic: str, after: str, limit: int) -> list[str]:
        prefix = f"{topic} " if topic else ""
        try:
            page = self._store.list(OUTBOX, prefix=prefix, start_after=after, max_keys=limit)
        except BucketNotFound:
            return []
        return [entry.key for entry in page.objects]
