"""Feature extractors: what turns images into the vectors that distances compare.

An extractor is a parameter of every figure; its name, weights and resizing are part of the result.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor

from diffit.config import nearest
from diffit.errors import CheckpointError, UsageError
from diffit.evaluation import classifiers, dino, weights
from diffit.evaluation.inception import LAYERS, PARTIAL, SPATIAL, Inception, Taps, fold
from diffit.evaluation.pixels import DINO_TEXT, PROTOCOLS, Protocol, for_dino

UNVERIFIED = "last blocks unverified"
"""The note on results of Inception's blocks Mixed_7b and Mixed_7c and its classifier, until these
have been compared with another implementation on real weights. The others have been."""
INCEPTION_NAMES = ("inception", *(f"inception-{layer}" for layer in LAYERS if layer != "2048"))
NAMES = (*INCEPTION_NAMES, "dinov2", *classifiers.NAMES)


class Features(NamedTuple):
    """What an extractor gives for (B, C, H, W) images."""

    pool: Tensor
    """(B, D) float32, the features that are compared."""
    logits: Tensor | None
    """(B, K) class scores, where there are classes."""
    spatial: Tensor | None
    """(B, S) features by position, where the network has them."""


class Recipe(NamedTuple):
    """The arguments of `open_features`, so that another process can open the same extractor."""

    name: str
    weights_file: Path | None
    protocol: str
    dino: str
    device: str


@dataclass(frozen=True)
class Extractor:
    """A named function from uint8 images to features."""

    name: str
    dims: int
    hash: str
    """sha256 of the file of weights."""
    protocol: str
    resize: str
    """How images are brought to the network's size, in words."""
    distance: str
    """What the Frechet distance over these features is called. Only Inception's 2048 are FID."""
    suffix: str
    """Appended to the names of all other figures; empty for Inception's 2048 features."""
    classes: tuple[str, ...]
    """Names of the classes that `logits` score; empty if they have no names."""
    notes: tuple[str, ...]
    spatial_dims: int
    """Dimensions of the spatial features, 0 where there are none."""
    function: Callable[[Tensor], Features]
    device: torch.device
    scores: bool = False
    """Whether `logits` are those of the Inception Score."""
    costly: bool = False
    """Whether features are worth keeping for another day."""
    rule: str = ""
    """What decides the numbers beside name and weights: protocols may agree in it."""
    used: str = ""
    """Whose figures are measured this way."""
    recipe: Recipe | None = None

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Features:
        """(B, C, H, W) uint8, C = 1 or 3, any size, to features on the extractor's device."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"images are {images.dtype} {tuple(images.shape)}, not uint8 (B, 1 or 3, H, W)"
            )
        return self.function(images.to(self.device))

    @property
    def identity(self) -> str:
        """Extractors of one identity give the same numbers."""
        return f"{self.name} {self.hash} {self.rule or self.protocol} {self.device.type}"

    def title(self, metric: str) -> str:
        """The full name of a figure over these features, e.g. `FID` or `KID (digits-cnn)`."""
        if metric == "fd":
            return self.distance
        if metric == "sfd":
            return "FD-mixed_6d-spatial" if self.suffix else "sFID"
        return (metric.upper() if metric in ("kid", "is") else metric) + self.suffix


def open_features(
    name: str,
    *,
    weights_file: Path | None = None,
    protocol: str = "pytorch-fid",
    dino: str = dino.LARGE,
    download: bool = False,
    device: torch.device | str = "cpu",
) -> Extractor:
    """The extractor ``name`` (see `NAMES`); UsageError or CheckpointError says what is missing.

    Args:
        name: `inception` for the 2048 features of FID, `inception-768` and the like for those of
            an earlier layer, `dinov2`, or a small classifier that ships with the package.
        weights_file: file of the weights; None takes the shipped or cached one.
        protocol: a name in `PROTOCOLS`; for Inception alone.
        dino: folder or hub id of DINOv2's weights.
        download: fetch weights that are not cached.
    """
    if name not in NAMES:
        raise UsageError(f"--features {name!r} is unknown; {nearest(name, list(NAMES))}")
    if protocol not in PROTOCOLS:
        raise UsageError(
            f"--protocol {protocol!r} is unknown; {nearest(protocol, list(PROTOCOLS))}"
        )
    recipe = Recipe(name, weights_file, protocol, dino, str(device))
    if name in classifiers.NAMES:
        path = weights_file or classifiers.shipped(name)
        return replace(_classifier(name, path, torch.device(device)), recipe=recipe)
    if name == "dinov2":
        return replace(_dinov2(dino, torch.device(device), download=download), recipe=recipe)
    path = weights_file or weights.inception_file(download=download)
    return replace(_inception(name, path, protocol, torch.device(device)), recipe=recipe)


def load_inception(path: Path) -> tuple[Inception, str]:
    """Inception and its file's sha256, from pytorch-fid's file, or a folded or partial one."""
    try:
        state, digest = weights.read_weights(path)
        state = fold(state)
        network = Inception(partial="fc.weight" not in state)
        network.load_state_dict(state)
    except (SafetensorError, KeyError, RuntimeError) as error:
        first = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"{path} does not fit Inception-v3 of 2015 ({first}); take {weights.INCEPTION_URL}"
        ) from None
    return network.eval(), digest


class _Tapped:
    """Inception behind one protocol; layers of the same images share a pass."""

    def __init__(self, network: Inception, rule: Protocol) -> None:
        self._network, self._rule = network, rule
        self._last: tuple[Tensor, Taps] | None = None

    def __call__(self, images: Tensor) -> Taps:
        if self._last is None or self._last[0] is not images:
            # Convolutions on CPUs are about twice as fast in this memory layout.
            x = self._rule(images).contiguous(memory_format=torch.channels_last)
            self._last = images, self._network(x)
        return self._last[1]


@lru_cache(maxsize=2)
def _loaded(path: Path, _changed: int, device: torch.device) -> tuple[Inception, str]:
    network, digest = load_inception(path)
    return network.to(device), digest


@lru_cache(maxsize=8)
def _tapped(network: Inception, protocol: str) -> _Tapped:
    return _Tapped(network, PROTOCOLS[protocol])


def _inception(name: str, path: Path, protocol: str, device: torch.device) -> Extractor:
    if not path.is_file():
        weights.read_weights(path)  # says what is wrong
    network, digest = _loaded(path, path.stat().st_mtime_ns, device)
    layer = name.removeprefix("inception").removeprefix("-") or "2048"
    if layer == "2048" and network.partial:
        raise UsageError(
            f"{path} ends at Mixed_7a and gives no 2048 features; choose --features "
            f"inception-768 or inception-{PARTIAL}, which are not FID, or give the whole weights"
        )
    rule, tapped = PROTOCOLS[protocol], _tapped(network, protocol)

    def function(images: Tensor) -> Features:
        taps = tapped(images)
        return Features(taps.pools[layer], taps.logits, taps.spatial)

    return Extractor(
        name=name,
        dims=LAYERS[layer],
        hash=digest,
        protocol=protocol,
        resize=rule.text,
        rule=rule.resizing,
        used=rule.used,
        scores=layer == "2048",
        costly=True,
        distance=_distance_name(layer),
        suffix="" if layer == "2048" else f" ({name})",
        classes=(),
        notes=(UNVERIFIED,) if layer == "2048" else (f"features of {name}, not comparable to FID",),
        spatial_dims=SPATIAL,
        function=function,
        device=device,
    )


def _distance_name(layer: str) -> str:
    """FID for the 2048 features alone; all others are named by their layer."""
    if layer == "2048":
        return "FID"
    return f"FD-{layer}-{LAYERS[layer]}" if layer == PARTIAL else f"FD-{layer}"


def _dinov2(source: str, device: torch.device, *, download: bool) -> Extractor:
    network, digest = dino.load_dino(source, download=download)
    network.to(device)  # type: ignore[arg-type]
    name, distance = dino.name_of(network)
    notes = () if name == "dinov2" else (f"{name} is not ViT-L/14, on which FD-DINOv2 is defined",)
    return Extractor(
        name=name,
        dims=network.config.hidden_size,
        hash=digest,
        protocol="dinov2",
        resize=DINO_TEXT,
        used="FD-DINOv2 (arXiv:2306.04675), nearer to what people see than FID",
        distance=distance,
        suffix=f" ({name})",
        classes=(),
        notes=notes,
        spatial_dims=0,
        costly=True,
        function=lambda images: Features(dino.class_token(network, for_dino(images)), None, None),
        device=device,
    )


def _classifier(name: str, path: Path, device: torch.device) -> Extractor:
    network, digest = classifiers.load_classifier(path)
    network.to(device)
    config = network.config

    def function(images: Tensor) -> Features:
        features, logits = network(images)
        return Features(features, logits, None)

    colour = "grey" if config.channels == 1 else "colour"
    return Extractor(
        name=name,
        dims=config.features,
        hash=digest,
        protocol="area",
        resize=f"area average to {config.size}, {colour}",
        distance=f"FD ({name})",
        suffix=f" ({name})",
        classes=config.classes,
        notes=(f"features of the small classifier {name}, not comparable to FID",),
        spatial_dims=0,
        function=function,
        device=device,
    )
