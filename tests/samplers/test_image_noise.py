"""Each image's noise follows from its seed alone."""

import torch

from diffit import draws
from diffit.samplers import ImageNoise


def test_a_stream_depends_on_its_seed_alone():
    together = ImageNoise([3, 1, 4], (2, 5, 5))
    alone = ImageNoise([1], (2, 5, 5))
    for _ in range(3):
        assert torch.equal(together()[1:2], alone())


def test_draws_are_those_of_the_sampling_purpose():
    first = draws.normal(7, [0], "sample", (1, 4, 4))
    assert torch.equal(ImageNoise([7], (1, 4, 4), dtype=torch.float32)(), first)


def test_a_stream_goes_on_and_is_a_unit_normal():
    noise = ImageNoise([0], (1, 100, 100))
    first, second = noise(), noise()
    assert first.dtype == torch.float64
    assert abs(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]) < 0.04
    assert abs(first.mean()) < 0.04
    assert abs(first.std() - 1) < 0.03
