"""XML in and out: any bytes are parsed or refused by one named error, and what we write is what the model says."""

from __future__ import annotations

import time
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cordwood.server.wire.errors import S3Error, escape_text, render_error, s3_error
from cordwood.server.wire.interpret import read_document, write_document
from cordwood.server.wire.route import OPERATION
from cordwood.server.wire.xml import MAX_BYTES, NAMESPACE, parse

DELETE = OPERATION["DeleteObjects"]


def refused(data: bytes, *roots: str) -> str:
    with pytest.raises(S3Error) as caught:
        parse(data, *roots)
    return caught.value.code


def test_the_s3_namespace_and_none_are_the_same() -> None:
    for opening in ("<Delete>", f'<Delete xmlns="{NAMESPACE}">', f'<a:Delete xmlns:a="{NAMESPACE}">'):
        closing = opening[1:].partition(" ")[0].rstrip(">")
        assert parse(f"{opening}</{closing}>".encode(), "Delete").name == "Delete"


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"   ",
        b"not xml",
        b"<Delete>",
        b"<Delete></Other>",
        b"<Other/>",
        b'<Delete xmlns="http://example.com/"/>',
        b'<Delete><Object xmlns="http://example.com/"/></Delete>',
        b"<Delete/><Delete/>",
        b"<Delete/>trailing",
        b"<Delete>\xff\xfe</Delete>",
        b"<Delete>\x00</Delete>",
        b"<!DOCTYPE Delete><Delete/>",
        b'<!DOCTYPE a [<!ENTITY x "y">]><Delete>&x;</Delete>',
        b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><Delete/>',
        b"<Delete>&undefined;</Delete>",
        b"<Delete " + " ".join(f'a{n}="1"' for n in range(99)).encode() + b"/>",
    ],
)
def test_what_is_not_the_document_asked_for_is_malformed(document: bytes) -> None:
    assert refused(document, "Delete") == "MalformedXML"


def test_a_billion_laughs_are_refused_at_once() -> None:
    entities = "".join(f'<!ENTITY l{n} "' + f"&l{n - 1};" * 10 + '">' for n in range(1, 10))
    document = f'<!DOCTYPE d [<!ENTITY l0 "lol">{entities}]><Delete>&l9;</Delete>'
    started = time.monotonic()
    assert refused(document.encode(), "Delete") == "MalformedXML"
    assert time.monotonic() - started < 0.5


def test_two_hundred_thousand_levels_are_refused_at_once() -> None:
    document = b"<Delete>" + b"<a>" * 200_000 + b"</a>" * 200_000 + b"</Delete>"
    started = time.monotonic()
    assert refused(document, "Delete") == "MalformedXML"
    assert time.monotonic() - started < 0.5


def test_a_doctype_in_another_encoding_is_not_missed() -> None:
    document = '<?xml version="1.0" encoding="{}"?><!DOCTYPE Delete><Delete/>'
    for encoding in ("utf-16", "utf-16-le", "cp037", "utf-8-sig"):
        assert refused(document.format(encoding).encode(encoding), "Delete") == "MalformedXML"


def test_a_document_above_the_limit_is_refused_before_it_is_parsed() -> None:
    assert refused(b" " * (MAX_BYTES + 1), "Delete") == "MaxMessageLengthExceeded"


def test_text_cut_by_very_many_comments_is_read_in_linear_time() -> None:
    document = b"<Delete><Object><Key>" + b"a<!---->" * 200_000 + b"</Key></Object></Delete>"
    started = time.monotonic()
    key = parse(document, "Delete").children[0].children[0].text
    assert key == "a" * 200_000
    assert time.monotonic() - started < 2


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(st.binary(max_size=200), st.text(alphabet="<>/&;ab \"='!-?[]x", max_size=80).map(str.encode))
)
def test_any_bytes_are_parsed_or_malformed(data: bytes) -> None:
    try:
        parse(data)
    except S3Error as error:
        assert error.code == "MalformedXML"


# --- by the model --------------------------------------------------------------------------------------------


def test_a_document_is_read_into_the_types_of_the_model() -> None:
    document = read_document(
        DELETE,
        b"<Delete><Object><Key>a&amp;b</Key><VersionId>v</VersionId><Size>7</Size>"
        b"<LastModifiedTime>Sat, 21 Nov 2026 03:00:00 GMT</LastModifiedTime></Object>"
        b"<Object><Key> c </Key></Object><Quiet>true</Quiet></Delete>",
    )
    assert document == {
        "Objects": [
            {"Key": "a&b", "VersionId": "v", "Size": 7, "LastModifiedTime": 1795230000.0},
            {"Key": " c "},
        ],
        "Quiet": True,
    }


@pytest.mark.parametrize(
    "document",
    [
        b"<Delete></Delete>",
        b"<Delete><Object></Object></Delete>",
        b"<Delete><Object><Key>a</Key><Unheard>1</Unheard></Object></Delete>",
        b"<Delete><Object><Key>a</Key><Key>b</Key></Object></Delete>",
        b"<Delete><Object><Key><b>a</b></Key></Object></Delete>",
        b"<Delete><Object><Key>a</Key><Size>x</Size></Object></Delete>",
        b"<Delete><Object><Key>a</Key></Object><Quiet>maybe</Quiet></Delete>",
        b"<Delete><Object><Key>a</Key><LastModifiedTime>never</LastModifiedTime></Object></Delete>",
    ],
)
def test_a_document_against_the_schema_is_malformed(document: bytes) -> None:
    with pytest.raises(S3Error) as caught:
        read_document(DELETE, document)
    assert caught.value.code == "MalformedXML"


def test_a_missing_document_is_an_error_only_where_it_is_required() -> None:
    assert read_document(OPERATION["CreateBucket"], b"") == {}
    with pytest.raises(S3Error) as caught:
        read_document(DELETE, b"")
    assert caught.value.code == "MissingRequestBodyError"


def sdk_parse(operation: str, document: bytes) -> dict[str, Any]:
    parsers = pytest.importorskip("botocore.parsers", reason="botocore reads the document back")
    import botocore.session

    model = botocore.session.get_session().get_service_model("s3").operation_model(operation)
    answer = {"body": document, "headers": {}, "status_code": 200}
    parsed: dict[str, Any] = parsers.create_parser("rest-xml").parse(answer, model.output_shape)
    del parsed["ResponseMetadata"]
    return parsed


def test_the_generic_writer_writes_what_the_sdk_reads() -> None:
    owner = {"DisplayName": "<&>", "ID": "1"}
    acl = {"Owner": owner, "Grants": [{"Grantee": {"Type": "CanonicalUser", **owner}, "Permission": "READ"}]}
    assert sdk_parse("GetBucketAcl", write_document(OPERATION["GetBucketAcl"], acl)) == acl
    deleted = {
        "Deleted": [
            {"Key": "a\rb\n c", "DeleteMarker": True, "DeleteMarkerVersionId": "v"},
            {"Key": "\N{WOOD}"},
        ],
        "Errors": [{"Key": "k", "Code": "AccessDenied", "Message": "no"}],
    }
    assert sdk_parse("DeleteObjects", write_document(DELETE, deleted)) == deleted
    rules = {"OwnershipControls": {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}}
    operation = OPERATION["GetBucketOwnershipControls"]
    assert sdk_parse(operation.name, write_document(operation, rules["OwnershipControls"])) == rules


def test_quotation_marks_in_the_message_of_an_error_stand_as_they_are() -> None:
    message = 'Policy Condition failed: ["eq", "$key", "<&quot;>"]'
    document = render_error(s3_error("AccessDenied", message), resource="/", request_id="1", host_id="2")
    assert b'<Message>Policy Condition failed: ["eq", "$key", "&lt;&amp;quot;&gt;"]</Message>' in document
    assert ElementTree.fromstring(document).findtext("Message") == message


@given(st.text())
def test_whatever_text_is_written_the_document_is_well_formed(text: str) -> None:
    document = render_error(s3_error("NoSuchKey", key=text), resource=text, request_id="1", host_id="2")
    root = ElementTree.fromstring(document)
    assert root.findtext("Code") == "NoSuchKey"
    if escape_text(text) == text:
        assert root.findtext("Key") == text
