"""What can compute features, logits and maps: PyTorch, plain or folded, its CUDA graphs, and OpenVINO."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from classifier.model.network import Network, activation, pooled
from classifier.scoring.folded import Folded

EXACT = 0.001  # may differ by the order in which float32 numbers are added
_FLOAT16, _BFLOAT16 = 0.005, 0.02
_PIECE = 4  # images that one thread scores at once: more do not stay in its cache
_MOST_STREAMS = 8
_SIZES = (64, 32, 16, 8, 4, 2, 1)  # of batches, in which CUDA graphs are recorded


class Output(NamedTuple):
    """What an engine returns of B images, all float32 on their device.

    Attributes
    ----------
    features
        (B, F).
    logits
        (B,).
    maps
        (B, h, w): what each place of the image adds to the logit; see `classifier.model.network.activation`.
    """

    features: Tensor
    logits: Tensor
    maps: Tensor


class Engine(Protocol):
    """What computes.

    Attributes
    ----------
    name
        By what, and in which type.
    error
        By how much a probability, and the ratio of novelties, may be off those of the plain network.
    """

    name: str
    error: float

    def __call__(self, images: Tensor, /) -> Output:
        """Return what it computes of images (B, 3, S, S) float32."""
        ...


class Plain:
    """The network as it is.

    Parameters
    ----------
    network
        On its device, in evaluation mode.
    half
        Whether to compute in float16 where that serves; rather than bfloat16: eight times finer, which four
        decimals need.
    """

    def __init__(self, network: Network, *, half: bool = False) -> None:
        self.name = "PyTorch float16" if half else "PyTorch float32"
        self.error = _FLOAT16 if half else EXACT
        self._network = network
        self._half = half

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Output:
        """Score images."""
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, dtype=torch.float16, enabled=self._half):
            maps = self._network.maps(images)
            features = pooled(maps)
            logits = self._network.classifier(features)  # (B, 1)
        return Output(features.float(), logits.float().flatten(), activation(maps, self._network.head))


class Eager:
    """The folded network.

    Parameters
    ----------
    network
        In evaluation mode, float32, on its device; it stays as it is.
    planes
        1 if the three planes of all images are the same, else 3.
    dtype
        In which the convolutions compute: float32 or float16.
    """

    def __init__(self, network: Network, planes: int, dtype: torch.dtype = torch.float32) -> None:
        self.name = f"PyTorch {str(dtype).removeprefix('torch.')}, folded"
        self.error = EXACT if dtype == torch.float32 else _FLOAT16
        self._planes, self._dtype = planes, dtype
        self._folded = Folded(network, planes).to(dtype).to(memory_format=torch.channels_last)
        self._folded.last.float()
        self._folded.head = self._head = network.head

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Output:
        """Score images."""
        planes = images[:, : self._planes].to(self._dtype).contiguous(memory_format=torch.channels_last)
        features, maps = self._folded(planes)
        return Output(features, self._head(features).flatten(), maps)


class Recorded:
    """The folded network in float16 on CUDA, as graphs of its kernels that are launched at once.

    One by one, the 500 kernels take longer to launch than a small batch takes to compute. A graph is recorded
    for each of a few sizes; other batches are padded, larger ones split.

    Parameters
    ----------
    network, planes
        As for `Eager`.
    side
        Of the images, in pixels.
    """

    def __init__(self, network: Network, planes: int, side: int) -> None:
        self.name = "PyTorch float16, folded, CUDA graphs"
        self._eager = Eager(network, planes, torch.float16)
        self.error = self._eager.error
        device = next(network.parameters()).device
        with torch.cuda.device(device), torch.inference_mode():
            pool = torch.cuda.graph_pool_handle()
            self._graphs = {size: self._record(size, side, device, pool) for size in _SIZES}

    def _record(
        self, size: int, side: int, device: torch.device, pool: Any
    ) -> tuple[torch.cuda.CUDAGraph, Tensor, Output]:
        images = torch.zeros(size, 3, side, side, device=device)
        beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(beside):  # whatever allocates or chooses kernels must be over before
            for _ in range(3):
                self._eager(images)
        torch.cuda.current_stream(device).wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            found = self._eager(images)
        return graph, images, found

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Output:
        """Score images."""
        found = [self._replay(piece) for piece in torch.split(images, _SIZES[0])]
        return Output(*map(torch.cat, zip(*found, strict=True)))

    def _replay(self, images: Tensor) -> Output:
        count = len(images)
        graph, inputs, output = self._graphs[padded(count)]
        inputs[:count].copy_(images)
        graph.replay()
        return Output(*(tensor[:count].clone() for tensor in output))


def padded(count: int) -> int:
    """Return the smallest size of those recorded that holds `count` images."""
    return min(size for size in _SIZES if size >= count)


class OpenVino:
    """The folded network, run by OpenVINO on the processor.

    A batch is shared out among streams of few threads, which never wait for each other; one too small for
    that is computed by all threads together.

    Parameters
    ----------
    network, planes
        As for `Eager`.
    side
        Of the images, in pixels.
    precision
        ``"f32"`` or ``"bf16"``.
    """

    def __init__(self, network: Network, planes: int, side: int, precision: str) -> None:
        import openvino  # noqa: PLC0415 - an extra

        from classifier.scoring.openvino_graph import graph  # noqa: PLC0415

        self.name = f"OpenVINO {precision}"
        self.error = _BFLOAT16 if precision == "bf16" else EXACT
        self._planes = planes
        self._head = network.head
        threads = torch.get_num_threads()
        self._streams = min(threads, _MOST_STREAMS)
        options = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": precision,
            "ENABLE_CPU_PINNING": False,  # the other processes of the node need the same cores
        }
        core, made = openvino.Core(), graph(Folded(network, planes), side)
        self._together = core.compile_model(made, "CPU", options | {"NUM_STREAMS": 1})
        self._shared = core.compile_model(made, "CPU", options | {"NUM_STREAMS": self._streams})

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Output:
        """Score images."""
        pieces = pieces_of(len(images), self._streams)
        compiled = self._together if pieces == 1 else self._shared
        requests = []
        for piece in images[:, : self._planes].tensor_split(pieces):
            requests.append(compiled.create_infer_request())
            requests[-1].start_async([piece.contiguous().numpy()], share_inputs=True)
        for request in requests:
            request.wait()
        features, maps = (
            torch.cat([torch.from_numpy(request.get_output_tensor(at).data) for request in requests])
            for at in range(2)
        )
        return Output(features, self._head(features).flatten(), maps)


def pieces_of(count: int, streams: int) -> int:
    """Return into how many pieces a batch is cut, for the streams to end together."""
    if count < streams:
        return 1
    return min(count, math.ceil(count / (_PIECE * streams)) * streams)
