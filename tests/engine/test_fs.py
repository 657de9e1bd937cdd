"""The file system's seam on kernels and disks that answer less than they were asked for."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from cordwood.engine import fs
from cordwood.engine.fs import REAL


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """A file of a hundred different bytes."""
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


def test_a_read_goes_on_where_the_kernel_gave_less_than_was_asked_for(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: pread(fd, min(length, 7), offset))
    assert REAL.read(fd, 50, 20) == bytes(range(20, 70))
    assert REAL.read(fd, 50, 80) == bytes(range(80, 100)), "no more than there is"
    assert REAL.read(fd, 50, 100) == b""


def test_a_write_goes_on_where_the_kernel_took_less_than_it_was_given(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwritev = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, group, at: pwritev(fd, [bytes(group[0])[:3]], at))
    REAL.write_all(fd, [b"abcdefgh", b"ij", b"klm"], 4)
    assert os.pread(fd, 13, 4) == b"abcdefghijklm"


@pytest.mark.parametrize("error", [errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL])
def test_what_cannot_be_read_without_waiting_is_said_to_be_not_in_memory(
    fd: int, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    monkeypatch.setattr(os, "preadv", raising(error))
    assert REAL.read_cached(fd, 10, 0) is None
    assert REAL.read_into(fd, memoryview(bytearray(10)), 0, cached_only=True) == 0


def test_an_error_of_the_disk_is_not_taken_for_bytes_that_are_not_in_memory(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "preadv", raising(errno.EIO))
    with pytest.raises(OSError, match="told to"):
        REAL.read_cached(fd, 10, 0)
    with pytest.raises(OSError, match="told to"):
        REAL.read_into(fd, memoryview(bytearray(10)), 0, cached_only=True)


def raising(error: int) -> object:
    def call(*_: object) -> int:
        raise OSError(error, "told to")

    return call


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ESPIPE])
def test_a_kernel_that_cannot_begin_a_sync_is_not_an_error(
    fd: int, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    monkeypatch.setattr(fs, "_sync_file_range", lambda: failing(error))
    REAL.begin_datasync(fd, 0, 10)


def test_a_disk_that_fails_while_a_sync_begins_is_an_error(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fs, "_sync_file_range", lambda: failing(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        REAL.begin_datasync(fd, 0, 10)


def failing(error: int) -> object:
    def call(*_: object) -> int:
        ctypes.set_errno(error)
        return -1

    return call


def test_a_system_without_sync_file_range_does_without(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace())
    find = fs._sync_file_range.__wrapped__
    assert find() is None
    monkeypatch.setattr(fs, "_sync_file_range", find)
    REAL.begin_datasync(fd, 0, 10)
