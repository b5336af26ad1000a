"""How a run ended: its figures, and one page with them, with curves and with settings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from classifier.measuring import page
from classifier.model.card import Metric, ModelCard
from classifier.model.checkpoint import load
from classifier.training.run_folder import CONFIG_FILE, CURVES_FILE, MODEL_FILE

PAGE_FILE = "index.html"


def figures_of(out: Path) -> Iterator[str]:
    """Yield what to know of the model of a finished run, in lines."""
    card = load(out / MODEL_FILE).card
    yield f"Model {card.name} {card.version}: {out / MODEL_FILE}"
    for metric in _unchanged(card):
        yield f"  {metric.name} {_value(metric)}"
    yield f"  threshold {card.threshold:g}, on {_measured_on(card)}"
    yield from card.limits[1:]


def write_page(out: Path) -> Path:
    """Write the page of a finished run; return its path."""
    card = load(out / MODEL_FILE).card
    settings = json.loads((out / CONFIG_FILE).read_text(encoding="utf-8"))
    curves = out / CURVES_FILE
    metrics = {f"{m.name}, {m.data}": _value(m) for m in card.metrics}
    page.write(
        out / PAGE_FILE,
        f"{card.name} {card.version}",
        f"SHA-256 of the model {card.sha256}. Research use only.",
        [
            page.Section("Measures", card.threshold_source, rows=metrics),
            page.Section("What to know", rows={str(n): text for n, text in enumerate(card.limits, 1)}),
            page.Section("Epochs", figures=[curves] if curves.is_file() else []),
            page.Section("Settings", rows=dict(_flat(settings))),
        ],
    )
    return out / PAGE_FILE


def _unchanged(card: ModelCard) -> list[Metric]:
    """Return the measures of the validation images as they are, which stand first."""
    first = card.metrics[0].data if card.metrics else ""
    return [metric for metric in card.metrics if metric.data == first]


def _value(metric: Metric) -> str:
    interval = "" if metric.low is None else f" (95 % interval {metric.low:.4f} to {metric.high:.4f})"
    return f"{metric.value:.4f}{interval}"


def _measured_on(card: ModelCard) -> str:
    metric = card.metrics[0]
    return f"{metric.images} validation images of {metric.patients} patients"


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, object]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value
