"""`cordwood cat`, `stat` and `presign`: one object at a time.

Must not know: how requests are made.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import click

from cordwood.cli.common import client_command, duration_s, json_flag
from cordwood.cli.errors import UsageError
from cordwood.cli.output import human_size, print_json, printable
from cordwood.cli.uri import parse_object, parse_uri

if TYPE_CHECKING:
    from cordwood.cli.client import Client

_RANGE = re.compile(r"(\d+-\d*|-\d+)\Z")
_LONGEST_EXPIRY_S = 7 * 24 * 3600


@click.command()
@click.argument("uris", metavar="URI...", nargs=-1, required=True)
@click.option(
    "--range", "byte_range", default="", help="Bytes as in HTTP: 0-99, 100- or -100 (the last 100)."
)
@click.option("--version-id", default="", help="This version instead of the current one.")
@client_command
def cat(uris: tuple[str, ...], byte_range: str, version_id: str, client: Client) -> None:
    """Write objects to standard output. A whole object is verified; a mismatch is an error at its end."""
    from cordwood.cli.s3 import S3
    from cordwood.cli.streams import StreamDigest, stream_object

    byte_range = byte_range.removeprefix("bytes=")
    if byte_range and not _RANGE.match(byte_range):
        raise UsageError(f"--range {byte_range!r}: expected 0-99, 100- or -100")
    s3 = S3(client)
    out = sys.stdout.buffer
    for uri in [parse_object(text) for text in uris]:
        digest = StreamDigest()

        def take(block: memoryview, digest: StreamDigest = digest) -> None:
            digest.update(block)
            out.write(block)

        expect = None if byte_range else digest.expect
        stream_object(s3, uri, take=take, byte_range=byte_range, version_id=version_id, on_headers=expect)
        out.flush()
        digest.check(str(uri))


@click.command()
@click.argument("uri")
@click.option("--version-id", default="", help="This version instead of the current one.")
@json_flag
@client_command
def stat(uri: str, version_id: str, as_json: bool, client: Client) -> None:
    """Show the size, headers and metadata of an object, or that a bucket is there."""
    from cordwood.cli.s3 import S3

    place = parse_uri(uri)
    s3 = S3(client)
    headers = s3.head(place, version_id=version_id) if place.key else s3.head_bucket(place.bucket)
    shown = {name: value for name, value in headers.items() if name not in _OF_THE_CONNECTION}
    if as_json:
        metadata = {k[11:]: v for k, v in shown.items() if k.startswith("x-amz-meta-")}
        fields = {k: v for k, v in shown.items() if not k.startswith("x-amz-meta-")}
        size = {"size": int(shown["content-length"])} if place.key and "content-length" in shown else {}
        print_json({"uri": str(place), **size, "headers": fields, "metadata": metadata})
        return
    print(printable(str(place)))
    for name, value in sorted(shown.items()):
        more = f" ({human_size(int(value))})" if name == "content-length" and value.isdigit() else ""
        print(f"  {name}: {printable(value)}{more}")


# What belongs to this one answer and not to the object.
_OF_THE_CONNECTION = frozenset(
    {"connection", "keep-alive", "date", "server", "x-amz-request-id", "x-amz-id-2", "transfer-encoding"}
)


@click.command()
@click.argument("uri")
@click.option(
    "--expires",
    "--expires-in",
    callback=duration_s,
    default="1h",
    help="How long it works: 15m, 1h, 7d. [1h]",
)
@click.option(
    "--method", type=click.Choice(["GET", "HEAD", "PUT", "DELETE"], case_sensitive=False), default="GET"
)
@click.option("--version-id", default="", help="This version instead of the current one.")
@json_flag
@client_command
def presign(uri: str, expires: float, method: str, version_id: str, as_json: bool, client: Client) -> None:
    """Make a URL that lets anybody who has it read (or --method PUT: write) one object for a while."""
    place = parse_object(uri)
    seconds = int(expires)
    if not 1 <= seconds <= _LONGEST_EXPIRY_S:
        raise UsageError(f"--expires: a presigned URL lives from 1 second to 7 days, not {seconds} seconds")
    if client.target.is_anonymous:
        raise UsageError("presigning needs keys; leave --no-sign out")
    query = [("versionId", version_id)] if version_id else []
    url = client.presign(method.upper(), place.bucket, place.key, seconds, query)
    if as_json:
        print_json({"url": url, "method": method.upper(), "expires_s": seconds})
    else:
        print(url)
