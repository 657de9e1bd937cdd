"""Versioning over the wire: ids, markers, listings, suspension."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.server.conftest import LiveServer


def enable(s3: Any, status: str = "Enabled") -> None:
    s3.put_bucket_versioning(Bucket="bkt", VersioningConfiguration={"Status": status})


def code(error: pytest.ExceptionInfo[ClientError]) -> tuple[int, str]:
    response = error.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


def test_versioning_is_off_then_on_then_suspended(s3: Any) -> None:
    assert "Status" not in s3.get_bucket_versioning(Bucket="bkt")
    for status in ("Enabled", "Suspended", "Enabled"):
        enable(s3, status)
        assert s3.get_bucket_versioning(Bucket="bkt")["Status"] == status
    with pytest.raises(ClientError) as refused:
        s3.put_bucket_versioning(Bucket="bkt", VersioningConfiguration={})
    assert code(refused) == (400, "IllegalVersioningConfigurationException")
    with pytest.raises(ClientError) as refused:
        enable(s3, "On")
    assert code(refused) == (400, "MalformedXML")


def test_each_version_is_read_deleted_and_copied_by_its_id(s3: Any) -> None:
    enable(s3)
    ids = [s3.put_object(Bucket="bkt", Key="k", Body=body)["VersionId"] for body in (b"1", b"2")]
    got = s3.get_object(Bucket="bkt", Key="k", VersionId=ids[0])
    assert got["Body"].read() == b"1" and got["VersionId"] == ids[0]
    assert s3.head_object(Bucket="bkt", Key="k")["VersionId"] == ids[1]
    copy = s3.copy_object(Bucket="bkt", Key="c", CopySource=f"bkt/k?versionId={ids[0]}")
    assert copy["CopySourceVersionId"] == ids[0] and copy["VersionId"] not in ids
    assert s3.delete_object(Bucket="bkt", Key="k", VersionId=ids[1])["VersionId"] == ids[1]
    assert s3.get_object(Bucket="bkt", Key="k")["Body"].read() == b"1"
    with pytest.raises(ClientError) as gone:
        s3.get_object(Bucket="bkt", Key="k", VersionId=ids[1])
    assert code(gone) == (404, "NoSuchVersion")


def test_a_part_is_copied_from_the_version_that_is_named_or_current(s3: Any) -> None:
    enable(s3)
    ids = [s3.put_object(Bucket="bkt", Key="k", Body=body)["VersionId"] for body in (b"1", b"2")]
    upload = s3.create_multipart_upload(Bucket="bkt", Key="m")["UploadId"]
    part = {"Bucket": "bkt", "Key": "m", "UploadId": upload, "PartNumber": 1}
    for source, expected in (("bkt/k", ids[1]), (f"bkt/k?versionId={ids[0]}", ids[0])):
        assert s3.upload_part_copy(**part, CopySource=source)["CopySourceVersionId"] == expected


def test_a_delete_marker_is_404_by_key_405_by_version_and_can_be_taken_away(
    server: LiveServer, s3: Any
) -> None:
    enable(s3)
    s3.put_object(Bucket="bkt", Key="k", Body=b"1")
    deleted = s3.delete_object(Bucket="bkt", Key="k")
    marker = deleted["VersionId"]
    assert deleted["DeleteMarker"] is True
    for path, status in (("/bkt/k", 404), (f"/bkt/k?versionId={marker}", 405)):
        for method in ("GET", "HEAD"):
            answer = server.request(method, path)
            assert answer.status == status
            assert answer.headers["x-amz-delete-marker"] == "true"
            assert answer.headers["x-amz-version-id"] == marker
    again = s3.delete_object(Bucket="bkt", Key="k", VersionId=marker)
    assert again["DeleteMarker"] is True and again["VersionId"] == marker
    assert s3.get_object(Bucket="bkt", Key="k")["Body"].read() == b"1"


def test_a_suspended_bucket_writes_null_versions_over_each_other(s3: Any) -> None:
    s3.put_object(Bucket="bkt", Key="k", Body=b"before")
    enable(s3)
    kept = s3.put_object(Bucket="bkt", Key="k", Body=b"kept")["VersionId"]
    enable(s3, "Suspended")
    for body in (b"1", b"2"):
        assert "VersionId" not in s3.put_object(Bucket="bkt", Key="k", Body=body)
    listed = s3.list_object_versions(Bucket="bkt")["Versions"]
    assert [(each["VersionId"], each["IsLatest"]) for each in listed] == [("null", True), (kept, False)]
    assert s3.get_object(Bucket="bkt", Key="k", VersionId="null")["Body"].read() == b"2"
    assert s3.delete_object(Bucket="bkt", Key="k")["VersionId"] == "null"
    assert [m["VersionId"] for m in s3.list_object_versions(Bucket="bkt")["DeleteMarkers"]] == ["null"]


def test_versions_are_listed_newest_first_page_by_page_with_delimiter(s3: Any) -> None:
    enable(s3)
    for key in ("a/1", "a/2", "b", "c"):
        for body in (b"1", b"2"):
            s3.put_object(Bucket="bkt", Key=key, Body=body)
    s3.delete_object(Bucket="bkt", Key="b")
    found = []
    markers: dict[str, str] = {}
    while True:
        page = s3.list_object_versions(Bucket="bkt", Delimiter="/", MaxKeys=2, **markers)
        found += [prefix["Prefix"] for prefix in page.get("CommonPrefixes", [])]
        found += [each["Key"] + "!" for each in page.get("DeleteMarkers", [])]
        found += [each["Key"] for each in page.get("Versions", [])]
        if not page["IsTruncated"]:
            break
        markers = {"KeyMarker": page["NextKeyMarker"]}
        if "NextVersionIdMarker" in page:
            markers["VersionIdMarker"] = page["NextVersionIdMarker"]
    assert found == ["a/", "b!", "b", "b", "c", "c"]
    inside = s3.list_object_versions(Bucket="bkt", Prefix="a/")["Versions"]
    assert [(each["Key"], each["IsLatest"]) for each in inside] == [
        ("a/1", True),
        ("a/1", False),
        ("a/2", True),
        ("a/2", False),
    ]


def test_a_conditional_delete_takes_a_marker_for_something_unless_it_asks_for_anything(s3: Any) -> None:
    enable(s3)
    here = {"Bucket": "bkt", "Key": "k"}
    put = s3.put_object(**here, Body=b"1")
    s3.delete_object(**here, IfMatch=put["ETag"])
    for condition in ({"IfMatch": put["ETag"]}, {"IfMatchSize": 1}):
        with pytest.raises(ClientError) as refused:
            s3.delete_object(**here, **condition)
        assert code(refused) == (412, "PreconditionFailed")
    batch = s3.delete_objects(Bucket="bkt", Delete={"Objects": [{"Key": "k", "ETag": "other"}]})
    assert [each["Code"] for each in batch["Errors"]] == ["PreconditionFailed"]
    s3.delete_object(**here, IfMatch="*")
    with pytest.raises(ClientError) as refused:
        s3.delete_object(**here, VersionId=put["VersionId"], IfMatch="other")
    assert code(refused) == (412, "PreconditionFailed")
    s3.delete_object(**here, VersionId=put["VersionId"], IfMatch=put["ETag"])
    s3.delete_object(**here, VersionId=put["VersionId"], IfMatch="other")


def test_a_batch_deletes_versions_and_makes_markers(s3: Any) -> None:
    enable(s3)
    version = s3.put_object(Bucket="bkt", Key="a", Body=b"1")["VersionId"]
    s3.put_object(Bucket="bkt", Key="b", Body=b"1")
    deleted = s3.delete_objects(
        Bucket="bkt", Delete={"Objects": [{"Key": "a", "VersionId": version}, {"Key": "b"}]}
    )["Deleted"]
    assert deleted[0] == {"Key": "a", "VersionId": version}
    assert deleted[1]["DeleteMarker"] is True and deleted[1]["DeleteMarkerVersionId"]
    assert [each["Key"] for each in s3.list_object_versions(Bucket="bkt")["Versions"]] == ["b"]


def test_a_text_that_never_was_a_version_id_is_told_from_a_version_that_is_gone(s3: Any) -> None:
    enable(s3)
    version_id = s3.put_object(Bucket="bkt", Key="k", Body=b"")["VersionId"]
    gone = "0" * len(version_id)
    for call, arguments in (
        (s3.get_object, {}),
        (s3.head_object, {}),
        (s3.delete_object, {}),
        (s3.get_object_tagging, {}),
        (s3.copy_object, {"CopySource": "bkt/k?versionId=foo"}),
    ):
        named = {} if "CopySource" in arguments else {"VersionId": "foo"}
        with pytest.raises(ClientError) as refused:
            call(Bucket="bkt", Key="k", **named, **arguments)
        assert code(refused) in ((400, "InvalidArgument"), (400, "400")), call
    with pytest.raises(ClientError) as refused:
        s3.get_object(Bucket="bkt", Key="k", VersionId=gone)
    assert code(refused) == (404, "NoSuchVersion")
    s3.delete_object(Bucket="bkt", Key="k", VersionId=gone)
    batch = [{"Key": "k", "VersionId": name} for name in ("foo", gone)]
    answer = s3.delete_objects(Bucket="bkt", Delete={"Objects": batch})
    assert [error["Code"] for error in answer["Errors"]] == ["NoSuchVersion"]
    assert [entry["VersionId"] for entry in answer["Deleted"]] == [gone]


def test_nothing_needs_to_be_restored(s3: Any) -> None:
    s3.put_object(Bucket="bkt", Key="k", Body=b"", StorageClass="STANDARD_IA")
    for arguments in ({}, {"RestoreRequest": {"Days": 1}}):
        with pytest.raises(ClientError) as refused:
            s3.restore_object(Bucket="bkt", Key="k", **arguments)
        assert code(refused) == (403, "InvalidObjectState")
    with pytest.raises(ClientError) as refused:
        s3.restore_object(Bucket="bkt", Key="none")
    assert code(refused) == (404, "NoSuchKey")
