"""`cordwood serve`: settings from flags, environment and file; then the server; then what a person needs to go on.

Must not know: processes, sockets. The flags are made from the settings table of cordwood.server.config.
Invariant: the secret of a key pair is printed once, when it was made, and never again.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cordwood.cli.errors import EXIT_USAGE, CliError
from cordwood.cli.profiles import SERVE_PROFILE, config_path, write_profile
from cordwood.server.config import SETTINGS, Address, ConfigError, Settings, describe, load

if TYPE_CHECKING:
    from cordwood.server.main import Running

F = TypeVar("F", bound=Callable[..., object])


def _settings_flags(function: F) -> F:
    for row in reversed(SETTINGS.values()):
        if not row.flag:
            continue
        text = f"{row.meaning[0].upper()}{row.meaning[1:]}. [{row.default}; {row.env}]"
        names = f"{row.flag}/--no-{row.flag[2:]}" if row.is_flag else row.flag
        metavar = None if row.is_flag else (row.unit or "text").upper()
        function = click.option(
            names, row.name, default=None, metavar=metavar, help=text, multiple=row.is_repeatable
        )(function)
    return function


@click.command()
@click.argument("dir", required=False)
@click.option(
    "--config", type=click.Path(path_type=Path), envvar="CORDWOOD_SERVE_CONFIG", help="Settings file (TOML)."
)
@click.option(
    "--no-profile", is_flag=True, help=f"Leave the profile {SERVE_PROFILE!r} of the client commands alone."
)
@click.option(
    "--show-settings", is_flag=True, help="Print every setting, its value and where it came from; then stop."
)
@_settings_flags
def serve(dir: str | None, config: Path | None, no_profile: bool, show_settings: bool, **given: Any) -> None:
    """Run an S3 server over the store in DIR, which is made when it does not exist.

    Settings come from flags, then CORDWOOD_* variables, then the settings file, then the defaults.
    """
    flags = {name: value for name, value in {"dir": dir, **given}.items() if value not in (None, ())}
    try:
        loaded = load(flags=flags, environ=os.environ, config_file=config)
        if show_settings:
            for name, value, source in describe(loaded):
                click.echo(f"{name:17} {value:30} {source}")
            return
        _run(loaded.settings, None if no_profile else config_path(os.environ))
    except ConfigError as error:
        raise CliError(str(error), EXIT_USAGE) from None


def _run(settings: Settings, profiles: Path | None) -> None:
    from cordwood.server.main import StartError
    from cordwood.server.main import serve as run_server

    if settings.anonymous:
        print(
            "warning: --anonymous: everybody who reaches this address may read, write and delete everything",
            file=sys.stderr,
        )
    if settings.durability == "relaxed":
        print(
            "warning: durability is relaxed: a power cut may lose what was acknowledged in the last moments",
            file=sys.stderr,
        )
    try:
        run_server(settings, lambda running: _announce(settings, running, profiles))
    except StartError as error:
        raise CliError(str(error), error.exit_code) from None


def _announce(settings: Settings, running: Running, profiles: Path | None) -> None:
    url = f"http://{_reachable(running.address)}"
    lines = []
    if running.key_file is not None:
        path = running.key_file.path.resolve()
        if running.key_file.is_new:
            made = running.key_file.credential
            lines += [
                "A key pair was made for this store; this is the only time that it is shown:",
                f"  access key  {made.access_key}",
                f"  secret key  {made.secret_key}",
            ]
        lines.append(f"Credentials are in {path}")
        if running.key_file.is_exposed:
            lines.append(f"warning: other users may read {path}; `chmod 600` it")
        keys = f"AWS_SHARED_CREDENTIALS_FILE={shlex.quote(str(path))}"
    elif running.credentials:
        lines.append("Credentials come from the settings")
        keys = f"AWS_ACCESS_KEY_ID={shlex.quote(running.credentials[0].access_key)} AWS_SECRET_ACCESS_KEY='…'"
    else:
        keys = "AWS_EC2_METADATA_DISABLED=true"
    if profiles is not None:
        lines.append(_keep_profile(profiles, url, settings, running))
    sign = " --no-sign-request" if not running.credentials else ""
    lines += [
        "To use it with awscli, paste:",
        f"  export {keys} AWS_DEFAULT_REGION={settings.region}",
        f"  aws --endpoint-url {url}{sign} s3 ls",
        f"cordwood is listening on {url} (store {settings.dir}, {_counted(settings.workers, 'worker')})",
    ]
    try:
        print("\n".join(lines), flush=True)
    except OSError:
        pass  # nobody reads; the server runs all the same


def _keep_profile(path: Path, url: str, settings: Settings, running: Running) -> str:
    values: dict[str, str | bool] = {"endpoint": url, "region": settings.region}
    if running.credentials:
        values["access_key"] = running.credentials[0].access_key
        values["secret_key"] = running.credentials[0].secret_key
    else:
        values["anonymous"] = True
    try:
        write_profile(path, SERVE_PROFILE, values)
    except (OSError, RuntimeError) as error:
        return f"warning: profile {SERVE_PROFILE!r} could not be written to {path}: {error}"
    return f"`cordwood ls` on this machine now works without flags (profile {SERVE_PROFILE!r} in {path})"


def _reachable(address: Address) -> Address:
    """An address that a client on this machine can connect to."""
    wildcard = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    return Address(wildcard.get(address.host, address.host), address.port)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
