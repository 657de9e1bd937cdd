"""GetObjectTorrent: the .torrent file of an object.

Must not know: trackers, peers.
Invariants:
* The same object gives the same `info`, and so the same info hash, at every request.
* Nothing is promised that is not there: without a tracker of the operator's there are no torrents; and the object's own
  address is named as a source over HTTP (BEP 19), for whoever may read there without a signature.

Source: GetObjectTorrent, Amazon S3 API Reference; BEP 3 (the format), BEP 19 (web seeds).
"""

from __future__ import annotations

import hashlib
from typing import Any, Final
from urllib.parse import quote

from cordwood.engine import Store
from cordwood.server.encryption import CUSTOMER, envelope_of
from cordwood.server.handlers.encryption import unlock
from cordwood.server.handlers.request import Request, handles
from cordwood.server.wire.errors import s3_error
from cordwood.server.wire.message import Response

MAX_BYTES: Final = 5 << 30
_LEAST_PIECE_BYTES: Final = 256 << 10
_MOST_PIECES: Final = 1500


@handles("GetObjectTorrent")
async def get_object_torrent(request: Request) -> Response:
    service = request.service
    if not service.torrent_tracker:
        raise s3_error("NoSuchKey", "This server has no tracker, and so no torrents.", key=request.key)
    scheme = "https" if request.is_tls else "http"
    path = request.head.raw_path.decode("latin-1")
    seed = f"{scheme}://{request.head.headers.get('host', '')}{path}"

    def make() -> bytes:
        torrent = {
            b"announce": service.torrent_tracker.encode(),
            b"info": _info(service.store, request),
            b"url-list": seed.encode(),
        }
        return bencoded(torrent)

    body = await service.bridge.run(make)
    name = quote(request.key.rpartition("/")[2] or "object", safe="")
    headers = [
        ("content-type", "application/x-bittorrent"),
        ("content-disposition", f"attachment; filename=\"{name}.torrent\"; filename*=UTF-8''{name}.torrent"),
    ]
    return Response(200, headers, body)


def _info(store: Store, request: Request) -> dict[bytes, Any]:
    """Reads the object once, for the SHA-1 of its pieces. Blocking."""
    with store.get(request.bucket, request.key) as reader:
        info = reader.info
        request.confirm(info)
        if info.size >= MAX_BYTES:
            raise s3_error(
                "InvalidRequest", "Torrents are available only for objects that are smaller than 5 GB."
            )
        envelope = envelope_of(info.attrs)
        if envelope is not None and envelope.kind == CUSTOMER:
            raise s3_error("InvalidRequest", "Torrents are not available for objects under customers' keys.")
        unlock(request, reader)
        piece_bytes = _LEAST_PIECE_BYTES
        while info.size > piece_bytes * _MOST_PIECES:
            piece_bytes *= 2
        pieces: list[bytes] = []
        digest, left = hashlib.sha1(usedforsecurity=False), piece_bytes
        for block in reader:
            view = memoryview(block)
            while view:
                digest.update(view[:left])
                taken = min(left, len(view))
                view, left = view[taken:], left - taken
                if not left:
                    pieces.append(digest.digest())
                    digest, left = hashlib.sha1(usedforsecurity=False), piece_bytes
        if left < piece_bytes:
            pieces.append(digest.digest())
    return {
        b"length": info.size,
        b"name": (request.key.rstrip("/").rpartition("/")[2] or request.bucket).encode(),
        b"piece length": piece_bytes,
        b"pieces": b"".join(pieces),
        b"x-amz-bucket": request.bucket.encode(),
        b"x-amz-key": request.key.encode(),
    }


def bencoded(value: Any) -> bytes:
    """BEP 3's encoding of bytes, integers, lists, and dictionaries with keys of bytes."""
    if isinstance(value, bytes):
        return b"%d:%b" % (len(value), value)
    if isinstance(value, int):
        return b"i%de" % value
    if isinstance(value, list):
        return b"l%be" % b"".join(map(bencoded, value))
    assert isinstance(value, dict)
    return b"d%be" % b"".join(bencoded(name) + bencoded(value[name]) for name in sorted(value))
