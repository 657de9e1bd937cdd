"""Event notifications: which configurations are taken, what messages say, and that they arrive, whatever dies."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trio
from botocore.exceptions import ClientError

from cordwood.engine import Outbox, Store
from cordwood.server.config import NotificationTarget
from cordwood.server.lifecycle import DAY_MS
from cordwood.server.lifecycle_worker import LifecycleWorker
from cordwood.server.notifications import documents, topic_of
from cordwood.server.notifier import deliver
from tests.cli.harness import eventually, serving
from tests.server.conftest import ALICE, LiveServer
from tests.server.test_logging import enable, let_in

QUEUE = "arn:aws:sqs:us-east-1:000000000000:queue"
TOPIC = "arn:aws:sns:us-east-1:000000000000:topic"
FUNCTION = "arn:aws:lambda:us-east-1:000000000000:function:work"
BUS = "arn:aws:events:us-east-1:000000000000:event-bus/default"
NOBODY = "arn:aws:sqs:us-east-1:000000000000:nobody"


@pytest.fixture
def server(store: Store) -> Iterator[LiveServer]:
    live = LiveServer(store, targets=(QUEUE, TOPIC, FUNCTION, BUS))
    live.start()
    yield live
    live.stop()


def queue(*events: str, arn: str = QUEUE, **more: Any) -> dict[str, Any]:
    wanted = list(events) or ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"]
    return {"QueueConfigurations": [{"Id": "mine", "QueueArn": arn, "Events": wanted, **more}]}


def where(**filters: str) -> dict[str, Any]:
    rules = [{"Name": name, "Value": value} for name, value in filters.items()]
    return {"Key": {"FilterRules": rules}}


def configure(s3: Any, configuration: dict[str, Any], **more: Any) -> None:
    s3.put_bucket_notification_configuration(Bucket="bkt", NotificationConfiguration=configuration, **more)


def refusal(s3: Any, configuration: dict[str, Any]) -> tuple[str, str]:
    with pytest.raises(ClientError) as refused:
        configure(s3, configuration)
    error = refused.value.response["Error"]
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    return error["Code"], error["Message"]


def waiting(store: Store, arn: str = QUEUE) -> list[dict[str, Any]]:
    """The documents that wait for a target; they are taken out."""
    outbox = Outbox(store)
    messages = outbox.peek(topic_of(arn), 1000)
    outbox.remove(messages)
    return [json.loads(text) for message in messages for text in documents([message.body])]


def records(store: Store, arn: str = QUEUE) -> list[dict[str, Any]]:
    return [record for document in waiting(store, arn) for record in document.get("Records", ())]


def names(store: Store, arn: str = QUEUE) -> list[tuple[str, str]]:
    return [(each["eventName"], each["s3"]["object"]["key"]) for each in records(store, arn)]


# --- configuration ------------------------------------------------------------------------------------------------


def test_what_was_configured_comes_back_and_sends_a_trial_message(s3: Any, store: Store) -> None:
    empty = s3.get_bucket_notification_configuration(Bucket="bkt")
    assert not empty.keys() - {"ResponseMetadata"}
    wanted = {
        **queue("s3:ObjectCreated:Put", Filter=where(prefix="in/", suffix=".csv")),
        "TopicConfigurations": [{"Id": "t", "TopicArn": TOPIC, "Events": ["s3:ObjectRemoved:*"]}],
        "LambdaFunctionConfigurations": [
            {"Id": "f", "LambdaFunctionArn": FUNCTION, "Events": ["s3:ObjectTagging:Put"]}
        ],
        "EventBridgeConfiguration": {},
    }
    configure(s3, wanted)
    got = s3.get_bucket_notification_configuration(Bucket="bkt")
    del got["ResponseMetadata"]
    shown = got["QueueConfigurations"][0].pop("Filter")
    assert shown["Key"]["FilterRules"] == [
        {"Name": "Prefix", "Value": "in/"},
        {"Name": "Suffix", "Value": ".csv"},
    ]
    del wanted["QueueConfigurations"][0]["Filter"]
    assert got == wanted
    for arn in (QUEUE, TOPIC):
        (trial,) = waiting(store, arn)
        assert (trial["Event"], trial["Bucket"], trial["Service"]) == ("s3:TestEvent", "bkt", "Amazon S3")
    assert waiting(store, FUNCTION) == []
    configure(s3, {})
    assert not s3.get_bucket_notification_configuration(Bucket="bkt").keys() - {"ResponseMetadata"}
    s3.put_object(Bucket="bkt", Key="in/a.csv")
    assert waiting(store) == []


def test_an_id_is_given_where_none_was(s3: Any) -> None:
    configuration = queue()
    del configuration["QueueConfigurations"][0]["Id"]
    configure(s3, configuration)
    (rule,) = s3.get_bucket_notification_configuration(Bucket="bkt")["QueueConfigurations"]
    assert len(rule["Id"]) > 20


@pytest.mark.parametrize(
    ("configuration", "words"),
    [
        (queue("s3:ObjectCreated:Never"), "not supported for notifications"),
        (queue(arn=NOBODY), "Unable to validate the following destination"),
        (queue(arn=TOPIC), "ARN is not well formed"),
        (queue(arn="nonsense"), "ARN is not well formed"),
        (queue(Filter={"Key": {"FilterRules": [{"Name": "infix", "Value": "x"}]}}), "prefix or suffix"),
        (queue(Filter={"Key": {"FilterRules": [{"Value": "x"}]}}), "prefix or suffix"),
        (
            queue(Filter=where(prefix="a", Prefix="b")),
            "more than one prefix rule",
        ),
        (queue(Filter=where(prefix="x" * 1025)), "cannot exceed"),
        (queue(Id="x" * 256), "ID length"),
        (
            {
                **queue("s3:ObjectCreated:Put", Filter=where(prefix="a")),
                "TopicConfigurations": [
                    {"TopicArn": TOPIC, "Events": ["s3:ObjectCreated:*"], "Filter": where(prefix="ab", suffix="z")}
                ],
            },
            "ambiguously defined",
        ),
        (
            {
                **queue("s3:ObjectCreated:Put", Filter=where(prefix="a")),
                "TopicConfigurations": [{"Id": "mine", "TopicArn": TOPIC, "Events": ["s3:ObjectRemoved:*"]}],
            },
            "IDs must be unique",
        ),
    ],
)  # fmt: skip
def test_a_configuration_that_cannot_be_meant_is_refused(
    s3: Any, configuration: dict[str, Any], words: str
) -> None:
    code, message = refusal(s3, configuration)
    assert code == "InvalidArgument"
    assert words in message


def test_rules_that_no_event_fits_both_of_are_taken(s3: Any) -> None:
    first = {"Id": "1", "QueueArn": QUEUE, "Events": ["s3:ObjectCreated:*"], "Filter": where(prefix="a")}
    second = {**first, "Id": "2", "Filter": where(prefix="b")}
    third = {**first, "Id": "3", "Events": ["s3:ObjectRemoved:*"]}
    fourth = {**first, "Id": "4", "Filter": where(prefix="c", suffix="1")}
    fifth = {**first, "Id": "5", "Filter": where(prefix="c", suffix="2")}
    configure(s3, {"QueueConfigurations": [first, second, third, fourth, fifth]})


def test_without_validation_a_destination_may_be_missing_and_hears_nothing(s3: Any, store: Store) -> None:
    configure(s3, queue(arn=NOBODY), SkipDestinationValidation=True)
    s3.put_object(Bucket="bkt", Key="k")
    assert waiting(store, NOBODY) == []


def test_an_event_bus_needs_a_target(store: Store) -> None:
    live = LiveServer(store, targets=(QUEUE,))
    live.start()
    try:
        s3 = live.client()
        s3.create_bucket(Bucket="bkt")
        assert refusal(s3, {"EventBridgeConfiguration": {}})[0] == "InvalidArgument"
    finally:
        live.stop()


# --- messages -----------------------------------------------------------------------------------------------------


def test_the_record_of_an_upload_says_what_where_who_and_in_which_order(s3: Any, store: Store) -> None:
    configure(s3, queue())
    waiting(store)
    first = s3.put_object(Bucket="bkt", Key="red flower/ä+b.jpg", Body=b"12345")
    s3.put_object(Bucket="bkt", Key="red flower/ä+b.jpg", Body=b"6")
    record, later = records(store)
    thing = record["s3"]["object"]
    assert (record["eventVersion"], record["eventSource"], record["awsRegion"]) == (
        "2.1",
        "aws:s3",
        "us-east-1",
    )
    assert record["eventName"] == "ObjectCreated:Put"
    assert record["userIdentity"] == {"principalId": ALICE.owner_id}
    assert record["requestParameters"] == {"sourceIPAddress": "127.0.0.1"}
    assert record["responseElements"]["x-amz-request-id"] == first["ResponseMetadata"]["RequestId"]
    assert record["responseElements"]["x-amz-id-2"] == first["ResponseMetadata"]["HostId"]
    assert record["s3"]["configurationId"] == "mine"
    assert record["s3"]["bucket"] == {
        "name": "bkt",
        "ownerIdentity": {"principalId": ALICE.owner_id},
        "arn": "arn:aws:s3:::bkt",
    }
    assert thing["key"] == "red+flower/%C3%A4%2Bb.jpg"
    assert (thing["size"], thing["eTag"]) == (5, first["ETag"].strip('"'))
    assert "versionId" not in thing
    assert thing["sequencer"] < later["s3"]["object"]["sequencer"]
    assert (
        abs(time.time() - time.mktime(time.strptime(record["eventTime"][:19], "%Y-%m-%dT%H:%M:%S"))) < 86400
    )


def test_each_way_to_write_and_remove_has_its_event(s3: Any, store: Store) -> None:
    configure(s3, queue())
    waiting(store)
    s3.put_object(Bucket="bkt", Key="put", Body=b"x")
    s3.copy_object(Bucket="bkt", Key="copy", CopySource="bkt/put")
    upload = s3.create_multipart_upload(Bucket="bkt", Key="parts")["UploadId"]
    part = s3.upload_part(Bucket="bkt", Key="parts", UploadId=upload, PartNumber=1, Body=b"x")
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    s3.complete_multipart_upload(Bucket="bkt", Key="parts", UploadId=upload, MultipartUpload=parts)
    s3.put_object(Bucket="bkt", Key="put", Body=b"y", WriteOffsetBytes=1)
    s3.rename_object(Bucket="bkt", Key="renamed", RenameSource="/bkt/copy")
    s3.delete_object(Bucket="bkt", Key="put")
    s3.delete_object(Bucket="bkt", Key="was never there")
    s3.delete_objects(
        Bucket="bkt", Delete={"Objects": [{"Key": "parts"}, {"Key": "nor this"}, {"Key": "renamed"}]}
    )
    with pytest.raises(ClientError):
        s3.put_object(Bucket="bkt", Key="refused", IfMatch="no")
    assert names(store) == [
        ("ObjectCreated:Put", "put"),
        ("ObjectCreated:Copy", "copy"),
        ("ObjectCreated:CompleteMultipartUpload", "parts"),
        ("ObjectCreated:Put", "put"),
        ("ObjectRemoved:Delete", "copy"),
        ("ObjectCreated:Copy", "renamed"),
        ("ObjectRemoved:Delete", "put"),
        ("ObjectRemoved:Delete", "parts"),
        ("ObjectRemoved:Delete", "renamed"),
    ]


def test_a_browsers_form_is_a_post(s3: Any, server: LiveServer, store: Store) -> None:
    configure(s3, queue("s3:ObjectCreated:Post"))
    waiting(store)
    form = s3.generate_presigned_post("bkt", "from-form")
    fields = [f'name="{name}"\r\n\r\n{value}' for name, value in form["fields"].items()]
    fields.append('name="file"; filename="f"\r\n\r\nhello')
    body = "".join(f"--b\r\nContent-Disposition: form-data; {field}\r\n" for field in fields)
    headers = {"content-type": "multipart/form-data; boundary=b"}
    assert server.request("POST", "/bkt", f"{body}--b--\r\n".encode(), headers, credential=None).status == 204
    assert names(store) == [("ObjectCreated:Post", "from-form")]


def test_versions_are_named_and_markers_have_events_of_their_own(s3: Any, store: Store) -> None:
    s3.put_bucket_versioning(Bucket="bkt", VersioningConfiguration={"Status": "Enabled"})
    configure(s3, queue())
    waiting(store)
    version = s3.put_object(Bucket="bkt", Key="k")["VersionId"]
    marker = s3.delete_object(Bucket="bkt", Key="k")["VersionId"]
    s3.delete_object(Bucket="bkt", Key="k", VersionId=marker)
    s3.delete_objects(Bucket="bkt", Delete={"Objects": [{"Key": "k", "VersionId": version}]})
    found = [(each["eventName"], each["s3"]["object"].get("versionId")) for each in records(store)]
    assert found == [
        ("ObjectCreated:Put", version),
        ("ObjectRemoved:DeleteMarkerCreated", marker),
        ("ObjectRemoved:Delete", marker),
        ("ObjectRemoved:Delete", version),
    ]


def test_tags_lists_retentions_and_annotations_have_events_with_the_later_record(
    s3: Any, store: Store
) -> None:
    s3.create_bucket(Bucket="locked", ObjectLockEnabledForBucket=True)
    events = ["s3:ObjectTagging:*", "s3:ObjectAcl:Put", "s3:ObjectRetention:Put", "s3:ObjectAnnotation:*"]
    for bucket in ("bkt", "locked"):
        s3.put_bucket_notification_configuration(Bucket=bucket, NotificationConfiguration=queue(*events))
    etag = s3.put_object(Bucket="bkt", Key="k", Body=b"xy")["ETag"].strip('"')
    version = s3.put_object(Bucket="locked", Key="l")["VersionId"]
    waiting(store)
    s3.put_object_tagging(Bucket="bkt", Key="k", Tagging={"TagSet": [{"Key": "a", "Value": "b"}]})
    s3.delete_object_tagging(Bucket="bkt", Key="k")
    s3.put_object_acl(Bucket="bkt", Key="k", ACL="public-read")
    until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
    s3.put_object_retention(
        Bucket="locked", Key="l", Retention={"Mode": "GOVERNANCE", "RetainUntilDate": until}
    )
    s3.put_object_annotation(Bucket="bkt", Key="k", AnnotationName="n", AnnotationPayload=b"text")
    s3.delete_object_annotation(Bucket="bkt", Key="k", AnnotationName="n")
    found = records(store)
    assert [each["eventName"] for each in found] == [
        "ObjectTagging:Put",
        "ObjectTagging:Delete",
        "ObjectAcl:Put",
        "ObjectRetention:Put",
        "ObjectAnnotation:Put",
        "ObjectAnnotation:Delete",
    ]
    assert {each["eventVersion"] for each in found} == {"2.3"}
    assert (found[0]["s3"]["object"]["eTag"], found[0]["s3"]["object"]["size"]) == (etag, 2)
    assert found[3]["s3"]["object"]["versionId"] == version


def test_only_what_fits_prefix_suffix_and_event_is_told_and_to_each_who_asked(s3: Any, store: Store) -> None:
    fitting = queue("s3:ObjectCreated:*", Filter=where(prefix="in/", suffix=".csv"))
    removals = [{"Id": "r", "TopicArn": TOPIC, "Events": ["s3:ObjectRemoved:Delete"]}]
    configure(s3, {**fitting, "TopicConfigurations": removals})
    waiting(store)
    waiting(store, TOPIC)
    for key in ("in/a.csv", "in/a.txt", "out/a.csv"):
        s3.put_object(Bucket="bkt", Key=key)
    s3.delete_object(Bucket="bkt", Key="out/a.csv")
    assert names(store) == [("ObjectCreated:Put", "in/a.csv")]
    assert names(store, TOPIC) == [("ObjectRemoved:Delete", "out/a.csv")]


def test_the_event_bus_hears_of_everything_in_its_own_form(s3: Any, store: Store) -> None:
    configure(s3, {"EventBridgeConfiguration": {}})
    s3.put_object(Bucket="bkt", Key="a b", Body=b"1")
    s3.delete_object(Bucket="bkt", Key="a b")
    created, deleted = waiting(store, BUS)
    assert (created["detail-type"], created["source"], created["version"]) == (
        "Object Created",
        "aws.s3",
        "0",
    )
    assert created["detail"]["object"]["key"] == "a b"
    assert created["detail"]["object"]["size"] == 1
    assert created["detail"]["reason"] == "PutObject"
    assert created["resources"] == ["arn:aws:s3:::bkt"]
    assert (deleted["detail-type"], deleted["detail"]["deletion-type"]) == (
        "Object Deleted",
        "Permanently Deleted",
    )
    assert created["id"] != deleted["id"]


def test_what_lifecycle_rules_remove_is_told(s3: Any, store: Store) -> None:
    configure(s3, queue("s3:LifecycleExpiration:*"))
    rules = [{"Status": "Enabled", "Filter": {}, "Expiration": {"Days": 1}}]
    s3.put_bucket_lifecycle_configuration(Bucket="bkt", LifecycleConfiguration={"Rules": rules})
    s3.put_object(Bucket="bkt", Key="old")
    s3.put_bucket_versioning(Bucket="bkt", VersioningConfiguration={"Status": "Enabled"})
    s3.put_object(Bucket="bkt", Key="versioned")
    waiting(store)
    worker = LifecycleWorker(store, targets=frozenset((QUEUE,)))
    worker.run(time.time_ns() // 1_000_000 + 3 * DAY_MS)
    found = records(store)
    assert {each["eventName"] for each in found} == {"LifecycleExpiration:DeleteMarkerCreated"}
    assert {each["s3"]["object"]["key"] for each in found} == {"old", "versioned"}
    assert found[0]["requestParameters"]["sourceIPAddress"] == "s3.amazonaws.com"


def test_the_delivery_of_an_access_log_is_told_too(s3: Any, store: Store, server: LiveServer) -> None:
    s3.create_bucket(Bucket="logs")
    let_in(s3, "logs")
    enable(s3)
    s3.put_bucket_notification_configuration(Bucket="logs", NotificationConfiguration=queue())
    waiting(store)
    s3.list_objects_v2(Bucket="bkt")
    server.deliver_logs()
    (record,) = records(store)
    assert record["s3"]["object"]["key"].startswith("log/")
    assert record["userIdentity"] == {"principalId": "logging.s3.amazonaws.com"}


def test_nobody_reaches_the_queue_through_the_api(s3: Any, store: Store, server: LiveServer) -> None:
    configure(s3, queue())
    (message,) = Outbox(store).peek(topic_of(QUEUE), 1)
    name = quote(message.name)
    for method, path in (
        ("GET", "/.outbox"),
        ("GET", f"/.outbox/{name}"),
        ("PUT", "/.outbox/x"),
        ("DELETE", "/.outbox"),
    ):
        assert server.request(method, path).code == "NoSuchBucket", path
    assert server.request("PUT", "/.outbox").code == "InvalidBucketName"
    copied = server.request("PUT", "/bkt/copy", headers={"x-amz-copy-source": f".outbox/{name}"})
    assert copied.code == "NoSuchBucket"
    assert [each["Name"] for each in s3.list_buckets()["Buckets"]] == ["bkt"]


# --- delivery -----------------------------------------------------------------------------------------------------


class Receiver:
    """A webhook on a port of its own, which can be down, refuse, or answer slowly."""

    def __init__(self) -> None:
        self.posts: list[tuple[dict[str, str], Any]] = []
        self.status = 200
        self.delay_s = 0.0
        self.port = 0
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                time.sleep(receiver.delay_s)
                if receiver.status < 300:
                    headers = {name.lower(): value for name, value in self.headers.items()}
                    receiver.posts.append((headers, json.loads(body)))
                self.send_response(receiver.status)
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?token=hidden-in-url"

    def keys(self) -> list[str]:
        return [
            record["s3"]["object"]["key"]
            for _, document in self.posts
            for record in document.get("Records", ())
        ]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    one = Receiver()
    one.start()
    yield one
    one.stop()


@contextmanager
def delivering(store: Store, *targets: NotificationTarget, queue_max: int = 1000) -> Iterator[None]:
    """The notifier's loop over an open store, in a thread."""
    scopes: list[tuple[trio.CancelScope, trio.lowlevel.TrioToken]] = []
    began = threading.Event()

    async def run() -> None:
        with trio.CancelScope() as scope:
            scopes.append((scope, trio.lowlevel.current_trio_token()))
            began.set()
            await deliver(store, targets, queue_max)

    thread = threading.Thread(target=trio.run, args=(run,))
    thread.start()
    assert began.wait(10)
    try:
        yield
    finally:
        scope, token = scopes[0]
        token.run_sync_soon(scope.cancel)
        thread.join(20)
        assert not thread.is_alive()


def put(s3: Any, keys: Sequence[str]) -> None:
    for key in keys:
        s3.put_object(Bucket="bkt", Key=key)


def test_a_webhook_is_posted_each_message_in_order_and_the_queue_empties(
    s3: Any, store: Store, receiver: Receiver
) -> None:
    configure(s3, queue())
    target = NotificationTarget(QUEUE, receiver.url, authorization="Bearer sesame")
    with delivering(store, target):
        put(s3, ["a", "b", "c"])
        eventually(lambda: len(receiver.posts) == 4)
        eventually(lambda: Outbox(store).topics() == [])
    headers, trial = receiver.posts[0]
    assert headers["authorization"] == "Bearer sesame"
    assert headers["content-type"] == "application/json"
    assert trial["Event"] == "s3:TestEvent"
    assert receiver.keys() == ["a", "b", "c"]


def test_messages_may_travel_together(s3: Any, store: Store, receiver: Receiver) -> None:
    configure(s3, queue())
    waiting(store)
    put(s3, [str(number) for number in range(25)])
    with delivering(store, NotificationTarget(QUEUE, receiver.url, batch=10)):
        eventually(lambda: len(receiver.keys()) == 25)
    assert [len(document["Records"]) for _, document in receiver.posts] == [10, 10, 5]


@pytest.mark.parametrize("trouble", ["down", "refusing", "slow"])
def test_a_target_in_trouble_gets_everything_once_it_is_well_again(
    s3: Any, store: Store, receiver: Receiver, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    configure(s3, queue())
    waiting(store)
    if trouble == "down":
        receiver.stop()
    elif trouble == "refusing":
        receiver.status = 503
    else:
        receiver.delay_s = 1.0
    caplog.set_level(logging.INFO, logger="cordwood.notifier")
    target = NotificationTarget(QUEUE, receiver.url, timeout_s=0.3, authorization="hidden-in-header")
    with delivering(store, target):
        put(s3, ["a", "b"])
        eventually(lambda: "wait" in caplog.text)
        receiver.status, receiver.delay_s = 200, 0.0
        if trouble == "down":
            receiver.start()
        eventually(lambda: Outbox(store).topics() == [])
        eventually(lambda: "delivered again" in caplog.text)
    assert list(dict.fromkeys(receiver.keys())) == ["a", "b"]
    assert "hidden" not in caplog.text


def test_one_target_in_trouble_delays_no_other(
    s3: Any, store: Store, receiver: Receiver, tmp_path: Path
) -> None:
    topics = [{"Id": "t", "TopicArn": TOPIC, "Events": ["s3:ObjectRemoved:*"]}]
    configure(s3, {**queue("s3:ObjectCreated:*"), "TopicConfigurations": topics})
    receiver.status = 500
    lines = tmp_path / "events.jsonl"
    with delivering(
        store, NotificationTarget(QUEUE, receiver.url), NotificationTarget(TOPIC, file=str(lines))
    ):
        put(s3, ["a"])
        s3.delete_object(Bucket="bkt", Key="a")
        eventually(lambda: lines.exists() and len(lines.read_text().splitlines()) == 2)
    trial, removal = map(json.loads, lines.read_text().splitlines())
    assert trial["Event"] == "s3:TestEvent"
    assert removal["Records"][0]["eventName"] == "ObjectRemoved:Delete"
    assert Outbox(store).count(topic_of(QUEUE)) == 2


def test_the_queue_of_a_target_in_trouble_is_bounded_and_what_it_drops_is_told(
    s3: Any, store: Store, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    configure(s3, queue())
    waiting(store)
    put(s3, [str(number) for number in range(9)])
    receiver.status = 500
    with delivering(store, NotificationTarget(QUEUE, receiver.url), queue_max=4):
        eventually(lambda: Outbox(store).count(topic_of(QUEUE)) == 4)
        receiver.status = 200
        eventually(lambda: len(receiver.posts) == 4)
    assert receiver.keys() == ["5", "6", "7", "8"]
    assert "5 oldest notifications" in caplog.text


def test_lines_in_a_file_stay_whole_after_a_crash_and_a_rotation(
    s3: Any, store: Store, tmp_path: Path
) -> None:
    configure(s3, queue())
    waiting(store)
    lines = tmp_path / "events.jsonl"
    lines.write_text('{"Records":[{"torn')
    with delivering(store, NotificationTarget(QUEUE, file=str(lines))):
        put(s3, ["a"])
        eventually(lambda: len(lines.read_text().splitlines()) == 2)
        lines.rename(tmp_path / "rotated.jsonl")
        put(s3, ["b"])
        eventually(lambda: lines.exists() and lines.read_text().endswith("\n"))
    assert json.loads((tmp_path / "rotated.jsonl").read_text().splitlines()[1])["Records"]
    assert json.loads(lines.read_text())["Records"][0]["s3"]["object"]["key"] == "b"


def test_messages_for_a_target_that_is_gone_from_the_settings_are_told_and_kept(
    s3: Any, store: Store, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    configure(s3, queue())
    with delivering(store, NotificationTarget(TOPIC, receiver.url)):
        eventually(lambda: "1 notifications wait for" in caplog.text)
    assert len(waiting(store)) == 1


def test_every_process_may_be_killed_between_a_change_and_its_delivery(
    tmp_path: Path, receiver: Receiver
) -> None:
    """The webhook is down while objects are written; then SIGKILL to the workers, and to all of the server."""
    receiver.stop()
    config = tmp_path / "serve.toml"
    config.write_text(
        f'access_key = "{ALICE.access_key}"\nsecret_key = "{ALICE.secret_key}"\n'
        f'[[notification_targets]]\narn = "{QUEUE}"\nurl = "{receiver.url}"\n'
    )
    options = ("--config", str(config), "--workers", "2", "--no-profile")
    with serving(tmp_path / "home", tmp_path / "store", *options) as served:
        s3 = client_of(served.url)
        s3.create_bucket(Bucket="bkt")
        configure(s3, queue())
        put(s3, [f"before-{number}" for number in range(10)])
        for worker in served.workers():
            os.kill(worker, signal.SIGKILL)
        eventually(lambda: len(served.workers()) == 2)
        s3 = client_of(served.url)
        eventually(lambda: is_answering(s3))
        put(s3, [f"after-{number}" for number in range(10)])
        os.killpg(served.process.pid, signal.SIGKILL)
        served.process.wait(10)
    assert "hidden-in-url" not in served.output
    receiver.start()
    with serving(tmp_path / "home", tmp_path / "store", *options):
        eventually(lambda: len(set(receiver.keys())) == 20, 30)
    expected = [f"{when}-{number}" for when in ("before", "after") for number in range(10)]
    assert list(dict.fromkeys(receiver.keys())) == expected


def is_answering(s3: Any) -> bool:
    try:
        s3.head_bucket(Bucket="bkt")
    except Exception:
        return False
    return True


def client_of(url: str) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=ALICE.access_key,
        aws_secret_access_key=ALICE.secret_key,
        region_name="us-east-1",
        config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
    )
