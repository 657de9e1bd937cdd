"""What every test shares: the switch for long campaigns.

Must not know: the engine or the server; fixtures for those live beside the tests that use them.
Invariant: without --long (or CORDWOOD_LONG=1) no test marked `long` runs, and everything together stays
under fifteen minutes.
"""

from __future__ import annotations

import os
import signal

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long", action="store_true", help="run the campaigns marked `long`, and the rest at full size"
    )


def pytest_configure(config: pytest.Config) -> None:
    """One switch in two spellings: code that has no pytest at hand reads the environment variable."""
    if config.getoption("--long"):
        os.environ["CORDWOOD_LONG"] = "1"
    # A shell starts what it puts in the background (`./check &`, some build machines) with SIGINT ignored, and so
    # would everything be that a test starts in order to interrupt it. A child inherits that; a handler it does not.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if is_long():
        return
    skip = pytest.mark.skip(reason="a long campaign: needs --long")
    for item in items:
        if "long" in item.keywords:
            item.add_marker(skip)


def is_long() -> bool:
    return os.environ.get("CORDWOOD_LONG", "") not in ("", "0")


@pytest.fixture(scope="session")
def long_run() -> bool:
    """True when a test should use its full size instead of a moderate one."""
    return is_long()
