"""AWS Signature Version 4 for S3: who sent this request, and what did they promise about its body?

Must not know: sockets, buckets, permissions (access.py), where credentials are kept. Reads no clock: `now_s` is given.

Theory of operation. Both sides derive one text from the request (the canonical request), and sign its hash with a key
made from the secret, the day, the region and the service. For S3 the path is encoded once and never normalised. The
signature covers the headers that the client lists, so a header that acts (`x-amz-*`) but is not listed could have been
added by anybody: such a request is refused, as AWS does.

Invariants:
* `Verified` is made here and nowhere else; handlers ask for one, so nothing unauthenticated reaches them.
* Every failure is an `S3Error`; signatures are compared in constant time.
* An anonymous `Verified` comes only from a request without any authentication material. Broken material is an error.

Source: "Authenticating Requests (AWS Signature Version 4)", Amazon S3 API Reference; where it is silent, what AWS is
seen to answer. The arithmetic, and signing for clients, is in signing.py.
"""

from __future__ import annotations

import hmac
import re
from calendar import timegm
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Final, Literal, Protocol

from cordwood.server.wire import sigv2
from cordwood.server.wire.errors import S3Error, s3_error
from cordwood.server.wire.message import RequestHead
from cordwood.server.wire.signing import (
    ALGORITHM,
    MAX_EXPIRES_S,
    UNSIGNED_PAYLOAD,
    Credential,
    KeyPair,
    canonical_escaped_path,
    canonical_path,
    canonical_query,
    canonical_request,
    presign_url,
    sign,
    sign_headers,
    signing_key,
    string_to_sign,
)

# The signers of clients are offered here too: this is the module that people look into.
__all__ = [
    "ANONYMOUS",
    "Account",
    "Credential",
    "Identity",
    "PayloadPlan",
    "Verified",
    "authenticate",
    "authenticate_form",
    "presign_url",
    "sign_headers",
]

MAX_SKEW_S: Final = 15 * 60


class Account(KeyPair, Protocol):
    """A key pair and the owner that it speaks for."""

    @property
    def owner_id(self) -> str: ...
    @property
    def display_name(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks."""

    access_key: str
    owner_id: str
    display_name: str
    is_anonymous: bool


# AWS's own canonical id of "everybody".
ANONYMOUS: Final = Identity("", "65a011a29cdf8ec533ec3d1ccaae921c", "Anonymous", is_anonymous=True)

PayloadKind = Literal[
    "unsigned", "sha256", "streaming-signed", "streaming-signed-trailer", "streaming-unsigned-trailer"
]


@dataclass(slots=True)  # not frozen: that would cost a microsecond per request
class PayloadPlan:
    """What the client promised about the body, and what is needed to check it. To be read only."""

    kind: PayloadKind
    sha256_hex: str = ""
    """Of the whole body; kind "sha256" only."""
    decoded_length: int = 0
    """Bytes without the aws-chunked framing; the streaming kinds only."""
    trailer_names: tuple[str, ...] = ()
    """Declared in x-amz-trailer, lower case; only x-amz-checksum-* are possible."""
    seed_signature: str = ""
    signing_key: bytes = b""
    scope: str = ""
    amz_date: str = ""

    @property
    def is_streaming(self) -> bool:
        """Whether the body is aws-chunked."""
        return self.kind.startswith("streaming-")


class Verified:
    """Proof that a request was authenticated."""

    __slots__ = ("_identity", "_payload")

    def __init__(self, made_by: object, identity: Identity, payload: PayloadPlan) -> None:
        if made_by is not _AUTHENTICATOR:
            raise TypeError("only sigv4.authenticate makes Verified values")
        self._identity = identity
        self._payload = payload

    @property
    def identity(self) -> Identity:
        return self._identity

    @property
    def payload(self) -> PayloadPlan:
        return self._payload


_AUTHENTICATOR: Final = object()


def authenticate(
    head: RequestHead,
    *,
    secret_for: Callable[[str], Account | None],
    region: str,
    now_s: float,
    service: str = "s3",
    host_bucket: str = "",
) -> Verified:
    """Check the signature of a request head. `secret_for` gives the credential of an access key, or None.

    `host_bucket` is the bucket that the Host names in virtual-host style: Signature Version 2 signs it.
    Raises S3Error. The body is not looked at: what it must satisfy is in the plan of the answer.
    """
    header = head.headers.get("authorization")
    parameters = _authentication_parameters(head.query) if head.raw_query else {}
    if header is not None:
        if parameters:
            raise s3_error(
                "InvalidArgument",
                "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature query string "
                "parameter or the Authorization header should be specified",
                ArgumentName="Authorization",
                ArgumentValue=header,
            )
        claim = _claim_of_header(head, header, now_s)
    elif parameters.keys() & _SIGV2_PARAMETERS:
        return _verify_version_2(head, parameters, secret_for, now_s, host_bucket)
    elif parameters:
        claim = _claim_of_query(head, parameters, now_s)
    else:
        return Verified(_AUTHENTICATOR, ANONYMOUS, _anonymous_plan(head))

    _check_scope(claim, region, service)
    _check_signed_headers(head, claim)
    credential = secret_for(claim.access_key)
    if credential is None:
        raise s3_error("InvalidAccessKeyId", AWSAccessKeyId=claim.access_key)
    key = signing_key(credential.secret_key, claim.day, region, service)
    if not _is_signed(head, claim, key, canonical_path(head.path)):
        # A client that sends a slash of a key as %2F may have signed it so; it is the same path all the same.
        as_sent = canonical_escaped_path(head.raw_path)
        if as_sent == canonical_path(head.path) or not _is_signed(head, claim, key, as_sent):
            raise _mismatch(head, claim)
    identity = _identity(credential.access_key, credential.owner_id, credential.display_name)
    return Verified(_AUTHENTICATOR, identity, _payload_plan(head, claim.payload_hash, claim, key))


def _verify_version_2(
    head: RequestHead,
    parameters: dict[str, str],
    secret_for: Callable[[str], Account | None],
    now_s: float,
    host_bucket: str,
) -> Verified:
    if parameters.keys() & set(_PRESIGNED_PARAMETERS):
        raise s3_error("InvalidArgument", "Only one auth mechanism allowed; the query has parameters of two.")
    if "x-amz-security-token" in parameters or "x-amz-security-token" in head.headers:
        raise _no_tokens()
    sigv2.check_lifetime(parameters, now_s)
    access_key = parameters["awsaccesskeyid"]
    credential = secret_for(access_key)
    if credential is None:
        raise s3_error("InvalidAccessKeyId", AWSAccessKeyId=access_key)
    text = sigv2.string_to_sign(head, parameters["expires"], host_bucket)
    if not sigv2.is_signed(credential.secret_key, text, parameters["signature"]):
        raise s3_error(
            "SignatureDoesNotMatch",
            AWSAccessKeyId=access_key,
            StringToSign=text,
            SignatureProvided=parameters["signature"],
        )
    identity = _identity(credential.access_key, credential.owner_id, credential.display_name)
    declared = head.headers.get("x-amz-content-sha256") or UNSIGNED_PAYLOAD
    return Verified(_AUTHENTICATOR, identity, _payload_plan(head, declared, None, b""))


def authenticate_form(
    head: RequestHead,
    fields: Mapping[str, str],
    *,
    secret_for: Callable[[str], Account | None],
    region: str,
    now_s: float,
    service: str = "s3",
) -> Verified:
    """Check the signature of a browser's form, which is one of its policy. `fields` by lower-case name.

    The policy itself (post_policy.py) is not looked at. Without policy and signature the form is anybody's.
    """
    plan = PayloadPlan("unsigned")
    is_version_4 = "x-amz-algorithm" in fields or "x-amz-signature" in fields or "x-amz-credential" in fields
    needed: tuple[str, ...] = ("x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-signature")
    if not is_version_4:
        needed = ("awsaccesskeyid", "signature")
        if "policy" not in fields and not any(name in fields for name in needed):
            return Verified(_AUTHENTICATOR, ANONYMOUS, plan)
    for name in (*needed, "policy"):
        if name not in fields:
            raise s3_error(
                "InvalidArgument",
                f"Bucket POST must contain a field named '{name}'.  If it is specified, please check the order of "
                "the fields.",
                argument_name=name,
            )
    if "x-amz-security-token" in fields:
        raise _no_tokens()
    policy = fields["policy"]
    if is_version_4:
        claim = _claim_of_query(head, {**fields, **_FORM_LIFETIME}, now_s)
        _check_scope(claim, region, service)
        access_key, signature = claim.access_key, claim.signature
    else:
        claim = None
        access_key, signature = fields["awsaccesskeyid"], fields["signature"]
    credential = secret_for(access_key)
    if credential is None:
        raise s3_error("InvalidAccessKeyId", AWSAccessKeyId=access_key)
    if claim is not None:
        expected = sign(signing_key(credential.secret_key, claim.day, region, service), policy)
        is_signed = hmac.compare_digest(expected.encode(), signature.encode("utf-8", "replace"))
    else:
        is_signed = sigv2.is_signed(credential.secret_key, policy, signature)
    if not is_signed:
        raise s3_error(
            "SignatureDoesNotMatch",
            AWSAccessKeyId=access_key,
            StringToSign=policy,
            SignatureProvided=signature,
        )
    identity = _identity(credential.access_key, credential.owner_id, credential.display_name)
    return Verified(_AUTHENTICATOR, identity, plan)


@lru_cache(maxsize=1024)
def _identity(access_key: str, owner_id: str, display_name: str) -> Identity:
    return Identity(access_key, owner_id, display_name, is_anonymous=False)


def _is_signed(head: RequestHead, claim: _Claim, key: bytes, path: str) -> bool:
    text = string_to_sign(claim.amz_date, claim.scope, _canonical(head, claim, path))
    return hmac.compare_digest(sign(key, text).encode(), claim.signature.encode("utf-8", "replace"))


def _canonical(head: RequestHead, claim: _Claim, path: str) -> str:
    headers = head.headers
    return canonical_request(
        head.method,
        path,
        canonical_query(claim.query) if claim.query else "",
        [(name, headers.get(name, "")) for name in claim.signed_headers],
        claim.payload_hash,
    )


# -- claims: what a request says about its signature ---------------------------------------------------------


@dataclass(slots=True)
class _Claim:
    access_key: str
    day: str
    region: str
    service: str
    terminal: str
    scope: str
    amz_date: str
    signed_headers: Sequence[str]
    signature: str
    payload_hash: str
    query: Sequence[tuple[str, str]]
    is_presigned: bool


def _claim_of_header(head: RequestHead, header: str, now_s: float) -> _Claim:
    algorithm, _, rest = header.partition(" ")
    if algorithm != ALGORITHM:
        raise _wrong_algorithm(algorithm, header)
    # All before the last component stays the same as long as a client does the same kind of thing.
    first, _, last = rest.rpartition(",")
    access_key, day, region, service, terminal, scope, signed_headers = _parse_components(first)
    name, _, signature = last.strip(" \t").partition("=")
    if name != "Signature":
        raise _missing_components()
    if "x-amz-security-token" in head.headers:
        raise _no_tokens()
    headers = head.headers
    amz_date = headers.get("x-amz-date")
    if amz_date is None:
        amz_date = _iso_of_date_header(headers.get("date", ""))
    request_s = _parse_time(amz_date)
    if request_s is None:
        raise s3_error("AccessDenied", "AWS authentication requires a valid Date or x-amz-date header")
    payload_hash = headers.get("x-amz-content-sha256")
    if payload_hash is None:
        raise s3_error("InvalidRequest", "Missing required header for this request: x-amz-content-sha256")
    if day != amz_date[:8]:
        raise _malformed_header(
            f'Invalid credential date "{day}". This date is not the same as X-Amz-Date: "{amz_date[:8]}"'
        )
    if abs(now_s - request_s) > MAX_SKEW_S:
        raise s3_error(
            "RequestTimeTooSkewed",
            RequestTime=amz_date,
            ServerTime=_iso(now_s),
            MaxAllowedSkewMilliseconds=MAX_SKEW_S * 1000,
        )
    return _Claim(
        access_key, day, region, service, terminal, scope, amz_date, signed_headers, signature, payload_hash,
        head.query, False,
    )  # fmt: skip


@lru_cache(maxsize=1024)
def _parse_components(text: str) -> tuple[str, str, str, str, str, str, Sequence[str]]:
    """Access key, day, region, service, terminal, scope and signed headers of "Credential=..., SignedHeaders=..."."""
    parts: dict[str, str] = {}
    for piece in text.split(","):
        name, equals, value = piece.strip(" \t").partition("=")
        if not equals or name in parts:
            raise _missing_components()
        parts[name] = value
    if parts.keys() != {"Credential", "SignedHeaders"}:
        raise _missing_components()
    credential = parts["Credential"].rsplit("/", 4)
    if len(credential) != 5 or not credential[0]:
        raise _malformed_header(
            'the Credential is mal-formed; expecting "<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request"'
        )
    access_key, *scope = credential
    return (
        access_key,
        scope[0],
        scope[1],
        scope[2],
        scope[3],
        "/".join(scope),
        _split_signed_headers(parts["SignedHeaders"]),
    )


def _claim_of_query(head: RequestHead, parameters: dict[str, str], now_s: float) -> _Claim:
    if "x-amz-security-token" in parameters or "x-amz-security-token" in head.headers:
        raise _no_tokens()
    if any(name not in parameters for name in _PRESIGNED_PARAMETERS):
        raise _bad_query(
            "Query-string authentication version 4 requires the X-Amz-Algorithm, X-Amz-Credential, X-Amz-Signature, "
            "X-Amz-Date, X-Amz-SignedHeaders, and X-Amz-Expires parameters."
        )
    algorithm = parameters["x-amz-algorithm"]
    if algorithm != ALGORITHM:
        if algorithm.startswith("AWS4-ECDSA"):
            raise _no_ecdsa()
        raise _bad_query(f'X-Amz-Algorithm only supports "{ALGORITHM}"')
    credential = parameters["x-amz-credential"].rsplit("/", 4)
    if len(credential) != 5 or not credential[0]:
        raise _bad_query(
            "Error parsing the X-Amz-Credential parameter; the Credential is mal-formed; expecting "
            '"<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request".'
        )
    access_key, day, region, service, terminal = credential
    amz_date = parameters["x-amz-date"]
    request_s = _parse_time(amz_date)
    if request_s is None:
        raise _bad_query("X-Amz-Date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\"")
    if day != amz_date[:8]:
        raise _bad_query(
            f'Error parsing the X-Amz-Credential parameter; Invalid credential date "{day}". This date is not the same '
            f'as X-Amz-Date: "{amz_date[:8]}".'
        )
    _check_lifetime(parameters["x-amz-expires"], request_s, now_s)
    # Usually not there. When it is, its value takes the place of UNSIGNED-PAYLOAD in what is signed.
    payload_hash = parameters.get("x-amz-content-sha256") or head.headers.get("x-amz-content-sha256")
    return _Claim(
        access_key, day, region, service, terminal, f"{day}/{region}/{service}/{terminal}", amz_date,
        _split_signed_headers(parameters["x-amz-signedheaders"]), parameters["x-amz-signature"],
        payload_hash or UNSIGNED_PAYLOAD,
        [pair for pair in head.query if pair[0].lower() != "x-amz-signature"], is_presigned=True,
    )  # fmt: skip


_PRESIGNED_PARAMETERS: Final = (
    "x-amz-algorithm",
    "x-amz-credential",
    "x-amz-signature",
    "x-amz-date",
    "x-amz-signedheaders",
    "x-amz-expires",
)
# A form lives as long as its policy says, and its date at most a week.
_FORM_LIFETIME: Final = {"x-amz-expires": str(MAX_EXPIRES_S), "x-amz-signedheaders": "host"}
_SIGV2_PARAMETERS: Final = {"awsaccesskeyid", "signature"}
_MATERIAL: Final = {*_PRESIGNED_PARAMETERS, *_SIGV2_PARAMETERS, "x-amz-security-token"}


def _authentication_parameters(query: list[tuple[str, str]]) -> dict[str, str]:
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
        # AWS answers 400; s3-tests wants the 403 of an expired URL.
        message = f"X-Amz-Expires must lie between 1 and {MAX_EXPIRES_S} seconds, a week"
        raise S3Error("AuthorizationQueryParametersError", 403, message)
    if request_s > now_s + MAX_SKEW_S:
        raise s3_error("AccessDenied", "Request is not valid yet", ServerTime=_iso(now_s))
    if now_s > request_s + expires_s:
        raise s3_error(
            "AccessDenied",
            "Request has expired",
            Expires=_iso(request_s + expires_s),
            ServerTime=_iso(now_s),
        )


@lru_cache(maxsize=256)
def _split_signed_headers(text: str) -> tuple[str, ...]:
    return tuple(text.split(";")) if text else ()


def _check_scope(claim: _Claim, region: str, service: str) -> None:
    if claim.region != region:
        raise _bad_scope(claim, f"the region '{claim.region}' is wrong; expecting '{region}'", region)
    if claim.service != service:
        raise _bad_scope(claim, f'incorrect service "{claim.service}". This endpoint belongs to "{service}"')
    if claim.terminal != "aws4_request":
        raise _bad_scope(claim, f'incorrect terminal "{claim.terminal}". This endpoint uses "aws4_request"')


def _check_signed_headers(head: RequestHead, claim: _Claim) -> None:
    signed = claim.signed_headers
    if "host" not in signed:
        if claim.is_presigned:
            raise _bad_query("X-Amz-SignedHeaders must name host, and separate names by semicolons.")
        raise _malformed_header("SignedHeaders must name host, and separate names by semicolons")
    unsigned = [name for name in head.headers if name[:6] == "x-amz-" and name not in signed]
    if claim.is_presigned and "x-amz-content-sha256" in unsigned:
        unsigned.remove("x-amz-content-sha256")  # its value is signed in another place, see _claim_of_query
        if head.headers["x-amz-content-sha256"] != claim.payload_hash:
            unsigned.append("x-amz-content-sha256")
    if unsigned:
        raise s3_error(
            "AccessDenied",
            "There were headers present in the request which were not signed",
            HeadersNotSigned=", ".join(unsigned),
        )


# -- payload plans -------------------------------------------------------------------------------------------

_STREAMING: Final[dict[str, PayloadKind]] = {
    "STREAMING-AWS4-HMAC-SHA256-PAYLOAD": "streaming-signed",
    "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER": "streaming-signed-trailer",
    "STREAMING-UNSIGNED-PAYLOAD-TRAILER": "streaming-unsigned-trailer",
}
_SHA256: Final = re.compile(r"[0-9A-Fa-f]{64}").fullmatch
_TRAILER_NAME: Final = re.compile(r"x-amz-checksum-[a-z0-9]+").fullmatch


def _payload_plan(head: RequestHead, declared: str, claim: _Claim | None, key: bytes) -> PayloadPlan:
    is_aws_chunked = "aws-chunked" in head.headers.get("content-encoding", "").lower()
    kind = _STREAMING.get(declared)
    if kind is None:
        if declared.startswith("STREAMING-AWS4-ECDSA"):
            raise _no_ecdsa()
        if declared != UNSIGNED_PAYLOAD and not _SHA256(declared):
            raise s3_error(
                "InvalidArgument",
                f"x-amz-content-sha256 must be {UNSIGNED_PAYLOAD}, {', '.join(_STREAMING)}, or a valid sha256 value.",
                ArgumentName="x-amz-content-sha256",
                ArgumentValue=declared,
            )
        if is_aws_chunked and (head.is_chunked or head.content_length):
            raise s3_error(
                "InvalidRequest",
                "Content-Encoding is aws-chunked, but x-amz-content-sha256 does not begin with STREAMING-.",
            )
        if declared == UNSIGNED_PAYLOAD:
            return _UNSIGNED
        return PayloadPlan("sha256", sha256_hex=declared.lower())
    if not is_aws_chunked:
        raise s3_error(
            "InvalidRequest", f"x-amz-content-sha256 is {declared}, but Content-Encoding is not aws-chunked."
        )
    if claim is None and kind != "streaming-unsigned-trailer":
        raise s3_error("InvalidRequest", f"{declared} needs a signed request.")
    decoded = head.headers.get("x-amz-decoded-content-length")
    if decoded is None:
        raise s3_error(
            "MissingContentLength", "You must provide the x-amz-decoded-content-length HTTP header."
        )
    if not (decoded.isascii() and decoded.isdigit() and len(decoded) <= 18):
        raise s3_error(
            "InvalidArgument",
            "x-amz-decoded-content-length must be a number of bytes.",
            ArgumentName="x-amz-decoded-content-length",
            ArgumentValue=decoded,
        )
    return PayloadPlan(
        kind,
        decoded_length=int(decoded),
        trailer_names=_trailer_names(head, kind),
        seed_signature="" if claim is None else claim.signature,
        signing_key=key,
        scope="" if claim is None else claim.scope,
        amz_date="" if claim is None else claim.amz_date,
    )


_UNSIGNED: Final = PayloadPlan("unsigned")


def _anonymous_plan(head: RequestHead) -> PayloadPlan:
    declared = head.headers.get("x-amz-content-sha256")
    if declared is None:
        # SDKs that are told not to sign still send checksums in trailers, and leave this header out.
        is_streaming = "x-amz-trailer" in head.headers
        declared = "STREAMING-UNSIGNED-PAYLOAD-TRAILER" if is_streaming else UNSIGNED_PAYLOAD
    return _payload_plan(head, declared, None, b"")


def _trailer_names(head: RequestHead, kind: PayloadKind) -> tuple[str, ...]:
    header = head.headers.get("x-amz-trailer")
    if header is None:
        return ()
    if kind == "streaming-signed":
        raise s3_error("InvalidRequest", "x-amz-trailer needs an x-amz-content-sha256 that ends in -TRAILER.")
    names = tuple(name.strip(" \t").lower() for name in header.split(","))
    if not all(_TRAILER_NAME(name) for name in names) or len(set(names)) != len(names):
        raise s3_error("InvalidRequest", "The value specified in the x-amz-trailer header is not supported")
    return names


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


def _mismatch(head: RequestHead, claim: _Claim) -> S3Error:
    canonical = _canonical(head, claim, canonical_path(head.path))
    text = string_to_sign(claim.amz_date, claim.scope, canonical)
    return s3_error(
        "SignatureDoesNotMatch",
        AWSAccessKeyId=claim.access_key,
        StringToSign=text,
        SignatureProvided=claim.signature,
        StringToSignBytes=text.encode("utf-8", "replace").hex(" "),
        CanonicalRequest=canonical,
        CanonicalRequestBytes=canonical.encode("utf-8", "replace").hex(" "),
    )


def _wrong_algorithm(algorithm: str, header: str) -> S3Error:
    if algorithm == "AWS":
        return _only_v4()
    if algorithm.startswith("AWS4-ECDSA"):
        return _no_ecdsa()
    return s3_error(
        "InvalidArgument",
        "Unsupported Authorization Type",
        ArgumentName="Authorization",
        ArgumentValue=header,
    )


def _missing_components() -> S3Error:
    return _malformed_header(
        "the authorization header requires three components: Credential, SignedHeaders, and Signature"
    )


def _malformed_header(detail: str) -> S3Error:
    return s3_error("AuthorizationHeaderMalformed", f"The authorization header is malformed; {detail}.")


def _bad_query(message: str) -> S3Error:
    return s3_error("AuthorizationQueryParametersError", message)


def _bad_scope(claim: _Claim, detail: str, region: str | None = None) -> S3Error:
    if claim.is_presigned:
        return s3_error(
            "AuthorizationQueryParametersError",
            f"Error parsing the X-Amz-Credential parameter; {detail}.",
            Region=region,
        )
    return s3_error(
        "AuthorizationHeaderMalformed", f"The authorization header is malformed; {detail}.", Region=region
    )


def _only_v4() -> S3Error:
    return s3_error(
        "InvalidRequest",
        f"The authorization mechanism you have provided is not supported. Please use {ALGORITHM}.",
    )


def _no_ecdsa() -> S3Error:
    return s3_error("NotImplemented", f"SigV4A (ECDSA) is not implemented. Please use {ALGORITHM}.")


def _no_tokens() -> S3Error:
    return s3_error("InvalidToken", "Session tokens are not issued by this server, so none is valid.")
