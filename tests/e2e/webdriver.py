"""A headless Chromium, driven through chromedriver by the WebDriver protocol, which is JSON over HTTP.

Must not know: any server under test. Invariants: the browser has an empty profile and talks to nobody on its own;
driver and browser are gone when the context ends.

Source: W3C WebDriver, and "Capabilities" of ChromeDriver.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tests.e2e.harness import free_port

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--no-proxy-server",
)
# What WebDriver calls the member that holds an element's reference.
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


def chromium_and_driver() -> tuple[str, str] | None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


class Browser:
    def __init__(self, address: str) -> None:
        self._address = address
        self._session = ""

    def begin(self, binary: str, profile: Path) -> None:
        options = {"binary": binary, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "timeouts": {"script": 20_000}}
        self._session = f"/{self._call('POST', '', {'capabilities': {'alwaysMatch': wanted}})['sessionId']}"

    def end(self) -> None:
        if self._session:
            self._call("DELETE", "")

    def open(self, url: str) -> None:
        self._call("POST", "/url", {"url": url})

    @property
    def url(self) -> str:
        return str(self._call("GET", "/url"))

    def wait_to_leave(self, url: str) -> str:
        """The address and the loaded page after a click that leads away from `url`."""
        deadline = time.monotonic() + 20
        while self.url == url or self.run("return document.readyState") != "complete":
            assert time.monotonic() < deadline, f"still at {self.url}"
            time.sleep(0.05)
        return self.url

    def text(self) -> str:
        """What the page shows."""
        return str(self.run("return document.documentElement.innerText"))

    def type_into(self, selector: str, text: str) -> None:
        """Keys into a field; the path of a file into a file field."""
        self._call("POST", f"/element/{self._find(selector)}/value", {"text": text})

    def click(self, selector: str) -> None:
        self._call("POST", f"/element/{self._find(selector)}/click", {})

    def run(self, script: str, *arguments: Any) -> Any:
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def wait_for(self, promise: str, *arguments: Any) -> Any:
        """The value of an async function's body; `arguments` are its arguments, an exception is {"error": text}."""
        script = (
            "const args = [...arguments], done = args.pop();"
            f"(async function () {{ {promise} }})(...args).then(done, (error) => done({{error: String(error)}}));"
        )
        return self._call("POST", "/execute/async", {"script": script, "args": list(arguments)})

    def _find(self, selector: str) -> str:
        found = self._call("POST", "/element", {"using": "css selector", "value": selector})
        return str(found[_ELEMENT])

    def _call(self, method: str, path: str, document: dict[str, Any] | None = None) -> Any:
        data = json.dumps(document).encode() if document is not None else None
        request = Request(f"{self._address}/session{self._session}{path}", data, method=method)
        request.add_header("content-type", "application/json")
        try:
            with urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except HTTPError as error:
            raise AssertionError(f"{method} {path}: {error.read().decode()[:2000]}") from None


@contextmanager
def browsing(folder: Path) -> Iterator[Browser]:
    found = chromium_and_driver()
    assert found is not None
    binary, driver = found
    port = free_port()
    with (folder / "chromedriver.log").open("wb") as log:
        process = subprocess.Popen([driver, f"--port={port}"], stdout=log, stderr=log)
    browser = Browser(f"http://127.0.0.1:{port}")
    try:
        _wait_until_ready(f"http://127.0.0.1:{port}/status", process)
        browser.begin(binary, folder / "profile")
        yield browser
    finally:
        try:
            if process.poll() is None:
                browser.end()
        finally:
            process.terminate()
            process.wait(20)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            with urlopen(url, timeout=5):
                return
        except (URLError, OSError):
            assert process.poll() is None and time.monotonic() < deadline, "chromedriver does not answer"
            time.sleep(0.05)
