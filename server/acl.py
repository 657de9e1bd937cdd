"""Access control lists: grants, the canned ones, and what each permission lets somebody do.

Must not know: the wire, the engine, policies.
Invariants:
* A list is a tuple of `Grant`s; the owner is not in it unless somebody put him there.
* Groups mean what AWS means: AllUsers is everybody, AuthenticatedUsers everybody with a key pair of any owner.

Source: "Access control list (ACL) overview", Amazon S3 User Guide.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

GROUPS: Final = "http://acs.amazonaws.com/groups/"
ALL_USERS: Final = f"{GROUPS}global/AllUsers"
AUTHENTICATED: Final = f"{GROUPS}global/AuthenticatedUsers"
LOG_DELIVERY: Final = f"{GROUPS}s3/LogDelivery"
KNOWN_GROUPS: Final = frozenset((ALL_USERS, AUTHENTICATED, LOG_DELIVERY))
_PUBLIC_GROUPS: Final = frozenset((ALL_USERS, AUTHENTICATED))

FULL_CONTROL: Final = "FULL_CONTROL"
MAX_GRANTS: Final = 100

# permission -> the actions that it allows, on a bucket and on an object ("Mapping of ACL permissions and access policy
# permissions"). WRITE also deletes, as it always did: who may overwrite can empty an object anyway.
BUCKET_ACTIONS: Final = {
    "READ": frozenset(("s3:ListBucket", "s3:ListBucketVersions", "s3:ListBucketMultipartUploads")),
    "WRITE": frozenset(("s3:PutObject", "s3:DeleteObject")),
    "READ_ACP": frozenset(("s3:GetBucketAcl",)),
    "WRITE_ACP": frozenset(("s3:PutBucketAcl",)),
}
OBJECT_ACTIONS: Final = {
    "READ": frozenset(("s3:GetObject", "s3:GetObjectVersion", "s3:GetObjectTorrent")),
    "READ_ACP": frozenset(("s3:GetObjectAcl", "s3:GetObjectVersionAcl")),
    "WRITE_ACP": frozenset(("s3:PutObjectAcl", "s3:PutObjectVersionAcl")),
}
# What is decided by the owner of the object, not of the bucket, where these differ.
OWNED_ACTIONS: Final = frozenset().union(*OBJECT_ACTIONS.values())


@dataclass(frozen=True, slots=True)
class Grant:
    grantee: str
    """An owner id, or the URI of a group."""
    permission: str

    @property
    def is_group(self) -> bool:
        return self.grantee.startswith(GROUPS)


Acl = tuple[Grant, ...]


def private(owner_id: str) -> Acl:
    return (Grant(owner_id, FULL_CONTROL),)


def canned(name: str, owner_id: str, bucket_owner_id: str) -> Acl:
    """The grants of a canned ACL, those of groups first."""
    groups: tuple[Grant, ...] = ()
    if name in ("public-read", "public-read-write"):
        groups += (Grant(ALL_USERS, "READ"),)
    if name == "public-read-write":
        groups += (Grant(ALL_USERS, "WRITE"),)
    if name == "authenticated-read":
        groups += (Grant(AUTHENTICATED, "READ"),)
    if name == "log-delivery-write":
        groups += (Grant(LOG_DELIVERY, "WRITE"), Grant(LOG_DELIVERY, "READ_ACP"))
    own = private(owner_id)
    if bucket_owner_id != owner_id and name == "bucket-owner-read":
        own += (Grant(bucket_owner_id, "READ"),)
    if bucket_owner_id != owner_id and name == "bucket-owner-full-control":
        own += (Grant(bucket_owner_id, FULL_CONTROL),)
    return groups + own


def is_public(acl: Iterable[Grant]) -> bool:
    return any(grant.grantee in _PUBLIC_GROUPS for grant in acl)


def without_public(acl: Iterable[Grant]) -> Acl:
    return tuple(grant for grant in acl if grant.grantee not in _PUBLIC_GROUPS)


def permits(acl: Iterable[Grant], action: str, owner_id: str, *, is_anonymous: bool, is_object: bool) -> bool:
    """Does a grant let the owner of a key pair, or nobody in particular, do this?"""
    actions = OBJECT_ACTIONS if is_object else BUCKET_ACTIONS
    for grant in acl:
        if grant.is_group:
            is_meant = grant.grantee == ALL_USERS or (grant.grantee == AUTHENTICATED and not is_anonymous)
        else:
            is_meant = not is_anonymous and grant.grantee == owner_id
        if not is_meant:
            continue
        if grant.permission == FULL_CONTROL:
            if any(action in each for each in actions.values()):
                return True
        elif action in actions.get(grant.permission, ()):
            return True
    return False


def dumped(acl: Iterable[Grant]) -> list[list[str]]:
    """For the attributes of a bucket or an object."""
    return [[grant.grantee, grant.permission] for grant in acl]


def loaded(stored: Sequence[Sequence[Any]]) -> Acl:
    return tuple(Grant(str(grantee), str(permission)) for grantee, permission in stored)
