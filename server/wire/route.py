"""From a request line to one operation of the S3 model, a bucket and a key.

Must not know: trio, the engine, which operations are implemented.
Invariants:
* Every operation of the model that a single server can be asked for is reachable (a test feeds real SDK requests).
* A query key that selects a sub-resource never falls through to the plain operation of that method: it matches, or
  it is MethodNotAllowed (the sub-resource knows other methods) or NotImplemented (it is unknown at this depth).
* Nothing here looks at the body.

A route is chosen by method and path depth, then most literal query keys, then most required query parameters, then
most required headers. The table is operations.py; what stands here by hand is how AWS treats query keys that the model
does not name: parameters of the signature, `x-id`, and unknown keys with a value (which AWS ignores).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final
from urllib.parse import unquote_to_bytes

from cordwood.server.wire.errors import S3Error, s3_error
from cordwood.server.wire.message import RequestHead
from cordwood.server.wire.operations import COMMON, OPERATIONS, Member
from cordwood.server.wire.resource_types import resource_type

MAX_KEY_BYTES = 1024
_SURELY_SHORT: Final = (
    MAX_KEY_BYTES // 4
)  # as many characters as are within the limit however they are encoded


class Operation:
    """One row of the model, compiled. `headers` and `query` map a wire name to (member, type)."""

    __slots__ = (
        "depth",
        "headers",
        "inputs",
        "literals",
        "method",
        "name",
        "outputs",
        "payload",
        "prefixes",
        "query",
        "required_headers",
        "required_query",
        "root",
        "routed",
        "status",
    )

    def __init__(self, name: str) -> None:
        row = OPERATIONS[name]
        self.name: Final = name
        self.method, self.depth, literals, self.required_query, self.required_headers, self.status = row[:6]
        self.routed = row[6]
        self.literals: tuple[tuple[str, str], ...] = tuple(_literal(text) for text in literals)
        self.payload = row[7]
        self.root = row[8]
        self.inputs = {member[0]: member for member in _expand(row[9])}
        self.outputs = {member[0]: member for member in _expand(row[10])}
        inputs = self.inputs.values()
        self.headers = {wire: (member, kind) for member, place, wire, kind in inputs if place == "header"}
        self.query = {wire: (member, kind) for member, place, wire, kind in inputs if place == "query"}
        self.prefixes = tuple((wire, member) for member, place, wire, _ in inputs if place == "prefix")

    def __repr__(self) -> str:
        return f"<Operation {self.name}>"


class Route:
    """What a request is addressed to. `key` is "" below depth "object"."""

    __slots__ = ("bucket", "key", "operation", "virtual_host")

    def __init__(self, operation: Operation, bucket: str, key: str, virtual_host: bool) -> None:
        self.operation = operation
        self.bucket = bucket
        self.key = key
        self.virtual_host = virtual_host


def _literal(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


def _expand(members: Iterable[Member | str]) -> list[Member]:
    return [(member, *COMMON[member]) if isinstance(member, str) else member for member in members]


OPERATION: Final = {name: Operation(name) for name in OPERATIONS}


class _Candidates:
    """The operations of one (method, depth), most specific first."""

    __slots__ = ("ordered", "parameters", "plain", "selectors")

    def __init__(self, operations: list[Operation]) -> None:
        self.ordered = sorted(
            operations,
            key=lambda o: (-len(o.literals), -len(o.required_query), -len(o.required_headers), o.name),
        )
        plain = [o for o in operations if not (o.literals or o.required_query or o.required_headers)]
        assert len(plain) <= 1, plain
        self.plain = plain[0] if plain else None
        # Headers that pick another operation than the plain one.
        self.selectors = frozenset(
            header
            for o in operations
            if not (o.literals or o.required_query)
            for header in o.required_headers
        )
        # Every query key that means something to some operation here.
        self.parameters = frozenset(key for o in operations for key in o.query) | frozenset(
            key for o in operations for key, _ in o.literals
        )


_PATHS = {"service": "service", "bucket": "bucket", "object": "object"}
_CANDIDATES: Final[dict[tuple[str, str], _Candidates]] = {
    (method, depth): _Candidates(
        [o for o in OPERATION.values() if o.routed and (o.method, o.depth) == (method, depth)]
    )
    for method, depth in {(o.method, o.depth) for o in OPERATION.values() if o.routed and o.depth in _PATHS}
}
# Operations with a path of their own ("/WriteGetObjectResponse"): no bucket name has an upper-case letter.
_FIXED: Final = {o.depth: o for o in OPERATION.values() if o.depth not in _PATHS}

_METHODS = frozenset(o.method for o in OPERATION.values())
# sub-resource -> the (method, depth) pairs that have it
_SUBRESOURCES: Final[dict[str, set[tuple[str, str]]]] = {}
for _operation in OPERATION.values():
    for _name, _ in _operation.literals:
        _SUBRESOURCES.setdefault(_name, set()).add((_operation.method, _operation.depth))
# Query keys that choose an operation without being its literal: uploadId, partNumber, id, annotationName.
_SELECTING: Final = frozenset(key for o in OPERATION.values() for key in o.required_query)

# A literal with a value (list-type=2, select-type=2): with another value it is an argument, not a sub-resource.
_VALUED: Final = frozenset(key for o in OPERATION.values() for key, value in o.literals if value)
# Query keys of which AWS takes one at a time, and the pairs that belong together. It does not count the two of
# directory buckets.
_SELECTORS: Final = (_SUBRESOURCES.keys() - _VALUED - {"renameObject", "session"}) | (_SELECTING - {"id"})
_TOGETHER: Final = ({"partNumber", "uploadId"}, {"annotation", "annotationName"})

# Known everywhere, and never a member: the query forms of authentication, and the SDKs' name of the operation.
_UNIVERSAL: Final = frozenset(
    (
        "X-Amz-Algorithm",
        "X-Amz-Credential",
        "X-Amz-Date",
        "X-Amz-Expires",
        "X-Amz-SignedHeaders",
        "X-Amz-Signature",
        "X-Amz-Security-Token",
        "X-Amz-Content-Sha256",
        "X-Amz-S3session-Token",
        "X-Amz-User-Agent",
        "AWSAccessKeyId",
        "Signature",
        "Expires",
        "x-id",
        "x-amz-security-token",
    )
)


class Router:
    """Routes heads, with the host names below which a label is a bucket name (virtual-host style)."""

    def __init__(self, domains: Sequence[str] = ()) -> None:
        self._suffixes = tuple(f".{domain.lower().strip('.')}" for domain in domains)

    def route(self, head: RequestHead) -> Route:
        bucket, key, virtual_host = self.address(head)
        if not bucket and not key:
            return Route(choose(head, "service"), "", "", virtual_host)
        if not bucket:
            raise s3_error("InvalidBucketName", bucket_name="")
        if not key:
            fixed = _FIXED.get(f"/{bucket}")
            if fixed is not None and not virtual_host:
                return Route(fixed, "", "", False)
            return Route(choose(head, "bucket"), bucket, "", virtual_host)
        return Route(choose(head, "object"), bucket, key, virtual_host)

    def address(self, head: RequestHead) -> tuple[str, str, bool]:
        """(bucket, key, virtual-host style?). The bucket name is not validated, the key's length and bytes are."""
        path = head.raw_path
        if self._suffixes:
            bucket = self.host_bucket(head)
            if bucket:
                return bucket, _key(path[1:]), True
        if b"%" not in path:
            bucket, _, key = head.path[1:].partition("/")  # decoded already
            check_key(key)
            return bucket, key, False
        raw_bucket, slash, raw_key = path[1:].partition(b"/")
        bucket = _decode(raw_bucket)
        if not slash or not raw_key:
            return bucket, "", False
        return bucket, _key(raw_key), False

    def form_bucket(self, head: RequestHead) -> str:
        """The bucket that a browser's form is sent to; "" for every other request."""
        if not head.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            return ""
        if "authorization" in head.headers or any(name in _SUBRESOURCES for name, _ in head.query):
            return ""
        bucket, key, _ = self.address(head)
        return "" if key else bucket

    def host_bucket(self, head: RequestHead) -> str:
        """The bucket that the Host names; "" in path style."""
        if not self._suffixes:
            return ""
        name = head.headers.get("host", "").lower()
        if name.rpartition(":")[2].isdigit():
            name = name.rpartition(":")[0]
        for suffix in self._suffixes:
            if name.endswith(suffix):
                return name[: -len(suffix)]
        return ""


def choose(head: RequestHead, depth: str) -> Operation:
    """The operation for this method, depth, query and headers, or an S3Error that says why there is none."""
    method = head.method
    headers = head.headers
    if "x-amz-copy-source" in headers and method != "PUT":
        raise s3_error(
            "InvalidArgument",
            "You can only specify a copy source header for copy requests.",
            argument_name="x-amz-copy-source",
            argument_value=headers["x-amz-copy-source"],
        )
    candidates = _CANDIDATES.get((method, depth))
    if candidates is None:
        raise _no_candidates(head, depth)
    plain = candidates.plain
    if not head.query and plain is not None and candidates.selectors.isdisjoint(headers):
        return plain
    query = dict(head.query)
    _check_selection(query, method, depth)
    for operation in candidates.ordered:
        if _matches(operation, query, headers):
            _check_query(operation, query, method, depth, candidates)
            return operation
    raise _no_match(query, method, depth)


def _check_selection(query: dict[str, str], method: str, depth: str) -> None:
    """Refuse query keys that select two things at once, and those of an upload where there can be none."""
    selected = _SELECTORS.intersection(query)
    if not selected or depth == "service":
        return
    if depth == "bucket":
        selected -= {"annotationName"}
    if len(selected) > 1 and selected not in _TOGETHER:
        names = sorted(selected)
        raise s3_error(
            "InvalidArgument",
            f"Conflicting query string parameters: {', '.join(names)}",
            argument_name="ResourceType",
            argument_value=names[0],
        )
    if "partNumber" in selected and "uploadId" in selected:
        if method != "PUT":
            raise _not_allowed(method, "PART", ("PUT",))
    elif "uploadId" in selected and method not in ("GET", "POST", "DELETE", "PUT"):
        raise _not_allowed(method, "UPLOAD", ("DELETE", "GET", "POST"))
    if depth == "bucket":
        if "partNumber" in selected:
            raise s3_error("InvalidRequest", "Object must have a valid key name.")
        if "uploadId" in selected:
            raise s3_error("InvalidRequest", "A key must be specified")
    elif selected == {"annotationName"}:
        raise s3_error(
            "InvalidArgument",
            "Unexpected query string parameter",
            argument_name="ResourceType",
            argument_value="annotationName",
        )
    if query.get("website"):
        raise s3_error(
            "InvalidArgument",
            "The website parameter must not have a value",
            argument_name="website",
            argument_value=query["website"],
        )


def _not_allowed(method: str, resource: str, allowed: Iterable[str]) -> S3Error:
    return s3_error(
        "MethodNotAllowed",
        headers=(("allow", ", ".join(sorted(allowed))),),
        method=method,
        resource_type=resource,
    )


def _matches(operation: Operation, query: dict[str, str], headers: dict[str, str]) -> bool:
    for key, value in operation.literals:
        if key not in query or (value and query[key] != value):
            return False
    for key in operation.required_query:
        if key not in query:
            return False
    return all(header in headers for header in operation.required_headers)


def _check_query(
    operation: Operation, query: dict[str, str], method: str, depth: str, candidates: _Candidates
) -> None:
    """Refuse every query key that the chosen operation does not know and that AWS would not ignore."""
    known = operation.query
    if "versionId" in query and "versionId" not in known and (depth == "bucket" or method == "GET"):
        raise s3_error(
            "InvalidArgument",
            "This operation does not accept a version-id.",
            argument_name="versionId",
            argument_value=query["versionId"],
        )
    for key, value in query.items():
        if key == "list-type" and operation.name == "ListObjects":
            continue  # any value but 2 asks for the first version of the listing
        if key in known or key in _UNIVERSAL or any(key == name for name, _ in operation.literals):
            continue
        lowered = key.lower()
        if lowered.startswith("x-amz-"):
            continue
        if key in _VALUED:
            raise s3_error("InvalidArgument", argument_name=key, argument_value=value)
        if key in _SUBRESOURCES:
            raise _wrong_subresource(key, method, depth)
        if key in _SELECTING and key != "id" and key in candidates.parameters:
            message = f"This operation does not accept a query-string parameter '{key}' on its own."
            if key == "partNumber":
                message = "This operation does not accept partNumber without uploadId"
            raise s3_error("InvalidArgument", message, argument_name=key, argument_value=value)
        if not value and key not in _HARMLESS_BARE:
            raise s3_error("NotImplemented", header=key)


# Members of other operations that clients send empty to list calls (an empty prefix, an empty marker).
_HARMLESS_BARE: Final = frozenset(key for o in OPERATION.values() for key in o.query) - _SELECTING


def _wrong_subresource(key: str, method: str, depth: str) -> S3Error:
    pairs = _SUBRESOURCES[key]
    if (method, depth) in pairs:
        if key == "attributes":
            return missing_attributes()
        # The literal is right, so a required parameter is missing.
        return s3_error("InvalidArgument", f"A required query parameter is missing beside '{key}'.")
    here = {known for known, other in pairs if other == depth}
    anywhere = {known for known, _ in pairs}
    if depth == "object" and ("GET", "bucket") in pairs:
        if method == "GET" and ("POST", "object") in pairs:
            return s3_error("InvalidRequest", f"Key is not expected for the GET method ?{key} subresource")
        if not here and method in anywhere:
            return s3_error("InvalidRequest", f"There is no such thing as the ?{key} sub-resource for a key")
    if here or method not in anywhere or key == "torrent":
        return _not_allowed(method, resource_type(key, depth), here or anywhere)
    return s3_error("NotImplemented", header=key)


def missing_attributes() -> S3Error:
    return s3_error(
        "InvalidRequest",
        "The x-amz-object-attributes header specifying the attributes to be retrieved is either missing or empty",
    )


def _no_match(query: dict[str, str], method: str, depth: str) -> S3Error:
    """No operation at all: POST without a known sub-resource, or with one of another method."""
    for key, value in query.items():
        if key in _SUBRESOURCES:
            return _wrong_subresource(key, method, depth)
        if not value and key not in _UNIVERSAL and key not in _HARMLESS_BARE:
            return s3_error("NotImplemented", header=key)
    if method == "POST" and depth == "bucket":
        return s3_error(
            "PreconditionFailed", condition="Bucket POST must be of the enclosure-type multipart/form-data"
        )
    return s3_error("MethodNotAllowed", method=method, resource_type=depth.upper())


def _no_candidates(head: RequestHead, depth: str) -> S3Error:
    method = head.method
    if method not in _METHODS and method not in _UNUSED_METHODS:
        return s3_error("BadRequest", "An error occurred when parsing the HTTP request.")
    query = dict(head.query)
    _check_selection(query, method, depth)
    if depth != "service":
        for key in query:
            if key in _SUBRESOURCES and key not in _VALUED:
                return _wrong_subresource(key, method, depth)
    if method in _METHODS:
        for key, value in query.items():
            if not value and key not in _UNIVERSAL and key not in _HARMLESS_BARE:
                return s3_error("NotImplemented", header=key)
    return _not_allowed(method, depth.upper(), {known for known, other in _CANDIDATES if other == depth})


# No operation has them, and yet AWS knows them.
_UNUSED_METHODS: Final = frozenset(("OPTIONS", "PATCH"))


def _decode(raw: bytes) -> str:
    if b"%" in raw:
        raw = unquote_to_bytes(raw)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise s3_error("InvalidURI") from None


def _key(raw: bytes) -> str:
    key = _decode(raw)
    check_key(key)
    return key


def check_key(key: str) -> None:
    """The rules of a key that hold wherever it comes from (path, copy source, XML)."""
    if len(key) > _SURELY_SHORT and (size := len(key.encode("utf-8"))) > MAX_KEY_BYTES:
        raise s3_error("KeyTooLongError", size=size, max_size_allowed=MAX_KEY_BYTES)
    if "\0" in key:
        raise s3_error("InvalidArgument", "A key must not hold a NUL character.", argument_name="Key")
