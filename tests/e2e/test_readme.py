"""What the README says, typed as it stands there.

Must not know: anything that a newcomer does not read.
Invariant: every `sh` and `python` block of the README runs here, in order, in one folder; only the port is another one,
because the machine may have a server already.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.harness import Server, clean_environment, tool

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600), pytest.mark.xdist_group("readme")]

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(*languages: str) -> list[tuple[str, str]]:
    found = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [(language, text) for language, text in found if language in languages]


def set_up_commands() -> list[str]:
    [(_, text)] = blocks("console")
    return [line.removeprefix("$ ") for line in text.splitlines()]


def test_the_set_up_is_two_commands() -> None:
    first, second = set_up_commands()
    assert first.endswith("cordwood serve ./store")
    assert second == "./check"


def test_every_example_of_the_readme_works_in_order(tmp_path: Path) -> None:
    shutil.copy(ROOT / "README.md", tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    home = tmp_path / "home"
    home.mkdir()
    environment = clean_environment() | {"HOME": str(home), "XDG_CONFIG_HOME": str(home / ".config")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    server = Server(tmp_path / "store", tmp_path / "server.log")
    environment |= {"AWS_EC2_METADATA_DISABLED": "true"}
    command = [tool("cordwood"), "serve", "./store", "--bind", f"127.0.0.1:{server.port}"]
    with server.log.open("wb") as log:
        server.process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        server.wait_until_it_answers()
        credentials = server.directory / "credentials"
        assert stat.S_IMODE(credentials.stat().st_mode) == 0o600
        script = ["set -e"]
        for number, (language, text) in enumerate(blocks("sh", "python")):
            if language == "python":
                (tmp_path / f"{number}.py").write_text(text)
                text = f"python {number}.py\n"
            script.append(text.replace("127.0.0.1:9000", f"127.0.0.1:{server.port}"))
        done = subprocess.run(
            ["bash", "-c", "\n".join(script)], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0, f"{said}\n--- server\n{server.log_tail()}"
        assert "# Cordwood" in said
        assert "b'hello'" in said
        assert "24 b'written without a server'" in said
        assert (tmp_path / "copy-of-docs" / "design.md").read_bytes() == (
            ROOT / "docs" / "design.md"
        ).read_bytes()
        assert server.stop() == 0
    finally:
        if server.process is not None:
            server.kill()


def test_a_second_start_keeps_the_key_pair_and_does_not_print_the_secret_again(tmp_path: Path) -> None:
    environment = clean_environment() | {"HOME": str(tmp_path)}
    secrets, printed = [], []
    for number in range(2):
        server = Server(tmp_path / "store", tmp_path / f"{number}.log")
        with server.log.open("wb") as log:
            command = [tool("cordwood"), "serve", str(server.directory), "--bind", f"127.0.0.1:{server.port}"]
            server.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            server.wait_until_it_answers()
            server.wait_until_it_says("listening on")
            text = (server.directory / "credentials").read_text()
            secrets.append(text.split("aws_secret_access_key = ")[1].split()[0])
            assert server.stop() == 0
            printed.append(secrets[-1] in server.log_tail(1000))
        finally:
            if server.process is not None:
                server.kill()
    assert secrets[0] == secrets[1]
    assert printed == [True, False]
