"""Which endpoint, and with which keys: flags, CORDWOOD_*, a profile, AWS_*.

One file holds the profiles: $CORDWOOD_CONFIG, or $XDG_CONFIG_HOME/cordwood/config.toml (~/.config by default):

    [profile.lab]
    endpoint = "https://s3.lab.example"
    access_key = "…"
    secret_key = "…"
    region = "us-east-1"

Must not know: commands, the network.

Invariants:
* An access key and its secret come from one place. Keys of a profile go only to that profile's endpoint, unless the
  profile was asked for by name.
* The file is written whole (beside, then renamed) with mode 0600, and other text in it is left as it was.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cordwood.cli.errors import UsageError

# Looked at when nobody names a profile: the person's own first, then the one that `cordwood serve` keeps up to date.
SERVE_PROFILE = "local"
_UNASKED = ("default", SERVE_PROFILE)
_KEYS = ("endpoint", "access_key", "secret_key", "region", "anonymous")


@dataclass(frozen=True)
class Target:
    """Where requests go and who signs them."""

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    region: str
    is_anonymous: bool
    session_token: str = field(repr=False)
    origin: str
    """Where the endpoint was found; for messages."""


def config_path(environ: Mapping[str, str]) -> Path:
    if environ.get("CORDWOOD_CONFIG"):
        return Path(environ["CORDWOOD_CONFIG"]).expanduser()
    base = environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "cordwood" / "config.toml"


def resolve(
    environ: Mapping[str, str],
    *,
    endpoint: str | None = None,
    access_key: str | None = None,
    secret_key: str | None = None,
    region: str | None = None,
    profile: str | None = None,
    anonymous: bool = False,
) -> Target:
    """The arguments are the flags; None when not given. Raises `UsageError` when something is missing."""
    path = config_path(environ)
    profiles = _read(path)
    asked = profile or environ.get("CORDWOOD_PROFILE")
    if asked and asked not in profiles:
        known = ", ".join(profiles) or "none"
        raise UsageError(f"no profile {asked!r} in {path} (there: {known})")
    chosen = asked or next((name for name in _UNASKED if name in profiles), None)
    table = profiles.get(chosen, {}) if chosen else {}

    places = (
        (endpoint, "--endpoint"),
        (environ.get("CORDWOOD_ENDPOINT"), "CORDWOOD_ENDPOINT"),
        (table.get("endpoint"), f"profile {chosen!r} in {path}"),
        (environ.get("AWS_ENDPOINT_URL_S3"), "AWS_ENDPOINT_URL_S3"),
        (environ.get("AWS_ENDPOINT_URL"), "AWS_ENDPOINT_URL"),
    )
    found, origin = next(((url, origin) for url, origin in places if url), ("", ""))
    if not isinstance(found, str) or not found:
        raise UsageError(
            "no endpoint known: start `cordwood serve DIR` on this machine, or give --endpoint URL, "
            f"CORDWOOD_ENDPOINT or a profile in {path}"
        )
    url = found.rstrip("/")
    if "://" not in url:
        url = "http://" + url
    # The profile's keys belong to its endpoint; with another endpoint they count only when the profile was named.
    fits = bool(asked) or str(table.get("endpoint", "")).rstrip("/") == url
    keys = _keys(environ, access_key, secret_key, table if fits else {})
    is_anonymous = anonymous or (keys is None and fits and table.get("anonymous") is True)
    if keys is None and not is_anonymous:
        raise UsageError(
            f"no keys known for {url}: give --access-key and --secret-key, CORDWOOD_ACCESS_KEY and "
            f"CORDWOOD_SECRET_KEY, a profile in {path}, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or --no-sign"
        )
    pair = keys or ("", "", "")
    return Target(
        endpoint=url,
        access_key=pair[0],
        secret_key=pair[1],
        region=region
        or environ.get("CORDWOOD_REGION")
        or (str(table["region"]) if fits and "region" in table else "")
        or environ.get("AWS_REGION")
        or environ.get("AWS_DEFAULT_REGION")
        or "us-east-1",
        is_anonymous=is_anonymous,
        session_token=pair[2],
        origin=origin,
    )


def _keys(
    environ: Mapping[str, str], access_key: str | None, secret_key: str | None, table: Mapping[str, object]
) -> tuple[str, str, str] | None:
    places = (
        (access_key, secret_key, "--access-key and --secret-key"),
        (
            environ.get("CORDWOOD_ACCESS_KEY"),
            environ.get("CORDWOOD_SECRET_KEY"),
            "CORDWOOD_ACCESS_KEY and CORDWOOD_SECRET_KEY",
        ),
        (table.get("access_key"), table.get("secret_key"), "access_key and secret_key in a profile"),
        (
            environ.get("AWS_ACCESS_KEY_ID"),
            environ.get("AWS_SECRET_ACCESS_KEY"),
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ),
    )
    for access, secret, names in places:
        if bool(access) != bool(secret):
            raise UsageError(f"{names} must be given together")
        if access and secret:
            token = environ.get("AWS_SESSION_TOKEN", "") if names.startswith("AWS") else ""
            return str(access), str(secret), token
    return None


def _read(path: Path) -> dict[str, dict[str, object]]:
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UsageError(f"profiles file {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"profiles file {path} is not valid TOML: {error}") from None
    profiles = document.get("profile", {})
    unknown = [key for key in document if key != "profile"]
    if unknown or not isinstance(profiles, dict):
        raise UsageError(
            f"unknown key {(unknown or ['profile'])[0]!r} in {path}; it holds [profile.NAME] tables only"
        )
    for name, table in profiles.items():
        if not isinstance(table, dict):
            raise UsageError(f"profile {name!r} in {path} is not a table; write [profile.{name}]")
        for key in table:
            if key not in _KEYS:
                raise UsageError(
                    f"unknown key {key!r} in profile {name!r} of {path}; valid are {', '.join(_KEYS)}"
                )
    return profiles


def write_profile(path: Path, name: str, values: Mapping[str, str | bool]) -> None:
    """Replace or add one profile. Raises OSError."""
    try:
        old = path.read_text()
    except FileNotFoundError:
        old = ""
    section = [f"[profile.{name}]\n", *(f"{key} = {_toml(value)}\n" for key, value in values.items())]
    before, after = _around(old.splitlines(keepends=True), f"[profile.{name}]")
    if before and before[-1].strip():
        before.append("\n")
    text = "".join([*before, *section, *(["\n"] if after else []), *after])
    if text == old:
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "w") as file:
        file.write(text)
    os.replace(beside, path)


def _around(lines: list[str], header: str) -> tuple[list[str], list[str]]:
    """The lines before and after one table; everything is before when there is none."""
    start = next((i for i, line in enumerate(lines) if line.split("#")[0].strip() == header), None)
    if start is None:
        if lines and not lines[-1].endswith("\n"):
            lines[-1] += "\n"
        return lines, []
    end = next((i for i in range(start + 1, len(lines)) if lines[i].lstrip().startswith("[")), len(lines))
    return lines[:start], lines[end:]


def _toml(value: str | bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
