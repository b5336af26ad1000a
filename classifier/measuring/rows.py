"""Tables of the page of an evaluation: names and what people read of their values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NAMES = {"ring": "Border of the image", "histogram": "Grey values"}


def as_node_rows(found: Mapping[str, Any]) -> dict[str, str]:
    """Return what the node would answer."""
    rows = {name.replace("_", " ").capitalize(): str(found[name]) for name in _DECISIONS}
    rows |= {f"... {reason}": str(number) for reason, number in found["reasons"].items()}
    for name in ("sensitivity", "specificity"):
        rows[f"{name.capitalize()} of decisions"] = _share(found, name)
    rows["Positives called negative"] = str(found["positives_called_negative"])
    return rows


_DECISIONS = ("positive", "negative", "undetermined", "not_scored")


def group_rows(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return one line for each group."""
    return {name: _group(found) for name, found in groups.items()}


def baseline_rows(found: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return one line for each baseline."""
    if not found:
        return {"Not measured": "too few patients"}
    return {_NAMES[name]: _share(values, "auroc") for name, values in found.items()}


def fragility_rows(found: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return one line for each change."""
    return {
        name: f"{values['flipped']} of {values['n']} decisions,"
        f" {_share(values, 'share')}; the probability moves by {values['moved']:.4f} on average"
        for name, values in found.items()
    }


def _group(found: Mapping[str, Any]) -> str:
    return (
        f"{found['n']} images of {found['patients']} patients, {found['n_positive']} with pneumonia;"
        f" AUROC {_share(found, 'auroc')}; sensitivity {_share(found, 'sensitivity')};"
        f" specificity {_share(found, 'specificity')}; the node would decide {found['decided_as_node']}"
    )


def _share(found: Mapping[str, Any], name: str) -> str:
    if found[name] is None:
        return "undefined"
    low, high = found[f"{name}_ci95"]
    return f"{found[name]:.4f} (95 % interval {low:.4f} to {high:.4f})"
