"""Policies, access lists, public access block and ownership, enforced by a real server with two owners."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.server.conftest import BOB, LiveServer

ALL_USERS = "http://acs.amazonaws.com/groups/global/AllUsers"


def refusal(call: Any, **arguments: Any) -> tuple[int, str]:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    response = caught.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


DENIED = (403, "AccessDenied")


def policy(*statements: dict[str, Any]) -> str:
    filled = [
        {"Effect": "Allow", "Principal": "*", "Resource": "arn:aws:s3:::bkt/*", **each} for each in statements
    ]
    return json.dumps({"Version": "2012-10-17", "Statement": filled})


@pytest.fixture
def alice(two_owners: LiveServer) -> Iterator[Any]:
    client = two_owners.client()
    client.create_bucket(Bucket="bkt")
    client.put_object(Bucket="bkt", Key="public/a", Body=b"a")
    client.put_object(Bucket="bkt", Key="private/b", Body=b"b")
    yield client


@pytest.fixture
def bob(two_owners: LiveServer, alice: Any) -> Any:
    return two_owners.client(BOB)


def test_a_policy_lets_others_read_and_nothing_else(two_owners: LiveServer, alice: Any, bob: Any) -> None:
    text = policy({"Action": "s3:GetObject", "Resource": "arn:aws:s3:::bkt/public/*"})
    assert alice.put_bucket_policy(Bucket="bkt", Policy=text)["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert alice.get_bucket_policy(Bucket="bkt")["Policy"] == text
    assert alice.get_bucket_policy_status(Bucket="bkt")["PolicyStatus"]["IsPublic"] is True
    assert bob.get_object(Bucket="bkt", Key="public/a")["Body"].read() == b"a"
    assert refusal(bob.get_object, Bucket="bkt", Key="private/b") == DENIED
    assert refusal(bob.put_object, Bucket="bkt", Key="public/a", Body=b"") == DENIED
    assert refusal(bob.list_objects_v2, Bucket="bkt") == DENIED
    assert refusal(bob.get_bucket_policy, Bucket="bkt") == DENIED
    assert two_owners.request("GET", "/bkt/public/a", credential=None).body == b"a"
    assert two_owners.request("GET", "/bkt/private/b", credential=None).status == 403
    # Who may not list is not told what is missing.
    assert two_owners.request("GET", "/bkt/public/none", credential=None).status == 403
    alice.delete_bucket_policy(Bucket="bkt")
    assert refusal(alice.get_bucket_policy, Bucket="bkt") == (404, "NoSuchBucketPolicy")
    assert two_owners.request("GET", "/bkt/public/a", credential=None).status == 403


def test_who_may_list_a_prefix_is_told_what_is_missing_below_it(alice: Any, bob: Any) -> None:
    listing = {
        "Action": "s3:ListBucket",
        "Resource": "arn:aws:s3:::bkt",
        "Condition": {"StringLike": {"s3:prefix": "public/*"}},
    }
    alice.put_bucket_policy(Bucket="bkt", Policy=policy(listing))
    assert bob.list_objects_v2(Bucket="bkt", Prefix="public/")["KeyCount"] == 1
    assert refusal(bob.list_objects_v2, Bucket="bkt", Prefix="private/") == DENIED
    assert refusal(bob.list_objects_v2, Bucket="bkt") == DENIED
    assert refusal(bob.head_object, Bucket="bkt", Key="public/none")[0] == 404
    assert refusal(bob.head_object, Bucket="bkt", Key="private/none")[0] == 403


def test_an_explicit_deny_holds_against_the_owner_who_can_still_change_the_policy(alice: Any) -> None:
    statement = {"Effect": "Deny", "Action": "s3:*", "Resource": ["arn:aws:s3:::bkt", "arn:aws:s3:::bkt/*"]}
    alice.put_bucket_policy(Bucket="bkt", Policy=policy(statement))
    assert refusal(alice.get_object, Bucket="bkt", Key="public/a") == DENIED
    assert refusal(alice.list_objects_v2, Bucket="bkt") == DENIED
    assert refusal(alice.put_bucket_acl, Bucket="bkt", ACL="public-read") == DENIED
    alice.delete_bucket_policy(Bucket="bkt")
    assert alice.get_object(Bucket="bkt", Key="public/a")["Body"].read() == b"a"


@pytest.mark.parametrize(
    ("condition", "is_allowed"),
    [
        ({"IpAddress": {"aws:SourceIp": "127.0.0.0/8"}}, True),
        ({"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}, False),
        ({"Bool": {"aws:SecureTransport": "true"}}, False),
        ({"StringEquals": {"s3:authType": "REST-HEADER"}}, True),
        ({"NumericLessThan": {"s3:signatureAge": "600000"}}, True),
        ({"DateGreaterThan": {"aws:CurrentTime": "2020-01-01T00:00:00Z"}}, True),
        ({"StringEquals": {"aws:PrincipalAccount": "b" * 64}}, True),
        ({"StringEquals": {"aws:ResourceAccount": "a" * 64}}, True),
        ({"StringEquals": {"aws:SourceVpc": "vpc-1"}}, False),
    ],
)
def test_conditions_see_the_request(
    alice: Any, bob: Any, condition: dict[str, Any], is_allowed: bool
) -> None:
    alice.put_bucket_policy(Bucket="bkt", Policy=policy({"Action": "s3:GetObject", "Condition": condition}))
    if is_allowed:
        bob.get_object(Bucket="bkt", Key="public/a")
    else:
        assert refusal(bob.get_object, Bucket="bkt", Key="public/a") == DENIED


def test_a_copy_and_an_upload_id_are_no_way_around_a_policy(alice: Any, bob: Any) -> None:
    statement = {"Action": ["s3:PutObject", "s3:GetObject"], "Resource": "arn:aws:s3:::bkt/public/*"}
    alice.put_bucket_policy(Bucket="bkt", Policy=policy(statement))
    bob.create_bucket(Bucket="of-bob")
    bob.copy_object(Bucket="of-bob", Key="k", CopySource="bkt/public/a")
    assert refusal(bob.copy_object, Bucket="of-bob", Key="k", CopySource="bkt/private/b") == DENIED
    assert refusal(bob.copy_object, Bucket="bkt", Key="private/c", CopySource="of-bob/k") == DENIED
    upload = bob.create_multipart_upload(Bucket="bkt", Key="public/m")["UploadId"]
    part = {"PartNumber": 1, "UploadId": upload}
    assert refusal(bob.upload_part, Bucket="bkt", Key="private/m", Body=b"x", **part) == DENIED
    assert (
        refusal(bob.upload_part_copy, Bucket="bkt", Key="public/m", CopySource="bkt/private/b", **part)
        == DENIED
    )
    etag = bob.upload_part(Bucket="bkt", Key="public/m", Body=b"x", **part)["ETag"]
    assert len(bob.list_parts(Bucket="bkt", Key="public/m", UploadId=upload)["Parts"]) == 1
    parts = {"Parts": [{"PartNumber": 1, "ETag": etag}]}
    refused = refusal(
        bob.complete_multipart_upload, Bucket="bkt", Key="private/m", UploadId=upload, MultipartUpload=parts
    )
    assert refused == DENIED
    bob.complete_multipart_upload(Bucket="bkt", Key="public/m", UploadId=upload, MultipartUpload=parts)
    other = bob.create_multipart_upload(Bucket="bkt", Key="public/n")["UploadId"]
    bob.abort_multipart_upload(Bucket="bkt", Key="public/n", UploadId=other)


def test_each_key_of_a_batch_is_asked_for(alice: Any, bob: Any) -> None:
    statement = {"Action": "s3:DeleteObject", "Resource": "arn:aws:s3:::bkt/public/*"}
    alice.put_bucket_policy(Bucket="bkt", Policy=policy(statement))
    keys = [{"Key": "public/a"}, {"Key": "private/b"}]
    answer = bob.delete_objects(Bucket="bkt", Delete={"Objects": keys})
    assert [each["Key"] for each in answer["Deleted"]] == ["public/a"]
    assert [(each["Key"], each["Code"]) for each in answer["Errors"]] == [("private/b", "AccessDenied")]
    assert alice.head_object(Bucket="bkt", Key="private/b")["ContentLength"] == 1


def test_a_parameter_sent_twice_is_judged_by_the_value_that_acts(two_owners: LiveServer, alice: Any) -> None:
    listing = {
        "Action": ["s3:ListBucket", "s3:GetObject"],
        "Resource": ["arn:aws:s3:::bkt", "arn:aws:s3:::bkt/*"],
        "Condition": {"StringEquals": {"s3:prefix": "public/"}},
    }
    reading = {"Action": "s3:GetObject"}
    alice.put_bucket_policy(Bucket="bkt", Policy=policy(listing, reading))
    alice.put_bucket_versioning(Bucket="bkt", VersioningConfiguration={"Status": "Enabled"})
    alice.put_object(Bucket="bkt", Key="public/a", Body=b"new")

    def status(path: str) -> int:
        return two_owners.request("GET", path, credential=None).status

    assert status("/bkt?prefix=private/&prefix=public/") == 200
    assert status("/bkt?prefix=public/&prefix=private/") == 403
    assert status("/bkt/public/a") == 200
    assert status("/bkt/public/a?versionId=null") == 403
    assert status("/bkt/public/a?versionId=&versionId=null") == 403


def test_a_policy_that_is_none_is_malformed(alice: Any) -> None:
    for text in ("{}", "nonsense", policy({"Action": "s3:GetObject", "Resource": "arn:aws:s3:::other/*"})):
        assert refusal(alice.put_bucket_policy, Bucket="bkt", Policy=text) == (400, "MalformedPolicy")
    assert refusal(alice.get_bucket_policy, Bucket="bkt") == (404, "NoSuchBucketPolicy")


# --- access control lists ------------------------------------------------------------------------------------


def test_a_canned_list_opens_a_bucket_and_closes_it_again(
    two_owners: LiveServer, alice: Any, bob: Any
) -> None:
    alice.put_bucket_acl(Bucket="bkt", ACL="public-read")
    grants = alice.get_bucket_acl(Bucket="bkt")["Grants"]
    assert [(each["Grantee"].get("URI"), each["Permission"]) for each in grants] == [
        (ALL_USERS, "READ"),
        (None, "FULL_CONTROL"),
    ]
    assert bob.list_objects_v2(Bucket="bkt")["KeyCount"] == 2
    assert two_owners.request("GET", "/bkt", credential=None).status == 200
    assert refusal(bob.get_object, Bucket="bkt", Key="public/a") == DENIED
    assert refusal(bob.put_object, Bucket="bkt", Key="n", Body=b"") == DENIED
    alice.put_bucket_acl(Bucket="bkt", ACL="private")
    assert refusal(bob.list_objects_v2, Bucket="bkt") == DENIED


def test_a_list_of_an_object_is_of_that_object_alone(two_owners: LiveServer, alice: Any, bob: Any) -> None:
    alice.put_object_acl(Bucket="bkt", Key="public/a", ACL="public-read")
    alice.put_object(Bucket="bkt", Key="third", Body=b"3", GrantRead=f'id="{"b" * 64}"')
    assert two_owners.request("GET", "/bkt/public/a", credential=None).body == b"a"
    assert bob.get_object(Bucket="bkt", Key="third")["Body"].read() == b"3"
    assert two_owners.request("GET", "/bkt/third", credential=None).status == 403
    assert refusal(bob.get_object_acl, Bucket="bkt", Key="third") == DENIED
    alice.copy_object(Bucket="bkt", Key="copy", CopySource="bkt/public/a")
    assert two_owners.request("GET", "/bkt/copy", credential=None).status == 403
    alice.put_object(Bucket="bkt", Key="public/a", Body=b"again")
    assert two_owners.request("GET", "/bkt/public/a", credential=None).status == 403


def test_explicit_grants_give_each_its_permission(alice: Any, bob: Any) -> None:
    owner = alice.get_bucket_acl(Bucket="bkt")["Owner"]
    allowed = {
        "READ": lambda: bob.list_objects_v2(Bucket="bkt"),
        "WRITE": lambda: bob.put_object(Bucket="bkt", Key="of-bob", Body=b""),
        "READ_ACP": lambda: bob.get_bucket_acl(Bucket="bkt"),
        "WRITE_ACP": lambda: bob.put_bucket_acl(Bucket="bkt", ACL="private"),
    }
    for permission in (*allowed, "FULL_CONTROL"):
        grant = {"Grantee": {"Type": "CanonicalUser", "ID": "b" * 64}, "Permission": permission}
        for name, call in allowed.items():
            alice.put_bucket_acl(Bucket="bkt", AccessControlPolicy={"Grants": [grant], "Owner": owner})
            if permission in (name, "FULL_CONTROL"):
                call()
            else:
                assert refusal(call) == DENIED


@pytest.mark.parametrize(
    ("grantee", "code"),
    [
        ({"Type": "CanonicalUser", "ID": "nobody"}, "InvalidArgument"),
        ({"Type": "Group", "URI": "http://example.com/"}, "InvalidArgument"),
        ({"Type": "AmazonCustomerByEmail", "EmailAddress": "a@b.c"}, "UnresolvableGrantByEmailAddress"),
    ],
)
def test_a_grantee_is_somebody(alice: Any, grantee: dict[str, str], code: str) -> None:
    owner = alice.get_bucket_acl(Bucket="bkt")["Owner"]
    wanted = {"Grants": [{"Grantee": grantee, "Permission": "READ"}], "Owner": owner}
    assert refusal(alice.put_bucket_acl, Bucket="bkt", AccessControlPolicy=wanted) == (400, code)
    both = {"ACL": "private", "GrantRead": f"id={'a' * 64}"}
    assert refusal(alice.put_bucket_acl, Bucket="bkt", **both) == (400, "InvalidRequest")


# --- ownership -----------------------------------------------------------------------------------------------


def test_who_writes_into_the_bucket_of_another_owns_the_object(alice: Any, bob: Any) -> None:
    alice.put_bucket_policy(Bucket="bkt", Policy=policy({"Action": ["s3:PutObject", "s3:GetObject"]}))
    bob.put_object(Bucket="bkt", Key="mine", Body=b"m")
    assert bob.get_object_acl(Bucket="bkt", Key="mine")["Owner"]["ID"] == "b" * 64
    assert refusal(alice.get_object, Bucket="bkt", Key="mine") == DENIED
    assert refusal(alice.get_object_acl, Bucket="bkt", Key="mine") == DENIED
    bob.put_object(Bucket="bkt", Key="given", Body=b"g", ACL="bucket-owner-full-control")
    assert alice.get_object(Bucket="bkt", Key="given")["Body"].read() == b"g"
    alice.delete_object(Bucket="bkt", Key="mine")
    with pytest.raises(ClientError):
        bob.get_object(Bucket="bkt", Key="mine")


def test_the_bucket_owner_enforced_owns_everything_and_knows_no_lists(alice: Any, bob: Any) -> None:
    missing = refusal(alice.get_bucket_ownership_controls, Bucket="bkt")
    assert missing == (404, "OwnershipControlsNotFoundError")
    alice.put_bucket_acl(Bucket="bkt", ACL="public-read")
    enforced = {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}
    refused = refusal(alice.put_bucket_ownership_controls, Bucket="bkt", OwnershipControls=enforced)
    assert refused == (400, "InvalidBucketAclWithObjectOwnership")
    alice.put_bucket_acl(Bucket="bkt", ACL="private")
    alice.put_bucket_policy(Bucket="bkt", Policy=policy({"Action": "s3:PutObject"}))
    bob.put_object(Bucket="bkt", Key="early", Body=b"e")
    assert refusal(alice.get_object, Bucket="bkt", Key="early") == DENIED
    alice.put_bucket_ownership_controls(Bucket="bkt", OwnershipControls=enforced)
    assert alice.get_object(Bucket="bkt", Key="early")["Body"].read() == b"e"
    bob.put_object(Bucket="bkt", Key="late", Body=b"l", ACL="bucket-owner-full-control")
    assert alice.get_object_acl(Bucket="bkt", Key="late")["Owner"]["ID"] == "a" * 64
    no_lists = (400, "AccessControlListNotSupported")
    assert refusal(bob.put_object, Bucket="bkt", Key="x", Body=b"", ACL="private") == no_lists
    assert refusal(alice.put_bucket_acl, Bucket="bkt", ACL="private") == no_lists
    assert refusal(alice.put_object_acl, Bucket="bkt", Key="late", ACL="public-read") == no_lists
    alice.delete_bucket_ownership_controls(Bucket="bkt")
    assert refusal(alice.get_object, Bucket="bkt", Key="early") == DENIED


def test_the_bucket_owner_preferred_owns_what_is_given_to_him(alice: Any, bob: Any) -> None:
    preferred = {"Rules": [{"ObjectOwnership": "BucketOwnerPreferred"}]}
    alice.put_bucket_ownership_controls(Bucket="bkt", OwnershipControls=preferred)
    alice.put_bucket_policy(Bucket="bkt", Policy=policy({"Action": ["s3:PutObject", "s3:GetObjectAcl"]}))
    bob.put_object(Bucket="bkt", Key="kept", Body=b"")
    bob.put_object(Bucket="bkt", Key="given", Body=b"", ACL="bucket-owner-full-control")
    assert bob.get_object_acl(Bucket="bkt", Key="kept")["Owner"]["ID"] == "b" * 64
    assert bob.get_object_acl(Bucket="bkt", Key="given")["Owner"]["ID"] == "a" * 64


# --- public access block -------------------------------------------------------------------------------------


def block(client: Any, **switches: bool) -> None:
    client.put_public_access_block(Bucket="bkt", PublicAccessBlockConfiguration=switches)


def test_the_public_access_block_refuses_and_ignores(two_owners: LiveServer, alice: Any, bob: Any) -> None:
    everyone = policy({"Action": "s3:GetObject"})
    alice.put_bucket_acl(Bucket="bkt", ACL="public-read")
    alice.put_bucket_policy(Bucket="bkt", Policy=everyone)
    block(alice, BlockPublicAcls=True, BlockPublicPolicy=True)
    assert refusal(alice.put_bucket_acl, Bucket="bkt", ACL="public-read") == DENIED
    assert refusal(alice.put_object, Bucket="bkt", Key="x", Body=b"", ACL="public-read") == DENIED
    assert refusal(alice.put_bucket_policy, Bucket="bkt", Policy=everyone) == DENIED
    assert bob.list_objects_v2(Bucket="bkt")["KeyCount"] == 2
    block(alice, IgnorePublicAcls=True, RestrictPublicBuckets=True)
    assert refusal(bob.list_objects_v2, Bucket="bkt") == DENIED
    assert two_owners.request("GET", "/bkt/public/a", credential=None).status == 403
    assert alice.get_object(Bucket="bkt", Key="public/a")["Body"].read() == b"a"
    found = alice.get_public_access_block(Bucket="bkt")["PublicAccessBlockConfiguration"]
    assert found["RestrictPublicBuckets"] is True and found["BlockPublicAcls"] is False
    alice.delete_public_access_block(Bucket="bkt")
    missing = refusal(alice.get_public_access_block, Bucket="bkt")
    assert missing == (404, "NoSuchPublicAccessBlockConfiguration")
    assert two_owners.request("GET", "/bkt/public/a", credential=None).status == 200


# --- who pays ------------------------------------------------------------------------------------------------


def test_where_the_requester_pays_others_must_say_so(two_owners: LiveServer, alice: Any, bob: Any) -> None:
    assert alice.get_bucket_request_payment(Bucket="bkt")["Payer"] == "BucketOwner"
    alice.put_bucket_policy(Bucket="bkt", Policy=policy({"Action": "s3:GetObject"}))
    alice.put_bucket_request_payment(Bucket="bkt", RequestPaymentConfiguration={"Payer": "Requester"})
    assert alice.get_bucket_request_payment(Bucket="bkt")["Payer"] == "Requester"
    assert refusal(bob.get_object, Bucket="bkt", Key="public/a") == DENIED
    assert two_owners.request("GET", "/bkt/public/a", credential=None).status == 403
    paid = bob.get_object(Bucket="bkt", Key="public/a", RequestPayer="requester")
    assert paid["RequestCharged"] == "requester"
    assert "RequestCharged" not in alice.get_object(Bucket="bkt", Key="public/a")
    alice.put_bucket_request_payment(Bucket="bkt", RequestPaymentConfiguration={"Payer": "BucketOwner"})
    assert "RequestCharged" not in bob.get_object(Bucket="bkt", Key="public/a")


def test_acceleration_is_stored_and_returned(alice: Any) -> None:
    assert "Status" not in alice.get_bucket_accelerate_configuration(Bucket="bkt")
    for status in ("Enabled", "Suspended"):
        wanted = {"Status": status}
        alice.put_bucket_accelerate_configuration(Bucket="bkt", AccelerateConfiguration=wanted)
        assert alice.get_bucket_accelerate_configuration(Bucket="bkt")["Status"] == status
    alice.create_bucket(Bucket="with.dots")
    refused = refusal(
        alice.put_bucket_accelerate_configuration, Bucket="with.dots", AccelerateConfiguration=wanted
    )
    assert refused == (400, "InvalidRequest")
