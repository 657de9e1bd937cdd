"""Random histories of a store, driven by a seed, with a plain dictionary beside it that says what must be read back.

Must not know: what is done to the store between the steps.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cordwood.engine import Store, errors

SIZES: dict[str, Any] = {
    "volume_size": 1 << 17,
    "chunk_size": 4096,
    "inline_max": 256,
    "map_size": 1 << 28,
}
PLAIN = "plain"
VERSIONED = "versioned"


class History:
    """Puts, deletes, versions, renames, batches, multipart uploads and copies in two buckets."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.random = random.Random(seed)
        self.store = Store.open(path, **SIZES)
        self.contents: dict[tuple[str, str], bytes | None] = {}
        self.uploads: list[tuple[str, str, str]] = []
        self.store.create_bucket(PLAIN)
        self.store.create_bucket(VERSIONED, versioning="Enabled")

    def close(self) -> None:
        self.store.close()

    def reopen(self) -> None:
        self.store = Store.open(self.path, **SIZES)

    def step(self) -> None:
        bucket = self.random.choice([PLAIN, VERSIONED])
        folder = self.random.choice(["a/", "b/", "a/c/", ""])
        key = f"{folder}k{self.random.randrange(20)}"
        rare: list[Callable[[str, str], None]] = [self._delete_version, self._versioning, self._rename]
        rare += [self._batch, self._upload, self._finish_upload, self._copy, self._bucket]
        often: list[Callable[[str, str], None]] = [self._put] * 9
        often += [self._delete] * 5
        often += [self._attributes] * 2
        try:
            self.random.choice(often + rare)(bucket, key)
        except (errors.NotFound, errors.DestinationExists, errors.InvalidArgument, errors.Conflict):
            pass

    def check(self) -> None:
        """Everything that is known reads as it was written; what was deleted is gone."""
        for (bucket, key), expected in self.contents.items():
            try:
                with self.store.get(bucket, key) as reader:
                    assert reader.read() == expected, (bucket, key)
            except errors.KeyNotFound:
                assert expected is None, (bucket, key)

    def _data(self) -> bytes:
        if self.random.random() < 0.3:
            return bytes([self.random.randrange(3)]) * self.random.choice([5000, 9000])
        return self.random.randbytes(self.random.choice([10, 200, 300, 5000, 20000]))

    def _put(self, bucket: str, key: str) -> None:
        data = self._data()
        self.store.put(bucket, key, data)
        self.contents[bucket, key] = data

    def _delete(self, bucket: str, key: str) -> None:
        self.store.delete(bucket, key)
        self.contents[bucket, key] = None

    def _delete_version(self, _bucket: str, _key: str) -> None:
        entries = self.store.list_versions(VERSIONED).entries
        if entries:
            entry = self.random.choice(entries)
            self.store.delete(VERSIONED, entry.key, version_id=entry.version_id)
            self.contents.pop((VERSIONED, entry.key), None)

    def _versioning(self, _bucket: str, _key: str) -> None:
        self.store.update_bucket(VERSIONED, versioning=self.random.choice(["Enabled", "Suspended"]))

    def _rename(self, bucket: str, _key: str) -> None:
        source, target = self.random.sample(["a/", "b/", "a/c/", "z/", "z/q/"], 2)
        self.store.rename(bucket, source, target)
        self.contents = {
            (b, k): data
            for (b, k), data in self.contents.items()
            if b != bucket or not k.startswith((source, target))
        }

    def _batch(self, bucket: str, _key: str) -> None:
        changes: dict[str, bytes | None] = {}
        with self.store.batch() as batch:
            for _ in range(4):
                key = f"{self.random.choice(['a/', 'n/'])}k{self.random.randrange(4)}"
                if self.random.random() < 0.3:
                    batch.delete(bucket, key)
                    changes[key] = None
                else:
                    changes[key] = data = self.random.randbytes(self.random.choice([20, 5000]))
                    batch.put(bucket, key, data)
        self.contents.update({(bucket, key): data for key, data in changes.items()})

    def _upload(self, bucket: str, key: str) -> None:
        upload = self.store.create_upload(bucket, key)
        for number in (1, 2, 2):
            with_bytes = self.store.part_writer(bucket, key, upload.upload_id, number)
            with_bytes.write(self.random.randbytes(6000))
            with_bytes.commit()
        self.uploads.append((bucket, key, upload.upload_id))

    def _finish_upload(self, _bucket: str, _key: str) -> None:
        if not self.uploads:
            return
        bucket, key, upload = self.uploads.pop(self.random.randrange(len(self.uploads)))
        if self.random.random() < 0.4:
            self.store.abort_upload(bucket, key, upload)
            return
        parts = self.store.list_parts(bucket, key, upload).parts
        self.store.complete_upload(
            bucket, key, upload, [(part.number, part.etag) for part in parts], min_part_size=1
        )
        self.contents.pop((bucket, key), None)

    def _copy(self, bucket: str, key: str) -> None:
        objects = self.store.list(bucket).objects
        if objects:
            source = self.random.choice(objects).key
            self.store.copy(bucket, source, bucket, key)
            self.contents[bucket, key] = self.store.get(bucket, source).read()

    def _attributes(self, bucket: str, key: str) -> None:
        versions = [each for each in self.store.list_versions(bucket).entries if each.key == key]
        version_id = self.random.choice(versions).version_id if versions else None
        self.store.update_attrs(bucket, key, {"n": self.random.randrange(9)}, version_id=version_id)

    def _bucket(self, _bucket: str, _key: str) -> None:
        self.store.create_bucket("passing")
        self.store.put("passing", "x/y", b"1")
        self.store.delete("passing", "x/y")
        self.store.delete_bucket("passing")
