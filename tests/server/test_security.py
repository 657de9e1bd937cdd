"""The checklist of docs/security.md: one attack, or one family of them, per test, through a real socket.

Invariant: what is refused is refused before anything of it is stored.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from botocore.exceptions import ClientError

from cordwood.engine import Store
from cordwood.server.main import _with_access_log
from cordwood.server.wire.errors import S3Error
from cordwood.server.wire.http1 import RequestReceiver
from cordwood.server.wire.message import Body, PeerInfo, RequestHead, Response
from cordwood.server.wire.signing import presign_url, sign_headers
from cordwood.server.wire.sigv4 import authenticate
from tests.server.conftest import ALICE, BOB, Answer, LiveServer

REGION = "us-east-1"


@pytest.fixture
def alice(two_owners: LiveServer) -> Any:
    client = two_owners.client()
    client.create_bucket(Bucket="bkt")
    client.put_object(Bucket="bkt", Key="secret", Body=b"secret", Tagging="kind=hidden")
    client.put_object(Bucket="bkt", Key="open/a", Body=b"a")
    return client


@pytest.fixture
def bob(two_owners: LiveServer, alice: Any) -> Any:
    client = two_owners.client(BOB)
    client.create_bucket(Bucket="bobs")
    return client


def permit(alice: Any, *statements: dict[str, Any]) -> None:
    alice.put_bucket_policy(
        Bucket="bkt", Policy=json.dumps({"Version": "2012-10-17", "Statement": statements})
    )


def statement(
    effect: str, actions: str | list[str], resource: str = "*", principal: Any = None, **more: Any
) -> dict[str, Any]:
    return {
        "Effect": effect,
        "Principal": {"AWS": BOB.owner_id} if principal is None else principal,
        "Action": actions,
        "Resource": [f"arn:aws:s3:::bkt/{resource}", "arn:aws:s3:::bkt"],
        **more,
    }


def code_of(call: Any, **arguments: Any) -> str:
    with pytest.raises(ClientError) as refused:
        call(**arguments)
    return str(refused.value.response["Error"]["Code"])


def keys_of(store: Store, bucket: str = "bkt") -> list[str]:
    return [entry.key for entry in store.list(bucket).objects]


def unsigned(server: LiveServer, method: str, target: str, body: bytes = b"", **headers: str) -> Answer:
    """A request exactly as given: `x_amz_acl="..."` is a header x-amz-acl."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return server.request(method, target, body, named, credential=None)


def presigned(server: LiveServer, method: str, path: str, headers: dict[str, str] | None = None) -> str:
    url = presign_url(method, f"{server.url}{path}", ALICE, REGION, datetime.now(UTC), 60, headers)
    return url.removeprefix(server.url)


def presigned_v2(server: LiveServer, method: str, path: str, amz: str = "") -> str:
    expires = int(time.time()) + 60
    text = f"{method}\n\n\n{expires}\n{amz}{path}"
    mac = hmac.digest(ALICE.secret_key.encode(), text.encode(), "sha1")
    signature = quote(base64.b64encode(mac).decode(), safe="")
    return f"{path}?AWSAccessKeyId={ALICE.access_key}&Expires={expires}&Signature={signature}"


# --- 1. trailers ----------------------------------------------------------------------------------------------


def streaming(server: LiveServer, kind: str, *, secret: str = "", **more: str) -> dict[str, str]:
    """Signed headers of a body of 5 bytes in aws-chunked."""
    from cordwood.server.wire.signing import Credential

    headers = {
        "host": urlsplit(server.url).netloc,
        "content-encoding": "aws-chunked",
        "x-amz-decoded-content-length": "5",
        **{name.replace("_", "-"): value for name, value in more.items()},
    }
    pair = Credential(ALICE.access_key, secret or ALICE.secret_key)
    return headers | sign_headers(
        "PUT", f"{server.url}/bkt/k", headers, kind, pair, REGION, datetime.now(UTC)
    )


def test_a_body_with_an_unsigned_trailer_still_needs_a_signature_of_its_head(
    two_owners: LiveServer, alice: Any, store: Store
) -> None:
    kind = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
    trailer = b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n"
    forged = streaming(two_owners, kind, secret="wrong", x_amz_trailer="x-amz-checksum-crc32")
    answer = two_owners.request("PUT", "/bkt/k", trailer, forged, credential=None)
    assert (answer.status, answer.code) == (403, "SignatureDoesNotMatch")
    nobody = {name: value for name, value in forged.items() if name != "authorization"}
    answer = two_owners.request("PUT", "/bkt/k", trailer, nobody, credential=None)
    assert (answer.status, answer.code) == (403, "AccessDenied")
    assert "k" not in keys_of(store)
    real = streaming(two_owners, kind, x_amz_trailer="x-amz-checksum-crc32")
    assert two_owners.request("PUT", "/bkt/k", trailer, real, credential=None).status == 200


@pytest.mark.parametrize(
    "name", ["x-amz-acl", "x-amz-meta-a", "x-amz-tagging", "content-type", "authorization"]
)
def test_a_trailer_is_a_checksum_or_nothing(
    two_owners: LiveServer, alice: Any, store: Store, name: str
) -> None:
    kind = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
    body = f"5\r\nhello\r\n0\r\n{name}:public-read\r\n\r\n".encode()
    for declared in ({"x_amz_trailer": name}, {}, {"x_amz_trailer": "x-amz-checksum-crc32"}):
        headers = streaming(two_owners, kind, **declared)
        assert two_owners.request("PUT", "/bkt/k", body, headers, credential=None).status == 400, declared
    assert "k" not in keys_of(store)


def test_a_trailer_of_the_transfer_coding_acts_on_nothing(two_owners: LiveServer, alice: Any) -> None:
    payload = hashlib.sha256(b"hello").hexdigest()
    headers = {"host": urlsplit(two_owners.url).netloc}
    signed = sign_headers(
        "PUT", f"{two_owners.url}/bkt/k", headers, payload, ALICE, REGION, datetime.now(UTC)
    )
    head = "PUT /bkt/k HTTP/1.1\r\n" + "".join(
        f"{name}: {value}\r\n" for name, value in (headers | signed).items()
    )
    head += "transfer-encoding: chunked\r\ntrailer: x-amz-acl\r\n\r\n"
    connection = http.client.HTTPConnection("127.0.0.1", two_owners.port, timeout=20)
    connection.connect()
    assert connection.sock is not None
    connection.sock.sendall(head.encode() + b"5\r\nhello\r\n0\r\nx-amz-acl: public-read\r\n\r\n")
    connection.sock.recv(4096)
    connection.close()
    assert unsigned(two_owners, "GET", "/bkt/k").status == 403


def test_a_signed_trailer_is_not_to_be_left_out_or_replaced(
    two_owners: LiveServer, alice: Any, store: Store
) -> None:
    kind = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
    headers = streaming(two_owners, kind, x_amz_trailer="x-amz-checksum-crc32")
    for trailer in (
        b"",
        b"x-amz-checksum-crc32:NhCmhg==\r\n",
        b"x-amz-trailer-signature:" + b"0" * 64 + b"\r\n",
    ):
        body = (
            b"5;chunk-signature="
            + b"0" * 64
            + b"\r\nhello\r\n0;chunk-signature="
            + b"0" * 64
            + b"\r\n"
            + trailer
        )
        answer = two_owners.request("PUT", "/bkt/k", body + b"\r\n", headers, credential=None)
        assert (answer.status, answer.code) == (403, "SignatureDoesNotMatch")
    assert "k" not in keys_of(store)


# --- 2. credentials in the query without a signature -----------------------------------------------------------

_CREDENTIAL = quote(f"{ALICE.access_key}/{datetime.now(UTC):%Y%m%d}/{REGION}/s3/aws4_request", safe="")
_PARTS = (
    f"X-Amz-Credential={_CREDENTIAL}",
    "X-Amz-Algorithm=AWS4-HMAC-SHA256",
    f"X-Amz-Date={datetime.now(UTC):%Y%m%dT%H%M%SZ}",
    "X-Amz-Expires=60",
    "X-Amz-SignedHeaders=host",
    "X-Amz-Signature=",
)


@pytest.mark.parametrize("count", range(1, len(_PARTS) + 1))
def test_credentials_in_the_query_alone_open_nothing(
    two_owners: LiveServer, alice: Any, store: Store, count: int
) -> None:
    query = "&".join(_PARTS[:count])
    trailing = {
        "x_amz_content_sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        "content_encoding": "aws-chunked",
        "x_amz_decoded_content_length": "5",
    }
    body = b"5\r\nhello\r\n0\r\n\r\n"
    for headers in ({}, trailing, {**trailing, "x_amz_date": f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"}):
        assert unsigned(two_owners, "PUT", f"/bkt/k?{query}", body, **headers).status in (400, 403)
    assert unsigned(two_owners, "GET", f"/bkt/secret?{query}").status in (400, 403)
    for old in ("AWSAccessKeyId=AKALICE", "AWSAccessKeyId=AKALICE&Expires=4000000000", "Signature=x"):
        assert unsigned(two_owners, "GET", f"/bkt/secret?{old}").status in (400, 403)
    assert "k" not in keys_of(store)


# --- 3. what is added to a presigned URL -----------------------------------------------------------------------

_ADDED = {
    "x-amz-copy-source": "/bkt/secret",
    "x-amz-tagging": "a=b",
    "x-amz-acl": "public-read",
    "x-amz-grant-read": f"id={BOB.owner_id}",
    "x-amz-meta-a": "b",
    "x-amz-storage-class": "STANDARD_IA",
    "x-amz-website-redirect-location": "/x",
    "x-amz-object-lock-legal-hold": "ON",
    "x-amz-bypass-governance-retention": "true",
    "x-amz-write-offset-bytes": "0",
    "x-amz-rename-source": "/bkt/secret",
    "x-amz-security-token": "t",
    "x-amz-request-payer": "requester",
    "x-amz-expected-bucket-owner": "x",
}


@pytest.mark.parametrize("name", _ADDED)
def test_a_header_that_acts_cannot_be_added_to_a_presigned_url(
    two_owners: LiveServer, alice: Any, store: Store, name: str
) -> None:
    for target in (presigned(two_owners, "PUT", "/bkt/k"), presigned_v2(two_owners, "PUT", "/bkt/k")):
        answer = two_owners.request("PUT", target, b"", {name: _ADDED[name]}, credential=None)
        assert answer.status in (400, 403), answer.body
    assert "k" not in keys_of(store)
    for target in (presigned(two_owners, "PUT", "/bkt/k"), presigned_v2(two_owners, "PUT", "/bkt/k")):
        assert two_owners.request("PUT", target, b"x", credential=None).status == 200


@pytest.mark.parametrize(
    "added",
    ["acl", "tagging", "legal-hold", "retention", "renameObject", "encryption", "annotation", "attributes", "torrent",
     "uploads", "versionId=null", "uploadId=x&partNumber=1", "restore", "select&select-type=2", "object-lock",
     "publicAccessBlock", "ownershipControls", "policyStatus", "abac", "metrics&id=a", "intelligent-tiering", "session",
     "response-content-type=text/html"],
)  # fmt: skip
def test_no_parameter_makes_another_operation_of_a_presigned_url(
    two_owners: LiveServer, alice: Any, store: Store, added: str
) -> None:
    before = store.logical_dump()
    for path in ("/bkt/secret", "/bkt"):
        for method in ("GET", "PUT", "POST", "DELETE"):
            for sign in (presigned, presigned_v2):
                target = f"{sign(two_owners, method, path)}&{added}"
                answer = unsigned(two_owners, method, target, b"<x/>" if method in ("PUT", "POST") else b"")
                assert answer.status in (400, 403, 405, 412, 501), (target, answer.body)
                assert answer.body != b"secret"
    assert store.logical_dump() == before


def test_a_url_of_version_2_is_not_good_for_what_that_version_does_not_sign(two_owners: LiveServer) -> None:
    alice = two_owners.client()
    alice.create_bucket(Bucket="bkt", ObjectLockEnabledForBucket=True)
    alice.put_object(Bucket="bkt", Key="k", Body=b"k")
    hold = b"<LegalHold><Status>ON</Status></LegalHold>"
    block = b"<PublicAccessBlockConfiguration><BlockPublicAcls>true</BlockPublicAcls></PublicAccessBlockConfiguration>"
    owner = (
        b"<OwnershipControls><Rule><ObjectOwnership>ObjectWriter</ObjectOwnership></Rule></OwnershipControls>"
    )
    for path, added, body in (
        ("/bkt/k", "legal-hold", hold),
        ("/bkt", "publicAccessBlock", block),
        ("/bkt", "ownershipControls", owner),
        ("/bkt", "abac", b"<AbacStatus><Status>Enabled</Status></AbacStatus>"),
    ):
        # The same request is fine when it is signed in headers: so it is the signature that refuses it.
        assert two_owners.request("PUT", f"{path}?{added}", body).status == 200
        target = f"{presigned_v2(two_owners, 'PUT', path if path != '/bkt' else '/bkt/')}&{added}"
        answer = unsigned(two_owners, "PUT", target, body)
        assert (answer.status, answer.code) == (403, "AccessDenied"), answer.body
        assert b"does not cover" in answer.body


def test_a_presigned_listing_does_not_become_credentials(two_owners: LiveServer, alice: Any) -> None:
    for sign in (presigned, presigned_v2):
        for action in ("GetSessionToken", "GetCallerIdentity", "AssumeRole"):
            target = f"{sign(two_owners, 'GET', '/')}&Action={action}&Version=2011-06-15"
            answer = unsigned(two_owners, "GET", target)
            assert answer.status in (400, 403), answer.body
            assert sign is presigned or b"Signature Version 2 is not for sts" in answer.body
            assert b"SecretAccessKey" not in answer.body and ALICE.owner_id.encode() not in answer.body


# --- 4. the edges of a lifetime --------------------------------------------------------------------------------


def head_of(target: str, host: str) -> RequestHead:
    receiver = RequestReceiver()
    receiver.feed(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    head = receiver.next_head()
    assert head is not None
    return head


def test_a_presigned_url_is_good_to_its_last_second_and_not_before_its_first() -> None:
    made = datetime(2026, 1, 1, tzinfo=UTC)
    url = presign_url("GET", "http://h/b/k", ALICE, REGION, made, 60)
    head = head_of(url.removeprefix("http://h"), "h")
    accounts = {ALICE.access_key: ALICE}

    def code(now: datetime) -> str:
        try:
            authenticate(head, secret_for=accounts.get, region=REGION, now_s=now.timestamp())
        except S3Error as error:
            return error.code
        return "OK"

    assert code(made + timedelta(seconds=60)) == "OK"
    assert code(made + timedelta(seconds=60, milliseconds=1)) == "AccessDenied"
    assert code(made - timedelta(minutes=15)) == "OK"  # clocks may differ by so much
    assert code(made - timedelta(minutes=15, seconds=1)) == "AccessDenied"


@pytest.mark.parametrize("expires", ["0", "-1", "604801", "1e3", "٣", "", "60 ", "99999999999999999999"])
def test_a_lifetime_that_is_none_is_refused(two_owners: LiveServer, alice: Any, expires: str) -> None:
    target = presigned(two_owners, "GET", "/bkt/secret").replace("Expires=60", f"Expires={quote(expires)}")
    assert unsigned(two_owners, "GET", target).status in (400, 403)
    old = presigned_v2(two_owners, "GET", "/bkt/secret")
    start, _, rest = old.partition("Expires=")
    changed = f"{start}Expires={quote(expires)}&{rest.partition('&')[2]}"
    assert unsigned(two_owners, "GET", changed).status in (400, 403)


# --- 5. around a policy ----------------------------------------------------------------------------------------


def test_no_upload_id_leads_around_a_policy(
    two_owners: LiveServer, alice: Any, bob: Any, store: Store
) -> None:
    permit(alice, statement("Allow", "s3:*", "open/*"), statement("Deny", "s3:*", "secret*"))
    theirs = alice.create_multipart_upload(Bucket="bkt", Key="secret2")["UploadId"]
    alice.upload_part(Bucket="bkt", Key="secret2", UploadId=theirs, PartNumber=1, Body=b"part")
    etag = f'"{hashlib.md5(b"part").hexdigest()}"'
    parts = {"Parts": [{"PartNumber": 1, "ETag": etag}]}
    for key, code in (("secret2", "AccessDenied"), ("open/x", "NoSuchUpload")):
        about = {"Bucket": "bkt", "Key": key, "UploadId": theirs}
        assert code_of(bob.list_parts, **about) == code
        assert code_of(bob.upload_part, **about, PartNumber=1, Body=b"x") == code
        assert code_of(bob.upload_part_copy, **about, PartNumber=1, CopySource="bobs/x") in (
            code,
            "NoSuchKey",
        )
        assert code_of(bob.complete_multipart_upload, **about, MultipartUpload=parts) == code
        assert code_of(bob.abort_multipart_upload, **about) == code
    assert code_of(bob.list_parts, Bucket="bobs", Key="secret2", UploadId=theirs) == "NoSuchUpload"
    assert len(alice.list_parts(Bucket="bkt", Key="secret2", UploadId=theirs)["Parts"]) == 1


def test_no_copy_leads_around_a_policy(two_owners: LiveServer, alice: Any, bob: Any, store: Store) -> None:
    permit(alice, statement("Allow", "s3:*", "*"), statement("Deny", "s3:GetObject", "secret"))
    for source in ("bkt/secret", "/bkt/secret", "bkt/%73ecret", "%2Fbkt%2Fsecret"):
        asked = {"x-amz-copy-source": source}
        assert two_owners.request("PUT", "/bobs/k", b"", asked, BOB).code == "AccessDenied"
    upload = bob.create_multipart_upload(Bucket="bobs", Key="k")["UploadId"]
    about = {"Bucket": "bobs", "Key": "k", "UploadId": upload, "PartNumber": 1}
    assert code_of(bob.upload_part_copy, **about, CopySource="bkt/secret") == "AccessDenied"
    assert code_of(bob.rename_object, Bucket="bkt", Key="open/k", RenameSource="secret") == "AccessDenied"
    assert code_of(bob.rename_object, Bucket="bkt", Key="x/", RenameSource="open/") == "AccessDenied"
    assert (
        code_of(bob.get_object_attributes, Bucket="bkt", Key="secret", ObjectAttributes=["ETag"])
        == "AccessDenied"
    )
    assert keys_of(store, "bobs") == []


def test_tags_do_not_leave_with_a_copy_that_could_not_read_them(alice: Any, bob: Any) -> None:
    permit(alice, statement("Allow", ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"], "*"))
    assert code_of(bob.get_object_tagging, Bucket="bkt", Key="secret") == "AccessDenied"
    assert code_of(bob.copy_object, Bucket="bobs", Key="k", CopySource="bkt/secret") == "AccessDenied"
    assert code_of(bob.rename_object, Bucket="bkt", Key="open/k", RenameSource="secret") == "AccessDenied"
    bob.copy_object(Bucket="bobs", Key="k", CopySource="bkt/secret", TaggingDirective="REPLACE")
    assert bob.get_object_tagging(Bucket="bobs", Key="k")["TagSet"] == []
    permit(alice, statement("Allow", ["s3:GetObject", "s3:GetObjectTagging"], "*"))
    bob.copy_object(Bucket="bobs", Key="k", CopySource="bkt/secret")
    assert bob.get_object_tagging(Bucket="bobs", Key="k")["TagSet"] == [{"Key": "kind", "Value": "hidden"}]


def test_no_version_id_and_no_batch_lead_around_a_policy(alice: Any, bob: Any) -> None:
    alice.put_bucket_versioning(Bucket="bkt", VersioningConfiguration={"Status": "Enabled"})
    version = alice.put_object(Bucket="bkt", Key="secret", Body=b"new")["VersionId"]
    permit(alice, statement("Allow", ["s3:GetObject", "s3:DeleteObject", "s3:ListBucket"], "open/*"))
    assert code_of(bob.get_object, Bucket="bkt", Key="secret", VersionId=version) == "AccessDenied"
    assert code_of(bob.get_object, Bucket="bkt", Key="open/a", VersionId="null") == "AccessDenied"
    batch = {"Objects": [{"Key": "secret"}, {"Key": "secret", "VersionId": version}, {"Key": "open/a"}]}
    answer = bob.delete_objects(Bucket="bkt", Delete=batch)
    assert [each["Code"] for each in answer["Errors"]] == ["AccessDenied"] * 2
    assert [each["Key"] for each in answer["Deleted"]] == ["open/a"]


def test_a_denied_action_is_denied_under_its_own_name(alice: Any, bob: Any) -> None:
    permit(alice, statement("Allow", "s3:*"), statement("Deny", "s3:GetObjectAttributes"))
    about = {"Bucket": "bkt", "Key": "secret", "ObjectAttributes": ["ETag"]}
    assert code_of(bob.get_object_attributes, **about) == "AccessDenied"
    bob.get_object(Bucket="bkt", Key="secret")


# --- 6. the very bytes that were authorised --------------------------------------------------------------------


def test_what_is_stored_is_what_was_signed(two_owners: LiveServer, alice: Any, store: Store) -> None:
    host = {"host": urlsplit(two_owners.url).netloc}
    signed_hash = hashlib.sha256(b"signed").hexdigest()
    now = datetime.now(UTC)
    headers = host | sign_headers("PUT", f"{two_owners.url}/bkt/k", host, signed_hash, ALICE, REGION, now)
    for body in (b"other", b"signed!", b"", b"x" * 100_000):
        assert two_owners.request("PUT", "/bkt/k", body, headers, credential=None).status == 400
        assert "k" not in keys_of(store)
    assert two_owners.request("PUT", "/bkt/k", b"signed", headers, credential=None).status == 200
    # A presigned URL may fix the hash, too; and an unsigned claim about it is none.
    target = presigned(two_owners, "PUT", "/bkt/l", {"x-amz-content-sha256": signed_hash})
    assert unsigned(two_owners, "PUT", target, b"other", x_amz_content_sha256=signed_hash).status in (
        400,
        403,
    )
    assert "l" not in keys_of(store)


def test_a_decision_about_an_object_does_not_hold_for_the_one_that_took_its_place(
    two_owners: LiveServer, alice: Any, bob: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tagged = {"StringEquals": {"s3:ExistingObjectTag/kind": "free"}}
    permit(alice, statement("Allow", ["s3:GetObject", "s3:GetObjectTagging"], "*", Condition=tagged))
    alice.put_object(Bucket="bkt", Key="k", Body=b"free", Tagging="kind=free")
    assert bob.get_object(Bucket="bkt", Key="k")["Body"].read() == b"free"
    real = Store.get

    def replaced(self: Store, bucket: str, key: str, **options: Any) -> Any:
        if key == "k":
            self.put(bucket, key, b"not for you", attrs={"tags": {"kind": "hidden"}})
        return real(self, bucket, key, **options)

    monkeypatch.setattr(Store, "get", replaced)
    assert code_of(bob.get_object, Bucket="bkt", Key="k") in ("SlowDown", "AccessDenied")


def test_a_form_stores_under_the_key_that_its_policy_saw(
    two_owners: LiveServer, alice: Any, store: Store
) -> None:
    form = alice.generate_presigned_post("bkt", "up/${filename}")
    fields = "".join(
        f'--B\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in form["fields"].items()
    )

    def post(more: str, filename: str) -> Answer:
        file = (
            f'--B\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n\r\nx\r\n--B--\r\n'
        )
        body = (fields + more + file).encode()
        return unsigned(two_owners, "POST", "/bkt", body, content_type="multipart/form-data; boundary=B")

    before = keys_of(store)
    extra = '--B\r\nContent-Disposition: form-data; name="{}"\r\n\r\n{}\r\n'
    for name, value in (("acl", "public-read"), ("x-amz-tagging", "a=b"), ("Content-Type", "text/html"),
                        ("x-amz-write-offset-bytes", "0"), ("success_action_redirect", "http://evil/")):  # fmt: skip
        assert post(extra.format(name, value), "f").code == "AccessDenied", name
    assert post(extra.format("key", "secret"), "f").status >= 400
    assert keys_of(store) == before
    assert post("", "../../secret").status == 204
    assert set(keys_of(store)) - set(before) == {"up/secret"}


# --- 7. headers of the inside, from outside --------------------------------------------------------------------


def test_a_header_does_not_make_somebody_else_of_the_caller(two_owners: LiveServer, alice: Any) -> None:
    here = {"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}
    tls = {"Bool": {"aws:SecureTransport": "true"}}
    permit(
        alice,
        statement("Allow", "s3:GetObject", "secret", "*", Condition=here),
        statement("Allow", "s3:GetObject", "open/*", "*", Condition=tls),
    )
    pretended = {
        "x-forwarded-for": "10.0.0.1",
        "x-real-ip": "10.0.0.1",
        "forwarded": "for=10.0.0.1;proto=https",
        "x-forwarded-proto": "https",
        "x-amz-source-ip": "10.0.0.1",
        "x-amz-principal": ALICE.owner_id,
        "x-amz-access-key": ALICE.access_key,
        "x-cordwood-owner": ALICE.owner_id,
        "x-cordwood-internal": "1",
        "x-http-method-override": "GET",
        "x-original-url": "/bkt/secret",
        "x-rewrite-url": "/bkt/secret",
    }
    for key in ("secret", "open/a"):
        assert two_owners.request("GET", f"/bkt/{key}", b"", pretended, credential=None).status == 403
    own = {**pretended, "x-http-method-override": "DELETE"}
    assert two_owners.request("GET", "/bkt/secret", b"", own).body == b"secret"
    assert alice.get_object(Bucket="bkt", Key="secret")["Body"].read() == b"secret"


def test_metadata_and_tags_do_not_become_attributes_of_the_inside(
    two_owners: LiveServer, alice: Any, store: Store
) -> None:
    named = {f"x-amz-meta-{name}": "x" for name in ("owner", "acl", "retention", "hold", "renamed", "tags")}
    assert two_owners.request("PUT", "/bkt/k", b"x", named).status == 200
    assert store.head("bkt", "k").attrs == {}
    alice.put_object_tagging(Bucket="bkt", Key="k", Tagging={"TagSet": [{"Key": "owner", "Value": "x"}]})
    assert store.head("bkt", "k").attrs == {"tags": {"owner": "x"}}


# --- 8. browsers -----------------------------------------------------------------------------------------------


def test_an_origin_is_told_only_what_a_rule_says(two_owners: LiveServer, alice: Any) -> None:
    permit(alice, statement("Allow", "s3:GetObject", "open/*", "*"))
    evil = ("http://evil.example", "null", "http://good.example.evil.example", "http://evilgood.example",
            "http://good.example:8080", "https://good.example", "HTTP://GOOD.EXAMPLE")  # fmt: skip
    for origin in (*evil, "http://good.example"):
        answer = unsigned(two_owners, "GET", "/bkt/open/a", origin=origin)
        assert not [name for name in answer.headers if name.startswith("access-control-")]
    rule = {"AllowedMethods": ["GET"], "AllowedOrigins": ["http://good.example"]}
    alice.put_bucket_cors(Bucket="bkt", CORSConfiguration={"CORSRules": [rule]})
    for origin in evil:
        for method, key in (("GET", "open/a"), ("GET", "secret"), ("OPTIONS", "open/a")):
            answer = unsigned(
                two_owners, method, f"/bkt/{key}", origin=origin, access_control_request_method="GET"
            )
            assert not [name for name in answer.headers if name.startswith("access-control-")], origin
    good = unsigned(two_owners, "GET", "/bkt/open/a", origin="http://good.example")
    assert good.headers["access-control-allow-origin"] == "http://good.example"
    assert "Origin" in good.headers["vary"]
    anybody = {"AllowedMethods": ["GET"], "AllowedOrigins": ["*"]}
    alice.put_bucket_cors(Bucket="bkt", CORSConfiguration={"CORSRules": [anybody]})
    answer = unsigned(two_owners, "GET", "/bkt/open/a", origin="http://evil.example")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in answer.headers


def test_what_a_browser_gets_it_takes_for_no_other_type_than_it_was_stored_as(
    two_owners: LiveServer, alice: Any
) -> None:
    page = b"<script>alert(1)</script>"
    alice.put_object(Bucket="bkt", Key="open/x", Body=page, ContentType="text/plain")
    permit(alice, statement("Allow", "s3:GetObject", "open/*", "*"))
    targets = ["/bkt/open/x", "/bkt/none<script>", presigned(two_owners, "GET", "/bkt/open/x"),
               presigned_v2(two_owners, "GET", "/bkt/open/x"), "/"]  # fmt: skip
    for target in targets:
        for method in ("GET", "HEAD"):
            answer = unsigned(two_owners, method, target.replace("<script>", "%3Cscript%3E"))
            assert answer.headers["x-content-type-options"] == "nosniff", target
    error = unsigned(two_owners, "GET", "/bkt/open/%3Cscript%3E")
    assert error.headers["content-type"] == "application/xml" and b"<script>" not in error.body
    assert "x-content-type-options" not in two_owners.request("GET", "/bkt/open/x").headers


# --- 9. secrets ------------------------------------------------------------------------------------------------


class _Nothing:
    async def receive(self) -> bytes:
        return b""

    async def receive_into(self, view: memoryview) -> int:
        return 0


async def _refuse(head: RequestHead, body: Body, peer: PeerInfo) -> Response:
    raise S3Error("AccessDenied", 403, "no")


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.DEBUG):
        for name in ("cordwood", "cordwood.app", "cordwood.engine", "cordwood.access"):
            logging.getLogger(name).setLevel(logging.DEBUG)
        yield caplog


def test_no_secret_is_logged(two_owners: LiveServer, alice: Any, said: pytest.LogCaptureFixture) -> None:
    import trio

    customer_key = base64.b64encode(b"k" * 32).decode()
    target = presigned(two_owners, "GET", "/bkt/secret")
    signature = target.rpartition("=")[2]
    old = presigned_v2(two_owners, "GET", "/bkt/secret")
    token = "token-that-nobody-may-see"
    unsigned(two_owners, "GET", target)
    unsigned(two_owners, "GET", old)
    unsigned(two_owners, "GET", target + "0")
    unsigned(two_owners, "GET", f"{target}&X-Amz-Security-Token={token}")
    two_owners.request("GET", "/bkt/secret", b"", {"x-amz-security-token": token})
    sse = {
        "x-amz-server-side-encryption-customer-algorithm": "AES256",
        "x-amz-server-side-encryption-customer-key": customer_key,
        "x-amz-server-side-encryption-customer-key-md5": base64.b64encode(
            hashlib.md5(b"k" * 32).digest()
        ).decode(),
    }
    two_owners.request("PUT", "/bkt/sse", b"x", sse)
    two_owners.request("GET", "/bkt/sse", b"", {**sse, "range": "bytes=nonsense"})

    async def ask() -> None:
        for each in (target, old):
            with pytest.raises(S3Error):
                await logged(head_of(each, "h"), _Nothing(), PeerInfo("127.0.0.1", is_tls=False))

    logged = _with_access_log(_refuse)
    trio.run(ask)
    text = "\n".join(
        f"{record.getMessage()} {record.__dict__}"
        for record in said.records
        if record.name.startswith("cordwood")
    )
    assert "/bkt/secret" in text  # something was logged at all
    secrets = (
        ALICE.secret_key,
        BOB.secret_key,
        signature,
        old.rpartition("=")[2],
        token,
        customer_key,
        "k" * 32,
    )
    for secret in secrets:
        assert secret not in text


def test_secrets_do_not_show_in_a_repr() -> None:
    from cordwood.server.config import Settings

    settings = Settings(secret_key="shh-secret", access_key="A", credentials=(ALICE,))
    assert "shh-secret" not in repr(settings) and ALICE.secret_key not in repr(settings)
    assert ALICE.secret_key not in repr(ALICE)
