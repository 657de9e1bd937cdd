"""The Condition block of a policy: operators, their values, and whether they hold of a request.

Must not know: statements, requests, how the values of keys are found: a lookup is given.
Invariants:
* A value that an operator cannot read is refused when the policy is stored; one of the request that it cannot read does
  not match.
* A key that the request does not have fails every operator but the negated ones, `Null`, `...IfExists` and
  `ForAllValues:`.

Source: "IAM JSON policy elements: Condition operators", "Single-valued vs. multivalued context keys", IAM User Guide.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from cordwood.server.glob import matches_with, substituted

Lookup = Callable[[str], Sequence[str] | None]
"""The values of a condition key (lower case) in the request; None when it has none."""

Variables = Callable[[str], str | None]


class PolicyError(ValueError):
    """What is wrong with a policy, in AWS's words."""


def _number(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        raise ValueError(text) from None


def _date(text: str) -> float:
    """ISO 8601 or seconds since 1970."""
    try:
        return float(Decimal(text))
    except InvalidOperation:
        pass
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _network(text: str) -> Any:
    return ipaddress.ip_network(text, strict=False)


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError(text) from None


def _text(text: str) -> str:
    return text


def _contains(actual: str, network: Any) -> bool:
    address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(actual)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address in network


def _equals(actual: str, wanted: str, variables: Variables) -> bool:
    return actual == substituted(wanted, variables)


def _equals_ignoring_case(actual: str, wanted: str, variables: Variables) -> bool:
    text = substituted(wanted, variables)
    return text is not None and actual.casefold() == text.casefold()


def _like(actual: str, wanted: str, variables: Variables) -> bool:
    return matches_with(wanted, actual, variables)


def _arn_like(actual: str, wanted: str, variables: Variables) -> bool:
    """Each of the six parts for itself: a star does not reach over a colon, but in the last."""
    parts, patterns = actual.split(":", 5), wanted.split(":", 5)
    return len(parts) == len(patterns) and all(
        matches_with(pattern, part, variables) for pattern, part in zip(patterns, parts, strict=True)
    )


def _plain(
    read: Callable[[str], Any], compare: Callable[[Any, Any], bool]
) -> Callable[[str, Any, Variables], bool]:
    return lambda actual, wanted, _: compare(read(actual), wanted)


# operator -> (how a policy's value is read, whether a request's value matches it, negated?)
_Operator = tuple[Callable[[str], Any], Callable[[str, Any, Variables], bool], bool]


def _ordered(name: str, read: Callable[[str], Any]) -> dict[str, _Operator]:
    return {
        f"{name}equals": (read, _plain(read, lambda a, b: a == b), False),
        f"{name}notequals": (read, _plain(read, lambda a, b: a == b), True),
        f"{name}lessthan": (read, _plain(read, lambda a, b: a < b), False),
        f"{name}lessthanequals": (read, _plain(read, lambda a, b: a <= b), False),
        f"{name}greaterthan": (read, _plain(read, lambda a, b: a > b), False),
        f"{name}greaterthanequals": (read, _plain(read, lambda a, b: a >= b), False),
    }


_OPERATORS: Final[dict[str, _Operator]] = {
    "stringequals": (_text, _equals, False),
    "stringnotequals": (_text, _equals, True),
    "stringequalsignorecase": (_text, _equals_ignoring_case, False),
    "stringnotequalsignorecase": (_text, _equals_ignoring_case, True),
    "stringlike": (_text, _like, False),
    "stringnotlike": (_text, _like, True),
    **_ordered("numeric", _number),
    **_ordered("date", _date),
    "bool": (_boolean, _plain(_boolean, lambda a, b: a == b), False),
    "binaryequals": (_bytes, _plain(_bytes, lambda a, b: a == b), False),
    "ipaddress": (_network, lambda actual, wanted, _: _contains(actual, wanted), False),
    "notipaddress": (_network, lambda actual, wanted, _: _contains(actual, wanted), True),
    # AWS: ArnEquals and ArnLike behave identically.
    "arnequals": (_text, _arn_like, False),
    "arnlike": (_text, _arn_like, False),
    "arnnotequals": (_text, _arn_like, True),
    "arnnotlike": (_text, _arn_like, True),
}

# Keys that have one value for every request that has any, and those that no request here ever has: a policy may name
# them, and they are absent.
_KNOWN: Final = frozenset(
    (
        "aws:calledvia",
        "aws:calledviafirst",
        "aws:calledvialast",
        "aws:currenttime",
        "aws:epochtime",
        "aws:multifactorauthage",
        "aws:multifactorauthpresent",
        "aws:principalaccount",
        "aws:principalarn",
        "aws:principalisawsservice",
        "aws:principalorgid",
        "aws:principalorgpaths",
        "aws:principalservicename",
        "aws:principaltype",
        "aws:referer",
        "aws:requestedregion",
        "aws:resourceaccount",
        "aws:resourceorgid",
        "aws:resourceorgpaths",
        "aws:securetransport",
        "aws:sourceaccount",
        "aws:sourcearn",
        "aws:sourceip",
        "aws:sourceorgid",
        "aws:sourcevpc",
        "aws:sourcevpce",
        "aws:tagkeys",
        "aws:tokenissuetime",
        "aws:useragent",
        "aws:userid",
        "aws:username",
        "aws:viaawsservice",
        "aws:vpcsourceip",
        "s3:authtype",
        "s3:dataaccesspointaccount",
        "s3:dataaccesspointarn",
        "s3:delimiter",
        "s3:if-match",
        "s3:if-none-match",
        "s3:locationconstraint",
        "s3:max-keys",
        "s3:objectcreationoperation",
        "s3:object-lock-legal-hold",
        "s3:object-lock-mode",
        "s3:object-lock-remaining-retention-days",
        "s3:object-lock-retain-until-date",
        "s3:prefix",
        "s3:requestobjecttagkeys",
        "s3:resourceaccount",
        "s3:signatureage",
        "s3:signatureversion",
        "s3:tlsversion",
        "s3:versionid",
    )
)
_FAMILIES: Final = (
    "aws:principaltag/",
    "aws:requesttag/",
    "aws:resourcetag/",
    "s3:bucketinventory",
    "s3:buckettag/",
    "s3:existingobjecttag/",
    "s3:requestobjecttag/",
    "s3:x-amz-",
)


@dataclass(frozen=True, slots=True)
class Condition:
    """One key under one operator, with any of several values."""

    key: str
    operator: str
    """In lower case, without quantifier and suffix; "null" for Null."""
    values: tuple[Any, ...]
    if_exists: bool
    quantifier: str
    """"", "any" or "all"."""

    def holds(self, lookup: Lookup, variables: Variables) -> bool:
        actual = lookup(self.key)
        if self.operator == "null":
            return (not actual) in self.values
        if self.quantifier:
            if not actual:
                return self.quantifier == "all" or self.if_exists
            matched = [self._matches(each, variables) for each in actual]
            return all(matched) if self.quantifier == "all" else any(matched)
        negated = _OPERATORS[self.operator][2]
        if not actual:
            return negated or self.if_exists
        if negated:
            return all(self._matches(each, variables) for each in actual)
        return any(self._matches(each, variables) for each in actual)

    def _matches(self, actual: str, variables: Variables) -> bool:
        """Of one value of the request: one of the policy's values fits; of a negated operator, none."""
        _, compare, negated = _OPERATORS[self.operator]
        return any(_fits(compare, actual, wanted, variables) for wanted in self.values) != negated


def _fits(
    compare: Callable[[str, Any, Variables], bool], actual: str, wanted: Any, variables: Variables
) -> bool:
    try:
        return compare(actual, wanted, variables)
    except (ValueError, ArithmeticError, TypeError):
        return False


def parse_conditions(block: Any) -> tuple[Condition, ...]:
    """The conditions of one statement. PolicyError for what cannot be meant."""
    if not isinstance(block, Mapping):
        raise PolicyError("Policy has an invalid condition block")
    found: list[Condition] = []
    for name, keys in block.items():
        operator, if_exists, quantifier = _operator(name)
        if not isinstance(keys, Mapping):
            raise PolicyError("Policy has an invalid condition block")
        for key, values in keys.items():
            lowered = key.lower()
            if lowered not in _KNOWN and not lowered.startswith(_FAMILIES):
                raise PolicyError("Policy has an invalid condition key")
            found.append(Condition(lowered, operator, _values(operator, values), if_exists, quantifier))
    return tuple(found)


def _operator(name: str) -> tuple[str, bool, str]:
    lowered = name.lower()
    quantifier = ""
    for prefix, kind in (("foranyvalue:", "any"), ("forallvalues:", "all")):
        if lowered.startswith(prefix):
            lowered, quantifier = lowered[len(prefix) :], kind
    if lowered == "null" and not quantifier:
        return lowered, False, ""
    if_exists = lowered.endswith("ifexists")
    lowered = lowered.removesuffix("ifexists")
    if lowered not in _OPERATORS:
        raise PolicyError(f"Policy has an invalid condition operator: {name[:100]}")
    return lowered, if_exists, quantifier


def _values(operator: str, values: Any) -> tuple[Any, ...]:
    read = _boolean if operator == "null" else _OPERATORS[operator][0]
    found = []
    for value in values if isinstance(values, list) else [values]:
        if isinstance(value, bool):
            value = "true" if value else "false"
        elif isinstance(value, int | float):
            value = str(value)
        if not isinstance(value, str):
            raise PolicyError("Policy has an invalid condition value")
        try:
            found.append(read(value))
        except (ValueError, ArithmeticError):
            raise PolicyError(f"Policy has an invalid condition value: {value[:100]}") from None
    if not found:
        raise PolicyError("Policy has an invalid condition value")
    return tuple(found)
