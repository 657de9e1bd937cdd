"""The Security Token Service of this endpoint: AssumeRole, GetSessionToken, GetCallerIdentity.

Must not know: how a token is made (sessions.py), documents (wire/sts.py), buckets.

Invariants:
* Nobody gets credentials without having signed for them, and none that reach further or live longer than his own: a
  session of a role hands out nothing, one of a key pair only roles.
* The body is read before the signature is looked at, since the signature is over it; so it is small.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from cordwood.server.access import principal_of
from cordwood.server.bridge import Bridge
from cordwood.server.config_values import Role
from cordwood.server.policy import identity_policy
from cordwood.server.policy_conditions import PolicyError
from cordwood.server.sessions import LEAST_S, MOST_S, Issued, Sessions
from cordwood.server.wire.errors import S3Error
from cordwood.server.wire.message import Body, RequestHead, Response
from cordwood.server.wire.sigv4 import Identity, authenticate
from cordwood.server.wire.sts import (
    MAX_BODY_BYTES,
    VERSION,
    StsError,
    answer,
    of_s3,
    parameters,
    refusal,
    timestamp,
)

USUAL_SESSION_S: Final = 12 * 3600
USUAL_ROLE_S: Final = 3600
MAX_POLICY_CHARACTERS: Final = 2048

_ROLE_ARN: Final = re.compile(r"arn:aws:iam::([^:/]*):role/(?:[\x21-\x7e]*/)?([\w+=,.@-]{1,64})", re.ASCII)
_SESSION_NAME: Final = re.compile(r"[\w+=,.@-]{2,64}", re.ASCII)
_TAKES: Final = {
    "AssumeRole": frozenset(("RoleArn", "RoleSessionName", "DurationSeconds", "Policy")),
    "GetSessionToken": frozenset(("DurationSeconds",)),
    "GetCallerIdentity": frozenset[str](),
}
Result = Mapping[str, str | int | Mapping[str, str | int]]


class SecurityTokens:
    """One per worker."""

    def __init__(self, sessions: Sessions, bridge: Bridge, region: str) -> None:
        self._sessions = sessions
        self._bridge = bridge
        self._region = region
        self._actions: Mapping[str, Callable[[Identity, Mapping[str, str]], Awaitable[Result]]] = {
            "AssumeRole": self._assume_role,
            "GetSessionToken": self._get_session_token,
            "GetCallerIdentity": self._get_caller_identity,
        }

    async def answer(self, head: RequestHead, body: Body) -> Response:
        try:
            data = await _received(body)
            try:
                identity = self._authenticated(head, data)
            except S3Error as error:
                raise of_s3(error) from error
            given = parameters(head, data)
            action = given.pop("Action", "")
            if not action:
                raise StsError("MissingAction", "The request must contain the parameter Action")
            if action not in _TAKES or given.pop("Version", "") != VERSION:
                raise StsError("InvalidAction", f"Could not find operation {action} for version {VERSION}")
            unknown = given.keys() - _TAKES[action]
            if unknown:
                raise StsError("ValidationError", f"{min(unknown)} is not supported by this server")
            return answer(action, await self._actions[action](identity, given), head.request_id)
        except StsError as error:
            return refusal(error, head.request_id)

    def _authenticated(self, head: RequestHead, body: bytes) -> Identity:
        identity = authenticate(
            head,
            secret_for=self._sessions.credentials.get,
            session_for=self._sessions.opener(time.time),
            region=self._region,
            now_s=time.time(),
            service="sts",
            payload_sha256=hashlib.sha256(body).hexdigest(),
        ).identity
        if identity.is_anonymous:
            raise StsError("AccessDenied", "The request must be signed")
        return identity

    async def _get_caller_identity(self, identity: Identity, given: Mapping[str, str]) -> Result:
        session = identity.session
        user_id = identity.owner_id
        if session is not None and session.role:
            user_id = f"{session.role}:{session.name}"
        return {"Arn": principal_of(identity).arn, "UserId": user_id, "Account": identity.owner_id}

    async def _get_session_token(self, identity: Identity, given: Mapping[str, str]) -> Result:
        if identity.session is not None:
            raise StsError("AccessDenied", "Cannot call GetSessionToken with session credentials")
        duration_s = _duration(given, USUAL_SESSION_S, MOST_S)
        return {"Credentials": _credentials(await self._issue(identity, duration_s))}

    async def _assume_role(self, identity: Identity, given: Mapping[str, str]) -> Result:
        for needed in ("RoleArn", "RoleSessionName"):
            if not given.get(needed):
                raise StsError("ValidationError", f"{needed} must be given")
        name = given["RoleSessionName"]
        if not _SESSION_NAME.fullmatch(name):
            raise StsError("ValidationError", "RoleSessionName must be 2 to 64 of the characters \\w+=,.@-")
        role = self._role(identity, given["RoleArn"])
        most_s = int(role.max_session_s)
        duration_s = _duration(given, min(USUAL_ROLE_S, most_s), most_s)
        policy = given.get("Policy", "")
        if policy:
            _check_policy(policy)
        issued = await self._issue(identity, duration_s, role=role.name, name=name, policy=policy)
        arn = f"arn:aws:sts::{issued.account.owner_id}:assumed-role/{role.name}/{name}"
        return {
            "AssumedRoleUser": {"AssumedRoleId": f"{role.name}:{name}", "Arn": arn},
            "Credentials": _credentials(issued),
            "PackedPolicySize": -(-len(policy) * 100 // MAX_POLICY_CHARACTERS),
        }

    def _role(self, identity: Identity, arn: str) -> Role:
        """The role, if the caller is trusted with it. Whoever is not does not learn whether it exists."""
        match = _ROLE_ARN.fullmatch(arn)
        if match is None:
            raise StsError("ValidationError", f"{arn} is invalid")
        role = self._sessions.roles.get(match[2])
        session = identity.session
        if role is not None and self._sessions.owner_of(role) == match[1]:
            is_role = session is not None and bool(session.role)
            access_key = identity.access_key if session is None else session.parent_key
            if not is_role and not {"*", access_key, identity.owner_id}.isdisjoint(role.trust):
                return role
        raise StsError(
            "AccessDenied",
            f"User: {principal_of(identity).arn} is not authorized to perform: sts:AssumeRole on resource: {arn}",
        )

    async def _issue(self, identity: Identity, duration_s: int, **about: str) -> Issued:
        session = identity.session
        now_s = time.time()
        parent_key = identity.access_key
        if session is not None:
            parent_key = session.parent_key
            duration_s = min(duration_s, session.expires_s - int(now_s))
        return await self._bridge.run(lambda: self._sessions.issue(parent_key, now_s, duration_s, **about))


def _duration(given: Mapping[str, str], usual_s: int, most_s: int) -> int:
    text = given.get("DurationSeconds", str(usual_s))
    duration_s = int(text) if re.fullmatch(r"[0-9]{1,9}", text, re.ASCII) else 0
    if not LEAST_S <= duration_s <= most_s:
        raise StsError(
            "ValidationError",
            f"DurationSeconds must be a number from {LEAST_S} to {most_s}, which is the longest here",
        )
    return duration_s


def _check_policy(policy: str) -> None:
    if len(policy) > MAX_POLICY_CHARACTERS:
        raise StsError(
            "PackedPolicyTooLarge", f"A session policy has at most {MAX_POLICY_CHARACTERS} characters"
        )
    try:
        identity_policy(policy)
    except PolicyError as error:
        raise StsError("MalformedPolicyDocument", str(error)) from error


def _credentials(issued: Issued) -> dict[str, str | int]:
    account = issued.account
    return {
        "AccessKeyId": account.access_key,
        "SecretAccessKey": account.secret_key,
        "SessionToken": issued.token,
        "Expiration": timestamp(account.session.expires_s),
    }


async def _received(body: Body) -> bytes:
    data = bytearray()
    while piece := await body.receive():
        data += piece
        if len(data) > MAX_BODY_BYTES:
            raise StsError("ValidationError", f"The body has more than {MAX_BODY_BYTES} bytes")
    return bytes(data)
