"""Annotations of object versions: kept, listed, copied, removed, bounded, and guarded like the object."""

from __future__ import annotations

import base64
import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.exceptions import ClientError

from cordwood.engine import Store
from tests.server.conftest import BOB, LiveServer


def note(s3: Any, name: str, text: str = "text", key: str = "k", **more: Any) -> Any:
    return s3.put_object_annotation(
        Bucket="bkt", Key=key, AnnotationName=name, AnnotationPayload=text.encode(), **more
    )


def read(s3: Any, name: str, key: str = "k", **more: Any) -> str:
    answer = s3.get_object_annotation(Bucket="bkt", Key=key, AnnotationName=name, **more)
    return str(answer["AnnotationPayload"].read().decode())


def names(s3: Any, key: str = "k", **more: Any) -> list[str]:
    answer = s3.list_object_annotations(Bucket="bkt", Key=key, **more)
    return [each["AnnotationName"] for each in answer.get("Annotations", [])]


def refused(call: Any, *arguments: Any, **named: Any) -> str:
    with pytest.raises(ClientError) as caught:
        call(*arguments, **named)
    return str(caught.value.response["Error"]["Code"])


@pytest.fixture
def s3(s3: Any) -> Any:
    s3.put_object(Bucket="bkt", Key="k", Body=b"body", Tagging="a=b")
    return s3


def test_an_annotation_comes_back_and_leaves_the_object_as_it_was(s3: Any) -> None:
    before = s3.head_object(Bucket="bkt", Key="k")
    put = note(s3, "summary", "grüße", ChecksumAlgorithm="SHA256")
    assert (put["Key"], put["AnnotationName"]) == ("k", "summary")
    got = s3.get_object_annotation(Bucket="bkt", Key="k", AnnotationName="summary", ChecksumMode="ENABLED")
    assert got["AnnotationPayload"].read() == "grüße".encode() and got["ETag"] == put["ETag"]
    assert got["ChecksumSHA256"] == put["ChecksumSHA256"] and got["ContentLength"] == len("grüße".encode())
    after = s3.head_object(Bucket="bkt", Key="k")
    for field in ("ETag", "LastModified", "ContentLength", "TagCount"):
        assert after[field] == before[field]
    (entry,) = s3.list_object_annotations(Bucket="bkt", Key="k")["Annotations"]
    assert (entry["Size"], entry["ChecksumAlgorithm"]) == (len("grüße".encode()), ["SHA256"])
    note(s3, "summary", "new")
    assert read(s3, "summary") == "new"
    s3.delete_object_annotation(Bucket="bkt", Key="k", AnnotationName="summary")
    assert names(s3) == []
    for call in (s3.get_object_annotation, s3.delete_object_annotation):
        assert refused(call, Bucket="bkt", Key="k", AnnotationName="summary") == "NoSuchAnnotation"
    assert refused(note, s3, "a", key="none") == "NoSuchKey"


def test_annotations_are_listed_by_prefix_and_in_pages(s3: Any) -> None:
    wanted = sorted([f"n{number}" for number in range(12)] + ["ä", "😀", "z/1", "z/2"], key=str.encode)
    for name in wanted:
        note(s3, name, name)
    assert names(s3) == wanted and names(s3, AnnotationPrefix="z/") == ["z/1", "z/2"]
    seen: list[str] = []
    token: dict[str, str] = {}
    while True:
        page = s3.list_object_annotations(Bucket="bkt", Key="k", MaxAnnotationResults=5, **token)
        assert page["AnnotationCount"] == len(page["Annotations"]) <= 5
        seen += [each["AnnotationName"] for each in page["Annotations"]]
        if "NextContinuationToken" not in page:
            break
        token = {"ContinuationToken": page["NextContinuationToken"]}
    assert seen == wanted
    assert refused(names, s3, MaxAnnotationResults=1001) == "InvalidArgument"
    assert refused(names, s3, ContinuationToken="x") == "InvalidArgument"
    assert refused(names, s3, AnnotationPrefix="\x01") == "InvalidPrefix"


def test_an_annotation_that_is_missing_is_named(server: LiveServer, s3: Any) -> None:
    missing = server.request("GET", "/bkt/k?annotation&annotationName=summary")
    assert (missing.code, missing.field("AnnotationName")) == ("NoSuchAnnotation", "summary")


def test_the_documents_of_annotations_are_named_as_aws_names_them(server: LiveServer, s3: Any) -> None:
    put = server.request("PUT", "/bkt/k?annotation&annotationName=a", b"text")
    assert b"<PutObjectAnnotationOutput " in put.body
    listed = server.request("GET", "/bkt/k?annotation").body
    assert b"<ListObjectAnnotationsOutput " in listed and b"<MaxAnnotationResults>" not in listed
    listed = server.request("GET", "/bkt/k?annotation&max-annotation-results=5").body
    assert b"<MaxAnnotationResults>5</MaxAnnotationResults>" in listed


@pytest.mark.parametrize(
    ("name", "code"),
    [("x" * 513, "AnnotationNameTooLong"), ("ä" * 257, "AnnotationNameTooLong"), ("awsome", "InvalidAnnotationName"),
     ("S3x", "InvalidAnnotationName"), ("a\x01", "InvalidAnnotationName"), ("", "UserAnnotationNameMustBeSpecified")],
)  # fmt: skip
def test_a_name_that_is_none_is_refused(s3: Any, name: str, code: str) -> None:
    assert refused(note, s3, name) == code


def test_a_payload_is_text_of_one_byte_to_one_mebibyte(server: LiveServer, s3: Any) -> None:
    note(s3, "large", "x" * (1 << 20))
    assert read(s3, "large") == "x" * (1 << 20)
    assert refused(note, s3, "a", "x" * ((1 << 20) + 1)) == "EntityTooLarge"
    answer = server.request("PUT", "/bkt/k?annotation&annotationName=a", b"\xff")
    assert (answer.status, answer.code) == (415, "UnsupportedMediaType")
    assert server.request("PUT", "/bkt/k?annotation&annotationName=a", b"").code == "InvalidRequest"
    md5 = {"content-md5": base64.b64encode(b"0" * 16).decode()}
    assert server.request("PUT", "/bkt/k?annotation&annotationName=a", b"x", md5).code == "BadDigest"
    note(s3, "second", "x" * (1 << 20))
    assert refused(note, s3, "third", "x") == "AnnotationLimitExceeded"
    note(s3, "second", "x")
    note(s3, "third", "x")
    assert names(s3) == ["large", "second", "third"]


def test_there_are_at_most_a_thousand(s3: Any, store: Store) -> None:
    full = {
        f"annotation:n{number}": {"data": b"x", "md5": "", "modified_ms": 0, "checksums": {}}
        for number in range(1000)
    }
    store.update_attrs("bkt", "k", full)
    assert refused(note, s3, "one-more") == "AnnotationLimitExceeded"
    note(s3, "n7", "changed")
    assert len(names(s3)) == 1000


def test_annotations_that_are_put_at_once_are_all_kept(server: LiveServer, s3: Any) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: note(server.client(), f"n{number:02}"), range(16)))
    assert names(s3) == [f"n{number:02}" for number in range(16)]


def test_a_condition_on_the_object_is_held(s3: Any) -> None:
    etag = s3.head_object(Bucket="bkt", Key="k")["ETag"]
    assert refused(note, s3, "a", ObjectIfMatch='"0"') == "PreconditionFailed"
    note(s3, "a", ObjectIfMatch=etag)
    about = {"Bucket": "bkt", "Key": "k", "AnnotationName": "a"}
    assert refused(s3.delete_object_annotation, **about, ObjectIfMatch='"0"') == "PreconditionFailed"
    s3.delete_object_annotation(**about, ObjectIfMatch=etag)


def test_annotations_belong_to_a_version_and_go_with_it(s3: Any) -> None:
    s3.put_bucket_versioning(Bucket="bkt", VersioningConfiguration={"Status": "Enabled"})
    old = s3.put_object(Bucket="bkt", Key="k", Body=b"1")["VersionId"]
    note(s3, "a", "of the old one")
    new = s3.put_object(Bucket="bkt", Key="k", Body=b"2")["VersionId"]
    assert names(s3) == [] and read(s3, "a", VersionId=old) == "of the old one"
    answer = note(s3, "b", VersionId=old)
    assert answer["ObjectVersionId"] == old and names(s3, VersionId=old) == ["a", "b"]
    assert s3.list_object_annotations(Bucket="bkt", Key="k")["ObjectVersionId"] == new
    s3.delete_object(Bucket="bkt", Key="k", VersionId=old)
    assert refused(names, s3, VersionId=old) == "NoSuchVersion"


def test_a_copy_takes_annotations_along_unless_told_not_to(s3: Any) -> None:
    note(s3, "a")
    s3.copy_object(Bucket="bkt", Key="with", CopySource="bkt/k")
    s3.copy_object(Bucket="bkt", Key="without", CopySource="bkt/k", AnnotationDirective="EXCLUDE")
    s3.rename_object(Bucket="bkt", Key="moved", RenameSource="k")
    assert (names(s3, "with"), names(s3, "without"), names(s3, "moved")) == (["a"], [], ["a"])


def test_each_operation_needs_its_permission_and_a_copy_those_of_both_sides(two_owners: LiveServer) -> None:
    alice, bob = two_owners.client(), two_owners.client(BOB)
    alice.create_bucket(Bucket="bkt")
    alice.put_object(Bucket="bkt", Key="k", Body=b"x")
    note(alice, "a")
    about = {"Bucket": "bkt", "Key": "k", "AnnotationName": "a"}
    calls = {
        "PutObjectAnnotation": lambda: note(bob, "b"),
        "GetObjectAnnotation": lambda: read(bob, "a"),
        "ListObjectAnnotations": lambda: names(bob),
        "DeleteObjectAnnotation": lambda: bob.delete_object_annotation(**about),
    }

    def permit(*actions: str) -> None:
        statement = {
            "Effect": "Allow",
            "Principal": {"AWS": BOB.owner_id},
            "Action": [f"s3:{action}" for action in actions],
            "Resource": "arn:aws:s3:::bkt/*",
        }
        policy = {"Version": "2012-10-17", "Statement": [statement]}
        alice.put_bucket_policy(Bucket="bkt", Policy=json.dumps(policy))

    copy = {"Bucket": "bkt", "Key": "copy", "CopySource": "bkt/k"}
    permit("GetObject", "PutObject")
    for call in calls.values():
        assert refused(call) == "AccessDenied"
    assert refused(bob.copy_object, **copy) == "AccessDenied"
    bob.copy_object(**copy, AnnotationDirective="EXCLUDE")
    permit("GetObject", "PutObject", "GetObjectAnnotation")
    assert refused(bob.copy_object, **copy) == "AccessDenied"
    permit("GetObject", "PutObject", "GetObjectAnnotation", "PutObjectAnnotation")
    bob.copy_object(**copy)
    for action, call in calls.items():
        permit(action)
        call()


def test_a_locked_version_keeps_its_annotations_as_they_are(server: LiveServer) -> None:
    s3 = server.client()
    s3.create_bucket(Bucket="bkt", ObjectLockEnabledForBucket=True)
    until = datetime.fromtimestamp(time.time() + 3600, UTC)
    s3.put_object(
        Bucket="bkt", Key="k", Body=b"x", ObjectLockMode="GOVERNANCE", ObjectLockRetainUntilDate=until
    )
    note(s3, "a")
    assert refused(note, s3, "a", "other") == "AccessDenied"
    about = {"Bucket": "bkt", "Key": "k", "AnnotationName": "a"}
    assert refused(s3.delete_object_annotation, **about) == "AccessDenied"
    bypass = {"x-amz-bypass-governance-retention": "true"}
    assert server.request("DELETE", "/bkt/k?annotation&annotationName=a", b"", bypass).status == 204
    s3.put_object_legal_hold(Bucket="bkt", Key="k", LegalHold={"Status": "ON"})
    note(s3, "b")
    assert server.request("DELETE", "/bkt/k?annotation&annotationName=b", b"", bypass).code == "AccessDenied"


def test_an_encrypted_object_has_no_annotations_and_a_copy_that_would_be_none(s3: Any) -> None:
    s3.put_object(Bucket="bkt", Key="secret", Body=b"x" * 100_000, ServerSideEncryption="AES256")
    assert refused(note, s3, "a", key="secret") == "InvalidRequest"
    note(s3, "a")
    copy = {"Bucket": "bkt", "Key": "copy", "CopySource": "bkt/k", "ServerSideEncryption": "AES256"}
    assert refused(s3.copy_object, **copy) == "InvalidRequest"
    s3.copy_object(**copy, AnnotationDirective="EXCLUDE")
    assert names(s3, "copy") == []
    s3.rename_object(Bucket="bkt", Key="moved", RenameSource="secret")
    moved = s3.get_object(Bucket="bkt", Key="moved")
    assert moved["Body"].read() == b"x" * 100_000 and moved["ServerSideEncryption"] == "AES256"
