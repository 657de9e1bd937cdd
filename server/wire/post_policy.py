"""The policy document of a browser's upload: what the owner of the key pair allows the form to hold.

Must not know: requests, signatures, where files go.
Invariants:
* Every field of the form is named by a condition, but for the few that carry the signature; what nobody allowed is
  refused.
* A document that cannot be read is InvalidPolicyDocument; one that does not fit the form, or has expired, AccessDenied.

Source: "Creating a POST policy", Amazon S3 API Reference.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from cordwood.server.wire.errors import S3Error, s3_error

# Of these no condition needs to speak; checksums only narrow what is taken.
_EXEMPT: Final = frozenset(("x-amz-signature", "signature", "awsaccesskeyid", "policy", "file"))
_EXEMPT_PREFIXES: Final = ("x-ignore-", "x-amz-checksum-")
_MAX_BYTES: Final = 5 << 30
_OPERATIONS: Final = frozenset(("eq", "starts-with", "content-length-range"))


@dataclass(frozen=True, slots=True)
class PostPolicy:
    expires_s: float
    conditions: tuple[tuple[str, str, str], ...]
    """(operator, field, value); operator is "eq" or "starts-with"."""
    least_bytes: int = 0
    most_bytes: int = _MAX_BYTES

    def check(self, fields: Mapping[str, str], bucket: str, now_s: float) -> None:
        """Does the form fit? `fields` by lower-case name. AccessDenied if not."""
        if now_s > self.expires_s:
            raise _refused("Policy expired.")
        values = {**fields, "bucket": bucket}
        named = set()
        for operator, field, wanted in self.conditions:
            # A field that may have any value may also be left out.
            actual = values.get(field, "" if operator == "starts-with" and not wanted else None)
            named.add(field)
            if actual is None or not _fits(operator, field, actual, wanted):
                raise _refused(f'Policy Condition failed: ["{operator}", "${field}", "{wanted}"]')
        extra = [
            name
            for name in values
            if name not in named and name not in _EXEMPT and not name.startswith(_EXEMPT_PREFIXES)
        ]
        if extra:
            raise _refused(f"Extra input fields: {', '.join(sorted(extra))}")


def _fits(operator: str, field: str, actual: str, wanted: str) -> bool:
    if operator == "eq":
        return actual == wanted
    if field == "content-type":
        # A list of types: each of them.
        return all(each.strip().startswith(wanted) for each in actual.split(","))
    return actual.startswith(wanted)


def _refused(reason: str) -> S3Error:
    return s3_error("AccessDenied", f"Invalid according to Policy: {reason}")


def _invalid(reason: str) -> S3Error:
    return s3_error("InvalidPolicyDocument", f"Invalid Policy: {reason}")


def parse_post_policy(text: str) -> PostPolicy:
    """The document of the base64 in the form's field `policy`."""
    if not text:
        raise _invalid("Expecting '{' but found End-of-Input")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise _invalid("invalid Base64 encoding.") from None
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise _invalid("Invalid JSON.") from None
    if not isinstance(document, dict):
        raise _invalid("Invalid JSON.")
    unknown = document.keys() - {"expiration", "conditions"}
    if unknown:
        raise _invalid(f'Unexpected: "{min(unknown)[:100]}"')
    if "expiration" not in document:
        raise _invalid("Policy missing expiration.")
    conditions = document.get("conditions", [])
    if not isinstance(conditions, list):
        raise _invalid("Invalid 'conditions' value: must be a List.")
    if not conditions:
        raise _invalid("Policy missing conditions.")
    found: list[tuple[str, str, str]] = []
    least, most = 0, _MAX_BYTES
    for condition in conditions:
        if isinstance(condition, dict):
            found += _equalities(condition)
        elif not isinstance(condition, list):
            raise _invalid("Invalid condition test: must be a List or Object.")
        elif not condition or not isinstance(condition[0], str):
            raise _invalid("Invalid Condition: missing operation identifier.")
        elif condition[0].lower() not in _OPERATIONS:
            raise _invalid(f"Invalid Condition: unknown operation '{condition[0][:100]}'.")
        elif len(condition) != 3:
            raise _invalid(f"Invalid {condition[0]}: wrong number of arguments.")
        elif condition[0].lower() == "content-length-range":
            first, last = _length(condition[1]), _length(condition[2])
            least, most = max(least, first), min(most, last)
        else:
            found.append(_comparison(condition))
    return PostPolicy(_expiration(document["expiration"]), tuple(found), least, most)


def _expiration(text: Any) -> float:
    if not isinstance(text, str):
        raise _invalid("Invalid JSON.")
    try:
        moment = datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ" if "." in text else "%Y-%m-%dT%H:%M:%SZ")
    except ValueError:
        raise _invalid(f"Invalid 'expiration' value: '{str(text)[:100]}'") from None
    return moment.replace(tzinfo=UTC).timestamp()


def _equalities(condition: dict[str, Any]) -> list[tuple[str, str, str]]:
    if len(condition) != 1:
        raise _invalid(
            "Invalid Simple-Condition: Simple-Conditions must have exactly one property specified."
        )
    ((name, value),) = condition.items()
    if not isinstance(value, str):
        raise _invalid("Invalid Simple-Condition: value must be a string.")
    return [("eq", name.lower(), value)]


def _comparison(condition: list[Any]) -> tuple[str, str, str]:
    operator, field, value = condition
    if not isinstance(field, str) or not isinstance(value, str):
        raise _invalid("Invalid JSON.")
    if not field.startswith("$"):
        raise _refused(f'Policy Condition failed: ["{operator}", "{field}", "{value}"]')
    return operator.lower(), field[1:].lower(), value


def _length(value: Any) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if number < 0 or isinstance(value, bool):
        raise _invalid("Invalid content-length-range: not a whole number.")
    return number
