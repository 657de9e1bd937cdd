"""Fuzz the multipart/form-data parser.

Invariant: any bytes, whole or cut into pieces, give the same fields, the same file and the same end, or are refused by
an S3 error; what is kept of them stays bounded.

Must not know: the engine, sockets.
"""

from __future__ import annotations

from cordwood.server.wire.errors import S3Error
from cordwood.server.wire.form import MAX_FIELDS_BYTES, FormParser

BOUNDARY = b"b"


def run(data: bytes, step: int) -> tuple[object, ...]:
    """Fields, file name, file and end, or only the fact that it was refused."""
    parser = FormParser(BOUNDARY)
    pieces: list[bytes] = []
    try:
        for at in range(0, len(data), step):
            pieces += parser.feed(data[at : at + step])
        parser.finish()
    except S3Error:
        return ("refused",)
    assert sum(len(value) for value in parser.fields.values()) <= MAX_FIELDS_BYTES
    return (tuple(parser.fields.items()), parser.filename, b"".join(pieces))


def one(data: bytes) -> None:
    """The first byte says how long the pieces are."""
    if not data:
        return
    body = data[1:]
    assert run(body, max(1, len(body))) == run(body, 1 + data[0] % 16)
