"""Fuzz key files, and the envelopes of objects that somebody may have changed on the disk.

Invariant: any bytes are a key file, or are refused by one named error whose text holds nothing of a key; any envelope
opens no key but its own, or is refused by one of three named errors.

Must not know: sockets, stores.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from cordwood.engine.errors import Corrupt
from cordwood.server.config import ConfigError
from cordwood.server.encryption import ENVELOPE, CustomerKey, Keys, envelope_of
from cordwood.server.keyring import Key, KeyFile, KeyRing, parse_keys
from cordwood.server.wire.errors import S3Error


class _Ring(KeyFile):
    """A key file that is in memory."""

    def __init__(self, ring: KeyRing) -> None:
        super().__init__(Path("keys"))
        self._held = ring

    def ring(self, *, now: bool = False) -> KeyRing:
        return self._held


_RING = KeyRing([("master", Key(b"m" * 32)), ("billing", Key(b"b" * 32))])
_KEYS = Keys(_Ring(_RING), _Ring(_RING))
_CUSTOMER = CustomerKey(b"c" * 32, "")


def one(data: bytes) -> None:
    """The bytes as a key file, and as an envelope in MessagePack."""
    try:
        ring = parse_keys(data, "file")
    except ConfigError as error:
        # The words of a long enough line are what a key would be.
        long = [word for word in data.split() if len(word) >= 24]
        assert not any(word.decode("utf-8", "replace") in str(error) for word in long)
    else:
        for name, key_id in ring.ids:
            assert ring.find(name, key_id) is not None and ring.newest(name) is not None
    try:
        value = msgspec.msgpack.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    try:
        envelope = envelope_of({ENVELOPE: value})
        assert envelope is not None or value is None
        if envelope is not None:
            key = _KEYS.open(envelope, 1, _CUSTOMER)
            key.check_outline(5, [(1, 5)])
    except (Corrupt, S3Error):
        pass
