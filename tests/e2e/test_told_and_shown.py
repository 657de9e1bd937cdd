"""Website, notifications, access logs and torrents, as awscli sets them up and other programs see them."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.harness import Server, serving

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

QUEUE = "arn:aws:sqs:us-east-1:000000000000:queue"
SITE = "s3-website.test"


def eventually(is_true: Callable[[], bool], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.1)


def browse(server: Server, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request("GET", path, headers={"Host": f"site.{SITE}"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def statement(resource: str, action: str, principal: object) -> str:
    return json.dumps(
        {
            "Version": "2012-10-17",
            "Statement": {"Effect": "Allow", "Principal": principal, "Action": action, "Resource": resource},
        }
    )


def test_awscli_sets_a_site_its_notifications_and_its_log_up_and_all_of_them_work(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    config = tmp_path / "serve.toml"
    config.write_text(f'[[notification_targets]]\narn = "{QUEUE}"\nfile = "{events}"\n')
    options: tuple[str, ...] = ("--config", str(config), "--website-domain", SITE)
    options += ("--bucket-logging-interval", "1s", "--torrent-tracker", "http://tracker.test/announce")
    with serving(tmp_path / "server", options=options) as server:
        for bucket in ("site", "logs"):
            server.aws("s3", "mb", f"s3://{bucket}")
        policy = statement("arn:aws:s3:::site/*", "s3:GetObject", "*")
        server.aws("s3api", "put-bucket-policy", "--bucket", "site", "--policy", policy)
        delivery = {"Service": "logging.s3.amazonaws.com"}
        policy = statement("arn:aws:s3:::logs/*", "s3:PutObject", delivery)
        server.aws("s3api", "put-bucket-policy", "--bucket", "logs", "--policy", policy)

        server.aws("s3", "website", "s3://site/", "--index-document", "i.html", "--error-document", "e.html")
        rules = {"QueueConfigurations": [{"QueueArn": QUEUE, "Events": ["s3:ObjectCreated:*"]}]}
        server.aws(
            "s3api", "put-bucket-notification-configuration", "--bucket", "site",
            "--notification-configuration", json.dumps(rules),
        )  # fmt: skip
        logging = {"LoggingEnabled": {"TargetBucket": "logs", "TargetPrefix": "a/"}}
        server.aws(
            "s3api", "put-bucket-logging", "--bucket", "site", "--bucket-logging-status", json.dumps(logging)
        )
        shown = json.loads(server.aws("s3api", "get-bucket-logging", "--bucket", "site"))
        assert shown["LoggingEnabled"]["TargetBucket"] == "logs"
        shown = json.loads(server.aws("s3api", "get-bucket-notification-configuration", "--bucket", "site"))
        assert shown["QueueConfigurations"][0]["QueueArn"] == QUEUE

        page = tmp_path / "page.html"
        page.write_text("<h1>hello</h1>")
        server.aws("s3", "cp", str(page), "s3://site/i.html")
        server.aws("s3", "cp", str(page), "s3://site/e.html")
        assert browse(server, "/") == (200, b"<h1>hello</h1>")
        assert browse(server, "/nothing") == (403, b"<h1>hello</h1>")

        torrent = tmp_path / "page.torrent"
        server.aws("s3api", "get-object-torrent", "--bucket", "site", "--key", "i.html", str(torrent))
        assert torrent.read_bytes().startswith(b"d8:announce28:http://tracker.test/announce4:info")

        eventually(lambda: events.exists() and len(events.read_text().splitlines()) == 3)
        told = [json.loads(line) for line in events.read_text().splitlines()]
        assert told[0]["Event"] == "s3:TestEvent"
        assert [each["Records"][0]["s3"]["object"]["key"] for each in told[1:]] == ["i.html", "e.html"]

        def logged() -> str:
            keys = server.aws("s3api", "list-objects-v2", "--bucket", "logs", "--query", "Contents[].Key")
            names = json.loads(keys or "null") or []
            return "".join(server.aws("s3", "cp", f"s3://logs/{name}", "-") for name in names)

        eventually(lambda: logged().count("WEBSITE.GET.OBJECT") == 2)
        assert "REST.PUT.OBJECT i.html" in logged()
        server.aws("s3api", "delete-bucket-website", "--bucket", "site")
        assert browse(server, "/")[0] == 404
        assert server.stop() == 0
