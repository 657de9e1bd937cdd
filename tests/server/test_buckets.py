"""Buckets through a real server."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError

from cordwood.engine import Store
from tests.server.conftest import BOB, LiveServer


def refusal(call: Any, **arguments: Any) -> tuple[int, str]:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    response = caught.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


def test_a_bucket_is_made_found_listed_and_removed(server: LiveServer) -> None:
    client = server.client()
    assert client.create_bucket(Bucket="one-bucket")["Location"] == "/one-bucket"
    assert client.head_bucket(Bucket="one-bucket")["BucketRegion"] == "us-east-1"
    listed = client.list_buckets()
    assert [each["Name"] for each in listed["Buckets"]] == ["one-bucket"]
    assert listed["Owner"] == {"DisplayName": "alice", "ID": "a" * 64}
    client.delete_bucket(Bucket="one-bucket")
    assert client.list_buckets()["Buckets"] == []
    assert refusal(client.head_bucket, Bucket="one-bucket")[0] == 404
    assert refusal(client.delete_bucket, Bucket="one-bucket") == (404, "NoSuchBucket")


@pytest.mark.parametrize(
    "name",
    [
        "ab",
        "x" * 64,
        "Upper",
        "under_score",
        "-leading",
        "trailing-",
        ".dot",
        "dot.",
        "two..dots",
        "192.168.5.4",
        "xn--bucket",
        "sthree-bucket",
        "bucket-s3alias",
        "bucket--ol-s3",
        "bucket--x-s3",
        "bucket.mrap",
        "sp%20ace",
        "%C3%A9t%C3%A9",
        "a%2Fb",
    ],
)
def test_a_name_outside_the_rules_is_refused(server: LiveServer, name: str) -> None:
    answer = server.request("PUT", f"/{name}")
    assert (answer.status, answer.code) == (400, "InvalidBucketName")


@pytest.mark.parametrize("name", ["abc", "x" * 63, "1-2.3", "0" * 3, "a.b-c"])
def test_a_name_within_the_rules_is_taken(server: LiveServer, name: str) -> None:
    assert server.request("PUT", f"/{name}").status == 200


def test_making_a_bucket_again_succeeds_in_us_east_1_and_nowhere_else(store: Store) -> None:
    for region, status, code in (("us-east-1", 200, ""), ("eu-north-1", 409, "BucketAlreadyOwnedByYou")):
        live = LiveServer(store, region=region)
        live.start()
        try:
            client = live.client(region=region)
            configuration = {} if region == "us-east-1" else {"LocationConstraint": region}
            arguments = {"Bucket": f"in-{region}", "CreateBucketConfiguration": configuration}
            if not configuration:
                del arguments["CreateBucketConfiguration"]
            client.create_bucket(**arguments)
            if status == 200:
                client.create_bucket(**arguments)
            else:
                assert refusal(client.create_bucket, **arguments) == (status, code)
            constraint = None if region == "us-east-1" else region
            assert client.get_bucket_location(Bucket=f"in-{region}")["LocationConstraint"] == constraint
        finally:
            live.stop()


@pytest.mark.parametrize("region", ["us-east-1", "lab-1"])
def test_a_region_may_be_named_even_if_it_is_the_default_or_our_own_invention(
    store: Store, region: str
) -> None:
    """s3fs names us-east-1, which AWS wants left out; an invented region is in no list of AWS's."""
    live = LiveServer(store, region=region)
    live.start()
    try:
        client = live.client(region=region)
        client.create_bucket(Bucket="named", CreateBucketConfiguration={"LocationConstraint": region})
        assert client.head_bucket(Bucket="named")["BucketRegion"] == region
    finally:
        live.stop()


@pytest.mark.parametrize(
    ("constraint", "code"),
    [("eu-west-1", "IllegalLocationConstraintException"), ("the-moon", "InvalidLocationConstraint")],
)
def test_another_region_is_refused(server: LiveServer, constraint: str, code: str) -> None:
    inner = f"<LocationConstraint>{constraint}</LocationConstraint>"
    body = f"<CreateBucketConfiguration>{inner}</CreateBucketConfiguration>"
    answer = server.request("PUT", "/bucket", body.encode())
    assert (answer.status, answer.code) == (400, code)


def test_a_bucket_with_an_object_cannot_be_removed(s3: Any) -> None:
    s3.put_object(Bucket="bkt", Key="k", Body=b"")
    assert refusal(s3.delete_bucket, Bucket="bkt") == (409, "BucketNotEmpty")


def test_buckets_are_listed_by_prefix_and_page(server: LiveServer, store: Store) -> None:
    for number in range(7):
        store.create_bucket(f"bucket-{number}")
    store.create_bucket("other")
    client = server.client()
    names = []
    token = None
    while True:
        page = client.list_buckets(
            MaxBuckets=3, Prefix="bucket-", **({"ContinuationToken": token} if token else {})
        )
        assert len(page["Buckets"]) <= 3
        names += [each["Name"] for each in page["Buckets"]]
        token = page.get("ContinuationToken")
        if token is None:
            break
    assert names == [f"bucket-{number}" for number in range(7)]
    everywhere = client.list_buckets()["Buckets"]
    assert len(client.list_buckets(BucketRegion="US-east-1")["Buckets"]) == len(everywhere)
    assert server.request("GET", "/?bucket-region=eu-west-1").code == "InvalidArgument"
    assert server.request("GET", "/?max-buckets=0").code == "InvalidArgument"
    assert server.request("GET", "/?max-buckets=x").code == "InvalidArgument"
    assert server.request("GET", "/?continuation-token=abc").code == "InvalidArgument"


def test_what_nothing_can_configure_is_answered_with_the_truth(s3: Any) -> None:
    assert refusal(s3.get_bucket_policy, Bucket="bkt") == (404, "NoSuchBucketPolicy")
    assert refusal(s3.get_bucket_cors, Bucket="bkt") == (404, "NoSuchCORSConfiguration")
    assert refusal(s3.get_bucket_tagging, Bucket="bkt") == (404, "NoSuchTagSet")
    assert refusal(s3.get_bucket_policy, Bucket="none") == (404, "NoSuchBucket")
    assert "Status" not in s3.get_bucket_versioning(Bucket="bkt")
    acl = s3.get_bucket_acl(Bucket="bkt")
    assert [each["Permission"] for each in acl["Grants"]] == ["FULL_CONTROL"]
    assert acl["Grants"][0]["Grantee"]["ID"] == acl["Owner"]["ID"] == "a" * 64


# --- owners --------------------------------------------------------------------------------------------------


def test_each_owner_sees_only_his_own_buckets_and_objects(two_owners: LiveServer) -> None:
    alice, bob = two_owners.client(), two_owners.client(BOB)
    alice.create_bucket(Bucket="of-alice")
    bob.create_bucket(Bucket="of-bob")
    alice.put_object(Bucket="of-alice", Key="k", Body=b"secret")
    assert [each["Name"] for each in bob.list_buckets()["Buckets"]] == ["of-bob"]
    mine = {"Bucket": "of-alice"}
    assert refusal(bob.get_object, Key="k", **mine) == (403, "AccessDenied")
    assert refusal(bob.put_object, Key="k", Body=b"", **mine) == (403, "AccessDenied")
    assert refusal(bob.delete_object, Key="k", **mine) == (403, "AccessDenied")
    assert refusal(bob.list_objects_v2, **mine) == (403, "AccessDenied")
    assert refusal(bob.head_bucket, **mine)[0] == 403
    assert refusal(bob.delete_bucket, **mine) == (403, "AccessDenied")
    assert refusal(bob.create_bucket, **mine) == (409, "BucketAlreadyExists")
    assert refusal(bob.create_multipart_upload, Key="k", **mine) == (403, "AccessDenied")
    stolen = {"Bucket": "of-bob", "Key": "k", "CopySource": "of-alice/k"}
    assert refusal(bob.copy_object, **stolen) == (403, "AccessDenied")
    upload = bob.create_multipart_upload(Bucket="of-bob", Key="k")["UploadId"]
    assert refusal(bob.upload_part_copy, PartNumber=1, UploadId=upload, **stolen) == (403, "AccessDenied")
    foreign = {"UploadId": upload, "Bucket": "of-alice", "Key": "k"}
    assert refusal(bob.abort_multipart_upload, **foreign) == (403, "AccessDenied")
    assert refusal(alice.abort_multipart_upload, **foreign) == (404, "NoSuchUpload")


def test_an_expected_owner_is_held_against_the_real_one(two_owners: LiveServer) -> None:
    alice = two_owners.client()
    alice.create_bucket(
        Bucket="of-alice",
    )
    alice.head_bucket(Bucket="of-alice", ExpectedBucketOwner="a" * 64)
    assert refusal(alice.head_bucket, Bucket="of-alice", ExpectedBucketOwner="1" * 12)[0] == 403
    refused = refusal(alice.put_object, Bucket="of-alice", Key="k", Body=b"", ExpectedBucketOwner="1" * 12)
    assert refused == (403, "AccessDenied")


def test_a_switch_that_is_off_asks_for_nothing(server: LiveServer) -> None:
    client = server.client()
    client.create_bucket(Bucket="unlocked", ObjectLockEnabledForBucket=False)
    assert "Status" not in client.get_bucket_versioning(Bucket="unlocked")


def test_whoever_signs_for_another_region_or_may_not_enter_learns_the_region(two_owners: LiveServer) -> None:
    """boto3 signs again for the region it is told; for HEAD it can only be told in a header."""
    two_owners.client().create_bucket(Bucket="alices")
    elsewhere = two_owners.client(region="eu-west-3", retries={"total_max_attempts": 3})
    assert elsewhere.head_bucket(Bucket="alices")["BucketRegion"] == "us-east-1"
    for stranger in (BOB, None):
        answer = two_owners.request("HEAD", "/alices", credential=stranger)
        assert (answer.status, answer.headers["x-amz-bucket-region"]) == (403, "us-east-1")
