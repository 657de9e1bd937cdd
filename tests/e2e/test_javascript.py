"""The AWS SDK for JavaScript, version 3: js/sdk.mjs runs in Node against a server."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.e2e.harness import DOMAIN, Server, client_environment, run
from tests.e2e.installed import JS, javascript_packages, missing

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(missing("node")), reason=missing("node")),
]


def test_the_javascript_sdk_finds_an_s3(shop: Server, tmp_path: Path) -> None:
    # Node looks for packages upwards from the script, so the script stands beside a link to them.
    (tmp_path / "node_modules").symlink_to(javascript_packages() / "node_modules")
    shutil.copy(JS / "sdk.mjs", tmp_path)
    environment = client_environment(shop) | {"CORDWOOD_DOMAIN": DOMAIN, "NODE_NO_WARNINGS": "1"}
    said = run(["node", str(tmp_path / "sdk.mjs")], environment)
    assert said.splitlines()[-1] == "ok strangers", said
