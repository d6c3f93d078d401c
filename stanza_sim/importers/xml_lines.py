"""Reads XML whose elements know their lines. What may be hostile is refused: entities, deep nesting."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.parsers import expat

from stanza_sim.base.errors import InputError
from stanza_sim.importers.reading import ForeignFile

MOST_DEPTH = 100
MOST_ELEMENTS = 1_000_000


@dataclass(slots=True, eq=False)
class Element:
    """An element: its name, its attributes, the line on which it begins, and what is in it."""

    tag: str
    attributes: dict[str, str]
    line: int
    children: list[Element] = field(default_factory=list)

    def get(self, key: str, default: str = "") -> str:
        """An attribute without space around it."""
        return self.attributes.get(key, default).strip()

    def walk(self) -> Iterator[Element]:
        """This element and all below it, in the order of the file."""
        waiting = [self]
        while waiting:
            element = waiting.pop()
            yield element
            waiting.extend(reversed(element.children))


def read_xml(file: ForeignFile, *, expected: str) -> Element:
    """Return the root of an XML file.

    Raises `InputError`, with the line, for one that is cut short or wrong, and for one that declares entities.
    """
    top = Element("", {}, 0)
    open_elements = [top]
    count = 0

    parser = expat.ParserCreate()

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal count
        count += 1
        line = parser.CurrentLineNumber
        if len(open_elements) > MOST_DEPTH or count > MOST_ELEMENTS:
            what = f"nests more than {MOST_DEPTH} deep" if len(open_elements) > MOST_DEPTH else "has too many elements"
            raise file.wrong(what, line, f"{expected} is expected")
        element = Element(tag, attributes, line)
        open_elements[-1].children.append(element)
        open_elements.append(element)

    def end(_: str) -> None:
        open_elements.pop()

    def doctype(name: str, _system: str | None, _public: str | None, internal: int) -> None:
        if internal:
            raise file.wrong(
                f"declares a document type {name} of its own", parser.CurrentLineNumber, "leave <!DOCTYPE> out"
            )

    def entity(name: str, *_: object) -> None:
        raise file.wrong(f"declares an entity {name}", parser.CurrentLineNumber, "leave <!ENTITY> out")

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.StartDoctypeDeclHandler = doctype
    parser.EntityDeclHandler = entity
    try:
        # The text has been decoded: what the file itself states of its encoding no longer holds.
        parser.Parse(_without_encoding(file.text).encode("utf-8", errors="replace"), True)
    except expat.ExpatError as error:
        problem = expat.ErrorString(error.code)
        short = error.code in _CUT_SHORT or (error.code == _NO_TOKEN and error.lineno >= len(file.text.splitlines()))
        what = f"is cut short: {problem}" if short else f"is not valid XML: {problem}"
        if short and len(open_elements) > 1:
            what = f"is cut short: <{open_elements[-1].tag}> of line {open_elements[-1].line} does not end"
        raise InputError(what, where=file.at(error.lineno), hint=f"{expected} is expected") from None
    return top.children[0]


_CUT_SHORT = tuple(
    expat.errors.codes[message]
    for message in (
        expat.errors.XML_ERROR_NO_ELEMENTS,
        expat.errors.XML_ERROR_UNCLOSED_TOKEN,
        expat.errors.XML_ERROR_UNCLOSED_CDATA_SECTION,
        expat.errors.XML_ERROR_PARTIAL_CHAR,
    )
)
_NO_TOKEN = expat.errors.codes[expat.errors.XML_ERROR_INVALID_TOKEN]


def _without_encoding(text: str) -> str:
    """The text without its XML declaration, whose line stays."""
    text = text.lstrip("\ufeff")
    body = text.lstrip()
    if not body.startswith("<?xml"):
        return text
    blank = text[: len(text) - len(body)]
    return blank + body.partition("?>")[2]
