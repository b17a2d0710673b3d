"""NIQE and MATLAB's resizing."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from conftest import FIXTURES
from diffit.errors import DataError
from diffit.evaluation.niqe import (
    asymmetric_gaussian,
    block_features,
    fit_niqe,
    load_niqe,
    niqe,
    save_niqe,
)
from diffit.evaluation.resize import matlab_bicubic, resize_sides

RECORDED = load_file(FIXTURES / "restoration_metrics.safetensors")


def photograph(seed: int, side: int = 480) -> torch.Tensor:
    """Something with edges at all sizes, (3, side, side) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.full((1, side, side), 0.5)
    for _ in range(300):
        y, x = torch.randint(0, side, (2,), generator=generator).tolist()
        height, width = torch.randint(4, 80, (2,), generator=generator).tolist()
        image[:, y : y + height, x : x + width] = torch.rand(1, generator=generator)
    grain = 0.02 * torch.randn(image.shape, generator=generator)
    return (image + grain).clamp(0, 1).expand(3, -1, -1)


@pytest.fixture(scope="module")
def model():
    return fit_niqe((photograph(seed) for seed in range(4)), "squares")


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("factor", ["0.5", "0.25", "2.0"])
def test_resizing_is_that_of_matlab(number, factor):
    image = RECORDED[f"pair{number}/a"][None]
    expected = RECORDED[f"pair{number}/imresize_{factor}"]
    found = resize_sides(image, tuple(expected.shape[1:]), matlab_bicubic)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("alpha", "left", "right"), [(2.0, 1.0, 1.0), (2.0, 0.5, 1.5)])
def test_moments_find_the_shape_they_were_drawn_with(alpha, left, right):
    unit = torch.randn(200_000, generator=torch.Generator().manual_seed(0)).double().abs()
    # Each side is half of a normal distribution, and has its share of the values.
    count = round(len(unit) * left / (left + right))
    x = torch.cat((-left * unit[:count], right * unit[count:])) / math.sqrt(2)
    found = torch.stack(asymmetric_gaussian(x))
    torch.testing.assert_close(
        found, torch.tensor([alpha, left, right]).double(), rtol=0.03, atol=0
    )


def test_damage_is_less_natural(model):
    image = photograph(9)
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
    small = resize_sides(image[None], (240, 240), matlab_bicubic)
    blurred = resize_sides(small, (480, 480), matlab_bicubic)[0].clamp(0, 1)
    clean, noisy, soft = niqe(
        torch.stack([image, (image + 0.1 * noise).clamp(0, 1), blurred]), model
    )
    assert clean < noisy
    assert clean < soft
    assert model.name == "niqe-fitted(squares)"


def test_a_flat_image_has_finite_features():
    found, sharpness = block_features(torch.full((1, 96, 200), 0.3))
    assert found.shape == (2, 36)
    assert found.isfinite().all()
    assert sharpness.tolist() == pytest.approx([0, 0], abs=1e-5)


def test_a_model_is_kept_without_pickle(model, tmp_path):
    path = tmp_path / "niqe.npz"
    save_niqe(path, model)
    again = load_niqe(path)
    assert (again.source, again.blocks) == (model.source, model.blocks)
    assert torch.equal(again.mean, model.mean)
    assert torch.equal(again.covariance, model.covariance)


def test_niqe_refusals(model, tmp_path):
    with pytest.raises(
        DataError, match="two or more blocks of 96 x 96 pixels, these have 96 x 100"
    ):
        niqe(torch.rand(1, 3, 96, 100), model)
    with pytest.raises(DataError, match="small has 0 sharp blocks"):
        fit_niqe([torch.rand(3, 32, 32)], "small")
    with pytest.raises(DataError, match="not finite"):
        niqe(torch.full((1, 3, 96, 192), math.nan), model)
    with pytest.raises(DataError, match="does not exist; fit a model"):
        load_niqe(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("not a zip")
    np.savez(tmp_path / "other.npz", mean=np.zeros(3))
    np.savez(tmp_path / "object.npz", mean=np.array([{}], dtype=object))
    for name in ("text", "other", "object"):
        with pytest.raises(DataError, match="is no model of NIQE, or is damaged"):
            load_niqe(tmp_path / f"{name}.npz")
