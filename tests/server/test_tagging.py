"""Tags: of objects by header and document, with copies and versions; of buckets; their limits."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.server.conftest import LiveServer


def tags(**values: str) -> dict[str, list[dict[str, str]]]:
    return {"TagSet": [{"Key": key, "Value": value} for key, value in values.items()]}


def test_tags_come_with_the_object_and_change_without_a_new_version(s3: Any) -> None:
    s3.put_bucket_versioning(Bucket="bkt", VersioningConfiguration={"Status": "Enabled"})
    put = s3.put_object(Bucket="bkt", Key="k", Body=b"1", Tagging="b=2&a=x%20y&c")
    before = s3.head_object(Bucket="bkt", Key="k")
    got = s3.get_object_tagging(Bucket="bkt", Key="k")
    assert got["VersionId"] == put["VersionId"]
    assert got["TagSet"] == tags(a="x y", b="2", c="")["TagSet"]
    assert s3.get_object(Bucket="bkt", Key="k")["TagCount"] == 3
    s3.put_object_tagging(Bucket="bkt", Key="k", Tagging=tags(only="this"))
    assert s3.get_object_tagging(Bucket="bkt", Key="k")["TagSet"] == tags(only="this")["TagSet"]
    after = s3.head_object(Bucket="bkt", Key="k")
    assert (after["LastModified"], after["VersionId"]) == (before["LastModified"], before["VersionId"])
    s3.delete_object_tagging(Bucket="bkt", Key="k")
    assert s3.get_object_tagging(Bucket="bkt", Key="k")["TagSet"] == []
    assert "TagCount" not in s3.get_object(Bucket="bkt", Key="k")


def test_tags_belong_to_one_version(s3: Any) -> None:
    s3.put_bucket_versioning(Bucket="bkt", VersioningConfiguration={"Status": "Enabled"})
    old = s3.put_object(Bucket="bkt", Key="k", Body=b"1", Tagging="a=old")["VersionId"]
    s3.put_object(Bucket="bkt", Key="k", Body=b"2")
    s3.put_object_tagging(Bucket="bkt", Key="k", VersionId=old, Tagging=tags(a="changed"))
    assert s3.get_object_tagging(Bucket="bkt", Key="k")["TagSet"] == []
    assert s3.get_object_tagging(Bucket="bkt", Key="k", VersionId=old)["TagSet"][0]["Value"] == "changed"


def test_a_copy_takes_the_tags_or_replaces_them(s3: Any) -> None:
    s3.put_object(Bucket="bkt", Key="k", Body=b"1", Tagging="a=1")
    s3.copy_object(Bucket="bkt", Key="same", CopySource="bkt/k")
    s3.copy_object(Bucket="bkt", Key="other", CopySource="bkt/k", TaggingDirective="REPLACE", Tagging="b=2")
    s3.copy_object(Bucket="bkt", Key="none", CopySource="bkt/k", TaggingDirective="REPLACE")
    for key, expected in (("same", tags(a="1")), ("other", tags(b="2")), ("none", tags())):
        assert s3.get_object_tagging(Bucket="bkt", Key=key)["TagSet"] == expected["TagSet"]


def test_a_multipart_upload_gives_its_tags_to_the_object(s3: Any) -> None:
    upload = s3.create_multipart_upload(Bucket="bkt", Key="m", Tagging="a=1")["UploadId"]
    part = s3.upload_part(Bucket="bkt", Key="m", UploadId=upload, PartNumber=1, Body=b"x")
    s3.complete_multipart_upload(
        Bucket="bkt",
        Key="m",
        UploadId=upload,
        MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]},
    )
    assert s3.get_object_tagging(Bucket="bkt", Key="m")["TagSet"] == tags(a="1")["TagSet"]


@pytest.mark.parametrize(
    "wanted",
    [
        tags(**{f"k{number}": "v" for number in range(11)}),
        tags(**{"k" * 129: "v"}),
        tags(k="v" * 257),
        tags(**{"aws:mine": "v"}),
        tags(k="<&>"),
        {"TagSet": [{"Key": "a", "Value": "1"}, {"Key": "a", "Value": "2"}]},
    ],
)
def test_tags_beyond_the_limits_are_refused_and_change_nothing(s3: Any, wanted: Any) -> None:
    s3.put_object(Bucket="bkt", Key="k", Body=b"1", Tagging="a=1")
    with pytest.raises(ClientError) as refused:
        s3.put_object_tagging(Bucket="bkt", Key="k", Tagging=wanted)
    assert refused.value.response["Error"]["Code"] == "InvalidTag"
    assert s3.get_object_tagging(Bucket="bkt", Key="k")["TagSet"] == tags(a="1")["TagSet"]


def test_a_bucket_has_tags_of_its_own(s3: Any) -> None:
    with pytest.raises(ClientError) as unset:
        s3.get_bucket_tagging(Bucket="bkt")
    assert unset.value.response["Error"]["Code"] == "NoSuchTagSet"
    s3.put_bucket_tagging(Bucket="bkt", Tagging=tags(project="x"))
    assert s3.get_bucket_tagging(Bucket="bkt")["TagSet"] == tags(project="x")["TagSet"]
    s3.delete_bucket_tagging(Bucket="bkt")
    with pytest.raises(ClientError):
        s3.get_bucket_tagging(Bucket="bkt")


def test_a_header_that_names_a_tag_twice_is_an_invalid_argument(server: LiveServer, s3: Any) -> None:
    answer = server.request("PUT", "/bkt/k", b"", {"x-amz-tagging": "a=1&b=2&a=3"})
    assert (answer.status, answer.code) == (400, "InvalidArgument")
    assert b"<ArgumentName>x-amz-tagging</ArgumentName>" in answer.body
