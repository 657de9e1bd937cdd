"""SIGKILL at any moment, and what was acknowledged is still there.

Must not know: how recovery works. A client's view only: it was told yes, or it was not.
Invariant tested: after a kill and a start, each key is in the state of its last acknowledged change, or of the one
change that was under way when the server died; never anything else, and never in part.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import botocore.exceptions
import pytest

from tests.e2e.harness import (
    MIB,
    Server,
    Watcher,
    assert_objects_match,
    client_environment,
    files_below,
    keys_of,
    md5_of,
    multipart_etag,
    serving,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3600)]


@pytest.mark.xdist_group("kill-copy")
def test_a_copy_that_dies_with_the_server_loses_nothing_acknowledged(
    tmp_path: Path, tree: Path, big_file: Path
) -> None:
    """One whole copy, then a second one and a big file beside it, killed in the middle; then the copy is finished."""
    total = len(files_below(tree))
    with serving(tmp_path) as server:
        server.aws("s3", "mb", "s3://kill")
        server.aws("s3", "cp", "--recursive", "--only-show-errors", str(tree), "s3://kill/first/")

        big = Watcher(
            server.aws_command("s3", "cp", "--no-progress", str(big_file), "s3://kill/big"),
            client_environment(server),
        )
        for number, share in enumerate((0.1, 0.4, 0.8)):
            prefix = f"second-{number}/"
            copy = Watcher(
                server.aws_command(
                    "s3", "cp", "--recursive", "--no-progress", str(tree), f"s3://kill/{prefix}"
                ),
                client_environment(server),
            )
            copy.wait_for_lines(int(total * share))
            server.kill()
            acknowledged = uploads_in(copy.finish(), f"s3://kill/{prefix}")
            assert total * share * 0.9 <= len(acknowledged) < total, (
                "the kill was not in the middle of the copy"
            )
            big_done = bool(uploads_in(big.finish(), "s3://kill/"))

            server.start()
            client = server.boto()
            assert_objects_match(client, "kill", prefix, tree, required=acknowledged)
            assert_objects_match(client, "kill", "first/", tree)
            assert ("big" in keys_of(client, "kill")) or not big_done
            if "big" in keys_of(client, "kill"):
                assert_etag(client, "big", multipart_etag(big_file, 8 * MIB))

            server.aws("s3", "sync", "--only-show-errors", str(tree), f"s3://kill/{prefix}")
            assert assert_objects_match(client, "kill", prefix, tree) == total

        for upload in server.boto().list_multipart_uploads(Bucket="kill").get("Uploads", ()):
            server.boto().abort_multipart_upload(
                Bucket="kill", Key=upload["Key"], UploadId=upload["UploadId"]
            )
        server.aws("s3", "cp", "--only-show-errors", str(big_file), "s3://kill/big")
        server.aws("s3", "cp", "--only-show-errors", "s3://kill/big", str(tmp_path / "back"))
        assert md5_of(tmp_path / "back") == md5_of(big_file)
        assert server.stop() == 0


def uploads_in(lines: list[str], destination: str) -> set[str]:
    """The names that awscli reported as uploaded: `upload: FROM to s3://bucket/key`, one for each 200."""
    return {
        line.partition(f" to {destination}")[2]
        for line in lines
        if line.startswith("upload: ") and f" to {destination}" in line
    }


def assert_etag(client: Any, key: str, expected: str) -> None:
    assert client.head_object(Bucket="kill", Key=key)["ETag"].strip('"') == expected


# --- random histories -------------------------------------------------------------------------------------------

ABSENT = "absent"


@dataclass
class Writer:
    """One client that changes its own keys one after the other, and remembers what it was told."""

    number: int
    seed: int
    acknowledged: dict[str, str] = field(default_factory=dict)  # key -> MD5 of its content, or ABSENT
    under_way: tuple[str, str] | None = None
    count: int = 0
    broken: tuple[float, Exception] | None = None
    surprise: Exception | None = None

    def run(self, server: Server, stop: threading.Event) -> None:
        client = server.boto()
        choose = random.Random(self.seed)
        while not stop.is_set():
            key = f"w{self.number}/{choose.randrange(30)}"
            kind = choose.choices(("put", "delete", "copy", "multipart"), (70, 15, 10, 5))[0]
            size = choose.choice((0, 10, 4096, 65_536, 65_537, 300_000, MIB + 1))
            # Half of the contents repeat, so that chunks are shared and their references counted.
            data = random.Random(choose.randrange(8) if choose.random() < 0.5 else choose.random()).randbytes(
                size
            )
            try:
                self._change(client, kind, key, data)
            except (botocore.exceptions.BotoCoreError, OSError) as error:
                # The connection broke: right when the server was killed, and a fault of the server before that.
                self.broken = (time.monotonic(), error)
                return
            except (
                Exception
            ) as error:  # an answer that is an error, or a fault of this test: shown by the main thread
                self.surprise = error
                return

    def _change(self, client: Any, kind: str, key: str, data: bytes) -> None:
        after = ABSENT if kind == "delete" else hashlib.md5(data).hexdigest()
        source = next(
            (name for name, state in self.acknowledged.items() if state != ABSENT and name != key), None
        )
        if kind == "copy" and source is not None:
            after = self.acknowledged[source]
        self.under_way = (key, after)
        if kind == "delete":
            client.delete_object(Bucket="kill", Key=key)
        elif kind == "copy" and source is not None:
            client.copy_object(Bucket="kill", Key=key, CopySource={"Bucket": "kill", "Key": source})
        elif kind == "multipart":
            upload = client.create_multipart_upload(Bucket="kill", Key=key)["UploadId"]
            where = {"Bucket": "kill", "Key": key, "UploadId": upload}
            part = client.upload_part(**where, PartNumber=1, Body=data)
            parts = [{"PartNumber": 1, "ETag": part["ETag"]}]
            client.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})
        else:
            client.put_object(Bucket="kill", Key=key, Body=data)
        self.acknowledged[key] = after
        self.under_way = None
        self.count += 1

    def verify(self, client: Any) -> None:
        """Adopts what it finds for the change that was under way: from now on that is the truth."""
        found = {}
        for key in keys_of(client, "kill", f"w{self.number}/"):
            found[key] = hashlib.md5(client.get_object(Bucket="kill", Key=key)["Body"].read()).hexdigest()
        for key in set(found) | set(self.acknowledged):
            allowed = {self.acknowledged.get(key, ABSENT)}
            if self.under_way is not None and self.under_way[0] == key:
                allowed.add(self.under_way[1])
            state = found.get(key, ABSENT)
            assert state in allowed, f"{key} (seed {self.seed}): found {state}, allowed {allowed}"
        self.acknowledged = found
        self.under_way = None


@pytest.mark.xdist_group("kill-history")
def test_random_changes_by_many_clients_survive_many_kills(tmp_path: Path, long_run: bool) -> None:
    rounds = 25 if long_run else 4
    choose = random.Random(20)
    writers = [Writer(number, seed=number) for number in range(8)]
    with serving(tmp_path) as server:
        server.boto().create_bucket(Bucket="kill")
        for number in range(rounds):
            stop = threading.Event()
            threads = [threading.Thread(target=writer.run, args=(server, stop)) for writer in writers]
            for thread in threads:
                thread.start()
            time.sleep(choose.uniform(0.3, 3))
            killed_at = time.monotonic()
            server.kill()
            stop.set()
            for thread in threads:
                thread.join(120)
            assert [writer.surprise for writer in writers if writer.surprise] == []
            early = [writer.broken[1] for writer in writers if writer.broken and writer.broken[0] < killed_at]
            assert not early, "connections broke while the server lived"
            server.start()
            client = server.boto()
            for writer in writers:
                writer.verify(client)
                writer.seed += 1000 * (number + 1)
        assert sum(writer.count for writer in writers) > 20 * rounds, (
            "hardly anything happened between the kills"
        )


# --- one worker at a time ---------------------------------------------------------------------------------------


@dataclass
class Counter:
    """One client that counts upwards in one key, over connections that break.

    A write whose connection broke may have happened or not. But once a later one was acknowledged, nothing earlier may
    ever come back: not even from the log of the worker that died with it.
    """

    key: str
    attempted: int = 0
    acknowledged: int = 0
    surprise: Exception | None = None

    def run(self, server: Server, stop: threading.Event) -> None:
        client = server.boto()
        while not stop.is_set():
            self.attempted += 1
            try:
                client.put_object(Bucket="kill", Key=self.key, Body=b"%d" % self.attempted)
                self.acknowledged = self.attempted
                self.check(client)
            except (botocore.exceptions.BotoCoreError, OSError):
                continue
            except Exception as error:
                self.surprise = error
                return

    def check(self, client: Any) -> None:
        value = int(client.get_object(Bucket="kill", Key=self.key)["Body"].read())
        assert self.acknowledged <= value <= self.attempted, f"{self.key}: {value} came back, {self}"


@pytest.mark.xdist_group("kill-history")
def test_a_worker_that_dies_takes_nothing_with_it_and_brings_nothing_stale_back(
    tmp_path: Path, long_run: bool
) -> None:
    """Workers are killed one by one while clients go on; each replacement recovers the log of a dead one."""
    with serving(tmp_path, workers=2) as server:
        server.boto().create_bucket(Bucket="kill")
        before = len(server.processes())
        stop = threading.Event()
        counters = [Counter(f"counter-{number}") for number in range(6)]
        threads = [threading.Thread(target=counter.run, args=(server, stop)) for counter in counters]
        for thread in threads:
            thread.start()
        choose = random.Random(21)
        for _ in range(40 if long_run else 8):
            time.sleep(choose.uniform(0.2, 1))
            assert server.process is not None
            workers = [pid for pid in server.processes() if pid != server.process.pid]
            if workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(choose.choice(workers), signal.SIGKILL)
        time.sleep(2)
        stop.set()
        for thread in threads:
            thread.join(120)
        assert [counter.surprise for counter in counters if counter.surprise] == []
        assert min(counter.acknowledged for counter in counters) > 10, (
            "hardly anything happened between the kills"
        )
        wait_for_processes(server, before)

        client = server.boto()
        for counter in counters:
            counter.check(client)
        server.kill()
        server.start()
        client = server.boto()
        for counter in counters:
            counter.check(client)
        assert server.stop() == 0


def wait_for_processes(server: Server, count: int) -> None:
    deadline = time.monotonic() + 30
    while len(server.processes()) != count:
        assert time.monotonic() < deadline, f"{len(server.processes())} processes, {count} before the kills"
        time.sleep(0.1)
