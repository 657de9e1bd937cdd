"""Server access logging: which configurations are taken, what records say, and that they arrive."""

from __future__ import annotations

import json
import os
import re
import time
from calendar import timegm
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from cordwood.engine import Store, errors
from cordwood.server.encryption import Encryption, Keys
from cordwood.server.keyring import KeyFile
from cordwood.server.lifecycle import DAY_MS
from cordwood.server.lifecycle_worker import LifecycleWorker
from cordwood.server.log_delivery import LogDelivery
from cordwood.server.log_record import Destination, Entry, Record, may_deliver
from cordwood.server.log_spool import LogSpool
from cordwood.server.notifications import Announcer
from tests.server.conftest import ALICE, BOB, LiveServer

DELIVERY = "http://acs.amazonaws.com/groups/s3/LogDelivery"
FIELDS = [
    "owner",
    "bucket",
    "time",
    "address",
    "requester",
    "request_id",
    "operation",
    "key",
    "request",
    "status",
    "error",
    "sent",
    "size",
    "total",
    "turnaround",
    "referer",
    "agent",
    "version",
    "host_id",
    "signature",
    "cipher",
    "auth",
    "host",
    "tls",
    "access_point",
    "acl",
    "region",
]
_FIELD = re.compile(r'\[[^\]]*\]|"[^"]*"|[^ ]+')


def let_in(s3: Any, bucket: str, prefix: str = "log/*", **condition: Any) -> None:
    """The policy that AWS's guide gives a bucket for logs."""
    statement = {
        "Effect": "Allow",
        "Principal": {"Service": "logging.s3.amazonaws.com"},
        "Action": "s3:PutObject",
        "Resource": f"arn:aws:s3:::{bucket}/{prefix}",
        **({"Condition": condition} if condition else {}),
    }
    s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": statement}))


def enable(s3: Any, source: str = "bkt", target: str = "logs", prefix: str = "log/", **more: Any) -> None:
    s3.put_bucket_logging(
        Bucket=source,
        BucketLoggingStatus={"LoggingEnabled": {"TargetBucket": target, "TargetPrefix": prefix, **more}},
    )


def refusal(s3: Any, **more: Any) -> tuple[int, str]:
    with pytest.raises(ClientError) as refused:
        enable(s3, **more)
    answer = refused.value.response
    return answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Code"]


@pytest.fixture
def logged(s3: Any) -> Any:
    """A client whose bucket `bkt` is logged to `logs`, below `log/`."""
    s3.create_bucket(Bucket="logs")
    let_in(s3, "logs")
    enable(s3)
    return s3


def keys(s3: Any, bucket: str = "logs") -> list[str]:
    return [each["Key"] for each in s3.list_objects_v2(Bucket=bucket).get("Contents", [])]


def lines(server: LiveServer, s3: Any, bucket: str = "logs") -> list[str]:
    server.deliver_logs()
    bodies = [s3.get_object(Bucket=bucket, Key=key)["Body"].read().decode() for key in keys(s3, bucket)]
    return [line for body in bodies for line in body.splitlines()]


def records(server: LiveServer, s3: Any, bucket: str = "logs") -> list[dict[str, str]]:
    found = []
    for line in lines(server, s3, bucket):
        fields = _FIELD.findall(line)
        assert " ".join(fields) == line
        assert len(fields) == len(FIELDS)
        found.append(dict(zip(FIELDS, fields, strict=True)))
    return found


def only(found: list[dict[str, str]], operation: str) -> dict[str, str]:
    (record,) = [each for each in found if each["operation"] == operation]
    return record


# --- configuration ------------------------------------------------------------------------------------------------


def test_what_was_configured_comes_back_until_it_is_turned_off(s3: Any) -> None:
    assert "LoggingEnabled" not in s3.get_bucket_logging(Bucket="bkt")
    s3.create_bucket(Bucket="logs")
    let_in(s3, "logs")
    enable(s3)
    simple = {"TargetBucket": "logs", "TargetPrefix": "log/", "TargetObjectKeyFormat": {"SimplePrefix": {}}}
    assert s3.get_bucket_logging(Bucket="bkt")["LoggingEnabled"] == simple
    by_event = {"PartitionedPrefix": {"PartitionDateSource": "EventTime"}}
    enable(s3, TargetObjectKeyFormat=by_event)
    assert s3.get_bucket_logging(Bucket="bkt")["LoggingEnabled"]["TargetObjectKeyFormat"] == by_event
    s3.put_bucket_logging(Bucket="bkt", BucketLoggingStatus={})
    assert "LoggingEnabled" not in s3.get_bucket_logging(Bucket="bkt")


def test_a_target_that_could_not_take_the_log_is_refused(s3: Any) -> None:
    assert refusal(s3, target="missing") == (404, "NoSuchKey")
    assert refusal(s3, target="bkt") == (400, "InvalidArgument")
    s3.create_bucket(Bucket="logs")
    assert refusal(s3) == (403, "AccessDenied")
    let_in(s3, "logs", "other/*")
    assert refusal(s3) == (403, "AccessDenied")
    let_in(s3, "logs")
    s3.put_bucket_request_payment(Bucket="logs", RequestPaymentConfiguration={"Payer": "Requester"})
    assert refusal(s3) == (400, "InvalidArgument")
    s3.put_bucket_request_payment(Bucket="logs", RequestPaymentConfiguration={"Payer": "BucketOwner"})
    enable(s3)
    s3.create_bucket(Bucket="third")
    assert refusal(s3, source="third", target="bkt") == (400, "InvalidArgument")
    s3.create_bucket(Bucket="kept", ObjectLockEnabledForBucket=True)
    let_in(s3, "kept")
    enable(s3, target="kept")
    retention = {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 1}}
    s3.put_object_lock_configuration(
        Bucket="kept", ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": retention}
    )
    assert refusal(s3, target="kept") == (400, "InvalidArgument")


def test_a_document_that_does_not_say_what_it_means_is_refused(logged: Any, server: LiveServer) -> None:
    def put(inner: str) -> str:
        body = f"<BucketLoggingStatus><LoggingEnabled>{inner}</LoggingEnabled></BucketLoggingStatus>"
        return server.request("PUT", "/bkt?logging", body.encode()).code

    assert put("<TargetBucket>logs</TargetBucket>") == "MalformedXML"
    whole = "<TargetBucket>logs</TargetBucket><TargetPrefix>log/</TargetPrefix>"
    both = "<SimplePrefix/><PartitionedPrefix/>"
    assert put(f"{whole}<TargetObjectKeyFormat>{both}</TargetObjectKeyFormat>") == "MalformedXML"
    assert put(f"{whole}<TargetObjectKeyFormat/>") == "MalformedXML"
    source = "<PartitionedPrefix><PartitionDateSource>Noon</PartitionDateSource></PartitionedPrefix>"
    assert put(f"{whole}<TargetObjectKeyFormat>{source}</TargetObjectKeyFormat>") == "MalformedXML"
    assert (
        put(f"<TargetBucket>logs</TargetBucket><TargetPrefix>{'p' * 513}</TargetPrefix>") == "InvalidArgument"
    )
    assert put(whole) == ""


def test_only_the_owner_says_where_the_log_goes(two_owners: LiveServer) -> None:
    alice, bob = two_owners.client(ALICE), two_owners.client(BOB)
    alice.create_bucket(Bucket="bkt")
    alice.create_bucket(Bucket="logs")
    let_in(alice, "logs")
    everybody = {"Effect": "Allow", "Principal": "*", "Action": "s3:PutBucketLogging", "Resource": "*"}
    alice.put_bucket_policy(
        Bucket="bkt", Policy=json.dumps({"Version": "2012-10-17", "Statement": everybody})
    )
    assert refusal(bob) == (403, "AccessDenied")
    enable(alice)
    with pytest.raises(ClientError):
        bob.put_bucket_logging(Bucket="bkt", BucketLoggingStatus={})


def test_the_policy_may_name_the_bucket_and_the_account_that_logs_come_from(two_owners: LiveServer) -> None:
    alice, bob = two_owners.client(ALICE), two_owners.client(BOB)
    for client, bucket in ((alice, "logs"), (alice, "bkt"), (bob, "of-bob")):
        client.create_bucket(Bucket=bucket)
    account = {"aws:SourceAccount": ALICE.owner_id}
    let_in(alice, "logs", ArnLike={"aws:SourceArn": "arn:aws:s3:::b*"}, StringEquals=account)
    enable(alice)
    assert refusal(bob, source="of-bob") == (403, "AccessDenied")
    let_in(alice, "logs", ArnLike={"aws:SourceArn": "arn:aws:s3:::*"})
    enable(bob, source="of-bob")


def test_the_grants_of_the_log_delivery_group_let_logs_in_where_lists_count() -> None:
    def may(acl: list[list[str]], **more: Any) -> bool:
        target: Mapping[str, Any] = {"acl": acl, **more}
        return may_deliver(target, "logs", "log/x", source="bkt", source_owner_id="me")

    assert may([[DELIVERY, "WRITE"], [DELIVERY, "READ_ACP"]])
    assert may([[DELIVERY, "FULL_CONTROL"]])
    assert not may([[DELIVERY, "WRITE"]])
    assert not may([["me", "FULL_CONTROL"]])
    assert not may([[DELIVERY, "FULL_CONTROL"]], ownership="BucketOwnerEnforced")


# --- records ------------------------------------------------------------------------------------------------------


def test_each_request_to_the_bucket_becomes_a_record(logged: Any, server: LiveServer) -> None:
    logged.put_object(Bucket="bkt", Key="a b/ü", Body=b"12345")
    logged.get_object(Bucket="bkt", Key="a b/ü")["Body"].read()
    logged.head_object(Bucket="bkt", Key="a b/ü")
    logged.list_objects_v2(Bucket="bkt")
    logged.get_bucket_versioning(Bucket="bkt")
    logged.delete_object(Bucket="bkt", Key="a b/ü")
    logged.list_objects_v2(Bucket="logs")
    found = records(server, logged)
    assert [each["operation"] for each in found] == [
        "REST.PUT.OBJECT",
        "REST.GET.OBJECT",
        "REST.HEAD.OBJECT",
        "REST.GET.BUCKET",
        "REST.GET.VERSIONING",
        "REST.DELETE.OBJECT",
    ]
    put, got, head = found[:3]
    assert put["owner"] == put["requester"] == ALICE.owner_id
    assert (put["bucket"], put["key"], put["address"]) == ("bkt", "a%20b/%C3%BC", "127.0.0.1")
    assert put["request"].startswith('"PUT /bkt/a%20b/%C3%BC')
    assert put["request"].endswith(' HTTP/1.1"')
    assert (put["status"], put["error"], put["sent"], put["size"]) == ("200", "-", "-", "5")
    assert (put["signature"], put["auth"], put["acl"]) == ("SigV4", "AuthHeader", "-")
    assert "Boto3" in put["agent"]
    assert re.fullmatch(r"\[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d \+0000\]", put["time"])
    assert (got["sent"], got["size"]) == ("5", "5")
    assert (head["sent"], head["size"]) == ("-", "5")
    assert len({each["request_id"] for each in found}) == 6


def test_the_name_of_a_log_object_tells_when_it_was_delivered(logged: Any, server: LiveServer) -> None:
    logged.list_objects_v2(Bucket="bkt")
    server.deliver_logs()
    (key,) = keys(logged)
    stamp = re.fullmatch(r"log/(\d{4}-\d\d-\d\d-\d\d-\d\d-\d\d)-[0-9A-F]{16}", key)
    assert stamp is not None
    delivered_s = timegm(time.strptime(stamp[1], "%Y-%m-%d-%H-%M-%S"))
    assert abs(delivered_s - time.time()) < 60
    head = logged.head_object(Bucket="logs", Key=key)
    assert head["ContentType"] == "text/plain"


def test_partitioned_keys_name_account_region_bucket_and_day(logged: Any, server: LiveServer) -> None:
    partitioned = {"PartitionedPrefix": {"PartitionDateSource": "EventTime"}}
    enable(logged, TargetObjectKeyFormat=partitioned)
    logged.list_objects_v2(Bucket="bkt")
    server.deliver_logs()
    (by_event,) = [key for key in keys(logged) if f"/{ALICE.owner_id}/us-east-1/bkt/" in key]
    assert re.fullmatch(
        rf"log/{ALICE.owner_id}/us-east-1/bkt/(\d{{4}})/(\d\d)/(\d\d)/\1-\2-\3-00-00-00-[0-9A-F]{{16}}",
        by_event,
    )
    destination = Destination("logs", "p/", "DeliveryTime")
    key = destination.object_key(account="acc", region="eu", source="src", unique="U", time_s=1_700_000_000)
    assert key == "p/acc/eu/src/2023/11/14/2023-11-14-22-13-20-U"


def test_what_was_refused_is_recorded_with_its_reason(logged: Any, server: LiveServer) -> None:
    with pytest.raises(ClientError):
        logged.get_object(Bucket="bkt", Key="nothing")
    anonymous = server.request("GET", "/bkt/secret", credential=None)
    forged = server.request(
        "GET", "/bkt/x", headers={"authorization": "AWS4-HMAC-SHA256 nonsense"}, credential=None
    )
    missing, stranger, forger = records(server, logged)
    assert (missing["status"], missing["error"], missing["key"]) == ("404", "NoSuchKey", "nothing")
    assert missing["requester"] == ALICE.owner_id
    assert (stranger["status"], stranger["error"], stranger["requester"]) == ("403", "AccessDenied", "-")
    assert stranger["sent"] == str(len(anonymous.body))
    assert (forger["status"], forger["error"]) == (str(forged.status), forged.code)
    assert forger["requester"] == "-"


def test_a_ranged_and_a_streamed_read_tell_what_was_sent_and_what_there_is(
    logged: Any, server: LiveServer
) -> None:
    size = 3 << 20
    logged.put_object(Bucket="bkt", Key="big", Body=bytes(size))
    logged.get_object(Bucket="bkt", Key="big")["Body"].read()
    logged.get_object(Bucket="bkt", Key="big", Range="bytes=10-19")["Body"].read()
    whole, part = records(server, logged)[1:]
    assert (whole["sent"], whole["size"], whole["status"]) == (str(size), str(size), "200")
    assert (part["sent"], part["size"], part["status"]) == ("10", str(size), "206")


def test_batches_copies_and_uploads_have_records_of_their_own(logged: Any, server: LiveServer) -> None:
    logged.create_bucket(Bucket="plain")
    logged.put_object(Bucket="bkt", Key="a", Body=b"abc")
    logged.copy_object(Bucket="plain", Key="copy", CopySource="bkt/a")
    logged.copy_object(Bucket="bkt", Key="b", CopySource="plain/copy")
    upload = logged.create_multipart_upload(Bucket="bkt", Key="m")["UploadId"]
    part = logged.upload_part(Bucket="bkt", Key="m", UploadId=upload, PartNumber=1, Body=b"part")
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    logged.complete_multipart_upload(Bucket="bkt", Key="m", UploadId=upload, MultipartUpload=parts)
    logged.delete_objects(Bucket="bkt", Delete={"Objects": [{"Key": "a"}, {"Key": "b"}]})
    found = records(server, logged)
    read = only(found, "REST.COPY.OBJECT_GET")
    assert (read["key"], read["size"], read["status"]) == ("a", "3", "200")
    assert only(found, "REST.COPY.OBJECT")["key"] == "b"
    assert only(found, "REST.POST.UPLOADS")["key"] == "m"
    assert only(found, "REST.PUT.PART")["size"] == "4"
    assert only(found, "REST.POST.UPLOAD")["status"] == "200"
    assert only(found, "REST.POST.MULTI_OBJECT_DELETE")["status"] == "200"
    batch = [each for each in found if each["operation"] == "BATCH.DELETE.OBJECT"]
    assert [(each["key"], each["status"]) for each in batch] == [("a", "204"), ("b", "204")]
    assert len({each["request_id"] for each in batch}) == 1


def test_a_request_that_only_a_list_allowed_says_so(two_owners: LiveServer) -> None:
    alice, bob = two_owners.client(ALICE), two_owners.client(BOB)
    alice.create_bucket(Bucket="bkt")
    alice.create_bucket(Bucket="logs")
    let_in(alice, "logs")
    enable(alice)
    alice.put_bucket_acl(Bucket="bkt", ACL="public-read")
    bob.list_objects_v2(Bucket="bkt")
    policy = {"Effect": "Allow", "Principal": "*", "Action": "s3:ListBucket", "Resource": "arn:aws:s3:::bkt"}
    alice.put_bucket_policy(Bucket="bkt", Policy=json.dumps({"Version": "2012-10-17", "Statement": policy}))
    bob.list_objects_v2(Bucket="bkt")
    listed = [each for each in records(two_owners, alice) if each["operation"] == "REST.GET.BUCKET"]
    assert [(each["acl"], each["requester"]) for each in listed] == [
        ("Yes", BOB.owner_id),
        ("-", BOB.owner_id),
    ]


def test_no_client_can_forge_a_record_or_leave_a_credential_in_one(logged: Any, server: LiveServer) -> None:
    agent = 'x" 200 - - "\u00e9'
    server.request("GET", "/bkt?prefix=%0d%0aforged", headers={"user-agent": agent, "referer": 'a"b'})
    url = logged.generate_presigned_url("get_object", Params={"Bucket": "bkt", "Key": "k"})
    server.request("GET", url.partition(str(server.port))[2], credential=None)
    found = records(server, logged)
    assert found[0]["agent"].count('"') == 2
    assert found[0]["referer"] == '"a%22b"'
    assert found[1]["auth"] == "QueryString"
    assert "Signature=..." in found[1]["request"]
    plain = Record(
        "o", "b\nforged", 0, "", "", "", "", "", 'GET /?X-Amz-Signature=abc&X-Amz-Security-Token=def"', 200
    )
    line = plain.line()
    assert "\n" not in line
    assert "abc" not in line
    assert "def" not in line


def test_what_lifecycle_rules_remove_is_recorded(logged: Any, server: LiveServer, store: Store) -> None:
    rules = [{"Status": "Enabled", "Filter": {}, "Expiration": {"Days": 1}}]
    logged.put_bucket_lifecycle_configuration(Bucket="bkt", LifecycleConfiguration={"Rules": rules})
    logged.put_object(Bucket="bkt", Key="plain")
    worker = LifecycleWorker(store)
    later_ms = time.time_ns() // 1_000_000 + 3 * DAY_MS
    worker.run(later_ms)
    logged.put_bucket_versioning(Bucket="bkt", VersioningConfiguration={"Status": "Enabled"})
    version = logged.put_object(Bucket="bkt", Key="kept")["VersionId"]
    worker.run(later_ms)
    found = records(server, logged)
    plain, marked = only(found, "S3.EXPIRE.OBJECT"), only(found, "S3.CREATE.DELETEMARKER")
    assert (plain["key"], plain["requester"], plain["address"]) == ("plain", "AmazonS3", "-")
    assert (plain["status"], plain["request"], plain["total"]) == ("-", '"-"', "-")
    assert marked["key"] == "kept"
    assert marked["version"] not in ("-", version)


# --- delivery -----------------------------------------------------------------------------------------------------


def test_what_the_target_no_longer_lets_in_is_dropped_and_nothing_else(
    logged: Any, server: LiveServer
) -> None:
    logged.list_objects_v2(Bucket="bkt")
    logged.delete_bucket_policy(Bucket="logs")
    server.deliver_logs()
    assert keys(logged) == []
    let_in(logged, "logs")
    server.deliver_logs()
    assert keys(logged) == []
    logged.list_objects_v2(Bucket="bkt")
    assert len(lines(server, logged)) == 1


def test_others_read_log_objects_as_far_as_the_configuration_grants(two_owners: LiveServer) -> None:
    alice, bob = two_owners.client(ALICE), two_owners.client(BOB)
    alice.create_bucket(Bucket="bkt")
    alice.create_bucket(Bucket="logs")
    let_in(alice, "logs")
    grants = [
        {"Grantee": {"Type": "CanonicalUser", "ID": BOB.owner_id}, "Permission": "READ"},
        {"Grantee": {"Type": "CanonicalUser", "ID": ALICE.owner_id}, "Permission": "FULL_CONTROL"},
    ]
    enable(alice, TargetGrants=grants)
    (kept,) = alice.get_bucket_logging(Bucket="bkt")["LoggingEnabled"]["TargetGrants"]
    assert kept["Grantee"] == {"ID": BOB.owner_id, "DisplayName": "bob", "Type": "CanonicalUser"}
    alice.list_objects_v2(Bucket="bkt")
    two_owners.deliver_logs()
    (key,) = keys(alice)
    assert b"REST.GET.BUCKET" in bob.get_object(Bucket="logs", Key=key)["Body"].read()
    with pytest.raises(ClientError):
        bob.put_object(Bucket="logs", Key="x", Body=b"")


def test_log_objects_are_encrypted_where_their_bucket_says_so(logged: Any, server: LiveServer) -> None:
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
    logged.put_bucket_encryption(Bucket="logs", ServerSideEncryptionConfiguration={"Rules": [rule]})
    logged.list_objects_v2(Bucket="bkt")
    server.deliver_logs()
    (key,) = keys(logged)
    got = logged.get_object(Bucket="logs", Key=key, ChecksumMode="ENABLED")
    assert got["ServerSideEncryption"] == "AES256"
    assert b"REST.GET.BUCKET" in got["Body"].read()
    assert refusal(logged) == (400, "InvalidArgument")


def entry(line: str, bucket: str = "logs") -> Entry:
    return Entry(bucket, "log/", "SimplePrefix", (), "bkt", "me", 0, line)


def drained(spool: LogSpool) -> list[str]:
    found = []
    for spooled in spool.due():
        found += [each.line for each in spool.read(spooled)]
        spool.done(spooled)
    return found


def test_records_of_a_process_that_was_killed_are_delivered_by_another(tmp_path: Path) -> None:
    other = LogSpool(tmp_path / "spool")
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        spool = LogSpool(tmp_path / "spool")
        spool.append(entry("one"))
        spool.append(entry("two"))
        os.write(theirs, b"!")
        time.sleep(60)
        os._exit(0)
    assert os.read(ours, 1) == b"!"
    assert drained(other) == []
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert drained(other) == ["one", "two"]
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_torn_record_spoils_no_other(tmp_path: Path) -> None:
    spool = LogSpool(tmp_path)
    spool.append(entry("whole"))
    (path,) = tmp_path.iterdir()
    with path.open("ab") as file:
        file.write(b'["logs","log/","Simp')
    spool.close()
    assert drained(LogSpool(tmp_path)) == ["whole"]


def test_what_cannot_be_put_now_is_put_later(s3: Any, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.create_bucket(Bucket="logs")
    let_in(s3, "logs")
    spool = LogSpool(store.path / "other-logs")
    encryption = Encryption(Keys(KeyFile(store.path / "no-such-keys")))
    delivery = LogDelivery(store, spool, Announcer(store, (), "us-east-1"), encryption, "us-east-1")
    spool.append(entry("kept"))

    def full(*_: Any, **__: Any) -> None:
        raise errors.Full("no space")

    with monkeypatch.context() as patched:
        patched.setattr(store, "writer", full)
        delivery.run()
    assert keys(s3) == []
    delivery.run()
    (key,) = keys(s3)
    assert s3.get_object(Bucket="logs", Key=key)["Body"].read() == b"kept\n"


def test_a_file_that_grows_large_is_delivered_before_its_time(tmp_path: Path) -> None:
    spool = LogSpool(tmp_path)
    assert not spool.append(entry("x"))
    assert spool.append(entry("x" * (9 << 20)))


def test_a_browsers_form_is_recorded_too(logged: Any, server: LiveServer) -> None:
    form = logged.generate_presigned_post("bkt", "from-form")
    boundary = "b0undary"
    fields = [f'name="{name}"\r\n\r\n{value}' for name, value in form["fields"].items()]
    fields.append('name="file"; filename="f"\r\n\r\nhello')
    body = "".join(f"--{boundary}\r\nContent-Disposition: form-data; {field}\r\n" for field in fields)
    headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
    answer = server.request("POST", "/bkt", f"{body}--{boundary}--\r\n".encode(), headers, credential=None)
    assert answer.status == 204
    (record,) = records(server, logged)
    assert (record["operation"], record["key"], record["requester"]) == (
        "REST.POST.OBJECT",
        "from-form",
        ALICE.owner_id,
    )
