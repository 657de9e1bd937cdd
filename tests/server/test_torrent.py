"""The torrent of an object: it describes exactly its bytes, and leads to where they are."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from cordwood.engine import Store
from cordwood.server.handlers.torrent import bencoded
from tests.server.conftest import ALICE, BOB, LiveServer

TRACKER = "http://tracker.test/announce"


@pytest.fixture
def server(store: Store) -> Iterator[LiveServer]:
    live = LiveServer(store, (ALICE, BOB), torrent_tracker=TRACKER)
    live.start()
    yield live
    live.stop()


def decoded(data: bytes, at: int = 0) -> tuple[Any, int]:
    """What a BitTorrent client reads, and where it ends."""
    kind = data[at : at + 1]
    if kind == b"i":
        end = data.index(b"e", at)
        return int(data[at + 1 : end]), end + 1
    if kind in b"ld":
        items = []
        at += 1
        while data[at : at + 1] != b"e":
            item, at = decoded(data, at)
            items.append(item)
        if kind == b"l":
            return items, at + 1
        names = items[::2]
        assert names == sorted(names)
        return dict(zip(names, items[1::2], strict=True)), at + 1
    colon = data.index(b":", at)
    size = int(data[at:colon])
    return data[colon + 1 : colon + 1 + size], colon + 1 + size


def torrent(s3: Any, key: str) -> dict[bytes, Any]:
    body = s3.get_object_torrent(Bucket="bkt", Key=key)["Body"].read()
    found, end = decoded(body)
    assert end == len(body)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("size", [0, 1, 262_144, 262_145, 3_000_000])
def test_a_torrent_lists_the_pieces_of_the_object_and_where_it_is(
    s3: Any, server: LiveServer, size: int
) -> None:
    data = bytes(range(251)) * (size // 251 + 1)
    s3.put_object(Bucket="bkt", Key="a/b c.bin", Body=data[:size])
    found = torrent(s3, "a/b c.bin")
    info = found[b"info"]
    step = info[b"piece length"]
    assert step == 262_144
    pieces = [hashlib.sha1(data[at : min(at + step, size)]).digest() for at in range(0, size, step)]
    assert info[b"pieces"] == b"".join(pieces)
    assert (info[b"length"], info[b"name"]) == (size, b"b c.bin")
    assert (info[b"x-amz-bucket"], info[b"x-amz-key"]) == (b"bkt", b"a/b c.bin")
    assert found[b"announce"] == TRACKER.encode()
    assert found[b"url-list"] == f"{server.url}/bkt/a/b%20c.bin".encode()
    assert bencoded(info) == bencoded(torrent(s3, "a/b c.bin")[b"info"])


def test_without_a_tracker_there_are_no_torrents(store: Store) -> None:
    live = LiveServer(store)
    live.start()
    try:
        s3 = live.client()
        s3.create_bucket(Bucket="bkt")
        s3.put_object(Bucket="bkt", Key="k", Body=b"x")
        with pytest.raises(ClientError) as refused:
            torrent(s3, "k")
        assert refused.value.response["Error"]["Code"] == "NoSuchKey"
    finally:
        live.stop()


def test_who_may_not_read_gets_no_torrent_and_what_is_missing_has_none(s3: Any, server: LiveServer) -> None:
    s3.put_object(Bucket="bkt", Key="k", Body=b"x")
    bob = server.client(BOB)
    for client, key, code in ((bob, "k", "AccessDenied"), (s3, "none", "NoSuchKey")):
        with pytest.raises(ClientError) as refused:
            client.get_object_torrent(Bucket="bkt", Key=key)
        assert refused.value.response["Error"]["Code"] == code
    s3.put_object_acl(Bucket="bkt", Key="k", ACL="public-read")
    assert torrent(bob, "k")[b"info"][b"length"] == 1


def test_the_torrent_of_an_encrypted_object_is_of_its_plain_bytes(s3: Any) -> None:
    s3.put_object(Bucket="bkt", Key="k", Body=b"plain", ServerSideEncryption="AES256")
    info = torrent(s3, "k")[b"info"]
    assert (info[b"length"], info[b"pieces"]) == (5, hashlib.sha1(b"plain").digest())


def test_an_object_under_a_customers_key_has_no_torrent(server: LiveServer, s3: Any) -> None:
    key = base64.b64encode(bytes(32)).decode()
    md5 = base64.b64encode(hashlib.md5(bytes(32)).digest()).decode()
    prefix = "x-amz-server-side-encryption-customer-"
    headers = {f"{prefix}algorithm": "AES256", f"{prefix}key": key, f"{prefix}key-md5": md5}
    assert server.request("PUT", "/bkt/k", b"secret", headers).status == 200
    assert server.request("GET", "/bkt/k?torrent").code == "InvalidRequest"


def test_bencoding_is_that_of_the_specification() -> None:
    value = {b"spam": [b"a", -3], b"cow": 0}
    assert bencoded(value) == b"d3:cowi0e4:spaml1:ai-3eee"
