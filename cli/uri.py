"""s3://bucket/key and local paths, as people write them.

Must not know: the network, the file system.
Invariant: a key is taken literally, never normalised: `//`, `..`, `%2F` and a leading `/` are parts of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from cordwood.cli.errors import UsageError

SCHEME = "s3://"


@dataclass(frozen=True)
class S3Uri:
    bucket: str
    key: str = ""

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}"

    @property
    def is_folder(self) -> bool:
        """The bucket itself, or a key that ends in `/`: something goes below it."""
        return not self.key or self.key.endswith("/")

    @property
    def name(self) -> str:
        return self.key.rsplit("/", 1)[-1]

    def as_folder(self) -> S3Uri:
        return self if self.is_folder else S3Uri(self.bucket, self.key + "/")

    def below(self, relative: str) -> S3Uri:
        return S3Uri(self.bucket, self.key + relative)


def is_s3(text: str) -> bool:
    return text.startswith(SCHEME)


def parse_uri(text: str) -> S3Uri:
    """s3://BUCKET[/KEY]; the scheme may be left out where nothing else than S3 can be meant."""
    bucket, _, key = text.removeprefix(SCHEME).partition("/")
    if not bucket:
        raise UsageError(f"{text!r} names no bucket; write s3://BUCKET/KEY")
    return S3Uri(bucket, key)


def parse_object(text: str) -> S3Uri:
    uri = parse_uri(text)
    if not uri.key:
        raise UsageError(f"{text!r} names a bucket, not an object; write s3://BUCKET/KEY")
    return uri


def parse_bucket(text: str) -> str:
    uri = parse_uri(text)
    if uri.key:
        raise UsageError(f"{text!r} names an object; write s3://BUCKET")
    return uri.bucket
