"""Why an operation of the model has no handler, or one that only stores. Printed in the table of docs/protocol.md.

Must not know: any handler.
Invariants: an operation stands here if and only if it is answered with NotImplemented, or by a module that only stores
(tests/server/test_protocol_page.py compares); a reason is a fact about this server or about the operation, no promise.
"""

from __future__ import annotations

from typing import Final

_TABLES: Final = "metadata tables are Iceberg tables of another service"
_REPLICATION: Final = (
    "nothing is copied to another endpoint, and AWS accepts only a destination that it has reached"
)

NOT_IMPLEMENTED: Final = {
    "CreateBucketMetadataConfiguration": _TABLES,
    "CreateBucketMetadataTableConfiguration": _TABLES,
    "CreateSession": "a session of a directory bucket, and there are none; temporary credentials come from STS",
    "DeleteBucketMetadataConfiguration": _TABLES,
    "DeleteBucketMetadataTableConfiguration": _TABLES,
    "GetBucketMetadataConfiguration": _TABLES,
    "GetBucketMetadataTableConfiguration": _TABLES,
    "PutBucketReplication": _REPLICATION,
    "SelectObjectContent": "not built yet; AWS closed it to new customers in 2024",
    "UpdateBucketMetadataAnnotationTableConfiguration": _TABLES,
    "UpdateBucketMetadataInventoryTableConfiguration": _TABLES,
    "UpdateBucketMetadataJournalTableConfiguration": _TABLES,
    "WriteGetObjectResponse": "the answer of an Object Lambda function, which no request here goes through",
}

_ANALYTICS: Final = "access patterns are not analysed, and no export is written"
_INVENTORY: Final = "no report is written; a listing is as quick"
_METRICS: Final = "there is no CloudWatch to send them to; `cordwood stat` and the log tell of requests"
_TIERING: Final = "there is one tier, from which everything is read at once"
_FAMILIES: Final = {
    "AnalyticsConfiguration": _ANALYTICS,
    "InventoryConfiguration": _INVENTORY,
    "MetricsConfiguration": _METRICS,
    "IntelligentTieringConfiguration": _TIERING,
}

STORED_ONLY: Final = {
    "GetBucketAccelerateConfiguration": "there is one endpoint, and no way to it to be shortened",
    "PutBucketAccelerateConfiguration": "there is one endpoint, and no way to it to be shortened",
    **{
        f"{verb}Bucket{family}{'s' if verb == 'List' else ''}": reason
        for family, reason in _FAMILIES.items()
        for verb in ("Delete", "Get", "List", "Put")
    },
}
