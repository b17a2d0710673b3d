"""Rotary position embedding (arXiv:2104.09864), on a grid (axial, arXiv:2403.13298) or a line."""

import torch
from torch import Tensor, nn


def axial_rotation(rows: Tensor, columns: Tensor, width: int, *, base: float = 10000.0) -> Tensor:
    """(2, N, 2, width / 4): cosines and sines of each token's angles, row-major over the grid.

    Args:
        rows, columns: coordinates of the grid lines, float64; whole numbers unless the grid was
            resized. Entry (., n, 0) belongs to the row of token n, (., n, 1) to its column.
        width: channels d of a head. Angle k is the coordinate times base^(-k / (d / 4)).
        base: inverse of the lowest frequency, about.
    """
    if width % 4:
        raise ValueError(f"heads of {width} channels cannot turn on a grid; 4 must divide them")
    omega = base ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    down, across = torch.meshgrid(rows, columns, indexing="ij")
    angle = torch.stack([down.flatten(), across.flatten()], dim=-1)[..., None] * omega
    return torch.stack([angle.cos(), angle.sin()]).float()


class Rotary(nn.Module):
    """Turns each pair of channels by an angle that grows with the token's row or column.

    The first half of a head's channels turns with the row, the second with the column; inside a
    half, channel k makes a pair with channel k + d / 4. Scores then depend on displacements alone,
    and no N x N bias is needed.

    Args:
        grid: (rows, columns) of the token grid.
        width: channels d of a head, a multiple of 4.
    """

    rotation: Tensor

    def __init__(self, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        rows, columns = (torch.arange(side, dtype=torch.float64) for side in grid)
        # Kept in checkpoints: a model that was resized has other coordinates.
        self.register_buffer("rotation", axial_rotation(rows, columns, width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, heads, N, d) queries or keys to the same, turned."""
        cos, sin = self.rotation.to(x.dtype)
        first, second = x.reshape(*x.shape[:-1], 2, 2, -1).unbind(-2)
        turned = [first * cos - second * sin, second * cos + first * sin]
        return torch.stack(turned, dim=-2).flatten(-3)


def line_rotation(count: int, width: int, *, base: float = 10000.0) -> Tensor:
    """(2, N, width / 2): cosines and sines of the angles of tokens numbered 0 to ``count`` - 1.

    Args:
        count: number of tokens N.
        width: channels d of a head. Angle k is the token's number times base^(-k / (d / 2)).
        base: inverse of the lowest frequency, about.
    """
    if width % 2:
        raise ValueError(f"heads of {width} channels cannot turn; 2 must divide them")
    # On the meta device `arange` alone would bring 80 MB of libraries for symbols.
    place, k = (torch.arange(n, dtype=torch.float64, device="cpu") for n in (count, width // 2))
    angle = torch.outer(place, base ** (-k / (width // 2)))
    return torch.stack([angle.cos(), angle.sin()]).float().to(torch.get_default_device())


def turn_pairs(x: Tensor, rotation: Tensor) -> Tensor:
    """(B, heads, N, d) queries or keys, each two neighbouring channels turned as one pair.

    LLaMA's order (arXiv:2302.13971); `Rotary` pairs channel k with k + d / 4 instead.
    """
    cos, sin = rotation.to(x.dtype)
    first, second = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return torch.stack(turned, dim=-1).flatten(-2)
