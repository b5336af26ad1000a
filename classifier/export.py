"""A model in other formats: an ONNX graph or a MONAI bundle. Both give the same figures.

All steps after decoding are included: both take the decoded grey image, of any size, and resize and normalise
it as the node does. Decoding of DICOM (windows, look-up tables, MONOCHROME1) remains in
`classifier.decoding`.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from classifier.errors import ClassifierError
from classifier.model.card import ModelCard
from classifier.model.checkpoint import Checkpoint
from classifier.model.gate import judge
from classifier.model.transforms import tail

OPSET = 18  # the first version whose Resize smooths when it shrinks
OUTPUTS = ("probability", "logit", "novelty")
_SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
)


class ExportedNetwork(nn.Module):
    """All steps after decoding, as one module.

    Parameters
    ----------
    checkpoint
        The model.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.network, self.card, self.novelty, self.gate = checkpoint
        _side(self.card)
        self.resize, *self.rest = tail(self.card.preprocessing).transforms

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Score decoded images.

        Parameters
        ----------
        image
            (B, 1, rows, columns) float32, 0 black to 1 white.

        Returns
        -------
        tuple of Tensor
            Calibrated probability, logit and, if the model has the measure, novelty; (B,) each.
        """
        square = self.resize(image.squeeze(1)).unsqueeze(1)  # images are as independent as channels
        prepared = torch.vmap(self._prepared)(square)
        features = self.network.embed(prepared)
        logit = self.network.classifier(features).flatten()
        found = (torch.sigmoid((logit + self.card.offset) / self.card.temperature), logit)
        novelties = list(self._novelties(prepared, features))
        return (*found, torch.stack(novelties).amax(0)) if novelties else found

    def _novelties(self, images: Tensor, features: Tensor) -> Iterator[Tensor]:
        if self.novelty is not None and self.card.novelty_limit is not None:
            yield self.novelty(features) / self.card.novelty_limit
        if self.gate is not None and self.card.gate is not None:
            yield judge(self.gate(images), self.card.gate.limit).novelties

    def _prepared(self, plane: Tensor) -> Tensor:
        for step in self.rest:
            plane = step(plane)
        return plane


def to_onnx(checkpoint: Checkpoint, out: Path) -> None:
    """Write an ONNX graph from ``image`` to ``probability``, ``logit`` and ``novelty``, with the card.

    Raises
    ------
    ClassifierError
        If the packages for it are not installed.
    """
    _require("onnx", "onnxscript")
    scorer = ExportedNetwork(checkpoint).eval()
    example = torch.zeros(2, 1, 300, 200)
    outputs = OUTPUTS[: len(scorer(example))]
    batch, height, width = map(torch.export.Dim, ("batch", "height", "width"))
    logging.getLogger("onnxscript").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of PyTorch's exporter about its own modules
        program = torch.onnx.export(
            scorer,
            (example,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=list(outputs),
            dynamic_shapes={"image": {0: batch, 2: height, 3: width}},
        )
    if program is None:
        raise ClassifierError(
            "PyTorch could not make an ONNX program of the model; update torch and onnxscript."
        )
    card = checkpoint.card
    program.model.metadata_props.update(card=card.model_dump_json(), sha256=card.sha256)
    program.model.doc_string = f"{card.name} {card.version}. {card.limits[0]}"
    program.save(out)


def to_bundle(checkpoint: Checkpoint, out: Path) -> None:
    """Write a MONAI bundle, for ``python -m monai.bundle run --config_file configs/inference.json``.

    The network is torchvision's own class, and every step is MONAI's or PyTorch's: the bundle does not need
    this program. It gives probabilities, without the novelty measure.

    Raises
    ------
    ClassifierError
        If the folder is not empty, or cannot be written.
    """
    if out.exists() and any(out.iterdir()):
        raise ClassifierError(f"{out} is not empty; name another folder.")
    card = checkpoint.card
    tail(card.preprocessing)  # refuses anything but numbers: MONAI will evaluate the expressions made of them
    for folder in ("configs", "models", "docs"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    state = checkpoint.model.state_dict()
    renamed = {name.replace("classifier.1.", "classifier."): tensor for name, tensor in state.items()}
    try:
        torch.save(renamed, out / "models" / "model.pt")
    except RuntimeError as error:  # by PyTorch's own writer
        raise ClassifierError(
            f"The weights cannot be written to {out}; make space, then export again."
        ) from error
    _write(out / "configs" / "metadata.json", _metadata(card))
    _write(out / "configs" / "inference.json", _inference(card))
    (out / "docs" / "card.json").write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (out / "docs" / "README.md").write_text(_README.format(card=card), encoding="utf-8")
    (out / "LICENSE").write_text(f"{card.licence}\n", encoding="utf-8")


_README = """# {card.name} {card.version}

Pneumonia on frontal chest radiographs. Trained on: {card.population}
{card.limits[0]} The whole card is in `card.json`.

    python -m monai.bundle run --config_file configs/inference.json --bundle_root . --dataset_dir FOLDER

scores the JPEG and 8-bit PNG files in FOLDER and writes `eval/predictions.csv`: file and probability. The
decision is positive from {card.threshold} on. DICOM needs a decoder that applies windows, look-up tables and
MONOCHROME1: with PACS Node installed, `classifier.model.transforms.DecodeRadiograph` takes the place of
the first three transforms.
"""


def _metadata(card: ModelCard) -> dict[str, Any]:
    side = _side(card)
    image = {**_IMAGE_FORMAT, "spatial_shape": [side, side]}
    return {
        "schema": _SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": f"Exported from {card.name} {card.version}, SHA-256 {card.sha256}"},
        **_versions(),
        "task": "Pneumonia classification of frontal chest radiographs",
        "description": card.data,
        "authors": "PACS Node",
        "copyright": card.licence,
        "data_source": card.data,
        "data_type": "JPEG or PNG",
        "intended_use": " ".join(card.limits),
        "eval_metrics": {metric.name: metric.value for metric in card.metrics},
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": _LOGIT_FORMAT}},
    }


def _versions() -> dict[str, Any]:
    return {
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {
            "torchvision": version("torchvision").partition("+")[0],
            "pytorch-ignite": "0.5.0",
            "pillow": version("pillow"),
        },
    }


_IMAGE_FORMAT: dict[str, Any] = {
    "type": "image",
    "format": "magnitude",
    "modality": "CR",
    "num_channels": 3,
    "spatial_shape": [],
    "dtype": "float32",
    "value_range": [],
    "is_patch_data": False,
    "channel_def": {"0": "grey", "1": "grey", "2": "grey"},
}
_LOGIT_FORMAT: dict[str, Any] = {
    "type": "probabilities",
    "format": "classes",
    "num_channels": 1,
    "spatial_shape": [],
    "dtype": "float32",
    "value_range": [],
    "is_patch_data": False,
    "channel_def": {"0": "logit of pneumonia, before it is calibrated"},
}


def _inference(card: ModelCard) -> dict[str, Any]:
    """Return the configuration that MONAI runs: its own parts, and the steps and calibration of the card."""
    calibrated = f"$lambda logit: torch.sigmoid((logit + {card.offset!r}) / {card.temperature!r})"
    return {
        **_PLACES,
        **_NETWORK,
        "preprocessing": {"_target_": "Compose", "transforms": [*_LOADING, *_steps(card)]},
        **_FEEDING,
        "postprocessing": {"_target_": "Lambdad", "keys": "pred", "func": calibrated},
        **_RUNNING,
    }


_PLACES: dict[str, Any] = {
    "imports": ["$from pathlib import Path", "$from PIL import Image", "$from PIL import ImageOps"],
    "bundle_root": ".",
    "dataset_dir": ".",
    "output_dir": "$@bundle_root + '/eval'",
    "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
    "files": "$sorted(str(p) for p in Path(@dataset_dir).rglob('*')"
    " if p.suffix.lower() in ('.jpg', '.jpeg', '.png'))",
}
_NETWORK: dict[str, Any] = {
    "network_def": {
        "_target_": "torchvision.models.DenseNet",
        "growth_rate": 32,
        "block_config": [6, 12, 24, 16],
        "num_init_features": 64,
        "num_classes": 1,
    },
    "network": "$@network_def.to(@device)",
}
_FEEDING: dict[str, Any] = {
    "dataset": {
        "_target_": "Dataset",
        "data": "$[{'image': file} for file in @files]",
        "transform": "@preprocessing",
    },
    "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 16, "num_workers": 0},
    "inferer": {"_target_": "SimpleInferer"},
}
_RUNNING: dict[str, Any] = {
    "handlers": [
        {
            "_target_": "CheckpointLoader",
            "load_path": "$@bundle_root + '/models/model.pt'",
            "load_dict": {"model": "@network"},
            "map_location": "@device",
            "strict": True,
        },
        {
            "_target_": "ClassificationSaver",
            "output_dir": "@output_dir",
            "filename": "predictions.csv",
            "batch_transform": "$lambda batch: [item['image'].meta for item in batch]",
            "output_transform": "$lambda output: [item['pred'] for item in output]",
        },
    ],
    "evaluator": {
        "_target_": "SupervisedEvaluator",
        "device": "@device",
        "val_data_loader": "@dataloader",
        "network": "@network",
        "inferer": "@inferer",
        "postprocessing": "@postprocessing",
        "val_handlers": "@handlers",
    },
    "run": ["$@evaluator.run()"],
}


_LOADING: tuple[dict[str, Any], ...] = (
    {
        "_target_": "LoadImaged",
        "keys": "image",
        "reader": "PILReader",
        # Transparent pixels are black, as in `classifier.decoding.decode`
        "converter": "$lambda image: (lambda i: Image.alpha_composite(Image.new('RGBA', i.size, 'black'),"
        " i.convert('RGBA')) if i.has_transparency_data else i)(ImageOps.exif_transpose(image))"
        ".convert('RGB').convert('L')",
        "reverse_indexing": False,
    },
    {"_target_": "EnsureChannelFirstd", "keys": "image"},
    {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0, "a_max": 255, "b_min": 0, "b_max": 1},
)


def _steps(card: ModelCard) -> Iterator[dict[str, Any]]:
    side, planes = _side(card), 1
    for step in card.preprocessing:
        func = f"$lambda x: {_expression(step, side, planes)}"
        yield {"_target_": "Lambdad", "keys": "image", "func": func}
        planes *= int(str(step.get("count", 1)))


def _expression(step: Mapping[str, Any], side: int, planes: int) -> str:
    """Return the step as an expression in ``x``, (planes, rows, columns)."""
    name = step["name"]
    if name == "Resize":
        size = f"({side}, {side})"
        return f"torch.nn.functional.interpolate(x[None], {size}, mode='bilinear', antialias=True)[0]"
    if name == "StretchContrast":
        stride = max(1, side // 64)
        last = planes * math.ceil(side / stride) ** 2 - 1
        low, high = (round(step[key] / 100 * last) for key in ("low", "high"))
        ranked = f"x[..., ::{stride}, ::{stride}].flatten().sort().values"
        stretched = f"((x - r[{low}]) / (r[{high}] - r[{low}]).clamp_min(1e-3)).clamp(0, 1)"
        return f"(lambda r: {stretched})({ranked})"
    if name == "Normalise":
        mean, std = (step[key] if isinstance(step[key], list) else [step[key]] for key in ("mean", "std"))
        return f"(x - torch.tensor({mean})[:, None, None]) / torch.tensor({std})[:, None, None]"
    if name == "RepeatChannel":
        return f"x.repeat({step['count']}, 1, 1)"
    raise ClassifierError(f"The preprocessing step {name!r} cannot be exported to a bundle.")


def _side(card: ModelCard) -> int:
    first: Mapping[str, Any] = next(iter(card.preprocessing), {})
    if first.get("name") != "Resize":
        raise ClassifierError("Only a model whose preprocessing begins with Resize can be exported.")
    return int(str(first["size"]))


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _require(*packages: str) -> None:
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ClassifierError(f"The package {missing[0]} is missing; pip install 'pacs-node[export]'.")
