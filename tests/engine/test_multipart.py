"""Multipart uploads: parts that may be replaced, completed without copying a byte, or forgotten altogether."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from cordwood.engine import Conditions, PartInfo, Store, UploadInfo, errors
from tests.engine.support import check_accounts, check_rebuilt, count_types, noise, small


def put_part(store: Store, upload: UploadInfo, number: int, data: bytes, **options: object) -> PartInfo:
    writer = store.part_writer(upload.bucket, upload.key, upload.upload_id, number)
    writer.write(data)
    return writer.commit(**options)  # type: ignore[arg-type]


def complete(store: Store, upload: UploadInfo, parts: list[PartInfo], **options: object) -> object:
    return store.complete_upload(
        upload.bucket,
        upload.key,
        upload.upload_id,
        [(part.number, part.etag) for part in parts],
        **{"min_part_size": 1, **options},  # type: ignore[arg-type]
    )


def test_a_completed_upload_is_one_object_with_everything_that_was_said_at_its_beginning(
    store: Store, path: Path
) -> None:
    upload = store.create_upload(
        "wood",
        "a/k",
        headers={"content-type": "text/plain"},
        metadata={"m": "1"},
        storage_class="STANDARD_IA",
        attrs={"tags": {"a": "b"}},
        checksum_algorithm="CRC32",
        checksum_type="COMPOSITE",
    )
    assert store.head_upload("wood", "a/k", upload.upload_id) == upload
    data = [noise(10_000, 1), noise(5000, 2), b"end"]
    parts = [
        put_part(store, upload, 5 * n + 1, each, checksums={"CRC32": f"{n}"}) for n, each in enumerate(data)
    ]
    info = store.complete_upload(
        "wood",
        "a/k",
        upload.upload_id,
        [(part.number, part.etag) for part in parts],
        min_part_size=1,
        checksums={"CRC32": "x-3"},
        checksum_type="COMPOSITE",
    )
    digests = b"".join(hashlib.md5(each).digest() for each in data)
    assert info.etag == hashlib.md5(digests).hexdigest() + "-3"
    assert (info.size, info.parts_count, info.storage_class) == (15_003, 3, "STANDARD_IA")
    assert (info.headers, info.metadata, info.attrs) == (
        {"content-type": "text/plain"},
        {"m": "1"},
        {"tags": {"a": "b"}},
    )
    assert (info.checksums, info.checksum_type) == ({"CRC32": "x-3"}, "COMPOSITE")
    assert store.head("wood", "a/k") == info
    with store.get("wood", "a/k") as reader:
        assert reader.read() == b"".join(data)
        assert [(part.number, part.size, part.etag, part.checksums) for part in reader.part_sizes()] == [
            (part.number, part.size, part.etag, {"CRC32": f"{n}"}) for n, part in enumerate(parts)
        ]
    for number, each in enumerate(data, 1):
        with store.get("wood", "a/k", part_number=number) as reader:
            assert reader.read() == each
            start = sum(map(len, data[: number - 1]))
            assert reader.content_range == f"bytes {start}-{start + len(each) - 1}/15003"
        assert store.head("wood", "a/k", part_number=number) == info
    for number in (0, 4, -1):
        with pytest.raises(errors.InvalidPart):
            store.get("wood", "a/k", part_number=number)
    with pytest.raises(errors.UploadNotFound):
        store.head_upload("wood", "a/k", upload.upload_id)
    assert store.index_info()["parts"] == store.index_info()["uploads"] == 0
    store.close()
    check_rebuilt(path)


def test_completing_moves_no_byte(store: Store, path: Path) -> None:
    upload = store.create_upload("wood", "k")
    parts = [put_part(store, upload, n, noise(100_000, n)) for n in (1, 2)]
    before = sum(each.stat().st_size for each in (path / "volumes").iterdir())
    complete(store, upload, parts)
    after = sum(each.stat().st_size for each in (path / "volumes").iterdir())
    assert after - before < 50 * 52 + 1000  # a manifest of 50 chunks


def test_an_object_that_was_put_whole_is_its_own_first_part(store: Store) -> None:
    for size in (10, 10_000):
        store.put("wood", "k", noise(size))
        assert store.get("wood", "k", part_number=1).read() == noise(size)
        assert store.get("wood", "k").part_sizes() == []
        with pytest.raises(errors.InvalidPart):
            store.get("wood", "k", part_number=2)


def test_a_part_can_be_replaced_and_only_the_last_one_counts(store: Store, path: Path) -> None:
    upload = store.create_upload("wood", "k")
    put_part(store, upload, 1, noise(20_000, 1))
    put_part(store, upload, 1, noise(30_000, 2))
    part = put_part(store, upload, 1, noise(10_000, 3))
    check_accounts(store)
    assert store.list_parts("wood", "k", upload.upload_id).parts == [part]
    complete(store, upload, [part])
    assert store.get("wood", "k").read() == noise(10_000, 3)
    check_accounts(store)
    store.close()
    check_rebuilt(path)


def test_a_part_replaced_by_the_same_bytes_keeps_its_chunks(store: Store, path: Path) -> None:
    upload = store.create_upload("wood", "k")
    put_part(store, upload, 1, noise(20_000))
    part = put_part(store, upload, 1, noise(20_000))
    check_accounts(store)
    complete(store, upload, [part])
    assert store.get("wood", "k").read() == noise(20_000)
    store.close()
    assert count_types(path)["CHUNK"] == 5
    check_rebuilt(path)


def test_parts_that_are_left_out_of_a_completion_are_released(store: Store, path: Path) -> None:
    upload = store.create_upload("wood", "k")
    parts = [put_part(store, upload, n, noise(9000, n)) for n in (1, 2, 3, 7)]
    complete(store, upload, [parts[1], parts[3]])
    assert store.get("wood", "k").read() == noise(9000, 2) + noise(9000, 7)
    check_accounts(store)
    store.close()
    check_rebuilt(path)


def test_an_aborted_upload_leaves_nothing_and_its_id_is_dead(store: Store, path: Path) -> None:
    store.put("wood", "shared", noise(9000, 1))
    upload = store.create_upload("wood", "k")
    part = put_part(store, upload, 1, noise(9000, 1))
    put_part(store, upload, 2, noise(9000, 2))
    writer = store.part_writer("wood", "k", upload.upload_id, 3)
    writer.write(noise(9000, 3))
    store.abort_upload("wood", "k", upload.upload_id)
    check_accounts(store)
    assert store.get("wood", "shared").read() == noise(9000, 1)
    for call in (
        lambda: store.abort_upload("wood", "k", upload.upload_id),
        lambda: complete(store, upload, [part]),
        lambda: put_part(store, upload, 4, b""),
        lambda: store.list_parts("wood", "k", upload.upload_id),
        writer.commit,
    ):
        with pytest.raises(errors.UploadNotFound):
            call()
    assert store.index_info()["parts"] == 0
    store.close()
    check_rebuilt(path)


def test_bad_part_lists_are_refused_by_name_and_the_upload_goes_on(store: Store) -> None:
    upload = store.create_upload("wood", "k")
    one = put_part(store, upload, 1, noise(100, 1))
    two = put_part(store, upload, 2, noise(5 << 20, 2))
    three = put_part(store, upload, 3, b"")
    good = [(part.number, part.etag) for part in (one, two, three)]

    def attempt(parts: list[tuple[int, str]]) -> None:
        store.complete_upload("wood", "k", upload.upload_id, parts)

    for parts, number in (
        ([], 0),
        ([(1, two.etag)], 1),
        ([good[1], (4, one.etag)], 4),
        ([(1, "")], 1),
        ([(0, one.etag)], 0),
        ([(1 << 40, one.etag)], 1 << 40),
    ):
        with pytest.raises(errors.InvalidPart) as invalid:
            attempt(parts)
        assert invalid.value.part_number == number
    for parts in ([good[1], good[0]], [good[1], good[1]]):
        with pytest.raises(errors.InvalidPartOrder):
            attempt(parts)
    with pytest.raises(errors.EntityTooSmall) as small_part:
        attempt(good)
    assert (small_part.value.part_number, small_part.value.size) == (1, 100)
    assert (small_part.value.minimum, small_part.value.etag) == (5 << 20, one.etag)
    with pytest.raises(errors.KeyNotFound):
        store.get("wood", "k")
    attempt([(2, two.etag.upper()), good[2]])
    assert store.head("wood", "k").size == 5 << 20


def test_the_id_of_another_key_or_bucket_is_not_found(store: Store) -> None:
    store.create_bucket("other")
    upload = store.create_upload("wood", "k")
    part = put_part(store, upload, 1, b"1")
    parts = [(1, part.etag)]
    guessed = upload.upload_id[:16] + "0" * 16
    for bucket, key, upload_id in (
        ("wood", "j", upload.upload_id),
        ("other", "k", upload.upload_id),
        ("wood", "k", guessed),
    ):
        with pytest.raises(errors.UploadNotFound):
            store.head_upload(bucket, key, upload_id)
        with pytest.raises(errors.UploadNotFound):
            store.part_writer(bucket, key, upload_id, 1)
        with pytest.raises(errors.UploadNotFound):
            store.list_parts(bucket, key, upload_id)
        with pytest.raises(errors.UploadNotFound):
            store.complete_upload(bucket, key, upload_id, parts)
        with pytest.raises(errors.UploadNotFound):
            store.abort_upload(bucket, key, upload_id)
    assert store.complete_upload("wood", "k", upload.upload_id, parts).size == 1


def test_completing_again_gives_the_same_answer_while_the_object_is_current(store: Store) -> None:
    upload = store.create_upload("wood", "k")
    part = put_part(store, upload, 1, b"1")
    first = complete(store, upload, [part])
    assert complete(store, upload, [part]) == first
    store.put("wood", "k", b"newer")
    with pytest.raises(errors.UploadNotFound):
        complete(store, upload, [part])
    store.delete("wood", "k")
    with pytest.raises(errors.UploadNotFound):
        complete(store, upload, [part])


def test_threads_that_complete_one_upload_together_all_get_the_one_object(store: Store) -> None:
    upload = store.create_upload("wood", "k")
    part = put_part(store, upload, 1, noise(9000))
    store.update_bucket("wood", versioning="Enabled")
    answers: list[object] = []
    barrier = threading.Barrier(6)

    def work() -> None:
        barrier.wait()
        try:
            answers.append(complete(store, upload, [part]))
        except errors.CordwoodError as error:
            answers.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.list_versions("wood").entries) == 1
    assert answers == [store.head("wood", "k")] * 6
    check_accounts(store)


def test_conditions_of_a_completion_are_decided_at_its_commit(store: Store) -> None:
    upload = store.create_upload("wood", "k")
    part = put_part(store, upload, 1, noise(9000))
    store.put("wood", "k", b"there")
    with pytest.raises(errors.PreconditionFailed):
        complete(store, upload, [part], conditions=Conditions(if_none_match=("*",)))
    assert store.get("wood", "k").read() == b"there"
    assert store.list_parts("wood", "k", upload.upload_id).parts == [part]
    complete(store, upload, [part], conditions=Conditions(if_match=(store.head("wood", "k").etag,)))
    check_accounts(store)


def test_an_upload_of_one_empty_part_is_an_empty_object(store: Store, path: Path) -> None:
    upload = store.create_upload("wood", "k")
    part = put_part(store, upload, 1, b"")
    assert part.etag == hashlib.md5(b"").hexdigest()
    info = store.complete_upload("wood", "k", upload.upload_id, [(1, part.etag)])
    assert (info.size, info.parts_count) == (0, 1)
    with store.get("wood", "k") as reader:
        assert reader.read() == b"" and list(reader.spans()) == []
    assert store.get("wood", "k", part_number=1).read() == b""
    store.close()
    check_rebuilt(path)


def test_uploads_survive_a_reopening_and_a_rebuild_with_their_parts(store: Store, path: Path) -> None:
    upload = store.create_upload("wood", "a/k", metadata={"m": "1"})
    parts = [put_part(store, upload, n, noise(9000, n), checksums={"SHA1": str(n)}) for n in (1, 2)]
    store.close()
    check_rebuilt(path)
    with small(path) as again:
        assert again.head_upload("wood", "a/k", upload.upload_id) == upload
        assert again.list_parts("wood", "a/k", upload.upload_id).parts == parts
        complete(again, upload, parts)
        assert again.get("wood", "a/k").read() == noise(9000, 1) + noise(9000, 2)


def test_parts_are_listed_in_order_page_by_page(store: Store) -> None:
    upload = store.create_upload("wood", "k")
    numbers = [1, 2, 7, 300, 10_000]
    for number in reversed(numbers):
        put_part(store, upload, number, str(number).encode())
    seen: list[int] = []
    after = 0
    while True:
        page = store.list_parts("wood", "k", upload.upload_id, after=after, max_parts=2)
        seen += [part.number for part in page.parts]
        if not page.truncated:
            break
        assert page.next == page.parts[-1].number
        after = page.next
    assert seen == numbers
    assert not store.list_parts("wood", "k", upload.upload_id, max_parts=5).truncated
    assert store.list_parts("wood", "k", upload.upload_id, after=10_000).parts == []


def test_uploads_are_listed_by_key_and_age_with_prefixes_rolled_up_page_by_page(store: Store) -> None:
    names = ["a", "a/b", "a/b", "a/c/d", "b", "b", "b", "c/x", "é/y"]
    made = [(name, store.create_upload("wood", name).upload_id) for name in reversed(names)]
    made.sort(key=lambda item: (item[0].encode(), item[1]))
    for delimiter, prefix in (("", ""), ("/", ""), ("/", "a/"), ("b", ""), ("", "b"), ("//", "")):
        expected: list[str] = []
        for name, upload_id in made:
            if name.startswith(prefix):
                at = name.find(delimiter, len(prefix)) if delimiter else -1
                item = f"{name} {upload_id}" if at < 0 else name[: at + len(delimiter)]
                if item not in expected:
                    expected.append(item)
        for size in (1, 2, 3, 100):
            seen: list[str] = []
            key_marker = upload_marker = ""
            while True:
                page = store.list_uploads(
                    "wood",
                    prefix=prefix,
                    delimiter=delimiter,
                    key_marker=key_marker,
                    upload_id_marker=upload_marker,
                    max_uploads=size,
                )
                assert len(page.uploads) + len(page.prefixes) <= size
                seen += [f"{upload.key} {upload.upload_id}" for upload in page.uploads] + page.prefixes
                if not page.truncated:
                    break
                assert page.next_key_marker is not None
                key_marker, upload_marker = page.next_key_marker, page.next_upload_id_marker or ""
            assert sorted(seen) == sorted(expected)


def test_a_bucket_with_open_uploads_can_be_deleted_and_its_uploads_end(store: Store, path: Path) -> None:
    upload = store.create_upload("wood", "k")
    part = put_part(store, upload, 1, noise(9000))
    store.delete_bucket("wood")
    with pytest.raises(errors.BucketNotFound):
        complete(store, upload, [part])
    store.create_bucket("wood")
    with pytest.raises(errors.UploadNotFound):
        complete(store, upload, [part])
    assert store.index_info()["parts"] == store.index_info()["uploads"] == 0
    check_accounts(store)
    store.close()
    check_rebuilt(path)


def test_part_writers_of_one_upload_work_side_by_side(store: Store, path: Path) -> None:
    upload = store.create_upload("wood", "k")
    parts: dict[int, PartInfo] = {}

    def work(number: int) -> None:
        parts[number] = put_part(store, upload, number, noise(20_000, number % 3))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    complete(store, upload, [parts[number] for number in range(1, 9)])
    assert store.get("wood", "k").read() == b"".join(noise(20_000, number % 3) for number in range(1, 9))
    check_accounts(store)
    store.close()
    check_rebuilt(path)


def test_a_completed_upload_keeps_older_versions_when_the_bucket_says_so(
    versioned: Store, path: Path
) -> None:
    first = versioned.put("wood", "k", b"1")
    upload = versioned.create_upload("wood", "k")
    info = complete(versioned, upload, [put_part(versioned, upload, 1, noise(9000))])
    assert versioned.head("wood", "k") == info
    assert versioned.get("wood", "k", version_id=first.version_id).read() == b"1"
    versioned.close()
    check_rebuilt(path)


def test_a_part_committed_without_waiting_is_there_when_its_outcome_is(store: Store) -> None:
    upload = store.create_upload("wood", "k")
    writer = store.part_writer("wood", "k", upload.upload_id, 1)
    writer.write(noise(9000))
    writer.flush()
    part = writer.commit_async().result(30)
    assert store.list_parts("wood", "k", upload.upload_id).parts == [part]


@pytest.mark.parametrize("same", [True, False])
def test_a_part_replaced_while_its_upload_is_completed_is_noticed(
    store: Store, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    """The part list is read before the commit; the commit sees that it is stale, and the completion starts again."""
    from cordwood.engine import copying

    upload = store.create_upload("wood", "k")
    part = put_part(store, upload, 1, noise(9000, 1))
    original = copying.complete_operation
    replaced = 0

    def racing(*arguments: object) -> object:
        nonlocal replaced
        operation = original(*arguments)  # type: ignore[arg-type]
        if not replaced:
            replaced += 1
            put_part(store, upload, 1, noise(9000, 1 if same else 2))
        return operation

    monkeypatch.setattr(copying, "complete_operation", racing)
    if same:
        complete(store, upload, [part])
        assert store.get("wood", "k").read() == noise(9000, 1)
    else:
        with pytest.raises(errors.InvalidPart):
            complete(store, upload, [part])
        assert store.list("wood").objects == []
    assert replaced == 1
    check_accounts(store)
