"""What docs/operations.md says of clients, typed as it stands there.

Invariant: every `sh`, `python` and `js` block of the section runs here, behind the first one, which sets the
environment, in a folder of its own; only the port is another one.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import Server, clean_environment, tool
from tests.e2e.installed import javascript_packages, missing, packages_apart

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
SECTION = PAGE.split("\n## Clients\n")[1].split("\n## ")[0]
NEEDS = {"restic": "restic", "curl": "curl", "JavaScript": "node"}
Block = tuple[str, str]


def recipes() -> dict[str, list[Block]]:
    """Heading -> blocks; what stands before the first heading has the heading ""."""
    found: dict[str, list[Block]] = {}
    for part in SECTION.split("\n### "):
        heading, _, text = part.partition("\n") if found else ("", "", part)
        blocks = re.findall(r"^```(sh|python|js)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        found[heading.strip()] = blocks
    return found


RECIPES = recipes()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """As an operator has it: one key pair, made at the first start, in store/credentials."""
    base = tmp_path_factory.mktemp("recipes")
    server = Server(base / "store", base / "server.log")
    environment = clean_environment() | {"HOME": str(base)}
    command = [tool("cordwood"), "serve", "store", "--bind", f"127.0.0.1:{server.port}", "--workers", "2"]
    with server.log.open("wb") as log:
        server.process = subprocess.Popen(
            command, cwd=base, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        server.wait_until_it_answers()
        yield server
    finally:
        server.kill()


@pytest.mark.parametrize("heading", [name for name in RECIPES if name])
def test_every_recipe_works_as_it_is_typed(served: Server, tmp_path: Path, heading: str) -> None:
    if reason := missing(NEEDS[heading]) if heading in NEEDS else "":
        pytest.skip(reason)
    (tmp_path / "store").symlink_to(served.directory)
    (tmp_path / "hello.txt").write_text("hello\n")
    served_bucket(served)
    environment = clean_environment() | {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    if heading == "s3fs":
        environment["PYTHONPATH"] = str(packages_apart())
    if heading == "JavaScript":
        (tmp_path / "node_modules").symlink_to(javascript_packages() / "node_modules")
    script = ["set -e"]
    for number, (language, text) in enumerate((*RECIPES[""], *RECIPES[heading])):
        text = text.replace("127.0.0.1:9000", f"127.0.0.1:{served.port}")
        if language == "sh":
            script.append(text)
            continue
        name, program = {"python": ("py", "python"), "js": ("mjs", "node")}[language]
        (tmp_path / f"{number}.{name}").write_text(text)
        script.append(f"{program} {number}.{name}\n")
    assert len(script) > len(RECIPES[""]) + 1, "a heading without a recipe"
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\n--- server\n{served.log_tail()}"
    assert "hello" in done.stdout or heading not in ("boto3", "curl", "JavaScript", "obstore")


def served_bucket(served: Server) -> None:
    """The bucket of the recipes, which the first of them makes, whatever order the tests run in."""
    text = (served.directory / "credentials").read_text()
    keys = dict(re.findall(r"^(aws_access_key_id|aws_secret_access_key) = (.*)$", text, re.MULTILINE))
    import boto3

    boto3.client("s3", endpoint_url=served.endpoint, region_name="us-east-1", **keys).create_bucket(
        Bucket="lab"
    )
