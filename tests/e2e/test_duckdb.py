"""DuckDB: SQL over parquet and CSV in a bucket, with its own S3 client (the extension httpfs)."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import ACCESS_KEY, REGION, SECRET_KEY, Server

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

HOW_TO_GET = "NOT PROVED HERE: no duckdb with its extension httpfs: pip install duckdb-extension-httpfs"


@pytest.fixture
def duck(shop: Server) -> Iterator[Any]:
    """A connection to a database in memory that can reach the server. The extension comes as a package, for DuckDB
    itself would fetch it from a place that may be out of reach."""
    package = importlib.util.find_spec("duckdb_extension_httpfs")
    if package is None or importlib.util.find_spec("duckdb") is None:
        pytest.skip(HOW_TO_GET)
    import duckdb

    (folder,) = package.submodule_search_locations or [""]
    extension = Path(folder, "extensions", f"v{duckdb.__version__}", "httpfs.duckdb_extension")
    if not extension.exists():
        pytest.skip(HOW_TO_GET)
    with duckdb.connect() as connection:
        connection.execute(f"LOAD '{extension}'")
        give_keys(connection, shop, SECRET_KEY)
        yield connection


def give_keys(connection: Any, shop: Server, secret: str) -> None:
    address = shop.endpoint.removeprefix("http://")
    connection.execute(
        f"CREATE OR REPLACE SECRET shop (TYPE s3, KEY_ID '{ACCESS_KEY}', SECRET '{secret}', ENDPOINT '{address}', "
        f"REGION '{REGION}', URL_STYLE 'path', USE_SSL false)"
    )


def rows(connection: Any, query: str) -> list[Any]:
    return list(connection.execute(query).fetchall())


def test_tables_are_written_and_queried_as_parquet_and_csv(shop: Server, duck: Any) -> None:
    shop.boto().create_bucket(Bucket="duck")
    duck.execute(
        "CREATE TABLE t AS SELECT range AS n, 'd' || range % 7 AS day, random() AS r FROM range(500000)"
    )
    for name, options in (
        ("t.parquet", "FORMAT parquet, ROW_GROUP_SIZE 50000"),
        ("t.csv", "HEADER"),
        ("t.csv.gz", "HEADER, COMPRESSION gzip"),
        ("a b+c=ü/t.parquet", "FORMAT parquet"),
    ):
        duck.execute(f"COPY t TO 's3://duck/{name}' ({options})")
        assert rows(duck, f"SELECT count(*), sum(n) FROM 's3://duck/{name}'") == [(500_000, 124_999_750_000)]
    assert shop.boto().head_object(Bucket="duck", Key="t.parquet")["ContentLength"] > 4_000_000
    some = rows(duck, "SELECT n FROM 's3://duck/t.parquet' WHERE n BETWEEN 250000 AND 250003 ORDER BY n")
    assert some == [(250_000,), (250_001,), (250_002,), (250_003,)]
    duck.execute("COPY t TO 's3://duck/set' (FORMAT parquet, PARTITION_BY (day), OVERWRITE_OR_IGNORE)")
    third = "SELECT count(*), min(day) FROM read_parquet('s3://duck/set/*/*.parquet', hive_partitioning=true)"
    assert rows(duck, f"{third} WHERE day = 'd3'") == [(71_429, "d3")]
    found = rows(duck, "SELECT DISTINCT file FROM glob('s3://duck/set/**') ORDER BY file")
    assert len(found) >= 7 and found[0][0].startswith("s3://duck/set/day=d0/")


def test_a_large_table_goes_up_in_parts_and_a_database_is_read_in_place(
    shop: Server, duck: Any, tmp_path: Path
) -> None:
    shop.boto().create_bucket(Bucket="duck-large")
    duck.execute("CREATE TABLE large AS SELECT range AS n, random() AS r, uuid() AS u FROM range(3000000)")
    duck.execute("COPY large TO 's3://duck-large/t.parquet' (FORMAT parquet, COMPRESSION uncompressed)")
    assert "-" in shop.boto().head_object(Bucket="duck-large", Key="t.parquet")["ETag"]
    agree = "SELECT sum(n), sum(hash(u)), max(r) FROM"
    assert rows(duck, f"{agree} 's3://duck-large/t.parquet'") == rows(duck, f"{agree} large")

    duck.execute(
        f"ATTACH '{tmp_path}/made.duckdb' AS made; CREATE TABLE made.t AS SELECT * FROM large LIMIT 100000"
    )
    duck.execute("DETACH made")
    shop.boto().upload_file(str(tmp_path / "made.duckdb"), "duck-large", "made.duckdb")
    duck.execute("ATTACH 's3://duck-large/made.duckdb' AS kept (READ_ONLY)")
    assert rows(duck, "SELECT count(*) FROM kept.t") == [(100_000,)]


def test_what_is_missing_or_forbidden_is_an_error(shop: Server, duck: Any) -> None:
    import duckdb

    shop.boto().create_bucket(Bucket="duck-errors")
    with pytest.raises(duckdb.Error, match="404"):
        duck.execute("SELECT * FROM 's3://duck-errors/none.parquet'")
    with pytest.raises(duckdb.Error, match="No files found"):
        duck.execute("SELECT * FROM 's3://duck-errors/none/*.parquet'")
    give_keys(duck, shop, "another secret")
    with pytest.raises(duckdb.Error, match="403"):
        duck.execute("COPY (SELECT 1) TO 's3://duck-errors/t.parquet' (FORMAT parquet)")
    assert "Contents" not in shop.boto().list_objects_v2(Bucket="duck-errors")
