"""The key pair that a store makes for itself: DIR/credentials.

Must not know: settings, processes, requests.

Invariants:
* The file is complete or absent: it is written beside, synced, and linked into place, so of two servers that start at
  once on one directory both end with the same pair.
* Mode 0600 from its first byte. The secret is never logged; the caller decides whether to show a new one.
* The format is that of AWS's shared credentials file, so AWS_SHARED_CREDENTIALS_FILE may point straight at it.
"""

from __future__ import annotations

import configparser
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from cordwood.server.config import ConfigError, Credential, make_credential

NAME = "credentials"
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_KEY_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"


@dataclass(frozen=True)
class KeyFile:
    path: Path
    credential: Credential
    is_new: bool
    is_exposed: bool
    """Others than the owner may read it."""


def read_or_create(directory: Path) -> KeyFile:
    """Raises `ConfigError` when the file cannot be read, made or understood."""
    path = directory / NAME
    is_new = False
    try:
        if not path.exists():
            is_new = _create(path)
        text = path.read_text()
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"credentials file {path} cannot be used: {error}") from None
    return KeyFile(path, _parse(path, text), is_new, bool(mode & (stat.S_IRWXG | stat.S_IRWXO)))


def _create(path: Path) -> bool:
    """False when another process was quicker."""
    access_key = "CW" + "".join(secrets.choice(_KEY_ALPHABET) for _ in range(18))
    secret_key = "".join(secrets.choice(_ALPHABET) for _ in range(40))
    return create_private(
        path, f"[default]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret_key}\n"
    )


def create_private(path: Path, text: str) -> bool:
    """Makes a file of mode 0600, whole and synced, or not at all. False when there is one already."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(fd)
        try:
            os.link(beside, path)
        except FileExistsError:
            return False
    finally:
        os.unlink(beside)
    sync_directory(path.parent)
    return True


def sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _parse(path: Path, text: str) -> Credential:
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(text)
        section = parser["default"]
        return make_credential(section["aws_access_key_id"], section["aws_secret_access_key"])
    except (configparser.Error, KeyError):
        # configparser quotes the offending line, which may hold the secret: so its own text is left out.
        raise ConfigError(
            f"credentials file {path} is not understood; it needs [default] with aws_access_key_id and "
            "aws_secret_access_key (remove it to have a new pair made)"
        ) from None
