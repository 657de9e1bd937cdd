"""Configurations that are kept: what goes in comes out, and what AWS refuses is refused. ABAC, which is enforced."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.exceptions import ClientError

from cordwood.server.handlers.reasons import NOT_IMPLEMENTED, STORED_ONLY
from cordwood.server.handlers.table import states
from cordwood.server.wire.signing import sign_headers
from tests.server.conftest import ALICE, BOB, LiveServer

DESTINATION = {"Bucket": "arn:aws:s3:::reports", "Prefix": "p/"}
FILTERS: list[dict[str, Any]] = [
    {"Prefix": "a/"},
    {"Tag": {"Key": "k", "Value": "v"}},
    {"And": {"Prefix": "a/", "Tags": [{"Key": "k", "Value": "v"}, {"Key": "l", "Value": ""}]}},
]


def analytics(identifier: str, **more: Any) -> dict[str, Any]:
    export = {
        "Destination": {"S3BucketDestination": {"Format": "CSV", **DESTINATION}},
        "OutputSchemaVersion": "V_1",
    }
    return {"Id": identifier, "StorageClassAnalysis": {"DataExport": export}, **more}


def inventory(identifier: str, **more: Any) -> dict[str, Any]:
    return {
        "Id": identifier,
        "IsEnabled": True,
        "IncludedObjectVersions": "Current",
        "Schedule": {"Frequency": "Daily"},
        "OptionalFields": ["Size", "ETag"],
        "Destination": {"S3BucketDestination": {"Format": "ORC", **DESTINATION}},
        **more,
    }


def tiering(identifier: str, *tiers: tuple[str, int], **more: Any) -> dict[str, Any]:
    listed = [{"AccessTier": tier, "Days": days} for tier, days in tiers or (("ARCHIVE_ACCESS", 90),)]
    return {"Id": identifier, "Status": "Enabled", "Tierings": listed, **more}


FAMILIES: dict[str, list[Any]] = {
    "analytics": [analytics("a"), *(analytics(f"f{n}", Filter=each) for n, each in enumerate(FILTERS))],
    "inventory": [inventory("a"), inventory("b", Filter={"Prefix": "x"}, IsEnabled=False)],
    "metrics": [{"Id": "a"}, *({"Id": f"f{n}", "Filter": each} for n, each in enumerate(FILTERS))],
    "intelligent_tiering": [
        tiering("a", ("ARCHIVE_ACCESS", 90), ("DEEP_ARCHIVE_ACCESS", 730)),
        *(tiering(f"f{n}", Filter=each) for n, each in enumerate(FILTERS)),
    ],
}


def member(family: str) -> str:
    return "".join(word.capitalize() for word in family.split("_")) + "Configuration"


def put(s3: Any, family: str, configuration: dict[str, Any], identifier: str | None = None) -> None:
    call = getattr(s3, f"put_bucket_{family}_configuration")
    call(Bucket="bkt", Id=identifier or configuration["Id"], **{member(family): configuration})


def refused(call: Any, *arguments: Any, **named: Any) -> str:
    with pytest.raises(ClientError) as caught:
        call(*arguments, **named)
    return str(caught.value.response["Error"]["Code"])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_configuration_is_kept_returned_listed_replaced_and_removed(s3: Any, family: str) -> None:
    get = getattr(s3, f"get_bucket_{family}_configuration")
    delete = getattr(s3, f"delete_bucket_{family}_configuration")
    every = getattr(s3, f"list_bucket_{family}_configurations")
    assert member(family) + "List" not in every(Bucket="bkt")
    assert refused(get, Bucket="bkt", Id="a") == "NoSuchConfiguration"
    for configuration in FAMILIES[family]:
        put(s3, family, configuration)
        assert get(Bucket="bkt", Id=configuration["Id"])[member(family)] == configuration
    listed = every(Bucket="bkt")
    assert listed[member(family) + "List"] == FAMILIES[family] and not listed["IsTruncated"]
    changed = {**FAMILIES[family][-1], "Id": "a"}
    put(s3, family, changed)
    assert get(Bucket="bkt", Id="a")[member(family)] == changed
    delete(Bucket="bkt", Id="a")
    assert refused(delete, Bucket="bkt", Id="a") == "NoSuchConfiguration"
    assert len(every(Bucket="bkt")[member(family) + "List"]) == len(FAMILIES[family]) - 1


def test_a_long_list_comes_in_pages_of_a_hundred(s3: Any) -> None:
    for number in range(205):
        put(s3, "metrics", {"Id": f"m{number:03}"})
    seen: list[str] = []
    token: dict[str, str] = {}
    sizes = []
    while True:
        page = s3.list_bucket_metrics_configurations(Bucket="bkt", **token)
        sizes.append(len(page["MetricsConfigurationList"]))
        seen += [each["Id"] for each in page["MetricsConfigurationList"]]
        if not page["IsTruncated"]:
            break
        token = {"ContinuationToken": page["NextContinuationToken"]}
    assert sizes == [100, 100, 5] and seen == [f"m{number:03}" for number in range(205)]
    assert (
        refused(s3.list_bucket_metrics_configurations, Bucket="bkt", ContinuationToken="é")
        == "InvalidArgument"
    )


@pytest.mark.parametrize(
    ("family", "configuration", "code"),
    [
        ("metrics", {"Id": "a b"}, "InvalidArgument"),
        ("metrics", {"Id": "x" * 65}, "InvalidArgument"),
        ("metrics", {"Id": "a", "Filter": {"AccessPointArn": "arn:aws:s3:x:1:accesspoint/x"}}, "InvalidArgument"),
        ("metrics", {"Id": "a", "Filter": {"And": {"Prefix": "x"}}}, "MalformedXML"),
        ("metrics", {"Id": "a", "Filter": {"Prefix": "x", "Tag": {"Key": "a", "Value": "b"}}}, "MalformedXML"),
        ("inventory", inventory("a", Destination={"S3BucketDestination": {"Format": "CSV", "Bucket": "reports"}}),
         "InvalidS3DestinationBucket"),
        ("intelligent_tiering", tiering("a", ("ARCHIVE_ACCESS", 89)), "InvalidArgument"),
        ("intelligent_tiering", tiering("a", ("DEEP_ARCHIVE_ACCESS", 731)), "InvalidArgument"),
        ("intelligent_tiering", tiering("a", ("ARCHIVE_ACCESS", 90), ("ARCHIVE_ACCESS", 91)), "MalformedXML"),
    ],
)  # fmt: skip
def test_what_aws_refuses_is_refused(s3: Any, family: str, configuration: dict[str, Any], code: str) -> None:
    assert refused(put, s3, family, configuration) == code
    assert refused(put, s3, "metrics", {"Id": "a"}, "b") == "InvalidArgument"


def test_configurations_that_are_set_at_once_do_not_undo_each_other(server: LiveServer, s3: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: put(server.client(), "metrics", {"Id": f"m{number}"}), range(24)))
    assert len(s3.list_bucket_metrics_configurations(Bucket="bkt")["MetricsConfigurationList"]) == 24


def test_a_configuration_needs_the_permission_that_aws_names(two_owners: LiveServer) -> None:
    alice, bob = two_owners.client(), two_owners.client(BOB)
    alice.create_bucket(Bucket="bkt")
    assert refused(put, bob, "metrics", {"Id": "a"}) == "AccessDenied"
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": BOB.owner_id},
        "Action": ["s3:PutMetricsConfiguration", "s3:GetInventoryConfiguration"],
        "Resource": "arn:aws:s3:::bkt",
    }
    policy = {"Version": "2012-10-17", "Statement": [statement]}
    alice.put_bucket_policy(Bucket="bkt", Policy=json.dumps(policy))
    put(bob, "metrics", {"Id": "a"})
    bob.list_bucket_inventory_configurations(Bucket="bkt")
    assert refused(bob.list_bucket_metrics_configurations, Bucket="bkt") == "AccessDenied"


# --- attribute-based access control ---------------------------------------------------------------------------


def test_the_tags_of_a_bucket_count_in_policies_once_abac_is_enabled(two_owners: LiveServer) -> None:
    alice, bob = two_owners.client(), two_owners.client(BOB)
    alice.create_bucket(Bucket="bkt")
    alice.put_object(Bucket="bkt", Key="a", Body=b"a")
    assert alice.get_bucket_abac(Bucket="bkt")["AbacStatus"] == {"Status": "Disabled"}
    alice.put_bucket_tagging(Bucket="bkt", Tagging={"TagSet": [{"Key": "Team", "Value": "blue"}]})
    for key in ("aws:ResourceTag/Team", "s3:BucketTag/Team"):
        statement = {
            "Effect": "Allow",
            "Principal": {"AWS": BOB.owner_id},
            "Action": "s3:GetObject",
            "Resource": "arn:aws:s3:::bkt/*",
            "Condition": {"StringEquals": {key: "blue"}},
        }
        policy = {"Version": "2012-10-17", "Statement": [statement]}
        alice.put_bucket_policy(Bucket="bkt", Policy=json.dumps(policy))
        assert refused(bob.get_object, Bucket="bkt", Key="a") == "AccessDenied"
        alice.put_bucket_abac(Bucket="bkt", AbacStatus={"Status": "Enabled"})
        assert alice.get_bucket_abac(Bucket="bkt")["AbacStatus"] == {"Status": "Enabled"}
        bob.get_object(Bucket="bkt", Key="a")
        alice.put_bucket_abac(Bucket="bkt", AbacStatus={"Status": "Disabled"})
        assert refused(bob.get_object, Bucket="bkt", Key="a") == "AccessDenied"


# --- smaller things of buckets and uploads --------------------------------------------------------------------


def test_a_bucket_is_made_in_the_global_namespace_only(s3: Any) -> None:
    s3.create_bucket(Bucket="in-global", BucketNamespace="global")
    assert refused(s3.create_bucket, Bucket="in-mine", BucketNamespace="account-regional") == "NotImplemented"


def test_an_upload_is_aborted_only_if_it_began_at_the_time_that_is_said(s3: Any) -> None:
    upload = s3.create_multipart_upload(Bucket="bkt", Key="k")["UploadId"]
    began = s3.list_multipart_uploads(Bucket="bkt")["Uploads"][0]["Initiated"]
    about = {"Bucket": "bkt", "Key": "k", "UploadId": upload}
    other = began.replace(year=began.year - 1)
    assert refused(s3.abort_multipart_upload, **about, IfMatchInitiatedTime=other) == "PreconditionFailed"
    s3.abort_multipart_upload(**about, IfMatchInitiatedTime=began)
    assert "Uploads" not in s3.list_multipart_uploads(Bucket="bkt")
    s3.abort_multipart_upload(**about, IfMatchInitiatedTime=began)
    assert refused(s3.abort_multipart_upload, **about) == "NoSuchUpload"


def test_the_least_size_of_transitions_is_kept(s3: Any) -> None:
    rule = {"ID": "r", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 1}}
    for asked, kept in (
        ({}, "all_storage_classes_128K"),
        ({"TransitionDefaultMinimumObjectSize": "varies_by_storage_class"}, "varies_by_storage_class"),
    ):
        answer = s3.put_bucket_lifecycle_configuration(
            Bucket="bkt", LifecycleConfiguration={"Rules": [rule]}, **asked
        )
        found = s3.get_bucket_lifecycle_configuration(Bucket="bkt")
        assert answer["TransitionDefaultMinimumObjectSize"] == kept
        assert found["TransitionDefaultMinimumObjectSize"] == kept and found["Rules"] == [rule]


def test_a_body_that_announces_trailers_and_has_none_gets_a_crc64nvme(server: LiveServer, s3: Any) -> None:
    host = {"host": f"127.0.0.1:{server.port}"}
    headers = {**host, "content-encoding": "aws-chunked", "x-amz-decoded-content-length": "5"}
    payload = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
    url = f"{server.url}/bkt/k"
    headers |= sign_headers("PUT", url, headers, payload, ALICE, "us-east-1", datetime.now(UTC))
    answer = server.request("PUT", "/bkt/k", b"5\r\nhello\r\n0\r\n\r\n", headers, credential=None)
    assert answer.status == 200, answer.body
    found = s3.get_object(Bucket="bkt", Key="k", ChecksumMode="ENABLED")
    assert found["Body"].read() == b"hello" and found["ChecksumType"] == "FULL_OBJECT"
    assert answer.headers["x-amz-checksum-crc64nvme"] == found["ChecksumCRC64NVME"]


# --- the reasons ----------------------------------------------------------------------------------------------


def test_every_operation_without_effect_has_its_reason_and_no_other_has_one() -> None:
    found = states()
    for state, reasons in (("NotImplemented", NOT_IMPLEMENTED), ("stored only", STORED_ONLY)):
        assert reasons.keys() == {name for name, each in found.items() if each == state}
