"""`cordwood rm`, and deleting many objects at once.

Must not know: how requests are made.
Invariant: without --recursive exactly one object is deleted; with it, what lies below a folder, never a sibling whose
name only begins alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING

import click

from cordwood.cli.common import client_command, json_flag, recursive_flag
from cordwood.cli.errors import EXIT_FAILED, UsageError
from cordwood.cli.output import print_json, printable, warn
from cordwood.cli.uri import S3Uri, parse_uri

if TYPE_CHECKING:
    from cordwood.cli.client import Client
    from cordwood.cli.s3 import S3

_PER_REQUEST = 1000
_AT_ONCE = 4


@click.command()
@click.argument("uris", metavar="URI...", nargs=-1, required=True)
@recursive_flag
@click.option("--dry-run", "--dryrun", is_flag=True, help="Only say what would be deleted.")
@click.option("--version-id", default="", help="Delete this version for good.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing about what went well.")
@json_flag
@client_command
def rm(
    uris: tuple[str, ...],
    recursive: bool,
    dry_run: bool,
    version_id: str,
    quiet: bool,
    as_json: bool,
    client: Client,
) -> int:
    """Delete objects. Nobody is asked; --dry-run shows beforehand what would go.

    As in S3, deleting what is not there is no error.
    """
    from cordwood.cli.s3 import S3

    s3 = S3(client)
    failures: list[str] = []
    places = [parse_uri(text) for text in uris]
    if recursive and version_id:
        raise UsageError("--version-id names one version of one object; it does not go with --recursive")
    for place in places:
        if not recursive and place.is_folder:
            raise UsageError(f"{place} is a folder; --recursive deletes what lies below it")

    def tell(uri: S3Uri) -> None:
        if as_json:
            print_json({"deleted": str(uri), "dry_run": dry_run})
        elif not quiet:
            print(f"{'(dry run) ' if dry_run else ''}delete: {printable(str(uri))}")

    for place in places:
        if not recursive:
            if not dry_run:
                s3.delete(place, version_id=version_id)
            tell(place)
            continue
        keys = ((entry.key, "") for entry in s3.objects(place.bucket, place.as_folder().key))
        if dry_run:
            for key, _ in keys:
                tell(S3Uri(place.bucket, key))
        else:
            failures += delete_all(s3, place.bucket, keys, tell)
    for failure in failures:
        warn(printable(failure))
    return EXIT_FAILED if failures else 0


def delete_all(
    s3: S3, bucket: str, names: Iterable[tuple[str, str]], tell: Callable[[S3Uri], None] = lambda uri: None
) -> list[str]:
    """Delete (key, version id) pairs, a thousand at a time, some requests at once; returns the failures."""
    from concurrent.futures import ThreadPoolExecutor

    from cordwood.cli.s3 import needs_single_delete

    failures: list[str] = []
    iterator = iter(names)

    def one(batch: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], list[str]]:
        plain = [pair for pair in batch if not needs_single_delete(pair[0])]
        failed = s3.delete_many(bucket, plain) if plain else []
        for key, version_id in batch:
            if needs_single_delete(key):
                s3.delete(S3Uri(bucket, key), version_id=version_id)
        return batch, failed

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        while round_ := [batch for _ in range(_AT_ONCE) if (batch := list(islice(iterator, _PER_REQUEST)))]:
            for batch, failed in pool.map(one, round_):
                failures += failed
                if not failed:
                    for key, _ in batch:
                        tell(S3Uri(bucket, key))
    return failures
