"""RenameObject over HTTP: one object, and as our own extension a whole prefix."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.exceptions import ClientError

from cordwood.engine import Store
from tests.server.conftest import BOB, LiveServer


def keys_of(s3: Any) -> list[str]:
    return [each["Key"] for each in s3.list_objects_v2(Bucket="bkt").get("Contents", [])]


def refused(call: Any, **arguments: Any) -> str:
    with pytest.raises(ClientError) as caught:
        call(Bucket="bkt", **arguments)
    return str(caught.value.response["Error"]["Code"])


def test_a_renamed_object_has_all_that_it_had_under_its_new_key(s3: Any) -> None:
    s3.put_object(
        Bucket="bkt",
        Key="old/a b",
        Body=b"x" * 100_000,
        Metadata={"m": "1"},
        Tagging="t=1",
        ContentType="text/x",
    )
    before = s3.head_object(Bucket="bkt", Key="old/a b", ChecksumMode="ENABLED")
    s3.rename_object(Bucket="bkt", Key="new/b", RenameSource="old/a%20b")
    after = s3.get_object(Bucket="bkt", Key="new/b", ChecksumMode="ENABLED")
    assert after["Body"].read() == b"x" * 100_000 and keys_of(s3) == ["new/b"]
    for name in ("ETag", "Metadata", "ContentType", "ChecksumCRC32", "TagCount"):
        assert after[name] == before[name], name


@pytest.mark.parametrize("source", ["a", "/bkt/a", "%2Fbkt%2Fa", "bkt/a"])
def test_the_source_is_a_key_or_a_key_behind_the_name_of_the_bucket(s3: Any, source: str) -> None:
    s3.put_object(Bucket="bkt", Key="a", Body=b"a")
    s3.rename_object(Bucket="bkt", Key="b", RenameSource=source)
    assert keys_of(s3) == ["b"]


def test_a_key_that_begins_with_the_name_of_its_bucket_goes_first(s3: Any) -> None:
    for key in ("a", "bkt/a", "p/1", "bkt/p/1"):
        s3.put_object(Bucket="bkt", Key=key, Body=key.encode())
    s3.rename_object(Bucket="bkt", Key="b", RenameSource="bkt/a")
    s3.rename_object(Bucket="bkt", Key="q/", RenameSource="bkt/p/")
    assert keys_of(s3) == ["a", "b", "p/1", "q/1"]
    s3.rename_object(Bucket="bkt", Key="c", RenameSource="bkt/a")
    s3.rename_object(Bucket="bkt", Key="r/", RenameSource="bkt/p/")
    assert keys_of(s3) == ["b", "c", "q/1", "r/1"]
    assert refused(s3.rename_object, Key="d", RenameSource="bkt/a") == "NoSuchKey"


def test_a_source_that_names_another_bucket_is_a_key_of_this_one(server: LiveServer, s3: Any) -> None:
    server.client().create_bucket(Bucket="other")
    server.client().put_object(Bucket="other", Key="a", Body=b"secret")
    assert refused(s3.rename_object, Key="b", RenameSource="/other/a") == "NoSuchKey"


def test_every_condition_is_held_against_its_own_side(s3: Any) -> None:
    a = s3.put_object(Bucket="bkt", Key="a", Body=b"a")["ETag"]
    b = s3.put_object(Bucket="bkt", Key="b", Body=b"b")["ETag"]
    past, future = datetime(2001, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
    fails: list[dict[str, Any]] = [
        {"SourceIfMatch": b},
        {"SourceIfNoneMatch": a},
        {"SourceIfNoneMatch": "*"},
        {"SourceIfModifiedSince": future},
        {"SourceIfUnmodifiedSince": past},
        {"DestinationIfMatch": a},
        {"DestinationIfNoneMatch": "*"},
        {"DestinationIfModifiedSince": future},
        {"DestinationIfUnmodifiedSince": past},
    ]
    for each in fails:
        assert refused(s3.rename_object, Key="b", RenameSource="a", **each) == "PreconditionFailed", each
    assert keys_of(s3) == ["a", "b"]
    s3.rename_object(
        Bucket="bkt",
        Key="b",
        RenameSource="a",
        SourceIfMatch=a,
        SourceIfNoneMatch=b,
        SourceIfModifiedSince=past,
        SourceIfUnmodifiedSince=future,
        DestinationIfMatch=b,
        DestinationIfModifiedSince=past,
        DestinationIfUnmodifiedSince=future,
    )
    assert keys_of(s3) == ["b"] and s3.head_object(Bucket="bkt", Key="b")["ETag"] == a


def test_a_rename_that_cannot_be_is_refused(s3: Any) -> None:
    s3.put_object(Bucket="bkt", Key="a", Body=b"a")
    assert refused(s3.rename_object, Key="b", RenameSource="none") == "NoSuchKey"
    assert refused(s3.rename_object, Key="a", RenameSource="a") == "InvalidRequest"
    assert refused(s3.rename_object, Key="b", RenameSource="/bkt/") == "InvalidArgument"
    assert refused(s3.rename_object, Key="b", RenameSource="%FF") == "InvalidArgument"
    assert refused(s3.rename_object, Key="b", RenameSource="a", ClientToken="x" * 65) == "InvalidArgument"
    assert refused(s3.rename_object, Key="b", RenameSource="a", ClientToken="a b") == "InvalidArgument"
    assert keys_of(s3) == ["a"]


def test_a_repeated_request_with_one_client_token_is_done_once(s3: Any) -> None:
    s3.put_object(Bucket="bkt", Key="a", Body=b"first")
    s3.rename_object(Bucket="bkt", Key="b", RenameSource="a", ClientToken="t")
    s3.put_object(Bucket="bkt", Key="a", Body=b"second")
    s3.rename_object(Bucket="bkt", Key="b", RenameSource="a", ClientToken="t")
    assert keys_of(s3) == ["a", "b"] and s3.get_object(Bucket="bkt", Key="b")["Body"].read() == b"first"
    again = {"Key": "b", "RenameSource": "c", "ClientToken": "t"}
    assert refused(s3.rename_object, **again) == "IdempotencyParameterMismatch"
    assert "Tagging" not in s3.copy_object(Bucket="bkt", Key="c", CopySource="bkt/b")


def test_in_a_bucket_with_versions_nothing_is_lost_by_a_rename(server: LiveServer, s3: Any) -> None:
    s3.put_bucket_versioning(Bucket="bkt", VersioningConfiguration={"Status": "Enabled"})
    old = s3.put_object(Bucket="bkt", Key="a", Body=b"a")["VersionId"]
    answer = server.request("PUT", "/bkt/b?renameObject", headers={"x-amz-rename-source": "a"})
    assert answer.status == 200 and answer.body == b""
    new = answer.headers["x-amz-version-id"]
    assert s3.get_object(Bucket="bkt", Key="b", VersionId=new)["Body"].read() == b"a"
    assert s3.get_object(Bucket="bkt", Key="a", VersionId=old)["Body"].read() == b"a"
    assert refused(s3.get_object, Key="a") == "NoSuchKey"


def test_a_locked_version_stays_where_it_is_below_the_marker_of_a_rename(server: LiveServer) -> None:
    s3 = server.client()
    s3.create_bucket(Bucket="bkt", ObjectLockEnabledForBucket=True)
    until = datetime.fromtimestamp(time.time() + 3600, UTC)
    old = s3.put_object(
        Bucket="bkt", Key="d/a", Body=b"a", ObjectLockMode="COMPLIANCE", ObjectLockRetainUntilDate=until
    )["VersionId"]
    s3.rename_object(Bucket="bkt", Key="d/b", RenameSource="d/a")
    assert refused(s3.delete_object, Key="d/a", VersionId=old) == "AccessDenied"
    assert refused(s3.get_object_retention, Key="d/b") == "NoSuchObjectLockConfiguration"
    assert refused(s3.rename_object, Key="e/", RenameSource="d/") == "InvalidRequest"


# --- prefixes -------------------------------------------------------------------------------------------------


def test_a_whole_prefix_is_renamed_when_both_names_end_in_a_slash(s3: Any) -> None:
    for key in ("a/", "a/1", "a/b/2", "c"):
        s3.put_object(Bucket="bkt", Key=key, Body=key.encode())
    s3.rename_object(Bucket="bkt", Key="x/y/", RenameSource="a/", DestinationIfNoneMatch="*")
    assert keys_of(s3) == ["c", "x/y/", "x/y/1", "x/y/b/2"]
    assert s3.get_object(Bucket="bkt", Key="x/y/b/2")["Body"].read() == b"a/b/2"


def test_a_prefix_is_not_renamed_onto_something_below_itself_or_from_nothing(s3: Any) -> None:
    for key in ("a/1", "b/1"):
        s3.put_object(Bucket="bkt", Key=key, Body=b"")
    assert refused(s3.rename_object, Key="b/", RenameSource="a/") == "PreconditionFailed"
    assert refused(s3.rename_object, Key="a/b/", RenameSource="a/") == "InvalidArgument"
    assert refused(s3.rename_object, Key="c/", RenameSource="none/") == "NoSuchKey"
    for more in ({"SourceIfMatch": "*"}, {"DestinationIfNoneMatch": '"x"'}):
        assert refused(s3.rename_object, Key="c/", RenameSource="a/", **more) == "InvalidRequest"
    assert keys_of(s3) == ["a/1", "b/1"]


def test_a_folder_marker_alone_is_renamed_like_any_object(s3: Any) -> None:
    s3.put_object(Bucket="bkt", Key="a/", Body=b"")
    s3.put_object(Bucket="bkt", Key="a/1", Body=b"")
    s3.rename_object(Bucket="bkt", Key="marker", RenameSource="a/")
    assert keys_of(s3) == ["a/1", "marker"]


# --- permissions ----------------------------------------------------------------------------------------------


@pytest.fixture
def shared(two_owners: LiveServer, store: Store) -> Iterator[tuple[Any, Any]]:
    """Clients of the owner of `bkt` and of somebody else."""
    alice, bob = two_owners.client(), two_owners.client(BOB)
    alice.create_bucket(Bucket="bkt")
    for key in ("in/a", "in/b", "out/c"):
        alice.put_object(Bucket="bkt", Key=key, Body=key.encode())
    yield alice, bob


def permit(alice: Any, *statements: dict[str, Any]) -> None:
    policy = {"Version": "2012-10-17", "Statement": list(statements)}
    alice.put_bucket_policy(Bucket="bkt", Policy=json.dumps(policy))


def statement(effect: str, actions: list[str], resource: str, principal: Any = None) -> dict[str, Any]:
    return {
        "Effect": effect,
        "Principal": {"AWS": BOB.owner_id} if principal is None else principal,
        "Action": [f"s3:{action}" for action in actions],
        "Resource": f"arn:aws:s3:::bkt/{resource}",
    }


@pytest.mark.parametrize("missing", ["GetObject", "DeleteObject", "PutObject"])
def test_who_renames_needs_all_of_read_delete_and_write(shared: tuple[Any, Any], missing: str) -> None:
    alice, bob = shared
    assert refused(bob.rename_object, Key="out/a", RenameSource="in/a") == "AccessDenied"
    source = [each for each in ("GetObject", "DeleteObject") if each != missing]
    target = [each for each in ("PutObject",) if each != missing] or ["GetObject"]
    permit(alice, statement("Allow", source, "in/*"), statement("Allow", target, "out/*"))
    assert refused(bob.rename_object, Key="out/a", RenameSource="in/a") == "AccessDenied"
    permit(
        alice,
        statement("Allow", ["GetObject", "DeleteObject"], "in/*"),
        statement("Allow", ["PutObject"], "out/*"),
    )
    bob.rename_object(Bucket="bkt", Key="out/a", RenameSource="in/a")
    assert refused(bob.rename_object, Key="in/a", RenameSource="out/a") == "AccessDenied"


def test_a_denied_source_or_target_is_denied_to_the_owner_too(shared: tuple[Any, Any]) -> None:
    alice, _ = shared
    permit(
        alice,
        statement("Deny", ["DeleteObject"], "in/a", "*"),
        statement("Deny", ["PutObject"], "out/no*", "*"),
    )
    assert refused(alice.rename_object, Key="out/a", RenameSource="in/a") == "AccessDenied"
    assert refused(alice.rename_object, Key="out/no1", RenameSource="in/b") == "AccessDenied"
    alice.rename_object(Bucket="bkt", Key="out/yes", RenameSource="in/b")


def test_a_prefix_is_renamed_by_the_owner_alone_and_not_past_a_policy_that_denies(
    shared: tuple[Any, Any],
) -> None:
    alice, bob = shared
    every = ["GetObject", "DeleteObject", "PutObject"]
    permit(alice, statement("Allow", every, "*"))
    assert refused(bob.rename_object, Key="new/", RenameSource="in/") == "AccessDenied"
    permit(alice, statement("Allow", every, "*"), statement("Deny", ["Get*"], "in/b", "*"))
    assert refused(alice.rename_object, Key="new/", RenameSource="in/") == "AccessDenied"
    permit(alice, statement("Allow", every, "*"), statement("Deny", ["PutObjectAcl"], "in/b", "*"))
    alice.rename_object(Bucket="bkt", Key="new/", RenameSource="in/")
    assert keys_of(alice) == ["new/a", "new/b", "out/c"]
