"""Lifecycle: which configurations are taken, what they answer, and what the worker removes."""

from __future__ import annotations

import time
from typing import Any

import pytest
from botocore.exceptions import ClientError

from cordwood.engine import Store, errors
from cordwood.server.lifecycle import DAY_MS, after
from cordwood.server.lifecycle_worker import LifecycleReport, LifecycleWorker
from tests.server.conftest import LiveServer

NOW_MS = time.time_ns() // 1_000_000


def rule(**members: Any) -> dict[str, Any]:
    return {"Status": "Enabled", **({} if "Prefix" in members else {"Filter": {}}), **members}


def configure(s3: Any, *rules: dict[str, Any]) -> None:
    s3.put_bucket_lifecycle_configuration(Bucket="bkt", LifecycleConfiguration={"Rules": list(rules)})


def refusal(s3: Any, *rules: dict[str, Any]) -> tuple[int, str]:
    with pytest.raises(ClientError) as refused:
        configure(s3, *rules)
    response = refused.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


def after_days(store: Store, days: int, *, dry_run: bool = False) -> LifecycleReport:
    return LifecycleWorker(store, dry_run=dry_run).run(NOW_MS + days * DAY_MS)


def keys(s3: Any) -> list[str]:
    return [each["Key"] for each in s3.list_objects_v2(Bucket="bkt").get("Contents", [])]


def test_what_was_put_comes_back_with_an_id_until_it_is_deleted(s3: Any) -> None:
    with pytest.raises(ClientError) as unset:
        s3.get_bucket_lifecycle_configuration(Bucket="bkt")
    assert unset.value.response["Error"]["Code"] == "NoSuchLifecycleConfiguration"
    both = {"And": {"Prefix": "a/", "Tags": [{"Key": "k", "Value": "v"}], "ObjectSizeGreaterThan": 5}}
    wanted = [
        rule(ID="one", Filter=both, Expiration={"Days": 3}),
        rule(Prefix="b/", AbortIncompleteMultipartUpload={"DaysAfterInitiation": 2}),
        rule(Expiration={"Date": "2030-01-01"}, Status="Disabled"),
        rule(NoncurrentVersionExpiration={"NoncurrentDays": 4, "NewerNoncurrentVersions": 2}),
    ]
    configure(s3, *wanted)
    got = s3.get_bucket_lifecycle_configuration(Bucket="bkt")["Rules"]
    assert got[0] == wanted[0]
    assert all(each["ID"] for each in got)
    assert got[2]["Expiration"]["Date"].isoformat() == "2030-01-01T00:00:00+00:00"
    assert got[3]["NoncurrentVersionExpiration"] == wanted[3]["NoncurrentVersionExpiration"]
    s3.delete_bucket_lifecycle(Bucket="bkt")
    with pytest.raises(ClientError):
        s3.get_bucket_lifecycle_configuration(Bucket="bkt")


DAYS = {"Days": 1}
TAG = {"Tag": {"Key": "a", "Value": "b"}}


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        (rule(Expiration={"Days": 0}), "InvalidArgument"),
        (rule(Expiration={"Date": "2030-01-01T01:00:00Z"}), "InvalidArgument"),
        (rule(Expiration={"Days": 1, "Date": "2030-01-01"}), "MalformedXML"),
        (rule(Expiration=DAYS, ID="x" * 256), "InvalidArgument"),
        (rule(Expiration=DAYS, Status="enabled"), "MalformedXML"),
        (rule(Expiration=DAYS, Prefix="a", Filter={}), "MalformedXML"),
        (rule(Expiration=DAYS, Filter={"Prefix": "a", **TAG}), "MalformedXML"),
        (rule(Expiration={"ExpiredObjectDeleteMarker": True}, Filter=TAG), "InvalidRequest"),
        (rule(AbortIncompleteMultipartUpload={"DaysAfterInitiation": 1}, Filter=TAG), "InvalidRequest"),
        (rule(), "InvalidRequest"),
        (
            rule(NoncurrentVersionExpiration={"NoncurrentDays": 1, "NewerNoncurrentVersions": 101}),
            "InvalidArgument",
        ),
        (rule(NoncurrentVersionExpiration={"NewerNoncurrentVersions": 1}), "MalformedXML"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused(s3: Any, wanted: dict[str, Any], code: str) -> None:
    assert refusal(s3, wanted) == (400, code)


def test_two_rules_of_one_id_are_refused_and_transitions_are_not_implemented(s3: Any) -> None:
    assert refusal(s3, rule(ID="x", Expiration=DAYS), rule(ID="x", Expiration=DAYS)) == (
        400,
        "InvalidArgument",
    )
    assert refusal(s3, rule(Transitions=[{"Days": 1, "StorageClass": "GLACIER"}])) == (501, "NotImplemented")


def test_answers_tell_when_an_object_ends_and_by_which_rule(s3: Any) -> None:
    configure(s3, rule(ID="by tag", Filter=TAG, Expiration={"Days": 2}), rule(Prefix="z", Expiration=DAYS))
    put = s3.put_object(Bucket="bkt", Key="k", Body=b"1", Tagging="a=b")
    end = put["Expiration"]
    assert 'rule-id="by%20tag"' in end and "00:00:00 GMT" in end
    assert s3.head_object(Bucket="bkt", Key="k")["Expiration"] == end
    assert s3.get_object(Bucket="bkt", Key="k")["Expiration"] == end
    assert "Expiration" not in s3.put_object(Bucket="bkt", Key="other", Body=b"1")


def test_an_end_by_age_falls_on_midnight_and_shortened_days_do_not() -> None:
    noon = 20_000 * DAY_MS + DAY_MS // 2
    assert after(noon, 1) == 20_002 * DAY_MS
    assert after(20_000 * DAY_MS, 1) == 20_001 * DAY_MS
    assert after(noon, 2, 1000) == noon + 2000


def test_objects_end_by_prefix_tag_and_size_when_they_are_old_enough(s3: Any, store: Store) -> None:
    sizes = {"And": {"ObjectSizeGreaterThan": 2, "ObjectSizeLessThan": 5}}
    configure(
        s3,
        rule(Prefix="old/", Expiration={"Days": 3}),
        rule(Filter=TAG, Expiration={"Days": 3}),
        rule(Filter=sizes, Expiration={"Days": 3}),
        rule(Prefix="off", Expiration=DAYS, Status="Disabled"),
    )
    for key, body, tagging in (
        ("old/1", b"1", ""),
        ("tagged", b"1", "a=b&c=d"),
        ("sized", b"1234", ""),
        ("kept-by-size", b"12345", "a=c"),
        ("off", b"1", ""),
    ):
        s3.put_object(Bucket="bkt", Key=key, Body=body, Tagging=tagging)
    assert after_days(store, 2).total == 0
    assert after_days(store, 5, dry_run=True).objects == 3
    assert len(keys(s3)) == 5
    assert after_days(store, 5).objects == 3
    assert keys(s3) == ["kept-by-size", "off"]


def test_a_date_ends_everything_from_then_on(s3: Any, store: Store) -> None:
    configure(s3, rule(Expiration={"Date": "2020-01-01"}))
    s3.put_object(Bucket="bkt", Key="k", Body=b"1")
    assert after_days(store, 0).objects == 1 and keys(s3) == []


def test_versions_become_noncurrent_then_go_and_the_lone_marker_after_them(s3: Any, store: Store) -> None:
    s3.put_bucket_versioning(Bucket="bkt", VersioningConfiguration={"Status": "Enabled"})
    configure(
        s3,
        rule(Expiration={"Days": 1}),
        rule(NoncurrentVersionExpiration={"NoncurrentDays": 3, "NewerNoncurrentVersions": 2}),
    )
    for body in (b"1", b"2", b"3", b"4"):
        s3.put_object(Bucket="bkt", Key="k", Body=body)
    report = after_days(store, 2)
    assert (report.objects, report.noncurrent_versions) == (1, 0)
    listed = s3.list_object_versions(Bucket="bkt")
    assert len(listed["DeleteMarkers"]) == 1 and len(listed["Versions"]) == 4
    report = after_days(store, 5)
    assert report.noncurrent_versions == 2  # the newest two noncurrent ones are kept
    configure(s3, rule(NoncurrentVersionExpiration={"NoncurrentDays": 1}))
    assert after_days(store, 3).noncurrent_versions == 2
    assert after_days(store, 99).total == 0
    configure(s3, rule(Expiration={"ExpiredObjectDeleteMarker": True}))
    assert after_days(store, 0).markers == 1
    assert "DeleteMarkers" not in s3.list_object_versions(Bucket="bkt")


def test_locked_versions_stay_whatever_the_rules_say(s3: Any, store: Store) -> None:
    s3.put_bucket_versioning(Bucket="bkt", VersioningConfiguration={"Status": "Enabled"})
    s3.put_object_lock_configuration(Bucket="bkt", ObjectLockConfiguration={"ObjectLockEnabled": "Enabled"})
    configure(s3, rule(NoncurrentVersionExpiration={"NoncurrentDays": 1}))
    s3.put_object(Bucket="bkt", Key="k", Body=b"1", ObjectLockLegalHoldStatus="ON")
    s3.put_object(Bucket="bkt", Key="k", Body=b"2")
    assert after_days(store, 3).kept == 1
    assert len(s3.list_object_versions(Bucket="bkt")["Versions"]) == 2


def test_a_version_that_became_current_again_is_not_removed(store: Store) -> None:
    from cordwood.engine import Conditions

    store.create_bucket("bkt", versioning="Enabled")
    version = store.put("bkt", "k", b"1").version_id
    [result] = store.delete_many("bkt", [("k", version, Conditions(if_noncurrent=True))])
    assert isinstance(result, errors.PreconditionFailed)


def test_open_uploads_are_aborted(s3: Any, store: Store) -> None:
    configure(s3, rule(Prefix="a/", AbortIncompleteMultipartUpload={"DaysAfterInitiation": 2}))
    for key in ("a/1", "b/1"):
        s3.create_multipart_upload(Bucket="bkt", Key=key)
    assert after_days(store, 1).uploads == 0
    assert after_days(store, 4).uploads == 1
    assert [each["Key"] for each in s3.list_multipart_uploads(Bucket="bkt")["Uploads"]] == ["b/1"]


def test_an_upload_is_told_when_it_will_be_aborted(s3: Any) -> None:
    configure(s3, rule(ID="r", Prefix="a/", AbortIncompleteMultipartUpload={"DaysAfterInitiation": 2}))
    upload = s3.create_multipart_upload(Bucket="bkt", Key="a/1")
    parts = s3.list_parts(Bucket="bkt", Key="a/1", UploadId=upload["UploadId"])
    assert upload["AbortRuleId"] == parts["AbortRuleId"] == "r"
    assert upload["AbortDate"] == parts["AbortDate"] and upload["AbortDate"].hour == 0
    assert "AbortDate" not in s3.create_multipart_upload(Bucket="bkt", Key="b/1")


def test_more_than_a_page_of_objects_is_removed(server: LiveServer, s3: Any, store: Store) -> None:
    configure(s3, rule(Expiration=DAYS))
    with store.batch() as batch:
        for number in range(2300):
            batch.put("bkt", f"{number:05}", b"")
    assert after_days(store, 3).objects == 2300
    assert keys(s3) == []
