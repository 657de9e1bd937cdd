"""docs/format.md and the code say the same: every table of the one is compared with the structs of the other."""

from __future__ import annotations

import json
import re
import struct
import typing
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest

from cordwood.engine import check, compactor, errors, format, index, namespace, opening, rows, scrub
from tests.engine.support import ROOT, small

TEXT = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
Row = list[str]


def tables() -> dict[tuple[str, str], list[Row]]:
    """The rows of every table, by the heading above it and its first column's title."""
    found: dict[tuple[str, str], list[Row]] = {}
    heading = title = ""
    in_table = False
    for line in TEXT.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        if not line.startswith("|"):
            in_table = False
            continue
        cells = [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")]
        if not in_table:
            in_table, title = True, cells[0]
            assert (heading, title) not in found
            found[heading, title] = []
        elif not cells[0].startswith("---"):
            found[heading, title].append(cells)
    return found


TABLES = tables()
TYPES = {"B": "u8", "H": "u16", "I": "u32", "Q": "u64"}


def layout(packed: struct.Struct, names: list[str]) -> list[Row]:
    """Offset, type and name of each field of a struct, as the document writes them."""
    assert packed.format[0] == "<"  # no padding but what is said
    rows = []
    at = 0
    rest = list(names)
    for count, code in re.findall(r"(\d*)([a-zA-Z])", packed.format):
        for _ in range(1 if code in "sx" else int(count or 1)):
            size = struct.calcsize("<" + (count if code in "sx" else "") + code)
            kind = {"s": f"bytes {size}", "x": f"zero {size}"}.get(code) or TYPES[code]
            rows.append([str(at), kind, "" if code == "x" else rest.pop(0)])
            at += size
    assert not rest and at == packed.size
    return rows


PLACE = ["volume", "offset", "length"]
SUPERBLOCK = ["magic", "version", "header_size", *format.Superblock._fields]
HEADER = ["magic", "version", *format.Header._fields]
OBJECT = list(rows.ObjectRow._fields)

STRUCTS: dict[str, list[Row]] = {
    "Superblock": [
        *layout(format._SUPERBLOCK, SUPERBLOCK),
        ["72", f"zero {format.SUPERBLOCK_SIZE - 72 - 4}", ""],
        [str(format.SUPERBLOCK_SIZE - 4), "u32", "crc"],
    ],
    "Record header": [*layout(format._HEADER, HEADER), [str(format._HEADER_CRC_AT), "u32", "header_crc"]],
    "Manifest header": layout(format._MANIFEST, ["count", "parts_length"]),
    "Manifest entry": layout(format._ENTRY, ["id", "end", "offset", "volume"]),
    "Object row": layout(rows._OBJECT, ["kind", *OBJECT[:-2]]),
    "Object row group": layout(rows._GROUP, OBJECT[-2:]),
    "Directory entry": layout(rows._ENTRY_ID, ["kind", "directory"]),
    "Directory row": layout(rows._DIRECTORY, [*rows.DirectoryRow._fields[:3], *PLACE]),
    "Bucket row": layout(rows._BUCKET, [rows.BucketRow._fields[0], *PLACE]),
    "Chunk row": layout(rows._CHUNK, list(rows.ChunkRow._fields)),
    "Upload row": layout(rows._UPLOAD, ["clock", *PLACE, "secret"]),
    "Part row": layout(rows._PART, ["clock", *PLACE, "size", "md5"]),
    "Attrs row": layout(rows._ATTRS, ["clock", *PLACE, *rows.AttrsRow._fields[2:]]),
    "Volume row": layout(rows._VOLUME, list(rows.VolumeRow._fields)),
}


@pytest.mark.parametrize("name", STRUCTS)
def test_every_struct_has_its_offset_table_and_they_agree(name: str) -> None:
    assert [row[:3] for row in TABLES[name, "Offset"]] == STRUCTS[name]


def test_no_struct_is_without_a_table() -> None:
    documented = {name for name, first in TABLES if first == "Offset"}
    assert documented == set(STRUCTS)
    known = {id(each) for each in (format._CRC, format._WITH_CRC, rows._U64, rows._WHERE)}
    mine = [
        each for module in (format, rows) for each in vars(module).values() if isinstance(each, struct.Struct)
    ]
    assert len([each for each in mine if id(each) not in known]) == len(STRUCTS)


def test_rows_and_fields_are_packed_in_the_order_that_is_written_down() -> None:
    """The names above are only right if `pack` takes them in that order."""
    header = format.Header(7, 3, 4096, 5, 6, 7, 8, 0, 9, 10, 11)
    data = format.pack_record(7, 3, 4096, 5, 6, 7, b"x" * 8, b"", 0, 11)[0]
    parsed = format.parse_header(data, 4096, 0, 1 << 20)
    assert parsed is not None
    assert parsed._replace(head_crc=0, body_crc=0) == header._replace(head_crc=0, body_crc=0)
    superblock = format.Superblock(b"s" * 16, 2, b"t" * 16, 3, 4)
    assert format.Superblock.unpack(superblock.pack(), "here") == superblock
    row = rows.ObjectRow(1, 2, 3, 4, 5, 6, 7, 8, 9, b"m" * 16)
    assert struct.unpack("<BBBxHHIIQQQ16s", row.pack()) == (1, *row[:10])
    assert rows.VolumeRow(1, 2, 3, 4).pack() == struct.pack("<B7xQQQ", 1, 2, 3, 4)


HEADS: dict[str, type[format._Head]] = {
    "Object head": format.ObjectHead,
    "Delete head": format.DeleteHead,
    "Directory head": format.DirectoryHead,
    "Bucket head": format.BucketHead,
    "Upload head": format.UploadHead,
    "Part head": format.PartHead,
    "Seal head": format.SealHead,
    "Attrs head": format.AttrsHead,
    "Part in manifest": format.PartInManifest,
}
HEAD_TYPES = {
    int: "int",
    bytes: "bin",
    str: "str",
    bool: "bool",
    dict[str, str]: "map",
    dict[str, Any]: "any map",
}


@pytest.mark.parametrize("name", HEADS)
def test_every_head_lists_its_fields_in_order_with_types_and_defaults(name: str) -> None:
    import msgspec

    head = HEADS[name]
    hints = typing.get_type_hints(head)
    rows = []
    for field in msgspec.structs.fields(head):
        default = "" if field.required else repr(field.default)
        if field.default_factory is not msgspec.NODEFAULT:
            default = repr(field.default_factory())
        rows.append([field.name, HEAD_TYPES[hints[field.name]], default])
    assert [row[:3] for row in TABLES[name, "Field"]] == rows


def test_no_head_is_without_a_table() -> None:
    documented = {name for name, first in TABLES if first == "Field" and name != "Directory"}
    assert documented == set(HEADS)
    assert {*format.HEAD_TYPES.values(), format.PartInManifest} == set(HEADS.values())


def numbers(enum: type[IntEnum] | type) -> list[tuple[str, str]]:
    return [(name, str(int(value))) for name, value in vars(enum).items() if name.isupper()]


@pytest.mark.parametrize(
    ("heading", "title", "enum"),
    [
        ("Record header", "Record type", format.RecordType),
        ("Record header", "Flag", format.Flag),
        ("Object head", "Layout", format.Layout),
        ("Index", "Row kind", rows.Kind),
        ("Object row group", "Row flag", rows.RowFlag),
        ("Volume row", "Volume state", rows.VolumeState),
    ],
)
def test_every_number_has_its_name(heading: str, title: str, enum: type) -> None:
    if issubclass(enum, int):
        expected = [(each.name, str(int(each))) for each in enum]  # type: ignore[attr-defined]
    else:
        expected = numbers(enum)
    assert [(row[0], row[1]) for row in TABLES[heading, title]] == expected


def test_constants_tables_lists_and_names_agree() -> None:
    for name, value in TABLES["Sizes and limits", "Constant"]:
        module = namespace if name == "PIECE_MAX" else format
        assert getattr(module, name) == int(value), name
    assert [row[0] for row in TABLES["Index", "Table"]] == list(index._TABLES)
    for title, expected in (
        ("Storage classes, from 0: ", format.STORAGE_CLASSES),
        ("Checksum algorithms, from bit 0: ", format.CHECKSUM_ALGORITHMS),
    ):
        line = next(line for line in TEXT.splitlines() if line.startswith(title))
        assert line.removeprefix(title).removesuffix(".").split(", ") == list(expected)
    assert f"The format version is **{format.FORMAT_VERSION}**" in TEXT
    assert f"`{format.SUPERBLOCK_MAGIC.decode()}`" in TEXT and f"`{format.RECORD_MAGIC.decode()}`" in TEXT


def test_every_name_in_the_directory_is_listed() -> None:
    names = {
        value for name, value in vars(opening).items() if name.endswith("_NAME") and isinstance(value, str)
    }
    names |= {compactor.LOCK_NAME, scrub.STATUS_NAME, check.QUARANTINE_NAME}
    assert {row[0] for row in TABLES["Directory", "Name"]} == names


def test_a_new_store_has_only_what_is_listed(path: Path) -> None:
    with small(path, durability="relaxed") as store:
        store.create_bucket("wood")
        listed = {row[0] for row in TABLES["Directory", "Name"]}
        assert {each.name for each in path.iterdir()} <= listed
        content = json.loads((path / "FORMAT").read_text())
        assert list(content) == [row[0] for row in TABLES["Directory", "Field"]]


def test_a_head_with_fields_of_the_future_is_read_and_one_without_the_newest_too() -> None:
    import msgspec

    encoded = msgspec.msgpack.encode([1, 2, b"n", 3, "future", {"more": 1}])
    assert format.decode_head(3, encoded, "here") == format.DeleteHead(1, 2, b"n", 3)
    short = msgspec.msgpack.encode([1, 2, b"n", True, 0, 5, bytes(16)])
    assert format.decode_head(2, short, "here") == format.ObjectHead(1, 2, b"n", True, 0, 5, bytes(16))
    with pytest.raises(errors.Corrupt):
        format.decode_head(3, msgspec.msgpack.encode([1, 2]), "here")
