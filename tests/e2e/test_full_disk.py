"""A server on a disk that becomes full, and real clients before it.

Must not know: how much room the server keeps back.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import botocore.exceptions
import pytest

from tests.e2e.harness import MIB, Server, keys_of
from tests.sim.small_disk import free_bytes, mounted, skip_without_mount

pytestmark = pytest.mark.e2e
BUCKET = "full"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    skip_without_mount()
    with mounted(tmp_path, 128 * MIB) as disk:
        options = ("--volume-size", "4MiB", "--no-profile")
        found = Server(disk / "store", tmp_path / "server.log", 2, options)
        try:
            found.start()
            yield found
        finally:
            if found.process is not None:
                found.kill()


def body(number: int) -> bytes:
    rng = random.Random(number)
    return rng.randbytes(rng.choice((100, 30_000, 400_000, 3_000_000)))


def fill(client: Any, name: str, told: dict[str, bytes]) -> list[int]:
    """Puts objects until one is refused; returns the statuses of what was."""
    for number in range(10_000):
        key, data = f"{name}/{number}", body(number)
        try:
            client.put_object(Bucket=BUCKET, Key=key, Body=data)
        except botocore.exceptions.ClientError as refused:
            status = refused.response["ResponseMetadata"]["HTTPStatusCode"]
            assert refused.response["Error"]["Code"] == "StorageFull"
            return [int(status)]
        told[key] = data
    raise AssertionError("the disk never became full")


def check(client: Any, told: dict[str, bytes]) -> None:
    assert set(keys_of(client, BUCKET)) == set(told)
    for key, data in told.items():
        assert client.get_object(Bucket=BUCKET, Key=key)["Body"].read() == data, key


def test_a_full_disk_answers_507_keeps_what_it_has_and_works_again_when_there_is_room(
    server: Server, tmp_path: Path
) -> None:
    client = server.boto()
    client.create_bucket(Bucket=BUCKET)
    told: dict[str, bytes] = {}
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda name: fill(client, name, told), ("a", "b", "c", "d")))
    assert answers == [[507]] * 4 and len(told) > 20
    check(client, told)

    big = tmp_path / "big.bin"
    big.write_bytes(random.Random(1).randbytes(40 * MIB))
    said = server.aws("s3", "cp", str(big), f"s3://{BUCKET}/big.bin", check=False)
    assert "StorageFull" in said or "507" in said, said
    check(client, told)

    victims = sorted(told)[: len(told) * 2 // 3]
    for first in range(0, len(victims), 100):
        objects = [{"Key": key} for key in victims[first : first + 100]]
        assert "Errors" not in client.delete_objects(Bucket=BUCKET, Delete={"Objects": objects})
    for key in victims:
        del told[key]
    check(client, told)

    disk = server.directory
    before = free_bytes(disk)
    assert server.stop() == 0
    server.cordwood("compact", str(disk), "--volume-size", "4MiB", "--abort-uploads-older-than", "0s")
    assert free_bytes(disk) > before + 20 * MIB
    assert "clean" in server.cordwood("fsck", "--data", str(disk))
    server.start()
    client = server.boto()
    check(client, told)
    small = tmp_path / "small.bin"
    small.write_bytes(big.read_bytes()[: 20 * MIB])
    server.aws("s3", "cp", str(small), f"s3://{BUCKET}/small.bin")
    told["small.bin"] = small.read_bytes()
    check(client, told)
