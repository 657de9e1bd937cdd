"""The operations, one module per family. Importing this package registers all of them in `HANDLERS`.

Must not know: sockets, signatures, who may do what (app.py decides before a handler runs).
Invariant: a family is added by adding a module and its line here; no other module changes.
"""

from cordwood.server.handlers import (
    abac,
    acls,
    attributes,
    bucket_logging,
    buckets,
    configurations,
    copy,
    cors,
    delete,
    lifecycle,
    listing,
    locking,
    multipart,
    notifications,
    payment,
    policies,
    read,
    rename,
    restore,
    stored,
    tagging,
    unset,
    versioning,
    website,
    write,
)
from cordwood.server.handlers.failures import translate
from cordwood.server.handlers.request import HANDLERS, Entry, Request, Service

__all__ = [
    "HANDLERS",
    "Entry",
    "Request",
    "Service",
    "abac",
    "acls",
    "attributes",
    "bucket_logging",
    "buckets",
    "configurations",
    "copy",
    "cors",
    "delete",
    "lifecycle",
    "listing",
    "locking",
    "multipart",
    "notifications",
    "payment",
    "policies",
    "read",
    "rename",
    "restore",
    "stored",
    "tagging",
    "translate",
    "unset",
    "versioning",
    "website",
    "write",
]
