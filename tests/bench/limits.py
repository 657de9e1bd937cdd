"""What a large PUT cannot beat on a machine: `bare_put`, and `python -m tests.bench.limits PORT DIRECTORY`.

`bare_put` takes MD5s and appends, side by side, then syncs once: no socket, no checksum but the one of the ETag. The
server does the same with bytes that it receives: each connection has a thread that receives and writes, and one for
the MD5. It knows no S3, keeps nothing and answers 200.

Must not know: Cordwood.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

_MIB = 1 << 20
_BUFFERS = 4


def bare_put(directory: Path, streams: int, size: int) -> tuple[float, float]:
    """Seconds and processor seconds of `streams` bodies of `size` bytes at once."""
    filler = os.urandom(_MIB)
    path = directory / "bare"
    cpu_s = time.process_time()
    began_s = time.perf_counter()
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)

    def digest() -> None:
        md5 = hashlib.md5(usedforsecurity=False)
        for _ in range(size // _MIB):
            md5.update(filler)

    def append(number: int) -> None:
        for at in range(number * size, (number + 1) * size, _MIB):
            os.pwrite(fd, filler, at)

    with ThreadPoolExecutor(2 * streams) as pool:
        running = [pool.submit(digest) for _ in range(streams)]
        running += [pool.submit(append, number) for number in range(streams)]
        for each in running:
            each.result()
    os.fdatasync(fd)
    took_s = time.perf_counter() - began_s
    cpu_s = time.process_time() - cpu_s
    os.close(fd)
    path.unlink()
    return took_s, cpu_s


def _serve(connection: socket.socket, directory: Path) -> None:
    buffers = [memoryview(bytearray(_MIB)) for _ in range(_BUFFERS)]
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection, ThreadPoolExecutor(1) as digests:
        waiting = b""
        while True:
            while b"\r\n\r\n" not in waiting:
                data = connection.recv(4096)
                if not data:
                    return
                waiting += data
            head, _, waiting = waiting.partition(b"\r\n\r\n")
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            left = int(lengths[0].partition(b":")[2])
            path = directory / f"received-{threading.get_ident()}"
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            md5 = hashlib.md5(usedforsecurity=False)
            jobs: list[Future[None]] = []
            at = 0
            while left:
                number = len(jobs)
                if number >= _BUFFERS:
                    jobs[number - _BUFFERS].result()
                view = buffers[number % _BUFFERS][:left]
                have = len(waiting)
                view[:have] = waiting
                waiting = b""
                while have < len(view):
                    have += connection.recv_into(view[have:])
                jobs.append(digests.submit(md5.update, view))
                os.pwrite(fd, view, at)
                at += len(view)
                left -= len(view)
            for job in jobs[-_BUFFERS:]:
                job.result()
            os.fdatasync(fd)
            os.close(fd)
            path.unlink()
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


def main() -> None:
    port, directory = int(sys.argv[1]), Path(sys.argv[2])
    with socket.create_server(("127.0.0.1", port)) as listener:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_serve, args=(connection, directory), daemon=True).start()


if __name__ == "__main__":
    main()
