"""The gate: what it tells apart, and what the predictor makes of it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from classifier.config import SHIPPED_MODEL, Eligibility
from classifier.errors import DataError
from classifier.model.checkpoint import load
from classifier.model.gate import strangeness
from classifier.scoring.predict import Predictor
from classifier.training.gate import GateRecipe, Material, leave_one_out, strangeness_of, train_gate
from classifier.training.gated import MEASURED_BY, GateOptions, add_gate
from classifier.training.strangers import Album, load_album, made_up

SIDE = 160
SPEC: tuple[dict[str, Any], ...] = (
    {"name": "Resize", "size": SIDE},
    {"name": "StretchContrast", "low": 1, "high": 99},
    {"name": "Normalise", "mean": 0.449, "std": 0.226},
    {"name": "RepeatChannel", "count": 3},
)


def bodies(count: int, width: float, seed: int) -> Tensor:
    """Return drawn chests, (N, 1, 160, 160) uint8: two dark lungs of a width, a bright belly below."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    drawn = []
    for _ in range(count):
        a, b, c = rng.normal(0, 0.01, 3)
        lungs = sum(
            np.exp(-(((x - 0.5 - side * 0.2 + a) / width) ** 2) - ((y - 0.4 + b) / 0.22) ** 2)
            for side in (-1, 1)
        )
        grey = 0.6 - 0.45 * lungs + 0.3 * (y > 0.75 + c) + rng.normal(0, 0.02, x.shape)
        drawn.append((np.clip(grey, 0, 1) * 255).astype(np.uint8))
    return torch.from_numpy(np.stack(drawn))[:, None]


@pytest.fixture(scope="module")
def material() -> Material:
    adults = Album(bodies(30, 0.06, 1), [f"p{n // 2}" for n in range(30)], {"view": ["PA", "AP"] * 15})
    known = bodies(60, 0.13, 0)
    return Material(known, known[:0], {"adult": adults})


@pytest.fixture(scope="module")
def trained(material: Material) -> Any:
    return train_gate(material, SPEC, GateRecipe(steps=40, batch_size=48, balance=("view",)))


def test_new_images_of_the_known_kind_lie_below_all_strangers(trained: Any) -> None:
    new = bodies(20, 0.13, 5)
    known = strangeness_of(trained, new, SPEC)
    strangers = {
        "adults": bodies(20, 0.06, 6),
        "upside down": new.flip(-2),
        "quarter turn": new.rot90(1, (-2, -1)),
        "inverted": 255 - new,
        "made up": made_up(12, SIDE, np.random.default_rng(9)),
    }
    for name, images in strangers.items():
        odds = strangeness_of(trained, images, SPEC)
        assert float(odds.median()) > float(known.max()), name


def test_folding_the_normalisations_changes_nothing(material: Material) -> None:
    from classifier.training.gate import _Trainable

    torch.manual_seed(0)
    network = _Trainable(3)
    images = torch.rand(8, 3, 80, 80)
    for _ in range(3):
        network(images)  # moves the statistics away from 0 and 1
    expected = network.eval()(images)
    torch.testing.assert_close(network.folded()(images), expected, rtol=1e-4, atol=1e-5)


def test_the_same_seed_gives_the_same_gate(material: Material) -> None:
    first, again, other = (
        train_gate(material, SPEC, GateRecipe(steps=2, batch_size=32, seed=seed)).head.weight
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_who_is_left_out_is_left_out_with_all_images() -> None:
    patients = ["a", "a", "b", "c"]
    album = Album(bodies(4, 0.1, 0), patients, {"machine": ["1", "2", "2", "1"]})
    parts = {
        value: (rest.patients, inside.patients) for value, rest, inside in leave_one_out(album, "machine")
    }
    assert parts == {"1": (["b"], ["a", "c"]), "2": (["c"], ["a", "b"])}
    with pytest.raises(DataError, match="no column 'view'"):
        list(leave_one_out(album, "view"))


def save_pictures(folder: Path, images: Tensor) -> Path:
    folder.mkdir(parents=True)
    for number, image in enumerate(images.numpy()[:, 0]):
        Image.fromarray(image).save(folder / f"{folder.name}-{number}.png")
    return folder


def test_a_folder_or_a_manifest_of_strangers(tmp_path: Path) -> None:
    folder = save_pictures(tmp_path / "them", bodies(3, 0.1, 0))
    assert len(load_album(folder, 64, workers=1)) == 3
    manifest = tmp_path / "m.csv"
    with manifest.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows(
            [("path", "patient", "view"), ("them/them-0.png", "x", "PA"), ("them/them-1.png", "", "AP")]
        )
    album = load_album(manifest, 64, workers=1)
    assert album.images.shape == (2, 1, 64, 64)
    assert list(album.patients) == ["x", "them-1"]
    assert album.groups(["view"]) == [("PA",), ("AP",)]
    manifest.write_text("file\nx.png\n")
    with pytest.raises(DataError, match="no column 'path'"):
        load_album(manifest, 64)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="There is no"):
        load_album(tmp_path / "none", 64)


def test_a_model_gets_its_gate_and_the_figures_of_it(tmp_path: Path) -> None:
    for name, width in (("NORMAL", 0.13), ("PNEUMONIA", 0.14)):
        save_pictures(tmp_path / "data" / name, bodies(20, width, 3))
    save_pictures(tmp_path / "adults", bodies(8, 0.06, 1))
    manifest = tmp_path / "adults.csv"
    rows = [f"adults/adults-{n}.png,p{n},{'PA' if n % 2 else 'AP'}\n" for n in range(8)]
    manifest.write_text("path,patient,view\n" + "".join(rows))
    options = GateOptions({"adult": manifest}, leave_out=("view",), share=0.25, val_share=0.2, workers=1)
    steps: list[tuple[int, int]] = []
    card = add_gate(
        *(SHIPPED_MODEL, tmp_path / "data", tmp_path / "m.safetensors"),
        *(GateRecipe(steps=3, batch_size=32), options),
        told=lambda done, total: steps.append((done, total)),
    )
    assert steps[-1] == (9, 9)
    assert card.gate is not None
    assert card.gate.kinds == ("known", "adult", "turned", "inverted", "other")
    figures = {m.data: m for m in card.metrics if m.measured_by == MEASURED_BY}
    assert len(figures) == 5
    on_limit = next(m for what, m in figures.items() if "its limit was chosen" in what)
    assert on_limit.value <= 0.25
    assert {m.images for what, m in figures.items() if "view" in what} == {4}
    model = load(tmp_path / "m.safetensors")
    assert model.gate is not None
    assert torch.isfinite(strangeness(model.gate(torch.rand(2, 3, SIDE, SIDE)))).all()
    Predictor(model, torch.device("cpu"), Eligibility())
