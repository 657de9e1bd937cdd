"""Event notifications: which events a bucket tells to whom, and what a message says.

Must not know: the wire, how messages are kept and delivered.
Invariants:
* A configuration that `overlapping` lets through sends each event at most once to each kind of place in it.
* A message is made without I/O, from what is given: it is made inside the commit.

Source: "Amazon S3 Event Notifications" with "Event message structure", "Configuring event notifications using object
key name filtering" and "EventBridge event message structure", Amazon S3 User Guide.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, TypeVarTuple
from urllib.parse import quote, quote_plus

import msgspec

from cordwood.engine import BucketInfo, DeleteResult, ObjectInfo, Outbox, Store
from cordwood.server.config_values import kind_of_arn

NOTIFICATION: Final = "notification"
"""The attribute of a bucket: {"rules": [...], "eventbridge": bool}."""

# Events of this family have the later version of the record.
_LATER: Final = (
    "LifecycleExpiration:",
    "ObjectTagging:",
    "ObjectAcl:",
    "ObjectRetention:",
    "ObjectAnnotation:",
)
_encode: Final = msgspec.json.Encoder().encode

Ts = TypeVarTuple("Ts")


def topic_of(arn: str) -> str:
    """The outbox's name for the messages to a target."""
    return quote(arn, safe=":")


@dataclass(frozen=True, slots=True)
class Rule:
    """One TopicConfiguration, QueueConfiguration or CloudFunctionConfiguration."""

    kind: str
    id: str
    arn: str
    events: tuple[str, ...]
    """Without the "s3:" in front."""
    prefix: str = ""
    suffix: str = ""

    def matches(self, event: str, key: str) -> bool:
        return (
            any(_covers(each, event) for each in self.events)
            and key.startswith(self.prefix)
            and key.endswith(self.suffix)
        )

    def dumped(self) -> list[Any]:
        return [self.kind, self.id, self.arn, list(self.events), self.prefix, self.suffix]


def rules_of(configuration: Mapping[str, Any]) -> list[Rule]:
    """The rules of a stored configuration."""
    return [
        Rule(kind, name, arn, tuple(events), prefix, suffix)
        for kind, name, arn, events, prefix, suffix in configuration["rules"]
    ]


def _covers(wanted: str, event: str) -> bool:
    return event.startswith(wanted[:-1]) if wanted.endswith("*") else wanted == event


def overlapping(rules: Sequence[Rule]) -> bool:
    """Could one event fit two of the rules? Then nobody could tell which of them is meant."""
    for number, one in enumerate(rules):
        for other in rules[number + 1 :]:
            if (
                any(_covers(a, b) or _covers(b, a) for a in one.events for b in other.events)
                and (one.prefix.startswith(other.prefix) or other.prefix.startswith(one.prefix))
                and (one.suffix.endswith(other.suffix) or other.suffix.endswith(one.suffix))
            ):
                return True
    return False


# --- what happened -------------------------------------------------------------------------------------------


class Change(NamedTuple):
    """One thing that happened to one key. None for what the event does not tell."""

    event: str
    key: str
    size: int | None = None
    etag: str | None = None
    version_id: str | None = None


Tell = Callable[[Any], Iterable[Change]]
"""From the result of an engine's operation: the changes that it was."""


def created(event: str) -> Tell:
    """An object was written; the result is its ObjectInfo."""

    def tell(info: ObjectInfo) -> Iterable[Change]:
        yield Change(event, info.key, info.size, info.etag, info.version_id)

    return tell


def renamed(source: str, keeps_versions: bool) -> Tell:
    """An object got another key; the result is its ObjectInfo there."""

    def tell(info: ObjectInfo) -> Iterable[Change]:
        yield Change(f"ObjectRemoved:{'DeleteMarkerCreated' if keeps_versions else 'Delete'}", source)
        yield Change("ObjectCreated:Copy", info.key, info.size, info.etag, info.version_id)

    return tell


def removed(wanted: Sequence[tuple[str, str | None]], family: str = "ObjectRemoved") -> Tell:
    """Objects or versions were deleted: (key, version id) of each; the result is a DeleteResult, or a list with one (or
    the reason of a refusal) for each."""

    def tell(result: Any) -> Iterable[Change]:
        for (key, version_id), each in zip(
            wanted, result if isinstance(result, list) else [result], strict=True
        ):
            if not isinstance(each, DeleteResult):
                continue
            if version_id is None and each.is_delete_marker:
                yield Change(
                    f"{family}:DeleteMarkerCreated", key, etag=_MD5_OF_NOTHING, version_id=each.version_id
                )
            elif each.existed:
                yield Change(f"{family}:Delete", key, version_id=each.version_id)

    return tell


_MD5_OF_NOTHING: Final = "d41d8cd98f00b204e9800998ecf8427e"


def touched(event: str, key: str) -> Tell:
    """Attributes of a version were changed; the result says of which."""

    def tell(result: Any) -> Iterable[Change]:
        yield Change(event, key, result.size, result.etag, result.version_id)

    return tell


@dataclass(frozen=True, slots=True)
class Occasion:
    """Where something was changed, and by whom: by a request, or by the server itself."""

    bucket: str
    owner_id: str
    region: str
    cause: Cause
    has_versioning: bool = False


def messages(
    configuration: Mapping[str, Any],
    targets: frozenset[str],
    occasion: Occasion,
    changes: Iterable[Change],
    clock: int,
) -> list[tuple[str, bytes]]:
    """(topic, body) for each target that is to hear of the changes. `targets`: those that the operator has set up."""
    rules = rules_of(configuration)
    bus = next(iter(sorted(arn for arn in targets if kind_of_arn(arn) == "EventBridge")), None)
    found = []
    for change in changes:
        if not occasion.has_versioning or change.version_id == "null":
            change = change._replace(version_id=None)
        for rule in rules:
            if rule.arn in targets and rule.matches(change.event, change.key):
                body = b"R" + _encode(_record(rule, occasion, change, clock))
                found.append((topic_of(rule.arn), body))
        if configuration.get("eventbridge") and bus is not None:
            event = _bus_event(occasion, change, clock)
            if event is not None:
                found.append((topic_of(bus), b"D" + _encode(event)))
    return found


@dataclass(frozen=True, slots=True)
class Cause:
    """Who made a change, as its messages name it."""

    requester: str
    address: str
    request_id: str = ""
    host_id: str = ""


class Announcer:
    """Gives changes their messages. One per process; `targets` are those that the operator has set up."""

    def __init__(self, store: Store, targets: Iterable[str], region: str) -> None:
        self._store = store
        self._outbox = Outbox(store)
        self._region = region
        self.targets = frozenset(targets)

    def __call__(self, info: BucketInfo, cause: Cause, telling: Callable[[*Ts], Tell], *about: *Ts) -> Store:
        """The store, for a change in a bucket that `telling(*about)` puts into words: with messages to whoever the
        bucket's configuration has hear of it, in the same commit."""
        configuration = info.attrs.get(NOTIFICATION)
        if configuration is None:
            return self._store
        tell = telling(*about)
        occasion = Occasion(
            info.name,
            info.attrs.get("owner", {"id": ""})["id"],
            self._region,
            cause,
            has_versioning=info.versioning != "",
        )
        return self._outbox.announcing(
            lambda result, clock: messages(configuration, self.targets, occasion, tell(result), clock)
        )

    def saying(self, said: Iterable[tuple[str, bytes]]) -> Store:
        """The store, for one change that takes these messages (topic, body) along."""
        found = list(said)
        return self._outbox.announcing(lambda _result, _clock: found)


def documents(bodies: Sequence[bytes]) -> list[bytes]:
    """What to send for messages from the outbox: neighbouring records go together, anything else alone."""
    sent: list[bytes] = []
    records: list[bytes] = []
    for body in bodies:
        if body[:1] == b"R":
            records.append(body[1:])
            continue
        if records:
            sent.append(_together(records))
            records = []
        sent.append(body[1:])
    if records:
        sent.append(_together(records))
    return sent


def _together(records: Sequence[bytes]) -> bytes:
    return b'{"Records":[' + b",".join(records) + b"]}"


def trial(bucket: str, request_id: str, host_id: str, now_s: float) -> bytes:
    """The message that a new configuration sends to its topics and queues."""
    document = {
        "Service": "Amazon S3",
        "Event": "s3:TestEvent",
        "Time": _iso(now_s),
        "Bucket": bucket,
        "RequestId": request_id,
        "HostId": host_id,
    }
    return b"D" + _encode(document)


def _iso(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _seconds(clock: int) -> float:
    return (clock >> 16) / 1000


def _record(rule: Rule, occasion: Occasion, change: Change, clock: int) -> dict[str, Any]:
    thing: dict[str, Any] = {"key": quote_plus(change.key, safe="/")}
    for name, value in (("size", change.size), ("eTag", change.etag), ("versionId", change.version_id)):
        if value is not None:
            thing[name] = value
    thing["sequencer"] = f"{clock:016X}"
    return {
        "eventVersion": "2.3" if change.event.startswith(_LATER) else "2.1",
        "eventSource": "aws:s3",
        "awsRegion": occasion.region,
        "eventTime": _iso(_seconds(clock)),
        "eventName": change.event,
        "userIdentity": {"principalId": occasion.cause.requester},
        "requestParameters": {"sourceIPAddress": occasion.cause.address},
        "responseElements": {
            "x-amz-request-id": occasion.cause.request_id,
            "x-amz-id-2": occasion.cause.host_id,
        },
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": rule.id,
            "bucket": {
                "name": occasion.bucket,
                "ownerIdentity": {"principalId": occasion.owner_id},
                "arn": f"arn:aws:s3:::{occasion.bucket}",
            },
            "object": thing,
        },
    }


# event -> detail-type, and what is to be added to the detail
_BUS: Final[dict[str, tuple[str, dict[str, str]]]] = {
    "ObjectCreated:Put": ("Object Created", {"reason": "PutObject"}),
    "ObjectCreated:Post": ("Object Created", {"reason": "POST Object"}),
    "ObjectCreated:Copy": ("Object Created", {"reason": "CopyObject"}),
    "ObjectCreated:CompleteMultipartUpload": ("Object Created", {"reason": "CompleteMultipartUpload"}),
    "ObjectRemoved:Delete": (
        "Object Deleted",
        {"reason": "DeleteObject", "deletion-type": "Permanently Deleted"},
    ),
    "ObjectRemoved:DeleteMarkerCreated": (
        "Object Deleted",
        {"reason": "DeleteObject", "deletion-type": "Delete Marker Created"},
    ),
    "LifecycleExpiration:Delete": (
        "Object Deleted",
        {"reason": "Lifecycle Expiration", "deletion-type": "Permanently Deleted"},
    ),
    "LifecycleExpiration:DeleteMarkerCreated": (
        "Object Deleted",
        {"reason": "Lifecycle Expiration", "deletion-type": "Delete Marker Created"},
    ),
    "ObjectTagging:Put": ("Object Tags Added", {}),
    "ObjectTagging:Delete": ("Object Tags Deleted", {}),
    "ObjectAcl:Put": ("Object ACL Updated", {}),
}


def _bus_event(occasion: Occasion, change: Change, clock: int) -> dict[str, Any] | None:
    """The event as EventBridge has it; None for what it is not told."""
    if change.event not in _BUS:
        return None
    kind, more = _BUS[change.event]
    thing: dict[str, Any] = {"key": change.key}
    for name, value in (("size", change.size), ("etag", change.etag), ("version-id", change.version_id)):
        if value is not None:
            thing[name] = value
    thing["sequencer"] = f"{clock:016X}"
    return {
        "version": "0",
        "id": str(uuid.uuid4()),
        "detail-type": kind,
        "source": "aws.s3",
        "account": occasion.owner_id,
        "time": _iso(_seconds(clock))[:19] + "Z",
        "region": occasion.region,
        "resources": [f"arn:aws:s3:::{occasion.bucket}"],
        "detail": {
            "version": "0",
            "bucket": {"name": occasion.bucket},
            "object": thing,
            "request-id": occasion.cause.request_id,
            "requester": occasion.cause.requester,
            "source-ip-address": occasion.cause.address,
            **more,
        },
    }
