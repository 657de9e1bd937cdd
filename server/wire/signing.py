"""The arithmetic of AWS Signature Version 4 for S3, and the two ways a client signs with it.

Must not know: requests received, errors, clocks; it is the same text on both sides.

Invariants:
* For S3 a path is encoded once and never normalised: `//`, `.` and `..` stay as they are.
* What `sign_headers` and `presign_url` sign, `sigv4.authenticate` accepts, and so does AWS.

Source: "Authenticating Requests (AWS Signature Version 4)", Amazon S3 API Reference.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, Protocol
from urllib.parse import parse_qsl, quote, unquote, unquote_to_bytes, urlsplit

ALGORITHM: Final = "AWS4-HMAC-SHA256"
UNSIGNED_PAYLOAD: Final = "UNSIGNED-PAYLOAD"
EMPTY_SHA256: Final = hashlib.sha256(b"").hexdigest()
MAX_EXPIRES_S: Final = 7 * 24 * 3600


class KeyPair(Protocol):
    """What one needs to sign."""

    @property
    def access_key(self) -> str: ...
    @property
    def secret_key(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Credential:
    """A key pair for a client."""

    access_key: str
    secret_key: str = field(repr=False)


# -- canonical forms -----------------------------------------------------------------------------------------


def canonical_path(path: str) -> str:
    """The decoded path, encoded once."""
    return path if _IS_PLAIN_PATH(path) else quote(path, safe="/-_.~")


def canonical_escaped_path(raw_path: bytes) -> str:
    """The path as sent, escapes normalised one by one: unlike in `canonical_path`, %2F stays apart from a slash."""
    return "%2F".join(quote(unquote_to_bytes(part), safe="/-_.~") for part in re.split(rb"%2[Ff]", raw_path))


def canonical_query(pairs: Iterable[tuple[str, str]]) -> str:
    """Decoded pairs, encoded and sorted by name, then value."""
    encoded = sorted([(_encode(name), _encode(value)) for name, value in pairs])
    return "&".join([f"{name}={value}" for name, value in encoded])


@lru_cache(maxsize=256)
def header_pattern(names: tuple[str, ...]) -> str:
    """The signed headers in a canonical request, a place for each value: their lines, an empty one, their names."""
    escaped = [name.replace("%", "%%") for name in names]
    return "".join([f"{name}:%s\n" for name in escaped]) + "\n" + ";".join(escaped)


def fill_header_pattern(pattern: str, values: tuple[str, ...]) -> str:
    """Blanks within a value count as one."""
    filled = pattern % values
    return _BLANKS.sub(" ", filled) if "  " in filled or "\t" in filled else filled


def canonical_request(method: str, path: str, query: str, headers: str, payload_hash: str) -> str:
    """Join canonical parts. `headers` is a filled pattern: lower-case names in the order of SignedHeaders."""
    return f"{method}\n{path}\n{query}\n{headers}\n{payload_hash}"


def string_to_sign(amz_date: str, scope: str, canonical: str) -> str:
    return f"{ALGORITHM}\n{amz_date}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"


@lru_cache(maxsize=1024)
def signing_key(secret_key: str, day: str, region: str, service: str) -> bytes:
    key = hmac.digest(f"AWS4{secret_key}".encode(), day.encode(), "sha256")
    for part in (region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


class Signer:
    """HMAC-SHA256 (RFC 2104) under one key whose two pads are hashed once: half the cost of `hmac.digest`."""

    __slots__ = ("_inner", "_outer", "key")

    def __init__(self, key: bytes) -> None:
        assert len(key) <= _SHA256_BLOCK_BYTES
        padded = key.ljust(_SHA256_BLOCK_BYTES, b"\0")
        self.key = key
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in padded))

    def sign(self, text: str) -> str:
        """Like the function."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(text.encode())
        outer.update(inner.digest())
        return outer.hexdigest()


@lru_cache(maxsize=1024)
def signer(secret_key: str, day: str, region: str, service: str) -> Signer:
    """With the `signing_key` of these."""
    return Signer(signing_key(secret_key, day, region, service))


def sign(key: bytes, text: str) -> str:
    """The signature, 64 lower-case hexadecimal digits."""
    return hmac.digest(key, text.encode(), "sha256").hex()


_SHA256_BLOCK_BYTES: Final = 64
_IS_PLAIN_PATH: Final = re.compile(r"[A-Za-z0-9\-._~/]*").fullmatch
_IS_PLAIN: Final = re.compile(r"[A-Za-z0-9\-._~]*").fullmatch
_BLANKS: Final = re.compile(r"[ \t]+")


def _encode(text: str) -> str:
    return text if _IS_PLAIN(text) else quote(text, safe="-_.~")


# -- signing, for clients ------------------------------------------------------------------------------------

# Rewritten or dropped by proxies and HTTP libraries, so never signed.
_NOT_SIGNED: Final = frozenset(
    {
        "accept-encoding",
        "authorization",
        "connection",
        "content-length",
        "expect",
        "transfer-encoding",
        "user-agent",
    }
)


def sign_headers(
    method: str,
    url: str,
    headers: Mapping[str, str],
    payload_sha256: str,
    credential: KeyPair,
    region: str,
    now: datetime,
    service: str = "s3",
) -> dict[str, str]:
    """The headers to add to a request: x-amz-date, x-amz-content-sha256 and authorization (lower-case names).

    `url` is what will be requested, percent-encoded; `headers` are what will be sent. A host header is signed as given,
    else taken from the URL. `payload_sha256` may also be UNSIGNED-PAYLOAD or one of the STREAMING- values.
    """
    amz_date, scope, key = _key_for(credential, region, service, now)
    added = {"x-amz-date": amz_date, "x-amz-content-sha256": payload_sha256}
    signed = {name.lower(): value.strip(" \t") for name, value in headers.items()} | added
    path, query, host = _split_url(url)
    signed.setdefault("host", host)
    pairs = sorted((name, value) for name, value in signed.items() if name not in _NOT_SIGNED)
    canonical = canonical_request(method, path, canonical_query(query), _signed(pairs), payload_sha256)
    signature = sign(key, string_to_sign(amz_date, scope, canonical))
    added["authorization"] = (
        f"{ALGORITHM} Credential={credential.access_key}/{scope}, "
        f"SignedHeaders={';'.join(name for name, _ in pairs)}, Signature={signature}"
    )
    return added


def presign_url(
    method: str,
    url: str,
    credential: KeyPair,
    region: str,
    now: datetime,
    expires_s: int,
    headers: Mapping[str, str] | None = None,
    service: str = "s3",
) -> str:
    """`url` with a signature in its query, good for `expires_s` (1 second to a week) from `now`.

    Whoever uses it must send `headers` exactly as given here.
    """
    if not 1 <= expires_s <= MAX_EXPIRES_S:
        raise ValueError(f"a presigned URL lives from 1 to {MAX_EXPIRES_S} seconds, not {expires_s}")
    amz_date, scope, key = _key_for(credential, region, service, now)
    path, query, host = _split_url(url)
    signed = {name.lower(): value.strip(" \t") for name, value in (headers or {}).items()}
    signed.setdefault("host", host)
    pairs = sorted(signed.items())
    query += [
        ("X-Amz-Algorithm", ALGORITHM),
        ("X-Amz-Credential", f"{credential.access_key}/{scope}"),
        ("X-Amz-Date", amz_date),
        ("X-Amz-Expires", str(expires_s)),
        ("X-Amz-SignedHeaders", ";".join(name for name, _ in pairs)),
    ]
    canonical = canonical_request(method, path, canonical_query(query), _signed(pairs), UNSIGNED_PAYLOAD)
    signature = sign(key, string_to_sign(amz_date, scope, canonical))
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{path}?{canonical_query(query)}&X-Amz-Signature={signature}"


def _signed(pairs: Sequence[tuple[str, str]]) -> str:
    names, values = zip(*pairs, strict=True)
    return fill_header_pattern(header_pattern(names), values)


def _key_for(credential: KeyPair, region: str, service: str, now: datetime) -> tuple[str, str, bytes]:
    amz_date = now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    day = amz_date[:8]
    scope = f"{day}/{region}/{service}/aws4_request"
    return amz_date, scope, signing_key(credential.secret_key, day, region, service)


def _split_url(url: str) -> tuple[str, list[tuple[str, str]], str]:
    """Canonical path, decoded query and Host of a URL; the port is left out where it is the default."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    default_port = {"http": ":80", "https": ":443"}.get(parts.scheme, "")
    if default_port:
        host = host.removesuffix(default_port)
    path = canonical_path(unquote(parts.path, errors="strict")) or "/"
    return path, parse_qsl(parts.query, keep_blank_values=True, errors="strict"), host
