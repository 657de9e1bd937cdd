"""Real processes on one store, killed at any moment, over and over; and a file that says what each was told.

Each writer appends to its own journal before it asks for a change ("+ key state") and after it was acknowledged
("= key state"); the journal is in the page cache, which a SIGKILL does not take. Writers have keys of their own, so
a key must be what its journal said last: the acknowledged state, or the one that was asked for when the kill came.

Must not know: what a killed process was doing.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from cordwood.engine import Store, rebuild
from tests.sim.crash import placeless, scratch_directory
from tests.sim.model import etag_of
from tests.sim.rules import OPTIONS

ROOT = Path(__file__).resolve().parent.parent.parent
WRITERS = 3

WRITER = f"""
import os, random, sys
sys.path.insert(0, os.getcwd())
from cordwood.engine import CompactionPolicy, Store
from cordwood.engine.compactor import Compactor
from cordwood.engine.errors import Busy, Conflict, KeyNotFound
from tests.sim.killing import state
from tests.sim.model import etag_of
from tests.sim.rules import body
path, name, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
rng = random.Random(seed)
journal = os.open(f"{{path}}.{{name}}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
say = lambda *words: os.write(journal, (" ".join(words) + "\\n").encode())
store = Store.open(path, **{OPTIONS!r})
print("open", flush=True)
def change():
    key = f"{{name}}/{{rng.randrange(4)}}/{{rng.randrange(8)}}"
    other = f"{{name}}/{{rng.randrange(4)}}/both"
    kind = rng.random()
    if kind < 0.5:
        data = body(rng.choice((0, 10, 300, 5000, 30_000)), rng.randrange(1000))
        say("+", key, state(etag_of(data)))
        store.put("one", key, data)
        say("=", key, state(etag_of(data)))
    elif kind < 0.6:
        say("+", key, "-")
        store.delete("one", key)
        say("=", key, "-")
    elif kind < 0.7:
        data = body(3000, rng.randrange(1000))
        say("+", key, state(etag_of(data)), other, state(etag_of(data)))
        with store.batch() as batch:
            batch.put("one", key, data)
            batch.put("one", other, data)
        say("=", key, state(etag_of(data)), other, state(etag_of(data)))
    elif kind < 0.85:
        data = body(6000, rng.randrange(1000))
        say("+", key, "multipart")
        upload = store.create_upload("one", key).upload_id
        writer = store.part_writer("one", key, upload, 1)
        writer.write(data)
        part = writer.commit()
        digest = store.complete_upload("one", key, upload, [(1, part.etag)]).etag
        say("=", key, state(digest))
    elif kind < 0.99:
        try:
            info = store.head("one", key)
        except KeyNotFound:
            return
        mark = info.attrs.get("mark", "")
        if kind < 0.93:
            mark = str(rng.randrange(1000))
            say("+", key, state(info.etag, mark))
            store.update_attrs("one", key, {{"mark": mark}})
            say("=", key, state(info.etag, mark))
        else:
            say("+", key, "-", other, state(info.etag, mark))
            store.rename_object("one", key, other)
            say("=", key, "-", other, state(info.etag, mark))
    else:
        try:
            Compactor(store._core, CompactionPolicy(full=True, grace_s=0, volume_size=1 << 16)).run()
        except Busy:
            pass
while True:
    try:
        change()
    except Conflict:
        pass  # a compaction took a chunk from under us: refused, nothing happened
"""

State = dict[str, str]


def state(etag: str, mark: str = "") -> str:
    """What a key holds, as one word: its ETag and what its attributes say."""
    return f"{etag}/{mark}"


def is_as(found: str, wanted: str) -> bool:
    """Whether a key is as it was wanted; the ETag of a multipart object is not known beforehand."""
    return found == wanted or (wanted == "multipart" and found.endswith("-1/"))


def journal_of(path: Path) -> tuple[State, State]:
    """What was acknowledged, and what was asked for after that."""
    text = path.read_text()
    whole = text.rpartition("\n")[0] + "\n" if "\n" in text else ""
    if (
        whole != text
    ):  # a kill may tear a line at the end of a page; what it said was neither begun nor needed
        path.write_text(whole)
    told: State = {}
    asked: State = {}
    for line in whole.splitlines():
        kind, *words = line.split(" ")
        pairs = dict(zip(words[::2], words[1::2], strict=True))
        if kind == "=":
            told |= pairs
            asked = {}
        else:
            asked = pairs
    return told, asked


def check(store: Store, journals: list[Path]) -> None:
    """Every key is what its writer was told, or asked for; of two that were asked for together, both or none are."""
    found: State = {}
    for entry in store.list("one", max_keys=1 << 20).objects:
        with store.get("one", entry.key) as reader:
            etag = reader.info.etag
            assert etag == entry.etag and (etag_of(reader.read()) == etag or etag.endswith("-1"))
            found[entry.key] = state(etag, reader.info.attrs.get("mark", ""))
    expected: set[str] = set()
    for path in journals:
        told, asked = journal_of(path)
        expected |= told.keys() | asked.keys()
        for key in told.keys() | asked.keys():
            now = found.get(key, "-")
            if now == told.get(key, "-"):
                continue
            assert key in asked, f"{key} is {now}, its writer was told {told[key]}"
            assert is_as(now, asked[key]), f"{key} is {now}, neither told nor asked for"
        now_asked = all(is_as(found.get(key, "-"), asked[key]) for key in asked)
        now_told = all(found.get(key, "-") == told.get(key, "-") for key in asked)
        assert now_asked or now_told, f"half of {asked}"
        for key in asked:  # from here on what is there is what was told: the next writer starts from it
            with path.open("a") as journal:
                journal.write(f"= {key} {found.get(key, '-')}\n")
    assert set(found) <= expected, f"keys that nobody wrote: {set(found) - expected}"


def start(path: Path, name: str, seed: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), name, str(seed)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    )


def torment(kills: int, seed: int) -> int:
    """Kills and restarts writers; checks after each few kills, with a rebuild now and then."""
    rng = random.Random(seed)
    with scratch_directory() as top:
        path = top / "store"
        journals = [top / f"store.w{number}" for number in range(WRITERS)]
        for journal in journals:
            journal.touch()
        with Store.open(path, **OPTIONS) as store:
            store.create_bucket("one")
        done = 0
        while done < kills:
            writers = [start(path, f"w{number}", rng.randrange(1 << 30)) for number in range(WRITERS)]
            try:
                for writer in writers:
                    assert writer.stdout is not None
                    assert writer.stdout.readline() == "open\n", f"a writer did not come up (seed {seed})"
                time.sleep(rng.random() * 0.3)
                for writer in rng.sample(writers, WRITERS):
                    assert writer.poll() is None, f"a writer died by itself (seed {seed})"
                    os.kill(writer.pid, signal.SIGKILL)
                    time.sleep(rng.random() * 0.02)  # those who are left go on beside the dead
                    done += 1
            finally:
                for writer in writers:
                    writer.kill()
                    writer.wait()
                    if writer.stdout is not None:
                        writer.stdout.close()
            with Store.open(path, **OPTIONS) as store:
                check(store, journals)
                live = placeless(store.logical_dump())
            if rng.random() < 0.3:
                rebuild(path, map_size=OPTIONS["map_size"])
                with Store.open(path, **OPTIONS) as store:
                    assert placeless(store.logical_dump()) == live
        return done
