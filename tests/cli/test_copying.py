"""`cp` and `mv`: layouts, large files, streams, verification, broken connections."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import subprocess
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cordwood.server.wire.checksums import hasher
from tests.cli.harness import Person, Served, command, environment, eventually, serving

MIB = 1 << 20
LARGE = 37 * MIB + 12345  # several parts, the last one short


@pytest.fixture(scope="module")
def large() -> bytes:
    return random.Random(7).randbytes(LARGE)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make_tree(folder: Path) -> dict[str, bytes]:
    files = {"a.txt": b"a", "sub/b.txt": b"bb", "sub/deep/c d.bin": b"", "ü/🙂": b"smile"}
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return files


def keys(person: Person, bucket: str) -> list[str]:
    return [row["key"] for row in person.run("ls", "-r", "--json", f"s3://{bucket}").rows()]


def test_a_tree_goes_up_across_and_down_with_the_same_layout(
    person: Person, bucket: str, tmp_path: Path
) -> None:
    files = make_tree(tmp_path / "tree")
    up = person.run("cp", "-r", "tree", f"s3://{bucket}/up")
    assert "copy: 4 objects" in up.err and up.out == ""
    assert keys(person, bucket) == sorted(f"up/{name}" for name in files)
    person.run("cp", f"s3://{bucket}/up", f"s3://{bucket}/across/", "--recursive", "-q")
    person.run("cp", f"s3://{bucket}/across/", "down", "-r")
    assert tree(tmp_path / "down") == files
    assert not list(tmp_path.rglob("*.part"))


def test_one_file_lands_under_its_own_name_in_a_folder(person: Person, bucket: str, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_bytes(b"note")
    for destination in (f"s3://{bucket}", f"s3://{bucket}/in/", f"s3://{bucket}/renamed"):
        person.run("cp", "note.txt", destination)
    assert keys(person, bucket) == ["in/note.txt", "note.txt", "renamed"]
    (tmp_path / "there").mkdir()
    for destination, expected in (("there", "there/note.txt"), ("new/", "new/note.txt"), ("copy", "copy")):
        person.run("cp", f"s3://{bucket}/note.txt", destination)
        assert (tmp_path / expected).read_bytes() == b"note"


def test_a_copied_file_keeps_the_time_and_guesses_the_type(
    person: Person, bucket: str, tmp_path: Path
) -> None:
    (tmp_path / "page.html").write_bytes(b"<p>")
    person.run("cp", "page.html", f"s3://{bucket}")
    assert "content-type: text/html" in person.run("stat", f"s3://{bucket}/page.html").out
    person.run("cp", f"s3://{bucket}/page.html", "back")
    listed = person.run("ls", "--json", f"s3://{bucket}").rows()[0]
    assert abs((tmp_path / "back").stat().st_mtime - listed["modified_s"]) < 1


def test_a_large_file_goes_in_parts_both_ways(
    person: Person, bucket: str, tmp_path: Path, large: bytes
) -> None:
    (tmp_path / "large").write_bytes(large)
    up = person.run("cp", "large", f"s3://{bucket}/large", "--json").rows()[0]
    assert up["etag"].endswith("-5") and up["verified"] == "crc64nvme"
    down = person.run("cp", f"s3://{bucket}/large", "back", "--json").rows()[0]
    assert down["verified"] == "crc64nvme"
    assert (tmp_path / "back").read_bytes() == large
    headers = person.run("stat", f"s3://{bucket}/large", "--json").rows()[0]["headers"]
    crc = hasher("CRC64NVME")
    crc.update(large)
    assert headers["x-amz-checksum-crc64nvme"] == crc.base64()


@pytest.mark.parametrize("checksum", ["crc32c", "crc32"])
def test_other_checksums_work_for_small_and_large(
    person: Person, bucket: str, tmp_path: Path, large: bytes, checksum: str
) -> None:
    (tmp_path / "large").write_bytes(large)
    (tmp_path / "small").write_bytes(b"small")
    for name in ("large", "small"):
        up = person.run("cp", name, f"s3://{bucket}", "--checksum", checksum, "--json").rows()[0]
        down = person.run("cp", f"s3://{bucket}/{name}", "back", "--json").rows()[0]
        assert up["verified"] == down["verified"] == checksum


@pytest.mark.parametrize("size", [0, 1, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1, 20 * MIB])
def test_standard_input_of_any_length_comes_back_on_standard_output(
    person: Person, bucket: str, large: bytes, size: int
) -> None:
    uri = f"s3://{bucket}/stream"
    assert person.run_bytes("cp", "-", uri, data=large[:size]).returncode == 0
    back = person.run_bytes("cp", uri, "-")
    assert back.returncode == 0 and back.stdout == large[:size]


def test_a_move_leaves_nothing_behind_and_loses_nothing(person: Person, bucket: str, tmp_path: Path) -> None:
    files = make_tree(tmp_path / "tree")
    person.run("mv", "-r", "tree", f"s3://{bucket}/moved")
    assert tree(tmp_path / "tree") == {}
    person.run("mv", f"s3://{bucket}/moved/a.txt", f"s3://{bucket}/b.txt")
    assert "moved/a.txt" not in keys(person, bucket) and "b.txt" in keys(person, bucket)
    person.run("mv", "-r", f"s3://{bucket}/moved", "back")
    assert tree(tmp_path / "back") == {name: data for name, data in files.items() if name != "a.txt"}
    assert keys(person, bucket) == ["b.txt"]


def test_nothing_is_moved_onto_itself_or_into_itself(person: Person, bucket: str) -> None:
    person.run("cp", "-", f"s3://{bucket}/d/k", data=b"x")
    person.run("mv", f"s3://{bucket}/d/k", f"s3://{bucket}/d/", code=2)
    person.run("mv", "-r", f"s3://{bucket}/d", f"s3://{bucket}/d/e", code=2)
    assert keys(person, bucket) == ["d/k"]


def test_metadata_is_kept_by_a_server_side_copy_unless_it_is_given_anew(person: Person, bucket: str) -> None:
    source = f"s3://{bucket}/source"
    person.run("cp", "-", source, "--metadata", "a=1", "--content-type", "x/y", data=b"x")
    person.run("cp", source, f"s3://{bucket}/kept")
    person.run("cp", source, f"s3://{bucket}/new", "--metadata", "b=2")
    assert person.run("stat", f"s3://{bucket}/kept", "--json").rows()[0]["metadata"] == {"a": "1"}
    assert person.run("stat", f"s3://{bucket}/new", "--json").rows()[0]["metadata"] == {"b": "2"}


def test_a_dry_run_says_everything_and_does_nothing(person: Person, bucket: str, tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    assert person.run("cp", "-r", "tree", f"s3://{bucket}", "--dry-run").out.count("(dry run) copy:") == 4
    assert keys(person, bucket) == []


def test_a_key_never_becomes_a_file_outside_the_destination(
    person: Person, bucket: str, tmp_path: Path
) -> None:
    for key in ("../evil", "a/../../evil", "/etc/evil", "a//b", "fine"):
        person.run("cp", "-", f"s3://{bucket}/{key}", data=b"x")
    failed = person.run("cp", "-r", f"s3://{bucket}", "in/down", code=1)
    assert failed.err.count("cannot become a file name") == 4
    assert tree(tmp_path) == {"in/down/fine": b"x"}


def test_one_bad_file_does_not_keep_the_others(person: Person, bucket: str, tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    os.mkfifo(tmp_path / "tree/pipe")
    (tmp_path / "tree/loop").symlink_to(tmp_path / "tree")
    (tmp_path / "tree/gone").symlink_to("nowhere")
    Path(os.fsdecode(os.fsencode(tmp_path / "tree") + b"/\xff")).write_bytes(b"x")
    failed = person.run("cp", "-r", "tree", f"s3://{bucket}", code=1)
    for words in ("not a regular file", "a directory above it", "gone", "not valid UTF-8"):
        assert words in failed.err
    assert len(keys(person, bucket)) == 4


def test_copying_nothing_is_an_error(person: Person, bucket: str, tmp_path: Path) -> None:
    assert "nothing lies below" in person.run("cp", "-r", f"s3://{bucket}/none", "out", code=1).err
    assert "No such file" in person.run("cp", "none", f"s3://{bucket}", code=1).err
    (tmp_path / "folder").mkdir()
    assert "--recursive" in person.run("cp", "folder", f"s3://{bucket}", code=2).err


# --- when things break ----------------------------------------------------------------------------------------


@contextmanager
def breaking_proxy(port: int, cut_after: list[int]) -> Iterator[str]:
    """Passes connections on to `port`; the first ones are cut after so many bytes of answers each."""
    listener = socket.create_server(("127.0.0.1", 0))
    open_sockets: list[socket.socket] = [listener]

    def pump(source: socket.socket, to: socket.socket, limit: int | None) -> None:
        try:
            while data := source.recv(65536 if limit is None else max(1, min(65536, limit))):
                to.sendall(data)
                if limit is not None:
                    limit -= len(data)
                    if limit <= 0:
                        break
        except OSError:
            pass
        for sock in (source, to):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            upstream = socket.create_connection(("127.0.0.1", port))
            open_sockets.extend((client, upstream))
            limit = cut_after.pop(0) if cut_after else None
            threading.Thread(target=pump, args=(client, upstream, None), daemon=True).start()
            threading.Thread(target=pump, args=(upstream, client, limit), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        for sock in open_sockets:
            sock.close()
        thread.join(5)


def with_keys(person: Person, url: str) -> Person:
    """The same keys at another address, which the profile's keys would otherwise not be sent to."""
    return Person(person.home, {"CORDWOOD_PROFILE": "local", "CORDWOOD_ENDPOINT": url}, person.cwd)


@pytest.mark.parametrize("size", [3 * MIB, LARGE])
def test_a_download_survives_broken_connections(
    person: Person, server: Served, bucket: str, tmp_path: Path, large: bytes, size: int
) -> None:
    person.run_bytes("cp", "-", f"s3://{bucket}/x", data=large[:size])
    with breaking_proxy(server.port, [100, 200_000, 1_000_000, 50]) as url:
        with_keys(person, url).run("cp", f"s3://{bucket}/x", "back")
    assert (tmp_path / "back").read_bytes() == large[:size]


def test_an_upload_survives_broken_connections(
    person: Person, server: Served, bucket: str, tmp_path: Path, large: bytes
) -> None:
    (tmp_path / "large").write_bytes(large)
    with breaking_proxy(server.port, [10, 0, 10, 5]) as url:
        with_keys(person, url).run("cp", "large", f"s3://{bucket}/x")
    assert person.run_bytes("cat", f"s3://{bucket}/x").stdout == large


def test_a_copy_survives_workers_that_are_killed(tmp_path: Path) -> None:
    files = {f"{number % 7}/{number}": random.Random(number).randbytes(number * 97) for number in range(400)}
    for name, data in files.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(data)
    person = Person(tmp_path / "home", {}, tmp_path)
    with serving(person.home, tmp_path / "store", "--workers", "2") as served:
        person.run("mb", "s3://tree")
        copying = subprocess.Popen(
            command("cp", "-r", "-q", "tree", "s3://tree"), cwd=tmp_path, env=environment(person.home)
        )
        for _ in range(3):
            time.sleep(0.2)
            victim = served.workers()[0]
            os.kill(victim, signal.SIGKILL)
            eventually(lambda gone=victim: gone not in (now := served.workers()) and len(now) == 2)
        assert copying.wait(60) == 0
        assert served.output.count(" died ") == 3
        person.run("cp", "-r", "s3://tree", "back", "-q")
    assert tree(tmp_path / "back") == files


@contextmanager
def endpoint(headers: dict[str, str], body: bytes) -> Iterator[str]:
    """Answers every GET and HEAD alike."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.send_response(200)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": '"' + hashlib.md5(b"what was stored").hexdigest() + '"'},
        {"ETag": '"0-2"', "x-amz-checksum-crc32": b64encode(bytes(4)).decode()},
    ],
    ids=["md5", "crc32"],
)
def test_a_download_that_is_not_what_was_stored_is_refused_and_leaves_no_file(
    tmp_path: Path, headers: dict[str, str]
) -> None:
    person = Person(tmp_path / "home", {}, tmp_path)
    with endpoint(headers, b"what was sent..") as url:
        for destination in ("file", "-"):
            failed = person.run("cp", "s3://b/k", destination, "--endpoint", url, "--no-sign", code=1)
            assert "expected" in failed.err
        assert "expected" in person.run("cat", "s3://b/k", "--endpoint", url, "--no-sign", code=1).err
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_an_interrupted_upload_leaves_no_parts_behind(person: Person, server: Served, bucket: str) -> None:
    """Ctrl-C in the middle of a stream: the multipart upload is aborted, so the bucket can be removed."""
    process = subprocess.Popen(
        command("cp", "-", f"s3://{bucket}/x"),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(person.home),
    )
    assert process.stdin is not None and process.stderr is not None
    process.stdin.write(bytes(30 * MIB))
    process.stdin.flush()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    error = process.stderr.read().decode()
    process.stdin.close()
    process.stderr.close()
    assert process.wait(30) == 130
    assert error.strip() == "cordwood: interrupted"
    eventually(lambda: person.run("rb", f"s3://{bucket}", code=None).code == 0)
