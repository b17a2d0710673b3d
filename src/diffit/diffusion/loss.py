"""One loss for every formulation, the bound of a learned variance, and weights by noise level."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diffit.diffusion.denoiser import Denoiser, over
from diffit.diffusion.formulation import Formulation
from diffit.diffusion.posterior import (
    gaussian_kl,
    log_variance,
    log_variance_bounds,
    pixel_nll,
)
from diffit.distributed import double

LossWeight = Callable[[Tensor], Tensor]
"""(B,) sigma to the (B,) weight of the squared error in the network's own space."""


COARSE_WEIGHTS: dict[int, tuple[float, ...]] = {
    0: (),
    1: (1 / 4,),
    2: (1 / 4, 1 / 2),
    3: (1 / 8, 1 / 4, 1 / 2),
}
"""Number of coarser resolutions: their weights in the loss, the coarsest first, as DiMR has them;
nobody has published three."""


class Loss(NamedTuple):
    """Means over channels and pixels, (B,) each.

    Attributes:
        total: weighted mse, plus that of coarser resolutions, plus the bound, plus that of the
            masked pass, if there are such.
        mse: mean square of F - target, unweighted, at the finest resolution.
        bound: variational bound in bits per dimension; None without learned variance.
    """

    total: Tensor
    mse: Tensor
    bound: Tensor | None


class Lesson(NamedTuple):
    """What a teacher says of a batch, and how much it counts.

    Attributes:
        prediction: (B, C, H, W) in the space of the student's network.
        share: of the loss that is the distance to it.
    """

    prediction: Tensor
    share: float


def denoising_loss(
    denoiser: Denoiser,
    clean: Tensor,
    noise: Tensor,
    sigma: Tensor,
    label: Tensor | None = None,
    image: Tensor | None = None,
    *,
    weight: LossWeight | None = None,
    coarse_weights: Sequence[float] | None = None,
    augment: Tensor | None = None,
    keys: Tensor | None = None,
    seen: Tensor | None = None,
    lesson: Lesson | None = None,
) -> Loss:
    """Loss of each image of a batch; in every row of the table it is the paper's own.

    A network that predicts at several resolutions is taught all of them (DiMR, arXiv:2406.09416):
    the coarser ones learn `coarser` of the finest target.

    Args:
        clean: (B, C, H, W) images.
        noise: (B, C, H, W) unit-normal draws.
        sigma: (B,) noise levels; float64 on the CPU is best.
        label, image, augment, keys: as in `Denoiser.forward`.
        weight: multiplies the squared error, see `LOSS_WEIGHTS`; the bound is not weighted.
        coarse_weights: of the coarser resolutions, the coarsest first; None for `COARSE_WEIGHTS`.
        seen: (B, N) patches that a network with masked training is shown in a second forward
            pass, whose loss is added to the total of the first, as MDT is trained
            (arXiv:2303.14389). Both passes see the same noise.
        lesson: moves the target by its share towards what a teacher says: but for a constant, the
            gradient knows no difference to a weighted sum of the two squared errors. The mse is
            that to the target itself.
    """
    sigma = sigma.to(double(sigma.device))
    x = shown_state(denoiser.formulation, clean, noise, sigma, image)
    pyramid = denoiser.pyramid(x, sigma, label, image, augment=augment, keys=keys)
    formulation = denoiser.formulation
    loss = _loss_of(pyramid, formulation, clean, noise, sigma, weight, lesson, coarse_weights)
    if seen is None:
        return loss
    raw = denoiser.raw(x, sigma, label, image, augment=augment, keys=keys, seen=seen)
    masked = _loss_of([raw], formulation, clean, noise, sigma, weight, lesson)
    return loss._replace(total=loss.total + masked.total)


def noisy(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """What a denoiser is shown: (B, C, H, W) images and unit noise, (B,) sigma."""
    return clean + over(sigma, clean) * noise


def shown_state(
    formulation: Formulation, clean: Tensor, noise: Tensor, sigma: Tensor, image: Tensor | None
) -> Tensor:
    """`noisy`, or the state of a method that leads from the degraded ``image`` to the clean one."""
    if formulation.bridge is None:
        return noisy(clean, noise, sigma)
    if image is None:
        raise ValueError(f"{formulation.name} starts from a degraded image; give it")
    return formulation.bridge.state(clean, image, noise, sigma)


def _loss_of(
    pyramid: Sequence[Tensor],
    formulation: Formulation,
    clean: Tensor,
    noise: Tensor,
    sigma: Tensor,
    weight: LossWeight | None,
    lesson: Lesson | None,
    coarse_weights: Sequence[float] | None = None,
) -> Loss:
    """The loss of one forward pass, whose predictions come coarse to fine."""
    *coarse, raw = pyramid
    channels = clean.shape[1]
    prediction, rest = raw[:, :channels], raw[:, channels:]
    target = network_target(formulation, clean, noise, sigma)
    mse = error = _per_image((prediction - target) ** 2)
    if lesson is not None:
        target = torch.lerp(target, lesson.prediction, lesson.share)
        error = _per_image((prediction - target) ** 2)
    total = error + _coarse_errors(coarse, target, coarse_weights) if coarse else error
    if weight is not None:
        total = weight(sigma).to(mse) * total
    if not formulation.learned_variance:
        return Loss(total, mse, None)
    # The bound teaches the variance alone: it is too noisy a teacher for the mean.
    still, fraction = prediction.detach(), (rest + 1) / 2
    bound = variational_bound(formulation, clean, noise, sigma, still, fraction)
    return Loss(total + bound, mse, bound)


def coarser(target: Tensor, edge: int) -> Tensor:
    """What a network should say on a grid ``edge`` times coarser: sums of blocks over their edge.

    White noise of unit variance so becomes white noise of unit variance (a mean would shrink it).
    The map is linear, hence right for every formulation: the best coarse prediction is the same
    map of the best fine one. The clean part of a target, as in v or flow matching, is a coarse
    image whose values are ``edge`` times larger.

    Args:
        target: (B, C, H, W).
        edge: 2, 4, ...: H and W are multiples of it, or odd; then blocks are one larger and
            overlap, as in the release of DiMR.

    Returns:
        (B, C, H / edge, W / edge), rounded up where odd.
    """
    height, width = target.shape[2:]
    if edge == 1:
        return target
    if height % edge == width % edge == 0:
        return F.avg_pool2d(target, edge) * edge
    if not (height % 2 and width % 2) or edge % 2:
        raise ValueError(
            f"{height} x {width} cannot be made {edge} times coarser; multiples of it can, and "
            "odd sizes by even numbers"
        )
    side = edge + 1
    sums = F.avg_pool2d(target, side, stride=edge, padding=side // 2) * side**2
    return sums / side


def network_target(formulation: Formulation, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """What F should say, (B, C, H, W).

    ((1 - skip) / out) clean - (skip sigma / out) noise, the coefficients in float64: the form
    (clean - skip x) / out would lose its digits at small sigma.
    """
    skip, out, _, _ = formulation.scalings(sigma.to(double(sigma.device)))
    return over((1 - skip) / out, clean) * clean - over(skip * sigma / out, clean) * noise


def variational_bound(
    formulation: Formulation,
    clean: Tensor,
    noise: Tensor,
    sigma: Tensor,
    prediction: Tensor,
    fraction: Tensor,
) -> Tensor:
    """One term of the variational bound, in bits per dimension (arXiv:2006.11239, Eq. 5).

    KL of the step's true posterior from the learned one; at the lowest level the likelihood of
    the pixels. Times the number of steps it estimates the whole bound (without its prior term).

    Args:
        formulation: one with discrete levels; sigma lies on them.
        prediction: (B, C, H, W) the network's F.
        fraction: (B, C, H, W) place of the log variance between its bounds, see `Estimate`.

    Returns:
        (B,)
    """
    sigma = sigma.to(double(sigma.device))
    lower, above = _neighbours(formulation, sigma)
    low, high = log_variance_bounds(sigma, lower, above)
    learned = log_variance(fraction, over(low, clean), over(high, clean))

    target = network_target(formulation, clean, noise, sigma)
    # The error of the estimate, without the cancellation in estimate - clean.
    error = over(formulation.scalings(sigma).out, clean) * (prediction - target)
    kl = gaussian_kl(over(1 - (lower / sigma) ** 2, clean) * error, over(low, clean), learned)
    bound = _per_image(kl)
    # Few images of a batch lie at the lowest level: the costly likelihood is theirs alone.
    lowest = (lower == 0).nonzero().flatten().to(clean.device)
    if len(lowest):
        pixels, off, log = clean[lowest], error[lowest], learned[lowest]
        bound = bound.index_copy(0, lowest, _per_image(pixel_nll(pixels, pixels + off, log)))
    return bound / math.log(2)


def unweighted(formulation: Formulation) -> LossWeight:
    """1 everywhere: the row's own loss."""
    return torch.ones_like


def min_snr(formulation: Formulation, *, gamma: float = 5.0) -> LossWeight:
    """Min-SNR (arXiv:2303.09556): weight min(1 / sigma^2, gamma) of the clean image's error.

    The error of the clean image is out^2 times that of the network, so this is min(SNR, gamma) /
    SNR for noise prediction and min(SNR, gamma) / (SNR + 1) for v, as in the paper.
    """

    def weight(sigma: Tensor) -> Tensor:
        return formulation.scalings(sigma).out ** 2 * (sigma**-2).clamp(max=gamma)

    return weight


def p2(formulation: Formulation, *, k: float = 1.0, gamma: float = 1.0) -> LossWeight:
    """P2 (arXiv:2204.00227): weight 1 / (k + SNR)^gamma of the noise's error, SNR = 1 / sigma^2.

    The error of the noise is out^2 / sigma^2 times that of the network.
    """

    def weight(sigma: Tensor) -> Tensor:
        return (formulation.scalings(sigma).out / sigma) ** 2 * (k + sigma**-2) ** -gamma

    return weight


LOSS_WEIGHTS: dict[str, Callable[..., LossWeight]] = {
    "none": unweighted,
    "min-snr": min_snr,
    "p2": p2,
}
"""Name: a function of the formulation (and keywords of its own) that makes a weight."""


def _coarse_errors(
    coarse: Sequence[Tensor], target: Tensor, weights: Sequence[float] | None
) -> Tensor:
    """(B,): the weighted sum of the mean squares at the coarser resolutions."""
    chosen = COARSE_WEIGHTS[len(coarse)] if weights is None else weights
    if len(chosen) != len(coarse):
        raise ValueError(
            f"there are {len(chosen)} coarse weights, but the network predicts at {len(coarse)} "
            "coarser resolutions; give one for each"
        )
    terms = [
        w * _per_image((each - coarser(target, target.shape[-1] // each.shape[-1])) ** 2)
        for w, each in zip(chosen, coarse, strict=True)
    ]
    return torch.stack(terms).sum(0)


def _neighbours(formulation: Formulation, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The trained levels below (0 at the end) and above each sigma."""
    if formulation.levels is None:
        raise ValueError(f"formulation {formulation.name} has no steps, so its bound has no terms")
    rungs = formulation.levels.to(sigma)
    step = (rungs.log() - sigma.log()[:, None]).abs().argmin(1)
    padded = torch.cat([rungs.new_zeros(1), rungs])
    return padded[step], rungs[(step + 1).clamp(max=len(rungs) - 1)]


def _per_image(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1)
