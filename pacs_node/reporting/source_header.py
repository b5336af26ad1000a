"""Reads the header of a source as the bytes it came in, and tells which of them a new object may hold.

Real headers break every rule of PS3.5. A value that its Value Representation forbids reads as empty here; a
legal one keeps its bytes, whatever they mean.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Iterator
from datetime import date
from typing import Any

from pydicom.charset import encode_string, python_encoding
from pydicom.datadict import keyword_for_tag, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.valuerep import PersonName

from classifier.decoding.dates import exact
from classifier.decoding.quiet import silence_warnings
from pacs_node.dicom import character_sets
from pacs_node.dicom.attributes import attribute
from pacs_node.dicom.character_sets import JAPANESE, STAND_ALONE, Terms
from pacs_node.dicom.header import IDENTIFYING

_MOST = {"SH": 16, "LO": 64, "PN": 64}  # characters, PS3.5 6.2; for PN per component group

_MULTI_BYTE_G0 = re.compile(rb"\x1b\$\(?[@BD]((?:[!-~]{2})*)")  # JIS X 0208 and 0212
_ESCAPE = re.compile(rb"\x1b(?:\$\)[AC]|[()\-][!-~])")
_MULTI_BYTE_G1 = re.compile(rb"[\xa1-\xfe]{2}")  # KS X 1001 and GB 2312
_LEGAL_TERM = re.compile("[A-Z0-9 _]{0,16}")
_C0_OR_DELIMITER = re.compile(r"[\x00-\x1f\x7f\\]")
_CONTROL_OR_DELIMITER = re.compile(r"[\x00-\x1f\x7f-\x9f\\]")


class Source:
    """One data set of the source: the header itself, or an item of one of its sequences.

    Parameters
    ----------
    item
        As pydicom read it, or as somebody made it.
    terms
        Values of Specific Character Set that hold where `item` has none of its own.
    is_assumed
        Whether nobody declared `terms`.
    """

    def __init__(self, item: Dataset, terms: Terms = (), *, is_assumed: bool = True) -> None:
        self.item = item
        self.terms = terms
        own = character_sets.parsed(self.value("SpecificCharacterSet"))
        self.declared = self.value("SpecificCharacterSet").rstrip(b" \0") if own else b""
        self.is_assumed = is_assumed and not own
        if own:
            self.terms = character_sets.mended(own)

    @property
    def is_declared_legally(self) -> bool:
        """Whether Specific Character Set is a legal CS, known or not."""
        return all(map(_LEGAL_TERM.fullmatch, self.terms))

    def value(self, keyword: str) -> bytes:
        """Return the bytes of a value, or none where the attribute is absent or unreadable."""
        tag = attribute(keyword).tag
        if tag not in self.item:
            return b""
        element: DataElement | RawDataElement = self.item.get_item(tag, keep_deferred=True)
        return element.value or b"" if isinstance(element, RawDataElement) else self._encoded(element)

    def _encoded(self, element: DataElement) -> bytes:
        value = element.value
        values = value if _is_multiple(value) else [value]
        return b"\\".join(map(self._encoded_single, values))

    def _encoded_single(self, value: Any) -> bytes:
        if value is None or isinstance(value, bytes):
            return value or b""
        if isinstance(value, PersonName) and isinstance(value.original_string, bytes):
            return value.original_string
        text = str(value)
        if text.isascii():
            return text.encode()
        known = [python_encoding[t] for t in self.terms if t in python_encoding] or ["utf-8"]
        silence_warnings()  # pydicom puts "?" for a character that the declared character set lacks
        return value.encode(known) if isinstance(value, PersonName) else encode_string(text, known)

    def text(self, keyword: str) -> bytes:
        """Return a value of any VR of bytes or text, or none where the VR forbids it."""
        vr = attribute(keyword).vr
        if vr in _MOST:
            value = legal_text(self.value(keyword).rstrip(b"\0"), vr, self.terms)
            return value if self._fits_assumption(value) else b""
        value = _MENDED.get(vr, bytes)(self.value(keyword).strip(b" \0"))
        return value if value.isascii() and _LEGAL[vr](value.decode()) else b""

    def _fits_assumption(self, value: bytes) -> bool:
        return not self.is_assumed or self.terms != ("ISO_IR 192",) or character_sets.is_utf8(value)

    def values(self, keyword: str) -> list[str]:
        """Return all values of CS or DS, or none where one of them is illegal."""
        values = [value.strip() for value in self.ascii(keyword).split("\\")]
        return values if all(map(_LEGAL[attribute(keyword).vr], values)) else []

    def ascii(self, keyword: str) -> str:
        """Return a value stripped of its padding, or an empty string where it is not ASCII."""
        value = self.value(keyword).strip(b" \0")
        return value.decode() if value.isascii() else ""

    def integer(self, keyword: str) -> int:
        """Return a single US value, or 0."""
        tag = attribute(keyword).tag
        if tag not in self.item:
            return 0
        element: DataElement | RawDataElement = self.item.get_item(tag, keep_deferred=True)
        if isinstance(element, RawDataElement):
            order = "<H" if element.is_little_endian else ">H"
            value = element.value or b""
            return int(struct.unpack(order, value)[0]) if len(value) == 2 else 0
        return element.value if isinstance(element.value, int) and 0 < element.value < 65536 else 0

    def items(self, keyword: str) -> Iterator[Source]:
        """Yield the items of a sequence; nothing where it is absent or broken."""
        tag = attribute(keyword).tag
        if tag in self.item:
            for item in _sequence(self.item, tag):
                source = Source(item, self.terms, is_assumed=self.is_assumed)
                if source.is_assumed:
                    source.terms = character_sets.assumed(source.texts()) or self.terms
                yield source

    def texts(self, keywords: Iterable[str] | None = None) -> bytes:
        """Return the texts among the attributes `keywords`, or of all that are known, joined."""
        if keywords is None:
            keywords = filter(tag_for_keyword, map(keyword_for_tag, self.item.keys()))
        return b"".join(self.value(keyword) for keyword in keywords if attribute(keyword).vr in _MOST)


def _is_multiple(value: object) -> bool:
    return not isinstance(value, (str, bytes, PersonName)) and hasattr(value, "__iter__")


def _sequence(item: Dataset, tag: int) -> list[Dataset]:
    try:
        silence_warnings()
        items = item[tag].value
    except Exception:  # noqa: BLE001
        # Parsing hostile bytes raises nearly anything (struct.error, KeyError, RecursionError, ...), and a
        # broken sequence may cost the report that sequence only.
        return []
    return [i for i in items or [] if isinstance(i, Dataset)] if _is_multiple(items) else []


def skeleton(value: bytes, terms: Terms) -> str:
    """Return `value` with one character for each character, and the delimiters where they are delimiters.

    Bytes of a multi-byte character may look like a backslash, a caret or an equals sign (PS3.5 6.1.2.5.3).
    """
    if terms and terms[0] in STAND_ALONE:
        return value.decode(STAND_ALONE[terms[0]], "replace")
    if not JAPANESE.isdisjoint(terms):
        value = _MULTI_BYTE_G0.sub(lambda match: b"x" * (len(match[1]) // 2), value)
    if len(terms) > 1 or any(term.startswith("ISO 2022") for term in terms):
        value = _ESCAPE.sub(b"", value)
    if "ISO 2022 IR 149" in terms or "ISO 2022 IR 58" in terms:
        value = _MULTI_BYTE_G1.sub(b"x", value)
    return value.decode("latin-1")


def legal_text(value: bytes, vr: str, terms: Terms) -> bytes:
    """Return `value` where SH, LO or PN may hold it under the character sets `terms`, else nothing.

    An illegal identifier is left empty and never cut: cut, it might be another patient's. Text that cannot be
    read, under an unknown character set or none, keeps its bytes: it is what stands in the images.
    """
    if len(value) > _MOST[vr]:
        value = value.rstrip(b" ")
    if vr == "PN":
        value = _without_empty_components(value, terms)
    text = skeleton(value, terms)
    groups = text.split("=") if vr == "PN" else [text]
    is_understood = character_sets.are_known(terms) and character_sets.can_hold_8_bits(terms)
    forbidden = _CONTROL_OR_DELIMITER if is_understood else _C0_OR_DELIMITER
    legal = (
        not forbidden.search(text)
        and len(groups) <= 3
        and all(len(group) <= _MOST[vr] for group in groups)
        and (vr != "PN" or all(group.count("^") <= 4 for group in groups))
    )
    return value if legal and text.strip(" ") else b""


def _without_empty_components(name: bytes, terms: Terms) -> bytes:
    # A sixth component is illegal; an empty one says nothing, and some systems always write it.
    if b"\x1b" in name or "GBK" in terms or "GB18030" in terms:
        return name
    groups = name.split(b"=")
    return b"=".join(g.rstrip(b"^ ") if g.count(b"^") > 4 else g for g in groups)


def resolve_charset(header: Source, keywords: Iterable[str]) -> Source:
    """Return `header` with the character set that the report declares.

    That is the declared one; one that is only misspelt is put right. Where none is declared but the text goes
    beyond ASCII, UTF-8 is declared if the text is that, else ISO_IR 100, and the bytes stay. Under an unknown
    one, the report says what the images say, bytes and declaration, unless the text is UTF-8.

    Parameters
    ----------
    header
        The whole header.
    keywords
        The attributes to copy.
    """
    text = header.texts(keywords)
    if not header.declared:
        terms = character_sets.assumed(header.texts(map(keyword_for_tag, IDENTIFYING)), text)
        return _declare(header, "\\".join(terms).encode()) if terms else header
    if character_sets.are_known(header.terms):
        if header.terms != character_sets.parsed(header.declared):
            return _declare(header, "\\".join(header.terms).encode())
        if character_sets.can_hold_8_bits(header.terms) or text.isascii():
            return header
    elif text.isascii():
        return header if header.is_declared_legally else _declare(header, b"")
    is_utf8 = character_sets.is_utf8(text) and not text.isascii()
    return _declare(header, b"ISO_IR 192") if is_utf8 else header


def _declare(header: Source, declared: bytes) -> Source:
    changed = Source(header.item)
    changed.declared = declared
    changed.terms = tuple(declared.decode().split("\\")) if declared else ()
    return changed


def _dated(value: bytes) -> bytes:
    """Return a date of ACR-NEMA or ISO 8601 as DA has it."""
    day = exact(value.decode("latin-1"))
    return value if day is None else day.isoformat().replace("-", "").encode()


def _timed(value: bytes) -> bytes:
    """Return a time of ACR-NEMA, 10:11:12.5, as TM has it."""
    return value.replace(b":", b"") if _TIME_WITH_COLONS.fullmatch(value) else value


def _is_date(text: str) -> bool:
    try:
        return bool(re.fullmatch(r"\d{8}", text)) and bool(date.fromisoformat(text))
    except ValueError:
        return False


def _is_time(text: str) -> bool:
    match = re.fullmatch(r"(\d{2})(?:(\d{2})(?:(\d{2})(?:\.\d{1,6})?)?)?", text)
    limits = (23, 59, 60)
    return match is not None and all(
        int(n or 0) <= most for n, most in zip(match.groups(), limits, strict=True)
    )


def _matches(pattern: str) -> Callable[[str], bool]:
    return lambda text: bool(re.fullmatch(pattern, text))


_TIME_WITH_COLONS = re.compile(rb"\d{2}:\d{2}(?::\d{2}(?:\.\d{1,6})?)?")
_MENDED: dict[str, Callable[[bytes], bytes]] = {"DA": _dated, "TM": _timed}
_LEGAL: dict[str, Callable[[str], bool]] = {
    "DA": _is_date,
    "TM": _is_time,
    "AS": _matches(r"\d{3}[DWMY]"),
    "CS": _matches(r"[A-Z0-9 _]{1,16}"),
    "DS": _matches(r"(?=.{1,16}$)[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?"),
    "UI": _matches(r"[0-9.]{1,64}"),
    "UT": _matches(r"[ -~]{1,1024}"),
}
