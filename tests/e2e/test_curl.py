"""curl: signed by itself, and with URLs and forms that others have signed."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from tests.e2e.harness import ACCESS_KEY, DOMAIN, SECRET_KEY, Server, clean_environment, run
from tests.e2e.installed import missing

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(missing("curl")), reason=missing("curl")),
]


def curl(*arguments: str) -> str:
    return run(["curl", "--silent", "--show-error", "--noproxy", "*", *arguments], clean_environment())


def can_sign() -> bool:
    """--aws-sigv4 with a session token and a payload hash of one's own came with curl 7.75; older ones know nothing."""
    known = subprocess.run(["curl", "--help", "all"], capture_output=True, text=True).stdout
    return "--aws-sigv4" in known


@pytest.mark.skipif(
    bool(missing("curl")) or not can_sign(),
    reason=missing("curl") or "NOT PROVED HERE: this curl is older than 7.75, which brought --aws-sigv4",
)
def test_curl_signs_its_own_requests(shop: Server, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("hello")
    me = ("--aws-sigv4", "aws:amz:us-east-1:s3", "--user", f"{ACCESS_KEY}:{SECRET_KEY}")

    def signed(data: bytes, *arguments: str) -> str:
        """curl before 8 leaves out the header that S3 wants."""
        digest = hashlib.sha256(data).hexdigest()
        return curl(*me, "-H", f"x-amz-content-sha256: {digest}", *arguments)

    root = f"{shop.endpoint}/curl-signed"
    signed(b"", "--fail", "-X", "PUT", root)
    # With -T a file would go unsigned and chunked; with --data-binary curl hashes it.
    put = ("-X", "PUT", "-H", "content-type: text/x", "-H", "x-amz-meta-colour: blue")
    signed(b"hello", "--fail", *put, "--data-binary", f"@{tmp_path / 'f'}", f"{root}/a/k")
    assert signed(b"", "--fail", f"{root}/a/k") == "hello"
    head = signed(b"", "--fail", "--head", f"{root}/a/k").lower()
    assert "content-type: text/x" in head and "x-amz-meta-colour: blue" in head
    assert "<Key>a/k</Key>" in signed(b"", "--fail", f"{root}?list-type=2&prefix=a")
    assert "XAmzContentSHA256Mismatch" in signed(b"other", "-X", "PUT", "--data-binary", "hello", f"{root}/k")
    signed(b"", "--fail", "-X", "DELETE", f"{root}/a/k")
    assert "<Code>NoSuchKey</Code>" in signed(b"", f"{root}/a/k")


@pytest.mark.parametrize("version", ["s3", "s3v4"])
def test_curl_opens_presigned_urls(shop: Server, tmp_path: Path, version: str) -> None:
    bucket = f"curl-{version}"
    boto, signer = shop.boto(), shop.boto(signature_version=version)
    boto.create_bucket(Bucket=bucket)
    (tmp_path / "f").write_bytes(bytes(range(256)) * 1000)

    def url(operation: str, **arguments: str) -> str:
        made: str = signer.generate_presigned_url(
            operation, {"Bucket": bucket, "Key": "a b/ü+&=", **arguments}, ExpiresIn=60
        )
        return made

    # -T asks for 100 Continue first; from standard input curl sends it chunked.
    curl("--fail", "-H", "expect: 100-continue", "-T", str(tmp_path / "f"), url("put_object"))
    curl("--fail", "-o", str(tmp_path / "back"), url("get_object"))
    assert (tmp_path / "back").read_bytes() == (tmp_path / "f").read_bytes()
    curl("--fail", "-o", str(tmp_path / "part"), "--range", "256-511", url("get_object"))
    assert (tmp_path / "part").read_bytes() == bytes(range(256))
    (tmp_path / "resumed").write_bytes(bytes(range(256)) * 500)
    curl("--fail", "-C", "-", "-o", str(tmp_path / "resumed"), url("get_object"))
    assert (tmp_path / "resumed").read_bytes() == (tmp_path / "f").read_bytes()
    assert "HTTP/1.1 200" in curl("--fail", "--head", url("head_object"))
    named = curl("--head", "-X", "GET", url("get_object", ResponseContentDisposition="attachment"))
    assert "content-disposition: attachment" in named.lower()
    assert "403" in curl("-o", "/dev/null", "-w", "%{http_code}", "-X", "DELETE", url("get_object"))
    etag = boto.head_object(Bucket=bucket, Key="a b/ü+&=")["ETag"]
    assert "304" in curl(
        "-o", "/dev/null", "-w", "%{http_code}", "-H", f"if-none-match: {etag}", url("get_object")
    )
    curl("--fail", "-X", "DELETE", url("delete_object"))
    assert "404" in curl("-o", "/dev/null", "-w", "%{http_code}", url("get_object"))


def test_curl_posts_a_form_to_a_virtual_host(shop: Server, tmp_path: Path) -> None:
    boto = shop.boto()
    boto.create_bucket(Bucket="curl-form")
    fields: dict[str, str] = {"success_action_status": "201", "Content-Type": "text/x"}
    conditions: list[dict[str, str]] = [{name: value} for name, value in fields.items()]
    post = boto.generate_presigned_post("curl-form", "k/${filename}", fields, conditions)
    (tmp_path / "name.txt").write_text("in a form")
    form = [word for name, value in post["fields"].items() for word in ("--form-string", f"{name}={value}")]
    address = f"http://curl-form.{DOMAIN}:{shop.port}/"
    said = curl("--fail", "--resolve", f"curl-form.{DOMAIN}:{shop.port}:127.0.0.1", *form,
                "-F", f"file=@{tmp_path / 'name.txt'}", address)  # fmt: skip
    assert "<Key>k/name.txt</Key>" in said and f"<Location>{address}" in said
    got = boto.get_object(Bucket="curl-form", Key="k/name.txt")
    assert (got["Body"].read(), got["ContentType"]) == (b"in a form", "text/x")


def test_anybody_reads_what_a_policy_opens_and_no_more(shop: Server) -> None:
    boto = shop.boto()
    boto.create_bucket(Bucket="curl-open")
    boto.put_object(Bucket="curl-open", Key="open/k", Body=b"hello")
    boto.put_object(Bucket="curl-open", Key="k", Body=b"secret")
    allow = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": "s3:GetObject",
        "Resource": "arn:aws:s3:::curl-open/open/*",
    }
    boto.put_bucket_policy(
        Bucket="curl-open", Policy=json.dumps({"Version": "2012-10-17", "Statement": [allow]})
    )
    root = f"{shop.endpoint}/curl-open"
    assert curl("--fail", f"{root}/open/k") == "hello"
    # Whoever may not list does not learn what is missing.
    for path in ("/k", "/open/none", "", "?policy"):
        assert "<Code>AccessDenied</Code>" in curl(f"{root}{path}"), path
    # What an anonymous request may not change: the headers of the answer.
    assert "<Code>InvalidRequest</Code>" in curl(f"{root}/open/k?response-content-type=text%2Fhtml")
