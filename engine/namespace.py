"""Keys as paths through directory ids: resolving, walking in byte order, making and removing entries.

A key is split behind every "/". Each part but the last names a directory and keeps its "/"; the last part (it may be
empty) names the object. Rows in `entries` stand under the directory's id, so a walk in LMDB's order, descending
where it meets a directory, is byte order over whole keys; and moving a directory is changing one row.

Components longer than 480 bytes do not fit LMDB's 511-byte keys: their first 480 bytes and a NUL become a row of
their own that leads to another node, named by a digest of the way there, where the rest stands.

Must not know: records, volumes, versions' meaning.

Invariants:
* No directory and no continuation is empty: who removes the last entry removes it and goes on upwards.
* A node that belongs to a directory begins with a byte below 0x80 (ids are clock values), a continuation with 0xFF.
* Of all rows in a node, only a continuation's key is longer than the node by 481 bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from blake3 import blake3

from cordwood.engine.errors import Corrupt
from cordwood.engine.index import Txn
from cordwood.engine.rows import (
    OBJECT_ROW_SIZE,
    Kind,
    RowFlag,
    id_key,
    pack_directory_entry,
    unpack_directory_entry,
)

PIECE_MAX = 480
_CONTINUATION_ROW = bytes([Kind.CONTINUATION])
_CONTINUATION_NODE = b"\xff"
_DIGEST_SIZE = 16


def split_key(key: bytes) -> tuple[list[bytes], bytes]:
    """Directory names (each with its "/") and the object's own name."""
    *directories, name = key.split(b"/")
    return [directory + b"/" for directory in directories], name


def entry_key(node: bytes, component: bytes) -> tuple[bytes, list[bytes]]:
    """The `entries` key of a component in a node, and the keys of the continuations that lead there."""
    if len(component) <= PIECE_MAX:
        return node + component, []
    continuations = []
    while len(component) > PIECE_MAX:
        way = node + component[:PIECE_MAX]
        continuations.append(way + b"\0")
        node = _continuation_node(way)
        component = component[PIECE_MAX:]
    return node + component, continuations


def _continuation_node(way: bytes) -> bytes:
    return _CONTINUATION_NODE + blake3(way).digest(_DIGEST_SIZE)


def get_entry(txn: Txn, directory: int, component: bytes) -> bytes | None:
    key = id_key(directory) + component
    if len(component) > PIECE_MAX:
        key, _ = entry_key(id_key(directory), component)
    return txn.get(key, txn.tables.entries)


def put_entry(txn: Txn, directory: int, component: bytes, row: bytes) -> None:
    key, continuations = entry_key(id_key(directory), component)
    for continuation in continuations:
        txn.put(continuation, _CONTINUATION_ROW, txn.tables.entries)
    txn.put(key, row, txn.tables.entries)


def add_entry(txn: Txn, directory: int, component: bytes, row: bytes) -> bool:
    """Puts an entry where there is none; False when there is one, which stays as it is."""
    key, continuations = entry_key(id_key(directory), component)
    if not txn.add(key, row, txn.tables.entries):
        return False
    for continuation in continuations:
        txn.put(continuation, _CONTINUATION_ROW, txn.tables.entries)
    return True


def remove_entry(txn: Txn, directory: int, component: bytes) -> None:
    """Removes an entry and the continuations that nothing else needs. The directory may be empty afterwards."""
    entries = txn.tables.entries
    key, continuations = entry_key(id_key(directory), component)
    txn.delete(key, entries)
    for continuation in reversed(continuations):
        if txn.has_prefix(_continuation_node(continuation[:-1]), entries):
            return
        txn.delete(continuation, entries)


def is_empty(txn: Txn, directory: int) -> bool:
    return not txn.has_prefix(id_key(directory), txn.tables.entries)


def find_directory(txn: Txn, parent: int, name: bytes) -> int | None:
    """The id of the directory `name` (with its "/") in `parent`."""
    row = get_entry(txn, parent, name)
    return unpack_directory_entry(row) if row is not None else None


def put_directory(txn: Txn, parent: int, name: bytes, directory: int) -> None:
    put_entry(txn, parent, name, pack_directory_entry(directory))


def resolve(txn: Txn, root: int, key: bytes) -> tuple[int, bytes] | None:
    """The directory id and the name a key ends in; None when a directory on the way does not exist."""
    *directories, name = key.split(b"/")
    directory = root
    for component in directories:
        row = get_entry(txn, directory, component + b"/")
        if row is None:
            return None
        directory = unpack_directory_entry(row)
    return directory, name


def find_entry(txn: Txn, root: int, key: bytes) -> tuple[tuple[int, bytes], bytes] | None:
    """What `resolve` finds, and the row that stands there; None when there is none."""
    *directories, name = key.split(b"/")
    directory = root
    get, entries = txn.get, txn.tables.entries
    for component in directories:
        if len(component) >= PIECE_MAX:
            row = get_entry(txn, directory, component + b"/")
        else:
            row = get(b"%b%b/" % (id_key(directory), component), entries)
        if row is None:
            return None
        directory = unpack_directory_entry(row)
    if len(name) > PIECE_MAX:
        row = get_entry(txn, directory, name)
    else:
        row = get(id_key(directory) + name, entries)
    return ((directory, name), row) if row is not None else None


def path_of(txn: Txn, root: int, directory: int) -> bytes:
    """The key prefix that a directory stands for, found by going up to the bucket's root."""
    names: list[bytes] = []
    passed: set[int] = set()
    while directory != root:
        row = txn.directory(directory)
        if row is None or directory in passed:
            return b"?/" + b"".join(reversed(names))
        names.append(row.name)
        passed.add(directory)
        directory = row.parent
    return b"".join(reversed(names))


class _Frame:
    """One level of a walk: a cursor inside one node. `path` is the part of the key that led to the node."""

    __slots__ = ("cursor", "node", "path", "started")

    def __init__(self, cursor: Any, node: bytes, path: bytes) -> None:
        self.cursor = cursor
        self.node = node
        self.path = path
        self.started = False

    def advance(self, bound: bytes) -> tuple[bytes, bytes] | None:
        """Key and row of the next entry; the first time of the first that can lead to a key >= `bound`."""
        if self.started:
            found = self.cursor.next()
        else:
            self.started = True
            found = self.cursor.set_range(self.node + self._seek_piece(bound))
        if not found:
            return None
        item: tuple[bytes, bytes] = self.cursor.item()
        return item if item[0].startswith(self.node) else None

    def _seek_piece(self, bound: bytes) -> bytes:
        if not bound.startswith(self.path):
            return b""
        rest = bound[len(self.path) :]
        slash = rest.find(b"/")
        return rest[: slash + 1 if slash >= 0 else len(rest)][:PIECE_MAX]


def walk(
    txn: Txn, root: int, *, prefix: bytes = b"", start: bytes = b"", collapse: bool = False
) -> Iterator[tuple[bytes, bytes | int]]:
    """Keys of a bucket with their ObjectRow bytes, in byte order: those that begin with `prefix` and are >= `start`.

    With `collapse`, what lies below a "/" behind the prefix is not entered: the path up to and with that "/" comes
    once, with the directory's id in place of a row, if that path itself is >= `start`.
    """
    bound = max(prefix, start)
    entries = txn.tables.entries
    stack = [_Frame(txn.cursor(entries), id_key(root), b"")]
    while stack:
        frame = stack[-1]
        item = frame.advance(bound)
        if item is None:
            stack.pop()
            continue
        key, row = item
        kind = row[0] if row else 0
        path = frame.path + key[len(frame.node) :]
        if kind == Kind.OBJECT:
            if len(row) < OBJECT_ROW_SIZE:
                raise _damaged(path)
            if path < bound:
                continue
            if not path.startswith(prefix):
                return
            yield path, row
            continue
        if kind == Kind.CONTINUATION:
            path = path[:-1]
        if path < bound and not bound.startswith(path):
            continue
        if not path.startswith(prefix) and not prefix.startswith(path):
            return
        if kind == Kind.CONTINUATION:
            stack.append(_Frame(txn.cursor(entries), _continuation_node(key[:-1]), path))
            continue
        if kind != Kind.DIRECTORY:
            raise _damaged(path)
        directory = unpack_directory_entry(row)
        if collapse and len(path) > len(prefix):
            if path >= bound:
                yield path, directory
            continue
        node = id_key(directory)
        if any(each.node == node for each in stack):
            raise _damaged(path)  # a directory below itself: there would be no end
        stack.append(_Frame(txn.cursor(entries), node, path))


def _damaged(path: bytes) -> Corrupt:
    return Corrupt(
        f"the index row of {path.decode(errors='replace')!r} cannot be read; `cordwood rebuild` makes a new index"
    )


def has_live_object(txn: Txn, directory: int) -> bool:
    """Whether anything but delete markers is below a directory."""
    return any(not row[1] & RowFlag.MARKER for _, row in walk(txn, directory) if isinstance(row, bytes))


def successor(prefix: bytes) -> bytes:
    """The smallest byte string greater than every string that begins with `prefix` (valid UTF-8, not empty)."""
    assert prefix and prefix[-1] < 0xFF
    return prefix[:-1] + bytes([prefix[-1] + 1])
