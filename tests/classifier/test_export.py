"""Exported models: other programs give the same figures, from the same decoded images."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from classifier import export
from classifier.config import SHIPPED_MODEL
from classifier.decoding.decode import decode
from classifier.errors import ClassifierError
from classifier.model.card import GateCard
from classifier.model.checkpoint import Checkpoint, load, save
from classifier.model.gate import Gate
from classifier.model.novelty import fit
from classifier.scoring.predict import Predictor

SAME = 1e-4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped network with every kind of preprocessing step, and a novelty measure of the test's own."""
    shipped = load(SHIPPED_MODEL)
    steps = (
        {"name": "Resize", "size": 96},
        {"name": "StretchContrast", "low": 2, "high": 98.5},
        {"name": "RepeatChannel", "count": 3},
        {"name": "Normalise", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    )
    values = {
        "preprocessing": steps,
        "temperature": 1.7,
        "offset": 0.3,
        "novelty_limit": 1.3,
        "novelty_source": "A test.",
        "gate": GateCard(kinds=("known", "other"), limit=0.1, source="A test."),
    }
    generator = torch.Generator().manual_seed(0)
    measure = fit(torch.rand(200, 1024, generator=generator))
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save(path, shipped.model.state_dict(), shipped.card.model_copy(update=values), measure, Gate(2))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    return [_smooth_picture(folder / f"{n}.png", n) for n in range(5)]


@pytest.fixture(scope="module")
def session(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The model in ONNX Runtime; to export it takes long."""
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export.to_onnx(load(model), path)
    return onnxruntime.InferenceSession(path)


def _smooth_picture(path: Path, number: int) -> Path:
    """Write a picture of its own size and content, with grey values between which there is no tie."""
    noise = np.random.default_rng(number).integers(0, 255, (9, 7), np.uint8)
    picture = Image.fromarray(noise).resize((90 + 60 * number, 120 + 45 * number), Image.Resampling.BICUBIC)
    if number == 4:  # transparent towards one side
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    picture.save(path)
    return path


def test_the_onnx_graph_gives_the_same_figures_in_onnx_runtime(
    model: Path, files: list[Path], session: Any
) -> None:
    assert [output.name for output in session.get_outputs()] == ["probability", "logit", "novelty"]
    predictor = Predictor.load(model, "cpu", cautious=False, engine="torch")
    for file, expected in zip(files, predictor.predict(files), strict=True):
        probability, _, novelty = session.run(None, {"image": decode(file)[None]})
        assert float(probability[0]) == pytest.approx(expected.probability, abs=SAME)
        assert float(novelty[0]) == pytest.approx(expected.novelty, rel=1e-3, abs=1e-3)
    card = json.loads(session.get_modelmeta().custom_metadata_map["card"])
    assert card == json.loads(load(model).card.model_dump_json())


def test_the_axes_of_the_onnx_graph_have_names(session: Any) -> None:
    (image,) = session.get_inputs()
    assert image.shape == ["batch", 1, "height", "width"]
    assert all(output.shape == ["batch"] for output in session.get_outputs())


def test_the_onnx_graph_takes_batches(files: list[Path], session: Any) -> None:
    one = decode(files[3])[None]
    alone = session.run(None, {"image": one})[1]
    together = session.run(None, {"image": np.concatenate([one[..., ::-1, :], one, 1 - one])})[1]
    np.testing.assert_allclose(together[1], alone[0], atol=SAME)
    assert len(set(together.round(4).tolist())) == 3


def bundle_command(bundle: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "monai.bundle", *arguments]
    return subprocess.run(command, cwd=bundle, check=False, capture_output=True, text=True)


def test_the_bundle_gives_the_same_figures_run_by_monai(
    model: Path, files: list[Path], tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    export.to_bundle(load(model), bundle)
    config = ("--config_file", "configs/inference.json")
    run = bundle_command(bundle, "run", *config, "--dataset_dir", str(files[0].parent))
    assert run.returncode == 0, run.stderr
    with (bundle / "eval" / "predictions.csv").open(newline="") as file:
        found = {Path(name).name: float(value) for name, value in csv.reader(file)}
    expected = Predictor.load(model, "cpu", cautious=False, engine="torch").predict(files)
    assert list(found) == [file.name for file in files]
    assert list(found.values()) == pytest.approx([p.probability for p in expected], abs=SAME)
    meta = ("--meta_file", "configs/metadata.json", "--net_id", "network_def", "--device", "cpu")
    checked = bundle_command(bundle, "verify_net_in_out", *config, *meta)
    assert checked.returncode == 0, checked.stderr


def test_a_bundle_overwrites_nothing(model: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ClassifierError, match="is not empty; name another folder"):
        export.to_bundle(load(model), tmp_path)


def test_a_missing_package_is_named(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "find_spec", lambda _: None)
    with pytest.raises(ClassifierError, match=r"onnx is missing; pip install 'pacs-node\[export\]'"):
        export.to_onnx(load(model), tmp_path / "model.onnx")


def test_preprocessing_that_does_not_begin_with_a_resize_is_refused(model: Path) -> None:
    checkpoint = load(model)
    card = checkpoint.card.model_copy(update={"preprocessing": checkpoint.card.preprocessing[1:]})
    with pytest.raises(ClassifierError, match="begins with Resize"):
        export.ExportedNetwork(Checkpoint(checkpoint.model, card, None))
