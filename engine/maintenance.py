"""Keeping a store in shape: compaction and abandoned uploads, beside a running server or alone on the directory.

Must not know: settings files, processes, how progress is shown.

Invariants:
* `Maintenance` opens the store like any other process; what it does is safe beside all of them.
* `compact` needs the store alone: Busy while anybody has it open.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from cordwood.engine import opening
from cordwood.engine.clock import milliseconds
from cordwood.engine.compactor import CompactionPolicy, CompactionReport, Compactor, Progress
from cordwood.engine.core import Core
from cordwood.engine.errors import CordwoodError, StoreNotFound
from cordwood.engine.fs import REAL, FileSystem
from cordwood.engine.rows import UploadRow
from cordwood.engine.scrub import Scrubber, ScrubStatus, read_status
from cordwood.engine.uploads import AbortUpload, upload_id_of

_log = logging.getLogger("cordwood.compaction")


class Maintenance:
    """A store opened for maintenance, as a context manager."""

    def __init__(self, path: Path, core: Core, session: opening.Session) -> None:
        self.path = path
        self._core = core
        self._session = session

    @property
    def opened(self) -> tuple[Core, opening.Session]:
        """The open parts, for `Store.beside`."""
        return self._core, self._session

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        durability: str = "strict",
        volume_size: int = 1 << 30,
        map_size: int = opening.DEFAULT_MAP_SIZE,
        fs: FileSystem = REAL,
    ) -> Maintenance:
        """Opens a store that exists already, beside whoever else has it open."""
        options = opening.Options(
            create=False, strict=durability == "strict", volume_size=volume_size, map_size=map_size
        )
        directory = Path(path).absolute()
        return cls(directory, *opening.open_store(fs, directory, options))

    def __enter__(self) -> Maintenance:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._session.close()

    def compact(
        self,
        policy: CompactionPolicy,
        *,
        progress: Progress | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> CompactionReport:
        """One compaction run; returns what it did. Busy when another process compacts this store."""
        return Compactor(self._core, policy, progress=progress, should_stop=should_stop).run()

    def abort_abandoned(self, age_s: float, *, dry_run: bool = False) -> list[str]:
        """Aborts multipart uploads in which nothing happened for `age_s` seconds; returns their ids."""
        return abort_abandoned(self._core, age_s, dry_run=dry_run)

    def scrubber(self, *, rate_bytes_s: int = 0, should_stop: Callable[[], bool] | None = None) -> Scrubber:
        """The background reader of this store, at the place where it last stopped."""
        return Scrubber(self._core, rate_bytes_s=rate_bytes_s, should_stop=should_stop)

    def release_removed(self) -> int:
        """Lets go of the files of volumes that were removed, so that their space comes back."""
        return self._core.volumes.forget_unlinked()


def abort_abandoned(core: Core, age_s: float, *, dry_run: bool = False) -> list[str]:
    """See `Maintenance.abort_abandoned`. The newest of the upload's own time and its parts' counts."""
    before_ms = time.time() * 1000 - age_s * 1000
    abandoned: list[tuple[str, bytes, str]] = []
    with core.index.read() as txn:
        names = {row.head.bucket: row.head.name for row in txn.buckets()}
        for key, packed in txn.items(b"", txn.tables.uploads):
            row = UploadRow.unpack(packed)
            bucket, upload = int.from_bytes(key[:8], "big"), int.from_bytes(key[8:], "big")
            newest = max([row.clock, *(part.clock for _, part in txn.parts(upload))])
            if milliseconds(newest) < before_ms and bucket in names:
                abandoned.append((names[bucket], row.key, upload_id_of(upload, row.secret)))
    aborted = []
    for bucket_name, raw_key, upload_id in abandoned:
        if not dry_run:
            try:
                core.writing()[1].execute(AbortUpload(bucket_name, raw_key, upload_id))
            except CordwoodError as error:
                _log.info("upload %s was not aborted: %s", upload_id, error)
                continue
        aborted.append(upload_id)
    return aborted


def compact(
    path: str | os.PathLike[str],
    policy: CompactionPolicy | None = None,
    *,
    abandoned_after_s: float | None = None,
    shrink_index: bool = True,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
    fs: FileSystem = REAL,
    map_size: int = opening.DEFAULT_MAP_SIZE,
) -> CompactionReport:
    """Compacts a store that nobody has open, its index too. StoreNotFound, Busy, Full, Corrupt.

    `abandoned_after_s` aborts multipart uploads that lay still for so long; None leaves them.
    """
    policy = policy or CompactionPolicy(full=True, grace_s=0)
    directory = Path(path).absolute()
    options = opening.Options(create=False, volume_size=policy.volume_size, map_size=map_size, alone=True)
    core, session = opening.open_store(fs, directory, options)
    try:
        aborted = []
        if abandoned_after_s is not None:
            aborted = abort_abandoned(core, abandoned_after_s, dry_run=policy.dry_run)
            assert core.appender is not None
            core.appender.close()  # so that the volume it went to may be compacted as well
        compactor = Compactor(core, policy, is_alone=True, progress=progress, should_stop=should_stop)
        report = compactor.run()
        report.uploads_aborted = len(aborted)
    finally:
        session.close()
    if shrink_index and not policy.dry_run:
        opening.shrink_index(directory, fs=fs, map_size=map_size)
    return report


def scrub_status(path: str | os.PathLike[str], *, fs: FileSystem = REAL) -> ScrubStatus | None:
    """What the last scrub of a store left; None when there was none. StoreNotFound."""
    directory = Path(path).absolute()
    if opening.read_identity(fs, directory) is None:
        raise StoreNotFound(f"{directory} holds no Cordwood store")
    return read_status(directory, fs)
