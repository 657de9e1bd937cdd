"""The website endpoint: a bucket's objects as pages, to everybody who may read them without a key pair.

Must not know: sockets, how objects are stored, signatures: a signed request is as anonymous here as any other.
Invariants:
* Only GET and HEAD, and only what the bucket's policy and lists let anonymous requests read; a key that is missing is
  told apart from one that is forbidden only where anonymous requests may list.
* Nothing but the key, the conditions and the range of a request reaches the object: no version, no override.
* Every answer is a page or a redirect; an error is HTML.

Source: "Website endpoints", "Configuring an index document", "Configuring a custom error document" and "Configuring a
webpage redirect", Amazon S3 User Guide.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import quote

import msgspec

from cordwood.engine import BucketInfo
from cordwood.engine import errors as engine_errors
from cordwood.server.gate import Demand
from cordwood.server.handlers import HANDLERS, Request, Service, translate
from cordwood.server.handlers.cors import preflight, sharing_headers
from cordwood.server.log_record import LOGGING
from cordwood.server.website import (
    WEBSITE,
    Redirect,
    Visit,
    error_page,
    folder_index_key,
    index_key,
    redirect_by_rule,
    redirect_into,
    redirect_of_all,
    redirect_of_object,
)
from cordwood.server.wire.errors import S3Error, s3_error
from cordwood.server.wire.interpret import read_params
from cordwood.server.wire.message import Body, PeerInfo, RequestHead, Response
from cordwood.server.wire.route import OPERATION, Route, Router
from cordwood.server.wire.sigv4 import Verified

log = logging.getLogger("cordwood.app")

_LOCATION: Final = "x-amz-website-redirect-location"
# What of a request may shape the answer.
_KEPT: Final = (
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "origin",
    "range",
    "referer",
    "user-agent",
)
_NOT_ERRORS: Final = frozenset((304,))


class WebsiteEndpoint:
    """Requests whose Host is BUCKET.DOMAIN for one of `domains`. `authenticated` makes the anonymous identity."""

    def __init__(
        self,
        service: Service,
        domains: Sequence[str],
        authenticated: Callable[[RequestHead], Verified],
    ) -> None:
        self._service = service
        self._router = Router(domains)
        self._authenticated = authenticated

    def bucket_of(self, head: RequestHead) -> str:
        """The bucket whose site is asked for; "" when the request is not for this endpoint."""
        return self._router.host_bucket(head)

    async def answer(self, head: RequestHead, body: Body, peer: PeerInfo, bucket: str) -> Response:
        """Never raises S3Error."""
        visitor = _Visitor(
            self._service, self._router, self._authenticated(_plain(head)), head, body, peer, bucket
        )
        return await visitor.served()


class _Visitor:
    """One request."""

    def __init__(
        self,
        service: Service,
        router: Router,
        verified: Verified,
        head: RequestHead,
        body: Body,
        peer: PeerInfo,
        bucket: str,
    ) -> None:
        self._service = service
        self._router = router
        self._verified = verified
        self._asked = head
        self._body = body
        self._peer = peer
        self._bucket = bucket
        self._plain = _plain(head)
        self._visit = Visit("", "", "http")

    async def served(self) -> Response:
        head = self._asked
        info: BucketInfo | None = None
        error: S3Error | None = None
        try:
            if head.method == "OPTIONS":
                return preflight(self._service.store, head, self._bucket, "x")
            self._visit = Visit(
                self._router.address(head)[1],
                head.headers.get("host", ""),
                "https" if self._peer.is_tls else "http",
                head.raw_query.decode("latin-1"),
            )
            info = self._info()
            response = await self._page(info)
        except S3Error as failure:
            error = failure
            response = await self._error(info, failure)
        if "origin" in head.headers:
            response.headers.extend(sharing_headers(self._service.store, head, self._bucket))
        if info is not None and LOGGING in info.attrs:
            self._write_down(info, response, error)
        return response

    def _info(self) -> BucketInfo:
        if self._asked.method not in ("GET", "HEAD"):
            raise s3_error("MethodNotAllowed", headers=(("allow", "GET, HEAD, OPTIONS"),))
        try:
            info = self._service.store.head_bucket(self._bucket)
        except engine_errors.BucketNotFound:
            raise s3_error("NoSuchBucket", bucket_name=self._bucket) from None
        if WEBSITE not in info.attrs:
            raise s3_error("NoSuchWebsiteConfiguration", bucket_name=self._bucket)
        return info

    async def _page(self, info: BucketInfo) -> Response:
        configuration, visit = info.attrs[WEBSITE], self._visit
        redirect = redirect_of_all(configuration, visit) or redirect_by_rule(configuration, visit)
        if redirect is not None:
            return _redirected(redirect)
        index = index_key(configuration, visit.key)
        if index is not None:
            return await self._object(info, index)
        try:
            return await self._object(info, visit.key)
        except S3Error as error:
            if error.status in (403, 404) and await self._is_readable(
                info, folder_index_key(configuration, visit.key)
            ):
                return _redirected(redirect_into(visit))
            raise

    async def _is_readable(self, info: BucketInfo, key: str) -> bool:
        try:
            _discard(await self._get(info, key, "HEAD"))
        except S3Error:
            return False
        return True

    async def _object(self, info: BucketInfo, key: str) -> Response:
        response = await self._get(info, key, self._asked.method)
        for name, value in response.headers:
            if name == _LOCATION:
                _discard(response)
                return _redirected(redirect_of_object(value))
        return response

    async def _get(self, info: BucketInfo, key: str, method: str) -> Response:
        """The object, as an anonymous GetObject or HeadObject of the API would answer."""
        entry = HANDLERS["GetObject" if method == "GET" else "HeadObject"]
        head = msgspec.structs.replace(self._plain, method=method)
        demand = Demand(self._verified.identity, head, self._peer)
        try:
            seen = await self._service.gate.check(demand, "s3:GetObject", info, key)
            params = read_params(entry.operation, head, entry.refused)
            request = Request(
                self._verified,
                self._service,
                entry.operation,
                (self._bucket, key),
                info,
                params,
                head,
                self._body,
                self._peer,
            )
            request.decided_on(seen)
            return await entry.handler(request)
        except engine_errors.CordwoodError as error:
            if isinstance(error, engine_errors.Corrupt):
                log.error("request %s: %s", head.request_id, error)
            raise translate(error, head, {}) from error

    # --- errors -----------------------------------------------------------------------------------------------

    async def _error(self, info: BucketInfo | None, error: S3Error) -> Response:
        if error.status in _NOT_ERRORS:
            return Response(error.status, list(error.headers), body=None)
        headers = [
            ("x-amz-error-code", error.code),
            ("x-amz-error-message", quote(error.message, safe=" !\"#$&'()*+,-./:;<=>?@[]^_`{|}~")),
            *error.headers,
        ]
        failed: list[tuple[str, str]] = []
        if info is not None:
            configuration = info.attrs[WEBSITE]
            redirect = redirect_by_rule(configuration, self._visit, error.status)
            if redirect is not None:
                return _redirected(redirect)
            document = configuration.get("ErrorDocument")
            if document is not None and 400 <= error.status < 500:
                try:
                    return await self._own_page(info, document["Key"], error, headers)
                except S3Error as second:
                    failed = [("Code", second.code), ("Message", second.message)]
        details = [("Code", error.code), ("Message", error.message)]
        details += [(name, value) for name, value in error.fields if name in ("Key", "BucketName")]
        details += [("RequestId", self._asked.request_id), ("HostId", self._asked.host_id)]
        page = error_page(error.status, details, failed)
        headers.append(("content-type", "text/html; charset=utf-8"))
        return Response(error.status, headers, page)

    async def _own_page(
        self, info: BucketInfo, key: str, error: S3Error, headers: list[tuple[str, str]]
    ) -> Response:
        """The site's error document, under the status of the error and whole, whatever part was asked for."""
        conditions = [name for name in self._plain.headers if name.startswith("if-") or name == "range"]
        for name in conditions:
            del self._plain.headers[name]
        response = await self._get(info, key, self._asked.method)
        response.status = error.status
        kept = (
            "content-type",
            "content-length",
            "content-encoding",
            "content-language",
            "cache-control",
            "etag",
        )
        response.headers = [
            *((name, value) for name, value in response.headers if name in (*kept, "last-modified")),
            *headers,
        ]
        return response

    def _write_down(self, info: BucketInfo, response: Response, error: S3Error | None) -> None:
        route = Route(OPERATION["GetObject"], self._bucket, self._visit.key, virtual_host=True)
        watch = self._service.access_logs.watch(
            info, self._asked, self._peer, route, self._verified.identity, is_website=True
        )
        code = error.code if error is not None and response.status >= 400 else ""
        watch.answered(response, "s3:GetObject", self._visit.key, error_code=code)


def _plain(head: RequestHead) -> RequestHead:
    """The request without all that would sign it or ask for more than a page."""
    kept = {name: head.headers[name] for name in _KEPT if name in head.headers}
    return msgspec.structs.replace(head, method="GET", headers=kept, query=[], raw_query=b"")


def _discard(response: Response) -> None:
    """It will not be sent."""
    if response.on_done is not None:
        response.on_done()


def _redirected(redirect: Redirect) -> Response:
    return Response(redirect.status, [("location", redirect.location)])
