"""The index: every LMDB table. A view of the volumes that can always be rebuilt.

Must not know: how records are written, what S3 is. The only module that imports lmdb.

Invariants:
* A write transaction belongs to the thread that began it. Readers never block and are never blocked.
* File lengths are checked before LMDB maps them: a truncated data.mdb would end the process with SIGBUS.

Tables (key -> row, see rows.py):
  meta         name -> bytes                   the clock, the store's id
  volumes      volume id -> VolumeRow          state, watermark, live bytes
  buckets      bucket name -> BucketRow
  directories  directory id -> DirectoryRow    where it hangs
  entries      node + component -> an ObjectRow, or what leads deeper (namespace.py)
  versions     group id + ~clock -> ObjectRow  noncurrent versions, newest first
  chunks       chunk id -> ChunkRow
  uploads      bucket id + upload id -> UploadRow
  parts        upload id + part number -> PartRow
  attrs        clock of a version -> AttrsRow, for versions with the flag NOTED
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import lmdb

from cordwood.engine.errors import Busy, Closed, Corrupt, Full
from cordwood.engine.format import BUCKET_NAME_MAX
from cordwood.engine.fs import FULL_ERRNOS, FileSystem
from cordwood.engine.lengths import check_lengths
from cordwood.engine.rows import (
    AttrsRow,
    BucketRow,
    ChunkRow,
    DirectoryRow,
    PartRow,
    UploadRow,
    VolumeRow,
    id_key,
    part_key,
    upload_key,
    volume_key,
)

MAX_READERS = 4096
_AHEAD_BYTES = 512 << 10  # how far data.mdb reaches behind its last page; the kernel keeps no blocks for that
_TURN_NAME = "turn"
_TABLES = (
    "meta",
    "volumes",
    "buckets",
    "directories",
    "entries",
    "versions",
    "chunks",
    "uploads",
    "parts",
    "attrs",
)
_CLOCK_KEY = b"clock"
_STORE_KEY = b"store"
_MAP_FULL = "the map of the index is full; open the store with a larger map_size"


class Tables(NamedTuple):
    """LMDB handles of all tables."""

    meta: Any
    volumes: Any
    buckets: Any
    directories: Any
    entries: Any
    versions: Any
    chunks: Any
    uploads: Any
    parts: Any
    attrs: Any


class Txn:
    """One LMDB transaction with the tables at hand. Reads see one moment of the whole index."""

    __slots__ = ("raw", "tables")

    def __init__(self, raw: lmdb.Transaction, tables: Tables) -> None:
        self.raw = raw
        self.tables = tables

    def get(self, key: bytes, table: Any) -> bytes | None:
        get: Any = self.raw.get
        found: bytes | None = get(key, None, table)
        return found

    def put(self, key: bytes, row: bytes, table: Any) -> None:
        try:
            self.raw.put(key, row, True, True, False, table)
        except lmdb.MapFullError:
            raise Full(_MAP_FULL) from None

    def add(self, key: bytes, row: bytes, table: Any) -> bool:
        """Puts a row where there is none; False when there is one, which stays as it is."""
        try:
            return bool(self.raw.put(key, row, True, False, False, table))
        except lmdb.MapFullError:
            raise Full(_MAP_FULL) from None

    def append(self, rows: list[tuple[bytes, bytes]], table: Any) -> None:
        """Puts rows in the order of their keys, all of which come behind every key of the table."""
        try:
            with self.raw.cursor(db=table) as cursor:
                _, added = cursor.putmulti(rows, dupdata=False, overwrite=False, append=True)
        except lmdb.MapFullError:
            raise Full(_MAP_FULL) from None
        assert added == len(rows)

    def last_key(self, table: Any) -> bytes:
        """The greatest key of a table; empty when it has none."""
        with self.raw.cursor(db=table) as cursor:
            return cast("bytes", cursor.key()) if cursor.last() else b""

    def delete(self, key: bytes, table: Any) -> None:
        try:
            self.raw.delete(key, db=table)
        except lmdb.MapFullError:
            raise Full(_MAP_FULL) from None

    def cursor(self, table: Any) -> lmdb.Cursor:
        return self.raw.cursor(db=table)

    def has_prefix(self, prefix: bytes, table: Any) -> bool:
        """Whether any key begins with `prefix`."""
        with self.raw.cursor(db=table) as cursor:
            return bool(cursor.set_range(prefix)) and cast("bytes", cursor.key()).startswith(prefix)

    def items(
        self, prefix: bytes, table: Any, *, start: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Rows whose key begins with `prefix`, in key order, from `start` on. Do not change the table meanwhile."""
        with self.raw.cursor(db=table) as cursor:
            found = cursor.set_range(start if start is not None else prefix)
            while found:
                key, row = cast("tuple[bytes, bytes]", cursor.item())
                if not key.startswith(prefix):
                    return
                yield key, row
                found = cursor.next()

    # Typed access to the small tables.

    def clock(self) -> int:
        row = self.get(_CLOCK_KEY, self.tables.meta)
        return int.from_bytes(row, "big") if row else 0

    def put_clock(self, clock: int) -> None:
        self.put(_CLOCK_KEY, id_key(clock), self.tables.meta)

    def store(self) -> bytes | None:
        return self.get(_STORE_KEY, self.tables.meta)

    def put_store(self, store: bytes) -> None:
        self.put(_STORE_KEY, store, self.tables.meta)

    def volume(self, volume: int) -> VolumeRow | None:
        row = self.get(volume_key(volume), self.tables.volumes)
        return VolumeRow.unpack(row) if row is not None else None

    def put_volume(self, volume: int, row: VolumeRow) -> None:
        self.put(volume_key(volume), row.pack(), self.tables.volumes)

    def volumes(self) -> dict[int, VolumeRow]:
        return {
            int.from_bytes(k, "big"): VolumeRow.unpack(r) for k, r in self.items(b"", self.tables.volumes)
        }

    def bucket(self, name: str) -> BucketRow | None:
        if not (name.isascii() and 0 < len(name) <= BUCKET_NAME_MAX):
            return None  # no bucket has such a name, and LMDB would not take it as a key
        row = self.get(name.encode(), self.tables.buckets)
        return BucketRow.unpack(row) if row is not None else None

    def buckets(self) -> Iterator[BucketRow]:
        for _, row in self.items(b"", self.tables.buckets):
            yield BucketRow.unpack(row)

    def directory(self, directory: int) -> DirectoryRow | None:
        row = self.get(id_key(directory), self.tables.directories)
        return DirectoryRow.unpack(row) if row is not None else None

    def chunk(self, chunk_id: bytes) -> ChunkRow | None:
        row = self.get(chunk_id, self.tables.chunks)
        return ChunkRow.unpack(row) if row is not None else None

    def upload(self, bucket: int, upload: int) -> UploadRow | None:
        row = self.get(upload_key(bucket, upload), self.tables.uploads)
        return UploadRow.unpack(row) if row is not None else None

    def part(self, upload: int, number: int) -> PartRow | None:
        row = self.get(part_key(upload, number), self.tables.parts)
        return PartRow.unpack(row) if row is not None else None

    def attrs(self, version: int) -> AttrsRow | None:
        row = self.get(id_key(version), self.tables.attrs)
        return AttrsRow.unpack(row) if row is not None else None

    def parts(self, upload: int, after: int = 0) -> Iterator[tuple[int, PartRow]]:
        prefix = id_key(upload)
        for key, row in self.items(prefix, self.tables.parts, start=part_key(upload, after + 1)):
            yield int.from_bytes(key[8:], "big"), PartRow.unpack(row)


class Snapshot(Txn):
    """A read transaction that ends with its `with` block, or with `end`."""

    __slots__ = ("_index",)

    def __init__(self, raw: lmdb.Transaction, tables: Tables, index: Index) -> None:
        self.raw = raw
        self.tables = tables
        self._index = index

    def __enter__(self) -> Txn:
        return self

    def __exit__(self, *_: object) -> None:
        self.raw.abort()

    def end(self) -> None:
        self.raw.abort()

    def bucket(self, name: str) -> BucketRow | None:
        """Nearly every call begins with one, and rows of buckets hardly change: they are remembered until the next
        commit, whoever makes it, gives snapshots another number."""
        number = self.raw.id()
        remembered, rows = self._index.remembered
        if remembered != number:
            rows = {}
            self._index.remembered = (number, rows)
        row = rows.get(name)
        if row is None:
            row = Txn.bucket(self, name)
            if row is not None:
                rows[name] = row
        return row


class Index:
    """The open LMDB environment of one store."""

    def __init__(
        self, fs: FileSystem, directory: Path, *, map_size: int, sync: bool, read_only: bool
    ) -> None:
        check_lengths(fs, directory)
        if not read_only:
            fs.make_directory(directory)
        try:
            self._env = lmdb.open(
                str(directory),
                map_size=map_size,
                max_dbs=len(_TABLES),
                max_readers=MAX_READERS,
                metasync=False,
                sync=sync,
                readonly=read_only,
                create=not read_only,
                readahead=False,
                lib_version=0,
            )
        except lmdb.Error as error:
            raise translate(error, directory) from error
        try:
            self._env.reader_check()
            tables = [self._env.open_db(name.encode(), create=not read_only) for name in _TABLES]
        except lmdb.Error as error:
            self._env.close()
            raise translate(error, directory) from error
        self._tables = Tables(*tables)
        self._directory = directory
        self._fs = fs
        self._page_size = int(self._env.stat()["psize"])
        self._file_size = 0
        self.remembered: tuple[int, dict[str, BucketRow]] = (0, {})
        self.is_read_only = read_only
        if not read_only:
            try:
                self._cover_last_page()
            except OSError:
                self._env.close()
                raise
        self._turn = None if read_only else fs.open_lock(directory / _TURN_NAME)
        _alive.add(self)

    def close(self) -> None:
        self._env.close()
        self._let_go_of_turn()

    def _let_go_of_turn(self) -> None:
        turn, self._turn = self._turn, None
        if turn is not None:
            self._fs.close(turn)

    def disown(self) -> None:
        """Called in a forked child, which must not keep the turn when its parent dies."""
        self._let_go_of_turn()
        _inherited.append(self._env)  # so that it is never finalised
        self._env = cast("lmdb.Environment", _Inherited())

    def sync(self) -> None:
        """Makes the last commit durable in full, its meta page too."""
        try:
            self._env.sync(True)
        except lmdb.Error as error:
            raise translate(error, self._directory) from error

    def copy_to(self, directory: Path) -> None:
        """Writes a copy without free pages into a new directory, synced."""
        self._fs.make_directory(directory)
        try:
            self._env.copy(str(directory), compact=True)
        except lmdb.Error as error:
            raise translate(error, directory) from error
        fd = self._fs.open_write(directory / "data.mdb")
        try:
            self._fs.datasync(fd)
        finally:
            self._fs.close(fd)

    def reclaim_readers(self) -> int:
        """Frees reader slots of processes that died; returns how many."""
        return int(self._env.reader_check())

    def read(self) -> Snapshot:
        """A snapshot for reading; a context manager that gives a `Txn`."""
        try:
            return Snapshot(self._env.begin(), self._tables, self)
        except lmdb.Error as error:
            raise translate(error, self._directory) from error

    def begin(self) -> Txn:
        """A write transaction; waits for the one writer there may be, in this or another process.

        LMDB's own lock is not fair: who gives it back and asks again at once would mostly get it. So who waits for it
        holds the turn, and nobody else can ask until that one was served.
        """
        assert self._turn is not None
        self._fs.lock_wait(self._turn)
        try:
            return Txn(self._env.begin(write=True), self._tables)
        except lmdb.Error as error:
            raise translate(error, self._directory) from error
        finally:
            self._fs.unlock(self._turn)

    def child(self, parent: Txn) -> Txn:
        """A nested write transaction: its changes join the parent's when committed, vanish when aborted."""
        return Txn(self._env.begin(write=True, parent=parent.raw), self._tables)

    def commit(self, txn: Txn) -> None:
        try:
            txn.raw.commit()
        except lmdb.Error as error:
            raise translate(error, self._directory) from error
        self._cover_last_page()

    def _cover_last_page(self) -> None:
        """Keeps data.mdb longer than its meta page says, some pages ahead of the next commit.

        LMDB never writes a page that was taken at the end and given back in one transaction, so by itself the file may
        lawfully be shorter than last_pgno; `check_lengths` could not tell that from a truncation. It must not be so for
        a moment either: a kill -9 may come behind any commit, and another process may just be opening the index.
        """
        size = (int(self._env.info()["last_pgno"]) + 1) * self._page_size
        if size + _AHEAD_BYTES // 2 <= self._file_size:
            return
        path = self._directory / "data.mdb"
        self._file_size = self._fs.size_of(path) or 0
        if size + _AHEAD_BYTES // 2 <= self._file_size:
            return
        try:
            self._fs.extend(path, size + _AHEAD_BYTES)
        except OSError:
            if self._file_size < size:
                raise
        else:
            self._file_size = max(self._file_size, size + _AHEAD_BYTES)

    def info(self) -> dict[str, int]:
        """Bytes in use and entry counts per table."""
        with self.read() as txn:
            page = self._env.stat()["psize"]
            sizes = {"used_bytes": (int(self._env.info()["last_pgno"]) + 1) * page}
            for name, table in zip(_TABLES, self._tables, strict=True):
                sizes[name] = int(txn.raw.stat(db=table)["entries"])
            return sizes


_alive: weakref.WeakSet[Index] = weakref.WeakSet()


_inherited: list[Any] = []


class _Inherited:
    """Stands in a forked child where its parent's environment was. LMDB must not be used across a fork, nor closed:
    that would end transactions in the lock file which the parent's threads go on with."""

    def __getattr__(self, name: str) -> Any:
        raise lmdb.Error("closed by a fork")


def _disown_all_after_fork() -> None:
    for index in _alive:
        index.disown()


os.register_at_fork(after_in_child=_disown_all_after_fork)


def translate(error: lmdb.Error, directory: Path) -> Exception:
    """LMDB's error as one of ours, with the way out."""
    if isinstance(error, lmdb.MapFullError):
        return Full(f"{directory}: {_MAP_FULL}")
    if isinstance(error, lmdb.ReadersFullError):
        return Busy(f"index {directory}: all {MAX_READERS} reader slots are taken")
    said = str(error).replace(str(directory), "")  # the path may hold any number
    if isinstance(error, lmdb.DiskError) or any(str(number) in said for number in FULL_ERRNOS):
        return Full(f"index {directory}: {error}")
    if "closed" in str(error):
        return Closed(f"index {directory} is closed, or was opened before a fork")
    if "already open" in str(error):
        return Busy(
            f"index {directory} is open in this process already, or was when it was forked: share that Store object, "
            "or open the store in a process that was not forked from one that has it open"
        )
    return Corrupt(f"index {directory}: {error}; `cordwood rebuild` makes a new index from the volumes")
