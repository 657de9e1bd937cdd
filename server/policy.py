"""Bucket policies: read, validated, and evaluated for one request.

Must not know: the wire, the engine, ACLs, what the answer is used for (access.py).
Invariants:
* Evaluation is pure: policy, principal, action, resource and a lookup of condition keys give the verdict.
* An explicit deny wins over any number of allows, and silence is no permission.
* What `parse` lets through can be evaluated for every request; what it cannot evaluate it refuses.

Source: "IAM JSON policy language reference" and "Policy evaluation logic", IAM User Guide; "Policies and permissions in
Amazon S3" and "The meaning of public", Amazon S3 User Guide.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal

from cordwood.server.glob import matches, matches_with
from cordwood.server.policy_actions import BUCKET, OBJECT, kinds
from cordwood.server.policy_conditions import Condition, Lookup, PolicyError, parse_conditions

MAX_BYTES: Final = 20 << 10

Verdict = Literal["allow", "deny", "none"]

_VERSIONS: Final = ("2008-10-17", "2012-10-17")
_ELEMENTS: Final = frozenset(("Version", "Id", "Statement"))
_STATEMENT: Final = frozenset(
    (
        "Sid",
        "Effect",
        "Principal",
        "NotPrincipal",
        "Action",
        "NotAction",
        "Resource",
        "NotResource",
        "Condition",
    )
)
_ACTION: Final = re.compile(r"\*|s3:[a-z*?]+", re.IGNORECASE)
_ANY_ACTION: Final = re.compile(r"\*|[a-z0-9-]+:[a-z0-9*?]+", re.IGNORECASE)
_NOWHERE: Final = "\0"  # no bucket or key has a NUL
_ARN: Final = "arn:aws:s3:::"

# Conditions with fixed values of these keys make a statement for everybody a statement for somebody.
_NARROWING: Final = frozenset(
    (
        "aws:sourcearn",
        "aws:sourcevpc",
        "aws:sourcevpce",
        "aws:sourceaccount",
        "aws:principalorgid",
        "aws:principalaccount",
        "aws:principalarn",
        "aws:userid",
        "s3:dataaccesspointarn",
        "s3:dataaccesspointaccount",
        "s3:resourceaccount",
        "s3:x-amz-server-side-encryption-aws-kms-key-id",
    )
)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks, as policies name them. All fields are empty for a request without a key pair."""

    account: str = ""
    """The owner id stands where AWS has an account number and a canonical user id."""
    name: str = ""
    service: str = ""
    """A part of S3 itself that acts by the policy's leave, such as "logging.s3.amazonaws.com"."""
    role: str = ""
    """Not empty in a session of a role; then `name` is the session's."""

    @property
    def arn(self) -> str:
        """What a policy calls exactly this caller."""
        if self.role:
            return f"arn:aws:sts::{self.account}:assumed-role/{self.role}/{self.name}"
        return f"arn:aws:iam::{self.account}:user/{self.name}"

    @property
    def role_arn(self) -> str:
        """The role of the session; without one the same as `arn`."""
        return f"arn:aws:iam::{self.account}:role/{self.role}" if self.role else self.arn


@dataclass(frozen=True, slots=True)
class Statement:
    allows: bool
    principals: tuple[tuple[str, str], ...]
    """(kind, value) pairs; ("AWS", "*") is everybody."""
    except_principals: bool
    actions: tuple[str, ...]
    except_actions: bool
    resources: tuple[str, ...]
    except_resources: bool
    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    statements: tuple[Statement, ...]
    has_variables: bool
    """Only documents of 2012-10-17 have policy variables."""

    @property
    def is_public(self) -> bool:
        """Does it give anything to everybody?"""
        return any(_is_public(each) for each in self.statements)

    def denies(self, actions: Iterable[str]) -> bool:
        """Does any statement refuse any of these actions, to somebody, somewhere, under some condition?"""
        return any(
            not each.allows
            and any(matches(pattern, action.lower()) for pattern in each.actions) != each.except_actions
            for each in self.statements
            for action in actions
        )

    def reads(self, prefix: str) -> bool:
        """Does any condition look at a key that starts with `prefix` (lower case)?"""
        return any(
            condition.key.startswith(prefix) for each in self.statements for condition in each.conditions
        )


def evaluate(policy: Policy, principal: Principal, action: str, resource: str, lookup: Lookup) -> Verdict:
    """The verdict on `action` ("s3:GetObject") on `resource` ("bucket/key" or "bucket")."""

    def variables(name: str) -> str | None:
        values = lookup(name) if policy.has_variables else None
        return values[0] if values else None

    verdict: Verdict = "none"
    for statement in policy.statements:
        if statement.allows and verdict == "allow":
            continue
        if _applies(statement, principal, action, resource, lookup, variables):
            if not statement.allows:
                return "deny"
            verdict = "allow"
    return verdict


def _applies(
    statement: Statement,
    principal: Principal,
    action: str,
    resource: str,
    lookup: Lookup,
    variables: Callable[[str], str | None],
) -> bool:
    lowered = action.lower()
    if any(matches(each, lowered) for each in statement.actions) == statement.except_actions:
        return False
    if (
        any(matches_with(each, resource, variables) for each in statement.resources)
        == statement.except_resources
    ):
        return False
    if any(_is_meant(each, principal) for each in statement.principals) == statement.except_principals:
        return False
    return all(condition.holds(lookup, variables) for condition in statement.conditions)


def _is_meant(named: tuple[str, str], principal: Principal) -> bool:
    kind, value = named
    if principal.service:
        return kind == "Service" and value == principal.service
    if value == "*":
        return kind == "AWS"
    account = principal.account
    if not account:
        return False
    if kind == "CanonicalUser":
        return value == account
    if kind != "AWS":
        return False
    return value in (account, f"arn:aws:iam::{account}:root", principal.arn, principal.role_arn)


# --- reading -------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def cached(text: str) -> Policy:
    """The policy of a stored text, which was validated when it was stored."""
    return parse(text, None)


@lru_cache(maxsize=1024)
def identity_policy(text: str) -> Policy:
    """A policy of somebody instead of a bucket: without principals, and of any service. PolicyError when it is none."""
    return _parse(text, lambda value: _statement(value, None, is_identity=True))


def parse(text: str | bytes, bucket: str | None) -> Policy:
    """Read and validate a policy for `bucket`; PolicyError when it is none."""
    return _parse(text, lambda value: _statement(value, bucket))


def _parse(text: str | bytes, statement: Callable[[Any], Statement]) -> Policy:
    if len(text) > MAX_BYTES:
        raise PolicyError(f"Policy exceeds the maximum allowed document size of {MAX_BYTES} bytes")
    try:
        document = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        if text[:1] in ("{", b"{"):
            raise PolicyError("This policy contains invalid Json") from None
        raise PolicyError("Policies must be valid JSON and the first byte must be '{'") from None
    if not isinstance(document, dict):
        raise PolicyError("Policies must be valid JSON and the first byte must be '{'")
    unknown = document.keys() - _ELEMENTS
    if unknown:
        raise PolicyError(f"Unknown field {sorted(unknown)[0][:100]}")
    version = document.get("Version", _VERSIONS[0])
    if version not in _VERSIONS:
        raise PolicyError("The policy must contain a valid version string")
    if not isinstance(document.get("Id", ""), str):
        raise PolicyError("Policy has an invalid Id")
    listed = document.get("Statement")
    statements = listed if isinstance(listed, list) else [listed]
    if listed is None:
        raise PolicyError("Missing required field Statement")
    if not statements:
        raise PolicyError("Could not parse the policy: Statement is empty!")
    return Policy(tuple(statement(each) for each in statements), version == _VERSIONS[1])


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _statement(value: Any, bucket: str | None, *, is_identity: bool = False) -> Statement:
    if not isinstance(value, dict):
        raise PolicyError("Policy has an invalid statement")
    unknown = value.keys() - _STATEMENT
    if unknown:
        raise PolicyError(f"Unknown field {sorted(unknown)[0][:100]}")
    if not isinstance(value.get("Sid", ""), str):
        raise PolicyError("Policy has an invalid statement id")
    effect = value.get("Effect")
    if effect not in ("Allow", "Deny"):
        raise PolicyError(
            f"Invalid effect: {str(effect)[:100]}" if effect else "Missing required field Effect"
        )
    if is_identity and ("Principal" in value or "NotPrincipal" in value):
        raise PolicyError("Policy document should not specify a principal.")
    principal, not_principal = ("*", False) if is_identity else _either(value, "Principal")
    action, not_action = _either(value, "Action")
    if "Resource" in value or "NotResource" in value:
        resource, not_resource = _either(value, "Resource")
    else:
        # IAM wants it said; without it a policy can only mean what it hangs on.
        resource, not_resource = "*", False
    if not_principal and effect == "Allow":
        raise PolicyError("Allow with NotPrincipal is not allowed.")
    actions = tuple(
        _action(each, _ANY_ACTION if is_identity else _ACTION) for each in _texts(action, "action")
    )
    resources = tuple(
        _any_resource(each) if is_identity else _resource(each, bucket)
        for each in _texts(resource, "resource")
    )
    if bucket is not None:
        _check_actions(actions, () if not_action or not_resource else resources)
    return Statement(
        effect == "Allow",
        _principals(principal),
        not_principal,
        actions,
        not_action,
        resources,
        not_resource,
        parse_conditions(value["Condition"]) if "Condition" in value else (),
    )


def _either(value: Mapping[str, Any], name: str) -> tuple[Any, bool]:
    opposite = f"Not{name}"
    if name in value and opposite in value:
        raise PolicyError(f"Statement has both {name} and {opposite}")
    if opposite in value:
        return value[opposite], True
    if name not in value:
        raise PolicyError(f"Missing required field {name}")
    return value[name], False


def _texts(value: Any, what: str) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(each, str) and each for each in values):
        raise PolicyError(f"Policy has invalid {what}")
    return values


def _action(text: str, pattern: re.Pattern[str]) -> str:
    if not pattern.fullmatch(text):
        raise PolicyError("Policy has invalid action")
    return text.lower()


def _check_actions(actions: Iterable[str], resources: Iterable[str]) -> None:
    """Each must name some action, and one that can be done to one of the resources, if there are any.

    An action of objects is taken for a bucket, too, where it means nothing: s3-tests asks for it.
    """
    possible = frozenset().union(*map(_resource_kinds, resources))
    for each in actions:
        found = kinds(each)
        if not found:
            raise PolicyError("Policy has invalid action")
        if possible and OBJECT not in found and found.isdisjoint(possible):
            raise PolicyError("Action does not apply to any resource(s) in statement")


def _resource_kinds(path: str) -> frozenset[str]:
    if "/" in path:
        return frozenset((OBJECT,))
    # A wildcard of the bucket's name reaches into keys.
    return frozenset((BUCKET, OBJECT) if any(each in path for each in "*?$") else (BUCKET,))


def _resource(text: str, bucket: str | None) -> str:
    """The part behind the ARN's prefix; it must be able to name this bucket or a key in it."""
    if text == "*":
        return text
    if not text.startswith(_ARN):
        raise PolicyError("Policy has invalid resource")
    path = text.removeprefix(_ARN)
    if bucket is not None and not matches(path.partition("/")[0], bucket):
        raise PolicyError("Policy has invalid resource")
    return path


def _any_resource(text: str) -> str:
    """In the policy of an identity: what is of another service never matches."""
    if text == "*" or text.startswith(_ARN):
        return text.removeprefix(_ARN)
    if not text.startswith("arn:"):
        raise PolicyError("Policy has invalid resource")
    return _NOWHERE


_KINDS: Final = ("AWS", "CanonicalUser", "Federated", "Service")


def _principals(value: Any) -> tuple[tuple[str, str], ...]:
    if value == "*":
        return (("AWS", "*"),)
    if not isinstance(value, dict) or not value or value.keys() - set(_KINDS):
        raise PolicyError("Invalid principal in policy")
    found = []
    for kind, values in value.items():
        for each in values if isinstance(values, list) else [values]:
            if not isinstance(each, str) or not each or (kind != "AWS" and each == "*"):
                raise PolicyError("Invalid principal in policy")
            if kind == "AWS" and each != "*" and "*" in each:
                # AWS knows no pattern here but the lone star.
                raise PolicyError("Invalid principal in policy")
            found.append((kind, each))
    if not found:
        raise PolicyError("Invalid principal in policy")
    return tuple(found)


# --- public or not -------------------------------------------------------------------------------------------


def _is_public(statement: Statement) -> bool:
    if not statement.allows:
        return False
    if not statement.except_principals and ("AWS", "*") not in statement.principals:
        return False
    return not any(_narrows(condition) for condition in statement.conditions)


def _narrows(condition: Condition) -> bool:
    """Does it hold only of requests from a fixed, not world-wide set of callers?"""
    if condition.if_exists or condition.quantifier == "all":
        return False
    if condition.key == "aws:sourceip" and condition.operator == "ipaddress":
        return all(_is_narrow(each) for each in condition.values)
    if condition.key not in _NARROWING:
        return False
    if condition.operator in ("stringequals", "stringequalsignorecase", "arnequals"):
        return not any(
            "${" in each or ("*" in each and condition.operator == "arnequals") for each in condition.values
        )
    if condition.operator in ("stringlike", "arnlike"):
        return not any("*" in each or "?" in each or "${" in each for each in condition.values)
    return False


def _is_narrow(network: Any) -> bool:
    """Wider than /8 (/32 of IPv6) is everybody, as AWS has it; private networks always are somebody."""
    if network.is_private:
        return bool(network.prefixlen > 0)
    least = 8 if isinstance(network, ipaddress.IPv4Network) else 32
    return bool(network.prefixlen >= least)
