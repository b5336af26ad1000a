"""The table of codes and words, `vocabulary.toml`, and how a text is read with it.

A text is cut into words; the longest phrase of the table that begins at a word gives it its meanings. What is
not in the table stays visible as unknown: the caller must not take it for silence.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

TABLE = Path(__file__).with_name("vocabulary.toml")
_IDEOGRAPHS = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff"  # scripts that put no space between words
_WORD = re.compile(rf"[{_IDEOGRAPHS}]+|[^\W\d_{_IDEOGRAPHS}]+|\d+|[+&/]")
_IS_IDEOGRAPHIC = re.compile(f"[{_IDEOGRAPHS}]")
_UNSTROKED = str.maketrans({"Ł": "L", "Ø": "O", "Đ": "D", "Æ": "AE", "Œ": "OE", "・": " ", "ı": "I"})
_UMLAUTS = str.maketrans({"Ä": "AE", "Ö": "OE", "Ü": "UE", "Å": "AA", "Ø": "OE"})
_SHORTEST_PART = 3  # letters of a word that may be part of another without a space, but for PA and AP
_BEAMS = ("PA", "AP")
_LONGEST_WORD = 40  # letters; nothing longer is looked into for parts


class Reading(NamedTuple):
    """What a text says.

    Attributes
    ----------
    meanings
        The meanings of its words, in their order, each with its tables' names such as ``view.pa``; an empty
        set for a word that is not in the table.
    """

    meanings: tuple[frozenset[str], ...]

    def of(self, aspect: str) -> frozenset[str]:
        """Return the meanings of one aspect, such as ``pa`` of ``view``."""
        found = {m for word in self.meanings for m in word if m.startswith(f"{aspect}.")}
        return frozenset(meaning.partition(".")[2] for meaning in found)

    def has(self, meaning: str) -> bool:
        """Whether a word has a meaning."""
        return any(meaning in word for word in self.meanings)

    @property
    def is_understood(self) -> bool:
        """Whether every word is in the table."""
        return all(self.meanings)

    @property
    def is_untold(self) -> bool:
        """Whether the text says that there is nothing to say, or nothing at all."""
        return all("untold" in word for word in self.meanings)


@dataclass
class _Node:
    """A word of a phrase: what it means if the phrase ends here, and the words that may follow."""

    meanings: set[str] = field(default_factory=set)
    words: dict[str, _Node] = field(default_factory=dict)
    stems: dict[str, _Node] = field(default_factory=dict)

    def next(self, word: str) -> list[_Node]:
        """Return the nodes of a word: its own, and that of the longest stem with which it begins."""
        found = [self.words[word]] if word in self.words else []
        ends = range(len(word), 1, -1) if self.stems else ()
        stem = next((self.stems[word[:end]] for end in ends if word[:end] in self.stems), None)
        return [*found, stem] if stem else found


@dataclass(frozen=True)
class _Vocabulary:
    phrases: _Node
    codes: dict[str, str]
    terms: dict[str, str]


def read(text: str) -> Reading:
    """Return what a text says, word by word."""
    return _read(text[:1024])


def code(value: str, aspect: str) -> str | None:
    """Return the meaning of a code value within an aspect, such as ``pa`` of ``view``."""
    return _within(_vocabulary().codes.get(value), aspect)


def term(value: str, aspect: str) -> str | None:
    """Return the meaning of a Defined Term within an aspect, where the table lists it as such."""
    return _within(_vocabulary().terms.get(f"{aspect} {value}"), aspect)


def _within(meaning: str | None, aspect: str) -> str | None:
    head, _, tail = (meaning or "").partition(".")
    return tail if head == aspect else None


@lru_cache(maxsize=4096)
def _read(text: str) -> Reading:
    words = [part for word in _WORD.findall(_plain(text)) for part in _cut(word)]
    return Reading(tuple(_meanings(words)))


def _plain(text: str) -> str:
    """Return text in upper case, without accents and strokes (NFKD, of which only letters are kept)."""
    decomposed = unicodedata.normalize("NFKD", text.replace("ß", "ss"))
    kept = "".join(c for c in decomposed if not unicodedata.combining(c))
    return unicodedata.normalize("NFC", kept).upper().translate(_UNSTROKED)


def _meanings(words: Sequence[str]) -> Iterator[frozenset[str]]:
    at = 0
    while at < len(words):
        length, found = _longest(words, at)
        if length:
            yield frozenset(found)
        else:
            yield from _unphrased(words[at])
        at += length or 1


def _longest(words: Sequence[str], at: int) -> tuple[int, set[str]]:
    """Return how many words from `at` on are the longest phrase of the table, and what it means."""
    nodes, best = [_vocabulary().phrases], (0, set[str]())
    for end in range(at, len(words)):
        nodes = [following for node in nodes for following in node.next(words[end])]
        if not nodes:
            break
        # An exact word counts before a stem
        if node := next((node for node in nodes if node.meanings), None):
            best = end + 1 - at, node.meanings
    return best


def _unphrased(word: str) -> Iterator[frozenset[str]]:
    if word.isdigit():
        yield frozenset({"plain"})
        return
    parts = _parts(word) if len(word) <= _LONGEST_WORD else ()
    yield from parts or (frozenset(),)


@lru_cache(maxsize=1024)
def _parts(word: str) -> tuple[frozenset[str], ...]:
    """Return the meanings of words that stand together as one, such as CHESTPA; nothing where none do."""
    ends: dict[int, tuple[frozenset[str], ...]] = {0: ()}
    for end in range(1, len(word) + 1):
        for start in sorted(ends):
            if found := _part(word[start:end], is_first=start == 0, is_last=end == len(word)):
                ends.setdefault(end, (*ends[start], found))
    whole = ends.get(len(word), ())
    return whole if any(not part <= {"view.pa", "view.ap"} for part in whole) else ()


def _part(part: str, *, is_first: bool, is_last: bool) -> frozenset[str]:
    is_beam = part in _BEAMS and (is_first or is_last)
    if len(part) < _SHORTEST_PART and not is_beam:
        return frozenset()
    root = _vocabulary().phrases
    nodes = root.next(part) if is_last else [root.words[part]] if part in root.words else []
    meanings = next((node.meanings for node in nodes if node.meanings), set[str]())
    is_filler = "plain" in meanings and len(part) <= _SHORTEST_PART
    return frozenset() if is_filler else frozenset(meanings)


def _cut(word: str) -> list[str]:
    """Cut a run of a script without spaces into the longest words of the table, from left to right."""
    if not _IS_IDEOGRAPHIC.match(word):
        return [word]
    known, found, at, unknown = _vocabulary().phrases.words, [], 0, ""
    while at < len(word):
        length = next((n for n in range(min(8, len(word) - at), 0, -1) if word[at : at + n] in known), 0)
        if not length:
            unknown += word[at]
        elif unknown:
            found.append(unknown)
            unknown = ""
        found += [word[at : at + length]] * bool(length)
        at += length or 1
    return [*found, unknown] if unknown else found


@cache
def _vocabulary() -> _Vocabulary:
    table: dict[str, dict[str, Any]] = tomllib.loads(TABLE.read_text("utf-8"))
    made = _Vocabulary(_Node(), {}, {})
    for meaning, rows in table.items():
        for value, retired, _ in rows.pop("codes", ()):
            made.codes.update({one: meaning for one in (value, retired) if one})
        aspect = meaning.partition(".")[0]
        made.terms.update({f"{aspect} {value}": meaning for value in rows.pop("terms", ())})
        del rows["source"]
        for language in rows.values():
            for phrase in language:
                _add(made.phrases, phrase, meaning)
    return made


def _add(root: _Node, phrase: str, meaning: str) -> None:
    for spelling in {phrase, phrase.upper().translate(_UMLAUTS)}:
        node = root
        words = _WORD.findall(_plain(spelling.removesuffix("*")))
        for word in words[:-1]:
            node = node.words.setdefault(word, _Node())
        last = node.stems if spelling.endswith("*") else node.words
        last.setdefault(words[-1], _Node()).meanings.add(meaning)
