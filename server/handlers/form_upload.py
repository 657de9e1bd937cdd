"""Uploads from browsers: POST to a bucket, multipart/form-data. The form becomes a PutObject.

Must not know: how an object is stored (write.py does it), how signatures are made.
Invariants:
* Nothing of the file is used before the fields, which stand before it, were authenticated and fit the policy.
* The size that the policy allows is held against the bytes as they come, and before anything is committed.
* A file whose end did not arrive is not stored.

Source: "POST Object", Amazon S3 API Reference.
"""

from __future__ import annotations

from collections import deque
from typing import Final
from urllib.parse import quote, urlencode, urlsplit

from cordwood.server.handlers.request import Request
from cordwood.server.wire.errors import s3_error
from cordwood.server.wire.form import FormParser, boundary_of, malformed_post
from cordwood.server.wire.interpret import parse_http_date
from cordwood.server.wire.message import Body, RequestHead, Response
from cordwood.server.wire.post_policy import PostPolicy, parse_post_policy
from cordwood.server.wire.route import OPERATION, check_key
from cordwood.server.wire.xml import DECLARATION, leaf, parse

# Fields that become a header of the PutObject under another name, and those that keep theirs.
_RENAMED: Final = {"acl": "x-amz-acl"}
_KEPT: Final = frozenset(
    (
        "cache-control",
        "content-disposition",
        "content-encoding",
        "content-language",
        "content-type",
        "expires",
    )
)
_OF_THE_SIGNATURE: Final = frozenset(
    ("x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-signature", "x-amz-security-token")
)
_PUT: Final = OPERATION["PutObject"]
_FILENAME: Final = "${filename}"


async def receive_form(head: RequestHead, body: Body) -> Form:
    """Read the fields, up to the first bytes of the file."""
    parser = FormParser(boundary_of(head.headers.get("content-type", "")))
    pieces: deque[bytes] = deque()
    while parser.filename is None:
        data = await body.receive()
        if not data:
            raise malformed_post()
        pieces.extend(parser.feed(data))
    return Form(head, body, parser, pieces)


class Form:
    """A form whose fields have arrived. It is also the `Body` of the PutObject: the bytes of the file."""

    def __init__(self, head: RequestHead, body: Body, parser: FormParser, pieces: deque[bytes]) -> None:
        self._head = head
        self._body = body
        self._parser = parser
        self._pieces = pieces
        self._rest = memoryview(b"")
        self._received_bytes = 0
        self._policy: PostPolicy | None = None
        filename = parser.filename or ""
        # The policy holds for what is stored, so the name is put in before it is asked.
        self.fields = {name: value.replace(_FILENAME, filename) for name, value in parser.fields.items()}
        for name in ("policy", "signature", "x-amz-signature"):
            if name in self.fields:
                self.fields[name] = parser.fields[name]
        self.key = self.fields.get("key", "")

    def check(self, bucket: str, now_s: float) -> None:
        """The key, the policy if there is one, and that the form is meant for this bucket."""
        if not self.key:
            raise s3_error(
                "InvalidArgument",
                "Bucket POST must contain a field named 'key'.  If it is specified, please check the order of the "
                "fields.",
                argument_name="key",
                argument_value="",
            )
        check_key(self.key)
        if "policy" in self.fields:
            self._policy = parse_post_policy(self.fields["policy"])
            self._policy.check({"bucket": bucket, **self.fields}, self.fields.get("bucket", bucket), now_s)
        if self.fields.get("bucket", bucket) != bucket:
            raise s3_error("AccessDenied", "Invalid according to Policy: the form is for another bucket.")

    def as_put(self) -> RequestHead:
        """The head of the PutObject that the form stands for."""
        headers = {"host": self._head.headers.get("host", "")}
        for name in ("user-agent", "referer", "origin"):
            if name in self._head.headers:
                headers[name] = self._head.headers[name]
        for name, value in self.fields.items():
            name = _RENAMED.get(name, name)
            is_known = name in _KEPT or name.startswith(("x-amz-meta-", "x-amz-checksum-"))
            is_ours = name.startswith("x-amz-") and name in _PUT.headers and name not in _OF_THE_SIGNATURE
            if value and (is_known or is_ours):
                headers[name] = _header_value(name, value)
        if "tagging" in self.fields:
            headers["x-amz-tagging"] = _tagging(self.fields["tagging"])
        return RequestHead(
            method="POST",
            target=self._head.target,
            raw_path=self._head.raw_path,
            path=self._head.path,
            query=[],
            raw_query=b"",
            headers=headers,
            content_length=None,
            # The length of the file shows only when it ends.
            is_chunked=True,
            expect_continue=False,
            keep_alive=self._head.keep_alive,
            http_version=self._head.http_version,
            request_id=self._head.request_id,
            host_id=self._head.host_id,
        )

    async def receive(self) -> bytes:
        """The next bytes of the file, b"" at its end."""
        while not self._pieces:
            if self._parser.finished:
                await self._drain()
                self._check_least()
                return b""
            data = await self._body.receive()
            if not data:
                self._parser.finish()
            self._pieces.extend(self._parser.feed(data))
        piece = self._pieces.popleft()
        self._received_bytes += len(piece)
        if self._policy is not None and self._received_bytes > self._policy.most_bytes:
            raise s3_error(
                "EntityTooLarge",
                proposed_size=self._received_bytes,
                max_size_allowed=self._policy.most_bytes,
            )
        return piece

    async def receive_into(self, buffer: memoryview) -> int:
        """The same, into a buffer."""
        if not self._rest:
            self._rest = memoryview(await self.receive())
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    async def _drain(self) -> None:
        """What follows the file is not looked at, but has to arrive."""
        while await self._body.receive():
            pass

    def _check_least(self) -> None:
        if self._policy is not None and self._received_bytes < self._policy.least_bytes:
            raise s3_error(
                "EntityTooSmall",
                proposed_size=self._received_bytes,
                min_size_allowed=self._policy.least_bytes,
            )

    def answer(self, stored: Response, request: Request) -> Response:
        """What the form asked to hear: a redirect, or 200, 201 with a document, or 204."""
        headers = [(name, value) for name, value in stored.headers if name != "content-length"]
        etag = next((value for name, value in headers if name == "etag"), "")
        scheme = "https" if request.is_tls else "http"
        path = request.head.raw_path.decode("latin-1").rstrip("/")
        location = f"{scheme}://{request.head.headers['host']}{path}/{quote(request.key)}"
        target = self._redirect(request.bucket, request.key, etag)
        if target is not None:
            return Response(303, [*headers, ("location", target)])
        headers.append(("location", location))
        status = {"200": 200, "201": 201}.get(self.fields.get("success_action_status", ""), 204)
        if status != 201:
            return Response(status, headers, None if status == 204 else b"")
        document = "".join(
            (
                DECLARATION,
                "<PostResponse>",
                leaf("Location", location),
                leaf("Bucket", request.bucket),
                leaf("Key", request.key),
                leaf("ETag", etag),
                "</PostResponse>",
            )
        )
        return Response(201, [*headers, ("content-type", "application/xml")], document.encode())

    def _redirect(self, bucket: str, key: str, etag: str) -> str | None:
        """AWS does as if the field were not there when it holds no URL."""
        url = self.fields.get("success_action_redirect") or self.fields.get("redirect")
        if not url or any(char <= " " or char == "\x7f" for char in url):
            return None
        try:
            parts = urlsplit(url)
        except ValueError:
            return None
        if parts.scheme not in ("http", "https") or not parts.netloc or not url.isascii():
            return None
        added = urlencode({"bucket": bucket, "key": key, "etag": etag}, quote_via=quote)
        query = f"{parts.query}&{added}" if parts.query else added
        return parts._replace(query=query).geturl()


def _header_value(name: str, value: str) -> str:
    """A field may hold line breaks, a header may not."""
    if any(char in value for char in "\r\n\0"):
        raise s3_error("InvalidArgument", argument_name=name, argument_value=value)
    if name == "expires":
        try:
            parse_http_date(value)
        except ValueError:
            raise s3_error("InvalidArgument", argument_name=name, argument_value=value) from None
    return value


def _tagging(document: str) -> str:
    """The tags of the form's XML as the header of a PutObject has them."""
    pairs = []
    root = parse(document.encode(), "Tagging")
    for tag_set in root.children:
        for tag in tag_set.children:
            key, value = tag.child("Key"), tag.child("Value")
            if tag.name != "Tag" or key is None or value is None:
                raise s3_error("MalformedXML")
            pairs.append((key.text, value.text))
    return urlencode(pairs, quote_via=quote)
