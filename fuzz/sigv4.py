"""Fuzz the authentication of request heads.

Invariant: any request head is anonymous, or is refused by an S3Error; without the secret none is accepted.

Must not know: sockets.
"""

from __future__ import annotations

from dataclasses import dataclass

from cordwood.server.wire.errors import S3Error, render_error
from cordwood.server.wire.http1 import ProtocolError, RequestReceiver
from cordwood.server.wire.message import RequestHead
from cordwood.server.wire.sigv4 import authenticate

NOW_S = 1369353600.0  # 20130524T000000Z


@dataclass(frozen=True)
class _Account:
    access_key: str = "AKIAIOSFODNN7EXAMPLE"
    secret_key: str = "a secret that no corpus file was signed with"
    owner_id: str = "owner"
    display_name: str = "name"


def one(data: bytes) -> None:
    """The data are a request head without its empty line."""
    receiver = RequestReceiver()
    receiver.feed(data.strip(b"\r\n") + b"\r\n\r\n")
    try:
        head = receiver.next_head()
    except ProtocolError:
        return
    if head is None:
        return
    try:
        verified = authenticate(
            head, secret_for={_Account.access_key: _Account()}.get, region="us-east-1", now_s=NOW_S
        )
    except S3Error as error:
        assert 400 <= error.status < 600
        render_error(error, resource=head.path, request_id="", host_id="")
    else:
        assert verified.identity.is_anonymous, "accepted without the secret"
        assert not _has_material(head), "authentication material was overlooked"


def _has_material(head: RequestHead) -> bool:
    names = {name.lower() for name, _ in head.query}
    return "authorization" in head.headers or bool(
        names & {"x-amz-signature", "x-amz-credential", "x-amz-algorithm"}
    )
