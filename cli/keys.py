"""`cordwood keys`: the key files that encrypted objects hang on.

Must not know: how a key is used.
Invariant: no key is ever printed, only its name and id.
"""

from __future__ import annotations

from pathlib import Path

import click

from cordwood.cli.common import json_flag
from cordwood.cli.errors import CliError
from cordwood.cli.output import print_json

_file = click.argument("file", type=click.Path(path_type=Path))


@click.group()
def keys() -> None:
    """List or add the keys of a key file: DIR/master-keys of a store, or that of the setting kms_key_file.

    Of several keys with one name the last encrypts, and all decrypt. Never remove a line while something may need it,
    and keep a copy of the file: without it, what its keys encrypted is lost.
    """


@keys.command("list")
@_file
@json_flag
def list_keys(file: Path, as_json: bool) -> None:
    """Show the name and id of every key in FILE, the oldest first."""
    from cordwood.server.config import ConfigError
    from cordwood.server.keyring import KeyFile

    try:
        ring = KeyFile(file).ring()
    except ConfigError as error:
        raise CliError(str(error)) from None
    if not ring.ids:
        raise CliError(f"{file} holds no key")
    for name, key_id in ring.ids:
        newest = ring.newest(name)
        encrypts = newest is not None and newest.id == key_id
        if as_json:
            print_json({"name": name, "id": key_id, "encrypts": encrypts})
        else:
            print(f"{key_id}  {name}{'  (encrypts)' if encrypts else ''}")


@keys.command("add")
@_file
@click.argument("name", default="master")
def add_key(file: Path, name: str) -> None:
    """Add a new key to FILE, which is made when it does not exist. From then on it encrypts for NAME."""
    from cordwood.server.config import ConfigError
    from cordwood.server.keyring import append_key

    try:
        key_id = append_key(file, name)
    except ConfigError as error:
        raise CliError(str(error)) from None
    except OSError as error:
        raise CliError(f"key file {file} cannot be changed: {error.strerror}") from None
    print(f"added key {key_id} with the name {name}; keep a copy of {file}")
