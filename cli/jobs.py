"""What is to be copied, what came of it, and who is told.

Must not know: how anything is copied. Values only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cordwood.cli.uri import S3Uri


@dataclass(frozen=True)
class Job:
    """One object or file to be copied. Exactly the kinds cp knows: (Path, S3Uri), (S3Uri, Path), (S3Uri, S3Uri)."""

    source: Path | S3Uri
    to: Path | S3Uri
    size: int
    etag: str = ""
    modified_s: float = 0.0


@dataclass(frozen=True)
class Done:
    job: Job
    etag: str
    verified: str
    """What proves it: a checksum's name, "md5", "etag", "size", or only the endpoint's "answer"."""
    is_renamed: bool = False
    """The source is gone already."""


class Listener(Protocol):
    """Told from any thread."""

    def planned(self, job: Job) -> None: ...
    def advanced(self, size: int) -> None: ...
    def done(self, done: Done) -> None: ...
    def failed(self, what: str, error: str) -> None: ...
