"""Ciphers: what goes through one comes back through it alone, from its own place alone, and the engine needs no key."""

from __future__ import annotations

from pathlib import Path

import pytest

from cordwood.engine import CompactionPolicy, Store, check_store, compact, errors
from cordwood.engine.format import CHUNK_ID_SIZE, ChunkRef
from cordwood.engine.operations import Content, Description, PutObject
from tests.engine.support import KeyedCipher, check_rebuilt, noise, small, volume_paths

CHUNK = 4096


class FlippingCipher(KeyedCipher):
    """What it encrypts has one bit turned around."""

    def encrypt(self, chunk_id: bytes, part: int, offset: int, data: bytes | memoryview) -> bytes:
        encrypted = bytearray(super().encrypt(chunk_id, part, offset, data))
        encrypted[len(encrypted) // 2] ^= 1
        return bytes(encrypted)


def read(store: Store, key: str, cipher: KeyedCipher, **options: object) -> bytes:
    with store.get("wood", key, **options) as reader:  # type: ignore[arg-type]
        reader.unlock(cipher)
        return reader.read()


def chunks_of(store: Store, key: str) -> list[ChunkRef]:
    with store.get("wood", key) as reader:
        return reader.manifest.chunks()


def forge(store: Store, key: str, size: int, chunks: list[ChunkRef]) -> None:
    """An object of chunks that are in the store already, as somebody could make it who writes to the directory."""
    content = Content(size, bytes(16), chunks=chunks, overhead=16)
    _, committer = store._core.writing()
    committer.execute(PutObject("wood", key.encode(), content, Description()))


SIZES = [0, 1, 255, 256, 257, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 5 * CHUNK + 17]


@pytest.mark.parametrize("size", SIZES)
def test_an_encrypted_object_of_any_size_comes_back_whole_and_in_ranges(store: Store, size: int) -> None:
    cipher = KeyedCipher()
    data = noise(size)
    info = store.put("wood", "k", data, cipher=cipher)
    assert (info.size, info.is_encrypted) == (size, True)
    assert store.head("wood", "k").size == store.list("wood").objects[0].size == size
    assert read(store, "k", cipher) == data
    borders = {at + step for at in range(0, size + 1, CHUNK) for step in (-1, 0, 1)} | {size - 1}
    places = sorted(at for at in borders if 0 <= at < size)
    for first in places:
        for last in places:
            if first <= last:
                assert read(store, "k", cipher, range=(first, last)) == data[first : last + 1]
    if size:
        assert read(store, "k", cipher, range=(None, 1)) == data[-1:]


def test_an_encrypted_object_can_be_read_as_a_file(store: Store) -> None:
    cipher = KeyedCipher()
    data = noise(3 * CHUNK + 5)
    store.put("wood", "k", data, cipher=cipher)
    reader = store.get("wood", "k")
    reader.unlock(cipher)
    with reader.as_file() as file:
        file.seek(CHUNK - 2)
        assert file.read(5) == data[CHUNK - 2 : CHUNK + 3]
        assert file.read() == data[CHUNK + 3 :]


@pytest.mark.parametrize("size", [200, 20_000])
def test_no_plain_byte_of_an_encrypted_object_is_in_the_store_directory(
    store: Store, path: Path, size: int
) -> None:
    data = noise(size)
    store.put("wood", "k", data, cipher=KeyedCipher())
    files = [each for each in path.rglob("*") if each.is_file()]
    assert len(files) > 3
    for each in files:
        held = each.read_bytes()
        assert not any(data[at : at + 16] in held for at in range(0, size - 16, 64))


@pytest.mark.parametrize("size", [200, 20_000])
def test_nothing_of_an_encrypted_object_is_handed_out_without_its_cipher(store: Store, size: int) -> None:
    store.put("wood", "k", noise(size), cipher=KeyedCipher())
    upload = store.create_upload("wood", "part")
    with store.get("wood", "k") as reader:
        assert reader.inline is None
        with pytest.raises(errors.InvalidState):
            reader.read()
        with pytest.raises(errors.InvalidState):
            reader.read_at(0, 1)
    with pytest.raises(errors.InvalidState):
        store.copy_part("wood", "part", upload.upload_id, 1, "wood", "k")


def test_an_encrypted_object_has_no_places_in_files_that_could_be_sent(store: Store) -> None:
    cipher = KeyedCipher()
    store.put("wood", "k", noise(20_000), cipher=cipher)
    with store.get("wood", "k") as reader:
        reader.unlock(cipher)
        with pytest.raises(errors.InvalidState):
            reader.spans()


@pytest.mark.parametrize("size", [0, 200, 20_000])
def test_the_wrong_key_reads_nothing(store: Store, size: int) -> None:
    store.put("wood", "k", noise(size), cipher=KeyedCipher())
    if size == 20_000:
        store.put("wood", "long", noise(size), cipher=KeyedCipher())
    with pytest.raises(errors.Corrupt, match="'k'"):
        read(store, "k", KeyedCipher(b"w" * 32))


@pytest.mark.parametrize("size", [200, 20_000])
def test_a_bit_that_was_flipped_with_its_crc_made_right_is_found(store: Store, size: int) -> None:
    store.put("wood", "k", noise(size), cipher=FlippingCipher())
    with pytest.raises(errors.Corrupt, match="were not encrypted for this place"):
        read(store, "k", KeyedCipher())


def test_chunks_that_changed_places_are_refused_and_the_others_are_not(store: Store) -> None:
    cipher = KeyedCipher()
    data = noise(4 * CHUNK)
    store.put("wood", "k", data, cipher=cipher)
    first, second, third, fourth = chunks_of(store, "k")
    forge(store, "k", len(data), [first, third, second, fourth])
    assert read(store, "k", cipher, range=(0, CHUNK - 1)) == data[:CHUNK]
    assert read(store, "k", cipher, range=(3 * CHUNK, None)) == data[3 * CHUNK :]
    with pytest.raises(errors.Corrupt):
        read(store, "k", cipher, range=(CHUNK, CHUNK))
    with pytest.raises(errors.Corrupt):
        read(store, "k", cipher)


def test_a_chunk_of_another_object_is_refused(store: Store) -> None:
    mine, other = KeyedCipher(b"1" * 32), KeyedCipher(b"2" * 32)
    store.put("wood", "a", noise(2 * CHUNK, 1), cipher=mine)
    store.put("wood", "b", noise(2 * CHUNK, 2), cipher=other)
    forge(store, "a", 2 * CHUNK, [chunks_of(store, "a")[0], chunks_of(store, "b")[1]])
    with pytest.raises(errors.Corrupt):
        read(store, "a", mine)


def test_equal_bytes_are_not_shared_and_no_chunk_id_is_used_twice(store: Store) -> None:
    cipher = KeyedCipher()
    data = bytes(4 * CHUNK)
    store.put("wood", "plain", data)
    for key in ("a", "b", "small"):
        store.put("wood", key, data if key != "small" else b"", cipher=cipher)
    ids = [ref.id for key in ("plain", "a", "b") for ref in chunks_of(store, key)]
    assert len(set(ids)) == 1 + 4 + 4
    assert len(cipher.ids) == len(set(cipher.ids)) == 4 + 4 + 1
    assert all(len(each) == CHUNK_ID_SIZE for each in cipher.ids)


def upload_parts(store: Store, cipher: KeyedCipher, parts: dict[int, bytes], key: str = "k") -> None:
    upload = store.create_upload("wood", key)
    listed = []
    for number, data in parts.items():
        for _ in range(2):  # the second replaces the first
            writer = store.part_writer("wood", key, upload.upload_id, number, cipher=cipher)
            writer.write(data)
            part = writer.commit()
        listed.append((number, part.etag))
    store.complete_upload("wood", key, upload.upload_id, listed, min_part_size=0)


PARTS = {2: noise(CHUNK + 1, 2), 3: b"", 5: noise(7, 5), 900: noise(3 * CHUNK, 900), 10_000: noise(1, 9)}


def test_parts_of_odd_sizes_come_back_whole_in_ranges_and_one_by_one(store: Store) -> None:
    cipher = KeyedCipher()
    upload_parts(store, cipher, PARTS)
    data = b"".join(PARTS.values())
    assert store.head("wood", "k").size == len(data)
    assert read(store, "k", cipher) == data
    for number, part in enumerate(PARTS.values(), 1):
        assert read(store, "k", cipher, part_number=number) == part
    starts = [0, CHUNK, CHUNK + 1, CHUNK + 8, 2 * CHUNK + 8, 4 * CHUNK + 8]
    places = sorted({at + step for at in starts for step in (-1, 0, 1) if 0 <= at + step < len(data)})
    for first in places:
        for last in places:
            if first <= last:
                assert read(store, "k", cipher, range=(first, last)) == data[first : last + 1]
    assert len(cipher.ids) == len(set(cipher.ids))


def test_a_chunk_of_the_same_offset_in_another_part_is_refused(store: Store) -> None:
    cipher = KeyedCipher()
    upload = store.create_upload("wood", "k")
    listed = []
    for number in (1, 2):
        writer = store.part_writer("wood", "k", upload.upload_id, 3 - number, cipher=cipher)
        writer.write(noise(CHUNK, number))
        # The bytes of the one number are committed as those of the other.
        writer._number = number
        listed.append((number, writer.commit().etag))
    store.complete_upload("wood", "k", upload.upload_id, listed, min_part_size=0)
    with pytest.raises(errors.Corrupt):
        read(store, "k", cipher, part_number=1)


def test_an_upload_of_encrypted_and_plain_parts_is_not_completed(store: Store) -> None:
    upload = store.create_upload("wood", "k")
    listed = []
    for number, cipher in ((1, None), (2, KeyedCipher())):
        writer = store.part_writer("wood", "k", upload.upload_id, number, cipher=cipher)
        writer.write(noise(CHUNK, number))
        listed.append((number, writer.commit().etag))
    with pytest.raises(errors.InvalidState):
        store.complete_upload("wood", "k", upload.upload_id, listed, min_part_size=0)


@pytest.mark.parametrize("size", [200, 20_000])
def test_a_copy_stays_encrypted_for_the_same_cipher_and_moves_no_chunk(store: Store, size: int) -> None:
    cipher = KeyedCipher()
    data = noise(size)
    store.put("wood", "k", data, cipher=cipher, attrs={"size": 1})
    store.copy("wood", "k", "wood", "copy", attrs=lambda info: {"size": info.size})
    store.copy("wood", "k", "wood", "again")
    info = store.head("wood", "copy")
    assert (info.size, info.is_encrypted, info.attrs) == (size, True, {"size": size})
    assert store.head("wood", "again").attrs == {"size": 1}
    store.delete("wood", "k")
    assert read(store, "copy", cipher) == data
    if size > 256:
        assert chunks_of(store, "copy") == chunks_of(store, "again")


@pytest.mark.parametrize("size", [0, 200, 20_000])
def test_an_encrypted_object_keeps_its_bytes_under_a_new_key_and_takes_no_more(
    store: Store, size: int
) -> None:
    cipher = KeyedCipher()
    data = noise(size)
    store.put("wood", "k", data, cipher=cipher)
    store.rename_object("wood", "k", "new")
    assert read(store, "new", cipher) == data
    with pytest.raises(errors.InvalidState):
        store.append("wood", "new", b"more", offset=size)
    assert read(store, "new", cipher) == data


def test_the_etag_and_attributes_may_be_given_when_the_bytes_have_been_written(store: Store) -> None:
    writer = store.writer("wood", "k", cipher=KeyedCipher(), attrs={"a": 1, "b": 1})
    writer.write(b"text")
    info = writer.commit(attrs={"b": 2}, md5=b"m" * 16)
    assert info == store.head("wood", "k")
    assert (info.etag, info.attrs) == ((b"m" * 16).hex(), {"a": 1, "b": 2})


def test_maintenance_needs_no_key(path: Path) -> None:
    cipher = KeyedCipher()
    kept = {f"k{size}": noise(size) for size in SIZES}
    with small(path, volume_size=1 << 17) as store:
        store.create_bucket("wood")
        for number in range(12):
            store.put("wood", f"gone{number}", noise(20_000, number), cipher=cipher)
        for key, data in kept.items():
            store.put("wood", key, data, cipher=cipher)
        upload_parts(store, cipher, PARTS, "parts")
        for number in range(12):
            store.delete("wood", f"gone{number}")
    before = sum(each.stat().st_size for each in volume_paths(path))
    check_rebuilt(path)
    assert check_store(path, data=True, map_size=1 << 28).is_clean
    compact(path, CompactionPolicy(full=True, grace_s=0, volume_size=1 << 17), map_size=1 << 28)
    assert sum(each.stat().st_size for each in volume_paths(path)) < before - 200_000
    assert check_store(path, data=True, map_size=1 << 28).is_clean
    check_rebuilt(path)
    with small(path) as store:
        for key, data in kept.items():
            assert read(store, key, cipher) == data
        assert read(store, "parts", cipher) == b"".join(PARTS.values())
