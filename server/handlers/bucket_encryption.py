"""The default encryption of a bucket: PutBucketEncryption, GetBucketEncryption, DeleteBucketEncryption.

Must not know: keys, objects.
Invariant: what is stored can be carried out, but for a named key that the local provider may lack: as at AWS, that is
found when an object is written.

Source: PutBucketEncryption, Amazon S3 API Reference.
"""

from __future__ import annotations

from typing import Any

from cordwood.server.encryption import AES256, CUSTOMER, DEFAULT_KMS_KEY, DSSE, ENCRYPTION, KMS
from cordwood.server.handlers.ingest import receive_structure
from cordwood.server.handlers.request import Request, handles
from cordwood.server.wire.errors import s3_error
from cordwood.server.wire.interpret import respond
from cordwood.server.wire.message import Response
from cordwood.server.wire.xml import malformed


@handles("PutBucketEncryption", "ServerSideEncryptionConfiguration", has_body=True)
async def put_bucket_encryption(request: Request) -> Response:
    rules = (await receive_structure(request)).get("Rules", [])
    if len(rules) != 1:
        raise malformed("a configuration has one rule")
    await _set(request, _stored(rules[0]))
    return respond(request.operation, {})


@handles("GetBucketEncryption")
async def get_bucket_encryption(request: Request) -> Response:
    assert request.bucket_info is not None
    stored = request.bucket_info.attrs.get(ENCRYPTION)
    default = request.service.encryption.default
    if stored is None and default is None:
        raise s3_error("ServerSideEncryptionConfigurationNotFoundError", bucket_name=request.bucket)
    rule: dict[str, Any] = {}
    shown = stored or {}
    kind = shown.get("kind") or (default.kind if default is not None else None)
    if kind is not None:
        rule["ApplyServerSideEncryptionByDefault"] = {
            "SSEAlgorithm": kind,
            "KMSMasterKeyID": shown.get("said_key"),
        }
        rule["BucketKeyEnabled"] = bool(shown.get("has_bucket_key"))
    if shown.get("blocked"):
        rule["BlockedEncryptionTypes"] = {"EncryptionType": shown["blocked"]}
    return respond(request.operation, {"ServerSideEncryptionConfiguration": {"Rules": [rule]}})


@handles("DeleteBucketEncryption")
async def delete_bucket_encryption(request: Request) -> Response:
    await _set(request, None)
    return respond(request.operation, {})


def _stored(rule: dict[str, Any]) -> dict[str, Any]:
    stored: dict[str, Any] = {}
    default = rule.get("ApplyServerSideEncryptionByDefault")
    if default is not None:
        kind, key = default["SSEAlgorithm"], default.get("KMSMasterKeyID")
        if kind not in (AES256, KMS, DSSE):
            raise malformed(f"{kind} is no default encryption of a bucket")
        if kind == AES256 and key is not None:
            raise s3_error(
                "InvalidArgument",
                "a KMSMasterKeyID is not applicable if the default sse algorithm is not aws:kms or aws:kms:dsse",
                argument_name="ApplyServerSideEncryptionByDefault",
            )
        stored["kind"] = kind
        if kind != AES256:
            stored["key"] = key or DEFAULT_KMS_KEY
            stored["said_key"] = key
            stored["has_bucket_key"] = bool(rule.get("BucketKeyEnabled"))
    blocked = rule.get("BlockedEncryptionTypes", {}).get("EncryptionType", [])
    if blocked and set(blocked) == {CUSTOMER}:
        stored["blocked"] = [CUSTOMER]
    elif blocked and set(blocked) != {"NONE"}:
        raise malformed("NONE does not go with another encryption type")
    if not stored and not blocked:
        raise malformed("a rule says what to encrypt with, or what to block")
    return stored


async def _set(request: Request, stored: dict[str, Any] | None) -> None:
    service = request.service
    attrs = {ENCRYPTION: stored}
    await service.bridge.run(lambda: service.store.update_bucket(request.bucket, attrs=attrs))
