"""Who may do what: one question, one answer.

Must not know: how an identity was established, the engine, the wire.
Invariant: `allowed` decides from its arguments alone, and what it is not told about is refused.

For now there is one rule: whoever holds a key pair of this server may do everything; everybody else may do what
`anonymous_allowed` in the context says. Policies will be decided here too, and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Asker(Protocol):
    """What matters here of an identity."""

    @property
    def is_anonymous(self) -> bool: ...


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


def allowed(identity: Asker, action: str, resource: Resource, context: Context) -> bool:
    """Whether `identity` may perform `action` (an S3 operation name, such as "GetObject") on `resource`."""
    return context.anonymous_allowed or not identity.is_anonymous
