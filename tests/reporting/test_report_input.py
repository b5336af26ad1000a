"""What goes into a report: no contradiction gets in, and what is printed agrees with what was decided."""

from __future__ import annotations

from typing import Any

import pytest

from pacs_node.errors import InvalidReport
from pacs_node.reporting.report import (
    Algorithm,
    ImageResult,
    NotScoredReason,
    ObserverDevice,
    Predecessor,
    build,
)
from tests.conftest import radiograph
from tests.helpers.reports import ALGORITHM, LATERAL, MADE_AT, NODE, find, report, scored


@pytest.mark.parametrize(
    "make",
    [
        report,
        lambda: report(scored(radiograph()), scored(radiograph(study="2"))),
        lambda: report(scored(radiograph(StudyInstanceUID=None))),
        lambda: report(scored(radiograph(SeriesInstanceUID=None))),
        lambda: report(scored(radiograph()), revision=0),
        lambda: build([scored(radiograph())], NODE, MADE_AT.replace(tzinfo=None), 1, None),
        lambda: report(scored(radiograph()), after=report(scored(radiograph(study="2")))),
        lambda: Predecessor("1.2", "not a UID", "1.2", "1.2"),
        lambda: NotScoredReason("SEVENTEEN_LETTERS", "Too long for a code value", failed=False),
        lambda: NotScoredReason("UMLAUT", "Röntgen", failed=False),
        lambda: ObserverDevice(software_version="0.1\\2", station_name="CXRAI01"),
        lambda: ObserverDevice(software_version="0.1", station_name="CXRAI01", timezone="+1500"),
        lambda: Algorithm("m", "1", "5e", 0.5, "p"),
        lambda: Algorithm("m", "1", "0" * 64, 1.1, "p"),
        lambda: ImageResult(radiograph(), "maybe", 0.5, None, ALGORITHM),
        lambda: ImageResult(radiograph(), "positive", 0.4999, None, ALGORITHM),
        lambda: ImageResult(radiograph(), "negative", 0.5, None, ALGORITHM),
        lambda: ImageResult(radiograph(), "positive", 0.87314, None, ALGORITHM),
        lambda: ImageResult(radiograph(), "not_scored", None, None, ALGORITHM),
        lambda: ImageResult(radiograph(), "not_scored", 0.5, LATERAL, ALGORITHM),
        lambda: ImageResult(radiograph(), "positive", None, None, ALGORITHM),
    ],
)
def test_what_would_make_an_invalid_report_is_refused(make: Any) -> None:
    with pytest.raises(InvalidReport):
        make()


@pytest.mark.parametrize(
    ("threshold", "printed"),
    [(0.5, "50.00 %"), (0.07, "7.00 %"), (0.48763, "48.77 %"), (0.48768, "48.77 %"), (0.0, "0.00 %")],
)
def test_the_printed_threshold_agrees_with_every_decision(threshold: float, printed: str) -> None:
    algorithm = Algorithm("m", "1", "0" * 64, threshold, "p")
    assert find(report(scored(radiograph(), 1.0, algorithm)).content, "Threshold Value") == [printed]
    limit = float(printed.removesuffix(" %"))
    for score in range(round(threshold * 10_000) - 2, round(threshold * 10_000) + 3):
        if score >= 0:
            result = scored(radiograph(), score / 10_000, algorithm)
            assert (result.decision == "positive") == (float(result.percent or "nan") >= limit)
