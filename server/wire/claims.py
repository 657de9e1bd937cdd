"""What a request says about its signature: whose, of when, over which headers. The shape of it, and its time.

Must not know: secrets, whether the signature holds (sigv4.py), the body. Reads no clock: `now_s` is given.

Invariants:
* A claim is complete, well formed, and of a time that counts; everything else is an `S3Error`, in AWS's words.
* What is remembered of one request for the next depends on the text of its header alone.

Source: "Authenticating Requests (AWS Signature Version 4)", Amazon S3 API Reference; where it is silent, what AWS is
seen to answer.
"""

from __future__ import annotations

import re
from calendar import timegm
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Final, Protocol

import msgspec

from cordwood.server.wire import sigv2
from cordwood.server.wire.errors import S3Error, s3_error
from cordwood.server.wire.message import RequestHead
from cordwood.server.wire.signing import (
    ALGORITHM,
    MAX_EXPIRES_S,
    UNSIGNED_PAYLOAD,
    fill_header_pattern,
    header_pattern,
)

MAX_SKEW_S: Final = 15 * 60
_CONTENT_SHA256: Final = "x-amz-content-sha256"
_DAY: Final = re.compile(r"[0-9]{8}").fullmatch


class Refusal(Protocol):
    """The error of something that is wrong with a credential; `region` is the right one, where that was wrong."""

    def __call__(self, detail: str, region: str | None = None, /) -> S3Error: ...


class SignedHeaders:
    """The headers that a signature covers, in the order in which it names them."""

    __slots__ = ("_lines", "names")

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self._lines = header_pattern(names)

    def canonical(self, headers: Mapping[str, str]) -> str:
        """Their part of the canonical request. One that did not arrive is signed as if it were empty."""
        get = headers.get
        return fill_header_pattern(self._lines, tuple([get(name, "") for name in self.names]))


class Scope(msgspec.Struct, frozen=True, gc=False):
    """What stays the same as long as a client does the same kind of thing: whose key, for when and where, and which
    headers it signs. `text` is the scope as it is signed."""

    access_key: str
    day: str
    region: str
    service: str
    terminal: str
    text: str
    signed: SignedHeaders


class Claim(msgspec.Struct, gc=False):
    """What a request says about its signature. `query` is what of the query is signed."""

    scope: Scope
    amz_date: str
    signature: str
    payload_hash: str
    query: Sequence[tuple[str, str]]
    is_presigned: bool


class Place(msgspec.Struct, frozen=True, gc=False):
    """What a signature must be for."""

    region: str
    service: str


def claim_of_header(
    head: RequestHead, header: str, now_s: float, place: Place, payload_sha256: str | None = None
) -> Claim:
    """`payload_sha256` is of a body that has arrived, for services that do not name it in a header."""
    algorithm, space, rest = header.partition(" ")
    if algorithm != ALGORITHM:
        raise _wrong_algorithm(algorithm if space else "", header)
    # All before the last component stays the same as long as a client does the same kind of thing.
    first, _, last = rest.rpartition(",")
    name, _, signature = last.strip(" \t").partition("=")
    if name != "Signature":
        raise _bad_components(rest)
    scope = _parse_components(first)
    _check_scope(scope, place, _bad_credential_of_header)
    headers = head.headers
    amz_date = headers.get("x-amz-date")
    if amz_date is None:
        amz_date = _iso_of_date_header(headers.get("date", ""))
    request_s = _parse_time(amz_date)
    if request_s is None:
        raise s3_error("AccessDenied", "AWS authentication requires a valid Date or x-amz-date header")
    payload_hash = payload_sha256 or headers.get("x-amz-content-sha256")
    if payload_hash is None:
        raise s3_error("InvalidRequest", "Missing required header for this request: x-amz-content-sha256")
    if scope.day != amz_date[:8]:
        raise _bad_credential_of_header(_wrong_day(scope.day, amz_date))
    if abs(now_s - request_s) > MAX_SKEW_S:
        raise s3_error(
            "RequestTimeTooSkewed",
            RequestTime=amz_date,
            ServerTime=_iso(now_s),
            MaxAllowedSkewMilliseconds=MAX_SKEW_S * 1000,
        )
    return Claim(scope, amz_date, signature, payload_hash, head.query, False)


@lru_cache(maxsize=1024)
def _parse_components(text: str) -> Scope:
    """Of "Credential=..., SignedHeaders=..."."""
    parts: dict[str, str] = {}
    for piece in text.split(","):
        name, equals, value = piece.strip(" \t").partition("=")
        if not equals or name in parts:
            raise _bad_components(text + ",Signature=")
        parts[name] = value
    if parts.keys() != {"Credential", "SignedHeaders"}:
        raise _bad_components(text + ",Signature=")
    return _scope(parts["Credential"], parts["SignedHeaders"], _bad_credential_of_header)


def _scope(credential: str, signed_headers: str, refuse: Refusal) -> Scope:
    parts = credential.split("/")
    if len(parts) != 5:
        raise refuse(
            'the Credential is mal-formed; expecting "<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request"'
        )
    access_key, day, region, service, terminal = parts
    if not access_key:
        raise refuse("a non-empty Access Key (AKID) must be provided in the credential")
    text = f"{day}/{region}/{service}/{terminal}"
    return Scope(access_key, day, region, service, terminal, text, _signed_headers(signed_headers))


def claim_of_query(
    head: RequestHead,
    parameters: dict[str, str],
    now_s: float,
    place: Place,
    payload_sha256: str | None = None,
) -> Claim:
    if any(name not in parameters for name in PRESIGNED_PARAMETERS):
        raise _bad_query(
            "Query-string authentication version 4 requires the X-Amz-Algorithm, X-Amz-Credential, X-Amz-Signature, "
            "X-Amz-Date, X-Amz-SignedHeaders, and X-Amz-Expires parameters."
        )
    algorithm = parameters["x-amz-algorithm"]
    if algorithm != ALGORITHM:
        if algorithm.startswith("AWS4-ECDSA"):
            raise no_ecdsa()
        raise _bad_query(f'X-Amz-Algorithm only supports "{ALGORITHM}"')
    scope = _scope(
        parameters["x-amz-credential"], parameters["x-amz-signedheaders"], _bad_credential_of_query
    )
    _check_scope(scope, place, _bad_credential_of_query)
    amz_date = parameters["x-amz-date"]
    request_s = _parse_time(amz_date)
    if request_s is None:
        raise _bad_query("X-Amz-Date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\"")
    if scope.day != amz_date[:8]:
        raise _bad_query(_wrong_day(scope.day, amz_date) + ".")
    _check_lifetime(parameters["x-amz-expires"], request_s, now_s)
    # Usually not there. When it is, its value takes the place of UNSIGNED-PAYLOAD in what is signed.
    payload_hash = (
        payload_sha256 or parameters.get("x-amz-content-sha256") or head.headers.get("x-amz-content-sha256")
    )
    return Claim(
        scope,
        amz_date,
        parameters["x-amz-signature"],
        payload_hash or UNSIGNED_PAYLOAD,
        [pair for pair in head.query if pair[0].lower() != "x-amz-signature"],
        True,
    )


def claim_of_form(fields: Mapping[str, str], now_s: float, place: Place) -> Claim:
    """Of a browser's form, by its fields. It lives as long as its policy says, and its date at most a week."""
    algorithm = fields["x-amz-algorithm"]
    if algorithm != ALGORITHM:
        if algorithm.startswith("AWS4-ECDSA"):
            raise no_ecdsa()
        raise _bad_argument("X-Amz-Algorithm", algorithm, f"Only {ALGORITHM} is supported")
    credential = fields["x-amz-credential"]

    def refuse(detail: str, _region: str | None = None) -> S3Error:
        return _bad_argument("x-amz-credential", credential, f"{detail}.")

    scope = _scope(credential, "", refuse)
    _check_scope(scope, place, refuse)
    amz_date = fields["x-amz-date"]
    request_s = _parse_time(amz_date)
    if request_s is None:
        raise _bad_argument("X-Amz-Date", amz_date, "X-Amz-Date must be formated via ISO8601 Long format")
    if scope.day != amz_date[:8]:
        raise refuse(_wrong_day(scope.day, amz_date))
    _check_age(request_s, MAX_EXPIRES_S, now_s)
    return Claim(scope, amz_date, fields["x-amz-signature"], UNSIGNED_PAYLOAD, (), True)


PRESIGNED_PARAMETERS: Final = (
    "x-amz-algorithm",
    "x-amz-credential",
    "x-amz-signature",
    "x-amz-date",
    "x-amz-signedheaders",
    "x-amz-expires",
)
SIGV2_PARAMETERS: Final = {"awsaccesskeyid", "signature"}
_MATERIAL: Final = {*PRESIGNED_PARAMETERS, *SIGV2_PARAMETERS, "x-amz-security-token"}


def authentication_parameters(query: list[tuple[str, str]]) -> dict[str, str]:
    """The x-amz-* and SigV2 parameters by lower-case name; empty when none of them is about authentication."""
    found: dict[str, str] = {}
    has_material = False
    duplicate = ""
    for name, value in query:
        lower = name.lower()
        if lower.startswith("x-amz-") or lower in sigv2.PARAMETERS:
            if lower in found:
                duplicate = name
            found[lower] = value
            has_material = has_material or lower in _MATERIAL
    if not has_material:
        return {}
    if duplicate:
        raise _bad_query(f"The parameter {duplicate} is given more than once.")
    return found


def _check_lifetime(expires: str, request_s: int, now_s: float) -> None:
    if not re.fullmatch(r"-?[0-9]{1,18}", expires, re.ASCII):
        raise _bad_query("X-Amz-Expires should be a number")
    expires_s = int(expires)
    if not 1 <= expires_s <= MAX_EXPIRES_S:
        message = "X-Amz-Expires must be non-negative"
        if expires_s > 0:
            message = (
                "X-Amz-Expires must be less than a week (in seconds); that is, the given X-Amz-Expires must be less "
                f"than {MAX_EXPIRES_S} seconds"
            )
        # AWS answers 400; s3-tests wants the 403 of an expired URL.
        raise S3Error("AuthorizationQueryParametersError", 403, message)
    _check_age(request_s, expires_s, now_s)


def _check_age(request_s: int, expires_s: int, now_s: float) -> None:
    if request_s > now_s + MAX_SKEW_S:
        raise s3_error("AccessDenied", "Request is not valid yet", ServerTime=_iso(now_s))
    if now_s > request_s + expires_s:
        raise s3_error(
            "AccessDenied",
            "Request has expired",
            (),
            **{"X-Amz-Expires": expires_s},
            Expires=_iso(request_s + expires_s),
            ServerTime=_iso(now_s),
        )


@lru_cache(maxsize=256)
def _signed_headers(text: str) -> SignedHeaders:
    return SignedHeaders(tuple(text.split(";")) if text else ())


def _check_scope(scope: Scope, place: Place, refuse: Refusal) -> None:
    if scope.terminal != "aws4_request":
        raise refuse(f'incorrect terminal "{scope.terminal}". This endpoint uses "aws4_request"')
    if scope.service != place.service:
        raise refuse(f'incorrect service "{scope.service}". This endpoint belongs to "{place.service}"')
    if scope.region != place.region:
        raise refuse(f"the region '{scope.region}' is wrong; expecting '{place.region}'", place.region)
    if not _DAY(scope.day):
        raise refuse(
            f'incorrect date format "{scope.day}". This date in the credential must be in the format "yyyyMMdd"'
        )


def _wrong_day(day: str, amz_date: str) -> str:
    return f'Invalid credential date "{day}". This date is not the same as X-Amz-Date: "{amz_date[:8]}"'


def check_signed_headers(head: RequestHead, claim: Claim) -> None:
    """Refuses a header that acts and is not signed: anybody could have added it."""
    signed = claim.scope.signed.names
    if "host" not in signed:
        if claim.is_presigned:
            raise _bad_query("X-Amz-SignedHeaders must name host, and separate names by semicolons.")
        raise _malformed_header("SignedHeaders must name host, and separate names by semicolons")
    unsigned = _acting(tuple(head.headers), signed)
    if unsigned and claim.is_presigned and head.headers.get(_CONTENT_SHA256) == claim.payload_hash:
        # Its value is signed in another place, see claim_of_query.
        unsigned = tuple(name for name in unsigned if name != _CONTENT_SHA256)
    if unsigned:
        raise s3_error(
            "AccessDenied",
            "There were headers present in the request which were not signed",
            HeadersNotSigned=", ".join(unsigned),
        )


@lru_cache(maxsize=1024)
def _acting(names: tuple[str, ...], signed: tuple[str, ...]) -> tuple[str, ...]:
    """Which of these headers should have been signed. A client sends the same few sets of them over and over."""
    return tuple(name for name in names if name[:6] == "x-amz-" and name not in signed)


# -- time ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _parse_time(text: str) -> int | None:
    """Seconds of the epoch from 20130524T000000Z."""
    if not re.fullmatch(r"[0-9]{8}T[0-9]{6}Z", text):
        return None
    try:
        return timegm(datetime.strptime(text, "%Y%m%dT%H%M%SZ").timetuple())
    except ValueError:
        return None


def _iso_of_date_header(text: str) -> str:
    """A Date header as the time to sign; "" when it is none."""
    if _parse_time(text) is not None:
        return text
    try:
        return parsedate_to_datetime(text).astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    except (ValueError, OverflowError):
        return ""


def _iso(time_s: float) -> str:
    return datetime.fromtimestamp(int(time_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# -- refusals ------------------------------------------------------------------------------------------------


def _wrong_algorithm(algorithm: str, header: str) -> S3Error:
    """`algorithm` is empty when the header has no space."""
    if algorithm == "AWS":
        return _only_v4()
    if algorithm.startswith("AWS4-ECDSA"):
        return no_ecdsa()
    message = "Unsupported Authorization Type"
    if not algorithm:
        message = "Authorization header is invalid -- one and only one ' ' (space) required"
    return _bad_argument("Authorization", header, message)


def _bad_components(text: str) -> S3Error:
    """What is wrong with "Credential=..., SignedHeaders=..., Signature=..."."""
    pieces = [piece.strip(" \t") for piece in text.split(",")]
    if len(pieces) == 3:
        for piece in pieces:
            if "=" not in piece:
                return _malformed_header(f'the authorization component "{piece}" is malformed')
        names = {piece.partition("=")[0] for piece in pieces}
        for name in ("Credential", "SignedHeaders", "Signature"):
            if name not in names:
                return _malformed_header(f"missing {name}")
    return _malformed_header(
        "the authorization header requires three components: Credential, SignedHeaders, and Signature"
    )


def _malformed_header(detail: str) -> S3Error:
    return s3_error("AuthorizationHeaderMalformed", f"The authorization header is malformed; {detail}.")


def _bad_query(message: str) -> S3Error:
    return s3_error("AuthorizationQueryParametersError", message)


def _bad_argument(name: str, value: str, message: str) -> S3Error:
    return s3_error("InvalidArgument", message, ArgumentName=name, ArgumentValue=value)


def _bad_credential_of_header(detail: str, region: str | None = None) -> S3Error:
    return s3_error(
        "AuthorizationHeaderMalformed",
        f"The authorization header is malformed; {detail}.",
        _region_header(region),
        Region=region,
    )


def _bad_credential_of_query(detail: str, region: str | None = None) -> S3Error:
    return s3_error(
        "AuthorizationQueryParametersError",
        f"Error parsing the X-Amz-Credential parameter; {detail}.",
        _region_header(region),
        Region=region,
    )


def _region_header(region: str | None) -> tuple[tuple[str, str], ...]:
    """For HEAD, whose answer has no document: SDKs that signed for another region sign again by it."""
    return (("x-amz-bucket-region", region),) if region is not None else ()


def _only_v4() -> S3Error:
    return s3_error(
        "InvalidRequest",
        f"The authorization mechanism you have provided is not supported. Please use {ALGORITHM}.",
    )


def no_ecdsa() -> S3Error:
    return s3_error("NotImplemented", f"SigV4A (ECDSA) is not implemented. Please use {ALGORITHM}.")
