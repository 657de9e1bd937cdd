"""Fuzz the decoder of aws-chunked payloads.

Invariant: any input is decoded to exactly the declared length with exactly the declared trailers, or is refused by an
S3Error; cutting it elsewhere changes neither; and without the key no signed payload that has bytes is decoded.

Must not know: sockets.
"""

from __future__ import annotations

from cordwood.server.wire.aws_chunked import payload_decoder
from cordwood.server.wire.errors import S3Error
from cordwood.server.wire.http1 import RequestReceiver
from cordwood.server.wire.sigv4 import PayloadKind, PayloadPlan

KINDS: tuple[PayloadKind, ...] = (
    "streaming-unsigned-trailer",
    "streaming-signed",
    "streaming-signed-trailer",
)
CRC = "x-amz-checksum-crc32"


def one(data: bytes) -> None:
    """The first byte chooses the kind and the trailers, the second the length, the third how long the pieces are."""
    if len(data) < 3:
        return
    kind = KINDS[data[0] % 3]
    names = (CRC,) if data[0] & 0x80 and kind != "streaming-signed" else ()
    plan = PayloadPlan(
        kind,
        decoded_length=data[1],
        trailer_names=names,
        seed_signature="0" * 64,
        signing_key=b"a key that no corpus file was signed with",
        scope="20130524/us-east-1/s3/aws4_request",
        amz_date="20130524T000000Z",
    )
    body = data[3:]
    whole = _decode(plan, body, len(body) + 1)
    assert whole == _decode(plan, body, data[2] + 1), "cutting the input elsewhere changed the result"
    if whole is not None:
        decoded, trailers = whole
        assert kind == "streaming-unsigned-trailer", "decoded without the key"
        assert (len(decoded), tuple(trailers)) == (data[1], names)


def _decode(plan: PayloadPlan, body: bytes, step: int) -> tuple[bytes, dict[str, str]] | None:
    receiver = RequestReceiver()
    receiver.feed(b"PUT / HTTP/1.1\r\nHost: h\r\n\r\n")
    head = receiver.next_head()
    assert head is not None
    decoder = payload_decoder(plan, head)
    buffer = bytearray(step)
    decoded = b""
    try:
        for start in range(0, len(body), step):
            fed = body[start : start + step]
            buffer[: len(fed)] = fed
            for piece in decoder.feed(memoryview(buffer)[: len(fed)]):
                decoded += piece
            buffer[:] = b"\n" * step  # it is used again: nothing of it may still be looked at
        return decoded, decoder.finish()
    except S3Error as error:
        assert 400 <= error.status < 600
        return None
