"""XML in and out, as S3 uses it: elements in one namespace, no mixed content, one attribute (xsi:type).

Must not know: operations, requests, the model's tables.
Invariants:
* Parsing any bytes yields a tree or raises S3Error("MalformedXML" or "MaxMessageLengthExceeded"), never anything else,
  in time and memory proportional to the input: no DOCTYPE (so no entities), at most MAX_DEPTH levels and MAX_ELEMENTS
  elements, and the document's own idea of its encoding is not believed (it is UTF-8).
* What the writer emits is well-formed whatever the text holds.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from xml.parsers import expat

from cordwood.server.wire.errors import S3Error, escape_text, s3_error

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
XSI = "http://www.w3.org/2001/XMLSchema-instance"
DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>\n'

MAX_BYTES = 8 << 20
MAX_DEPTH = 24
# CompleteMultipartUpload with 10,000 parts and three elements in each is the largest honest document.
MAX_ELEMENTS = 200_000
_MAX_ATTRIBUTES = 8


class Element:
    """One element; `name` and the attribute names are local names ("xsi:type" keeps its customary prefix)."""

    __slots__ = ("attributes", "children", "name", "text")

    def __init__(self, name: str, attributes: dict[str, str]) -> None:
        self.name = name
        self.attributes = attributes
        self.children: list[Element] = []
        self.text = ""

    def child(self, name: str) -> Element | None:
        for child in self.children:
            if child.name == name:
                return child
        return None


def parse(data: bytes, *roots: str) -> Element:
    """The document in `data`, whose root element must be one of `roots` (any, when none is given)."""
    if len(data) > MAX_BYTES:
        raise s3_error("MaxMessageLengthExceeded", max_message_length_bytes=MAX_BYTES)
    builder = _Builder()
    parser = expat.ParserCreate("utf-8", " ")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = builder.doctype
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.characters
    try:
        parser.Parse(data, True)
    except expat.ExpatError:
        raise s3_error("MalformedXML") from None
    finally:
        # The parser and the handlers' owner refer to each other.
        parser.StartDoctypeDeclHandler = parser.StartElementHandler = None
        parser.EndElementHandler = parser.CharacterDataHandler = None
    root = builder.root
    if root is None or (roots and root.name not in roots):
        raise s3_error("MalformedXML")
    return root


class _Builder:
    def __init__(self) -> None:
        self.root: Element | None = None
        self._open: list[Element] = []
        # The pieces of text of each open element: comments may cut a text into very many.
        self._texts: list[list[str]] = []
        self._count = 0

    def doctype(self, *_: object) -> None:
        raise s3_error("MalformedXML")

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._count += 1
        if len(self._open) >= MAX_DEPTH or self._count > MAX_ELEMENTS or len(attributes) > _MAX_ATTRIBUTES:
            raise s3_error("MalformedXML")
        element = Element(_local(name, (NAMESPACE,)), {})
        for key, value in attributes.items():
            if key.startswith(XSI):
                element.attributes[f"xsi:{key[len(XSI) + 1 :]}"] = value
            else:
                element.attributes[key] = value
        if self._open:
            self._open[-1].children.append(element)
        else:
            self.root = element
        self._open.append(element)
        self._texts.append([])

    def end(self, _: str) -> None:
        self._open.pop().text = "".join(self._texts.pop())

    def characters(self, text: str) -> None:
        self._texts[-1].append(text)


def _local(name: str, namespaces: tuple[str, ...]) -> str:
    """AWS takes its own namespace and none at all; an element of another one is not in the schema."""
    namespace, space, local = name.rpartition(" ")
    if not space:
        return name
    if namespace not in namespaces:
        raise s3_error("MalformedXML")
    return local


def leaf(name: str, text: str) -> str:
    return f"<{name}>{escape_text(text)}</{name}>"


def iso8601(milliseconds: int) -> str:
    """2026-11-21T03:15:00.000Z"""
    seconds, fraction = divmod(milliseconds, 1000)
    return f"{_iso8601_second(seconds)}.{fraction:03d}Z"


@lru_cache(maxsize=4096)
def _iso8601_second(seconds: int) -> str:
    """Neighbours in a listing are often of the same second."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"


def malformed(detail: str | None = None) -> S3Error:
    return s3_error("MalformedXML", detail=detail)
