"""One look at the index's files before LMDB maps them.

A truncated data.mdb would end the process with SIGBUS; a link in the place of a file would be followed, and written to.

Must not know: tables, transactions; it reads two pages, and writes nothing.
Invariant: a file that passes is as long as its newest meta page says (layout of LMDB 0.9's mdb.c: MDB_meta).
"""

from __future__ import annotations

import struct
from pathlib import Path

from cordwood.engine.errors import Corrupt
from cordwood.engine.fs import FileSystem

_META_PAGES = 2
_PAGE_HEADER = 16
_META = struct.Struct("<IIQQ")
_META_DB = struct.Struct("<IHHQQQQQ")
_META_TAIL = struct.Struct("<QQ")
_LMDB_MAGIC = 0xBEEFC0DE
_PAGE_SIZES = (4096, 8192, 16384, 32768, 65536, 512, 1024, 2048)


def check_lengths(fs: FileSystem, directory: Path) -> None:
    """Refuses a data.mdb that is shorter than its own meta pages say, and whatever is no file of LMDB's making.

    Absent or empty files pass: LMDB creates them.
    """
    path = directory / "data.mdb"
    size = fs.size_of(path)
    is_odd = [not fs.is_plain(directory)]
    is_odd += [fs.exists(each) and fs.size_of(each) is None for each in (path, directory / "lock.mdb")]
    if any(is_odd):
        names = (directory, path, directory / "lock.mdb")
        which = next(name for name, odd in zip(names, is_odd, strict=True) if odd)
        raise Corrupt(
            f"{which} is a link or no plain file, and links are never followed; "
            "`cordwood rebuild` makes a new index from the volumes"
        )
    if not size:
        return
    fd = fs.open_read(path)
    try:
        first = fs.read(fd, max(_PAGE_SIZES) * _META_PAGES, 0)
    finally:
        fs.close(fd)
    meta = _newest_meta(first)
    if meta is None:
        raise Corrupt(f"{path}: no valid meta page; `cordwood rebuild` makes a new index from the volumes")
    page_size, last_page = meta
    # Asked for again, behind the meta page: another process may be committing, and the file only grows.
    size = fs.size_of(path) or 0
    if size < (last_page + 1) * page_size:
        raise Corrupt(
            f"{path} is {size} bytes, its meta page speaks of {(last_page + 1) * page_size}: it was truncated; "
            "`cordwood rebuild` makes a new index from the volumes"
        )


def _newest_meta(first: bytes) -> tuple[int, int] | None:
    """(page size, last page number) of the newest meta page."""
    page_size = 0
    newest: tuple[int, int] | None = None
    for number in range(_META_PAGES):
        at = number * page_size + _PAGE_HEADER
        if len(first) < at + _META.size + 2 * _META_DB.size + _META_TAIL.size:
            continue
        magic, _version, _address, _map_size = _META.unpack_from(first, at)
        if magic != _LMDB_MAGIC:
            if number == 0:
                return None
            continue
        page_size = _META_DB.unpack_from(first, at + _META.size)[0]
        if page_size not in _PAGE_SIZES:
            return None
        last_page, txn_id = _META_TAIL.unpack_from(first, at + _META.size + 2 * _META_DB.size)
        if newest is None or txn_id > newest[0]:
            newest = (txn_id, last_page)
    return (page_size, newest[1]) if newest else None
