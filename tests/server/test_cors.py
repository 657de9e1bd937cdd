"""CORS: what is stored, what a preflight is told, and what other answers carry."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.server.conftest import LiveServer

PAGE = "https://app.example.com"


def rule(**members: Any) -> dict[str, Any]:
    return {"AllowedMethods": ["GET"], "AllowedOrigins": ["https://*.example.com"], **members}


def put(s3: Any, *rules: dict[str, Any]) -> None:
    s3.put_bucket_cors(Bucket="bkt", CORSConfiguration={"CORSRules": list(rules)})


def preflight(
    server: LiveServer, method: str = "GET", headers: str = "", origin: str = PAGE
) -> tuple[int, dict[str, str]]:
    asked = {"origin": origin, "access-control-request-method": method}
    if headers:
        asked["access-control-request-headers"] = headers
    answer = server.request("OPTIONS", "/bkt/k", headers=asked, credential=None)
    return answer.status, {name: value for name, value in answer.headers.items() if name[:7] == "access-"}


def test_a_configuration_comes_back_as_it_was_stored(s3: Any) -> None:
    full = rule(ID="one", AllowedHeaders=["x-*"], ExposeHeaders=["ETag"], MaxAgeSeconds=30)
    put(s3, full, rule(AllowedOrigins=["*"]))
    assert s3.get_bucket_cors(Bucket="bkt")["CORSRules"] == [full, rule(AllowedOrigins=["*"])]
    s3.delete_bucket_cors(Bucket="bkt")
    with pytest.raises(ClientError, match="NoSuchCORSConfiguration"):
        s3.get_bucket_cors(Bucket="bkt")


@pytest.mark.parametrize(
    "wrong",
    [
        {"AllowedMethods": ["PATCH"]},
        {"AllowedMethods": ["get"]},
        {"AllowedOrigins": ["*.a.*"]},
        {"AllowedHeaders": ["*-*"]},
        {"ExposeHeaders": ["*"]},
        {"ExposeHeaders": ["a\r\nb"]},
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused(s3: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ClientError, match="InvalidRequest"):
        put(s3, rule(**wrong))


def test_there_are_at_most_a_hundred_rules(s3: Any) -> None:
    put(s3, *[rule()] * 100)
    with pytest.raises(ClientError, match="InvalidRequest"):
        put(s3, *[rule()] * 101)


def test_a_preflight_is_answered_by_the_first_rule_that_fits(server: LiveServer, s3: Any) -> None:
    put(
        s3,
        rule(AllowedHeaders=["X-Amz-*", "content-type"], ExposeHeaders=["ETag", "x-amz-request-id"]),
        rule(AllowedMethods=["PUT", "GET"], AllowedOrigins=["*"], MaxAgeSeconds=60),
    )
    assert preflight(server, headers="x-amz-date, Content-Type") == (
        200,
        {
            "access-control-allow-origin": PAGE,
            "access-control-allow-methods": "GET",
            "access-control-allow-headers": "x-amz-date, content-type",
            "access-control-allow-credentials": "true",
            "access-control-expose-headers": "ETag, x-amz-request-id",
        },
    )
    assert preflight(server, "PUT") == (
        200,
        {
            "access-control-allow-origin": "*",
            "access-control-allow-methods": "PUT, GET",
            "access-control-max-age": "60",
        },
    )
    assert preflight(server, headers="authorization") == (403, {})
    assert preflight(server, "DELETE") == (403, {})


def test_a_preflight_without_its_headers_or_a_configuration_is_refused(server: LiveServer, s3: Any) -> None:
    assert server.request("OPTIONS", "/bkt", credential=None).status == 400
    asked = {"origin": PAGE, "access-control-request-method": "GET"}
    for headers, method in ((asked, "GET"), ({"origin": PAGE}, "OPTIONS")):
        for path in ("/bkt", "/bkt/k", "/no-such-bucket"):
            answer = server.request("OPTIONS", path, headers=headers, credential=None)
            assert (answer.status, answer.code) == (403, "AccessForbidden")
            assert (answer.field("Method"), answer.field("ResourceType")) == (method, "BUCKET")
    s3.put_bucket_cors(
        Bucket="bkt",
        CORSConfiguration={"CORSRules": [{"AllowedMethods": ["GET"], "AllowedOrigins": ["*"]}]},
    )
    answer = server.request("OPTIONS", "/bkt", headers={"origin": PAGE}, credential=None)
    assert (answer.status, answer.code) == (400, "BadRequest")


@pytest.mark.parametrize(
    ("pattern", "origin", "fits"),
    [
        ("http://a", "http://a", True),
        ("http://a", "http://ab", False),
        ("*suffix", "x.suffix", True),
        ("start*end", "startend", True),
        ("start*tend", "startend", False),
        ("prefix*", "a.prefix", False),
        ("http://?", "http://a", False),
    ],
)
def test_an_origin_may_have_one_star(
    server: LiveServer, s3: Any, pattern: str, origin: str, fits: bool
) -> None:
    put(s3, rule(AllowedOrigins=[pattern]))
    assert preflight(server, origin=origin)[0] == (200 if fits else 403)


def test_answers_and_errors_carry_the_headers_only_for_an_origin_that_fits(
    server: LiveServer, s3: Any
) -> None:
    s3.put_object(Bucket="bkt", Key="k", Body=b"data")
    assert (
        "access-control-allow-origin" not in server.request("GET", "/bkt/k", headers={"origin": PAGE}).headers
    )
    put(s3, rule(ExposeHeaders=["ETag"]))
    found = server.request("GET", "/bkt/k", headers={"origin": PAGE})
    assert found.body == b"data"
    assert found.headers["access-control-allow-origin"] == PAGE
    assert found.headers["access-control-expose-headers"] == "ETag"
    assert found.headers["vary"].startswith("Origin")
    missing = server.request("GET", "/bkt/none", headers={"origin": PAGE})
    assert (missing.status, missing.headers["access-control-allow-origin"]) == (404, PAGE)
    for path, origin in (("/bkt/k", "https://evil.test"), ("/none/k", PAGE)):
        answer = server.request("GET", path, headers={"origin": origin})
        assert "access-control-allow-origin" not in answer.headers, (path, origin)
    assert "access-control-allow-origin" not in server.request("GET", "/bkt/k").headers
