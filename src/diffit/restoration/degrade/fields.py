"""What synthesis is made of: blur, smooth random fields, resizing. Images are (C, H, W)."""

import numpy as np
import torch
from torch import Tensor

from diffit.restoration.kernels import gaussian_line
from diffit.restoration.operators.bicubic import bicubic_rows, mirrored
from diffit.restoration.operators.circular_blur import filtered, transfer


def blurred(image: Tensor, kernel: Tensor) -> Tensor:
    """The image convolved with a (h, w) kernel; it goes on mirrored, however far."""
    rows, columns = (
        mirrored(torch.arange(-(side // 2), length + side // 2), length)
        for side, length in zip(kernel.shape, image.shape[1:], strict=True)
    )
    padded = image[:, rows][:, :, columns]
    response = transfer(kernel, tuple(padded.shape)).to(image.dtype.to_complex())
    top, left = kernel.shape[0] // 2, kernel.shape[1] // 2
    inside = (slice(top, top + image.shape[1]), slice(left, left + image.shape[2]))
    return filtered(padded, response.to(image.device))[..., *inside].reshape(image.shape)


def softened(image: Tensor, sigma: float) -> Tensor:
    """The image blurred by a Gaussian of ``sigma`` pixels."""
    line = gaussian_line(2 * max(round(3 * sigma), 1) + 1, max(sigma, 0.1))
    return blurred(blurred(image, line[None]), line[:, None])


def resized(image: Tensor, height: int, width: int) -> Tensor:
    """The image resized by bicubic interpolation, without aliasing."""
    rows, columns = bicubic_rows(image.shape[1], height), bicubic_rows(image.shape[2], width)
    return rows.to(image) @ image @ columns.to(image).T


def clouds(height: int, width: int, generator: np.random.Generator) -> Tensor:
    """(H, W) smooth random field that covers [0, 1]: octaves of noise, the coarsest the loudest."""
    field = torch.zeros(1, height, width)
    for octave in range(4):
        cells = 2 << octave
        draw = torch.from_numpy(generator.random((1, cells, cells), dtype=np.float32))
        field = field + resized(draw, height, width) / 2**octave
    return stretched(field[0])


def stretched(field: Tensor) -> Tensor:
    """The field, scaled to cover [0, 1]."""
    low, high = field.min(), field.max()
    return (field - low) / (high - low).clamp(min=1e-6)


def places(height: int, width: int) -> tuple[Tensor, Tensor]:
    """(H, 1) and (1, W) coordinates of pixels, 0 to 1 along the longer side."""
    longer = max(height, width)
    return torch.arange(height)[:, None] / longer, torch.arange(width)[None] / longer


def to_light(image: Tensor) -> Tensor:
    """[-1, 1] to [0, 1]."""
    return (image + 1) / 2


def to_image(light: Tensor) -> Tensor:
    """[0, 1] to [-1, 1]; what lies outside is clipped."""
    return light.clamp(0, 1) * 2 - 1
