"""A request becomes a response: authenticate -> route -> authorise -> read parameters -> handler, in this file only.

Must not know: sockets, how any operation works.
Invariants:
* No step goes back to an earlier one, and nothing of the body is read before the signature of the head holds. A
  browser's form is signed in its first fields: of it these are read, and are small.
* A handler runs only for an identity that may do that action on that resource; the source of a copy passes the same
  gate.
* Every operation of the model ends in a handler or in NotImplemented.
* What leaves is a Response or an S3Error; an engine error never does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from cordwood.engine import BucketInfo, ObjectInfo, Store
from cordwood.engine import errors as engine_errors
from cordwood.server.bridge import Bridge
from cordwood.server.encryption import Encryption, Keys, Wish
from cordwood.server.gate import PAYER, SHARED, Demand, Gate
from cordwood.server.handlers import HANDLERS, Request, Service, translate
from cordwood.server.handlers.cors import preflight, sharing_headers
from cordwood.server.handlers.form_upload import receive_form
from cordwood.server.handlers.read import AT_ONCE
from cordwood.server.keyring import KeyFile
from cordwood.server.log_keeper import LogKeeper, Watch
from cordwood.server.log_record import LOGGING
from cordwood.server.notifications import Announcer
from cordwood.server.sessions import NAME as SESSION_KEY
from cordwood.server.sessions import Sessions
from cordwood.server.sts import SecurityTokens
from cordwood.server.website_endpoint import WebsiteEndpoint
from cordwood.server.wire.errors import S3Error, s3_error
from cordwood.server.wire.interpret import read_params
from cordwood.server.wire.message import Body, BodyError, PeerInfo, RequestHead, Response
from cordwood.server.wire.route import Operation, Route, Router
from cordwood.server.wire.sigv4 import Identity, Verified, authenticate, authenticate_form
from cordwood.server.wire.sts import is_for_sts

if TYPE_CHECKING:
    from cordwood.server.config import Credential, Settings
    from cordwood.server.config_values import Role

log = logging.getLogger("cordwood.app")

_NO_SNIFFING: Final = ("x-content-type-options", "nosniff")
# The file in a store's directory with its master keys, unless a setting names another.
MASTER_KEYS: Final = "master-keys"

# Operations whose permission is not their own name (Service Authorization Reference, "Actions for Amazon S3").
ACTIONS: Final = {
    "CompleteMultipartUpload": "s3:PutObject",
    "CopyObject": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "DeleteBucketAnalyticsConfiguration": "s3:PutAnalyticsConfiguration",
    "DeleteBucketCors": "s3:PutBucketCORS",
    "DeleteBucketEncryption": "s3:PutEncryptionConfiguration",
    "DeleteBucketIntelligentTieringConfiguration": "s3:PutIntelligentTieringConfiguration",
    "DeleteBucketInventoryConfiguration": "s3:PutInventoryConfiguration",
    "DeleteBucketLifecycle": "s3:PutLifecycleConfiguration",
    "DeleteBucketMetricsConfiguration": "s3:PutMetricsConfiguration",
    "DeleteBucketOwnershipControls": "s3:PutBucketOwnershipControls",
    "DeleteBucketReplication": "s3:PutReplicationConfiguration",
    "DeleteBucketTagging": "s3:PutBucketTagging",
    "DeletePublicAccessBlock": "s3:PutBucketPublicAccessBlock",
    "GetBucketAbac": "s3:GetBucketABAC",
    "GetBucketAccelerateConfiguration": "s3:GetAccelerateConfiguration",
    "GetBucketAnalyticsConfiguration": "s3:GetAnalyticsConfiguration",
    "GetBucketCors": "s3:GetBucketCORS",
    "GetBucketEncryption": "s3:GetEncryptionConfiguration",
    "GetBucketIntelligentTieringConfiguration": "s3:GetIntelligentTieringConfiguration",
    "GetBucketInventoryConfiguration": "s3:GetInventoryConfiguration",
    "GetBucketLifecycleConfiguration": "s3:GetLifecycleConfiguration",
    "GetBucketMetricsConfiguration": "s3:GetMetricsConfiguration",
    "GetBucketNotificationConfiguration": "s3:GetBucketNotification",
    "GetBucketReplication": "s3:GetReplicationConfiguration",
    "GetObjectAttributes": "s3:GetObject",
    "GetObjectLockConfiguration": "s3:GetBucketObjectLockConfiguration",
    "GetPublicAccessBlock": "s3:GetBucketPublicAccessBlock",
    "HeadBucket": "s3:ListBucket",
    "HeadObject": "s3:GetObject",
    "ListBucketAnalyticsConfigurations": "s3:GetAnalyticsConfiguration",
    "ListBucketIntelligentTieringConfigurations": "s3:GetIntelligentTieringConfiguration",
    "ListBucketInventoryConfigurations": "s3:GetInventoryConfiguration",
    "ListBucketMetricsConfigurations": "s3:GetMetricsConfiguration",
    "ListBuckets": "s3:ListAllMyBuckets",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "ListObjectVersions": "s3:ListBucketVersions",
    "ListObjects": "s3:ListBucket",
    "ListObjectsV2": "s3:ListBucket",
    "ListParts": "s3:ListMultipartUploadParts",
    "PutBucketAbac": "s3:PutBucketABAC",
    "PutBucketAccelerateConfiguration": "s3:PutAccelerateConfiguration",
    "PutBucketAnalyticsConfiguration": "s3:PutAnalyticsConfiguration",
    "PutBucketCors": "s3:PutBucketCORS",
    "PutBucketEncryption": "s3:PutEncryptionConfiguration",
    "PutBucketIntelligentTieringConfiguration": "s3:PutIntelligentTieringConfiguration",
    "PutBucketInventoryConfiguration": "s3:PutInventoryConfiguration",
    "PutBucketLifecycleConfiguration": "s3:PutLifecycleConfiguration",
    "PutBucketMetricsConfiguration": "s3:PutMetricsConfiguration",
    "PutBucketNotificationConfiguration": "s3:PutBucketNotification",
    "PutBucketReplication": "s3:PutReplicationConfiguration",
    "PutObjectLockConfiguration": "s3:PutBucketObjectLockConfiguration",
    "PutPublicAccessBlock": "s3:PutBucketPublicAccessBlock",
    "RenameObject": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "UploadPartCopy": "s3:PutObject",
}
# Actions with a twin for a version that is named.
_OF_A_VERSION: Final = {
    "s3:DeleteObject": "s3:DeleteObjectVersion",
    "s3:DeleteObjectTagging": "s3:DeleteObjectVersionTagging",
    "s3:GetObject": "s3:GetObjectVersion",
    "s3:GetObjectAcl": "s3:GetObjectVersionAcl",
    "s3:GetObjectTagging": "s3:GetObjectVersionTagging",
    "s3:PutObjectAcl": "s3:PutObjectVersionAcl",
    "s3:PutObjectTagging": "s3:PutObjectVersionTagging",
}
# Operations that a policy may refuse by their own name, too, although they go by another.
_BESIDE: Final = {"GetObjectAttributes": "s3:GetObjectAttributes"}
# Operations that name their objects in the body: the handler asks for each of them.
_ASKED_FOR_EACH_KEY: Final = frozenset(("DeleteObjects",))
_READING: Final = frozenset(("GET", "HEAD"))  # others would be looked at twice


class Application:
    """The `App` of message.py over one open store. Made inside a running trio loop."""

    def __init__(
        self,
        store: Store,
        credentials: Sequence[Credential],
        *,
        region: str = "us-east-1",
        domains: Sequence[str] = (),
        website_domains: Sequence[str] = (),
        is_open: bool = False,
        roles: Sequence[Role] = (),
        targets: Iterable[str] = (),
        torrent_tracker: str = "",
        encryption: Encryption | None = None,
    ) -> None:
        self._store = store
        sessions = Sessions(store.path / SESSION_KEY, credentials, roles)
        self._secret_for = sessions.credentials.get
        self._session_for = sessions.opener(time.time)
        self._region = region
        self._router = Router(domains)
        bridge = Bridge(store.start_commits)
        self._tokens = SecurityTokens(sessions, bridge, region)
        self._gate = Gate(store, bridge, credentials, region=region, is_open=is_open)
        announcer = Announcer(store, targets, region)
        if encryption is None:
            encryption = Encryption(Keys(KeyFile(store.path / MASTER_KEYS)))
        self.access_logs = LogKeeper(store, bridge, self._gate, announcer, encryption, region)
        self._service = Service(
            store,
            bridge,
            region,
            self._gate,
            self.access_logs,
            encryption,
            announcer,
            torrent_tracker,
        )

        self._website = (
            WebsiteEndpoint(self._service, website_domains, self._authenticated) if website_domains else None
        )

    async def __call__(self, head: RequestHead, body: Body, peer: PeerInfo) -> Response:
        if self._website is not None and (site := self._website.bucket_of(head)):
            page = await self._website.answer(head, body, peer, site)
            page.headers.append(_NO_SNIFFING)
            return page
        if "origin" not in head.headers and head.method != "OPTIONS":
            return await self._guarded(head, body, peer)
        bucket, key, _ = self._router.address(head)
        if head.method == "OPTIONS":
            return preflight(self._store, head, bucket, key)
        headers = sharing_headers(self._store, head, bucket)
        try:
            response = await self._guarded(head, body, peer)
        except S3Error as error:
            # A page may read why it was refused, too.
            error.headers = (*error.headers, *headers)
            raise
        response.headers.extend(headers)
        return response

    def at_once(self, head: RequestHead, body: Body, peer: PeerInfo) -> Response | None:
        """The `AtOnce` of message.py: the same steps in the same order, as far as the plainest requests take them.
        Whatever is not as usual begins anew in `__call__`."""
        headers = head.headers
        if (
            head.method not in _READING
            or head.raw_query
            or "authorization" not in headers
            or "origin" in headers
            or self._website is not None
        ):
            return None
        try:
            verified = self._authenticated(head)
            route = self._router.route(head)
        except S3Error:
            return None
        operation = route.operation
        answer = AT_ONCE.get(operation.name)
        if answer is None:
            return None
        try:
            info = self._store.head_bucket(route.bucket)
            if (
                LOGGING in info.attrs
                or PAYER in info.attrs
                or not self._gate.is_free(verified.identity, info)
            ):
                return None
            params = read_params(operation, head, HANDLERS[operation.name].refused)
            target = (route.bucket, route.key)
            return answer(Request(verified, self._service, operation, target, info, params, head, body, peer))
        except engine_errors.NotFound as error:
            raise translate(error, head, {}) from error
        except (S3Error, engine_errors.CordwoodError):
            return None

    async def _guarded(self, head: RequestHead, body: Body, peer: PeerInfo) -> Response:
        """An answer, or a refusal that is in the access log. What was not asked for by a program that signs its headers
        may have been asked for by a browser: it must not take what is stored for another type than it was stored as."""
        is_for_browser = "authorization" not in head.headers
        try:
            response = await self._answer(head, body, peer)
        except (S3Error, BodyError) as error:
            self._log_refusal(head, peer, error)
            if is_for_browser and isinstance(error, S3Error):
                error.headers = (*error.headers, _NO_SNIFFING)
            raise
        if is_for_browser:
            response.headers.append(_NO_SNIFFING)
        return response

    async def _answer(self, head: RequestHead, body: Body, peer: PeerInfo) -> Response:
        if head.method == "POST" and (form_bucket := self._router.form_bucket(head)):
            return await self._upload_form(head, body, peer, form_bucket)
        if is_for_sts(head) and not self._router.host_bucket(head):
            return await self._tokens.answer(head, body)
        verified = self._authenticated(head)
        route = self._router.route(head)
        operation = route.operation
        bucket = route.bucket
        info: BucketInfo | None = None
        seen: ObjectInfo | None = None
        request: Request | None = None
        watch: Watch | None = None
        try:
            if bucket and operation.name != "CreateBucket":
                info = self._store.head_bucket(bucket)
                if LOGGING in info.attrs:
                    watch = self.access_logs.watch(info, head, peer, route, verified.identity)
                    body = watch.body(body)
                if not self._gate.is_free(verified.identity, info):
                    seen = await self._check(
                        operation, info, route.key, Demand(verified.identity, head, peer)
                    )
            else:
                self._gate.admit(Demand(verified.identity, head, peer), _action(operation), bucket)
            entry = HANDLERS.get(operation.name)
            if entry is None:
                raise s3_error("NotImplemented")
            params = read_params(operation, head, entry.refused)
            if info is not None and "ExpectedBucketOwner" in params:
                _check_expected_owner(params["ExpectedBucketOwner"], info, verified.identity)
            target = (bucket, route.key)
            request = Request(
                verified, self._service, operation, target, info, params, head, body, peer, watch
            )
            if seen is not None:
                request.decided_on(seen)
            response = await entry.handler(request)
            if (
                info is not None
                and PAYER in info.attrs
                and not self._gate.is_insider(verified.identity, info)
            ):
                response.headers.append(("x-amz-request-charged", "requester"))
            if watch is not None:
                watch.answered(response, _action(operation), route.key)
            return response
        except engine_errors.CordwoodError as error:
            if isinstance(error, engine_errors.Corrupt):
                log.error("request %s: %s", head.request_id, error)
            raise translate(error, head, request.params if request is not None else {}) from error

    def _log_refusal(self, head: RequestHead, peer: PeerInfo, error: Exception) -> None:
        """For the access log of the bucket, if it has one: what was asked, and by whom, as far as that can be told."""
        route: Route | None = None
        identity: Identity | None = None
        try:
            bucket, key, _ = self._router.address(head)
        except S3Error:
            return
        try:
            route = self._router.route(head)
            identity = self._authenticated(head).identity
        except S3Error:
            pass  # then this is why it was refused, and the record says no more
        self.access_logs.refused(head, peer, (bucket, key), route, identity, error)

    def _authenticated(self, head: RequestHead) -> Verified:
        return authenticate(
            head,
            secret_for=self._secret_for,
            session_for=self._session_for,
            region=self._region,
            now_s=time.time(),
            host_bucket=self._router.host_bucket(head),
        )

    async def _upload_form(self, head: RequestHead, body: Body, peer: PeerInfo, bucket: str) -> Response:
        """A browser's form: its signature stands in the body, before the file. The rest is a PutObject."""
        params: dict[str, Any] = {}
        try:
            form = await receive_form(head, body)
            now_s = time.time()
            verified = authenticate_form(
                head,
                form.fields,
                secret_for=self._secret_for,
                session_for=self._session_for,
                region=self._region,
                now_s=now_s,
            )
            info = self._store.head_bucket(bucket)
            form.check(bucket, now_s)
            entry = HANDLERS["PutObject"]
            put = form.as_put()
            watch: Watch | None = None
            if LOGGING in info.attrs:
                route = Route(entry.operation, bucket, form.key, virtual_host=False)
                watch = self.access_logs.watch(info, head, peer, route, verified.identity)
            await self._gate.authorise(Demand(verified.identity, put, peer), "s3:PutObject", bucket, form.key)
            params = read_params(entry.operation, put, entry.refused)
            target = (bucket, form.key)
            request = Request(verified, self._service, entry.operation, target, info, params, put, form, peer)
            response = form.answer(await entry.handler(request), request)
            if watch is not None:
                watch.answered(response, "s3:PutObject", form.key)
            return response
        except engine_errors.CordwoodError as error:
            raise translate(error, head, params) from error

    async def _check(
        self, operation: Operation, info: BucketInfo, key: str, demand: Demand
    ) -> ObjectInfo | None:
        if operation.name in _ASKED_FOR_EACH_KEY and (SHARED in info.attrs or demand.identity.session):
            return None
        action = _action(operation)
        version_id = demand.head.parameter("versionId") or None
        if version_id is not None:
            action = _OF_A_VERSION.get(action, action)
        beside = _BESIDE.get(operation.name, "")
        if version_id is not None:
            beside = beside.replace("s3:GetObject", "s3:GetObjectVersion")
        try:
            return await self._gate.check(demand, action, info, key, version_id, beside=beside)
        except S3Error as error:
            if operation.name == "HeadBucket":
                # Whoever may not enter learns where the bucket is all the same: SDKs find regions so.
                error.headers = (*error.headers, ("x-amz-bucket-region", self._region))
            raise


def _action(operation: Operation) -> str:
    return ACTIONS.get(operation.name) or f"s3:{operation.name}"


def _check_expected_owner(expected: str, info: BucketInfo, identity: Identity) -> None:
    owner = info.attrs.get("owner")
    if expected != (owner["id"] if owner is not None else identity.owner_id):
        raise s3_error("AccessDenied")


def build_app(store: Store, settings: Settings, credentials: Sequence[Credential]) -> Application:
    """The application of one worker process."""
    return Application(
        store,
        credentials,
        region=settings.region,
        domains=settings.domain,
        website_domains=settings.website_domain,
        is_open=settings.anonymous,
        roles=settings.roles,
        targets=(target.arn for target in settings.notification_targets),
        torrent_tracker=settings.torrent_tracker,
        encryption=_encryption(store, settings),
    )


def _encryption(store: Store, settings: Settings) -> Encryption:
    master = settings.master_key_file
    named = settings.kms_key_file
    return Encryption(
        Keys(
            KeyFile(store.path / MASTER_KEYS if master is None else master),
            None if named is None else KeyFile(named),
        ),
        Wish(settings.default_encryption) if settings.default_encryption != "none" else None,
        settings.require_tls_for_customer_keys,
    )
