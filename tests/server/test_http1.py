"""Request heads and bodies: what is read, what is refused, and that cutting the input elsewhere changes nothing.

Invariant: no input raises anything but ProtocolError.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cordwood.server.wire import layouts
from cordwood.server.wire.http1 import ProtocolError, RequestReceiver, render_fields
from cordwood.server.wire.message import RequestHead


def parse(data: bytes) -> RequestHead:
    receiver = RequestReceiver()
    receiver.feed(data)
    head = receiver.next_head()
    assert head is not None
    return head


def refusal(data: bytes) -> ProtocolError:
    receiver = RequestReceiver()
    receiver.feed(data)
    with pytest.raises(ProtocolError) as caught:
        if receiver.next_head() is not None:
            while receiver.next_body():
                pass
    return caught.value


def get(*fields: str, target: str = "/") -> bytes:
    lines = [f"GET {target} HTTP/1.1", "Host: h", *fields, "", ""]
    return "\r\n".join(lines).encode("latin-1")


def exchange(data: bytes, cuts: list[int] | None = None) -> list[tuple[str, bytes, list[tuple[str, str]]]]:
    """Every (target, body, trailers) of a connection's input, fed in pieces that end at `cuts`."""
    receiver = RequestReceiver()
    ends = sorted({min(cut, len(data)) for cut in cuts or []} | {len(data)})
    seen: list[tuple[str, bytes, list[tuple[str, str]]]] = []
    head: RequestHead | None = None
    body = b""
    start = 0
    for end in ends:
        receiver.feed(data[start:end])
        start = end
        while True:
            if head is None:
                head = receiver.next_head()
                body = b""
                if head is None:
                    break
            piece = receiver.next_body()
            if piece is None:
                break
            body += piece
            if not piece:
                seen.append((head.path, body, receiver.trailers))
                head = None
    return seen


# -- what is read --------------------------------------------------------------------------------------------


def test_a_head_is_read_into_its_parts() -> None:
    head = parse(
        b"PUT /b/a%20b%2Fc+d?x=1&y&x=%C3%A9+z HTTP/1.1\r\nHost: h:9000\r\nX-A: 1\r\nx-a:\t2 \r\nContent-Length: 3\r\n"
        b"Expect: 100-continue\r\n\r\nabc"
    )
    assert (head.method, head.raw_path, head.path) == ("PUT", b"/b/a%20b%2Fc+d", "/b/a b/c+d")
    assert head.query == [("x", "1"), ("y", ""), ("x", "é z")]
    assert head.raw_query == b"x=1&y&x=%C3%A9+z"
    assert head.headers["x-a"] == "1,2"
    assert (head.content_length, head.is_chunked, head.expect_continue, head.keep_alive) == (
        3,
        False,
        True,
        True,
    )
    assert head.http_version == "1.1"


def test_a_raw_utf8_path_is_read_like_an_escaped_one() -> None:
    assert parse("GET /b/é✓ HTTP/1.1\r\nHost: h\r\n\r\n".encode()).path == "/b/é✓"


def test_a_header_value_that_is_not_utf8_is_read_as_latin1() -> None:
    assert parse(get("x-amz-meta-a: caf\xe9")).headers["x-amz-meta-a"] == "café"
    utf8 = b"GET / HTTP/1.1\r\nHost: h\r\nx-amz-meta-a: caf\xc3\xa9\r\n\r\n"
    assert parse(utf8).headers["x-amz-meta-a"] == "café"


@pytest.mark.parametrize(
    ("version", "connection", "expected"),
    [
        ("1.1", None, True),
        ("1.1", "close", False),
        ("1.1", "Keep-Alive, Close", False),
        ("1.0", None, False),
        ("1.0", "keep-alive", True),
        ("1.0", "keep-alive, close", False),
    ],
)
def test_keep_alive_follows_version_and_connection(
    version: str, connection: str | None, expected: bool
) -> None:
    field = f"Connection: {connection}\r\n" if connection else ""
    head = parse(f"GET / HTTP/{version}\r\nHost: h\r\n{field}\r\n".encode())
    assert (head.keep_alive, head.http_version) == (expected, version)


def test_http_1_0_needs_no_host_and_cannot_expect_continue() -> None:
    head = parse(b"PUT / HTTP/1.0\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n")
    assert "host" not in head.headers
    assert not head.expect_continue


def test_expect_continue_without_a_body_is_ignored() -> None:
    assert not parse(get("Expect: 100-continue")).expect_continue


def test_expect_continue_with_an_empty_body_is_met_because_awscli_relies_on_it() -> None:
    assert parse(get("Expect: 100-continue", "Content-Length: 0")).expect_continue


def test_the_authority_of_an_absolute_target_replaces_the_host_header() -> None:
    head = parse(get(target="http://bucket.example:81/k?a=b"))
    assert head.headers["host"] == "bucket.example:81"
    assert (head.raw_path, head.query) == (b"/k", [("a", "b")])
    assert parse(get(target="HTTP://h?a")).raw_path == b"/"


def test_an_upgrade_is_ignored_and_its_body_still_framed() -> None:
    data = (
        b"PUT / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc"
        + get()
    )
    assert [body for _, body, _ in exchange(data)] == [b"abc", b""]


def test_options_may_ask_about_the_server() -> None:
    assert parse(b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n").path == "*"


def test_empty_lines_before_a_request_are_skipped_within_reason() -> None:
    assert parse(b"\r\n\r\n" + get()).path == "/"
    assert refusal(b"\r\n" * 20 + get()).status == 400


def test_pipelined_requests_come_out_in_order() -> None:
    data = (
        get(target="/1")
        + b"PUT /2 HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nGET /"
        + b"PUT /3 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n"
        + get(target="/4")
    )
    assert [(path, body) for path, body, _ in exchange(data)] == [
        ("/1", b""), ("/2", b"GET /"), ("/3", b"abcde"), ("/4", b""),
    ]  # fmt: skip


def test_trailers_stay_apart_from_headers() -> None:
    receiver = RequestReceiver()
    receiver.feed(
        b"PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nAuthorization: x\r\nX-T:  1 \r\n\r\n"
    )
    head = receiver.next_head()
    assert head is not None
    assert receiver.next_body() == b""
    assert "authorization" not in head.headers
    assert receiver.trailers == [("authorization", "x"), ("x-t", "1")]


PIPELINE = (
    b"\r\nPUT /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\n\r\n\r\n"
    b"PUT /2 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"a;e\r\n0123456789\r\n1\r\n\n\r\n00\r\nA: b\r\n\r\n"
    b"GET /3 HTTP/1.1\r\nHost: h\r\n\r\n"
)


@given(st.lists(st.integers(0, len(PIPELINE)), max_size=30))
@settings(max_examples=200, deadline=None)
def test_the_result_does_not_depend_on_how_the_input_is_cut(cuts: list[int]) -> None:
    whole = exchange(PIPELINE)
    assert [(path, body) for path, body, _ in whole] == [
        ("/1", b"\r\n\r\n"),
        ("/2", b"0123456789\n"),
        ("/3", b""),
    ]
    assert exchange(PIPELINE, cuts) == whole
    assert exchange(PIPELINE, list(range(len(PIPELINE)))) == whole


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(get().replace(b"\r\n", b"\n"), id="bare LF everywhere"),
        pytest.param(b"GET / HTTP/1.1\nHost: h\r\n\r\n", id="bare LF after the request line"),
        pytest.param(get("A: b\nC: d"), id="bare LF between fields"),
        pytest.param(get("A: b\rC: d"), id="bare CR in a value"),
        pytest.param(get("A: b\r"), id="CR CR LF"),
        pytest.param(get("A: b\0c"), id="NUL in a value"),
        pytest.param(get("A: b\x01"), id="control character in a value"),
        pytest.param(get("A: b\r\n c"), id="obs-fold with a space"),
        pytest.param(get("A: b\r\n\tc"), id="obs-fold with a tab"),
        pytest.param(b"GET / HTTP/1.1\r\n Host: h\r\n\r\n", id="blank before the first field"),
        pytest.param(get("A : b"), id="blank before the colon"),
        pytest.param(get("A\t: b"), id="tab before the colon"),
        pytest.param(get(": b"), id="empty field name"),
        pytest.param(get("A b: c"), id="blank in a field name"),
        pytest.param(get("A\xe9: c"), id="non-ASCII field name"),
        pytest.param(get("A"), id="no colon"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="no Host"),
        pytest.param(get("Host: h"), id="Host twice, same"),
        pytest.param(get("Host: other"), id="Host twice, different"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", id="comma in Host"),
        pytest.param(b"GET / HTTP/1.1\r\nHost:\r\n\r\n", id="empty Host"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", id="slash in Host"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: u@h\r\n\r\n", id="userinfo in Host"),
        pytest.param(b"GET http://h/ HTTP/1.1\r\n\r\n", id="absolute target without Host"),
        pytest.param(get(target="http://u@h/"), id="userinfo in an absolute target"),
        pytest.param(get(target="http:///x"), id="absolute target without authority"),
        pytest.param(b"GET /\r\nHost: h\r\n\r\n", id="HTTP/0.9"),
        pytest.param(b"GET  /  HTTP/1.1\r\nHost: h\r\n\r\n", id="two blanks"),
        pytest.param(b"GET\t/\tHTTP/1.1\r\nHost: h\r\n\r\n", id="tabs"),
        pytest.param(b"GET / HTTP/1.1 \r\nHost: h\r\n\r\n", id="blank after the version"),
        pytest.param(b"GET / http/1.1\r\nHost: h\r\n\r\n", id="lower-case version"),
        pytest.param(b"GET / HTTP/1.2\r\nHost: h\r\n\r\n", id="HTTP/1.2"),
        pytest.param(b"OPTIONS / RTSP/1.0\r\nHost: h\r\n\r\n", id="RTSP"),
        pytest.param(b"SOURCE / ICE/1.0\r\nHost: h\r\n\r\n", id="ICE"),
        pytest.param(b" GET / HTTP/1.1\r\nHost: h\r\n\r\n", id="leading blank"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", id="TLS to a plain port"),
        pytest.param(get("Content-Length: 1", "Content-Length: 2"), id="two lengths"),
        pytest.param(get("Content-Length: 1", "Content-Length: 1"), id="the same length twice"),
        pytest.param(get("Content-Length: 1, 1"), id="list of lengths"),
        pytest.param(get("Content-Length: +1"), id="length with a plus"),
        pytest.param(get("Content-Length: -1"), id="negative length"),
        pytest.param(get("Content-Length: 0x1"), id="hexadecimal length"),
        pytest.param(get("Content-Length: 1 1"), id="blank in the length"),
        pytest.param(get("Content-Length:"), id="empty length"),
        pytest.param(get("Content-Length: 1\xb2"), id="superscript digit in the length"),
        pytest.param(get("Content-Length: 99999999999999999999"), id="length beyond 64 bits"),
        pytest.param(get("Content-Length: 9999999999999999999"), id="length beyond 63 bits"),
        pytest.param(get("Content-Length: 1", "Transfer-Encoding: chunked"), id="CL then TE"),
        pytest.param(get("Transfer-Encoding: chunked", "Content-Length: 1"), id="TE then CL"),
        pytest.param(get("Transfer-Encoding: xchunked"), id="unknown coding"),
        pytest.param(get("Transfer-Encoding: chunked, identity"), id="chunked not last"),
        pytest.param(get("Transfer-Encoding: chunked, chunked"), id="chunked twice"),
        pytest.param(get("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), id="TE twice"),
        pytest.param(get("Transfer-Encoding: identity"), id="identity"),
        pytest.param(get("Transfer-Encoding: \x0bchunked"), id="vertical tab before chunked"),
        pytest.param(get("Transfer-Encoding:"), id="empty TE"),
        pytest.param(b"PUT / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", id="TE under 1.0"),
    ],
)  # fmt: skip
def test_malformed_or_ambiguous_heads_are_refused(data: bytes) -> None:
    assert refusal(data).status == 400


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (get("Transfer-Encoding: gzip, chunked"), 501, "NotImplemented"),
        (b"GET / HTTP/2.0\r\nHost: h\r\n\r\n", 505, "BadRequest"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "BadRequest"),
        (b"CONNECT h:80 HTTP/1.1\r\nHost: h\r\n\r\n", 405, "MethodNotAllowed"),
        (get(target="/a#b"), 400, "InvalidURI"),
        (get(target="a"), 400, "InvalidURI"),
        (get(target="*"), 400, "InvalidURI"),
        (get(target="ftp://h/"), 400, "InvalidURI"),
        (get(target="/%"), 400, "InvalidURI"),
        (get(target="/%zz"), 400, "InvalidURI"),
        (get(target="/a?b=%2"), 400, "InvalidURI"),
        (get(target="/%C0%AF"), 400, "InvalidURI"),  # overlong UTF-8
        (get(target="/%ED%A0%80"), 400, "InvalidURI"),  # a surrogate
        (get(target="/\xff"), 400, "InvalidURI"),
        (get(target="/?a=%FF"), 400, "InvalidURI"),
    ],
)
def test_a_refusal_names_its_reason(data: bytes, status: int, code: str) -> None:
    error = refusal(data)
    assert (error.status, error.code) == (status, code)


def test_a_method_that_is_no_upper_case_word_reaches_the_router_unchanged() -> None:
    assert parse(b"brew /pot HTTP/1.1\r\nHost: h\r\n\r\n").method == "brew"


@pytest.mark.parametrize(
    "body",
    [
        b"0x5\r\nabcde\r\n0\r\n\r\n",
        b"+5\r\nabcde\r\n0\r\n\r\n",
        b"-1\r\n",
        b" 5\r\nabcde\r\n0\r\n\r\n",
        b"5 \r\nabcde\r\n0\r\n\r\n",
        b"5 ;a\r\nabcde\r\n0\r\n\r\n",
        b"00000000000000005\r\nabcde\r\n0\r\n\r\n",  # 17 digits
        b"\r\n",
        b";a\r\n",
        b"g\r\n",
        b"5_0\r\n",
        b"5\nabcde\r\n0\r\n\r\n",
        b"5\r\nabcde0\r\n\r\n",
        b"5\r\nabcdef\r\n0\r\n\r\n",
        b"5\r\nabcde\n0\r\n\r\n",
        b"5;a\nb\r\nabcde\r\n0\r\n\r\n",
        b"5;a\rb\r\nabcde\r\n0\r\n\r\n",
        b"5;" + b"x" * 300 + b"\r\nabcde\r\n0\r\n\r\n",
        b"5;" + b"x" * 300,
        b"0\r\nA : b\r\n\r\n",
        b"0\r\n b\r\n\r\n",
        b"0\r\nA: b\n\r\n",
        b"0\r\nA: " + b"x" * 9000 + b"\r\n\r\n",
        b"0\r\n" + b"A: b\r\n" * 2000 + b"\r\n",
        b"".join(b"1;%b\r\nx\r\n" % (b"e" * 200) for _ in range(100)) + b"0\r\n\r\n",
    ],
)
def test_malformed_chunked_bodies_are_refused(body: bytes) -> None:
    head = b"PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert refusal(head + body).status == 400


def test_a_head_that_is_too_large_is_refused_before_it_is_complete() -> None:
    receiver = RequestReceiver()
    receiver.feed(b"GET / HTTP/1.1\r\nHost: h\r\n")
    with pytest.raises(ProtocolError) as caught:
        for _ in range(200):
            assert receiver.next_head() is None
            receiver.feed(b"A: %b\r\n" % (b"x" * 1000))
    assert caught.value.code == "RequestHeaderSectionTooLarge"
    assert receiver.buffered_bytes < 34 << 10


def test_a_target_that_is_too_large_is_refused() -> None:
    assert refusal(b"GET /" + b"x" * 40_000).code == "RequestHeaderSectionTooLarge"


def test_two_thousand_headers_are_refused() -> None:
    assert refusal(get(*["a: b"] * 2000)).code == "RequestHeaderSectionTooLarge"


def test_the_limits_are_exact() -> None:
    fields = get("A: b")
    assert RequestReceiver(max_head_bytes=len(fields)).next_head() is None
    for size, fits in ((len(fields), True), (len(fields) - 1, False)):
        receiver = RequestReceiver(max_head_bytes=size)
        receiver.feed(fields)
        if fits:
            assert receiver.next_head() is not None
        else:
            with pytest.raises(ProtocolError):
                receiver.next_head()
    receiver = RequestReceiver(max_headers=2)
    receiver.feed(get("A: b"))
    assert receiver.next_head() is not None
    receiver.feed(get("A: b", "C: d"))
    with pytest.raises(ProtocolError):
        receiver.next_head()


FRAGMENTS = [
    b"GET ", b"PUT ", b"/", b"?", b"%41", b"%", b" HTTP/1.1", b"\r\n", b"\n", b"\r", b"Host: h", b":", b" ", b"\t",
    b"Content-Length: 3", b"Transfer-Encoding: chunked", b"Upgrade: x", b"Connection: upgrade", b"0", b"3", b"abc",
    b"\x00", b"\xc3\xa9", b"\xff", b";", b",", b"http://", b"*",
]  # fmt: skip


@given(
    st.lists(st.sampled_from(FRAGMENTS), max_size=40).map(b"".join), st.lists(st.integers(0, 200), max_size=5)
)
@settings(max_examples=300, deadline=None)
def test_any_input_is_read_or_refused_by_the_one_named_error(data: bytes, cuts: list[int]) -> None:
    try:
        exchange(data, cuts)
    except ProtocolError as error:
        assert 400 <= error.status < 600


def test_many_tiny_chunks_are_decoded_in_turns() -> None:
    receiver = RequestReceiver()
    receiver.feed(b"PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
    receiver.feed(b"1\r\na\r\n" * 10_000 + b"0\r\n\r\n")
    assert receiver.next_head() is not None
    pieces = []
    while piece := receiver.next_body():
        pieces.append(piece)
        assert len(piece) <= 1024
        assert receiver.is_decoding or len(pieces) == 10
    assert b"".join(pieces) == b"a" * 10_000
    assert receiver.is_body_complete


# -- responses -----------------------------------------------------------------------------------------------


def test_response_fields_are_rendered_each_on_its_line() -> None:
    assert render_fields([("A", "b"), ("C", "é")]) == "\r\nA: b\r\nC: é"
    assert render_fields([]) == ""


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: x", "a\nb", "a\rb", "a\0b"])
def test_a_response_header_cannot_break_out_of_its_line(value: str) -> None:
    with pytest.raises(ValueError):
        render_fields([("A", value)])


# -- layouts: what comes again is read by another way ----------------------------------------------------------


def read_again(fields: bytes, *, times: int) -> dict[str, str] | None:
    """The headers of the last of several heads of one connection; None when that is refused. The heads before it have
    the same names and tame values."""
    tame = b"".join(line.partition(b":")[0] + b": tame\r\n" for line in fields.split(b"\r\n") if line)
    receiver = RequestReceiver()
    try:
        for number in range(times):
            receiver.feed(
                b"GET / HTTP/1.1\r\nHost: h\r\n" + (fields if number == times - 1 else tame) + b"\r\n"
            )
            head = receiver.next_head()
            assert head is not None
            headers = head.headers
    except ProtocolError:
        return None
    return headers


@pytest.mark.parametrize(
    "fields",
    [
        b"X-A: 1\r\nx-b:2\r\n",
        b"X-A:\r\nx-b: \t \r\n",
        b"X-A: \t1 2\t3 \t\r\nx-b: :\r\n",
        b"X-A: \xc3\xa9\r\nx-b: \xff\r\n",
        b"X-A: 1\x00\r\nx-b: 2\r\n",
        b"X-A: 1\x7f\r\nx-b: 2\r\n",
        b"X-A: 1\r\r\nx-b: 2\r\n",
        b"X-A: 1\nx-b: 2\r\n",
        b"X-A: 1\r\n x-b: 2\r\n",
        b"X-A : 1\r\nx-b: 2\r\n",
        b"X-A: 1\r\nx-b: 2\r\nX-A: 3\r\n",
        b"X-A: 1\r\nx-a: 2\r\n",
        b"x-b: 1\r\nX-A: 2\r\n",
        b"X.A: 1\r\nx+b: 2\r\n",
    ],
)
def test_a_head_laid_out_like_those_before_it_is_read_and_refused_alike(fields: bytes) -> None:
    first = read_again(fields, times=1)
    assert read_again(fields, times=5) == read_again(fields, times=2) == first


def test_a_client_that_never_repeats_itself_makes_no_more_layouts_than_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layouts, "_LAYOUTS", {})
    monkeypatch.setattr(layouts, "_new_layouts", set())
    receiver = RequestReceiver()
    for number in range(2000):
        for _ in range(3):
            receiver.feed(f"GET / HTTP/1.1\r\nHost: h\r\nX-{number}: 1\r\n\r\n".encode())
            head = receiver.next_head()
            assert head is not None and head.headers == {"host": "h", f"x-{number}": "1"}
    assert len(layouts._LAYOUTS) == layouts._MAX_LAYOUTS
    assert len(layouts._new_layouts) <= layouts._MAX_NEW_LAYOUTS


def test_a_head_that_almost_fits_its_layout_is_not_tried_in_every_way_of_sharing_blanks() -> None:
    # Were the pattern to go back, each field would double the work: this test would not end within a lifetime.
    names = [f"x-{number}" for number in range(60)]
    receiver = RequestReceiver()
    for last in ("1", "1", "1", "1 "):
        fields = "".join(f"{name}: 1\r\n" for name in names)
        receiver.feed(f"GET / HTTP/1.1\r\nHost: h\r\n{fields}x-last: {last}\r\n\r\n".encode())
        head = receiver.next_head()
        assert head is not None and head.headers["x-last"] == "1"
