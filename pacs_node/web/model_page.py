"""The page of the model: its card, what it answered week by week, and how people judged that."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from fastapi import APIRouter, Request, Response

from db import model_use
from db.model_use import Answered
from db.session import Database
from pacs_node.config import Settings
from pacs_node.web import agreement, charts
from pacs_node.web.agreement import FEWEST, Share
from pacs_node.web.show import Show

NEWEST = 10_000
"""Images from which scores per week and per sender are told."""

_WEEKS = 16
_FACTS = (
    ("population", "Population"),
    ("data", "Training data"),
    ("threshold_source", "Threshold from"),
    ("temperature_source", "Calibration from"),
    ("novelty_source", "Likeness measured by"),
    ("recipe", "Recipe"),
    ("licence", "Licence"),
)


class ModelPage:
    """The page."""

    def __init__(self, settings: Settings, database: Database, show: Show) -> None:
        self._negatives = settings.verdicts.blind_negatives
        self._database, self._show = database, show
        self.router = APIRouter(include_in_schema=False)
        self.router.add_api_route("/model", self.model, methods=["GET"])

    def model(self, request: Request) -> Response:
        """Show the model that started last."""
        with self._database.read() as session:
            known = model_use.models(session)
            newest = known[0] if known else None
            images = model_use.answered(session, newest.id, NEWEST) if newest else []
            judged = model_use.judged(session, newest.id, self._negatives) if newest else []
        card = _card(newest.card) if newest else {}
        weeks = grouped(images, lambda one: f"{one.received_at.astimezone():%G-W%V}")[-_WEEKS:]
        senders = sorted(grouped(images, lambda one: one.sender), key=lambda group: -group.images)
        blind = agreement.shares(judged, blind=True)
        decided = Counter(one.decision for one in images)
        shown: dict[str, Any] = {
            "model": newest,
            "others": [_card(one.card) for one in known[1:]],
            "card": card,
            "facts": [(words, str(card[key])) for key, words in _FACTS if card.get(key)],
            "metrics": [one for one in card.get("metrics", []) if isinstance(one, dict)],
            "weeks": weeks,
            "positives": charts.shares([(w.name, w.positive.value, w.interval, w.said) for w in weeks]),
            "novelties": charts.shares(
                [
                    (w.name, w.novelty or 0.0, None, f"{w.novelty:.2f}")
                    for w in weeks
                    if w.novelty is not None
                ],
                top=1.5,
            ),
            "senders": senders[:12],
            "images": len(images),
            "newest": NEWEST,
            "fewest": FEWEST,
            "said": agreement.labels(judged),
            "visible": agreement.shares(judged, blind=False),
            "blind": blind,
            "sensitivity": agreement.sensitivity(blind, decided["positive"], decided["negative"]),
        }
        return self._show(request, "model.html", **shown)


class Group:
    """The images of one week or of one sender."""

    def __init__(self, name: str, images: Sequence[Answered]) -> None:
        self.name, self.images = name, len(images)
        self.positive = Share("positive", sum(one.decision == "positive" for one in images), len(images))
        novelties = [one.novelty for one in images if one.novelty is not None]
        self.novelty = median(novelties) if novelties else None
        self.unlike = Share("unlike", sum(novelty > 1 for novelty in novelties), len(novelties))
        self.probability = median(one.probability for one in images)

    @property
    def interval(self) -> tuple[float, float]:
        """Interval of the share of positive answers; wide where there are few images."""
        return self.positive.interval

    @property
    def said(self) -> str:
        """The share of positive answers in words."""
        if not self.positive.is_enough:
            return f"{self.images} images, too few to say"
        return f"{100 * self.positive.value:.0f} % of {self.images} positive"


def grouped(images: Sequence[Answered], key: Any) -> list[Group]:
    """Return groups of images in the order of their names."""
    found: dict[str, list[Answered]] = {}
    for one in images:
        found.setdefault(key(one), []).append(one)
    return [Group(name, found[name]) for name in sorted(found)]


def _card(text: str) -> Mapping[str, Any]:
    """Return a card as it is stored; what is none is empty."""
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
