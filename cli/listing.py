"""`cordwood ls`: buckets, folders and objects, as `aws s3 ls` shows them.

Must not know: how a listing is fetched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cordwood.cli.common import client_command, json_flag, recursive_flag
from cordwood.cli.errors import EXIT_FAILED
from cordwood.cli.output import human_size, local_time, print_json, printable, warn
from cordwood.cli.uri import parse_uri

if TYPE_CHECKING:
    from cordwood.cli.client import Client
    from cordwood.cli.s3 import Entry


@click.command()
@click.argument("uri", required=False)
@recursive_flag
@click.option("--human", "--human-readable", is_flag=True, help="Sizes as 1.5 KiB instead of bytes.")
@click.option("--summarize", is_flag=True, help="Count objects and bytes at the end.")
@json_flag
@client_command
def ls(uri: str | None, recursive: bool, human: bool, summarize: bool, as_json: bool, client: Client) -> int:
    """List buckets, or what begins with s3://BUCKET/PREFIX.

    The end of the prefix need not be a folder: `ls s3://b/da` also finds data/ and day.txt. Folders are shown as PRE;
    with --recursive, every key below. Exit code 1 when nothing was found.
    """
    from cordwood.cli.s3 import S3, Prefix

    s3 = S3(client)
    if uri is None:
        for bucket in s3.buckets():
            if as_json:
                print_json({"bucket": bucket.name, "created_s": bucket.created_s})
            else:
                print(f"{local_time(bucket.created_s)} {bucket.name}")
        return 0
    place = parse_uri(uri)
    folder = "" if recursive else place.key[: place.key.rfind("/") + 1]
    count = size = 0
    is_empty = True
    for item in s3.entries(place.bucket, place.key, delimiter="" if recursive else "/"):
        is_empty = False
        if isinstance(item, Prefix):
            if as_json:
                print_json({"prefix": item.prefix})
            else:
                print(f"{'PRE':>30} {printable(item.prefix[len(folder) :])}")
            continue
        count += 1
        size += item.size
        if as_json:
            print_json(_fields(item))
        else:
            shown = human_size(item.size) if human else str(item.size)
            print(f"{local_time(item.modified_s)} {shown:>10} {printable(item.key[len(folder) :])}")
    if summarize and not as_json:
        print(f"\nTotal objects: {count}\n   Total size: {human_size(size) if human else size}")
    if is_empty and place.key:
        warn(f"nothing begins with {place}")
        return EXIT_FAILED
    return 0


def _fields(entry: Entry) -> dict[str, object]:
    return {
        "key": entry.key,
        "size": entry.size,
        "etag": entry.etag,
        "modified_s": entry.modified_s,
        "storage_class": entry.storage_class,
    }
