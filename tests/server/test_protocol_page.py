"""docs/protocol.md says what the code does, because its tables are printed by the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from cordwood.server.handlers import table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "protocol.md"


@pytest.mark.parametrize(
    ("mark", "printed"), [("operations", table.operations), ("refused", table.refused_headers)]
)
def test_the_tables_of_the_page_are_those_of_the_code(mark: str, printed: object) -> None:
    assert callable(printed)
    _, _, rest = PAGE.read_text("utf-8").partition(f"<!-- {mark} -->\n")
    on_page = rest.partition("<!-- end -->")[0].strip()
    assert on_page == printed(), "print them again: python -m cordwood.server.handlers.table"
