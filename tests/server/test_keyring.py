"""Key files and the keys in them: read, made, replaced, and shown to nobody."""

from __future__ import annotations

import base64
import logging
import os
import pickle
import re
import threading
from pathlib import Path

import pytest

from cordwood.server.config import ConfigError
from cordwood.server.keyring import (
    MASTER,
    Key,
    KeyFile,
    KeyRing,
    Secret,
    append_key,
    key_line,
    parse_keys,
)

RAW = bytes(range(32))
TEXT = base64.b64encode(RAW).decode()


def private(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_the_last_key_of_a_name_encrypts_and_all_of_them_decrypt() -> None:
    first, second, other = (key_line(name) for name in ("master", "master", "other"))
    old = parse_keys(first.encode(), "f").newest("master")
    ring = parse_keys(f"# heading\n\n{first}{other}  {second}".encode(), "f")
    new = ring.newest("master")
    assert old is not None and new is not None and old.id != new.id
    wrapped = old.wrap(Secret(RAW), b"bound")
    found = ring.find("master", old.id)
    assert found is not None
    assert found.unwrap(wrapped, b"bound").derive(b"x") == Secret(RAW).derive(b"x")
    assert [name for name, _ in ring.ids] == ["master", "other", "master"]
    assert ring.find("other", old.id) is None


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"master {TEXT[:-2]}", 1),
        (f"\nmaster {TEXT} more", 2),
        (f"#\n#\nname\u00e9 {TEXT}", 3),
        ("master", 1),
        (f"master {base64.b64encode(RAW + b'x').decode()}", 1),
        (f"master {base64.b64encode(RAW[:16]).decode()}", 1),
    ],
)
def test_a_bad_line_is_named_and_not_quoted(text: str, line: int) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_keys(text.encode(), "the-file")
    assert f"the-file, line {line}:" in str(caught.value)
    assert TEXT[:8] not in str(caught.value)


def test_what_is_no_text_is_no_key_file() -> None:
    with pytest.raises(ConfigError, match="not text"):
        parse_keys(b"\xff\xfe", "f")


def test_a_wrapped_key_opens_only_with_its_key_and_its_text() -> None:
    key, other = Key(RAW), Key(RAW[::-1])
    wrapped = key.wrap(Secret(b"d" * 32), b"bucket 1")
    assert len(wrapped) == 80 and wrapped != key.wrap(Secret(b"d" * 32), b"bucket 1")
    for wrong in (
        lambda: other.unwrap(wrapped, b"bucket 1"),
        lambda: key.unwrap(wrapped, b"bucket 2"),
        lambda: key.unwrap(wrapped[:-1], b"bucket 1"),
        lambda: key.unwrap(wrapped[:40] + bytes([wrapped[40] ^ 1]) + wrapped[41:], b"bucket 1"),
        lambda: key.unwrap(b"", b"bucket 1"),
    ):
        with pytest.raises(ValueError):
            wrong()


def test_a_key_shows_itself_in_no_text_and_no_pickle() -> None:
    key = Key(RAW)
    ring = KeyRing([("name", key)])
    for shown in (repr(key), str(key), repr(ring), repr(Secret(RAW)), f"{Secret(RAW)}", key.id):
        assert TEXT[:8] not in shown and RAW.hex()[:16] not in shown and repr(RAW)[2:12] not in shown
    with pytest.raises(TypeError):
        pickle.dumps(key)


def test_a_master_key_is_made_at_first_need_for_its_owner_alone_and_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "master-keys"
    files = [KeyFile(path) for _ in range(8)]
    assert not path.exists() and files[0].ring().ids == []
    found: list[object] = []
    threads = [threading.Thread(target=lambda f=file: found.append(f.create().ids)) for file in files]
    with caplog.at_level(logging.WARNING):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 8 and all(each == found[0] for each in found)
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["master-keys"]
    assert caplog.text.count("keep a copy") == 1
    assert re.findall(r"^master (\S+)$", path.read_text(), re.MULTILINE)[0] not in caplog.text


def test_a_file_that_others_may_read_is_refused_and_says_what_to_do(tmp_path: Path) -> None:
    path = private(tmp_path / "keys", f"a {TEXT}\n")
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        KeyFile(path).ring()
    path.chmod(0o600)
    assert KeyFile(path).ring().newest("a") is not None


def test_a_new_key_in_a_file_is_used_without_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "master-keys"
    file = KeyFile(path)
    old = file.create().newest(MASTER)
    assert old is not None
    new_id = append_key(path, MASTER)
    ring = file.ring(now=True)
    new = ring.newest(MASTER)
    assert new is not None and new.id == new_id != old.id
    assert ring.find(MASTER, old.id) is not None
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["master-keys"]
    assert path.read_text().startswith("#")


def test_a_first_key_can_be_added_where_there_is_no_file(tmp_path: Path) -> None:
    assert append_key(tmp_path / "kms", "billing") == KeyFile(tmp_path / "kms").ring().ids[0][1]
