"""The S3 operations that the commands need, as plain calls on plain values.

Must not know: commands, progress, local destinations.

Invariants:
* Every upload carries a checksum, and its answer is compared with what was sent: by the echoed checksum, else by the
  ETag where that is an MD5. An endpoint that stored something else is an error, not a surprise later.
* Keys in listings are decoded (`encoding-type=url`), so any key comes through, also one that XML cannot carry.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import quote, unquote_plus
from uuid import uuid4
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from cordwood.cli.client import UNSIGNED, BytesPayload, Client, Payload, Reply, ServiceError, error_fields
from cordwood.cli.errors import CliError
from cordwood.cli.uri import S3Uri
from cordwood.server.wire.checksums import combine, hasher

# Full-object checksums: the ones that can be combined from those of the parts.
CHECKSUMS = {"CRC64NVME": 12, "CRC32C": 8, "CRC32": 8}  # with the length of their base64
_MD5 = re.compile(r"[0-9a-f]{32}\Z")


@dataclass(frozen=True)
class BucketEntry:
    name: str
    created_s: float


@dataclass(frozen=True)
class Entry:
    """One object of a listing."""

    key: str
    size: int
    etag: str
    modified_s: float
    storage_class: str


@dataclass(frozen=True)
class Prefix:
    """One common prefix of a listing."""

    prefix: str


@dataclass(frozen=True)
class Part:
    number: int
    size: int
    etag: str
    checksum: str


@dataclass(frozen=True)
class Upload:
    """A multipart upload in progress; `checksum` is the algorithm of its parts, "" for none."""

    uri: S3Uri
    upload_id: str
    checksum: str


class S3:
    """`checksum` is the algorithm that uploads carry."""

    def __init__(self, client: Client, checksum: str = "CRC64NVME") -> None:
        self.client = client
        self.checksum = checksum

    # --- buckets ------------------------------------------------------------------------------------------

    def buckets(self) -> Iterator[BucketEntry]:
        token = ""
        while True:
            query = [("continuation-token", token)] if token else []
            root = _xml(self.client.request("GET", query=query).body, "the list of buckets")
            for element in root.iter("Bucket"):
                yield BucketEntry(_text(element, "Name"), _time_s(_text(element, "CreationDate")))
            token = _text(root, "ContinuationToken")
            if not token:
                return

    def make_bucket(self, bucket: str) -> None:
        region = self.client.target.region
        body = b""
        if region != "us-east-1":
            place = f"<LocationConstraint>{escape(region)}</LocationConstraint>"
            body = f"<CreateBucketConfiguration>{place}</CreateBucketConfiguration>".encode()
        self.client.request("PUT", bucket, payload=BytesPayload(body), payload_sha256=_sha256(body))

    def remove_bucket(self, bucket: str) -> None:
        self.client.request("DELETE", bucket)

    def head_bucket(self, bucket: str) -> Mapping[str, str]:
        return self.client.request("HEAD", bucket).headers

    # --- listings -----------------------------------------------------------------------------------------

    def entries(self, bucket: str, prefix: str = "", *, delimiter: str = "") -> Iterator[Entry | Prefix]:
        """In the order of the endpoint, page by page."""
        token = ""
        while True:
            query = [("list-type", "2"), ("encoding-type", "url"), ("prefix", prefix)]
            query += [("delimiter", delimiter)] if delimiter else []
            query += [("continuation-token", token)] if token else []
            root = _xml(self.client.request("GET", bucket, query=query).body, f"the listing of s3://{bucket}")
            decode = unquote_plus if _text(root, "EncodingType") == "url" else str
            page: list[tuple[str, Entry | Prefix]] = []
            for element in root.iterfind("Contents"):
                entry = _entry(element, decode(_text(element, "Key")))
                page.append((entry.key, entry))
            for element in root.iterfind("CommonPrefixes"):
                name = decode(_text(element, "Prefix"))
                page.append((name, Prefix(name)))
            page.sort(key=lambda item: item[0].encode("utf-8", "surrogatepass"))
            yield from (item for _, item in page)
            token = _text(root, "NextContinuationToken")
            if _text(root, "IsTruncated") != "true" or not token:
                return

    def objects(self, bucket: str, prefix: str = "") -> Iterator[Entry]:
        return (entry for entry in self.entries(bucket, prefix) if isinstance(entry, Entry))

    def versions(self, bucket: str) -> Iterator[tuple[str, str]]:
        """(key, version id) of every version and delete marker."""
        markers: list[tuple[str, str]] = []
        while True:
            query = [("versions", ""), ("encoding-type", "url"), *markers]
            root = _xml(
                self.client.request("GET", bucket, query=query).body, f"the versions in s3://{bucket}"
            )
            decode = unquote_plus if _text(root, "EncodingType") == "url" else str
            for element in (*root.iterfind("Version"), *root.iterfind("DeleteMarker")):
                yield decode(_text(element, "Key")), _text(element, "VersionId")
            if _text(root, "IsTruncated") != "true":
                return
            markers = [("key-marker", decode(_text(root, "NextKeyMarker")))]
            if _text(root, "NextVersionIdMarker"):
                markers.append(("version-id-marker", _text(root, "NextVersionIdMarker")))

    def uploads(self, bucket: str) -> Iterator[tuple[str, str]]:
        """(key, upload id) of every multipart upload in progress."""
        markers: list[tuple[str, str]] = []
        while True:
            query = [("uploads", ""), ("encoding-type", "url"), *markers]
            root = _xml(self.client.request("GET", bucket, query=query).body, f"the uploads in s3://{bucket}")
            decode = unquote_plus if _text(root, "EncodingType") == "url" else str
            for element in root.iterfind("Upload"):
                yield decode(_text(element, "Key")), _text(element, "UploadId")
            if _text(root, "IsTruncated") != "true":
                return
            markers = [
                ("key-marker", decode(_text(root, "NextKeyMarker"))),
                ("upload-id-marker", _text(root, "NextUploadIdMarker")),
            ]

    # --- objects ------------------------------------------------------------------------------------------

    def head(self, uri: S3Uri, *, version_id: str = "") -> Mapping[str, str]:
        """The response headers, lower-case."""
        headers = {"x-amz-checksum-mode": "ENABLED"}
        return self.client.request(
            "HEAD", uri.bucket, uri.key, query=_version(version_id), headers=headers
        ).headers

    def get(self, uri: S3Uri, *, byte_range: str = "", if_match: str = "", version_id: str = "") -> Reply:
        """A stream; the caller closes it. `byte_range` as in HTTP: "0-99", "100-", "-5"."""
        headers = {"x-amz-checksum-mode": "ENABLED"}
        if byte_range:
            headers["range"] = f"bytes={byte_range}"
            del headers["x-amz-checksum-mode"]
        if if_match:
            headers["if-match"] = f'"{if_match}"'
        return self.client.request(
            "GET", uri.bucket, uri.key, query=_version(version_id), headers=headers, stream=True
        )

    def put(self, uri: S3Uri, payload: Payload, headers: Mapping[str, str]) -> tuple[str, str]:
        """Store one object in one request; returns its ETag and what it was verified by."""
        checksum, sha256 = self._digests(payload, self.checksum)
        all_headers = {**headers, f"x-amz-checksum-{self.checksum.lower()}": checksum}
        reply = self.client.request(
            "PUT", uri.bucket, uri.key, headers=all_headers, payload=payload, payload_sha256=sha256
        )
        return self._verified(str(uri), reply, payload, checksum)

    def delete(self, uri: S3Uri, *, version_id: str = "") -> None:
        self.client.request("DELETE", uri.bucket, uri.key, query=_version(version_id))

    def delete_many(self, bucket: str, names: Sequence[tuple[str, str]]) -> list[str]:
        """Delete up to 1,000 (key, version id or ""); returns one message per failure."""
        rows = (
            f"<Object><Key>{_xml_key(key)}</Key>{f'<VersionId>{escape(v)}</VersionId>' if v else ''}</Object>"
            for key, v in names
        )
        body = f"<Delete><Quiet>true</Quiet>{''.join(rows)}</Delete>".encode()
        headers = {"content-md5": b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()}
        reply = self.client.request(
            "POST", bucket, query=[("delete", "")], headers=headers,
            payload=BytesPayload(body), payload_sha256=_sha256(body),
        )  # fmt: skip
        root = _xml(reply.body, f"the answer to deleting from s3://{bucket}")
        return [
            f"s3://{bucket}/{_text(e, 'Key')}: {_text(e, 'Code')}: {_text(e, 'Message')}"
            for e in root.iterfind("Error")
        ]

    def copy(self, source: S3Uri, to: S3Uri, headers: Mapping[str, str], *, if_match: str = "") -> str:
        """Server side, in one request; returns the new ETag."""
        all_headers = {**headers, "x-amz-copy-source": _copy_source(source)}
        if if_match:
            all_headers["x-amz-copy-source-if-match"] = f'"{if_match}"'
        reply = self.client.request("PUT", to.bucket, to.key, headers=all_headers)
        return _text(self._whole(reply, str(to)), "ETag").strip('"')

    def rename(self, source: S3Uri, to: S3Uri, *, if_match: str = "") -> None:
        """RenameObject within a bucket; of a whole folder when both keys end in `/`. Only for a server that is known to
        have it: another one may take the request for an upload of nothing."""
        headers = {"x-amz-rename-source": "/" + _copy_source(source), "x-amz-client-token": uuid4().hex}
        if if_match:
            headers["x-amz-rename-source-if-match"] = f'"{if_match}"'
        self.client.request("PUT", to.bucket, to.key, query=[("renameObject", "")], headers=headers)

    # --- multipart ----------------------------------------------------------------------------------------

    def create_upload(self, uri: S3Uri, headers: Mapping[str, str]) -> Upload:
        """With a full-object checksum where the endpoint knows it, else without."""
        named = {
            **headers,
            "x-amz-checksum-algorithm": self.checksum,
            "x-amz-checksum-type": "FULL_OBJECT",
        }
        checksum = self.checksum
        try:
            reply = self.client.request("POST", uri.bucket, uri.key, query=[("uploads", "")], headers=named)
        except ServiceError as error:
            if error.code not in ("InvalidRequest", "InvalidArgument", "NotImplemented"):
                raise
            checksum = ""
            reply = self.client.request("POST", uri.bucket, uri.key, query=[("uploads", "")], headers=headers)
        upload_id = _text(_xml(reply.body, f"the upload of {uri}"), "UploadId")
        return Upload(uri, upload_id, checksum)

    def put_part(self, upload: Upload, number: int, payload: Payload) -> Part:
        checksum, sha256 = self._digests(payload, upload.checksum or self.checksum)
        headers = {f"x-amz-checksum-{upload.checksum.lower()}": checksum} if upload.checksum else {}
        reply = self.client.request(
            "PUT", upload.uri.bucket, upload.uri.key, query=_part_query(upload, number), headers=headers,
            payload=payload, payload_sha256=sha256,
        )  # fmt: skip
        etag, _ = self._verified(f"part {number} of {upload.uri}", reply, payload, checksum)
        return Part(number, payload.size, etag, checksum)

    def copy_part(
        self, upload: Upload, number: int, source: S3Uri, offset: int, size: int, if_match: str
    ) -> Part:
        headers = {
            "x-amz-copy-source": _copy_source(source),
            "x-amz-copy-source-range": f"bytes={offset}-{offset + size - 1}",
            "x-amz-copy-source-if-match": f'"{if_match}"',
        }
        reply = self.client.request(
            "PUT", upload.uri.bucket, upload.uri.key, query=_part_query(upload, number), headers=headers
        )
        root = self._whole(reply, str(upload.uri))
        checksum = _text(root, "Checksum" + upload.checksum) if upload.checksum else ""
        return Part(number, size, _text(root, "ETag").strip('"'), checksum)

    def complete(self, upload: Upload, parts: Sequence[Part]) -> str:
        """Returns the ETag of the object."""
        name = "Checksum" + upload.checksum
        with_checksums = bool(upload.checksum) and all(part.checksum for part in parts)
        rows = (
            f'<Part><PartNumber>{part.number}</PartNumber><ETag>"{escape(part.etag)}"</ETag>'
            + (f"<{name}>{part.checksum}</{name}>" if with_checksums else "")
            + "</Part>"
            for part in parts
        )
        body = f"<CompleteMultipartUpload>{''.join(rows)}</CompleteMultipartUpload>".encode()
        headers = {}
        if with_checksums:
            whole = combine(upload.checksum, [(part.checksum, part.size) for part in parts])
            headers[f"x-amz-checksum-{upload.checksum.lower()}"] = whole
            headers["x-amz-checksum-type"] = "FULL_OBJECT"
        reply = self.client.request(
            "POST", upload.uri.bucket, upload.uri.key, query=[("uploadId", upload.upload_id)], headers=headers,
            payload=BytesPayload(body), payload_sha256=_sha256(body),
        )  # fmt: skip
        return _text(self._whole(reply, str(upload.uri)), "ETag").strip('"')

    def abort(self, upload: Upload) -> None:
        self.client.request(
            "DELETE", upload.uri.bucket, upload.uri.key, query=[("uploadId", upload.upload_id)]
        )

    # --- integrity ----------------------------------------------------------------------------------------

    def _digests(self, payload: Payload, algorithm: str) -> tuple[str, str]:
        """(checksum, sha256). Without TLS the payload is signed, so that nobody can change it on the way."""
        crc = hasher(algorithm)
        sha256 = None if self.client.is_tls or self.client.target.is_anonymous else hashlib.sha256()
        for block in payload.blocks():
            crc.update(block)
            if sha256 is not None:
                sha256.update(block)
        return crc.base64(), sha256.hexdigest() if sha256 is not None else UNSIGNED

    def _verified(self, what: str, reply: Reply, payload: Payload, checksum: str) -> tuple[str, str]:
        """The ETag, and what proves that the right bytes were stored."""
        etag = reply.headers.get("etag", "").strip('"')
        echoed = reply.headers.get(f"x-amz-checksum-{self.checksum.lower()}", "")
        if echoed:
            if echoed != checksum:
                raise CliError(
                    f"{what}: the endpoint stored checksum {echoed}, but {checksum} was sent; copy it again"
                )
            return etag, self.checksum.lower()
        if _MD5.match(etag) and not _is_encrypted(reply.headers):
            md5 = hashlib.md5(usedforsecurity=False)
            for block in payload.blocks():
                md5.update(block)
            if md5.hexdigest() != etag:
                raise CliError(
                    f"{what}: the endpoint stored MD5 {etag}, but {md5.hexdigest()} was sent; copy it again"
                )
            return etag, "md5"
        return etag, "answer"

    def _whole(self, reply: Reply, what: str) -> ElementTree.Element:
        """Some operations send 200 before they know, and then an <Error> in the body."""
        fields = error_fields(reply.body)
        if fields:
            raise ServiceError(what, reply.status, fields.get("Code", ""), fields.get("Message", ""))
        return _xml(reply.body, what)


def object_checksum(headers: Mapping[str, str]) -> tuple[str, str]:
    """(algorithm, value) of a full-object checksum that we can compute, or ("", "")."""
    for algorithm, length in CHECKSUMS.items():
        value = headers.get(f"x-amz-checksum-{algorithm.lower()}", "")
        # "…-3" is a checksum of checksums; some endpoints label one algorithm's value with another's name.
        if "-" not in value and len(value) == length:
            return algorithm, value
    return "", ""


def object_md5(headers: Mapping[str, str]) -> str:
    """The object's MD5 when the ETag is one, else ""."""
    etag = headers.get("etag", "").strip('"')
    return etag if _MD5.match(etag) and not _is_encrypted(headers) else ""


def _is_encrypted(headers: Mapping[str, str]) -> bool:
    """Then the ETag is not the MD5 of the payload."""
    return (
        headers.get("x-amz-server-side-encryption", "AES256") != "AES256"
        or "x-amz-server-side-encryption-customer-algorithm" in headers
    )


def _xml(body: bytes, what: str) -> ElementTree.Element:
    """Parse, and strip namespaces: not every endpoint sends the same."""
    try:
        root = ElementTree.fromstring(body)
    except ElementTree.ParseError as error:
        raise CliError(f"{what}: the endpoint sent no valid XML: {error}") from None
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root


def _text(element: ElementTree.Element, name: str) -> str:
    return element.findtext(name) or ""


def _entry(element: ElementTree.Element, key: str) -> Entry:
    return Entry(
        key,
        int(_text(element, "Size") or 0),
        _text(element, "ETag").strip('"'),
        _time_s(_text(element, "LastModified")),
        _text(element, "StorageClass") or "STANDARD",
    )


def _time_s(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0


# What XML 1.0 cannot carry even as a character reference.
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def needs_single_delete(key: str) -> bool:
    """True when the key cannot stand in the XML of a multi-object delete."""
    return bool(_NOT_XML.search(key))


def _xml_key(key: str) -> str:
    assert not needs_single_delete(key)
    return escape(key, {"\r": "&#13;", "\n": "&#10;", "\t": "&#9;"})


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _version(version_id: str) -> Iterable[tuple[str, str]]:
    return [("versionId", version_id)] if version_id else []


def _part_query(upload: Upload, number: int) -> list[tuple[str, str]]:
    return [("partNumber", str(number)), ("uploadId", upload.upload_id)]


def _copy_source(uri: S3Uri) -> str:
    return quote(f"{uri.bucket}/{uri.key}".encode(), safe="/-._~")
