"""The committer: batches of many callers' operations, outcomes that reach everybody, and no caller left waiting."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cordwood.engine import Conditions, Pending, Store, errors
from cordwood.engine.commit import Decision
from tests.engine.support import FaultyFileSystem, check_accounts, check_rebuilt, keys_of, noise, small


def run(*jobs: Callable[[], Any]) -> None:
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_writes_of_many_threads_share_syncs_and_are_all_there(path: Path) -> None:
    fs = FaultyFileSystem()
    original = fs.datasync

    def slow(fd: int) -> None:
        time.sleep(0.002)
        original(fd)

    with small(path, fs=fs) as store:
        store.create_bucket("wood")
        fs.datasync = slow  # type: ignore[method-assign]
        before = fs.calls["datasync"]

        def work(number: int) -> None:
            for turn in range(20):
                store.put("wood", f"{number}/{turn}", b"%d" % turn)

        run(*(lambda number=number: work(number) for number in range(16)))
        assert fs.calls["datasync"] - before < 16 * 20 / 3
        assert len(keys_of(store, "wood")) == 320
    check_rebuilt(path)


def test_a_write_is_synced_before_it_is_acknowledged(path: Path) -> None:
    fs = FaultyFileSystem()
    with small(path, fs=fs) as store:
        store.create_bucket("wood")
        for size in (1, 9000):
            before = fs.calls["datasync"]
            store.put("wood", "k", noise(size))
            assert fs.calls["datasync"] == before + 1
        before = fs.calls["datasync"]
        store.get("wood", "k").read()
        store.delete("wood", "not there")
        assert fs.calls["datasync"] == before


def test_threads_that_overwrite_one_large_object_within_one_batch_keep_the_accounts_true(
    store: Store, path: Path
) -> None:
    """Each replaces an object whose record is in the same batch, not yet in any volume."""
    run(
        *(
            lambda number=number: [
                store.put("wood", "k", noise(9000, turn * 8 + number)) for turn in range(6)
            ]
            for number in range(8)
        )
    )
    check_accounts(store)
    assert len(store.logical_dump()["chunks"]) == 3
    store.close()
    check_rebuilt(path)


def test_an_outcome_can_be_awaited_by_several_threads_and_with_callbacks(store: Store) -> None:
    writer = store.writer("wood", "k")
    writer.write(b"1")
    seen: list[object] = []
    pending = writer.commit_async()
    pending.add_done_callback(lambda done: seen.append(done.result().size))
    run(*(lambda: seen.append(pending.result(30).size) for _ in range(4)))
    pending.add_done_callback(lambda done: seen.append(done.done()))
    deadline = time.monotonic() + 10
    while len(seen) < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert seen == [1] * 6
    assert pending.exception() is None


def test_a_small_put_without_waiting_is_the_put_that_waits(store: Store) -> None:
    md5 = hashlib.md5(b"value", usedforsecurity=False).digest()
    about: dict[str, Any] = {"headers": {"content-type": "text/plain"}, "checksums": {"CRC32C": "AAAAAA=="}}
    waiting = store.put("wood", "a", b"value", **about)
    pending = store.put_async("wood", "b", b"value", md5=md5, wake=False, **about)
    assert not pending.done()
    store.start_commits()
    info = pending.result(30)
    same = {"etag", "size", "headers", "checksums", "checksum_type", "storage_class"}
    assert [getattr(info, name) for name in same] == [getattr(waiting, name) for name in same]
    assert store.get("wood", "b").read() == b"value"
    with pytest.raises(errors.InvalidArgument, match="limit"):
        store.put_async("wood", "c", bytes(store.inline_max + 1))
    with pytest.raises(errors.BucketNotFound):
        store.put_async("stone", "c", b"").result(30)
    with pytest.raises(errors.PreconditionFailed):
        store.put_async("wood", "b", b"", conditions=Conditions(if_none_match=("*",))).result(30)


def test_a_refused_operation_tells_its_error_by_result_and_by_exception(store: Store) -> None:
    writer = store.writer("wood", "k")
    pending = writer.commit_async(conditions=Conditions(if_match=("*",)))
    assert isinstance(pending.exception(30), errors.KeyNotFound)
    with pytest.raises(errors.KeyNotFound):
        pending.result()
    assert store.delete_async("wood", "k").result(30).existed is False


def test_waiting_for_an_outcome_ends_at_its_time_limit_and_can_be_repeated(store: Store) -> None:
    committer = store._core.committer
    assert committer is not None
    writer = store.writer("wood", "k")
    with committer._working:
        pending: Pending[Any] = writer.commit_async()
        with pytest.raises(TimeoutError):
            pending.result(0.02)
        with pytest.raises(TimeoutError):
            pending.exception(0.02)
    committer.wake()
    assert pending.result(30).size == 0


class Explosive:
    """An operation that fails in a way nobody foresaw."""

    nested = False
    frees = False

    def __init__(self, error: BaseException, *, writes: bool) -> None:
        self.error = error
        self.writes = writes

    def size_hint(self) -> int:
        return 100

    def decide(self, decision: Decision) -> None:
        if self.writes:
            from cordwood.engine.format import BucketHead

            decision.write(BucketHead(1, "never", "", False))
        raise self.error


@pytest.mark.parametrize("writes", [False, True])
@pytest.mark.parametrize(
    "error", [RuntimeError("boom"), errors.KeyNotFound("b", "k")], ids=["bug", "refusal"]
)
def test_a_failure_nobody_foresaw_reaches_the_caller_and_leaves_nothing_half_done(
    path: Path, error: Exception, writes: bool
) -> None:
    with small(path) as store:
        store.create_bucket("wood")
        store.put("wood", "k", b"1")
        committer = store._core.committer
        assert committer is not None
        is_refusal = isinstance(error, errors.CordwoodError) and not writes
        with pytest.raises(errors.KeyNotFound if is_refusal else errors.ReadOnly):
            committer.execute(Explosive(error, writes=writes))
        assert (store.read_only_reason is None) == is_refusal
        assert [bucket.name for bucket in store.list_buckets()] == ["wood"]
        assert store.get("wood", "k").read() == b"1"
    check_rebuilt(path)


def test_an_interrupt_of_the_committing_thread_leaves_no_other_caller_waiting(path: Path) -> None:
    with small(path) as store:
        store.create_bucket("wood")
        committer = store._core.committer
        assert committer is not None
        writer = store.writer("wood", "k")
        with committer._working:
            other = writer.commit_async()
            while not committer._bell.locked():  # the commit thread has looked, and found somebody at work
                time.sleep(0.001)
            time.sleep(0.01)
        with pytest.raises(KeyboardInterrupt):
            committer.execute(Explosive(KeyboardInterrupt(), writes=True))
        try:
            other.result(10)
        except (errors.CordwoodError, KeyboardInterrupt):
            pass
        assert [bucket.name for bucket in store.list_buckets()] == ["wood"]
    check_rebuilt(path)


def test_closing_waits_for_what_was_submitted(path: Path) -> None:
    store = small(path)
    store.create_bucket("wood")
    pending = []
    for number in range(50):
        writer = store.writer("wood", f"k{number}")
        writer.write(b"x")
        pending.append(writer.commit_async())
    store.close()
    assert all(each.done() for each in pending)
    with small(path) as store:
        assert len(keys_of(store, "wood")) == 50


def test_closing_in_the_middle_of_other_threads_work_ends_each_call_clearly(path: Path) -> None:
    store = small(path)
    store.create_bucket("wood")
    acknowledged: list[str] = []
    unexpected: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(10_000):
                store.put("wood", f"{number}/{turn}", noise(300, turn))
                acknowledged.append(f"{number}/{turn}")
                store.get("wood", f"{number}/{turn}").read()
                store.list("wood", max_keys=3)
        except errors.Closed:
            pass
        except BaseException as error:
            unexpected.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    store.close()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert unexpected == []
    with small(path) as store:
        assert set(acknowledged) <= set(keys_of(store, "wood"))
        check_accounts(store)


def test_a_batch_larger_than_its_limits_is_split_and_complete(store: Store, path: Path) -> None:
    committer = store._core.committer
    assert committer is not None
    pending = []
    with committer._working:
        for number in range(1500):
            writer = store.writer("wood", f"k{number:04}")
            writer.write(b"x")
            pending.append(writer.commit_async())
    committer.wake()
    for each in pending:
        each.result(60)
    assert len(keys_of(store, "wood")) == 1500
    store.close()
    check_rebuilt(path)
