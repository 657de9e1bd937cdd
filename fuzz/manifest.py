"""Fuzz the chunk list of an object, and the heads of records.

Invariant: any bytes are a manifest all of whose chunks and parts can be read, or are refused as Corrupt; the same
holds for the head of each type of record.

Must not know: volumes.
"""

from __future__ import annotations

from cordwood.engine.errors import Corrupt
from cordwood.engine.format import HEAD_TYPES, Manifest, decode_head, encode_head


def one(data: bytes) -> None:
    """The first byte chooses: a manifest, or a type of record."""
    if not data:
        return
    kind = data[0] % (len(HEAD_TYPES) + 1)
    try:
        if kind:
            type_ = sorted(HEAD_TYPES)[kind - 1]
            head = decode_head(type_, data[1:], "fuzz")
            assert decode_head(type_, encode_head(head), "fuzz") == head
            return
        manifest = Manifest(data[1:], "fuzz")
        manifest.check()
    except Corrupt:
        return
    chunks = manifest.chunks()
    assert len(chunks) == manifest.count
    assert [manifest.chunk(number) for number in range(manifest.count)] == chunks
    encrypted = Manifest(data[1:], "fuzz", overhead=16)
    assert encrypted.chunks() == chunks and encrypted.size == manifest.size - 16 * manifest.count
    assert [encrypted.chunk(number) for number in range(encrypted.count)] == chunks
    for position in (0, 1, manifest.size - 1):
        index, start = manifest.find(position)
        assert index == 0 or 0 < index < manifest.count, (index, start)
