"""Composition: from settings to a running server.

Theory: `serve` checks the directory, holds the port, lets a first child open (and so create or recover) the store, sees
to the key pair, and then supervises the workers. Each worker is one process with one trio loop, one listening socket
and the store opened for itself after the fork.

Must not know: click, the wire protocol, the on-disk format.

Invariants:
* The store is never open in the supervisor, and never opened twice in one process. The supervisor does import
  everything, once, before it forks: children start and restart in milliseconds. None of it starts a thread.
* `on_ready` is called when every worker accepts connections, not before.
* Whatever keeps the server from starting is a `StartError` of one line.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import trio

from cordwood.engine import Store, errors
from cordwood.server import keyfile, logs
from cordwood.server.app import build_app
from cordwood.server.config import Address, Credential, Settings
from cordwood.server.conn import Limits, serve_connection
from cordwood.server.keyfile import KeyFile
from cordwood.server.maintenance import maintain
from cordwood.server.notifier import deliver
from cordwood.server.sessions import check_roles
from cordwood.server.supervisor import Child, Role, StartError, Supervisor, hold_port
from cordwood.server.wire.errors import S3Error
from cordwood.server.wire.message import App, AtOnce, Body, PeerInfo, RequestHead, Response

__all__ = ["Running", "StartError", "serve"]

log = logging.getLogger("cordwood.worker")

_ACCEPT_PAUSE_S = 0.1

# How long the loop may keep the interpreter from the commit thread, which comes back from a sync holding the index's
# writer lock. Python's default of 5 ms made both workers wait: 16 writers went from 2,300 to 4,800 PUT/s.
_SWITCH_INTERVAL_S = 0.0005
_UNLIMITED = (1 << 31) - 1
_M_ARENA_MAX = -8  # of glibc's malloc.h


@dataclass(frozen=True)
class Running:
    """What a person wants to know of a server that has just become ready."""

    address: Address
    """The real one, also when port 0 was asked for."""
    credentials: tuple[Credential, ...]
    key_file: KeyFile | None
    """None when the keys came from the settings, or nobody needs one."""


def serve(settings: Settings, on_ready: Callable[[Running], None]) -> None:
    """Run until SIGTERM or SIGINT. Raises `StartError` and `ConfigError` when it cannot start."""
    logs.set_up(settings.log_level, settings.log_format)
    directory = _store_directory(settings.dir)
    port = hold_port(settings.bind)
    credentials = settings.all_credentials()
    check_roles(settings.roles, credentials)
    roles: list[Role] = []
    supervisor = Supervisor(roles, port, stop_timeout_s=settings.stop_timeout)
    # One process creates or recovers the store before several open it: what goes wrong is said once.
    supervisor.run_once("recovery", partial(_recover, settings))
    key_file = None
    if not credentials and not settings.anonymous:
        key_file = keyfile.read_or_create(directory)
        credentials = (key_file.credential,)
    roles += [
        Role(f"worker-{number}", partial(_work, settings, credentials), does_listen=True)
        for number in range(settings.workers)
    ]
    roles.append(Role("maintenance", partial(maintain, settings)))
    if settings.notification_targets:
        roles.append(Role("notifier", partial(_notify, settings)))
    supervisor.run(lambda: on_ready(Running(port.address, credentials, key_file)))


def _store_directory(directory: Path) -> Path:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise StartError(f"{directory} is a file; a store needs a directory") from None
    except OSError as error:
        raise StartError(f"store directory {directory} cannot be made: {error.strerror}") from None
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        raise StartError(f"store directory {directory} is not writable by this user (uid {os.getuid()})")
    return directory


def _open_store(settings: Settings) -> Store:
    return Store.open(
        settings.dir,
        durability="relaxed" if settings.durability == "relaxed" else "strict",
        dedup=settings.dedup,
        volume_size=settings.volume_size,
        chunk_size=settings.chunk_size,
        inline_max=settings.inline_max,
        head_cache_size=settings.head_cache_size,
    )


def _opened(settings: Settings, child: Child) -> Store | None:
    """The store, or None after the supervisor was told why not."""
    try:
        return _open_store(settings)
    except errors.CordwoodError as error:
        child.cannot_start(str(error))
    except OSError as error:
        child.cannot_start(f"store {settings.dir} cannot be opened: {error}")
    return None


def _recover(settings: Settings, child: Child) -> int:
    store = _opened(settings, child)
    if store is None:
        return 1
    store.close()
    return 0


# --- one worker -----------------------------------------------------------------------------------------------


def _work(settings: Settings, credentials: tuple[Credential, ...], child: Child) -> int:
    store = _opened(settings, child)
    if store is None:
        return 1
    assert child.listener is not None
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    _allocate_from_one_arena()
    with store:
        trio.run(_serve, settings, credentials, store, child, child.listener)
    return 0


def _allocate_from_one_arena() -> None:
    """By default glibc gives threads up to eight arenas a core, and each keeps what was given back to it: above all
    blocks of a MiB that were decrypted. The interpreter lets one thread allocate at a time anyhow."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


async def _serve(
    settings: Settings,
    credentials: tuple[Credential, ...],
    store: Store,
    child: Child,
    listener: socket.socket,
) -> None:
    application = build_app(store, settings, credentials)
    app: App = application
    at_once: AtOnce = application.at_once
    if settings.access_log:
        app, at_once = _with_access_log(app), _with_access_log_at_once(at_once)
    limits = Limits(
        head_timeout_s=settings.head_timeout,
        body_timeout_s=settings.body_timeout,
        send_timeout_s=settings.send_timeout,
        idle_timeout_s=settings.idle_timeout,
        max_head_bytes=settings.max_head_size,
        max_headers=settings.max_header_count,
    )
    stopping = trio.Event()
    slots = trio.Semaphore(settings.max_connections)

    async def connection(stream: trio.SocketStream) -> None:
        try:
            await serve_connection(stream, app, limits, stopping, at_once=at_once)
        finally:
            slots.release()

    async with trio.open_nursery() as watchers:
        watchers.start_soon(_watch_for_stop, child.lifeline_fd, stopping)
        watchers.start_soon(application.access_logs.run, settings.bucket_logging_interval)
        async with trio.open_nursery() as connections:
            listener.setblocking(False)
            with trio.socket.from_stdlib_socket(listener) as accepting:
                async with trio.open_nursery() as loop:
                    loop.start_soon(_accept_until_stopped, accepting, slots, connections, connection)
                    child.ready()
                    await stopping.wait()
                    loop.cancel_scope.cancel()
            # Nobody new; those inside may finish, within the bound.
            connections.cancel_scope.deadline = trio.current_time() + settings.stop_timeout
        watchers.cancel_scope.cancel()
    await application.access_logs.deliver()
    application.access_logs.close()


def _with_access_log(app: App) -> App:
    """One line per request, when its answer is decided."""

    async def logged(head: RequestHead, body: Body, peer: PeerInfo) -> Response:
        began_s = time.perf_counter()
        status = 500
        try:
            response = await app(head, body, peer)
            status = response.status
            return response
        except S3Error as error:
            status = error.status
            raise
        finally:
            _log_access(head, peer, status, began_s)

    return logged


def _with_access_log_at_once(at_once: AtOnce) -> AtOnce:
    def logged(head: RequestHead, body: Body, peer: PeerInfo) -> Response | None:
        began_s = time.perf_counter()
        try:
            response = at_once(head, body, peer)
        except S3Error as error:
            _log_access(head, peer, error.status, began_s)
            raise
        if response is not None:
            _log_access(head, peer, response.status, began_s)
        return response

    return logged


_access: Final = logging.getLogger("cordwood.access")


def _log_access(head: RequestHead, peer: PeerInfo, status: int, began_s: float) -> None:
    """The query stays out: in presigned URLs it is a credential."""
    took_ms = (time.perf_counter() - began_s) * 1000
    path = head.raw_path.decode("latin-1")
    _access.info("%s %s %s %d %.1f ms", peer.address, head.method, path, status, took_ms)


async def _accept_until_stopped(
    accepting: trio.socket.SocketType,
    slots: trio.Semaphore,
    connections: trio.Nursery,
    connection: Callable[[trio.SocketStream], Awaitable[None]],
) -> None:
    while True:
        await slots.acquire()
        try:
            sock, _ = await accepting.accept()
        except OSError as error:
            slots.release()
            # Either the client has gone already, or descriptors or memory ran out: then a pause lets some come free.
            log.warning("accept failed: %s", error)
            await trio.sleep(_ACCEPT_PAUSE_S)
            continue
        except trio.Cancelled:
            slots.release()
            raise
        stream = trio.SocketStream(sock)
        # trio lets no more than 16 KiB wait unsent. With sendfile on loopback, whose segments are 64 KiB, part of one
        # segment then sits in the kernel for 200 ms, corked, waiting for a rest that is not let in.
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNLIMITED)
        connections.start_soon(connection, stream)


async def _watch_for_stop(lifeline_fd: int, stopping: trio.Event) -> None:
    """SIGTERM, or the end of the supervisor however it came."""

    async def orphaned() -> None:
        await trio.lowlevel.wait_readable(lifeline_fd)
        log.warning("the supervisor has gone; stopping")
        stopping.set()

    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(orphaned)
            async for _ in signals:
                stopping.set()


# --- the notifier ---------------------------------------------------------------------------------------------


def _notify(settings: Settings, child: Child) -> int:
    store = _opened(settings, child)
    if store is None:
        return 1
    with store:
        trio.run(_deliver_notifications, settings, store, child)
    return 0


async def _deliver_notifications(settings: Settings, store: Store, child: Child) -> None:
    stopping = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch_for_stop, child.lifeline_fd, stopping)
        nursery.start_soon(deliver, store, settings.notification_targets, settings.notification_queue_max)
        child.ready()
        await stopping.wait()
        nursery.cancel_scope.cancel()
