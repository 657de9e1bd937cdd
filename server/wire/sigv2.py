"""AWS Signature Version 2 in the query of a URL: what boto3 and awscli still presign with where it is not AWS.

Must not know: secrets' place, permissions, Signature Version 4. Reads no clock: `now_s` is given.

Invariants:
* The text that is signed holds every x-amz-* header of the request, the bucket, the path as it was sent, and the
  sub-resources; a request that differs in any of them has another signature. A sub-resource that it does not hold is
  refused.
* Signatures are compared in constant time.

Source: "Signing and authenticating REST requests (AWS signature version 2)", Amazon S3 Developer Guide.
"""

from __future__ import annotations

import base64
import hmac
import re
from typing import Final

from cordwood.server.wire.errors import s3_error
from cordwood.server.wire.message import RequestHead
from cordwood.server.wire.operations import OPERATIONS

PARAMETERS: Final = frozenset({"awsaccesskeyid", "signature", "expires"})

# The query parameters that are part of the resource, and so of what is signed.
_SUB_RESOURCES: Final = frozenset(
    {
        "accelerate",
        "acl",
        "analytics",
        "cors",
        "defaultObjectAcl",
        "delete",
        "inventory",
        "lifecycle",
        "location",
        "logging",
        "metrics",
        "notification",
        "object-lock",
        "partNumber",
        "policy",
        "replication",
        "requestPayment",
        "response-cache-control",
        "response-content-disposition",
        "response-content-encoding",
        "response-content-language",
        "response-content-type",
        "response-expires",
        "restore",
        "select",
        "select-type",
        "storageClass",
        "tagging",
        "torrent",
        "uploadId",
        "uploads",
        "versionId",
        "versioning",
        "versions",
        "website",
    }
)
# Parameters that choose another operation and that this version, older than they are, does not sign. Listing by
# list-type=2 is listing all the same.
_UNSIGNED: Final = (
    frozenset(
        name.partition("=")[0] for row in OPERATIONS.values() for names in (row[2], row[3]) for name in names
    )
    - _SUB_RESOURCES
    - {"list-type"}
)
_BLANKS: Final = re.compile(r"[ \t]+")


def check_lifetime(parameters: dict[str, str], now_s: float) -> None:
    """Refuses a URL without its three parameters, or one that has expired."""
    if not parameters.keys() >= PARAMETERS:
        raise s3_error(
            "AccessDenied",
            "Query-string authentication requires the Signature, Expires and AWSAccessKeyId parameters",
        )
    expires = parameters["expires"]
    if not re.fullmatch(r"[0-9]{1,12}", expires, re.ASCII):
        raise s3_error("AccessDenied", "Invalid date (should be seconds since epoch)", Expires=expires)
    if now_s > int(expires):
        raise s3_error("AccessDenied", "Request has expired", Expires=expires, ServerTime=f"{int(now_s)}")


def check_query(head: RequestHead) -> None:
    """Refuses what would make another operation of the one that was signed."""
    for name, _ in head.query:
        if name in _UNSIGNED:
            raise s3_error(
                "AccessDenied",
                f"Signature Version 2 does not cover the parameter {name}; sign with Version 4.",
            )


def string_to_sign(head: RequestHead, expires: str, host_bucket: str, token: str | None = None) -> str:
    """What the client signed. `host_bucket` is the bucket that the Host names, or "" in path style.

    A session token is signed as the header that it would be, also where it stands in the query.
    """
    headers = head.headers if token is None else {**head.headers, "x-amz-security-token": token}
    amz = sorted(
        f"{name}:{_BLANKS.sub(' ', value.strip())}\n"
        for name, value in headers.items()
        if name.startswith("x-amz-")
    )
    resource = (f"/{host_bucket}" if host_bucket else "") + head.raw_path.decode("latin-1")
    if resource.count("/") == 1 and resource != "/":
        resource += "/"  # a bucket is signed with the slash, whether or not it is sent
    found = sorted((name, value) for name, value in head.query if name in _SUB_RESOURCES)
    # "?acl" and "?acl=" cannot be told apart any more here; AWS signs the bare name for an empty value.
    query = "&".join(f"{name}={value}" if value else name for name, value in found)
    if query:
        resource += f"?{query}"
    content = f"{headers.get('content-md5', '')}\n{headers.get('content-type', '')}\n{expires}\n"
    return f"{head.method}\n{content}{''.join(amz)}{resource}"


def is_signed(secret_key: str, text: str, signature: str) -> bool:
    expected = base64.b64encode(hmac.digest(secret_key.encode(), text.encode(), "sha1"))
    return hmac.compare_digest(expected, signature.encode("utf-8", "replace"))
