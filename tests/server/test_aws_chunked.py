"""The aws-chunked payload: AWS's published examples, every way to break it, and any way to cut it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cordwood.server.wire.aws_chunked import PayloadDecoder, payload_decoder
from cordwood.server.wire.checksums import hasher
from cordwood.server.wire.errors import S3Error
from cordwood.server.wire.http1 import RequestReceiver
from cordwood.server.wire.message import RequestHead
from cordwood.server.wire.signing import EMPTY_SHA256, sign, signing_key
from cordwood.server.wire.sigv4 import PayloadKind, PayloadPlan

STAMP = "20130524T000000Z"
SCOPE = "20130524/us-east-1/s3/aws4_request"
KEY = signing_key("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "20130524", "us-east-1", "s3")
SEED = "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9"
CRC = "x-amz-checksum-crc32c"


def head_with(content_length: int | None = None) -> RequestHead:
    receiver = RequestReceiver()
    field = b"" if content_length is None else b"Content-Length: %d\r\n" % content_length
    receiver.feed(b"PUT / HTTP/1.1\r\nHost: h\r\n" + field + b"\r\n")
    head = receiver.next_head()
    assert head is not None
    return head


def plan_of(kind: PayloadKind, length: int, *trailers: str) -> PayloadPlan:
    if kind == "streaming-unsigned-trailer":
        return PayloadPlan(kind, decoded_length=length, trailer_names=trailers)
    return PayloadPlan(
        kind,
        decoded_length=length,
        trailer_names=trailers,
        seed_signature=SEED,
        signing_key=KEY,
        scope=SCOPE,
        amz_date=STAMP,
    )


def run(plan: PayloadPlan, data: bytes, step: int | None = None) -> tuple[bytes, dict[str, str]]:
    decoder = payload_decoder(plan, head_with())
    return drain(decoder, data, step)


def drain(decoder: PayloadDecoder, data: bytes, step: int | None = None) -> tuple[bytes, dict[str, str]]:
    decoded = bytearray()
    for start in range(0, len(data), step or len(data) or 1):
        for piece in decoder.feed(data[start : start + (step or len(data))]):
            decoded += piece
    return bytes(decoded), decoder.finish()


def refusal(plan: PayloadPlan, data: bytes) -> S3Error:
    with pytest.raises(S3Error) as caught:
        run(plan, data)
    with pytest.raises(S3Error) as again:
        run(plan, data, step=1)
    assert again.value.code == caught.value.code
    return caught.value


def signed_body(
    chunks: list[bytes], trailer: tuple[str, str] | None = None, *, line_end: bytes = b"\r\n"
) -> bytes:
    """What a client sends, written independently of the decoder."""
    previous = SEED
    body = bytearray()
    for chunk in [*chunks, b""]:
        text = "\n".join(
            [
                "AWS4-HMAC-SHA256-PAYLOAD",
                STAMP,
                SCOPE,
                previous,
                EMPTY_SHA256,
                hashlib.sha256(chunk).hexdigest(),
            ]
        )
        previous = sign(KEY, text)
        body += b"%x;chunk-signature=%b\r\n" % (len(chunk), previous.encode())
        if chunk:
            body += chunk + b"\r\n"
    if trailer is not None:
        line = f"{trailer[0]}:{trailer[1]}"
        digest = hashlib.sha256(f"{line}\n".encode()).hexdigest()
        signature = sign(KEY, "\n".join(["AWS4-HMAC-SHA256-TRAILER", STAMP, SCOPE, previous, digest]))
        body += line.encode() + line_end + f"x-amz-trailer-signature:{signature}\r\n".encode()
    return bytes(body + b"\r\n")


def unsigned_body(chunks: list[bytes], *trailers: str) -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return body + b"0\r\n" + "".join(f"{line}\r\n" for line in trailers).encode() + b"\r\n"


# -- AWS's published example ---------------------------------------------------------------------------------


def test_the_chunked_upload_that_aws_publishes_is_accepted() -> None:
    data = b"a" * 66560
    body = (
        b"10000;chunk-signature=ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648\r\n"
        + data[:65536]
        + b"\r\n400;chunk-signature=0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497\r\n"
        + data[65536:]
        + b"\r\n0;chunk-signature=b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9\r\n\r\n"
    )
    assert len(body) == 66824
    assert signed_body([data[:65536], data[65536:]]) == body
    assert run(plan_of("streaming-signed", 66560), body) == (data, {})


@pytest.mark.parametrize("line_end", [b"\r\n", b"\n\r\n"])
def test_the_upload_with_a_signed_trailer_that_aws_publishes_is_accepted(line_end: bytes) -> None:
    data = b"a" * 66560
    body = (
        b"10000;chunk-signature=b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2\r\n"
        + data[:65536]
        + b"\r\n400;chunk-signature=1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7\r\n"
        + data[65536:]
        + b"\r\n0;chunk-signature=2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992\r\n"
        + b"x-amz-checksum-crc32c:sOO8/Q=="
        + line_end
        + b"x-amz-trailer-signature:d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435\r\n\r\n"
    )
    plan = PayloadPlan(
        "streaming-signed-trailer",
        decoded_length=66560,
        trailer_names=(CRC,),
        seed_signature="106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e",
        signing_key=KEY,
        scope=SCOPE,
        amz_date=STAMP,
    )
    for step in (None, 1000, 7):
        assert run(plan, body, step) == (data, {CRC: "sOO8/Q=="})
    crc = hasher("CRC32C")
    crc.update(data)
    assert crc.base64() == "sOO8/Q=="


# -- what is accepted ----------------------------------------------------------------------------------------


@given(st.binary(max_size=400), st.integers(1, 100), st.integers(1, 50))
@settings(max_examples=100, deadline=None)
def test_an_unsigned_payload_comes_out_as_it_went_in(data: bytes, chunk: int, step: int) -> None:
    chunks = [data[start : start + chunk] for start in range(0, len(data), chunk)]
    plan = plan_of("streaming-unsigned-trailer", len(data), CRC)
    assert run(plan, unsigned_body(chunks, f"{CRC}:AAAAAA=="), step) == (data, {CRC: "AAAAAA=="})


@given(st.integers(0, 30000), st.sampled_from([8192, 9000, 30000]), st.integers(1, 20000), st.booleans())
@settings(max_examples=50, deadline=None)
def test_a_signed_payload_comes_out_as_it_went_in(
    size: int, chunk: int, step: int, with_trailer: bool
) -> None:
    data = hashlib.shake_128(b"x").digest(size)
    chunks = [data[start : start + chunk] for start in range(0, len(data), chunk)]
    if with_trailer:
        plan = plan_of("streaming-signed-trailer", size, CRC)
        assert run(plan, signed_body(chunks, (CRC, "v")), step) == (data, {CRC: "v"})
    else:
        assert run(plan_of("streaming-signed", size), signed_body(chunks), step) == (data, {})


def test_the_data_is_not_copied() -> None:
    decoder = payload_decoder(plan_of("streaming-unsigned-trailer", 4), head_with())
    data = b"4\r\nabcd\r\n"
    (piece,) = decoder.feed(data)
    assert isinstance(piece, memoryview)
    assert piece.obj is data


def test_an_empty_payload_is_accepted() -> None:
    assert run(plan_of("streaming-unsigned-trailer", 0), b"0\r\n\r\n") == (b"", {})
    assert run(plan_of("streaming-signed", 0), signed_body([])) == (b"", {})


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", ["0x5", "+5", "-5", " 5", "5 ", "", "5_0", "g", "00000000000000005", "5;a=b", "5;", "５"]
)
def test_a_bad_chunk_size_is_refused(size: str) -> None:
    plan = plan_of("streaming-unsigned-trailer", 5)
    assert refusal(plan, size.encode() + b"\r\nabcde\r\n0\r\n\r\n").code == "IncompleteBody"
    signature = b";chunk-signature=" + b"0" * 64
    plan = plan_of("streaming-signed", 5)
    assert refusal(plan, size.encode() + signature + b"\r\nabcde\r\n").code == "IncompleteBody"


@pytest.mark.parametrize(
    "body",
    [
        b"5\nabcde\r\n0\r\n\r\n",
        b"5\r\nabcde\n0\r\n\r\n",
        b"5\r\nabcdef\r\n0\r\n\r\n",
        b"5\r\nabcde0\r\n\r\n",
        b"5;chunk-signature=" + b"0" * 64 + b"\r\nabcde\r\n0\r\n\r\n",
        b"x" * 1000,
    ],
)
def test_a_line_out_of_place_is_refused(body: bytes) -> None:
    assert refusal(plan_of("streaming-unsigned-trailer", 5), body).code == "IncompleteBody"


def test_a_signed_payload_needs_its_chunk_signatures() -> None:
    assert refusal(plan_of("streaming-signed", 5), b"5\r\nabcde\r\n0\r\n\r\n").code == "IncompleteBody"


@pytest.mark.parametrize(
    "body", [b"", b"5", b"5\r\nabc", b"5\r\nabcde", b"5\r\nabcde\r\n", b"5\r\nabcde\r\n0\r\n"]
)
def test_a_missing_last_chunk_is_an_incomplete_body(body: bytes) -> None:
    assert refusal(plan_of("streaming-unsigned-trailer", 5), body).code == "IncompleteBody"


def test_a_signed_payload_that_ends_early_is_incomplete() -> None:
    body = signed_body([b"x" * 9000])
    for stop in (0, 50, 5000, 9095, len(body) - 90, len(body) - 1):
        assert refusal(plan_of("streaming-signed", 9000), body[:stop]).code == "IncompleteBody"


@pytest.mark.parametrize("extra", [b"x", b"\r\n", b"5\r\nabcde\r\n", b"0\r\n\r\n"])
def test_bytes_after_the_last_chunk_are_refused(extra: bytes) -> None:
    body = unsigned_body([b"abcde"]) + extra
    assert refusal(plan_of("streaming-unsigned-trailer", 5), body).code == "IncompleteBody"
    body = signed_body([b"abcde"]) + extra
    assert refusal(plan_of("streaming-signed", 5), body).code == "IncompleteBody"


@pytest.mark.parametrize("declared", [0, 4, 6, 10**17])
def test_a_wrong_decoded_length_is_an_incomplete_body(declared: int) -> None:
    error = refusal(plan_of("streaming-unsigned-trailer", declared), unsigned_body([b"abcde"]))
    assert (error.code, error.status) == ("IncompleteBody", 400)
    assert refusal(plan_of("streaming-signed", declared), signed_body([b"abcde"])).code == "IncompleteBody"


def test_a_chunk_larger_than_declared_is_refused_before_its_data_comes() -> None:
    decoder = payload_decoder(plan_of("streaming-unsigned-trailer", 5), head_with())
    with pytest.raises(S3Error):
        decoder.feed(b"ffffffffffffffff\r\n")


def _flip_data(body: bytes) -> bytes:
    return body.replace(b"xx", b"yx", 1)


def _flip_last_signature(body: bytes) -> bytes:
    place = body.rindex(b"chunk-signature=") + 16
    return body[:place] + (b"0" if body[place : place + 1] != b"0" else b"1") + body[place + 1 :]


def _swap_chunks(body: bytes) -> bytes:
    first, second, rest = body[:9089], body[9089 : 2 * 9089], body[2 * 9089 :]
    return second + first + rest


@pytest.mark.parametrize("harm", [_flip_data, _flip_last_signature, _swap_chunks])
def test_a_bad_chunk_signature_is_refused(harm: Callable[[bytes], bytes]) -> None:
    body = signed_body([b"x" * 9000, b"z" * 9000])
    assert body[9089 : 9089 + 4] == b"2328"
    error = refusal(plan_of("streaming-signed", 18000), harm(body))
    assert (error.code, error.status) == ("SignatureDoesNotMatch", 403)


def test_the_chunks_belong_to_their_own_request() -> None:
    plan = plan_of("streaming-signed", 5)
    other = PayloadPlan(
        plan.kind, decoded_length=5, seed_signature="0" * 64, signing_key=KEY, scope=SCOPE, amz_date=STAMP
    )
    assert refusal(other, signed_body([b"abcde"])).code == "SignatureDoesNotMatch"


def test_only_the_last_signed_chunk_may_be_small() -> None:
    body = signed_body([b"x" * 8191, b"y" * 9000])
    error = refusal(plan_of("streaming-signed", 17191), body)
    assert (error.code, error.status) == ("InvalidChunkSizeError", 403)
    assert run(plan_of("streaming-signed", 8193), signed_body([b"x" * 8192, b"y"]))[0][-1:] == b"y"


# -- trailers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        (),
        (f"{CRC}:AAAA", f"{CRC}:BBBB"),
        (f"{CRC}:AAAA", "x-amz-acl:public-read"),
        ("x-amz-checksum-crc32:AAAA",),
        ("authorization:x", f"{CRC}:AAAA"),
        (CRC,),
        (f"{CRC} :AAAA",),
        (f" {CRC}:AAAA",),
        (f"{CRC}:AA\0A",),
        (f"{CRC}:AA\rA",),
        (f"{CRC}:é",),
        (f"{CRC}:AAAA\nx-amz-acl:public-read",),
        (f"{CRC}:" + "A" * 9000,),
        (f"{CRC}:AAAA", "x-amz-trailer-signature:" + "0" * 64),
    ],
)
def test_trailers_other_than_the_declared_ones_are_refused(lines: tuple[str, ...]) -> None:
    error = refusal(plan_of("streaming-unsigned-trailer", 5, CRC), unsigned_body([b"abcde"], *lines))
    assert error.code in ("MalformedTrailerError", "IncompleteBody")
    assert error.status == 400


def test_an_undeclared_trailer_is_refused() -> None:
    body = unsigned_body([b"abcde"], f"{CRC}:AAAA")
    assert refusal(plan_of("streaming-unsigned-trailer", 5), body).code == "MalformedTrailerError"


def test_the_trailers_end_with_an_empty_line() -> None:
    body = unsigned_body([b"abcde"], f"{CRC}:AAAA")
    assert refusal(plan_of("streaming-unsigned-trailer", 5, CRC), body[:-2]).code == "IncompleteBody"


def test_a_bad_trailer_signature_is_refused() -> None:
    plan = plan_of("streaming-signed-trailer", 5, CRC)
    body = signed_body([b"abcde"], (CRC, "AAAA"))
    assert run(plan, body)[1] == {CRC: "AAAA"}
    assert refusal(plan, body.replace(b"AAAA", b"AAAB")).code == "SignatureDoesNotMatch"


@pytest.mark.parametrize(
    "replacement", [b"", b"x-amz-trailer-signature:\r\n", b"x-amz-trailer-signature:00\r\n"]
)
def test_a_missing_trailer_signature_is_refused(replacement: bytes) -> None:
    body = signed_body([b"abcde"], (CRC, "AAAA"))
    start = body.index(b"x-amz-trailer-signature")
    harmed = body[:start] + replacement + b"\r\n"
    assert refusal(plan_of("streaming-signed-trailer", 5, CRC), harmed).code == "MalformedTrailerError"


def test_nothing_may_follow_the_trailer_signature() -> None:
    body = signed_body([b"abcde"], (CRC, "AAAA"))[:-2] + b"x-amz-checksum-crc32:AAAA\r\n\r\n"
    plan = plan_of("streaming-signed-trailer", 5, CRC, "x-amz-checksum-crc32")
    assert refusal(plan, body).code == "MalformedTrailerError"


def test_a_payload_without_trailers_may_not_bring_any() -> None:
    body = signed_body([b"abcde"])[:-2] + b"x-amz-checksum-crc32:AAAA\r\n\r\n"
    assert refusal(plan_of("streaming-signed", 5), body).code == "IncompleteBody"


CRC32 = "x-amz-checksum-crc32"


@pytest.mark.parametrize("step", [None, 1])
def test_trailers_that_each_end_in_lf_and_together_in_crlf_are_accepted(step: int | None) -> None:
    plan = plan_of("streaming-unsigned-trailer", 5, CRC, CRC32)
    lines = f"{CRC}:AAAA\n{CRC32}:BBBB\n\r\n".encode()
    decoded = run(plan, b"5\r\nabcde\r\n0\r\n" + lines + b"\r\n", step)
    assert decoded == (b"abcde", {CRC: "AAAA", CRC32: "BBBB"})


@pytest.mark.parametrize(
    "lines", [f"{CRC}:AAAA\n", f"{CRC}:AAAA\n{CRC32}:BBBB\r\n", f"{CRC}:AAAA\r\n{CRC32}:BBBB\n"]
)
def test_trailers_that_end_in_lf_without_a_crlf_behind_them_are_refused(lines: str) -> None:
    plan = plan_of("streaming-unsigned-trailer", 5, CRC, CRC32)
    refused = refusal(plan, b"5\r\nabcde\r\n0\r\n" + lines.encode() + b"\r\n")
    assert refused.code in ("MalformedTrailerError", "IncompleteBody")


def test_a_trailer_signature_that_ends_in_lf_is_refused() -> None:
    body = signed_body([b"abcde"], (CRC, "AAAA"), line_end=b"\n\r\n")
    plan = plan_of("streaming-signed-trailer", 5, CRC)
    assert refusal(plan, body[:-4] + b"\n\r\n\r\n").code == "MalformedTrailerError"


# -- payloads that are not aws-chunked -----------------------------------------------------------------------


def test_a_signed_payload_hash_is_held() -> None:
    promised = PayloadPlan("sha256", sha256_hex=hashlib.sha256(b"abcde").hexdigest())
    assert drain(payload_decoder(promised, head_with(5)), b"abcde", 2) == (b"abcde", {})
    with pytest.raises(S3Error) as caught:
        drain(payload_decoder(promised, head_with(5)), b"abcdf")
    assert (caught.value.code, caught.value.status) == ("XAmzContentSHA256Mismatch", 400)
    assert ("ClientComputedContentSHA256", promised.sha256_hex) in caught.value.fields


@pytest.mark.parametrize("kind", ["unsigned", "sha256"])
def test_a_body_shorter_than_declared_is_incomplete(kind: PayloadKind) -> None:
    plan = PayloadPlan(kind, sha256_hex=hashlib.sha256(b"abcde").hexdigest())
    with pytest.raises(S3Error) as caught:
        drain(payload_decoder(plan, head_with(6)), b"abcde")
    assert caught.value.code == "IncompleteBody"


@given(st.binary(max_size=200), st.integers(1, 60))
@settings(max_examples=200, deadline=None)
def test_any_input_is_decoded_or_refused_by_an_s3_error(data: bytes, step: int) -> None:
    for plan in (plan_of("streaming-unsigned-trailer", 5, CRC), plan_of("streaming-signed-trailer", 5, CRC)):
        with pytest.raises(S3Error):
            run(plan, data, step)
            raise S3Error("decoded", 200, "five bytes by chance")
