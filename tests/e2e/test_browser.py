"""A browser as a client: a form posts a file, and a page of another origin fetches what CORS lets it.

Needs Chromium and its driver, which pip does not bring; without them the tests are skipped and say so.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.e2e.harness import DOMAIN, Server
from tests.e2e.webdriver import Browser, browsing, chromium_and_driver

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(300),
    pytest.mark.xdist_group("browser"),
    pytest.mark.skipif(
        chromium_and_driver() is None,
        reason="NOT PROVED HERE: no Chromium with its driver here: apt-get install chromium chromium-driver",
    ),
]


class Pages:
    """A little web site of another origin than the server's."""

    def __init__(self) -> None:
        pages: dict[str, str] = {"/": "<title>page</title>"}
        self.pages = pages

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = pages.get(urlsplit(self.path).path, "").encode()
                self.send_response(200)
                self.send_header("content-type", "text/html; charset=utf-8")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """The test's output is not the place for these lines."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.origin = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture(scope="module")
def site() -> Iterator[Pages]:
    site = Pages()
    yield site
    site.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


def form_page(action: str, fields: dict[str, str]) -> str:
    inputs = "".join(f'<input type="hidden" name="{name}" value="{value}">' for name, value in fields.items())
    return (
        f'<form action="{action}" method="post" enctype="multipart/form-data">{inputs}'
        '<input type="file" name="file" id="file"><button id="send">Send</button></form>'
    )


@pytest.mark.parametrize("style", ["path", "virtual"])
def test_a_form_posts_a_file_and_comes_back_to_the_page(
    shop: Server, browser: Browser, site: Pages, tmp_path: Path, style: str
) -> None:
    bucket, boto = f"form-{style}", shop.boto()
    boto.create_bucket(Bucket=bucket)
    redirect = f"{site.origin}/done"
    fields: dict[str, str] = {"success_action_redirect": redirect, "x-amz-meta-from": "a browser"}
    conditions: list[Any] = [{name: value} for name, value in fields.items()]
    conditions += [["content-length-range", 1, 1000]]
    post = boto.generate_presigned_post(bucket, "in/${filename}", fields, conditions)
    action = post["url"] if style == "path" else f"http://{bucket}.{DOMAIN}:{shop.port}/"
    site.pages["/form"] = form_page(action, post["fields"])
    name = "Übung 1.txt"
    (tmp_path / name).write_text("from a form")

    browser.open(f"{site.origin}/form")
    browser.type_into("#file", str(tmp_path / name))
    browser.click("#send")
    arrived = urlsplit(browser.wait_to_leave(f"{site.origin}/form"))
    assert f"{arrived.scheme}://{arrived.netloc}{arrived.path}" == redirect, browser.text()
    got = boto.get_object(Bucket=bucket, Key=f"in/{name}")
    assert got["Body"].read() == b"from a form" and got["Metadata"] == {"from": "a browser"}
    assert parse_qs(arrived.query) == {"bucket": [bucket], "key": [f"in/{name}"], "etag": [got["ETag"]]}

    (tmp_path / name).write_text("x" * 1001)
    browser.open(f"{site.origin}/form")
    browser.type_into("#file", str(tmp_path / name))
    browser.click("#send")
    browser.wait_to_leave(f"{site.origin}/form")
    assert "EntityTooLarge" in browser.text()
    assert boto.get_object(Bucket=bucket, Key=f"in/{name}")["ContentLength"] == len("from a form")


FETCH = """
const [url, method, body, headers] = arguments;
const answer = await fetch(url, {method, body: body ?? undefined, headers: headers ?? {}, cache: "no-store"});
return {status: answer.status, text: await answer.text(), etag: answer.headers.get("etag"),
        meta: answer.headers.get("x-amz-meta-a"), range: answer.headers.get("content-range")};
"""


def test_a_page_fetches_what_cors_lets_it_and_nothing_else(
    shop: Server, browser: Browser, site: Pages
) -> None:
    # Version 4: version 2, boto3's default here, would sign a content type, which fetch chooses.
    boto = shop.boto(signature_version="s3v4")
    boto.create_bucket(Bucket="shared")
    boto.put_object(Bucket="shared", Key="k", Body=b"hello", Metadata={"a": "1"})
    get = boto.generate_presigned_url("get_object", {"Bucket": "shared", "Key": "k"})
    put = boto.generate_presigned_url("put_object", {"Bucket": "shared", "Key": "new"})
    missing = boto.generate_presigned_url("get_object", {"Bucket": "shared", "Key": "none"})
    browser.open(f"{site.origin}/")
    assert "Failed to fetch" in browser.wait_for(FETCH, get, "GET")["error"], (
        "no rules: the page sees nothing"
    )

    boto.put_bucket_cors(
        Bucket="shared",
        CORSConfiguration={
            "CORSRules": [
                {
                    "AllowedOrigins": [site.origin],
                    "AllowedMethods": ["GET", "PUT"],
                    "AllowedHeaders": ["range", "x-amz-*"],
                    "ExposeHeaders": ["ETag", "x-amz-meta-a", "Content-Range"],
                    "MaxAgeSeconds": 1,
                }
            ]
        },
    )
    read = browser.wait_for(FETCH, get, "GET")
    assert (read["status"], read["text"], read["meta"]) == (200, "hello", "1")
    assert read["etag"] == '"5d41402abc4b2a76b9719d911017c592"'
    part = browser.wait_for(FETCH, get, "GET", None, {"Range": "bytes=1-2"})
    assert (part["status"], part["text"], part["range"]) == (206, "el", "bytes 1-2/5")
    # Not a simple method: the browser asks first.
    assert browser.wait_for(FETCH, put, "PUT", "from the page")["status"] == 200
    assert boto.get_object(Bucket="shared", Key="new")["Body"].read() == b"from the page"
    refused = browser.wait_for(FETCH, missing, "GET")
    assert refused["status"] == 404 and "NoSuchKey" in refused["text"], "a page may read why"
    for method, headers in (("DELETE", None), ("PUT", {"x-other": "1"})):
        assert "Failed to fetch" in browser.wait_for(FETCH, put, method, None, headers)["error"]
    assert boto.get_object(Bucket="shared", Key="new")["Body"].read() == b"from the page"

    boto.put_bucket_cors(
        Bucket="shared",
        CORSConfiguration={
            "CORSRules": [{"AllowedOrigins": ["https://*.example"], "AllowedMethods": ["GET"]}]
        },
    )
    assert "Failed to fetch" in browser.wait_for(FETCH, get, "GET")["error"], "another origin's rules"


def test_what_a_browser_is_shown_is_what_was_stored(shop: Server, browser: Browser) -> None:
    """A public page, its picture as a download with a name of its own, and an error as a document."""
    boto = shop.boto()
    boto.create_bucket(Bucket="shown", ObjectOwnership="ObjectWriter")
    boto.put_object(
        Bucket="shown", Key="page", Body="<h1>Grüße</h1>".encode(), ContentType="text/html; charset=utf-8",
        ACL="public-read",
    )  # fmt: skip
    browser.open(f"{shop.endpoint}/shown/page")
    assert browser.text() == "Grüße"
    browser.open(f"{shop.endpoint}/shown/secret")
    assert "AccessDenied" in browser.text()
