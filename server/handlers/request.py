"""What a handler is given, and how it says which operation and which members it takes.

Must not know: sockets, signatures, any one operation.
Invariants:
* A `Request` cannot be made without the `Verified` value that only the authenticator makes; app.py alone makes one.
* For each operation, every input member of the model is taken, ignored on purpose, or refused with NotImplemented.
  `handles` checks the names against the model when the module is imported.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, TypeVarTuple

from cordwood.engine import BucketInfo, ObjectInfo, Store
from cordwood.server.bridge import Bridge
from cordwood.server.buffers import Buffers
from cordwood.server.encryption import Encryption
from cordwood.server.gate import Demand, Gate
from cordwood.server.log_keeper import LogKeeper, Watch
from cordwood.server.notifications import NOTIFICATION, Announcer, Cause, Tell
from cordwood.server.wire.errors import s3_error
from cordwood.server.wire.interpret import Params
from cordwood.server.wire.message import Body, PeerInfo, RequestHead, Response
from cordwood.server.wire.operations import ENUMS
from cordwood.server.wire.route import OPERATION, Operation
from cordwood.server.wire.sigv4 import Identity, Verified

Ts = TypeVarTuple("Ts")


@dataclass(frozen=True, slots=True)
class Service:
    """What all requests of one worker share."""

    store: Store
    bridge: Bridge
    region: str
    gate: Gate
    """For a second resource, as in a copy, and for those that the body names."""
    access_logs: LogKeeper
    encryption: Encryption
    announcer: Announcer
    torrent_tracker: str
    """The announce URL of torrents; "" where there are none."""
    buffers: Buffers = field(default_factory=Buffers)


class Request:
    """One verified and authorised request. `params` holds the members that the handler takes."""

    __slots__ = (
        "_decided_on",
        "body",
        "bucket_info",
        "head",
        "operation",
        "params",
        "peer",
        "service",
        "target",
        "verified",
        "watch",
    )

    def __init__(
        self,
        verified: Verified,
        service: Service,
        operation: Operation,
        target: tuple[str, str],
        bucket_info: BucketInfo | None,
        params: Params,
        head: RequestHead,
        body: Body,
        peer: PeerInfo,
        watch: Watch | None = None,
    ) -> None:
        self.verified = verified
        self.service = service
        self.operation = operation
        self.target = target
        self.bucket_info = bucket_info
        self.params = params
        self.head = head
        self.body = body
        self.peer = peer
        self.watch = watch
        self._decided_on: ObjectInfo | None = None

    def announcing(self, telling: Callable[[*Ts], Tell], *about: *Ts) -> Store:
        """The store, for a change that `telling(*about)` puts into words: with messages to whoever the bucket's
        configuration has hear of it, in the same commit."""
        info = self.bucket_info
        if info is None or NOTIFICATION not in info.attrs:
            return self.service.store
        identity, head = self.verified.identity, self.head
        requester = "Anonymous" if identity.is_anonymous else identity.owner_id
        cause = Cause(requester, self.peer.address, head.request_id, head.host_id)
        return self.service.announcer(info, cause, telling, *about)

    @property
    def is_tls(self) -> bool:
        return self.peer.is_tls

    @property
    def identity(self) -> Identity:
        return self.verified.identity

    def is_free(self) -> bool:
        """May whoever sent this request do anything with its bucket, as it is now? Then no key needs a question."""
        service = self.service
        return service.gate.is_free(self.verified.identity, service.store.head_bucket(self.bucket))

    async def authorise(
        self, action: str, bucket: str, key: str = "", version_id: str | None = None
    ) -> BucketInfo:
        """May whoever sent this request do `action` there? The bucket, or AccessDenied."""
        demand = Demand(self.verified.identity, self.head, self.peer)
        info, self._decided_on = await self.service.gate.authorise(demand, action, bucket, key, version_id)
        return info

    async def decide(
        self, action: str, bucket: str, key: str, version_id: str | None = None
    ) -> ObjectInfo | None:
        """May whoever sent this request do `action` there? The object that the answer depends on, if it does."""
        demand = Demand(self.verified.identity, self.head, self.peer)
        return (await self.service.gate.authorise(demand, action, bucket, key, version_id))[1]

    def authorise_prefixes(self, *prefixes: str) -> None:
        """AccessDenied unless all that is or could be below these prefixes of the bucket may be moved about."""
        assert self.bucket_info is not None
        demand = Demand(self.verified.identity, self.head, self.peer)
        self.service.gate.authorise_prefixes(demand, self.bucket_info, prefixes)

    def decided_on(self, info: ObjectInfo | None) -> None:
        self._decided_on = info

    def confirm(self, info: ObjectInfo) -> None:
        """Refuse to go on with another state of the object than the one that permission was given for."""
        seen = self._decided_on
        if seen is not None and (seen.version_id, seen.modified_ms, seen.etag, seen.attrs) != (
            info.version_id,
            info.modified_ms,
            info.etag,
            info.attrs,
        ):
            raise s3_error("SlowDown")

    @property
    def bucket(self) -> str:
        return self.target[0]

    @property
    def key(self) -> str:
        return self.target[1]

    @property
    def has_versioning(self) -> bool:
        """Was versioning ever turned on for the bucket? Only then do answers name versions."""
        return self.bucket_info is not None and self.bucket_info.versioning != ""


Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Entry:
    """One implemented operation. A request that carries a member of `refused` is NotImplemented."""

    operation: Operation
    handler: Handler
    refused: frozenset[str]


HANDLERS: Final[dict[str, Entry]] = {}

# Members that change nothing here, in any operation: who pays, and MFA (which matters only to a bucket with MFA
# delete).
# ExpectedBucketOwner and ExpectedSourceBucketOwner are checked in app.py and in copy.
HARMLESS: Final = frozenset(("RequestPayer", "MFA", "ExpectedBucketOwner", "ExpectedSourceBucketOwner"))


# What describes the digest of a body; ingest.py reads these from the headers, because the model lists them only for
# some of the operations that have them.
_DIGESTS: Final = frozenset(
    ("ContentMD5", "ChecksumAlgorithm", *(f"Checksum{algorithm}" for algorithm in ENUMS["ChecksumAlgorithm"]))
)


def handles(
    name: str, takes: str = "", *, ignores: str = "", has_body: bool = False
) -> Callable[[Handler], Handler]:
    """Register the handler of an operation. `takes` and `ignores` are names of its input members.

    `has_body`: the handler receives the body through ingest.py, and so honours every digest of it.
    """
    operation = OPERATION[name]
    known = frozenset(takes.split()) | frozenset(ignores.split())
    if has_body:
        known |= _DIGESTS & operation.inputs.keys()
    assert known <= operation.inputs.keys(), (name, known - operation.inputs.keys())
    refused = operation.inputs.keys() - known - HARMLESS

    def register(handler: Handler) -> Handler:
        assert name not in HANDLERS, name
        HANDLERS[name] = Entry(operation, handler, frozenset(refused))
        return handler

    return register
