"""What encrypts and decrypts the bytes of one object: the engine's whole knowledge of encryption.

Must not know: keys, algorithms, who chose them, HTTP.

Invariants that the engine keeps for whoever implements a Cipher:
* A chunk id that is given to `encrypt` is 256 random bits and was never given before, so a key or nonce that is derived
  from it is never used twice, however often a part is uploaded or a commit repeated.
* Bytes are given to `decrypt` with the chunk id, part number and offset at which they were given to `encrypt`, or they
  were moved there by somebody else: then `decrypt` must refuse.
"""

from __future__ import annotations

from typing import Protocol


class Cipher(Protocol):
    """Made for one object, or for one multipart upload. Used by several threads at once when parts arrive together."""

    @property
    def overhead(self) -> int:
        """Bytes that an encrypted chunk has more than its plaintext, whatever its length; at least 1."""
        ...

    def encrypt(self, chunk_id: bytes, part: int, offset: int, data: bytes | memoryview) -> bytes:
        """`offset` is that of the chunk's first byte within its part; `part` is 0 where nothing is in parts."""
        ...

    def decrypt(self, chunk_id: bytes, part: int, offset: int, data: bytes | memoryview) -> bytes:
        """ValueError for anything that `encrypt` did not make for exactly this place."""
        ...
