"""Temporary credentials through awscli: good in every worker process, and after the server was killed.

Must not know: how a token is made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.e2e.harness import client_environment, run, serving, tool

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

ROLE = """
[[roles]]
name = "reader"
trust = ["*"]
policy = '''{"Version": "2012-10-17", "Statement": [
  {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::shop/*"}]}'''
"""


def aws(environment: Mapping[str, str], endpoint: str, *arguments: str, check: bool = True) -> str:
    return run([tool("aws"), "--endpoint-url", endpoint, *arguments], environment, check=check)


def test_a_role_is_good_in_every_worker_and_after_a_kill(tmp_path: Path) -> None:
    settings = tmp_path / "cordwood.toml"
    settings.write_text(ROLE)
    page = tmp_path / "page"
    page.write_bytes(b"page")
    with serving(tmp_path / "server", workers=3, options=("--config", str(settings))) as server:
        own = client_environment(server)
        aws(own, server.endpoint, "s3", "mb", "s3://shop")
        aws(own, server.endpoint, "s3", "cp", str(page), "s3://shop/page")
        owner = json.loads(aws(own, server.endpoint, "sts", "get-caller-identity"))["Account"]
        role = f"arn:aws:iam::{owner}:role/reader"
        keys = json.loads(
            aws(own, server.endpoint, "sts", "assume-role", "--role-arn", role, "--role-session-name", "me")
        )["Credentials"]
        session = own | {
            "AWS_ACCESS_KEY_ID": keys["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": keys["SecretAccessKey"],
            "AWS_SESSION_TOKEN": keys["SessionToken"],
        }

        def reads() -> str:
            return aws(session, server.endpoint, "s3", "cp", "s3://shop/page", "-")

        assert [reads() for _ in range(8)] == ["page"] * 8  # each command connects anew, to any worker
        refused = aws(session, server.endpoint, "s3", "cp", str(page), "s3://shop/other", check=False)
        assert "AccessDenied" in refused
        server.kill()
        server.start()
        assert reads() == "page"
        assert server.stop() == 0
        (server.directory / "session-key").unlink()
        server.start()
        ended = aws(session, server.endpoint, "s3", "cp", "s3://shop/page", "-", check=False)
        assert "InvalidToken" in ended or "400" in ended
        assert server.stop() == 0
        for secret in (keys["SecretAccessKey"], keys["SessionToken"]):
            assert secret not in server.log.read_text(errors="replace")
