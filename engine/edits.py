"""The store's calls that change an object and keep what it consists of: another key, more bytes at its end.

Must not know: how a store is opened or closed (store.py), how these changes are decided (moving.py, appending.py).

Invariant: a call that lost a race against compaction or another writer is made again, from what stands there by then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from cordwood.engine import moving
from cordwood.engine.appending import AppendWriter, Whole
from cordwood.engine.core import Core
from cordwood.engine.errors import Conflict
from cordwood.engine.model import Conditions, ObjectInfo, encode_key
from cordwood.engine.operations import require_bucket
from cordwood.engine.writer import Data, describe, fill

_CONFLICT_RETRIES = 20

T = TypeVar("T")


class Edits:
    """The part of `Store` that this module holds. What raises NotImplementedError here is what it needs of the rest."""

    _core: Core

    def _check_open(self) -> None:
        raise NotImplementedError

    def rename_object(
        self,
        bucket: str,
        source: str,
        target: str,
        *,
        source_conditions: Conditions | None = None,
        conditions: Conditions | None = None,
        token: str = "",
        confirm: Callable[[ObjectInfo], None] = lambda _: None,
    ) -> ObjectInfo:
        """Gives one object another key; what was there under that key is replaced. No chunk is moved.

        In a bucket with versions the new key gets a new version and the old one a delete marker. `token` names this
        call: made again, with the same arguments and while the object is still there, it answers the same and does
        nothing. `confirm` is given the object as it was found, and may refuse it by raising.
        KeyNotFound, PreconditionFailed (`conditions` are those of the target), InvalidArgument, TokenReused.
        """

        def attempt() -> ObjectInfo:
            self._check_open()
            change = moving.prepare(
                self._core, bucket, source, target, source_conditions, conditions, token, confirm
            )
            return change if isinstance(change, ObjectInfo) else self._core.writing()[1].execute(change)

        return retrying(attempt)

    def append(
        self,
        bucket: str,
        key: str,
        data: Data,
        *,
        offset: int,
        conditions: Conditions | None = None,
        checksums: Mapping[str, str] | None = None,
        whole: Whole | None = None,
    ) -> ObjectInfo:
        """Adds bytes at the end of an object, whose size `offset` must be; 0 also makes a new one. The arguments and
        errors are those of `AppendWriter.commit`."""
        writer = fill(self.append_writer(bucket, key), data)
        return writer.commit(offset, conditions=conditions, checksums=checksums, whole=whole)

    def append_writer(
        self,
        bucket: str,
        key: str,
        *,
        headers: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        storage_class: str = "STANDARD",
        attrs: Mapping[str, Any] | None = None,
    ) -> AppendWriter:
        """A writer for what is to be added. What is said of the object counts only where there is none yet."""
        self._check_open()
        raw = encode_key(key)
        about = describe(headers, metadata, storage_class, attrs)
        about.check()
        with self._core.index.read() as txn:
            require_bucket(txn, bucket)
        return AppendWriter(self._core, bucket, raw, about)


def retrying(attempt: Callable[[], T]) -> T:
    """Runs something that may lose a race against compaction or another writer, a few times."""
    for _ in range(_CONFLICT_RETRIES):
        try:
            return attempt()
        except Conflict:
            continue
    return attempt()
