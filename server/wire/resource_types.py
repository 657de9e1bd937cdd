"""AWS's names of what a sub-resource is, as in `ResourceType` of a refused method and in records of access logs.

Must not know: operations, methods.
"""

from __future__ import annotations

import re
from typing import Final

RESOURCE_TYPES: Final = {
    "accelerate": "ACCELERATE",
    "acl": "ACL",
    "analytics": "ANALYTICS",
    "annotation": "OBJECT_ANNOTATION",
    "attributes": "OBJECT_ATTRIBUTES",
    "cors": "CORS",
    "delete": "MULTI_OBJECT_DELETE",
    "encryption": "ENCRYPTION",
    "intelligent-tiering": "INTELLIGENT_TIERING",
    "inventory": "INVENTORY",
    "legal-hold": "LEGAL_HOLD",
    "lifecycle": "LIFECYCLE",
    "location": "LOCATION",
    "logging": "LOGGING_STATUS",
    "metadataAnnotationTable": "BUCKET_METADATA_ANNOTATION_TABLE_CONFIGURATION",
    "metadataInventoryTable": "BUCKET_METADATA_INVENTORY_TABLE_CONFIGURATION",
    "metadataJournalTable": "BUCKET_METADATA_JOURNAL_TABLE_CONFIGURATION",
    "metrics": "METRICS",
    "notification": "NOTIFICATION",
    "object-lock": "OBJECT_LOCK_CONFIGURATION",
    "ownershipControls": "OWNERSHIP_CONTROLS",
    "policy": "BUCKETPOLICY",
    "policyStatus": "POLICY_STATUS",
    "publicAccessBlock": "PUBLIC_ACCESS_BLOCK",
    "replication": "REPLICATION",
    "requestPayment": "REQUEST_PAYMENT",
    "restore": "RESTORE",
    "retention": "OBJECT_RETENTION",
    "select": "SELECT",
    "tagging": "TAGGING",
    "torrent": "TORRENT",
    "uploads": "UPLOADS",
    "versioning": "VERSIONING",
    "versions": "BUCKETVERSIONS",
    "website": "WEBSITE",
}
# Sub-resources of both a bucket and an object, where AWS tells the two apart.
_OF_OBJECTS: Final = {"encryption": "OBJECT_ENCRYPTION", "tagging": "OBJECT_TAGGING"}


def resource_type(name: str, depth: str) -> str:
    """Of the sub-resource `name` at "bucket" or "object"; of one without a known name something like one."""
    if depth == "object" and name in _OF_OBJECTS:
        return _OF_OBJECTS[name]
    return RESOURCE_TYPES.get(name) or re.sub("[^A-Z0-9]", "", name.upper())
