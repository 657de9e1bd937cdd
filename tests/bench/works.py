"""Small requests and listings on one S3 endpoint, a method for each line of the table (large.py has large objects).

Small requests come from wrk (`wrk.py`), signed beforehand; what wrk cannot do (HEAD) from the load generator
of `cordwood speedtest`. Objects are never equal to one another.

Must not know: which server answers.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import itertools
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple
from urllib.parse import quote
from xml.sax.saxutils import unescape

from cordwood.cli.load import Place, Prepared
from cordwood.cli.load import run as run_load
from cordwood.server.wire.signing import Credential, sign_headers
from tests.bench import wrk
from tests.bench.neighbours import ACCESS_KEY, SECRET_KEY

_CREDENTIAL = Credential(ACCESS_KEY, SECRET_KEY)
_REGION = "us-east-1"
_LONGEST_S = 600.0


class Figure(NamedTuple):
    """What one line measured. `failed`: requests that were refused; then the rate is no figure."""

    ops_per_s: float
    p99_ms: float
    failed: int = 0


class RefusedError(Exception):
    """A server refused what a line needs before its clock starts: the line has no figure."""


class Endpoint:
    """One server, one bucket of its own."""

    def __init__(self, port: int, bucket: str) -> None:
        self.port = port
        self.bucket = bucket
        self.place = Place("127.0.0.1", port, None)
        self.call("PUT", "")

    def head(self, method: str, key: str, query: str, size: int, digest: str, extra: dict[str, str]) -> bytes:
        """A signed request head."""
        path = f"/{self.bucket}/{quote(key)}" if key else f"/{self.bucket}"
        headers = {"host": f"127.0.0.1:{self.port}", **extra}
        if size or method in ("PUT", "POST"):
            headers["content-length"] = str(size)
        url = f"http://127.0.0.1:{self.port}{path}{query}"
        headers |= sign_headers(method, url, headers, digest, _CREDENTIAL, _REGION, datetime.now(UTC))
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"{method} {path}{query} HTTP/1.1\r\n{lines}\r\n".encode()

    def request(self, method: str, key: str, query: str = "", body: bytes = b"", **extra: str) -> bytes:
        """A whole signed request; its payload is signed, as SDKs do."""
        fields = {name.replace("_", "-"): value for name, value in extra.items()}
        return self.head(method, key, query, len(body), hashlib.sha256(body).hexdigest(), fields) + body

    def call(self, method: str, key: str, query: str = "", body: bytes = b"", **extra: str) -> bytes:
        """Sends one request and returns the body of the answer; an error is `RefusedError`."""
        raw = self.request(method, key, query, body, **extra)
        head, _, _ = raw.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.putrequest(method, lines[0].split(" ")[1], skip_host=True, skip_accept_encoding=True)
            for line in lines[1:]:
                name, _, value = line.partition(": ")
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        if answer.status >= 300:
            raise RefusedError(f"{method} {key}{query}: {answer.status} {data[:300]!r}")
        return data


class Works:
    """All lines of one endpoint; a line's objects are made before its clock starts."""

    def __init__(self, endpoint: Endpoint, seconds: float, *, keys: int) -> None:
        self._endpoint = endpoint
        self._seconds = seconds
        self._keys = keys
        self._numbers = itertools.count()
        self._read_keys: dict[int, list[str]] = {}

    # --- small requests -----------------------------------------------------------------------------------

    def put(self, connections: int, size: int) -> Figure:
        """PUT of new keys, each with bytes of its own."""
        return self._wrk(self._puts(self._count(connections), size), connections)

    def get(self, connections: int, size: int) -> Figure:
        """GET of objects that were put before, in random order."""
        keys = self._made(size)
        return self._wrk([self._endpoint.request("GET", key) for key in self._shuffled(keys)], connections)

    def head(self, connections: int, size: int) -> Figure:
        """HEAD of objects that were put before."""
        keys = self._shuffled(self._made(size))
        requests = [Prepared(self._endpoint.request("HEAD", key), is_head=True) for key in keys]
        return self._run(requests, connections, self._seconds, repeats=True)

    def delete(self, connections: int, size: int) -> Figure:
        """DELETE of one object a request."""
        keys = self._put_all(self._count(connections) * 2, size)
        return self._wrk([self._endpoint.request("DELETE", key) for key in keys], connections, once=True)

    def delete_many(self, connections: int, size: int) -> Figure:
        """DeleteObjects of 1,000 keys a request; the figure counts objects."""
        keys = self._put_all(1000 * min(16, max(4, connections)), size)
        requests = []
        for at in range(0, len(keys), 1000):
            items = "".join(f"<Object><Key>{key}</Key></Object>" for key in keys[at : at + 1000])
            body = f"<Delete><Quiet>true</Quiet>{items}</Delete>".encode()
            digest = base64.b64encode(hashlib.md5(body).digest()).decode()
            requests.append(self._endpoint.request("POST", "", "?delete=", body, content_md5=digest))
        began = time.perf_counter()
        failed = self._send_each(requests, connections)
        return Figure(len(keys) / (time.perf_counter() - began), 0.0, failed)

    def mixed(self, connections: int, size: int) -> Figure:
        """45 % GET, 15 % PUT, 30 % HEAD, 10 % DELETE, as MinIO's warp mixes them; deleted is what was put for it."""
        made = self._made(size)
        count = self._count(connections) // 2
        doomed = iter(self._put_all(count, size))
        choices = random.Random(7)
        requests: list[Prepared] = []
        for put in self._puts(count, size):
            requests.append(Prepared(put))
            for method in ("GET", "HEAD", "GET", "HEAD", "GET"):
                raw = self._endpoint.request(method, choices.choice(made))
                requests.append(Prepared(raw, is_head=method == "HEAD"))
            if choices.random() < 2 / 3:
                requests.append(Prepared(self._endpoint.request("DELETE", next(doomed))))
        return self._run(requests, connections, self._seconds)

    def list_pages(self, connections: int, _size: int) -> Figure:
        """Pages of 1,000 keys from the middle of a bucket."""
        keys = sorted(self._made(4096, self._keys))
        requests = []
        for key in self._shuffled(keys[: max(1, len(keys) - 1000)])[:500]:
            query = f"?list-type=2&max-keys=1000&start-after={quote(key, safe='')}"
            requests.append(self._endpoint.request("GET", "", query))
        return self._wrk(requests, connections)

    def walk(self, _connections: int, _size: int) -> Figure:
        """A listing of the whole bucket, page after page; the figure counts keys."""
        self._made(4096, self._keys)
        began, count, token = time.perf_counter(), 0, ""
        while True:
            query = f"?continuation-token={quote(token, safe='')}&list-type=2" if token else "?list-type=2"
            page = self._endpoint.call("GET", "", query)
            count += page.count(b"<Key>")
            match = re.search(rb"<NextContinuationToken>([^<]+)", page)
            if match is None:
                return Figure(count / (time.perf_counter() - began), 0.0)
            token = unescape(match[1].decode())

    # --- helpers ------------------------------------------------------------------------------------------

    def _count(self, connections: int) -> int:
        """So many requests that some are left when the time is over, whatever server."""
        return int(self._seconds * (2500 if connections == 1 else 14_000))

    def _new_key(self) -> str:
        number = next(self._numbers)
        return f"{number % 16:02d}/{number:08d}"

    def _puts(self, count: int, size: int) -> list[bytes]:
        return [self._endpoint.request("PUT", self._new_key(), "", os.urandom(size)) for _ in range(count)]

    def _put_all(self, count: int, size: int) -> list[str]:
        keys = [self._new_key() for _ in range(count)]
        body = os.urandom(size)
        requests = [self._endpoint.request("PUT", key, "", body) for key in keys]
        failed = self._send_each(requests, 16)
        if failed:
            raise RefusedError(f"{failed} of {count} objects could not be made")
        return keys

    def _made(self, size: int, count: int = 2000) -> list[str]:
        if len(self._read_keys.get(size, ())) < count:
            self._read_keys[size] = self._put_all(count, size)
        return self._read_keys[size][:count]

    @staticmethod
    def _shuffled(keys: Iterable[str]) -> list[str]:
        result = list(keys)
        random.Random(3).shuffle(result)
        return result

    def _wrk(self, requests: Sequence[bytes], connections: int, *, once: bool = False) -> Figure:
        found = wrk.run(
            self._endpoint.port, requests, connections=connections, seconds=self._seconds, once=once
        )
        return Figure(found.ops_per_s, found.p99_ms, found.failed)

    def _run(
        self, requests: Sequence[Prepared], connections: int, seconds: float, *, repeats: bool = False
    ) -> Figure:
        tally = run_load(
            self._endpoint.place, requests, connections=connections, seconds=seconds, repeats=repeats
        )
        if tally.failed:
            print(
                f"port {self._endpoint.port}: {tally.failed} refused: {tally.first_failure}", file=sys.stderr
            )
        latencies = sorted(tally.latencies_s)
        p99 = latencies[max(0, -(-len(latencies) * 99 // 100) - 1)] * 1000 if latencies else 0.0
        return Figure(len(latencies) / tally.took_s, p99, tally.failed)

    def _send_each(self, requests: Sequence[bytes], connections: int) -> int:
        """Sends each request once; returns how many were refused."""
        found = self._run([Prepared(request) for request in requests], connections, _LONGEST_S)
        return found.failed


LINES: dict[str, Callable[[Works, int, int], Figure]] = {
    "PUT": Works.put,
    "GET": Works.get,
    "HEAD": Works.head,
    "DELETE": Works.delete,
    "DeleteObjects": Works.delete_many,
    "mixed": Works.mixed,
    "LIST": Works.list_pages,
    "walk": Works.walk,
}
