"""Settings of the server: one table, three layers (file, environment, flags), typed and checked.

Must not know: processes, sockets, the engine, click. Reads the settings file it is given and nothing else.

Invariants:
* `Settings` is the only list of settings. The flags of `cordwood serve`, the CORDWOOD_* names, the keys of the
  TOML file and the table in docs/operations.md derive from its fields; a test compares document and code.
* Flags beat the environment, the environment beats the file, the file beats the defaults. The access key and
  its secret always come from one layer.
* A name that is not a setting is an error that names it, where it stood and the nearest valid name.
* No secret appears in a repr or in an error.
"""

# ruff: noqa: RUF009 -- _setting() is dataclasses.field() with the row's other columns

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from cordwood.server.config_values import (
    Address,
    Credential,
    NotificationTarget,
    Role,
    access_key,
    address,
    credentials_value,
    did_you_mean,
    domains,
    http_url,
    key_text,
    make_credential,
    notification_targets,
    roles_value,
    workers_value,
)
from cordwood.server.units import (
    between,
    boolean,
    duration_between,
    format_duration,
    format_size,
    number_between,
    one_of,
    path,
    size_between,
    text,
    time_of_day,
)

__all__ = [
    "SETTINGS",
    "Address",
    "ConfigError",
    "Credential",
    "Loaded",
    "NotificationTarget",
    "Setting",
    "Settings",
    "describe",
    "load",
    "make_credential",
    "markdown_table",
]

T = TypeVar("T")

ENV_PREFIX = "CORDWOOD_"
# CORDWOOD_* names that belong to other commands, or are read before the settings are.
FOREIGN_ENV = frozenset({"CORDWOOD_CONFIG", "CORDWOOD_ENDPOINT", "CORDWOOD_PROFILE", "CORDWOOD_SERVE_CONFIG"})


class ConfigError(Exception):
    """A setting cannot be used; the text names the setting, where it was given, and what would be valid."""


# --- the table ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table that flags, environment names, file keys and documents derive from."""

    name: str
    parse: Callable[[object], Any]
    default: str
    unit: str
    meaning: str
    is_flag: bool = False
    """A boolean: given on the command line without a value, as --NAME or --no-NAME."""
    is_repeatable: bool = False
    is_secret: bool = False
    is_file_only: bool = False

    @property
    def env(self) -> str:
        return "" if self.is_file_only else ENV_PREFIX + self.name.upper()

    @property
    def flag(self) -> str:
        if self.is_file_only or self.name == "dir":
            return ""
        return "--" + self.name.replace("_", "-")


def _setting(
    default: T, parse: Callable[[object], T], meaning: str, *, shown: str = "", unit: str = "", **traits: bool
) -> T:
    """A dataclass field that carries its own row. `shown` is the default as a person would write it."""
    metadata = {"parse": parse, "meaning": meaning, "shown": shown, "unit": unit, "traits": traits}
    # `secret_key` and `credentials` stay out of reprs, and so out of logs and tracebacks.
    result: T = field(default=default, metadata=metadata, repr=not traits.get("is_secret", False))
    return result


@dataclass(frozen=True)
class Settings:
    """Everything the server can be told. Sizes are bytes, durations seconds."""

    dir: Path = _setting(Path(), path, "the store directory; made when it does not exist", shown="(required)")
    bind: Address = _setting(
        Address("127.0.0.1", 9000),
        address,
        "address and port to listen on; port 0 picks a free one",
        unit="HOST:PORT",
    )
    workers: int = _setting(
        0,
        workers_value,
        "worker processes on the one port; auto is one per CPU, at most 4",
        shown="auto",
        unit="processes",
    )
    access_key: str = _setting(
        "", access_key, "access key of the one key pair; needs secret_key too", shown="(generated)"
    )
    secret_key: str = _setting(
        "", key_text,
        "its secret; keep it in the environment or the file, for other users of the machine can read flags",
        shown="(generated)", is_secret=True,
    )  # fmt: skip
    credentials: tuple[Credential, ...] = _setting(
        (), credentials_value,
        "further key pairs, one [[credentials]] table each: access_key, secret_key, owner_id, display_name",
        shown="(none)", is_secret=True, is_file_only=True,
    )  # fmt: skip
    roles: tuple[Role, ...] = _setting(
        (), roles_value,
        "what AssumeRole hands out, one [[roles]] table each: name, trust (access keys, owner ids, or *), policy "
        "(JSON), owner_id, max_session (15m to 36h, 1h unless given)",
        shown="(none)", is_file_only=True,
    )  # fmt: skip
    anonymous: bool = _setting(
        False, boolean, "serve requests without any signature, to everybody, for everything", is_flag=True
    )
    domain: tuple[str, ...] = _setting(
        (), domains,
        "base domain of virtual-host style requests (BUCKET.DOMAIN); several: a list, or commas",
        shown="(none)", is_repeatable=True,
    )  # fmt: skip
    website_domain: tuple[str, ...] = _setting(
        (), domains,
        "base domain of the website endpoint (BUCKET.DOMAIN), such as s3-website.example.com; several: as domain",
        shown="(none)", is_repeatable=True,
    )  # fmt: skip
    region: str = _setting("us-east-1", text, "the region that signatures must name")
    durability: str = _setting(
        "strict", one_of("strict", "relaxed"),
        "strict answers after fdatasync; relaxed before it, and may lose the last moments in a power cut",
    )  # fmt: skip
    dedup: bool = _setting(True, boolean, "store equal chunks once", is_flag=True)
    volume_size: int = _setting(
        1 << 30, size_between(1 << 20, 1 << 40), "a volume is sealed at about this size", unit="bytes"
    )
    chunk_size: int = _setting(
        1 << 20, size_between(4 << 10, 16 << 20), "payloads are cut into chunks of this size", unit="bytes"
    )
    inline_max: int = _setting(
        64 << 10,
        size_between(0, 1 << 20),
        "payloads up to this size are stored inside their record",
        unit="bytes",
    )
    head_cache_size: int = _setting(
        16 << 20,
        size_between(0, 1 << 40),
        "memory of each worker for the decoded heads of objects read lately; 0: none",
        unit="bytes",
    )
    master_key_file: Path | None = _setting(
        None, path, "where the master keys of SSE-S3 are; made at first need. Losing it loses what they encrypted",
        shown="DIR/master-keys",
    )  # fmt: skip
    kms_key_file: Path | None = _setting(
        None, path, "named keys for SSE-KMS, a line `NAME KEY` each, the key being 32 bytes in base64",
        shown="(none)",
    )  # fmt: skip
    default_encryption: str = _setting(
        "none",
        one_of("none", "AES256"),
        "what buckets without a default of their own encrypt new objects with",
    )
    require_tls_for_customer_keys: bool = _setting(
        False, boolean, "refuse SSE-C keys that come over a connection without TLS", is_flag=True
    )
    head_timeout: float = _setting(
        30.0, duration_between(0.1, 3600), "a request head must be complete within this", unit="seconds"
    )
    body_timeout: float = _setting(
        60.0, duration_between(0.1, 86400), "longest silence while a request body is received", unit="seconds"
    )
    send_timeout: float = _setting(
        60.0,
        duration_between(0.1, 86400),
        "longest stall while a response is sent to a slow reader",
        unit="seconds",
    )
    idle_timeout: float = _setting(
        75.0,
        duration_between(0.1, 86400),
        "an idle keep-alive connection is closed after this",
        unit="seconds",
    )
    stop_timeout: float = _setting(
        30.0,
        duration_between(0, 86400),
        "after SIGTERM, requests in flight may run this long",
        unit="seconds",
    )
    max_head_size: int = _setting(
        32 << 10,
        size_between(4 << 10, 1 << 20),
        "largest request head (request line and headers)",
        unit="bytes",
    )
    max_header_count: int = _setting(
        200, between(10, 10_000), "most header fields in one request", unit="count"
    )
    max_connections: int = _setting(
        4096,
        between(1, 1_000_000),
        "most open connections per worker; more wait to be accepted",
        unit="count",
    )
    log_level: str = _setting(
        "info", one_of("debug", "info", "warning", "error"), "least severe messages to log"
    )
    log_format: str = _setting("text", one_of("text", "json"), "log lines as text or one JSON object each")
    access_log: bool = _setting(False, boolean, "log one line per request", is_flag=True)
    compaction_enabled: bool = _setting(
        True, boolean, "give back the space of what was deleted, in the background", is_flag=True
    )
    compaction_interval_hours: float = _setting(
        1.0, number_between(0.001, 8760), "a compaction is considered this often", unit="hours"
    )
    compaction_threshold: float = _setting(
        0.3, number_between(0, 1), "a volume is compacted when this share of it is dead, and at least 10 MiB"
    )
    compaction_full_time: str = _setting(
        "02:00",
        time_of_day,
        "once a day, at this local time, every volume with dead records is compacted; or never",
        unit="HH:MM",
    )
    compaction_multipart_ttl_secs: int = _setting(
        604_800,
        between(0, 10**9),
        "multipart uploads in which nothing happened for so long are aborted; 0: never",
        unit="count",
    )
    compaction_grace: float = _setting(
        3600.0,
        duration_between(0, 10**8),
        "volumes sealed less long ago are left alone, for uploads in flight may own chunks in them",
        unit="seconds",
    )
    compaction_rate: int = _setting(
        64 << 20, size_between(0, 1 << 40), "bytes per second at most; 0: no limit", unit="bytes"
    )
    compaction_dry_run: bool = _setting(False, boolean, "only log what compaction would do", is_flag=True)
    lifecycle_interval: float = _setting(
        3600.0, duration_between(0.1, 604_800), "lifecycle rules are carried out this often", unit="seconds"
    )
    lifecycle_dry_run: bool = _setting(
        False, boolean, "only log what lifecycle rules would remove", is_flag=True
    )
    lifecycle_day: float = _setting(
        86400.0,
        duration_between(0.1, 86400),
        "for tests: the length of a day in lifecycle rules",
        unit="seconds",
    )
    bucket_logging_interval: float = _setting(
        300.0,
        duration_between(0.1, 86400),
        "records of server access logging are delivered to their buckets this often",
        unit="seconds",
    )
    notification_targets: tuple[NotificationTarget, ...] = _setting(
        (), notification_targets,
        "where event notifications may go, one [[notification_targets]] table each: arn, and url or file",
        shown="(none)", is_secret=True, is_file_only=True,
    )  # fmt: skip
    notification_queue_max: int = _setting(
        100_000,
        between(1, 10**9),
        "most messages that wait for one target that cannot be reached; then the oldest are dropped",
        unit="count",
    )
    torrent_tracker: str = _setting(
        "",
        http_url,
        "announce URL of a tracker; with it objects have torrents (GetObjectTorrent)",
        shown="(none)",
    )
    scrub_days: float = _setting(
        30.0, number_between(0, 36500), "everything is read and verified once in so many days; 0: never",
        unit="days",
    )  # fmt: skip

    def all_credentials(self) -> tuple[Credential, ...]:
        """The single pair, if given, and then those of the file."""
        if not self.access_key:
            return self.credentials
        return (make_credential(self.access_key, self.secret_key), *self.credentials)


def _row(name: str, default: object, metadata: Mapping[str, Any]) -> Setting:
    shown = metadata["shown"]
    if not shown:
        if isinstance(default, bool):
            shown = "true" if default else "false"
        elif metadata["unit"] == "bytes":
            shown = format_size(int(str(default)))
        elif metadata["unit"] == "seconds":
            shown = format_duration(float(str(default)))
        else:
            shown = str(default)
    return Setting(
        name, metadata["parse"], shown, metadata["unit"], metadata["meaning"], **metadata["traits"]
    )


SETTINGS: dict[str, Setting] = {f.name: _row(f.name, f.default, f.metadata) for f in fields(Settings)}
assert all(f.default is not MISSING for f in fields(Settings))


# --- the three layers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loaded:
    """The settings, and for each name where its value came from ("default", a variable, a file, a flag)."""

    settings: Settings
    sources: Mapping[str, str]


def load(
    *, flags: Mapping[str, object], environ: Mapping[str, str], config_file: Path | None = None
) -> Loaded:
    """Merge the layers. `flags` holds only what was given on the command line, by setting name."""
    values: dict[str, Any] = {}
    sources = dict.fromkeys(SETTINGS, "default")
    layers: list[tuple[dict[str, object], Callable[[Setting], str]]] = []
    if config_file is not None:
        layers.append((_file_layer(config_file), lambda row: f"{row.name} in {config_file}"))
    layers.append((_environment_layer(environ), lambda row: row.env))
    layers.append((dict(flags), lambda row: row.flag or row.name.upper()))
    for layer, place in layers:
        if "access_key" in layer or "secret_key" in layer:
            _demand_whole_pair(layer, place)
        for name, raw in layer.items():
            row = SETTINGS[name]
            try:
                values[name] = row.parse(raw)
            except ValueError as error:
                given = "" if row.is_secret else f" {raw!r}:"
                raise ConfigError(f"{place(row)}:{given} {error}") from None
            sources[name] = place(row)
    if "dir" not in values:
        raise ConfigError(
            "no store directory given: `cordwood serve DIR`, CORDWOOD_DIR, or `dir` in the settings file"
        )
    values.setdefault("workers", workers_value("auto"))
    settings = Settings(**values)
    _check_together(settings)
    return Loaded(settings, sources)


def _file_layer(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            layer = tomllib.load(file)
    except FileNotFoundError:
        raise ConfigError(f"settings file {path} does not exist") from None
    except OSError as error:
        raise ConfigError(f"settings file {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"settings file {path} is not valid TOML: {error}") from None
    for key in layer:
        if key not in SETTINGS:
            raise ConfigError(f"unknown setting {key!r} in {path}{did_you_mean(key, list(SETTINGS))}")
    return layer


def _environment_layer(environ: Mapping[str, str]) -> dict[str, object]:
    by_env = {row.env: row for row in SETTINGS.values() if row.env}
    layer: dict[str, object] = {}
    for key, value in environ.items():
        if key.startswith(ENV_PREFIX) and key not in FOREIGN_ENV:
            if key not in by_env:
                raise ConfigError(
                    f"unknown setting {key} in the environment{did_you_mean(key, list(by_env))}"
                )
            if value != "":  # an empty variable is how shells and unit files say "not set"
                layer[by_env[key].name] = value
    return layer


def _demand_whole_pair(layer: Mapping[str, object], place: Callable[[Setting], str]) -> None:
    for name, other in (("access_key", "secret_key"), ("secret_key", "access_key")):
        if name in layer and other not in layer:
            raise ConfigError(
                f"{place(SETTINGS[name])} is given without {place(SETTINGS[other])}; "
                "a pair comes from one place"
            )


def _check_together(settings: Settings) -> None:
    names = [c.access_key for c in settings.all_credentials()]
    if len(set(names)) != len(names):
        raise ConfigError(
            f"access_key {settings.access_key!r} is also in a [[credentials]] table; give it once"
        )
    if settings.inline_max > settings.chunk_size:
        raise ConfigError(
            f"inline_max ({format_size(settings.inline_max)}) must not be larger than "
            f"chunk_size ({format_size(settings.chunk_size)})"
        )
    if settings.chunk_size * 2 > settings.volume_size:
        raise ConfigError(
            f"volume_size ({format_size(settings.volume_size)}) must hold at least two chunks "
            f"of {format_size(settings.chunk_size)}"
        )


# --- the table as text -------------------------------------------------------------------------------------


def describe(loaded: Loaded) -> list[tuple[str, str, str]]:
    """(name, value, source) of every setting in effect; secrets are hidden."""
    rows = []
    for name, row in SETTINGS.items():
        value = getattr(loaded.settings, name)
        if row.is_secret:
            shown = "(hidden)" if value else "(none)"
        elif row.unit == "bytes":
            shown = format_size(value)
        elif row.unit == "seconds":
            shown = format_duration(value)
        elif isinstance(value, bool):
            shown = str(value).lower()
        else:
            shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        rows.append((name, shown, loaded.sources[name]))
    return rows


def markdown_table() -> str:
    """The table of docs/operations.md."""
    lines = ["| Setting | Flag | Environment | Default | Unit | Meaning |", "|---|---|---|---|---|---|"]
    for row in SETTINGS.values():
        flag = f"`{row.flag}`" if row.flag else ("`DIR`" if row.name == "dir" else "")
        env = f"`{row.env}`" if row.env else ""
        lines.append(f"| `{row.name}` | {flag} | {env} | {row.default} | {row.unit} | {row.meaning} |")
    return "\n".join(lines) + "\n"
