"""Feature extractors: what turns images into the vectors that distances compare.

An extractor is a parameter of every figure; its name, weights and resizing are part of the result.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor

from diffit.config import nearest
from diffit.errors import CheckpointError, UsageError
from diffit.evaluation import classifiers, weights
from diffit.evaluation.inception import LAYERS, PARTIAL, SPATIAL, Inception, Taps, fold
from diffit.evaluation.resize import Rows, half_pixel, legacy, resize

INPUT = 299
UNVERIFIED = "last blocks unverified"
"""The note on results of Inception's blocks Mixed_7b and Mixed_7c and its classifier, until these
have been compared with another implementation on real weights. The others have been."""
INCEPTION_NAMES = ("inception", *(f"inception-{layer}" for layer in LAYERS if layer != "2048"))
NAMES = (*INCEPTION_NAMES, *classifiers.NAMES)


class Features(NamedTuple):
    """What an extractor gives for (B, C, H, W) images."""

    pool: Tensor
    """(B, D) float32, the features that are compared."""
    logits: Tensor | None
    """(B, K) class scores, where there are classes."""
    spatial: Tensor | None
    """(B, S) features by position, where the network has them."""


@dataclass(frozen=True)
class Protocol:
    """How an image is brought before Inception: resized to 299, then (x - shift) / scale."""

    rows: Rows
    shift: float
    scale: float
    text: str

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 to (B, 3, 299, 299) float32; grey is repeated."""
        x = (resize(images, INPUT, self.rows) - self.shift) / self.scale
        return x.expand(-1, 3, -1, -1)


_LEGACY = Protocol(legacy, 128, 128, "bilinear without half-pixel centres (TensorFlow 1) to 299")
PROTOCOLS = {
    "pytorch-fid": Protocol(half_pixel, 127.5, 127.5, "bilinear with half-pixel centres to 299"),
    "adm": _LEGACY,
    # EDM's detector reproduces the graph's own resizing: the same numbers by another route.
    "edm": _LEGACY,
}


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

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Features:
        """(B, C, H, W) uint8, C = 1 or 3, any size, to features on the extractor's device."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"images are {images.dtype} {tuple(images.shape)}, not uint8 (B, 1 or 3, H, W)"
            )
        return self.function(images.to(self.device))

    def title(self, metric: str) -> str:
        """The full name of a figure over these features, e.g. `FID` or `KID (digits-cnn)`."""
        if metric == "fd":
            return self.distance
        return (metric.upper() if metric == "kid" else metric) + self.suffix


def open_features(
    name: str,
    *,
    weights_file: Path | None = None,
    protocol: str = "pytorch-fid",
    download: bool = False,
    device: torch.device | str = "cpu",
) -> Extractor:
    """The extractor ``name`` (see `NAMES`); UsageError or CheckpointError says what is missing.

    Args:
        name: `inception` for the 2048 features of FID, `inception-768` and the like for those of
            an earlier layer, or a small classifier that ships with the package.
        weights_file: file of the weights; None takes the shipped or cached one.
        protocol: a name in `PROTOCOLS`; for Inception alone.
        download: fetch Inception's weights if they are not cached.
    """
    if name not in NAMES:
        raise UsageError(f"--features {name!r} is unknown; {nearest(name, list(NAMES))}")
    if protocol not in PROTOCOLS:
        raise UsageError(
            f"--protocol {protocol!r} is unknown; {nearest(protocol, list(PROTOCOLS))}"
        )
    if name in classifiers.NAMES:
        return _classifier(name, weights_file or classifiers.shipped(name), torch.device(device))
    path = weights_file or weights.inception_file(download=download)
    return _inception(name, path, protocol, torch.device(device))


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


def _inception(name: str, path: Path, protocol: str, device: torch.device) -> Extractor:
    network, digest = load_inception(path)
    layer = name.removeprefix("inception").removeprefix("-") or "2048"
    if layer == "2048" and network.partial:
        raise UsageError(
            f"{path} ends at Mixed_7a and gives no 2048 features; choose --features "
            f"inception-768 or inception-{PARTIAL}, which are not FID, or give the whole weights"
        )
    network.to(device)
    rule = PROTOCOLS[protocol]

    def function(images: Tensor) -> Features:
        # Convolutions on CPUs are about twice as fast in this memory layout.
        taps: Taps = network(rule(images).contiguous(memory_format=torch.channels_last))
        return Features(taps.pools[layer], taps.logits, taps.spatial)

    return Extractor(
        name=name,
        dims=LAYERS[layer],
        hash=digest,
        protocol=protocol,
        resize=rule.text,
        distance=_distance_name(layer),
        suffix="" if layer == "2048" else f" ({name})",
        classes=(),
        notes=(UNVERIFIED,) if layer == "2048" else (f"features of {name}, not comparable to FID",),
        spatial_dims=SPATIAL,
        function=function,
        device=device,
    )


def _distance_name(layer: str) -> str:
    """FID for 2048; pytorch-fid's own earlier layers FID-D; FD- for what has no standard name."""
    if layer == "2048":
        return "FID"
    return f"FD-{layer}-{LAYERS[layer]}" if layer == PARTIAL else f"FID-{layer}"


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
