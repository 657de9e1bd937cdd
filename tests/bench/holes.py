"""Would punching holes into volumes give space back sooner than compaction does? `python -m tests.bench.holes DIR`

Half of a file is dead, in extents of one size: once holes are punched where they are, once what lives is copied to
another file and synced, as a compaction does it. Prints both times, for each size.

Must not know: the engine.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path

MIB = 1 << 20
SIZE = 512 * MIB
_KEEP_SIZE_PUNCH_HOLE = 0x01 | 0x02

libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def punch(fd: int, offset: int, length: int) -> None:
    if libc.fallocate(fd, _KEEP_SIZE_PUNCH_HOLE, offset, length):
        raise OSError(ctypes.get_errno(), "fallocate")


def timed(started_s: float, cpu_s: float) -> str:
    return f"{time.monotonic() - started_s:.2f} s ({time.process_time() - cpu_s:.2f} s of processor time)"


def measure(directory: Path, extent: int) -> str:
    source, target = directory / "holes.bin", directory / "copied.bin"
    fd = os.open(source, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    copy = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        block = os.urandom(MIB)
        for offset in range(0, SIZE, MIB):
            os.pwrite(fd, block, offset)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        started_s, cpu_s = time.monotonic(), time.process_time()
        for number, offset in enumerate(range(extent, SIZE, 2 * extent)):
            os.pwrite(copy, os.pread(fd, extent, offset), number * extent)
        os.fsync(copy)
        copied = timed(started_s, cpu_s)
        started_s, cpu_s = time.monotonic(), time.process_time()
        for offset in range(0, SIZE, 2 * extent):
            punch(fd, offset, extent)
        os.fsync(fd)
        punched = timed(started_s, cpu_s)
    finally:
        for each, path in ((fd, source), (copy, target)):
            os.close(each)
            path.unlink()
    return f"{extent >> 10} KiB: {SIZE // 2 // extent} holes {punched}, copying the other half {copied}"


if __name__ == "__main__":
    for size in (64 << 10, MIB, 16 * MIB):
        print(measure(Path(sys.argv[1]), size), flush=True)
