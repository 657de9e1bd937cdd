"""The group committer: decide, append, sync, index, acknowledge. The only path by which anything changes.

One batch, in this order, each step only after the one before:
  1. begin the LMDB write transaction (the one lock between all writers of all processes);
  2. let each operation decide against it; give accepted ones their clock and apply their records to the transaction;
  3. append all their records to the active volume in one write;
  4. fdatasync the volume;
  5. put the volume's watermark, commit the transaction;
  6. complete the operations: only now does a caller hear of success.
A crash before 4 leaves a tail that nobody was told of; between 4 and 5 one that recovery may replay; after 5 the
change stands. If 3 fails for lack of space, the batch is refused whole and its bytes are cut off. If 4 or 5 fails,
the outcome is unknown: the store turns read-only, and says why.

Must not know: what the operations mean.

Invariants:
* An operation that raises in `decide` has changed nothing.
* No operation is completed twice, none is forgotten: a failure completes all that were taken with the error.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar

from cordwood.engine.appender import Appender
from cordwood.engine.apply import Applier
from cordwood.engine.clock import tick
from cordwood.engine.errors import Closed, CordwoodError, Corrupt, Full, ReadOnly
from cordwood.engine.format import (
    TYPE_OF_HEAD,
    ChunkRef,
    Flag,
    Head,
    Manifest,
    RecordType,
    clock_base,
    encode_head,
    record_length,
)
from cordwood.engine.health import Health
from cordwood.engine.index import Index, Txn
from cordwood.engine.rows import BucketRow
from cordwood.engine.volume import NewRecord, Place

_log = logging.getLogger("cordwood.engine")
_BATCH_OPERATIONS_MAX = 1024
_BATCH_BYTES_MAX = 32 << 20
_SHAPING = frozenset(
    {int(RecordType.DELETE), int(RecordType.DIRECTORY), int(RecordType.BUCKET)}
)  # may move or end one

T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)


_registering = threading.Lock()


class Pending(Generic[T]):
    """The outcome of a submitted operation; the part of `concurrent.futures.Future` that is needed, but light."""

    __slots__ = ("_callbacks", "_done", "_error", "_value", "_waiter")

    def __init__(self) -> None:
        self._done = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[Pending[T]], None]] = []
        self._waiter: threading.Lock | None = None

    def done(self) -> bool:
        return self._done

    def result(self, timeout: float | None = None) -> T:
        """Waits for the outcome; raises what the operation raised. TimeoutError after `timeout` seconds."""
        if not self._done:
            self._wait(timeout)
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]  # set together with _done

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Waits likewise; returns what `result` would raise."""
        if not self._done:
            self._wait(timeout)
        return self._error

    def add_done_callback(self, callback: Callable[[Pending[T]], None]) -> None:
        """Calls back once, from the committing thread, or at once if it is done."""
        self._callbacks.append(callback)
        if self._done:
            self._call_back()

    def complete(self, value: T | None, error: BaseException | None) -> None:
        self._value = value
        self._error = error
        self._done = True
        if self._waiter is not None:
            self._waiter.release()
        self._call_back()

    def _wait(self, timeout: float | None) -> None:
        # The lock is a baton: `complete` gives it to one waiter, and each waiter to the next.
        with _registering:
            if self._waiter is None:
                waiter = threading.Lock()
                waiter.acquire()
                self._waiter = waiter
            waiter = self._waiter
        if self._done:
            return
        if not waiter.acquire(timeout=-1 if timeout is None else timeout):
            raise TimeoutError("the commit is still under way")
        waiter.release()

    def _call_back(self) -> None:
        # list.pop is atomic, so of two threads that get here each callback is called by one.
        while self._callbacks:
            try:
                callback = self._callbacks.pop()
            except IndexError:
                return
            callback(self)


class Operation(Protocol[R_co]):
    """One atomic change. `nested`: it may still refuse after its first write. `frees`: it may use the reserve."""

    nested: bool
    frees: bool

    def size_hint(self) -> int:
        """About how many bytes its records will take."""
        ...

    def decide(self, decision: Decision) -> R_co:
        """Checks the preconditions, then writes records; returns the caller's result."""
        ...


class Decision:
    """What an operation sees while it decides: the transaction, and the way to write records."""

    def __init__(self, txn: Txn, applier: Applier, clock: int, volume: int, position: int) -> None:
        self.txn = txn
        self.clock = max(clock, tick(clock) - 1)  # the wall clock is asked once for all that is decided here
        self.records: list[NewRecord] = []
        self.directories: dict[
            tuple[int, bytes], int
        ] = {}  # ids by root and path, while no directory changes
        self._buckets: dict[str, BucketRow] = {}
        self._base = clock_base(clock)
        self._applier = applier
        self._volume = volume
        self._position = position

    def tick(self) -> int:
        """The next clock value: unique and greater than every one before, in all processes."""
        self.clock += 1
        return self.clock

    def bucket(self, name: str) -> BucketRow | None:
        """A bucket as it is by now."""
        row = self._buckets.get(name)
        if row is None:
            row = self.txn.bucket(name)
            if row is not None:
                self._buckets[name] = row
        return row

    def write(
        self,
        head: Head,
        body: bytes | memoryview = b"",
        *,
        clock: int | None = None,
        manifest: Manifest | None = None,
    ) -> tuple[int, Place]:
        """Adds a record to the operation and applies it to the index. Returns its clock and place."""
        if clock is None:
            clock = self.clock = self.clock + 1
        type_ = TYPE_OF_HEAD[type(head)]
        if type_ in _SHAPING:
            self._forget()
        packed = encode_head(head)
        length = record_length(len(packed), len(body))
        place = Place(self._volume, self._position, length)
        self._position += length
        self.records.append(NewRecord(type_, 0, clock, packed, body, None, self._base))
        self._applier.apply(type_, clock, place, head, manifest)
        return clock, place

    def _forget(self) -> None:
        self.directories.clear()
        self._buckets.clear()

    def move_chunk(self, ref: ChunkRef) -> None:
        """Points a chunk's row to a good copy."""
        self._applier.move_chunk(ref)

    def close_transaction(self, first: int) -> None:
        """Marks the records from `first` on as one transaction."""
        for number in range(first, len(self.records) - 1):
            self.records[number].flags = Flag.MORE

    def rewind(self, first: int, position: int, txn: Txn) -> None:
        """Forgets the records from `first` on, after the nested transaction they went into was aborted."""
        del self.records[first:]
        self._position = position
        self.txn = txn
        self._forget()

    @property
    def position(self) -> int:
        return self._position


Batch = list[tuple[Operation[Any], Pending[Any]]]


class Commits(Protocol):
    """The way from an operation to its commit, as writers and the store see it."""

    def submit(self, operation: Operation[T], *, wake: bool = True) -> Pending[T]: ...

    def execute(self, operation: Operation[T]) -> T: ...


class Committer:
    """Takes operations from any thread and commits them in batches, on its own thread or on a waiting caller's.

    `sync_others` makes durable what a batch may rest on in volumes other than this process's own one. `upkeep` is
    called on the commit thread now and then, also while nothing is committed.
    """

    def __init__(
        self,
        index: Index,
        appender: Appender,
        read_manifest: Callable[[Place], Manifest],
        health: Health,
        *,
        sync: bool,
        sync_others: Callable[[Txn, int], None],
        upkeep: Callable[[], object],
        upkeep_interval_s: float,
    ) -> None:
        self._index = index
        self._upkeep = upkeep
        self._upkeep_interval_s = upkeep_interval_s
        self._sync_others = sync_others
        self._health = health
        self._appender = appender
        self._read_manifest = read_manifest
        self._sync = sync
        self._queue: deque[tuple[Operation[Any], Pending[Any]]] = deque()
        self._working = threading.Lock()
        self._bell = threading.Lock()  # free while the commit thread has been called and has not looked yet
        self._bell.acquire()
        self._closed = False
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="cordwood-commit", daemon=True)
        self._thread.start()

    def submit(self, operation: Operation[T], *, wake: bool = True) -> Pending[T]:
        """Queues an operation for the commit thread. With `wake` false it may wait until the next `wake`."""
        pending: Pending[T] = Pending()
        self._enqueue(operation, pending)
        if wake:
            self.wake()
        return pending

    def wake(self) -> None:
        """Lets the commit thread take what was submitted without waking it."""
        with suppress(RuntimeError):  # it was called already
            self._bell.release()

    def execute(self, operation: Operation[T]) -> T:
        """Commits an operation and waits: on this thread if no batch is under way, else with the next one."""
        pending: Pending[T] = Pending()
        self._enqueue(operation, pending)
        try:
            self._drain(pending)
        finally:
            if self._queue or self._closed:  # when closing, the thread may have waited for what we took
                self.wake()
        return pending.result()

    def close(self) -> None:
        """Finishes what is queued, then stops."""
        self._closed = True
        self.wake()
        self._thread.join()
        with self._working:  # a caller may still be committing, and another may have queued just now
            self._stopped = True

    def _enqueue(self, operation: Operation[Any], pending: Pending[Any]) -> None:
        if self._closed:
            raise Closed("the store is closed")
        self._health.check()
        self._queue.append((operation, pending))

    def _run(self) -> None:
        due_s = time.monotonic() + self._upkeep_interval_s
        while True:
            self._bell.acquire(timeout=max(0.0, due_s - time.monotonic()))
            if time.monotonic() >= due_s:
                try:
                    self._upkeep()
                except OSError:
                    _log.exception("upkeep failed; it is tried again later")
                due_s = time.monotonic() + self._upkeep_interval_s
            self._drain(None)
            if self._closed and not self._queue:
                return

    def _drain(self, until: Pending[Any] | None) -> None:
        """Commits batches while there are any. Whoever queued while another was draining is seen by that one."""
        while self._queue and not (until is not None and until.done()):
            if not self._working.acquire(blocking=False):
                return
            try:
                while self._queue and not (until is not None and until.done()):
                    batch: Batch = []
                    self._take(batch)
                    self._commit_batch(batch)
            finally:
                self._working.release()

    def _take(self, batch: Batch) -> int:
        """Moves what is queued into the batch, up to the limits; returns the bytes that all of it will take."""
        size = sum(operation.size_hint() for operation, _ in batch)
        while self._queue and len(batch) < _BATCH_OPERATIONS_MAX and size < _BATCH_BYTES_MAX:
            item = self._queue.popleft()
            size += item[0].size_hint()
            batch.append(item)
        return size

    def _commit_batch(self, batch: Batch) -> None:
        try:
            outcomes = self._commit(batch)
        except Full as error:
            freeing = [item for item in batch if item[0].frees]
            for operation, pending in batch:
                if not operation.frees or len(freeing) == len(batch):
                    pending.complete(None, error)
            if freeing and len(freeing) < len(batch):
                self._commit_batch(freeing)
        except Corrupt as error:
            if len(batch) == 1:
                batch[0][1].complete(None, error)
            for item in batch if len(batch) > 1 else ():
                self._commit_batch([item])  # only the one that met it is to suffer
        except BaseException as error:
            answer: BaseException = error
            if not isinstance(error, CordwoodError):
                _log.exception("a batch failed")
                self._health.fail(f"a commit failed unexpectedly: {error!r}; reopen the store to recover")
                answer = ReadOnly(f"a commit failed unexpectedly: {error!r}; reopen the store to recover")
            for _, pending in batch:
                pending.complete(None, answer)
            if not isinstance(error, Exception):
                raise  # an interrupt of the thread that happened to commit for the others
        else:
            for (_, pending), (value, refused) in zip(batch, outcomes, strict=True):
                pending.complete(value, refused)

    def _commit(self, batch: Batch) -> list[tuple[Any, CordwoodError | None]]:
        if self._stopped:
            raise Closed("the store is closed")
        self._health.check()
        self._appender.prepare()
        txn = self._index.begin()
        try:
            # What was queued while another process held the writer lock goes along.
            size = self._take(batch)
            applier = Applier(txn, self._read_manifest)
            with self._appender.batch(size, frees=all(operation.frees for operation, _ in batch)) as active:
                decision = Decision(txn, applier, txn.clock(), active.id, active.tail)
                outcomes = [self._decide(operation, decision, applier) for operation, _ in batch]
                if not decision.records:
                    txn.raw.abort()
                    return outcomes
                watermarks = self._appender.watermarks(decision.position)
                txn.put_clock(decision.records[-1].clock)  # the base of the next batch
                applier.finish(watermarks)  # before the append: a full index costs this batch, not the store
                active.append(decision.records)
        except BaseException:
            txn.raw.abort()
            raise
        try:
            if self._sync:
                active.sync()
                self._sync_others(txn, active.id)
            self._index.commit(txn)
        except BaseException as error:
            txn.raw.abort()
            why = f"commit could not be made durable: {error}; close and reopen the store to recover"
            self._health.fail(why)
            raise ReadOnly(why) from error
        self._appender.indexed(watermarks)
        return outcomes

    def _decide(
        self, operation: Operation[Any], decision: Decision, applier: Applier
    ) -> tuple[Any, CordwoodError | None]:
        first = len(decision.records)
        if not operation.nested:
            try:
                value = operation.decide(decision)
            except Full:
                raise  # the index is full: a matter of the whole batch
            except CordwoodError as refused:
                if len(decision.records) != first:
                    if isinstance(refused, Corrupt):
                        raise  # a row that its records touch is spoilt: what is applied of it must go
                    raise AssertionError(f"{operation!r} refused after it had written") from refused
                return None, refused
            decision.close_transaction(first)
            return value, None
        outer = decision.txn
        saved = applier.snapshot()
        position = decision.position
        decision.txn = self._index.child(outer)
        applier.restore(decision.txn, saved)
        saved = applier.snapshot()
        try:
            value = operation.decide(decision)
        except Full:
            raise
        except CordwoodError as refused:
            decision.txn.raw.abort()
            applier.restore(outer, saved)
            decision.rewind(first, position, outer)
            return None, refused
        decision.txn.raw.commit()
        decision.txn = outer
        applier.restore(outer, applier.snapshot())
        decision.close_transaction(first)
        return value, None
