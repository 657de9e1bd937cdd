"""Configurations with an id, of which a bucket has many: analytics, inventory, metrics, intelligent tiering.

They are stored, returned and listed, and nothing acts on them: reasons.py says why, for each.

Must not know: what any of them would do.
Invariants:
* What AWS would refuse is refused, so that a configuration that is stored here is one that could be moved there.
* Each has an attribute of the bucket for itself, so that two that are set at once do not undo each other; what it
  holds is opaque until somebody asks for it, since a bucket's attributes are read with every request.

Source: Amazon S3 API Reference, the pages of these operations.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from cordwood.server.handlers.ingest import receive_structure
from cordwood.server.handlers.request import Request, handles
from cordwood.server.wire.errors import S3Error, s3_error
from cordwood.server.wire.interpret import respond
from cordwood.server.wire.message import Response
from cordwood.server.wire.xml import malformed

MAX_CONFIGURATIONS: Final = 1000
PAGE: Final = 100
_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_BUCKET_ARN: Final = re.compile(r"arn:aws:s3:::[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_LEAST_DAYS: Final = {"ARCHIVE_ACCESS": 90, "DEEP_ARCHIVE_ACCESS": 180}
_MOST_DAYS: Final = 730


def _bad(message: str) -> S3Error:
    return s3_error("InvalidArgument", message)


def _check_filter(configuration: Mapping[str, Any]) -> None:
    """One condition, or several within And."""
    chosen = configuration.get("Filter")
    if chosen is None:
        return
    if len(chosen) != 1:
        raise malformed("a Filter has one condition, or several within And")
    both = chosen.get("And")
    if both is not None and len(both) + len(both.get("Tags", ())) - ("Tags" in both) < 2:
        raise malformed("an And has two conditions or more")


def _check_destination(arn: str) -> None:
    if not _BUCKET_ARN.fullmatch(arn):
        raise s3_error("InvalidS3DestinationBucket")


def _check_analytics(configuration: Mapping[str, Any]) -> None:
    _check_filter(configuration)
    export = configuration["StorageClassAnalysis"].get("DataExport")
    if export is not None:
        _check_destination(export["Destination"]["S3BucketDestination"]["Bucket"])


def _check_inventory(configuration: Mapping[str, Any]) -> None:
    _check_destination(configuration["Destination"]["S3BucketDestination"]["Bucket"])


def _check_metrics(configuration: Mapping[str, Any]) -> None:
    _check_filter(configuration)
    chosen = configuration.get("Filter", {})
    if "AccessPointArn" in chosen or "AccessPointArn" in chosen.get("And", {}):
        raise _bad("There is no such access point.")


def _check_tiering(configuration: Mapping[str, Any]) -> None:
    _check_filter(configuration)
    tiers = [tiering["AccessTier"] for tiering in configuration["Tierings"]]
    if len(set(tiers)) != len(tiers):
        raise malformed("an access tier stands twice")
    for tiering in configuration["Tierings"]:
        least = _LEAST_DAYS[tiering["AccessTier"]]
        if not least <= tiering["Days"] <= _MOST_DAYS:
            raise _bad(f"'Days' of {tiering['AccessTier']} must be from {least} to {_MOST_DAYS}")


@dataclass(frozen=True, slots=True)
class _Family:
    name: str
    check: Callable[[Mapping[str, Any]], None]

    def attribute(self, identifier: str) -> str:
        return f"{self.name}:{identifier}"

    def identifiers(self, attrs: Mapping[str, Any]) -> list[str]:
        start = self.attribute("")
        return sorted(name.removeprefix(start) for name in attrs if name.startswith(start))


def _identifier(request: Request) -> str:
    identifier: str = request.params["Id"]
    if not _ID.fullmatch(identifier):
        raise s3_error(
            "InvalidArgument",
            "An id has 1 to 64 letters, digits, periods, dashes and underscores.",
            argument_name="id",
            argument_value=identifier,
        )
    return identifier


async def _put(request: Request, family: _Family) -> Response:
    identifier = _identifier(request)
    configuration = await receive_structure(request)
    if configuration["Id"] != identifier:
        raise _bad("The id of the configuration is not the one of the request.")
    family.check(configuration)
    info = request.bucket_info
    assert info is not None
    others = set(family.identifiers(info.attrs)) - {identifier}
    if len(others) >= MAX_CONFIGURATIONS:
        raise s3_error("TooManyConfigurations")
    await _set(request, family, msgspec.json.encode(configuration))
    return respond(request.operation, {})


async def _set(request: Request, family: _Family, value: bytes | None) -> None:
    service = request.service
    attrs = {family.attribute(request.params["Id"]): value}
    await service.bridge.run(lambda: service.store.update_bucket(request.bucket, attrs=attrs))


def _stored(request: Request, family: _Family, identifier: str) -> dict[str, Any]:
    assert request.bucket_info is not None
    value = request.bucket_info.attrs.get(family.attribute(identifier))
    if value is None:
        raise s3_error("NoSuchConfiguration")
    configuration: dict[str, Any] = msgspec.json.decode(value)
    return configuration


async def _get(request: Request, family: _Family) -> Response:
    configuration = _stored(request, family, _identifier(request))
    return respond(request.operation, {f"{family.name}Configuration": configuration})


async def _delete(request: Request, family: _Family) -> Response:
    _stored(request, family, _identifier(request))
    await _set(request, family, None)
    return respond(request.operation, {})


async def _list(request: Request, family: _Family) -> Response:
    assert request.bucket_info is not None
    token = request.params.get("ContinuationToken")
    after = _identifier_of(token) if token else ""
    found = [each for each in family.identifiers(request.bucket_info.attrs) if each > after]
    page = found[:PAGE]
    members: dict[str, Any] = {
        f"{family.name}ConfigurationList": [_stored(request, family, each) for each in page],
        "IsTruncated": len(found) > len(page),
        "ContinuationToken": token,
    }
    if len(found) > len(page):
        members["NextContinuationToken"] = base64.urlsafe_b64encode(f"c1:{page[-1]}".encode()).decode()
    return respond(request.operation, members)


def _identifier_of(token: str) -> str:
    try:
        text = base64.urlsafe_b64decode(token.encode("ascii")).decode()
    except (binascii.Error, ValueError):
        text = ""
    if not text.startswith("c1:"):
        raise _bad("The continuation token provided is incorrect")
    return text[3:]


def _register(family: _Family) -> None:
    name = f"{family.name}Configuration"

    @handles(f"PutBucket{name}", f"Id {name}", has_body=True)
    async def put(request: Request) -> Response:
        return await _put(request, family)

    @handles(f"GetBucket{name}", "Id")
    async def get(request: Request) -> Response:
        return await _get(request, family)

    @handles(f"DeleteBucket{name}", "Id")
    async def delete(request: Request) -> Response:
        return await _delete(request, family)

    @handles(f"ListBucket{name}s", "ContinuationToken")
    async def list_all(request: Request) -> Response:
        return await _list(request, family)


for _family in (
    _Family("Analytics", _check_analytics),
    _Family("Inventory", _check_inventory),
    _Family("Metrics", _check_metrics),
    _Family("IntelligentTiering", _check_tiering),
):
    _register(_family)
