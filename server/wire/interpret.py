"""Reads a request into a plain dict by the tables, and writes a response by them.

Must not know: trio, the engine, what any operation means.
Invariants:
* A parameter dict holds only members of the operation's input, under the model's names, each of the type that the table
  gives: str, int, bool, float (seconds since 1970 for a date), list or dict. An absent member is absent.
* A member that the handler does not take (`refused`) ends in NotImplemented: no header of the model is silently
  ignored.
* A value of the wrong type raises the S3 error that AWS answers for that member, never a Python error.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from email.utils import formatdate, parsedate_to_datetime
from typing import Any, Final

from cordwood.server.wire.errors import S3Error, s3_error
from cordwood.server.wire.message import RequestHead, Response
from cordwood.server.wire.operations import ENUMS, SHAPES
from cordwood.server.wire.route import Operation
from cordwood.server.wire.xml import DECLARATION, NAMESPACE, XSI, Element, iso8601, leaf, malformed, parse

Params = dict[str, Any]

# Dates in the model that AWS stores and returns as the client wrote them.
_VERBATIM: Final = frozenset(("Expires", "ResponseExpires"))
# A condition with a date that is none is ignored (RFC 9110 sections 13.1.3 and 13.1.4).
_IGNORED_WHEN_INVALID: Final = frozenset(
    (
        "IfModifiedSince",
        "IfUnmodifiedSince",
        "CopySourceIfModifiedSince",
        "CopySourceIfUnmodifiedSince",
    )
)
# Headers whose value AWS takes in any case: the SDK for C++ says `x-amz-checksum-mode: enabled`.
_ANY_CASE: Final = frozenset(("ChecksumAlgorithm", "ChecksumMode", "ChecksumType"))
# Lengths of a page: an empty one asks for the usual page.
_DEFAULT_WHEN_EMPTY: Final = frozenset(
    ("MaxAnnotationResults", "MaxBuckets", "MaxKeys", "MaxParts", "MaxUploads")
)


# --- requests ------------------------------------------------------------------------------------------------


def read_params(operation: Operation, head: RequestHead, refused: Collection[str] = ()) -> Params:
    """Every input member that sits in the query or in a header."""
    params: Params = {}
    if head.query:
        known = operation.query
        for name, text in head.query:
            entry = known.get(name)
            if entry is not None:
                _read_one(params, entry[0], name, entry[1], text, refused)
    known = operation.headers
    prefixes = operation.prefixes
    for name, text in head.headers.items():
        entry = known.get(name)
        if entry is not None:
            _read_one(params, entry[0], name, entry[1], text, refused)
            continue
        for prefix, member in prefixes:
            if name.startswith(prefix):
                if member in refused:
                    raise s3_error("NotImplemented", header=name)
                params.setdefault(member, {})[name[len(prefix) :]] = text
    return params


def _read_one(
    params: Params, member: str, wire_name: str, kind: str, text: str, refused: Collection[str]
) -> None:
    if member in refused:
        if kind == "boolean" and text.strip().lower() == "false":
            return  # a switch that is off asks for nothing; rclone says so with every bucket it makes
        raise s3_error("NotImplemented", header=wire_name)
    if kind == "string" or member in _VERBATIM:
        params[member] = text
        return
    try:
        if kind == "integer":
            if text or member not in _DEFAULT_WHEN_EMPTY:
                params[member] = _int32(text)
            return
        if member == "EncodingType" and text.lower() == "url":
            params[member] = text  # in any case, and it is answered as it was sent
            return
        params[member] = _convert(kind, text.strip().upper() if member in _ANY_CASE else text.strip())
    except ValueError:
        if member not in _IGNORED_WHEN_INVALID:
            raise _bad_value(member, wire_name, kind, text) from None


def _convert(kind: str, text: str) -> Any:
    """Text of a header, a query parameter or an element as `kind`; ValueError when it is not of that kind."""
    if kind == "string":
        return text
    if kind == "integer" or kind == "long":
        return _integer(text)
    if kind == "boolean":
        return _BOOLEANS[text.lower()] if text.lower() in _BOOLEANS else _raise(text)
    if kind == "rfc822":
        return parse_http_date(text)
    if kind == "iso8601":
        return _parse_iso8601(text)
    family, _, rest = kind.partition(" ")
    if family == "enum":
        if rest == "FilterRuleName":
            text = text.lower()  # AWS takes "prefix" and "Prefix", and answers the latter
        if text not in _ENUM_SETS[rest]:
            raise ValueError(text)
        return text
    if family == "flat":
        return [_convert(rest, part.strip()) for part in text.split(",") if part.strip()]
    if kind == "blob":
        return base64.b64decode(text, validate=True)
    raise AssertionError(kind)


_ENUM_SETS: Final = {name: frozenset(values) for name, values in ENUMS.items()}
_BOOLEANS: Final = {"true": True, "false": False}
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,19}\Z")


def _raise(text: str) -> Any:
    raise ValueError(text)


def _integer(text: str) -> int:
    if not _INTEGER.match(text):
        raise ValueError(text)
    return int(text)


def _int32(text: str) -> int:
    """A number of the query or of a header. It has 32 bits and no blanks around it, but any number of leading zeros."""
    found = _INT32.match(text)
    value = int(found[1] + found[2]) if found is not None else 1 << 31
    if not -1 << 31 <= value < 1 << 31:
        raise ValueError(text)
    return value


_INT32: Final = re.compile(r"([+-]?)0*([0-9]{1,10})\Z")


def _bad_value(member: str, wire_name: str, kind: str, text: str) -> S3Error:
    """What AWS answers for a value that does not fit."""
    if member == "StorageClass":
        return s3_error("InvalidStorageClass", storage_class_requested=text)
    if member == "ChecksumAlgorithm":
        if wire_name == "x-amz-sdk-checksum-algorithm":
            return s3_error("InvalidRequest", f"Value for {wire_name} header is invalid.")
        valid = ", ".join(sorted(ENUMS["ChecksumAlgorithm"]))
        return s3_error(
            "InvalidRequest",
            f"Checksum algorithm provided is unsupported. Please try again with any of the valid types: [{valid}]",
        )
    if member in ("ChecksumMode", "ChecksumType"):
        return s3_error("InvalidRequest", f"Value for {wire_name} header is invalid.")
    if member == "ObjectOwnership":
        return s3_error("InvalidArgument", f"Invalid {wire_name} header: {text}", argument_name=wire_name)
    if member == "ObjectAttributes":
        names = (name.strip() for name in text.split(","))
        text = next(name for name in names if name and name not in ENUMS["ObjectAttributes"])
    message = _MESSAGES.get(member)
    if message is None:
        message = (
            f"Provided {wire_name} not an integer or within integer range"
            if kind in ("integer", "long")
            else f"The value of '{wire_name}' is not valid."
        )
    return s3_error("InvalidArgument", message, argument_name=wire_name, argument_value=text)


_MESSAGES: Final = {
    "EncodingType": "Invalid Encoding Method specified in Request",
    "MetadataDirective": "Unknown metadata directive.",
    "ObjectLockLegalHoldStatus": "Legal Hold must be either of 'ON' or 'OFF'",
    "ObjectLockMode": "Unknown wormMode directive.",
    "PartNumber": "Part number must be an integer between 1 and 10000, inclusive",
    "ObjectLockRetainUntilDate": "The retain until date must be provided in ISO 8601 format",
    "ServerSideEncryption": "The encryption method specified is not supported",
    "TaggingDirective": "Unknown tagging directive.",
    "ObjectAttributes": "Invalid attribute name specified.",
    "OptionalObjectAttributes": "Invalid attribute name specified",
}


def read_document(operation: Operation, data: bytes) -> dict[str, Any]:
    """The structure in the request body, checked against the model. An empty body is {} when it may be left out."""
    assert operation.payload is not None
    _, kind, root, required = operation.payload
    if not data.strip():
        if required:
            raise s3_error("MissingRequestBodyError")
        return {}
    structure: dict[str, Any] = _read_structure(parse(data, root), kind.removeprefix("struct "))
    return structure


_SHAPES: Final = {
    name: tuple((row, row, "string", "") if isinstance(row, str) else row for row in rows)
    for name, rows in SHAPES.items()
}
_BY_ELEMENT: Final = {name: {row[1]: row for row in rows} for name, rows in _SHAPES.items()}


def _read_structure(element: Element, shape: str) -> dict[str, Any]:
    known = _BY_ELEMENT[shape]
    result: dict[str, Any] = {}
    for child in element.children:
        row = known.get(child.name)
        if row is None:
            raise malformed(f"unexpected element {child.name[:100]} in {element.name[:100]}")
        member, _, kind, _ = row
        if kind.startswith("flat "):
            result.setdefault(member, []).append(_read_value(child, kind[5:]))
        elif member in result:
            raise malformed(f"more than one {child.name}")
        else:
            result[member] = _read_value(child, kind)
    for member, wire_name, _, flag in known.values():
        if flag == "attribute" and wire_name in element.attributes:
            result[member] = element.attributes[wire_name]
        elif flag == "required" and member not in result:
            raise malformed(f"missing {wire_name} in {element.name}")
    return result


def _read_value(element: Element, kind: str) -> Any:
    if kind.startswith("struct "):
        return _read_structure(element, kind[7:])
    if kind.startswith("list "):
        _, item, inner = kind.split(" ", 2)
        if any(child.name != item for child in element.children):
            raise malformed(f"unexpected element in {element.name}")
        return [_read_value(child, inner) for child in element.children]
    if element.children:
        raise malformed(f"unexpected element in {element.name}")
    if kind in ("string", "enum BucketLocationConstraint"):
        # A server may have a region that the model does not list; buckets.py knows which.
        return element.text
    try:
        return _convert(kind, element.text.strip())
    except ValueError:
        if kind == "enum Protocol":
            raise s3_error(
                "InvalidRequest",
                "Invalid protocol, protocol can be http or https. If not defined the protocol will be selected "
                "automatically.",
            ) from None
        if kind == "enum Event":
            raise s3_error(
                "InvalidArgument",
                "A specified event is not supported for notifications.",
                argument_name="Event",
                argument_value=element.text,
            ) from None
        if kind == "enum FilterRuleName":
            raise s3_error(
                "InvalidArgument",
                "filter rule name must be either prefix or suffix",
                argument_name="FilterRule.Name",
                argument_value=element.text,
            ) from None
        raise malformed(f"bad value of {element.name}") from None


# --- responses -----------------------------------------------------------------------------------------------


def respond(operation: Operation, outputs: Mapping[str, Any], *, status: int | None = None) -> Response:
    """The response that carries `outputs`: headers by the table, the rest as the document. None is left out."""
    headers: list[tuple[str, str]] = []
    document: dict[str, Any] | None = {} if operation.root else None
    rows = operation.outputs
    for member, value in outputs.items():
        if value is None:
            continue
        _, place, wire_name, kind = rows[member]
        if place == "header":
            headers.append((wire_name, value if type(value) is str else _header_text(kind, value)))
        elif place == "prefix":
            headers.extend((f"{wire_name}{name}", text) for name, text in value.items())
        elif place == "payload":
            document = value
        else:
            assert document is not None
            document[member] = value
    response = Response(operation.status if status is None else status, headers)
    if document is not None:
        headers.append(("content-type", "application/xml"))
        response.body = write_document(operation, document)
    return response


def _header_text(kind: str, value: Any) -> str:
    if value is True or value is False:
        return "true" if value else "false"
    if kind == "rfc822":
        return http_date(value)
    return str(value)


def write_document(operation: Operation, values: Mapping[str, Any]) -> bytes:
    """The response document: a payload structure, or the output members that have no other place."""
    parts = [DECLARATION, f'<{operation.root} xmlns="{NAMESPACE}">']
    payload = next((row for row in operation.outputs.values() if row[1] == "payload"), None)
    if payload is not None:
        rows = _SHAPES[payload[3].removeprefix("struct ")]
    else:
        rows = tuple(
            (m, wire, kind, "") for m, place, wire, kind in operation.outputs.values() if place == "body"
        )
    _write_members(parts, rows, values)
    parts.append(f"</{operation.root}>")
    return "".join(parts).encode("utf-8")


def _write_members(
    parts: list[str], rows: tuple[tuple[str, str, str, str], ...], values: Mapping[str, Any]
) -> None:
    for member, wire_name, kind, flag in rows:
        value = values.get(member)
        if value is None or flag == "attribute":
            continue
        if kind.startswith("flat "):
            for item in value:
                _write_value(parts, wire_name, kind[5:], item)
        else:
            _write_value(parts, wire_name, kind, value)


def _write_value(parts: list[str], name: str, kind: str, value: Any) -> None:
    family, _, rest = kind.partition(" ")
    if family == "struct":
        rows = _SHAPES[rest]
        attributes = "".join(
            f' xmlns:xsi="{XSI}" {wire_name}="{value[member]}"'
            for member, wire_name, _, flag in rows
            if flag == "attribute" and member in value
        )
        parts.append(f"<{name}{attributes}>")
        _write_members(parts, rows, value)
        parts.append(f"</{name}>")
    elif family == "list":
        item, _, inner = rest.partition(" ")
        parts.append(f"<{name}>")
        for entry in value:
            _write_value(parts, item, inner, entry)
        parts.append(f"</{name}>")
    elif isinstance(value, str):
        parts.append(leaf(name, value))
    elif value is True or value is False:
        parts.append(f"<{name}>{'true' if value else 'false'}</{name}>")
    elif kind == "iso8601":
        parts.append(f"<{name}>{iso8601(value)}</{name}>")
    else:
        parts.append(f"<{name}>{value}</{name}>")


# --- dates ---------------------------------------------------------------------------------------------------

# Responses repeat the same few seconds over and over.
_DATES: dict[int, str] = {}


def http_date(milliseconds: int) -> str:
    """IMF-fixdate, RFC 9110 section 5.6.7."""
    seconds = milliseconds // 1000
    text = _DATES.get(seconds)
    if text is None:
        if len(_DATES) > 4096:
            _DATES.clear()
        text = _DATES[seconds] = formatdate(seconds, usegmt=True)
    return text


def parse_http_date(text: str) -> float:
    """Seconds since 1970 of any of RFC 9110's three forms, or of ISO 8601; ValueError when it is none."""
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return _parse_iso8601(text)
    return _seconds(moment)


def _parse_iso8601(text: str) -> float:
    return _seconds(datetime.fromisoformat(text))


def _seconds(moment: datetime) -> float:
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    try:
        return moment.timestamp()
    except OverflowError:
        raise ValueError("date out of range") from None
