"""How quickly the command line is there, and what it must not import for that."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

from tests.cli.harness import command, environment

HEAVY = ("rich", "httpx", "trio", "awscrt", "http.client", "cordwood.server", "cordwood.engine")


def imported_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sys.modules, sep='\\n')"
    return set(
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        ).stdout.split()
    )


def test_the_top_of_the_command_line_imports_nothing_heavy() -> None:
    assert not imported_by("import cordwood.cli.main") & set(HEAVY)


def test_the_commands_import_neither_the_server_nor_a_progress_bar() -> None:
    modules = imported_by("from cordwood.cli import buckets, copying, listing, objects, removing, transfer")
    assert not modules & {"rich", "httpx", "trio", "cordwood.server.main", "cordwood.engine"}


def test_the_version_is_shown_within_a_tenth_of_a_second(tmp_path: Path) -> None:
    """In CPU time, the best of several runs: what the program needs, not what else the machine is doing."""
    took_s = []
    for _ in range(8):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command("--version"), capture_output=True, text=True, env=environment(tmp_path))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.returncode == 0 and done.stdout.startswith("cordwood ")
    assert min(took_s) < 0.1, took_s


def test_help_lists_every_command_and_each_has_help_of_its_own(tmp_path: Path) -> None:
    shown = subprocess.run(
        command("--help"), capture_output=True, text=True, env=environment(tmp_path)
    ).stdout
    for name in ("serve", "ls", "cp", "mv", "rm", "mb", "rb", "cat", "stat", "presign", "speedtest"):
        assert f"\n  {name} " in shown
    done = subprocess.run(command("serve", "-h"), capture_output=True, text=True, env=environment(tmp_path))
    assert "--stop-timeout SECONDS" in done.stdout and "CORDWOOD_STOP_TIMEOUT" in done.stdout


def test_a_reader_that_has_had_enough_is_no_error_message(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command("serve", "x", "--show-settings"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(tmp_path),
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    process.wait(20)
    assert error == b""
