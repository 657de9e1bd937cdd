"""Opening a directory: who may, what is refused before a byte is changed, what is mended, what is only reported."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import shutil
import threading
from pathlib import Path

import pytest

from cordwood.engine import Store, errors, rebuild
from cordwood.engine.format import SUPERBLOCK_SIZE
from cordwood.engine.fs import REAL
from cordwood.engine.index import Index
from cordwood.engine.lengths import check_lengths
from tests.engine.support import (
    check_accounts,
    check_rebuilt,
    first_volume,
    flip,
    in_a_fork,
    keys_of,
    noise,
    python,
    small,
    used_index_bytes,
    volume_paths,
)


def state_of(path: Path) -> dict[str, str]:
    """Every file below a directory with a digest of its content and its modification time."""
    return {
        str(
            each.relative_to(path)
        ): f"{hashlib.sha256(each.read_bytes()).hexdigest()} {each.stat().st_mtime_ns}"
        for each in sorted(path.rglob("*"))
        if each.is_file()
    }


@pytest.fixture
def closed(path: Path) -> Path:
    """A closed store with a small and a large object."""
    with small(path) as store:
        store.create_bucket("wood")
        store.put("wood", "small", b"1")
        store.put("wood", "large", noise(9000))
    return path


def check_content(path: Path) -> None:
    with small(path) as store:
        assert store.get("wood", "small").read() == b"1"
        assert store.get("wood", "large").read() == noise(9000)


def test_a_directory_of_a_newer_format_is_refused_and_not_touched(closed: Path) -> None:
    content = json.loads((closed / "FORMAT").read_text())
    content["version"] += 1
    (closed / "FORMAT").write_text(json.dumps(content))
    before = state_of(closed)
    for attempt in (lambda: small(closed), lambda: small(closed, read_only=True), lambda: rebuild(closed)):
        with pytest.raises(errors.UnsupportedFormat, match="Nothing was changed"):
            attempt()
    assert state_of(closed) == before


def test_a_format_of_the_future_with_other_fields_is_called_newer_and_not_corrupt(closed: Path) -> None:
    (closed / "FORMAT").write_text(json.dumps({"format": "cordwood", "version": 99, "cells": {}}))
    with pytest.raises(errors.UnsupportedFormat):
        small(closed)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "7", '{"format": "x", "version": 1}', '{"version": 1}', "\udc80"]
)
def test_a_format_file_that_is_none_is_corrupt_and_nothing_is_touched(closed: Path, content: str) -> None:
    (closed / "FORMAT").write_bytes(content.encode("utf-8", "surrogateescape"))
    before = state_of(closed)
    with pytest.raises(errors.Corrupt, match="FORMAT"):
        small(closed)
    assert state_of(closed) == before


def test_volumes_without_a_format_file_are_not_taken_for_an_empty_directory(closed: Path) -> None:
    (closed / "FORMAT").unlink()
    before = state_of(closed)
    with pytest.raises(errors.Corrupt, match="no FORMAT"):
        small(closed)
    assert state_of(closed) == before


def test_a_store_is_only_made_where_that_was_asked_for(path: Path) -> None:
    for options in ({"create": False}, {"read_only": True}):
        with pytest.raises(errors.StoreNotFound):
            small(path, **options)
        assert not path.exists()
    small(path).close()
    small(path, create=False).close()


def test_a_path_that_is_a_file_is_refused_by_the_system(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError):
        small(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "x"


def test_the_identity_is_made_once_and_kept(path: Path) -> None:
    small(path, node_id=0xABC).close()
    content = json.loads((path / "FORMAT").read_text())
    assert content["format"] == "cordwood" and content["version"] == 1
    assert content["node"] == f"{0xABC:016x}" and len(content["store"]) == 32
    small(path, node_id=0xDEF).close()
    assert json.loads((path / "FORMAT").read_text()) == content


def test_two_stores_are_two_identities(tmp_path: Path) -> None:
    contents = []
    for name in "ab":
        small(tmp_path / name).close()
        contents.append(json.loads((tmp_path / name / "FORMAT").read_text()))
    assert contents[0]["store"] != contents[1]["store"] and contents[0]["node"] != contents[1]["node"]


# --- who may ---------------------------------------------------------------------------------------------------


def test_one_process_opens_a_store_once_also_by_another_name(
    store: Store, path: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(path)
    for name in (path, tmp_path / "link", path / ".." / "store"):
        with pytest.raises(errors.Busy, match="open in this process already"):
            small(name)
        with pytest.raises(errors.Busy):
            small(name, read_only=True)
    store.close()
    small(path).close()


def test_an_open_that_failed_does_not_block_the_next(closed: Path) -> None:
    flip(closed / "FORMAT", 0)
    for _ in range(2):
        with pytest.raises(errors.Corrupt):
            small(closed)
    flip(closed / "FORMAT", 0)
    check_content(closed)


def test_a_tool_that_holds_the_store_alone_keeps_everybody_out(closed: Path) -> None:
    with open(closed / "LOCK", "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(errors.Busy, match="needs it alone"):
            small(closed)
    check_content(closed)


def test_a_closed_store_says_so_to_every_call_and_may_be_closed_again(store: Store) -> None:
    store.put("wood", "k", noise(9000))
    reader = store.get("wood", "k")
    writer = store.writer("wood", "k")
    writer.write(b"1")
    another = store.writer("wood", "k")
    store.close()
    store.close()
    for call in (
        lambda: store.put("wood", "k", b""),
        lambda: store.get("wood", "k"),
        lambda: store.head("wood", "k"),
        lambda: store.delete("wood", "k"),
        lambda: store.delete_async("wood", "k"),
        lambda: store.list("wood"),
        store.list_buckets,
        store.index_info,
        store.logical_dump,
        writer.commit,
        another.commit_async,
        reader.read,
    ):
        with pytest.raises(errors.Closed):
            call()


def test_after_a_fork_the_child_is_told_that_the_store_is_not_its_own(store: Store, path: Path) -> None:
    store.put("wood", "k", noise(9000))
    writer = store.writer("wood", "w")
    writer.write(noise(9000, 2))
    reader = store.get("wood", "k")

    def job() -> None:
        for call in (
            lambda: store.put("wood", "k", b""),
            lambda: store.get("wood", "k"),
            lambda: store.list("wood"),
            writer.commit,
            reader.read,
        ):
            with pytest.raises(errors.Closed):
                call()
        store.close()

    assert in_a_fork(job) == 0
    assert reader.read() == noise(9000)
    writer.commit()
    assert store.get("wood", "w").read() == noise(9000, 2)


def test_a_forked_child_is_told_that_it_cannot_open_its_parents_store(store: Store, path: Path) -> None:
    """LMDB allows an environment once per process, and closing the inherited one would disturb the parent."""

    def job() -> None:
        for _ in range(2):
            with pytest.raises(errors.Busy, match="forked"):
                small(path)

    assert in_a_fork(job) == 0
    store.put("wood", "parent", noise(9000))
    python(
        "import sys; from cordwood.engine import Store; Store.open(sys.argv[1], map_size=1 << 28).close()",
        path,
    )
    assert keys_of(store, "wood") == ["parent"]
    store.close()
    check_rebuilt(path)


def test_a_fork_in_the_middle_of_other_threads_work_disturbs_nobody(store: Store, path: Path) -> None:
    stop = threading.Event()
    failures: list[BaseException] = []

    def work(number: int) -> None:
        turn = 0
        try:
            while not stop.is_set():
                turn += 1
                store.put("wood", f"{number}", noise(600, turn))
                assert store.get("wood", f"{number}").read() == noise(600, turn)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()

    def job() -> None:
        with pytest.raises(errors.Closed):
            store.get("wood", "1")
        with pytest.raises(errors.Closed):
            store.put("wood", "1", b"")

    try:
        assert [in_a_fork(job) for _ in range(10)] == [0] * 10
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    check_accounts(store)
    store.close()
    check_rebuilt(path)


# --- read-only ------------------------------------------------------------------------------------------------


def test_a_store_opened_read_only_reads_everything_and_writes_nothing(closed: Path) -> None:
    before = {name: digest for name, digest in state_of(closed).items() if "lock.mdb" not in name}
    with small(closed, read_only=True) as store:
        assert store.read_only_reason is not None
        assert store.get("wood", "small").read() == b"1"
        assert store.get("wood", "large").read() == noise(9000)
        assert keys_of(store, "wood") == ["large", "small"]
        for call in (
            lambda: store.put("wood", "k", b""),
            lambda: store.put("wood", "k", noise(9000)),
            lambda: store.delete("wood", "small"),
            lambda: store.delete_async("wood", "small"),
            lambda: store.create_bucket("other"),
            lambda: store.delete_bucket("wood"),
            lambda: store.copy("wood", "small", "wood", "k"),
            lambda: store.rename("wood", "a/", "b/"),
            lambda: store.create_upload("wood", "k"),
        ):
            with pytest.raises(errors.ReadOnly):
                call()
        with pytest.raises(errors.ReadOnly), store.batch() as batch:
            batch.put("wood", "k", b"")
    after = {name: digest for name, digest in state_of(closed).items() if "lock.mdb" not in name}
    assert after == before


def test_a_reader_in_another_process_sees_what_is_written_meanwhile(store: Store, path: Path) -> None:
    code = """if True:
        import sys
        from cordwood.engine import Store
        with Store.open(sys.argv[1], read_only=True, map_size=1 << 28) as store:
            print(store.get("wood", "k").read().decode())
    """
    for value in ("one", "two" * 1000):
        store.put("wood", "k", value.encode())
        assert python(code, path).stdout.strip() == value


def test_a_bucket_that_another_process_changed_is_not_answered_from_memory(store: Store, path: Path) -> None:
    code = """if True:
        import sys
        from cordwood.engine import Store
        with Store.open(sys.argv[1], map_size=1 << 28) as store:
            exec(sys.argv[2])
    """
    assert store.head_bucket("wood").versioning == ""
    python(code, path, "store.update_bucket('wood', versioning='Enabled')")
    assert store.head_bucket("wood").versioning == "Enabled"
    python(code, path, "store.delete_bucket('wood')")
    with pytest.raises(errors.BucketNotFound):
        store.head_bucket("wood")


def test_a_read_only_open_without_an_index_is_refused_with_the_way_out(closed: Path) -> None:
    shutil.rmtree(closed / "index")
    with pytest.raises(errors.Corrupt, match="rebuild"):
        small(closed, read_only=True)


# --- the index ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", ["index", "index/data.mdb", "index/lock.mdb"])
def test_an_index_that_is_gone_is_rebuilt_when_the_store_is_opened(closed: Path, gone: str) -> None:
    with small(closed) as store:
        dump = store.logical_dump()
    if (closed / gone).is_dir():
        shutil.rmtree(closed / gone)
    else:
        (closed / gone).unlink()
    with small(closed) as store:
        assert store.logical_dump() == dump
    check_content(closed)


def test_a_truncated_index_is_refused_before_it_is_mapped(closed: Path) -> None:
    """Mapping it would end the process with SIGBUS at the first touch of a missing page."""
    data = closed / "index" / "data.mdb"
    whole = data.read_bytes()
    used = used_index_bytes(closed)
    for size in (*range(4096, used, 4096), 100, 4095, 8191, used - 1):
        data.write_bytes(whole[:size])
        with pytest.raises(errors.Corrupt, match="rebuild"):
            small(closed)
    data.write_bytes(whole)
    check_content(closed)
    data.write_bytes(whole[:4096])
    rebuild(closed, map_size=1 << 28)
    check_content(closed)


@pytest.mark.parametrize("kind", ["zeros", "noise", "page size", "text"])
def test_an_index_file_that_is_none_is_refused_with_the_way_out(closed: Path, kind: str) -> None:
    data = closed / "index" / "data.mdb"
    whole = bytearray(data.read_bytes())
    if kind == "page size":
        whole[16 + 24 : 16 + 28] = (12345).to_bytes(4, "little")
    else:
        whole[:] = {"zeros": bytes(len(whole)), "noise": noise(len(whole)), "text": b"x" * 100}[kind]
    data.write_bytes(whole)
    with pytest.raises(errors.Corrupt, match="rebuild"):
        small(closed)
    rebuild(closed, map_size=1 << 28)
    check_content(closed)


def test_the_index_of_another_store_is_refused(closed: Path, tmp_path: Path) -> None:
    with small(tmp_path / "other") as other:
        other.create_bucket("wood")
    shutil.rmtree(closed / "index")
    shutil.copytree(tmp_path / "other" / "index", closed / "index")
    before = [each.read_bytes() for each in volume_paths(closed)]
    with pytest.raises(errors.Corrupt, match="another store"):
        small(closed)
    with pytest.raises(errors.Corrupt, match="another store"):
        small(closed, read_only=True)
    assert [each.read_bytes() for each in volume_paths(closed)] == before
    rebuild(closed, map_size=1 << 28)
    check_content(closed)


def test_a_map_too_small_for_the_index_refuses_writes_as_full_and_stays_usable(path: Path) -> None:
    with small(path, map_size=1 << 18) as store:
        store.create_bucket("wood")
        count = 0
        with pytest.raises(errors.Full, match="map_size"):
            for count in range(10_000):
                with store.batch() as batch:
                    for number in range(50):
                        batch.put("wood", f"{count}-{number}", b"x")
        assert store.get("wood", f"{count - 1}-0").read() == b"x"
        assert store.read_only_reason is None
        with pytest.raises(errors.KeyNotFound):
            store.get("wood", f"{count}-0")
    with small(path) as store:
        store.put("wood", "k", b"y")
        assert len(keys_of(store, "wood")) == 50 * count + 1
    check_rebuilt(path)


# --- volumes --------------------------------------------------------------------------------------------------


def test_the_volume_of_another_store_is_reported_and_never_read_or_changed(
    closed: Path, tmp_path: Path
) -> None:
    with small(tmp_path / "other") as other:
        other.create_bucket("wood")
        other.put("wood", "small", b"not yours")
    foreign = closed / "volumes" / "0000000002.vol"
    shutil.copy(first_volume(tmp_path / "other"), foreign)
    before = foreign.read_bytes()
    check_content(closed)
    assert foreign.read_bytes() == before
    shutil.copy(foreign, first_volume(closed))
    with small(closed) as store, pytest.raises(errors.Corrupt, match="another store"):
        store.get("wood", "small")
    rebuild(closed, map_size=1 << 28)
    with small(closed) as store:
        assert store.list_buckets() == []


def test_a_volume_under_the_wrong_number_is_corrupt(closed: Path) -> None:
    first_volume(closed).rename(closed / "volumes" / "0000000007.vol")
    shutil.copy(closed / "volumes" / "0000000007.vol", first_volume(closed))
    check_content(closed)
    (closed / "volumes" / "0000000007.vol").rename(first_volume(closed))
    check_content(closed)
    rebuild(closed, map_size=1 << 28)
    check_content(closed)


def test_a_volume_of_a_newer_format_is_left_alone(closed: Path) -> None:
    data = bytearray(first_volume(closed).read_bytes())
    data[8] += 1
    newer = closed / "volumes" / "0000000002.vol"
    newer.write_bytes(data)
    with small(closed) as store:
        assert store.get("wood", "small").read() == b"1"
        store.put("wood", "k", b"2")
    assert newer.read_bytes() == data


def test_what_a_crash_left_half_made_is_cleared_away(closed: Path) -> None:
    leftover = closed / "volumes" / ".0000000002.vol.abcd.tmp"
    leftover.write_bytes(bytes(100))
    for name in ("index.new", "index.old"):
        (closed / name).mkdir()
        (closed / name / "data.mdb").write_bytes(b"x")
    check_content(closed)
    assert not leftover.exists()
    assert not (closed / "index.new").exists() and not (closed / "index.old").exists()


def test_a_volume_that_another_process_is_just_making_is_not_taken_for_a_leftover(closed: Path) -> None:
    making = closed / "volumes" / ".0000000002.vol.abcd.tmp"
    with open(making, "wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        check_content(closed)
        assert making.exists()


def test_a_leftover_that_vanishes_while_it_is_looked_at_does_not_stop_an_open(closed: Path) -> None:
    """Another process makes a volume right now: its temporary name is there when the directory is read, gone after."""
    from tests.engine.support import FaultyFileSystem

    class Vanishing(FaultyFileSystem):
        def names(self, path: Path) -> list[str]:
            names = super().names(path)
            return [*names, ".0000000009.vol.abcd.tmp"] if path.name == "volumes" else names

    with Store.open(closed, fs=Vanishing(), map_size=1 << 28) as store:
        assert store.get("wood", "small").read() == b"1"


def test_a_volume_that_is_empty_or_cut_inside_its_superblock_is_reported_and_left(closed: Path) -> None:
    for size in (0, 100, SUPERBLOCK_SIZE - 1):
        broken = closed / "volumes" / "0000000002.vol"
        broken.write_bytes(first_volume(closed).read_bytes()[:size])
        check_content(closed)
        with small(closed) as store:
            store.put("wood", "k", b"x")
        assert broken.stat().st_size == size


def test_other_files_in_the_directory_are_nobodys_business(closed: Path) -> None:
    for name in ("README", "volumes/notes.txt", "volumes/1.vol", "volumes/00000000001.vol", "index/extra"):
        (closed / name).write_text("mine")
    check_content(closed)
    assert (closed / "volumes" / "notes.txt").read_text() == "mine"


# --- relaxed --------------------------------------------------------------------------------------------------


def test_relaxed_durability_leaves_a_mark_until_it_is_closed_cleanly(path: Path) -> None:
    with small(path, durability="relaxed") as store:
        store.create_bucket("wood")
        assert (path / "UNSYNCED").exists()
        store.put("wood", "k", noise(9000))
    assert not (path / "UNSYNCED").exists()
    with small(path) as store:
        assert not (path / "UNSYNCED").exists()
        assert store.get("wood", "k").read() == noise(9000)


def test_after_a_power_cut_in_relaxed_mode_the_index_is_not_trusted_but_rebuilt(closed: Path) -> None:
    (closed / "UNSYNCED").write_text("another boot")
    data = closed / "index" / "data.mdb"
    data.write_bytes(data.read_bytes()[:4096])  # torn, as the power cut left it
    check_content(closed)
    assert not (closed / "UNSYNCED").exists()


def test_after_a_killed_process_in_relaxed_mode_the_index_is_trusted(path: Path) -> None:
    code = """if True:
        import os, signal, sys
        from cordwood.engine import Store
        store = Store.open(sys.argv[1], durability="relaxed", map_size=1 << 28)
        store.create_bucket("wood")
        store.put("wood", "k", b"1")
        print("done", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    from tests.engine.support import lines_of, start

    child = start(code, path)
    assert next(lines_of(child)) == "done"
    child.wait()
    assert (path / "UNSYNCED").read_text().strip() == Path(
        "/proc/sys/kernel/random/boot_id"
    ).read_text().strip()
    with small(path) as store:
        assert store.get("wood", "k").read() == b"1"


def test_relaxed_writes_are_synced_within_a_second_or_so(path: Path) -> None:
    import time

    from tests.engine.support import FaultyFileSystem

    fs = FaultyFileSystem()
    with small(path, fs=fs, durability="relaxed") as store:
        store.create_bucket("wood")
        store.put("wood", "k", b"1")
        before = fs.calls["datasync"]
        deadline = time.monotonic() + 10
        while fs.calls["datasync"] == before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert fs.calls["datasync"] > before
        fs.fail("datasync")
        while store.read_only_reason is None and time.monotonic() < deadline:
            time.sleep(0.05)
        with pytest.raises(errors.ReadOnly, match="sync failed"):
            store.put("wood", "k", b"2")
        assert store.get("wood", "k").read() == b"1"
        fs.heal()


def test_a_relaxed_store_that_closes_does_not_vouch_for_another_that_is_still_open(path: Path) -> None:
    code = """if True:
        import sys
        from cordwood.engine import Store
        with Store.open(sys.argv[1], durability="relaxed", map_size=1 << 28) as store:
            store.put("wood", "k", b"1")
    """
    with small(path, durability="relaxed") as store:
        store.create_bucket("wood")
        python(code, path)
        assert (path / "UNSYNCED").exists()
    assert not (path / "UNSYNCED").exists()
    assert os.listdir(path / "volumes")


@pytest.mark.parametrize("seed", [0, 8])
def test_a_kill_behind_any_commit_leaves_no_index_that_looks_truncated(
    path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LMDB may commit with a last page that it never wrote; the file must be long enough before anybody mends that."""
    mend = Index._cover_last_page

    def killed_here(index: Index) -> None:
        check_lengths(REAL, path / "index")
        mend(index)

    # Batches that make and remove many keys at once take pages at the end of the file and give them back.
    dice = random.Random(seed)
    with small(path) as store:
        store.create_bucket("wood")
        monkeypatch.setattr(Index, "_cover_last_page", killed_here)
        for _ in range(60):
            made = [
                f"{dice.randrange(5)}/{dice.randrange(10**9):0{dice.choice((9, 100, 300, 900))}}"
                for _ in range(dice.randrange(1, 400))
            ]
            with store.batch() as batch:
                for key in made:
                    batch.put("wood", key, b"x")
                for key in dice.sample(made, dice.randrange(len(made) + 1)):
                    batch.delete("wood", key)
