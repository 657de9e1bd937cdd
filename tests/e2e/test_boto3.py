"""boto3 and s3transfer: every checksum, both addressing styles, every way to send and receive a body."""

from __future__ import annotations

import hashlib
import io
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import boto3
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError, FlexibleChecksumError

from tests.e2e.harness import (
    ACCESS_KEY,
    BOB_ACCESS_KEY,
    BOB_SECRET_KEY,
    DOMAIN,
    MIB,
    REGION,
    SECRET_KEY,
    Server,
    form_body,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

ALGORITHMS = ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"]
PARTS = TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB, max_concurrency=4)


@pytest.fixture(scope="module")
def s3(shop: Server) -> Any:
    return shop.boto()


@pytest.fixture(scope="module")
def data() -> bytes:
    return os.urandom(12 * MIB + 5)


@pytest.fixture
def bucket(s3: Any, request: pytest.FixtureRequest) -> str:
    digest = hashlib.sha256(request.node.name.encode()).hexdigest()[:16]
    s3.create_bucket(Bucket=f"boto3-{digest}")
    return f"boto3-{digest}"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_travels_with_objects_and_parts(
    s3: Any, bucket: str, data: bytes, algorithm: str
) -> None:
    """The SDK verifies what it gets back, and would raise."""
    member = f"Checksum{algorithm}"
    put = s3.put_object(Bucket=bucket, Key="small", Body=b"data", ChecksumAlgorithm=algorithm)
    got = s3.get_object(Bucket=bucket, Key="small", ChecksumMode="ENABLED")
    assert got["Body"].read() == b"data" and got[member] == put[member]

    s3.upload_fileobj(io.BytesIO(data), bucket, "parts", {"ChecksumAlgorithm": algorithm}, Config=PARTS)
    head = s3.head_object(Bucket=bucket, Key="parts", ChecksumMode="ENABLED")
    is_full = head["ChecksumType"] == "FULL_OBJECT"
    assert is_full == (algorithm == "CRC64NVME") and head[member].endswith("-3") != is_full
    back = io.BytesIO()
    s3.download_fileobj(bucket, "parts", back, Config=PARTS)
    assert back.getvalue() == data
    attributes = s3.get_object_attributes(Bucket=bucket, Key="parts", ObjectAttributes=["ObjectParts"])
    assert [part["Size"] for part in attributes["ObjectParts"]["Parts"]] == [5 * MIB, 5 * MIB, 2 * MIB + 5]


def test_a_wrong_checksum_is_refused_and_a_wrong_body_noticed(
    s3: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ClientError, match="BadDigest"):
        s3.put_object(Bucket=bucket, Key="k", Body=b"data", ChecksumCRC32="AAAAAA==")
    s3.put_object(Bucket=bucket, Key="k", Body=b"data")
    monkeypatch.setattr("botocore.httpchecksum.Crc32Checksum.digest", lambda self: b"\0\0\0\0", raising=False)
    monkeypatch.setattr(
        "botocore.httpchecksum.CrtCrc32Checksum.digest", lambda self: b"\0\0\0\0", raising=False
    )
    with pytest.raises(FlexibleChecksumError):
        s3.get_object(Bucket=bucket, Key="k")["Body"].read()


def test_bodies_come_and_go_in_every_shape(s3: Any, bucket: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(data)
    with (tmp_path / "file").open("rb") as stream:
        s3.put_object(Bucket=bucket, Key="stream", Body=stream)
    for body in (b"", b"x", bytearray(b"array"), io.BytesIO(b"memory"), "text"):
        s3.put_object(Bucket=bucket, Key="k", Body=body)
        expected = body.getvalue() if isinstance(body, io.BytesIO) else body
        expected = expected.encode() if isinstance(expected, str) else bytes(expected)
        assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == expected
    streaming = s3.get_object(Bucket=bucket, Key="stream")["Body"]
    assert b"".join(streaming.iter_chunks(100_000)) == data

    seen: list[int] = []
    s3.upload_file(str(tmp_path / "file"), bucket, "file", Config=PARTS, Callback=seen.append)
    s3.download_file(bucket, "file", str(tmp_path / "back"), Config=PARTS)
    assert sum(seen) == len(data) and (tmp_path / "back").read_bytes() == data
    s3.copy({"Bucket": bucket, "Key": "file"}, bucket, "copy", Config=PARTS)
    back = io.BytesIO()
    s3.download_fileobj(bucket, "copy", back, Config=TransferConfig(use_threads=False))
    assert back.getvalue() == data


def test_virtual_hosts_serve_every_operation(
    shop: Server, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *rest, **options: resolve(
            "127.0.0.1" if str(host).endswith(DOMAIN) else host, *rest, **options
        ),
    )
    settings = {"s3": {"addressing_style": "virtual"}, "retries": {"total_max_attempts": 1}}
    s3 = boto3.client(
        "s3",
        endpoint_url=f"http://{DOMAIN}:{shop.port}",
        region_name=REGION,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=Config(**settings),
    )
    s3.create_bucket(Bucket="by-host")
    s3.upload_fileobj(io.BytesIO(data), "by-host", "a/ü +&", Config=PARTS)
    back = io.BytesIO()
    s3.download_fileobj("by-host", "a/ü +&", back)
    assert back.getvalue() == data
    assert [each["Key"] for each in s3.list_objects_v2(Bucket="by-host")["Contents"]] == ["a/ü +&"]
    assert "by-host" in [each["Name"] for each in s3.list_buckets()["Buckets"]]
    for version in ("s3", "s3v4"):
        signer = boto3.client(
            "s3",
            endpoint_url=f"http://{DOMAIN}:{shop.port}",
            region_name=REGION,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(signature_version=version, s3={"addressing_style": "virtual"}),
        )
        url = signer.generate_presigned_url("get_object", {"Bucket": "by-host", "Key": "a/ü +&"})
        assert urlsplit(url).hostname == f"by-host.{DOMAIN}"
        with urlopen(url) as answer:
            assert answer.read() == data
    post = s3.generate_presigned_post("by-host", "form")
    assert urlsplit(post["url"]).hostname == f"by-host.{DOMAIN}"
    body, content_type = form_body(post["fields"], b"in a form")
    with urlopen(Request(post["url"], body, {"content-type": content_type})) as answer:
        assert answer.status == 204
    s3.delete_objects(Bucket="by-host", Delete={"Objects": [{"Key": "a/ü +&"}, {"Key": "form"}]})
    s3.delete_bucket(Bucket="by-host")


def test_paginators_and_waiters_run_to_their_end(s3: Any, bucket: str) -> None:
    names = [f"{letter}/{number}" for letter in "ab" for number in range(7)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: s3.put_object(Bucket=bucket, Key=name, Body=b""), names))
    s3.get_waiter("object_exists").wait(Bucket=bucket, Key="a/1")
    for operation in ("list_objects", "list_objects_v2"):
        pages = s3.get_paginator(operation).paginate(Bucket=bucket, PaginationConfig={"PageSize": 3})
        assert [each["Key"] for page in pages for each in page["Contents"]] == names
    pages = s3.get_paginator("list_object_versions").paginate(Bucket=bucket, PaginationConfig={"PageSize": 3})
    assert [each["Key"] for page in pages for each in page["Versions"]] == names
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    for name in names:
        s3.delete_object(Bucket=bucket, Key=name)
    s3.get_waiter("object_not_exists").wait(Bucket=bucket, Key="a/1")
    resource = boto3.resource(
        "s3",
        endpoint_url=s3.meta.endpoint_url,
        region_name=REGION,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
    ).Bucket(bucket)
    assert list(resource.objects.all()) == []
    assert len(list(resource.object_versions.all())) == 2 * len(names)
    resource.object_versions.delete()
    resource.delete()
    s3.get_waiter("bucket_not_exists").wait(Bucket=bucket)


def test_a_second_owner_gets_in_by_policy_and_list_only(shop: Server, s3: Any, bucket: str) -> None:
    bob = boto3.client(
        "s3",
        endpoint_url=shop.endpoint,
        region_name=REGION,
        aws_access_key_id=BOB_ACCESS_KEY,
        aws_secret_access_key=BOB_SECRET_KEY,
    )
    s3.put_object(Bucket=bucket, Key="k", Body=b"1")
    with pytest.raises(ClientError, match="AccessDenied"):
        bob.get_object(Bucket=bucket, Key="k")
    s3.put_bucket_policy(
        Bucket=bucket,
        Policy=(
            '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow",'
            ' "Principal": {"AWS": "arn:aws:iam::bob:root"}, "Action": ["s3:GetObject", "s3:PutObject"],'
            f' "Resource": "arn:aws:s3:::{bucket}/*"}}]}}'
        ),
    )
    assert bob.get_object(Bucket=bucket, Key="k")["Body"].read() == b"1"
    with pytest.raises(ClientError, match="AccessDenied"):
        bob.list_objects_v2(Bucket=bucket)
    bob.upload_fileobj(io.BytesIO(bytes(6 * MIB)), bucket, "bobs", Config=PARTS)
    with pytest.raises(ClientError, match="AccessDenied"):
        bob.delete_object(Bucket=bucket, Key="bobs")
