"""Images larger than a model: overlapping tiles whose estimates are blended at every level.

The noise belongs to the whole image, and so does the path: a tile is a crop of the one noisy image,
and what the model makes of it is a vote on those pixels. Methods and operators never see a tile.
Averaging the estimates at every level is MultiDiffusion (arXiv:2302.08113, Eq. 5); its weights fall
off towards the border of a tile here, where a model sees least of the surroundings.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from diffit.diffusion.denoiser import Denoise
from diffit.errors import UsageError

MAX_SEAM = 1.1
"""A `seam` above this can be seen."""

Side = tuple[int, int]


def tiled(denoise: Denoise, size: Side, *, overlap: int, batch: int = 64) -> Denoise:
    """The denoiser of images of one size as one of images of that size and all larger ones.

    Where a gradient is asked for, the estimates are computed again on the way back instead of
    being kept, so that memory is bounded by ``batch`` tiles either way.

    Args:
        denoise: (N, C, h, w) tiles and their sigma, () or (N,), to the clean tiles, for any N.
        size: (h, w) of a tile.
        overlap: pixels that neighbours share at least, from 0 to half a tile.
        batch: tiles that are computed at once.

    Raises:
        UsageError: an overlap that is none; later, an image smaller than a tile.
    """
    if not 0 <= overlap <= min(size) // 2:
        raise UsageError(
            f"tiles of {size[0]} x {size[1]} cannot overlap by {overlap} pixels; give 0 to "
            f"{min(size) // 2}"
        )
    if batch < 1:
        raise UsageError(f"{batch} tiles at once are none; give 1 or more")

    def blended(x: Tensor, sigma: Tensor) -> Tensor:
        places = corners((x.shape[-2], x.shape[-1]), size, overlap)
        if len(places) == 1:
            return denoise(x, sigma)
        shares = _shares((x.shape[-2], x.shape[-1]), size, overlap).to(x)
        total = torch.zeros_like(x)
        jobs = [(b, place) for b in range(len(x)) for place in range(len(places))]
        for first in range(0, len(jobs), batch):
            some = jobs[first : first + batch]
            crops = [(b, slice(None), *_window(places[place], size)) for b, place in some]
            tiles = torch.stack([x[crop] for crop in crops])
            level = sigma if sigma.ndim == 0 else sigma[[b for b, _ in some]]
            votes = _estimate(denoise, tiles, level)
            for crop, (_, place), vote in zip(crops, some, votes, strict=True):
                total[crop] += shares[place] * vote
        return total

    return blended


def corners(image: Side, size: Side, overlap: int) -> list[Side]:
    """(top, left) of each tile, row by row; the last of a row or column ends with the image."""
    if image[0] < size[0] or image[1] < size[1]:
        raise UsageError(
            f"the image is {image[0]} x {image[1]} pixels, and the model works on {size[0]} x "
            f"{size[1]}; give an image at least as large"
        )
    rows, columns = (_starts(n, k, overlap) for n, k in zip(image, size, strict=True))
    return [(top, left) for top in rows for left in columns]


def seam(image: Tensor, size: Side, overlap: int) -> float:
    """How much steeper images are across the borders of tiles than elsewhere: 1 is no seam.

    The mean absolute difference of neighbouring pixels of which one lies in a tile and the other
    beyond it, over that of all other neighbours, for (B, C, H, W) images.
    """
    across: list[Tensor] = []
    within: list[Tensor] = []
    for axis, side in ((-2, size[0]), (-1, size[1])):
        length = image.shape[axis]
        starts = _starts(length, side, overlap)
        cuts = {s - 1 for s in starts if s} | {s + side - 1 for s in starts if s + side < length}
        steps = image.double().diff(dim=axis).abs().movedim(axis, 0).flatten(1)
        at_cut = torch.tensor([row in cuts for row in range(length - 1)])
        across.append(steps[at_cut].flatten())
        within.append(steps[~at_cut].flatten())
    if not sum(map(len, across)):
        return 1.0
    elsewhere = float(torch.cat(within).mean())
    return float(torch.cat(across).mean()) / elsewhere if elsewhere else 1.0


def _starts(length: int, side: int, overlap: int) -> list[int]:
    """Where tiles begin along an axis: evenly spread, so that no two overlap by less."""
    steps = -(-(length - side) // (side - overlap))
    return [round(i * (length - side) / steps) for i in range(steps + 1)] if steps else [0]


def _shares(image: Side, size: Side, overlap: int) -> Tensor:
    """(tiles, h, w) weights of each tile's pixels; those of one pixel of the image sum to one."""
    rows, columns = (_axis_shares(n, k, overlap) for n, k in zip(image, size, strict=True))
    return torch.einsum("rh,cw->rchw", rows, columns).flatten(0, 1)


def _axis_shares(length: int, side: int, overlap: int) -> Tensor:
    """(tiles of a row, side) float64 weights along one axis."""
    starts = _starts(length, side, overlap)
    # As high as the distance to the border of the tile, in pixels, up to the overlap.
    distance = torch.arange(1, side + 1, dtype=torch.float64)
    tent = torch.minimum(distance, distance.flip(0)).clamp(max=overlap + 1)
    heights = tent.expand(len(starts), side)
    total = torch.zeros(length, dtype=torch.float64)
    for start in starts:
        total[start : start + side] += tent
    return heights / torch.stack([total[start : start + side] for start in starts])


def _estimate(denoise: Denoise, tiles: Tensor, sigma: Tensor) -> Tensor:
    if torch.is_grad_enabled() and tiles.requires_grad:
        clean: Tensor = checkpoint(denoise, tiles, sigma, use_reentrant=False)
        return clean
    return denoise(tiles, sigma)


def _window(corner: Side, size: Side) -> tuple[slice, slice]:
    return slice(corner[0], corner[0] + size[0]), slice(corner[1], corner[1] + size[1])
