"""The files that the end-to-end tests move and the server that most clients share, made once per test process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import (
    BOB_ACCESS_KEY,
    BOB_SECRET_KEY,
    DOMAIN,
    MIB,
    AwsShell,
    Server,
    client_environment,
    make_big_file,
    make_tree,
    serving,
)


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory, long_run: bool) -> Path:
    """The whole standard library with --long; a few hundred files of it without. Read-only for the tests."""
    target = tmp_path_factory.mktemp("tree")
    make_tree(target, whole=long_run)
    return target


@pytest.fixture(scope="session")
def big_file(tmp_path_factory: pytest.TempPathFactory, long_run: bool) -> Path:
    target = tmp_path_factory.mktemp("big") / "big.bin"
    make_big_file(target, (2048 if long_run else 160) * MIB)
    return target


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server of several workers for the tests of clients: two owners, virtual hosts below `DOMAIN`."""
    base = tmp_path_factory.mktemp("shop")
    settings = base / "cordwood.toml"
    settings.write_text(
        f'[[credentials]]\naccess_key = "{BOB_ACCESS_KEY}"\nsecret_key = "{BOB_SECRET_KEY}"\n'
        'owner_id = "bob"\ndisplay_name = "Bob"\n'
    )
    settings.chmod(0o600)
    options = ("--config", str(settings), "--domain", DOMAIN)
    with serving(base / "server", options=options) as running:
        yield running


@pytest.fixture(scope="session")
def aws(shop: Server) -> Iterator[AwsShell]:
    with AwsShell(client_environment(shop) | {"AWS_ENDPOINT_URL": shop.endpoint}) as shell:
        yield shell
