"""What every client command shares: the flags that choose an endpoint, and the client they make.

Must not know: what a command does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from cordwood.cli.client import Client

F = TypeVar("F", bound=Callable[..., Any])


def duration_s(_ctx: click.Context, _param: click.Parameter, value: str) -> float:
    """A click callback: "15m" -> 900.0."""
    from cordwood.server.units import parse_duration_s

    try:
        return parse_duration_s(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r}: {error}") from None


json_flag = click.option("--json", "as_json", is_flag=True, help="One JSON object per line, for programs.")
recursive_flag = click.option("-r", "--recursive", is_flag=True, help="Everything below the given folder.")


def client_command(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the endpoint flags, and calls the function with a `client` made from them."""

    @wraps(function)
    def wrapper(
        *args: Any,
        endpoint: str | None,
        access_key: str | None,
        secret_key: str | None,
        region: str | None,
        profile: str | None,
        no_sign: bool,
        **kwargs: Any,
    ) -> Any:
        with make_client(endpoint, access_key, secret_key, region, profile, no_sign) as client:
            return function(*args, client=client, **kwargs)

    for option in (
        click.option("--no-sign", is_flag=True, help="Send anonymous requests."),
        click.option("--profile", metavar="NAME", help="A profile of the profiles file. [CORDWOOD_PROFILE]"),
        click.option("--region", help="The region to sign for. [CORDWOOD_REGION; us-east-1]"),
        click.option("--secret-key", help="Better in the environment. [CORDWOOD_SECRET_KEY]"),
        click.option("--access-key", help="Together with --secret-key. [CORDWOOD_ACCESS_KEY]"),
        click.option("--endpoint", metavar="URL", help="The S3 endpoint. [CORDWOOD_ENDPOINT]"),
    ):
        wrapper = option(wrapper)
    return wrapper


def make_client(
    endpoint: str | None,
    access_key: str | None,
    secret_key: str | None,
    region: str | None,
    profile: str | None,
    no_sign: bool,
) -> Client:
    from cordwood.cli.client import Client
    from cordwood.cli.profiles import resolve

    target = resolve(
        os.environ,
        endpoint=endpoint,
        access_key=access_key,
        secret_key=secret_key,
        region=region,
        profile=profile,
        anonymous=no_sign,
    )
    return Client(target)
