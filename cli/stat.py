"""`cordwood stat`: of an object, by its s3:// URI; or of a whole store, by its directory.

Must not know: how either is found out.
Invariant: only what begins with s3:// is looked for over the network.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from cordwood.cli.common import json_flag
from cordwood.cli.output import human_size, print_json


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def stat(arguments: tuple[str, ...]) -> object:
    """Show an object (s3://BUCKET/KEY), or the shape of the store in DIR."""
    from cordwood.cli.objects import stat as stat_object

    is_object = any(argument.startswith("s3://") for argument in arguments)
    wants_help = not arguments or "--help" in arguments or "-h" in arguments
    if is_object or not wants_help:
        command: click.Command = stat_object if is_object else stat_store
        return command.main(list(arguments), prog_name="cordwood stat", standalone_mode=False)
    for command in (stat_store, stat_object):
        with click.Context(command, info_name="cordwood stat") as context:
            click.echo(command.get_help(context) + "\n")
    return 0


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@json_flag
def stat_store(directory: Path, as_json: bool) -> None:
    """Show the shape of a store, also while it is in use: objects, live and dead bytes, volumes, index."""
    from cordwood.cli.maintenance import engine_errors
    from cordwood.engine import measure_store

    with engine_errors():
        figures = measure_store(directory)
    derived = {
        "dead_bytes": figures.dead_bytes,
        "dedup_ratio": round(figures.dedup_ratio, 4),
        "index_bytes_per_object": round(figures.index_bytes_per_object, 1),
    }
    if as_json:
        print_json({**asdict(figures), **derived})
        return
    dead_share = figures.dead_bytes / figures.volume_bytes if figures.volume_bytes else 0
    states: dict[str, int] = {}
    for volume in figures.volumes:
        states[volume.state] = states.get(volume.state, 0) + 1
    rows = [
        ("buckets", f"{figures.buckets}"),
        ("objects", f"{figures.objects} ({human_size(figures.object_bytes)} with all versions)"),
        (
            "noncurrent versions",
            f"{figures.noncurrent_versions}, and {figures.delete_markers} delete markers",
        ),
        ("directories", f"{figures.directories}"),
        ("multipart uploads", f"{figures.uploads} open, {figures.parts} parts"),
        ("messages", f"{figures.messages} waiting for their targets"),
        (
            "chunks",
            f"{figures.chunks} ({human_size(figures.chunk_bytes)}), dedup ratio {figures.dedup_ratio:.2f}",
        ),
        ("volumes", ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none"),
        ("volume bytes", human_size(figures.volume_bytes)),
        ("  live", human_size(figures.live_bytes)),
        ("  dead", f"{human_size(figures.dead_bytes)} ({dead_share:.0%})"),
        (
            "index",
            f"{human_size(figures.index_used_bytes)}, {figures.index_bytes_per_object:.0f} bytes per object",
        ),
    ]
    for name, value in rows:
        print(f"{name:20} {value}")
