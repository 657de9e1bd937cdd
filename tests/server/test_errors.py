"""The error catalogue and its XML."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from cordwood.engine import errors as engine_errors
from cordwood.server.handlers import failures
from cordwood.server.wire.errors import CATALOGUE, render_error, s3_error


def test_every_code_has_a_status_and_a_message() -> None:
    for code, (status, message) in CATALOGUE.items():
        assert re.fullmatch(r"(KMS\.)?[A-Za-z0-9]+", code)
        assert 300 <= status <= 599
        assert message.strip()


def test_a_code_outside_the_catalogue_cannot_be_raised() -> None:
    with pytest.raises(KeyError):
        s3_error("NoSuchThing")


def test_an_error_document_has_the_five_elements_and_the_extra_fields() -> None:
    error = s3_error("NoSuchKey", key="a&b", bucket_name="b", AWSAccessKeyId="AK", nothing=None)
    root = ElementTree.fromstring(render_error(error, resource="/b/a&b", request_id="R", host_id="H"))
    assert [(child.tag, child.text) for child in root] == [
        ("Code", "NoSuchKey"),
        ("Message", "The specified key does not exist."),
        ("Key", "a&b"),
        ("BucketName", "b"),
        ("AWSAccessKeyId", "AK"),
        ("Resource", "/b/a&b"),
        ("RequestId", "R"),
        ("HostId", "H"),
    ]


def test_every_error_of_the_engine_has_a_name_in_s3() -> None:
    classes = [
        each
        for each in vars(engine_errors).values()
        if isinstance(each, type) and issubclass(each, engine_errors.CordwoodError)
    ]
    assert len(classes) > 20
    for each in classes:
        made = [failures.MAKERS[base] for base in each.__mro__ if base in failures.MAKERS]
        assert made, each
