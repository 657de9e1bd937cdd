"""Delivers the messages of the outbox to the operator's targets: one loop for each, in a process of its own.

Must not know: what a message says, which buckets there are.
Invariants:
* A message is removed only after its target took it: a 2xx answer, or a synced line. So each is delivered at least
  once, and again when this process dies between the two.
* A target that fails delays nobody but itself. Its messages keep their order.
* Targets come from the settings alone. Nothing of their URLs but the name of the target's ARN reaches the log.
"""

from __future__ import annotations

import logging
import os
import random
import ssl
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, Protocol

import trio

from cordwood.engine import CordwoodError, Message, Outbox, Store
from cordwood.server.bridge import Bridge
from cordwood.server.config_values import NotificationTarget
from cordwood.server.notifications import documents, topic_of

if TYPE_CHECKING:
    import httpx

log = logging.getLogger("cordwood.notifier")

_POLL_S: Final = 0.2
_PAGE: Final = 100
_FIRST_DELAY_S: Final = 0.5
_LONGEST_DELAY_S: Final = 60.0
_ANSWER_BYTES_MAX: Final = 64 << 10


class DeliveryError(Exception):
    """The target did not take a message. The text holds no part of a URL."""


class Sink(Protocol):
    async def send(self, texts: Sequence[bytes]) -> None:
        """Hand over JSON documents; DeliveryError when not all were taken."""
        ...


async def deliver(store: Store, targets: Sequence[NotificationTarget], queue_max: int) -> None:
    """Deliver to all targets, until cancelled."""
    import httpx  # a third of a second to import, and only wanted where there are targets

    outbox = Outbox(store)
    bridge = Bridge()
    known = {topic_of(target.arn) for target in targets}
    for topic in await bridge.run(outbox.topics):
        if topic not in known:
            count = await bridge.run(outbox.count, topic)
            log.warning("%d notifications wait for %s, which has no target in the settings", count, topic)
    async with httpx.AsyncClient(
        verify=ssl.create_default_context(), trust_env=False, follow_redirects=False
    ) as client:
        async with trio.open_nursery() as nursery:
            for target in targets:
                sink: Sink = WebhookSink(client, target) if target.url else FileSink(bridge, target.file)
                nursery.start_soon(_Courier(outbox, bridge, target, sink, queue_max).run)


class _Courier:
    """The loop of one target."""

    def __init__(
        self, outbox: Outbox, bridge: Bridge, target: NotificationTarget, sink: Sink, queue_max: int
    ) -> None:
        self._outbox = outbox
        self._bridge = bridge
        self._target = target
        self._topic = topic_of(target.arn)
        self._sink = sink
        self._queue_max = queue_max
        self._failures = 0

    async def run(self) -> None:
        while True:
            try:
                waiting = await self._bridge.run(self._outbox.peek, self._topic, _PAGE)
                if not waiting:
                    await trio.sleep(_POLL_S)
                    continue
                await self._hand_over(waiting)
            except (DeliveryError, CordwoodError, OSError) as error:
                await self._failed(error)
            else:
                self._recovered()

    async def _hand_over(self, waiting: Sequence[Message]) -> None:
        """Some messages, group by group. What was taken is removed, whatever comes then."""
        taken: list[Message] = []
        try:
            for group in _groups(waiting, self._target.batch):
                await self._sink.send(documents([message.body for message in group]))
                taken += group
        finally:
            if taken:
                with trio.CancelScope(shield=True):
                    await self._bridge.run(self._outbox.remove, taken)

    async def _failed(self, error: Exception) -> None:
        if not self._failures:
            log.warning("notifications for %s wait: %s", self._target.arn, error)
        delay_s = min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2 ** min(self._failures, 10))
        self._failures += 1
        try:
            dropped = await self._bridge.run(self._outbox.trim, self._topic, self._queue_max)
        except (CordwoodError, OSError) as failure:
            log.error("notifications for %s: %s", self._target.arn, failure)
        else:
            if dropped:
                log.error(
                    "the %d oldest notifications for %s were dropped: more than notification_queue_max wait",
                    dropped,
                    self._target.arn,
                )
        await trio.sleep(delay_s * random.uniform(0.8, 1.2))

    def _recovered(self) -> None:
        if self._failures:
            log.info("notifications for %s are delivered again", self._target.arn)
        self._failures = 0


def _groups(waiting: Sequence[Message], size: int) -> Iterator[Sequence[Message]]:
    for start in range(0, len(waiting), size):
        yield waiting[start : start + size]


class WebhookSink:
    """POSTs each document; any 2xx takes it."""

    def __init__(self, client: httpx.AsyncClient, target: NotificationTarget) -> None:
        self._client = client
        self._target = target
        self._headers = {"content-type": "application/json", "user-agent": "Cordwood"}
        if target.authorization:
            self._headers["authorization"] = target.authorization

    async def send(self, texts: Sequence[bytes]) -> None:
        import httpx

        for text in texts:
            try:
                with trio.fail_after(self._target.timeout_s):
                    status = await self._post(text)
            except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
                raise DeliveryError(type(error).__name__) from None
            except trio.TooSlowError:
                raise DeliveryError(f"no answer within {self._target.timeout_s:g} s") from None
            if not 200 <= status < 300:
                raise DeliveryError(f"answered with HTTP {status}")

    async def _post(self, text: bytes) -> int:
        async with self._client.stream(
            "POST", self._target.url, content=text, headers=self._headers, timeout=self._target.timeout_s
        ) as response:
            seen = 0
            async for block in response.aiter_raw():  # read to its end, the connection can be used again
                seen += len(block)
                if seen > _ANSWER_BYTES_MAX:
                    break
            return int(response.status_code)


class FileSink:
    """Appends each document as a line. The file is opened each time, so that it can be rotated away."""

    def __init__(self, bridge: Bridge, path: str) -> None:
        self._bridge = bridge
        self._path = path

    async def send(self, texts: Sequence[bytes]) -> None:
        await self._bridge.run(self._append, texts)

    def _append(self, texts: Sequence[bytes]) -> None:
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        try:
            data = b"".join(text + b"\n" for text in texts)
            end = os.fstat(fd).st_size
            if end and os.pread(fd, 1, end - 1) != b"\n":
                data = b"\n" + data  # a line that a crash cut short stays alone
            written = os.write(fd, data)
            if written != len(data):
                raise DeliveryError(f"{self._path}: only {written} of {len(data)} bytes could be written")
            os.fdatasync(fd)
        finally:
            os.close(fd)
