"""Keys that encrypt other keys, in files: the master keys of a store, and the named keys of the local key provider.

A file is text of lines `NAME KEY`: a name without spaces and 32 bytes in base64; `#` begins a comment. A name may stand
on several lines: then the last one encrypts, and all of them decrypt. That is how a key is replaced.

Must not know: requests, what is encrypted with a key, how an object says which key it needs.

Invariants:
* Key bytes are held by a `Secret` and go into AES-GCM and HMAC: never into an error, a log, a repr, a pickle.
* A key file that others may read or write is refused. One that is made here has mode 0600 from its first byte, is
  complete or absent, and is synced with its directory before a key of it is used: what it encrypts can be read again.
* No key and nonce are used twice: each encryption has a key of its own, derived from 256 random bits.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import logging
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cordwood.server.config import ConfigError
from cordwood.server.keyfile import create_private, sync_directory

log = logging.getLogger("cordwood.keys")

KEY_BYTES: Final = 32
SALT_BYTES: Final = 32
TAG_BYTES: Final = 16
MASTER: Final = "master"
FILE_MAX_BYTES: Final = 1 << 20

_NONCE: Final = bytes(12)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,255}")
_LOOK_AGAIN_S: Final = 1.0


class Secret:
    """32 key bytes that show themselves to nobody."""

    __slots__ = ("_bytes",)

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes")
        self._bytes = key

    @classmethod
    def random(cls) -> Secret:
        return Secret(secrets.token_bytes(KEY_BYTES))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key is not pickled")

    def derive(self, purpose: bytes, salt: bytes = b"") -> bytes:
        """32 bytes of HMAC-SHA256, for one purpose."""
        return hmac.digest(self._bytes, purpose + b"\0" + salt, "sha256")

    def encrypt(self, purpose: bytes, salt: bytes, data: bytes | memoryview, bound: bytes) -> bytes:
        """AES-256-GCM under a key derived from `salt`, which must never come a second time. Adds TAG_BYTES."""
        return AESGCM(self.derive(purpose, salt)).encrypt(_NONCE, data, bound)

    def decrypt(self, purpose: bytes, salt: bytes, data: bytes | memoryview, bound: bytes) -> bytes:
        """ValueError for anything that `encrypt` did not make of these arguments."""
        try:
            return AESGCM(self.derive(purpose, salt)).decrypt(_NONCE, data, bound)
        except InvalidTag:
            raise ValueError("another key, another place, or changed bytes") from None


class Key(Secret):
    """A key that wraps other keys. `id` names it without telling anything about it."""

    __slots__ = ("id",)

    def __init__(self, key: bytes) -> None:
        super().__init__(key)
        self.id = self.derive(b"id")[:8].hex()

    def __repr__(self) -> str:
        return f"Key({self.id})"

    def wrap(self, other: Secret, bound: bytes) -> bytes:
        """Another key, encrypted, and bound to a text that has to be given again."""
        salt = secrets.token_bytes(SALT_BYTES)
        return salt + self.encrypt(b"wrap", salt, other._bytes, bound)

    def unwrap(self, wrapped: bytes, bound: bytes) -> Secret:
        """ValueError when it was wrapped by another key or bound to another text."""
        return Secret(self.decrypt(b"wrap", wrapped[:SALT_BYTES], memoryview(wrapped)[SALT_BYTES:], bound))


class KeyRing:
    """The keys of one file."""

    def __init__(self, keys: Iterable[tuple[str, Key]] = ()) -> None:
        self._newest: dict[str, Key] = {}
        self._by_id: dict[tuple[str, str], Key] = {}
        for name, key in keys:
            self._newest[name] = key
            self._by_id[name, key.id] = key

    def __repr__(self) -> str:
        return f"KeyRing({list(self._by_id)!r})"

    @property
    def ids(self) -> list[tuple[str, str]]:
        """(name, id) of each key, the oldest first."""
        return list(self._by_id)

    def newest(self, name: str) -> Key | None:
        return self._newest.get(name)

    def find(self, name: str, key_id: str) -> Key | None:
        return self._by_id.get((name, key_id))


def parse_keys(data: bytes, where: str) -> KeyRing:
    """ConfigError for what is no key file; its text names the line, and nothing that stands there."""
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError:
        raise ConfigError(f"key file {where} is not text in UTF-8") from None
    keys: list[tuple[str, Key]] = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or not _NAME.fullmatch(words[0]):
            raise ConfigError(
                f"key file {where}, line {number}: expected a name, a space and a key in base64"
            )
        try:
            key = base64.b64decode(words[1], validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if len(key) != KEY_BYTES:
            raise ConfigError(f"key file {where}, line {number}: expected {KEY_BYTES} bytes in base64")
        keys.append((words[0], Key(key)))
    return KeyRing(keys)


def key_line(name: str) -> str:
    """A line with a new key, for a key file."""
    return f"{name} {base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()}\n"


_HEADING: Final = """\
# The master keys of a Cordwood store: the last line encrypts, every line decrypts.
# Whoever loses this file loses every object that was encrypted with its keys. Keep a copy apart from the store.
"""


class KeyFile:
    """A key file that is read when it is first needed, and again when it has changed. Safe to use from threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._ring = KeyRing()
        self._seen: tuple[int, int, int] | None = None
        self._looked_s = 0.0
        self.is_durable = False

    def ring(self, *, now: bool = False) -> KeyRing:
        """The keys as they are; a change shows within a second, or at once with `now`. Empty without a file.

        ConfigError when the file cannot be read or understood, or others may read it.
        """
        clock_s = time.monotonic()
        if self._seen is None or now or clock_s - self._looked_s >= _LOOK_AGAIN_S:
            with self._lock:
                self._look()
                self._looked_s = clock_s
        return self._ring

    def create(self) -> KeyRing:
        """The keys, after a first master key was made where there is no file. Durable on return."""
        ring = self.ring()
        if self.is_durable and ring.ids:
            return ring
        if not ring.ids:
            try:
                is_new = create_private(self.path, _HEADING + key_line(MASTER))
            except OSError as error:
                raise ConfigError(f"key file {self.path} cannot be made: {error.strerror}") from None
            if is_new:
                log.warning(
                    "made the store's first master key in %s: keep a copy apart from the store, for without it what is "
                    "encrypted is lost",
                    self.path,
                )
            ring = self.ring(now=True)
        # Another process may have made the file a moment ago, and may not have come to this yet.
        sync_directory(self.path.parent)
        self.is_durable = True
        return ring

    def _look(self) -> None:
        try:
            about = self.path.stat()
            seen = (about.st_mtime_ns, about.st_size, about.st_ino)
            if seen == self._seen:
                return
            if about.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ConfigError(f"key file {self.path} can be used by others; `chmod 600` it")
            if about.st_size > FILE_MAX_BYTES or not stat.S_ISREG(about.st_mode):
                raise ConfigError(f"key file {self.path} is no file of at most {FILE_MAX_BYTES} bytes")
            self._ring = parse_keys(self.path.read_bytes(), str(self.path))
            self._seen = seen
        except FileNotFoundError:
            self._ring, self._seen = KeyRing(), None
        except OSError as error:
            raise ConfigError(f"key file {self.path} cannot be read: {error.strerror}") from None


def append_key(path: Path, name: str) -> str:
    """Adds a new key at the end of a key file, in one step; its id. ConfigError, as `KeyFile.ring`; OSError."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is no name for a key: letters, digits, `_`, `.`, `/` and `-`, at most 256"
        )
    ring = KeyFile(path).ring(now=True)
    line = key_line(name)
    if not ring.ids and create_private(path, _HEADING + line):
        return KeyFile(path).ring(now=True).ids[-1][1]
    text = path.read_text()
    if text and not text.endswith("\n"):
        text += "\n"
    beside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    create_private(beside, text + line)
    os.replace(beside, path)
    sync_directory(path.parent)
    return KeyFile(path).ring(now=True).ids[-1][1]
