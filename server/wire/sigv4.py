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
seen to answer. What a request claims is read in claims.py; the arithmetic, and signing for clients, are in signing.py.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, Protocol

import msgspec

from cordwood.server.wire import sigv2
from cordwood.server.wire.claims import (
    PRESIGNED_PARAMETERS,
    SIGV2_PARAMETERS,
    Claim,
    Place,
    authentication_parameters,
    check_signed_headers,
    claim_of_form,
    claim_of_header,
    claim_of_query,
    no_ecdsa,
)
from cordwood.server.wire.errors import S3Error, s3_error
from cordwood.server.wire.message import RequestHead
from cordwood.server.wire.session import Session, SessionAccount
from cordwood.server.wire.signing import (
    EMPTY_SHA256,
    UNSIGNED_PAYLOAD,
    Credential,
    KeyPair,
    Signer,
    canonical_escaped_path,
    canonical_path,
    canonical_query,
    canonical_request,
    presign_url,
    sign_headers,
    signer,
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


class Account(KeyPair, Protocol):
    """A key pair and the owner that it speaks for."""

    @property
    def owner_id(self) -> str: ...
    @property
    def display_name(self) -> str: ...


SessionFor = Callable[[str, str], Account]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks."""

    access_key: str
    owner_id: str
    display_name: str
    is_anonymous: bool
    session: Session | None = None
    """Of temporary credentials."""


# AWS's own canonical id of "everybody".
ANONYMOUS: Final = Identity("", "65a011a29cdf8ec533ec3d1ccaae921c", "Anonymous", is_anonymous=True)

PayloadKind = Literal[
    "unsigned", "sha256", "streaming-signed", "streaming-signed-trailer", "streaming-unsigned-trailer"
]


class PayloadPlan(msgspec.Struct, frozen=True, gc=False):
    """What the client promised about the body, and what is needed to check it."""

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
    session_for: SessionFor | None = None,
    service: str = "s3",
    host_bucket: str = "",
    payload_sha256: str | None = None,
) -> Verified:
    """Check the signature of a request head. `secret_for` gives the credential of an access key, or None;
    `session_for` that of an access key with a session token, or raises.

    `host_bucket` is the bucket that the Host names in virtual-host style: Signature Version 2 signs it.
    `payload_sha256` is of a body that has arrived; for services other than S3, which do not name it in a header.
    Raises S3Error. The body is not looked at: what it must satisfy is in the plan of the answer.
    """
    header = head.headers.get("authorization")
    parameters = authentication_parameters(head.query) if head.raw_query else {}
    if header is not None:
        if parameters:
            raise s3_error(
                "InvalidArgument",
                "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature query string "
                "parameter or the Authorization header should be specified",
                ArgumentName="Authorization",
                ArgumentValue=header,
            )
        claim = claim_of_header(head, header, now_s, Place(region, service), payload_sha256)
    elif parameters.keys() & SIGV2_PARAMETERS:
        if service != "s3":
            # It names no service: a URL for a listing would be good for credentials, too.
            raise s3_error("InvalidRequest", f"Signature Version 2 is not for {service}.")
        return _verify_version_2(head, parameters, secret_for, session_for, now_s, host_bucket)
    elif parameters:
        claim = claim_of_query(head, parameters, now_s, Place(region, service), payload_sha256)
    else:
        return Verified(_AUTHENTICATOR, ANONYMOUS, _anonymous_plan(head))

    check_signed_headers(head, claim)
    _check_declared(claim.payload_hash)
    scope = claim.scope
    credential = _account(scope.access_key, _token(head, parameters), secret_for, session_for)
    mac = signer(credential.secret_key, scope.day, region, service)
    path = canonical_path(head.path)
    if not _is_signed(head, claim, mac, path):
        # A client that sends a slash of a key as %2F may have signed it so; it is the same path all the same.
        as_sent = canonical_escaped_path(head.raw_path)
        if as_sent == path or not _is_signed(head, claim, mac, as_sent):
            raise _mismatch(head, claim)
    plan = _payload_plan(head, claim.payload_hash, claim, mac.key)
    return Verified(_AUTHENTICATOR, _identity(credential), plan)


def _verify_version_2(
    head: RequestHead,
    parameters: dict[str, str],
    secret_for: Callable[[str], Account | None],
    session_for: SessionFor | None,
    now_s: float,
    host_bucket: str,
) -> Verified:
    if parameters.keys() & set(PRESIGNED_PARAMETERS):
        raise s3_error("InvalidArgument", "Only one auth mechanism allowed; the query has parameters of two.")
    sigv2.check_lifetime(parameters, now_s)
    sigv2.check_query(head)
    access_key = parameters["awsaccesskeyid"]
    token = _token(head, parameters)
    credential = _account(access_key, token, secret_for, session_for)
    text = sigv2.string_to_sign(head, parameters["expires"], host_bucket, token)
    if not sigv2.is_signed(credential.secret_key, text, parameters["signature"]):
        raise s3_error(
            "SignatureDoesNotMatch",
            AWSAccessKeyId=access_key,
            StringToSign=text,
            SignatureProvided=parameters["signature"],
        )
    declared = head.headers.get("x-amz-content-sha256") or UNSIGNED_PAYLOAD
    return Verified(_AUTHENTICATOR, _identity(credential), _payload_plan(head, declared, None, b""))


def authenticate_form(
    head: RequestHead,
    fields: Mapping[str, str],
    *,
    secret_for: Callable[[str], Account | None],
    region: str,
    now_s: float,
    session_for: SessionFor | None = None,
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
    policy = fields["policy"]
    if is_version_4:
        claim = claim_of_form(fields, now_s, Place(region, service))
        access_key, signature = claim.scope.access_key, claim.signature
    else:
        claim = None
        access_key, signature = fields["awsaccesskeyid"], fields["signature"]
    credential = _account(access_key, fields.get(_TOKEN), secret_for, session_for)
    if claim is not None:
        expected = signer(credential.secret_key, claim.scope.day, region, service).sign(policy)
        is_signed = _is_same(expected, signature)
    else:
        is_signed = sigv2.is_signed(credential.secret_key, policy, signature)
    if not is_signed:
        raise s3_error(
            "SignatureDoesNotMatch",
            AWSAccessKeyId=access_key,
            StringToSign=policy,
            SignatureProvided=signature,
            StringToSignBytes=policy.encode("utf-8", "replace").hex(" "),
        )
    return Verified(_AUTHENTICATOR, _identity(credential), plan)


_TOKEN: Final = "x-amz-security-token"


def _token(head: RequestHead, parameters: Mapping[str, str]) -> str | None:
    """The session token. That it is signed is what the rule about x-amz-* headers sees to, or the query's signature."""
    in_header = head.headers.get(_TOKEN)
    if not parameters:
        return in_header
    in_query = parameters.get(_TOKEN)
    if in_query is not None and in_header is not None:
        raise s3_error("InvalidArgument", "The security token is given twice.", ArgumentName=_TOKEN)
    return in_header if in_query is None else in_query


def _account(
    access_key: str,
    token: str | None,
    secret_for: Callable[[str], Account | None],
    session_for: SessionFor | None,
) -> Account:
    if token is not None:
        if session_for is None:
            raise s3_error("InvalidToken")
        return session_for(access_key, token)
    account = secret_for(access_key)
    if account is None:
        raise s3_error("InvalidAccessKeyId", AWSAccessKeyId=access_key)
    return account


def _identity(account: Account) -> Identity:
    if isinstance(account, SessionAccount):
        return Identity(
            account.access_key, account.owner_id, account.display_name, False, session=account.session
        )
    return _usual_identity(account.access_key, account.owner_id, account.display_name)


@lru_cache(maxsize=1024)
def _usual_identity(access_key: str, owner_id: str, display_name: str) -> Identity:
    return Identity(access_key, owner_id, display_name, is_anonymous=False)


def _is_signed(head: RequestHead, claim: Claim, mac: Signer, path: str) -> bool:
    text = string_to_sign(claim.amz_date, claim.scope.text, _canonical(head, claim, path))
    return _is_same(mac.sign(text), claim.signature)


def _is_same(expected: str, given: str) -> bool:
    """In constant time; a signature is of hexadecimal digits, so what is not ASCII is none."""
    return given.isascii() and hmac.compare_digest(expected, given)


def _canonical(head: RequestHead, claim: Claim, path: str) -> str:
    return canonical_request(
        head.method,
        path,
        canonical_query(claim.query) if claim.query else "",
        claim.scope.signed.canonical(head.headers),
        claim.payload_hash,
    )


# -- payload plans -------------------------------------------------------------------------------------------

_STREAMING: Final[dict[str, PayloadKind]] = {
    "STREAMING-AWS4-HMAC-SHA256-PAYLOAD": "streaming-signed",
    "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER": "streaming-signed-trailer",
    "STREAMING-UNSIGNED-PAYLOAD-TRAILER": "streaming-unsigned-trailer",
}
_SHA256: Final = re.compile(r"[0-9A-Fa-f]{64}").fullmatch
_TRAILER_NAME: Final = re.compile(r"x-amz-checksum-[a-z0-9]+").fullmatch


def _payload_plan(head: RequestHead, declared: str, claim: Claim | None, key: bytes) -> PayloadPlan:
    encoding = head.headers.get("content-encoding")
    if encoding is None and declared in _PLAIN_PLANS:
        return _PLAIN_PLANS[declared]
    is_aws_chunked = encoding is not None and "aws-chunked" in encoding.lower()
    kind = _STREAMING.get(declared)
    if kind is None:
        _check_declared(declared)
        if is_aws_chunked and (head.is_chunked or head.content_length):
            raise s3_error(
                "InvalidRequest",
                "Content-Encoding is aws-chunked, but x-amz-content-sha256 does not begin with STREAMING-.",
            )
        if declared in _PLAIN_PLANS:
            return _PLAIN_PLANS[declared]
        return PayloadPlan("sha256", sha256_hex=declared.lower())
    # The signed hash alone says that the body is framed: minio-go, and so restic, leaves Content-Encoding out, as AWS
    # allows although its documents ask for it.
    if claim is None and kind != "streaming-unsigned-trailer":
        raise s3_error(
            "InvalidRequest",
            "Anonymous requests don't support this x-amz-content-sha256 value. Please use UNSIGNED-PAYLOAD or "
            "STREAMING-UNSIGNED-PAYLOAD-TRAILER.",
        )
    decoded = head.headers.get("x-amz-decoded-content-length")
    if decoded is None or not (decoded.isascii() and decoded.isdigit() and len(decoded) <= 18):
        raise s3_error("MissingContentLength", Detail="x-amz-decoded-content-length is no number of bytes")
    return PayloadPlan(
        kind,
        decoded_length=int(decoded),
        trailer_names=_trailer_names(head, kind),
        seed_signature="" if claim is None else claim.signature,
        signing_key=key,
        scope="" if claim is None else claim.scope.text,
        amz_date="" if claim is None else claim.amz_date,
    )


def _check_declared(declared: str) -> None:
    """Is it anything that x-amz-content-sha256 may say?"""
    if declared in _PLAIN_PLANS or declared in _STREAMING or _SHA256(declared):
        return
    if declared.startswith("STREAMING-AWS4-ECDSA"):
        raise no_ecdsa()
    raise s3_error(
        "InvalidArgument",
        "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, STREAMING-UNSIGNED-PAYLOAD-TRAILER, "
        "STREAMING-AWS4-HMAC-SHA256-PAYLOAD, STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER, "
        "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD, STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD-TRAILER or a valid sha256 "
        "value.",
        ArgumentName="x-amz-content-sha256",
        ArgumentValue=declared,
    )


# What nearly every request without a body, and most of those with one, declare.
_PLAIN_PLANS: Final = {
    UNSIGNED_PAYLOAD: PayloadPlan("unsigned"),
    EMPTY_SHA256: PayloadPlan("sha256", sha256_hex=EMPTY_SHA256),
}


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


def _mismatch(head: RequestHead, claim: Claim) -> S3Error:
    canonical = _canonical(head, claim, canonical_path(head.path))
    text = string_to_sign(claim.amz_date, claim.scope.text, canonical)
    return s3_error(
        "SignatureDoesNotMatch",
        AWSAccessKeyId=claim.scope.access_key,
        StringToSign=text,
        SignatureProvided=claim.signature,
        StringToSignBytes=text.encode("utf-8", "replace").hex(" "),
        CanonicalRequest=canonical,
        CanonicalRequestBytes=canonical.encode("utf-8", "replace").hex(" "),
    )
