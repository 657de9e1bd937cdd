"""What a user of s3fs does, as a program of its own: `python s3fs_client.py ENDPOINT`.

s3fs holds botocore to versions that the other clients have left behind, so it lives in a folder of its own, and the
test that runs this program puts that folder first on the path. Must not know: pytest, the harness.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from urllib.request import urlopen

import s3fs

MIB = 1 << 20


def main(endpoint: str) -> None:
    # With the region, as the documentation has it: s3fs names it when it makes a bucket.
    fs = s3fs.S3FileSystem(endpoint_url=endpoint, client_kwargs={"region_name": "us-east-1"})
    fs.mkdir("s3fs")
    assert "s3fs" in fs.ls("")
    files_and_folders(fs)
    large_files(fs)
    metadata(fs)
    versions(endpoint)
    strangers(endpoint)
    fs.rm("s3fs", recursive=True)
    assert not fs.exists("s3fs")
    assert not fs.exists("no-such-bucket/x")


def files_and_folders(fs: s3fs.S3FileSystem) -> None:
    fs.pipe({"s3fs/a/1": b"1", "s3fs/a/2": b"2", "s3fs/a/sub/ü 3": b"3"})
    assert fs.find("s3fs") == ["s3fs/a/1", "s3fs/a/2", "s3fs/a/sub/ü 3"]
    assert fs.glob("s3fs/*/[12]") == ["s3fs/a/1", "s3fs/a/2"]
    assert [each[1:] for each in fs.walk("s3fs/a")] == [(["sub"], ["1", "2"]), ([], ["ü 3"])]
    assert (fs.isdir("s3fs/a"), fs.isfile("s3fs/a/1"), fs.exists("s3fs/none")) == (True, True, False)
    assert fs.du("s3fs") == 3
    fs.cp_file("s3fs/a/1", "s3fs/b/1")
    fs.mv("s3fs/b/1", "s3fs/b/one")
    assert fs.cat("s3fs/b/one") == b"1"
    with tempfile.TemporaryDirectory() as folder:
        fs.get("s3fs/a", folder, recursive=True)
        assert (Path(folder) / "a/sub/ü 3").read_bytes() == b"3"
        fs.put(f"{folder}/a", "s3fs/c", recursive=True)
    assert fs.cat("s3fs/c/sub/ü 3") == b"3"
    fs.pipe_file("s3fs/new", b"1", mode="create")
    try:
        fs.pipe_file("s3fs/new", b"2", mode="create")
    except FileExistsError:
        return
    raise AssertionError("an existing key was created again")


def large_files(fs: s3fs.S3FileSystem) -> None:
    data = os.urandom(12 * MIB)
    with fs.open("s3fs/big", "wb", block_size=5 * MIB) as file:
        file.write(data)
    assert "-" in fs.info("s3fs/big")["ETag"]
    assert fs.cat_ranges(["s3fs/big"] * 2, [0, 7 * MIB], [3, 7 * MIB + 9]) == [
        data[:3],
        data[7 * MIB : 7 * MIB + 9],
    ]
    with fs.open("s3fs/big", "ab") as file:
        file.write(b"more")
    with fs.open("s3fs/big", "rb") as file:
        assert file.read() == data + b"more"
    fs.merge("s3fs/merged", ["s3fs/big", "s3fs/big"])
    assert fs.size("s3fs/merged") == 2 * (len(data) + 4)


def metadata(fs: s3fs.S3FileSystem) -> None:
    fs.touch("s3fs/touched")
    fs.setxattr("s3fs/touched", colour="blue")
    assert fs.getxattr("s3fs/touched", "colour") == "blue"
    fs.put_tags("s3fs/touched", {"k": "v"})
    assert fs.get_tags("s3fs/touched") == {"k": "v"}
    with urlopen(fs.url("s3fs/a/1", expires=60)) as answer:
        assert answer.read() == b"1"
    assert fs.list_multipart_uploads("s3fs") == []


def versions(endpoint: str) -> None:
    fs = s3fs.S3FileSystem(endpoint_url=endpoint, version_aware=True)
    fs.mkdir("s3fs-versions")
    fs.make_bucket_versioned("s3fs-versions", True)
    for text in (b"1", b"2"):
        fs.pipe("s3fs-versions/v", text)
    ids = [each["VersionId"] for each in fs.object_version_info("s3fs-versions/v")]
    assert [fs.cat_file("s3fs-versions/v", version_id=each) for each in ids] == [b"2", b"1"]


def strangers(endpoint: str) -> None:
    for options in ({"anon": True}, {"key": "nobody", "secret": "x"}):
        try:
            s3fs.S3FileSystem(endpoint_url=endpoint, **options).cat("s3fs/a/1")
        except PermissionError:
            continue
        raise AssertionError(f"let in with {options}")


if __name__ == "__main__":
    main(sys.argv[1])
