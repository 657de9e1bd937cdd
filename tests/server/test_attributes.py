"""GetObjectAttributes: what was asked for, and parts page by page."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError

ALL = ["ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"]


def test_only_what_was_asked_for_is_answered(s3: Any) -> None:
    put = s3.put_object(Bucket="bkt", Key="k", Body=b"12345", ChecksumAlgorithm="SHA256")
    got = s3.get_object_attributes(Bucket="bkt", Key="k", ObjectAttributes=ALL)
    assert (got["ETag"], got["ObjectSize"], got["StorageClass"]) == (put["ETag"].strip('"'), 5, "STANDARD")
    assert got["Checksum"] == {"ChecksumSHA256": put["ChecksumSHA256"], "ChecksumType": "FULL_OBJECT"}
    assert "ObjectParts" not in got
    some = s3.get_object_attributes(Bucket="bkt", Key="k", ObjectAttributes=["ObjectSize"])
    assert "ETag" not in some and some["ObjectSize"] == 5
    with pytest.raises(ClientError) as refused:
        s3.get_object_attributes(Bucket="bkt", Key="k", ObjectAttributes=["Colour"])
    assert refused.value.response["Error"]["Code"] == "InvalidArgument"


def test_parts_come_page_by_page_with_their_checksums(s3: Any) -> None:
    upload = s3.create_multipart_upload(Bucket="bkt", Key="m", ChecksumAlgorithm="SHA256")["UploadId"]
    parts = []
    for number, size in ((1, 5 << 20), (2, 5 << 20), (3, 7)):
        sent = s3.upload_part(
            Bucket="bkt",
            Key="m",
            UploadId=upload,
            PartNumber=number,
            Body=bytes(size),
            ChecksumAlgorithm="SHA256",
        )
        parts.append({"PartNumber": number, "ETag": sent["ETag"], "ChecksumSHA256": sent["ChecksumSHA256"]})
    s3.complete_multipart_upload(Bucket="bkt", Key="m", UploadId=upload, MultipartUpload={"Parts": parts})
    first = s3.get_object_attributes(Bucket="bkt", Key="m", ObjectAttributes=ALL, MaxParts=2)["ObjectParts"]
    assert (first["TotalPartsCount"], first["IsTruncated"], first["NextPartNumberMarker"]) == (3, True, 2)
    assert first["Parts"][1] == {
        "PartNumber": 2,
        "Size": 5 << 20,
        "ChecksumSHA256": parts[1]["ChecksumSHA256"],
    }
    rest = s3.get_object_attributes(Bucket="bkt", Key="m", ObjectAttributes=ALL, PartNumberMarker=2)
    assert [part["Size"] for part in rest["ObjectParts"]["Parts"]] == [7]
    assert rest["ObjectParts"]["IsTruncated"] is False
