"""Deduplication: equal chunks are written once, counted as often as they are named, and never believed blindly."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cordwood.engine import Store, UploadInfo, errors
from cordwood.engine.format import HEADER_SIZE, RecordType
from tests.engine.support import check_accounts, check_rebuilt, count_types, flip, noise, records_of, small


def chunks(path: Path) -> int:
    return count_types(path)["CHUNK"]


def references(store: Store) -> list[int]:
    return sorted(count for _, count in store.logical_dump()["chunks"].values())


def test_equal_chunks_are_written_once_within_an_object_and_between_objects(store: Store, path: Path) -> None:
    one, two = noise(4096, 1), noise(4096, 2)
    store.put("wood", "a", one * 50 + two)
    store.put("wood", "b", two + one)
    store.put("wood", "c", one + b"tail")
    assert store.get("wood", "a").read() == one * 50 + two
    assert store.get("wood", "b").read() == two + one
    assert references(store) == [1, 2, 52]
    store.close()
    assert chunks(path) == 3
    check_rebuilt(path)


def test_without_deduplication_every_chunk_is_written(path: Path) -> None:
    with small(path, dedup=False) as store:
        store.create_bucket("wood")
        store.put("wood", "a", bytes(4096 * 5))
        store.put("wood", "b", bytes(4096 * 5))
        assert references(store) == [1] * 10
        check_accounts(store)
    assert chunks(path) == 10
    check_rebuilt(path)


def test_a_store_may_be_opened_with_and_without_deduplication_in_turn(path: Path) -> None:
    for number, dedup in enumerate([True, False, True, False]):
        with small(path, dedup=dedup) as store:
            if not number:
                store.create_bucket("wood")
            store.put("wood", str(number), noise(9000))
    assert chunks(path) == 3 * 3
    with small(path) as store:
        for number in range(4):
            assert store.get("wood", str(number)).read() == noise(9000)
            store.delete("wood", str(number))
            check_accounts(store)
    check_rebuilt(path)


def test_an_object_small_enough_to_stand_in_its_record_has_no_chunks(store: Store, path: Path) -> None:
    store.put("wood", "a", noise(256))
    store.put("wood", "b", noise(257))
    store.close()
    assert chunks(path) == 1


def test_a_chunk_that_lost_its_last_reference_can_be_used_again_before_it_is_compacted(
    store: Store, path: Path
) -> None:
    store.put("wood", "a", noise(9000))
    store.delete("wood", "a")
    assert references(store) == []
    check_accounts(store)
    store.put("wood", "b", noise(9000))
    assert references(store) == [1, 1, 1]
    assert store.get("wood", "b").read() == noise(9000)
    store.close()
    assert chunks(path) == 3
    check_rebuilt(path)


def test_a_stored_chunk_that_rotted_is_not_shared_but_mended_by_the_next_writer_of_its_bytes(
    store: Store, path: Path
) -> None:
    store.put("wood", "a", noise(9000))
    store.close()
    file, record = next(
        (file, record) for file, record in records_of(path) if record.header.type == RecordType.CHUNK
    )
    flip(file.path, record.header.offset + HEADER_SIZE + record.header.head_length + 100)
    with small(path) as again:
        with pytest.raises(errors.Corrupt):
            again.get("wood", "a").read()
        again.put("wood", "b", noise(9000))
        assert again.get("wood", "b").read() == noise(9000)
        assert again.get("wood", "a").read() == noise(9000)
        check_accounts(again)
    check_rebuilt(path)
    with small(path) as again:
        assert again.get("wood", "a").read() == noise(9000)


def test_writers_of_the_same_new_chunk_at_the_same_time_both_succeed(store: Store, path: Path) -> None:
    writers = [store.writer("wood", f"k{number}") for number in range(4)]
    for writer in writers:
        writer.write(noise(9000))
        writer.flush()
    for writer in writers:
        writer.commit()
    assert references(store) == [4, 4, 4]
    for number in range(4):
        assert store.get("wood", f"k{number}").read() == noise(9000)
    store.close()
    check_rebuilt(path)


def test_threads_that_store_the_same_bytes_again_and_again_keep_the_accounts_true(
    store: Store, path: Path
) -> None:
    def work(number: int) -> None:
        for turn in range(6):
            store.put("wood", f"{number}/{turn % 2}", noise(9000, turn % 3))
            if turn % 3 == 2:
                store.delete("wood", f"{number}/0")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check_accounts(store)
    store.close()
    check_rebuilt(path)


names = st.sampled_from(["a", "b", "d/c", "d/e"])
PAYLOADS = [b"", b"s", *(noise(4096, n) * m for n in range(2) for m in (1, 2)), noise(9000)]
data = st.sampled_from([f"payload {number}" for number in range(len(PAYLOADS))])
events = st.lists(
    st.one_of(
        st.tuples(st.just("put"), names, data),
        st.tuples(st.just("delete"), names, st.just("")),
        st.tuples(st.just("copy"), names, names),
        st.tuples(st.just("rename"), st.sampled_from(["d/", "f/"]), st.sampled_from(["d/", "f/"])),
        st.tuples(st.just("part"), st.integers(1, 3), data),
        st.tuples(st.just("copy part"), st.integers(1, 3), names),
        st.tuples(st.just("complete"), names, st.just("")),
        st.tuples(st.just("abort"), st.just(""), st.just("")),
        st.tuples(st.just("versioning"), st.sampled_from(["Enabled", "Suspended"]), st.just("")),
        st.tuples(st.just("batch"), names, data),
        st.tuples(st.just("reopen"), st.just(""), st.just("")),
    ),
    max_size=30,
)


@given(events=events, dedup=st.booleans())
@settings(max_examples=60, deadline=None)
def test_references_equal_a_recount_after_any_history_and_after_its_rebuild(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, object, object]], dedup: bool
) -> None:
    path = tmp_path_factory.mktemp("dedup") / "store"
    options = {"durability": "relaxed", "dedup": dedup, "volume_size": 1 << 16}
    store = small(path, **options)
    try:
        store.create_bucket("wood")
        upload = store.create_upload("wood", "up")
        for event in events:
            if event[0] == "reopen":
                store.close()
                store = small(path, **options)
                continue
            try:
                upload = step(store, upload, event)
            except errors.NotFound:
                pass
            except errors.DestinationExists:
                pass
            except errors.InvalidArgument:
                pass
            check_accounts(store)
        assert store.read_only_reason is None
    finally:
        store.close()
    check_rebuilt(path)


def bytes_of(name: str) -> bytes:
    return PAYLOADS[int(name.removeprefix("payload "))]


def step(store: Store, upload: UploadInfo, event: tuple[str, object, object]) -> UploadInfo:
    what, one, two = event
    upload_id, key = upload.upload_id, upload.key
    match event:
        case ("put", str(name), str(payload)):
            store.put("wood", name, bytes_of(payload))
        case ("delete", str(name), _):
            store.delete("wood", name)
        case ("copy", str(source), str(target)):
            store.copy("wood", source, "wood", target)
        case ("rename", str(source), str(target)):
            store.rename("wood", source, target)
        case ("part", int(number), str(payload)):
            writer = store.part_writer("wood", key, upload_id, number)
            writer.write(bytes_of(payload))
            writer.commit()
        case ("copy part", int(number), str(name)):
            store.copy_part("wood", key, upload_id, number, "wood", name)
        case ("complete", str(name), _):
            parts = store.list_parts("wood", key, upload_id).parts
            chosen = [(part.number, part.etag) for part in parts[-2:]]
            store.complete_upload("wood", key, upload_id, chosen, min_part_size=0)
            return store.create_upload("wood", name)
        case ("abort", _, _):
            store.abort_upload("wood", key, upload_id)
            return store.create_upload("wood", key)
        case ("versioning", str(mode), _):
            store.update_bucket("wood", versioning=mode)
        case ("batch", str(name), str(payload)):
            with store.batch() as batch:
                batch.put("wood", name, bytes_of(payload))
                batch.put("wood", name + "2", bytes_of(payload))
                batch.delete("wood", name)
        case _:
            raise AssertionError((what, one, two))
    return upload


def test_an_object_whose_chunk_list_rotted_can_still_be_deleted_and_costs_only_space(
    store: Store, path: Path
) -> None:
    store.put("wood", "a", noise(9000))
    (record,) = (record for _, record in records_of(path) if record.header.type == RecordType.OBJECT)
    flip(path / "volumes" / "0000000001.vol", record.header.offset + record.header.length - 20)
    with pytest.raises(errors.Corrupt):
        store.get("wood", "a")
    assert store.delete("wood", "a").existed
    assert store.read_only_reason is None
    assert references(store) == [1, 1, 1]  # kept: nobody knows any more whose they were
    store.put("wood", "b", noise(9000))
    assert store.get("wood", "b").read() == noise(9000)


def test_a_chunk_that_was_compacted_away_under_a_writer_is_a_conflict_and_writing_again_succeeds(
    store: Store,
) -> None:
    store.put("wood", "a", noise(9000))
    writer = store.writer("wood", "b")
    writer.write(noise(9000))
    writer.flush()  # found all its chunks, and relies on them
    store.delete("wood", "a")
    core = store._core
    txn = core.index.begin()
    for chunk_id, _ in list(txn.items(b"", txn.tables.chunks)):
        txn.delete(chunk_id, txn.tables.chunks)
    core.index.commit(txn)
    with pytest.raises(errors.Conflict):
        writer.commit()
    store.put("wood", "b", noise(9000))
    assert store.get("wood", "b").read() == noise(9000)
    check_accounts(store)
