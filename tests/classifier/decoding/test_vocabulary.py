"""The table of codes and words: languages, spellings, and what must stay unknown."""

from __future__ import annotations

import time
import tomllib
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydicom.sr.codedict import codes

from classifier.config import Eligibility
from classifier.decoding import vocabulary
from classifier.decoding.eligibility import check
from classifier.errors import NotScorable
from classifier.reasons import Bearing
from tests.conftest import code, radiograph

LANGUAGES = ("de", "fr", "es", "pt", "it", "nl", "pl", "tr", "sv", "cs", "hu", "ru", "zh", "ja", "ko")
VIEWS = {
    "pa": "PA P-A p.a. P>A posteroanterior postero-antérieur Ｐ.Ａ. zadopřední 后前位 후전 Tylno-przednia",
    "ap": "AP a.p. anteroposterior antero-posteriore předozadní переднезадняя 前后位 전후 przednio-tylna",
    "frontal": "frontal FACE frente 正位 正面 정면 прямая",
    "lateral": (
        "LL RL LAT LATERAL latéral PERFIL PROFIL laterale seitlich Seitl. RLAT LLAT WLAT zijdelings "
        "boczna BOCZNE yan boční bočná oldalirányú боковая боковой латеральная 侧位 側面 측면 sidobild "
        "latero-laterale"
    ),
    "angled": "RAO LPO oblique OBLIKE schräg oblicua skośna šikmá ferde косая 斜位 LDEC LLD lordotic axial",
}
CHESTS = (
    "CHEST THORAX THX tórax torace TORAKS KLATKA hrudník mellkas lungor Lunge poumons pulmones plíce płuca "
    "akciğer göğüs longen 胸部 흉부 легких ОГК CXR PORTCHEST CHESTPA THORAX_AP"
)
OTHERS = (
    "HAND abdomen Bauch bassin rodilla joelho ginocchio wervelkolom kolano diz knä páteř térd колено 膝 무릎 "
    "Schädel SCHAEDEL schaedel crâne cráneo SKULL KNEE Fuß FUSS épaule łokieć"
)


def rows() -> list[tuple[str, str]]:
    return [(aspect, word) for aspect, words in VIEWS.items() for word in words.split()]


@pytest.mark.parametrize(("view", "word"), rows())
def test_words_for_views(view: str, word: str) -> None:
    reading = vocabulary.read(word)
    assert reading.of("view") == {view}
    assert reading.is_understood


@pytest.mark.parametrize(
    ("part", "word"), [("chest", w) for w in CHESTS.split()] + [("other", w) for w in OTHERS.split()]
)
def test_words_for_body_parts(part: str, word: str) -> None:
    assert vocabulary.read(word).of("body") == {part}


@pytest.mark.parametrize("meaning", ["body.chest", "body.other", "view.lateral"])
def test_every_language_has_its_words(meaning: str) -> None:
    table = tomllib.loads(vocabulary.TABLE.read_text("utf-8"))
    known = {"sv", "it", "pt"} if meaning == "view.lateral" else set()  # the same word as in others
    assert {*LANGUAGES} - {*table[meaning]} <= known
    assert all(rows["source"] for rows in table.values())


@pytest.mark.parametrize(
    ("text", "body", "view"),
    [
        ("Röntgen Thorax p.a. stehend", {"chest"}, {"pa"}),
        ("RX TORAX PA E PERFIL", {"chest"}, {"pa", "lateral"}),
        ("ОГК боковая проекция", {"chest"}, {"lateral"}),
        ("胸部正面立位", {"chest"}, {"frontal"}),
        ("흉부 측면", {"chest"}, {"lateral"}),
        ("THORAXSEITLICH", {"chest"}, {"lateral"}),
        ("Thoracic and lumbar spine", {"other"}, set()),
        ("Hrudní páteř boční", {"other"}, {"lateral"}),
        ("грудной отдел позвоночника", {"other"}, set()),
        ("Senos paranasales", {"other"}, set()),
        ("Thorax bilateral", {"chest"}, set()),
        ("Face up", set(), set()),
        ("Lunge PA und ORCHESTRA", {"chest"}, {"pa"}),
    ],
)
def test_texts(text: str, body: set[str], view: set[str]) -> None:
    reading = vocabulary.read(text)
    assert {*reading.of("body")} == body
    assert {*reading.of("view")} == view


@pytest.mark.parametrize(
    "word", ["ORCHESTRA", "XYZZY", "LATEX", "PALLADIUM", "L", "хрен", "漢字", "LATPLUS", "PAPA"]
)
def test_words_that_only_look_alike_are_unknown(word: str) -> None:
    assert not vocabulary.read(word).is_understood


def test_every_region_and_view_of_the_standard_is_in_the_table() -> None:
    for group, aspect in ((codes.cid4031, "body"), (codes.cid4010, "view")):
        for name in group.dir():
            assert vocabulary.code(getattr(group, name).value, aspect), name


def test_a_text_of_any_length_is_read_in_no_time() -> None:
    for text in ("PA" * 500_000, "CHEST" * 200_000, "胸" * 1_000_000, "A " * 500_000, "/" * 1_000_000):
        start = time.perf_counter()
        vocabulary.read(text)
        assert time.perf_counter() - start < 2


# Whatever stands in the most specific place and is not understood leaves it open

CODED = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="\\"),
    min_size=1,
    max_size=16,
)
KNOWN_TEXTS = st.sampled_from(["", "CHEST PA", "Thorax seitlich", "Hand links", "RX TORAX PA E PERFIL"])


def doubted(**tags: Any) -> NotScorable | None:
    """Return the doubt, or ``None`` where the value happens to be understood."""
    (place, value) = next(iter(tags.items()))
    reading = vocabulary.read(value)
    aspect = "body" if place == "BodyPartExamined" else "view"
    assume(reading.meanings and not reading.is_understood and not vocabulary.term(value.upper(), aspect))
    silent: dict[str, Any] = {
        "ViewCodeSequence": None,
        "PatientOrientation": None,
        "AnatomicRegionSequence": None,
    }
    with pytest.raises(NotScorable) as caught:
        check(radiograph("CR", **(silent | {"SpecificCharacterSet": "ISO_IR 192"} | tags)), Eligibility())
    return caught.value


@settings(max_examples=150, deadline=None)
@given(value=CODED, series=KNOWN_TEXTS, study=KNOWN_TEXTS)
@pytest.mark.filterwarnings("ignore")
def test_no_text_speaks_for_a_view_that_is_not_understood(value: str, series: str, study: str) -> None:
    found = doubted(
        ViewPosition=value, BodyPartExamined="CHEST", SeriesDescription=series, StudyDescription=study
    )
    assert found
    assert found.reason.bearing is Bearing.OPEN


@settings(max_examples=150, deadline=None)
@given(value=CODED, series=KNOWN_TEXTS, study=KNOWN_TEXTS)
@pytest.mark.filterwarnings("ignore")
def test_no_text_speaks_for_a_body_part_that_is_not_understood(value: str, series: str, study: str) -> None:
    found = doubted(
        BodyPartExamined=value, ViewPosition="PA", SeriesDescription=series, StudyDescription=study
    )
    assert found
    assert found.reason.bearing is Bearing.OPEN


@settings(max_examples=100, deadline=None)
@given(meaning=CODED, study=KNOWN_TEXTS)
@pytest.mark.filterwarnings("ignore")
def test_no_text_speaks_for_a_code_that_is_not_understood(meaning: str, study: str) -> None:
    assume(not vocabulary.read(meaning).is_understood)
    tags: dict[str, Any] = {"ViewPosition": None, "PatientOrientation": None, "StudyDescription": study}
    tags["ViewCodeSequence"] = [code("V1", "99ACME", meaning)]
    with pytest.raises(NotScorable) as caught:
        check(radiograph("CR", SpecificCharacterSet="ISO_IR 192", **tags), Eligibility())
    assert caught.value.reason.bearing is Bearing.OPEN
