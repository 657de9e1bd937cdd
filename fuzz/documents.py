"""Fuzz the XML documents of requests.

Invariant: any bytes are read into the structure that the model names, with values of the model's types, or are refused
by one of six S3 errors; never anything else.

Must not know: the engine, sockets.
"""

from __future__ import annotations

from cordwood.server.wire.errors import S3Error
from cordwood.server.wire.interpret import read_document
from cordwood.server.wire.route import OPERATION

OPERATIONS = tuple(
    OPERATION[name]
    for name in (
        "DeleteObjects",
        "CompleteMultipartUpload",
        "CreateBucket",
        "PutBucketAcl",
        "PutBucketTagging",
        "PutBucketLogging",
        "PutBucketNotificationConfiguration",
        "PutBucketWebsite",
    )
)
REFUSALS = {
    "MalformedXML",
    "MissingRequestBodyError",
    "InvalidArgument",
    "InvalidRequest",
    "InvalidLocationConstraint",
    "MaxMessageLengthExceeded",
}


def one(data: bytes) -> None:
    """The first byte chooses the operation, the rest is the document."""
    if not data:
        return
    try:
        document = read_document(OPERATIONS[data[0] % len(OPERATIONS)], data[1:])
    except S3Error as error:
        assert error.code in REFUSALS, error.code
        return
    _check(document)


def _check(value: object) -> None:
    if isinstance(value, dict):
        assert all(isinstance(name, str) for name in value)
        for child in value.values():
            _check(child)
    elif isinstance(value, list):
        for child in value:
            _check(child)
    else:
        assert isinstance(value, str | int | float | bool), type(value)
