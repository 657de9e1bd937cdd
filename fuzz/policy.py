"""Fuzz bucket policies and the policies of browsers' forms.

Invariant: any text is a policy that can be evaluated for any request, or is refused by one named error; never another.

Must not know: the engine, sockets.
"""

from __future__ import annotations

import base64

from cordwood.server.policy import Principal, evaluate, parse
from cordwood.server.policy_conditions import PolicyError
from cordwood.server.wire.errors import S3Error
from cordwood.server.wire.post_policy import parse_post_policy

VALUES = {
    "aws:sourceip": ("127.0.0.1",),
    "aws:currenttime": ("2026-11-21T04:00:00+00:00",),
    "aws:securetransport": ("false",),
    "aws:username": ("alice*",),
    "s3:max-keys": ("ten",),
    "s3:requestobjecttagkeys": ("a", "b"),
}
PRINCIPALS = (Principal(), Principal("a" * 64, "alice"))


def one(data: bytes) -> None:
    """The text as a bucket's policy, and as a form's."""
    try:
        policy = parse(data.decode("utf-8", "replace"), "bkt")
    except PolicyError:
        pass
    else:
        assert policy.is_public in (True, False)
        for principal in PRINCIPALS:
            for action, resource in (("s3:GetObject", "bkt/key*"), ("s3:ListBucket", "bkt")):
                verdict = evaluate(policy, principal, action, resource, VALUES.get)
                assert verdict in ("allow", "deny", "none")
    try:
        form = parse_post_policy(base64.b64encode(data).decode())
        form.check({"key": "a"}, "bkt", 0.0)
    except S3Error as error:
        assert error.code in ("InvalidPolicyDocument", "AccessDenied"), error.code
