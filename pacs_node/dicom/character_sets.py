"""The values of Specific Character Set (0008,0005), and what senders write instead of them.

One table for reception, rows and reports: a term that is only misspelt is read as the one that was meant; an
unknown one stays unknown. Where none is declared, text is UTF-8 or else ISO_IR 100, as most readers take it.
"""

from __future__ import annotations

import re

Terms = tuple[str, ...]
"""The values of Specific Character Set, without padding."""

# Defined Terms of PS3.3 C.12.1.1.2: those of single-byte sets exist with and without code extensions
_SINGLE_BYTE = (13, 100, 101, 109, 110, 126, 127, 138, 144, 148, 166, 203)
_WITH_EXTENSIONS = {f"ISO 2022 IR {number}" for number in _SINGLE_BYTE}
JAPANESE = {"ISO 2022 IR 87", "ISO 2022 IR 159"}
STAND_ALONE = {"ISO_IR 192": "utf-8", "GB18030": "gb18030", "GBK": "gbk"}
EIGHT_BIT = {
    *_WITH_EXTENSIONS,
    *(f"ISO_IR {number}" for number in _SINGLE_BYTE),
    *("ISO 2022 IR 58", "ISO 2022 IR 149"),
    *STAND_ALONE,
}
"""Terms that have characters beyond ASCII in 8 bits."""

_KNOWN = EIGHT_BIT | JAPANESE | {"", "ISO_IR 6", "ISO 2022 IR 6"}

# What else systems write, in capitals and without separators -> the term that means the same characters
_OTHER_NAMES = {
    **dict.fromkeys(("UTF8", "ISO10646UTF8", "UNICODE", "ISOIR1921"), "ISO_IR 192"),
    **dict.fromkeys(("ASCII", "USASCII", "ISO646", "ANSIX341968"), "ISO_IR 6"),
    **dict.fromkeys(("GB180302000", "GB180302005", "GB180302022", "CP54936"), "GB18030"),
    **dict.fromkeys(("CP936", "MS936", "WINDOWS936"), "GBK"),
    **dict.fromkeys(("GB2312", "GB231280", "EUCCN"), "GBK"),  # GBK has all of it, in the same bytes
    **dict.fromkeys(("EUCKR", "KSC5601", "KSC56011987", "KSX1001", "CP949", "MS949"), "ISO 2022 IR 149"),
    **dict.fromkeys(("JISX0201", "JISX02011976"), "ISO_IR 13"),
    **dict.fromkeys(("TIS620", "TIS6202533", "WINDOWS874", "CP874"), "ISO_IR 166"),
    **dict.fromkeys(("WINDOWS1252", "CP1252", "ANSI"), "ISO_IR 100"),  # the same letters
    **dict.fromkeys(("WINDOWS1254", "CP1254"), "ISO_IR 148"),
    **{f"LATIN{n}": f"ISO_IR {ir}" for n, ir in ((1, 100), (2, 101), (3, 109), (4, 110), (5, 148), (9, 203))},
    **{
        f"ISO8859{part}": f"ISO_IR {number}"  # ISO/IEC 8859-1, ...
        for part, number in (
            *((1, 100), (2, 101), (3, 109), (4, 110), (5, 144), (6, 127), (7, 126), (8, 138), (9, 148)),
            *((11, 166), (15, 203)),
        )
    },
}
_NUMBERED = re.compile(r"(?:ISO)?(?:2022)?IR(\d{1,3})")
_SEPARATORS = re.compile(r"[\W_]+")


def parsed(declared: bytes) -> Terms:
    """Return the values of Specific Character Set as they are written; none where it is empty."""
    terms = tuple(term.strip(" \0") for term in declared.decode("latin-1").split("\\"))
    return terms if any(terms) else ()


def mended(terms: Terms) -> Terms:
    """Return the terms with those that are misspelt put right, and those that are unknown as they are."""
    right = tuple(map(_mended, terms))
    if len(right) > 1 and right[0] in STAND_ALONE:
        return right[:1]  # no code extensions with these (PS3.3 C.12.1.1.2)
    return right


def are_known(terms: Terms) -> bool:
    """Whether all terms are Defined Terms."""
    return all(term in _KNOWN for term in terms)


def can_hold_8_bits(terms: Terms) -> bool:
    """Whether text beyond ASCII has a meaning under these terms."""
    return not (EIGHT_BIT | JAPANESE).isdisjoint(terms)


def assumed(*texts: bytes) -> Terms:
    """Return the character set of text for which none is declared; none where all of it is ASCII.

    Parameters
    ----------
    texts
        The first one beyond ASCII decides.
    """
    text = next((text for text in texts if not text.isascii()), None)
    if text is None:
        return ()
    return ("ISO_IR 192",) if is_utf8(text) else ("ISO_IR 100",)


def is_utf8(text: bytes) -> bool:
    """Whether text beyond ASCII is UTF-8."""
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _mended(term: str) -> str:
    if term in _KNOWN:
        return term
    bare = _SEPARATORS.sub("", term.upper())
    if bare in _OTHER_NAMES:
        return _OTHER_NAMES[bare]
    if bare in STAND_ALONE or bare.removeprefix("ISO2022") in STAND_ALONE:
        return bare.removeprefix("ISO2022")
    if numbered := _NUMBERED.fullmatch(bare):
        with_extensions = f"ISO 2022 IR {int(numbered[1])}"
        without = f"ISO_IR {int(numbered[1])}"
        preferred = (with_extensions, without) if "2022" in bare else (without, with_extensions)
        return next((right for right in preferred if right in _KNOWN), term)
    return term
