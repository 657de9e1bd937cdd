"""`cordwood keys`: key files in the hands of an operator."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.harness import Person


def test_keys_are_added_and_listed_by_name_and_id_and_never_shown(tmp_path: Path) -> None:
    operator = Person(tmp_path / "home", {}, tmp_path)
    file = tmp_path / "kms"
    said = [operator.run("keys", "add", str(file), name).out for name in ("billing", "payroll", "billing")]
    assert file.stat().st_mode & 0o777 == 0o600
    rows = [json.loads(line) for line in operator.run("keys", "list", str(file), "--json").out.splitlines()]
    assert [(row["name"], row["encrypts"]) for row in rows] == [
        ("billing", False), ("payroll", True), ("billing", True)
    ]  # fmt: skip
    listed = operator.run("keys", "list", str(file)).out
    secrets = [line.split()[1] for line in file.read_text().splitlines() if not line.startswith("#")]
    assert len(secrets) == 3
    for secret in secrets:
        assert secret not in listed + "".join(said)
    assert all(row["id"] in listed for row in rows)


def test_what_is_no_key_file_is_said_in_one_line(tmp_path: Path) -> None:
    operator = Person(tmp_path / "home", {}, tmp_path)
    assert "holds no key" in operator.run("keys", "list", str(tmp_path / "nothing"), code=1).err
    assert "no name for a key" in operator.run("keys", "add", str(tmp_path / "kms"), "two words", code=1).err
    (tmp_path / "open").write_text("")
    (tmp_path / "open").chmod(0o644)
    assert "chmod 600" in operator.run("keys", "list", str(tmp_path / "open"), code=1).err
    assert not (tmp_path / "kms").exists()
