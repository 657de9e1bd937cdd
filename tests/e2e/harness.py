"""A running Cordwood as a user has it, the S3 tools as their users have them, and trees of files to move.

Must not know: how the server or the engine work inside; it types commands and reads answers.
Invariants: every server process started here is dead when its context ends; no tool reads the configuration of the
person who runs the tests.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import botocore.config
import pytest

ACCESS_KEY = "CORDWOODTESTKEY00001"
SECRET_KEY = "a-secret/with+signs=and-length-of-forty-ch"
BOB_ACCESS_KEY = "CORDWOODTESTKEY00002"
BOB_SECRET_KEY = "another-secret-of-somebody-else-altogether"
DOMAIN = "s3.localhost"
REGION = "us-east-1"
MIB = 1 << 20


def tool(name: str) -> str:
    """The tool beside the interpreter that runs the tests, as `pip install cordwood[clients]` puts it there."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        pytest.fail(
            f"{name} is not installed beside {sys.executable}; pip install -e '.[dev,clients]' brings it"
        )
    return str(path)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def descendants(pid: int) -> list[int]:
    """All living processes below `pid`, from /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                # The command in parentheses may hold spaces and parentheses itself, so split after the last one.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[0] != "Z":
                    children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def peak_memory_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no VmHWM in /proc/{pid}/status")


@dataclass
class Server:
    """`cordwood serve DIR --bind 127.0.0.1:PORT`, and the way it is killed, stopped and started again."""

    directory: Path
    log: Path
    workers: int = 2
    options: tuple[str, ...] = ()
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, timeout_s: float = 60) -> None:
        assert self.process is None
        command = [tool("cordwood"), "serve", str(self.directory), "--bind", f"127.0.0.1:{self.port}"]
        command += ["--workers", str(self.workers), *self.options]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=server_environment(self),
                start_new_session=True,
            )
        self.wait_until_it_answers(timeout_s)

    def wait_until_it_answers(self, timeout_s: float = 60) -> None:
        assert self.process is not None
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.log_tail()}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as probe:
                probe.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                if probe.recv(5) == b"HTTP/":
                    return
            time.sleep(0.05)
        raise AssertionError(f"the server did not answer within {timeout_s} s:\n{self.log_tail()}")

    def wait_until_it_says(self, text: str, timeout_s: float = 30) -> None:
        """One worker may answer a little before all do and the banner is printed."""
        deadline = time.monotonic() + timeout_s
        while text not in self.log.read_text(errors="replace"):
            assert time.monotonic() < deadline, f"not said within {timeout_s} s: {text!r}\n{self.log_tail()}"
            time.sleep(0.05)

    def processes(self) -> list[int]:
        assert self.process is not None
        return [self.process.pid, *descendants(self.process.pid)]

    def kill(self) -> None:
        """SIGKILL to every process of the server at once. Stopped first, so that no supervisor restarts a worker."""
        assert self.process is not None
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        self.process.wait(30)
        self.process = None

    def stop(self, timeout_s: float = 60) -> int:
        """SIGTERM to the supervisor, as an init system does; returns its exit status."""
        assert self.process is not None
        everyone = self.processes()
        self.process.terminate()
        try:
            status = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"no graceful stop within {timeout_s} s:\n{self.log_tail()}") from None
        self.process = None
        left = [pid for pid in everyone if Path(f"/proc/{pid}").exists()]
        assert not left, f"processes left behind after a graceful stop: {left}"
        return status

    def log_tail(self, lines: int = 60) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    # --- clients --------------------------------------------------------------------------------------------

    def boto(self, **config: Any) -> Any:
        """A boto3 client with its default checksums; `config` goes into botocore's Config."""
        settings = {
            "retries": {"total_max_attempts": 1},
            "s3": {"addressing_style": "path"},
            "max_pool_connections": 32,
            "connect_timeout": 5,
            "read_timeout": 120,
        } | config
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=botocore.config.Config(**settings),
        )

    def aws_command(self, *arguments: str) -> list[str]:
        return [tool("aws"), "--endpoint-url", self.endpoint, *arguments]

    def aws(self, *arguments: str, check: bool = True) -> str:
        return run(self.aws_command(*arguments), client_environment(self), check=check)

    def rclone(self, *arguments: str, check: bool = True) -> str:
        return run([tool("rclone"), "--retries", "1", *arguments], client_environment(self), check=check)

    def s3cmd(self, *arguments: str, check: bool = True) -> str:
        config = self.log.with_name("s3cfg")
        config.write_text(
            f"[default]\naccess_key = {ACCESS_KEY}\nsecret_key = {SECRET_KEY}\nbucket_location = {REGION}\n"
            f"host_base = 127.0.0.1:{self.port}\nhost_bucket = 127.0.0.1:{self.port}\nuse_https = False\n"
            "signature_v2 = False\nprogress_meter = False\n"
        )
        return run(
            [tool("s3cmd"), "--config", str(config), *arguments], client_environment(self), check=check
        )

    def cordwood(self, *arguments: str, check: bool = True) -> str:
        return run([tool("cordwood"), *arguments], client_environment(self), check=check)


class AwsShell:
    """awscli kept running (aws_shell.py): each call is one command, typed as a person would without `aws`."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.aws_shell"],
            env=dict(environment),
            cwd=Path(__file__).resolve().parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> AwsShell:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=30)

    def ask(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return answer["code"], answer["out"], answer["err"]

    def __call__(self, *arguments: str) -> Any:
        """The document that a command prints, its text when that is no JSON, or None; the command must succeed."""
        code, out, err = self.ask(*arguments)
        if code:
            raise AssertionError(f"aws {' '.join(arguments)} ended with {code}:\n{out}{err}")
        try:
            return json.loads(out) if out.strip() else None
        except ValueError:
            return out

    def error(self, *arguments: str) -> str:
        """The code of the error that a command ends in, as awscli names it."""
        code, out, err = self.ask(*arguments)
        named = re.search(r"An error occurred \((\w+)\)", err)
        assert code and named, f"aws {' '.join(arguments)} ended with {code}:\n{out}{err}"
        return named.group(1)


def clean_environment() -> dict[str, str]:
    """Ours without anything that configures an S3 client, a proxy or a Cordwood."""
    unwanted = ("AWS_", "CORDWOOD_", "RCLONE_", "S3CMD_")
    proxies = {"http_proxy", "https_proxy", "all_proxy"}
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(unwanted) and name.lower() not in proxies
    }


def server_environment(server: Server) -> dict[str, str]:
    """A home of its own, because `serve` writes a profile there."""
    home = server.log.with_name("home")
    home.mkdir(exist_ok=True)
    keys = {"CORDWOOD_ACCESS_KEY": ACCESS_KEY, "CORDWOOD_SECRET_KEY": SECRET_KEY}
    return clean_environment() | keys | {"HOME": str(home), "XDG_CONFIG_HOME": str(home / ".config")}


def client_environment(server: Server) -> dict[str, str]:
    nowhere = server.log.with_name("no-such-configuration")
    return server_environment(server) | {
        "LC_ALL": "C.UTF-8",
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_CONFIG_FILE": str(nowhere),
        "AWS_SHARED_CREDENTIALS_FILE": str(nowhere),
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
        "RCLONE_CONFIG": str(nowhere),
        "RCLONE_CONFIG_CORD_TYPE": "s3",
        "RCLONE_CONFIG_CORD_PROVIDER": "Other",
        "RCLONE_CONFIG_CORD_ACCESS_KEY_ID": ACCESS_KEY,
        "RCLONE_CONFIG_CORD_SECRET_ACCESS_KEY": SECRET_KEY,
        "RCLONE_CONFIG_CORD_ENDPOINT": server.endpoint,
        "RCLONE_CONFIG_CORD_REGION": REGION,
        "CORDWOOD_ENDPOINT": server.endpoint,
    }


def run(command: list[str], environment: Mapping[str, str], *, check: bool = True) -> str:
    """Standard output; when the command fails, an error that shows everything it said."""
    done = subprocess.run(
        command,
        env=dict(environment),
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
    )
    if check and done.returncode:
        said = (done.stdout[-4000:] + done.stderr[-4000:]).strip()
        raise AssertionError(f"{' '.join(command[:6])} … ended with {done.returncode}:\n{said}")
    return done.stdout if check else done.stdout + done.stderr


@contextlib.contextmanager
def serving(base: Path, *, workers: int = 2, options: tuple[str, ...] = ()) -> Iterator[Server]:
    """A server on a fresh directory; killed at the end if the test has not stopped it."""
    base.mkdir(parents=True, exist_ok=True)
    server = Server(base / "store", base / "server.log", workers, options)
    try:
        server.start()
        yield server
    except BaseException:
        with contextlib.suppress(OSError):
            print(f"--- server log ---\n{server.log_tail()}")
        raise
    finally:
        if server.process is not None:
            server.kill()


# --- files to move ----------------------------------------------------------------------------------------------


def make_tree(target: Path, *, whole: bool) -> None:
    """Python's own standard library, or a few hundred files of it, and the names that break tools.

    Copied once, as real files: the installed one holds symlinks and changes as modules are compiled.
    """
    stdlib = Path(sysconfig.get_path("stdlib"))
    parts = (
        "asyncio",
        "collections",
        "ctypes",
        "email",
        "encodings",
        "html",
        "http",
        "importlib",
        "json",
        "logging",
    )
    for path in sorted(stdlib.rglob("*")):
        name = path.relative_to(stdlib)
        if not {"site-packages", "dist-packages", "__pycache__"}.isdisjoint(name.parts):
            continue
        wanted = whole or name.parts[0] in parts
        if wanted and path.is_file() and not path.is_symlink() and os.access(path, os.R_OK):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(path.read_bytes())
    odd = {
        "empty": b"",
        "one byte": b"x",
        "sp ace/in folder/a  b.txt": b"spaces",
        "plus+and&amp;=percent%20.txt": b"reserved",
        "uni/ümläut-日本語-🪵.txt": "🪵".encode() * 1000,
        "quote'\"<>.txt": b"quotes",
        "deep/" + "/".join("abcdefgh") + "/leaf": b"deep",
        "long/" + "n" * 250: b"long name",
        "inline-minus": bytes(65_535),
        "inline-exact": os.urandom(65_536),
        "inline-plus": os.urandom(65_537),
        "chunk-minus": os.urandom(MIB - 1),
        "chunk-exact": os.urandom(MIB),
        "chunk-plus": os.urandom(MIB + 1),
        "three": os.urandom(3 * MIB + 17),
    }
    for key, data in odd.items():
        (target / "odd" / key).parent.mkdir(parents=True, exist_ok=True)
        (target / "odd" / key).write_bytes(data)


def make_big_file(target: Path, size_bytes: int, seed: int = 1) -> None:
    """Pseudo-random and so neither compressible nor deduplicable; the same for the same seed."""
    source = random.Random(seed)
    with target.open("wb") as stream:
        left = size_bytes
        while left:
            block = source.randbytes(min(left, 8 * MIB))
            stream.write(block)
            left -= len(block)


class Blocks(io.RawIOBase):
    """A readable, seekable stream in which no two aligned MiB are equal; nothing of it is on a disk."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._position = 0
        self._base = random.Random(7).randbytes(MIB - 8)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size_bytes}[whence]
        self._position = origin + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Up to the end of the current MiB."""
        number, skip = divmod(self._position, MIB)
        size = max(0, min(len(buffer), MIB - skip, self._size_bytes - self._position))
        buffer[:size] = (number.to_bytes(8, "big") + self._base)[skip : skip + size]
        self._position += size
        return size


def files_below(root: Path) -> dict[str, Path]:
    """Relative name with slashes -> file: what the keys below a prefix should be."""
    return {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}


def md5_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()


def multipart_etag(path: Path, part_size_bytes: int) -> str:
    """MD5 of the parts' MD5s, a dash, their count: what S3 gives a multipart object."""
    digests = []
    with path.open("rb") as stream:
        while block := stream.read(part_size_bytes):
            digests.append(hashlib.md5(block).digest())
    return f"{hashlib.md5(b''.join(digests)).hexdigest()}-{len(digests)}"


def assert_same_tree(expected: Path, actual: Path) -> None:
    """`diff -r` of the two, with a message that names the first differences."""
    done = subprocess.run(
        ["diff", "-rq", str(expected), str(actual)], capture_output=True, text=True, errors="replace"
    )
    assert done.returncode == 0, "the trees differ:\n" + "\n".join(done.stdout.splitlines()[:20])


def keys_of(client: Any, bucket: str, prefix: str = "") -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        found |= {entry["Key"]: entry for entry in page.get("Contents", ())}
    return found


def assert_objects_match(
    client: Any, bucket: str, prefix: str, source: Path, *, required: set[str] | None = None
) -> int:
    """Every object below the prefix is byte-identical to its file; every required name (all by default) is there.

    Returns how many objects there were.
    """
    files = files_below(source)
    listed = {key.removeprefix(prefix): entry for key, entry in keys_of(client, bucket, prefix).items()}
    missing = (set(files) if required is None else required) - set(listed)
    assert not missing, f"{len(missing)} acknowledged objects are gone, such as {sorted(missing)[:5]}"
    unknown = set(listed) - set(files)
    assert not unknown, f"objects that nobody put: {sorted(unknown)[:5]}"
    for name, entry in listed.items():
        body = client.get_object(Bucket=bucket, Key=prefix + name)["Body"]
        digest, size = hashlib.md5(), 0
        for block in body.iter_chunks(MIB):
            digest.update(block)
            size += len(block)
        assert size == files[name].stat().st_size == entry["Size"], f"{name}: wrong size"
        assert digest.hexdigest() == md5_of(files[name]), f"{name}: other bytes"
        etag = entry["ETag"].strip('"')
        assert "-" in etag or etag == digest.hexdigest(), f"{name}: ETag {etag} is not the MD5"
    return len(listed)


def form_body(fields: Mapping[str, str], data: bytes, name: str = "file") -> tuple[bytes, str]:
    """A browser's form as bytes, the file last, and its content type."""
    boundary = "a-boundary-that-no-field-holds"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{value}\r\n'
        for field, value in fields.items()
    ]
    parts.append(
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    body = "".join(parts).encode() + data + f"\r\n--{boundary}--\r\n".encode()
    return body, f"multipart/form-data; boundary={boundary}"


class Watcher:
    """Reads the lines of a running command in a thread, so that a test can act in the middle of it."""

    def __init__(self, command: list[str], environment: Mapping[str, str]) -> None:
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            command,
            env=dict(environment) | {"PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="surrogateescape",
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()

    def wait_for_lines(self, count: int, timeout_s: float = 120) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.lines) >= count, timeout_s):
                raise AssertionError(
                    f"{len(self.lines)} of {count} lines after {timeout_s} s: {self.lines[-5:]}"
                )

    def finish(self, timeout_s: float = 600) -> list[str]:
        self.process.wait(timeout_s)
        self._thread.join(timeout_s)
        return self.lines
