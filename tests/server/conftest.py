"""A real server inside the test process: an application over a store, behind real sockets, in a thread with trio."""

from __future__ import annotations

import html
import http.client
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from cordwood.engine import Store
from cordwood.server.app import Application
from cordwood.server.config import Credential, make_credential
from cordwood.server.conn import Limits, serve_connection

ALICE = make_credential("AKALICE", "alice-secret", "a" * 64, "alice")
BOB = make_credential("AKBOB", "bob-secret", "b" * 64, "bob")


class LiveServer:
    """Listens on a free port of 127.0.0.1 from `start` to `stop`."""

    def __init__(self, store: Store, credentials: tuple[Credential, ...] = (ALICE,), **options: Any) -> None:
        self.store = store
        self.credentials = credentials
        self.port = 0
        self._options = options
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._serve,))
        self._stopping: trio.Event | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._app: Application | None = None

    def deliver_logs(self) -> None:
        """What a worker does every few minutes: put the access log records into their buckets."""
        assert self._app is not None
        trio.from_thread.run(self._app.access_logs.deliver, trio_token=self._token)

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(10)

    def stop(self) -> None:
        assert self._token is not None and self._stopping is not None
        self._token.run_sync_soon(self._stopping.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._stopping = trio.Event()
        stopping = self._stopping
        app = self._app = Application(self.store, self.credentials, **self._options)
        limits = Limits()

        async def connection(stream: trio.SocketStream) -> None:
            await serve_connection(stream, app, limits, stopping, at_once=app.at_once)

        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            self.port = listeners[0].socket.getsockname()[1]
            nursery.start_soon(trio.serve_listeners, connection, listeners)
            self._ready.set()
            await stopping.wait()
            nursery.cancel_scope.cancel()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, credential: Credential = ALICE, *, region: str = "us-east-1", **config: Any) -> Any:
        """A boto3 client that never retries, so that a test sees the first answer."""
        import boto3
        from botocore.config import Config

        settings = {"retries": {"total_max_attempts": 1}, "s3": {"addressing_style": "path"}, **config}
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=credential.access_key,
            aws_secret_access_key=credential.secret_key,
            region_name=region,
            config=Config(**settings),
        )

    def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        credential: Credential | None = ALICE,
    ) -> Answer:
        """One request, signed with botocore's own signer, sent as it is."""
        fields = dict(headers or {})
        fields.setdefault("host", f"127.0.0.1:{self.port}")
        if credential is not None:
            fields = sign(method, f"{self.url}{path}", fields, body, credential)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            if body or method in ("PUT", "POST"):
                fields.setdefault("content-length", str(len(body)))
            for name, value in fields.items():
                connection.putheader(name, value.encode("utf-8"))
            connection.endheaders(body)
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()


def sign(
    method: str, url: str, headers: Mapping[str, str], body: bytes, credential: Credential
) -> dict[str, str]:
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    request = AWSRequest(method, url, dict(headers), body)
    keys = Credentials(credential.access_key, credential.secret_key)
    S3SigV4Auth(keys, "s3", "us-east-1").add_auth(request)
    return dict(request.headers.items())


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        return self.field("Code")

    def field(self, name: str) -> str:
        """The text of an element of an error document, "" when there is none."""
        _, _, rest = self.body.decode("utf-8", "replace").partition(f"<{name}>")
        return html.unescape(rest.partition("</")[0])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", volume_size=64 << 20) as opened:
        yield opened


@pytest.fixture
def server(store: Store) -> Iterator[LiveServer]:
    live = LiveServer(store)
    live.start()
    yield live
    live.stop()


@pytest.fixture
def two_owners(store: Store) -> Iterator[LiveServer]:
    live = LiveServer(store, (ALICE, BOB))
    live.start()
    yield live
    live.stop()


@pytest.fixture
def s3(server: LiveServer) -> Any:
    """A boto3 client with a bucket named `bkt`."""
    client = server.client()
    client.create_bucket(Bucket="bkt")
    return client
