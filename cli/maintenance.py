"""`compact`, `fsck`, `rebuild`, `scrub`, `dump`: what an operator does with a store's directory, and how it is told.

Must not know: how any of it is done; that is the engine's.

Invariants: with --json stdout holds JSON lines and nothing else; a bar is only drawn on a terminal, to stderr. `fsck`
ends as fsck(8) has it: 0 clean, 1 repaired, 4 left uncorrected, 8 could not be done.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cordwood.cli.common import json_flag
from cordwood.cli.errors import EXIT_FAILED, CliError
from cordwood.cli.output import human_size, local_time, print_json, printable, warn

if TYPE_CHECKING:
    from cordwood.engine import CheckReport, CompactionReport, ScrubStatus

FSCK_REPAIRED = 1
FSCK_UNCORRECTED = 4
FSCK_FAILED = 8
_SHOWN_MAX = 50

directory_argument = click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))


def size_bytes(_ctx: click.Context, _param: click.Parameter, value: str) -> int:
    """A click callback: "100MiB" -> 104857600."""
    from cordwood.server.units import parse_size

    try:
        return parse_size(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r}: {error}") from None


@contextmanager
def engine_errors(exit_code: int = EXIT_FAILED) -> Iterator[None]:
    """What the engine refuses or the disk fails becomes one line and an exit code."""
    from cordwood.engine import CordwoodError

    try:
        yield
    except BrokenPipeError:
        raise
    except (CordwoodError, OSError) as error:
        raise CliError(str(error), exit_code) from None


@contextmanager
def bar(*, is_wanted: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A function to be told (phase, done, total); draws a bar on stderr when that is a terminal."""
    if not is_wanted or not sys.stderr.isatty():
        yield lambda _phase, _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        tasks: dict[str, Any] = {}

        def tell(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = progress.add_task(phase, total=total)
            progress.update(tasks[phase], completed=done, total=total)

        yield tell


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C asks to stop in good order; the second one stops at once."""
    asked: list[int] = []

    def ask(_number: int, _frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(1)
        warn("stopping after what is under way; press Ctrl-C again to stop at once")

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)


# --- compact --------------------------------------------------------------------------------------------------


@click.command()
@directory_argument
@click.option(
    "--threshold", type=click.FloatRange(0, 1), help="Take volumes with this share dead. [all: 0.01]"
)
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option(
    "--abort-uploads-older-than",
    metavar="DURATION",
    default=None,
    help="Abort multipart uploads in which nothing happened for so long (24h, 7d). [leave them]",
)
@click.option(
    "--rate", default="0", callback=size_bytes, metavar="SIZE", help="Bytes per second at most. [no limit]"
)
@click.option(
    "--volume-size", default="1GiB", callback=size_bytes, metavar="SIZE", help="Size of new volumes. [1GiB]"
)
@json_flag
def compact(
    directory: Path,
    threshold: float | None,
    dry_run: bool,
    abort_uploads_older_than: str | None,
    rate: int,
    volume_size: int,
    as_json: bool,
) -> None:
    """Give back the space of what was deleted, in a store that nobody has open.

    The server does this by itself while it runs; this command does it at once and completely. The live records of
    volumes with dead ones in them are copied, the copies verified, the volumes removed; the index is rewritten without
    its free pages. Needs room for one volume. May be interrupted at any time.
    """
    from cordwood.engine import CompactionPolicy
    from cordwood.engine import compact as compact_store
    from cordwood.server.units import parse_duration_s

    try:
        older_s = None if abort_uploads_older_than is None else parse_duration_s(abort_uploads_older_than)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--abort-uploads-older-than") from None
    policy = CompactionPolicy(
        threshold=threshold if threshold is not None else 0.01,
        min_dead_bytes=1,
        grace_s=0,
        full=threshold is None,
        dry_run=dry_run,
        rate_bytes_s=rate,
        volume_size=volume_size,
    )
    with (
        engine_errors(),
        bar(is_wanted=not as_json) as tell,
        stop_on_interrupt() as should_stop,
    ):
        report = compact_store(
            directory,
            policy,
            abandoned_after_s=older_s,
            progress=lambda done, total: tell("compact", done, total),
            should_stop=should_stop,
        )
    if as_json:
        print_json({**asdict(report), "bytes_reclaimed": report.bytes_reclaimed})
    else:
        _print_compaction(report)
    if report.lost:
        raise CliError(
            f"{len(report.lost)} records could not be read; their volumes are kept and quarantined. "
            "`cordwood fsck --data` names what is damaged"
        )


def _print_compaction(report: CompactionReport) -> None:
    would = "would be compacted" if report.dry_run else "compacted"
    print(f"{len(report.victims)} of {report.volumes_examined} volumes {would}", end="")
    print(f": {', '.join(map(str, report.victims))}" if report.victims else "")
    if report.uploads_aborted:
        print(f"{report.uploads_aborted} abandoned multipart uploads {'would be ' * report.dry_run}aborted")
    if report.dry_run:
        return
    print(
        f"{report.records_copied} records ({human_size(report.bytes_copied)}) copied; "
        f"{report.tombstones_copied} tombstones kept, {report.tombstones_dropped} dropped"
    )
    before, after = human_size(report.bytes_before), human_size(report.bytes_after)
    print(f"volumes: {before} before, {after} after, in {report.seconds:.1f} s")
    for volume, why in report.kept.items():
        print(f"volume {volume} is kept: {why}")
    for text in report.lost[:_SHOWN_MAX]:
        print(f"lost: {printable(text)}")
    if not report.is_complete:
        print("stopped before the end; run it again to go on")


# --- fsck, rebuild --------------------------------------------------------------------------------------------


@click.command()
@directory_argument
@click.option("--data", is_flag=True, help="Read every body too, and verify its CRC and digest.")
@click.option("--repair", is_flag=True, help="Fix what can be fixed, and say what was done.")
@json_flag
def fsck(directory: Path, data: bool, repair: bool, as_json: bool) -> int:
    """Check a store that nobody has open.

    Exit status as in fsck(8): 0 nothing is wrong, 1 something was and has been repaired, 4 something is wrong and was
    left, 8 the check could not be done.
    """
    from cordwood.engine import check_store

    with engine_errors(FSCK_FAILED), bar(is_wanted=not as_json) as tell:
        report = check_store(directory, data=data, repair=repair, progress=tell)
    if as_json:
        _print_check_json(report)
    else:
        _print_check(report, directory, is_repair=repair)
    if report.is_clean:
        return 0
    return FSCK_UNCORRECTED if report.uncorrected else FSCK_REPAIRED


def _print_check_json(report: CheckReport) -> None:
    for problem in report.problems:
        print_json(asdict(problem))
    summary = {name: value for name, value in asdict(report).items() if name != "problems"}
    summary["problems"] = len(report.problems) + report.more_problems
    print_json({**summary, "is_clean": report.is_clean, "uncorrected": report.uncorrected})


def _print_check(report: CheckReport, directory: Path, *, is_repair: bool) -> None:
    for problem in report.problems[:_SHOWN_MAX]:
        fixed = " (repaired)" if problem.is_fixed else ""
        print(f"{problem.kind}: {printable(problem.where)} {printable(problem.text)}{fixed}")
    hidden = len(report.problems) + report.more_problems - _SHOWN_MAX
    if hidden > 0:
        print(f"… and {hidden} more; --json shows all")
    for text in report.notes[:_SHOWN_MAX]:
        print(f"note: {printable(text)}")
    for text in report.repairs:
        print(f"repair: {printable(text)}")
    figures = f"{report.volumes} volumes, {report.records} records, {human_size(report.bytes_read)}"
    print(f"{directory}: {figures} in {report.seconds:.1f} s: ", end="")
    if report.is_clean:
        print("clean")
    elif not report.uncorrected:
        print(f"{len(report.problems)} problems, all repaired")
    elif is_repair:
        print(f"{report.uncorrected} problems left uncorrected")
    else:
        print(f"{report.uncorrected} problems; `cordwood fsck --repair` fixes what can be fixed")


@click.command()
@directory_argument
@json_flag
def rebuild(directory: Path, as_json: bool) -> None:
    """Make a new index from the volumes alone, and put it in the place of the old one.

    Nothing is lost with an index: the volumes hold everything. Nobody may have the store open meanwhile.
    """
    from cordwood.engine import rebuild as rebuild_store

    with engine_errors(), bar(is_wanted=not as_json) as tell:
        cpu_s = time.process_time()
        report = rebuild_store(directory, progress=lambda done, total: tell("rebuild", done, total))
        cpu_s = time.process_time() - cpu_s
    speed = report.records / max(report.seconds, 1e-9)
    if as_json:
        fields = {name: value for name, value in asdict(report).items() if name != "missing"}
        missing = [ref.id.hex() for ref in report.missing]
        print_json({**fields, "missing": missing, "records_per_s": speed, "cpu_seconds": cpu_s})
    else:
        print(
            f"{report.records} records of {report.volumes} volumes in {report.seconds:.1f} s "
            f"({speed:,.0f} records/s)"
        )
        for volume, why in report.left_out.items():
            warn(f"volume {volume} was left out: {why}")
        for text in report.unreadable[:_SHOWN_MAX]:
            warn(text)
    if report.left_out or report.missing or report.unreadable:
        raise CliError("something is missing from the volumes; `cordwood fsck --data` names it")


# --- scrub ----------------------------------------------------------------------------------------------------


@click.command()
@directory_argument
@click.option("--status", is_flag=True, help="Show what scrubbing has found so far, and read nothing.")
@click.option(
    "--rate", default="0", callback=size_bytes, metavar="SIZE", help="Bytes per second at most. [no limit]"
)
@json_flag
def scrub(directory: Path, status: bool, rate: int, as_json: bool) -> int:
    """Read everything and verify it, beside a running server if there is one. Exit status 1 when something is bad.

    The server does this slowly all the time; `--status` shows how far it is.
    """
    from cordwood.engine import Maintenance, scrub_status

    with engine_errors():
        if status:
            found = scrub_status(directory)
            if found is None:
                raise CliError(f"{directory} was never scrubbed; `cordwood scrub {directory}` does it now")
        else:
            with (
                bar(is_wanted=not as_json) as tell,
                stop_on_interrupt() as should_stop,
                Maintenance.open(directory) as store,
            ):
                scrubber = store.scrubber(should_stop=should_stop, rate_bytes_s=rate)
                found = scrubber.run_cycle(lambda done, total: tell("scrub", done, total))
    if as_json:
        print_json(asdict(found))
    else:
        _print_scrub(found)
    return EXIT_FAILED if found.bad else 0


def _print_scrub(status: ScrubStatus) -> None:
    if status.last_cycle_ended_ms:
        print(
            f"last full cycle: ended {local_time(status.last_cycle_ended_ms / 1000)}, "
            f"{human_size(status.last_cycle_bytes)} read"
        )
    if status.cycle_bytes:
        print(
            f"present cycle: {human_size(status.cycle_bytes)} of {human_size(status.total_bytes)} "
            f"since {local_time(status.cycle_started_ms / 1000)}"
        )
    for bad in status.bad[:_SHOWN_MAX]:
        print(f"bad: volume {bad.volume} offset {bad.offset}: {bad.why}: {printable(bad.name)}")
    print(f"{len(status.bad)} bad records" if status.bad else "nothing bad was found")


# --- dump -----------------------------------------------------------------------------------------------------


@click.command()
@click.argument("volume", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--chunks", is_flag=True, help="List the chunks of each large object too.")
@json_flag
def dump(volume: Path, chunks: bool, as_json: bool) -> None:
    """Print the records of one volume file, as lines for a person or as JSON lines."""
    from cordwood.engine import dump_volume

    with engine_errors():
        for record in dump_volume(volume, chunks=chunks):
            if as_json:
                print_json(record)
            else:
                print(_record_line(record))


def _record_line(record: dict[str, Any]) -> str:
    front = f"{record['offset']:>12} {record['length']:>9} {record['type']:<10}"
    if record["type"] in ("DAMAGE", "ROOM"):
        return f"{front} {record['why']}"
    if record["type"] == "SUPERBLOCK":
        return f"{front} volume {record['volume']} of store {record['store']}, node {record['node']}"
    what = record.get("chunk") or record.get("error") or ""
    head = record.get("head", {})
    if not what:
        what = " ".join(f"{name}={value}" for name, value in head.items() if value not in ("", 0, {}, False))
    more = "+" if "MORE" in record["flags"] else " "
    lines = [f"{front}{more}{local_time(record['time_ms'] / 1000)} {record['clock']:016x} {printable(what)}"]
    lines += [
        f"{'':>33} chunk {each['id']} {each['length']} bytes, was at volume {each['volume']} offset {each['offset']}"
        for each in record.get("chunks", [])
    ]
    return "\n".join(lines)
