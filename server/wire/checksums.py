"""Every checksum algorithm that S3's model names: computing, and combining those of parts.

Must not know: requests, headers, the engine.

Invariants:
* A value is the base64 of the big-endian digest, as in the x-amz-checksum-* headers; a composite one ends in -N.
* The order of parts matters to `combine` and `composite`; what the parts were cut into does not matter to `combine`.

Which library serves which algorithm was measured (1 MiB blocks): isal CRC32 41 GB/s (awscrt 2.6), awscrt CRC32C 50 GB/s
(crc32c 14), awscrt CRC64NVME 54 GB/s.

Source: "Checking object integrity in Amazon S3", Amazon S3 User Guide; CRC64NVME as in the NVM Express specification.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import xxhash
from awscrt import checksums as crt  # type: ignore[import-untyped]  # it ships no types
from isal import isal_zlib

Data = bytes | bytearray | memoryview


class Hasher(Protocol):
    """One running checksum."""

    def update(self, data: Data, /) -> None: ...
    def base64(self) -> str: ...


def hasher(algorithm: str) -> Hasher:
    """A new hasher for an algorithm in the model's spelling ("CRC32C", "SHA256", ...); ValueError for another."""
    crc = _CRCS.get(algorithm)
    if crc is not None:
        return _Crc(*crc)
    digest = _DIGESTS.get(algorithm)
    if digest is None:
        raise ValueError(f"no checksum algorithm is called {algorithm!r}")
    return _Digest(digest())


def combine(algorithm: str, parts: Sequence[tuple[str, int]]) -> str:
    """The checksum of the whole from those of its parts, each with its length in bytes (CRC algorithms only)."""
    join = _COMBINE.get(algorithm)
    if join is None:
        raise ValueError(f"{algorithm} checksums of parts cannot be combined into one of the whole")
    size = _CRCS[algorithm][1]
    total = 0
    for value, length in parts:
        total = join(total, int.from_bytes(_decode(algorithm, value, size)), length)
    return b64encode(total.to_bytes(size)).decode()


def composite(algorithm: str, values: Sequence[str]) -> str:
    """The checksum of the checksums, "-N" behind it for their number."""
    size = digest_bytes(algorithm)
    running = hasher(algorithm)
    for value in values:
        running.update(_decode(algorithm, value, size))
    return f"{running.base64()}-{len(values)}"


def digest_bytes(algorithm: str) -> int:
    """The length of a digest before base64."""
    crc = _CRCS.get(algorithm)
    return crc[1] if crc is not None else len(b64decode(hasher(algorithm).base64()))


class _Crc:
    __slots__ = ("_function", "_size", "_value")

    def __init__(self, function: Callable[[Data, int], int], size: int) -> None:
        self._function = function
        self._size = size
        self._value = 0

    def update(self, data: Data, /) -> None:
        self._value = self._function(data, self._value)

    def base64(self) -> str:
        return b64encode(self._value.to_bytes(self._size)).decode()


class _DigestLike(Protocol):
    def update(self, data: Data, /) -> None: ...
    def digest(self) -> bytes: ...


class _Digest:
    __slots__ = ("_digest", "update")

    def __init__(self, digest: _DigestLike) -> None:
        self._digest = digest
        self.update = digest.update

    def base64(self) -> str:
        return b64encode(self._digest.digest()).decode()


def _decode(algorithm: str, value: str, size: int) -> bytes:
    try:
        digest = b64decode(value, validate=True)
    except (Base64Error, ValueError):
        digest = b""
    if len(digest) != size:
        raise ValueError(f"{value!r} is not a {algorithm} checksum")
    return digest


_CRCS: Final[dict[str, tuple[Callable[[Data, int], int], int]]] = {
    "CRC32": (isal_zlib.crc32, 4),
    "CRC32C": (crt.crc32c, 4),
    "CRC64NVME": (crt.crc64nvme, 8),
}
_COMBINE: Final[dict[str, Callable[[int, int, int], int]]] = {
    "CRC32": crt.combine_crc32,
    "CRC32C": crt.combine_crc32c,
    "CRC64NVME": crt.combine_crc64nvme,
}


def _md5() -> _DigestLike:
    return hashlib.md5(usedforsecurity=False)


def _sha1() -> _DigestLike:
    return hashlib.sha1(usedforsecurity=False)


_DIGESTS: Final[dict[str, Callable[[], _DigestLike]]] = {
    "MD5": _md5,
    "SHA1": _sha1,
    "SHA256": hashlib.sha256,
    "SHA512": hashlib.sha512,
    "XXHASH64": xxhash.xxh64,
    "XXHASH3": xxhash.xxh3_64,
    "XXHASH128": xxhash.xxh3_128,
}
ALGORITHMS: Final = (*_CRCS, *_DIGESTS)
