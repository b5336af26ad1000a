"""The checkpoint: what is saved comes back, and every file that is none is refused in one clear sentence."""

from __future__ import annotations

import json
import pickle
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from safetensors.torch import save as dump

from classifier.config import SHIPPED_MODEL
from classifier.errors import CheckpointError
from classifier.model.card import ModelCard, parse_card
from classifier.model.checkpoint import Checkpoint, load, load_weights, save
from classifier.model.network import build

State = dict[str, torch.Tensor]
FIRST = "features.norm0.weight"  # (64,) float32


@pytest.fixture(scope="module")
def shipped() -> Checkpoint:
    """The model that ships."""
    return load(SHIPPED_MODEL)


@pytest.fixture(scope="module")
def card(shipped: Checkpoint) -> ModelCard:
    """Its card, for weights without novelty measure and gate."""
    without = {"novelty_limit": None, "novelty_source": "", "gate": None}
    return shipped.card.model_copy(update=without)


@pytest.fixture
def state(shipped: Checkpoint) -> State:
    """Its weights, in a dictionary of the test's own."""
    return dict(shipped.model.state_dict())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where to write a checkpoint."""
    return tmp_path / "model.safetensors"


def refused(path: Path) -> str:
    """Return the sentence with which a file is refused."""
    with pytest.raises(CheckpointError) as caught:
        load(path)
    said = str(caught.value)
    assert "\n" not in said
    assert said.endswith(".")
    return said


def with_card(path: Path, text: str) -> Path:
    """Write a safetensors file with this card and a weight of no architecture: the card is judged first."""
    path.write_bytes(dump({"weight": torch.zeros(1)}, {"card": text}))
    return path


def changed(card: ModelCard, **values: Any) -> str:
    """Return the card as JSON with other values; `None` removes a key."""
    content = json.loads(card.model_dump_json()) | values
    return json.dumps({key: value for key, value in content.items() if value is not None})


# --- what is saved comes back


def test_a_saved_model_loads_as_it_was(path: Path, state: State, card: ModelCard) -> None:
    renamed = card.model_copy(update={"name": "again", "threshold": 0.25})
    saved = save(path, state, renamed)
    model, loaded, novelty, _ = load(path)
    assert novelty is None
    assert loaded == saved
    assert loaded.model_copy(update={"sha256": ""}) == renamed.model_copy(update={"sha256": ""})
    assert loaded.sha256 == sha256(path.read_bytes()).hexdigest() != card.sha256
    back = model.state_dict()
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert not model.training
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [(torch.float16, 0.001), (torch.bfloat16, 0.01), (torch.float8_e4m3fn, 0.1), (torch.float64, 0)],
)
def test_weights_of_any_precision_are_loaded_as_float32(
    kind: torch.dtype, tolerance: float, path: Path, state: State, card: ModelCard
) -> None:
    save(path, {name: t.to(kind) if t.is_floating_point() else t for name, t in state.items()}, card)
    assert load_file(path)[FIRST].dtype == kind
    model = load(path).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    torch.testing.assert_close(model.state_dict()[FIRST], state[FIRST], atol=tolerance, rtol=0)


def test_the_card_cannot_be_changed(card: ModelCard) -> None:
    with pytest.raises(ValueError, match="frozen"):
        card.threshold = 0.1


def test_the_printed_card_is_a_card(card: ModelCard) -> None:
    assert parse_card(card.model_dump_json()) == card.model_copy(update={"sha256": ""})


# --- the model that ships


def test_the_readme_of_the_shipped_model_agrees_with_its_card(card: ModelCard) -> None:
    readme = (SHIPPED_MODEL.parent / "README.md").read_text(encoding="utf-8")
    assert readme.startswith(f"# {card.name} {card.version}\n")
    assert card.sha256 == sha256(SHIPPED_MODEL.read_bytes()).hexdigest()
    assert re.findall("[0-9a-f]{64}", readme) == [card.sha256]
    assert f"`{SHIPPED_MODEL.name}`" in readme
    assert f"| Threshold | {card.threshold:g}: " in readme
    assert f"sigmoid of (logit {card.offset:+g}) / {card.temperature:g}" in readme
    for step in card.preprocessing:
        assert all(str(value) in readme for key, value in step.items() if key != "name"), step
    for metric in (one for one in card.metrics if one.measured_by == "classifier train"):
        (row,) = (line for line in readme.splitlines() if line.startswith(f"| {metric.name} |"))
        assert f"| {metric.value} | {metric.low} to {metric.high} |" in row
        assert f"{metric.images} validation images of {metric.patients} patients" in readme


def test_the_card_of_the_shipped_model_says_what_it_is_not_for(card: ModelCard) -> None:
    assert any(limit.startswith("Research use only") for limit in card.limits)
    assert any("adults" in limit for limit in card.limits)
    assert len(card.name) <= 64  # VR LO of the report


def test_preprocessing_is_told_in_one_line(card: ModelCard) -> None:
    steps = ({"name": "Resize", "size": 160}, {"name": "Normalise", "mean": 0.485, "std": 0.229})
    told = card.model_copy(update={"preprocessing": steps}).preprocessing_text
    assert told == "Resize(size=160), Normalise(mean=0.485, std=0.229)"


# --- files that are no checkpoint


def test_a_missing_file_is_named(path: Path) -> None:
    assert refused(path) == f"Cannot read the model {path}: No such file or directory; check the path."
    assert "Is a directory" in refused(path.parent)


@pytest.mark.parametrize("keep", [0, 7, 8, 1000, 100_000, 20_000_000, -1])
def test_a_truncated_file_is_damaged(keep: int, path: Path) -> None:
    path.write_bytes(SHIPPED_MODEL.read_bytes()[:keep])
    assert refused(path) == f"{path} is damaged or not a safetensors file; copy it again."


@pytest.mark.parametrize("content", [
    bytes(range(256)) * 9,
    b"\xff" * 99,
    bytes(99),
    b"PK\x03\x04" + bytes(99),
    (2).to_bytes(8, "little") + b"[]",
    (22).to_bytes(8, "little") + b'{"__metadata__": null}',
    (10**5).to_bytes(8, "little") + b"[" * 10**5,
])  # fmt: skip
def test_other_content_is_no_safetensors_file(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    assert refused(path) == f"{path} is damaged or not a safetensors file; copy it again."


def test_bytes_after_the_weights_are_damage(path: Path) -> None:
    path.write_bytes(SHIPPED_MODEL.read_bytes() + b"more")
    assert "damaged" in refused(path)


class _Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.flag,)


@pytest.mark.parametrize("by_torch", [True, False])
def test_a_pickle_is_refused_and_not_executed(by_torch: bool, path: Path, tmp_path: Path) -> None:
    bomb = {"weight": _Bomb(tmp_path / "executed")}
    if by_torch:
        torch.save(bomb, path)
    else:
        path.write_bytes(pickle.dumps(bomb))
    assert "not a safetensors file" in refused(path)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_weights(path)
    assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(bomb))
    assert (tmp_path / "executed").exists()  # it would have shown


# --- cards that are not understood


def test_weights_without_card_are_told_how_to_become_a_model(path: Path) -> None:
    path.write_bytes(dump({"weight": torch.zeros(1)}))
    assert refused(path) == f"{path} has no model card; make a model of it with `classifier pack`."
    assert load_weights(path)[0].keys() == {"weight"}


@pytest.mark.parametrize("text", ["", "{", "no JSON", "[" * 10**5, "\x00"])
def test_a_card_must_be_json(text: str, path: Path) -> None:
    assert refused(with_card(path, text)) == "The model card is not JSON; write it again."


@pytest.mark.parametrize("text", ["[]", "null", '"card"', '{"format": "other"}', '{"format": null}'])
def test_a_card_of_another_format_is_refused(text: str, path: Path) -> None:
    assert "is not of the format 'pacs-node classifier'" in refused(with_card(path, text))


@pytest.mark.parametrize("version", [0, 2, "1"])
def test_a_card_of_another_format_version_is_refused(version: Any, path: Path, card: ModelCard) -> None:
    said = refused(with_card(path, changed(card, format_version=version)))
    assert said == "The model card has another format version; update the program or pack it again."


def test_an_unknown_key_is_named(path: Path, card: ModelCard) -> None:
    said = refused(with_card(path, changed(card, normalisation="none")))
    assert said == "Correct 'normalisation' in the model card: Extra inputs are not permitted."


REQUIRED = sorted(name for name, field in ModelCard.model_fields.items() if field.is_required())


@pytest.mark.parametrize("key", REQUIRED)
def test_a_missing_key_is_named(key: str, path: Path, card: ModelCard) -> None:
    said = refused(with_card(path, changed(card, **{key: None})))
    assert said == f"Correct '{key}' in the model card: Field required."


@pytest.mark.parametrize("value", [0, 1, -0.5, 1.5, float("nan"), float("inf"), "0.5", True])
def test_a_threshold_must_lie_between_0_and_1(value: Any, path: Path, card: ModelCard) -> None:
    said = refused(with_card(path, changed(card, threshold=value)))
    assert said.startswith("Correct 'threshold' in the model card: Input should be ")


@pytest.mark.parametrize(("key", "value"), [
    ("temperature", 0),
    ("temperature", float("inf")),
    ("name", ""),
    ("version", 1),
    ("preprocessing", "Resize"),
    ("preprocessing", ["Resize"]),
    ("limits", [""]),
    ("metrics", [{"name": "AUROC", "value": float("nan"), "images": 5, "data": "d", "measured_by": "m"}]),
    ("metrics", [{"name": "AUROC", "value": 0.9, "images": 0, "data": "d", "measured_by": "m"}]),
])  # fmt: skip
def test_a_value_that_makes_no_sense_is_named(key: str, value: Any, path: Path, card: ModelCard) -> None:
    assert refused(with_card(path, changed(card, **{key: value}))).startswith(f"Correct '{key}")


# --- weights that do not belong to the card


def test_an_unknown_architecture_is_named(path: Path, state: State, card: ModelCard) -> None:
    said = refused(with_card(path, changed(card, architecture="resnet50")))
    assert said == "The architecture 'resnet50' is not known; use one of densenet121."
    with pytest.raises(CheckpointError, match="resnet50"):
        save(path, state, card.model_copy(update={"architecture": "resnet50"}))
    with pytest.raises(CheckpointError, match="resnet50"):
        build("resnet50")


@pytest.mark.parametrize("change", [
    {FIRST: None},
    {FIRST: torch.zeros(65)},
    {FIRST: torch.zeros(64, dtype=torch.int64)},
    {"more": torch.zeros(1)},
    {"classifier.1.weight": torch.zeros(2, 1024), "classifier.1.bias": torch.zeros(2)},
], ids=["missing", "shape", "type", "extra", "classes"])  # fmt: skip
def test_weights_that_do_not_fit_are_refused(
    change: dict[str, torch.Tensor | None], path: Path, state: State, card: ModelCard
) -> None:
    other = {name: tensor for name, tensor in (state | change).items() if tensor is not None}
    path.write_bytes(dump(other, {"card": card.model_dump_json()}))
    assert refused(path) == f"The weights in {path} do not fit densenet121; take the right file."
    with pytest.raises(CheckpointError, match="do not fit"):
        save(path, other, card)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_not_finite_in_float32_are_refused(
    value: float, path: Path, state: State, card: ModelCard
) -> None:
    state[FIRST] = torch.full((64,), value, dtype=torch.float64)
    path.write_bytes(dump(state, {"card": card.model_dump_json()}))
    assert refused(path) == f"{path} has weights that are not finite; train or copy it again."
    with pytest.raises(CheckpointError, match="not finite"):
        save(path, state, card)


def test_a_type_of_weights_that_torch_does_not_have_is_refused(path: Path, card: ModelCard) -> None:
    tensor = {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}
    header = json.dumps({"__metadata__": {"card": card.model_dump_json()}, FIRST: tensor}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    assert "damaged or not a safetensors file" in refused(path)


# --- whole or not at all


@contextmanager
def disk_full_after(size: int) -> Iterator[None]:
    """Let writes past `size` bytes of any file fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_leaves_the_old_file(path: Path, state: State, card: ModelCard) -> None:
    path.write_bytes(b"the old file")
    with (
        disk_full_after(5_000_000),
        pytest.raises(CheckpointError, match=r"^Cannot write .*; choose another place"),
    ):
        save(path, state, card)
    assert path.read_bytes() == b"the old file"
    assert list(path.parent.iterdir()) == [path]


def test_a_state_that_does_not_fit_leaves_the_old_file(path: Path, card: ModelCard) -> None:
    path.write_bytes(b"the old file")
    with pytest.raises(CheckpointError, match="do not fit"):
        save(path, {"weight": torch.zeros(1)}, card)
    assert path.read_bytes() == b"the old file"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, state: State, card: ModelCard) -> None:
    with pytest.raises(CheckpointError, match=r"Cannot write .*nowhere.*: No such file or directory"):
        save(tmp_path / "nowhere" / "model.safetensors", state, card)
    with pytest.raises(CheckpointError, match="Cannot write"):
        save(tmp_path, state, card)
    assert not list(tmp_path.iterdir())
