"""What an identity carries that signs with temporary credentials: whose they are, how far they reach, until when.

Must not know: how a token is made or read, policies' meaning.
Invariant: nothing here can be changed after it was read from a verified token.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Session:
    """`role` and `name` are empty for the session of a key pair itself (GetSessionToken)."""

    parent_key: str
    """The access key of the key pair that asked for it."""
    issued_s: int
    expires_s: int
    role: str = ""
    name: str = ""
    policies: tuple[str, ...] = ()
    """Identity policies, as JSON; each of them must allow what is done."""


@dataclass(frozen=True, slots=True)
class SessionAccount:
    """Temporary credentials and the owner that they speak for: an `Account` of sigv4.py with a session."""

    access_key: str
    secret_key: str = field(repr=False)
    owner_id: str
    display_name: str
    session: Session
