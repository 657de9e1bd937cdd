"""What records are called, and which row points to them."""

from __future__ import annotations

from pathlib import Path

from cordwood.engine import Store
from cordwood.engine.format import RecordType, read_head
from cordwood.engine.liveness import Accounts, Pointer, describe, find_pointer
from cordwood.engine.rows import ChunkRow, VolumeRow
from cordwood.engine.volume import Place
from tests.engine.support import noise, records_of, small


def everything(path: Path) -> None:
    """A store with a record of each type."""
    with small(path) as store:
        store.create_bucket("wood", versioning="Enabled")
        store.put("wood", "d/large", noise(9000))
        store.update_attrs("wood", "d/large", {"n": 1})
        upload = store.create_upload("wood", "d/parted").upload_id
        writer = store.part_writer("wood", "d/parted", upload, 7)
        writer.write(noise(6000, 2))
        writer.commit()
        info = store.put("wood", "gone", b"gone")
        store.delete("wood", "gone", version_id=info.version_id)


def test_every_kind_of_record_has_a_name_that_a_person_can_look_for(path: Path) -> None:
    everything(path)
    names: dict[str, str] = {}
    with small(path) as store, store._core.index.read() as txn:
        for file, record in records_of(path):
            head = read_head(record.header, record.head, "here")
            name = describe(txn, record.header, head)
            names[RecordType(record.header.type).name] = name
            place = Place(file.id, record.header.offset, record.header.length)
            found = find_pointer(txn, record.header, head, place)
            assert (found is None) == (record.header.type == RecordType.DELETE or "'gone'" in name)
    assert names["BUCKET"] == "bucket 'wood'"
    assert names["DIRECTORY"] == "directory record" and names["DELETE"] == "delete record"
    assert names["OBJECT"].startswith("object 'gone' of bucket 'wood', version ")
    assert names["ATTRS"].startswith("attributes of 'd/large' of bucket 'wood', version ")
    assert names["UPLOAD"].endswith("of key 'd/parted'") and names["PART"].startswith("part 7 of upload ")
    assert names["PART"].endswith("in bucket 'wood'") and names["CHUNK"].startswith("chunk ")


def test_what_was_in_a_bucket_that_is_gone_is_named_by_the_number_of_the_bucket(path: Path) -> None:
    with small(path) as store:
        store.create_bucket("wood")
        store.create_bucket("other")
        store.put("wood", "k", b"1")
        store.delete("wood", "k")
        store.delete_bucket("wood")
        with store._core.index.read() as txn:
            named = [
                describe(txn, record.header, read_head(record.header, record.head, "here"))
                for _, record in records_of(path)
                if record.header.type == RecordType.OBJECT
            ]
    assert len(named) == 1 and named[0].startswith("object 'k' of bucket '#0")


def test_a_chunk_that_nothing_refers_to_weighs_nothing_when_it_moves(store: Store) -> None:
    index = store._core.index
    store.put("wood", "k", noise(300))
    with index.read() as txn:
        chunk_id, packed = next(txn.items(b"", txn.tables.chunks))
    header = next(
        record.header for _, record in records_of(store.path) if record.header.type == RecordType.CHUNK
    )
    old, new = Place(1, 4096, 400), Place(2, 4096, 400)
    for references, moved in ((0, 0), (3, 400)):
        row = ChunkRow.unpack(packed)._replace(references=references)
        accounts = Accounts()
        txn = index.begin()
        before = txn.volume(1) or VolumeRow()
        accounts.moved(Pointer(txn.tables.chunks, chunk_id, row), header, old, new)
        accounts.write(txn)
        after = txn.volume(1) or VolumeRow()
        assert before.live_bytes - after.live_bytes == moved
        assert (txn.volume(2) or VolumeRow()).live_bytes == moved
        txn.raw.abort()
