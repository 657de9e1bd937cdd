"""A disk that can lose power: a FileSystem that remembers what was synced and what was not.

The store works on real files in a scratch directory. Beside them a `Disk` keeps, for each file and each directory,
what is certain to survive a power cut and the calls since. At any moment an image of the disk as it could look after
a crash can be written to another directory, for a store to recover from.

LMDB's writes do not come through here. Its file is looked at whenever it commits: the state before the newest commit
or the one after it may survive (`metasync=False`), any state since the last sync when commits are not synced.

Must not know: records, keys, what the store means by its files.

Invariants:
* A synced byte is in every image; a byte that was never written is in none.
* A directory's entry is in every image once the directory was synced.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from cordwood.engine.fs import Buffer, FileSystem
from cordwood.engine.index import Index

SECTOR = 512
_DATA = "data.mdb"
Change = tuple[int, bytes] | tuple[None, int]  # (offset, bytes written), or (None, new size)


class File:
    """`durable` survives; each of `pending` may. A LMDB file has `states` instead: one of them survives."""

    def __init__(self, durable: bytes = b"") -> None:
        self.durable = durable
        self.pending: tuple[Change, ...] = ()
        self.states: tuple[bytes, ...] = ()

    def clone(self) -> File:
        other = File(self.durable)
        other.pending = self.pending
        other.states = self.states
        return other


class Directory:
    """Names that survive, and the changes of names since; each change happens whole or not at all."""

    def __init__(self) -> None:
        self.durable: dict[str, File | Directory] = {}
        self.pending: list[tuple[tuple[str, File | Directory | None], ...]] = []
        self.live: dict[str, File | Directory] = {}

    def change(self, *names: tuple[str, File | Directory | None]) -> None:
        self.pending.append(names)
        _rename(self.live, names)

    def sync(self) -> None:
        self.durable = dict(self.live)
        self.pending = []

    def clone(self, seen: dict[int, Any]) -> Directory:
        if id(self) in seen:
            found: Directory = seen[id(self)]
            return found
        other = Directory()
        seen[id(self)] = other

        def twin(node: File | Directory | None) -> Any:
            if node is None:
                return None
            if id(node) not in seen:
                seen[id(node)] = node.clone(seen) if isinstance(node, Directory) else node.clone()
            return seen[id(node)]

        other.durable = {name: twin(node) for name, node in self.durable.items()}
        other.live = {name: twin(node) for name, node in self.live.items()}
        other.pending = [tuple((name, twin(node)) for name, node in names) for names in self.pending]
        return other


def _rename(
    names: dict[str, File | Directory], changes: tuple[tuple[str, File | Directory | None], ...]
) -> None:
    for name, node in changes:
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def _apply(content: bytearray, change: Change) -> None:
    offset, data = change
    if offset is None:
        assert isinstance(data, int)
        del content[data:]
        content.extend(bytes(data - len(content)))
    else:
        assert isinstance(data, bytes)
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + len(data)] = data


class Image:
    """The disk at one moment. `write` lays it down as it could look after a crash."""

    def __init__(self, root: Directory) -> None:
        self.root = root

    def write(self, target: Path, keep: str, rng: random.Random) -> bytes:
        """`keep`: "all" (only the process died), "none" (nothing unsynced survived) or "some" (any part of it did).

        Returns a digest of what was written, to tell equal images.
        """
        return repr(self._write(self.root, target, keep, rng)).encode()

    def _write(self, directory: Directory, target: Path, keep: str, rng: random.Random) -> list[Any]:
        target.mkdir(parents=True, exist_ok=True)
        if keep == "all":
            names = directory.live
        else:
            names = dict(directory.durable)
            for change in directory.pending:
                if keep == "some" and rng.random() < 0.5:
                    _rename(names, change)
        written: list[Any] = []
        for name, node in sorted(names.items(), key=lambda item: item[0]):
            if isinstance(node, Directory):
                written.append((name, self._write(node, target / name, keep, rng)))
            else:
                content = survivors(node, keep, rng)
                (target / name).write_bytes(content)
                written.append((name, hash(content)))
        return written


def survivors(file: File, keep: str, rng: random.Random) -> bytes:
    """A file's content after a crash."""
    if file.states:
        return {"all": file.states[-1], "none": file.states[0]}.get(keep) or rng.choice(file.states)
    content = bytearray(file.durable)
    if keep == "none":
        return bytes(content)
    mood = rng.random()  # sometimes nearly everything survives, sometimes next to nothing
    for change in file.pending:
        if keep == "all" or rng.random() < mood:
            _apply(content, change)
        elif change[0] is not None and rng.random() < 0.7:
            for piece in _torn(change[0], change[1], rng):
                _apply(content, piece)
    return bytes(content)


def _torn(offset: int, data: Any, rng: random.Random) -> Iterator[Change]:
    """Parts of one write: cut at any byte, or any of its sectors."""
    if rng.random() < 0.5:
        yield offset, data[: rng.randrange(len(data) + 1)]
        return
    at = 0
    while at < len(data):
        end = min(len(data), at + SECTOR - (offset + at) % SECTOR)
        if rng.random() < 0.5:
            yield offset + at, data[at:end]
        at = end


class FaultyFileSystem(FileSystem):
    """Counts the calls that change something, reports each to `on_call`, and fails the ones it is told to.

    `fail_at`: the number of the call that raises `error`; `sticky`: all later ones of the same name do too.
    `lying`: syncs answer success and sync nothing. `misread`: called for each read, may answer other bytes.
    """

    def __init__(self, root: Path, *, boot: bytes = b"boot-1") -> None:
        self.top = root
        self.boot = boot
        self.disk = Directory()
        self.count = 0
        self.fail_at = -1
        self.error = errno.EIO
        self.sticky = False
        self.failed: str | None = None
        self.short = 0.5
        self.lying = False
        self.free: int | None = None
        self.on_call: Callable[[str], None] | None = None
        self.misread: Callable[[bytes], bytes] | None = None
        self._files: dict[int, File] = {}
        self._open: set[int] = set()
        if root.is_dir():
            self._adopt(root, self.disk)

    def _adopt(self, path: Path, directory: Directory) -> None:
        for entry in path.iterdir():
            node: File | Directory
            if entry.is_dir():
                node = Directory()
                self._adopt(entry, node)
            else:
                node = File(entry.read_bytes())
                if entry.name == _DATA:
                    node.states = (node.durable,)
            directory.live[entry.name] = node
        directory.sync()

    def image(self) -> Image:
        return Image(self.disk.clone({}))

    # --- finding nodes ----------------------------------------------------------------------------------------

    def _directory(self, path: Path) -> Directory:
        node: File | Directory = self.disk
        for part in path.relative_to(self.top).parts:
            assert isinstance(node, Directory)
            node = node.live[part]
        assert isinstance(node, Directory)
        return node

    def _call(self, name: str) -> None:
        """One more call that changes something: the moment before it is a moment at which power may fail."""
        if self.on_call is not None:
            self.on_call(name)
        number = self.count
        self.count += 1
        if number == self.fail_at or (self.sticky and self.failed == name):
            self.failed = name
            raise OSError(self.error, os.strerror(self.error))

    # --- files ------------------------------------------------------------------------------------------------

    def _opened(self, fd: int, path: Path) -> int:
        self._open.add(fd)
        node = self._directory(path.parent).live.get(path.name) if self._is_inside(path) else None
        if (
            node is None and path.name == _DATA
        ):  # LMDB made a copy of itself, and the engine opens it to sync it
            node = File()
            node.states = (path.read_bytes(),)
            self._directory(path.parent).change((path.name, node))
        if isinstance(node, File):
            self._files[fd] = node
        return fd

    def _is_inside(self, path: Path) -> bool:
        return path.is_relative_to(self.top)

    def open_read(self, path: Path) -> int:
        return self._opened(super().open_read(path), path)

    def open_write(self, path: Path) -> int:
        return self._opened(super().open_write(path), path)

    def create(self, path: Path, mode: int = 0o644) -> int:
        self._call("create")
        fd = super().create(path, mode)
        self._directory(path.parent).change((path.name, File()))
        return self._opened(fd, path)

    def open_lock(self, path: Path) -> int:
        fd = super().open_lock(path)
        if path.name not in self._directory(path.parent).live:
            self._directory(path.parent).change((path.name, File()))
        self._open.add(fd)
        return fd

    def close(self, fd: int) -> None:
        if fd in self._open:
            self._open.discard(fd)
            self._files.pop(fd, None)
            super().close(fd)

    def close_all(self) -> None:
        for fd in list(self._open):
            self.close(fd)

    def read(self, fd: int, length: int, offset: int) -> bytes:
        data = super().read(fd, length, offset)
        return data if self.misread is None else self.misread(data)

    def read_into(self, fd: int, buffer: memoryview, offset: int, *, cached_only: bool = False) -> int:
        data = self.read(fd, len(buffer), offset)
        buffer[: len(data)] = data
        return len(data)

    def write_all(self, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
        data = b"".join(bytes(buffer) for buffer in buffers)
        try:
            self._call("write_all")
        except OSError:
            data = data[: int(len(data) * self.short)]  # a write that fails may have written something
            self._write(fd, data, offset)
            raise
        self._write(fd, data, offset)

    def _write(self, fd: int, data: bytes, offset: int) -> None:
        super().write_all(fd, [data], offset)
        self._files[fd].pending += ((offset, data),)

    def datasync(self, fd: int) -> None:
        file = self._files.get(fd)
        if file is None:  # LMDB's own file, seen by `index_changed`
            return self._call("datasync")
        try:
            self._call("datasync")
        except OSError:
            file.pending = ()  # the kernel drops what it could not write, and calls the pages clean
            raise
        if not self.lying:
            content = bytearray(file.durable)
            for change in file.pending:
                _apply(content, change)
            file.durable = bytes(content)
            file.pending = ()
        return None

    def truncate(self, fd: int, size: int) -> None:
        self._call("truncate")
        super().truncate(fd, size)
        self._files[fd].pending += ((None, size),)

    def free_bytes(self, path: Path) -> int:
        return super().free_bytes(path) if self.free is None else self.free

    # --- names ------------------------------------------------------------------------------------------------

    def rename(self, source: Path, target: Path) -> None:
        self._call("rename")
        super().rename(source, target)
        directory = self._directory(source.parent)
        directory.change((source.name, None), (target.name, directory.live[source.name]))

    def link(self, source: Path, target: Path) -> None:
        self._call("link")
        super().link(source, target)
        directory = self._directory(source.parent)
        directory.change((target.name, directory.live[source.name]))

    def unlink(self, path: Path) -> None:
        self._call("unlink")
        super().unlink(path)
        self._directory(path.parent).change((path.name, None))

    def make_directory(self, path: Path) -> None:
        self._call("make_directory")
        super().make_directory(path)
        if not self._is_inside(path):
            return
        node = self.disk
        for part in path.relative_to(self.top).parts:
            if part not in node.live:
                node.change((part, Directory()))
            below = node.live[part]
            assert isinstance(below, Directory)
            node = below

    def remove_tree(self, path: Path) -> None:
        self._call("remove_tree")
        super().remove_tree(path)
        self._directory(path.parent).change((path.name, None))

    def sync_directory(self, path: Path) -> None:
        self._call("sync_directory")
        if self._is_inside(path) and not self.lying:
            self._directory(path).sync()

    def read_small(self, path: Path) -> bytes:
        return self.boot if path.name == "boot_id" else super().read_small(path)

    # --- LMDB -------------------------------------------------------------------------------------------------

    def extend(self, path: Path, size: int) -> None:
        self._call("extend")
        super().extend(path, size)

    def index_changed(self, directory: Path, *, synced: bool, settled: bool) -> None:
        """LMDB committed. `synced`: in a way that made every earlier commit durable; `settled`: this one as well."""
        names = self._directory(directory)
        state = (directory / _DATA).read_bytes()
        file = names.live.get(_DATA)
        if file is None:
            file = File()
            file.states = (b"", bytes(len(state)), state)  # a new file's size may survive without its content
            names.change((_DATA, file))
            return
        assert isinstance(file, File)
        if file.states and file.states[-1] == state:
            file.states = file.states[-1:] if settled and not self.lying else file.states
        elif self.lying:
            file.states += (state,)
        elif settled:
            file.states = (state,)
        elif synced:
            file.states = (*file.states[-1:], state)
        else:
            file.states += (state,)


@contextmanager
def watching_index() -> Iterator[None]:
    """Lets every FaultyFileSystem see the commits of the index that belongs to it."""
    init, cover, sync = Index.__init__, Index._cover_last_page, Index.sync

    def new_init(self: Index, fs: FileSystem, directory: Path, **options: Any) -> None:
        self.is_synced = options["sync"]  # type: ignore[attr-defined]
        init(self, fs, directory, **options)
        if isinstance(fs, FaultyFileSystem):
            fs.index_changed(directory, synced=options["sync"], settled=False)

    def new_cover(self: Index) -> None:
        fs = self._fs
        if not isinstance(fs, FaultyFileSystem):
            return cover(self)
        synced: bool = self.is_synced  # type: ignore[attr-defined]
        fs.index_changed(self._directory, synced=synced, settled=False)
        if fs.on_call is not None:
            fs.on_call("index committed")
        cover(self)
        fs.index_changed(self._directory, synced=False, settled=False)  # it may have grown the file
        return None

    def new_sync(self: Index) -> None:
        sync(self)
        if isinstance(self._fs, FaultyFileSystem):
            self._fs.index_changed(self._directory, synced=True, settled=True)

    with (
        mock.patch.object(Index, "__init__", new_init),
        mock.patch.object(Index, "_cover_last_page", new_cover),
        mock.patch.object(Index, "sync", new_sync),
    ):
        yield
