"""Signature Version 4: AWS's published examples, what botocore signs, and every refusal.

Invariant: no signature counts unless the secret, the scope, the time and every header that acts are right.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock
from urllib.parse import quote, urlsplit

import botocore.auth
import botocore.awsrequest
import botocore.credentials
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cordwood.server.wire.errors import S3Error
from cordwood.server.wire.http1 import RequestReceiver
from cordwood.server.wire.message import RequestHead
from cordwood.server.wire.signing import EMPTY_SHA256, Signer, presign_url, sign, sign_headers
from cordwood.server.wire.sigv4 import ANONYMOUS, Credential, Identity, PayloadPlan, Verified, authenticate


@dataclass(frozen=True)
class Someone:
    access_key: str = "AKIAIOSFODNN7EXAMPLE"
    secret_key: str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
    owner_id: str = "owner"
    display_name: str = "name"


ME = Someone()
THEN = datetime(2013, 5, 24, tzinfo=UTC)
STAMP = "20130524T000000Z"
SCOPE = "20130524/us-east-1/s3/aws4_request"
URL = "http://127.0.0.1:9000/bucket/key"


def head_of(method: str, target: str, headers: Mapping[str, str] | list[tuple[str, str]]) -> RequestHead:
    pairs = list(headers.items()) if isinstance(headers, Mapping) else headers
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in pairs), "", ""]
    receiver = RequestReceiver()
    receiver.feed("\r\n".join(lines).encode())
    head = receiver.next_head()
    assert head is not None
    return head


def verify(head: RequestHead, at: datetime = THEN) -> Verified:
    return authenticate(head, secret_for={ME.access_key: ME}.get, region="us-east-1", now_s=at.timestamp())


def refusal(head: RequestHead, at: datetime = THEN) -> S3Error:
    with pytest.raises(S3Error) as caught:
        verify(head, at)
    return caught.value


def signed(
    method: str = "GET",
    url: str = URL,
    headers: Mapping[str, str] | None = None,
    payload: str = EMPTY_SHA256,
    **changes: Any,
) -> RequestHead:
    """A good request; `changes` by keyword go to the signer, so that it can be made wrong in one thing."""
    parts = urlsplit(url)
    sent = {"host": parts.netloc, **(headers or {})}
    arguments = {"credential": ME, "region": "us-east-1", "now": THEN, **changes}
    sent |= sign_headers(method, url, sent, payload, **arguments)
    return head_of(method, parts.path + (f"?{parts.query}" if parts.query else ""), sent)


def with_header(head: RequestHead, name: str, value: str | None) -> RequestHead:
    """The same request after somebody changed, added or removed a header on its way."""
    pairs = [pair for pair in list(head.headers.items()) if pair[0] != name]
    if value is not None:
        pairs.append((name, value))
    return head_of(head.method, head.target.decode(), pairs)


def presigned(**changes: Any) -> RequestHead:
    arguments = {"credential": ME, "region": "us-east-1", "now": THEN, "expires_s": 3600, **changes}
    sent = {"host": "127.0.0.1:9000", **(changes.get("headers") or {})}
    url = urlsplit(presign_url("GET", URL, **arguments))
    return head_of("GET", f"{url.path}?{url.query}", sent)


def with_parameter(head: RequestHead, name: str, value: str | None) -> RequestHead:
    pieces = head.raw_query.decode().split("&")
    pieces = [piece for piece in pieces if not piece.startswith(name + "=")]
    if value is not None:
        pieces.append(f"{name}={quote(value, safe='')}")
    return head_of(head.method, f"{head.raw_path.decode()}?{'&'.join(pieces)}", list(head.headers.items()))


# -- AWS's published examples --------------------------------------------------------------------------------

HOST = "examplebucket.s3.amazonaws.com"
AWS_EXAMPLES = [
    pytest.param(
        "GET", "/test.txt", {"range": "bytes=0-9"}, EMPTY_SHA256,
        "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41", id="GET object",
    ),
    pytest.param(
        "PUT", "/test%24file.text",
        {"date": "Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class": "REDUCED_REDUNDANCY"},
        hashlib.sha256(b"Welcome to Amazon S3.").hexdigest(),
        "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd", id="PUT object",
    ),
    pytest.param(
        "GET", "/?lifecycle", {}, EMPTY_SHA256,
        "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543", id="GET bucket lifecycle",
    ),
    pytest.param(
        "GET", "/?max-keys=2&prefix=J", {}, EMPTY_SHA256,
        "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7", id="list objects",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("method", "target", "headers", "payload", "signature"), AWS_EXAMPLES)
def test_the_examples_that_aws_publishes_are_signed_and_accepted(
    method: str, target: str, headers: dict[str, str], payload: str, signature: str
) -> None:
    sent = {"host": HOST, **headers}
    sent |= sign_headers(method, f"https://{HOST}{target}", sent, payload, ME, "us-east-1", THEN)
    assert sent["authorization"].endswith(f"Signature={signature}")
    verified = verify(head_of(method, target, sent))
    assert verified.identity == Identity(ME.access_key, "owner", "name", is_anonymous=False)
    assert verified.payload == PayloadPlan("sha256", sha256_hex=payload)


def test_the_presigned_example_that_aws_publishes_is_signed_and_accepted() -> None:
    url = presign_url("GET", f"https://{HOST}/test.txt", ME, "us-east-1", THEN, 86400)
    expected = (
        f"https://{HOST}/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256"
        "&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request"
        "&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host"
        "&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
    )
    assert url == expected
    parts = urlsplit(url)
    head = head_of("GET", f"{parts.path}?{parts.query}", {"host": HOST})
    assert verify(head).identity.access_key == ME.access_key
    assert verify(head).payload == PayloadPlan("unsigned")
    assert verify(head, THEN + timedelta(seconds=86400)).payload.kind == "unsigned"


# -- against botocore ----------------------------------------------------------------------------------------


def botocore_head(
    method: str, url: str, headers: Mapping[str, str], signer: Any, *options: int
) -> RequestHead:
    request = botocore.awsrequest.AWSRequest(method, url, headers=dict(headers))
    credentials = botocore.credentials.Credentials(ME.access_key, ME.secret_key)
    with mock.patch("botocore.auth.get_current_datetime", return_value=THEN.replace(tzinfo=None)):
        signer(credentials, "s3", "us-east-1", *options).add_auth(request)
    prepared = request.prepare()
    parts = urlsplit(prepared.url)
    sent = [("host", parts.netloc)]
    for name, value in prepared.headers.items():
        sent.append((name, value.decode() if isinstance(value, bytes) else value))
    return head_of(method, parts.path + (f"?{parts.query}" if parts.query else ""), sent)


keys = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30)
odd_keys = st.lists(
    st.sampled_from(
        ["a", " ", "+", "%2F", "%", "//", "..", ".", "/", "é", "✓", "🪵", "~", "*", "?", "#", "&=", "'()!"]
    )
).map("".join)


@given(keys | odd_keys, st.dictionaries(keys, keys | st.just(""), max_size=3))
@settings(max_examples=150, deadline=None)
def test_whatever_key_and_query_botocore_signs_is_accepted(key: str, query: dict[str, str]) -> None:
    query = {name: value for name, value in query.items() if not name.lower().startswith("x-amz-")}
    text = "&".join(
        f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in query.items()
    )
    url = f"http://127.0.0.1:9000/bucket/{quote(key, safe='/~')}?{text}"
    head = botocore_head("GET", url, {"x-amz-meta-a": " b   c "}, botocore.auth.S3SigV4Auth)
    assert head.path == f"/bucket/{key}"
    assert not verify(head).identity.is_anonymous
    head = botocore_head("GET", url, {}, botocore.auth.S3SigV4QueryAuth, 60)
    assert not verify(head).identity.is_anonymous


@given(keys | odd_keys)
@settings(max_examples=50, deadline=None)
def test_our_own_signers_agree_with_our_authenticator(key: str) -> None:
    url = f"http://127.0.0.1:9000/bucket/{quote(key, safe='/')}?a=b%20c&d"
    assert verify(signed("PUT", url, {"x-amz-meta-a": "b"})).identity.access_key == ME.access_key
    parts = urlsplit(presign_url("GET", url, ME, "us-east-1", THEN, 60))
    assert verify(head_of("GET", f"{parts.path}?{parts.query}", {"host": parts.netloc}))


def test_a_slash_that_was_sent_and_signed_as_an_escape_is_accepted() -> None:
    head = botocore_head("GET", "http://h/b/a%2fb%2F%20c", {}, botocore.auth.S3SigV4Auth)
    assert refusal(head).code == "SignatureDoesNotMatch"  # botocore signed the lower-case escape literally
    head = botocore_head("GET", "http://h/b/a%2Fb%2F%20c", {}, botocore.auth.S3SigV4Auth)
    assert verify(head).identity.access_key == ME.access_key


def test_a_latin1_header_value_is_signed_as_its_text() -> None:
    sent = {"host": "h", "x-amz-meta-a": "café"}
    sent |= sign_headers("GET", "http://h/b/k", sent, EMPTY_SHA256, ME, "us-east-1", THEN)
    lines = ["GET /b/k HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items()), "", ""]
    receiver = RequestReceiver()
    receiver.feed("\r\n".join(lines).encode("latin-1"))
    head = receiver.next_head()
    assert head is not None
    assert verify(head)


def test_repeated_headers_are_signed_joined() -> None:
    head = signed(headers={"x-amz-meta-a": "1,2"})
    pairs = [pair for pair in list(head.headers.items()) if pair[0] != "x-amz-meta-a"]
    assert verify(head_of("GET", "/bucket/key", [*pairs, ("x-amz-meta-a", "1"), ("x-amz-meta-a", " 2 ")]))


def test_a_date_header_stands_in_for_x_amz_date() -> None:
    request = botocore.awsrequest.AWSRequest("GET", URL, headers={"date": "Fri, 24 May 2013 00:00:00 GMT"})
    request.context["timestamp"] = STAMP
    signer = botocore.auth.S3SigV4Auth(
        botocore.credentials.Credentials(ME.access_key, ME.secret_key), "s3", "us-east-1"
    )
    request.headers["x-amz-content-sha256"] = EMPTY_SHA256
    canonical = signer.canonical_request(request)
    signature = signer.signature(signer.string_to_sign(request, canonical), request)
    authorization = (
        f"AWS4-HMAC-SHA256 Credential={ME.access_key}/{SCOPE},"
        f"SignedHeaders=date;host;x-amz-content-sha256,Signature={signature}"
    )
    sent = {"host": "127.0.0.1:9000", **dict(request.headers.items()), "authorization": authorization}
    assert verify(head_of("GET", "/bucket/key", sent))


# -- nobody ---------------------------------------------------------------------------------------------------


def test_a_request_without_any_authentication_material_is_anonymous() -> None:
    verified = verify(head_of("GET", "/b/k?x-id=GetObject&x-amz-meta=1", {"host": "h"}))
    assert verified.identity == ANONYMOUS
    assert verified.identity.is_anonymous
    assert verified.payload == PayloadPlan("unsigned")


@pytest.mark.parametrize(
    "parameter",
    ["X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Signature", "X-Amz-Date", "X-Amz-Expires", "X-Amz-SignedHeaders",
     "x-amz-signature", "X%2DAmz%2DSignature"],
)  # fmt: skip
def test_broken_authentication_material_never_makes_a_request_anonymous(parameter: str) -> None:
    head = head_of("GET", f"/b/k?{parameter}=", {"host": "h"})
    assert refusal(head).code == "AuthorizationQueryParametersError"


@pytest.mark.parametrize(
    "value", ["", "x", "AWS4-HMAC-SHA256", "AWS4-HMAC-SHA256 ", "Bearer x", "Basic eDp4"]
)
def test_a_broken_authorization_header_never_makes_a_request_anonymous(value: str) -> None:
    error = refusal(head_of("GET", "/b/k", {"host": "h", "authorization": value}))
    assert error.code in ("InvalidArgument", "AuthorizationHeaderMalformed")
    assert error.status == 400


def test_nobody_but_the_authenticator_makes_verified_values() -> None:
    with pytest.raises(TypeError):
        Verified(object(), ANONYMOUS, PayloadPlan("unsigned"))


# -- forged and truncated ------------------------------------------------------------------------------------


def changed_authorization(old: str, new: str) -> RequestHead:
    head = signed()
    value = head.headers["authorization"]
    assert old in value
    return with_header(head, "authorization", value.replace(old, new))


def test_a_forged_signature_is_refused_with_what_should_have_been_signed() -> None:
    head = signed(credential=Credential(ME.access_key, "another secret"))
    error = refusal(head)
    assert (error.code, error.status) == ("SignatureDoesNotMatch", 403)
    fields = dict(error.fields)
    assert fields["AWSAccessKeyId"] == ME.access_key
    assert fields["StringToSign"].startswith(f"AWS4-HMAC-SHA256\n{STAMP}\n{SCOPE}\n")
    assert fields["CanonicalRequest"].startswith("GET\n/bucket/key\n\nhost:127.0.0.1:9000\n")
    assert fields["SignatureProvided"] == head.headers["authorization"][-64:]
    assert bytes.fromhex(fields["StringToSignBytes"]).decode() == fields["StringToSign"]
    assert bytes.fromhex(fields["CanonicalRequestBytes"]).decode() == fields["CanonicalRequest"]


@pytest.mark.parametrize("keep", [0, 1, 32, 63])
def test_a_truncated_signature_is_refused(keep: int) -> None:
    head = signed()
    value = head.headers["authorization"]
    assert (
        refusal(with_header(head, "authorization", value[: len(value) - 64 + keep])).code
        == "SignatureDoesNotMatch"
    )


@pytest.mark.parametrize("signature", ["0" * 64, "é" * 64, "\x7f", "A" * 10_000])
def test_no_text_in_the_place_of_a_signature_is_more_than_a_mismatch(signature: str) -> None:
    head = presigned()
    assert refusal(with_parameter(head, "X-Amz-Signature", signature)).code == "SignatureDoesNotMatch"


@pytest.mark.parametrize(
    ("name", "value"),
    [("host", "evil"), ("x-amz-date", "20130524T000001Z"), ("x-amz-content-sha256", "0" * 64)],
)
def test_a_signed_header_cannot_be_changed(name: str, value: str) -> None:
    assert refusal(with_header(signed(), name, value)).code == "SignatureDoesNotMatch"


def test_method_path_and_query_cannot_be_changed() -> None:
    head = signed()
    for method, target in (("PUT", "/bucket/key"), ("GET", "/bucket/kex"), ("GET", "/bucket/key?acl")):
        assert refusal(head_of(method, target, list(head.headers.items()))).code == "SignatureDoesNotMatch"


def test_a_path_is_not_normalised() -> None:
    head = signed(url="http://127.0.0.1:9000/bucket/a/../key")
    assert refusal(head_of("GET", "/bucket/key", list(head.headers.items()))).code == "SignatureDoesNotMatch"
    head = signed(url="http://127.0.0.1:9000/bucket//key")
    assert refusal(head_of("GET", "/bucket/key", list(head.headers.items()))).code == "SignatureDoesNotMatch"


def test_an_unknown_access_key_is_named() -> None:
    error = refusal(signed(credential=Credential("NOBODY", ME.secret_key)))
    assert (error.code, error.status) == ("InvalidAccessKeyId", 403)
    assert ("AWSAccessKeyId", "NOBODY") in error.fields


def test_a_signed_header_that_is_missing_is_a_mismatch() -> None:
    head = signed(headers={"x-amz-meta-a": "b"})
    assert refusal(with_header(head, "x-amz-meta-a", None)).code == "SignatureDoesNotMatch"


# -- time ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [-900, 900])
def test_a_clock_may_be_wrong_by_a_quarter_of_an_hour(seconds: int) -> None:
    assert verify(signed(), THEN + timedelta(seconds=seconds))


@pytest.mark.parametrize("seconds", [-901, 901, 86400])
def test_a_request_replayed_late_is_refused(seconds: int) -> None:
    error = refusal(signed(), THEN + timedelta(seconds=seconds))
    assert (error.code, error.status) == ("RequestTimeTooSkewed", 403)
    assert ("MaxAllowedSkewMilliseconds", "900000") in error.fields
    assert ("RequestTime", STAMP) in error.fields


@pytest.mark.parametrize(
    "value", ["", "20130524", "20130524T000000", "20131324T000000Z", "20130524T000000Z,20130524T000000Z", "x"]
)
def test_a_date_that_is_none_is_refused(value: str) -> None:
    error = refusal(with_header(signed(), "x-amz-date", value))
    assert (error.code, error.status) == ("AccessDenied", 403)


def test_a_request_without_any_date_is_refused() -> None:
    assert refusal(with_header(signed(), "x-amz-date", None)).code == "AccessDenied"
    undated = with_header(with_header(signed(), "x-amz-date", None), "date", "yesterday")
    assert refusal(undated).code == "AccessDenied"


def test_a_presigned_url_expires() -> None:
    head = presigned(expires_s=60)
    assert verify(head, THEN + timedelta(seconds=60))
    error = refusal(head, THEN + timedelta(seconds=61))
    assert (error.code, error.status, error.message) == ("AccessDenied", 403, "Request has expired")
    assert error.fields[0][0] == "X-Amz-Expires"


def test_a_presigned_url_of_the_future_is_refused() -> None:
    assert verify(presigned(), THEN - timedelta(seconds=900))
    assert refusal(presigned(), THEN - timedelta(seconds=901)).code == "AccessDenied"


@pytest.mark.parametrize(
    "value", ["", "0", "-1", "604801", "1e3", "1.5", "٣", "99999999999999999999999", "+60", " 60"]
)
def test_x_amz_expires_has_bounds(value: str) -> None:
    head = with_parameter(presigned(), "X-Amz-Expires", value)
    assert refusal(head).code == "AuthorizationQueryParametersError"


@pytest.mark.parametrize("expires_s", [1, 604800])
def test_x_amz_expires_may_be_as_long_as_a_week(expires_s: int) -> None:
    assert verify(presigned(expires_s=expires_s))


@pytest.mark.parametrize("expires_s", [0, 604801])
def test_our_signer_refuses_an_impossible_lifetime(expires_s: int) -> None:
    with pytest.raises(ValueError):
        presigned(expires_s=expires_s)


# -- scope ---------------------------------------------------------------------------------------------------


def test_another_region_is_refused_with_the_expected_one() -> None:
    error = refusal(signed(region="eu-west-1"))
    assert (error.code, error.status) == ("AuthorizationHeaderMalformed", 400)
    assert ("Region", "us-east-1") in error.fields
    error = refusal(presigned(region="eu-west-1"))
    assert (error.code, error.status) == ("AuthorizationQueryParametersError", 400)
    assert ("Region", "us-east-1") in error.fields


def test_another_service_is_refused() -> None:
    assert refusal(signed(service="sts")).code == "AuthorizationHeaderMalformed"
    assert refusal(presigned(service="sts")).code == "AuthorizationQueryParametersError"


@pytest.mark.parametrize(
    ("old", "new", "detail"),
    [
        ("/20130524/", "/20130525/", 'Invalid credential date "20130525". This date is not the same'),
        (
            "/20130524/",
            "/May/",
            'incorrect date format "May". This date in the credential must be in the format',
        ),
        ("aws4_request", "aws4_response", 'incorrect terminal "aws4_response". This endpoint uses'),
        ("/s3/", "/ec2/", 'incorrect service "ec2". This endpoint belongs to "s3"'),
        ("/us-east-1/", "/eu-west-1/", "the region 'eu-west-1' is wrong; expecting 'us-east-1'"),
        ("/us-east-1/s3", "/s3", "the Credential is mal-formed"),
        ("/us-east-1/s3", "/more/us-east-1/s3", "the Credential is mal-formed"),
        (f"{ME.access_key}/", "/", "a non-empty Access Key (AKID) must be provided"),
        ("Credential=", "Credential", 'the authorization component "Credential'),
        ("Credential=", "Credentials=", "missing Credential."),
        ("SignedHeaders=", "Signed=", "missing SignedHeaders."),
        ("Signature=", "Signed=", "missing Signature."),
        (", Signature=", ", Signature=0, Signature=", "requires three components"),
        (", Signature=", ", X=1, Signature=", "requires three components"),
        ("host;", "", "SignedHeaders must name host"),
        ("SignedHeaders=host;x-amz-content-sha256;x-amz-date", "SignedHeaders=", "SignedHeaders must name"),
        (";x-amz-date", ",x-amz-date", "requires three components"),
    ],
)
def test_a_malformed_authorization_header_is_refused_with_what_is_wrong(
    old: str, new: str, detail: str
) -> None:
    error = refusal(changed_authorization(old, new))
    assert (error.code, error.status) == ("AuthorizationHeaderMalformed", 400)
    assert detail in error.message


def test_an_authorization_header_of_one_word_is_refused() -> None:
    error = refusal(with_header(signed(), "authorization", "word"))
    assert error.message == "Authorization header is invalid -- one and only one ' ' (space) required"
    assert error.fields == (("ArgumentName", "Authorization"), ("ArgumentValue", "word"))


def test_a_payload_hash_that_is_none_is_named_before_the_signature() -> None:
    error = refusal(with_header(signed(), "x-amz-content-sha256", "abc"))
    assert error.code == "InvalidArgument"
    assert ("ArgumentValue", "abc") in error.fields


def test_two_authorization_headers_are_refused() -> None:
    head = signed()
    twice = head_of(
        "GET", "/bucket/key", [*head.headers.items(), ("authorization", head.headers["authorization"])]
    )
    assert refusal(twice).code == "AuthorizationHeaderMalformed"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Amz-Algorithm", "AWS4-HMAC-SHA1"),
        ("X-Amz-Credential", "x"),
        ("X-Amz-Credential", f"{ME.access_key}/20130525/us-east-1/s3/aws4_request"),
        ("X-Amz-Credential", f"{ME.access_key}/20130524/us-east-1/s3/aws4"),
        ("X-Amz-Date", "yesterday"),
        ("X-Amz-SignedHeaders", ""),
        ("X-Amz-SignedHeaders", "range"),
        ("X-Amz-Signature", None),
        ("X-Amz-Expires", None),
        ("X-Amz-Date", None),
        ("X-Amz-Credential", None),
        ("X-Amz-SignedHeaders", None),
        ("X-Amz-Algorithm", None),
    ],
)
def test_a_malformed_presigned_url_is_refused(name: str, value: str | None) -> None:
    error = refusal(with_parameter(presigned(), name, value))
    assert (error.code, error.status) == ("AuthorizationQueryParametersError", 400)


# -- both, twice, unsigned -----------------------------------------------------------------------------------


def test_header_and_query_authentication_together_are_refused() -> None:
    head = presigned()
    both = head_of(
        "GET",
        head.target.decode(),
        [*head.headers.items(), ("authorization", signed().headers["authorization"])],
    )
    error = refusal(both)
    assert (error.code, error.status) == ("InvalidArgument", 400)
    assert "Only one auth mechanism allowed" in error.message


@pytest.mark.parametrize("name", ["X-Amz-Date", "X-Amz-Signature", "X-Amz-Expires", "x-amz-credential"])
def test_duplicated_parameters_are_refused(name: str) -> None:
    head = presigned()
    twice = head_of("GET", f"{head.target.decode()}&{name}=1", list(head.headers.items()))
    assert refusal(twice).code == "AuthorizationQueryParametersError"


@pytest.mark.parametrize("name", ["x-amz-acl", "x-amz-meta-evil", "x-amz-copy-source", "x-amz-tagging"])
def test_a_header_that_acts_but_was_not_signed_is_refused(name: str) -> None:
    for head in (signed(), presigned()):
        error = refusal(with_header(head, name, "1"))
        assert (error.code, error.status) == ("AccessDenied", 403)
        assert error.message == "There were headers present in the request which were not signed"
        assert ("HeadersNotSigned", name) in error.fields


def test_a_presigned_url_covers_the_headers_that_it_names() -> None:
    head = presigned(headers={"x-amz-acl": "private"})
    assert verify(head)
    assert refusal(with_header(head, "x-amz-acl", "public-read")).code == "SignatureDoesNotMatch"


def test_a_payload_hash_beside_a_presigned_url_counts_only_when_signed() -> None:
    assert (
        verify(with_header(presigned(), "x-amz-content-sha256", "UNSIGNED-PAYLOAD")).payload.kind
        == "unsigned"
    )
    assert refusal(with_header(presigned(), "x-amz-content-sha256", "0" * 64)).code == "SignatureDoesNotMatch"


# -- other mechanisms ----------------------------------------------------------------------------------------


def test_signature_version_2_in_a_header_is_refused_with_advice() -> None:
    error = refusal(head_of("GET", "/b/k", {"host": "h", "authorization": "AWS AKID:sig="}))
    assert (error.code, error.status) == ("InvalidRequest", 400)
    assert "AWS4-HMAC-SHA256" in error.message


def test_signature_version_4a_is_not_implemented() -> None:
    head = signed()
    value = head.headers["authorization"].replace("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256")
    assert refusal(with_header(head, "authorization", value)).status == 501
    assert refusal(with_parameter(presigned(), "X-Amz-Algorithm", "AWS4-ECDSA-P256-SHA256")).status == 501


def test_session_tokens_are_refused_where_nobody_knows_them_or_they_are_not_signed() -> None:
    assert refusal(signed(headers={"x-amz-security-token": "t"})).code == "InvalidToken"
    assert refusal(with_header(signed(), "x-amz-security-token", "t")).code == "AccessDenied"
    assert refusal(with_header(presigned(), "x-amz-security-token", "t")).code == "AccessDenied"
    assert refusal(with_parameter(presigned(), "X-Amz-Security-Token", "t")).code == "InvalidToken"


# -- payload plans -------------------------------------------------------------------------------------------

SIGNED_STREAM = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
SIGNED_TRAILER = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
UNSIGNED_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
CRC = "x-amz-checksum-crc32"
STREAM_HEADERS = {"content-encoding": "aws-chunked", "x-amz-decoded-content-length": "10"}
TRAILER_HEADERS = {**STREAM_HEADERS, "x-amz-trailer": "x-amz-checksum-crc32"}


def test_an_unsigned_payload_is_planned_so() -> None:
    assert verify(signed("PUT", payload="UNSIGNED-PAYLOAD")).payload == PayloadPlan("unsigned")


def test_a_streaming_payload_is_planned_with_all_that_its_signatures_need() -> None:
    head = signed("PUT", headers=STREAM_HEADERS, payload=SIGNED_STREAM)
    plan = verify(head).payload
    assert (plan.kind, plan.decoded_length, plan.trailer_names) == ("streaming-signed", 10, ())
    assert plan.seed_signature == head.headers["authorization"][-64:]
    assert (plan.scope, plan.amz_date, len(plan.signing_key)) == (SCOPE, STAMP, 32)
    plan = verify(signed("PUT", headers=TRAILER_HEADERS, payload=SIGNED_TRAILER)).payload
    assert (plan.kind, plan.trailer_names) == ("streaming-signed-trailer", ("x-amz-checksum-crc32",))
    plan = verify(signed("PUT", headers=TRAILER_HEADERS, payload=UNSIGNED_TRAILER)).payload
    assert (plan.kind, plan.is_streaming) == ("streaming-unsigned-trailer", True)


def test_aws_chunked_may_stand_beside_another_content_encoding() -> None:
    headers = {**STREAM_HEADERS, "content-encoding": "gzip,aws-chunked"}
    assert verify(signed("PUT", headers=headers, payload=SIGNED_STREAM)).payload.is_streaming


@pytest.mark.parametrize("encoding", [None, "gzip"])
def test_a_streaming_payload_needs_no_content_encoding_for_it(encoding: str | None) -> None:
    """minio-go never sends aws-chunked there; the payload hash says it."""
    headers = {"x-amz-decoded-content-length": "10"} | ({"content-encoding": encoding} if encoding else {})
    assert verify(signed("PUT", headers=headers, payload=SIGNED_STREAM)).payload.kind == "streaming-signed"
    headers |= {"x-amz-trailer": "x-amz-checksum-crc32"}
    assert verify(signed("PUT", headers=headers, payload=UNSIGNED_TRAILER)).payload.is_streaming


@pytest.mark.parametrize(
    ("payload", "headers", "code"),
    [
        ("", {}, "InvalidArgument"),
        ("nonsense", {}, "InvalidArgument"),
        ("0" * 63, {}, "InvalidArgument"),
        ("0" * 64, {"content-encoding": "aws-chunked", "content-length": "10"}, "InvalidRequest"),
        ("UNSIGNED-PAYLOAD", {**STREAM_HEADERS, "content-length": "10"}, "InvalidRequest"),
        (SIGNED_STREAM, {"content-encoding": "aws-chunked"}, "MissingContentLength"),
        (SIGNED_STREAM, {**STREAM_HEADERS, "x-amz-decoded-content-length": "-1"}, "MissingContentLength"),
        (SIGNED_STREAM, {**STREAM_HEADERS, "x-amz-decoded-content-length": "0x1"}, "MissingContentLength"),
        (SIGNED_STREAM, {**STREAM_HEADERS, "x-amz-decoded-content-length": "1,1"}, "MissingContentLength"),
        (SIGNED_STREAM, {**STREAM_HEADERS, "x-amz-decoded-content-length": "²"}, "MissingContentLength"),
        (SIGNED_STREAM, TRAILER_HEADERS, "InvalidRequest"),
        (UNSIGNED_TRAILER, {**STREAM_HEADERS, "x-amz-trailer": "x-amz-acl"}, "InvalidRequest"),
        (UNSIGNED_TRAILER, {**STREAM_HEADERS, "x-amz-trailer": "content-type"}, "InvalidRequest"),
        (UNSIGNED_TRAILER, {**STREAM_HEADERS, "x-amz-trailer": ""}, "InvalidRequest"),
        (UNSIGNED_TRAILER, {**STREAM_HEADERS, "x-amz-trailer": f"{CRC},{CRC}"}, "InvalidRequest"),
        ("STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD", STREAM_HEADERS, "NotImplemented"),
        ("STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD-TRAILER", TRAILER_HEADERS, "NotImplemented"),
        ("STREAMING-UNSIGNED-PAYLOAD", STREAM_HEADERS, "InvalidArgument"),
    ],
)  # fmt: skip
def test_a_payload_promise_that_makes_no_sense_is_refused(
    payload: str, headers: dict[str, str], code: str
) -> None:
    assert refusal(signed("PUT", headers=headers, payload=payload)).code == code


def test_a_missing_payload_hash_is_named() -> None:
    error = refusal(with_header(signed(), "x-amz-content-sha256", None))
    assert (error.code, error.status) == ("InvalidRequest", 400)
    assert error.message == "Missing required header for this request: x-amz-content-sha256"


def test_an_anonymous_upload_may_have_trailers_but_no_signatures() -> None:
    head = head_of("PUT", "/b/k", {"host": "h", **TRAILER_HEADERS})
    assert verify(head).payload.kind == "streaming-unsigned-trailer"
    head = head_of("PUT", "/b/k", {"host": "h", **STREAM_HEADERS, "x-amz-content-sha256": SIGNED_STREAM})
    assert refusal(head).code == "InvalidRequest"


@pytest.mark.parametrize("key", [b"", b"k", bytes(range(32)), b"\xff" * 64])
def test_a_signer_computes_the_hmac_of_rfc_2104_any_number_of_times(key: bytes) -> None:
    signer = Signer(key)
    for text in ("", "one", "ä" * 1000, "one"):
        assert signer.sign(text) == sign(key, text) == hmac.new(key, text.encode(), "sha256").hexdigest()
