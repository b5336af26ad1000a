"""From files to tensors: several at a time, in order, and scored as full resolution would be."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from imagecodecs import jpeg8_encode
from numpy.typing import NDArray
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000,
    UID,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from classifier.config import SHIPPED_MODEL, Eligibility
from classifier.decoding.ages import Age
from classifier.decoding.decode import decode
from classifier.errors import NotScorable
from classifier.model.checkpoint import Checkpoint, load
from classifier.model.transforms import chain, tail
from classifier.reasons import Reason
from classifier.scoring.prepare import Preparation, Ready
from pacs_node.demo.phantom import frontal_chest
from tests.conftest import radiograph, save

pytestmark = pytest.mark.usefixtures("one_thread")

RULES = Eligibility()
TOLERANCE = 0.005  # of the probability
ROWS = 1600  # which leaves JPEG 2000 no more than it must have
SYNTAXES: dict[str, UID] = {
    "native": ExplicitVRLittleEndian,
    "RLE": RLELossless,
    "JPEG Lossless": JPEGLosslessSV1,
    "JPEG-LS": JPEGLSLossless,
    "JPEG 2000 lossless": JPEG2000Lossless,
    "JPEG 2000": JPEG2000,
    "JPEG": JPEGBaseline8Bit,
}


@pytest.fixture(scope="module")
def shipped() -> Checkpoint:
    """The model that ships."""
    checkpoint = load(SHIPPED_MODEL)
    checkpoint.model.eval()
    return checkpoint


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Let torch, and thereby the preparation, use two threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def preparation(shipped: Checkpoint, two_threads: None) -> Preparation:
    """Two files at a time, for the model that ships."""
    return Preparation(chain(shipped.card.preprocessing, RULES), RULES)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Six files; the third is refused."""
    made = [radiograph(number=n, view="LL" if n == 2 else "PA") for n in range(6)]
    return [save(ds, tmp_path / f"{n}.dcm") for n, ds in enumerate(made)]


# --- several at a time


def test_files_keep_their_order_and_refusals_their_place(preparation: Preparation, files: list[Path]) -> None:
    found = preparation(files)
    refused = found.pop(2)
    assert isinstance(refused, NotScorable)
    assert refused.reason == Reason.NOT_FRONTAL
    for ready, path in zip(found, [*files[:2], *files[3:]], strict=True):
        (alone,) = preparation([path])
        assert isinstance(ready, Ready)
        assert isinstance(alone, Ready)
        assert torch.equal(ready.tensor, alone.tensor)
        assert (ready.view, ready.age) == ("PA", Age(4.0))


def test_the_tensor_is_that_of_the_chain(
    preparation: Preparation, files: list[Path], shipped: Checkpoint
) -> None:
    (ready,) = preparation(files[:1])
    assert isinstance(ready, Ready)
    assert torch.equal(ready.tensor, chain(shipped.card.preprocessing, RULES)(files[0]))


def test_a_file_that_cannot_be_read_is_no_verdict(preparation: Preparation, files: list[Path]) -> None:
    files[4].unlink()
    found = preparation(files)
    assert isinstance(found.pop(4), FileNotFoundError)
    assert isinstance(found.pop(2), NotScorable)
    assert all(isinstance(one, Ready) for one in found)


# --- scores


@pytest.fixture(scope="module")
def drawn() -> NDArray[np.uint16]:
    """A drawn radiograph with an opacity that the model is not sure of."""
    return stored(Image.fromarray((frontal_chest(2, 0.5) * 255).astype(np.uint8)), 0)


def stored(picture: Image.Image, seed: int) -> NDArray[np.uint16]:
    """Return a picture as a large radiograph with noise, (rows, columns) of 12 bits."""
    columns = round(picture.width * ROWS / picture.height)
    large = np.asarray(picture.resize((columns, ROWS), Image.Resampling.BICUBIC), np.float32)
    noise = np.random.default_rng(seed).normal(0, 8, large.shape)
    return np.clip(large * (4095 / 255) + noise, 0, 4095).astype("<u2")


def written(path: Path, values: NDArray[np.uint16], syntax: UID) -> Path:
    bits = 8 if syntax == JPEGBaseline8Bit else 12
    fitting = (values >> 4).astype("u1") if bits == 8 else values
    size = {"Rows": values.shape[0], "Columns": values.shape[1]}
    window = {"WindowCenter": 2 ** (bits - 1), "WindowWidth": 2**bits}
    ds = radiograph(bits=bits, PixelData=fitting.tobytes(), **size, **window)
    if syntax in (JPEGBaseline8Bit, JPEGLosslessSV1):
        ds.file_meta.TransferSyntaxUID = syntax
        ds.PixelData = encapsulate([_jpeg(fitting)])
        ds["PixelData"].VR = "OB"
    elif syntax == RLELossless:
        ds.compress(syntax, encoding_plugin="pydicom")
    elif syntax.is_encapsulated:
        ds.compress(syntax, j2k_cr=[10] if syntax == JPEG2000 else None)
    return save(ds, path)


def _jpeg(values: NDArray[Any]) -> bytes:
    if values.itemsize == 2:
        return bytes(jpeg8_encode(values, lossless=True, predictor=1, bitspersample=12))
    file = io.BytesIO()
    Image.fromarray(values).save(file, "JPEG", quality=92)
    return file.getvalue()


@torch.inference_mode()
def probability(shipped: Checkpoint, tensor: torch.Tensor) -> float:
    model, card, *_ = shipped
    logit = model.classifier(model.embed(tensor[None])).flatten()
    return float(torch.sigmoid((logit + card.offset) / card.temperature))


def assert_scored_alike(path: Path, shipped: Checkpoint) -> None:
    fast = probability(shipped, chain(shipped.card.preprocessing, RULES)(path))
    full = probability(shipped, tail(shipped.card.preprocessing)(decode(path)))
    assert abs(fast - full) < TOLERANCE, (path.name, fast, full)


@pytest.mark.parametrize("name", SYNTAXES)
def test_drawn_radiographs_are_scored_as_at_full_resolution(
    name: str, drawn: NDArray[np.uint16], tmp_path: Path, shipped: Checkpoint
) -> None:
    path = written(tmp_path / f"{name}.dcm", drawn, SYNTAXES[name])
    assert_scored_alike(path, shipped)


@pytest.mark.parametrize("name", SYNTAXES)
def test_real_radiographs_are_scored_as_at_full_resolution(
    name: str, shared: Path, tmp_path: Path, shipped: Checkpoint
) -> None:
    for number, source in enumerate(sorted((shared / "data/kermany/val").rglob("*.jpeg"))[2::4]):
        with Image.open(source) as image:
            values = stored(image.convert("L"), number)
        assert_scored_alike(written(tmp_path / f"{number}.dcm", values, SYNTAXES[name]), shipped)


def test_real_files_are_scored_as_at_full_resolution(shared: Path, shipped: Checkpoint) -> None:
    for source in [*(shared / "data/kermany/val").rglob("*.jpeg"), shared / "data/dicom/RG1_J2KI.dcm"]:
        assert_scored_alike(source, shipped)
