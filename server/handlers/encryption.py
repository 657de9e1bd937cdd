"""What requests say about encryption, what answers say of it, and UpdateObjectEncryption.

Must not know: how keys are wrapped or bytes encrypted (server/encryption.py).

Invariants:
* Every way to write an object (PUT, form, copy, multipart upload) asks `requested` here, and so gets the bucket's
  default when it says nothing; every way to read bytes or checksums of one goes through `key_for` or `unlock`.
* A customer's key is used for the request it came with, and appears in no answer, error or log.

Source: "Protecting data with server-side encryption", Amazon S3 User Guide; error texts as AWS is seen to answer them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from typing import Any, Final

from cordwood.engine import Cipher, ObjectInfo, ObjectReader, PartInfo, UploadInfo
from cordwood.server.encryption import (
    AES256,
    CUSTOMER,
    DEFAULT_KMS_KEY,
    DSSE,
    ENCRYPTION,
    ENVELOPE,
    KMS,
    CustomerKey,
    DataKey,
    Envelope,
    Wish,
    envelope_of,
    needs_customer_key,
)
from cordwood.server.handlers.conditions import version_text
from cordwood.server.handlers.ingest import receive_structure
from cordwood.server.handlers.locking import HOLD, RETENTION
from cordwood.server.handlers.request import Request, handles
from cordwood.server.keyring import KEY_BYTES
from cordwood.server.wire.errors import S3Error, s3_error
from cordwood.server.wire.interpret import Params, respond
from cordwood.server.wire.message import Response

# Members of requests, for handlers to name among those that they take.
CUSTOMER_MEMBERS: Final = "SSECustomerAlgorithm SSECustomerKey SSECustomerKeyMD5"
SOURCE_MEMBERS: Final = "CopySourceSSECustomerAlgorithm CopySourceSSECustomerKey CopySourceSSECustomerKeyMD5"
WISH_MEMBERS: Final = (
    f"{CUSTOMER_MEMBERS} ServerSideEncryption SSEKMSKeyId SSEKMSEncryptionContext BucketKeyEnabled"
)
_WISH_NAMES: Final = frozenset(WISH_MEMBERS.split())
_METHODS: Final = frozenset((AES256, KMS, DSSE))
_HEADER: Final = "x-amz-server-side-encryption"
_MAX_CONTEXT_BYTES: Final = 8192


# --- what a request says --------------------------------------------------------------------------------------


def customer_key(request: Request, prefix: str = "") -> CustomerKey | None:
    """The customer's key in the headers, checked; None without one. `prefix` is "CopySource" for that of a source."""
    params = request.params
    algorithm = params.get(f"{prefix}SSECustomerAlgorithm")
    key_text = params.get(f"{prefix}SSECustomerKey")
    md5_text = params.get(f"{prefix}SSECustomerKeyMD5")
    if algorithm is None and key_text is None and md5_text is None:
        return None
    what = "Requests specifying Server Side Encryption with Customer provided keys must"
    name = (
        f"{_HEADER}-customer-algorithm"
        if not prefix
        else f"x-amz-copy-source{_HEADER[5:]}-customer-algorithm"
    )
    if algorithm is None:
        raise s3_error("InvalidArgument", f"{what} provide a valid encryption algorithm.", argument_name=name)
    if algorithm != AES256:
        raise s3_error("InvalidEncryptionAlgorithmError", argument_name=name, argument_value=algorithm)
    if not key_text:
        raise s3_error("InvalidArgument", f"{what} provide an appropriate secret key.")
    if not md5_text:
        raise s3_error("InvalidArgument", f"{what} provide the client calculated MD5 of the secret key.")
    if not request.is_tls and request.service.encryption.must_have_tls:
        raise s3_error("InvalidRequest", f"{what} be made over a secure connection.")
    try:
        key = base64.b64decode(key_text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise s3_error("InvalidArgument", "The secret key was invalid for the specified algorithm.")
    md5 = base64.b64encode(hashlib.md5(key, usedforsecurity=False).digest()).decode()
    if not hmac.compare_digest(md5.encode(), md5_text.strip().encode()):
        raise s3_error(
            "InvalidArgument", "The calculated MD5 hash of the key did not match the hash that was provided."
        )
    return CustomerKey(key, md5)


def requested(request: Request) -> Wish | None:
    """How the object that the request writes is to be encrypted: as it says, or as its bucket has it by default."""
    params = request.params
    default = _default(request)
    if default is None and not params.keys() & _WISH_NAMES:
        return None
    method = params.get("ServerSideEncryption")
    customer = customer_key(request)
    if customer is not None:
        return _by_customer(request, customer, method)
    if method is None:
        for member in ("SSEKMSKeyId", "SSEKMSEncryptionContext"):
            if member in params:
                raise _needs_kms(params)
        return default
    if method not in _METHODS:
        raise s3_error(
            "InvalidArgument",
            "The encryption method specified is not supported",
            argument_name=_HEADER,
            argument_value=method,
        )
    if method == AES256:
        if "SSEKMSKeyId" in params or "SSEKMSEncryptionContext" in params:
            raise _needs_kms(params)
        return Wish(AES256)
    has_bucket_key = params.get("BucketKeyEnabled")
    if has_bucket_key is None and default is not None and default.kind == method:
        has_bucket_key = default.has_bucket_key
    return Wish(method, params.get("SSEKMSKeyId") or DEFAULT_KMS_KEY, _context(params), has_bucket_key)


def _by_customer(request: Request, customer: CustomerKey, method: str | None) -> Wish:
    if method is not None or "SSEKMSKeyId" in request.params:
        raise s3_error(
            "InvalidArgument",
            "Server Side Encryption with Customer provided key is incompatible with the encryption method specified",
            argument_name=_HEADER,
            argument_value=method,
        )
    bucket = request.bucket_info
    if bucket is not None and CUSTOMER in bucket.attrs.get(ENCRYPTION, {}).get("blocked", ()):
        raise s3_error(
            "AccessDenied",
            "Requests specifying Server Side Encryption with Customer provided keys are blocked by this bucket.",
        )
    return Wish(CUSTOMER, customer=customer)


def _needs_kms(params: Params) -> S3Error:
    return s3_error(
        "InvalidArgument",
        "Server Side Encryption with AWS KMS managed key requires HTTP header x-amz-server-side-encryption : aws:kms",
        argument_name=_HEADER,
        argument_value=params.get("ServerSideEncryption", "null"),
    )


def _default(request: Request) -> Wish | None:
    bucket = request.bucket_info
    return request.service.encryption.default_of(bucket.attrs if bucket is not None else {})


def _context(params: Params) -> str:
    """The encryption context as canonical JSON, so that it can be compared and bound."""
    text = params.get("SSEKMSEncryptionContext")
    if text is None:
        return ""
    try:
        if len(text) > _MAX_CONTEXT_BYTES:
            raise ValueError("too long")
        context = json.loads(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError, RecursionError):
        context = None
    if not isinstance(context, dict) or not all(isinstance(value, str) for value in context.values()):
        raise s3_error(
            "InvalidArgument",
            "The header 'x-amz-server-side-encryption-context' shall be Base64-encoded UTF-8 string holding JSON which "
            "represents a string-string map",
            argument_name="x-amz-server-side-encryption-context",
        )
    return json.dumps(context, sort_keys=True, ensure_ascii=False) if context else ""


# --- writing ------------------------------------------------------------------------------------------------------


async def new_key(request: Request, *, for_parts: bool = False) -> DataKey | None:
    """The data key of the object (or upload) that the request writes; None when it is not to be encrypted."""
    wish = requested(request)
    if wish is None:
        return None
    service = request.service
    keys = service.encryption.keys
    bucket = bucket_id(request)
    if keys.is_ready:
        return keys.make(wish, bucket, for_parts=for_parts)
    return await service.bridge.run(lambda: keys.make(wish, bucket, for_parts=for_parts))


def bucket_id(request: Request) -> int:
    assert request.bucket_info is not None
    return request.bucket_info.id


def cipher_of(key: DataKey | None) -> Cipher | None:
    return key.cipher if key is not None else None


def part_key(request: Request, upload: UploadInfo) -> DataKey | None:
    """The data key for a part of the upload; None when the upload is not encrypted."""
    envelope = envelope_of(upload.attrs)
    customer = customer_key(request)
    if (envelope is None or envelope.kind != CUSTOMER) and customer is not None:
        raise s3_error(
            "InvalidRequest",
            "The multipart upload initiate did not request encryption with a customer provided key. Please resend the "
            "request without sending encryption parameters.",
        )
    if envelope is None:
        return None
    if envelope.kind == CUSTOMER and customer is None:
        raise s3_error(
            "InvalidRequest",
            "The multipart upload initiate requested encryption. Subsequent part requests must include the appropriate "
            "encryption parameters.",
        )
    return request.service.encryption.keys.open(envelope, bucket_id(request), customer)


def upload_key(request: Request, upload: UploadInfo) -> DataKey | None:
    """The data key of an upload for its checksums, where it can be had: a customer's key may be left out."""
    envelope = envelope_of(upload.attrs)
    if envelope is None or (envelope.kind == CUSTOMER and "SSECustomerKey" not in request.params):
        return None
    return part_key(request, upload)


# --- reading ------------------------------------------------------------------------------------------------------


def check_read_headers(request: Request) -> None:
    """Headers that say how to encrypt have no place in a GET or HEAD, and AWS refuses them there."""
    if _HEADER in request.head.headers:
        raise s3_error(
            "InvalidArgument",
            f"{_HEADER} header is not supported for this operation.",
            argument_name=_HEADER,
            argument_value=request.head.headers[_HEADER],
        )


def key_for(
    request: Request, info: ObjectInfo, *, bucket: int | None = None, prefix: str = ""
) -> DataKey | None:
    """The data key of an object, of which the request must bring what it needs; None when it is not encrypted.

    `bucket` and `prefix` are for the source of a copy.
    """
    envelope = envelope_of(info.attrs) if info.attrs else None
    customer = None
    if f"{prefix}SSECustomerAlgorithm" in request.params or f"{prefix}SSECustomerKey" in request.params:
        customer = customer_key(request, prefix)
    if envelope is None or envelope.kind != CUSTOMER:
        if customer is not None:
            raise s3_error("InvalidRequest", "The encryption parameters are not applicable to this object.")
        if envelope is None:
            return None
    elif customer is None:
        raise needs_customer_key()
    keys = request.service.encryption.keys
    return keys.open(envelope, bucket_id(request) if bucket is None else bucket, customer)


def unlock(
    request: Request, reader: ObjectReader, *, bucket: int | None = None, prefix: str = ""
) -> DataKey | None:
    """Make a reader give plain bytes, after a look at whether the object is still as long as it was."""
    key = key_for(request, reader.info, bucket=bucket, prefix=prefix)
    if key is not None:
        parts = reader.part_sizes() if reader.info.parts_count else []
        key.check_outline(reader.info.size, ((part.number, part.size) for part in parts))
        reader.unlock(key.cipher)
    return key


def plain_checksums(info: ObjectInfo, key: DataKey | None) -> Mapping[str, str]:
    return info.checksums if key is None else key.decrypt_checksums(info.checksums, info.size)


def object_checksums(request: Request, info: ObjectInfo) -> Mapping[str, str]:
    """The checksums of an object that the request has written; none without a customer's key that they need."""
    envelope = envelope_of(info.attrs)
    if envelope is not None and envelope.kind == CUSTOMER and "SSECustomerKey" not in request.params:
        return {}
    return plain_checksums(info, key_for(request, info))


def part_checksums(part: PartInfo, key: DataKey | None) -> Mapping[str, str]:
    return part.checksums if key is None else key.decrypt_checksums(part.checksums, part.size, part.number)


# --- answers --------------------------------------------------------------------------------------------------


def encryption_members(request: Request, envelope: Envelope | None) -> dict[str, Any]:
    """The members of an answer about an object or upload with this envelope, as far as the operation has them."""
    if envelope is None:
        return {}
    members: dict[str, Any] = {}
    if envelope.kind == CUSTOMER:
        if "SSECustomerKeyMD5" in request.params:
            members["SSECustomerAlgorithm"] = AES256
            members["SSECustomerKeyMD5"] = request.params["SSECustomerKeyMD5"].strip()
    else:
        members["ServerSideEncryption"] = envelope.kind
        if envelope.kind != AES256:
            members["SSEKMSKeyId"] = envelope.key
            if envelope.has_bucket_key:
                members["BucketKeyEnabled"] = True
            if envelope.context:
                members["SSEKMSEncryptionContext"] = base64.b64encode(envelope.context.encode()).decode()
    return {name: value for name, value in members.items() if name in request.operation.outputs}


def customer_headers(request: Request, envelope: Envelope | None) -> list[tuple[str, str]]:
    """The same of a customer's key, as headers, for an operation whose answer is sent with them beside the model."""
    if envelope is None or envelope.kind != CUSTOMER or "SSECustomerKeyMD5" not in request.params:
        return []
    return [
        (f"{_HEADER}-customer-algorithm", AES256),
        (f"{_HEADER}-customer-key-md5", request.params["SSECustomerKeyMD5"].strip()),
    ]


def key_members(request: Request, key: DataKey | None) -> dict[str, Any]:
    return encryption_members(request, key.envelope if key is not None else None)


# --- UpdateObjectEncryption -----------------------------------------------------------------------------------


@handles("UpdateObjectEncryption", "VersionId ObjectEncryption", has_body=True)
async def update_object_encryption(request: Request) -> Response:
    document = await receive_structure(request)
    wanted = document.get("SSEKMS")
    if wanted is None:
        raise s3_error(
            "InvalidRequest",
            "Requests that modify an object encryption configuration require a valid new encryption type. Valid values "
            "are SSEKMS. Modify the request to specify SSE-KMS for the updated encryption type, and then try again.",
        )
    wish = Wish(KMS, wanted["KMSKeyArn"], "", wanted.get("BucketKeyEnabled", False))
    await request.service.bridge.run(_update, request, wish)
    return respond(request.operation, {})


def _update(request: Request, wish: Wish) -> None:
    def rewrapped(info: ObjectInfo) -> dict[str, Any]:
        request.confirm(info)
        _check_updatable(info)
        envelope = envelope_of(info.attrs)
        assert envelope is not None
        keys = request.service.encryption.keys
        bucket = bucket_id(request)
        return {ENVELOPE: keys.rewrap(keys.open(envelope, bucket), wish, bucket)}

    version_id = version_text(request.params)
    request.service.store.update_attrs(request.bucket, request.key, rewrapped, version_id=version_id)


def _check_updatable(info: ObjectInfo) -> None:
    envelope = envelope_of(info.attrs)
    if envelope is None or envelope.kind not in (AES256, KMS):
        kinds = (
            "unencrypted source objects" if envelope is None else "source objects with this encryption type"
        )
        raise s3_error(
            "InvalidRequest",
            f"The UpdateObjectEncryption operation doesn't support {kinds}. Only source objects encrypted with SSE-S3 "
            "or SSE-KMS are supported.",
        )
    retention = info.attrs.get(RETENTION)
    if info.attrs.get(HOLD) or (retention is not None and retention["until_ms"] > time.time() * 1000):
        raise s3_error("AccessDenied", "Access Denied because object protected by object lock.")
