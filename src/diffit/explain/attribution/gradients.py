"""Maps from gradients by the pixels, for any classifier that can be differentiated."""

import torch
from torch import Tensor

from diffit import draws
from diffit.explain.attribution.slopes import image_slopes
from diffit.explain.classifier import Classifier, fit


def gradient_input(
    classifier: Classifier, images: Tensor, labels: Tensor, *, create_graph: bool = False
) -> Tensor:
    """Gradient times pixel, summed over the channels (arXiv:1605.01713).

    Pixels are counted from mid grey, the 0 of images in [-1, 1].

    Args:
        classifier: can be differentiated.
        images: (B, C, H, W) in [-1, 1].
        labels: (B,) int64, the class to explain.
        create_graph: the map may be differentiated by the images.

    Returns:
        (B, h, w) at the size that the classifier looks at; signed.
    """
    with torch.set_grad_enabled(create_graph):
        images = fit(images, classifier.shape)
    slope = image_slopes(classifier, images, labels, create_graph=create_graph)
    with torch.set_grad_enabled(create_graph):
        return (slope * images).sum(1)


def integrated_gradients(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int = 32,
    baseline: float = -1.0,
    create_graph: bool = False,
) -> Tensor:
    """Gradient averaged on the way from a plain image, times that way (arXiv:1703.01365).

    The map of an image sums to its class score less that of the plain image, up to the error of
    the sum of midpoints, which falls with the square of ``steps``.

    Args:
        classifier: can be differentiated.
        images: (B, C, H, W) in [-1, 1].
        labels: (B,) int64, the class to explain.
        steps: points on the way, each a forward and a backward pass.
        baseline: value of the plain image in [-1, 1]; -1 is black. Around a plain grey of 0 the
            tokens are nearly 0 and a layer norm makes the score steep: many more steps are needed.
        create_graph: the map may be differentiated by the images.

    Returns:
        (B, h, w) at the size that the classifier looks at, summed over the channels; signed.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; at least one is needed")
    with torch.set_grad_enabled(create_graph):
        way = fit(images, classifier.shape) - baseline
        total = torch.zeros_like(way)
        for step in range(steps):
            point = baseline + way * ((step + 0.5) / steps)
            total = total + image_slopes(classifier, point, labels, create_graph=create_graph)
        return (way * total).sum(1) / steps


def smoothgrad(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    samples: int = 16,
    sigma: float = 0.3,
    seed: int = 0,
    create_graph: bool = False,
) -> Tensor:
    """Size of the gradient averaged over noisy copies of an image (arXiv:1706.03825).

    All images get the same noise, so that a map depends on its image and ``seed`` alone.

    Args:
        classifier: can be differentiated.
        images: (B, C, H, W) in [-1, 1].
        labels: (B,) int64, the class to explain.
        samples: noisy copies, each a forward and a backward pass.
        sigma: standard deviation of the noise, for pixels in [-1, 1]; the paper advises 10 to 20 %
            of the range, which is 0.2 to 0.4 here.
        seed: from which the noise follows.
        create_graph: the map may be differentiated by the images.

    Returns:
        (B, h, w) at the size that the classifier looks at, absolute values summed over the
        channels; not negative.
    """
    if samples < 1 or not sigma >= 0:
        raise ValueError(f"samples is {samples}, sigma {sigma}; they must be at least 1 and 0")
    noise = draws.normal(seed, range(samples), "smoothgrad", classifier.shape).to(images)
    with torch.set_grad_enabled(create_graph):
        images = fit(images, classifier.shape)
        total = torch.zeros_like(images)
        for sample in noise:
            noisy = images + sigma * sample
            total = total + image_slopes(classifier, noisy, labels, create_graph=create_graph)
        return (total / samples).abs().sum(1)
