"""A Python program opens the directory beside the running server; and the index is only a view of the volumes.

Must not know: how processes share the store.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import botocore.exceptions
import pytest

from cordwood.engine import Store, rebuild
from tests.e2e.harness import MIB, Server, Watcher, clean_environment, keys_of, serving

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900), pytest.mark.xdist_group("beside")]


def program(server: Server, body: str) -> list[str]:
    """A command that runs `body` with `store` open on the server's directory."""
    code = "import json, os, sys\nfrom cordwood.engine import Store, Conditions, errors\n"
    code += f"with Store.open({str(server.directory)!r}) as store:\n" + textwrap.indent(
        textwrap.dedent(body), "    "
    )
    return [sys.executable, "-c", code]


def run_program(server: Server, body: str) -> Any:
    done = subprocess.run(
        program(server, body), capture_output=True, text=True, env=clean_environment(), timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout or "null")


def test_a_second_process_reads_and_writes_while_the_server_runs(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        client = server.boto()
        client.create_bucket(Bucket="shared")
        big = bytes(range(256)) * (12 * 1024) + b"tail"
        client.put_object(
            Bucket="shared", Key="from/server", Body=b"small", ContentType="text/x-a", Metadata={"a": "b"}
        )
        client.put_object(Bucket="shared", Key="from/server-big", Body=big)
        seen = run_program(
            server,
            """
            import hashlib
            with store.get("shared", "from/server") as reader:
                small, info = reader.read(), reader.info
            with store.get("shared", "from/server-big") as reader:
                digest = hashlib.md5(reader.read()).hexdigest()
            store.create_bucket("made-beside")
            store.put("made-beside", "small", b"engine", headers={"content-type": "text/x-b"}, metadata={"c": "d"})
            store.put("shared", "from/engine-big", b"z" * 5_000_000)
            print(json.dumps([small.decode(), info.headers["content-type"], dict(info.metadata), info.etag, digest]))
            """,
        )
        small_etag = client.head_object(Bucket="shared", Key="from/server")["ETag"].strip('"')
        big_etag = client.head_object(Bucket="shared", Key="from/server-big")["ETag"].strip('"')
        assert seen == ["small", "text/x-a", {"a": "b"}, small_etag, big_etag]

        got = client.get_object(Bucket="made-beside", Key="small")
        assert (got["Body"].read(), got["ContentType"], got["Metadata"]) == (
            b"engine",
            "text/x-b",
            {"c": "d"},
        )
        assert client.get_object(Bucket="shared", Key="from/engine-big")["Body"].read() == b"z" * 5_000_000
        assert set(keys_of(client, "shared")) == {"from/server", "from/server-big", "from/engine-big"}


def test_racing_creators_in_server_and_program_get_one_winner_per_key(tmp_path: Path) -> None:
    count = 150
    with serving(tmp_path) as server:
        client = server.boto()
        client.create_bucket(Bucket="race")
        other = Watcher(
            program(
                server,
                f"""
                print("ready", flush=True)
                won = []
                for n in range({count}):
                    try:
                        store.put("race", f"{{n:04}}", b"engine", conditions=Conditions(if_none_match=("*",)))
                        won.append(n)
                    except errors.PreconditionFailed:
                        pass
                print(json.dumps(won))
                """,
            ),
            clean_environment(),
        )
        other.wait_for_lines(1)
        won = []
        for n in reversed(range(count)):
            try:
                client.put_object(Bucket="race", Key=f"{n:04}", Body=b"server", IfNoneMatch="*")
                won.append(n)
            except botocore.exceptions.ClientError as error:
                assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 412
        theirs = json.loads(other.finish()[1])
        assert sorted(won + theirs) == list(range(count)), "a key with two winners or with none"
        for n in range(count):
            body = client.get_object(Bucket="race", Key=f"{n:04}")["Body"].read()
            assert body == (b"server" if n in won else b"engine")


def test_a_program_killed_in_the_middle_of_writing_hurts_nobody(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        client = server.boto()
        client.create_bucket(Bucket="shared")
        body = """
            n = 0
            while True:
                data = f"{n}-".encode() * (1 + n % 40_000)
                store.put("shared", f"beside/{n}", data)
                print(n, flush=True)
                n += 1
            """
        written: list[int] = []
        stop = threading.Event()

        def write() -> None:
            while not stop.is_set():
                client.put_object(Bucket="shared", Key=f"server/{len(written)}", Body=b"s" * 1000)
                written.append(len(written))

        thread = threading.Thread(target=write)
        thread.start()
        acknowledged = 0
        for _ in range(3):
            other = Watcher(program(server, body), clean_environment())
            other.wait_for_lines(20)
            other.process.send_signal(signal.SIGKILL)
            acknowledged = max(acknowledged, *(int(line) + 1 for line in other.finish()))
        stop.set()
        thread.join(60)
        keys = keys_of(client, "shared")
        assert {f"server/{n}" for n in written} <= set(keys)
        assert {f"beside/{n}" for n in range(acknowledged)} <= set(keys)
        for n in range(acknowledged):
            assert client.get_object(Bucket="shared", Key=f"beside/{n}")[
                "Body"
            ].read() == f"{n}-".encode() * (1 + n % 40_000)


def test_the_index_rebuilt_from_the_volumes_equals_the_live_one(tmp_path: Path, tree: Path) -> None:
    with serving(tmp_path) as server:
        client = server.boto()
        server.aws("s3", "mb", "s3://rebuild")
        server.aws("s3", "cp", "--recursive", "--only-show-errors", str(tree / "odd"), "s3://rebuild/a/")
        server.aws("s3", "cp", "--recursive", "--only-show-errors", str(tree / "json"), "s3://rebuild/b/")
        run_program(
            server,
            """
            store.create_bucket("kept", versioning="Enabled")
            for n in range(5):
                store.put("kept", "versions", b"%d" % n)
            store.delete("kept", "versions")
            store.rename("rebuild", "a/", "renamed/")
            """,
        )
        client.copy_object(
            Bucket="rebuild", Key="copy", CopySource={"Bucket": "rebuild", "Key": "renamed/three"}
        )
        client.delete_object(Bucket="rebuild", Key="renamed/three")
        upload = client.create_multipart_upload(Bucket="rebuild", Key="unfinished")["UploadId"]
        client.upload_part(
            Bucket="rebuild", Key="unfinished", UploadId=upload, PartNumber=2, Body=bytes(6 * MIB)
        )
        server.kill()
        server.start()
        client = server.boto()
        client.put_object(Bucket="rebuild", Key="after", Body=b"after the kill")
        before = keys_of(client, "rebuild")
        assert server.stop() == 0

        with Store.open(server.directory) as store:
            live = store.logical_dump()
        rebuild(server.directory)
        with Store.open(server.directory) as store:
            assert store.logical_dump() == live
        server.start()
        client = server.boto()
        assert keys_of(client, "rebuild") == before
        assert (
            client.list_parts(Bucket="rebuild", Key="unfinished", UploadId=upload)["Parts"][0]["PartNumber"]
            == 2
        )
        assert (
            client.get_object(Bucket="rebuild", Key="copy")["Body"].read()
            == (tree / "odd" / "three").read_bytes()
        )
