"""Moving bytes in parallel: small files whole, large ones in parts, with bounded memory and verified ends.

Theory: the main thread plans and submits; worker threads carry out tasks that never wait for each other. A large job is
several tasks and a counter; whoever finishes last completes it (or undoes it, when a part failed). A semaphore bounds
what is submitted, so neither a million files nor an endless stdin piles up.

Must not know: the command line, how progress is drawn.

Invariants:
* A local file appears under its name only complete and verified: it is written beside and renamed.
* A multipart upload that does not complete is aborted, also on Ctrl-C.
* A failure of one job does not stop the others; an endpoint that cannot be reached does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol

from cordwood.cli.client import (
    TRANSPORT_ERRORS,
    BytesPayload,
    FilePayload,
    Payload,
    Unreachable,
    read_exactly,
)
from cordwood.cli.errors import CliError
from cordwood.cli.jobs import Done, Job, Listener
from cordwood.cli.parted import (
    COPY_LARGE_FROM,
    LARGE_FROM,
    PART_SIZE,
    LargeCopy,
    LargeDownload,
    LargeUpload,
    StreamUpload,
)
from cordwood.cli.s3 import S3
from cordwood.cli.streams import StreamDigest, TemporaryFile, stream_object
from cordwood.cli.uri import S3Uri


@dataclass(frozen=True)
class Options:
    jobs: int = 8
    headers: Mapping[str, str] = field(default_factory=dict)
    """For new objects: content-type, x-amz-meta-*, ..."""
    deletes_source: bool = False
    renames: bool = False
    """Between two keys of one bucket, instead of a copy and a delete."""
    guesses_type: bool = True


class _Parted(Protocol):
    """A job in several tasks. `start` and `parts` run in the main thread, `part` anywhere, the rest once."""

    job: Job

    def start(self) -> None: ...
    def parts(self) -> Iterator[Callable[[], None]]: ...
    def finish(self) -> Done: ...
    def undo(self) -> None: ...


class Transfers:
    """Use as a context manager: leaving it waits for everything, or undoes what is unfinished."""

    def __init__(self, s3: S3, options: Options, listener: Listener) -> None:
        self._s3 = s3
        self._options = options
        self._listener = listener
        self._pool = ThreadPoolExecutor(options.jobs, thread_name_prefix="transfer")
        self._room = threading.Semaphore(options.jobs + 1)
        self._lock = threading.Lock()
        self._live: set[_Parted] = set()
        self.failures = 0
        self._is_stopped = False

    def __enter__(self) -> Transfers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._is_stopped = True
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)
        for parted in list(self._live):
            parted.undo()

    def submit(self, job: Job) -> None:
        """Blocks while enough is under way. Raises `Unreachable` once the endpoint was given up."""
        if self._is_stopped:
            raise Unreachable(f"{self._s3.client.target.endpoint} was given up; the rest was not tried")
        self._listener.planned(job)
        if isinstance(job.source, Path):
            if job.size >= LARGE_FROM:
                self._submit_parted(LargeUpload(self._s3, job, self._upload_headers(job), self._listener))
            else:
                self._spawn(job, lambda: self._upload(job))
        elif isinstance(job.to, Path):
            if job.size >= LARGE_FROM:
                self._submit_parted(LargeDownload(self._s3, job, self._listener))
            else:
                self._spawn(job, lambda: self._download(job))
        elif self._options.renames and not _names_a_folder(job):
            self._spawn(job, lambda: self._rename(job))
        elif job.size > COPY_LARGE_FROM:
            self._submit_parted(LargeCopy(self._s3, job, self._options.headers, self._listener))
        else:
            self._spawn(job, lambda: self._copy(job))

    def submit_stream(self, stream: BinaryIO, to: S3Uri) -> None:
        """Store what comes from a pipe, of any length."""
        head = read_exactly(stream, PART_SIZE)
        job = Job(Path("-"), to, len(head))
        self._listener.planned(job)
        if len(head) < PART_SIZE:
            self._spawn(job, lambda: self._put(job, BytesPayload(head), self._options.headers))
        else:
            self._submit_parted(
                StreamUpload(self._s3, job, head, stream, self._options.headers, self._listener)
            )

    # --- running ------------------------------------------------------------------------------------------

    def _spawn(self, job: Job, work: Callable[[], Done]) -> None:
        def task() -> None:
            try:
                self._succeed(work())
            except (CliError, *TRANSPORT_ERRORS) as error:
                self._fail(job, error)

        self._start(task)

    def _start(self, task: Callable[[], None]) -> None:
        self._room.acquire()
        future = self._pool.submit(task)
        future.add_done_callback(self._ended)

    def _ended(self, future: Future[None]) -> None:
        self._room.release()
        if not future.cancelled() and future.exception() is not None:
            self._is_stopped = True  # our own mistake: seen by the next submit, told by the listener
            self._listener.failed("internal error", repr(future.exception()))
            self.failures += 1

    def _submit_parted(self, parted: _Parted) -> None:
        try:
            parted.start()
        except (CliError, *TRANSPORT_ERRORS) as error:
            self._fail(parted.job, error)
            return
        with self._lock:
            self._live.add(parted)
        counter = _Counter()

        def task(part: Callable[[], None]) -> None:
            if counter.error is None and not self._is_stopped:
                try:
                    part()
                except (CliError, *TRANSPORT_ERRORS) as error:
                    counter.error = error
            if counter.down():
                self._end_parted(parted, counter.error)

        try:
            for part in parted.parts():
                if counter.error is not None:
                    break
                counter.up()
                self._start(partial(task, part))
        except (CliError, *TRANSPORT_ERRORS) as error:
            counter.error = error
        # The submitter counts as one, so that the last task cannot be mistaken for the end.
        if counter.down():
            self._end_parted(parted, counter.error)

    def _end_parted(self, parted: _Parted, error: BaseException | None) -> None:
        with self._lock:
            self._live.discard(parted)
        try:
            if error is None and self._is_stopped:
                error = CliError(f"{parted.job.to}: stopped")
            if error is not None:
                raise error
            self._succeed(parted.finish())
        except (CliError, *TRANSPORT_ERRORS) as error:
            parted.undo()
            self._fail(parted.job, error)

    def _succeed(self, done: Done) -> None:
        if self._options.deletes_source and not done.is_renamed:
            self._delete_source(done)
        self._listener.done(done)

    def _fail(self, job: Job, error: BaseException) -> None:
        with self._lock:
            self.failures += 1
        if isinstance(error, Unreachable):
            self._is_stopped = True
        self._listener.failed(str(job.source), str(error))

    def _delete_source(self, done: Done) -> None:
        """Only after the other end was seen to hold as much as was sent."""
        job = done.job
        if isinstance(job.to, S3Uri):
            held = self._s3.head(job.to).get("content-length", "")
            if held != str(job.size):
                raise CliError(f"{job.to} holds {held} bytes instead of {job.size}; {job.source} was kept")
        if isinstance(job.source, S3Uri):
            self._s3.delete(job.source)
            return
        status = job.source.stat()
        if (status.st_size, status.st_mtime) != (job.size, job.modified_s):
            raise CliError(f"{job.source} changed while it was copied; it was kept")
        job.source.unlink()

    # --- small jobs ---------------------------------------------------------------------------------------

    def _upload_headers(self, job: Job) -> Mapping[str, str]:
        if not self._options.guesses_type or "content-type" in self._options.headers:
            return self._options.headers
        import mimetypes

        assert isinstance(job.to, S3Uri)
        kind, encoding = mimetypes.guess_type(job.to.name)
        if kind is None or encoding is not None:
            # "x.tar.gz" is gzip, not tar: without content-encoding its type would be wrong.
            return self._options.headers
        return {"content-type": kind, **self._options.headers}

    def _upload(self, job: Job) -> Done:
        return self._put(job, FilePayload(str(job.source), 0, job.size), self._upload_headers(job))

    def _put(self, job: Job, payload: Payload, headers: Mapping[str, str]) -> Done:
        assert isinstance(job.to, S3Uri)
        etag, verified = self._s3.put(job.to, payload, headers)
        self._listener.advanced(job.size)
        return Done(job, etag, verified)

    def _copy(self, job: Job) -> Done:
        assert isinstance(job.source, S3Uri) and isinstance(job.to, S3Uri)
        headers = dict(self._options.headers)
        if headers:
            headers["x-amz-metadata-directive"] = "REPLACE"
        etag = self._s3.copy(job.source, job.to, headers, if_match=job.etag)
        self._listener.advanced(job.size)
        return Done(job, etag, "etag" if etag == job.etag else "answer")

    def _rename(self, job: Job) -> Done:
        assert isinstance(job.source, S3Uri) and isinstance(job.to, S3Uri)
        self._s3.rename(job.source, job.to, if_match=job.etag)
        self._listener.advanced(job.size)
        return Done(job, job.etag, "answer", is_renamed=True)

    def _download(self, job: Job) -> Done:
        assert isinstance(job.source, S3Uri) and isinstance(job.to, Path)
        temporary = TemporaryFile(job.to)
        try:
            with open(temporary.fd, "wb", closefd=False) as file:
                digest = StreamDigest()

                def take(block: memoryview) -> None:
                    digest.update(block)
                    file.write(block)
                    self._listener.advanced(len(block))

                headers = stream_object(self._s3, job.source, take=take, on_headers=digest.expect)
            verified = digest.check(str(job.source))
            temporary.publish(job.modified_s)
        except BaseException:
            temporary.discard()
            raise
        return Done(job, headers.get("etag", "").strip('"'), verified)


def _names_a_folder(job: Job) -> bool:
    """A rename of this one object would be one of all that lies below it."""
    assert isinstance(job.source, S3Uri) and isinstance(job.to, S3Uri)
    return job.source.is_folder and job.to.is_folder


class _Counter:
    """Counts running tasks; starts at one for the submitter."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 1
        self.error: BaseException | None = None

    def up(self) -> None:
        with self._lock:
            self._count += 1

    def down(self) -> bool:
        """True for the last one."""
        with self._lock:
            self._count -= 1
            return self._count == 0
