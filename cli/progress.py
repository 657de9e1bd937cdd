"""What is shown while files move: a bar on a terminal, lines or JSON elsewhere.

Must not know: how anything is copied. Invariants: the bar goes to stderr, so that stdout can be piped; rich is imported
only when a bar is really shown.
"""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING

from cordwood.cli.jobs import Done, Job
from cordwood.cli.output import human_size, print_json, printable, warn
from cordwood.cli.uri import S3Uri

if TYPE_CHECKING:
    from rich.progress import Progress

_SHOW_AFTER_S = 0.3  # what is done sooner needs no bar
_DRAW_EVERY_S = 0.1


class Report:
    """A `Listener`. Each finished job is a line when `is_verbose`, a JSON object when `as_json`."""

    def __init__(self, *, verb: str, as_json: bool, is_verbose: bool, is_quiet: bool, is_many: bool) -> None:
        self._verb = verb
        self._as_json = as_json
        self._is_verbose = is_verbose and not is_quiet
        self._is_quiet = is_quiet
        self._is_many = is_many
        self._wants_bar = sys.stderr.isatty() and not is_quiet and not as_json
        self._lock = threading.Lock()
        self._began_s = time.monotonic()
        self._files = self._bytes = self._total_files = self._total_bytes = 0
        self._bar: Progress | None = None
        self._drawn_s = 0.0

    def __enter__(self) -> Report:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if kind is None and self._is_many and not self._is_quiet and not self._as_json:
            took_s = max(time.monotonic() - self._began_s, 1e-6)
            noun = "object" if self._files == 1 else "objects"
            speed = human_size(self._bytes / took_s)
            print(
                f"{self._verb}: {self._files} {noun}, {human_size(self._bytes)} in {took_s:.1f} s ({speed}/s)",
                file=sys.stderr,
            )

    # --- Listener -----------------------------------------------------------------------------------------

    def planned(self, job: Job) -> None:
        with self._lock:
            self._total_files += 1
            self._total_bytes += job.size
            self._draw()

    def advanced(self, size: int) -> None:
        with self._lock:
            self._bytes += size
            self._draw()

    def done(self, done: Done) -> None:
        with self._lock:
            self._files += 1
            self._draw()
            if self._as_json:
                print_json(
                    {
                        self._verb: str(done.job.source),
                        "to": str(done.job.to),
                        "size": done.job.size,
                        "etag": done.etag,
                        "verified": done.verified,
                    }
                )
            elif self._is_verbose:
                self._print(f"{self._verb}: {done.job.source} -> {done.job.to}")

    def renamed(self, source: S3Uri, to: S3Uri) -> None:
        """A whole folder, in one step: nobody has counted what lies below it."""
        self._is_many = False
        if self._as_json:
            print_json({self._verb: str(source), "to": str(to), "all_below": True})
        elif not self._is_quiet:
            print(
                f"{self._verb}: all below {printable(str(source))} -> {printable(str(to))}", file=sys.stderr
            )

    def failed(self, what: str, error: str) -> None:
        with self._lock:
            text = error if what in error else f"{what}: {error}"
            if self._bar is not None:
                self._bar.console.print(
                    f"cordwood: {printable(text)}", markup=False, highlight=False, soft_wrap=True
                )
            else:
                warn(printable(text))

    # --- drawing ------------------------------------------------------------------------------------------

    def _print(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
        else:
            print(printable(line))

    def _draw(self) -> None:
        if not self._wants_bar:
            return
        now_s = time.monotonic()
        took_s = now_s - self._began_s
        if took_s < _SHOW_AFTER_S or now_s - self._drawn_s < _DRAW_EVERY_S:
            return
        self._drawn_s = now_s
        if self._bar is None:
            self._bar = _make_bar()
            self._task = self._bar.add_task(self._verb, total=None, pace="")
            self._bar.start()
        # The bar's own speed starts anew whenever the total grows, which it does while the plan is being made.
        speed = self._bytes / took_s
        left_s = (self._total_bytes - self._bytes) / speed if speed else 0.0
        self._bar.update(
            self._task,
            completed=self._bytes,
            total=max(self._total_bytes, 1),
            description=f"{self._verb} {self._files}/{self._total_files}",
            pace=f"{human_size(speed)}/s  {int(left_s // 60)}:{int(left_s % 60):02d} left",
        )


def _make_bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TextColumn("{task.fields[pace]}"),
        console=Console(stderr=True),
        transient=True,
    )
