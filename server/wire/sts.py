"""The Security Token Service as bytes: which requests are for it, their parameters, its documents and errors.

Must not know: who may have which credentials, how they are made (sts.py), signatures.
Invariants:
* A request is for this service only if it says so: an Action, at the root of the endpoint, where S3 has none.
* A parameter that is not understood is refused, never ignored: it may have been meant as a restriction.

Source: AWS Security Token Service API Reference, version 2011-06-15 (query protocol).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final
from urllib.parse import parse_qsl

from cordwood.server.wire.errors import S3Error, escape_text
from cordwood.server.wire.message import RequestHead, Response
from cordwood.server.wire.xml import leaf

VERSION: Final = "2011-06-15"
NAMESPACE: Final = f"https://sts.amazonaws.com/doc/{VERSION}/"
MAX_BODY_BYTES: Final = 64 << 10

_FORM: Final = "application/x-www-form-urlencoded"
_OF_THE_SIGNATURE: Final = re.compile(r"x-amz-", re.IGNORECASE)

# code -> status; the messages are given where they are raised.
_STATUS: Final = {
    "AccessDenied": 403,
    "ExpiredToken": 403,
    "IncompleteSignature": 400,
    "InvalidAction": 400,
    "InvalidClientTokenId": 403,
    "MalformedPolicyDocument": 400,
    "MissingAction": 400,
    "PackedPolicyTooLarge": 400,
    "SignatureDoesNotMatch": 403,
    "ThrottlingException": 400,
    "ValidationError": 400,
}
# What the authenticator of S3 says, in the words of this service.
_NAMES: Final = {
    "AuthorizationHeaderMalformed": "IncompleteSignature",
    "AuthorizationQueryParametersError": "IncompleteSignature",
    "InvalidAccessKeyId": "InvalidClientTokenId",
    "InvalidToken": "InvalidClientTokenId",
    "RequestTimeTooSkewed": "SignatureDoesNotMatch",
}


class StsError(Exception):
    """One refusal. `code` is one of this service's."""

    def __init__(self, code: str, message: str, status: int = 0) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status or _STATUS[code]


def is_for_sts(head: RequestHead) -> bool:
    """Is this path-style request at the root of the endpoint one for this service?"""
    if head.path != "/" or head.method not in ("GET", "POST"):
        return False
    if head.method == "POST" and head.headers.get("content-type", "").lower().startswith(_FORM):
        return True
    return head.parameter("Action") is not None and head.parameter("Version") is not None


def parameters(head: RequestHead, body: bytes) -> dict[str, str]:
    """Those of the query but the signature, and of the form in the body. ValidationError when one comes twice."""
    try:
        pairs = parse_qsl(
            body.decode("utf-8"), keep_blank_values=True, strict_parsing=bool(body), errors="strict"
        )
    except (ValueError, UnicodeDecodeError):
        raise StsError("ValidationError", "The body of the request is not a form.") from None
    pairs = [*(pair for pair in head.query if not _OF_THE_SIGNATURE.match(pair[0])), *pairs]
    found = dict(pairs)
    if len(found) != len(pairs):
        raise StsError("ValidationError", "A parameter is given more than once.")
    return found


def of_s3(error: S3Error) -> StsError:
    """What the S3 authenticator refused, as this service puts it."""
    code = _NAMES.get(error.code, error.code)
    return StsError(code if code in _STATUS else "ValidationError", error.message, error.status)


def answer(
    action: str, result: Mapping[str, str | int | Mapping[str, str | int]], request_id: str
) -> Response:
    """A document with the members of the result, one level of structures deep."""
    document = (
        f'<{action}Response xmlns="{NAMESPACE}"><{action}Result>{_members(result)}</{action}Result>'
        f"<ResponseMetadata>{leaf('RequestId', request_id)}</ResponseMetadata></{action}Response>"
    )
    return Response(200, _headers(request_id), document.encode())


def refusal(error: StsError, request_id: str) -> Response:
    document = (
        f'<ErrorResponse xmlns="{NAMESPACE}"><Error><Type>Sender</Type>{leaf("Code", error.code)}'
        f"{leaf('Message', error.message)}</Error>{leaf('RequestId', request_id)}</ErrorResponse>"
    )
    return Response(error.status, _headers(request_id), document.encode())


def timestamp(time_s: int) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _headers(request_id: str) -> list[tuple[str, str]]:
    # Credentials are nobody else's, whatever stands between.
    return [("content-type", "text/xml"), ("cache-control", "no-store"), ("x-amzn-requestid", request_id)]


def _members(values: Mapping[str, str | int | Mapping[str, str | int]]) -> str:
    return "".join(
        f"<{name}>{_members(value)}</{name}>"
        if isinstance(value, Mapping)
        else f"<{name}>{escape_text(str(value))}</{name}>"
        for name, value in values.items()
    )
