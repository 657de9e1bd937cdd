"""Routing: what the SDK really sends reaches the operation it was meant for, and nothing else slips through."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from cordwood.server.wire import generate, operations
from cordwood.server.wire.errors import S3Error
from cordwood.server.wire.message import RequestHead
from cordwood.server.wire.operations import OPERATIONS
from cordwood.server.wire.route import OPERATION, Router

botocore = pytest.importorskip("botocore", reason="botocore is needed to make the SDK's own requests")


def head_of(method: str, url: str, headers: dict[str, str] | None = None) -> RequestHead:
    parts = urlsplit(url)
    raw_path = parts.path.encode() or b"/"
    query = []
    if parts.query:
        for piece in parts.query.split("&"):
            name, _, value = piece.partition("=")
            query.append((unquote(name), unquote(value)))
    fields = {"host": parts.netloc, **(headers or {})}
    return RequestHead(
        method=method,
        target=raw_path,
        raw_path=raw_path,
        path=unquote(parts.path),
        query=query,
        raw_query=parts.query.encode(),
        headers=fields,
        content_length=0,
        is_chunked=False,
        expect_continue=False,
        keep_alive=True,
        http_version="1.1",
    )


def route(method: str, url: str, headers: dict[str, str] | None = None, domains: tuple[str, ...] = ()) -> Any:
    return Router(domains).route(head_of(method, url, headers))


# --- the SDK's own requests ----------------------------------------------------------------------------------


def sample_value(shape: Any, name: str) -> Any:
    """A small valid value of a shape of the model."""
    kind = shape.type_name
    if name in ("Bucket", "Key"):
        return {"Bucket": "some-bucket", "Key": "some/key"}[name]
    if kind == "string":
        return shape.enum[0] if shape.enum else "abc"
    if kind in ("integer", "long"):
        return 1
    if kind == "boolean":
        return True
    if kind == "timestamp":
        return "2026-01-02T03:04:05Z"
    if kind == "list":
        return [sample_value(shape.member, "")]
    if kind == "map":
        return {"a": "b"}
    if kind == "blob":
        return io.BytesIO(b"x")
    return {
        member: sample_value(child, member)
        for member, child in shape.members.items()
        if member in shape.required_members
    }


def sdk_requests() -> Iterator[tuple[str, str, Any]]:
    """(operation, variant, serialised request): with required members only, and with every header and query member."""
    import botocore.serialize
    import botocore.session

    model = botocore.session.get_session().get_service_model("s3")
    serializer = botocore.serialize.create_serializer("rest-xml", include_validation=False)
    for name in model.operation_names:
        operation = model.operation_model(name)
        shape = operation.input_shape
        members = shape.members if shape is not None else {}
        required = shape.required_members if shape is not None else []
        minimal = {m: sample_value(members[m], m) for m in required}
        yield name, "minimal", serializer.serialize_to_request(minimal, operation)
        full = dict(minimal)
        for member, child in members.items():
            if child.serialization.get("location") in ("header", "headers", "querystring"):
                full[member] = sample_value(child, member)
        yield name, "full", serializer.serialize_to_request(full, operation)


# Deprecated operations route to the twin that replaced them; one is told apart by a host that we do not have.
TWINS = {
    "GetBucketLifecycle": "GetBucketLifecycleConfiguration",
    "GetBucketNotification": "GetBucketNotificationConfiguration",
    "PutBucketLifecycle": "PutBucketLifecycleConfiguration",
    "PutBucketNotification": "PutBucketNotificationConfiguration",
    "ListDirectoryBuckets": "ListBuckets",
}


@pytest.mark.parametrize(
    ("name", "request_dict"), [pytest.param(n, r, id=f"{n}-{v}") for n, v, r in sdk_requests()]
)
def test_a_request_of_the_sdk_reaches_its_operation(name: str, request_dict: Any) -> None:
    query = request_dict["query_string"]
    path = request_dict["url_path"]
    url = f"http://localhost{path}"
    if isinstance(query, dict) and query:
        pieces = []
        for key, value in query.items():
            for each in value if isinstance(value, list) else [value]:
                pieces.append(f"{key}={each}" if each is not None else key)
        url += ("&" if "?" in path else "?") + "&".join(pieces)
    headers = {key.lower(): str(value) for key, value in request_dict["headers"].items()}
    found = route(request_dict["method"], url, headers)
    assert found.operation.name == TWINS.get(name, name)
    if OPERATION[name].depth in ("bucket", "object"):
        assert found.bucket == "some-bucket"
    if OPERATION[name].depth == "object":
        assert found.key == "some/key"


def test_the_tables_are_what_the_generator_writes() -> None:
    if botocore.__version__ != operations.MODEL_VERSION:
        pytest.skip(
            f"the tables were made from botocore {operations.MODEL_VERSION}, and {botocore.__version__} is "
            "installed: install that version, or regenerate with python -m cordwood.server.wire.generate"
        )
    assert generate.main(["--check"]) == 0


def test_the_tables_name_every_operation_of_the_model() -> None:
    assert len(OPERATIONS) == 116


# --- addresses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "bucket", "key"),
    [
        ("/", "", ""),
        ("/b", "b", ""),
        ("/b/", "b", ""),
        ("/b/k", "b", "k"),
        ("/b//k", "b", "/k"),
        ("/b/k/", "b", "k/"),
        ("/b/a%2Fb", "b", "a/b"),
        ("/b/%2F", "b", "/"),
        ("/b/..", "b", ".."),
        ("/b/a/../c", "b", "a/../c"),
        ("/b/a+b%20c", "b", "a+b c"),
        ("/b/%F0%9F%AA%B5", "b", "\N{WOOD}"),
        ("/b%2Fc/k", "b/c", "k"),
        ("/b/%252F", "b", "%2F"),
    ],
)
def test_a_path_names_bucket_and_key_without_any_normalisation(path: str, bucket: str, key: str) -> None:
    assert Router().address(head_of("GET", f"http://localhost{path}"))[:2] == (bucket, key)


@pytest.mark.parametrize(
    ("host", "path", "bucket", "key"),
    [
        ("b.s3.test", "/k", "b", "k"),
        ("b.s3.test:9000", "/a/b", "b", "a/b"),
        ("B.S3.TEST", "/k", "b", "k"),
        ("a.b.s3.test", "/", "a.b", ""),
        ("s3.test", "/b/k", "b", "k"),
        ("other.test", "/b/k", "b", "k"),
        ("b.s3.test", "//k", "b", "/k"),
    ],
)
def test_a_host_below_a_configured_domain_names_the_bucket(
    host: str, path: str, bucket: str, key: str
) -> None:
    head = head_of("GET", f"http://{host}{path}")
    assert Router(("s3.test",)).address(head)[:2] == (bucket, key)


def test_a_key_of_1024_bytes_is_taken_and_one_of_1025_is_not() -> None:
    assert route("GET", f"http://localhost/b/{'k' * 1024}").key == "k" * 1024
    assert len(route("GET", f"http://localhost/b/{'%C3%A9' * 512}").key.encode()) == 1024
    for key in ("k" * 1025, "%C3%A9" * 512 + "k", "%F0%9F%AA%B5" * 257):
        with pytest.raises(S3Error) as caught:
            route("GET", f"http://localhost/b/{key}")
        assert caught.value.code == "KeyTooLongError"


def test_a_key_with_nul_is_refused() -> None:
    with pytest.raises(S3Error) as caught:
        route("PUT", "http://localhost/b/a%00b")
    assert caught.value.status == 400


# --- nothing falls through -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "target", "code"),
    [
        ("GET", "/b/k?unheard-of", "NotImplemented"),
        ("PUT", "/b/k?unheard-of", "NotImplemented"),
        ("POST", "/b/k?unheard-of", "NotImplemented"),
        ("DELETE", "/b/k?unheard-of", "NotImplemented"),
        ("GET", "/b?unheard-of", "NotImplemented"),
        ("GET", "/?unheard-of", "NotImplemented"),
        ("DELETE", "/b?unheard-of", "NotImplemented"),
        ("PUT", "/b?location", "MethodNotAllowed"),
        ("DELETE", "/b?location", "MethodNotAllowed"),
        ("DELETE", "/b?acl", "MethodNotAllowed"),
        ("POST", "/b/k?acl", "MethodNotAllowed"),
        ("POST", "/b?versioning", "MethodNotAllowed"),
        ("PUT", "/b?delete", "MethodNotAllowed"),
        ("GET", "/b?delete", "MethodNotAllowed"),
        ("PUT", "/b/k?uploads", "MethodNotAllowed"),
        ("GET", "/b/k?uploads", "InvalidRequest"),
        ("GET", "/b/k?location", "InvalidRequest"),
        ("PUT", "/b/k?versioning", "InvalidRequest"),
        ("PUT", "//b/k", "InvalidBucketName"),
        ("HEAD", "/b/k?acl", "MethodNotAllowed"),
        ("PUT", "/b/k?partNumber=1", "InvalidArgument"),
        ("PUT", "/b/k?uploadId=u", "InvalidArgument"),
        ("POST", "/b/k", "MethodNotAllowed"),
        ("POST", "/b", "PreconditionFailed"),
        ("POST", "/", "MethodNotAllowed"),
        ("PUT", "/", "MethodNotAllowed"),
        ("DELETE", "/", "MethodNotAllowed"),
        ("PATCH", "/b/k", "MethodNotAllowed"),
        ("BREW", "/b/k", "BadRequest"),
        ("GET", "/b/k?select&select-type=1", "MethodNotAllowed"),
        ("POST", "/b/k?select&select-type=1", "InvalidArgument"),
        ("OPTIONS", "/b/k", "MethodNotAllowed"),
        ("DELETE", "/b?analytics", "InvalidArgument"),
    ],
)
def test_what_is_no_operation_is_refused(method: str, target: str, code: str) -> None:
    with pytest.raises(S3Error) as caught:
        route(method, f"http://localhost{target}")
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("method", "target", "name"),
    [
        ("GET", "/b/k?x-id=GetObject", "GetObject"),
        ("GET", "/b/k?X-Amz-Signature=0&X-Amz-Expires=60", "GetObject"),
        ("GET", "/b/k?versionId=v&response-content-type=a", "GetObject"),
        ("GET", "/b/k?partNumber=2", "GetObject"),
        ("GET", "/b?prefix=&delimiter=&marker=", "ListObjects"),
        ("GET", "/b?list-type=2&prefix=", "ListObjectsV2"),
        ("GET", "/b?list-type=1", "ListObjects"),
        ("GET", "/b?list-type=3&prefix=a", "ListObjects"),
        ("GET", "/b?annotationName=v", "ListObjects"),
        ("GET", "/b/k?annotation&annotationName=v", "GetObjectAnnotation"),
        ("GET", "/b?metadata=true&foo=bar", "ListObjects"),
        ("GET", "/b?versions&prefix=", "ListObjectVersions"),
        ("GET", "/b/k?uploadId=u", "ListParts"),
        ("POST", "/b/k?uploadId=u", "CompleteMultipartUpload"),
        ("DELETE", "/b/k?uploadId=u", "AbortMultipartUpload"),
        ("PUT", "/b/k?partNumber=1&uploadId=u", "UploadPart"),
        ("DELETE", "/b/k?tagging", "DeleteObjectTagging"),
    ],
)
def test_parameters_that_select_nothing_leave_the_operation_as_it_is(
    method: str, target: str, name: str
) -> None:
    assert route(method, f"http://localhost{target}").operation.name == name


def test_a_copy_is_told_from_a_put_by_its_header() -> None:
    source = {"x-amz-copy-source": "/b/other"}
    assert route("PUT", "http://localhost/b/k", source).operation.name == "CopyObject"
    part = route("PUT", "http://localhost/b/k?partNumber=1&uploadId=u", source)
    assert part.operation.name == "UploadPartCopy"


def test_every_sub_resource_of_the_model_is_known_for_every_method() -> None:
    """No literal key of any operation may let another method through to its plain operation."""
    plain = {
        "GetObject",
        "PutObject",
        "DeleteObject",
        "HeadObject",
        "ListObjects",
        "CreateBucket",
        "DeleteBucket",
    }
    for operation in OPERATION.values():
        for key, value in operation.literals:
            for method in ("GET", "PUT", "POST", "DELETE", "HEAD"):
                for depth in ("/b", "/b/k"):
                    try:
                        found = route(method, f"http://localhost{depth}?{key}{'=' + value if value else ''}")
                    except S3Error as error:
                        assert error.code in (
                            "NotImplemented",
                            "MethodNotAllowed",
                            "InvalidArgument",
                            "InvalidRequest",
                        )
                    else:
                        assert found.operation.name not in plain, (method, depth, key)
