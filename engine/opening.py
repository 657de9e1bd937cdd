"""Opening and closing a store's directory: its identity, its locks, recovery, and the parts wired together.

Directory:
  FORMAT      JSON: name, format version, store id, node id; written once, durable before anything else
  LOCK        shared flock by everyone who has the store open, exclusive by tools that need it alone
  RECOVERY    exclusive flock while a process recovers or claims a volume
  UNSYNCED    there while the store is open with durability "relaxed": the kernel's boot id at that time
  volumes/    the volume files
  index/      LMDB

Must not know: what is stored.

Invariants:
* A directory of another format version is refused before a byte of it is changed.
* An index that is missing, or may have been torn by a power cut in relaxed mode, is rebuilt from the volumes; one that
  is damaged is reported, never silently replaced.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cordwood.engine.appender import Appender
from cordwood.engine.clock import tick
from cordwood.engine.commit import Committer
from cordwood.engine.core import Core, read_manifest
from cordwood.engine.decoded import Decoded
from cordwood.engine.errors import Busy, CordwoodError, Corrupt, Full, StoreNotFound, UnsupportedFormat
from cordwood.engine.format import FORMAT_VERSION
from cordwood.engine.fs import FULL_ERRNOS, REAL, FileSystem
from cordwood.engine.health import Health
from cordwood.engine.index import Index, Txn
from cordwood.engine.rebuild import Progress, RebuildReport, rebuild_index
from cordwood.engine.recovery import Recovery
from cordwood.engine.rows import VolumeState
from cordwood.engine.volume import Volumes

_log = logging.getLogger("cordwood.engine")
FORMAT_NAME = "FORMAT"
LOCK_NAME = "LOCK"
RECOVERY_NAME = "RECOVERY"
UNSYNCED_NAME = "UNSYNCED"
VOLUMES_NAME = "volumes"
INDEX_NAME = "index"
NEW_INDEX_NAME = "index.new"
_OLD_INDEX_NAME = "index.old"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_STORE_ID_SIZE = 16
_RELAXED_INTERVAL_S = 1.0
_UPKEEP_INTERVAL_S = 10.0
DEFAULT_MAP_SIZE = 1 << 40

_open_here: set[Path] = set()
_open_here_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Options:
    """What `Store.open` was asked for; sizes in bytes. `alone`: nobody else may have the store open meanwhile."""

    create: bool = True
    read_only: bool = False
    strict: bool = True
    dedup: bool = True
    volume_size: int = 1 << 30
    chunk_size: int = 1 << 20
    inline_max: int = 64 << 10
    head_cache_size: int = 16 << 20
    map_size: int = DEFAULT_MAP_SIZE
    node_id: int | None = None
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Identity:
    """What FORMAT says."""

    store: bytes
    node: int


class Session:
    """What must be undone when a store is closed."""

    def __init__(self, fs: FileSystem, directory: Path, core: Core, lock: int, mark: int | None) -> None:
        self._fs = fs
        self._directory = directory
        self._core = core
        self._lock = lock
        self._mark = mark
        self._stop = threading.Event()
        self._timer: threading.Thread | None = None
        if mark is not None or core.committer is None:
            self._timer = threading.Thread(target=self._keep_up, name="cordwood-upkeep", daemon=True)
            self._timer.start()

    def close(self) -> None:
        core = self._core
        self._stop.set()
        try:
            if self._timer is not None:
                self._timer.join()
            if core.committer is not None and core.appender is not None:
                core.committer.close()
                if core.health.failure is None:
                    core.appender.sync()
                    core.index.sync()
                    if self._mark is not None:
                        _remove_mark(self._fs, self._directory, self._mark)
        finally:
            if self._mark is not None:
                self._fs.close(self._mark)
            if core.appender is not None:
                core.appender.close()
            core.volumes.close()
            core.index.close()
            self._fs.close(self._lock)
            _forget_open(self._directory)

    def _keep_up(self) -> None:
        """In relaxed mode syncs each second; without a commit thread does what that would do now and then."""
        core = self._core
        interval_s = _UPKEEP_INTERVAL_S if self._mark is None else _RELAXED_INTERVAL_S
        while not self._stop.wait(interval_s):
            if self._mark is None:
                core.volumes.forget_unlinked()
                continue
            try:
                assert core.appender is not None
                core.appender.sync()
                core.index.sync()
            except (OSError, CordwoodError) as error:
                core.health.fail(f"sync failed: {error}")
                return


def open_store(fs: FileSystem, directory: Path, options: Options) -> tuple[Core, Session]:
    """Opens (and creates) the store in a directory; see `Store.open`."""
    _remember_open(directory)
    try:
        identity = _identify(fs, directory, options)
        lock = take_lock(fs, directory, shared=not options.alone)
        try:
            core, mark = _open_core(fs, directory, identity, options)
        except BaseException:
            fs.close(lock)
            raise
    except OSError as error:
        _forget_open(directory)
        if error.errno in FULL_ERRNOS:
            raise Full(f"{directory}: {error.strerror}; free some space to open the store") from error
        raise
    except BaseException:
        _forget_open(directory)
        raise
    return core, Session(fs, directory, core, lock, mark)


def _remember_open(directory: Path) -> None:
    with _open_here_lock:
        real = directory.resolve()
        if real in _open_here:
            raise Busy(f"{directory} is open in this process already: share that Store object")
        _open_here.add(real)


def _forget_open(directory: Path) -> None:
    with _open_here_lock:
        _open_here.discard(directory.resolve())


_fork_generation = 0


def fork_generation() -> int:
    """How many forks lie between this process and the one that imported the engine: cheaper than asking for the pid."""
    return _fork_generation


def _forget_all_after_fork() -> None:
    global _fork_generation, _open_here_lock
    _fork_generation += 1
    _open_here_lock = threading.Lock()
    _open_here.clear()


os.register_at_fork(after_in_child=_forget_all_after_fork)


def read_identity(fs: FileSystem, directory: Path) -> Identity | None:
    """What FORMAT says; None without one. UnsupportedFormat for another version, Corrupt for what is no FORMAT."""
    path = directory / FORMAT_NAME
    if fs.size_of(path) is None:
        return None
    try:
        content = json.loads(fs.read_file(path))
        version = content["version"]
        if content["format"] != "cordwood":
            raise KeyError("format")
        if version != FORMAT_VERSION:
            raise UnsupportedFormat(
                f"{path} says format version {version}; this program reads and writes version {FORMAT_VERSION}. "
                "Nothing was changed: open the store with a matching release"
            )
        identity = Identity(bytes.fromhex(content["store"]), int(content["node"], 16))
        if len(identity.store) != _STORE_ID_SIZE or not 0 <= identity.node < 1 << 64:
            raise ValueError(content)
        return identity
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Corrupt(f"{path} is not a Cordwood FORMAT file ({error!r}); restore it from a backup") from None


def _identify(fs: FileSystem, directory: Path, options: Options) -> Identity:
    identity = read_identity(fs, directory)
    if identity is not None:
        require_volumes(fs, directory)
        return identity
    if fs.names(directory / VOLUMES_NAME):
        raise Corrupt(f"{directory} has volumes but no {FORMAT_NAME}; restore that file from a backup")
    if not options.create or options.read_only:
        raise StoreNotFound(f"{directory} holds no Cordwood store")
    fs.make_directory(directory / VOLUMES_NAME)
    with _exclusive(fs, directory / RECOVERY_NAME):
        identity = read_identity(fs, directory)  # another process may have been faster
        if identity is None:
            node = secrets.randbits(64) if options.node_id is None else options.node_id
            identity = Identity(secrets.token_bytes(_STORE_ID_SIZE), node)
            content = {
                "format": "cordwood",
                "version": FORMAT_VERSION,
                "store": identity.store.hex(),
                "node": f"{identity.node:016x}",
            }
            fs.sync_directory(directory)  # FORMAT promises that volumes/ is there
            fs.publish(directory / FORMAT_NAME, json.dumps(content, indent=1).encode() + b"\n")
            fs.sync_directory(directory.parent)
    return identity


def require_volumes(fs: FileSystem, directory: Path) -> None:
    """Corrupt when a store has lost its folder of volumes: an empty one in its place would look like an empty store."""
    if not fs.is_directory(directory / VOLUMES_NAME):
        raise Corrupt(
            f"{directory / VOLUMES_NAME} is missing, and with it everything that was stored; mount or restore it"
        )


@contextmanager
def _exclusive(fs: FileSystem, path: Path) -> Iterator[None]:
    fd = fs.open_lock(path)
    try:
        fs.lock_wait(fd)
        yield
    finally:
        fs.close(fd)


def take_lock(fs: FileSystem, directory: Path, *, shared: bool) -> int:
    """The descriptor that holds the store's LOCK; Busy when it cannot be had."""
    fd = fs.open_lock(directory / LOCK_NAME)
    if fs.lock(fd, shared=shared):
        return fd
    fs.close(fd)
    if shared:
        raise Busy(f"{directory} is held by a tool that needs it alone; wait until that is done")
    raise Busy(f"{directory} is open elsewhere; stop the server and the programs that use it first")


def _open_core(
    fs: FileSystem, directory: Path, identity: Identity, options: Options
) -> tuple[Core, int | None]:
    """The parts, and the descriptor that holds the mark of unsynced writes in relaxed mode."""
    volumes = Volumes(fs, directory / VOLUMES_NAME, identity.store, identity.node)
    if options.read_only:
        index = Index(fs, directory / INDEX_NAME, map_size=options.map_size, sync=True, read_only=True)
        try:
            _check_store(index, volumes, identity, directory)
        except BaseException:
            index.close()
            raise
        health = Health("the store was opened read-only")
        return _core(fs, index, volumes, health, None, None, options), None
    recovery_path = directory / RECOVERY_NAME
    with _exclusive(fs, recovery_path):
        _restore_index(fs, directory, volumes, identity, options.map_size)
        mark = None if options.strict else _take_mark(fs, directory)
        try:
            index = Index(
                fs, directory / INDEX_NAME, map_size=options.map_size, sync=options.strict, read_only=False
            )
            try:
                _check_store(index, volumes, identity, directory)
                fs.sync_directory(directory / INDEX_NAME)
                fs.sync_directory(directory)
                volumes.remove_leftovers()
                recovery = Recovery(fs, index, volumes, recovery_path, options.volume_size)
                recovery.run()
                recovery.remove_retired()
            except BaseException:
                index.close()
                raise
        except BaseException:
            if mark is not None:
                fs.close(mark)
            raise
    health = Health()
    appender = Appender(
        fs,
        volumes,
        health,
        recovery.claim,
        volume_size=options.volume_size,
        lays_room=options.strict,
    )
    committer = Committer(
        index,
        appender,
        lambda place: read_manifest(volumes, place),
        health,
        sync=options.strict,
        sync_others=partial(_sync_relaxed, fs, directory / UNSYNCED_NAME, volumes),
        # A volume that a compaction removed gives its space back when the last process lets go of it.
        upkeep=volumes.forget_unlinked,
        upkeep_interval_s=_UPKEEP_INTERVAL_S,
    )
    return _core(fs, index, volumes, health, appender, committer, options), mark


def _core(
    fs: FileSystem,
    index: Index,
    volumes: Volumes,
    health: Health,
    appender: Appender | None,
    committer: Committer | None,
    options: Options,
) -> Core:
    return Core(
        fs,
        index,
        volumes,
        health,
        appender,
        committer,
        options.chunk_size,
        options.inline_max,
        options.dedup,
        Decoded(options.head_cache_size),
    )


def _check_store(index: Index, volumes: Volumes, identity: Identity, directory: Path) -> None:
    with index.read() as txn:
        store = txn.store()
    if store is None and not index.is_read_only:
        if volumes.ids():
            raise Corrupt(
                f"{directory / INDEX_NAME} is empty, but there are volumes; `cordwood rebuild` makes a new index"
            )
        txn = index.begin()
        txn.put_store(identity.store)
        txn.put_clock(tick(0))
        index.commit(txn)
        index.sync()
    elif store != identity.store:
        raise Corrupt(
            f"{directory / INDEX_NAME} belongs to another store; `cordwood rebuild` makes a new index"
        )


def _boot_id(fs: FileSystem) -> bytes:
    try:
        return fs.read_small(_BOOT_ID).strip()
    except OSError:
        return b"unknown"


def _sync_relaxed(fs: FileSystem, mark: Path, volumes: Volumes, txn: Txn, mine: int) -> None:
    """Makes durable what other processes may have written without a sync. A directory that one of them made, or a chunk
    that it wrote, must not be lost to a power cut under an object that was acknowledged as durable."""
    if fs.size_of(mark) is None:
        return
    for volume, row in txn.volumes().items():
        if row.state == VolumeState.ACTIVE and volume != mine:
            volumes.sync(volume)


def _take_mark(fs: FileSystem, directory: Path) -> int:
    """Puts UNSYNCED there, and holds it together with the other relaxed processes. Call with RECOVERY locked."""
    path = directory / UNSYNCED_NAME
    if fs.size_of(path) is None:
        fs.publish(path, _boot_id(fs))
    mark = fs.open_read(path)
    fs.lock(mark, shared=True)
    return mark


def _remove_mark(fs: FileSystem, directory: Path, mark: int) -> None:
    """Takes UNSYNCED away, if nobody else writes without syncing."""
    with _exclusive(fs, directory / RECOVERY_NAME):
        if fs.lock(mark, shared=False):
            fs.unlink_if_there(directory / UNSYNCED_NAME)


def _restore_index(
    fs: FileSystem, directory: Path, volumes: Volumes, identity: Identity, map_size: int
) -> None:
    """Makes a new index where there is none, or where a power cut may have torn the one there is.

    The first index of a store as well: LMDB makes its file with unsynced writes, and must not do that under its name.
    """
    unsynced = directory / UNSYNCED_NAME
    torn = fs.size_of(unsynced) is not None and fs.read_file(unsynced).strip() != _boot_id(fs)
    data = directory / INDEX_NAME / "data.mdb"
    missing = not fs.exists(data) or fs.size_of(data) == 0  # LMDB would make an empty index of an empty file
    missing = missing and fs.is_plain(directory / INDEX_NAME)
    if missing or torn:
        why = "was not synced before the last power cut" if torn else "is missing"
        if volumes.ids():
            _log.warning("%s %s: rebuilding it from the volumes", directory / INDEX_NAME, why)
        replace_index(fs, directory, volumes, identity.store, map_size=map_size)
    if torn:
        fs.unlink_if_there(unsynced)
    for name in (NEW_INDEX_NAME, _OLD_INDEX_NAME):
        if fs.exists(directory / name):
            fs.remove_tree(directory / name)


def replace_index(
    fs: FileSystem,
    directory: Path,
    volumes: Volumes,
    store: bytes,
    *,
    map_size: int,
    progress: Progress | None = None,
) -> RebuildReport:
    """Rebuilds the index beside the old one and swaps them; a crash at any point leaves a whole one or none."""
    fresh = directory / NEW_INDEX_NAME
    if fs.exists(fresh):
        fs.remove_tree(fresh)
    report = rebuild_index(fs, fresh, volumes, store, map_size=map_size, progress=progress)
    swap_index(fs, directory)
    return report


def swap_index(fs: FileSystem, directory: Path) -> None:
    """Puts the new index in the place of the old one; a crash in between leaves none, which opening rebuilds."""
    fresh = directory / NEW_INDEX_NAME
    fs.sync_directory(fresh)
    current = directory / INDEX_NAME
    old = directory / _OLD_INDEX_NAME
    if fs.exists(old):
        fs.remove_tree(old)
    if fs.exists(current):
        fs.rename(current, old)
    fs.rename(fresh, current)
    fs.sync_directory(directory)
    if fs.exists(old):
        fs.remove_tree(old)


def rebuild(
    path: str | os.PathLike[str],
    *,
    fs: FileSystem = REAL,
    map_size: int = DEFAULT_MAP_SIZE,
    progress: Progress | None = None,
) -> RebuildReport:
    """Makes a new index from the volumes alone. Needs the store alone: Busy while anybody has it open."""
    directory = Path(path).absolute()
    identity = read_identity(fs, directory)
    if identity is None:
        raise StoreNotFound(f"{directory} holds no Cordwood store")
    require_volumes(fs, directory)
    with alone_in(fs, directory):
        volumes = Volumes(fs, directory / VOLUMES_NAME, identity.store, identity.node)
        try:
            return replace_index(fs, directory, volumes, identity.store, map_size=map_size, progress=progress)
        finally:
            volumes.close()


@contextmanager
def alone_in(fs: FileSystem, directory: Path) -> Iterator[None]:
    """Keeps everybody else out of the store: for tools that work on its files. Busy while anybody has it open."""
    _remember_open(directory)
    try:
        lock = take_lock(fs, directory, shared=False)
        try:
            yield
        finally:
            fs.close(lock)
    finally:
        _forget_open(directory)


def shrink_index(
    path: str | os.PathLike[str], *, fs: FileSystem = REAL, map_size: int = DEFAULT_MAP_SIZE
) -> None:
    """Rewrites the index without its free pages, and swaps it in. Needs the store alone: Busy otherwise."""
    directory = Path(path).absolute()
    with alone_in(fs, directory):
        fresh = directory / NEW_INDEX_NAME
        if fs.exists(fresh):
            fs.remove_tree(fresh)
        index = Index(fs, directory / INDEX_NAME, map_size=map_size, sync=True, read_only=False)
        try:
            index.copy_to(fresh)
        finally:
            index.close()
        swap_index(fs, directory)
