"""Crashes: runs steps on a disk that remembers, and looks at the store that comes up from every image it leaves.

What must hold after each crash, whatever was kept of the unsynced writes:
* the store opens; everything acknowledged is there, and the step under way is there whole or not at all;
* listings agree with reads, every byte is the one that was written;
* fsck is clean (it is slow: one image in forty is shown to it);
* a rebuild from the volumes alone equals the index; recovering again changes nothing;
* and the store takes the next write.

Must not know: how steps are chosen.

Invariant: a failure names the steps, the call before which power failed and the seed of the image.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cordwood.engine import Store, check_store, rebuild
from cordwood.engine.rows import NO_PLACE, DirectoryRow, VolumeState
from tests.sim.faulty_fs import FaultyFileSystem, Image, watching_index
from tests.sim.model import Model
from tests.sim.rules import LONG, OPTIONS, Step, World, difference, observe

KEEPS = ("all", "none", "some", "some")


def scratch() -> Path:
    """A new directory in memory, where there is one: these tests sync by themselves."""
    shared = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="cordwood-sim-", dir=shared if shared.is_dir() else None))


@contextmanager
def scratch_directory() -> Iterator[Path]:
    path = scratch()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@dataclass
class Crash:
    """A moment at which power may fail, and what may then be seen: an index into the states between steps."""

    before: str
    image: Image
    states: tuple[int, ...]


@dataclass
class Recording:
    """Every moment of a run, and what a client could see between its steps."""

    steps: list[Step]
    crashes: list[Crash] = field(default_factory=list)
    states: list[dict[str, Any]] = field(default_factory=list)


def record(
    steps: Sequence[Step],
    *,
    durability: str = "strict",
    start: Path | None = None,
    model: Model | None = None,
    **options: Any,
) -> Recording:
    """Runs steps on a fresh store, or on a copy of `start`, which `model` describes.

    Keeps an image of the disk before each call.
    """
    found = Recording(list(steps))
    with scratch_directory() as top, watching_index():
        path = top / "store"
        path.mkdir()
        if start is not None:
            shutil.copytree(start, path, dirs_exist_ok=True)
        fs = FaultyFileSystem(path)
        relaxed = durability == "relaxed"

        def moment(call: str) -> None:
            now = len(found.states)
            allowed = tuple(range(now + 1)) if relaxed else tuple({max(0, now - 1), now})
            found.crashes.append(Crash(call, fs.image(), allowed))

        fs.on_call = moment
        world = World(path, fs=fs, durability=durability, **options)
        world.model = model.copy() if model is not None else world.model
        found.states.append(world.model.observe())
        for step in steps:
            world.run(step)
            found.states.append(world.model.observe())
        # The last moment of each step belongs to it: what it acknowledged must be in the next image.
        moment("the end")
        world.close()
        moment("closed")
    return found


def verify(found: Recording, seed: int, keeps: Iterable[str] = KEEPS, seen: set[bytes] | None = None) -> int:
    """Recovers from every image; returns how many different ones there were."""
    seen = set() if seen is None else seen
    count = 0
    for number, crash in enumerate(found.crashes):
        for variant, keep in enumerate(keeps):
            rng = random.Random(f"{seed} {number} {variant}")
            with scratch_directory() as top:
                path = top / "store"
                key = crash.image.write(path, keep, rng) + repr(crash.states).encode()
                if key in seen:
                    continue
                seen.add(key)
                count += 1
                if keep == "some" and rng.random() < 0.3:
                    shutil.rmtree(path / "index", ignore_errors=True)  # the volumes alone must say the same
                try:
                    allowed = [found.states[at] for at in crash.states if at < len(found.states)]
                    recover(path, allowed, keep, check=count % 40 == 0)
                except BaseException as error:
                    error.add_note(
                        f"crash {number} (before {crash.before}, kept: {keep}, variant {variant}, seed {seed}) in "
                        f"{found.steps!r}".replace(LONG, "<480 x>")
                    )
                    raise
    return count


def recover(path: Path, allowed: Sequence[dict[str, Any]], keep: str, *, check: bool = False) -> None:
    """Opens a store after a crash, twice, and rebuilds it; each time it must show one of the allowed states."""
    options = {**OPTIONS, "fs": FaultyFileSystem(path, boot=b"boot-1" if keep == "all" else b"boot-2")}
    with Store.open(path, **options) as store:
        seen = observe(store)
        assert seen in allowed, (
            f"neither old nor new: {shown(seen)}; allowed: {[shown(each) for each in allowed]}"
        )
        dump = store.logical_dump()
        assert not quarantined(store), "a crash is no damage"
    if check:
        clean(path)
    sizes = {each.name: each.stat().st_size for each in (path / "volumes").iterdir()}
    with Store.open(path, **options) as store:
        again = store.logical_dump()
        assert again == dump, f"a second recovery changed: {difference(dump, again)}"
        assert {each.name: each.stat().st_size for each in (path / "volumes").iterdir()} == sizes
        store.create_bucket("after-the-crash")
        store.put("after-the-crash", "j", b"v" * 5000)
        dump = store.logical_dump()
    rebuild(path, map_size=OPTIONS["map_size"])
    with Store.open(path, **options) as store:
        again = placeless(store.logical_dump())
        assert not quarantined(store), "a crash is no damage"
        assert again == placeless(dump), f"a rebuild changed: {difference(placeless(dump), again)}"
        store.put("after-the-crash", "k", b"v" * 5000)
        dump = placeless(store.logical_dump())
    rebuild(path, map_size=OPTIONS["map_size"])
    with Store.open(path, **options) as store:
        again = placeless(store.logical_dump())
        assert not quarantined(store), "what recovery left before the new writes is taken for damage"
        assert again == dump, f"a rebuild after more writes changed: {difference(dump, again)}"


def clean(path: Path) -> None:
    """fsck finds nothing: no damage, no wrong account, no quarantine."""
    report = check_store(path, data=True, map_size=OPTIONS["map_size"])
    assert report.is_clean, f"fsck: {report.problems[:3]}"


def quarantined(store: Store) -> list[int]:
    with store._core.index.read() as txn:
        return [volume for volume, row in txn.volumes().items() if row.state == VolumeState.QUARANTINED]


def placeless(dump: dict[str, Any]) -> dict[str, Any]:
    """A dump without places: a compaction that was cut off leaves two copies, and either may be chosen."""
    return dump | {
        "objects": [(*names, row._replace(volume=0, offset=0)) for *names, row in dump["objects"]],
        "directories": [
            (key, DirectoryRow.unpack(row)._replace(place=NO_PLACE)) for key, row in dump["directories"]
        ],
        "uploads": [(key, row._replace(place=NO_PLACE)) for key, row in dump["uploads"]],
        "parts": [(key, row._replace(place=NO_PLACE)) for key, row in dump["parts"]],
        "attrs": [(key, row._replace(place=NO_PLACE)) for key, row in dump["attrs"]],
    }


def shown(state: dict[str, Any]) -> str:
    """A state in few words."""
    words = {
        name: (
            versioning,
            lock,
            {
                key: [(v.etag[:6], len(v.data), "marker" if v.marker else "", v.attrs) for v in each]
                for key, each in keys.items()
            },
            uploads,
        )
        for name, (versioning, lock, keys, uploads) in state.items()
    }
    return repr(words).replace(LONG, "<480 x>")[:1500]
