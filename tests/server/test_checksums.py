"""Checksums against published vectors, and parts against the whole."""

from __future__ import annotations

import hashlib
import zlib
from base64 import b64decode, b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cordwood.server.wire.checksums import ALGORITHMS, combine, composite, digest_bytes, hasher

CHECK = b"123456789"  # the customary check input of CRC catalogues


def value_of(algorithm: str, data: bytes) -> str:
    running = hasher(algorithm)
    running.update(data)
    return running.base64()


@pytest.mark.parametrize(
    ("algorithm", "data", "hexadecimal"),
    [
        ("CRC32", CHECK, "cbf43926"),
        ("CRC32C", CHECK, "e3069283"),
        ("CRC64NVME", CHECK, "ae8b14860a799888"),
        ("CRC32", b"", "00000000"),
        ("CRC32C", b"\0" * 32, "8a9136aa"),  # RFC 3720 section B.4
        ("CRC32C", b"\xff" * 32, "62a8ab43"),
        ("CRC64NVME", b"\0" * 4096, "6482d367eb22b64e"),  # NVM Express NVM Command Set specification
        ("CRC64NVME", b"\xff" * 4096, "c0ddba7302eca3ac"),
        ("MD5", b"abc", "900150983cd24fb0d6963f7d28e17f72"),
        ("SHA1", b"abc", "a9993e364706816aba3e25717850c26c9cd0d89d"),
        ("SHA256", b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        ("XXHASH64", b"", "ef46db3751d8e999"),
        ("XXHASH3", b"", "2d06800538d394c2"),
        ("XXHASH128", b"", "99aa06d3014798d86001c324468d497f"),
    ],
)
def test_each_algorithm_gives_its_published_value(algorithm: str, data: bytes, hexadecimal: str) -> None:
    assert b64decode(value_of(algorithm, data)).hex() == hexadecimal


def test_sha512_is_sha512() -> None:
    assert value_of("SHA512", b"abc") == b64encode(hashlib.sha512(b"abc").digest()).decode()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_pieces_of_any_kind_add_up(algorithm: str) -> None:
    running = hasher(algorithm)
    running.update(b"12")
    running.update(memoryview(b"x345")[1:])
    running.update(bytearray(b"6789"))
    running.update(b"")
    assert running.base64() == value_of(algorithm, CHECK)
    assert len(b64decode(running.base64())) == digest_bytes(algorithm)


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME"])
@given(parts=st.lists(st.binary(max_size=50), max_size=6))
def test_the_checksums_of_parts_combine_into_that_of_the_whole(algorithm: str, parts: list[bytes]) -> None:
    values = [(value_of(algorithm, part), len(part)) for part in parts]
    assert combine(algorithm, values) == value_of(algorithm, b"".join(parts))


def test_parts_of_many_gigabytes_combine() -> None:
    zeros = [(value_of("CRC32", b"\0" * (1 << 20)), 1 << 20)] * 8
    assert combine("CRC32", zeros) == b64encode(zlib.crc32(b"\0" * (8 << 20)).to_bytes(4)).decode()
    assert combine("CRC64NVME", [("AAAAAAAAAAA=", 5 << 40), (value_of("CRC64NVME", CHECK), 9)])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_composite_is_the_checksum_of_checksums_and_their_number(algorithm: str) -> None:
    values = [value_of(algorithm, part) for part in (b"a", b"b", b"c")]
    digests = b"".join(b64decode(value) for value in values)
    assert composite(algorithm, values) == f"{value_of(algorithm, digests)}-3"


@pytest.mark.parametrize("algorithm", ["SHA1", "SHA256", "MD5", "XXHASH64", "nonsense"])
def test_only_crcs_combine(algorithm: str) -> None:
    with pytest.raises(ValueError):
        combine(algorithm, [])


@pytest.mark.parametrize("name", ["", "crc32", "SHA3", "CRC64"])
def test_an_unknown_algorithm_is_an_error(name: str) -> None:
    with pytest.raises(ValueError):
        hasher(name)


@pytest.mark.parametrize("value", ["", "AAAA", "AAAAAA", "AAAAAA==x", "é", "AAAAAAAAAAA="])
def test_a_value_that_is_no_checksum_is_an_error(value: str) -> None:
    with pytest.raises(ValueError):
        combine("CRC32", [(value, 1)])
    with pytest.raises(ValueError):
        composite("CRC32", [value])
