"""Several puts and deletes as one atomic change.

Must not know: how a batch is begun (store.py does that).

Invariant: nothing of a batch is visible before `commit`, and everything after it, or nothing at all.
"""

from __future__ import annotations

from collections.abc import Mapping

from cordwood.engine.core import Core
from cordwood.engine.errors import InvalidState
from cordwood.engine.model import Conditions, encode_key, lookup_key
from cordwood.engine.operations import DeleteObject, Description, PutObject, Together
from cordwood.engine.writer import Data, ObjectWriter, describe, fill, small_content

_BARE = Description()  # of all objects about which nothing is said; never changed


class Batch:
    """Collects puts and deletes; the store commits them as one when its `with` block ends without an error."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._operations: list[PutObject | DeleteObject] = []
        self._ended = False

    def put(
        self,
        bucket: str,
        key: str,
        data: Data,
        *,
        headers: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        conditions: Conditions | None = None,
    ) -> None:
        """Adds an object. A large one is written to the volume now, but appears with the others."""
        self._check()
        raw = encode_key(key)
        about = describe(headers, metadata, "STANDARD", None) if headers or metadata else _BARE
        content = small_content(self._core, data)
        if content is not None:
            self._operations.append(PutObject(bucket, raw, content, about, conditions))
            return
        writer = ObjectWriter(self._core, bucket, raw, about)
        fill(writer, data).flush()
        self._operations.append(writer.operation(conditions, None, ""))

    def delete(self, bucket: str, key: str, *, conditions: Conditions | None = None) -> None:
        """Adds a delete."""
        self._check()
        self._operations.append(DeleteObject(bucket, lookup_key(key), None, conditions))

    def commit(self) -> None:
        """Called by `Store.batch`; an empty batch does nothing."""
        operations, self._operations = self._operations, []
        if operations:
            self._core.writing()[1].execute(Together(operations))

    def end(self) -> None:
        """Nothing can be added from now on: it would never be committed."""
        self._ended = True

    def _check(self) -> None:
        if self._ended:
            raise InvalidState("the batch has ended; begin another one")
