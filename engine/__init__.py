"""Cordwood's engine: an append-only object store for Python programs, alone or beside the server.

    from cordwood.engine import Store

    with Store.open("/var/lib/blobs") as store:
        store.create_bucket("photos")
        store.put("photos", "2026/a.jpg", b"...")

Must not know: networks, HTTP, event loops.

Invariant: what is exported here is the whole public surface; anything else may change between releases.
"""

from __future__ import annotations

if __name__ != "cordwood.engine":
    raise ImportError("import this package as cordwood.engine, not under a bare name")

from cordwood.engine import errors
from cordwood.engine.batch import Batch
from cordwood.engine.check import CheckReport, check_store
from cordwood.engine.cipher import Cipher
from cordwood.engine.commit import Pending
from cordwood.engine.compactor import CompactionPolicy, CompactionReport
from cordwood.engine.errors import CordwoodError
from cordwood.engine.inspect import StoreFigures, dump_volume, measure_store
from cordwood.engine.maintenance import Maintenance, compact, scrub_status
from cordwood.engine.model import (
    BucketInfo,
    Conditions,
    DeleteResult,
    Listing,
    ObjectEntry,
    ObjectInfo,
    PartInfo,
    PartListing,
    UploadInfo,
    UploadListing,
    VersionListing,
    check_bucket_name,
)
from cordwood.engine.opening import rebuild
from cordwood.engine.outbox import Message, Outbox
from cordwood.engine.reader import ObjectReader, Span, Spans
from cordwood.engine.rebuild import RebuildReport
from cordwood.engine.scrub import ScrubStatus
from cordwood.engine.store import Store
from cordwood.engine.writer import ObjectWriter, PartWriter

__all__ = [
    "Batch",
    "BucketInfo",
    "CheckReport",
    "Cipher",
    "CompactionPolicy",
    "CompactionReport",
    "Conditions",
    "CordwoodError",
    "DeleteResult",
    "Listing",
    "Maintenance",
    "Message",
    "ObjectEntry",
    "ObjectInfo",
    "ObjectReader",
    "ObjectWriter",
    "Outbox",
    "PartInfo",
    "PartListing",
    "PartWriter",
    "Pending",
    "RebuildReport",
    "ScrubStatus",
    "Span",
    "Spans",
    "Store",
    "StoreFigures",
    "UploadInfo",
    "UploadListing",
    "VersionListing",
    "check_bucket_name",
    "check_store",
    "compact",
    "dump_volume",
    "errors",
    "measure_store",
    "rebuild",
    "scrub_status",
]
