"""`mv` within one bucket: a rename where the server has it, and only there."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cordwood.engine import Store
from tests.cli.harness import Person, serving
from tests.cli.test_copying import keys


def put(person: Person, uri: str, text: str) -> None:
    person.run("cp", "-", uri, data=text.encode())


def test_a_folder_is_renamed_in_one_step_with_all_its_versions(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with Store.open(store) as made:
        made.create_bucket("moving", versioning="Enabled")
        for text in (b"first", b"second"):
            made.put("moving", "old/k", text)
        made.put("moving", "older", b"a sibling")
    person = Person(tmp_path / "home", {}, tmp_path)
    with serving(tmp_path / "home", store, "--workers", "1"):
        said = person.run("mv", "-r", "s3://moving/old", "s3://moving/new")
        assert said.err == "move: all below s3://moving/old/ -> s3://moving/new/\n" and said.out == ""
        (row,) = person.run("mv", "-r", "s3://moving/new/", "s3://moving/newer/", "--json").rows()
        assert row == {"move": "s3://moving/new/", "to": "s3://moving/newer/", "all_below": True}
    with Store.open(store) as moved:
        versions = moved.list_versions("moving").entries
        assert [each.key for each in versions] == ["newer/k", "newer/k", "older"]


def test_what_has_something_in_its_way_is_renamed_one_by_one(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with Store.open(store) as made:
        made.create_bucket("moving")
        for key in ("old/a", "old/b", "old/sub/", "old/sub/d", "new/b", "new/c"):
            made.put("moving", key, key.encode())
    person = Person(tmp_path / "home", {}, tmp_path)
    with serving(tmp_path / "home", store, "--workers", "1"):
        rows = person.run("mv", "-r", "s3://moving/old", "s3://moving/new", "--json").rows()
        assert len(rows) == 4 and keys(person, "moving") == [
            "new/a",
            "new/b",
            "new/c",
            "new/sub/",
            "new/sub/d",
        ]
        assert person.run("cat", "s3://moving/new/b").out == "old/b"
        assert person.run("cat", "s3://moving/new/sub/").out == "old/sub/"
        person.run("mv", "-r", "s3://moving/none", "s3://moving/some", code=1)


def test_a_dry_run_renames_nothing(person: Person, bucket: str) -> None:
    put(person, f"s3://{bucket}/old/a", "a")
    assert "(dry run)" in person.run("mv", "-r", f"s3://{bucket}/old", f"s3://{bucket}/new", "--dry-run").out
    assert keys(person, bucket) == ["old/a"]


def test_metadata_that_is_given_anew_asks_for_a_copy(person: Person, bucket: str) -> None:
    put(person, f"s3://{bucket}/a", "a")
    (row,) = person.run("mv", f"s3://{bucket}/a", f"s3://{bucket}/b", "--metadata", "m=1", "--json").rows()
    assert row["verified"] == "etag" and keys(person, bucket) == ["b"]
    (row,) = person.run("mv", f"s3://{bucket}/b", f"s3://{bucket}/c", "--json").rows()
    assert row["verified"] == "answer" and keys(person, bucket) == ["c"]


@pytest.mark.parametrize("server_name", ["AmazonS3", "nginx"])
def test_another_server_is_never_asked_to_rename(tmp_path: Path, server_name: str) -> None:
    """It may know no such parameter, and take the request for an upload of nothing."""
    asked: list[tuple[str, str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        server_version, sys_version = server_name, ""

        def answer(self, body: bytes = b"") -> None:
            asked.append((self.command, self.path, self.headers["x-amz-copy-source"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"e"')
            self.end_headers()
            self.wfile.write(body)

        def do_PUT(self) -> None:
            self.answer(b"<CopyObjectResult><ETag>e</ETag></CopyObjectResult>")

        do_HEAD = do_DELETE = answer

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{other.server_address[1]}"
        person = Person(tmp_path / "home", {}, tmp_path)
        person.run("mv", "s3://b/k", "s3://b/l", "--endpoint", url, "--no-sign")
        other.shutdown()
    assert ("PUT", "/b/l", "b/k") in asked and asked[-1][:2] == ("DELETE", "/b/k")
    assert not any("renameObject" in path for _, path, _ in asked)
