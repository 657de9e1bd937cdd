"""Static websites: where a request is redirected to, and what an error looks like in a browser.

Must not know: sockets, the store, who may read what.
Invariants:
* Everything is decided from the stored configuration and the request's key, host and scheme.
* What comes from a client or a bucket's owner stands escaped in HTML and percent-encoded in a Location.

Source: "Hosting a static website using Amazon S3" with "Configuring a webpage redirect" and "Website endpoints", Amazon
S3 User Guide.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

from cordwood.server.wire.errors import escape_text

WEBSITE: Final = "website"
"""The attribute of a bucket that is a website: the configuration by the model's names."""

_SAFE: Final = "/!$&'()*+,;=:@~"
_UNSAFE: Final = re.compile(r"[^!-~]+")


@dataclass(frozen=True, slots=True)
class Redirect:
    status: int
    location: str


@dataclass(frozen=True, slots=True)
class Visit:
    """What was asked for: `key` is the path without its first slash, decoded."""

    key: str
    host: str
    scheme: str
    raw_query: str = ""


def redirect_of_all(configuration: Mapping[str, Any], visit: Visit) -> Redirect | None:
    """Where a site goes that has only moved; None for one that has not."""
    moved = configuration.get("RedirectAllRequestsTo")
    if moved is None:
        return None
    query = f"?{_encoded(visit.raw_query)}" if visit.raw_query else ""
    scheme = moved.get("Protocol", visit.scheme)
    return Redirect(301, f"{scheme}://{_encoded(moved['HostName'])}/{quote(visit.key, safe=_SAFE)}{query}")


def redirect_by_rule(
    configuration: Mapping[str, Any], visit: Visit, error_status: int | None = None
) -> Redirect | None:
    """Where the first routing rule that fits leads to. Without `error_status`: a rule that asks for none."""
    for rule in configuration.get("RoutingRules", ()):
        condition = rule.get("Condition", {})
        wanted = condition.get("HttpErrorCodeReturnedEquals")
        if (wanted is None) != (error_status is None) or (wanted is not None and int(wanted) != error_status):
            continue
        prefix = condition.get("KeyPrefixEquals", "")
        if visit.key.startswith(prefix):
            return _by_rule(rule["Redirect"], prefix, visit)
    return None


def _by_rule(redirect: Mapping[str, Any], prefix: str, visit: Visit) -> Redirect:
    # What the owner wrote may hold a query or a fragment ("?key=", "#!/"): it is not taken apart.
    if "ReplaceKeyWith" in redirect:
        path = _encoded(redirect["ReplaceKeyWith"])
    elif "ReplaceKeyPrefixWith" in redirect:
        path = _encoded(redirect["ReplaceKeyPrefixWith"]) + quote(visit.key[len(prefix) :], safe=_SAFE)
    else:
        path = quote(visit.key, safe=_SAFE)
    scheme = redirect.get("Protocol", visit.scheme)
    host = _encoded(redirect.get("HostName", visit.host))
    return Redirect(int(redirect.get("HttpRedirectCode", 301)), f"{scheme}://{host}/{path}")


def redirect_of_object(location: str) -> Redirect:
    """x-amz-website-redirect-location of an object."""
    return Redirect(301, _encoded(location))


def redirect_into(visit: Visit) -> Redirect:
    """To the address of a folder, whose relative links work only with the slash."""
    return Redirect(302, f"/{quote(visit.key, safe=_SAFE)}/")


def index_key(configuration: Mapping[str, Any], key: str) -> str | None:
    """The key of the index document of a folder; None for a key that is no folder."""
    if key and not key.endswith("/"):
        return None
    return f"{key}{configuration['IndexDocument']['Suffix']}"


def folder_index_key(configuration: Mapping[str, Any], key: str) -> str:
    return f"{key}/{configuration['IndexDocument']['Suffix']}"


def _encoded(text: str) -> str:
    """A piece of a URL that somebody wrote as one, with what cannot stand in a header encoded."""
    return _UNSAFE.sub(lambda match: quote(match.group(), safe=""), text)


# --- errors in HTML ------------------------------------------------------------------------------------------


def error_page(
    status: int, details: Iterable[tuple[str, str]], failed_document: Iterable[tuple[str, str]] = ()
) -> bytes:
    """The page of an error. `failed_document`: why the site's own error document could not be shown."""
    title = f"{status} {HTTPStatus(status).phrase}"
    parts = [
        f"<html>\n<head><title>{title}</title></head>\n<body>\n<h1>{title}</h1>\n",
        _listed(details),
    ]
    failed = tuple(failed_document)
    if failed:
        parts.append("<h3>An Error Occurred While Attempting to Retrieve a Custom Error Document</h3>\n")
        parts.append(_listed(failed))
    parts.append("<hr/>\n</body>\n</html>\n")
    return "".join(parts).encode("utf-8")


def _listed(details: Iterable[tuple[str, str]]) -> str:
    items = "".join(f"<li>{escape_text(name)}: {escape_text(value)}</li>\n" for name, value in details)
    return f"<ul>\n{items}</ul>\n"
