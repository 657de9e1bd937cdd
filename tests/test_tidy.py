"""The habits of the house, read from the source.

Must not know: what any module does. Style that ruff already checks is left to ruff.
Invariant: each rule here can be met by changing the file it names; a rule that needs an exception is the wrong rule.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CODE_DIRS = ("engine", "server", "cli")
GENERATED = {ROOT / "server" / "wire" / "operations.py"}

MODULE_LINES = 700  # past about 500 a module is asked what second thing it has become; here it is told
FUNCTION_LINES = 100


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def text_files() -> Iterator[Path]:
    yield from python_files(*CODE_DIRS, "tests", "fuzz")
    yield from sorted((ROOT / "docs").glob("*.md"))
    yield from (ROOT / name for name in ("README.md", "CHANGELOG.md", "pyproject.toml", "check", ".ci/run"))


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def test_every_module_says_what_it_is_for() -> None:
    files = python_files(*CODE_DIRS, "tests", "fuzz")
    wrong = [shown(path) for path in files if not ast.get_docstring(tree_of(path))]
    assert not wrong, f"without a module docstring: {wrong}"


def test_every_module_of_the_product_says_what_it_must_not_know_or_keep() -> None:
    """Purpose, what it must not know, the invariants that it keeps: the last two by these words."""
    wrong = []
    for path in set(python_files(*CODE_DIRS)) - GENERATED:
        doc = ast.get_docstring(tree_of(path)) or ""
        if "must not know" not in doc.lower() and "invariant" not in doc.lower():
            wrong.append(shown(path))
    assert not wrong, f"neither 'Must not know' nor 'Invariant' in the docstring of: {wrong}"


def test_no_module_is_two_modules() -> None:
    wrong = []
    for path in python_files(*CODE_DIRS):
        count = len(path.read_text(encoding="utf-8").splitlines())
        if path not in GENERATED and count > MODULE_LINES:
            wrong.append(f"{shown(path)}: {count} lines")
    assert not wrong, f"over {MODULE_LINES} lines: {wrong}"


def test_functions_fit_a_screen() -> None:
    wrong = []
    for path in python_files(*CODE_DIRS):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = (node.end_lineno or node.lineno) - node.lineno + 1
                if count > FUNCTION_LINES:
                    wrong.append(f"{shown(path)}:{node.lineno}: {node.name} has {count} lines")
    assert not wrong, "\n".join(wrong)


def test_nothing_is_left_for_later_in_a_comment() -> None:
    words = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" + "XX", "HA" + "CK"]) + r")\b")
    wrong = [
        f"{shown(path)}:{number}"
        for path in text_files()
        if path.exists()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if words.search(line)
    ]
    assert not wrong, f"an open end belongs in an issue: {wrong}"


def test_nothing_names_a_path_of_one_machine() -> None:
    """Examples in documents may use ~, $HOME, /srv and /var; nothing may name somebody's home or a scratch folder."""
    local = re.compile(r"(?<![\w.])/(?:home|root|Users|work|mnt|tmp)/\w+")
    wrong = [
        f"{shown(path)}:{number}: {line.strip()}"
        for path in text_files()
        if path.exists()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if local.search(line)
    ]
    assert not wrong, "\n".join(wrong)


def test_asserts_are_not_used_on_what_comes_from_outside() -> None:
    """`assert` vanishes under -O, so nothing may depend on it: no walrus, no call with an effect, no bare tuple."""
    wrong = []
    for path in python_files(*CODE_DIRS):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Assert):
                inside = list(ast.walk(node.test))
                if isinstance(node.test, ast.Tuple) or any(
                    isinstance(n, ast.NamedExpr | ast.Await) for n in inside
                ):
                    wrong.append(f"{shown(path)}:{node.lineno}")
    assert not wrong, f"asserts with effects: {wrong}"


def test_no_exception_is_swallowed_whole() -> None:
    """`except:` and `except BaseException: pass` would eat trio.Cancelled and KeyboardInterrupt."""
    wrong = []
    for path in python_files(*CODE_DIRS):
        tree = tree_of(path)
        last_words = {
            id(handler)
            for node in ast.walk(tree)
            if isinstance(node, ast.Try) and "os._exit(" in "".join(map(ast.unparse, node.finalbody))
            for handler in node.handlers
        }  # the process ends there whatever happens
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler) and id(node) not in last_words:
                broad = node.type is None or (
                    isinstance(node.type, ast.Name) and node.type.id == "BaseException"
                )
                if (
                    broad
                    and not any(isinstance(n, ast.Raise) for n in ast.walk(node))
                    and not stores_it(node)
                ):
                    wrong.append(f"{shown(path)}:{node.lineno}")
    assert not wrong, f"too broad and not raised again: {wrong}"


def stores_it(handler: ast.ExceptHandler) -> bool:
    """The exception is handed on to somebody: `future.set_exception(error)`, `self.failure = error`."""
    name = handler.name
    return name is not None and any(isinstance(n, ast.Name) and n.id == name for n in ast.walk(handler))


@pytest.mark.parametrize("folder", ["tests"])
def test_the_name_of_a_test_is_a_sentence(folder: str) -> None:
    wrong = [
        f"{shown(path)}:{node.lineno}: {node.name}"
        for path in python_files(folder)
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and node.name.count("_") < 3
    ]
    assert not wrong, "\n".join(wrong)


# --- dependencies ---------------------------------------------------------------------------------------------


def project() -> dict[str, object]:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert isinstance(data, dict)
    return data


def runtime_dependencies() -> list[str]:
    listed = project()["dependencies"]
    assert isinstance(listed, list)
    return [str(each) for each in listed]


def library_table() -> dict[str, list[str]]:
    """The rows of the table under "Libraries" in docs/design.md: name -> cells."""
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    section = text.split("\n## Libraries", 1)[1].split("\n## ", 1)[0]
    rows: dict[str, list[str]] = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| ") and len(cells) == 4:
            rows[cells[0].strip("`").lower()] = cells
    return rows


def test_every_dependency_is_argued_for() -> None:
    """Name, reason, licence, what was rejected: all four cells, for each; and no row for what is not used."""
    table = library_table()
    names = {re.split(r"[<>=!~ ;\[]", each, maxsplit=1)[0].lower() for each in runtime_dependencies()}
    assert names <= set(table), f"missing in docs/design.md: {sorted(names - set(table))}"
    thin = [name for name in names if any(len(cell) < 3 for cell in table[name])]
    assert not thin, f"an empty cell in docs/design.md: {thin}"


def test_every_dependency_has_a_floor_and_a_ceiling() -> None:
    wrong = [each for each in runtime_dependencies() if ">=" not in each or "<" not in each]
    assert not wrong


def test_every_dependency_is_used() -> None:
    modules = set()
    for path in python_files(*CODE_DIRS):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".", maxsplit=1)[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.split(".", maxsplit=1)[0])
    names = {re.split(r"[<>=!~ ;\[]", each, maxsplit=1)[0].lower() for each in runtime_dependencies()}
    assert not names - modules, f"declared but imported nowhere: {sorted(names - modules)}"


# --- documents ------------------------------------------------------------------------------------------------


def test_the_documents_exist_and_are_reachable_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("design", "format", "protocol", "operations", "security", "testing", "performance"):
        assert (ROOT / "docs" / f"{name}.md").is_file(), f"docs/{name}.md is missing"
        assert f"docs/{name}.md" in readme, f"README.md does not name docs/{name}.md"


def test_links_between_documents_lead_somewhere() -> None:
    wrong = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            if "://" not in target and not (path.parent / target).exists():
                wrong.append(f"{shown(path)}: {target}")
    assert not wrong, "\n".join(wrong)
