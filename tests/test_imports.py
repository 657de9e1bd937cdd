"""The direction of imports, read from the source.

Must not know: what any module does.
Invariants held here: a lower room imports nothing from a higher one; only the named modules may use the libraries and
system calls that make a room what it is. A new module fails until it is given a place in ROOMS, which is the moment to
think about where it belongs. Imports under TYPE_CHECKING count too (to know a type is to know), except within one
package, where two modules may name each other's types in annotations.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("engine", "server", "cli")

# Lowest first. A name stands for the module, or for everything in the folder. Those in one row are peers that must not
# import each other, except within one folder.
ROOMS: tuple[tuple[str, ...], ...] = (
    ("engine.clock", "engine.errors", "engine.cipher"),
    ("engine.model", "engine.locks"),
    ("engine.health",),
    ("engine.format", "engine.fs"),
    ("engine.volume", "engine.lengths"),
    ("engine.rows", "engine.walk", "engine.chunks"),
    ("engine.index", "engine.decoded"),
    ("engine.namespace",),
    ("engine.apply", "engine.liveness"),
    ("engine.appender",),
    ("engine.commit",),
    ("engine.announcing",),
    ("engine.core",),
    ("engine.operations", "engine.reader"),
    ("engine.uploads",),
    ("engine.writer", "engine.listing", "engine.lookup", "engine.attributes"),
    ("engine.batch", "engine.copying", "engine.dump"),
    ("engine.moving",),
    ("engine.appending",),
    ("engine.edits",),
    ("engine.recovery",),
    ("engine.rescan",),
    ("engine.rebuild",),
    ("engine.opening", "engine.filling"),
    ("engine.compare", "engine.inspect", "engine.probe"),
    ("engine.compactor", "engine.scrub"),
    ("engine.maintenance",),
    ("engine.check",),
    ("engine.multipart",),
    ("engine.store",),
    ("engine.outbox",),
    ("engine",),
    ("server.wire",),
    ("server.units",),
    ("server.config_values",),
    ("server.config", "server.ring", "server.lifecycle", "server.notifications"),
    ("server.glob", "server.acl", "server.keyfile", "server.logs"),
    ("server.policy_conditions", "server.cors", "server.keyring"),
    ("server.encryption",),
    ("server.policy_actions",),
    ("server.policy",),
    ("server.access", "server.bridge", "server.buffers", "server.log_record"),
    ("server.log_spool",),
    ("server.lifecycle_worker",),
    ("server.condition_keys",),
    ("server.gate", "server.log_delivery", "server.sessions"),
    ("server.sts",),
    ("server.log_keeper",),
    ("server.website",),
    ("server.handlers",),
    ("server.website_endpoint",),
    ("server.peer",),
    ("server.app",),
    ("server.client_socket", "server.idle_sockets"),
    ("server.conn", "server.notifier"),
    ("server.supervisor",),
    ("server.maintenance",),
    ("server.main",),
    ("server",),
    ("cli",),
)

NETWORK = {"trio", "asyncio", "socket", "ssl", "http", "httptools", "httpx", "urllib"}
FILES = {"fcntl", "mmap", "shutil", "tempfile", "io", "glob"}

# What os may be asked for outside engine/fs.py: nothing that touches a file.
HARMLESS_OS = {"PathLike", "fspath", "fsencode", "fsdecode", "getpid", "urandom", "cpu_count", "environ"}
HARMLESS_OS |= {"SEEK_SET", "SEEK_CUR", "SEEK_END", "register_at_fork"}
PATHLIB_FILE_METHODS = {"read_bytes", "write_bytes", "read_text", "write_text", "iterdir", "mkdir", "touch"}
PATHLIB_FILE_METHODS |= {"is_file", "is_dir", "exists", "unlink"}


@dataclass(frozen=True)
class Import:
    module: str  # as a dotted name; ours without the leading "cordwood."
    names: tuple[str, ...]
    line: int
    is_typing_only: bool = False


@cache
def sources() -> dict[str, tuple[Path, ast.Module]]:
    """Every module of ours by dotted name without `cordwood.`; a package goes by its own name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = (path, ast.parse(path.read_text(encoding="utf-8"), str(path)))
    return found


def imports_of(name: str) -> Iterator[Import]:
    _, tree = sources()[name]
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        for each in imported_by(name, node):
            yield replace(each, is_typing_only=id(node) in for_types)


def imported_by(name: str, node: ast.AST) -> Iterator[Import]:
    path, _ = sources()[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(alias.name.removeprefix("cordwood."), (), node.lineno)
    elif isinstance(node, ast.ImportFrom):
        module = node.module or ""
        if node.level:
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            module = ".".join([*base, *([module] if module else [])])
        module = "" if module == "cordwood" else module.removeprefix("cordwood.")
        names = tuple(alias.name for alias in node.names)
        # `from cordwood.engine import namespace` imports the module engine.namespace, not a name in engine; except from
        # outside the package when its __init__ exports something of that name.
        exported = () if name.startswith(module) else exports_of(module)
        rest = []
        for each in names:
            full = f"{module}.{each}" if module else each
            if full in sources() and each not in exported:
                yield Import(full, (), node.lineno)
            else:
                rest.append(each)
        if rest:
            yield Import(module, tuple(rest), node.lineno)


def exports_of(module: str) -> list[str]:
    """What `__all__` of a package lists."""
    if module not in sources():
        return []
    for node in sources()[module][1].body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [str(each) for each in ast.literal_eval(node.value)]
    return []


def is_ours(module: str) -> bool:
    return module.split(".", maxsplit=1)[0] in PACKAGES


def room_of(module: str) -> tuple[int, str] | None:
    """The row of a module, and the entry that places it: the longest that is the module itself or its folder."""
    best: tuple[int, str] | None = None
    for row, entries in enumerate(ROOMS):
        for entry in entries:
            is_folder = entry == "cli" or entry in ("server.wire", "server.handlers")
            if module == entry or (is_folder and module.startswith(entry + ".")):
                best = (row, entry)
    return best


def where(name: str, line: int) -> str:
    return f"{sources()[name][0].relative_to(ROOT)}:{line}"


def libraries_of(name: str) -> Iterator[tuple[str, int]]:
    for each in imports_of(name):
        if not is_ours(each.module):
            yield each.module.split(".", maxsplit=1)[0], each.line


def test_every_module_has_a_room() -> None:
    homeless = [name for name in sources() if room_of(name) is None]
    assert not homeless, f"give these a place in ROOMS ({Path(__file__).name}): {homeless}"


def test_no_import_runs_uphill() -> None:
    wrong = []
    for name in sources():
        mine = room_of(name)
        for each in imports_of(name):
            theirs = room_of(each.module) if is_ours(each.module) else None
            if mine is None or theirs is None or mine[1] == theirs[1]:
                continue
            if (
                each.is_typing_only
                and each.module.split(".", maxsplit=1)[0] == name.split(".", maxsplit=1)[0]
            ):
                continue
            if theirs[0] >= mine[0]:
                wrong.append(
                    f"{where(name, each.line)}: {mine[1]} imports {each.module}, which is not below it"
                )
    assert not wrong, "\n".join(wrong)


def test_above_the_engine_its_facade_is_the_only_way_in() -> None:
    """Everything goes through cordwood.engine and cordwood.engine.errors; no layer reaches around the store."""
    wrong = [
        f"{where(name, each.line)}: imports {each.module}"
        for name in sources()
        if not name.startswith("engine")
        for each in imports_of(name)
        if each.module.startswith("engine.")
        and each.module not in ("engine.errors", "engine.recovery", "engine.check")
    ]
    assert not wrong, "\n".join(wrong)


def test_the_engine_never_learns_of_networks_or_http() -> None:
    wrong = [
        f"{where(name, line)}: {library}"
        for name in sources()
        if name.startswith("engine")
        for library, line in libraries_of(name)
        if library in NETWORK | {"click", "rich"}
    ]
    assert not wrong, "\n".join(wrong)


def test_wire_is_sans_io() -> None:
    """Except generate.py: a development-time tool, which reads botocore's model and writes a file."""
    outside = NETWORK - {"httptools", "urllib", "http"} | FILES - {"io"} | {"os", "threading", "pathlib"}
    wrong = []
    for name in sources():
        if not name.startswith("server.wire"):
            continue
        for each in imports_of(name):
            library = each.module.split(".", maxsplit=1)[0]
            if library == "engine":
                wrong.append(f"{where(name, each.line)}: wire knows the engine")
            if library in outside and not name.endswith(".generate"):
                wrong.append(f"{where(name, each.line)}: wire imports {library}")
        for node in ast.walk(sources()[name][1]):
            if isinstance(node, ast.Await | ast.AsyncFor | ast.AsyncWith):
                wrong.append(f"{where(name, node.lineno)}: wire awaits")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("lmdb", {"engine.index"}),
        ("fcntl", {"engine.fs", "server.log_spool"}),
        ("mmap", {"engine.fs"}),
        ("httptools", {"server.wire.http1"}),
        ("botocore", {"server.wire.generate"}),
        ("cryptography", {"server.keyring"}),
        ("boto3", set()),
        ("httpx", {"server.notifier"}),
        ("asyncio", set()),
    ],
)
def test_a_library_is_used_only_where_it_belongs(library: str, allowed: set[str]) -> None:
    users = {name for name in sources() for used, _ in libraries_of(name) if used == library}
    assert users <= allowed, (
        f"{library} may be imported by {allowed or 'nothing'} only, not by {users - allowed}"
    )


def test_pure_modules_of_the_server_stay_pure() -> None:
    wrong = [
        f"{where(name, line)}: {library}"
        for name in (
            "server.access",
            "server.acl",
            "server.cors",
            "server.glob",
            "server.policy",
            "server.policy_actions",
            "server.policy_conditions",
            "server.ring",
        )
        if name in sources()
        for library, line in libraries_of(name)
        if library in NETWORK | FILES | {"os", "threading", "pathlib"}
    ]
    assert not wrong, "\n".join(wrong)


def test_only_fs_touches_files_in_the_engine() -> None:
    """fs.py is the seam where the faulty file system enters the tests. A call around it would be a call untested."""
    wrong = []
    for name, (_, tree) in sources().items():
        if not name.startswith("engine") or name == "engine.fs":
            continue
        for library, line in libraries_of(name):
            if library in FILES - {"io"}:
                wrong.append(f"{where(name, line)}: imports {library}")
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "os" and not node.level:
                bad = {alias.name for alias in node.names} - HARMLESS_OS
                if bad:
                    wrong.append(f"{where(name, node.lineno)}: from os import {', '.join(sorted(bad))}")
            elif isinstance(node, ast.Attribute):
                if (
                    isinstance(node.value, ast.Name)
                    and node.value.id == "os"
                    and node.attr not in HARMLESS_OS
                ):
                    wrong.append(f"{where(name, node.lineno)}: os.{node.attr}")
                elif node.attr in PATHLIB_FILE_METHODS and not is_fs_module(node.value):
                    wrong.append(f"{where(name, node.lineno)}: .{node.attr}")
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
                wrong.append(f"{where(name, node.lineno)}: open()")
    assert not wrong, "\n".join(wrong)


def is_fs_module(node: ast.expr) -> bool:
    return isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node).split(".")[-1].lstrip("_") == "fs"


def test_threads_meet_trio_in_the_bridge_only() -> None:
    wrong = [
        f"{where(name, node.lineno)}: trio.{node.attr}"
        for name, (_, tree) in sources().items()
        if name != "server.bridge"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in ("to_thread", "from_thread")
        and isinstance(node.value, ast.Name)
        and node.value.id == "trio"
    ]
    assert not wrong, "\n".join(wrong)


def loaded_by(statement: str) -> set[str]:
    """The modules that a fresh interpreter holds after the statement."""
    code = f"import sys\n{statement}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd="/")
    return set(done.stdout.split())


def test_the_engine_loads_without_any_network_library() -> None:
    loaded = loaded_by("import cordwood.engine")
    assert "cordwood.engine" in loaded
    assert not loaded & {
        "trio",
        "httptools",
        "httpx",
        "click",
        "rich",
        "asyncio",
        "ssl",
        "cordwood.server",
        "cordwood.cli",
    }


def test_the_command_line_loads_nothing_heavy_before_it_knows_the_command() -> None:
    loaded = loaded_by("import cordwood.cli.main")
    heavy = {
        "trio",
        "httptools",
        "httpx",
        "rich",
        "lmdb",
        "awscrt",
        "msgspec",
        "asyncio",
        "cordwood.engine",
        "cordwood.server",
    }
    assert not loaded & heavy, f"cordwood.cli.main loads {sorted(loaded & heavy)} at import"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_bare_name_is_refused(package: str) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {package}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode != 0
    assert f"cordwood.{package}" in done.stderr
