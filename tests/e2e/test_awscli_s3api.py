"""`aws s3api`: the operations as a person types them, with odd arguments, and the errors by AWS's codes.

What concerns encryption, websites, notifications and the like is typed where those are tested.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import MIB, AwsShell

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

J = json.dumps


class Api:
    """`aws s3api … --bucket BUCKET`."""

    def __init__(self, aws: AwsShell, bucket: str) -> None:
        self._aws = aws
        self.bucket = bucket

    def __call__(self, operation: str, *arguments: str) -> Any:
        return self._aws("s3api", operation, "--bucket", self.bucket, *arguments)

    def error(self, operation: str, *arguments: str) -> str:
        return self._aws.error("s3api", operation, "--bucket", self.bucket, *arguments)


@pytest.fixture
def api(aws: AwsShell, request: pytest.FixtureRequest) -> Api:
    made = Api(aws, f"api-{request.node.name[5:50].replace('_', '-').strip('-')}")
    made("create-bucket", "--object-ownership", "ObjectWriter")
    return made


@pytest.fixture
def small(tmp_path: Path) -> str:
    (tmp_path / "small").write_text("hello")
    return str(tmp_path / "small")


def test_objects_are_kept_on_their_conditions(api: Api, small: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    k = ("--key", "k")
    put = api("put-object", *k, "--body", small, "--metadata", "m=1", "--checksum-algorithm", "SHA256")
    assert put["ETag"] == '"5d41402abc4b2a76b9719d911017c592"' and put["ChecksumType"] == "FULL_OBJECT"
    refused = {
        ("--if-none-match", "*"): "PreconditionFailed",
        ("--if-match", '"x"'): "PreconditionFailed",
        ("--content-md5", "AAAAAAAAAAAAAAAAAAAAAA=="): "BadDigest",
        ("--content-md5", "zzz"): "InvalidDigest",
        ("--checksum-crc32", "AAAAAA=="): "BadDigest",
        ("--storage-class", "GLASS"): "InvalidStorageClass",
        ("--acl", "public"): "InvalidArgument",
        ("--acl", "private", "--grant-read", "id=bob"): "InvalidRequest",
        ("--grant-read", "id=nobody"): "InvalidArgument",
        ("--grant-read", "emailaddress=a@b.example"): "UnresolvableGrantByEmailAddress",
        ("--tagging", "a=1&a=2"): "InvalidArgument",
        ("--tagging", "aws:a=1"): "InvalidTag",
        ("--metadata", J({"m": "x" * 2100})): "MetadataTooLarge",
        ("--website-redirect-location", "elsewhere"): "InvalidRedirectLocation",
        ("--object-lock-legal-hold-status", "ON"): "InvalidRequest",
        ("--expected-bucket-owner", "bob"): "AccessDenied",
    }
    for arguments, code in refused.items():
        assert api.error("put-object", *k, "--body", small, *arguments) == code, arguments
    assert api.error("put-object", "--key", "x" * 1025, "--body", small) == "KeyTooLongError"

    refused = {
        ("--if-match", '"x"'): "PreconditionFailed",
        ("--if-none-match", put["ETag"]): "304",
        ("--if-modified-since", "2100-01-01"): "304",
        ("--range", "bytes=10-"): "InvalidRange",
        ("--part-number", "1", "--range", "bytes=0-0"): "InvalidRequest",
        ("--part-number", "0"): "InvalidArgument",
        ("--version-id", "nonsense"): "InvalidArgument",
        ("--version-id", "0123456789abcdef"): "NoSuchVersion",
    }
    for arguments, code in refused.items():
        assert api.error("get-object", *k, out, *arguments) == code, arguments
    assert api.error("get-object", "--key", "none", out) == "NoSuchKey"
    part = api("get-object", *k, out, "--range", "bytes=-3")
    assert (part["ContentRange"], Path(out).read_text()) == ("bytes 2-4/5", "llo")
    other = api(
        "get-object", *k, out, "--response-content-type", "a/b", "--response-cache-control", "no-store"
    )
    assert (other["ContentType"], other["CacheControl"]) == ("a/b", "no-store")
    assert "ChecksumSHA256" in api("head-object", *k, "--checksum-mode", "ENABLED")
    told = api("get-object-attributes", *k, "--object-attributes", "ETag", "ObjectSize", "Checksum")
    assert (told["ETag"], told["ObjectSize"]) == (put["ETag"].strip('"'), 5)
    assert api.error("get-object-attributes", *k, "--object-attributes", "Colour") == "InvalidArgument"

    assert api.error("delete-object", *k, "--if-match", '"x"') == "PreconditionFailed"
    assert api.error("delete-object", *k, "--version-id", "nonsense") == "InvalidArgument"
    api("delete-object", *k, "--if-match", put["ETag"])
    assert api("delete-object", "--key", "never-was") is None
    assert api.error("restore-object", "--key", "never-was") == "NoSuchKey"


def test_copies_take_what_they_are_told_to_take(api: Api, small: str) -> None:
    api("put-object", "--key", "a", "--body", small, "--tagging", "t=1", "--metadata", "m=1")
    source = ("--copy-source", f"{api.bucket}/a")
    api("copy-object", "--key", "b", *source)
    assert api("get-object-tagging", "--key", "b")["TagSet"] == [{"Key": "t", "Value": "1"}]
    api("copy-object", "--key", "b", *source, "--tagging-directive", "REPLACE", "--tagging", "u=2",
        "--metadata-directive", "REPLACE", "--content-type", "x/y", "--checksum-algorithm", "SHA1")  # fmt: skip
    head = api("head-object", "--key", "b", "--checksum-mode", "ENABLED")
    assert (head["ContentType"], head["Metadata"], head["TagCount"]) == ("x/y", {}, 1)
    assert "ChecksumSHA1" in head
    refused = {
        ("--copy-source", f"{api.bucket}/none"): "NoSuchKey",
        ("--copy-source", "no-such-bucket/none"): "NoSuchBucket",
        ("--copy-source", "nonsense"): "InvalidArgument",
        ("--copy-source", f"{api.bucket}/a?versionId=nonsense"): "InvalidArgument",
        (*source, "--copy-source-if-none-match", "*"): "PreconditionFailed",
        (*source, "--metadata-directive", "KEEP"): "InvalidArgument",
    }
    for arguments, code in refused.items():
        assert api.error("copy-object", "--key", "c", *arguments) == code, arguments
    assert api.error("copy-object", "--key", "a", *source) == "InvalidRequest", "onto itself, unchanged"


def test_uploads_go_in_parts_and_are_judged(api: Api, small: str, tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(os.urandom(5 * MIB))
    part, m = str(tmp_path / "part"), ("--key", "m")
    sha = ("--checksum-algorithm", "SHA256")
    upload = api("create-multipart-upload", *m, *sha, "--tagging", "t=1")["UploadId"]
    u = (*m, "--upload-id", upload)
    one = api("upload-part", *u, "--part-number", "1", "--body", part, *sha)
    two = api("upload-part", *u, "--part-number", "3", "--body", small, *sha)
    assert api.error("upload-part", *u, "--part-number", "2", "--body", small) == "InvalidRequest", "CRC32"
    for number in ("0", "10001"):
        assert api.error("upload-part", *u, "--part-number", number, "--body", small) == "InvalidArgument"
    for key in ("m", "other"):
        wrong = ("--key", key, "--upload-id", "x" if key == "m" else upload)
        assert api.error("list-parts", *wrong) == "NoSuchUpload"
    listed = api("list-parts", *u, "--page-size", "1")["Parts"]
    assert [each["PartNumber"] for each in listed] == [1, 3]
    assert [each["Key"] for each in api("list-multipart-uploads")["Uploads"]] == ["m"]

    def parts(*chosen: tuple[int, str]) -> tuple[str, str]:
        return "--multipart-upload", J({"Parts": [{"PartNumber": n, "ETag": etag} for n, etag in chosen]})

    first, second = (1, one["ETag"]), (3, two["ETag"])
    refused = {
        parts(second, first): "InvalidPartOrder",
        parts((1, '"x"'), second): "InvalidPart",
        parts(first, (2, two["ETag"])): "InvalidPart",
        (*parts(first, second), "--mpu-object-size", "17"): "InvalidRequest",
        ("--multipart-upload", "{}"): "MalformedXML",
    }
    for arguments, code in refused.items():
        assert api.error("complete-multipart-upload", *u, *arguments) == code, arguments
    done = api("complete-multipart-upload", *u, *parts(first, second), "--if-none-match", "*")
    assert done["ETag"].endswith('-2"') and done["ChecksumSHA256"].endswith("-2")
    again = api("complete-multipart-upload", *u, *parts(first, second))
    assert again["ETag"] == done["ETag"], "whoever did not hear the answer may ask again"
    got = api("get-object", *m, str(tmp_path / "out"), "--part-number", "2")
    assert (got["PartsCount"], got["ContentLength"]) == (2, 5)

    upload = api("create-multipart-upload", "--key", "n")["UploadId"]
    u = ("--key", "n", "--upload-id", upload)
    source = ("--part-number", "1", "--copy-source", f"{api.bucket}/m", "--copy-source-range")
    api("upload-part-copy", *u, *source, "bytes=0-5242879")
    assert api.error("upload-part-copy", *u, *source, "0-5") == "InvalidArgument"
    small_parts = [
        (n, api("upload-part", *u, "--part-number", str(n), "--body", small)["ETag"]) for n in (2, 3)
    ]
    assert api.error("complete-multipart-upload", *u, *parts(*small_parts)) == "EntityTooSmall"
    api("abort-multipart-upload", *u)
    assert api.error("abort-multipart-upload", *u) == "NoSuchUpload"
    for algorithm, kind in (("SHA256", "FULL_OBJECT"), ("CRC64NVME", "COMPOSITE")):
        chosen = ("--checksum-algorithm", algorithm, "--checksum-type", kind)
        assert api.error("create-multipart-upload", *m, *chosen) == "InvalidRequest"


def test_listings_page_and_batches_remove(api: Api, aws: AwsShell) -> None:
    for key in ("a/1", "a/2", "b", "d e", "ü/x"):
        api("put-object", "--key", key)
    page = api("list-objects", "--delimiter", "/", "--page-size", "2")
    assert [each["Key"] for each in page["Contents"]] == ["b", "d e"]
    assert [each["Prefix"] for each in page["CommonPrefixes"]] == ["a/", "ü/"]
    second = api("list-objects-v2", "--prefix", "a/", "--fetch-owner", "--start-after", "a/1")["Contents"]
    assert [each["Key"] for each in second] == ["a/2"] and second[0]["Owner"]["ID"]
    versions = api("list-object-versions", "--prefix", "a/")["Versions"]
    assert [(each["VersionId"], each["IsLatest"]) for each in versions] == [("null", True)] * 2
    assert api("list-objects-v2", "--max-keys", "0")["KeyCount"] == 0
    for arguments in (("--max-keys", "-1"), ("--continuation-token", "zz"), ("--encoding-type", "base64")):
        assert api.error("list-objects-v2", *arguments) == "InvalidArgument"
    assert api.error("list-object-versions", "--version-id-marker", "x") == "InvalidArgument"
    removed = api("delete-objects", "--delete", "Objects=[{Key=a/1},{Key=a/2,VersionId=nonsense}]")
    assert [each["Key"] for each in removed["Deleted"]] == ["a/1"]
    assert [each["Code"] for each in removed["Errors"]] == ["NoSuchVersion"]
    assert api("delete-objects", "--delete", "Objects=[{Key=a/2}],Quiet=true") is None
    many = J({"Objects": [{"Key": str(n)} for n in range(1001)]})
    assert api.error("delete-objects", "--delete", many) == "MalformedXML"
    assert api.error("delete-bucket") == "BucketNotEmpty"
    names = aws("s3api", "list-buckets", "--prefix", api.bucket, "--query", "Buckets[].Name")
    assert names == [api.bucket]


def test_versions_are_kept_as_long_as_their_locks(aws: AwsShell, small: str) -> None:
    api = Api(aws, "api-locked")
    api("create-bucket", "--object-lock-enabled-for-bucket")
    k = ("--key", "k")
    locked = ("--object-lock-mode", "GOVERNANCE", "--object-lock-retain-until-date")
    assert api("get-bucket-versioning") == {"Status": "Enabled"}
    assert api.error("put-bucket-versioning", "--versioning-configuration", "Status=Suspended") == (
        "InvalidBucketState"
    )
    assert api.error("put-object", *k, "--body", small, *locked, "2020-01-01T00:00:00Z") == "InvalidArgument"
    assert api.error("put-object", *k, "--body", small, *locked[:2]) == "InvalidArgument"
    version = api("put-object", *k, "--body", small, *locked, "2090-01-01T00:00:00Z")["VersionId"]
    v = (*k, "--version-id", version)
    assert api.error("delete-object", *v) == "AccessDenied"
    shorter = ("--retention", "Mode=GOVERNANCE,RetainUntilDate=2089-01-01T00:00:00Z")
    assert api.error("put-object-retention", *k, *shorter) == "AccessDenied"
    api("put-object-retention", *k, *shorter, "--bypass-governance-retention")
    assert api("get-object-retention", *k)["Retention"]["RetainUntilDate"].startswith("2089")
    assert api.error("get-object-legal-hold", *k) == "NoSuchObjectLockConfiguration"
    api("put-object-legal-hold", *k, "--legal-hold", "Status=ON")
    assert api("head-object", *k)["ObjectLockLegalHoldStatus"] == "ON"
    assert api.error("delete-object", *v, "--bypass-governance-retention") == "AccessDenied"
    api("put-object-legal-hold", *k, "--legal-hold", "Status=OFF")
    marker = api("delete-object", *k)
    assert marker["DeleteMarker"] is True
    assert api.error("get-object", *k, "/dev/null") == "NoSuchKey"
    code = api.error("get-object", *k, "/dev/null", "--version-id", marker["VersionId"])
    assert code == "MethodNotAllowed"
    api("delete-object", *v, "--bypass-governance-retention")
    for rule, code in (
        ({"Mode": "GOVERNANCE", "Days": 1, "Years": 1}, "MalformedXML"),
        ({"Mode": "GOVERNANCE", "Days": 0}, "InvalidRetentionPeriod"),
    ):
        chosen = J({"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": rule}})
        assert api.error("put-object-lock-configuration", "--object-lock-configuration", chosen) == code
    assert api("get-object-lock-configuration")["ObjectLockConfiguration"]["ObjectLockEnabled"] == "Enabled"


def test_access_is_given_blocked_and_taken_back(api: Api, small: str) -> None:
    everybody = "uri=http://acs.amazonaws.com/groups/global/AllUsers"
    api("put-bucket-acl", "--grant-read", everybody, "--grant-write", "id=bob")
    assert [each["Permission"] for each in api("get-bucket-acl")["Grants"]] == ["READ", "WRITE"]
    assert api.error("put-bucket-acl", "--grant-read", "uri=http://nowhere.example") == "InvalidArgument"
    api("put-bucket-acl", "--acl", "public-read")
    grants = api("get-bucket-acl")["Grants"]
    assert {each["Permission"] for each in grants} == {"FULL_CONTROL", "READ"}
    api("put-object", "--key", "k", "--body", small)
    api("put-object-acl", "--key", "k", "--acl", "authenticated-read")
    assert len(api("get-object-acl", "--key", "k")["Grants"]) == 2
    assert api.error("put-object-acl", "--key", "k") == "MissingSecurityHeader"

    api(
        "put-public-access-block",
        "--public-access-block-configuration",
        "BlockPublicAcls=true,BlockPublicPolicy=true",
    )
    assert api("get-public-access-block")["PublicAccessBlockConfiguration"]["BlockPublicAcls"] is True
    assert api.error("put-bucket-acl", "--acl", "public-read") == "AccessDenied"
    allow = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": "s3:GetObject",
        "Resource": f"arn:aws:s3:::{api.bucket}/*",
    }

    def policy(**changes: Any) -> tuple[str, str]:
        return "--policy", J({"Version": "2012-10-17", "Statement": [{**allow, **changes}]})

    assert api.error("put-bucket-policy", *policy()) == "AccessDenied"
    api("delete-public-access-block")
    assert api.error("get-public-access-block") == "NoSuchPublicAccessBlockConfiguration"
    api("put-bucket-policy", *policy())
    assert json.loads(api("get-bucket-policy")["Policy"])["Statement"] == [allow]
    assert api("get-bucket-policy-status") == {"PolicyStatus": {"IsPublic": True}}
    for changes in (
        {"Resource": "arn:aws:s3:::another/*"},
        {"Effect": "Perhaps"},
        {"Condition": {"Likes": {"a": "b"}}},
        {"Principal": None},
    ):
        assert api.error("put-bucket-policy", *policy(**changes)) == "MalformedPolicy", changes
    assert api.error("put-bucket-policy", "--policy", "{") == "MalformedPolicy"
    api("delete-bucket-policy")
    assert api.error("get-bucket-policy") == "NoSuchBucketPolicy"

    api("put-bucket-acl", "--acl", "private")
    api(
        "put-bucket-ownership-controls",
        "--ownership-controls",
        "Rules=[{ObjectOwnership=BucketOwnerEnforced}]",
    )
    assert api.error("put-bucket-acl", "--acl", "public-read") == "AccessControlListNotSupported"
    assert api.error("put-object", "--key", "o", "--acl", "public-read") == "AccessControlListNotSupported"
    api("put-object", "--key", "o", "--acl", "bucket-owner-full-control")
    api("delete-bucket-ownership-controls")
    assert api.error("get-bucket-ownership-controls") == "OwnershipControlsNotFoundError"


def test_settings_of_a_bucket_come_back_and_go(api: Api) -> None:
    api("put-bucket-tagging", "--tagging", "TagSet=[{Key=a,Value=b}]")
    assert api("get-bucket-tagging") == {"TagSet": [{"Key": "a", "Value": "b"}]}
    twice = ("--tagging", "TagSet=[{Key=a,Value=b},{Key=a,Value=c}]")
    assert api.error("put-bucket-tagging", *twice) == "InvalidTag"
    api("delete-bucket-tagging")
    assert api.error("get-bucket-tagging") == "NoSuchTagSet"

    def cors(**rule: Any) -> tuple[str, str]:
        rules = [{"AllowedMethods": ["GET"], "AllowedOrigins": ["*"], **rule}]
        return "--cors-configuration", J({"CORSRules": rules})

    api("put-bucket-cors", *cors(ExposeHeaders=["ETag"], MaxAgeSeconds=5, ID="r"))
    assert api("get-bucket-cors")["CORSRules"][0]["ExposeHeaders"] == ["ETag"]
    assert api.error("put-bucket-cors", *cors(AllowedMethods=["PATCH"])) == "InvalidRequest"
    assert api.error("put-bucket-cors", *cors(AllowedOrigins=["*.*"])) == "InvalidRequest"
    api("delete-bucket-cors")
    assert api.error("get-bucket-cors") == "NoSuchCORSConfiguration"

    def lifecycle(*rules: dict[str, Any]) -> tuple[str, str]:
        return "--lifecycle-configuration", J({"Rules": [{"Status": "Enabled", **rule} for rule in rules]})

    days: dict[str, Any] = {"Expiration": {"Days": 3}}
    api("put-bucket-lifecycle-configuration", *lifecycle({"Filter": {"Prefix": "x"}, **days}))
    (rule,) = api("get-bucket-lifecycle-configuration")["Rules"]
    assert rule["ID"] and rule["Filter"] == {"Prefix": "x"} and rule["Expiration"] == {"Days": 3}
    refused: list[tuple[list[dict[str, Any]], str]] = [
        ([{"Filter": {}}], "InvalidRequest"),
        ([{"Filter": {}, "Expiration": {"Days": 0}}], "InvalidArgument"),
        ([{"Filter": {}, "Expiration": {"Date": "2030-01-01T01:00:00Z"}}], "InvalidArgument"),
        ([{"ID": "a", "Filter": {}, **days}, {"ID": "a", "Filter": {}, **days}], "InvalidArgument"),
        ([{"Filter": {}, **days, "Status": "enabled"}], "MalformedXML"),
        ([], "MalformedXML"),
    ]
    for rules, code in refused:
        assert api.error("put-bucket-lifecycle-configuration", *lifecycle(*rules)) == code, rules
    api("delete-bucket-lifecycle")
    assert api.error("get-bucket-lifecycle-configuration") == "NoSuchLifecycleConfiguration"

    api("put-bucket-request-payment", "--request-payment-configuration", "Payer=Requester")
    assert api("get-bucket-request-payment") == {"Payer": "Requester"}
    api("put-bucket-accelerate-configuration", "--accelerate-configuration", "Status=Enabled")
    assert api("get-bucket-accelerate-configuration") == {"Status": "Enabled"}
    api("put-bucket-versioning", "--versioning-configuration", "Status=Enabled")
    assert api("get-bucket-versioning") == {"Status": "Enabled"}
    assert api("get-bucket-location") == {"LocationConstraint": None}
    assert api("head-bucket")["BucketRegion"] == "us-east-1"
    assert api.error("head-bucket", "--expected-bucket-owner", "bob") == "403"
    elsewhere = ("--create-bucket-configuration", "LocationConstraint=eu-west-1")
    assert api.error("create-bucket", *elsewhere) == "IllegalLocationConstraintException"
    nowhere = ("--create-bucket-configuration", "LocationConstraint=nowhere")
    assert api.error("create-bucket", *nowhere) == "InvalidLocationConstraint"
    api("delete-bucket")
    assert api.error("get-bucket-acl") == "NoSuchBucket"
