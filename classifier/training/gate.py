"""Training of the gate, which tells images like the training images from strangers.

Both are changed at random in the same way before the gate sees them: crop, stretch, processing, exposure,
sharpness, borders, and the grey levels of another image. What differs between machines and hospitals is then
on both sides, and the gate has to look for what differs between bodies.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.fusion import fuse_conv_bn_eval

from classifier.model.card import Kind
from classifier.model.gate import SIDE, Gate, shrunk, strangeness
from classifier.model.transforms import Chain, Spec, tail
from classifier.training.augment import Augment, Strength
from classifier.training.strangers import Album, heated, made_up

STRENGTH = Strength(
    rotation=8,
    shear=4,
    zoom=1.3,
    stretch=1.25,
    shift=0.07,
    curve=0.15,
    brightness=0.1,
    blur=1.0,
    border=0.1,
    detail=3.0,
    noise=0.04,
    patches=1,
)
_SHARES: dict[Kind, float] = {"known": 0.44, "adult": 0.27, "turned": 0.14, "inverted": 0.07, "other": 0.08}
_MADE_UP = 400  # pictures, beside those at hand
_UNCHANGED = 0.12  # share of a batch
_REGREYED = 0.4  # share of a batch whose grey levels come from another image
_FRAMED = 0.2  # share of a batch that gets the outer ring of another image
_WIDEST_FRAME = 10  # pixels of 80
_MIRRORED = 0.15  # a mirrored chest is no stranger
_SMOOTHING = 0.02  # of the labels
_AT_ONCE = 256

TURNS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x.rot90(1, (-2, -1)),
    lambda x: x.rot90(2, (-2, -1)),
    lambda x: x.rot90(3, (-2, -1)),
    lambda x: x.flip(-2),
    lambda x: x.transpose(-2, -1),
)
"""By a quarter, a half, three quarters; upside down; rows and columns exchanged."""


@dataclass(frozen=True)
class GateRecipe:
    """How a gate is trained.

    Attributes
    ----------
    steps, batch_size, learning_rate
        Of AdamW with one cycle.
    balance
        Columns of the strangers' manifest: those of rare combinations are drawn more often.
    """

    steps: int = 600
    batch_size: int = 128
    learning_rate: float = 4e-3
    seed: int = 0
    balance: tuple[str, ...] = ()


@dataclass(frozen=True)
class Material:
    """What a gate is trained on.

    Attributes
    ----------
    known
        Training images of the model.
    too
        Images that shall pass as known, though the model was not trained on them.
    strangers
        By kind; ``"adult"`` and ``"other"`` can be given, the other kinds are made of those at hand.
    """

    known: Tensor
    too: Tensor
    strangers: Mapping[Kind, Album]

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What the gate is to tell apart."""
        adult: tuple[Kind, ...] = ("adult",) if "adult" in self.strangers else ()
        return ("known", *adult, "turned", "inverted", "other")


def train_gate(
    material: Material,
    preprocessing: Spec,
    recipe: GateRecipe,
    told: Callable[[int, float], None] = lambda _step, _loss: None,
) -> Gate:
    """Train a gate.

    Parameters
    ----------
    material
        All images as the network sees them, (N, 1, S, S) uint8.
    preprocessing
        Of the model's card.
    told
        Called after each step with its number and loss.
    """
    torch.manual_seed(recipe.seed)
    network = _Trainable(len(material.kinds))
    optimizer = torch.optim.AdamW(network.parameters(), recipe.learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=recipe.steps)
    batches = _Batches(material, preprocessing, recipe)
    for step in range(1, recipe.steps + 1):
        images, targets = batches.draw()
        loss = cross_entropy(network(images), targets, label_smoothing=_SMOOTHING)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        told(step, float(loss.detach()))
    return network.folded()


@torch.inference_mode()
def strangeness_of(gate: Gate, images: Tensor, preprocessing: Spec) -> Tensor:
    """Return the log odds (N,) of a stranger for images (N, 1, S, S) uint8, or float32 in 0..1."""
    after = Chain(tail(preprocessing).transforms[1:])
    pieces = torch.split(images, _AT_ONCE)
    found = [strangeness(gate(torch.vmap(after)(_floats(piece)))) for piece in pieces]
    return torch.cat(found)


class _Trainable(nn.Module):
    """The gate with batch normalisation behind each convolution."""

    def __init__(self, kinds: int) -> None:
        super().__init__()
        self.gate = Gate(kinds)
        self.norms = nn.ModuleList(nn.BatchNorm2d(_convolution(c).out_channels) for c in self.gate.layers)
        self.dropout = nn.Dropout(0.3)

    def forward(self, images: Tensor) -> Tensor:
        maps = images[:, :1]
        for layer, norm in zip(self.gate.layers, self.norms, strict=True):
            maps = torch.relu(norm(layer(maps)))
        logits: Tensor = self.gate.head(self.dropout(maps.mean((2, 3))))
        return logits

    def folded(self) -> Gate:
        """Return the gate with the normalisations as part of its convolutions."""
        gate = self.eval().gate
        pairs = zip(gate.layers, self.norms, strict=True)
        gate.layers = nn.ModuleList(
            fuse_conv_bn_eval(_convolution(c), norm)  # type: ignore[arg-type]
            for c, norm in pairs
        )
        return gate.eval().requires_grad_(False)


class _Batches:
    """Draws what the gate is shown."""

    def __init__(self, material: Material, preprocessing: Spec, recipe: GateRecipe) -> None:
        self._material, self._size = material, recipe.batch_size
        self._rng = np.random.default_rng(recipe.seed)
        self._generator = torch.Generator().manual_seed(recipe.seed)
        self._augment = Augment(SIDE, STRENGTH)
        self._after = Chain(tail(preprocessing).transforms[1:])
        self._adults = material.strangers.get("adult")
        self._chances = _chances(self._adults, recipe.balance)
        made = made_up(_MADE_UP, material.known.shape[-1], self._rng)
        others = material.strangers.get("other")
        self._others = [made] if others is None else [made, others.images]
        self._greys = self._sorted_greys()

    def draw(self) -> tuple[Tensor, Tensor]:
        """Return images (B, 3, 80, 80), as the network's preprocessing leaves them, and kinds (B,) int64."""
        parts = [self._of_kind(kind, count) for kind, count in self._counts().items()]
        images = torch.cat(parts)
        targets = torch.cat([torch.full((len(part),), number) for number, part in enumerate(parts)])
        images = torch.where(self._chosen(len(images), _MIRRORED), images.flip(-1), images)
        changed = self._changed(images)
        inverted = (targets == self._material.kinds.index("inverted"))[:, None, None, None]
        return torch.vmap(self._after)(torch.where(inverted, 1 - changed, changed)), targets

    def _counts(self) -> dict[Kind, int]:
        kinds = self._material.kinds
        counts = {kind: round(self._size * _SHARES[kind]) for kind in kinds}
        counts["known"] += self._size - sum(counts.values())
        return counts

    def _of_kind(self, kind: Kind, count: int) -> Tensor:
        if kind == "known":
            return self._known(count)
        if kind == "adult":
            return self._adult(count)
        if kind == "other":
            return torch.cat([self._other() for _ in range(count)])
        chests = self._chests(count)
        if kind == "inverted":
            return chests
        return torch.cat([TURNS[self._rng.integers(len(TURNS))](image[None]) for image in chests])

    def _known(self, count: int) -> Tensor:
        """Return training images and, one in twenty, one of those that shall pass too."""
        too = count // 20 if len(self._material.too) else 0
        return torch.cat([self._some(self._material.known, count - too), self._some(self._material.too, too)])

    def _adult(self, count: int) -> Tensor:
        assert self._adults is not None
        return _floats(self._adults.images[self._rng.choice(len(self._adults), count, p=self._chances)])

    def _chests(self, count: int) -> Tensor:
        """Return known ones and adults, half and half."""
        adults = count // 2 if self._adults is not None else 0
        parts = [self._some(self._material.known, count - adults)]
        return torch.cat([*parts, self._adult(adults)] if adults else parts)

    def _other(self) -> Tensor:
        """Return one picture, (1, 1, S, S): made up, at hand, or a chest under a heat map."""
        choice = self._rng.integers(len(self._others) + 1)
        if choice < len(self._others):
            return self._some(self._others[choice], 1)
        return heated(self._chests(1)[0], self._rng)[None]

    def _some(self, images: Tensor, count: int) -> Tensor:
        chosen = self._rng.integers(max(1, len(images)), size=count)
        return _floats(images[torch.from_numpy(chosen)])

    def _changed(self, images: Tensor) -> Tensor:
        """Change most of the images: (B, 1, S, S) to (B, 1, 80, 80)."""
        changed = self._augment(images, self._generator, len(images), slice(None))
        changed = self._framed(self._regreyed(changed))
        kept = self._chosen(len(images), _UNCHANGED).flatten()
        changed[kept] = shrunk(images[kept])
        return changed

    def _regreyed(self, images: Tensor) -> Tensor:
        """Move the grey levels of some images towards those of another image, known or an adult."""
        at = torch.nonzero(self._chosen(len(images), _REGREYED).flatten()).flatten()
        flat = images[at].flatten(1)
        wanted = self._greys[torch.randint(len(self._greys), (len(at),), generator=self._generator)]
        matched = torch.empty_like(flat).scatter_(1, flat.argsort(1), wanted)
        weight = torch.rand(len(at), 1, generator=self._generator)
        images = images.clone()
        images[at] = torch.lerp(flat, matched, weight).view(-1, *images.shape[1:])
        return images

    def _framed(self, images: Tensor) -> Tensor:
        """Give some images the outer ring of another one: collimation and markers are the hospital's."""
        count = len(images)
        widths = torch.randint(1, _WIDEST_FRAME + 1, (count, 1, 1, 1), generator=self._generator)
        place = torch.arange(SIDE)
        edge = torch.minimum(place, SIDE - 1 - place)
        ring = torch.minimum(edge[:, None], edge[None]) < widths  # (B, 1, 80, 80)
        others = images[torch.randperm(count, generator=self._generator)]
        return torch.where(ring & self._chosen(count, _FRAMED), others, images)

    def _sorted_greys(self) -> Tensor:
        """Return the grey levels of some images in their order, (N, 80 * 80)."""
        half = 400
        known = self._material.known[:: math.ceil(len(self._material.known) / half)]
        parts = [known]
        if self._adults is not None:
            parts.append(self._adults.images[:: math.ceil(len(self._adults) / half)])
        return shrunk(_floats(torch.cat(parts))).flatten(1).sort(1).values

    def _chosen(self, count: int, share: float) -> Tensor:
        return torch.rand(count, 1, 1, 1, generator=self._generator) < share


def _chances(album: Album | None, balance: Sequence[str]) -> np.ndarray | None:
    """Return how often each image is drawn: by the root of how rare its combination of columns is."""
    if album is None or not balance:
        return None
    groups = album.groups(balance)
    counts = Counter(groups)
    chances = np.array([counts[group] ** -0.5 for group in groups])
    return np.asarray(chances / chances.sum())


def leave_one_out(album: Album, column: str) -> Iterator[tuple[str, Album, Album]]:
    """Yield each value of a column, the album without its patients, and the album of it alone."""
    values = [group[0] for group in album.groups([column])]
    for value in sorted(set(values)):
        inside = [i for i, own in enumerate(values) if own == value]
        patients = {album.patients[i] for i in inside}
        rest = [i for i, patient in enumerate(album.patients) if patient not in patients]
        yield value, album.those(rest), album.those(inside)


def _floats(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images


def _convolution(layer: nn.Module) -> nn.Conv2d:
    assert isinstance(layer, nn.Conv2d)
    return layer
