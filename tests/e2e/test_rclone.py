"""rclone beyond moving trees, which test_tools.py has: server-side copies, versions, bisync, streams."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.e2e.harness import MIB, Server, client_environment, md5_of, tool

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("a")
    (folder / "sub/b c.txt").write_text("b")
    (folder / "big").write_bytes(os.urandom(12 * MIB))
    return folder


def test_copies_within_the_server_hashes_and_ranges(shop: Server, folder: Path) -> None:
    shop.rclone("copy", str(folder), "cord:rc-one/t", "--s3-upload-cutoff", "5M", "--s3-chunk-size", "5M")
    sums = set(shop.rclone("md5sum", "cord:rc-one/t").splitlines())
    assert sums == {f"{md5_of(folder / name)}  {name}" for name in ("a.txt", "big", "sub/b c.txt")}
    shop.rclone("copy", "cord:rc-one/t", "cord:rc-one/u", "--s3-copy-cutoff", "5M")
    shop.rclone("check", "--download", str(folder), "cord:rc-one/u")
    assert shop.rclone("cat", "cord:rc-one/u/a.txt", "--head", "1") == "a"
    assert len(shop.rclone("cat", "cord:rc-one/u/sub/b c.txt", "--offset", "0", "--count", "5")) == 1

    shop.rclone("moveto", "cord:rc-one/u/a.txt", "cord:rc-one/u/z.txt")
    shop.rclone("sync", str(folder), "cord:rc-one/u", "--track-renames")
    shop.rclone("check", str(folder), "cord:rc-one/u")
    shop.rclone("touch", "cord:rc-one/u/a.txt", "-t", "2020-01-02T03:04:05")
    listed = {each["Path"]: each for each in json.loads(shop.rclone("lsjson", "-R", "cord:rc-one/u"))}
    assert listed["a.txt"]["ModTime"].startswith("2020-01-02T03:04:05")
    assert listed["big"]["Size"] == 12 * MIB and listed["sub"]["IsDir"]
    with urlopen(shop.rclone("link", "cord:rc-one/u/a.txt", "--expire", "1h").strip()) as answer:
        assert answer.read() == b"a"
    shop.rclone("purge", "cord:rc-one")


def test_versions_are_listed_read_and_cleaned(shop: Server, folder: Path) -> None:
    shop.rclone("mkdir", "cord:rc-two")
    assert "Enabled" in shop.rclone("backend", "versioning", "cord:rc-two", "Enabled")
    for text in ("one", "two"):
        (folder / "a.txt").write_text(text)
        shop.rclone("copyto", str(folder / "a.txt"), "cord:rc-two/a.txt")
    names = shop.rclone("lsf", "--s3-versions", "cord:rc-two").split()
    old = next(name for name in names if name.startswith("a-v"))
    assert shop.rclone("cat", "--s3-versions", f"cord:rc-two/{old}") == "one"
    shop.rclone("delete", "cord:rc-two/a.txt")
    assert shop.rclone("lsf", "cord:rc-two") == ""
    assert len(shop.rclone("lsf", "--s3-versions", "cord:rc-two").split()) == 2
    shop.rclone("backend", "cleanup-hidden", "cord:rc-two")
    assert shop.rclone("lsf", "--s3-versions", "cord:rc-two") == ""
    shop.rclone("purge", "cord:rc-two")


def test_bisync_carries_changes_both_ways(shop: Server, folder: Path, tmp_path: Path) -> None:
    shop.rclone("mkdir", "cord:rc-three")
    arguments = ("bisync", str(folder), "cord:rc-three", "--workdir", str(tmp_path / "work"))
    shop.rclone(*arguments, "--resync")
    (folder / "here").write_text("here")
    (folder / "a.txt").unlink()
    subprocess.run(
        [tool("rclone"), "rcat", "cord:rc-three/there"],
        input=b"there",
        env=client_environment(shop),
        check=True,
        capture_output=True,
    )
    shop.rclone(*arguments)
    assert (folder / "there").read_text() == "there"
    assert shop.rclone("lsf", "cord:rc-three").split() == ["big", "here", "sub/", "there"]
    shop.rclone("check", str(folder), "cord:rc-three")


def test_empty_folders_metadata_and_streams_of_unknown_length(
    shop: Server, folder: Path, tmp_path: Path
) -> None:
    (folder / "empty").mkdir()
    flags = ("--metadata", "--create-empty-src-dirs", "--s3-directory-markers")
    shop.rclone("sync", *flags, str(folder), "cord:rc-four/x")
    assert "x/empty/" in shop.rclone("lsf", "-R", "cord:rc-four").split()
    with (folder / "big").open("rb") as stream:
        subprocess.run(
            [tool("rclone"), "rcat", "cord:rc-four/stream"],
            stdin=stream,
            env=client_environment(shop),
            check=True,
            capture_output=True,
        )
    shop.rclone("copyto", "cord:rc-four/stream", str(tmp_path / "back"))
    assert md5_of(tmp_path / "back") == md5_of(folder / "big")
    assert json.loads(shop.rclone("backend", "list-multipart-uploads", "cord:rc-four")) == {"rc-four": []}
    shop.rclone("purge", "cord:rc-four")
