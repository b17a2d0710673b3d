"""Tasks that have an operator: any denoiser solves them, with the methods of this package."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from diffit.errors import UsageError
from diffit.restoration import kernels, masks
from diffit.restoration.degrade import noise as noises
from diffit.restoration.operators import (
    BlockSensing,
    BlurDecimation,
    Channels,
    CircularBlur,
    Clip,
    Fourier,
    Identity,
    Jpeg,
    Mask,
    Operator,
    PhaseRetrieval,
    Quantise,
    Radon,
    WalshHadamard,
    average_pooling,
    bicubic,
    colorization,
    enlarge,
    separable_blur,
)
from diffit.restoration.task import Picture, Shape, Task

LOST = 0.01
"""Below this singular value a blur is taken to have erased: the measurement holds nothing there."""


def denoise(level: int) -> Task:
    about = f"Gaussian noise of standard deviation {level} (of 255)"
    return _fixed(f"denoise-{level}", about, Identity, noise=2 * level / 255)


def pool(factor: int) -> Task:
    about = f"super-resolution: means of {factor} x {factor} pixels"
    return _fixed(f"sr{factor}", about, lambda s: average_pooling(s, factor), show=_enlarged)


def reduce_bicubic(factor: int) -> Task:
    about = f"super-resolution: bicubic reduction by {factor}"
    return _fixed(f"sr{factor}-bicubic", about, lambda s: bicubic(s, factor), show=_enlarged)


def blur_and_decimate(factor: int) -> Task:
    about = f"super-resolution: Gaussian blur, then one pixel in {factor} x {factor}"
    kernel = kernels.gaussian(7, 0.8 * factor)

    def build(shape: Shape) -> Operator:
        return BlurDecimation(shape, kernel, factor)

    return _fixed(f"sr{factor}-blur", about, build, show=_enlarged_corners)


def inpaint(name: str, about: str, mask: Callable[[int, int, np.random.Generator], Tensor]) -> Task:
    def build(shape: Shape, generator: np.random.Generator) -> Operator:
        return Mask(shape, mask(shape[1], shape[2], generator))

    return Task(name, f"inpainting: {about}", build, varies=True)


def inpaint_random(percent: int) -> Task:
    if not 0 < percent < 100:
        raise UsageError(f"inpaint-random-{percent:02}: give a percentage from 1 to 99")

    def mask(height: int, width: int, generator: np.random.Generator) -> Tensor:
        return masks.random(height, width, generator, missing=percent / 100)

    return inpaint(f"inpaint-random-{percent:02}", f"{percent} % of the pixels are missing", mask)


def deblur(name: str, about: str, rows: Tensor, columns: Tensor | None = None) -> Task:
    return _fixed(name, about, lambda s: separable_blur(s, rows, columns, floor=LOST))


def deblur_gauss(sigma: int) -> Task:
    line = kernels.gaussian_line(6 * sigma + 1, sigma)
    return deblur(f"deblur-gauss-{sigma}", f"Gaussian blur of {sigma} pixels", line)


def sense(ratio: int) -> Task:
    def build(shape: Shape, generator: np.random.Generator) -> Operator:
        # Coefficient 0 is the mean; without it no method could know how bright the image is.
        others = 1 + generator.permutation(shape[1] * shape[2] - 1)
        return WalshHadamard(shape, ratio, torch.from_numpy(np.concatenate([[0], others])))

    about = f"compressed sensing: 1 in {ratio} Walsh-Hadamard coefficients"
    return Task(f"cs{ratio}", about, build, show=_inverted, varies=True)


def sense_blocks(ratio: int) -> Task:
    def build(shape: Shape, generator: np.random.Generator) -> Operator:
        return BlockSensing(shape, ratio, generator)

    about = f"compressed sensing: 64 / {ratio} random products of 8 x 8 pixels"
    return Task(f"cs{ratio}-block", about, build, show=_inverted, varies=True)


def jpeg(quality: int) -> Task:
    about = f"JPEG compression of quality {quality}"
    return _fixed(f"jpeg-{quality}", about, lambda s: Jpeg(s, quality))


def quantise(bits: int) -> Task:
    about = f"{bits} bits a pixel and channel"
    return _fixed(f"quantize-{bits}", about, lambda s: Quantise(s, bits))


def resonance(acceleration: int) -> Task:
    def build(shape: Shape, generator: np.random.Generator) -> Operator:
        lines = masks.frequency_lines(shape[2], generator, acceleration=acceleration)
        return Fourier(shape, lines.expand(shape[1], -1))

    about = f"magnetic resonance: 1 in {acceleration} lines of frequencies, one coil"
    return Task(f"mri{acceleration}", about, build, show=_inverted, varies=True)


def tomography(views: int) -> Task:
    angles = torch.arange(views, dtype=torch.float64) * math.pi / views
    about = f"computed tomography: {views} parallel projections"
    return _fixed(f"ct{views}", about, lambda s: Radon(s, angles), show=_back_projected)


def limited_tomography(views: int) -> Task:
    angles = torch.arange(views, dtype=torch.float64) * math.pi * 2 / 3 / views
    about = f"computed tomography: {views} parallel projections within 120 degrees"
    return _fixed(f"ct{views}-limited", about, lambda s: Radon(s, angles), show=_back_projected)


def _fixed(
    name: str,
    about: str,
    build: Callable[[Shape], Operator],
    *,
    noise: float = 0.0,
    show: Picture | None = None,
) -> Task:
    return Task(name, about, lambda shape, _: build(shape), noise=noise, show=show)


def _motion(shape: Shape, generator: np.random.Generator) -> Operator:
    # A quarter of the image, as the published 61 pixels are of 256.
    size = min(max(min(shape[1:]) // 4, 3), 61) // 2 * 2 + 1
    return CircularBlur(shape, kernels.motion(size, generator), floor=LOST)


def _colorize(shape: Shape) -> Operator:
    if shape[0] != 3:
        raise UsageError("colorize needs images with three channels; these have one")
    return colorization(shape)


def _bands(shape: Shape) -> Operator:
    """Six neighbouring bands, each a smooth mixture of the channels: badly conditioned."""
    place = torch.linspace(0, shape[0] - 1, 6, dtype=torch.float64)[:, None]
    mixing = (-((place - torch.arange(shape[0])) ** 2) / 2).exp()
    return Channels(shape, mixing / mixing.sum(1, keepdim=True))


def _enlarged(operator: Operator, y: Tensor) -> Tensor:
    return enlarge(y, operator.shape[1] // y.shape[2])


def _enlarged_corners(operator: Operator, y: Tensor) -> Tensor:
    return enlarge(y, operator.shape[1] // y.shape[2], corner=True)


def _grey(operator: Operator, y: Tensor) -> Tensor:
    return y.expand(-1, operator.shape[0], -1, -1)


def _inverted(operator: Operator, y: Tensor) -> Tensor:
    inverse: Callable[[Tensor], Tensor] = getattr(operator, "pinv")  # noqa: B009
    return inverse(y)


def _back_projected(operator: Operator, y: Tensor) -> Tensor:
    assert isinstance(operator, Radon)
    return operator.back_projection(y)


MEASURED = (
    denoise(25),
    Task(
        "denoise-poisson",
        "photon noise, 30 photons in a white pixel",
        lambda shape, _: Identity(shape),
        noise=noises.poisson_std(30),
        spoil=noises.poisson(30),
    ),
    Task(
        "denoise-speckle",
        "multiplicative noise of standard deviation 0.2",
        lambda shape, _: Identity(shape),
        noise=noises.speckle_std(0.2),
        spoil=noises.speckle(0.2),
    ),
    pool(2),
    pool(4),
    pool(8),
    reduce_bicubic(2),
    reduce_bicubic(4),
    blur_and_decimate(2),
    inpaint("inpaint-box", "a square of half the side is missing", masks.box),
    inpaint("inpaint-random", "half of the pixels are missing", masks.random),
    inpaint("inpaint-freeform", "brush strokes are missing", masks.freeform),
    _fixed(
        "inpaint-half",
        "inpainting: the right half is missing",
        lambda s: Mask(s, masks.half(s[1], s[2])),
    ),
    _fixed(
        "inpaint-nth",
        "inpainting: one pixel in 2 x 2 is known",
        lambda s: Mask(s, masks.every_nth(s[1], s[2])),
    ),
    _fixed(
        "outpaint",
        "outpainting: only the middle is known",
        lambda s: Mask(s, masks.outpainting(s[1], s[2])),
    ),
    deblur("deblur-gauss", "Gaussian blur of 1.6 pixels", kernels.gaussian_line(9, 1.6)),
    deblur("deblur-uniform", "box blur of 5 x 5 pixels", torch.full((5,), 0.2)),
    deblur(
        "deblur-aniso",
        "Gaussian blur of 3 pixels across, 1 down",
        kernels.gaussian_line(5, 1.0),
        kernels.gaussian_line(9, 3.0),
    ),
    Task("deblur-motion", "blur of a shaking camera", _motion, varies=True),
    _fixed("colorize", "grey images become coloured", _colorize, show=_grey),
    sense(2),
    sense(4),
    sense_blocks(4),
    jpeg(10),
    quantise(3),
    _fixed("hdr", "over-exposure: twice the contrast, clipped", Clip),
    _fixed(
        "phase",
        "phase retrieval: magnitudes of frequencies",
        lambda s: PhaseRetrieval(s),
        show=_inverted,
    ),
    resonance(4),
    tomography(30),
    limited_tomography(30),
    _fixed("unmix", "six spectral bands that overlap", _bands, noise=0.05, show=_inverted),
)

FAMILIES: dict[str, Callable[[int], Task]] = {
    r"denoise-(\d{1,3})": denoise,
    r"sr([2-9]|1\d)": pool,
    r"sr([2-9]|1\d)-bicubic": reduce_bicubic,
    r"sr([2-4])-blur": blur_and_decimate,
    r"inpaint-random-(\d\d)": inpaint_random,
    r"deblur-gauss-([1-9])": deblur_gauss,
    r"cs([2-9]|1\d)": sense,
    r"cs([2-9]|1\d)-block": sense_blocks,
    r"jpeg-(\d{1,3})": jpeg,
    r"quantize-(\d)": quantise,
    r"mri([2-9]|1\d)": resonance,
    r"ct([1-9]\d{0,2})": tomography,
    r"ct([1-9]\d{0,2})-limited": limited_tomography,
}
"""Names with a number in them, which may be another."""
