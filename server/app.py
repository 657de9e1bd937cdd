"""A request becomes a response: authenticate -> route -> authorise -> read parameters -> handler, in this file only.

Must not know: sockets, how any operation works.
Invariants:
* No step goes back to an earlier one, and nothing of the body is read before the signature of the head holds.
* A handler runs only for an identity that may do that action on that resource; the source of a copy passes the same
  gate.
* Every operation of the model ends in a handler or in NotImplemented.
* What leaves is a Response or an S3Error; an engine error never does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from cordwood.engine import BucketInfo, Store
from cordwood.engine import errors as engine_errors
from cordwood.server.access import Context, Resource, allowed
from cordwood.server.bridge import Bridge
from cordwood.server.handlers import HANDLERS, Request, Service, translate
from cordwood.server.wire.errors import s3_error
from cordwood.server.wire.interpret import read_params
from cordwood.server.wire.message import App, Body, PeerInfo, RequestHead, Response
from cordwood.server.wire.route import Operation, Router
from cordwood.server.wire.sigv4 import Identity, Verified, authenticate

if TYPE_CHECKING:
    from cordwood.server.config import Credential, Settings

log = logging.getLogger("cordwood.app")

# Operations whose permission is not their own name (Service Authorization Reference, "Actions for Amazon S3").
ACTIONS: Final = {
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "CompleteMultipartUpload": "s3:PutObject",
    "CopyObject": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "DeleteObjects": "s3:DeleteObject",
    "HeadBucket": "s3:ListBucket",
    "HeadObject": "s3:GetObject",
    "ListBuckets": "s3:ListAllMyBuckets",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "ListObjectVersions": "s3:ListBucketVersions",
    "ListObjects": "s3:ListBucket",
    "ListObjectsV2": "s3:ListBucket",
    "ListParts": "s3:ListMultipartUploadParts",
    "UploadPart": "s3:PutObject",
    "UploadPartCopy": "s3:PutObject",
}


class Application:
    """The `App` of message.py over one open store. Made inside a running trio loop."""

    def __init__(
        self,
        store: Store,
        credentials: Sequence[Credential],
        *,
        region: str = "us-east-1",
        domains: Sequence[str] = (),
        is_open: bool = False,
    ) -> None:
        self._store = store
        self._secret_for = {credential.access_key: credential for credential in credentials}.get
        self._region = region
        self._router = Router(domains)
        self._is_open = is_open
        self._no_owner = Context(is_open)
        self._has_owners = len({credential.owner_id for credential in credentials}) > 1
        self._service = Service(store, Bridge(store.start_commits), region, self.authorise, self.owns)

    async def __call__(self, head: RequestHead, body: Body, peer: PeerInfo) -> Response:
        verified = authenticate(
            head,
            secret_for=self._secret_for,
            region=self._region,
            now_s=time.time(),
            host_bucket=self._router.host_bucket(head),
        )
        route = self._router.route(head)
        operation = route.operation
        bucket = route.bucket
        info: BucketInfo | None = None
        request: Request | None = None
        try:
            if bucket and operation.name != "CreateBucket":
                info = self.authorise(verified, _action(operation), bucket, route.key)
            else:
                self._admit(verified.identity, _action(operation))
            entry = HANDLERS.get(operation.name)
            if entry is None:
                raise s3_error("NotImplemented")
            params = read_params(operation, head, entry.refused)
            if info is not None and "ExpectedBucketOwner" in params:
                _check_expected_owner(params["ExpectedBucketOwner"], info, verified.identity)
            request = Request(
                verified, self._service, operation, (bucket, route.key), info, params, head, body, peer.is_tls
            )
            return await entry.handler(request)
        except engine_errors.CordwoodError as error:
            if isinstance(error, engine_errors.Corrupt):
                log.error("request %s: %s", head.request_id, error)
            raise translate(error, head, request.params if request is not None else {}) from error

    def authorise(self, verified: Verified, action: str, bucket: str, key: str) -> BucketInfo:
        """The bucket, or AccessDenied, or the engine's BucketNotFound (which AWS, too, tells every key holder)."""
        identity = verified.identity
        if identity.is_anonymous:
            self._admit(identity, action)
        info = self._store.head_bucket(bucket)
        if not allowed(identity, action, Resource(bucket, key), self._context(info)):
            raise s3_error("AccessDenied")
        return info

    def _admit(self, identity: Identity, action: str) -> None:
        if not allowed(identity, action, Resource(), self._context(None)):
            raise s3_error("AccessDenied")

    def _context(self, info: BucketInfo | None) -> Context:
        # With one owner everything is his, also what he made under an earlier key pair.
        if info is None or not self._has_owners:
            return self._no_owner
        return Context(self._is_open, info.attrs.get("owner", _NOBODY)["id"])

    def owns(self, identity: Identity, info: BucketInfo) -> bool:
        """Is this one of the buckets that the identity sees in its list?"""
        return allowed(identity, "s3:ListBucket", Resource(info.name), self._context(info))


_NOBODY: Final = {"id": ""}


def _action(operation: Operation) -> str:
    return ACTIONS.get(operation.name) or f"s3:{operation.name}"


def _check_expected_owner(expected: str, info: BucketInfo, identity: Identity) -> None:
    owner = info.attrs.get("owner")
    if expected != (owner["id"] if owner is not None else identity.owner_id):
        raise s3_error("AccessDenied")


def build_app(store: Store, settings: Settings, credentials: Sequence[Credential]) -> App:
    """The application of one worker process."""
    return Application(
        store,
        credentials,
        region=settings.region,
        domains=settings.domain,
        is_open=settings.anonymous,
    )
