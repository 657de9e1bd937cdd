"""Cross-origin resource sharing: which rule of a bucket lets a page of another origin in, and what its browser is told.

Must not know: the wire's errors, the engine, who is allowed what: CORS opens nothing, it only lets browsers look.
Invariants:
* Without a rule that fits, no header is given: an origin is never repeated to whoever sends it.
* Only where the rule names origins may the browser send credentials; beside a lone star it may not.

Source: "CORS configuration" and "OPTIONS object", Amazon S3 API Reference; the Fetch standard, section 3.2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

METHODS: Final = ("GET", "PUT", "POST", "DELETE", "HEAD")
MAX_RULES: Final = 100
_VARY: Final = ("vary", "Origin, Access-Control-Request-Headers, Access-Control-Request-Method")


_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch  # RFC 9110, section 5.6.2


class CorsError(ValueError):
    """What is wrong with a configuration, in AWS's words."""


def check(rules: Sequence[Mapping[str, Any]]) -> None:
    """Refuse what could not be meant."""
    if not 1 <= len(rules) <= MAX_RULES:
        raise CorsError(f"The number of CORS rules should not exceed allowed limit of {MAX_RULES} rules.")
    for rule in rules:
        for method in rule["AllowedMethods"]:
            if method not in METHODS:
                raise CorsError(
                    f"Found unsupported HTTP method in CORS config. Unsupported method is {method[:100]}"
                )
        for member, name in (("AllowedOrigins", "AllowedOrigin"), ("AllowedHeaders", "AllowedHeader")):
            for value in rule.get(member, ()):
                if value.count("*") > 1:
                    raise CorsError(f'{name} "{value[:200]}" can not have more than one wildcard.')
        for value in rule.get("AllowedHeaders", ()):
            if not is_header_name(value):
                raise CorsError(f'AllowedHeader "{value[:200]}" contains invalid character.')
        for value in rule.get("ExposeHeaders", ()):
            if "*" in value:
                raise CorsError(
                    f'ExposeHeader "{value[:200]}" contains wildcard. We currently do not support wildcard for '
                    "ExposeHeader."
                )
            if not is_header_name(value):
                raise CorsError(f'ExposeHeader "{value[:200]}" contains invalid character.')


def is_header_name(text: str) -> bool:
    return _NAME(text) is not None


def find(
    rules: Sequence[Mapping[str, Any]], origin: str, method: str, headers: Sequence[str] = ()
) -> Mapping[str, Any] | None:
    """The first rule that fits."""
    for rule in rules:
        if (
            method in rule["AllowedMethods"]
            and any(_fits(each, origin) for each in rule["AllowedOrigins"])
            and all(_allows_header(rule, each) for each in headers)
        ):
            return rule
    return None


def _fits(pattern: str, text: str) -> bool:
    """Only the one star is a wildcard here."""
    before, star, after = pattern.partition("*")
    if not star:
        return text == pattern
    return len(text) >= len(before) + len(after) and text.startswith(before) and text.endswith(after)


def _allows_header(rule: Mapping[str, Any], name: str) -> bool:
    return any(_fits(each.lower(), name.lower()) for each in rule.get("AllowedHeaders", ()))


def response_headers(
    rule: Mapping[str, Any], origin: str, requested_headers: Sequence[str] = (), *, is_preflight: bool = False
) -> list[tuple[str, str]]:
    is_anybody = "*" in rule["AllowedOrigins"]
    headers = [
        ("access-control-allow-origin", "*" if is_anybody else origin),
        ("access-control-allow-methods", ", ".join(rule["AllowedMethods"])),
    ]
    if not is_anybody:
        headers.append(("access-control-allow-credentials", "true"))
    if rule.get("ExposeHeaders"):
        headers.append(("access-control-expose-headers", ", ".join(rule["ExposeHeaders"])))
    if is_preflight and requested_headers:
        headers.append(
            ("access-control-allow-headers", ", ".join(each.lower() for each in requested_headers))
        )
    if is_preflight and rule.get("MaxAgeSeconds") is not None:
        headers.append(("access-control-max-age", str(rule["MaxAgeSeconds"])))
    headers.append(_VARY)
    return headers
