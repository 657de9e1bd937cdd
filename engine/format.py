"""Every structure on disk: bytes <-> frozen values, with their checksums. docs/format.md holds the same as tables.

Must not know: files, LMDB, threads. Nothing here does I/O.

Invariants:
* A record is valid at an offset of a volume only if all of these hold, checked in this order by `parse_header`:
  1. 64 bytes are there and begin with the record magic and a known format version;
  2. the header CRC, seeded with the volume's random salt, matches;
  3. the header names exactly this offset;
  4. head and body lengths stay inside the volume.
  Then the head CRC, and for whoever uses the body the body CRC. A volume's bytes stored *as an object* fail 2 and 3.
* Integers are little-endian. Variable heads are msgpack arrays: fields are only ever appended to them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum, IntFlag
from functools import cache
from typing import Annotated, Any, NamedTuple

import msgspec
from crc32c import crc32c

from cordwood.engine.clock import CLOCK_MAX
from cordwood.engine.errors import Corrupt, UnsupportedFormat

FORMAT_VERSION = 1

# --- superblock: the first 4 KiB of a volume ------------------------------------------------------------------

SUPERBLOCK_SIZE = 4096
SUPERBLOCK_MAGIC = b"CORDWOOD"
SALT_SIZE = 16
_SUPERBLOCK = struct.Struct("<8sHH4x16sQ16sQQ")
_CRC = struct.Struct("<I")
assert _SUPERBLOCK.size == 72


class Superblock(NamedTuple):
    """Identity of one volume. `salt` is random per volume and seeds the CRC of every record header in it."""

    store: bytes
    volume: int
    salt: bytes
    node: int
    created: int

    def pack(self) -> bytes:
        fixed = _SUPERBLOCK.pack(
            SUPERBLOCK_MAGIC,
            FORMAT_VERSION,
            HEADER_SIZE,
            self.store,
            self.volume,
            self.salt,
            self.node,
            self.created,
        )
        block = fixed.ljust(SUPERBLOCK_SIZE - _CRC.size, b"\0")
        return block + _CRC.pack(crc32c(block))

    @staticmethod
    def unpack(block: bytes, where: str) -> Superblock:
        if len(block) < SUPERBLOCK_SIZE:
            raise Corrupt(f"{where}: {len(block)} bytes are too few for a superblock")
        magic, version, header_size, store, volume, salt, node, created = _SUPERBLOCK.unpack_from(block)
        if magic != SUPERBLOCK_MAGIC:
            raise Corrupt(f"{where}: not a Cordwood volume (bad magic)")
        (crc,) = _CRC.unpack_from(block, SUPERBLOCK_SIZE - _CRC.size)
        if crc != crc32c(block[: SUPERBLOCK_SIZE - _CRC.size]):
            raise Corrupt(f"{where}: superblock CRC does not match")
        if version != FORMAT_VERSION or header_size != HEADER_SIZE:
            raise UnsupportedFormat(f"{where}: volume format {version}; this program reads {FORMAT_VERSION}")
        return Superblock(store, volume, salt, node, created)


def header_seed(salt: bytes) -> int:
    """The CRC state that every header CRC of a volume continues from."""
    return crc32c(salt)


# --- record header --------------------------------------------------------------------------------------------

HEADER_SIZE = 64
RECORD_MAGIC = b"CWR1"
ALIGNMENT = 8
HEAD_MAX = 16 << 20
BODY_MAX = (1 << 32) - 1
_PADDING = [bytes(count) for count in range(ALIGNMENT)]
_HEADER = struct.Struct("<4sBBHQQQQIIIII")
_HEADER_CRC_AT = 60
_WITH_CRC = struct.Struct(_HEADER.format + "I")
assert _HEADER.size == _HEADER_CRC_AT
assert _WITH_CRC.size == HEADER_SIZE
_tuple = tuple.__new__  # what a NamedTuple's own __new__ ends in, without the call around it


class RecordType(IntEnum):
    CHUNK = 1
    OBJECT = 2
    DELETE = 3
    DIRECTORY = 4
    BUCKET = 5
    UPLOAD = 6
    PART = 7
    SEAL = 8
    ATTRS = 9


class Flag(IntFlag):
    """`MORE`: the transaction goes on in the next record. `DIGEST`: a chunk's id is the BLAKE3 of its payload."""

    MORE = 1
    DIGEST = 2


class Header(NamedTuple):
    """The fixed part of a record. `durable`: every byte of the volume below it was synced before this record.

    `base`: `clock_base` of the index's clock when the record's batch was decided, so that replay can tell the batch
    that came next from one that was overtaken; 0 in chunks, seals and copies.
    """

    type: int
    flags: int
    offset: int
    clock: int
    durable: int
    node: int
    head_length: int
    body_length: int
    head_crc: int
    body_crc: int
    base: int = 0

    @property
    def length(self) -> int:
        """Bytes the whole record takes in the volume, padding included."""
        return (HEADER_SIZE + self[6] + self[7] + ALIGNMENT - 1) & -ALIGNMENT


def clock_base(clock: int) -> int:
    """What names an index clock in the records that were decided on top of it."""
    return crc32c(clock.to_bytes(8, "little"))


def record_length(head_length: int, body_length: int) -> int:
    return (HEADER_SIZE + head_length + body_length + ALIGNMENT - 1) & -ALIGNMENT


def pack_record(
    type_: int,
    flags: int,
    offset: int,
    clock: int,
    durable: int,
    node: int,
    head: bytes,
    body: bytes | memoryview,
    seed: int,
    base: int = 0,
    body_crc: int | None = None,
) -> list[bytes | memoryview]:
    """The record as buffers to be written one after another: header and head, body, padding.

    `body_crc` is the CRC32C of the body where the caller has it already.
    """
    head_length, body_length = len(head), len(body)
    assert head_length <= HEAD_MAX and body_length <= BODY_MAX
    fixed = _HEADER.pack(
        RECORD_MAGIC,
        FORMAT_VERSION,
        type_,
        flags,
        offset,
        clock,
        durable,
        node,
        head_length,
        body_length,
        crc32c(head),
        body_crc if body_crc is not None else crc32c(body) if body_length else 0,
        base,
    )
    first = fixed + _CRC.pack(crc32c(fixed, seed)) + head
    padding = _PADDING[-(HEADER_SIZE + head_length + body_length) & (ALIGNMENT - 1)]
    return [first, body, padding] if body_length else [first + padding]


def parse_header(data: bytes | memoryview, offset: int, seed: int, limit: int) -> Header | None:
    """The header at `offset` of a volume whose bytes end at `limit`, or None when there is no valid one."""
    if len(data) < HEADER_SIZE:
        return None
    fields = _WITH_CRC.unpack_from(data)
    if fields[0] != RECORD_MAGIC or fields[1] != FORMAT_VERSION:
        return None
    if fields[13] != crc32c(data[:_HEADER_CRC_AT], seed):
        return None
    header = _tuple(Header, fields[2:13])
    if header.offset != offset or header.head_length > HEAD_MAX or offset + header.length > limit:
        return None
    return header


def parse_at(
    data: memoryview, at: int, offset: int, seed: int, limit: int
) -> tuple[bytes, int, int, int, int, int, int, int, int, int, int, int, int, int] | None:
    """Like `parse_header` of what stands `at` a place in `data`, for reading millions: the plain fields, of which those
    from the third to the last but one make a `Header`. `data` holds a whole header there."""
    fields = _WITH_CRC.unpack_from(data, at)
    if fields[0] != RECORD_MAGIC or fields[1] != FORMAT_VERSION or fields[4] != offset:
        return None
    if fields[13] != crc32c(data[at : at + _HEADER_CRC_AT], seed):
        return None
    if fields[8] > HEAD_MAX or offset + record_length(fields[8], fields[9]) > limit:
        return None
    return fields


# --- heads ----------------------------------------------------------------------------------------------------


class Layout(IntEnum):
    INLINE = 0
    CHUNKED = 1
    MARKER = 2


# What a field may hold. The decoder refuses everything else, so that nothing behind it meets a number that fits no row.
BUCKET_NAME_MAX = 63
COMPONENT_MAX = 1024
PARTS_MAX = 10_000
_Number = Annotated[int, msgspec.Meta(ge=0, le=CLOCK_MAX)]
_PartNumber = Annotated[int, msgspec.Meta(ge=1, le=PARTS_MAX)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=PARTS_MAX)]
_Layout = Annotated[int, msgspec.Meta(ge=int(Layout.INLINE), le=int(Layout.MARKER))]
_Component = Annotated[bytes, msgspec.Meta(max_length=COMPONENT_MAX)]
_Md5 = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
_Secret = Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]

STORAGE_CLASSES = (
    "STANDARD",
    "REDUCED_REDUNDANCY",
    "STANDARD_IA",
    "ONEZONE_IA",
    "INTELLIGENT_TIERING",
    "GLACIER",
    "DEEP_ARCHIVE",
    "OUTPOSTS",
    "GLACIER_IR",
    "SNOW",
    "EXPRESS_ONEZONE",
    "FSX_OPENZFS",
    "FSX_ONTAP",
    "AWS_BACKUP_WARM",
    "AWS_BACKUP_LOW_COST_WARM",
)
CHECKSUM_ALGORITHMS = (
    "CRC32",
    "CRC32C",
    "SHA1",
    "SHA256",
    "CRC64NVME",
    "SHA512",
    "MD5",
    "XXHASH64",
    "XXHASH3",
    "XXHASH128",
)
CHECKSUM_TYPES = ("", "COMPOSITE", "FULL_OBJECT")
_SHOWN = 64  # of a text that makes no sense, so much goes into a message
_CLASSES = frozenset(STORAGE_CLASSES)
_ALGORITHMS = frozenset(CHECKSUM_ALGORITHMS)


class _Head(msgspec.Struct, array_like=True, frozen=True, gc=False):
    pass


class ObjectHead(_Head, frozen=True):
    """One version of an object, or a delete marker. The record's clock is its version id and modification time.

    `null` says that the version is S3's "null" version. `upload` is the multipart upload it completed, or 0;
    the chunk references of the parts that upload still holds in the index pass to the object. `overhead` is not 0 when
    the bytes are encrypted: then each chunk, or the body of an inline object, is so much longer than its plaintext.
    """

    bucket: _Number
    directory: _Number
    name: _Component
    null: bool
    layout: _Layout
    size: _Number
    md5: _Md5
    parts_count: _Count = 0
    storage_class: str = "STANDARD"
    headers: dict[str, str] = {}
    metadata: dict[str, str] = {}
    checksums: dict[str, str] = {}
    checksum_type: str = ""
    upload: _Number = 0
    attrs: dict[str, Any] = {}
    overhead: _Number = 0


class DeleteHead(_Head, frozen=True):
    """Removal of one version for good. `version` is its clock; 0 means the null version."""

    bucket: _Number
    directory: _Number
    name: _Component
    version: _Number


class DirectoryHead(_Head, frozen=True):
    """Where a directory is; `name` ends in "/". A later record for the same id moves it with all that is below."""

    bucket: _Number
    directory: _Number
    parent: _Number
    name: _Component


class BucketHead(_Head, frozen=True):
    """A bucket as it is from this clock on. Its id is the clock of its creation and the id of its root directory."""

    bucket: _Number
    name: str
    versioning: str = ""
    deleted: bool = False
    attrs: dict[str, Any] = {}


class UploadHead(_Head, frozen=True):
    """A multipart upload: begun (`ended` false) or aborted (true). Completion is the object's own record."""

    bucket: _Number
    upload: _Number
    secret: _Secret
    key: _Component
    ended: bool = False
    storage_class: str = "STANDARD"
    headers: dict[str, str] = {}
    metadata: dict[str, str] = {}
    checksum_algorithm: str = ""
    checksum_type: str = ""
    attrs: dict[str, Any] = {}


class PartHead(_Head, frozen=True):
    """One part of an upload; a later record with the same number replaces it."""

    bucket: _Number
    upload: _Number
    number: _PartNumber
    size: _Number
    md5: _Md5
    checksums: dict[str, str] = {}
    overhead: _Number = 0


class SealHead(_Head, frozen=True):
    """The last record of a volume that takes no more appends; `records_end` is its own offset."""

    records_end: _Number


class AttrsHead(_Head, frozen=True):
    """All attributes of one version from this clock on, in the place of those in its own record.

    `version` is the clock of that record. The newest such head of a version counts.
    """

    bucket: _Number
    directory: _Number
    name: _Component
    version: _Number
    attrs: dict[str, Any] = {}


Head = ObjectHead | DeleteHead | DirectoryHead | BucketHead | UploadHead | PartHead | SealHead | AttrsHead

HEAD_TYPES: dict[int, type[_Head]] = {
    RecordType.OBJECT: ObjectHead,
    RecordType.DELETE: DeleteHead,
    RecordType.DIRECTORY: DirectoryHead,
    RecordType.BUCKET: BucketHead,
    RecordType.UPLOAD: UploadHead,
    RecordType.PART: PartHead,
    RecordType.SEAL: SealHead,
    RecordType.ATTRS: AttrsHead,
}
TYPE_OF_HEAD: dict[type, int] = {head: int(type_) for type_, head in HEAD_TYPES.items()}
_DECODERS = {type_: msgspec.msgpack.Decoder(head) for type_, head in HEAD_TYPES.items()}
_encode = msgspec.msgpack.Encoder().encode


def encoded_size(value: Any) -> int:
    """Bytes of a value within a head. TypeError, ValueError or OverflowError for what a head cannot hold."""
    return len(_encode(value))


def encode_head(head: Head) -> bytes:
    return _encode(head)


def decode_head(type_: int, data: bytes | memoryview, where: object) -> Any:
    """The head of a record whose head CRC was checked. A head that still does not decode, or says what no head can
    say, is `Corrupt`, and the text of `where` says which."""
    try:
        head = _DECODERS[type_].decode(data)
    except KeyError:
        raise Corrupt(f"{where}: no record is of type {type_}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"{where}: record head of type {type_} cannot be read: {error}") from None
    if type(head) in _SENSE and (why := _SENSE[type(head)](head)):
        raise Corrupt(f"{where}: record head of type {type_} makes no sense: {why}")
    return head


def _sense_of_object(head: ObjectHead) -> str:
    if b"/" in head.name:
        return f"its name {head.name[:_SHOWN]!r} has a '/'"
    if head.storage_class not in _CLASSES or head.checksum_type not in CHECKSUM_TYPES:
        return f"storage class {head.storage_class[:_SHOWN]!r}, checksum type {head.checksum_type[:_SHOWN]!r}"
    if head.checksums and not head.checksums.keys() <= _ALGORITHMS:
        return f"checksums {', '.join(head.checksums)[:_SHOWN]!r}"
    return ""


def _sense_of_directory(head: DirectoryHead) -> str:
    if head.name.find(b"/") != len(head.name) - 1:
        return f"the name {head.name[:_SHOWN]!r} of a directory does not end in its only '/'"
    if head.directory in (head.bucket, head.parent):
        return "it would stand within itself"
    return ""


def _sense_of_bucket(head: BucketHead) -> str:
    if head.name.isascii() and 0 < len(head.name) <= BUCKET_NAME_MAX:
        return ""
    return f"no bucket is named {head.name[:_SHOWN]!r}"


_SENSE: dict[type, Callable[[Any], str]] = {
    ObjectHead: _sense_of_object,
    DirectoryHead: _sense_of_directory,
    BucketHead: _sense_of_bucket,
}


def read_head(header: Header, head: bytes, where: object) -> Any:
    """The decoded head of a record that a scan found; of a chunk its bytes. `Corrupt` for what says what no record can
    say: its checksums hold, so it was written so, and is neither torn nor rotten."""
    check_header(header.clock, header.durable, header.offset, where)
    if header.type != RecordType.CHUNK:
        return decode_head(header.type, head, where)
    if header.head_length != chunk_head_length(header.body_length) or not header.body_length:
        raise Corrupt(
            f"{where}: chunk head of {header.head_length} bytes does not fit a payload of {header.body_length}"
        )
    return head


def check_header(clock: int, durable: int, offset: int, where: object) -> None:
    """`Corrupt` for numbers that no record has."""
    if clock > CLOCK_MAX or durable > offset:
        raise Corrupt(
            f"{where}: no record has clock {clock} or, at {offset}, {durable} durable bytes before it"
        )


# --- chunks and manifests -------------------------------------------------------------------------------------

CHUNK_ID_SIZE = 32
BLOCK_SIZE = 64 << 10  # a chunk can be verified in blocks of this size, so a small range reads little
_ALL_BITS = 0xFFFFFFFF
_KEEP_GIL = 0  # a block takes 2 us, less than it can take to get the interpreter back


def encode_chunk_head(chunk_id: bytes, payload: bytes | bytearray | memoryview) -> tuple[bytes, int]:
    """A chunk's head, its id and then the CRC32C of each 64 KiB block of its payload; and the CRC32C of all of it, made
    from those of the blocks."""
    view = memoryview(payload)
    whole_blocks = len(view) // BLOCK_SIZE
    blocks = []
    crc = 0
    for number in range(whole_blocks):
        block_crc = crc32c(view[number * BLOCK_SIZE : (number + 1) * BLOCK_SIZE], 0, _KEEP_GIL)
        blocks.append(block_crc)
        crc = block_behind(crc) ^ block_crc
    rest = view[whole_blocks * BLOCK_SIZE :]
    if rest:
        blocks.append(crc32c(rest))
        crc = crc32c(rest, crc)
    return chunk_id + struct.pack(f"<{len(blocks)}I", *blocks), crc


def block_behind(crc: int) -> int:
    """What a CRC32C becomes by a block behind it, but for the block's own CRC, which is to be XORed to it.

    That is linear in the bits of the CRC, so its values for each byte of it, XORed, are its value.
    """
    first, second, third, fourth = _block_tables()
    return first[crc & 255] ^ second[crc >> 8 & 255] ^ third[crc >> 16 & 255] ^ fourth[crc >> 24]


@cache
def _block_tables() -> list[list[int]]:
    """For each of the four bytes of a CRC the effect of each of its values, made from that of its single bits."""
    zeros = bytes(BLOCK_SIZE)
    tables = []
    for shift in (0, 8, 16, 24):
        table = [0] * 256
        for value in range(1, 256):
            rest = value & (value - 1)
            bit = (value ^ rest) << shift
            # CRC32C inverts its state at both ends; a block of zeros then shows what becomes of the state alone.
            single = crc32c(zeros, bit ^ _ALL_BITS) ^ _ALL_BITS if not rest else table[value ^ rest]
            table[value] = table[rest] ^ single
        tables.append(table)
    return tables


def chunk_head_length(payload_length: int) -> int:
    return CHUNK_ID_SIZE + 4 * -(-payload_length // BLOCK_SIZE)


def chunk_record_length(payload_length: int) -> int:
    return record_length(chunk_head_length(payload_length), payload_length)


def decode_chunk_head(
    head: bytes | memoryview, payload_length: int, where: str
) -> tuple[bytes, tuple[int, ...]]:
    if len(head) != chunk_head_length(payload_length):
        raise Corrupt(f"{where}: chunk head of {len(head)} bytes does not fit a payload of {payload_length}")
    count = (len(head) - CHUNK_ID_SIZE) // 4
    return bytes(head[:CHUNK_ID_SIZE]), struct.unpack_from(f"<{count}I", head, CHUNK_ID_SIZE)


class ChunkRef(NamedTuple):
    """One chunk of an object: its id and payload length in bytes. Volume and offset tell where the chunk was when
    the record was written: replay needs that; afterwards the index knows better."""

    id: bytes
    length: int
    volume: int
    offset: int


class PartInManifest(_Head, frozen=True):
    """A part of a completed multipart object: number, size in bytes, MD5, checksums as header values."""

    number: _PartNumber
    size: _Number
    md5: _Md5
    checksums: dict[str, str] = {}


_MANIFEST = struct.Struct("<II")
_ENTRY = struct.Struct("<32sQQI")
assert _ENTRY.size == 52
_parts_decoder = msgspec.msgpack.Decoder(list[PartInManifest])


class Manifest:
    """The body of a chunked object or part: its chunks in order, and of a multipart object its parts.

    Entries stay packed: a range read of a large object unpacks only what it touches.

    References and entries count the bytes that are stored; `size` and `find` those of the object, of which each chunk
    has `overhead` less.
    """

    __slots__ = ("_data", "count", "_parts_at", "_overhead")

    def __init__(self, data: bytes, where: str = "manifest", overhead: int = 0) -> None:
        self._overhead = overhead
        if len(data) < _MANIFEST.size:
            raise Corrupt(f"{where}: manifest of {len(data)} bytes is too short")
        self.count, parts_length = _MANIFEST.unpack_from(data)
        self._parts_at = _MANIFEST.size + self.count * _ENTRY.size
        if len(data) != self._parts_at + parts_length:
            raise Corrupt(
                f"{where}: manifest of {len(data)} bytes does not hold {self.count} chunks and its parts"
            )
        self._data = data

    @staticmethod
    def pack(chunks: list[ChunkRef], parts: list[PartInManifest] | None = None) -> bytes:
        packed_parts = _encode(parts) if parts else b""
        pieces = [_MANIFEST.pack(len(chunks), len(packed_parts))]
        end = 0
        for chunk_id, length, volume, offset in chunks:
            end += length
            pieces.append(_ENTRY.pack(chunk_id, end, offset, volume))
        pieces.append(packed_parts)
        return b"".join(pieces)

    @property
    def size(self) -> int:
        return self._end(self.count - 1)

    def _end(self, index: int) -> int:
        """Where a chunk ends within the object."""
        return self._stored_end(index) - self._overhead * (index + 1)

    def _stored_end(self, index: int) -> int:
        if index < 0:
            return 0
        end: int = _ENTRY.unpack_from(self._data, _MANIFEST.size + index * _ENTRY.size)[1]
        return end

    def chunk(self, index: int) -> ChunkRef:
        chunk_id, end, offset, volume = _ENTRY.unpack_from(self._data, _MANIFEST.size + index * _ENTRY.size)
        return ChunkRef(chunk_id, end - self._stored_end(index - 1), volume, offset)

    def chunks(self) -> list[ChunkRef]:
        result = []
        before = 0
        for chunk_id, end, offset, volume in _ENTRY.iter_unpack(
            memoryview(self._data)[_MANIFEST.size : self._parts_at]
        ):
            if not 0 < end - before <= BODY_MAX:
                raise Corrupt(f"manifest: a chunk of {end - before} bytes, from {before} to {end}")
            result.append(ChunkRef(chunk_id, end - before, volume, offset))
            before = end
        return result

    def check(self) -> None:
        """`Corrupt` for chunks and parts that no object has."""
        self.chunks()
        self.parts()

    def find(self, position: int) -> tuple[int, int]:
        """The index of the chunk that holds byte `position` of the object, and the offset where that chunk begins."""
        low, high = 0, self.count - 1
        while low < high:
            middle = (low + high) // 2
            if self._end(middle) > position:
                high = middle
            else:
                low = middle + 1
        return low, self._end(low - 1)

    def parts(self) -> list[PartInManifest]:
        if self._parts_at == len(self._data):
            return []
        try:
            return _parts_decoder.decode(self._data[self._parts_at :])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Corrupt(f"manifest: its parts cannot be read: {error}") from None
