"""The commands of `aws s3`, with the options that people use.

One server for the session; every test has buckets of its own.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from tests.e2e.harness import (
    BOB_ACCESS_KEY,
    BOB_SECRET_KEY,
    DOMAIN,
    MIB,
    AwsShell,
    Server,
    client_environment,
    md5_of,
    multipart_etag,
    run,
    tool,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    for name, text in {"a.txt": "a", "b.log": "b", "sub/c.txt": "c", "sub/deep/d.txt": "d"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_a_copy_keeps_what_was_said_about_the_object(aws: AwsShell, shop: Server, folder: Path) -> None:
    aws("s3", "mb", "s3://cp-described")
    aws(
        "s3", "cp", str(folder / "a.txt"), "s3://cp-described/a",
        "--metadata", "colour=blue,size=3", "--content-type", "text/x-odd", "--cache-control", "max-age=60",
        "--content-disposition", 'attachment; filename="a.txt"', "--content-language", "de",
        "--content-encoding", "identity", "--expires", "2030-01-02T03:04:05Z", "--storage-class", "STANDARD_IA",
        "--website-redirect", "/elsewhere", "--checksum-algorithm", "SHA256",
    )  # fmt: skip
    head = shop.boto().head_object(Bucket="cp-described", Key="a", ChecksumMode="ENABLED")
    described = {
        "ContentType": "text/x-odd",
        "CacheControl": "max-age=60",
        "ContentDisposition": 'attachment; filename="a.txt"',
        "ContentLanguage": "de",
        "ContentEncoding": "identity",
        "Metadata": {"colour": "blue", "size": "3"},
        "StorageClass": "STANDARD_IA",
        "WebsiteRedirectLocation": "/elsewhere",
        "ChecksumSHA256": "ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs=",
    }
    assert {name: head.get(name) for name in described} == described
    assert head["ExpiresString"] == "Wed, 02 Jan 2030 03:04:05 GMT"

    aws("s3", "cp", "s3://cp-described/a", "s3://cp-described/b")
    copied = shop.boto().head_object(Bucket="cp-described", Key="b")
    # A copy takes neither the storage class nor the redirect of its source.
    assert "StorageClass" not in copied and "WebsiteRedirectLocation" not in copied
    assert copied["Metadata"] == {"colour": "blue", "size": "3"} and copied["ContentLanguage"] == "de"
    aws("s3", "cp", "s3://cp-described/a", "s3://cp-described/b", "--metadata-directive", "REPLACE",
        "--metadata", "new=1")  # fmt: skip
    assert shop.boto().head_object(Bucket="cp-described", Key="b")["Metadata"] == {"new": "1"}


def test_sync_deletes_includes_and_excludes(aws: AwsShell, folder: Path, tmp_path: Path) -> None:
    def keys() -> list[str]:
        listed = aws("s3api", "list-objects-v2", "--bucket", "sync-away", "--query", "Contents[].Key")
        return sorted(listed or [])

    aws("s3", "mb", "s3://sync-away")
    aws("s3", "sync", str(folder), "s3://sync-away/p", "--exclude", "*.log")
    assert keys() == ["p/a.txt", "p/sub/c.txt", "p/sub/deep/d.txt"]
    aws("s3", "sync", str(folder), "s3://sync-away/p")
    assert "p/b.log" in keys()
    (folder / "a.txt").unlink()
    (folder / "sub/c.txt").write_text("other")
    aws("s3", "sync", str(folder), "s3://sync-away/p", "--delete", "--exclude", "b.*")
    assert keys() == ["p/b.log", "p/sub/c.txt", "p/sub/deep/d.txt"]
    aws("s3", "sync", "s3://sync-away/p", "s3://sync-away/q", "--exclude", "*", "--include", "sub/*")
    assert keys()[-2:] == ["q/sub/c.txt", "q/sub/deep/d.txt"]
    aws("s3", "sync", "s3://sync-away/q", str(tmp_path / "out"), "--exact-timestamps")
    assert (tmp_path / "out/sub/c.txt").read_text() == "other"
    (tmp_path / "out/extra").write_text("")
    aws("s3", "sync", "s3://sync-away/q", str(tmp_path / "out"), "--delete", "--page-size", "1")
    assert not (tmp_path / "out/extra").exists()


def test_streams_go_in_and_out(shop: Server, aws: AwsShell) -> None:
    aws("s3", "mb", "s3://streams")
    data = os.urandom(9 * MIB)
    environment = client_environment(shop)
    command = shop.aws_command("s3", "cp", "-", "s3://streams/in", "--expected-size", str(len(data)))
    subprocess.run(command, input=data, env=environment, check=True)
    done = subprocess.run(
        shop.aws_command("s3", "cp", "s3://streams/in", "-"), env=environment, check=True, capture_output=True
    )
    assert done.stdout == data


def test_a_large_copy_within_the_server_goes_part_by_part(aws: AwsShell, tmp_path: Path) -> None:
    """Above 8 MiB awscli copies ranges into a multipart upload; this awscli then leaves the metadata behind."""
    big = tmp_path / "big"
    big.write_bytes(os.urandom(17 * MIB))
    aws("s3", "mb", "s3://copy-parts")
    aws("s3", "cp", str(big), "s3://copy-parts/one")
    aws(
        "s3", "cp", "s3://copy-parts/one", "s3://copy-parts/two", "--metadata", "m=1", "--content-type", "x/y"
    )
    aws("s3", "mv", "s3://copy-parts/two", "s3://copy-parts/three", "--metadata", "m=2")
    head = aws("s3api", "head-object", "--bucket", "copy-parts", "--key", "three")
    assert head["ETag"].strip('"') == multipart_etag(big, 8 * MIB)
    assert head["Metadata"] == {"m": "2"}
    assert aws.ask("s3", "ls", "s3://copy-parts/two")[0] == 1
    aws("s3", "cp", "s3://copy-parts/three", str(tmp_path / "back"))
    assert md5_of(tmp_path / "back") == md5_of(big)


def test_listing_removing_and_forcing_a_bucket_away(aws: AwsShell, folder: Path) -> None:
    aws("s3", "mb", "s3://ls-rm")
    aws("s3", "cp", str(folder), "s3://ls-rm/", "--recursive")
    listed = aws("s3", "ls", "s3://ls-rm/", "--human-readable", "--summarize")
    assert "PRE sub/" in listed and "Total Objects: 2" in listed
    assert aws("s3", "ls", "s3://ls-rm/su").split() == ["PRE", "sub/"]
    code, _, _ = aws.ask("s3", "ls", "s3://ls-rm/nothing")
    assert code == 1, "awscli ends with 1 when a prefix holds nothing"
    aws("s3", "rm", "s3://ls-rm/", "--recursive", "--exclude", "*", "--include", "*.txt")
    assert aws("s3", "ls", "--recursive", "s3://ls-rm/").split()[-1] == "b.log"
    assert "BucketNotEmpty" in aws.ask("s3", "rb", "s3://ls-rm")[2]
    aws("s3", "rb", "s3://ls-rm", "--force")
    assert "NoSuchBucket" in aws.ask("s3", "ls", "s3://ls-rm")[2]


def test_a_presigned_url_opens_for_whoever_holds_it(aws: AwsShell, shop: Server, folder: Path) -> None:
    aws("s3", "mb", "s3://presign")
    aws("s3", "cp", str(folder / "a.txt"), "s3://presign/sp ace/ü.txt")
    url = aws("s3", "presign", "s3://presign/sp ace/ü.txt", "--expires-in", "60").strip()
    with urlopen(url) as answer:
        assert answer.read() == b"a"


def test_grants_and_canned_lists_decide_for_others(aws: AwsShell, shop: Server, folder: Path) -> None:
    aws("s3", "mb", "s3://granted")
    aws("s3", "cp", str(folder / "a.txt"), "s3://granted/public", "--acl", "public-read")
    aws("s3", "cp", str(folder / "a.txt"), "s3://granted/bob", "--grants", "read=id=bob")
    aws("s3", "cp", str(folder / "a.txt"), "s3://granted/mine")
    bob = client_environment(shop) | {
        "AWS_ENDPOINT_URL": shop.endpoint,
        "AWS_ACCESS_KEY_ID": BOB_ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": BOB_SECRET_KEY,
    }
    with AwsShell(bob) as as_bob:
        assert as_bob("s3", "cp", "s3://granted/bob", "-") == "a"
        assert "403" in as_bob.ask("s3", "cp", "s3://granted/mine", "-")[2]
        assert "AccessDenied" in as_bob.ask("s3", "ls", "s3://granted")[2]
        assert "granted" not in (as_bob("s3", "ls") or "")
    assert aws("s3", "cp", "s3://granted/public", "-", "--no-sign-request") == "a"
    assert "403" in aws.ask("s3", "cp", "s3://granted/bob", "-", "--no-sign-request")[2]


def test_virtual_hosts_are_addressed_through_the_server_as_a_proxy(
    shop: Server, folder: Path, tmp_path: Path
) -> None:
    """No resolver knows the host names of a test; a proxy needs none, and sends absolute targets besides."""
    config = tmp_path / "config"
    config.write_text("[default]\ns3 =\n  addressing_style = virtual\n")
    environment = client_environment(shop) | {
        "AWS_CONFIG_FILE": str(config),
        "AWS_ENDPOINT_URL": f"http://{DOMAIN}:{shop.port}",
        "http_proxy": shop.endpoint,
    }
    with AwsShell(environment) as virtual:
        virtual("s3", "mb", "s3://virtual")
        virtual("s3", "sync", str(folder), "s3://virtual/p")
        assert virtual("s3", "cp", "s3://virtual/p/sub/c.txt", "-") == "c"
        assert "p/sub/deep/d.txt" in virtual("s3", "ls", "--recursive", "s3://virtual")
        virtual("s3", "rb", "--force", "s3://virtual")
    assert f"virtual.{DOMAIN}" in url_of(environment, "s3://virtual/p/a.txt")


def url_of(environment: dict[str, Any], target: str) -> str:
    return run([tool("aws"), "s3", "presign", target], environment)
