"""Reuse of blocks: exact where nothing may be reused, the same sum where something is."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diffit.config import parse, read_yaml
from diffit.networks import build_network
from diffit.nn.blocks import run
from diffit.nn.reuse import middle_of, reused_blocks
from diffit.training.settings import RunConfig

PRESETS = Path(__file__).parents[2] / "src" / "diffit" / "presets"
TINY = sorted(PRESETS.glob("tiny-*.yaml"))


class Scale(nn.Module):
    """Multiplies by a number that may change, and counts its calls."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor, self.calls = factor, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.factor * x


def evaluate(blocks: list[Scale], x: Tensor) -> Tensor:
    for block in blocks:
        x = run(block, x, checkpointed=False)
    return x


def test_middle_blocks_add_in_between_what_they_added_last() -> None:
    blocks = [Scale(2.0), Scale(3.0), Scale(5.0), Scale(7.0)]
    with reused_blocks(blocks, every=2, share=0.5):
        assert evaluate(blocks, torch.ones(1)).item() == 210
        # at x = 4 the middle adds what it added at x = 1: 2 -> 6 -> 30, so 28
        assert evaluate(blocks, torch.full((1,), 4.0)).item() == (4 * 2 + 28) * 7
        assert evaluate(blocks, torch.full((1,), 4.0)).item() == 840
    assert [block.calls for block in blocks] == [3, 2, 2, 3]
    assert evaluate(blocks, torch.full((1,), 4.0)).item() == 840


@pytest.mark.parametrize(("rows", "complete"), [((4, 2), False), ((2, 4), True)])
def test_half_the_rows_may_reuse_but_more_rows_may_not(
    rows: tuple[int, int], complete: bool
) -> None:
    block = Scale(2.0)
    with reused_blocks([block], every=9, share=1.0):
        evaluate([block], torch.ones(rows[0]))
        second = evaluate([block], torch.full((rows[1],), 5.0))
    assert second.tolist() == [10.0 if complete else 6.0] * rows[1]


def test_the_middle_is_the_middle() -> None:
    assert middle_of(list(range(28)), 0.5) == list(range(7, 21))
    assert middle_of(list(range(5)), 1.0) == list(range(5))
    assert middle_of(list(range(4)), 0.01) == [1]


@pytest.mark.parametrize("preset", TINY, ids=lambda path: path.stem)
def test_every_network_repeats_itself_at_an_input_it_has_just_seen(preset: Path) -> None:
    config = parse(RunConfig, read_yaml(preset), source=str(preset)).model.network
    network = build_network(config).requires_grad_(False)
    source = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        weight.add_(0.05 * torch.randn(weight.shape, generator=source))
    x = torch.randn(2, *config.shape, generator=source)
    time, later = torch.tensor([0.3, 0.3]), torch.tensor([0.9, 0.9])
    exact, exact_later = network(x, time), network(2 * x, later)
    with reused_blocks(network.blocks(), every=2, share=1.0):
        assert torch.equal(network(x, time), exact)
        assert torch.allclose(network(x, time), exact, atol=1e-4)
        assert torch.equal(network(2 * x, later), exact_later)
        assert not torch.allclose(network(x, time), exact, atol=1e-4)  # added at another level
    assert torch.equal(network(x, time), exact)


def test_blocks_are_themselves_again_after_an_error() -> None:
    block = Scale(2.0)
    with pytest.raises(RuntimeError), reused_blocks([block], every=2, share=1.0):
        raise RuntimeError
    assert not hasattr(block, "stand_in")
