"""Who may do what: one question, one answer.

Must not know: how an identity was established, the engine, the wire.
Invariant: `allowed` decides from its arguments alone, and what it is not told about is refused.

For now there are two rules: a bucket is its owner's, where the server has several; and whoever holds no key pair may do
what `anonymous_allowed` in the context says. Policies will be decided here too, and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Asker(Protocol):
    """What matters here of an identity."""

    @property
    def is_anonymous(self) -> bool: ...
    @property
    def owner_id(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Resource:
    """What is asked about; empty strings stand for the service and for a whole bucket."""

    bucket: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class Context:
    """What else a decision may depend on."""

    anonymous_allowed: bool = False
    """The server was started with --anonymous."""
    owner_id: str = ""
    """Of the bucket; empty when there is no bucket, or only one owner."""


def allowed(identity: Asker, action: str, resource: Resource, context: Context) -> bool:
    """Whether `identity` may perform `action` (as policies spell it, such as "s3:GetObject") on `resource`."""
    if identity.is_anonymous:
        return context.anonymous_allowed
    return context.owner_id in ("", identity.owner_id)
