"""Temporary credentials: issued by STS, verified with every request, kept nowhere.

Theory: the session token *is* the session: what it says, and a MAC of that under the store's session key. Access key
and secret are derived from the same bytes. So every worker process knows every session, also after a restart, and
nothing has to be stored or cleaned up. What can change later is looked up when the token is used: the key pair that
asked for it and the role must still be configured, and the role's policy is the one of today.

Must not know: requests, documents, signatures.

Invariants:
* A token is believed only if its MAC holds and it belongs to the access key that signs; then its time is looked at.
* Nothing in a token lets anybody do what the key pair behind it, or the role, may not do.
* The session key is made once per store, with mode 0600; removing it ends all sessions at the next start.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from cordwood.server.config import ConfigError
from cordwood.server.config_values import Credential, Role
from cordwood.server.keyfile import create_private
from cordwood.server.policy import identity_policy
from cordwood.server.policy_conditions import PolicyError
from cordwood.server.wire.errors import s3_error
from cordwood.server.wire.session import Session, SessionAccount

NAME: Final = "session-key"
LEAST_S: Final = 15 * 60
MOST_S: Final = 36 * 3600

_KEY_BYTES: Final = 32
_MAC_BYTES: Final = 32
_VERSION: Final = 1


class _Claims(msgspec.Struct, array_like=True, frozen=True):
    """What a token says. Fields are only ever appended."""

    version: int
    parent_key: str
    role: str
    name: str
    policy: str
    issued_s: int
    expires_s: int
    nonce: bytes


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_Claims).decode


class Issued(msgspec.Struct, frozen=True):
    """Fresh temporary credentials."""

    account: SessionAccount
    token: str


class Sessions:
    """One per worker. `path` is the file of the session key, which is made when the first session is."""

    def __init__(self, path: Path, credentials: Sequence[Credential], roles: Sequence[Role] = ()) -> None:
        self._path = path
        self._key = b""
        self.credentials: Mapping[str, Credential] = {each.access_key: each for each in credentials}
        first = credentials[0].owner_id if credentials else ""
        self.roles: Mapping[str, Role] = {each.name: each for each in roles}
        self._role_owner = {each.name: each.owner_id or first for each in roles}

    def owner_of(self, role: Role) -> str:
        """The owner in whose name a role acts."""
        return self._role_owner[role.name]

    def issue(
        self,
        parent_key: str,
        now_s: float,
        duration_s: int,
        *,
        role: str = "",
        name: str = "",
        policy: str = "",
    ) -> Issued:
        """Blocking the first time: the key file may have to be made."""
        issued_s = int(now_s)
        claims = _Claims(
            _VERSION, parent_key, role, name, policy, issued_s, issued_s + duration_s, secrets.token_bytes(12)
        )
        key = self._key or self._load(create=True)
        payload = _encode(claims)
        token = base64.urlsafe_b64encode(payload + _mac(key, b"token", payload)).decode()
        account = self._account(key, payload, claims)
        if account is None:
            raise AssertionError("a session was issued for what is not configured")
        return Issued(account, token)

    def opener(self, now: Callable[[], float]) -> Callable[[str, str], SessionAccount]:
        """What turns an access key and its token into an account, or raises InvalidToken or ExpiredToken."""

        def opened(access_key: str, token: str) -> SessionAccount:
            return self.open(access_key, token, now())

        return opened

    def open(self, access_key: str, token: str, now_s: float) -> SessionAccount:
        key = self._key or self._load(create=False)
        try:
            sealed = base64.urlsafe_b64decode(token.encode("ascii"))
        except (binascii.Error, ValueError):
            sealed = b""
        payload, mac = sealed[:-_MAC_BYTES], sealed[-_MAC_BYTES:]
        if not key or not payload or not hmac.compare_digest(mac, _mac(key, b"token", payload)):
            raise s3_error("InvalidToken")
        try:
            claims = _decode(payload)
        except msgspec.DecodeError:
            raise s3_error("InvalidToken") from None
        account = self._account(key, payload, claims)
        if claims.version != _VERSION or account is None:
            raise s3_error("InvalidToken")
        if not hmac.compare_digest(account.access_key.encode(), access_key.encode("utf-8", "replace")):
            raise s3_error("InvalidToken")
        if now_s >= claims.expires_s:
            raise s3_error("ExpiredToken")
        return account

    def _account(self, key: bytes, payload: bytes, claims: _Claims) -> SessionAccount | None:
        """None when the key pair or the role is not configured any more."""
        parent = self.credentials.get(claims.parent_key)
        if parent is None:
            return None
        policies = (claims.policy,) if claims.policy else ()
        owner_id, display_name = parent.owner_id, parent.display_name
        if claims.role:
            role = self.roles.get(claims.role)
            if role is None:
                return None
            policies = (role.policy, *policies)
            owner_id, display_name = self.owner_of(role), claims.role
        access_key = "CWT" + base64.b32encode(_mac(key, b"id", payload)).decode()[:17]
        return SessionAccount(
            access_key,
            base64.b64encode(_mac(key, b"secret", payload)).decode()[:40],
            owner_id,
            display_name,
            Session(claims.parent_key, claims.issued_s, claims.expires_s, claims.role, claims.name, policies),
        )

    def _load(self, *, create: bool) -> bytes:
        """The session key; b"" when there is none yet and none is to be made."""
        if create:
            create_private(self._path, base64.b64encode(secrets.token_bytes(_KEY_BYTES)).decode() + "\n")
        try:
            key = base64.b64decode(self._path.read_bytes(), validate=False)
        except FileNotFoundError:
            return b""
        except (OSError, binascii.Error) as error:
            raise ConfigError(f"session key {self._path} cannot be used: {error}") from None
        if len(key) != _KEY_BYTES:
            raise ConfigError(
                f"session key {self._path} does not hold {_KEY_BYTES} bytes in base64; remove it"
            )
        self._key = key
        return key


def _mac(key: bytes, purpose: bytes, payload: bytes) -> bytes:
    return hmac.digest(key, purpose + b"\0" + payload, "sha256")


def check_roles(roles: Sequence[Role], credentials: Sequence[Credential]) -> None:
    """ConfigError for a role whose policy cannot be evaluated, or whose owner has no key pair."""
    owners = {each.owner_id for each in credentials}
    for role in roles:
        if role.owner_id and role.owner_id not in owners:
            raise ConfigError(f"roles: the owner_id of {role.name!r} belongs to no configured key pair")
        try:
            identity_policy(role.policy)
        except PolicyError as error:
            raise ConfigError(f"roles: the policy of {role.name!r} is refused: {error}") from None
