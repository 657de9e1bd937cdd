"""The open parts of one store, handed together to readers and writers.

Must not know: buckets, keys, what is read or written.

Invariant: a place that came from the index may have been compacted away a moment later; whoever reads by it must be
ready for `Moved` and look it up again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cordwood.engine.announcing import Announce, AnnouncingCommits
from cordwood.engine.appender import Appender
from cordwood.engine.chunks import Verified
from cordwood.engine.commit import Commits, Committer
from cordwood.engine.decoded import Decoded
from cordwood.engine.errors import Corrupt
from cordwood.engine.format import Manifest
from cordwood.engine.fs import FileSystem
from cordwood.engine.health import Health
from cordwood.engine.index import Index
from cordwood.engine.volume import Place, Record, VolumeFile, Volumes

MOVED_RETRIES = 8


class Moved(Exception):
    """The volume of a place is gone. Never leaves the engine."""


@dataclass(slots=True)
class Core:
    """`appender` and `committer` are None in a store that was opened read-only."""

    fs: FileSystem
    index: Index
    volumes: Volumes
    health: Health
    appender: Appender | None
    committer: Committer | None
    chunk_size: int
    inline_max: int
    dedup: bool
    decoded: Decoded
    announce: Announce | None = None
    """What makes the messages about each change; None: changes have none."""
    verified: Verified = field(default_factory=Verified)

    def writing(self) -> tuple[Appender, Commits]:
        """What a writer needs; ReadOnly when the store takes no writes."""
        self.health.check()
        assert self.appender is not None and self.committer is not None  # or health had said why not
        if self.announce is not None:
            return self.appender, AnnouncingCommits(self.committer, self.announce)
        return self.appender, self.committer

    def volume(self, volume: int) -> VolumeFile:
        try:
            return self.volumes.get(volume)
        except FileNotFoundError:
            raise Moved from None

    def read_record(self, place: Place) -> Record:
        record = self.volume(place.volume).read_record(place)
        assert record is not None
        return record


def read_manifest(volumes: Volumes, place: Place) -> Manifest:
    """The chunk list in a record that the index points to right now."""
    try:
        file = volumes.get(place.volume)
    except FileNotFoundError:
        raise Corrupt(f"volume {place.volume} is missing; the index points into it") from None
    record = file.read_record(place)
    assert record is not None and record.body is not None
    return Manifest(record.body, file.where(place.offset))
