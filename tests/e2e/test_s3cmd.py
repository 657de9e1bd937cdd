"""s3cmd: what it does beyond moving trees, which test_tools.py has."""

from __future__ import annotations

import json
import os
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from tests.e2e.harness import MIB, Server

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def facts(shop: Server, target: str) -> dict[str, str]:
    """What `s3cmd info` says, by its first column; several lines of one name are joined."""
    said: dict[str, str] = {}
    for line in shop.s3cmd("info", target).splitlines()[1:]:
        name, _, value = line.strip().partition(":")
        said[name] = f"{said[name]}, {value.strip()}" if name in said else value.strip()
    return said


def test_an_object_is_described_listed_for_others_and_signed(shop: Server, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("hello")
    shop.s3cmd("mb", "s3://cmd-one")
    shop.s3cmd("put", str(tmp_path / "f"), "s3://cmd-one/f", "--acl-public", "--mime-type", "text/x",
               "--add-header", "x-amz-meta-colour:blue", "--storage-class", "STANDARD_IA")  # fmt: skip
    said = facts(shop, "s3://cmd-one/f")
    assert (said["MIME type"], said["Storage"], said["x-amz-meta-colour"]) == (
        "text/x",
        "STANDARD_IA",
        "blue",
    )
    assert "*anon*: READ" in said["ACL"]
    url = f"{shop.endpoint}/cmd-one/f"
    with urlopen(url) as answer:
        assert answer.read() == b"hello"
    shop.s3cmd("setacl", "--acl-private", "s3://cmd-one/f")
    with pytest.raises(HTTPError, match="403"):
        urlopen(url)
    shop.s3cmd("setacl", "--acl-grant=read:bob", "s3://cmd-one/f")
    assert "Bob: READ" in facts(shop, "s3://cmd-one/f")["ACL"]
    with urlopen(shop.s3cmd("signurl", "s3://cmd-one/f", "+60").strip()) as answer:
        assert answer.read() == b"hello"

    shop.s3cmd("modify", "--add-header=x-amz-meta-new:1", "s3://cmd-one/f")
    shop.s3cmd("cp", "s3://cmd-one/f", "s3://cmd-one/g")
    shop.s3cmd("mv", "s3://cmd-one/g", "s3://cmd-one/h")
    said = facts(shop, "s3://cmd-one/h")
    assert (said["x-amz-meta-colour"], said["x-amz-meta-new"]) == ("blue", "1")
    shop.s3cmd("settagging", "s3://cmd-one/h", "k=v")
    assert "k:" in shop.s3cmd("gettagging", "s3://cmd-one/h")
    shop.s3cmd("rb", "--recursive", "--force", "s3://cmd-one")


def test_a_bucket_takes_and_tells_its_settings(shop: Server, tmp_path: Path) -> None:
    shop.s3cmd("mb", "s3://cmd-two")
    allow = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": "s3:GetObject",
        "Resource": "arn:aws:s3:::cmd-two/*",
    }
    (tmp_path / "policy").write_text(json.dumps({"Version": "2012-10-17", "Statement": [allow]}))
    (tmp_path / "cors").write_text(
        "<CORSConfiguration><CORSRule><AllowedOrigin>*</AllowedOrigin><AllowedMethod>GET</AllowedMethod>"
        "</CORSRule></CORSConfiguration>"
    )
    shop.s3cmd("setpolicy", str(tmp_path / "policy"), "s3://cmd-two")
    shop.s3cmd("setcors", str(tmp_path / "cors"), "s3://cmd-two")
    shop.s3cmd("expire", "s3://cmd-two", "--expiry-days=3", "--expiry-prefix=x/")
    shop.s3cmd("setversioning", "s3://cmd-two", "enable")
    shop.s3cmd("setownership", "s3://cmd-two", "BucketOwnerPreferred")
    said = facts(shop, "s3://cmd-two")
    assert said["Location"] == "us-east-1" and said["Payer"] == "BucketOwner"
    assert said["Versioning"] == "Enabled" and said["Ownership"] == "BucketOwnerPreferred"
    assert "will expire in '3' day(s)" in said["Expiration Rule"]
    assert json.loads(said["Policy"])["Statement"] == [allow] and "AllowedMethod" in str(said)
    for undo in ("delpolicy", "delcors", "dellifecycle"):
        shop.s3cmd(undo, "s3://cmd-two")
    said = facts(shop, "s3://cmd-two")
    assert (said["Policy"], said["CORS"], said["Expiration rule"]) == ("none", "none", "none")


def test_uploads_are_listed_and_aborted_and_syncs_remove(shop: Server, tmp_path: Path) -> None:
    boto = shop.boto()
    shop.s3cmd("mb", "s3://cmd-three")
    upload = boto.create_multipart_upload(Bucket="cmd-three", Key="left")["UploadId"]
    assert upload in shop.s3cmd("multipart", "s3://cmd-three")
    shop.s3cmd("abortmp", "s3://cmd-three/left", upload)
    assert upload not in shop.s3cmd("multipart", "s3://cmd-three")

    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "big").write_bytes(os.urandom(12 * MIB))
    (folder / "small").write_text("1")
    shop.s3cmd("sync", "--multipart-chunk-size-mb=5", f"{folder}/", "s3://cmd-three/d/")
    (folder / "small").unlink()
    shop.s3cmd("sync", "--delete-removed", f"{folder}/", "s3://cmd-three/d/")
    shop.s3cmd("sync", "s3://cmd-three/d/", "s3://cmd-three/e/")
    (tmp_path / "out").mkdir()
    shop.s3cmd("get", "--recursive", "s3://cmd-three/e/", f"{tmp_path}/out/")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["big"]
    assert (tmp_path / "out/big").read_bytes() == (folder / "big").read_bytes()
    assert shop.s3cmd("du", "s3://cmd-three").split()[:2] == [str(24 * MIB), "2"]
