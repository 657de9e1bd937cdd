"""One failing call, for every call there is: no space, an I/O error, a sync that fails and drops its pages; and
bytes that rot, or come from another place, or were never written although the disk said so.

Must not know: which calls the engine makes.
"""

from __future__ import annotations

import errno
import logging
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cordwood.engine import CordwoodError, Store, check_store, errors
from cordwood.engine.format import HEADER_SIZE, RecordType
from cordwood.engine.scrub import Scrubber
from cordwood.engine.volume import volume_id_of
from tests.engine.support import flip, records_of
from tests.sim.crash import quarantined, recover, scratch_directory
from tests.sim.faulty_fs import FaultyFileSystem, watching_index
from tests.sim.model import FARTHER, Model
from tests.sim.rules import OPTIONS, Step, World, observe, unlocked

STORY: tuple[Step, ...] = (
    ("create_bucket", "one", "Enabled"),
    ("put", "one", "a/b", 9000, 0),
    ("put", "one", "a/b", 100, 1),
    ("create_upload", "one", "m", 0),
    ("put_part", "one", 0, 1, 20_000, 2),
    ("put_part", "one", 0, 2, 257, 3),
    ("complete", "one", 0, 9),
    ("rename", "one", "a/", "b/c/"),
    ("attrs", "one", "b/c/b", None, (("tags", "n=1"),), False),
    ("attrs", "one", "b/c/b", 1, (("tags", "n=2"), ("acl", "private")), False),
    ("batch", "one", (("x", 5000, 4, None), ("x", 5000, 5, None), ("b/c/b",))),
    ("put", "one", "big", 150_000, 6),
    ("copy", ("one", "big", None), "one", "copy", None),
    ("put", "one", "secret", 9000, 8, None, (), 1),
    ("delete", "one", "x", 1),
    ("delete_many", "one", ("big", "copy", "none")),
    ("set_lock", "one", "GOVERNANCE"),
    ("put", "one", "held", 5000, 7, None, (("hold", True),)),
    ("attrs", "one", "held", None, (("hold", None), ("retention", ("GOVERNANCE", FARTHER))), True),
    ("delete", "one", "held", 0, None, True),
)
FULL = errno.ENOSPC


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)  # the engine reports each fault; thousands are asked for here


def volumes_of(path: Path) -> list[Path]:
    return [each for each in sorted((path / "volumes").iterdir()) if volume_id_of(each.name) is not None]


class Story:
    """Tells the story with a call that fails; knows afterwards what may be on the disk."""

    def __init__(self, path: Path, number: int, error: int, *, sticky: bool, durability: str) -> None:
        path.mkdir()
        self.fs = FaultyFileSystem(path)
        self.fs.fail_at, self.fs.error, self.fs.sticky = number, error, sticky
        self.path = path
        self.allowed: list[dict[str, Any]] = [{}]
        self.world: World | None = None
        try:
            self.world = World(path, fs=self.fs, durability=durability)
        except (OSError, CordwoodError):
            return
        for step in STORY:
            if not self.tell(self.world, step):
                break

    def tell(self, world: World, step: Step) -> bool:
        """One step; False when the store takes no more."""
        before = world.model.copy()
        wanted, given = world.outcomes(step)
        after = world.model
        if given == wanted:
            self.allowed = [after.observe()]
            return True
        assert self.fs.failed, f"{step}: {given!r}, not {wanted!r}, and nothing had failed"
        assert given in (errors.Full, errors.ReadOnly), f"{step}: {given!r} after {self.fs.failed}"
        self.allowed = [before.observe(), after.observe()]
        if given is errors.Full:
            self.allowed = [before.observe()]
        assert observe(world.store) in self.allowed
        world.model = before
        if world.store.read_only_reason is not None:
            return False
        self.fs.fail_at, self.fs.failed = -1, None  # somebody made room
        wanted, given = world.outcomes(step)
        assert given == wanted, f"{step}, the second time: {given!r}, not {wanted!r}"
        self.allowed = [world.model.observe()]
        return True

    def close(self) -> None:
        if self.world is not None:
            try:
                self.world.close()
            except (OSError, errors.ReadOnly):
                assert self.fs.failed


@pytest.mark.parametrize("durability", ["strict", "relaxed"])
@pytest.mark.parametrize("sticky", [False, True], ids=["once", "from-then-on"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO], ids=["full", "io-error"])
def test_any_call_may_fail_and_nothing_is_lost_or_half_done(
    error: int, sticky: bool, durability: str
) -> None:
    number = 0
    while True:
        with scratch_directory() as top, watching_index():
            story = Story(top / "store", number, error, sticky=sticky, durability=durability)
            failed = story.fs.failed
            image = story.fs.image()
            story.close()
            if not failed and number >= story.fs.count:
                break
            story.fs.close_all()
            try:
                recover(story.path, story.allowed, "all")
                if durability == "strict":
                    image.write(top / "cut", "some", random.Random(number))
                    recover(top / "cut", story.allowed, "some")
            except BaseException as failure:
                failure.add_note(f"call {number} failed: {failed}")
                raise
        number += 1
    assert number > 50


def test_full_is_said_when_there_is_no_room_and_deletes_still_go_through() -> None:
    with scratch_directory() as top:
        path = top / "store"
        path.mkdir()
        fs = FaultyFileSystem(path)
        with Store.open(path, fs=fs, **OPTIONS) as store:
            store.create_bucket("one")
            store.put("one", "k", b"x" * 9000)
            fs.free = 1 << 20
            for size in (10, 9000):
                with pytest.raises(errors.Full):
                    store.put("one", "more", b"x" * size)
            store.delete("one", "k")
            fs.free = None
            store.put("one", "more", b"x" * 9000)
            assert [entry.key for entry in store.list("one").objects] == ["more"]


# --- what the disk gives back is not what it was given ---------------------------------------------------------


@pytest.fixture
def finished() -> Iterator[tuple[Path, Model]]:
    """A store with the whole story in it, closed, and its model."""
    with scratch_directory() as top:
        world = World(top / "store")
        for step in STORY[:-1]:
            world.run(step)
        world.close()
        assert len(volumes_of(top / "store")) > 1
        yield top / "store", world.model


def read_everything(store: Store, model: Model) -> tuple[int, int]:
    """Reads all versions; each gives the right bytes or says that it cannot. How many of each."""
    good = bad = 0
    for name, bucket in model.buckets.items():
        for key, versions in bucket.keys.items():
            for version in versions:
                if version.marker:
                    continue
                for range_ in (None, (4090, 8200)):
                    if range_ and range_[0] >= len(version.data):
                        continue
                    try:
                        with store.get(name, key, version_id=version.id, range=range_) as reader:
                            data, info = unlocked(reader).read(), reader.info
                    except errors.Corrupt:
                        bad += 1
                        continue
                    wanted = version.data if range_ is None else version.data[range_[0] : range_[1] + 1]
                    assert data == wanted, f"wrong bytes for {key!r}"
                    assert (info.etag, info.metadata) == (version.etag, dict(version.metadata))
                    good += 1
    return good, bad


def test_a_rotten_bit_is_reported_or_harmless_and_hurts_nothing_else(
    finished: tuple[Path, Model], long_run: bool
) -> None:
    path, model = finished
    rng = random.Random(7)
    found = 0
    for _ in range(2000 if long_run else 150):
        with scratch_directory() as top:
            copy = top / "store"
            shutil.copytree(path, copy)
            victim = rng.choice(volumes_of(copy))
            content = bytearray(victim.read_bytes())
            place = rng.randrange(len(content))
            content[place] ^= 1 << rng.randrange(8)
            victim.write_bytes(content)
            with Store.open(copy, **OPTIONS) as store:
                _, bad = read_everything(store, model)
                found += bool(bad)
                assert bad <= 8 or place < 4096, f"byte {place} of {victim.name} took {bad} reads with it"
                store.put("one", "new", b"n" * 5000)
                assert store.get("one", "new").read() == b"n" * 5000
    assert found > 20


def test_a_rotten_head_is_never_believed(finished: tuple[Path, Model]) -> None:
    """Heads are small: a random bit seldom meets one. Here one bit of the metadata of each object turns around."""
    path, model = finished
    for file, record in records_of(path):
        if record.header.type != RecordType.OBJECT or b"seed" not in record.head:
            continue
        with scratch_directory() as top:
            copy = top / "store"
            shutil.copytree(path, copy)
            flip(
                copy / "volumes" / file.path.name,
                record.header.offset + HEADER_SIZE + record.head.index(b"seed"),
            )
            with Store.open(copy, **OPTIONS) as store:
                read_everything(store, model)


def test_a_rotten_record_is_found_by_scrub_and_fsck_named_and_repaired_without_loss_of_a_name(
    finished: tuple[Path, Model], long_run: bool
) -> None:
    path, model = finished
    records = [
        (file.path.name, record.header)
        for file, record in records_of(path)
        if record.header.type in (RecordType.OBJECT, RecordType.CHUNK, RecordType.ATTRS)
    ]
    rng = random.Random(11)
    names = {(bucket, key) for bucket, about in model.buckets.items() for key in about.keys}
    named = 0
    for name, header in rng.sample(records, len(records) if long_run else 8):
        with scratch_directory() as top:
            copy = top / "store"
            shutil.copytree(path, copy)
            used = header.head_length + header.body_length
            flip(copy / "volumes" / name, header.offset + HEADER_SIZE + rng.randrange(used))
            where = (volume_id_of(name), header.offset)
            report = check_store(copy, data=True, map_size=OPTIONS["map_size"])
            assert any(str(each.where).endswith(f"offset {header.offset}") for each in report.problems)
            with Store.open(copy, **OPTIONS) as store:
                bad = Scrubber(store._core).run_cycle().bad
                assert [(each.volume, each.offset) for each in bad] == [where]
                is_named = bad[0].name != "nothing that lives"
                named += is_named
                is_active = name == volumes_of(copy)[-1].name
                assert is_active or not is_named or quarantined(store) == [where[0]]
            repaired = check_store(copy, data=True, repair=True, map_size=OPTIONS["map_size"])
            assert repaired.uncorrected, "bytes that are gone cannot be brought back"
            with Store.open(copy, **OPTIONS) as store:
                good, _ = read_everything(store, model)
                assert good and quarantined(store) == [where[0]]
                listed = {
                    (bucket.name, entry.key)
                    for bucket in store.list_buckets()
                    for entry in store.list_versions(bucket.name, max_keys=1000).entries
                }
                assert listed == names, "a repair keeps the names of what it cannot bring back"
    assert named >= 2


def test_a_read_from_the_wrong_place_is_noticed(finished: tuple[Path, Model]) -> None:
    path, model = finished
    pool = b"".join(each.read_bytes() for each in volumes_of(path))
    rng = random.Random(3)
    fs = FaultyFileSystem(path)
    with Store.open(path, fs=fs, **OPTIONS) as store:

        def elsewhere(data: bytes) -> bytes:
            if rng.random() > 0.3 or not data:
                return data
            start = rng.randrange(0, max(1, len(pool) - len(data)), 8)
            return pool[start : start + len(data)]

        fs.misread = elsewhere
        fs.read_cached = lambda fd, length, offset: None  # type: ignore[method-assign]
        totals = [read_everything(store, model) for _ in range(20)]
        fs.misread = None
        assert sum(bad for _, bad in totals) > 50
        assert read_everything(store, model)[1] == 0


def test_a_disk_that_lies_about_syncs_is_found_out(long_run: bool) -> None:
    """Lost syncs cannot be survived. But what is gone is reported or absent; never are wrong bytes handed out."""
    for seed in range(200 if long_run else 15):
        rng = random.Random(seed)
        with scratch_directory() as top, watching_index():
            (top / "store").mkdir()
            fs = FaultyFileSystem(top / "store")
            world = World(top / "store", fs=fs)
            history: dict[str, set[bytes]] = {}
            for number, step in enumerate(STORY):
                fs.lying = number >= 2
                world.run(step)
                for key, versions in world.model.buckets["one"].keys.items():
                    history.setdefault(key, set()).update(each.data for each in versions)
            fs.image().write(top / "cut", "some", rng)
            world.close()
            try:
                store = Store.open(top / "cut", fs=FaultyFileSystem(top / "cut", boot=b"2"), **OPTIONS)
            except errors.Corrupt:
                continue
            with store:
                for bucket in store.list_buckets():
                    for entry in store.list(bucket.name).objects:
                        try:
                            data = unlocked(store.get(bucket.name, entry.key)).read()
                        except errors.Corrupt:
                            continue
                        assert data in history[entry.key], f"seed {seed}: wrong bytes for {entry.key!r}"


def test_a_volume_that_lost_its_end_is_reported_and_left_alone(finished: tuple[Path, Model]) -> None:
    path, model = finished
    victim = volumes_of(path)[-1]
    content = victim.read_bytes()
    victim.write_bytes(content[: len(content) // 2])
    for _ in range(2):
        with Store.open(path, **OPTIONS) as store:
            good, bad = read_everything(store, model)
            assert good and bad
            store.put("one", "new", b"n" * 5000)
    assert victim.read_bytes() == content[: len(content) // 2]
