"""Encryption of objects: data keys, the envelopes that keep them, and the ciphers that use them.

Theory: an object or a multipart upload has a data key of its own, 256 random bits. Its *envelope*, an attribute of the
object, keeps that key wrapped: by the newest master key (SSE-S3), by a named key (SSE-KMS), or by the key that the
customer sends with each request (SSE-C), which is kept nowhere. DSSE has two data keys, one wrapped by a named key and
one by a master key, and encrypts twice.

Must not know: requests, headers, handlers, where key files come from.

Invariants:
* A chunk is encrypted under a key derived from the data key and the chunk's id, and bound to part and offset; so no key
  and nonce come twice, and no chunk can take the place of another.
* How long an object is, and of which parts it consists, stands in the envelope under a MAC (`outline`): a list of
  chunks that was cut short is found, which no chunk by itself could show.
* A wrapped key is bound to its bucket, to the kind of encryption and to the encryption context.
* Checksums are stored encrypted, for they tell about the bytes. Where the ETag is not the MD5, the MD5 is not stored.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import logging
import secrets
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from cordwood.engine import Cipher
from cordwood.engine.errors import Corrupt
from cordwood.server.config import ConfigError
from cordwood.server.keyring import MASTER, SALT_BYTES, TAG_BYTES, Key, KeyFile, KeyRing, Secret
from cordwood.server.wire.errors import S3Error, s3_error

log = logging.getLogger("cordwood.keys")

ENCRYPTION: Final = "encryption"
"""The attribute of a bucket that holds its default: kind, key, has_bucket_key, blocked."""

ENVELOPE: Final = "envelope"
"""The attribute of an object or upload that holds its envelope."""

AES256: Final = "AES256"
KMS: Final = "aws:kms"
DSSE: Final = "aws:kms:dsse"
CUSTOMER: Final = "SSE-C"
DEFAULT_KMS_KEY: Final = "aws/s3"
"""What a request for SSE-KMS means that names no key: AWS's managed key. Here it exists if the key file has it."""

_PLACE: Final = struct.Struct(">IQ")
_ETAG_BYTES: Final = 16

Sizes = Iterable[tuple[int, int]]
"""Number and size of each part."""


class CustomerKey(Key):
    """The key that came with a request, and its MD5 in base64, which answers repeat."""

    __slots__ = ("md5",)

    def __init__(self, key: bytes, md5: str) -> None:
        super().__init__(key)
        self.md5 = md5


@dataclass(frozen=True, slots=True)
class Wish:
    """How an object is to be encrypted. `key` is a key of the local provider as the client named it; `context` the
    encryption context as canonical JSON."""

    kind: str
    key: str = ""
    context: str = ""
    has_bucket_key: bool | None = None
    customer: CustomerKey | None = field(default=None, repr=False)


class Envelope(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an object keeps about its encryption."""

    kind: str
    wrapped: bytes
    by: str = ""
    """Id of the key that wraps the data key; of a customer's key nothing is kept."""
    outer: bytes = b""
    """DSSE: the data key of the second layer, wrapped by a master key."""
    outer_by: str = ""
    key: str = ""
    context: str = ""
    has_bucket_key: bool | None = None
    finish: bytes = b""
    """SSE-C uploads: the key that makes the outline, wrapped by a master key, for completing without the customer's."""
    finish_by: str = ""
    outline: bytes = b""

    def attr(self) -> dict[str, Any]:
        """As the attribute of an object."""
        built: dict[str, Any] = msgspec.to_builtins(self, builtin_types=(bytes,))
        return built


def envelope_of(attrs: Mapping[str, Any]) -> Envelope | None:
    """The envelope in an object's or upload's attributes; None when it is not encrypted."""
    raw = attrs.get(ENVELOPE)
    if raw is None:
        return None
    try:
        return msgspec.convert(raw, Envelope, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise Corrupt(f"the envelope of an object cannot be read: {error}") from None


def encryption_headers(envelope: Envelope) -> dict[str, str]:
    """The headers that ask for this encryption, as conditions of policies see them."""
    header = "x-amz-server-side-encryption"
    if envelope.kind == CUSTOMER:
        return {f"{header}-customer-algorithm": AES256}
    if envelope.kind == AES256:
        return {header: AES256}
    return {header: envelope.kind, f"{header}-aws-kms-key-id": envelope.key}


class ObjectCipher:
    """One layer of AES-256-GCM. The engine's `Cipher`."""

    overhead = TAG_BYTES

    def __init__(self, key: Secret) -> None:
        self._key = key

    def encrypt(self, chunk_id: bytes, part: int, offset: int, data: bytes | memoryview) -> bytes:
        return self._key.encrypt(b"chunk", chunk_id, data, _PLACE.pack(part, offset))

    def decrypt(self, chunk_id: bytes, part: int, offset: int, data: bytes | memoryview) -> bytes:
        return self._key.decrypt(b"chunk", chunk_id, data, _PLACE.pack(part, offset))


class DualCipher:
    """Two layers under two independent keys."""

    overhead = 2 * TAG_BYTES

    def __init__(self, inner: ObjectCipher, outer: ObjectCipher) -> None:
        self._inner = inner
        self._outer = outer

    def encrypt(self, chunk_id: bytes, part: int, offset: int, data: bytes | memoryview) -> bytes:
        return self._outer.encrypt(chunk_id, part, offset, self._inner.encrypt(chunk_id, part, offset, data))

    def decrypt(self, chunk_id: bytes, part: int, offset: int, data: bytes | memoryview) -> bytes:
        return self._inner.decrypt(chunk_id, part, offset, self._outer.decrypt(chunk_id, part, offset, data))


class DataKey:
    """The key of one object or upload, unwrapped, and what is done with it. `outer`: that of DSSE's second layer."""

    def __init__(self, secret: Secret, envelope: Envelope, outer: Secret | None = None) -> None:
        self.secret = secret
        self._outer = outer
        self.envelope = envelope

    def __repr__(self) -> str:
        return f"DataKey({self.envelope.kind})"

    @property
    def cipher(self) -> Cipher:
        inner = ObjectCipher(self.secret)
        return inner if self._outer is None else DualCipher(inner, ObjectCipher(self._outer))

    def etag(self, md5: bytes, part: int = 0) -> bytes:
        """What stands in the place of the MD5: itself under SSE-S3, as AWS has it, else a value that tells nothing."""
        if self.envelope.kind == AES256:
            return md5
        return self.secret.derive(b"etag", b"%d " % part + md5)[:_ETAG_BYTES]

    def encrypt_checksums(self, checksums: Mapping[str, str], size: int, part: int = 0) -> dict[str, str]:
        """Checksums as they are stored: encrypted, and bound to algorithm, part and size."""
        encrypted = {}
        for algorithm, value in checksums.items():
            salt = secrets.token_bytes(SALT_BYTES)
            data = self.secret.encrypt(b"checksum", salt, value.encode(), _bound(algorithm, size, part))
            encrypted[algorithm] = base64.b64encode(salt + data).decode()
        return encrypted

    def decrypt_checksums(self, checksums: Mapping[str, str], size: int, part: int = 0) -> dict[str, str]:
        """The reverse. Corrupt for anything else."""
        plain = {}
        for algorithm, text in checksums.items():
            try:
                raw = base64.b64decode(text, validate=True)
                data = self.secret.decrypt(
                    b"checksum", raw[:SALT_BYTES], raw[SALT_BYTES:], _bound(algorithm, size, part)
                )
            except (binascii.Error, ValueError):
                raise Corrupt(f"a stored {algorithm} is not the one of this object, part or size") from None
            plain[algorithm] = data.decode()
        return plain

    def about(self, checksums: Mapping[str, str], size: int, md5: bytes) -> dict[str, Any]:
        """What a commit is told of an object that is not in parts: its checksums, its envelope, what is its ETag."""
        return {
            "checksums": self.encrypt_checksums(checksums, size),
            "attrs": {ENVELOPE: self.finished(size)},
            "md5": self.etag(md5),
        }

    def finished(self, size: int, parts: Sizes = ()) -> dict[str, Any]:
        """The envelope of the finished object, as an attribute."""
        return _finished(self.envelope, self.outline_key(), size, parts)

    def outline_key(self) -> Secret:
        """Makes the MAC of the outline, and reads nothing."""
        return Secret(self.secret.derive(b"outline"))

    def can_become(self, wish: Wish) -> bool:
        """Whether a copy may keep the encrypted bytes and only has this key wrapped anew."""
        return self.envelope.kind == wish.kind and wish.kind in (AES256, KMS)

    def check_outline(self, size: int, parts: Sizes) -> None:
        """Corrupt when the object was not this long, or not of these parts, when it was finished."""
        expected = _outline(self.outline_key(), size, parts)
        if not hmac.compare_digest(expected, self.envelope.outline):
            raise Corrupt("the size of an encrypted object, or its list of parts, is not what was written")


@dataclass(frozen=True, slots=True)
class Encryption:
    """What all requests of a worker share: the keys, what is encrypted without being asked for, and one demand."""

    keys: Keys
    default: Wish | None = None
    must_have_tls: bool = False
    """Refuse customers' keys that come over a connection without TLS."""

    def default_of(self, bucket: Mapping[str, Any]) -> Wish | None:
        """How what is written into a bucket with these attributes is encrypted when nobody says."""
        stored = bucket.get(ENCRYPTION)
        if stored is None or "kind" not in stored:
            return self.default
        return Wish(stored["kind"], stored.get("key", ""), "", stored.get("has_bucket_key"))


class Keys:
    """The keys of a store: makes data keys and unwraps them."""

    def __init__(self, master: KeyFile, named: KeyFile | None = None) -> None:
        self._master = master
        self._named = named

    @property
    def is_ready(self) -> bool:
        """Whether `make` will do without the disk."""
        return self._master.is_durable

    def make(self, wish: Wish, bucket: int, *, for_parts: bool = False) -> DataKey:
        """A new data key, wrapped as wished, for an object (or an upload) of the bucket with this id.

        Blocks when the first master key has to be made.
        """
        secret = Secret.random()
        outer = Secret.random() if wish.kind == DSSE else None
        data_key = DataKey(secret, self._wrapped(secret, wish, bucket, outer), outer)
        if for_parts and wish.kind == CUSTOMER:
            master = self._newest_master()
            finish = master.wrap(data_key.outline_key(), _bound_to(bucket, "finish"))
            data_key.envelope = msgspec.structs.replace(data_key.envelope, finish=finish, finish_by=master.id)
        return data_key

    def rewrap(self, data_key: DataKey, wish: Wish, bucket: int) -> dict[str, Any]:
        """The envelope (as an attribute) of a finished object whose chunks stay, for another key or bucket."""
        old = data_key.envelope
        assert wish.kind in (AES256, KMS) and old.kind in (AES256, KMS)
        envelope = self._wrapped(data_key.secret, wish, bucket, None)
        return msgspec.structs.replace(envelope, outline=old.outline).attr()

    def open(self, envelope: Envelope, bucket: int, customer: CustomerKey | None = None) -> DataKey:
        """The data key of an object of this bucket. S3Error for a missing or wrong key, Corrupt for a bad envelope."""
        bound = _bound_to(bucket, envelope.kind, envelope.context)
        if envelope.kind == CUSTOMER:
            if customer is None:
                raise needs_customer_key()
            try:
                return DataKey(customer.unwrap(envelope.wrapped, bound), envelope)
            except ValueError:
                raise s3_error(
                    "InvalidRequest",
                    "The provided encryption parameters did not match the ones used originally to encrypt the object.",
                ) from None
        if envelope.kind == AES256:
            return DataKey(_unwrap(self._master_key(envelope.by), envelope.wrapped, bound), envelope)
        secret = _unwrap(self._named_key(envelope.key, envelope.by), envelope.wrapped, bound)
        if envelope.kind != DSSE:
            return DataKey(secret, envelope)
        return DataKey(secret, envelope, _unwrap(self._master_key(envelope.outer_by), envelope.outer, bound))

    def finish(self, envelope: Envelope, bucket: int, size: int, parts: Sizes) -> dict[str, Any]:
        """What `DataKey.finished` makes, for an upload under a customer's key that is not at hand."""
        master = self._master_key(envelope.finish_by)
        key = _unwrap(master, envelope.finish, _bound_to(bucket, "finish"))
        return _finished(envelope, key, size, parts)

    def _wrapped(self, secret: Secret, wish: Wish, bucket: int, outer: Secret | None) -> Envelope:
        bound = _bound_to(bucket, wish.kind, wish.context)
        if wish.kind == CUSTOMER:
            assert wish.customer is not None
            return Envelope(CUSTOMER, wish.customer.wrap(secret, bound))
        if wish.kind == AES256:
            master = self._newest_master()
            return Envelope(AES256, master.wrap(secret, bound), master.id)
        key = self._named_key(wish.key)
        envelope = Envelope(
            wish.kind,
            key.wrap(secret, bound),
            key.id,
            key=wish.key,
            context=wish.context,
            has_bucket_key=wish.has_bucket_key,
        )
        if outer is None:
            return envelope
        master = self._newest_master()
        return msgspec.structs.replace(envelope, outer=master.wrap(outer, bound), outer_by=master.id)

    def _newest_master(self) -> Key:
        try:
            key = self._master.create().newest(MASTER)
        except ConfigError as error:
            raise _unavailable(str(error)) from None
        if key is None:
            raise _unavailable(f"key file {self._master.path} has no key named {MASTER}")
        return key

    def _master_key(self, key_id: str) -> Key:
        for now in (False, True):
            key = _ring(self._master, now).find(MASTER, key_id)
            if key is not None:
                return key
        raise _unavailable(
            f"master key {key_id} is not in {self._master.path}; what it encrypted cannot be read"
        )

    def _named_key(self, said: str, key_id: str | None = None) -> Key:
        """The key of the local provider; the newest of the name, or the one with this id."""
        name = key_name(said)
        for now in (False, True):
            if self._named is None:
                break
            ring = _ring(self._named, now)
            key = ring.newest(name) if key_id is None else ring.find(name, key_id)
            if key is not None:
                return key
        raise s3_error("KMS.NotFoundException", f"Key '{said}' does not exist")


def key_name(said: str) -> str:
    """The name in a key file of what a client calls a key: `NAME`, `alias/NAME`, or an ARN that ends in either."""
    if said.startswith("arn:"):
        said = said.split(":", 5)[-1].removeprefix("key/")
    return said.removeprefix("alias/")


def _ring(file: KeyFile, now: bool) -> KeyRing:
    try:
        return file.ring(now=now)
    except ConfigError as error:
        raise _unavailable(str(error)) from None


def _unavailable(text: str) -> S3Error:
    """The operator hears why, the client that it is not its fault."""
    log.error("%s", text)
    return s3_error("InternalError")


def needs_customer_key() -> S3Error:
    return s3_error(
        "InvalidRequest",
        "The object was stored using a form of Server Side Encryption. The correct parameters must be provided to "
        "retrieve the object.",
    )


def _unwrap(key: Key, wrapped: bytes, bound: bytes) -> Secret:
    try:
        return key.unwrap(wrapped, bound)
    except ValueError:
        raise Corrupt(
            f"a data key does not open with {key!r}: it, or what it is bound to, was changed"
        ) from None


def _bound_to(bucket: int, kind: str, context: str = "") -> bytes:
    return json.dumps([bucket, kind, context]).encode()


def _bound(algorithm: str, size: int, part: int) -> bytes:
    return json.dumps([algorithm, size, part]).encode()


def _outline(key: Secret, size: int, parts: Sizes) -> bytes:
    text = ",".join(f"{number}:{part_size}" for number, part_size in parts)
    return key.derive(b"outline", f"{size} {text}".encode())


def _finished(envelope: Envelope, key: Secret, size: int, parts: Sizes) -> dict[str, Any]:
    outline = _outline(key, size, parts)
    return msgspec.structs.replace(envelope, outline=outline, finish=b"", finish_by="").attr()
