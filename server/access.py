"""Who may do what: one question, one answer.

Must not know: how an identity was established, the engine, requests.
Invariant: `allowed` decides from its arguments alone, and what it is not told about is refused.

The order of the decision is AWS's ("How Amazon S3 authorizes a request"): an explicit deny of the bucket's policy; then
the owner, whom nobody needs to allow anything; then the policy; then the access control list. For reading an object
that somebody else than the bucket's owner owns, that owner and his list count, and the bucket's policy can only deny.
Temporary credentials come before all of that: what the policies of their session do not allow is not asked any further.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from cordwood.server.acl import OWNED_ACTIONS, Acl, permits, without_public
from cordwood.server.policy import Policy, Principal, Verdict, evaluate, identity_policy
from cordwood.server.policy_conditions import Lookup
from cordwood.server.wire.session import Session

# An owner who locked himself out can still change the policy, as AWS lets the root user of an account.
_UNDENIABLE: Final = frozenset(("s3:GetBucketPolicy", "s3:PutBucketPolicy", "s3:DeleteBucketPolicy"))

# Who began an upload may always look at it and end it.
INITIATORS_ACTIONS: Final = frozenset(("s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"))


class Asker(Protocol):
    """What matters here of an identity."""

    @property
    def is_anonymous(self) -> bool: ...
    @property
    def owner_id(self) -> str: ...
    @property
    def display_name(self) -> str: ...
    @property
    def session(self) -> Session | None: ...


@dataclass(frozen=True, slots=True)
class Resource:
    """What is asked about; empty strings stand for the service and for a whole bucket."""

    bucket: str = ""
    key: str = ""

    @property
    def path(self) -> str:
        return f"{self.bucket}/{self.key}" if self.key else self.bucket


def _no_keys(_: str) -> Sequence[str] | None:
    return None


@dataclass(frozen=True, slots=True)
class Context:
    """What else a decision may depend on."""

    anonymous_allowed: bool = False
    """The server was started with --anonymous."""
    owner_id: str = ""
    """Of the bucket; empty when there is no bucket, or only one owner."""
    policy: Policy | None = None
    bucket_acl: Acl = ()
    object_owner_id: str = ""
    """Of the object or of the upload, where it is not the bucket's owner."""
    object_acl: Acl = ()
    ignore_public_acls: bool = False
    restrict_public_buckets: bool = False
    keys: Lookup = _no_keys
    """The condition keys of the request."""


def allowed(identity: Asker, action: str, resource: Resource, context: Context) -> bool:
    """Whether `identity` may perform `action` (as policies spell it, such as "s3:GetObject") on `resource`."""
    if not _is_within_bounds(identity, action, resource, context):
        return False
    if identity.is_anonymous:
        if context.anonymous_allowed:
            return True
        if not resource.bucket:
            return False
    is_owner = not identity.is_anonymous and context.owner_id in ("", identity.owner_id)
    verdict = _verdict(identity, action, resource, context)
    if verdict == "deny":
        is_role = identity.session is not None and bool(identity.session.role)
        return is_owner and action in _UNDENIABLE and not is_role
    if context.object_owner_id and action in OWNED_ACTIONS:
        if not identity.is_anonymous and identity.owner_id == context.object_owner_id:
            return True
        return _listed(identity, action, context, is_object=True)
    if is_owner:
        return True
    if (
        action in INITIATORS_ACTIONS
        and not identity.is_anonymous
        and identity.owner_id == context.object_owner_id
    ):
        return True
    if verdict == "allow":
        return True
    return _listed(identity, action, context, is_object=action in OWNED_ACTIONS)


def denied(identity: Asker, action: str, resource: Resource, context: Context) -> bool:
    """Whether this is refused outright: for what a request does beside its own action. A session must be allowed to."""
    if not _is_within_bounds(identity, action, resource, context):
        return True
    return _verdict(identity, action, resource, context) == "deny"


def principal_of(identity: Asker) -> Principal:
    """Whoever asks, as policies name him."""
    if identity.is_anonymous:
        return Principal()
    session = identity.session
    if session is not None and session.role:
        return Principal(identity.owner_id, session.name, role=session.role)
    return Principal(identity.owner_id, identity.display_name)


def _is_within_bounds(identity: Asker, action: str, resource: Resource, context: Context) -> bool:
    """Does every policy of the session allow it? Such policies only ever take away from what the owner may do."""
    session = identity.session
    if session is None:
        return True
    principal = principal_of(identity)
    return all(
        evaluate(identity_policy(text), principal, action, resource.path, context.keys) == "allow"
        for text in session.policies
    )


def _verdict(identity: Asker, action: str, resource: Resource, context: Context) -> Verdict:
    policy = context.policy
    if policy is None:
        return "none"
    verdict = evaluate(policy, principal_of(identity), action, resource.path, context.keys)
    is_insider = not identity.is_anonymous and context.owner_id in ("", identity.owner_id)
    if verdict == "allow" and context.restrict_public_buckets and policy.is_public and not is_insider:
        return "none"
    return verdict


def _listed(identity: Asker, action: str, context: Context, *, is_object: bool) -> bool:
    acl = context.object_acl if is_object else context.bucket_acl
    if context.ignore_public_acls:
        acl = without_public(acl)
    return permits(acl, action, identity.owner_id, is_anonymous=identity.is_anonymous, is_object=is_object)
