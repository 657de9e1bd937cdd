"""Values of settings that have a shape of their own: addresses, domains, key pairs, roles, notification targets.

Must not know: which setting has which shape, where a value was given.
Invariants: a parser takes what a file, a variable or a flag holds, and returns the typed value or raises ValueError
with what would be valid; no secret appears in a repr or in an error.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cordwood.server.units import between, duration_between, text


@dataclass(frozen=True, slots=True)
class Credential:
    """One access-key pair and the owner that it speaks for."""

    access_key: str
    secret_key: str = field(repr=False)
    owner_id: str = ""
    display_name: str = ""


def make_credential(
    access_key: str, secret_key: str, owner_id: str = "", display_name: str = ""
) -> Credential:
    """Fill in the owner: by default derived from the access key, 64 hex digits as S3's canonical ids are."""
    derived = hashlib.sha256(b"cordwood-owner:" + access_key.encode()).hexdigest()
    return Credential(access_key, secret_key, owner_id or derived, display_name or access_key)


@dataclass(frozen=True, slots=True)
class Role:
    """What AssumeRole hands out: a policy, and who may have it. `owner_id` is whose buckets it is about."""

    name: str
    policy: str
    trust: tuple[str, ...]
    owner_id: str = ""
    max_session_s: float = 3600.0

    def __str__(self) -> str:
        return self.name


def workers_value(value: object) -> int:
    """`auto` is one per CPU that this process may use, at most four: the store has one writer at a time."""
    if value == "auto":
        return max(1, min(4, len(os.sched_getaffinity(0))))
    try:
        return between(1, 256)(value)
    except ValueError:
        raise ValueError("expected auto or a whole number from 1 to 256") from None


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. `host` is a literal address or a name; port 0 asks the kernel for a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def address(value: object) -> Address:
    text = value if isinstance(value, str) else ""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""  # an IPv6 address needs its brackets, or the port cannot be told from it
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(
            "expected HOST:PORT, for example 127.0.0.1:9000 or [::1]:9000 (port 0 picks a free one)"
        )
    return Address(host or "0.0.0.0", int(port))


_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]+)?\Z")


def domains(value: object) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(each, str) for each in texts):
        raise ValueError("expected a list of domain names")
    names = [name.strip().lower().lstrip(".") for each in texts for name in each.split(",")]
    domains = tuple(name for name in names if name)
    for name in domains:
        if not _DOMAIN.match(name):
            raise ValueError(f"{name!r} is not a domain name")
    return domains


def credentials_value(value: object) -> tuple[Credential, ...]:
    if not isinstance(value, list):
        raise ValueError("expected tables: [[credentials]] with access_key and secret_key")
    found: dict[str, Credential] = {}
    for table in value:
        if not isinstance(table, dict):
            raise ValueError("expected tables: [[credentials]] with access_key and secret_key")
        credential = _credential(table)
        if credential.access_key in found:
            raise ValueError(f"access_key {credential.access_key!r} is given twice")
        found[credential.access_key] = credential
    return tuple(found.values())


def _credential(table: Mapping[str, object]) -> Credential:
    parsers = {
        "access_key": access_key,
        "secret_key": key_text,
        "owner_id": key_text,
        "display_name": text,
    }
    values = {}
    for key, given in table.items():
        if key not in parsers:
            raise ValueError(f"unknown key {key!r}{did_you_mean(key, list(parsers))}")
        try:
            values[key] = parsers[key](given)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
    for needed in ("access_key", "secret_key"):
        if needed not in values:
            raise ValueError(f"a [[credentials]] table lacks {needed}")
    return make_credential(**values)


_ROLE_NAME = re.compile(r"[\w+=,.@-]{1,64}", re.ASCII)


def roles_value(value: object) -> tuple[Role, ...]:
    wanted = "expected tables: [[roles]] with name, trust and policy"
    if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
        raise ValueError(wanted)
    found: dict[str, Role] = {}
    for table in value:
        role = _role(table)
        if role.name in found:
            raise ValueError(f"role {role.name!r} is given twice")
        found[role.name] = role
    return tuple(found.values())


def _role(table: Mapping[str, object]) -> Role:
    parsers: dict[str, Callable[[object], Any]] = {
        "name": _role_name,
        "trust": _trust,
        "policy": text,
        "owner_id": key_text,
        "max_session": duration_between(900, 36 * 3600),
    }
    values: dict[str, Any] = {}
    for key, given in table.items():
        if key not in parsers:
            raise ValueError(f"unknown key {key!r}{did_you_mean(key, list(parsers))}")
        try:
            values[key] = parsers[key](given)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
    for needed in ("name", "trust", "policy"):
        if needed not in values:
            raise ValueError(f"a [[roles]] table lacks {needed}")
    if "max_session" in values:
        values["max_session_s"] = values.pop("max_session")
    return Role(**values)


def _role_name(value: object) -> str:
    name = text(value)
    if not _ROLE_NAME.fullmatch(name):
        raise ValueError("expected 1 to 64 letters, digits and any of _+=,.@-")
    return name


def _trust(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError('expected a list of access keys and owner ids, or ["*"] for every key pair')
    return tuple(key_text(each) for each in value)


def key_text(value: object) -> str:
    key = text(value)
    if not key or any(not "!" <= c <= "~" for c in key):
        raise ValueError("expected printable ASCII without spaces")
    return key


def access_key(value: object) -> str:
    key = key_text(value)
    # A signature names its key as "KEY/date/region/s3/aws4_request,": these two would break that apart.
    if "/" in key or "," in key:
        raise ValueError("an access key holds no '/' and no ','")
    return key


def did_you_mean(word: str, valid: list[str]) -> str:
    import difflib  # only wanted on the way to an error

    near = difflib.get_close_matches(word, valid, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; valid are {', '.join(valid)}"


# --- notification targets ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NotificationTarget:
    """Where the messages to an ARN go: POSTed to `url`, or appended to `file` as lines."""

    arn: str
    url: str = field(default="", repr=False)
    """May hold a password or a token."""
    file: str = ""
    authorization: str = field(default="", repr=False)
    batch: int = 1
    timeout_s: float = 10.0


_ARN = re.compile(r"arn:[a-z0-9-]+:(sns|sqs|lambda|events):[a-z0-9-]*:[A-Za-z0-9-]*:[^\s/][^\s]*\Z")
_KIND_OF_SERVICE = {"sns": "Topic", "sqs": "Queue", "lambda": "CloudFunction", "events": "EventBridge"}


def kind_of_arn(arn: str) -> str | None:
    """What an ARN names: "Topic", "Queue", "CloudFunction" or "EventBridge"; None when it is none of these."""
    match = _ARN.match(arn)
    return _KIND_OF_SERVICE[match[1]] if match else None


def notification_targets(value: object) -> tuple[NotificationTarget, ...]:
    if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
        raise ValueError("expected tables: [[notification_targets]] with arn, and url or file")
    found: dict[str, NotificationTarget] = {}
    for table in value:
        target = _notification_target(table)
        if target.arn in found:
            raise ValueError(f"arn {target.arn!r} is given twice")
        found[target.arn] = target
    return tuple(found.values())


def _notification_target(table: Mapping[str, object]) -> NotificationTarget:
    parsers: dict[str, tuple[str, Callable[[object], Any]]] = {
        "arn": ("arn", _target_arn),
        "url": ("url", http_url),
        "file": ("file", _target_file),
        "authorization": ("authorization", _header_text),
        "batch": ("batch", between(1, 1000)),
        "timeout": ("timeout_s", duration_between(0.1, 600)),
    }
    values: dict[str, Any] = {}
    for key, given in table.items():
        if key not in parsers:
            raise ValueError(f"unknown key {key!r}{did_you_mean(key, list(parsers))}")
        name, parse = parsers[key]
        try:
            values[name] = parse(given)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
    if "arn" not in values:
        raise ValueError("a [[notification_targets]] table lacks arn")
    if ("url" in values) == ("file" in values):
        raise ValueError(f"target {values['arn']!r} needs either a url or a file")
    if "authorization" in values and "url" not in values:
        raise ValueError(f"target {values['arn']!r}: authorization goes with a url")
    return NotificationTarget(**values)


def _target_arn(value: object) -> str:
    arn = text(value)
    if kind_of_arn(arn) is None:
        raise ValueError(
            "expected the ARN of a topic, queue, function or event bus, such as arn:aws:sqs:us-east-1:000000000000:NAME"
        )
    return arn


def http_url(value: object) -> str:
    url = text(value)
    if not re.match(r"https?://[^/\s@]+(@[^/\s@]+)?(/\S*)?\Z", url):
        raise ValueError("expected a URL that begins with http:// or https://")
    return url


def _target_file(value: object) -> str:
    file = text(value)
    if not os.path.isabs(file):
        raise ValueError("expected an absolute path")
    return file


def _header_text(value: object) -> str:
    header = text(value)
    if not header or any(not " " <= c <= "~" for c in header):
        raise ValueError("expected printable ASCII")
    return header
