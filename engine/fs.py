"""The only module of the engine that touches the operating system's files: the seam for fault injection.

Must not know: records, volumes, the index. It moves bytes and says what the disk said.

Invariants:
* `write_all` returns only when every byte was handed to the kernel; `datasync` only when the kernel says that the
  bytes are stable.
* A name appears under its final path only after its bytes were synced (`publish`), and the directory is synced after.
Tests replace the `FileSystem` object; nothing else in the engine calls `os` for I/O.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

Buffer = bytes | bytearray | memoryview
_IOV_MAX = 1024
FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NOT_CACHED_ERRNOS = frozenset({errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL})  # or the kernel cannot tell
_SYNC_FILE_RANGE_WRITE = (
    2  # of the three flags the one that neither waits nor takes an error away from fdatasync
)
_CANNOT_ERRNOS = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ESPIPE})


@cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """Linux's call of that name, which Python does not have; None elsewhere."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None)
    if function is None:
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    function.restype = ctypes.c_int
    call: Callable[[int, int, int, int], int] = function
    return call


class FileSystem:
    """Plain POSIX calls on file descriptors. Every method raises OSError as the kernel does."""

    def open_read(self, path: Path) -> int:
        """Opens a plain file; OSError for anything else, and a pipe under its name is not waited for."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "is no plain file", str(path))
        return fd

    def open_write(self, path: Path) -> int:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)

    def create(self, path: Path, mode: int = 0o644) -> int:
        """Creates a file that must not be there yet, open for reading and writing."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)

    def open_lock(self, path: Path) -> int:
        """Opens, or makes, an empty file that is there to be locked; a link in its place is not followed."""
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise OSError(errno.ELOOP, "a link stands where a lock belongs; remove it", str(path)) from None

    def close(self, fd: int) -> None:
        os.close(fd)

    def read(self, fd: int, length: int, offset: int) -> bytes:
        """Up to `length` bytes; fewer only at the end of the file."""
        data = os.pread(fd, length, offset)
        if len(data) == length or not data:
            return data
        pieces = [data]
        have = len(data)
        while have < length:
            data = os.pread(fd, length - have, offset + have)
            if not data:
                break
            pieces.append(data)
            have += len(data)
        return b"".join(pieces)

    def read_cached(self, fd: int, length: int, offset: int) -> bytes | None:
        """Like `read`, but None where it would have to wait for the disk."""
        buffer = bytearray(length)
        try:
            got = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno in _NOT_CACHED_ERRNOS:
                return None
            raise
        return bytes(buffer) if got == length else None

    def read_into(self, fd: int, buffer: memoryview, offset: int, *, cached_only: bool = False) -> int:
        """Fills `buffer` as far as the file goes; with `cached_only` as far as that needs no waiting for the disk."""
        if not cached_only:
            have = 0
            while have < len(buffer) and (got := os.preadv(fd, [buffer[have:]], offset + have)):
                have += got
            return have
        try:
            return os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno in _NOT_CACHED_ERRNOS:
                return 0
            raise

    def write_all(self, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
        """Writes all buffers one after another at `offset`; goes on after short writes."""
        for first in range(0, len(buffers), _IOV_MAX):
            group: list[Buffer] = list(buffers[first : first + _IOV_MAX])
            while group:
                written = os.pwritev(fd, group, offset)
                offset += written
                while group and written >= len(group[0]):
                    written -= len(group[0])
                    del group[0]
                if group and written:
                    group[0] = memoryview(group[0])[written:]

    def datasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def begin_datasync(self, fd: int, offset: int, length: int) -> None:
        """Starts to write dirty pages to the disk and does not wait for the end. Says nothing about durability."""
        begin = _sync_file_range()
        if begin is None or not begin(fd, offset, length, _SYNC_FILE_RANGE_WRITE):
            return
        error = ctypes.get_errno()
        if error not in _CANNOT_ERRNOS:
            raise OSError(error, os.strerror(error))

    def drop_cached(self, fd: int, offset: int, length: int) -> None:
        """Asks the kernel to forget synced pages, so that the next read comes from the disk. Best effort."""
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)

    def will_read(self, fd: int, offset: int, length: int) -> None:
        """Asks the kernel to fetch what will soon be read. Best effort, does not wait for it."""
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, offset, length, os.POSIX_FADV_WILLNEED)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def links(self, fd: int) -> int:
        return os.fstat(fd).st_nlink

    def size_of(self, path: Path) -> int | None:
        """Size of a regular file by name; None when there is none."""
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def free_bytes(self, path: Path) -> int:
        """Bytes that this user may still write to the file system of `path`."""
        status = os.statvfs(path)
        return status.f_bavail * status.f_frsize

    def total_bytes(self, path: Path) -> int:
        """The size of the file system of `path`."""
        status = os.statvfs(path)
        return status.f_blocks * status.f_frsize

    def extend(self, path: Path, size: int) -> None:
        """Grows a file to at least `size` bytes with zeros; never shrinks it, never changes a byte that is there."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.posix_fallocate(fd, size - 1, 1)
        finally:
            os.close(fd)

    def is_plain(self, path: Path) -> bool:
        """Whether nothing has this name, or a directory or plain file has, that is no link."""
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:
            return True
        return stat.S_ISREG(mode) or stat.S_ISDIR(mode)

    def lock(self, fd: int, *, shared: bool) -> bool:
        """Takes a flock without waiting; False when somebody else holds it."""
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def lock_wait(self, fd: int) -> None:
        """Takes an exclusive flock, waiting for it."""
        fcntl.flock(fd, fcntl.LOCK_EX)

    def unlock(self, fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_UN)

    def rename(self, source: Path, target: Path) -> None:
        os.rename(source, target)

    def link(self, source: Path, target: Path) -> None:
        """Gives a file a second name; fails when `target` exists."""
        os.link(source, target)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def unlink_if_there(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.unlink(path)

    def make_directory(self, path: Path) -> None:
        os.makedirs(path, exist_ok=True)

    def remove_tree(self, path: Path) -> None:
        """Removes whatever has this name, with all that is below it; a link goes, what it leads to does not."""
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            os.unlink(path)
            return
        for name in self.names(path):
            self.remove_tree(path / name)
        os.rmdir(path)

    def sync_directory(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def names(self, path: Path) -> list[str]:
        """Names in a directory, sorted; empty when it does not exist."""
        try:
            return sorted(os.listdir(path))
        except FileNotFoundError:
            return []

    def exists(self, path: Path) -> bool:
        """Whether anything has this name, be it a link that leads nowhere."""
        return os.path.lexists(path)

    def is_directory(self, path: Path) -> bool:
        return os.path.isdir(path)

    def read_file(self, path: Path) -> bytes:
        fd = self.open_read(path)
        try:
            return self.read(fd, self.size(fd), 0)
        finally:
            self.close(fd)

    def read_small(self, path: Path) -> bytes:
        """A file whose size the kernel does not tell (in /proc)."""
        fd = self.open_read(path)
        try:
            return self.read(fd, 4096, 0)
        finally:
            self.close(fd)

    def publish(self, path: Path, content: bytes, mode: int = 0o644) -> None:
        """Puts a whole small file under its name, atomically and durably; replaces what was there."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self.unlink_if_there(temporary)
        fd = self.create(temporary, mode)
        try:
            try:
                self.write_all(fd, [content], 0)
                self.datasync(fd)
            finally:
                self.close(fd)
            self.rename(temporary, path)
        except BaseException:
            self.unlink_if_there(temporary)
            raise
        self.sync_directory(path.parent)


REAL = FileSystem()
