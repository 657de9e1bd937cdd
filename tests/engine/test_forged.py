"""Records whose checksums all hold and whose content is nonsense: what only a bug, a newer program or a forger writes.

Whoever meets one raises a named error, reports it or passes it by; a recovery and a rebuild keep all the rest.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cordwood.engine import (
    CompactionPolicy,
    Maintenance,
    Store,
    check,
    check_store,
    compact,
    dump_volume,
    errors,
    measure_store,
    namespace,
    rebuild,
)
from cordwood.engine.errors import CordwoodError
from cordwood.engine.format import (
    HEAD_TYPES,
    Flag,
    Manifest,
    RecordType,
    clock_base,
    encode_chunk_head,
    header_seed,
    pack_record,
)
from cordwood.engine.probe import read_all
from cordwood.engine.rows import VolumeState
from tests.engine.support import SMALL, first_volume, keys_of, noise, small, volume_paths, volumes_of


@pytest.fixture(autouse=True)
def quick(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a log, and without a process for each look at an index that LMDB itself made."""
    caplog.set_level(logging.CRITICAL)
    monkeypatch.setattr(
        check, "probe_index", lambda folder, _size, map_size: read_all(str(folder), map_size) or None
    )


MAP = SMALL["map_size"]
HUGE = (1 << 64) - 1
ID = 1 << 40  # of things that no store has


class Forged(NamedTuple):
    """A record as it is to stand in a volume. `later` is added to the store's clock; the rest is as in a header."""

    type: int
    head: bytes
    body: bytes = b""
    flags: int = 0
    later: int = 1
    durable: int = 4096


class Known(NamedTuple):
    """Ids of a store that a forger would like to know."""

    bucket: int
    directory: int
    upload: int
    version: int
    chunk: bytes


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Known]:
    """A store with something of each kind; copy it before touching it."""
    path = tmp_path_factory.mktemp("origin") / "store"
    with small(path) as store:
        store.create_bucket("wood", versioning="Enabled")
        store.put("wood", "d/small", b"small")
        store.put("wood", "d/small", b"small again")
        store.put("wood", "d/large", noise(9000))
        store.update_attrs("wood", "d/large", {"n": 1})
        upload = store.create_upload("wood", "d/parted").upload_id
        writer = store.part_writer("wood", "d/parted", upload, 1)
        writer.write(noise(6000, 2))
        writer.commit()
        dump = store.logical_dump()
        bucket = dump["buckets"][0][1].bucket
        known = Known(
            bucket,
            int.from_bytes(dump["directories"][0][0], "big"),
            int(upload[:16], 16),
            next(row.clock for _, key, row in dump["objects"] if key == b"d/large"),
            next(iter(dump["chunks"])),
        )
    return path, known


def forge(path: Path, records: Sequence[Forged]) -> None:
    """Appends records to the first volume, as the next transactions that the index does not know of yet."""
    with small(path, read_only=True) as store, store._core.index.read() as txn:
        clock = txn.clock()
    volume = first_volume(path)
    content = volume.read_bytes()
    seed = header_seed(volumes_of(path).get(1).superblock.salt)
    for record in records:
        pieces = pack_record(
            record.type,
            record.flags,
            len(content),
            min(clock + record.later, HUGE),
            record.durable,
            7,
            record.head,
            record.body,
            seed,
            clock_base(clock),
        )
        content += b"".join(bytes(piece) for piece in pieces)
    volume.write_bytes(content)


def packed(*fields: object) -> bytes:
    return msgspec.msgpack.encode(fields)


def object_head(known: Known, **changes: object) -> bytes:
    fields: dict[str, object] = {
        "bucket": known.bucket,
        "directory": known.bucket,
        "name": b"forged",
        "null": False,
        "layout": 0,
        "size": 0,
        "md5": bytes(16),
        "parts_count": 0,
        "storage_class": "STANDARD",
        "headers": {},
        "metadata": {},
        "checksums": {},
        "checksum_type": "",
        "upload": 0,
        "attrs": {},
        "overhead": 0,
    }
    return packed(*{**fields, **changes}.values())


NONSENSE: dict[str, Callable[[Known], Forged]] = {
    "an unknown type": lambda k: Forged(77, packed(1)),
    "no MessagePack": lambda k: Forged(2, b"\xc1"),
    "missing fields": lambda k: Forged(2, packed(k.bucket, k.bucket)),
    "fields of other types": lambda k: Forged(4, packed("x", [], None, 1.5)),
    "arrays without end": lambda k: Forged(9, b"\x91" * 100_000),
    "an unknown layout": lambda k: Forged(2, object_head(k, layout=3)),
    "an unknown storage class": lambda k: Forged(2, object_head(k, storage_class="CELLAR")),
    "an unknown checksum": lambda k: Forged(2, object_head(k, checksums={"CRC8": "AA=="})),
    "an unknown checksum type": lambda k: Forged(2, object_head(k, checksum_type="SOME")),
    "a short MD5": lambda k: Forged(2, object_head(k, md5=b"md5")),
    "a name with a slash": lambda k: Forged(2, object_head(k, name=b"d/")),
    "a name that is too long": lambda k: Forged(2, object_head(k, name=bytes(5000))),
    "too many parts": lambda k: Forged(2, object_head(k, parts_count=70_000)),
    "a negative size": lambda k: Forged(2, object_head(k, size=-1)),
    "a directory id beyond all ids": lambda k: Forged(2, object_head(k, directory=HUGE)),
    "a delete of a negative id": lambda k: Forged(3, packed(k.bucket, -5, b"d/small", 0)),
    "a directory within itself": lambda k: Forged(4, packed(k.bucket, k.directory, k.directory, b"d/")),
    "a root that hangs somewhere": lambda k: Forged(4, packed(k.bucket, k.bucket, k.directory, b"r/")),
    "a directory without slash": lambda k: Forged(4, packed(k.bucket, ID, k.bucket, b"d")),
    "a bucket without name": lambda k: Forged(5, packed(ID, "")),
    "a bucket with a long name": lambda k: Forged(5, packed(ID, "n" * 600)),
    "a bucket in other letters": lambda k: Forged(5, packed(ID, "wäld")),
    "an upload with a short secret": lambda k: Forged(6, packed(k.bucket, ID, b"s", b"key")),
    "part zero": lambda k: Forged(7, packed(k.bucket, k.upload, 0, 1, bytes(16)), Manifest.pack([])),
    "part 70,000": lambda k: Forged(7, packed(k.bucket, k.upload, 70_000, 1, bytes(16)), Manifest.pack([])),
    "a chunk without id": lambda k: Forged(1, b"", b"payload"),
    "a chunk without bytes": lambda k: Forged(1, bytes(32)),
    "a clock beyond all clocks": lambda k: Forged(2, object_head(k), later=HUGE),
    "more durable bytes than there are": lambda k: Forged(2, object_head(k), durable=1 << 40),
}  # fmt: skip

# Of these the head is good, so the object keeps its name.
UNREADABLE: dict[str, Callable[[Known], Forged]] = {
    "a part without manifest": lambda k: Forged(7, packed(k.bucket, k.upload, 2, 1, bytes(16))),
    "a body of another size": lambda k: Forged(2, object_head(k, size=7), b"six"),
    "a list that ends too early": lambda k: Forged(2, object_head(k, layout=1, size=9000), Manifest.pack([])),
    "a manifest that runs backwards": lambda k: Forged(
        7,
        packed(k.bucket, k.upload, 2, 1, bytes(16)),
        b"\x02\0\0\0\0\0\0\0" + bytes(32) + b"\x09" + bytes(19) + bytes(32) + b"\x01" + bytes(19),
    ),
    "a manifest of no bytes": lambda k: Forged(
        2, object_head(k, layout=1, size=5), b"\x01" + bytes(7 + 52)
    ),
    "a manifest with strange parts": lambda k: Forged(
        2, object_head(k, layout=1), b"\0\0\0\0\x02\0\0\0" + b"\x91\x01"
    ),
}  # fmt: skip


def check_what_was_there(store: Store) -> None:
    assert {"d/small", "d/large"} <= set(keys_of(store, "wood"))
    assert store.get("wood", "d/small").read() == b"small again"
    assert store.get("wood", "d/large").read() == noise(9000)
    assert store.head("wood", "d/large").attrs == {"n": 1}
    assert len(store.list_versions("wood", prefix="d/small").entries) == 2


@pytest.mark.parametrize("what", NONSENSE)
def test_a_recovery_and_a_rebuild_pass_by_what_makes_no_sense_and_keep_the_rest(
    origin: tuple[Path, Known], path: Path, what: str
) -> None:
    shutil.copytree(origin[0], path)
    known = origin[1]
    behind = Forged(2, object_head(known, name=b"behind", size=2), b"ok", later=2)
    forge(path, [NONSENSE[what](known), behind])
    with small(path) as store:
        check_what_was_there(store)
        assert store.get("wood", "behind").read() == b"ok"
        with store._core.index.read() as txn:
            row = txn.volume(1)
        assert row is not None and row.state == VolumeState.QUARANTINED
        store.put("wood", "new", noise(5000))
    report = check_store(path, data=True, map_size=MAP)
    assert "damage" in {problem.kind for problem in report.problems}
    assert {problem.kind for problem in report.problems} <= {"damage", "order", "lost"}
    rebuilt = rebuild(path, map_size=MAP)
    assert rebuilt.unreadable and rebuilt.damaged == [1]
    with small(path) as store:
        check_what_was_there(store)
        assert store.get("wood", "behind").read() == b"ok"
        assert store.get("wood", "new").read() == noise(5000)


@pytest.mark.parametrize("what", UNREADABLE)
def test_an_object_whose_chunk_list_makes_no_sense_keeps_its_name_and_says_so(
    origin: tuple[Path, Known], path: Path, what: str
) -> None:
    shutil.copytree(origin[0], path)
    known = origin[1]
    behind = Forged(2, object_head(known, name=b"behind", size=2), b"ok", later=2)
    forge(path, [UNREADABLE[what](known), behind])
    with small(path) as store:
        check_what_was_there(store)
        assert store.get("wood", "behind").read() == b"ok"
        before = store.logical_dump()
        if "forged" in keys_of(store, "wood"):
            with pytest.raises(errors.Corrupt):
                reader = store.get("wood", "forged")
                reader.read()
                reader.part_sizes()
    assert {each.kind for each in check_store(path, data=True, map_size=MAP).problems} <= {"damage", "lost"}
    assert not check_store(path, data=True, map_size=MAP).is_clean
    rebuild(path, map_size=MAP)
    with small(path) as store:
        assert store.logical_dump() == before


def test_a_transaction_keeps_what_can_be_read_of_it(origin: tuple[Path, Known], path: Path) -> None:
    """As a rebuild has it, which knows no transactions but the last."""
    shutil.copytree(origin[0], path)
    known = origin[1]
    good = [
        Forged(2, object_head(known, name=b"%d" % number, size=2), b"ok", flags=Flag.MORE, later=number)
        for number in (1, 2, 3)
    ]
    forge(path, [good[0], Forged(77, b"", flags=Flag.MORE, later=2), good[2], Forged(2, b"\xc1", later=4)])
    with small(path) as store:
        check_what_was_there(store)
        live = [store.get("wood", key).read() for key in ("1", "3")]
    rebuild(path, map_size=MAP)
    with small(path) as store:
        assert live == [store.get("wood", key).read() for key in ("1", "3")] == [b"ok", b"ok"]


def test_directories_in_circles_are_named_and_followed_by_nobody(
    origin: tuple[Path, Known], path: Path
) -> None:
    """Each of these heads makes sense by itself: two that hold each other, and a root below its own directory."""
    shutil.copytree(origin[0], path)
    known = origin[1]
    heads = [(known.bucket, ID, ID + 1, b"a/"), (known.bucket, ID + 1, ID, b"b/")]
    heads += [(ID, known.bucket, known.directory, b"root/")]
    forge(path, [Forged(4, packed(*head), later=number) for number, head in enumerate(heads, 1)])
    with small(path) as store:
        assert store.get("wood", "d/large").read() == noise(9000)
        with store._core.index.read() as txn:
            assert namespace.path_of(txn, known.bucket, ID) == b"?/b/a/"
        with pytest.raises(errors.Corrupt, match="d/root/"):
            keys_of(store, "wood")
    everything(path)


# --- and whatever else a forger may think of ------------------------------------------------------------------------


def everything(path: Path) -> None:
    """Every way to look at a store and to mend it, on a copy each; nothing but named errors comes out of any."""

    def read(store: Store, bucket: str, key: str, **which: Any) -> None:
        store.get(bucket, key, **which).read()

    def use(store: Store) -> None:
        for bucket in store.list_buckets():
            name = bucket.name
            for entry in store.list_versions(name).entries:
                attempt(read, store, name, entry.key, version_id=entry.version_id)
                attempt(read, store, name, entry.key, range=(1, 3))
            for upload in store.list_uploads(name).uploads:
                attempt(store.list_parts, name, upload.key, upload.upload_id)
                attempt(store.abort_upload, name, upload.key, upload.upload_id)
            attempt(store.put, name, "d/new", noise(3000))
            attempt(store.rename, name, "d/", "e/")
            for entry in store.list_versions(name).entries:
                attempt(store.delete, name, entry.key, version_id=entry.version_id)
        attempt(store.logical_dump)

    def opened() -> None:
        with small(path) as store:
            use(store)

    def scrubbed() -> None:
        with Maintenance.open(path, map_size=MAP) as store:
            store.scrubber().run_cycle()

    policy = CompactionPolicy(full=True, grace_s=0, volume_size=1 << 20)
    tools: list[Callable[[], object]] = [
        lambda: [json.dumps(list(dump_volume(each, chunks=True))) for each in volume_paths(path)],
        lambda: check_store(path, data=True, map_size=MAP),
        opened,
        lambda: measure_store(path, map_size=MAP),
        scrubbed,
        lambda: compact(path, policy, map_size=MAP),
        lambda: check_store(path, data=True, repair=True, map_size=MAP),
        lambda: rebuild(path, map_size=MAP),
        opened,
        lambda: compact(path, policy, map_size=MAP),
    ]
    for tool in tools:
        attempt(tool)


def attempt(what: Callable[..., object], *arguments: Any, **named: Any) -> None:
    try:
        what(*arguments, **named)
    except CordwoodError:
        pass
    except OSError as error:
        raise AssertionError("an error of the file system that has no name") from error


NUMBERS = st.sampled_from([0, 1, 2, 3, 7, 40_000, ID, 1 << 62, (1 << 63) - 1, 1 << 63, HUGE, -1])
BYTES = st.sampled_from([b"", b"d/", b"small", b"large", b"forged", b"a/b", bytes(600), bytes(2000), b"\xff"])
STRINGS = st.sampled_from(["", "wood", "STANDARD", "CRC32", "FULL_OBJECT", "Enabled", "x", "x" * 600, "ä\0"])
MAPS = st.sampled_from(
    [
        {},
        {"CRC32": "AAAAAA=="},
        {"hold": True},
        {"retention": {"mode": "GOVERNANCE", "until_ms": 1 << 62}},
        {"retention": {"mode": ["x"], "until_ms": -1}},
        {"object_lock": {"mode": "COMPLIANCE"}},
        {"object_lock": 5},
        {"n": [None, 1.5, {b"x": b"\xff", 7: msgspec.msgpack.Ext(1, b"")}]},
    ]
)  # fmt: skip
ANYTHING = st.one_of(NUMBERS, BYTES, STRINGS, MAPS, st.sampled_from([None, True, [], 1.5]))
OF_TYPE: dict[object, st.SearchStrategy[Any]] = {
    int: NUMBERS,
    bytes: BYTES,
    str: STRINGS,
    bool: st.booleans(),
}


@st.composite
def forged(draw: st.DrawFn, known: Known) -> Forged:
    type_ = draw(st.sampled_from([1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 0, 200]))
    if type_ not in HEAD_TYPES:
        payload = draw(BYTES)
        head = draw(st.sampled_from([b"", bytes(36), encode_chunk_head(known.chunk, payload)[0]]))
        return Forged(type_, head, payload, later=draw(st.integers(1, 9)))
    values: list[object] = []
    for field in msgspec.structs.fields(HEAD_TYPES[type_]):
        kind = field.type
        strategy = OF_TYPE.get(getattr(kind, "__origin__", kind), MAPS)
        if field.name in Known._fields:
            strategy = st.one_of(st.just(getattr(known, field.name)), strategy)
        elif field.name == "parent":
            strategy = st.sampled_from([known.bucket, known.directory, ID])
        elif field.name == "layout":
            strategy = st.integers(0, 3)
        elif field.name == "md5":
            strategy = st.just(bytes(16))
        elif field.name == "secret":
            strategy = st.just(bytes(8))
        values.append(draw(ANYTHING) if draw(st.integers(0, 40)) == 0 else draw(strategy))
    values = values[: draw(st.integers(0, len(values)))] if draw(st.integers(0, 9)) == 0 else values
    entry = st.tuples(
        st.sampled_from([known.chunk, bytes(32)]), st.integers(0, 9000), st.just(4096), st.just(1)
    )
    manifest = b"".join(
        chunk_id + end.to_bytes(8, "little") + offset.to_bytes(8, "little") + volume.to_bytes(4, "little")
        for chunk_id, end, offset, volume in draw(st.lists(entry, max_size=3))
    )
    count = len(manifest) // 52
    bodies = st.sampled_from([b"", bytes(3), count.to_bytes(4, "little") + bytes(4) + manifest])
    return Forged(
        type_,
        msgspec.msgpack.encode(values),
        draw(bodies),
        draw(st.sampled_from([0, 0, Flag.MORE, 0xFFFF])),
        draw(st.sampled_from([1, 2, 3, 4, 0, HUGE])),
        draw(st.sampled_from([4096, 4096, 0, HUGE])),
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), is_index_there=st.booleans())
def test_whatever_a_record_says_nothing_but_named_errors_come_of_it(
    origin: tuple[Path, Known], data: st.DataObject, is_index_there: bool
) -> None:
    records = data.draw(st.lists(forged(origin[1]), min_size=1, max_size=4))
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as top:
        path = Path(top) / "store"
        shutil.copytree(origin[0], path)
        forge(path, records)
        if not is_index_there:
            shutil.rmtree(path / "index")
        everything(path)


def test_a_default_retention_that_cannot_be_read_refuses_the_write_and_names_itself(
    origin: tuple[Path, Known], path: Path
) -> None:
    """An object without the lock that its bucket asks for would be worse."""
    shutil.copytree(origin[0], path)
    bucket = packed(origin[1].bucket, "wood", "Enabled", False, {"object_lock": {"mode": "COMPLIANCE"}})
    forge(path, [Forged(RecordType.BUCKET, bucket)])
    with small(path) as store:
        with pytest.raises(errors.Corrupt, match="default retention"):
            store.put("wood", "new", b"unlocked")
        check_what_was_there(store)
