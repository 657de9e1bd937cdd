"""Fuzz what comes with temporary credentials: session tokens, and the forms that ask for them.

Invariant: any token is refused by an S3Error, unless it is one that was issued; any body is a dictionary of parameters
or is refused by an StsError; any text is an identity policy that can be evaluated, or is refused by a PolicyError.

Must not know: sockets, the engine.
"""

from __future__ import annotations

import base64
import tempfile
from functools import cache
from pathlib import Path

from cordwood.server.config_values import make_credential
from cordwood.server.policy import Principal, evaluate, identity_policy
from cordwood.server.policy_conditions import PolicyError
from cordwood.server.sessions import NAME, Issued, Sessions
from cordwood.server.wire.errors import S3Error
from cordwood.server.wire.http1 import RequestReceiver
from cordwood.server.wire.sts import StsError, parameters


@cache
def issued() -> tuple[Sessions, Issued]:
    """A store's sessions, and one of them. The key is read once, and its file is not needed afterwards."""
    with tempfile.TemporaryDirectory() as directory:
        sessions = Sessions(Path(directory) / NAME, (make_credential("AK", "secret"),))
        return sessions, sessions.issue("AK", 0.0, 900)


def one(data: bytes) -> None:
    """The data as a token, as a change of a good one, as a form and as a policy."""
    sessions, good = issued()
    good_bytes = base64.urlsafe_b64decode(good.token)
    changed = bytes(a ^ b for a, b in zip(good_bytes, data.ljust(len(good_bytes), b"\0"), strict=False))
    for token in (data.decode("latin-1"), base64.urlsafe_b64encode(data).decode(), encoded(changed)):
        try:
            sessions.open(good.account.access_key, token, 1.0)
        except S3Error as error:
            assert error.code == "InvalidToken"
        else:
            assert base64.urlsafe_b64decode(token) == good_bytes
    receiver = RequestReceiver()
    receiver.feed(b"POST / HTTP/1.1\r\nHost: h\r\n\r\n")
    head = receiver.next_head()
    assert head is not None
    try:
        found = parameters(head, data)
    except StsError:
        found = {}
    assert all(isinstance(each, str) for pair in found.items() for each in pair)
    try:
        policy = identity_policy(data.decode("utf-8", "replace"))
    except PolicyError:
        return
    verdict = evaluate(policy, Principal("a", "me", role="r"), "s3:GetObject", "b/k", lambda _: None)
    assert verdict in ("allow", "deny", "none")


def encoded(token: bytes) -> str:
    return base64.urlsafe_b64encode(token).decode()
