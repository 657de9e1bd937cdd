"""Temporary credentials: who gets them, what they may do, and when they end."""

from __future__ import annotations

import base64
import http.client
import json
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from cordwood.engine import Store
from cordwood.server.config import ConfigError, load
from cordwood.server.config_values import Credential, Role
from cordwood.server.sessions import NAME, Sessions, check_roles
from cordwood.server.wire.errors import S3Error
from tests.server.conftest import ALICE, BOB, LiveServer


def policy(*statements: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})


def allow(actions: str | list[str], resource: str | list[str] = "*", **more: Any) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": actions, "Resource": resource, **more}


READER = Role("reader", policy(allow(["s3:GetObject", "s3:ListBucket"])), (ALICE.access_key,), ALICE.owner_id)
WRITER = Role("writer", policy(allow("s3:*")), (BOB.owner_id,), ALICE.owner_id, max_session_s=7200)


@pytest.fixture
def server(store: Store) -> Iterator[LiveServer]:
    live = LiveServer(store, (ALICE, BOB), roles=(READER, WRITER))
    live.start()
    live.client().create_bucket(Bucket="bkt")
    live.client().put_object(Bucket="bkt", Key="in/a", Body=b"a")
    yield live
    live.stop()


def sts(server: LiveServer, credential: Credential = ALICE, token: str | None = None) -> Any:
    return boto3.client(
        "sts",
        endpoint_url=server.url,
        aws_access_key_id=credential.access_key,
        aws_secret_access_key=credential.secret_key,
        aws_session_token=token,
        region_name="us-east-1",
        config=Config(retries={"total_max_attempts": 1}, parameter_validation=False),
    )


def client(server: LiveServer, credentials: dict[str, str], **config: Any) -> Any:
    settings = {"retries": {"total_max_attempts": 1}, "s3": {"addressing_style": "path"}, **config}
    return boto3.client(
        "s3",
        endpoint_url=server.url,
        aws_access_key_id=credentials["AccessKeyId"],
        aws_secret_access_key=credentials["SecretAccessKey"],
        aws_session_token=credentials["SessionToken"],
        region_name="us-east-1",
        config=Config(**settings),
    )


def arn(role: Role) -> str:
    return f"arn:aws:iam::{role.owner_id}:role/{role.name}"


def assume(server: LiveServer, role: Role = READER, by: Credential = ALICE, **more: Any) -> Any:
    return sts(server, by).assume_role(RoleArn=arn(role), RoleSessionName="me", **more)


def code_of(call: Callable[..., Any], **arguments: Any) -> str:
    with pytest.raises(ClientError) as refused:
        call(**arguments)
    return str(refused.value.response["Error"]["Code"])


def test_a_session_of_a_key_pair_may_do_what_the_pair_may(server: LiveServer) -> None:
    answer = sts(server).get_session_token(DurationSeconds=900)
    s3 = client(server, answer["Credentials"])
    assert 890 < answer["Credentials"]["Expiration"].timestamp() - time.time() <= 900
    s3.put_object(Bucket="bkt", Key="b", Body=b"b" * 200_000)
    assert s3.get_object(Bucket="bkt", Key="b")["Body"].read() == b"b" * 200_000
    assert [each["Name"] for each in s3.list_buckets()["Buckets"]] == ["bkt"]
    s3.create_bucket(Bucket="made-by-session")
    assert server.store.head_bucket("made-by-session").attrs["owner"]["id"] == ALICE.owner_id


def test_the_caller_is_told_who_he_is(server: LiveServer) -> None:
    me = sts(server).get_caller_identity()
    assert (me["Account"], me["UserId"]) == (ALICE.owner_id, ALICE.owner_id)
    assert me["Arn"] == f"arn:aws:iam::{ALICE.owner_id}:user/alice"
    answer = assume(server)
    assert answer["AssumedRoleUser"]["Arn"] == f"arn:aws:sts::{ALICE.owner_id}:assumed-role/reader/me"
    keys = answer["Credentials"]
    credential = Credential(keys["AccessKeyId"], keys["SecretAccessKey"])
    me = sts(server, credential, keys["SessionToken"]).get_caller_identity()
    assert (me["Arn"], me["UserId"]) == (answer["AssumedRoleUser"]["Arn"], "reader:me")


def test_a_role_may_do_what_its_policy_says_and_nothing_else(server: LiveServer) -> None:
    s3 = client(server, assume(server)["Credentials"])
    assert s3.get_object(Bucket="bkt", Key="in/a")["Body"].read() == b"a"
    assert len(s3.list_objects_v2(Bucket="bkt")["Contents"]) == 1
    assert code_of(s3.put_object, Bucket="bkt", Key="b", Body=b"") == "AccessDenied"
    assert code_of(s3.delete_object, Bucket="bkt", Key="in/a") == "AccessDenied"
    assert code_of(s3.list_buckets) == "AccessDenied"
    assert code_of(s3.create_bucket, Bucket="new") == "AccessDenied"
    assert code_of(s3.put_bucket_policy, Bucket="bkt", Policy=policy()) == "AccessDenied"
    answer = s3.delete_objects(Bucket="bkt", Delete={"Objects": [{"Key": "in/a"}]})
    assert answer["Errors"][0]["Code"] == "AccessDenied"
    assert code_of(s3.copy_object, Bucket="bkt", Key="b", CopySource="bkt/in/a") == "AccessDenied"


def test_another_owner_whom_a_role_trusts_works_in_the_name_of_its_owner(server: LiveServer) -> None:
    bob = server.client(BOB)
    assert code_of(bob.get_object, Bucket="bkt", Key="in/a") == "AccessDenied"
    s3 = client(server, assume(server, WRITER, BOB)["Credentials"])
    s3.put_object(Bucket="bkt", Key="b", Body=b"b")
    assert server.client().get_object(Bucket="bkt", Key="b")["Body"].read() == b"b"


def test_a_session_policy_only_takes_away(server: LiveServer) -> None:
    narrow = policy(
        allow("s3:*", "arn:aws:s3:::bkt/mine/*"),
        {"Effect": "Deny", "Action": "s3:DeleteObject", "Resource": "*"},
        allow("ec2:*", "arn:aws:ec2:::instance/*"),
    )
    s3 = client(server, assume(server, WRITER, BOB, Policy=narrow)["Credentials"])
    s3.put_object(Bucket="bkt", Key="mine/b", Body=b"b")
    assert code_of(s3.put_object, Bucket="bkt", Key="yours/b", Body=b"b") == "AccessDenied"
    assert code_of(s3.delete_object, Bucket="bkt", Key="mine/b") == "AccessDenied"
    assert code_of(s3.list_objects_v2, Bucket="bkt") == "AccessDenied"
    wide = client(server, assume(server, READER, Policy=policy(allow("s3:*")))["Credentials"])
    assert code_of(wide.put_object, Bucket="bkt", Key="b", Body=b"b") == "AccessDenied"
    only_me = allow(
        "s3:GetObject", "arn:aws:s3:::bkt/*", Condition={"StringEquals": {"aws:userid": "reader:me"}}
    )
    s3 = client(server, assume(server, READER, Policy=policy(only_me))["Credentials"])
    s3.get_object(Bucket="bkt", Key="in/a")


def test_headers_ask_for_rights_that_a_session_must_have(server: LiveServer) -> None:
    put = policy(allow("s3:PutObject"))
    s3 = client(server, assume(server, WRITER, BOB, Policy=put)["Credentials"])
    s3.put_object(Bucket="bkt", Key="b", Body=b"b")
    assert code_of(s3.put_object, Bucket="bkt", Key="b", Body=b"", ACL="public-read") == "AccessDenied"
    assert code_of(s3.put_object, Bucket="bkt", Key="b", Body=b"", Tagging="a=b") == "AccessDenied"
    assert code_of(s3.copy_object, Bucket="bkt", Key="c", CopySource="bkt/in/a") == "AccessDenied"


def test_headers_of_a_new_bucket_ask_for_rights_that_a_session_must_have(server: LiveServer) -> None:
    s3 = client(server, assume(server, WRITER, BOB, Policy=policy(allow("s3:CreateBucket")))["Credentials"])
    s3.create_bucket(Bucket="plain-one")
    for more in (
        {"ACL": "public-read"},
        {"GrantRead": f'id="{BOB.owner_id}"'},
        {"ObjectLockEnabledForBucket": True},
        {"ObjectOwnership": "ObjectWriter"},
    ):
        assert code_of(s3.create_bucket, Bucket="another-one", **more) == "AccessDenied"
    server.client().create_bucket(Bucket="another-one", ACL="public-read")


def test_a_bucket_policy_can_name_a_role_and_a_session(server: LiveServer) -> None:
    alice = server.client()
    s3 = client(server, assume(server)["Credentials"])
    for who in (arn(READER), f"arn:aws:sts::{ALICE.owner_id}:assumed-role/reader/me"):
        deny = {
            "Effect": "Deny",
            "Principal": {"AWS": who},
            "Action": "s3:GetObject",
            "Resource": "arn:aws:s3:::bkt/*",
        }
        alice.put_bucket_policy(Bucket="bkt", Policy=policy(deny))
        assert code_of(s3.get_object, Bucket="bkt", Key="in/a") == "AccessDenied"
        alice.get_object(Bucket="bkt", Key="in/a")


def test_a_prefix_is_renamed_only_by_a_session_that_may_move_all_of_it(server: LiveServer) -> None:
    move = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"]
    for resource in ("arn:aws:s3:::bkt/in/*", ["arn:aws:s3:::bkt/in/a", "arn:aws:s3:::bkt/out/*"]):
        narrow = policy(allow(move, resource))
        s3 = client(server, assume(server, WRITER, BOB, Policy=narrow)["Credentials"])
        assert code_of(s3.rename_object, Bucket="bkt", Key="out/", RenameSource="in/") == "AccessDenied"
    wide = policy(allow(move, ["arn:aws:s3:::bkt/in/*", "arn:aws:s3:::bkt/out/*"]))
    s3 = client(server, assume(server, WRITER, BOB, Policy=wide)["Credentials"])
    s3.rename_object(Bucket="bkt", Key="out/", RenameSource="in/")


# --- who gets them --------------------------------------------------------------------------------------------


def test_only_whom_a_role_trusts_may_assume_it(server: LiveServer) -> None:
    assert code_of(assume, server=server, role=READER, by=BOB) == "AccessDenied"
    assert code_of(assume, server=server, role=WRITER, by=ALICE) == "AccessDenied"
    none = Role("none", "", (), ALICE.owner_id)
    other_owner = Role("reader", "", (), BOB.owner_id)
    for role in (none, other_owner):
        assert code_of(assume, server=server, role=role) == "AccessDenied"
    assert code_of(sts(server).assume_role, RoleArn="a" * 20, RoleSessionName="me") == "ValidationError"


def test_a_session_of_a_role_hands_out_nothing_and_one_of_a_pair_only_roles(server: LiveServer) -> None:
    keys = assume(server)["Credentials"]
    role = sts(server, Credential(keys["AccessKeyId"], keys["SecretAccessKey"]), keys["SessionToken"])
    assert code_of(role.get_session_token) == "AccessDenied"
    assert code_of(role.assume_role, RoleArn=arn(READER), RoleSessionName="me") == "AccessDenied"
    keys = sts(server).get_session_token()["Credentials"]
    pair = sts(server, Credential(keys["AccessKeyId"], keys["SecretAccessKey"]), keys["SessionToken"])
    assert code_of(pair.get_session_token) == "AccessDenied"
    pair.assume_role(RoleArn=arn(READER), RoleSessionName="me")


def test_credentials_from_a_session_end_with_it(server: LiveServer) -> None:
    keys = sts(server).get_session_token(DurationSeconds=900)["Credentials"]
    pair = sts(server, Credential(keys["AccessKeyId"], keys["SecretAccessKey"]), keys["SessionToken"])
    role = pair.assume_role(RoleArn=arn(READER), RoleSessionName="me", DurationSeconds=3600)
    assert role["Credentials"]["Expiration"] == keys["Expiration"]


@pytest.mark.parametrize(
    ("role", "seconds", "is_fine"),
    [
        (READER, 899, False),
        (READER, 900, True),
        (READER, 3601, False),
        (WRITER, 7200, True),
        (WRITER, 7201, False),
    ],
)
def test_a_role_session_lasts_as_long_as_was_asked_within_its_bounds(
    server: LiveServer, role: Role, seconds: int, is_fine: bool
) -> None:
    by = ALICE if role is READER else BOB
    if not is_fine:
        assert code_of(assume, server=server, role=role, by=by, DurationSeconds=seconds) == "ValidationError"
        return
    end = assume(server, role, by, DurationSeconds=seconds)["Credentials"]["Expiration"]
    assert seconds - 10 < end.timestamp() - time.time() <= seconds


def test_a_session_of_a_pair_lasts_up_to_36_hours(server: LiveServer) -> None:
    sts(server).get_session_token(DurationSeconds=36 * 3600)
    assert code_of(sts(server).get_session_token, DurationSeconds=36 * 3600 + 1) == "ValidationError"


def test_what_is_not_understood_is_refused(server: LiveServer) -> None:
    ask: dict[str, Any] = {"server": server}
    assert code_of(assume, **ask, Policy="{") == "MalformedPolicyDocument"
    with_principal = policy(allow("s3:*", Principal="*"))
    assert code_of(assume, **ask, Policy=with_principal) == "MalformedPolicyDocument"
    assert code_of(assume, **ask, Policy=" " * 2049) == "PackedPolicyTooLarge"
    assert code_of(assume, **ask, Tags=[{"Key": "a", "Value": "b"}]) == "ValidationError"
    assert code_of(assume, **ask, ExternalId="xx") == "ValidationError"
    assert code_of(assume, **ask, PolicyArns=[{"arn": "arn:aws:iam::aws:policy/X"}]) == "ValidationError"
    assert code_of(sts(server).get_access_key_info, AccessKeyId="A" * 16) == "InvalidAction"


def test_a_request_for_credentials_must_be_signed_for_this_service(server: LiveServer) -> None:
    wrong = Credential(ALICE.access_key, "wrong")
    assert code_of(sts(server, wrong).get_caller_identity) == "SignatureDoesNotMatch"
    nobody = Credential("NOBODY", "x")
    assert code_of(sts(server, nobody).get_caller_identity) == "InvalidClientTokenId"
    body = b"Action=GetCallerIdentity&Version=2011-06-15"
    form = {"content-type": "application/x-www-form-urlencoded"}
    answer = server.request("POST", "/", body, form, credential=None)
    assert (answer.status, answer.code) == (403, "AccessDenied")
    answer = server.request("POST", "/", body, form)  # signed for s3
    assert (answer.status, answer.code) == (400, "IncompleteSignature")
    answer = server.request("POST", "/", b"a=" + b"x" * 70_000, form)
    assert answer.code == "ValidationError"


def test_a_body_that_is_not_the_one_that_was_signed_is_refused(server: LiveServer) -> None:
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    form = {"content-type": "application/x-www-form-urlencoded", "host": urlsplit(server.url).netloc}
    request = AWSRequest("POST", f"{server.url}/", form, b"Action=GetCallerIdentity&Version=2011-06-15")
    SigV4Auth(Credentials(ALICE.access_key, ALICE.secret_key), "sts", "us-east-1").add_auth(request)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request(
        "POST", "/", b"Action=GetSessionToken&Version=2011-06-15", dict(request.headers.items())
    )
    answer = connection.getresponse()
    assert (answer.status, b"SignatureDoesNotMatch" in answer.read()) == (403, True)
    connection.close()


def test_a_url_that_tells_who_signed_it_works(server: LiveServer) -> None:
    url = sts(server).generate_presigned_url("get_caller_identity", HttpMethod="GET")
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("GET", url.removeprefix(server.url))
    answer = connection.getresponse()
    assert answer.status == 200 and ALICE.owner_id.encode() in answer.read()
    connection.close()


# --- tokens ---------------------------------------------------------------------------------------------------


def changed(token: str, at: int) -> str:
    raw = bytearray(base64.urlsafe_b64decode(token))
    raw[at] ^= 1
    return base64.urlsafe_b64encode(raw).decode()


def test_credentials_without_their_own_whole_token_are_worth_nothing(server: LiveServer) -> None:
    one, other = (sts(server).get_session_token()["Credentials"] for _ in range(2))
    for token in (
        other["SessionToken"],
        changed(one["SessionToken"], 0),
        changed(one["SessionToken"], 20),
        changed(one["SessionToken"], -1),
        one["SessionToken"][:-4],
        "x",
        "é",
    ):
        s3 = client(server, {**one, "SessionToken": token})
        if token.isascii():
            assert code_of(s3.list_buckets) == "InvalidToken", token
    bare = client(server, {**one, "SessionToken": ""})
    assert code_of(bare.list_buckets) == "InvalidAccessKeyId"
    pair = {"AccessKeyId": ALICE.access_key, "SecretAccessKey": ALICE.secret_key}
    assert (
        code_of(client(server, {**pair, "SessionToken": one["SessionToken"]}).list_buckets) == "InvalidToken"
    )
    stolen = {**one, "SecretAccessKey": other["SecretAccessKey"]}
    assert code_of(client(server, stolen).list_buckets) == "SignatureDoesNotMatch"


def test_a_token_ends_to_the_second_and_survives_a_restart(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path / NAME, (ALICE,), (READER,))
    issued = sessions.issue(ALICE.access_key, 1000.0, 900, role="reader", name="me")
    again = Sessions(tmp_path / NAME, (ALICE,), (READER,))  # another process, or the same one later
    key = issued.account.access_key
    assert again.open(key, issued.token, 1899.9) == issued.account
    with pytest.raises(S3Error, match="ExpiredToken"):
        again.open(key, issued.token, 1900.0)
    assert stat.S_IMODE((tmp_path / NAME).stat().st_mode) == 0o600
    assert issued.account.secret_key not in repr(issued.account)


def test_a_session_ends_with_its_key_pair_its_role_and_its_store_key(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path / NAME, (ALICE, BOB), (READER,))
    token = sessions.issue(ALICE.access_key, 0.0, 900, role="reader", name="me")
    for other in (
        Sessions(tmp_path / NAME, (BOB,), (READER,)),
        Sessions(tmp_path / NAME, (ALICE, BOB), ()),
        Sessions(tmp_path / "other", (ALICE, BOB), (READER,)),
    ):
        with pytest.raises(S3Error, match="InvalidToken"):
            other.open(token.account.access_key, token.token, 1.0)
    stricter = Role("reader", policy(), (), ALICE.owner_id)
    now = Sessions(tmp_path / NAME, (ALICE, BOB), (stricter,)).open(
        token.account.access_key, token.token, 1.0
    )
    assert now.session.policies == (stricter.policy,)


def test_an_expired_token_is_named_over_http(server: LiveServer, store: Store) -> None:
    sessions = Sessions(store.path / NAME, (ALICE, BOB))
    issued = sessions.issue(ALICE.access_key, time.time() - 1000, 900)
    account = issued.account
    keys = {"AccessKeyId": account.access_key, "SecretAccessKey": account.secret_key}
    s3 = client(server, {**keys, "SessionToken": issued.token})
    assert code_of(s3.list_buckets) == "ExpiredToken"
    ask = sts(server, Credential(account.access_key, account.secret_key), issued.token)
    assert code_of(ask.get_caller_identity) == "ExpiredToken"


# --- everywhere a signature may stand -------------------------------------------------------------------------


def fetch(server: LiveServer, url: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request("GET", url.removeprefix(server.url), headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("version", ["s3v4", "s3"])
def test_a_presigned_url_carries_and_signs_its_token(server: LiveServer, version: str) -> None:
    keys = assume(server)["Credentials"]
    s3 = client(server, keys, signature_version=version)
    url = s3.generate_presigned_url("get_object", Params={"Bucket": "bkt", "Key": "in/a"})
    assert fetch(server, url) == (200, b"a")
    name = "X-Amz-Security-Token" if version == "s3v4" else "x-amz-security-token"
    start, _, rest = url.partition(f"{name}=")
    token, _, end = rest.partition("&")
    without = (start + end).rstrip("&?")
    assert fetch(server, without)[0] == 403
    other = assume(server)["Credentials"]["SessionToken"]
    status, body = fetch(server, url.replace(token, other))
    assert (status, b"InvalidToken" in body) == (400, True)
    status, _ = fetch(server, url, {"x-amz-security-token": keys["SessionToken"]})
    assert status >= 400


def test_a_form_carries_its_token_in_a_field_that_its_policy_names(server: LiveServer) -> None:
    keys = assume(server, WRITER, BOB)["Credentials"]
    form = client(server, keys).generate_presigned_post("bkt", "form/${filename}")
    fields = form["fields"]

    def post(fields: dict[str, str]) -> Any:
        parts = [
            f'--B\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in fields.items()
        ]
        parts.append(
            '--B\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\ndata\r\n--B--\r\n'
        )
        headers = {"content-type": "multipart/form-data; boundary=B"}
        return server.request("POST", "/bkt", "".join(parts).encode(), headers, credential=None)

    assert post(fields).status == 204
    assert server.client().get_object(Bucket="bkt", Key="form/f")["Body"].read() == b"data"
    assert "x-amz-security-token" in base64.b64decode(fields["policy"]).decode()
    without = {name: value for name, value in fields.items() if name != "x-amz-security-token"}
    assert post(without).code == "InvalidAccessKeyId"
    other = assume(server, WRITER, BOB)["Credentials"]["SessionToken"]
    assert post({**fields, "x-amz-security-token": other}).code == "InvalidToken"
    narrow = assume(server, WRITER, BOB, Policy=policy(allow("s3:PutObject", "arn:aws:s3:::bkt/x/*")))
    form = client(server, narrow["Credentials"]).generate_presigned_post("bkt", "form/y")
    assert post(form["fields"]).code == "AccessDenied"


# --- configuration --------------------------------------------------------------------------------------------


def test_roles_come_from_the_settings_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    text = f"""
dir = "{tmp_path}"
[[roles]]
name = "reader"
trust = ["*"]
policy = '{READER.policy}'
max_session = "36h"
"""
    file.write_text(text)
    (role,) = load(flags={}, environ={}, config_file=file).settings.roles
    assert role == Role("reader", READER.policy, ("*",), "", 36 * 3600)
    for wrong, said in (
        (text.replace("trust =", "trusts ="), "did you mean 'trust'"),
        (text.replace("36h", "37h"), "max_session"),
        (text.replace('["*"]', "[]"), "trust"),
        (text.replace('"reader"', '"a b"'), "name"),
        (text + text[text.index("[[roles]]") :], "given twice"),
        (text.replace("name =", "#"), "lacks name"),
    ):
        file.write_text(wrong)
        with pytest.raises(ConfigError, match=said):
            load(flags={}, environ={}, config_file=file)


def test_a_role_that_could_not_work_keeps_the_server_from_starting() -> None:
    check_roles((READER,), (ALICE,))
    with pytest.raises(ConfigError, match="policy of 'x'"):
        check_roles((Role("x", "{}", ("*",)),), (ALICE,))
    with pytest.raises(ConfigError, match="owner_id of 'writer'"):
        check_roles((WRITER,), (BOB,))
