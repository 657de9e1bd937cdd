"""The rules of the simulation, written once: what can be done to a store, and what comes of it.

A step is a plain tuple (name, arguments...), so that it can be printed, repeated and sent to another process.
`World.run` does it to the store and to the model and compares the answers. draws.py makes steps.

Must not know: who draws, what a crash is.

Invariant: the same steps from the same start give the same answers, whatever the store's sizes and modes are.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from cordwood.engine import CompactionPolicy, Conditions, CordwoodError, Store, compact, errors, rebuild
from cordwood.engine.compactor import Compactor
from cordwood.engine.core import Core
from cordwood.engine.fs import REAL, FileSystem
from cordwood.engine.reader import ObjectReader
from cordwood.engine.scrub import Scrubber
from tests.engine.support import KeyedCipher
from tests.sim.model import (
    DEFAULT,
    FAR,
    FARTHER,
    PAST,
    Attrs,
    Bucket,
    Model,
    Upload,
    Version,
    etag_of,
    key_of,
)

Step = tuple[Any, ...]

LONG = "x" * 480
BLOCK = bytes(random.Random(0).randbytes(4096))

OPTIONS: dict[str, Any] = {
    "volume_size": 1 << 16,
    "chunk_size": 4096,
    "inline_max": 256,
    "map_size": 1 << 26,
}


def plain(attrs: Attrs) -> dict[str, Any]:
    """Attributes as the store takes them."""
    given = dict(attrs)
    if given.get("retention"):
        mode, until_ms = given["retention"]
        given["retention"] = {"mode": mode, "until_ms": until_ms}
    return given


def frozen(attrs: Mapping[str, Any]) -> Attrs:
    """Attributes as the model keeps them."""
    found = dict(attrs)
    if "retention" in found:
        until_ms = found["retention"]["until_ms"]
        known = until_ms in (PAST, FAR, FARTHER)
        found["retention"] = (found["retention"]["mode"], until_ms if known else DEFAULT)
    return tuple(sorted(found.items()))


def lock_attrs(lock: str | None) -> Any:
    """A bucket's object lock as the store takes it."""
    return {"mode": lock, "days": 400} if lock else None if lock is None else {}


@lru_cache(maxsize=256)
def body(size: int, seed: int) -> bytes:
    """Bytes that share chunks with other bodies now and then: every other block is the same in all."""
    blocks = [
        BLOCK if number % 2 else hashlib.sha256(b"%d %d" % (seed, number)).digest() * 128
        for number in range(-(-size // 4096))
    ]
    return b"".join(blocks)[:size]


def described(seed: int, encrypted_under: int) -> dict[str, str]:
    """The metadata of an object, which name the key that it is encrypted under."""
    key = {"key": str(encrypted_under)} if encrypted_under else {}
    return {"seed": str(seed), **key}


class OnceCipher(KeyedCipher):
    """The cipher of a numbered key. A chunk id that is given to any of them is never given again."""

    def __init__(self, number: int, ids: set[bytes]) -> None:
        super().__init__(b"%032d" % number)
        self._given = ids

    def encrypt(self, chunk_id: bytes, part: int, offset: int, data: bytes | memoryview) -> bytes:
        assert len(chunk_id) == 32 and chunk_id not in self._given, "a chunk id is used for a second chunk"
        self._given.add(chunk_id)
        return super().encrypt(chunk_id, part, offset, data)


def unlocked(reader: ObjectReader, number: int | None = None) -> ObjectReader:
    """The reader with the key of that number, or the one that its object names, if it needs one."""
    number = key_of(reader.info.metadata.items()) if number is None else number
    if reader.info.is_encrypted and number:
        reader.unlock(OnceCipher(number, set()))
    return reader


class World:
    """A store and the model of it, side by side."""

    def __init__(self, path: Path, *, fs: FileSystem = REAL, **options: Any) -> None:
        self.path = path
        self.fs = fs
        self.options = {**OPTIONS, **options}
        self.model = Model()
        self.steps: list[Step] = []
        self.ids: set[bytes] = set()
        self._version: str | None = None  # what the model's half of a step chose, for the store's half
        self._target = ("", "")
        self._parts: list[tuple[int, str]] = []
        self.store = self.open()

    def open(self) -> Store:
        return Store.open(self.path, fs=self.fs, **self.options)

    def close(self) -> None:
        self.store.close()

    def cipher(self, number: int) -> OnceCipher | None:
        return OnceCipher(number, self.ids) if number else None

    # --- one step ---------------------------------------------------------------------------------------------

    def run(self, step: Step, do: Callable[[Step], Any] | None = None) -> None:
        """Does a step to both; AssertionError when they differ. `do` does the store's half elsewhere."""
        self.steps.append(step)
        name, *arguments = step
        wanted, given = self.outcomes(step, do)
        if given != wanted:
            said = f"step {len(self.steps)}: {name}{tuple(arguments)}: {given!r}, not {wanted!r}"
            raise AssertionError(said.replace(LONG, "<480 x>"))

    def outcomes(self, step: Step, do: Callable[[Step], Any] | None = None) -> tuple[Any, Any]:
        """What the model and the store answer. The model is changed only if the store was."""
        name, *arguments = step
        before = self.model.copy() if name in ("batch", "delete_many") else None
        method: Callable[..., Any] = getattr(self, "do_" + name)
        halves = (
            lambda: method(0, *arguments),
            lambda: method(1, *arguments) if do is None else do(step),
        )
        answers: list[Any] = []
        for half in halves:
            try:
                answers.append(half())
            except CordwoodError as error:
                answers.append(type(error))
        if before is not None and isinstance(answers[0], type):
            self.model = before
        return answers[0], answers[1]

    # Each `do_` method is called with 0 for the model, then with 1 for the store.

    def do_create_bucket(self, real: int, name: str, versioning: str, lock: str | None = None) -> None:
        if real:
            attrs = {} if lock is None else {"object_lock": lock_attrs(lock)}
            self.store.create_bucket(name, versioning=versioning, attrs=attrs)
        else:
            self.model.create_bucket(name, versioning, lock)

    def do_delete_bucket(self, real: int, name: str) -> None:
        (self.store if real else self.model).delete_bucket(name)

    def do_set_versioning(self, real: int, name: str, versioning: str) -> None:
        if real:
            self.store.update_bucket(name, versioning=versioning)
        else:
            self.model.set_versioning(name, versioning)

    def do_set_lock(self, real: int, name: str, lock: str | None) -> None:
        if real:
            self.store.update_bucket(name, attrs={"object_lock": lock_attrs(lock)})
        else:
            self.model.set_lock(name, lock)

    def do_put(
        self,
        real: int,
        bucket: str,
        key: str,
        size: int,
        seed: int,
        conditions: Conditions | None = None,
        attrs: Attrs = (),
        encrypted_under: int = 0,
    ) -> Any:
        data = body(size, seed)
        metadata = described(seed, encrypted_under)
        if not real:
            version = Version(data, etag_of(data), metadata=tuple(metadata.items()), attrs=attrs)
            self.model.put(bucket, key, version, conditions)
            return etag_of(data), size
        info = self.store.put(
            bucket,
            key,
            data,
            metadata=metadata,
            conditions=conditions,
            attrs=plain(attrs),
            cipher=self.cipher(encrypted_under),
        )
        self.model.set_id(bucket, key, info.version_id)
        return info.etag, info.size

    def do_attrs(
        self, real: int, bucket: str, key: str, number: int | None, changes: Attrs, bypass: bool
    ) -> Any:
        """Changes attributes: tags, a legal hold, a retention. `number` as in a delete."""
        if not real:
            self._version = self._id_of(bucket, key, number)
            return self.model.change_attrs(bucket, key, self._version, dict(changes), bypass=bypass)
        info = self.store.update_attrs(
            bucket, key, plain(changes), version_id=self._version, bypass_governance=bypass
        )
        return frozen(info.attrs)

    def do_delete(
        self,
        real: int,
        bucket: str,
        key: str,
        number: int | None,
        conditions: Conditions | None = None,
        bypass: bool = False,
    ) -> Any:
        """`number` chooses a version by age, counted from the newest."""
        if not real:
            self._version = self._id_of(bucket, key, number)
            return self.model.delete(bucket, key, self._version, conditions, bypass=bypass)
        done = self.store.delete(
            bucket, key, version_id=self._version, conditions=conditions, bypass_governance=bypass
        )
        if number is None and done.is_delete_marker:
            assert done.version_id is not None
            self.model.set_id(bucket, key, done.version_id)
        return done.is_delete_marker, done.existed

    def _id_of(self, bucket: str, key: str, number: int | None) -> str | None:
        if number is None:
            return None
        versions = self.model.buckets[bucket].keys.get(key, []) if bucket in self.model.buckets else []
        return versions[number].id if number < len(versions) else "0123456789abcdef"

    def do_delete_many(self, real: int, bucket: str, keys: tuple[str, ...]) -> Any:
        if not real:
            if bucket not in self.model.buckets:
                return [errors.BucketNotFound for _ in keys]
            return [self.model.delete(bucket, key) for key in keys]
        done = self.store.delete_many(bucket, [(key, None, None) for key in keys])
        self._learn_ids(bucket, keys)
        return [
            type(each) if isinstance(each, CordwoodError) else (each.is_delete_marker, each.existed)
            for each in done
        ]

    def do_batch(self, real: int, bucket: str, changes: tuple[Any, ...]) -> None:
        """`changes`: (key, size, seed, conditions) puts, (key,) deletes."""
        if real:
            with self.store.batch() as batch:
                for key, *rest in changes:
                    if rest:
                        seed = {"seed": str(rest[1])}
                        batch.put(bucket, key, body(*rest[:2]), metadata=seed, conditions=rest[2])
                    else:
                        batch.delete(bucket, key)
            self._learn_ids(bucket, [key for key, *_ in changes])
            return
        for key, *rest in changes:
            if rest:
                data = body(*rest[:2])
                version = Version(data, etag_of(data), metadata=(("seed", str(rest[1])),))
                self.model.put(bucket, key, version, rest[2])
            else:
                self.model.delete(bucket, key)

    def _learn_ids(self, bucket: str, keys: Sequence[str]) -> None:
        """Takes over the store's names for the versions of some keys."""
        for key in dict.fromkeys(keys):
            versions = self.model.buckets.get(bucket, Bucket()).keys.get(key)
            if versions is not None:
                self._learn(bucket, key, versions)

    def _learn(self, bucket: str, key: str, versions: list[Version]) -> None:
        entries = self.store.list_versions(bucket, prefix=key).entries
        ids = [entry.version_id for entry in entries if entry.key == key]
        assert len(ids) == len(versions), f"{key!r} has {len(ids)} versions, not {len(versions)}"
        versions[:] = [replace(version, id=each) for version, each in zip(versions, ids, strict=True)]

    def learn_all(self) -> None:
        """After a crash: the model's newest step has ids that it was never told."""
        for name, bucket in self.model.buckets.items():
            for key, versions in bucket.keys.items():
                self._learn(name, key, versions)
            listed = [(upload.key, upload.upload_id) for upload in self.store.list_uploads(name).uploads]
            uploads: dict[str, Any] = {}
            for upload_id, upload in sorted(bucket.uploads.items(), key=lambda item: item[0]):
                if (upload.key, upload_id) in listed:
                    uploads[upload_id] = upload
                    listed.remove((upload.key, upload_id))
                else:
                    rest = next(each for key, each in listed if key == upload.key)
                    uploads[rest] = upload
                    listed.remove((upload.key, rest))
            bucket.uploads = uploads

    def do_copy(
        self,
        real: int,
        source: tuple[str, str, int | None],
        bucket: str,
        key: str,
        conditions: Conditions | None,
    ) -> Any:
        if not real:
            self._version = self._id_of(*source)
            found = self.model.copy_object((*source[:2], self._version), bucket, key, conditions)
            return found.etag
        info = self.store.copy(*source[:2], bucket, key, src_version_id=self._version, conditions=conditions)
        self.model.set_id(bucket, key, info.version_id)
        return info.etag

    def do_rename(self, real: int, bucket: str, old: str, new: str) -> None:
        (self.store if real else self.model).rename(bucket, old, new)

    def do_rename_object(
        self,
        real: int,
        bucket: str,
        old: str,
        new: str,
        source: Conditions | None,
        target: Conditions | None,
    ) -> Any:
        if not real:
            return self.model.rename_object(bucket, old, new, source, target).etag
        info = self.store.rename_object(bucket, old, new, source_conditions=source, conditions=target)
        self._learn_ids(bucket, (old, new))
        return info.etag

    def do_append(
        self,
        real: int,
        bucket: str,
        key: str,
        offset: int,
        size: int,
        seed: int,
        conditions: Conditions | None,
    ) -> Any:
        data = body(size, seed)
        if not real:
            now = self.model.append(bucket, key, offset, Version(data, etag_of(data)), conditions)
            return now.etag, len(now.data)
        info = self.store.append(bucket, key, data, offset=offset, conditions=conditions)
        self.model.set_id(bucket, key, info.version_id)
        return info.etag, info.size

    # --- multipart --------------------------------------------------------------------------------------------

    def do_create_upload(
        self, real: int, bucket: str, key: str, seed: int, attrs: Attrs = (), encrypted_under: int = 0
    ) -> None:
        metadata = described(seed, encrypted_under)
        if not real:
            self.model.bucket(bucket)
            self.model.check_lockable(bucket, attrs)
            upload = Upload(key, metadata=tuple(metadata.items()), attrs=attrs)
            self.model.bucket(bucket).uploads["new"] = upload
            return
        info = self.store.create_upload(bucket, key, metadata=metadata, attrs=plain(attrs))
        self.model.set_upload_id(bucket, info.upload_id)

    def _upload(self, bucket: str, number: int) -> tuple[str, str]:
        """(key, upload id) of one of the open uploads, or of none."""
        found = self.model.buckets.get(bucket)
        uploads = sorted(found.uploads.items(), key=lambda item: item[0]) if found else []
        if not uploads:
            return "a", "0" * 32
        upload_id, upload = uploads[number % len(uploads)]
        return upload.key, upload_id

    def do_put_part(self, real: int, bucket: str, number: int, part: int, size: int, seed: int) -> Any:
        data = body(size, seed)
        if not real:
            self._target = self._upload(bucket, number)
            self.model.upload(bucket, *self._target).parts[part] = data
            return etag_of(data), size
        return self._write_part(bucket, part, data)

    def _write_part(self, bucket: str, part: int, data: bytes) -> tuple[str, int]:
        upload = self.store.head_upload(bucket, *self._target)
        cipher = self.cipher(key_of(upload.metadata.items()))
        writer = self.store.part_writer(bucket, *self._target, part, cipher=cipher)
        writer.write(data)
        info = writer.commit()
        return info.etag, info.size

    def do_copy_part(
        self,
        real: int,
        bucket: str,
        number: int,
        part: int,
        source: tuple[str, str],
        range: tuple[int, int] | None,
    ) -> Any:
        if not real:
            self._target = self._upload(bucket, number)
            upload = self.model.upload(bucket, *self._target)
            data = self.model.find(*source).data
            if range is not None:
                if range[0] >= len(data) or range[1] < range[0]:
                    raise errors.InvalidRange(len(data))
                data = data[range[0] : range[1] + 1]
            upload.parts[part] = data
            return etag_of(data), len(data)
        upload_metadata = self.store.head_upload(bucket, *self._target).metadata
        with self.store.get(*source, range=range) as reader:
            if reader.info.is_encrypted or key_of(upload_metadata.items()):  # as the server does it
                return self._write_part(bucket, part, unlocked(reader).read())
        info = self.store.copy_part(bucket, *self._target, part, *source, range=range)
        return info.etag, info.size

    def do_complete(self, real: int, bucket: str, number: int, leave_out: int) -> Any:
        """Completes with all parts but one (`leave_out` chooses it; a large number leaves out none)."""
        if not real:
            self._target = key, upload_id = self._upload(bucket, number)
            self._parts = [(1, "0" * 32)]
            upload = self.model.upload(bucket, key, upload_id)
            chosen = [part for at, part in enumerate(sorted(upload.parts)) if at != leave_out]
            self._parts = [(part, etag_of(upload.parts[part])) for part in chosen]
            self.model.complete(bucket, key, upload_id, self._parts)
            return self.model.find(bucket, key).etag
        info = self.store.complete_upload(bucket, *self._target, self._parts, min_part_size=0)
        self.model.set_id(bucket, self._target[0], info.version_id)
        return info.etag

    def do_abort(self, real: int, bucket: str, number: int) -> None:
        if not real:
            self._target = self._upload(bucket, number)
            self.model.upload(bucket, *self._target)
            del self.model.bucket(bucket).uploads[self._target[1]]
            return
        self.store.abort_upload(bucket, *self._target)

    # --- reading ----------------------------------------------------------------------------------------------

    def do_get(
        self,
        real: int,
        bucket: str,
        key: str,
        number: int | None,
        range: tuple[int | None, int | None] | None,
        tried_key: int | None = None,
    ) -> Any:
        """`tried_key`: the key that an encrypted object is read with (0: none), unless it is the right one."""
        if not real:
            self._version = self._id_of(bucket, key, number)
            found = self.model.find(bucket, key, self._version)
            data = found.data
            if range is not None:
                first, last = range
                if first is None:
                    assert last is not None
                    first, last = max(0, len(data) - last), len(data) - 1 if last else -1
                if first >= len(data) or (last is not None and last < first):
                    raise errors.InvalidRange(len(data))
                data = data[first : None if last is None else last + 1]
            if found.key and tried_key not in (None, found.key):
                if not tried_key:
                    raise errors.InvalidState("no key")
                if data or not found.parts:  # empty parts have no chunk that could refuse a key
                    raise errors.Corrupt("another key")
            return data, found.etag, found.id, dict(found.metadata), found.attrs
        with self.store.get(bucket, key, version_id=self._version, range=range) as reader:
            info = reader.info
            return (
                unlocked(reader, tried_key).read(),
                info.etag,
                info.version_id,
                dict(info.metadata),
                frozen(info.attrs),
            )

    def do_list(self, real: int, bucket: str, prefix: str, delimiter: str, page: int) -> Any:
        if not real:
            return self.model.list_keys(bucket, prefix, delimiter)
        keys: list[str] = []
        prefixes: list[str] = []
        after = ""
        while True:
            found = self.store.list(
                bucket, prefix=prefix, delimiter=delimiter, start_after=after, max_keys=page
            )
            assert len(found.objects) + len(found.prefixes) <= page
            keys += [entry.key for entry in found.objects]
            prefixes += found.prefixes
            if not found.truncated:
                return keys, prefixes
            assert found.next is not None and found.next.encode() > after.encode(), "a page goes back"
            after = found.next

    def do_list_versions(self, real: int, bucket: str, prefix: str, delimiter: str, page: int) -> Any:
        if not real:
            return self.model.list_versions(bucket, prefix, delimiter)
        entries: list[tuple[str, str]] = []
        prefixes: list[str] = []
        markers: dict[str, str] = {}
        while True:
            found = self.store.list_versions(
                bucket, prefix=prefix, delimiter=delimiter, max_keys=page, **markers
            )
            assert len(found.entries) + len(found.prefixes) <= page
            entries += [(entry.key, entry.version_id) for entry in found.entries]
            prefixes += found.prefixes
            assert len(set(entries)) == len(entries) and len(set(prefixes)) == len(prefixes), (
                "a page goes back"
            )
            if not found.truncated:
                return entries, prefixes
            assert found.next_key_marker is not None
            markers = {
                "key_marker": found.next_key_marker,
                "version_id_marker": found.next_version_id_marker or "",
            }

    # --- maintenance ------------------------------------------------------------------------------------------

    def do_reopen(self, real: int, changed: tuple[tuple[str, Any], ...] = ()) -> None:
        """Closes and opens again, with other sizes or modes."""
        if real:
            before = self.store.logical_dump()
            self.store.close()
            self.options |= dict(changed)
            self.store = self.open()
            assert self.store.logical_dump() == before

    def do_rebuild(self, real: int) -> None:
        if real:
            before = self.store.logical_dump()
            self.store.close()
            rebuild(self.path, fs=self.fs, map_size=self.options["map_size"])
            self.store = self.open()
            after = self.store.logical_dump()
            assert after == before, difference(before, after)

    def do_compact(self, real: int) -> None:
        """All volumes with anything dead in them, while the store is open."""
        if real:
            self._compact(self.store._core)

    def do_compact_alone(self, real: int) -> None:
        if real:
            self.store.close()
            report = compact(self.path, self._policy(), fs=self.fs, map_size=self.options["map_size"])
            assert not report.lost and not report.quarantined and not report.kept, report
            self.store = self.open()

    def _policy(self) -> CompactionPolicy:
        return CompactionPolicy(full=True, grace_s=0, volume_size=self.options["volume_size"])

    def _compact(self, core: Core) -> None:
        report = Compactor(core, self._policy()).run()
        assert not report.lost and not report.quarantined
        assert not report.kept, f"something dead keeps its volume: {report.kept}"

    def do_scrub(self, real: int) -> None:
        """Everything that was written reads as it was written."""
        if real:
            assert not Scrubber(self.store._core).run_cycle().bad

    def do_check(self, real: int) -> Any:
        return observe(self.store) if real else self.model.observe()


def difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Where two dumps differ, in words short enough to read."""
    words = []
    for name, old in before.items():
        new = after[name]
        if isinstance(old, list | dict) and old != new:
            old = list(old.items()) if isinstance(old, dict) else old
            new = list(new.items()) if isinstance(new, dict) else new
            words.append(
                f"{name}: lost {[each for each in old if each not in new][:3]}, "
                f"gained {[each for each in new if each not in old][:3]}"
            )
        elif old != new:
            words.append(f"{name}: {old!r} became {new!r}")
    return "; ".join(words)


def observe(store: Store) -> dict[str, Any]:
    """Everything that a client can see, by reading all of it; listings must agree with reads on the way."""
    seen: dict[str, Any] = {}
    for bucket in store.list_buckets():
        name = bucket.name
        keys: dict[str, list[Version]] = {}
        latest: set[str] = set()
        for entry in store.list_versions(name, max_keys=1 << 20).entries:
            null = entry.version_id == "null"
            assert entry.is_latest == (entry.key not in keys)
            if entry.is_latest and not entry.is_delete_marker:
                latest.add(entry.key)
            if entry.is_delete_marker:
                version = Version(marker=True, null=null)
            else:
                with store.get(name, entry.key, version_id=entry.version_id) as reader:
                    info, data = reader.info, unlocked(reader).read()
                    assert (info.size, info.etag) == (entry.size, entry.etag) and len(data) == entry.size
                    assert info.parts_count or info.etag == etag_of(data)
                    parts = tuple(part.size for part in reader.part_sizes())
                version = Version(
                    data,
                    info.etag,
                    null=null,
                    metadata=tuple(info.metadata.items()),
                    parts=parts,
                    attrs=frozen(info.attrs),
                )
            keys.setdefault(entry.key, []).append(version)
        assert {entry.key for entry in store.list(name, max_keys=1 << 20).objects} == latest
        for key in latest:
            head = store.head(name, key)
            assert (head.etag, frozen(head.attrs)) == (keys[key][0].etag, keys[key][0].attrs)
        uploads = []
        for upload in store.list_uploads(name).uploads:
            numbers = store.list_parts(name, upload.key, upload.upload_id).parts
            found = tuple((part.number, part.etag) for part in numbers)
            uploads.append((upload.key, tuple(upload.metadata.items()), frozen(upload.attrs), found))
        lock = bucket.attrs.get("object_lock")
        seen[name] = (
            bucket.versioning,
            None if lock is None else lock.get("mode", ""),
            {key: tuple(each) for key, each in keys.items()},
            sorted(uploads),
        )
    return seen
