"""`cordwood`: the group of all commands, and the one place where errors become exit codes.

Must not know: what a command does. Commands live in one module per family and are imported when they are called.

Invariants: importing this module imports click and nothing heavier (`cordwood --version` stays under 100 ms; a test
measures it). Exit codes: 0 done, 1 failed or not found, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import NoReturn

import click

from cordwood.cli.errors import EXIT_FAILED, EXIT_INTERRUPTED, CliError

# name -> (module, what --help says of it); the function in the module has the command's name.
_COMMANDS = {
    "serve": ("serve", "Run an S3 server over a store directory."),
    "ls": ("listing", "List buckets, or keys below s3://BUCKET/PREFIX."),
    "cp": ("copying", "Copy files and objects: local to S3, S3 to local, S3 to S3."),
    "mv": ("copying", "Copy, verify, and then delete the source."),
    "rm": ("removing", "Delete objects."),
    "mb": ("buckets", "Make a bucket."),
    "rb": ("buckets", "Remove a bucket."),
    "cat": ("objects", "Write an object to standard output."),
    "stat": ("stat", "Show an object, or the shape of the store in a directory."),
    "presign": ("objects", "Make a URL that works without keys for a while."),
    "speedtest": ("speedtest", "Measure an S3 endpoint."),
    "keys": ("keys", "List or add the keys of a key file, for encryption."),
    "compact": ("maintenance", "Give back the space of what was deleted, in a store at rest."),
    "fsck": ("maintenance", "Check a store at rest, and repair it."),
    "rebuild": ("maintenance", "Make a new index from the volumes alone."),
    "scrub": ("maintenance", "Read everything and verify it, or show what that found."),
    "dump": ("maintenance", "Print the records of one volume file."),
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"cordwood.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click's own, but from the table: --help imports no command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], _COMMANDS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"no such command {args[0]!r}{hint}")
        return super().resolve_command(ctx, args)


def _show_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"cordwood {version('cordwood')}")
        ctx.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version.",
)
def cordwood() -> None:
    """An append-only, log-structured object store that speaks S3.

    The client commands work with any S3 endpoint. They find it in --endpoint, CORDWOOD_ENDPOINT, the profile that
    `cordwood serve` wrote on this machine, or AWS_ENDPOINT_URL, in this order.
    """


def main() -> NoReturn:
    try:
        code = cordwood.main(prog_name="cordwood", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Abort:
        _leave(EXIT_INTERRUPTED, "interrupted")
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except CliError as error:
        _leave(error.exit_code, str(error))
    except KeyboardInterrupt:
        _leave(EXIT_INTERRUPTED, "interrupted")
    except BrokenPipeError:
        # `cordwood ls | head`: whoever read has had enough. Python would complain again while closing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED)
    sys.exit(code if isinstance(code, int) else 0)


def _leave(code: int, message: str) -> NoReturn:
    print(f"cordwood: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
