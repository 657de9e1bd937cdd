"""Object lock over the wire: configuration, headers, retention, legal hold, and what they forbid."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError

SOON = datetime.now(UTC).replace(microsecond=0) + timedelta(days=3)
LATER = SOON + timedelta(days=3)


@pytest.fixture
def locked(s3: Any) -> Any:
    """The client, with a bucket `locked` that has object lock."""
    s3.create_bucket(Bucket="locked", ObjectLockEnabledForBucket=True)
    return s3


def refusal(call: Any, **arguments: Any) -> tuple[int, str]:
    with pytest.raises(ClientError) as refused:
        call(**arguments)
    response = refused.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


def rule(**default: Any) -> dict[str, Any]:
    return {"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": default}}


def retention(mode: str, until: datetime) -> dict[str, Any]:
    return {"Mode": mode, "RetainUntilDate": until}


def test_a_bucket_with_object_lock_has_versions_for_good(locked: Any) -> None:
    assert locked.get_bucket_versioning(Bucket="locked")["Status"] == "Enabled"
    suspended = {"Status": "Suspended"}
    assert refusal(locked.put_bucket_versioning, Bucket="locked", VersioningConfiguration=suspended) == (
        409,
        "InvalidBucketState",
    )
    found = locked.get_object_lock_configuration(Bucket="locked")["ObjectLockConfiguration"]
    assert found == {"ObjectLockEnabled": "Enabled"}
    assert refusal(locked.get_object_lock_configuration, Bucket="bkt") == (
        404,
        "ObjectLockConfigurationNotFoundError",
    )


def test_object_lock_can_be_added_to_a_bucket_with_versions(s3: Any) -> None:
    wanted = rule(Mode="COMPLIANCE", Years=1)
    put = s3.put_object_lock_configuration
    assert refusal(put, Bucket="bkt", ObjectLockConfiguration=wanted) == (409, "InvalidBucketState")
    s3.put_bucket_versioning(Bucket="bkt", VersioningConfiguration={"Status": "Enabled"})
    put(Bucket="bkt", ObjectLockConfiguration=wanted)
    assert s3.get_object_lock_configuration(Bucket="bkt")["ObjectLockConfiguration"] == wanted


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        (rule(Mode="GOVERNANCE", Days=0), "InvalidRetentionPeriod"),
        (rule(Mode="GOVERNANCE", Years=-1), "InvalidRetentionPeriod"),
        (rule(Mode="GOVERNANCE", Days=1, Years=1), "MalformedXML"),
        (rule(Mode="governance", Days=1), "MalformedXML"),
        (rule(Days=1), "MalformedXML"),
        ({"ObjectLockEnabled": "Disabled"}, "MalformedXML"),
    ],
)
def test_a_configuration_that_cannot_be_meant_is_refused(locked: Any, wanted: Any, code: str) -> None:
    put = locked.put_object_lock_configuration
    assert refusal(put, Bucket="locked", ObjectLockConfiguration=wanted) == (400, code)


def test_a_plain_delete_adds_a_marker_and_a_versioned_one_is_refused(locked: Any) -> None:
    version = locked.put_object(
        Bucket="locked",
        Key="k",
        Body=b"1",
        ObjectLockMode="COMPLIANCE",
        ObjectLockRetainUntilDate=SOON,
    )["VersionId"]
    head = locked.head_object(Bucket="locked", Key="k")
    assert head["ObjectLockMode"] == "COMPLIANCE" and head["ObjectLockRetainUntilDate"] == SOON
    assert locked.delete_object(Bucket="locked", Key="k")["DeleteMarker"] is True
    this = {"Bucket": "locked", "Key": "k", "VersionId": version}
    denied = (403, "AccessDenied")
    assert refusal(locked.delete_object, **this) == denied
    assert refusal(locked.delete_object, **this, BypassGovernanceRetention=True) == denied
    batch = locked.delete_objects(
        Bucket="locked",
        Delete={"Objects": [{"Key": "k", "VersionId": version}, {"Key": "other"}]},
        BypassGovernanceRetention=True,
    )
    assert [each["Code"] for each in batch["Errors"]] == ["AccessDenied"]
    assert [each["Key"] for each in batch["Deleted"]] == ["other"]
    shorter = retention("COMPLIANCE", SOON - timedelta(days=1))
    assert refusal(locked.put_object_retention, **this, Retention=shorter) == denied
    locked.put_object_retention(**this, Retention=retention("COMPLIANCE", LATER))
    got = locked.get_object_retention(**this)["Retention"]
    assert got == retention("COMPLIANCE", LATER)


def test_governance_gives_way_to_a_bypass(locked: Any) -> None:
    version = locked.put_object(Bucket="locked", Key="k", Body=b"1")["VersionId"]
    this = {"Bucket": "locked", "Key": "k", "VersionId": version}
    assert refusal(locked.get_object_retention, **this) == (404, "NoSuchObjectLockConfiguration")
    locked.put_object_retention(**this, Retention=retention("GOVERNANCE", LATER))
    shorter = retention("GOVERNANCE", SOON)
    assert refusal(locked.put_object_retention, **this, Retention=shorter) == (403, "AccessDenied")
    locked.put_object_retention(**this, Retention=shorter, BypassGovernanceRetention=True)
    assert refusal(locked.delete_object, **this) == (403, "AccessDenied")
    locked.delete_object(**this, BypassGovernanceRetention=True)


def test_a_legal_hold_holds_until_it_is_taken_off(locked: Any) -> None:
    put = locked.put_object(Bucket="locked", Key="k", Body=b"1", ObjectLockLegalHoldStatus="ON")
    this = {"Bucket": "locked", "Key": "k", "VersionId": put["VersionId"]}
    assert locked.get_object_legal_hold(**this)["LegalHold"] == {"Status": "ON"}
    denied = (403, "AccessDenied")
    assert refusal(locked.delete_object, **this, BypassGovernanceRetention=True) == denied
    locked.put_object_legal_hold(**this, LegalHold={"Status": "OFF"})
    assert locked.head_object(**this)["ObjectLockLegalHoldStatus"] == "OFF"
    locked.delete_object(**this)


def test_the_default_holds_for_puts_copies_and_uploads_but_a_lock_is_not_copied(locked: Any) -> None:
    locked.put_object(Bucket="locked", Key="held", Body=b"1", ObjectLockLegalHoldStatus="ON")
    locked.put_object_lock_configuration(
        Bucket="locked", ObjectLockConfiguration=rule(Mode="GOVERNANCE", Days=1)
    )
    locked.put_object(Bucket="locked", Key="put", Body=b"1")
    locked.copy_object(Bucket="locked", Key="copy", CopySource="locked/held")
    for key in ("put", "copy"):
        head = locked.head_object(Bucket="locked", Key=key)
        left = head["ObjectLockRetainUntilDate"] - datetime.now(UTC)
        assert timedelta(hours=23) < left <= timedelta(days=1)
        assert "ObjectLockLegalHoldStatus" not in head


def test_a_lock_needs_a_bucket_with_object_lock_and_an_end_in_the_future(locked: Any) -> None:
    hold = {"Key": "k", "Body": b"1", "ObjectLockLegalHoldStatus": "ON"}
    assert refusal(locked.put_object, Bucket="bkt", **hold) == (400, "InvalidRequest")
    locked.put_object(Bucket="bkt", Key="k", Body=b"1")
    assert refusal(locked.put_object_legal_hold, Bucket="bkt", Key="k", LegalHold={"Status": "ON"}) == (
        400,
        "InvalidRequest",
    )
    past = {"ObjectLockMode": "GOVERNANCE", "ObjectLockRetainUntilDate": SOON - timedelta(days=9)}
    for lock in (past, {"ObjectLockMode": "GOVERNANCE"}, {"ObjectLockRetainUntilDate": SOON}):
        assert refusal(locked.put_object, Bucket="locked", Key="k", **lock) == (400, "InvalidArgument")
