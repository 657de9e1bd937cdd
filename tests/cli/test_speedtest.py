"""`speedtest`: it measures, is bounded, tells the truth about failures, and leaves nothing behind."""

from __future__ import annotations

import signal
import subprocess
import time

from tests.cli.harness import Person, Served, command, environment, eventually

QUICK = ("--seconds", "0.3", "--concurrency", "1,4", "--sizes", "4KiB,1MiB")


def test_every_operation_is_measured_and_nothing_is_left(person: Person, server: Served) -> None:
    rows = person.run("speedtest", *QUICK, "--json").rows()
    measured = {(row["operation"], row["size"], row["connections"]) for row in rows}
    for connections in (1, 4):
        for size in (4096, 1 << 20):
            for operation in ("PUT", "GET", "HEAD", "DELETE"):
                assert (operation, size, connections) in measured
        assert ("LIST", 4096, connections) in measured
    for row in rows:
        assert row["failed"] == 0 and row["requests"] > 0, row
        assert 0 < row["p50_ms"] <= row["p99_ms"] and row["ops_per_s"] > 0 and row["client_cpu_us"] > 0
        assert row["seconds"] < 5
    assert "speedtest" not in person.run("ls").out


def test_two_endpoints_are_compared_in_turn(person: Person, server: Served) -> None:
    shown = person.run(
        "speedtest", "--seconds", "0.2", "--concurrency", "2", "--sizes", "1KiB", "--compare", server.url
    ).out
    lines = [line for line in shown.splitlines() if line.startswith(("A ", "B "))]
    assert [line.split()[:2] for line in lines[:4]] == [
        ["A", "PUT"],
        ["B", "PUT"],
        ["A", "GET"],
        ["B", "GET"],
    ]
    assert shown.count("x the speed of B") == 5


def test_several_processes_share_the_load(person: Person, server: Served) -> None:
    rows = person.run(
        "speedtest", "--seconds", "0.2", "--concurrency", "4", "--sizes", "1KiB", "--processes", "2", "--json"
    ).rows()
    assert {row["operation"] for row in rows} == {"PUT", "GET", "HEAD", "LIST", "DELETE"}
    assert all(row["failed"] == 0 for row in rows)
    assert "speedtest" not in person.run("ls").out


def test_a_case_beyond_the_budget_is_left_out_and_said(person: Person, server: Served) -> None:
    done = person.run("speedtest", "--sizes", "1MiB", "--concurrency", "64", "--budget", "10MiB", "--json")
    assert done.out == "" and "--budget 10MiB" in done.err


def test_an_interrupted_speed_test_removes_its_bucket(person: Person, server: Served) -> None:
    process = subprocess.Popen(
        command("speedtest", "--sizes", "1KiB", "--seconds", "30"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(person.home),
    )
    eventually(lambda: "speedtest" in person.run("ls").out)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert "speedtest" not in person.run("ls").out
