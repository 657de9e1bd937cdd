"""`cordwood mb` and `cordwood rb`.

Must not know: how requests are made. Invariant: `rb` without --force removes nothing but an empty bucket.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cordwood.cli.common import client_command, json_flag
from cordwood.cli.errors import CliError
from cordwood.cli.output import print_json
from cordwood.cli.uri import S3Uri, parse_bucket

if TYPE_CHECKING:
    from cordwood.cli.client import Client
    from cordwood.cli.s3 import S3


@click.command()
@click.argument("bucket")
@json_flag
@client_command
def mb(bucket: str, as_json: bool, client: Client) -> None:
    """Make the bucket s3://BUCKET."""
    from cordwood.cli.s3 import S3

    name = parse_bucket(bucket)
    S3(client).make_bucket(name)
    _say(as_json, "made", name)


@click.command()
@click.argument("bucket")
@click.option(
    "--force", is_flag=True, help="First delete everything in it: objects, versions, unfinished uploads."
)
@json_flag
@client_command
def rb(bucket: str, force: bool, as_json: bool, client: Client) -> None:
    """Remove the bucket s3://BUCKET."""
    from cordwood.cli.client import ServiceError
    from cordwood.cli.s3 import S3

    name = parse_bucket(bucket)
    s3 = S3(client)
    if force:
        _empty(s3, name)
    try:
        s3.remove_bucket(name)
    except ServiceError as error:
        if error.code != "BucketNotEmpty":
            raise
        raise CliError(f"s3://{name} is not empty; --force deletes what it holds") from None
    _say(as_json, "removed", name)


def _empty(s3: S3, bucket: str) -> None:
    from cordwood.cli.client import ServiceError
    from cordwood.cli.removing import delete_all
    from cordwood.cli.s3 import Upload

    failures = delete_all(s3, bucket, ((entry.key, "") for entry in s3.objects(bucket)))
    try:
        failures += delete_all(s3, bucket, s3.versions(bucket))
    except ServiceError as error:
        if error.code != "NotImplemented":  # an endpoint without versioning has no versions to delete
            raise
    for key, upload_id in s3.uploads(bucket):
        s3.abort(Upload(S3Uri(bucket, key), upload_id, ""))
    if failures:
        raise CliError(f"s3://{bucket} could not be emptied: {failures[0]}")


def _say(as_json: bool, what: str, bucket: str) -> None:
    if as_json:
        print_json({what: bucket})
    else:
        print(f"{what} s3://{bucket}")
