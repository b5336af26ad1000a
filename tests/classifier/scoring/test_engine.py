"""Engines: each gives what the plain network gives, and one that does not is never used."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.visualize import CAM, GradCAM
from torch import Tensor

from classifier.config import SHIPPED_MODEL
from classifier.errors import DeviceError
from classifier.model.checkpoint import Checkpoint, load
from classifier.model.network import Network, build, pooled
from classifier.outcome import Decision, Prediction
from classifier.scoring import engine
from classifier.scoring.backends import Eager, Engine, OpenVino, Output, Plain, Recorded, padded, pieces_of
from classifier.scoring.engine import Engines, choose
from classifier.scoring.folded import Folded
from classifier.scoring.predict import Predictor
from pacs_node.demo.samples import Sample
from tests.helpers.predictors import ready

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = 64
NEAR = 2e-5  # what the order of additions may change, in units of the features
EVERY = 79  # images of the real set


@pytest.fixture(scope="module")
def network() -> Network:
    """A network without training, whose statistics are as uneven as those of a trained one."""
    torch.manual_seed(0)
    made = build("densenet121")
    for layer in made.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            for values, low, high in (
                (layer.weight, 0.5, 1.5),
                (layer.bias, -0.3, 0.3),
                (layer.running_mean, -0.3, 0.3),
                (layer.running_var, 0.5, 2),
            ):
                assert values is not None
                torch.nn.init.uniform_(values, low, high)
    made.eval().requires_grad_(False)
    return made


@pytest.fixture(scope="module")
def shipped() -> Checkpoint:
    """The model that ships."""
    return load(SHIPPED_MODEL)


@pytest.fixture(scope="module")
def drawn(drawn_studies: list[Sample]) -> list[Path]:
    """The drawn studies of the demonstration."""
    return [sample.path for sample in drawn_studies]


def images(count: int, planes: int = 3) -> Tensor:
    """Return (count, 3, SIDE, SIDE); the planes are alike if `planes` is 1."""
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, planes, SIDE, SIDE, generator=generator).expand(-1, 3, -1, -1)


def probabilities(features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Stand for a card and its novelty measure."""
    return torch.sigmoid(logits), features.square().mean(1).sqrt()


def predictor(
    checkpoint: Checkpoint, fast: Callable[[Network], Engine] | None = None, **card: Any
) -> Predictor:
    """Return a predictor that scores everything, by the plain network or with a fast engine beside it."""
    checkpoint = checkpoint._replace(card=checkpoint.card.model_copy(update=card))
    exact = Plain(checkpoint.model)
    return ready(checkpoint, None, Engines(fast(checkpoint.model) if fast else exact, exact), cautious=False)


# --- what engines give


@pytest.mark.parametrize("planes", [1, 3])
def test_the_folded_network_is_the_same_function(network: Network, planes: int) -> None:
    batch = images(2, planes)
    expected = network.embed(batch)
    found, _ = Folded(network, planes)(batch[:, :planes])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=NEAR)
    assert float(expected.std()) > 0.01


def test_a_folded_network_of_another_type_leaves_the_network_as_it_is(network: Network) -> None:
    before = {name: values.clone() for name, values in network.state_dict().items()}
    Eager(network, 1, torch.float16)
    after = network.state_dict()
    assert all(
        torch.equal(values, after[name]) and values.dtype == after[name].dtype
        for name, values in before.items()
    )


@pytest.mark.parametrize("kind", [Eager, partial(OpenVino, side=SIDE, precision="f32")])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("threads", [1, 2])
def test_an_engine_gives_what_the_plain_network_gives_for_a_batch_of_any_size(
    network: Network, kind: Callable[..., Engine], count: int, threads: int
) -> None:
    pytest.importorskip("openvino")
    batch = images(count, 1)
    torch.set_num_threads(threads)
    try:
        features, logits, maps = kind(network, 1)(batch)
    finally:
        torch.set_num_threads(1)
    expected, expected_logits, expected_maps = Plain(network)(batch)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=NEAR)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=NEAR)
    torch.testing.assert_close(maps, expected_maps, rtol=1e-4, atol=10 * NEAR)
    torch.testing.assert_close(maps.mean((1, 2)) + network.head.bias, logits, rtol=1e-4, atol=NEAR)
    assert (logits.shape, maps.shape) == ((count,), (count, SIDE // 32, SIDE // 32))
    assert float(maps.std()) > 0.001


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
def test_the_map_is_that_of_monai(shipped: Checkpoint) -> None:
    batch = images(3, 1)
    found = Plain(shipped.model)(batch).maps
    plainly: dict[str, Any] = {"upsampler": lambda _: lambda maps: maps, "postprocessing": lambda maps: maps}
    network = _WithMaps(shipped.model)
    cam = CAM(network, target_layers="last", fc_layers="network.classifier.1", **plainly)(batch)
    torch.testing.assert_close(cam[:, 0] - shipped.model.head.bias, found, rtol=1e-4, atol=1e-4)
    gradients = GradCAM(network, target_layers="last", **plainly)(batch.requires_grad_())
    for ours, theirs in zip(found, gradients[:, 0], strict=True):
        positive = ours.clamp(min=0)  # Grad-CAM keeps what speaks for the class
        factor = float(theirs.sum().detach() / positive.sum())
        assert factor > 0
        torch.testing.assert_close(theirs, factor * positive, rtol=1e-3, atol=1e-4 * float(theirs.max()))


class _WithMaps(torch.nn.Module):
    """The network with its last maps as a layer of their own, which Grad-CAM asks for."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.last = torch.nn.Identity()

    def forward(self, batch: Tensor) -> Tensor:
        logits: Tensor = self.network.classifier(pooled(self.last(self.network.maps(batch))))
        return logits


def test_a_batch_is_shared_out_evenly_in_small_pieces() -> None:
    for streams in (1, 2, 8):
        for count in range(1, 100):
            pieces = pieces_of(count, streams)
            sizes = [len(piece) for piece in torch.arange(count).tensor_split(pieces)]
            assert max(sizes) - min(sizes) <= 1
            assert max(sizes) <= 4 or pieces == 1
            assert min(sizes) >= 1


def test_batches_are_padded_to_a_few_sizes() -> None:
    sizes = [padded(count) for count in range(1, 65)]
    assert sizes[:5] == [1, 2, 4, 4, 8]
    assert all(size >= count for count, size in enumerate(sizes, 1))
    assert all(low <= high for low, high in pairwise(sizes))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("count", [1, 3, 64, 70])
def test_recorded_graphs_give_what_the_plain_network_gives(network: Network, count: int) -> None:
    moved = build("densenet121").eval().requires_grad_(False)
    moved.load_state_dict(network.state_dict())
    moved = moved.to("cuda", memory_format=torch.channels_last)
    batch = images(count, 1).cuda()
    features, logits, maps = Recorded(moved, 1, SIDE)(batch)
    expected, expected_logits, expected_maps = Plain(moved)(batch)
    torch.testing.assert_close(maps, expected_maps, rtol=0.02, atol=0.05)
    torch.testing.assert_close(features, expected, rtol=0.02, atol=0.01)
    torch.testing.assert_close(logits, expected_logits, rtol=0.02, atol=0.01)


# --- what is answered


class Rough:
    """An engine that is off by almost as much as it says, now up, now down."""

    name = "rough"
    error = 0.03

    def __init__(self, network: Network) -> None:
        self._plain = Plain(network)

    def __call__(self, batch: Tensor) -> Output:
        features, logits, maps = self._plain(batch)
        signs = torch.tensor([1.0, -1.0]).repeat(len(batch))[: len(batch)]
        return Output(features * (1 + 0.01 * signs)[:, None], logits + 0.05 * signs, maps)


class Overflowing(Rough):
    """An engine without a number for the first image of a batch."""

    def __call__(self, batch: Tensor) -> Output:
        found = self._plain(batch)
        found.logits[0] = torch.inf
        return found


KINDS: dict[str, Callable[[Network], Engine]] = {
    "torch": partial(Eager, planes=1),
    "openvino": partial(OpenVino, planes=1, side=160, precision="f32"),
    "rough": Rough,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_drawn_studies_get_the_same_answers(kind: str, shipped: Checkpoint, drawn: list[Path]) -> None:
    if kind == "openvino":
        pytest.importorskip("openvino")
    alike(predictor(shipped, KINDS[kind]).predict(drawn), predictor(shipped).predict(drawn))


def test_real_radiographs_get_the_same_answers(shared: Path, shipped: Checkpoint) -> None:
    folder = shared / "data/kermany"
    files = [*sorted((folder / "train").rglob("*.jpeg"))[::EVERY], *sorted((folder / "val").rglob("*.jpeg"))]
    assert len(files) > 80
    expected = predictor(shipped).predict(files)
    assert {p.decision for p in expected} == {Decision.POSITIVE, Decision.NEGATIVE}
    for name in ("torch", "openvino"):
        if name == "torch" or find_spec("openvino"):
            alike(predictor(shipped, KINDS[name]).predict(files), expected)


def alike(found: list[Prediction], expected: list[Prediction]) -> None:
    """Require the same decisions, and probabilities and novelties within the limits of the project."""
    assert [(p.decision, p.reason) for p in found] == [(p.decision, p.reason) for p in expected]
    scored = [(f, e) for f, e in zip(found, expected, strict=True) if e.probability is not None]
    assert [f.probability for f, _ in scored] == pytest.approx([e.probability for _, e in scored], abs=0.01)
    assert [f.novelty for f, _ in scored] == pytest.approx([e.novelty for _, e in scored], rel=0.03)


def test_what_is_near_the_threshold_is_decided_in_float32(shipped: Checkpoint, drawn: list[Path]) -> None:
    known = zip(drawn, predictor(shipped).predict(drawn), strict=True)
    scored = [(path, answer.probability) for path, answer in known if answer.probability]
    for (path, probability), shift in product(scored, (-0.005, 0.005)):
        near = min(max(probability + shift, 0.001), 0.999)
        (expected,) = predictor(shipped, threshold=near).predict([path])
        (found,) = predictor(shipped, Rough, threshold=near).predict([path])
        assert found == expected


def test_what_is_near_the_limit_of_novelty_is_measured_in_float32(
    shipped: Checkpoint, drawn: list[Path]
) -> None:
    (known,) = predictor(shipped).predict(drawn[:1])
    assert known.novelty is not None
    assert shipped.card.novelty_limit is not None
    limit = {"novelty_limit": shipped.card.novelty_limit * known.novelty / 0.99}
    (found,) = predictor(shipped, Rough, **limit).predict(drawn[:1])
    assert found.novelty == pytest.approx(0.99, abs=0.002)


def test_an_overflow_is_computed_again(shipped: Checkpoint, drawn: list[Path]) -> None:
    found = predictor(shipped, Overflowing).predict(drawn)
    assert found == predictor(shipped).predict(drawn)


# --- which one is used


def chosen(network: Network, wanted: engine.EngineName = "auto") -> Engines:
    return choose(network, 1, images(3, 1), probabilities, wanted)


def test_openvino_is_used_where_it_is_installed(network: Network) -> None:
    pytest.importorskip("openvino")
    assert chosen(network).exact.name == "OpenVINO f32"
    assert chosen(network).fast.name.startswith("OpenVINO")


def test_bfloat16_is_used_where_the_processor_has_it(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    for able in (False, True):
        capabilities = {"amx_bf16": able}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        tried: list[str] = []
        monkeypatch.setattr(
            engine, "OpenVino", lambda *args, kept=tried: kept.append(args[-1]) or Plain(args[0])
        )
        chosen(network)
        assert tried == ["f32", "bf16"][: 1 + able]


def test_torch_is_used_where_nothing_else_is_there_or_wanted(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chosen(network, "torch").fast.name == "PyTorch float32, folded"
    monkeypatch.setattr(engine, "find_spec", lambda _: None)
    assert chosen(network).fast.name == "PyTorch float32, folded"
    with pytest.raises(DeviceError, match=r"pip install 'pacs-node\[openvino\]'"):
        chosen(network, "openvino")


def test_openvino_is_refused_for_another_device(network: Network) -> None:
    with pytest.raises(DeviceError, match='set device to "cpu"'):
        choose(network, 1, images(3, 1).to("meta"), probabilities, "openvino")


@pytest.mark.parametrize("wrong", ["logits", "features", "maps", "alone", "no number"])
def test_an_engine_that_differs_is_told_and_not_used(
    wrong: str, network: Network, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Wrong(Eager):
        def __call__(self, batch: Tensor) -> Output:
            features, logits, maps = super().__call__(batch)
            is_wrong = wrong != "alone" or len(batch) == 1
            if wrong == "features":
                features = features * 1.01
            elif wrong == "maps":
                maps = maps.mT
            elif is_wrong:
                logits = logits + (torch.nan if wrong == "no number" else 0.1)
            return Output(features, logits, maps)

    monkeypatch.setattr(engine, "Eager", Wrong)
    found = chosen(network, "torch")
    assert found.fast.name == found.exact.name == "PyTorch float32"
    assert "gives other scores than the plain network" in caplog.text


def test_an_engine_that_fails_is_told_and_not_used(
    network: Network, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_args: object) -> Engine:
        raise ImportError("libopenvino.so")

    monkeypatch.setattr(engine, "find_spec", lambda _: object())
    monkeypatch.setattr(engine, "OpenVino", fail)
    with caplog.at_level(logging.WARNING):
        assert chosen(network).fast.name == "PyTorch float32, folded"
    assert "libopenvino.so" in caplog.text


def test_openvino_does_not_report_its_use(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    telemetry = pytest.importorskip("openvino_telemetry")

    def never(*_args: object, **_more: object) -> None:
        raise AssertionError

    monkeypatch.setattr(telemetry.Telemetry, "__init__", never)
    monkeypatch.setattr(telemetry.Telemetry, "send_event", never)
    OpenVino(network, 1, SIDE, "f32")(images(3, 1))
