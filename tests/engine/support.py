"""What the engine's tests share: small stores, faulty disks, recounts, rebuilds and child processes.

Must not know: which test uses it. It looks at a store from outside, or at its volumes by `format` and `volume`.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lmdb

from cordwood.engine import Store, rebuild
from cordwood.engine.format import SUPERBLOCK_SIZE, Header, Manifest, RecordType, decode_head
from cordwood.engine.fs import REAL, Buffer, FileSystem
from cordwood.engine.opening import read_identity
from cordwood.engine.rebuild import chunked_places
from cordwood.engine.rows import AttrsRow, ObjectRow, PartRow, RowFlag
from cordwood.engine.volume import Record, VolumeFile, Volumes, volume_id_of, volume_name

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL: dict[str, Any] = {"chunk_size": 4096, "inline_max": 256, "map_size": 1 << 28}


def small(path: Path, **options: Any) -> Store:
    """A store whose objects are chunked from 257 bytes on, in chunks of 4 KiB."""
    return Store.open(path, **{**SMALL, **options})


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that repeat nowhere, the same for the same seed."""
    import random

    return random.Random(f"{size} {seed}").randbytes(size)


# --- looking at a store from outside --------------------------------------------------------------------------


def volume_paths(path: Path) -> list[Path]:
    return [each for each in sorted((path / "volumes").iterdir()) if volume_id_of(each.name) is not None]


def volumes_of(path: Path) -> Volumes:
    identity = read_identity(REAL, path)
    assert identity is not None
    return Volumes(REAL, path / "volumes", identity.store, identity.node)


def records_of(path: Path, volume: int | None = None) -> list[tuple[VolumeFile, Record]]:
    """All records of a store's volumes (or of one), as a scan finds them."""
    volumes = volumes_of(path)
    found = []
    for each in volumes.ids() if volume is None else [volume]:
        file = volumes.get(each)
        found += [(file, record) for record in file.scan(SUPERBLOCK_SIZE, file.size(), bodies=True)]
    return found


def heads_of(path: Path, type_: RecordType) -> list[tuple[Header, Any]]:
    return [
        (record.header, decode_head(record.header.type, record.head, "test"))
        for _, record in records_of(path)
        if record.header.type == type_
    ]


def count_types(path: Path) -> Counter[str]:
    return Counter(RecordType(record.header.type).name for _, record in records_of(path))


def keys_of(store: Store, bucket: str, **options: Any) -> list[str]:
    """Every key of a bucket, page by page."""
    keys: list[str] = []
    after = ""
    while True:
        page = store.list(bucket, start_after=after, **options)
        keys += [entry.key for entry in page.objects]
        if not page.truncated:
            return keys
        assert page.next is not None and page.next.encode() > after.encode()
        after = page.next


def recount(store: Store) -> dict[bytes, int]:
    """How often live objects and parts name each chunk, counted from their records."""
    counts: Counter[bytes] = Counter()
    core = store._core
    with core.index.read() as txn:
        for place in chunked_places(txn):
            body = core.read_record(place).body
            assert body is not None
            counts.update(ref.id for ref in Manifest(body).chunks())
    return dict(counts)


def recount_live_bytes(store: Store) -> dict[int, int]:
    """The live bytes of each volume, summed up from everything the index points to."""
    live: Counter[int] = Counter()
    with store._core.index.read() as txn:
        for table in (txn.tables.entries, txn.tables.versions):
            for _, packed in txn.items(b"", table):
                if packed[0] == 1:
                    row = ObjectRow.unpack(packed)
                    live[row.volume] += row.length
        for _, packed in txn.items(b"", txn.tables.parts):
            part = PartRow.unpack(packed)
            live[part.place.volume] += part.place.length
        dump = store.logical_dump()
        for _, upload in dump["uploads"]:
            live[upload.place.volume] += upload.place.length
        for key, _ in dump["directories"]:
            directory = txn.directory(int.from_bytes(key, "big"))
            assert directory is not None
            live[directory.place.volume] += directory.place.length
        for _, packed in txn.items(b"", txn.tables.attrs):
            attrs = AttrsRow.unpack(packed)
            live[attrs.place.volume] += attrs.place.length
        for bucket in txn.buckets():
            live[bucket.place.volume] += bucket.place.length
        for chunk_id, (length, _) in dump["chunks"].items():
            chunk = txn.chunk(chunk_id)
            assert chunk is not None
            from cordwood.engine.format import chunk_record_length

            live[chunk.volume] += chunk_record_length(length)
    return {volume: size for volume, size in live.items() if size}


def check_accounts(store: Store) -> None:
    """References and live bytes that the index keeps equal a count from scratch."""
    counted = {chunk_id: references for chunk_id, (_, references) in store.logical_dump()["chunks"].items()}
    assert counted == recount(store)
    with store._core.index.read() as txn:
        kept = {volume: row.live_bytes for volume, row in txn.volumes().items() if row.live_bytes}
    assert kept == recount_live_bytes(store)


def check_rebuilt(path: Path, **options: Any) -> None:
    """Opens, dumps, rebuilds the index from the volumes alone, dumps again: both dumps are equal, the accounts true.

    The store must be closed.
    """
    with small(path, **options) as store:
        before = store.logical_dump()
        check_accounts(store)
    rebuild(path, map_size=1 << 28)
    with small(path, **options) as store:
        after = store.logical_dump()
        check_accounts(store)
    for name in before:
        assert before[name] == after[name], name


def grouped_flags(row: ObjectRow) -> int:
    return row.flags & ~RowFlag.GROUPED


def copy_store(source: Path, target: Path) -> Path:
    """A closed store at another place."""
    shutil.copytree(source, target)
    return target


def flip(path: Path, offset: int, bit: int = 0) -> None:
    """Turns one bit of a file around."""
    with open(path, "r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


def used_index_bytes(path: Path) -> int:
    """How much of data.mdb its meta page speaks of; the file reaches farther."""
    with lmdb.open(str(path / "index"), readonly=True, lock=False) as env:
        pages: int = env.info()["last_pgno"] + 1
        size: int = env.stat()["psize"]
    return pages * size


def first_volume(path: Path) -> Path:
    return path / "volumes" / volume_name(1)


# --- faulty disks ---------------------------------------------------------------------------------------------


class FaultyFileSystem(FileSystem):
    """Fails chosen calls. `fail(name, error, after=n)`: the call `name` raises OSError(error) from its nth time on,
    `times` times. Counts every call either way."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._plans: dict[str, tuple[int, int, int]] = {}
        self.free: int | None = None

    def fail(self, name: str, error: int = errno.EIO, *, after: int = 0, times: int = 1 << 30) -> None:
        first = self.calls[name] + after
        self._plans[name] = (error, first, first + times)

    def heal(self) -> None:
        self._plans.clear()
        self.free = None

    def _tick(self, name: str) -> None:
        number = self.calls[name]
        self.calls[name] += 1
        plan = self._plans.get(name)
        if plan is not None and plan[1] <= number < plan[2]:
            raise OSError(plan[0], os.strerror(plan[0]))

    def write_all(self, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
        try:
            self._tick("write_all")
        except OSError:
            half = b"".join(bytes(buffer) for buffer in buffers)
            super().write_all(
                fd, [half[: len(half) // 2]], offset
            )  # a failed write may have written something
            raise
        super().write_all(fd, buffers, offset)

    def datasync(self, fd: int) -> None:
        self._tick("datasync")
        super().datasync(fd)

    def begin_datasync(self, fd: int, offset: int, length: int) -> None:
        self._tick("begin_datasync")
        super().begin_datasync(fd, offset, length)

    def truncate(self, fd: int, size: int) -> None:
        self._tick("truncate")
        super().truncate(fd, size)

    def create(self, path: Path, mode: int = 0o644) -> int:
        self._tick("create")
        return super().create(path, mode)

    def link(self, source: Path, target: Path) -> None:
        self._tick("link")
        super().link(source, target)

    def rename(self, source: Path, target: Path) -> None:
        self._tick("rename")
        super().rename(source, target)

    def sync_directory(self, path: Path) -> None:
        self._tick("sync_directory")
        super().sync_directory(path)

    def extend(self, path: Path, size: int) -> None:
        self._tick("extend")
        super().extend(path, size)

    def read(self, fd: int, length: int, offset: int) -> bytes:
        self._tick("read")
        return super().read(fd, length, offset)

    def free_bytes(self, path: Path) -> int:
        return super().free_bytes(path) if self.free is None else self.free


# --- encryption -----------------------------------------------------------------------------------------------


class KeyedCipher:
    """A cipher made of the standard library: a key stream from SHAKE-256, and an HMAC over text and place.

    Notes each chunk id that it was given.
    """

    overhead = 16

    def __init__(self, key: bytes = b"k" * 32) -> None:
        self._key = key
        self.ids: list[bytes] = []

    def encrypt(self, chunk_id: bytes, part: int, offset: int, data: bytes | memoryview) -> bytes:
        self.ids.append(chunk_id)
        mixed = self._mix(chunk_id, data)
        return mixed + self._tag(chunk_id, part, offset, mixed)

    def decrypt(self, chunk_id: bytes, part: int, offset: int, data: bytes | memoryview) -> bytes:
        mixed, tag = bytes(data[:-16]), bytes(data[-16:])
        if not hmac.compare_digest(tag, self._tag(chunk_id, part, offset, mixed)):
            raise ValueError("not encrypted for this place")
        return self._mix(chunk_id, mixed)

    def _mix(self, chunk_id: bytes, data: bytes | memoryview) -> bytes:
        stream = hashlib.shake_256(self._key + chunk_id).digest(len(data))
        return (int.from_bytes(data) ^ int.from_bytes(stream)).to_bytes(len(data))

    def _tag(self, chunk_id: bytes, part: int, offset: int, mixed: bytes) -> bytes:
        return hmac.digest(self._key, b"%b %d %d %b" % (chunk_id, part, offset, mixed), "sha256")[:16]


# --- other processes ------------------------------------------------------------------------------------------


def python(code: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter; its output is text, its failure an error here."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=100,
        **options,
    )
    assert done.returncode == 0, done.stderr
    return done


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Starts code in a fresh interpreter, with pipes for input and output."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def in_a_fork(job: Callable[[], None]) -> int:
    """Runs a job in a forked child; the child's exit status, 0 when the job raised nothing."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            job()
            status = 0
        except BaseException as error:
            print(f"in the child: {error!r}", file=sys.stderr)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def lines_of(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    for line in process.stdout:
        yield line.rstrip("\n")
