"""Where records of requests wait until they are delivered: files beside the store, one per process.

Must not know: what a record says, where it goes, the store.
Invariants:
* A record that `append` took survives the death of its process: it is in the page cache of the machine. It is not
  synced, so a power cut may take the last moments.
* A file belongs to the process that holds its lock. Those of the dead are anybody's, and are found by `due`.
* A file goes only after `done`: what was read but not delivered is read again, so a record may be delivered twice.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from cordwood.server.log_record import Entry

log = logging.getLogger("cordwood.log_delivery")

ROTATE_BYTES: Final = 8 << 20
SPOOL: Final = "access-logs"
"""The folder of the spool in the directory of a store."""
_SUFFIX: Final = ".spool"


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Entry).decode


@dataclass(frozen=True, slots=True)
class Spooled:
    """A file that takes no more records; its lock is ours."""

    path: Path
    fd: int


class LogSpool:
    """One per process. `append` is called by the loop, all else by one thread at a time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._current: Spooled | None = None
        self._size_bytes = 0
        self._closed: list[Spooled] = []
        self._has_failed = False

    def append(self, entry: Entry) -> bool:
        """Keep a record. Says whether the file has become so large that it should be delivered before its time."""
        data = _encode(entry) + b"\n"
        with self._lock:
            try:
                if self._current is None:
                    self._current = self._begin()
                    self._size_bytes = 0
                written = os.write(self._current.fd, data)
            except OSError as error:
                self._failed(error.strerror or str(error))
                return False
            if written != len(data):
                self._failed("a record was cut short")
                return False
            self._has_failed = False
            self._size_bytes += written
            return self._size_bytes >= ROTATE_BYTES

    def due(self) -> list[Spooled]:
        """All files that can be delivered now: ours, and those that dead processes left."""
        with self._lock:
            self._set_aside()
            mine, self._closed = self._closed, []
        names = {each.path.name for each in mine}
        try:
            found = sorted(self._directory.iterdir())
        except FileNotFoundError:
            found = []
        for path in found:
            if path.suffix == _SUFFIX and path.name not in names:
                left = self._adopt(path)
                if left is not None:
                    mine.append(left)
        return mine

    @staticmethod
    def read(spooled: Spooled) -> list[Entry]:
        """The records of a file, without a last one that was torn."""
        size = os.fstat(spooled.fd).st_size
        entries = []
        for line in os.pread(spooled.fd, size, 0).splitlines():
            try:
                entries.append(_decode(line))
            except (msgspec.DecodeError, UnicodeDecodeError):
                log.warning("%s: a torn record is left out", spooled.path.name)
        return entries

    @staticmethod
    def done(spooled: Spooled) -> None:
        """Its records are delivered."""
        spooled.path.unlink(missing_ok=True)
        os.close(spooled.fd)

    def keep(self, spooled: Spooled) -> None:
        """Its records could not be delivered now; `due` gives it again."""
        with self._lock:
            self._closed.append(spooled)

    def close(self) -> None:
        """Let go of all files; what is in them is delivered by another process, or by the next."""
        with self._lock:
            self._set_aside()
            for each in self._closed:
                os.close(each.fd)
            self._closed.clear()

    def _begin(self) -> Spooled:
        self._directory.mkdir(mode=0o700, exist_ok=True)
        path = self._directory / f"{time.time_ns():016x}-{os.getpid()}{_SUFFIX}"
        fd = os.open(
            path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        # Between the two calls somebody may have adopted the empty file: then he removes it, and we write to nowhere.
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink == 0:
            os.close(fd)
            return self._begin()
        return Spooled(path, fd)

    def _adopt(self, path: Path) -> Spooled | None:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None  # it was delivered just now, or is nothing that a process of ours made
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        if os.fstat(fd).st_nlink == 0:  # whoever held it has delivered and removed it
            os.close(fd)
            return None
        return Spooled(path, fd)

    def _set_aside(self) -> None:
        if self._current is not None:
            self._closed.append(self._current)
            self._current = None

    def _failed(self, why: str) -> None:
        self._set_aside()  # a torn line ends a file, so that it spoils no other
        if not self._has_failed:
            log.error("access log records are lost: %s", why)
        self._has_failed = True
