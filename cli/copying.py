"""`cordwood cp` and `cordwood mv`: what goes where.

Must not know: how bytes move (transfer.py).

Invariants:
* As with `aws s3 cp`: a destination that ends in `/` (or is a directory, or a bucket) receives the source under its
  own name; with --recursive, what lies below the source lands below the destination, with the same layout.
* A key becomes a local path only when that stays below the destination: `..`, empty components and NUL are refused.
* Nothing is copied onto itself.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cordwood.cli.common import client_command, json_flag, recursive_flag
from cordwood.cli.errors import EXIT_FAILED, CliError, UsageError
from cordwood.cli.jobs import Job
from cordwood.cli.output import print_json, printable
from cordwood.cli.uri import S3Uri, is_s3, parse_uri

if TYPE_CHECKING:
    from cordwood.cli.client import Client
    from cordwood.cli.progress import Report
    from cordwood.cli.s3 import S3

_STDIO = "-"
Complain = Callable[[str], None]


def _copy_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        json_flag,
        click.option("-q", "--quiet", is_flag=True, help="Only errors; no bar, no summary."),
        click.option("-v", "--verbose", is_flag=True, help="One line per object."),
        click.option("-j", "--jobs", type=click.IntRange(1, 256), default=8, help="Transfers at once. [8]"),
        click.option("--dry-run", "--dryrun", is_flag=True, help="Only say what would be done."),
        click.option(
            "--checksum",
            type=click.Choice(["crc64nvme", "crc32c", "crc32"], case_sensitive=False),
            default="crc64nvme",
            help="What uploads are protected by. [crc64nvme]",
        ),
        click.option("--storage-class", help="For new objects."),
        click.option(
            "--metadata", multiple=True, metavar="NAME=VALUE", help="User metadata; may be repeated."
        ),
        click.option("--content-language"),
        click.option("--content-encoding"),
        click.option("--content-disposition"),
        click.option("--cache-control"),
        click.option("--content-type", help="Instead of guessing it from the name."),
        recursive_flag,
    ):
        function = option(function)
    return function


@click.command()
@click.argument("source")
@click.argument("destination")
@_copy_options
@client_command
def cp(source: str, destination: str, **options: Any) -> int:
    """Copy SOURCE to DESTINATION; one or both are s3://BUCKET/KEY, `-` is standard input or output.

    Large files move in parts, in parallel; everything is verified by its checksum. S3 to S3 is copied by the server.
    """
    return _transfer("copy", source, destination, **options)


@click.command()
@click.argument("source")
@click.argument("destination")
@_copy_options
@client_command
def mv(source: str, destination: str, **options: Any) -> int:
    """Copy SOURCE to DESTINATION, verify, and then delete SOURCE.

    Within one bucket of a Cordwood server nothing is copied: objects are renamed, and with --recursive all that lies
    below SOURCE in one step, with all versions, when nothing lies below DESTINATION. Options for new objects ask for
    copies.
    """
    if _STDIO in (source, destination):
        raise UsageError("standard input and output cannot be moved; use `cordwood cp`")
    return _transfer("move", source, destination, **options)


def _transfer(
    verb: str,
    source: str,
    destination: str,
    *,
    client: Client,
    recursive: bool,
    jobs: int,
    dry_run: bool,
    checksum: str,
    verbose: bool,
    quiet: bool,
    as_json: bool,
    **header_options: Any,
) -> int:
    from cordwood.cli.progress import Report
    from cordwood.cli.s3 import S3
    from cordwood.cli.transfer import Options, Transfers

    s3 = S3(client, checksum.upper())
    headers = _headers(header_options)
    if _STDIO in (source, destination):
        if recursive or dry_run:
            raise UsageError("standard input and output go without --recursive and --dry-run")
        if destination == _STDIO:
            return _to_stdout(s3, source)
    from_, to = _ends(source, destination)
    into = destination.endswith("/")
    report = Report(verb=verb, as_json=as_json, is_verbose=verbose, is_quiet=quiet, is_many=recursive)
    problems = 0

    def complain(message: str) -> None:
        nonlocal problems
        problems += 1
        report.failed("", message)

    is_move = verb == "move"
    renames = is_move and not headers and _has_rename(s3, from_, to)
    options = Options(jobs=jobs, headers=headers, deletes_source=is_move, renames=renames)
    with report:
        if renames and recursive and not dry_run and _rename_folder(s3, from_, to, report):
            return 0
        with Transfers(s3, options, report) as transfers:
            if source == _STDIO:
                assert isinstance(to, S3Uri)
                if to.is_folder:
                    raise UsageError(f"{to} is a folder; standard input needs the name of an object")
                transfers.submit_stream(sys.stdin.buffer, to)
            else:
                for job in _plan(s3, from_, to, into=into, recursive=recursive, complain=complain):
                    if dry_run:
                        _tell_dry(verb, job, as_json=as_json)
                    else:
                        transfers.submit(job)
    return EXIT_FAILED if transfers.failures or problems else 0


def _headers(options: dict[str, Any]) -> dict[str, str]:
    headers = {}
    for name in (
        "content_type",
        "cache_control",
        "content_disposition",
        "content_encoding",
        "content_language",
    ):
        if options[name]:
            headers[name.replace("_", "-")] = options[name]
    if options["storage_class"]:
        headers["x-amz-storage-class"] = options["storage_class"]
    for pair in options["metadata"]:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"--metadata {pair!r}: expected NAME=VALUE")
        headers[f"x-amz-meta-{name.lower()}"] = value
    return headers


def _tell_dry(verb: str, job: Job, *, as_json: bool) -> None:
    if as_json:
        print_json({verb: str(job.source), "to": str(job.to), "size": job.size, "dry_run": True})
    else:
        print(printable(f"(dry run) {verb}: {job.source} -> {job.to}"))


def _to_stdout(s3: S3, source: str) -> int:
    from cordwood.cli.streams import StreamDigest, stream_object

    if not is_s3(source):
        raise UsageError(f"{source!r} is not in S3; write s3://BUCKET/KEY, or use cat")
    place = parse_uri(source)
    digest = StreamDigest()
    out = sys.stdout.buffer

    def take(block: memoryview) -> None:
        digest.update(block)
        out.write(block)

    stream_object(s3, place, take=take, on_headers=digest.expect)
    out.flush()
    digest.check(str(place))
    return 0


# --- the plan -------------------------------------------------------------------------------------------------


def _ends(source: str, destination: str) -> tuple[Path | S3Uri, Path | S3Uri]:
    ends: list[Path | S3Uri] = [
        parse_uri(text) if is_s3(text) else Path(text) for text in (source, destination)
    ]
    if not any(isinstance(end, S3Uri) for end in ends):
        raise UsageError(f"neither {source!r} nor {destination!r} is in S3; write s3://BUCKET/KEY")
    if isinstance(ends[1], Path) and destination.endswith("/") and ends[1].exists() and not ends[1].is_dir():
        raise UsageError(f"{destination} is not a directory")
    return ends[0], ends[1]


def _plan(
    s3: S3, source: Path | S3Uri, to: Path | S3Uri, *, into: bool, recursive: bool, complain: Complain
) -> Iterator[Job]:
    """`into`: a local destination is meant as a directory, whether it is there or not."""
    if isinstance(source, Path):
        assert isinstance(to, S3Uri)
        return _upload_tree(source, to, complain) if recursive else _upload_one(source, to)
    if recursive:
        return _from_s3_tree(s3, source, to, complain)
    return _from_s3_one(s3, source, to, into=into)


def _upload_one(source: Path, to: S3Uri) -> Iterator[Job]:
    try:
        status = source.stat()
    except OSError as error:
        raise CliError(f"{source}: {error.strerror}") from None
    if stat.S_ISDIR(status.st_mode):
        raise UsageError(f"{source} is a directory; --recursive copies what is in it")
    target = to.below(_as_key(source.name)) if to.is_folder else to
    yield Job(source, target, status.st_size, modified_s=status.st_mtime)


def _upload_tree(source: Path, to: S3Uri, complain: Complain) -> Iterator[Job]:
    if not source.is_dir():
        raise CliError(
            f"{source} is not a directory" if source.exists() else f"{source}: No such file or directory"
        )
    base = to.as_folder()
    for path, status in _walk(str(source), complain, ()):
        relative = os.path.relpath(path, source).replace(os.sep, "/")
        try:
            yield Job(Path(path), base.below(_as_key(relative)), status.st_size, modified_s=status.st_mtime)
        except CliError as error:
            complain(str(error))


def _walk(
    folder: str, complain: Complain, above: tuple[tuple[int, int], ...]
) -> Iterator[tuple[str, os.stat_result]]:
    """All regular files, links followed, in the byte order of their keys; a link back to a folder above ends there."""
    try:
        here = os.stat(folder)
        with os.scandir(folder) as scan:
            entries = list(scan)
    except OSError as error:
        complain(f"{folder}: {error.strerror}")
        return
    if (here.st_dev, here.st_ino) in above:
        complain(f"{folder}: a link to a directory above it; skipped")
        return
    inside = (*above, (here.st_dev, here.st_ino))
    stats: list[tuple[bytes, str, os.stat_result]] = []
    for entry in entries:
        try:
            status = entry.stat()
        except OSError as error:
            complain(f"{entry.path}: {error.strerror}")
            continue
        slash = b"/" if stat.S_ISDIR(status.st_mode) else b""
        stats.append((os.fsencode(entry.name) + slash, entry.path, status))
    for _, path, status in sorted(stats, key=lambda row: row[0]):
        if stat.S_ISDIR(status.st_mode):
            yield from _walk(path, complain, inside)
        elif stat.S_ISREG(status.st_mode):
            yield path, status
        else:
            complain(f"{path}: not a regular file; skipped")


def _as_key(relative: str) -> str:
    try:
        relative.encode("utf-8")
    except UnicodeEncodeError:
        raise CliError(f"{relative!r} is not valid UTF-8 and cannot be a key; rename the file") from None
    return relative


def _has_rename(s3: S3, source: Path | S3Uri, to: Path | S3Uri) -> bool:
    """Within one bucket, and asked of the server itself: see `S3.rename`."""
    if not isinstance(source, S3Uri) or not isinstance(to, S3Uri) or source.bucket != to.bucket:
        return False
    from cordwood.cli.client import ServiceError

    try:
        return s3.head_bucket(source.bucket).get("server") == "Cordwood"
    except ServiceError:
        return False


def _rename_folder(s3: S3, source: Path | S3Uri, to: Path | S3Uri, report: Report) -> bool:
    """All that lies below `source` in one step. False where the server says that it cannot be: then one by one."""
    assert isinstance(source, S3Uri) and isinstance(to, S3Uri)
    source, to = source.as_folder(), to.as_folder()
    if not source.key or not to.key:
        return False  # the bucket itself has no name to be given
    from cordwood.cli.client import ServiceError

    try:
        s3.rename(source, to)
    except ServiceError:
        return False
    report.renamed(source, to)
    return True


def _from_s3_one(s3: S3, source: S3Uri, to: Path | S3Uri, *, into: bool) -> Iterator[Job]:
    if source.is_folder:
        raise UsageError(f"{source} is a folder; --recursive copies what lies below it")
    headers = s3.head(source)
    if isinstance(to, S3Uri):
        target: Path | S3Uri = to.below(source.name) if to.is_folder else to
    else:
        target = _local(to, source.name, source) if into or to.is_dir() else to
    if target == source:
        raise UsageError(f"{source} cannot be copied onto itself")
    from email.utils import parsedate_to_datetime

    modified = headers.get("last-modified", "")
    yield Job(
        source,
        target,
        int(headers.get("content-length", "0")),
        headers.get("etag", "").strip('"'),
        parsedate_to_datetime(modified).timestamp() if modified else 0.0,
    )


def _from_s3_tree(s3: S3, source: S3Uri, to: Path | S3Uri, complain: Complain) -> Iterator[Job]:
    base = source.as_folder()
    if isinstance(to, S3Uri):
        to = to.as_folder()
        if to.bucket == base.bucket and to.key.startswith(base.key):
            raise UsageError(f"{to} lies inside {base}; copying it there would never end")
    elif to.exists() and not to.is_dir():
        raise UsageError(f"{to} is not a directory")
    is_empty = True
    for entry in s3.objects(base.bucket, base.key):
        is_empty = False
        here = S3Uri(base.bucket, entry.key)
        relative = entry.key[len(base.key) :]
        try:
            if isinstance(to, S3Uri):
                target: Path | S3Uri = to.below(relative)
            elif entry.key.endswith("/") and entry.size == 0:
                _local(to, relative.rstrip("/") or ".", here).mkdir(
                    parents=True, exist_ok=True
                )  # a folder marker
                continue
            else:
                target = _local(to, relative, here)
        except CliError as error:
            complain(str(error))
            continue
        yield Job(here, target, entry.size, entry.etag, entry.modified_s)
    if is_empty:
        raise CliError(f"nothing lies below {base}")


def _local(folder: Path, relative: str, source: S3Uri) -> Path:
    """`relative` below `folder`, or an error: keys may hold what would lead elsewhere."""
    components = relative.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in components):
        raise CliError(
            f"{source} cannot become a file name below {folder}; copy it alone, under another name"
        )
    return folder.joinpath(*components)
