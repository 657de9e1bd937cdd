"""Signature Version 2 in a URL's query: what botocore presigns is accepted, and nothing that differs from it.

Invariant: a URL is good for one method, one resource, one set of x-amz-* headers, one time.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import boto3
import pytest
from botocore.config import Config

from cordwood.server.wire.errors import S3Error
from cordwood.server.wire.http1 import RequestReceiver
from cordwood.server.wire.message import RequestHead
from cordwood.server.wire.sigv4 import Account, Verified, authenticate

NOW_S = 1_800_000_000.0


class Someone:
    access_key = "AKIAIOSFODNN7EXAMPLE"
    secret_key = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
    owner_id = "owner"
    display_name = "name"


ACCOUNTS: dict[str, Account] = {Someone.access_key: Someone()}


def presigned(
    monkeypatch: pytest.MonkeyPatch, operation: str, style: str = "path", **params: object
) -> tuple[str, str]:
    """(target, host) of a URL that boto3 signs by Version 2, an hour before it expires."""
    monkeypatch.setattr("time.time", lambda: NOW_S)
    client = boto3.client(
        "s3",
        endpoint_url="http://s3.example.test:9000",
        aws_access_key_id=Someone.access_key,
        aws_secret_access_key=Someone.secret_key,
        region_name="us-east-1",
        config=Config(signature_version="s3", s3={"addressing_style": style}),
    )
    parts = urlsplit(client.generate_presigned_url(operation, Params=params, ExpiresIn=3600))
    return f"{parts.path}?{parts.query}", parts.netloc


def head_of(method: str, target: str, host: str, *headers: str) -> RequestHead:
    receiver = RequestReceiver()
    receiver.feed("\r\n".join([f"{method} {target} HTTP/1.1", f"Host: {host}", *headers, "", ""]).encode())
    head = receiver.next_head()
    assert head is not None
    return head


def verify(head: RequestHead, *, now_s: float = NOW_S, host_bucket: str = "") -> Verified:
    return authenticate(
        head, secret_for=ACCOUNTS.get, region="us-east-1", now_s=now_s, host_bucket=host_bucket
    )


def refusal(head: RequestHead, *, now_s: float = NOW_S) -> str:
    with pytest.raises(S3Error) as caught:
        verify(head, now_s=now_s)
    return caught.value.code


@pytest.mark.parametrize("key", ["k", "a/b c+d/e%2F", "//x/..", "gr\u00fc\u00df\u00e9/\U0001f600"])
def test_what_botocore_presigns_is_accepted(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    target, host = presigned(monkeypatch, "get_object", Bucket="bucket", Key=key)
    assert verify(head_of("GET", target, host)).identity.owner_id == "owner"


def test_sub_resources_and_response_headers_are_part_of_the_signature(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target, host = presigned(
        monkeypatch,
        "get_object",
        Bucket="bucket",
        Key="k",
        VersionId="v1",
        ResponseContentType="text/plain; charset=utf-8",
    )
    verify(head_of("GET", target, host))
    assert refusal(head_of("GET", target.replace("v1", "v2"), host)) == "SignatureDoesNotMatch"
    assert refusal(head_of("GET", target + "&acl", host)) == "SignatureDoesNotMatch"


def test_a_bucket_is_signed_as_botocore_signs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    target, host = presigned(monkeypatch, "list_objects_v2", Bucket="bucket", Prefix="p")
    verify(head_of("GET", target, host))
    target, host = presigned(monkeypatch, "list_objects_v2", "virtual", Bucket="bucket")
    verify(head_of("GET", target, host), host_bucket="bucket")


def test_virtual_host_style_signs_the_bucket_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    target, host = presigned(monkeypatch, "get_object", "virtual", Bucket="bucket", Key="k")
    assert host.startswith("bucket.")
    verify(head_of("GET", target, host), host_bucket="bucket")
    assert refusal(head_of("GET", target, host)) == "SignatureDoesNotMatch"


def test_another_method_path_or_amz_header_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    target, host = presigned(monkeypatch, "put_object", Bucket="bucket", Key="k")
    verify(head_of("PUT", target, host, "Content-Length: 0"))
    assert refusal(head_of("DELETE", target, host)) == "SignatureDoesNotMatch"
    assert refusal(head_of("PUT", target.replace("/k?", "/l?"), host)) == "SignatureDoesNotMatch"
    header = "x-amz-copy-source: /bucket/secret"
    assert refusal(head_of("PUT", target, host, header)) == "SignatureDoesNotMatch"


def test_an_expired_incomplete_repeated_or_mixed_claim_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    target, host = presigned(monkeypatch, "get_object", Bucket="bucket", Key="k")
    assert refusal(head_of("GET", target, host), now_s=NOW_S + 3601) == "AccessDenied"
    without = target.replace("Expires", "Expired")
    assert refusal(head_of("GET", without, host)) == "AccessDenied"
    assert (
        refusal(head_of("GET", target + "&Expires=9999999999", host)) == "AuthorizationQueryParametersError"
    )
    assert refusal(head_of("GET", target + "&X-Amz-Algorithm=AWS4-HMAC-SHA256", host)) == "InvalidArgument"
    unknown = target.replace(Someone.access_key, "NOBODY")
    assert refusal(head_of("GET", unknown, host)) == "InvalidAccessKeyId"
    assert refusal(head_of("GET", "/b/k?AWSAccessKeyId=a&Expires=x&Signature=x", host)) == "AccessDenied"
