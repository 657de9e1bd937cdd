"""The client commands against a real server: what they do, what they print, how they fail."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.cli.harness import Person, Served

NASTY_KEYS = (
    "a//b",
    "../up",
    "sp ace+plus%2F?&=#",
    "ünï/çø∂é🙂",
    "/leading",
    "trailing-dot./.",
    "new\nline",
    "<&>'\"",
)


def put(person: Person, uri: str, data: bytes = b"hello") -> None:
    person.run("cp", "-", uri, data=data)


def keys(person: Person, bucket: str) -> list[str]:
    return [row["key"] for row in person.run("ls", "-r", "--json", f"s3://{bucket}").rows()]


def test_ls_works_without_flags_after_serve_on_the_same_machine(person: Person, bucket: str) -> None:
    assert bucket in person.run("ls").out


def test_a_bucket_is_made_listed_and_removed(person: Person, bucket: str) -> None:
    assert bucket in person.run("ls").out
    person.run("rb", f"s3://{bucket}")
    assert bucket not in person.run("ls").out
    assert "NoSuchBucket" in person.run("rb", f"s3://{bucket}", code=1).err


def test_a_full_bucket_is_removed_only_with_force(person: Person, bucket: str) -> None:
    put(person, f"s3://{bucket}/a/b")
    refused = person.run("rb", f"s3://{bucket}", code=1)
    assert "--force" in refused.err
    person.run("rb", "--force", f"s3://{bucket}")
    assert bucket not in person.run("ls").out


def test_ls_shows_folders_sizes_and_relative_names_like_awscli(person: Person, bucket: str) -> None:
    put(person, f"s3://{bucket}/dir/one", b"1")
    put(person, f"s3://{bucket}/dir/sub/two", b"22")
    put(person, f"s3://{bucket}/dirt", b"333")
    top = person.run("ls", f"s3://{bucket}").out.splitlines()
    assert top[0] == f"{'PRE':>30} dir/"
    assert top[1].endswith("         3 dirt")
    inside = person.run("ls", f"s3://{bucket}/dir/").out.splitlines()
    assert inside[0].endswith(" 1 one") and inside[1] == f"{'PRE':>30} sub/"
    everything = person.run("ls", "--recursive", f"{bucket}/dir", "--summarize").out
    assert "dir/sub/two" in everything and "dirt" in everything and "Total objects: 3" in everything
    assert person.run("ls", f"s3://{bucket}/nothing", code=1).err.startswith("cordwood: nothing begins with")


def test_every_key_survives_the_way_in_and_out(person: Person, bucket: str) -> None:
    for key in NASTY_KEYS:
        put(person, f"s3://{bucket}/{key}", key.encode())
    assert sorted(keys(person, bucket)) == sorted(NASTY_KEYS)
    for key in NASTY_KEYS:
        assert person.run("cat", f"s3://{bucket}/{key}").out == key
    person.run("rm", "-r", f"s3://{bucket}")
    assert keys(person, bucket) == []


def test_a_listing_of_keys_cannot_speak_to_the_terminal(person: Person, bucket: str) -> None:
    put(person, f"s3://{bucket}/red\x1b[31m")
    assert "\x1b" not in person.run("ls", f"s3://{bucket}").out


def test_cat_gives_ranges_and_several_objects(person: Person, bucket: str) -> None:
    put(person, f"s3://{bucket}/digits", b"0123456789")
    put(person, f"s3://{bucket}/empty", b"")
    uri = f"s3://{bucket}/digits"
    assert person.run("cat", uri, f"s3://{bucket}/empty", uri).out == "01234567890123456789"
    for text, expected in (("2-4", "234"), ("7-", "789"), ("-2", "89"), ("bytes=0-0", "0")):
        assert person.run("cat", uri, "--range", text).out == expected
    assert "InvalidRange" in person.run("cat", uri, "--range", "10-", code=1).err
    assert person.run("cat", uri, "--range", "x", code=2).err


def test_stat_shows_headers_and_metadata(person: Person, bucket: str) -> None:
    person.run(
        "cp", "-", f"s3://{bucket}/page", "--content-type", "text/html", "--cache-control", "no-store",
        "--metadata", "Colour=blue", data=b"<p>",
    )  # fmt: skip
    found = person.run("stat", f"s3://{bucket}/page", "--json").rows()[0]
    assert found["size"] == 3
    assert found["headers"]["content-type"] == "text/html"
    assert found["headers"]["cache-control"] == "no-store"
    assert found["metadata"] == {"colour": "blue"}
    assert "content-type: text/html" in person.run("stat", f"s3://{bucket}/page").out
    assert person.run("stat", f"s3://{bucket}").out.startswith(f"s3://{bucket}/")


@pytest.mark.parametrize("arguments", [("stat",), ("cat",), ("cp", "there")])
def test_what_is_not_there_is_named_and_gives_exit_code_one(
    person: Person, bucket: str, arguments: tuple[str, ...]
) -> None:
    uri = f"s3://{bucket}/missing"
    failed = person.run(arguments[0], uri, *arguments[1:], code=1)
    assert uri in failed.err and "Traceback" not in failed.err
    assert len(failed.err.splitlines()) == 1


def test_wrong_usage_gives_exit_code_two(person: Person, bucket: str) -> None:
    for arguments in (
        ("cp", "here", "there"),
        ("cp", f"s3://{bucket}/folder/", "."),
        ("rm", f"s3://{bucket}"),
        ("mb", f"s3://{bucket}/key"),
        ("ls", "s3:///key"),
        ("presign", f"s3://{bucket}/k", "--expires", "8d"),
        ("presign", f"s3://{bucket}/k", "--expires", "soon"),
        ("nonsense",),
        ("ls", "--nonsense"),
    ):
        failed = person.run(*arguments, code=2)
        assert failed.err and "Traceback" not in failed.err


def test_rm_deletes_one_object_or_all_below_a_folder_but_no_sibling(person: Person, bucket: str) -> None:
    for key in ("dir/a", "dir/b/c", "dir2/a", "dirt"):
        put(person, f"s3://{bucket}/{key}")
    dry = person.run("rm", "-r", "--dry-run", f"s3://{bucket}/dir")
    assert dry.out.count("(dry run)") == 2
    person.run("rm", "-r", f"s3://{bucket}/dir")
    assert keys(person, bucket) == ["dir2/a", "dirt"]
    person.run("rm", f"s3://{bucket}/dirt", f"s3://{bucket}/dir2/a")
    assert keys(person, bucket) == []
    person.run("rm", f"s3://{bucket}/dirt")  # as in S3, deleting nothing is no error


def test_a_presigned_url_works_without_keys_and_only_for_its_method(
    person: Person, bucket: str, server: Served
) -> None:
    uri = f"s3://{bucket}/by hand/é"
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    put_url = person.run("presign", uri, "--method", "put", "--expires", "5m").out.strip()
    get_url = json.loads(person.run("presign", uri, "--json").out)["url"]
    for method, url, status in (("PUT", put_url, 200), ("GET", get_url, 200), ("GET", put_url, 403)):
        parts = urlsplit(url)
        connection.request(method, f"{parts.path}?{parts.query}", b"signed" if method == "PUT" else None)
        response = connection.getresponse()
        body = response.read()
        assert response.status == status, body
        if method == "GET" and status == 200:
            assert body == b"signed"
    connection.close()


def test_a_server_that_is_not_there_is_one_clear_line(person: Person) -> None:
    failed = person.run("--", "ls", "--endpoint", "http://127.0.0.1:1", "--no-sign", code=1)
    assert failed.err == (
        "cordwood: cannot talk to http://127.0.0.1:1: Connection refused; is the server running there? "
        "The endpoint comes from --endpoint\n"
    )


def test_wrong_keys_say_where_the_endpoint_came_from(person: Person, server: Served) -> None:
    failed = person.run("ls", "--access-key", "nobody", "--secret-key", "wrong", code=1)
    assert "InvalidAccessKeyId" in failed.err and "profile 'local'" in failed.err


def test_keys_come_from_aws_variables_when_nothing_else_is_known(
    person: Person, bucket: str, server: Served, tmp_path: Path
) -> None:
    profile = (person.home / ".config/cordwood/config.toml").read_text()
    found = dict(line.split(" = ") for line in profile.splitlines() if " = " in line)
    env = {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": json.loads(found["access_key"]),
        "AWS_SECRET_ACCESS_KEY": json.loads(found["secret_key"]),
    }
    stranger = Person(tmp_path / "elsewhere", env, tmp_path)
    assert bucket in stranger.run("ls").out
    assert "no endpoint known" in Person(tmp_path / "nothing", {}, tmp_path).run("ls", code=2).err
