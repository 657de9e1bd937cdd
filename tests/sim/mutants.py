"""Deliberate bugs, one at a time: the simulation must catch every one of them.

    python -m tests.sim.mutants            # all, as a table for docs/testing.md
    python -m tests.sim.mutants NAME ...   # some

Each is a replacement in a copy of the tree. A replacement that no longer fits is an error: the list must follow the
engine.

Must not know: which test should catch what.

Invariant: the tree itself is never changed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
SUITE = [
    *(f"tests/sim/test_{name}.py" for name in ("found", "simulation", "power_cuts", "faults", "kill")),
    *(f"tests/engine/test_{name}.py" for name in ("damage", "compactor", "check", "scrub", "attributes")),
    "tests/engine/test_encryption.py",
    "tests/engine/test_forged.py",
    "tests/engine/test_room.py",
]
TIMEOUT_S = 1200


class Mutant(NamedTuple):
    """`old` stands exactly once in engine/`file`. `also`: more of (file, old, new) that belong to the same bug."""

    name: str
    file: str
    old: str
    new: str
    also: tuple[tuple[str, str, str], ...] = ()

    @property
    def changes(self) -> tuple[tuple[str, str, str], ...]:
        return ((self.file, self.old, self.new), *self.also)


MUTANTS = (
    Mutant(
        "a new volume's name is not synced",
        "volume.py",
        "            self._fs.unlink(temporary)\n            self._fs.sync_directory(self.directory)\n",
        "            self._fs.unlink(temporary)\n",
    ),
    Mutant(
        "acknowledge before the sync", "commit.py", "            if self._sync:\n", "            if False:\n"
    ),
    Mutant(
        "the body CRC is ignored",
        "volume.py",
        "if body is not None and crc32c(body) != header.body_crc:",
        "if body is not None and len(body) < 0:",
    ),
    Mutant(
        "the head CRC is ignored", "volume.py", "if crc32c(head) != header.head_crc:", "if len(head) < 0:"
    ),
    Mutant(
        "a record is believed at another offset",
        "format.py",
        "if header.offset != offset or",
        "if header.offset < 0 or",
    ),
    Mutant(
        "a reference is forgotten",
        "apply.py",
        "row._replace(references=row.references + 1)",
        "row._replace(references=1)",
    ),
    Mutant(
        "parts left out of a completed upload keep their references",
        "apply.py",
        "            if number not in kept:\n                self._release(part.place)\n",
        "",
    ),
    Mutant(
        "a rebuild drops deletes",
        "rebuild.py",
        "                applier.apply(what.type,",
        "                what.type != 3 and applier.apply(what.type,",
    ),
    Mutant(
        "the precondition of a put is ignored",
        "operations.py",
        "        if self.conditions is not None:\n            check_write(self.conditions, current_row(txn, root,",
        "        if self.conditions is not None and not txn:\n"
        "            check_write(self.conditions, current_row(txn, root,",
    ),
    Mutant(
        "the precondition of a put is applied after the append",
        "operations.py",
        "            clock, _ = decision.write(head, inline)\n",
        "            clock, _ = decision.write(head, inline)\n"
        "            check_write(self.conditions, current_row(txn, root, self.key), self.bucket, '')\n",
    ),
    Mutant(
        "recovery keeps what it did not replay",
        "recovery.py",
        "            tail.keep = group.end\n            clock = group",
        "            tail.keep = tail.size\n            clock = group",
    ),
    Mutant(
        "recovery replays nothing",
        "recovery.py",
        "        base = clock_base(clock)\n",
        "        base = -1\n",
    ),
    Mutant(
        "the clock alone tells what was overtaken",
        "recovery.py",
        "            and tail.groups[taken[number]].base == base\n",
        "",
    ),
    Mutant(
        "recovery cuts nothing",
        "recovery.py",
        "                self._volumes.truncate(tail.fd, tail.keep)\n",
        "                pass\n",
    ),
    Mutant(
        "a torn transaction counts",
        "commit.py",
        "            self.records[number].flags = Flag.MORE\n",
        "            pass\n",
    ),
    Mutant(
        "an overtaken transaction in a sealed volume stays",
        "recovery.py",
        "            tail.sealed = False  # it is cut",
        "            tail.sealed = tail.sealed  # it is cut",
    ),
    Mutant(
        "a volume is sealed without a sync",
        "volume.py",
        "        self.sync()\n        self.append([NewRecord(RecordType.SEAL, Flag(0), clock, "
        'encode_head(SealHead(self.tail)), b"")])\n        self.sync()\n',
        "        self.append([NewRecord(RecordType.SEAL, Flag(0), clock, "
        'encode_head(SealHead(self.tail)), b"")])\n',
    ),
    Mutant(
        "a sealed volume keeps its room",
        "volume.py",
        "        self.give_up_room()\n        self.sync()\n",
        "        self.sync()\n",
    ),
    Mutant(
        "a rebuild believes records whose bodies are torn",
        "rescan.py",
        "        self.end = self._verified_end(end)\n",
        "        self.end = end\n",
    ),
    Mutant(
        "a failed sync is forgotten",
        "volume.py",
        "            if self._sync_failure is not None:\n",
        "            if self._sync_failure == ''and not tail:\n",
    ),
    Mutant(
        "a store writes on after a failed commit",
        "commit.py",
        "            self._health.fail(why)\n            raise ReadOnly(why) from error\n",
        "            raise ReadOnly(why) from error\n",
    ),
    Mutant(
        "a failed append is not cut off",
        "volume.py",
        "        try:\n            self._fs.truncate(self._fd, self.tail)\n",
        "        try:\n",
    ),
    Mutant(
        "a renamed directory keeps its old name",
        "apply.py",
        "            if namespace.find_directory(txn, old.parent, old.name) == head.directory:\n",
        "            if not head.directory:\n",
    ),
    Mutant(
        "empty directories stay",
        "apply.py",
        "        if self._counting:\n            self.vanish_if_empty(bucket, directory)\n",
        "        pass\n",
    ),
    Mutant(
        "the clock is not kept",
        "commit.py",
        "                txn.put_clock(decision.records[-1].clock)  # the base of the next batch\n",
        "",
    ),
    Mutant(
        "a page begins with the last item of the one before",
        "listing.py",
        '    start = start_after + b"\\0" if start_after else b""\n    items',
        "    start = start_after\n    items",
    ),
    Mutant(
        "the null version is lost sight of",
        "apply.py",
        "null_clock = old.clock if old.flags & RowFlag.NULL else old.null_clock",
        "null_clock = 0",
    ),
    Mutant(
        "FORMAT may survive without volumes/",
        "opening.py",
        "            fs.sync_directory(directory)  # FORMAT promises that volumes/ is there\n",
        "",
    ),
    Mutant(
        "relaxed mode leaves no mark",
        "opening.py",
        "        mark = None if options.strict else _take_mark(fs, directory)\n",
        "        mark = None\n",
    ),
    Mutant(
        "an index that was lost is taken for an empty one",
        "opening.py",
        "    if missing or torn:\n",
        "    if torn:\n",
    ),
    Mutant(
        "small files are published unsynced",
        "fs.py",
        "                self.write_all(fd, [content], 0)\n                self.datasync(fd)\n",
        "                self.write_all(fd, [content], 0)\n",
    ),
    Mutant(
        "an object that dies within its own batch keeps its chunks",
        "apply.py",
        "self._manifests.get(place) or self._read_manifest(place)",
        "self._read_manifest(place)",
    ),
    Mutant(
        "a change of attributes goes to the newest version",
        "apply.py",
        "        if current.clock != head.version:\n",
        "        if not head.version:\n",
    ),
    Mutant(
        "attributes outlive their version",
        "apply.py",
        "                self.txn.delete(id_key(row.clock), self.txn.tables.attrs)\n",
        "                pass\n",
    ),
    Mutant(
        "the attributes before a change stay alive",
        "apply.py",
        "        if old is not None and old.clock:\n            self._dies(old.place, old.clock)\n"
        "        self._lives(place)\n        new = AttrsRow",
        "        self._lives(place)\n        new = AttrsRow",
    ),
    Mutant(
        "a COMPLIANCE retention can be bypassed",
        "locks.py",
        'return MODES[lock.mode] == "COMPLIANCE" or not bypass',
        "return not bypass",
    ),
    Mutant(
        "a legal hold can be bypassed",
        "locks.py",
        "    if lock.hold:\n",
        "    if lock.hold and not bypass:\n",
    ),
    Mutant(
        "a retention may become shorter",
        "locks.py",
        "if new.mode == old.mode and new.until_ms >= old.until_ms:",
        "if new.mode == old.mode:",
    ),
    Mutant(
        "a copy takes the lock along",
        "locks.py",
        "if name not in (RETENTION, HOLD)}",
        "if name}",
    ),
    Mutant(
        "the default retention of a bucket is not given",
        "locks.py",
        'if not default or "mode" not in default or RETENTION in attrs:',
        "if default or not default:",
    ),
    Mutant(
        "a lock is taken where nothing can keep it",
        "operations.py",
        "locks.OBJECT_LOCK not in bucket.attrs and locks.lock_of(attrs) != locks.OPEN",
        "locks.OBJECT_LOCK not in bucket.attrs and not bucket.name",
    ),
    Mutant(
        "compaction takes attributes for dead",
        "liveness.py",
        "        about = txn.attrs(head.version)\n",
        "        about = None\n",
    ),
    Mutant(
        "compaction drops every tombstone",
        "liveness.py",
        "return oldest_dead != 0 and oldest_dead < tombstone_clock",
        "return False",
    ),
    Mutant(
        "the youngest dead record decides which tombstones may go",
        "apply.py",
        "if oldest is None or clock < oldest:",
        "if oldest is None or clock > oldest:",
    ),
    Mutant(
        "the copies of a compaction move no rows",
        "filling.py",
        "                txn.put(pointer.key, pointer.moved(new), pointer.table)\n",
        "",
    ),
    Mutant(
        "a volume is retired while rows point into it",
        "compactor.py",
        "        rest = self._left_behind(victim) or change(core, lambda txn: _retire_row(txn, volume))\n",
        "        rest = change(core, lambda txn: txn.put_volume(volume, VolumeRow(VolumeState.RETIRED)))\n",
    ),
    Mutant(
        "recovery cuts what the index points to",
        "recovery.py",
        "    if is_pointed_to or len({group.base for group in cut}) > 1:\n",
        "    if cut and tail.keep < 0:\n",
    ),
    Mutant(
        "scrub reads no bodies",
        "scrub.py",
        "for item in walk(file, start, row.watermark, bodies=True):",
        "for item in walk(file, start, row.watermark):",
    ),
    Mutant(
        "scrub quarantines nothing",
        "scrub.py",
        "        if names and row.state == VolumeState.SEALED:\n",
        "        if not volume:\n",
    ),
    Mutant(
        "fsck reads no bodies",
        "check.py",
        "walk(file, SUPERBLOCK_SIZE, end, bodies=self._data)",
        "walk(file, SUPERBLOCK_SIZE, end)",
    ),
    Mutant(
        "a repair forgets the names of what is damaged",
        "check.py",
        "bool(self._index_problems) and (not self._damaged or not self._is_index_usable)",
        "True",
    ),
    Mutant(
        "a repair leaves a damaged volume open to writes",
        "check.py",
        "row._replace(state=VolumeState.QUARANTINED)",
        "row",
    ),
    Mutant(
        "the id of an encrypted chunk is made from its bytes",
        "writer.py",
        "            chunk_id = secrets.token_bytes(CHUNK_ID_SIZE)\n            plain_size = len(payload)\n",
        "            chunk_id = blake3(payload).digest()\n            plain_size = len(payload)\n",
    ),
    Mutant(
        "encrypted chunks are bound to no place",
        "writer.py",
        "self._cipher.encrypt(chunk_id, self._part, self._placed, payload)",
        "self._cipher.encrypt(chunk_id, 0, 0, payload)",
        (
            (
                "reader.py",
                "self._cipher.decrypt(chunk_id, part, offset, data)",
                "self._cipher.decrypt(chunk_id, 0, 0, data)",
            ),
        ),
    ),
    Mutant(
        "an encrypted chunk is said to be named by its digest",
        "writer.py",
        "is_named_by_digest = core.dedup and self._cipher is None",
        "is_named_by_digest = core.dedup",
    ),
    Mutant(
        "a small encrypted object is taken for a plain one",
        "writer.py",
        "overhead=len(body) - self.size",
        "overhead=0",
    ),
    Mutant(
        "encrypted bytes are handed out without their key",
        "reader.py",
        "        if self.info.overhead and self._cipher is None:\n",
        "        if False:\n",
    ),
    Mutant(
        "what another key encrypted is handed out",
        "reader.py",
        "        except ValueError:\n            raise Corrupt(",
        "        except ValueError:\n            return bytes(data)\n            raise Corrupt(",
    ),
    Mutant(
        "the chunk decrypted last is taken for the next one",
        "reader.py",
        "        if self._last is None or self._last[0] != ref.id:\n",
        "        if self._last is None:\n",
    ),
    Mutant(
        "a part is decrypted as part of another number",
        "reader.py",
        "bisect_right(self._part_starts, chunk_start) - 1",
        "0",
    ),
    Mutant(
        "an encrypted object takes more bytes",
        "appending.py",
        "if found is not None and found.info.is_encrypted:",
        "if False:",
    ),
    Mutant(
        "a record that makes no sense stops a recovery",
        "recovery.py",
        "            except Corrupt as error:\n                # It is whole,",
        "            except KeyError as error:\n                # It is whole,",
    ),
)


def copy_tree(target: Path) -> None:
    for name in ("engine", "server", "cli", "tests", "fuzz", ".dev"):
        shutil.copytree(
            ROOT / name, target / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "corpus")
        )
    shutil.copy(ROOT / "pyproject.toml", target)


def run(mutant: Mutant) -> str | None:
    """The first test that fails with the bug in place; None when none does."""
    with tempfile.TemporaryDirectory(prefix="cordwood-mutant-") as top:
        tree = Path(top)
        copy_tree(tree)
        for file, old, new in mutant.changes:
            path = tree / "engine" / file
            source = path.read_text(encoding="utf-8")
            if source.count(old) != 1:
                raise SystemExit(f"{mutant.name}: its text stands {source.count(old)} times in {file}")
            path.write_text(source.replace(old, new), encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            "--timeout=300",
            *SUITE,
        ]
        try:
            done = subprocess.run(
                command,
                cwd=tree,
                env={
                    "PYTHONPATH": str(tree / ".dev"),
                    "PATH": "/usr/bin:/bin",
                    "PYTHONDONTWRITEBYTECODE": "1",
                },
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            return "(it hangs)"
        if done.returncode == 0:
            return None
        found = re.search(r"^(?:FAILED|ERROR) \S*?test_(\w+)\.py::(\S+)", done.stdout, re.MULTILINE)
        if found is None or done.returncode != 1:
            raise SystemExit(f"{mutant.name}: the suite does not start\n{done.stdout[-2000:]}")
        return f"{found[1]}: {found[2]}"


def main() -> int:
    wanted = set(sys.argv[1:])
    survivors = 0
    print("| bug | file | caught by | s |\n|---|---|---|---|")
    for mutant in MUTANTS:
        if wanted and mutant.name not in wanted:
            continue
        started = time.monotonic()
        caught = run(mutant)
        survivors += caught is None
        print(
            f"| {mutant.name} | {mutant.file} | {caught or '**nothing**'} | {time.monotonic() - started:.0f} |",
            flush=True,
        )
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
