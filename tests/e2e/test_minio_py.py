"""minio-py: objects, parts, versions, locks, rules and forms as its users write them."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from minio import Minio
from minio.commonconfig import ENABLED, GOVERNANCE, ComposeSource, CopySource, Filter, Tags
from minio.datatypes import PostPolicy
from minio.deleteobjects import DeleteObject
from minio.error import S3Error
from minio.lifecycleconfig import Expiration, LifecycleConfig, Rule
from minio.retention import Retention
from minio.versioningconfig import VersioningConfig

from tests.e2e.harness import ACCESS_KEY, MIB, SECRET_KEY, Server, form_body

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def minio(shop: Server) -> Minio:
    """Without a region: the client asks for that of each bucket."""
    return Minio(f"127.0.0.1:{shop.port}", ACCESS_KEY, SECRET_KEY, secure=False)


@pytest.fixture
def bucket(minio: Minio, request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"minio-{request.node.name[5:40].replace('_', '-').strip('-')}"
    minio.make_bucket(name)
    yield name


def body(answer: Any) -> bytes:
    try:
        data: bytes = answer.read()
        return data
    finally:
        answer.close()
        answer.release_conn()


def test_objects_go_in_and_out_whole_in_parts_and_composed(minio: Minio, bucket: str, tmp_path: Path) -> None:
    assert minio.bucket_exists(bucket) and not minio.bucket_exists("no-such-bucket")
    data = os.urandom(12 * MIB)
    minio.put_object(bucket, "a/b c.txt", io.BytesIO(b"hello"), 5, content_type="text/x", metadata={"x": "y"})
    minio.put_object(
        bucket, "parts", io.BytesIO(data), -1, part_size=5 * MIB, num_parallel_uploads=3
    )  # of unknown length
    minio.put_object(bucket, "empty", io.BytesIO(b""), 0)
    stat = minio.stat_object(bucket, "a/b c.txt")
    assert (stat.size, stat.content_type) == (5, "text/x")
    assert stat.metadata is not None and stat.metadata["x-amz-meta-x"] == "y"
    assert (minio.stat_object(bucket, "parts").etag or "").endswith("-3")
    assert body(minio.get_object(bucket, "parts", offset=100, length=50)) == data[100:150]
    minio.fget_object(bucket, "parts", str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == data

    minio.copy_object(bucket, "copy", CopySource(bucket, "a/b c.txt"))
    minio.compose_object(bucket, "both", [ComposeSource(bucket, "parts"), ComposeSource(bucket, "a/b c.txt")])
    assert body(minio.get_object(bucket, "both")) == data + b"hello"
    names = [each.object_name for each in minio.list_objects(bucket)]
    assert sorted(map(str, names)) == ["a/", "both", "copy", "empty", "parts"]
    names.remove("a/")
    assert names == [each.object_name for each in minio.list_objects(bucket, start_after="a/z")]
    with pytest.raises(S3Error, match="NoSuchKey"):
        minio.get_object(bucket, "none")
    left = minio.remove_objects(bucket, [DeleteObject(str(name)) for name in ("a/b c.txt", *names)])
    assert list(left) == []
    minio.remove_bucket(bucket)


def test_versions_and_tags(minio: Minio, bucket: str) -> None:
    minio.set_bucket_versioning(bucket, VersioningConfig(ENABLED))
    first = minio.put_object(bucket, "k", io.BytesIO(b"1"), 1)
    minio.remove_object(bucket, "k")
    versions = list(minio.list_objects(bucket, include_version=True))
    assert sorted((each.is_delete_marker, each.is_latest) for each in versions) == [
        (False, "false"), (True, "true"),
    ]  # fmt: skip
    assert body(minio.get_object(bucket, "k", version_id=first.version_id)) == b"1"

    tags = Tags.new_object_tags()
    tags["k"] = "ü"
    minio.set_object_tags(bucket, "k", tags, version_id=first.version_id)
    assert minio.get_object_tags(bucket, "k", version_id=first.version_id) == tags
    assert minio.get_bucket_tags(bucket) is None
    list(
        minio.remove_objects(
            bucket, [DeleteObject(str(each.object_name), each.version_id) for each in versions]
        )
    )
    minio.remove_bucket(bucket)


def test_locks_are_kept_and_bypassed(minio: Minio, bucket: str) -> None:
    locked = f"{bucket}-2"
    minio.make_bucket(locked, object_lock=True)
    until = datetime.now(UTC) + timedelta(days=1)
    put = minio.put_object(
        locked, "k", io.BytesIO(b"1"), 1, retention=Retention(GOVERNANCE, until), legal_hold=True
    )
    kept = minio.get_object_retention(locked, "k")
    assert kept is not None and kept.mode == GOVERNANCE
    assert minio.is_object_legal_hold_enabled(locked, "k")
    minio.disable_object_legal_hold(locked, "k")
    assert not minio.is_object_legal_hold_enabled(locked, "k")
    wanted = [DeleteObject("k", put.version_id)]
    assert [error.code for error in minio.remove_objects(locked, wanted)] == ["AccessDenied"]
    assert list(minio.remove_objects(locked, wanted, bypass_governance_mode=True)) == []


def test_rules_policies_urls_and_forms(minio: Minio, bucket: str, shop: Server) -> None:
    rule = Rule(ENABLED, rule_filter=Filter(prefix="x/"), rule_id="r", expiration=Expiration(days=3))
    minio.set_bucket_lifecycle(bucket, LifecycleConfig([rule]))
    kept = minio.get_bucket_lifecycle(bucket)
    assert kept is not None and kept.rules[0].expiration is not None and kept.rules[0].expiration.days == 3
    minio.delete_bucket_lifecycle(bucket)
    assert minio.get_bucket_lifecycle(bucket) is None
    with pytest.raises(S3Error, match="NoSuchBucketPolicy"):
        minio.get_bucket_policy(bucket)

    with urlopen(Request(minio.presigned_put_object(bucket, "k"), data=b"put", method="PUT")) as answer:
        assert answer.status == 200
    with urlopen(minio.presigned_get_object(bucket, "k", expires=timedelta(minutes=1))) as answer:
        assert answer.read() == b"put"
    policy = PostPolicy(bucket, datetime.now(UTC) + timedelta(minutes=1))
    policy.add_starts_with_condition("key", "form/")
    policy.add_content_length_range_condition(1, 10)
    fields = minio.presigned_post_policy(policy) | {"key": "form/k"}
    data, content_type = form_body(fields, b"form")
    with urlopen(Request(f"{shop.endpoint}/{bucket}", data, {"content-type": content_type})) as answer:
        assert answer.status == 204
    assert body(minio.get_object(bucket, "form/k")) == b"form"
