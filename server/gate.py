"""The way from a request to `access.allowed`: finds what the decision depends on, and asks.

Must not know: handlers, documents, how a decision is made.
Invariants:
* A bucket that only its owner ever could enter costs its owner one look into its attributes. Whatever could let
  somebody else in (a policy, a list) marks the bucket as `shared` for good, since objects of others may remain.
* What was decided by looking at an object holds for that state of it alone.
* Who may not list a bucket is not told which keys it has: what is missing is AccessDenied to him, not NoSuchKey.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from cordwood.engine import BucketInfo, ObjectInfo, Store, UploadInfo
from cordwood.engine import errors as engine_errors
from cordwood.server.access import INITIATORS_ACTIONS, Context, Resource, allowed, denied
from cordwood.server.acl import OWNED_ACTIONS, loaded, private
from cordwood.server.bridge import Bridge
from cordwood.server.condition_keys import ConditionKeys
from cordwood.server.encryption import encryption_headers, envelope_of
from cordwood.server.policy import cached, identity_policy
from cordwood.server.wire.errors import s3_error
from cordwood.server.wire.message import PeerInfo, RequestHead
from cordwood.server.wire.sigv4 import Account, Identity

T = TypeVar("T")

ABAC: Final = "abac"
ENABLED: Final = "Enabled"
SHARED: Final = "shared"
PAYER: Final = "payer"
REQUESTER: Final = "Requester"
_ENCRYPTION: Final = "s3:x-amz-server-side-encryption"
NOBODY: Final = {"id": "", "name": ""}

# What a rename does under the old and the new name.
_MOVING: Final = frozenset(("s3:GetObject", "s3:PutObject", "s3:DeleteObject"))

# Headers that ask for something beside the operation itself, and the permission that the policy may refuse.
_BESIDE: Final = {
    "x-amz-acl": "s3:PutObjectAcl",
    "x-amz-grant-full-control": "s3:PutObjectAcl",
    "x-amz-grant-read": "s3:PutObjectAcl",
    "x-amz-grant-read-acp": "s3:PutObjectAcl",
    "x-amz-grant-write-acp": "s3:PutObjectAcl",
    "x-amz-tagging": "s3:PutObjectTagging",
    "x-amz-object-lock-mode": "s3:PutObjectRetention",
    "x-amz-object-lock-legal-hold": "s3:PutObjectLegalHold",
}
# The same for a bucket that is made.
_BESIDE_A_BUCKET: Final = {
    "x-amz-acl": "s3:PutBucketAcl",
    "x-amz-grant-full-control": "s3:PutBucketAcl",
    "x-amz-grant-read": "s3:PutBucketAcl",
    "x-amz-grant-read-acp": "s3:PutBucketAcl",
    "x-amz-grant-write": "s3:PutBucketAcl",
    "x-amz-grant-write-acp": "s3:PutBucketAcl",
    "x-amz-bucket-object-lock-enabled": "s3:PutBucketObjectLockConfiguration",
    "x-amz-object-ownership": "s3:PutBucketOwnershipControls",
}


@dataclass(frozen=True, slots=True)
class Demand:
    """Who asks, with what, from where."""

    identity: Identity
    head: RequestHead
    peer: PeerInfo


class Gate:
    """One per worker."""

    def __init__(
        self, store: Store, bridge: Bridge, accounts: Iterable[Account], *, region: str, is_open: bool
    ) -> None:
        self._store = store
        self._bridge = bridge
        self._region = region
        self._is_open = is_open
        self.owners: Mapping[str, str] = {each.owner_id: each.display_name for each in accounts}
        self._has_owners = len(self.owners) > 1

    def admit(self, demand: Demand, action: str, bucket: str) -> None:
        """For what concerns no bucket that exists; `bucket` is the name of one that is to be."""
        keys = ConditionKeys(demand.head, demand.identity, demand.peer, region=self._region, owner_id="")
        # Without policies of its own an identity that is no stranger may do all of this, whatever the name.
        resource = Resource(bucket if demand.identity.session is not None else "")
        context = Context(self._is_open, keys=keys)
        asked = [each for header, each in _BESIDE_A_BUCKET.items() if header in demand.head.headers]
        if not allowed(demand.identity, action, resource, context) or any(
            denied(demand.identity, each, resource, context) for each in asked
        ):
            raise s3_error("AccessDenied")

    def is_free(self, identity: Identity, info: BucketInfo) -> bool:
        """May the identity do anything with the bucket that its owner may, so that nobody needs to be asked?"""
        session = identity.session
        return (
            SHARED not in info.attrs
            and (session is None or not session.policies)
            and self.is_insider(identity, info)
        )

    def is_insider(self, identity: Identity, info: BucketInfo) -> bool:
        """Does the bucket belong to whom the identity speaks for? With one owner everything is his, also what he made
        under an earlier key pair."""
        if identity.is_anonymous:
            return self._is_open
        return not self._has_owners or info.attrs.get("owner", NOBODY)["id"] in ("", identity.owner_id)

    def relied_on_list(self, demand: Demand, action: str, info: BucketInfo, key: str) -> bool:
        """Of a request that was allowed: was it only by an access control list?"""
        if self.is_insider(demand.identity, info):
            return False
        context, _ = self._context(demand, info)
        return not allowed(demand.identity, action, Resource(info.name, key), replace(context, bucket_acl=()))

    async def authorise(
        self, demand: Demand, action: str, bucket: str, key: str = "", version_id: str | None = None
    ) -> tuple[BucketInfo, ObjectInfo | None]:
        """The bucket and what `check` answers, or AccessDenied, or the engine's BucketNotFound (which AWS, too, tells
        everybody)."""
        info = self._store.head_bucket(bucket)
        if self.is_free(demand.identity, info):
            return info, None
        return info, await self.check(demand, action, info, key, version_id)

    async def check(
        self,
        demand: Demand,
        action: str,
        info: BucketInfo,
        key: str = "",
        version_id: str | None = None,
        request_tags: Mapping[str, str] | None = None,
        beside: str = "",
    ) -> ObjectInfo | None:
        """The whole question. `request_tags`: tags that came in the body. `beside`: an action that must not be denied.

        The answer is the object that the decision looked at, if it did: what is then done must be done to it.
        """
        if info.attrs.get(PAYER) == REQUESTER and not self.is_insider(demand.identity, info):
            _check_payer(demand)
        context, keys = self._context(demand, info)
        keys.request_tags = request_tags
        resource = Resource(info.name, key)
        identity = demand.identity
        seen: ObjectInfo | UploadInfo | None = None
        reads_tags = context.policy is not None and context.policy.reads("s3:existingobjecttag/")
        if key and (reads_tags or action in OWNED_ACTIONS or action in INITIATORS_ACTIONS):
            seen = await self._look(demand, action, info.name, key, version_id)
            if seen is None and action in OWNED_ACTIONS:
                self._decide_on_missing(demand, action, info, resource)
                return None
            if seen is not None:
                keys.existing_tags = seen.attrs.get("tags", {})
                context = _with_object(context, info, seen.attrs)
        if action == "s3:PutObject" and context.policy is not None and context.policy.reads(_ENCRYPTION):
            keys.of_upload = await self._upload_encryption(demand, info.name, key)
        if not allowed(identity, action, resource, context):
            raise s3_error("AccessDenied")
        asked = [beside] if beside else []
        asked += [each for header, each in _BESIDE.items() if header in demand.head.headers]
        if any(denied(identity, each, resource, context) for each in asked):
            raise s3_error("AccessDenied")
        if demand.head.headers.get("x-amz-bypass-governance-retention", "").lower() == "true" and not allowed(
            identity, "s3:BypassGovernanceRetention", resource, context
        ):
            raise s3_error("AccessDenied")
        return seen if isinstance(seen, ObjectInfo) else None

    def authorise_prefixes(self, demand: Demand, info: BucketInfo, prefixes: Iterable[str]) -> None:
        """For moving what is below a prefix without looking at it: read, write and delete it all.

        No policy is asked key by key, so none may be there that refuses any key any of this; and what the policies of a
        session allow they must allow for keys that nobody could have foreseen.
        """
        context, _ = self._context(demand, info)
        identity = demand.identity
        session = identity.session
        policies = [] if session is None else [identity_policy(text) for text in session.policies]
        if context.policy is not None:
            policies.append(context.policy)
        unforeseen = (secrets.token_hex(20), f"{secrets.token_hex(3)}/{secrets.token_hex(8)}", "")
        if (
            not self.is_insider(identity, info)
            or any(policy.denies(_MOVING) for policy in policies)
            or not all(
                allowed(identity, action, Resource(info.name, prefix + rest), context)
                for action in _MOVING
                for prefix in prefixes
                for rest in unforeseen
            )
        ):
            raise s3_error(
                "AccessDenied",
                "A prefix is renamed by the bucket's owner only, and where no policy denies any of it.",
            )

    def _decide_on_missing(self, demand: Demand, action: str, info: BucketInfo, resource: Resource) -> None:
        context, _ = self._context(demand, info)
        may_list, _ = self._context(demand, info, {"s3:prefix": (resource.key,)})
        if denied(demand.identity, action, resource, context) or not allowed(
            demand.identity, "s3:ListBucket", Resource(info.name), may_list
        ):
            raise s3_error("AccessDenied")

    def _context(
        self, demand: Demand, info: BucketInfo, override: Mapping[str, Sequence[str]] | None = None
    ) -> tuple[Context, ConditionKeys]:
        attrs = info.attrs
        owner_id = attrs.get("owner", NOBODY)["id"] if self._has_owners else ""
        text = attrs.get("policy")
        block = attrs.get("public_access_block", {})
        has_acl = "acl" in attrs and attrs.get("ownership") != "BucketOwnerEnforced"
        keys = ConditionKeys(
            demand.head,
            demand.identity,
            demand.peer,
            region=self._region,
            owner_id=attrs.get("owner", NOBODY)["id"],
            override=override,
        )
        if attrs.get(ABAC) == ENABLED:
            keys.bucket_tags = attrs.get("tags", {})
        return (
            Context(
                self._is_open,
                owner_id,
                cached(text) if text is not None else None,
                loaded(attrs["acl"]) if has_acl else (),
                ignore_public_acls=bool(block.get("IgnorePublicAcls")),
                restrict_public_buckets=bool(block.get("RestrictPublicBuckets")),
                keys=keys,
            ),
            keys,
        )

    async def _upload_encryption(self, demand: Demand, bucket: str, key: str) -> Mapping[str, str]:
        """The headers with which the upload that the request names was begun: its parts are encrypted as it is."""
        upload_id = demand.head.parameter("uploadId")
        if upload_id is None:
            return {}
        try:
            upload = await self._bridge.run(self._store.head_upload, bucket, key, upload_id)
        except engine_errors.NotFound:
            return {}
        envelope = envelope_of(upload.attrs)
        return {} if envelope is None else encryption_headers(envelope)

    async def _look(
        self, demand: Demand, action: str, bucket: str, key: str, version_id: str | None
    ) -> ObjectInfo | UploadInfo | None:
        """The object, or the upload that the request names; None when there is none."""
        store = self._store
        if action in INITIATORS_ACTIONS:
            upload_id = demand.head.parameter("uploadId") or ""
            try:
                return await self._bridge.run(store.head_upload, bucket, key, upload_id)
            except engine_errors.NotFound:
                return None

        def head(wait: bool) -> ObjectInfo:
            return store.head(bucket, key, version_id=version_id, wait=wait)

        try:
            return await self._patiently(head)
        except engine_errors.NotFound:
            return None

    async def _patiently(self, call: Callable[[bool], T]) -> T:
        """On the loop where memory is enough, in a thread where the disk must be waited for."""
        try:
            return call(False)
        except engine_errors.WouldBlock:
            return await self._bridge.run(call, True)


def _check_payer(demand: Demand) -> None:
    """Whoever reads at his own expense must say that he knows; strangers have no account to charge."""
    name = "x-amz-request-payer"
    said = demand.head.headers.get(name) or demand.head.parameter(name) or ""
    if demand.identity.is_anonymous or said.lower() != "requester":
        raise s3_error("AccessDenied")


def _with_object(context: Context, info: BucketInfo, attrs: Mapping[str, Any]) -> Context:
    owner_id = attrs.get("owner", NOBODY)["id"]
    is_enforced = info.attrs.get("ownership") == "BucketOwnerEnforced"
    if is_enforced:
        owner_id = ""
    return Context(
        context.anonymous_allowed,
        context.owner_id,
        context.policy,
        context.bucket_acl,
        owner_id,
        loaded(attrs["acl"]) if "acl" in attrs and not is_enforced else private(owner_id),
        context.ignore_public_acls,
        context.restrict_public_buckets,
        context.keys,
    )
