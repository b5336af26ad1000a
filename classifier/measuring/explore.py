"""Examine labelled images before training: what there is, and what would spoil a measurement."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from classifier.data import examples as data
from classifier.data.examples import Example
from classifier.data.images import in_processes
from classifier.decoding.decode import decode
from classifier.errors import NotScorable
from classifier.measuring import page, plots
from classifier.model.transforms import Resize

Numbers = NDArray[np.float64]

NAMES = ("NORMAL", "PNEUMONIA")
_HASH_SIDE = 16  # pixels; 256 bits distinguish near duplicates from similar chests
_NEAR_BITS = 6
_SAMPLES = 16


@dataclass(frozen=True)
class Findings:
    """The findings; lists name files, or patients where stated."""

    images: int
    patients: int
    patients_told_apart: str
    classes: dict[str, int]
    shares: dict[str, float]
    splits: dict[str, dict[str, int]]
    images_per_patient: dict[str, float]
    sizes: dict[str, int]
    unreadable: list[str]
    exact_duplicates: list[list[str]]
    near_duplicates: list[list[str]]
    patients_in_two_classes: list[str]


@dataclass(frozen=True)
class _Look:
    """One examined image."""

    digest: str
    size: tuple[int, int] | None  # rows, columns; None if it cannot be decoded
    mean: float
    deviation: float
    bits: bytes
    thumbnail: NDArray[np.uint8]


def explore(
    source: Path, out: Path, progress: Callable[[int, int], None] = lambda _done, _total: None
) -> Findings:
    """Examine every image and write findings.json, pictures and a page into `out`.

    Raises
    ------
    DataError
        If `classifier.data.load` refuses the set, or a process was killed.
    """
    examples = data.load(source)
    out.mkdir(parents=True, exist_ok=True)
    looks: list[_Look] = []
    with in_processes(_look, [example.path for example in examples]) as found:
        for look in found:
            looks.append(look)
            progress(len(looks), len(examples))
    findings = _findings(examples, looks)
    (out / "findings.json").write_text(json.dumps(asdict(findings), indent=2) + "\n", encoding="utf-8")
    _write_page(source, out, examples, looks, findings)
    return findings


def _look(path: Path) -> _Look:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    nothing = np.zeros((1, 1), np.uint8)
    try:
        plane = decode(path)  # (1, rows, columns)
    except NotScorable:
        return _Look(digest, None, 0, 0, b"", nothing)
    small = Resize(_HASH_SIDE * 2)(plane)[0].numpy().reshape(_HASH_SIDE, 2, _HASH_SIDE, 2).mean((1, 3))
    thumbnail = (Resize(160)(plane)[0].numpy() * 255).astype(np.uint8)
    return _Look(
        digest,
        (plane.shape[1], plane.shape[2]),
        float(plane.mean()),
        float(plane.std()),
        np.packbits(small > np.median(small)).tobytes(),
        thumbnail,
    )


def _findings(examples: Sequence[Example], looks: Sequence[_Look]) -> Findings:
    classes = Counter(NAMES[example.label] for example in examples)
    per_patient = np.array(list(Counter(example.patient for example in examples).values()))
    labels: dict[str, set[int]] = defaultdict(set)
    splits: dict[str, Counter[str]] = defaultdict(Counter)
    for example in examples:
        labels[example.patient].add(example.label)
        splits[example.split or "none"][NAMES[example.label]] += 1
    sizes = Counter(f"{look.size[0]} x {look.size[1]}" for look in looks if look.size)
    return Findings(
        images=len(examples),
        patients=len(per_patient),
        patients_told_apart=data.told_apart(examples),
        classes=dict(classes),
        shares={name: round(number / len(examples), 4) for name, number in classes.items()},
        splits={name: dict(counts) for name, counts in splits.items()},
        images_per_patient={
            "mean": round(float(per_patient.mean()), 2),
            "median": float(np.median(per_patient)),
            "most": int(per_patient.max()),
        },
        sizes=dict(sizes.most_common(20)),
        unreadable=[str(e.path) for e, look in zip(examples, looks, strict=True) if look.size is None],
        exact_duplicates=_same(examples, looks),
        near_duplicates=_alike(examples, looks),
        patients_in_two_classes=sorted(patient for patient, found in labels.items() if len(found) > 1),
    )


def _same(examples: Sequence[Example], looks: Sequence[_Look]) -> list[list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for example, look in zip(examples, looks, strict=True):
        groups[look.digest].append(str(example.path))
    return [group for group in groups.values() if len(group) > 1]


def _alike(examples: Sequence[Example], looks: Sequence[_Look]) -> list[list[str]]:
    """Return pairs whose coarse brightness patterns differ in few of 256 bits, but whose bytes differ."""
    known = [index for index, look in enumerate(looks) if look.size]
    if not known:
        return []
    patterns = np.unpackbits(np.array([np.frombuffer(looks[i].bits, np.uint8) for i in known]), axis=1)
    signs = patterns.astype(np.float32) * 2 - 1
    pairs = []
    for start in range(0, len(known), 512):
        distance = (signs.shape[1] - signs[start : start + 512] @ signs.T) / 2
        for row, column in np.argwhere(distance <= _NEAR_BITS).tolist():
            first, second = known[start + row], known[column]
            if first < second and looks[first].digest != looks[second].digest:
                pairs.append([str(examples[first].path), str(examples[second].path)])
    return pairs


def _write_page(
    source: Path, out: Path, examples: Sequence[Example], looks: Sequence[_Look], findings: Findings
) -> None:
    figures = {
        "classes": plots.bars(findings.classes, "Images by class"),
        "brightness": plots.histogram(_by_class(examples, looks, "mean"), "Mean grey", "0 black to 1 white"),
        "contrast": plots.histogram(
            _by_class(examples, looks, "deviation"), "Contrast", "Standard deviation"
        ),
        "aspect": plots.histogram(_aspects(examples, looks), "Columns over rows", "Ratio"),
        "samples": _samples(examples, looks),
    }
    for name, figure in figures.items():
        plots.save(figure, out / f"{name}.png")
    paths = [out / f"{name}.png" for name in figures]
    page.write(
        out / "index.html",
        f"Data in {source.name}",
        "A difference between the classes in brightness, contrast or shape is something that a network can "
        "learn instead of the lungs.",
        [
            page.Section("Counts", rows=_rows(findings), figures=paths[:4]),
            page.Section("What would spoil a measurement", rows=_warnings(findings)),
            page.Section("Samples", figures=paths[4:]),
        ],
    )


def _rows(findings: Findings) -> dict[str, str]:
    rows = {"Images": str(findings.images), "Patients": str(findings.patients)}
    rows["Patients are told apart"] = findings.patients_told_apart
    for name, number in sorted(findings.classes.items()):
        rows[name] = f"{number} ({findings.shares[name]:.1%})"
    spread = findings.images_per_patient
    rows["Images per patient"] = f"mean {spread['mean']}, median {spread['median']:g}, most {spread['most']}"
    rows["Most frequent sizes"] = ", ".join(f"{s} ({n})" for s, n in list(findings.sizes.items())[:5])
    for name, counts in findings.splits.items():
        rows[f"Split {name}"] = ", ".join(f"{number} {label}" for label, number in sorted(counts.items()))
    return rows


def _warnings(findings: Findings) -> dict[str, str]:
    return {
        "Unreadable files": _some(findings.unreadable),
        "Files with the same bytes": _some([" = ".join(group) for group in findings.exact_duplicates]),
        "Files that look the same": _some([" ~ ".join(pair) for pair in findings.near_duplicates]),
        "Patients in both classes": _some(findings.patients_in_two_classes),
        "Patients with several images": "none is known; if there are, name patients by folders or manifest"
        if findings.patients == findings.images
        else "kept together when images are split",
    }


def _some(names: Sequence[str]) -> str:
    if not names:
        return "none"
    return f"{len(names)}: " + "; ".join(names[:5]) + ("; ..." if len(names) > 5 else "")


def _by_class(examples: Sequence[Example], looks: Sequence[_Look], what: str) -> dict[str, Numbers]:
    return {
        name: np.array(
            [getattr(k, what) for e, k in zip(examples, looks, strict=True) if k.size and e.label == label]
        )
        for label, name in enumerate(NAMES)
    }


def _aspects(examples: Sequence[Example], looks: Sequence[_Look]) -> dict[str, Numbers]:
    return {
        name: np.array(
            [
                k.size[1] / k.size[0]
                for e, k in zip(examples, looks, strict=True)
                if k.size and e.label == label
            ]
        )
        for label, name in enumerate(NAMES)
    }


def _samples(examples: Sequence[Example], looks: Sequence[_Look]) -> Figure:
    """Draw images evenly from both classes."""
    chosen: list[int] = []
    for label in (0, 1):
        of_class = [i for i, e in enumerate(examples) if e.label == label and looks[i].size]
        step = max(1, len(of_class) // (_SAMPLES // 2))
        chosen += of_class[::step][: _SAMPLES // 2]
    images = [looks[i].thumbnail / 255 for i in chosen]
    titles = [f"{NAMES[examples[i].label]}\n{examples[i].path.name[:28]}" for i in chosen]
    return plots.grid(images, titles)
