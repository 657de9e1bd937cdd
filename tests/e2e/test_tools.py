"""Real trees go in and out through unmodified S3 tools, byte for byte.

One server for the module: the tools use buckets of their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig

from tests.e2e.harness import (
    MIB,
    Blocks,
    Server,
    assert_objects_match,
    assert_same_tree,
    files_below,
    keys_of,
    md5_of,
    multipart_etag,
    peak_memory_bytes,
    serving,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3600), pytest.mark.xdist_group("tools")]

PEAK_MEMORY_BYTES = 150 * MIB


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("tools")) as running:
        yield running


@pytest.fixture(scope="module")
def boto(server: Server) -> Any:
    return server.boto()


def test_awscli_copies_a_tree_in_and_syncs_it_out_unchanged(
    server: Server, boto: Any, tree: Path, tmp_path: Path
) -> None:
    server.aws("s3", "mb", "s3://awscli")
    server.aws("s3", "cp", "--recursive", "--only-show-errors", str(tree), "s3://awscli/tree/")
    assert_objects_match(boto, "awscli", "tree/", tree)

    server.aws("s3", "sync", "--only-show-errors", "s3://awscli/tree/", str(tmp_path / "out"))
    assert_same_tree(tree, tmp_path / "out")
    assert server.aws("s3", "sync", "--size-only", str(tree), "s3://awscli/tree/") == "", (
        "a second sync had work to do"
    )

    listed = server.aws("s3", "ls", "--recursive", "--summarize", "s3://awscli/tree/")
    assert f"Total Objects: {len(files_below(tree))}" in listed
    server.aws("s3", "mv", "--only-show-errors", "s3://awscli/tree/odd/three", "s3://awscli/moved")
    server.aws("s3", "rm", "--recursive", "--only-show-errors", "s3://awscli/")
    assert keys_of(boto, "awscli") == {}
    server.aws("s3", "rb", "s3://awscli")
    assert "awscli" not in server.aws("s3", "ls")


def test_awscli_moves_a_big_file_and_no_worker_grows_with_it(
    server: Server, boto: Any, big_file: Path, tmp_path: Path
) -> None:
    server.aws("s3", "mb", "s3://awscli-big")
    server.aws("s3", "cp", "--only-show-errors", str(big_file), "s3://awscli-big/big")
    head = boto.head_object(Bucket="awscli-big", Key="big")
    assert head["ContentLength"] == big_file.stat().st_size
    assert head["ETag"].strip('"') == multipart_etag(big_file, 8 * MIB)

    server.aws("s3", "cp", "--only-show-errors", "s3://awscli-big/big", str(tmp_path / "back"))
    assert md5_of(tmp_path / "back") == md5_of(big_file)
    (tmp_path / "back").unlink()
    peaks = {pid: peak_memory_bytes(pid) for pid in server.processes()}
    assert max(peaks.values()) < PEAK_MEMORY_BYTES, f"peak resident bytes by process: {peaks}"


def test_a_big_single_put_and_get_stream_through_flat_memory(
    server: Server, boto: Any, big_file: Path
) -> None:
    """No multipart on either side: one PUT, one GET, and its MD5 as the ETag."""
    boto.create_bucket(Bucket="single")
    with big_file.open("rb") as stream:
        put = boto.put_object(Bucket="single", Key="big", Body=stream)
    expected = md5_of(big_file)
    assert put["ETag"] == f'"{expected}"'
    digest = hashlib.md5()
    for block in boto.get_object(Bucket="single", Key="big")["Body"].iter_chunks(MIB):
        digest.update(block)
    assert digest.hexdigest() == expected
    peaks = {pid: peak_memory_bytes(pid) for pid in server.processes()}
    assert max(peaks.values()) < PEAK_MEMORY_BYTES, f"peak resident bytes by process: {peaks}"


@pytest.mark.long
def test_five_gibibytes_in_one_put_and_one_get_stream_through_flat_memory(server: Server, boto: Any) -> None:
    """The largest object that S3 takes in a single PUT."""
    size = 5 << 30
    boto.create_bucket(Bucket="five")
    put = boto.put_object(Bucket="five", Key="gib", Body=Blocks(size))
    digest = hashlib.md5()
    for block in boto.get_object(Bucket="five", Key="gib")["Body"].iter_chunks(MIB):
        digest.update(block)
    assert put["ETag"] == f'"{digest.hexdigest()}"'
    expected = hashlib.md5()
    source = Blocks(size)
    while block := source.read(MIB):
        expected.update(block)
    assert digest.digest() == expected.digest()
    peaks = {pid: peak_memory_bytes(pid) for pid in server.processes()}
    assert max(peaks.values()) < PEAK_MEMORY_BYTES, f"peak resident bytes by process: {peaks}"
    boto.delete_object(Bucket="five", Key="gib")


def test_boto3_with_default_checksums_round_trips_a_tree(
    boto: Any, tree: Path, big_file: Path, tmp_path: Path
) -> None:
    boto.create_bucket(Bucket="boto")
    files = files_below(tree)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda item: boto.upload_file(str(item[1]), "boto", f"tree/{item[0]}"), files.items()))
    assert assert_objects_match(boto, "boto", "tree/", tree) == len(files)

    head = boto.head_object(Bucket="boto", Key="tree/odd/inline-plus", ChecksumMode="ENABLED")
    assert any(name.startswith("Checksum") and name != "ChecksumType" for name in head), (
        "the default checksum is kept"
    )

    boto.upload_file(str(big_file), "boto", "big", Config=TransferConfig(multipart_chunksize=16 * MIB))
    boto.download_file("boto", "big", str(tmp_path / "big"))
    assert md5_of(tmp_path / "big") == md5_of(big_file)
    (tmp_path / "big").unlink()

    for first in range(0, len(files), 1000):
        keys = [{"Key": f"tree/{name}"} for name in sorted(files)[first : first + 1000]]
        answer = boto.delete_objects(Bucket="boto", Delete={"Objects": keys})
        assert len(answer["Deleted"]) == len(keys) and not answer.get("Errors")
    assert set(keys_of(boto, "boto")) == {"big"}


def test_rclone_copies_checks_and_syncs_a_tree(
    server: Server, boto: Any, tree: Path, big_file: Path, tmp_path: Path
) -> None:
    server.rclone("mkdir", "cord:rclone")
    server.rclone("copy", str(tree), "cord:rclone/tree")
    server.rclone("check", str(tree), "cord:rclone/tree")
    assert_objects_match(boto, "rclone", "tree/", tree)
    server.rclone("copy", str(big_file), "cord:rclone")
    server.rclone(
        "check", "--download", str(big_file.parent), "cord:rclone", "--include", f"/{big_file.name}"
    )

    server.rclone("copy", "cord:rclone/tree", str(tmp_path / "out"))
    assert_same_tree(tree, tmp_path / "out")
    (tmp_path / "out" / "odd" / "empty").unlink()
    (tmp_path / "out" / "odd" / "one byte").write_bytes(b"changed")
    server.rclone("sync", str(tmp_path / "out"), "cord:rclone/tree")
    assert_objects_match(boto, "rclone", "tree/", tmp_path / "out")
    server.rclone("moveto", "cord:rclone/tree/odd/three", "cord:rclone/moved")
    server.rclone("purge", "cord:rclone")
    assert "rclone" not in server.rclone("lsd", "cord:")


def test_s3cmd_puts_syncs_and_gets_a_tree(server: Server, boto: Any, tree: Path, tmp_path: Path) -> None:
    server.s3cmd("mb", "s3://s3cmd")
    part = tree / "odd"
    server.s3cmd("sync", f"{part}/", "s3://s3cmd/odd/")
    assert_objects_match(boto, "s3cmd", "odd/", part)
    server.s3cmd("put", "--recursive", str(tree / "json"), "s3://s3cmd/")
    assert_objects_match(boto, "s3cmd", "json/", tree / "json")

    (tmp_path / "out").mkdir()
    server.s3cmd("sync", "s3://s3cmd/odd/", f"{tmp_path}/out/")
    assert_same_tree(part, tmp_path / "out")
    server.s3cmd("put", "--multipart-chunk-size-mb=5", str(tree / "odd" / "three"), "s3://s3cmd/small")
    assert "small" in server.s3cmd("ls", "s3://s3cmd/")
    server.s3cmd("cp", "s3://s3cmd/small", "s3://s3cmd/copied")
    server.s3cmd("del", "--recursive", "--force", "s3://s3cmd/")
    server.s3cmd("rb", "s3://s3cmd")


def test_s3cmd_multiparts_a_big_file(server: Server, boto: Any, big_file: Path, tmp_path: Path) -> None:
    server.s3cmd("mb", "s3://s3cmd-big")
    server.s3cmd("put", str(big_file), "s3://s3cmd-big/big")
    server.s3cmd("get", "s3://s3cmd-big/big", str(tmp_path / "back"))
    assert md5_of(tmp_path / "back") == md5_of(big_file)
    etag = boto.head_object(Bucket="s3cmd-big", Key="big")["ETag"].strip('"')
    assert etag == multipart_etag(big_file, 15 * MIB), "s3cmd's parts are 15 MiB"


def test_the_own_command_line_copies_a_tree_and_a_stream(
    server: Server, boto: Any, tree: Path, tmp_path: Path
) -> None:
    server.cordwood("mb", "s3://own")
    server.cordwood("cp", "--recursive", str(tree), "s3://own/tree/")
    assert_objects_match(boto, "own", "tree/", tree)
    server.cordwood("cp", "--recursive", "s3://own/tree/", str(tmp_path / "out"))
    assert_same_tree(tree, tmp_path / "out")
    assert server.cordwood("cat", "s3://own/tree/odd/one byte") == "x"
