"""Uploads from browsers: the form parser, the policy, and the whole way through a real server."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cordwood.server.wire.errors import S3Error
from cordwood.server.wire.form import MAX_FIELDS_BYTES, FormParser, boundary_of
from cordwood.server.wire.post_policy import parse_post_policy
from cordwood.server.wire.signing import signing_key
from tests.server.conftest import ALICE, Answer, LiveServer

BOUNDARY = "----formboundary"


def encode(fields: dict[str, str], data: bytes | None = b"content", filename: str = "f.txt") -> bytes:
    parts = []
    for name, value in fields.items():
        parts.append(
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        )
    if data is not None:
        start = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n'
        parts.append(f"{start}Content-Type: text/plain\r\n\r\n".encode() + data + b"\r\n")
    parts.append(f"--{BOUNDARY}--\r\n".encode())
    return b"".join(parts)


def post(server: LiveServer, body: bytes, bucket: str = "bkt") -> Answer:
    headers = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    return server.request("POST", f"/{bucket}", body, headers, credential=None)


def policy_text(*conditions: Any, lifetime_s: int = 600, **changes: Any) -> str:
    moment = datetime.now(UTC) + timedelta(seconds=lifetime_s)
    document = {
        "expiration": moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "conditions": [{"bucket": "bkt"}, ["starts-with", "$key", "user/"], *conditions],
        **changes,
    }
    return base64.b64encode(
        json.dumps({k: v for k, v in document.items() if v is not None}).encode()
    ).decode()


def signed(policy: str, **fields: str) -> dict[str, str]:
    """Fields with a signature of version 2, which names no field but its own two."""
    signature = base64.b64encode(hmac.digest(ALICE.secret_key.encode(), policy.encode(), "sha1")).decode()
    return {
        "key": "user/a",
        **fields,
        "AWSAccessKeyId": ALICE.access_key,
        "policy": policy,
        "signature": signature,
    }


# --- the parser ----------------------------------------------------------------------------------------------


def parse(body: bytes, step: int) -> tuple[FormParser, bytes]:
    parser = FormParser(BOUNDARY.encode())
    found = b"".join(piece for at in range(0, len(body), step) for piece in parser.feed(body[at : at + step]))
    return parser, found


@pytest.mark.parametrize("data", [b"", b"x", b"\r\n", b"\r\n--", b"\r\n------formboundar\r\n", b"\0" * 300])
@pytest.mark.parametrize("step", [1, 2, 3, 7, 64, 100_000])
def test_a_form_is_the_same_however_it_is_cut(data: bytes, step: int) -> None:
    body = encode({"Key": "a b\r\nc", "empty": ""}, data)
    parser, found = parse(body, step)
    assert parser.fields == {"key": "a b\r\nc", "empty": ""}
    assert parser.filename == "f.txt"
    assert found == data
    parser.finish()


def test_a_file_without_its_end_is_no_file() -> None:
    body = encode({"key": "a"}, b"half")
    parser, _ = parse(body[: body.index(b"half") + 4], 5)
    with pytest.raises(S3Error, match="MalformedPOSTRequest"):
        parser.finish()


@pytest.mark.parametrize(
    "body",
    [
        b"no form at all",
        f"--{BOUNDARY}x\r\n".encode(),
        f"--{BOUNDARY}\r\n\r\nvalue\r\n--{BOUNDARY}--".encode(),
        f"--{BOUNDARY}\r\nContent-Disposition: form-data\r\n\r\nvalue\r\n".encode(),
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name=""; filename="f"\r\n\r\nvalue\r\n'.encode(),
        f"--{BOUNDARY}\r\nContent-Disposition: attachment; name=a\r\n\r\nvalue\r\n".encode(),
        f"--{BOUNDARY}\r\n".encode() + b"x" * 5000,
    ],
)
def test_what_is_no_form_is_malformed(body: bytes) -> None:
    with pytest.raises(S3Error, match="MalformedPOSTRequest"):
        parse(body, 7)


def test_fields_are_bounded_and_the_file_is_not() -> None:
    for fields in ({"a": "x" * MAX_FIELDS_BYTES}, {f"field-{n}": "x" * 1000 for n in range(21)}):
        with pytest.raises(S3Error, match="MaxPostPreDataLengthExceeded"):
            parse(encode(fields), 512)
        with pytest.raises(S3Error, match="MaxPostPreDataLengthExceeded"):
            parse(encode(fields), 1_000_000)
    assert len(parse(encode({}, b"x" * 100_000), 4096)[1]) == 100_000


def test_names_of_files_lose_their_path_and_their_escapes() -> None:
    for sent, found in (("C:\\dir\\a.txt", "a.txt"), ("dir/b.txt", "b.txt"), ("q%22.txt", 'q".txt')):
        assert parse(encode({}, b"", sent), 9)[0].filename == found
    assert boundary_of('multipart/form-data; boundary="a b"') == b"a b"


# --- the policy ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expiration": None}, "Policy missing expiration."),
        ({"expiration": "tomorrow"}, "Invalid 'expiration' value: 'tomorrow'"),
        ({"expiration": 7}, "Invalid JSON."),
        ({"more": 7}, 'Unexpected: "more"'),
        ({"conditions": None}, "Policy missing conditions."),
        ({"conditions": {}}, "Invalid 'conditions' value: must be a List."),
        ({"conditions": []}, "Policy missing conditions."),
        ({"conditions": [{}]}, "Simple-Conditions must have exactly one property specified."),
        (
            {"conditions": [{"a": "b", "c": "d"}]},
            "Simple-Conditions must have exactly one property specified.",
        ),
        ({"conditions": [{"acl": 1}]}, "value must be a string."),
        ({"conditions": [[]]}, "Invalid Condition: missing operation identifier."),
        ({"conditions": [["ends-with", "$key", "x"]]}, "unknown operation 'ends-with'."),
        ({"conditions": [["eq", "$key", "x", "y"]]}, "Invalid eq: wrong number of arguments."),
        ({"conditions": [["eq", "$key", 7]]}, "Invalid JSON."),
        (
            {"conditions": [["content-length-range", 0]]},
            "Invalid content-length-range: wrong number of arguments.",
        ),
        (
            {"conditions": [["content-length-range", -1, 5]]},
            "Invalid content-length-range: not a whole number.",
        ),
        ({"conditions": ["key"]}, "Invalid condition test: must be a List or Object."),
    ],
)
def test_a_policy_that_cannot_be_read_is_invalid_and_says_why(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(S3Error, match="InvalidPolicyDocument") as refused:
        parse_post_policy(policy_text(**changes))
    assert refused.value.message.startswith("Invalid Policy: ")
    assert refused.value.message.endswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting '{' but found End-of-Input"),
        ("%%%", "invalid Base64 encoding."),
        (base64.b64encode(b"{").decode(), "Invalid JSON."),
        (base64.b64encode(b"[]").decode(), "Invalid JSON."),
    ],
)
def test_a_policy_that_is_no_base64_or_no_json_is_invalid(text: str, message: str) -> None:
    with pytest.raises(S3Error, match="InvalidPolicyDocument") as refused:
        parse_post_policy(text)
    assert refused.value.message == f"Invalid Policy: {message}"


def test_a_condition_on_a_field_without_its_sign_never_holds() -> None:
    with pytest.raises(S3Error, match="AccessDenied"):
        parse_post_policy(policy_text(["eq", "key", "x"]))


def test_the_signature_of_a_form_is_looked_at_before_its_bucket(server: LiveServer, s3: Any) -> None:
    made = server.client(signature_version="s3v4").generate_presigned_post("absent", "a")
    assert post(server, encode(made["fields"]), "absent").code == "NoSuchBucket"
    made["fields"]["x-amz-signature"] = "0" * 64
    assert post(server, encode(made["fields"]), "absent").code == "SignatureDoesNotMatch"


# --- the whole way -------------------------------------------------------------------------------------------


def test_a_signed_form_stores_its_file_as_its_fields_say(server: LiveServer, s3: Any) -> None:
    policy = policy_text(
        ["starts-with", "$Content-Type", "text/"],
        ["eq", "$x-amz-meta-tag", "1"],
        {"Cache-Control": "no-store"},
        ["content-length-range", 1, 100],
    )
    fields = {
        "Content-Type": "text/html",
        "x-amz-meta-tag": "1",
        "cache-control": "no-store",
        "x-ignore-me": "x",
    }
    answer = post(server, encode(signed(policy, **fields)))
    assert answer.status == 204 and answer.body == b""
    assert answer.headers["location"] == f"{server.url}/bkt/user/a"
    found = s3.get_object(Bucket="bkt", Key="user/a")
    assert found["Body"].read() == b"content"
    assert found["ETag"] == answer.headers["etag"] == f'"{hashlib.md5(b"content").hexdigest()}"'
    assert (found["ContentType"], found["CacheControl"], found["Metadata"]) == (
        "text/html",
        "no-store",
        {"tag": "1"},
    )


def test_boto3_signs_a_form_with_version_4(server: LiveServer, s3: Any) -> None:
    client = server.client(signature_version="s3v4")
    made = client.generate_presigned_post(
        "bkt", "${filename}", Conditions=[["content-length-range", 0, 3 << 20]]
    )
    data = bytes(range(256)) * 8192
    assert post(server, encode(made["fields"], data, "big.bin")).status == 204
    assert s3.get_object(Bucket="bkt", Key="big.bin")["Body"].read() == data
    made["fields"]["x-amz-signature"] = "0" * 64
    assert post(server, encode(made["fields"])).code == "SignatureDoesNotMatch"


def test_a_form_of_another_region_or_an_old_one_is_refused(server: LiveServer, s3: Any) -> None:
    now = datetime.now(UTC)
    for region, moment, code in (
        ("eu-west-1", now, "InvalidArgument"),
        ("us-east-1", now - timedelta(days=8), "AccessDenied"),
    ):
        day = moment.strftime("%Y%m%d")
        policy = policy_text()
        fields = {
            "key": "user/a",
            "policy": policy,
            "x-amz-algorithm": "AWS4-HMAC-SHA256",
            "x-amz-credential": f"{ALICE.access_key}/{day}/{region}/s3/aws4_request",
            "x-amz-date": moment.strftime("%Y%m%dT%H%M%SZ"),
        }
        key = signing_key(ALICE.secret_key, day, region, "s3")
        fields["x-amz-signature"] = hmac.digest(key, policy.encode(), "sha256").hex()
        assert post(server, encode(fields)).code == code


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x-amz-algorithm", "HMAC", "Only AWS4-HMAC-SHA256 is supported"),
        ("x-amz-date", "yesterday", "X-Amz-Date must be formated via ISO8601 Long format"),
        ("x-amz-credential", "me", "the Credential is mal-formed; expecting"),
        ("x-amz-credential", "me/20130524/us-east-1/s3/aws5", 'incorrect terminal "aws5"'),
    ],
)
def test_a_field_of_a_form_s_signature_that_is_wrong_is_named(
    server: LiveServer, s3: Any, name: str, value: str, message: str
) -> None:
    made = server.client(signature_version="s3v4").generate_presigned_post("bkt", "a")
    made["fields"][name] = value
    refused = post(server, encode(made["fields"]))
    assert (refused.code, refused.field("ArgumentValue")) == ("InvalidArgument", value)
    assert message in refused.field("Message")


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"key": "other/a"}, "AccessDenied"),
        ({"acl": "public-read"}, "AccessDenied"),
        ({"x-amz-meta-more": "1"}, "AccessDenied"),
        ({"bucket": "bucket-of-another"}, "AccessDenied"),
        ({"key": ""}, "InvalidArgument"),
        ({"policy": "e30="}, "SignatureDoesNotMatch"),
        ({"AWSAccessKeyId": "nobody"}, "InvalidAccessKeyId"),
    ],
)
def test_what_the_policy_does_not_allow_is_not_stored(
    server: LiveServer, s3: Any, fields: dict[str, str], code: str
) -> None:
    answer = post(server, encode({**signed(policy_text()), **fields}))
    assert answer.code == code
    assert "Contents" not in s3.list_objects(Bucket="bkt")


def test_a_policy_holds_only_for_its_time_its_bucket_and_its_sizes(server: LiveServer, s3: Any) -> None:
    s3.create_bucket(Bucket="second")
    assert post(server, encode(signed(policy_text(lifetime_s=-60)))).code == "AccessDenied"
    assert post(server, encode(signed(policy_text())), "second").code == "AccessDenied"
    sized = policy_text(["content-length-range", 3, 5])
    assert post(server, encode(signed(sized), b"12")).code == "EntityTooSmall"
    assert post(server, encode(signed(sized), b"123456")).code == "EntityTooLarge"
    assert "Contents" not in s3.list_objects(Bucket="bkt")
    assert post(server, encode(signed(sized), b"12345")).status == 204


@pytest.mark.parametrize("missing", ["signature", "AWSAccessKeyId", "policy"])
def test_half_a_signature_is_an_error(server: LiveServer, s3: Any, missing: str) -> None:
    fields = signed(policy_text())
    del fields[missing]
    assert post(server, encode(fields)).code == "InvalidArgument"


def test_a_form_without_a_signature_is_anybodys(server: LiveServer, s3: Any) -> None:
    assert post(server, encode({"key": "k"})).status == 403
    s3.put_bucket_acl(Bucket="bkt", ACL="public-read-write")
    assert post(server, encode({"key": "k", "acl": "public-read"})).status == 204
    assert server.request("GET", "/bkt/k", credential=None).body == b"content"


def test_the_form_says_what_it_wants_to_hear(server: LiveServer, s3: Any) -> None:
    def answer(**fields: str) -> Answer:
        allowed = [["starts-with", f"${name}", ""] for name in fields]
        return post(server, encode(signed(policy_text(*allowed), **fields)))

    assert answer(success_action_status="200").status == 200
    assert answer(success_action_status="404").status == 204
    made = answer(success_action_status="201")
    assert made.status == 201
    assert b"<PostResponse>" in made.body and b"<Key>user/a</Key>" in made.body
    moved = answer(success_action_redirect="http://example.com/done?x=1")
    assert moved.status == 303
    etag = made.headers["etag"].strip('"')
    expected = f"http://example.com/done?x=1&bucket=bkt&key=user%2Fa&etag=%22{etag}%22"
    assert moved.headers["location"] == expected
    for url in ("javascript:alert(1)", "http://a/\r\nset-cookie: x", "nowhere"):
        assert answer(redirect=url).status == 204


def test_a_form_that_breaks_off_or_has_no_file_stores_nothing(server: LiveServer, s3: Any) -> None:
    fields = signed(policy_text())
    assert post(server, encode(fields, None)).code == "IncorrectNumberOfFilesInPostRequest"
    whole = encode(fields, b"x" * 1000)
    assert post(server, whole[: whole.index(b"xxx") + 500]).code == "MalformedPOSTRequest"
    wrong = encode({**fields, "x-amz-checksum-crc32": "AAAAAA=="})
    assert post(server, wrong).code == "BadDigest"
    assert "Contents" not in s3.list_objects(Bucket="bkt")
    assert post(server, encode(fields), "no-such-bucket").code == "NoSuchBucket"
