"""Precision, recall, density and coverage against their definitions, image by image."""

import pytest
import torch

from diffit.evaluation.neighbours import neighbours, radii


def normal(count: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, generator=draws, dtype=torch.float64) + shift


def radius(i: int, x: torch.Tensor, k: int) -> float:
    others = sorted(float((x[i] - x[j]).norm()) for j in range(len(x)) if j != i)
    return others[k - 1]


def inside(point: torch.Tensor, i: int, x: torch.Tensor, k: int) -> bool:
    return float((point - x[i]).norm()) <= radius(i, x, k)


def test_the_four_figures_are_their_definitions():
    fake, real = normal(14, 0, shift=0.7), normal(17, 1)
    found = neighbours(fake, real)
    for j, point in enumerate(fake):
        held = sum(inside(point, i, real, 5) for i in range(len(real)))
        assert found.density[j] == pytest.approx(held / 5)
        assert bool(found.precision[j]) == any(inside(point, i, real, 3) for i in range(len(real)))
    for i, point in enumerate(real):
        assert bool(found.recall[i]) == any(inside(point, j, fake, 3) for j in range(len(fake)))
        assert bool(found.coverage[i]) == any(inside(other, i, real, 5) for other in fake)


def test_a_set_against_itself_is_complete():
    x = normal(40, 2)
    found = neighbours(x, x.clone())
    assert float(found.precision.mean()) == float(found.recall.mean()) == 1
    assert float(found.coverage.mean()) == 1


def test_far_sets_have_nothing_in_common():
    found = neighbours(normal(20, 0), normal(20, 1, shift=100))
    assert all(float(values.mean()) == 0 for values in found)


def test_one_repeated_image_is_precise_but_covers_little():
    real = normal(60, 3)
    fake = real[:1].expand(30, -1).contiguous()
    found = neighbours(fake, real)
    assert float(found.precision.mean()) == 1
    assert float(found.recall.mean()) <= 1 / 60 + 1e-12
    assert float(found.coverage.mean()) < 0.5


def test_samples_of_the_distribution_have_density_and_coverage_near_their_expectations():
    # For equal sets E[density] = 1, and E[coverage] tends to 1 - 2^-k (arXiv:2002.09797).
    found = [neighbours(normal(400, 2 * s), normal(400, 2 * s + 1)) for s in range(4)]
    density = torch.stack([f.density.mean() for f in found]).mean()
    coverage = torch.stack([f.coverage.mean() for f in found]).mean()
    assert float(density) == pytest.approx(1, abs=0.05)
    assert float(coverage) == pytest.approx(1 - 2**-5, abs=0.02)


def test_radii_of_points_on_a_line():
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    first, second = radii(x, (1, 2)).sqrt()
    assert first.tolist() == [1, 1, 2, 4]
    assert second.tolist() == [3, 2, 3, 6]


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="5 images have no 5 nearest neighbours each"):
        neighbours(normal(9, 0), normal(5, 1))
