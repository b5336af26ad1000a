"""The preprocessing: one chain, the same in training and in serving, built from what a checkpoint says."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Compose, RandFlip, RandRotate
from numpy.typing import NDArray
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit

from classifier.config import SHIPPED_MODEL, Eligibility
from classifier.errors import CheckpointError, NotScorable
from classifier.model.card import ModelCard
from classifier.model.checkpoint import load
from classifier.model.transforms import (
    Chain,
    DecodeRadiograph,
    Normalise,
    RepeatChannel,
    Resize,
    chain,
    refusal,
    tail,
)
from classifier.reasons import Reason
from tests.conftest import pixels, radiograph, save

SPEC: list[dict[str, Any]] = [
    {"name": "Resize", "size": 160},
    {"name": "Normalise", "mean": 0.485, "std": 0.229},
    {"name": "RepeatChannel", "count": 3},
]
RESIZE_TOLERANCE = 2e-5  # of the grey scale; one step of 8 bits is 200 times as much


@pytest.fixture(scope="module")
def card() -> ModelCard:
    """The card of the model that ships."""
    return load(SHIPPED_MODEL)[1]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Four frontal radiographs of odd shape on disk."""
    folder = tmp_path_factory.mktemp("files")
    made = []
    for number in range(4):
        image = pixels(190 + number, 157, seed=number)
        ds = radiograph(number=number, Rows=image.shape[0], Columns=image.shape[1], PixelData=image.tobytes())
        made.append(str(save(ds, folder / f"{number}.dcm")))
    return made


@pytest.fixture
def lateral(tmp_path: Path) -> str:
    """A file that is refused."""
    return str(save(radiograph(view="LL"), tmp_path / "lateral.dcm"))


def noise(rows: int, columns: int) -> NDArray[np.float32]:
    return np.random.default_rng(rows).random((1, rows, columns), np.float32)


# --- what the steps do


def test_the_chain_prints_readably() -> None:
    assert str(chain(SPEC, Eligibility(unknown_view="score", max_pixels=9))) == (
        "Chain(\n"
        "    DecodeRadiograph(rules="
        "Eligibility(unknown_body_part='refuse', unknown_view='score', max_pixels=9), size=160),\n"
        "    Resize(size=160),\n"
        "    Normalise(mean=0.485, std=0.229),\n"
        "    RepeatChannel(count=3),\n"
        ")"
    )


def test_the_chain_of_the_shipped_model_prints_what_its_card_says(card: ModelCard) -> None:
    first, decoding, *steps, last = str(chain(card.preprocessing)).splitlines()
    assert (first, decoding, last) == ("Chain(", "    DecodeRadiograph(rules=None, size=160),", ")")
    assert ", ".join(step.strip(" ,") for step in steps) == card.preprocessing_text


@pytest.mark.parametrize("shape", [(1300, 1011), (97, 211), (160, 160), (40, 36), (33, 2000)])
def test_resize_is_the_bilinear_of_pillow(shape: tuple[int, int]) -> None:
    image = noise(*shape)
    expected = Image.fromarray(image[0]).resize((160, 160), Image.Resampling.BILINEAR)
    resized = Resize(160)(image)
    assert resized.shape == (1, 160, 160)
    np.testing.assert_allclose(resized[0], np.asarray(expected), atol=RESIZE_TOLERANCE)


def test_normalise_subtracts_the_mean_and_divides_by_the_deviation() -> None:
    np.testing.assert_allclose(Normalise(0.5, 0.25)(np.array([[[0, 0.5, 1]]], np.float32)), [[[-2, 0, 2]]])


def test_repeat_channel_gives_equal_planes() -> None:
    image = noise(5, 4)
    repeated = RepeatChannel(3)(image)
    assert repeated.shape == (3, 5, 4)
    assert all(np.array_equal(plane, image[0]) for plane in repeated)


@pytest.mark.parametrize("as_input", [
    lambda image: image,
    lambda image: image.astype(np.float64),
    torch.as_tensor,
    MetaTensor,
])  # fmt: skip
def test_the_tail_gives_a_plain_float32_tensor_and_leaves_its_input_alone(as_input: Any) -> None:
    image = noise(50, 40)
    given = as_input(image.copy())
    tensor = tail(SPEC)(given)
    assert type(tensor) is torch.Tensor
    assert (tensor.dtype, tensor.shape) == (torch.float32, (3, 160, 160))
    assert np.array_equal(np.asarray(given), image)


def test_the_tail_after_decoding_is_the_serving_chain(card: ModelCard, files: list[str]) -> None:
    rules = Eligibility()
    served = chain(card.preprocessing, rules)(files[0])
    assert torch.equal(tail(card.preprocessing)(DecodeRadiograph(rules, 160)(files[0])), served)
    np.testing.assert_allclose(tail(card.preprocessing)(DecodeRadiograph(rules)(files[0])), served, atol=1e-4)
    assert torch.equal(chain(card.preprocessing, rules)(Path(files[0])), served)
    assert not torch.equal(chain(card.preprocessing, rules)(files[1]), served)


def test_one_picture_gives_one_tensor_as_jpeg_dicom_and_array(tmp_path: Path) -> None:
    """None of them stretches the contrast of a pale picture."""
    pale = pixels(120, 96, bits=8) // 2 + 60
    encoded = io.BytesIO()
    Image.fromarray(pale).save(encoded, "JPEG")
    (tmp_path / "picture.jpeg").write_bytes(encoded.getvalue())
    ds = radiograph("SC", bits=8, Rows=120, Columns=96, WindowCenter=128, WindowWidth=256)
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    ds.PixelData = encapsulate([encoded.getvalue()])
    save(ds, tmp_path / "picture.dcm")
    array = np.asarray(Image.open(encoded), np.float32)[np.newaxis] / 255
    expected = tail(SPEC)(array)
    for name in ("picture.jpeg", "picture.dcm"):
        tensor = chain(SPEC, Eligibility())(tmp_path / name)
        np.testing.assert_allclose(tensor, expected, atol=1e-5, err_msg=name)


# --- what is not understood


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("step", [
    *({"name": "Resize", "size": size} for size in (0, 31, 4097, -160, True, 160.0, "160", None, [160, 160])),
    *({"name": "Normalise", "mean": mean, "std": 1} for mean in (NAN, INF, "0", True, None)),
    *({"name": "Normalise", "mean": 0, "std": std} for std in (0, -0.2, NAN, INF, "1", None)),
    *({"name": "RepeatChannel", "count": count} for count in (0, -3, 17, True, 3.0, "3", None)),
])  # fmt: skip
def test_every_step_refuses_nonsense(step: dict[str, Any]) -> None:
    said = rf"^The preprocessing step {step['name']} is not understood: .+ must be .+\.$"
    with pytest.raises(CheckpointError, match=said):
        tail([step])


@pytest.mark.parametrize("step", [
    {"name": "Resize"},
    {"name": "Resize", "size": 160, "mode": "nearest"},
    {"name": "Normalise", "mean": 0.5},
])  # fmt: skip
def test_a_missing_or_unknown_argument_is_refused(step: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=f"step {step['name']} is not understood"):
        tail([step])


OTHERS = ["ZoomIn", "resize", "DecodeRadiograph", "Compose", "eval", "", None, ["Resize"]]


@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_can_name_no_other_step(name: Any) -> None:
    with pytest.raises(CheckpointError, match=r"is not known to this version; update the program\.$"):
        tail([*SPEC, {"name": name}])


def test_a_step_without_name_is_refused() -> None:
    with pytest.raises(CheckpointError, match="is not known"):
        chain([{"size": 160}])


# --- in training


def training(*random: Any) -> Chain:
    """Return the chain of training: random transforms between decoding and the tail."""
    return Chain([DecodeRadiograph(Eligibility(), 160), *random, *tail(SPEC).transforms])


def epoch(files: list[str], seed: int) -> torch.Tensor:
    """Return the images of one epoch, (N, 3, 160, 160)."""
    transform = training(RandFlip(prob=0.5, spatial_axis=1), RandRotate(0.2, prob=1.0))
    generator = torch.Generator().manual_seed(seed)
    return torch.cat(list(DataLoader(Dataset(files, transform), batch_size=2, generator=generator)))


def test_augmentation_in_front_of_the_tail_trains_from_files(files: list[str]) -> None:
    first = epoch(files, seed=1)
    assert (type(first), first.dtype, first.shape) == (torch.Tensor, torch.float32, (4, 3, 160, 160))
    assert torch.equal(first, epoch(files, seed=1))
    assert not torch.equal(first, epoch(files, seed=2))


def test_training_sees_the_images_that_serving_sees_but_for_augmentation(files: list[str]) -> None:
    served = torch.stack([chain(SPEC, Eligibility())(file) for file in files])
    (plain,) = DataLoader(Dataset(files, training()), batch_size=4)
    (flipped,) = DataLoader(Dataset(files, training(RandFlip(prob=1.0, spatial_axis=1))), batch_size=4)
    assert torch.equal(plain, served)
    np.testing.assert_allclose(flipped, served.flip(3), atol=1e-4)
    assert not torch.allclose(flipped, served, atol=0.1)


def test_a_refusal_leaves_the_chain_as_itself(lateral: str) -> None:
    with pytest.raises(NotScorable) as caught:
        training(RandFlip(prob=0.5))(lateral)
    assert caught.value.reason == Reason.NOT_FRONTAL


@pytest.mark.parametrize("composed", [Chain, Compose])
def test_a_refusal_is_found_under_what_monai_wraps_around_it(
    composed: type[Any], files: list[str], lateral: str
) -> None:
    transform = composed(training(RandFlip(prob=0.5)).transforms)
    with pytest.raises((NotScorable, RuntimeError)) as caught:
        list(DataLoader(Dataset([*files, lateral], transform), batch_size=2))
    found = refusal(caught.value)
    assert found is not None
    told = 'View Code Sequence is "LEFT LATERAL", View Position is "LL", Patient Orientation is "P/F"'
    assert (found.reason, found.detail) == (Reason.NOT_FRONTAL, told)


def test_another_error_is_no_refusal(files: list[str]) -> None:
    def broken(image: Any) -> Any:
        raise ZeroDivisionError

    with pytest.raises(RuntimeError) as caught:
        training(broken)(files[0])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert refusal(caught.value) is None


def test_each_channel_can_have_its_own_mean_and_deviation() -> None:
    image = np.ones((3, 2, 2), np.float32)
    out = Normalise([0.5, 0.0, 1.0], [0.5, 1, 2])(image)
    np.testing.assert_allclose(out[:, 0, 0], [1, 1, 0])


@pytest.mark.parametrize(
    ("mean", "std"),
    [([0.1, 0.2], [1, 1, 1]), ([0.1, "0"], [1, 1]), ([0.1, 0.2], [1, 0]), ([], [1]), ([0.1, NAN], 1)],
)
def test_means_and_deviations_that_do_not_fit_each_other_are_refused(mean: Any, std: Any) -> None:
    with pytest.raises(CheckpointError, match="Normalise is not understood"):
        tail([{"name": "Normalise", "mean": mean, "std": std}])
