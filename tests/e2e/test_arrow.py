"""pyarrow and obstore: data sets and object stores of the data people, over the SDK for C++ and a client in Rust."""

from __future__ import annotations

import os
from typing import Any

import obstore
import pyarrow
import pyarrow.dataset
import pyarrow.fs
import pyarrow.parquet
import pytest
from obstore.exceptions import AlreadyExistsError, NotModifiedError, PermissionDeniedError, PreconditionError
from obstore.store import S3Store

from tests.e2e.harness import ACCESS_KEY, MIB, REGION, SECRET_KEY, Server

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture
def arrow(shop: Server) -> Any:
    return pyarrow.fs.S3FileSystem(
        access_key=ACCESS_KEY,
        secret_key=SECRET_KEY,
        endpoint_override=shop.endpoint,
        region=REGION,
        allow_bucket_creation=True,
        allow_bucket_deletion=True,
    )


def test_pyarrow_writes_and_reads_a_partitioned_data_set(arrow: Any) -> None:
    table = pyarrow.table({"n": list(range(5000)), "day": [f"d{n % 7}" for n in range(5000)]})
    arrow.create_dir("arrow/deep/er")
    pyarrow.dataset.write_dataset(
        table,
        "arrow/set",
        filesystem=arrow,
        format="parquet",
        partitioning=["day"],
        partitioning_flavor="hive",
    )
    found = pyarrow.dataset.dataset("arrow/set", filesystem=arrow, partitioning="hive")
    third = found.to_table(filter=pyarrow.dataset.field("day") == "d3")
    assert sorted(third["n"].to_pylist()) == list(range(3, 5000, 7))

    pyarrow.parquet.write_table(table, "arrow/one.parquet", filesystem=arrow)
    assert pyarrow.parquet.read_table("arrow/one.parquet", filesystem=arrow).equals(table)
    kinds = arrow.get_file_info(
        ["arrow", "arrow/set", "arrow/one.parquet", "arrow/none", "arrow/deep", "no-such-bucket/x"]
    )
    assert [info.type.name for info in kinds] == [
        "Directory", "Directory", "File", "NotFound", "Directory", "NotFound",
    ]  # fmt: skip
    arrow.copy_file("arrow/one.parquet", "arrow/two.parquet")
    arrow.move("arrow/two.parquet", "arrow/three.parquet")
    arrow.delete_file("arrow/three.parquet")
    with pytest.raises(FileNotFoundError):
        arrow.delete_file("arrow/three.parquet")


def test_pyarrow_streams_parts_and_seeks(arrow: Any) -> None:
    data = os.urandom(23 * MIB)
    arrow.create_dir("arrow-stream")
    with arrow.open_output_stream("arrow-stream/big", metadata={"Content-Type": "x/y"}) as out:
        for start in range(0, len(data), MIB):
            out.write(data[start : start + MIB])
    with arrow.open_input_file("arrow-stream/big") as file:
        assert file.size() == len(data) and file.metadata()["Content-Type"] == b"x/y"
        file.seek(20 * MIB)
        assert file.read(1000) == data[20 * MIB : 20 * MIB + 1000]
    with arrow.open_input_stream("arrow-stream/big") as stream:
        assert stream.read() == data
    arrow.delete_dir_contents("arrow-stream")
    assert arrow.get_file_info(pyarrow.fs.FileSelector("arrow-stream", recursive=True)) == []
    arrow.delete_dir("arrow-stream")


def store(shop: Server, bucket: str, **options: Any) -> S3Store:
    keys: dict[str, Any] = {"access_key_id": ACCESS_KEY, "secret_access_key": SECRET_KEY}
    if options.get("skip_signature"):
        keys = {}
    return S3Store(
        bucket, endpoint=shop.endpoint, region=REGION, client_options={"allow_http": True}, **keys, **options
    )


def test_obstore_puts_gets_lists_and_compares(shop: Server) -> None:
    shop.boto().create_bucket(Bucket="obstore")
    rust = store(shop, "obstore")
    data = os.urandom(13 * MIB)
    rust.put("a/b c.txt", b"hello", attributes={"Content-Type": "text/x", "colour": "blue"}, tags={"t": "1"})
    rust.put("big", data, use_multipart=True, chunk_size=6 * MIB)
    got = rust.get("a/b c.txt")
    assert bytes(got.bytes()) == b"hello"
    assert got.attributes == {"Content-Type": "text/x", "colour": "blue"}
    assert bytes(rust.get("big").bytes()) == data
    ranges = rust.get_ranges("big", starts=[0, 9 * MIB], lengths=[3, 4])
    assert [bytes(each) for each in ranges] == [data[:3], data[9 * MIB : 9 * MIB + 4]]
    assert bytes(rust.get("big", options={"range": {"suffix": 4}}).bytes()) == data[-4:]

    first = rust.put("k", b"1", mode="create")
    with pytest.raises(AlreadyExistsError):
        rust.put("k", b"2", mode="create")
    rust.put("k", b"2", mode={"e_tag": first["e_tag"]})
    with pytest.raises(PreconditionError):
        rust.put("k", b"3", mode={"e_tag": first["e_tag"]})
    with pytest.raises(NotModifiedError):
        rust.get("k", options={"if_none_match": rust.head("k")["e_tag"]})
    with pytest.raises(FileNotFoundError):
        rust.head("none")

    rust.rename("k", "moved")
    listed = rust.list_with_delimiter()
    assert listed["common_prefixes"] == ["a"]
    assert [each["path"] for each in listed["objects"]] == ["big", "moved"]
    by_part = store(shop, "obstore", copy_if_not_exists="multipart")
    by_part.copy("moved", "copied", overwrite=False)
    with pytest.raises(AlreadyExistsError):
        by_part.copy("moved", "copied", overwrite=False)
    with pytest.raises(PermissionDeniedError):
        store(shop, "obstore", skip_signature=True).get("moved")
    obstore.delete(rust, ["a/b c.txt", "big", "moved", "copied", "none"])
    assert rust.list().collect() == []


@pytest.mark.parametrize("algorithm", ["SHA256", "CRC64NVME"])
def test_obstore_sends_checksums_of_objects_and_parts(shop: Server, algorithm: str) -> None:
    bucket = f"obstore-{algorithm.lower()}"
    boto = shop.boto()
    boto.create_bucket(Bucket=bucket)
    rust = store(shop, bucket, checksum_algorithm=algorithm.lower())
    rust.put("small", b"x")
    rust.put("parts", bytes(7 * MIB), use_multipart=True)
    for key in ("small", "parts"):
        assert f"Checksum{algorithm}" in boto.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
