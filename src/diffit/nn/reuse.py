"""Reuse of what blocks add, between evaluations at neighbouring noise levels: an approximation.

The middle of a deep network changes little from one level to the next, so that its work may be done
in every n-th evaluation alone (DeepCache, arXiv:2312.00858; FORA, arXiv:2407.01425).
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn


@contextlib.contextmanager
def reused_blocks(blocks: Iterable[nn.Module], *, every: int, share: float) -> Iterator[None]:
    """For a while, compute the middle blocks in every n-th evaluation only.

    In between each of them adds what it last added. The first evaluation is complete.

    Args:
        blocks: of the network, in order; all of them are called in each evaluation, by
            `diffit.nn.blocks.run`.
        every: 1 computes always.
        share: how much of the blocks the middle is, in (0, 1].
    """
    middle: list[Any] = middle_of(list(blocks), share)
    kept = _Kept(every)
    for place, block in enumerate(middle):
        block.stand_in = partial(kept.stand_in, place, block)
    try:
        yield
    finally:
        for block in middle:
            del block.stand_in


def middle_of(blocks: list[nn.Module], share: float) -> list[nn.Module]:
    """The middle ``share`` of the blocks, at least one of them."""
    count = max(1, round(share * len(blocks)))
    first = (len(blocks) - count) // 2
    return blocks[first : first + count]


class _Kept:
    """What the blocks added in the last evaluation that was complete."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.evaluations, self.rows = 0, 0
        self.complete = True
        self.added: dict[int, Tensor] = {}

    def stand_in(self, place: int, block: Callable[..., Tensor], x: Tensor, *rest: Any) -> Tensor:
        """block(x, *rest), or x and what the block has added before."""
        if place == 0:
            self._begin(len(x))
        if not self.complete and place in self.added:
            # Without guidance half as many images are evaluated: the first half, with their labels.
            return x + self.added[place][: len(x)]
        y = block(x, *rest)
        if y.shape == x.shape:
            self.added[place] = y - x
        return y

    def _begin(self, rows: int) -> None:
        self.complete = self.evaluations % self.every == 0 or rows > self.rows
        if self.complete:
            self.evaluations, self.rows = 0, rows
        self.evaluations += 1
