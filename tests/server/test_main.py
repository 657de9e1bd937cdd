"""Processes: start, readiness, deaths, stops, and everything that keeps a server from starting."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import stat
import threading
import time
from pathlib import Path

import pytest

from cordwood.server.config import ConfigError
from cordwood.server.keyfile import read_or_create
from tests.cli.harness import Person, Served, eventually, serving


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def status_of(served: Served, path: str = "/") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def refused(person: Person, *arguments: str) -> tuple[int, str]:
    """Exit code and the one line of a `serve` that does not start."""
    done = person.run("serve", *arguments, code=None)
    lines = done.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("cordwood: "), done.err
    return done.code, lines[0]


# --- starting -------------------------------------------------------------------------------------------------


def test_when_the_listening_line_is_printed_every_worker_answers(home: Path, store: Path) -> None:
    with serving(home, store, "--workers", "3") as served:
        assert len(served.workers()) == 3
        assert all(status_of(served) == 403 for _ in range(20))
        assert "Traceback" not in served.output


def test_the_first_start_makes_a_key_pair_shows_it_once_and_keeps_it_private(home: Path, store: Path) -> None:
    with serving(home, store, "--workers", "1") as served:
        first = served.output
        credential = read_or_create(store).credential
        assert credential.secret_key in first
        assert stat.S_IMODE((store / "credentials").stat().st_mode) == 0o600
        profile = home / ".config/cordwood/config.toml"
        assert stat.S_IMODE(profile.stat().st_mode) == 0o600
    with serving(home, store, "--workers", "1") as served:
        assert credential.secret_key not in served.output
        assert str(store / "credentials") in served.output
        assert read_or_create(store).credential == credential
        command_line = Path(f"/proc/{served.process.pid}/cmdline").read_bytes()
        assert credential.secret_key.encode() not in command_line


def test_the_lines_to_paste_make_awscli_work(home: Path, store: Path) -> None:
    """The export line and the URL of the second line, as a shell and botocore understand them."""
    import shlex

    import boto3

    with serving(home, store, "--workers", "1") as served:
        export = next(line for line in served.lines if line.strip().startswith("export "))
        variables = dict(word.split("=", 1) for word in shlex.split(export)[1:])
        url = next(line for line in served.lines if "aws --endpoint-url" in line).split()[2]
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("AWS_")]:
                patch.delenv(name)
            for name, value in variables.items():
                patch.setenv(name, value)
            client = boto3.session.Session().client("s3", endpoint_url=url)
            client.create_bucket(Bucket="pasted")
            assert [b["Name"] for b in client.list_buckets()["Buckets"]] == ["pasted"]


def test_given_keys_are_used_and_none_are_made(home: Path, store: Path, tmp_path: Path) -> None:
    env = {"CORDWOOD_ACCESS_KEY": "MINE", "CORDWOOD_SECRET_KEY": "very-secret"}
    with serving(home, store, "--workers", "1", env=env) as served:
        assert not (store / "credentials").exists()
        assert "very-secret" not in served.output
        Person(home, {}, tmp_path).run("mb", "s3://here")
        wrong = Person(home, {**env, "CORDWOOD_SECRET_KEY": "other"}, tmp_path).run("ls", code=1)
        assert "SignatureDoesNotMatch" in wrong.err


def test_anonymous_warns_and_serves_everybody(home: Path, store: Path, tmp_path: Path) -> None:
    with serving(home, store, "--anonymous", "--workers", "1") as served:
        assert "warning: --anonymous" in served.output
        assert status_of(served) == 200
        Person(home, {}, tmp_path).run("mb", "s3://open")


def test_no_profile_leaves_the_profiles_alone_and_others_are_kept(home: Path, store: Path) -> None:
    profiles = home / ".config/cordwood/config.toml"
    with serving(home, store, "--no-profile", "--workers", "1"):
        assert not profiles.exists()
    profiles.parent.mkdir(parents=True)
    profiles.write_text('# mine\n[profile.lab]\nendpoint = "http://lab"  # far\n')
    with serving(home, store, "--workers", "1") as served:
        text = profiles.read_text()
        assert (
            text.startswith('# mine\n[profile.lab]\nendpoint = "http://lab"  # far\n') and served.url in text
        )


def test_a_server_on_ipv6_is_reachable_there(home: Path, store: Path, tmp_path: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    with serving(home, store, "--bind", "[::1]:0", "--workers", "1") as served:
        assert served.url.startswith("http://[::1]:")
        Person(home, {}, tmp_path).run("mb", "s3://six")


# --- not starting ---------------------------------------------------------------------------------------------


def test_a_port_in_use_is_one_line_also_when_a_cordwood_uses_it(
    home: Path, store: Path, tmp_path: Path
) -> None:
    person = Person(home, {}, tmp_path)
    with serving(home, store, "--workers", "2") as served:
        code, line = refused(person, str(tmp_path / "other"), "--bind", f"127.0.0.1:{served.port}")
        assert code == 1 and "Address already in use" in line and "--bind" in line
    with socket.create_server(("127.0.0.1", 0)) as other:
        code, line = refused(person, str(store), "--bind", f"127.0.0.1:{other.getsockname()[1]}")
        assert code == 1 and "Address already in use" in line


def test_what_keeps_a_server_from_starting_is_one_line(home: Path, store: Path, tmp_path: Path) -> None:
    person = Person(home, {}, tmp_path)
    (tmp_path / "file").write_text("x")
    bind = ("--bind", "127.0.0.1:0")
    for arguments, code, words in (
        ((str(tmp_path / "file"), *bind), 1, "is a file"),
        ((str(tmp_path / "file" / "below"), *bind), 1, "cannot be made"),
        ((str(store), "--bind", "192.0.2.1:9000"), 1, "cannot listen on 192.0.2.1:9000"),
        (
            (str(store), "--bind", "no-such-host.invalid:9000"),
            1,
            "cannot listen on no-such-host.invalid:9000",
        ),
        ((str(store), "--bind", "nonsense"), 2, "expected HOST:PORT"),
        ((*bind,), 2, "no store directory"),
        ((str(store), *bind, "--access-key", "A"), 2, "--access-key is given without --secret-key"),
        ((str(store), *bind, "--config", str(tmp_path / "none.toml")), 2, "does not exist"),
    ):
        got_code, line = refused(person, *arguments)
        assert got_code == code and words in line, arguments


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_directory_that_is_not_writable_is_one_line(home: Path, store: Path, tmp_path: Path) -> None:
    store.mkdir(mode=0o500)
    code, line = refused(Person(home, {}, tmp_path), str(store), "--bind", "127.0.0.1:0")
    assert code == 1 and "not writable" in line


def test_a_store_of_a_newer_format_is_left_alone(home: Path, store: Path, tmp_path: Path) -> None:
    with serving(home, store, "--workers", "1"):
        pass
    form = store / "FORMAT"
    form.write_bytes(b"something else entirely\n" + form.read_bytes())
    before = form.read_bytes()
    code, line = refused(Person(home, {}, tmp_path), str(store), "--bind", "127.0.0.1:0")
    assert code == 1 and "FORMAT" in line
    assert form.read_bytes() == before


def test_a_credentials_file_that_makes_no_sense_is_not_replaced(store: Path) -> None:
    store.mkdir()
    (store / "credentials").write_text("aws_secret_access_key = hush\n")
    with pytest.raises(ConfigError, match="not understood") as caught:
        read_or_create(store)
    assert "hush" not in str(caught.value)


def test_show_settings_names_every_value_and_its_source_without_secrets(home: Path, tmp_path: Path) -> None:
    env = {"CORDWOOD_SECRET_KEY": "swordfish", "CORDWOOD_ACCESS_KEY": "A", "CORDWOOD_REGION": "eu"}
    shown = Person(home, env, tmp_path).run("serve", "x", "--workers", "3", "--show-settings").out
    lines = {line.split()[0]: line.split()[1:] for line in shown.splitlines()}
    assert lines["workers"] == ["3", "--workers"] and lines["region"] == ["eu", "CORDWOOD_REGION"]
    assert lines["inline_max"] == ["64KiB", "default"] and "swordfish" not in shown


# --- deaths ---------------------------------------------------------------------------------------------------


def test_a_dead_worker_is_replaced_and_nobody_else_notices(home: Path, store: Path, tmp_path: Path) -> None:
    with serving(home, store, "--workers", "2") as served:
        before = served.workers()
        os.kill(before[0], signal.SIGKILL)
        # Its connections wait in the socket that the supervisor still holds, instead of being refused.
        assert all(status_of(served) == 403 for _ in range(20))
        eventually(lambda: len(served.workers()) == 2 and before[0] not in served.workers())
        assert before[1] in served.workers()
        assert f"(process {before[0]}) died (signal 9)" in served.output
        Person(home, {}, tmp_path).run("mb", "s3://after")


def test_a_supervisor_that_is_killed_takes_its_workers_along(home: Path, store: Path) -> None:
    with serving(home, store, "--workers", "2") as served:
        workers = served.workers()
        served.process.kill()
        served.process.wait(10)
        eventually(lambda: not any(alive(pid) for pid in workers))
    with serving(home, store, "--workers", "1", "--bind", f"127.0.0.1:{served.port}") as again:
        assert again.port == served.port


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- stopping -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_ends_everything_with_exit_code_zero(
    home: Path, store: Path, number: signal.Signals
) -> None:
    with serving(home, store, "--workers", "2") as served:
        workers = served.workers()
        idle = socket.create_connection(("127.0.0.1", served.port))  # a connection that never says anything
        began = time.monotonic()
        assert served.stop(number) == 0
        assert time.monotonic() - began < 5
        assert not any(alive(pid) for pid in workers)
        assert "Traceback" not in served.output
        idle.close()


def test_sighup_changes_nothing(home: Path, store: Path) -> None:
    with serving(home, store, "--workers", "1") as served:
        served.process.send_signal(signal.SIGHUP)
        for pid in served.workers():
            os.kill(pid, signal.SIGHUP)
        time.sleep(0.2)
        assert status_of(served) == 403


def test_a_request_in_flight_is_finished_before_the_server_stops(home: Path, store: Path) -> None:
    with serving(home, store, "--anonymous", "--workers", "1") as served:
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
        connection.request("PUT", "/bucket")
        connection.getresponse().read()
        connection.putrequest("PUT", "/bucket/key")
        connection.putheader("Content-Length", "10")
        connection.endheaders(b"hello")
        time.sleep(0.3)
        stopped = threading.Thread(target=served.stop)
        stopped.start()
        time.sleep(0.5)
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", served.port), timeout=5).close()
        connection.send(b"world")
        response = connection.getresponse()
        assert response.status == 200, response.read()
        connection.close()
        stopped.join(20)
        assert served.process.returncode == 0
    with serving(home, store, "--anonymous", "--workers", "1") as served:
        assert status_of(served, "/bucket/key") == 200


def test_a_request_that_never_ends_is_cut_at_the_bound(home: Path, store: Path) -> None:
    with serving(home, store, "--anonymous", "--workers", "1", "--stop-timeout", "1s") as served:
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
        connection.request("PUT", "/bucket")
        connection.getresponse().read()
        connection.putrequest("PUT", "/bucket/key")
        connection.putheader("Content-Length", "10")
        connection.endheaders(b"hello")
        time.sleep(0.3)
        began = time.monotonic()
        assert served.stop() == 0
        assert 0.9 < time.monotonic() - began < 5
        connection.close()


def test_a_second_stop_signal_does_not_wait(home: Path, store: Path) -> None:
    with serving(home, store, "--anonymous", "--workers", "1") as served:
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
        connection.putrequest("PUT", "/bucket")
        connection.putheader("Content-Length", "10")
        connection.endheaders(b"hello")
        time.sleep(0.3)
        served.process.terminate()
        time.sleep(0.3)
        assert served.process.poll() is None
        began = time.monotonic()
        assert served.stop() == 0
        assert time.monotonic() - began < 3
        connection.close()


def test_two_servers_may_share_one_directory(home: Path, store: Path, tmp_path: Path) -> None:
    with serving(home, store, "--workers", "1") as one, serving(home, store, "--workers", "1") as two:
        person = Person(home, {"CORDWOOD_PROFILE": "local"}, tmp_path)
        person.run("mb", "s3://shared", "--endpoint", one.url)
        person.run("cp", "-", "s3://shared/key", "--endpoint", two.url, data=b"by the other door")
        assert person.run("cat", "s3://shared/key", "--endpoint", one.url).out == "by the other door"


def test_the_access_log_is_one_line_per_request_without_signatures(
    home: Path, store: Path, tmp_path: Path
) -> None:
    person = Person(home, {}, tmp_path)
    with serving(home, store, "--access-log", "--workers", "1", "--log-format", "json") as served:
        person.run("mb", "s3://logged")
        url = person.run("presign", "s3://logged/nothing").out.strip()
        assert status_of(served, url.partition(str(served.port))[2]) == 404
        eventually(lambda: "/logged/nothing" in served.output)
        assert "Signature" not in served.output
