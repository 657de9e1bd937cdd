"""The parent process: forks the children, restarts what dies, stops them in order.

Theory: this process never serves. It is single-threaded, opens no store and runs no event loop, so forking it is safe
and a restart needs no new interpreter. Each child runs one `Role`, tells its parent over a pipe of its own when it is
ready or why it cannot start, and holds the read end of one common pipe, the lifeline, whose write end only the
supervisor has: however the supervisor dies, every child sees end-of-file there and stops.

Must not know: trio, the engine, HTTP; what a role does.

Invariants:
* A child closes every descriptor that belongs to the supervisor alone before it does anything else.
* Before all roles have been ready once, one failure stops everything and is the answer. Afterwards, a death is answered
  by a restart, after a delay that doubles while deaths follow each other quickly.
* Listening sockets belong to the supervisor: while a worker is being restarted its connections wait instead of being
  refused. When the delay grows, the socket is given up, so that the kernel sends connections to the living workers.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cordwood.server.config import Address

log = logging.getLogger("cordwood.supervisor")

_FIRST_DELAY_S = 0.1
_LONGEST_DELAY_S = 10.0
_STEADY_S = 30.0  # a child that lived this long is no longer counted as failing
_GIVE_UP_SOCKET_S = 1.0
_HARD_STOP_MARGIN_S = 3.0  # after their own bound, children get this long before SIGKILL
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StartError(Exception):
    """The server cannot start. The text is one line for a person; `exit_code` is what the process should end with."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Child:
    """What a role is given inside its process."""

    listener: socket.socket | None
    lifeline_fd: int
    """Readable (end-of-file) when the supervisor has gone."""
    _status_fd: int

    def ready(self) -> None:
        self._say({"ready": True})

    def cannot_start(self, message: str) -> None:
        self._say({"error": message})

    def _say(self, message: dict[str, object]) -> None:
        try:
            os.write(self._status_fd, json.dumps(message).encode() + b"\n")
        except OSError:
            pass  # the supervisor has gone; the lifeline says so too


@dataclass
class Role:
    """One child process that must always be there."""

    name: str
    run: Callable[[Child], int]
    """Runs in the child; returns its exit code."""
    does_listen: bool = False
    listener: socket.socket | None = field(default=None, init=False)
    pid: int = field(default=0, init=False)
    was_ready: bool = field(default=False, init=False)
    started_s: float = field(default=0.0, init=False)
    deaths_in_a_row: int = field(default=0, init=False)
    restart_at_s: float = field(default=0.0, init=False)


@dataclass(frozen=True)
class Port:
    """A TCP address held for this server, and as many listening sockets on it as wanted."""

    held: socket.socket
    """Bound but not listening: it keeps the port ours while workers' sockets come and go."""

    @property
    def address(self) -> Address:
        host, number = self.held.getsockname()[:2]
        return Address(host, number)

    def listen(self) -> socket.socket:
        """One more listening socket; the kernel spreads connections over all of them."""
        sock = socket.socket(self.held.family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(self.held.getsockname())
            sock.listen(1024)
        except OSError:
            sock.close()
            raise
        return sock


def hold_port(address: Address) -> Port:
    """Raises `StartError` when the address is wrong or somebody listens there already.

    The socket is bound without SO_REUSEPORT, which fails when anybody listens, and is given the option only then: Linux
    reads it from the bound sockets each time another one binds. Port 0 becomes the port that the kernel picks.
    """
    try:
        family, kind, _, _, where = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise StartError(f"cannot listen on {address}: {error.strerror or error}") from None
    sock = socket.socket(family, kind)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError as error:
        sock.close()
        in_use = "; stop what listens there, or choose another --bind"
        way_out = in_use if error.errno == errno.EADDRINUSE else ""
        raise StartError(f"cannot listen on {address}: {error.strerror}{way_out}") from None
    return Port(sock)


class Supervisor:
    """Runs roles until a stop signal. One instance per process."""

    def __init__(self, roles: list[Role], port: Port, *, stop_timeout_s: float) -> None:
        self._roles = roles
        self._port = port
        self._stop_timeout_s = stop_timeout_s
        self._lifeline_read, self._lifeline_write = os.pipe()
        self._wakeup_read, self._wakeup_write = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._stops_asked = 0

    def run_once(self, name: str, body: Callable[[Child], int]) -> None:
        """Run one role to its end before the others; raises `StartError` when it cannot start."""
        role = Role(name, body)
        status = self._fork(role)
        with open(status, "rb") as pipe:
            lines = pipe.readlines()
        _, code = os.waitpid(role.pid, 0)
        error = _error_in(lines)
        if error is not None or code != 0:
            raise StartError(error or f"{name} ended with {_how(code)}; its messages are above")

    def run(self, on_ready: Callable[[], None]) -> None:
        """Start everything, call `on_ready` when every role is ready, return when all have stopped."""
        self._catch_signals()
        try:
            for role in self._roles:
                self._start(role)
            is_announced = False
            while True:
                self._wait()
                if self._stops_asked:
                    return
                self._reap(may_restart=is_announced)
                if not is_announced and all(role.was_ready for role in self._roles):
                    is_announced = True
                    on_ready()
        finally:
            self._stop()

    # --- signals and pipes --------------------------------------------------------------------------------

    def _catch_signals(self) -> None:
        self._wakeup_read.setblocking(False)
        self._wakeup_write.setblocking(False)
        signal.set_wakeup_fd(self._wakeup_write.fileno(), warn_on_full_buffer=False)
        self._selector.register(self._wakeup_read, selectors.EVENT_READ, None)
        signal.signal(
            signal.SIGCHLD, lambda _number, _frame: None
        )  # its byte in the wakeup pipe is what counts
        for number in _STOP_SIGNALS:
            signal.signal(number, self._ask_to_stop)
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
            # A closed terminal ends the server. Without one, SIGHUP is somebody's habit of reloading, and settings
            # are read once, so it changes nothing.
            is_terminal = sys.stdin is not None and sys.stdin.isatty()
            signal.signal(signal.SIGHUP, self._ask_to_stop if is_terminal else signal.SIG_IGN)

    def _ask_to_stop(self, _number: int, _frame: object) -> None:
        self._stops_asked += 1

    def _wait(self) -> None:
        """Until a signal, a word from a child, or the next restart is due."""
        due = [role.restart_at_s for role in self._roles if role.pid == 0]
        timeout = max(0.0, min(due) - time.monotonic()) if due else None
        for key, _ in self._selector.select(timeout):
            if key.data is None:
                try:
                    self._wakeup_read.recv(4096)
                except BlockingIOError:
                    pass
            else:
                self._hear(key.data, key.fd)

    def _hear(self, role: Role, fd: int) -> None:
        """A child said something, or its end of the pipe closed."""
        said = os.read(fd, 65536)
        if not said:
            self._selector.unregister(fd)
            os.close(fd)
            return
        error = _error_in(said.splitlines())
        if error is None:
            role.was_ready = True
        elif any(not other.was_ready for other in self._roles):
            raise StartError(error)
        else:
            log.error("%s cannot start again: %s", role.name, error)

    # --- children -----------------------------------------------------------------------------------------

    def _start(self, role: Role) -> None:
        if role.does_listen and role.listener is None:
            try:
                role.listener = self._port.listen()
            except OSError as error:
                if not role.was_ready:
                    raise StartError(f"cannot listen on {self._port.address}: {error.strerror}") from None
                log.error(
                    "%s cannot listen on %s: %s; will try again",
                    role.name,
                    self._port.address,
                    error.strerror,
                )
                role.restart_at_s = time.monotonic() + _LONGEST_DELAY_S
                return
        status = self._fork(role)
        role.started_s = time.monotonic()
        self._selector.register(status, selectors.EVENT_READ, role)

    def _fork(self, role: Role) -> int:
        """Start the child; returns the read end of its status pipe."""
        status_read, status_write = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        role.pid = os.fork()
        if role.pid:
            os.close(status_write)
            return status_read
        code = 1
        try:
            os.close(status_read)
            self._become_child(role)
            code = role.run(Child(role.listener, self._lifeline_read, status_write))
        except BaseException:
            log.exception("%s failed", role.name)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _become_child(self, role: Role) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # The terminal sends these to the whole group; only the supervisor answers them.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.close(self._lifeline_write)
        for key in list(self._selector.get_map().values()):
            if key.data is not None:
                os.close(key.fd)
        self._selector.close()
        self._wakeup_read.close()
        self._wakeup_write.close()
        self._port.held.close()
        for other in self._roles:
            if other is not role and other.listener is not None:
                other.listener.close()
        with open("/proc/self/comm", "w") as comm:
            comm.write(f"cw-{role.name}"[:15])

    def _reap(self, *, may_restart: bool) -> None:
        for role in self._roles:
            if role.pid:
                pid, status = os.waitpid(role.pid, os.WNOHANG)
                if pid:
                    self._bury(role, status, may_restart=may_restart)
        now = time.monotonic()
        for role in self._roles:
            if role.pid == 0 and role.restart_at_s <= now:
                self._start(role)

    def _bury(self, role: Role, status: int, *, may_restart: bool) -> None:
        pid, role.pid = role.pid, 0
        self._hear_out(role)  # a child that could say why it cannot start has done so before it ended
        lived_s = time.monotonic() - role.started_s
        if not may_restart:
            raise StartError(
                f"{role.name} (process {pid}) died while starting ({_how(status)}); its messages are above"
            )
        role.deaths_in_a_row = 0 if lived_s > _STEADY_S else role.deaths_in_a_row + 1
        delay_s = min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2**role.deaths_in_a_row)
        role.restart_at_s = time.monotonic() + delay_s
        log.error(
            "%s (process %d) died (%s); starting another in %.1f s", role.name, pid, _how(status), delay_s
        )
        if delay_s >= _GIVE_UP_SOCKET_S and role.listener is not None:
            role.listener.close()
            role.listener = None

    def _hear_out(self, role: Role) -> None:
        for key in list(self._selector.get_map().values()):
            if key.data is role:
                while key.fd in self._selector.get_map():
                    self._hear(role, key.fd)

    # --- the end ------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        """SIGTERM to all, wait for them, SIGKILL after the bound or at the second stop signal."""
        for role in self._roles:
            if role.listener is not None:
                role.listener.close()  # the children's copies close on their own
            self._signal(role, signal.SIGTERM)
        self._stops_asked = 0
        self._port.held.close()
        deadline = time.monotonic() + self._stop_timeout_s + _HARD_STOP_MARGIN_S
        while any(role.pid for role in self._roles):
            if self._stops_asked or time.monotonic() >= deadline:
                for role in self._roles:
                    self._signal(role, signal.SIGKILL)
            for role in self._roles:
                if role.pid and os.waitpid(role.pid, os.WNOHANG)[0]:
                    role.pid = 0
            if any(role.pid for role in self._roles):
                time.sleep(0.02)

    @staticmethod
    def _signal(role: Role, number: signal.Signals) -> None:
        if role.pid:
            os.kill(role.pid, number)  # not yet waited for, so the id is still this child's


def _error_in(lines: list[bytes]) -> str | None:
    for line in lines:
        message: dict[str, Any] = json.loads(line)
        if "error" in message:
            return str(message["error"])
    return None


def _how(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)}"
    return f"exit code {os.waitstatus_to_exitcode(status)}"
