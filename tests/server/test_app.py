"""The pipeline: who gets in, what an error looks like, and that no operation of the model goes without an answer."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from cordwood.engine import Store, errors
from cordwood.server.config import make_credential
from cordwood.server.handlers import HANDLERS
from cordwood.server.handlers.request import handles
from cordwood.server.wire.route import OPERATION
from tests.server.conftest import ALICE, LiveServer


def target_of(name: str) -> tuple[str, str, dict[str, str]]:
    """A request that routes to the operation."""
    operation = OPERATION[name]
    path = {"service": "/", "bucket": "/bkt", "object": "/bkt/k"}.get(operation.depth, operation.depth)
    query = [f"{key}={value}" if value else key for key, value in operation.literals]
    query += [f"{key}=1" for key in operation.required_query]
    headers = dict.fromkeys(operation.required_headers, "x")
    return operation.method, path + ("?" + "&".join(query) if query else ""), headers


ROUTED = sorted(name for name, operation in OPERATION.items() if operation.routed)


@pytest.mark.parametrize("name", [name for name in ROUTED if name not in HANDLERS])
def test_an_operation_without_a_handler_is_not_implemented(server: LiveServer, s3: Any, name: str) -> None:
    s3.put_object(Bucket="bkt", Key="k", Body=b"untouched")
    method, path, headers = target_of(name)
    answer = server.request(method, path, headers=headers)
    assert answer.status == 501
    if method != "HEAD":
        assert answer.code == "NotImplemented"
    assert s3.get_object(Bucket="bkt", Key="k")["Body"].read() == b"untouched"


@pytest.mark.parametrize("name", ROUTED)
def test_no_operation_answers_a_stranger(server: LiveServer, s3: Any, name: str) -> None:
    method, path, headers = target_of(name)
    answer = server.request(method, path, headers=headers, credential=None)
    assert answer.status == 403, answer.body
    forged = make_credential(ALICE.access_key, "not the secret", "a" * 64)
    assert server.request(method, path, headers=headers, credential=forged).status == 403


def test_an_open_server_lets_everybody_do_everything(store: Store) -> None:
    live = LiveServer(store, is_open=True)
    live.start()
    try:
        assert live.request("PUT", "/bkt", credential=None).status == 200
        assert live.request("PUT", "/bkt/k", b"x", credential=None).status == 200
        assert live.request("GET", "/bkt/k", credential=None).body == b"x"
        forged = make_credential(ALICE.access_key, "not the secret", "a" * 64)
        assert live.request("GET", "/bkt/k", credential=forged).code == "SignatureDoesNotMatch"
    finally:
        live.stop()


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/none", 404, "NoSuchBucket"),
        ("GET", "/none/k", 404, "NoSuchBucket"),
        ("GET", "/bkt/none", 404, "NoSuchKey"),
        ("PUT", "/none/k", 404, "NoSuchBucket"),
        ("POST", "/bkt/k", 405, "MethodNotAllowed"),
        ("GET", "/bkt?accelerate-me", 501, "NotImplemented"),
        ("GET", "/bkt/k?versionId=", 400, "InvalidArgument"),
        ("GET", "/bkt/k?versionId=none", 400, "InvalidArgument"),
        ("GET", "/bkt/k?versionId=0123456789abcdef", 404, "NoSuchVersion"),
    ],
)
def test_an_error_is_a_document_with_the_ids_of_its_headers(
    server: LiveServer, s3: Any, method: str, path: str, status: int, code: str
) -> None:
    s3.put_object(Bucket="bkt", Key="k", Body=b"")
    answer = server.request(method, path)
    assert answer.status == status
    assert answer.headers["content-type"] == "application/xml"
    root = ElementTree.fromstring(answer.body)
    assert root.tag == "Error"
    assert root.findtext("Code") == code
    assert root.findtext("RequestId") == answer.headers["x-amz-request-id"]
    assert root.findtext("HostId") == answer.headers["x-amz-id-2"]
    assert root.findtext("Resource") == path.partition("?")[0]


def test_an_error_of_a_head_request_has_no_body(server: LiveServer, s3: Any) -> None:
    answer = server.request("HEAD", "/bkt/none")
    assert (answer.status, answer.body) == (404, b"")


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (errors.Full("/srv/volumes/3.vol: no space left"), 507, "StorageFull"),
        (errors.ReadOnly("a sync failed"), 503, "ServiceUnavailable"),
        (errors.Corrupt("volume 3, offset 17"), 500, "InternalError"),
        (errors.Conflict("gone"), 503, "SlowDown"),
    ],
)
def test_a_failing_store_is_reported_without_its_insides(
    server: LiveServer,
    s3: Any,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    failure: Any,
    status: int,
    code: str,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.setattr(store, "put_async", fail)
    answer = server.request("PUT", "/bkt/k", b"x")
    assert (answer.status, answer.code) == (status, code)
    assert b"volume" not in answer.body


def test_virtual_host_style_addresses_the_bucket_of_the_host(store: Store) -> None:
    live = LiveServer(store, domains=("s3.test",))
    live.start()
    try:
        host = {"host": f"bkt.s3.test:{live.port}"}
        assert live.request("PUT", "/", headers=host).status == 200
        assert live.request("PUT", "/a/b", b"x", headers=host).status == 200
        assert live.request("GET", "/bkt/a/b").body == b"x"
        assert live.request("GET", "/?list-type=2", headers=host).status == 200
        assert store.head("bkt", "a/b").size == 1
    finally:
        live.stop()


def test_a_handler_can_only_name_members_of_the_model() -> None:
    with pytest.raises(AssertionError):
        handles("PutBucketCors", "NoSuchMember")


def test_every_handler_takes_ignores_or_refuses_every_member() -> None:
    for name, entry in HANDLERS.items():
        assert entry.refused <= OPERATION[name].inputs.keys()
