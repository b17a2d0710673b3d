import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from diffit.data import open_dataset
from diffit.data.augment import (
    SYM6,
    Augmentation,
    augment,
    augment_labels,
    augment_parameters,
    inverse_map,
    moves,
    warp,
)


def parameters(count: int = 1, **given: object) -> Augmentation:
    """Augmentations that do nothing but what is given."""
    fields = {
        "mirror": torch.zeros(count, dtype=torch.bool),
        "upend": torch.zeros(count, dtype=torch.bool),
        **{name: torch.zeros(count).double() for name in ("scale", "angle", "stretch", "axis")},
        "shift": torch.zeros(count, 2).double(),
    }
    for name, value in given.items():
        like = fields[name]
        fields[name] = torch.as_tensor(value, dtype=like.dtype).expand(like.shape).clone()
    return Augmentation(**fields)


def real(count: int = 4) -> Tensor:
    dataset = open_dataset("builtin:patches")
    step = len(dataset) // count
    images = np.stack([dataset[i * step].image for i in range(count)])
    return torch.from_numpy(images).double() / 127.5 - 1


def blob(x: float, y: float, *, wide: float = 2.0, high: float = 2.0, size: int = 32) -> Tensor:
    """A Gaussian at (x, y) from the middle, y down: (1, 1, size, size) float64."""
    place = torch.arange(size).double() - (size - 1) / 2
    return torch.exp(-(((place[None] - x) / wide) ** 2 + ((place[:, None] - y) / high) ** 2) / 2)[
        None, None
    ]


# --- the filter


def test_the_filter_is_orthogonal_to_its_even_shifts() -> None:
    h = np.array(SYM6)
    for shift in range(6):
        product = h[2 * shift :] @ h[: len(h) - 2 * shift]
        assert product == pytest.approx(float(shift == 0), abs=1e-11)


def test_the_filter_has_six_vanishing_moments() -> None:
    h = np.array(SYM6)
    assert h.sum() == pytest.approx(math.sqrt(2), abs=1e-11)
    signs = (-1.0) ** np.arange(12)
    for power in range(6):
        centred = (np.arange(12) - 5.5) ** power
        assert h * signs @ centred == pytest.approx(0, abs=1e-7)


def test_of_all_such_filters_it_is_the_least_asymmetric() -> None:
    """Daubechies' factorisation: each choice of roots gives a filter; the phase tells which."""
    n = 6
    polynomial, power = np.zeros(2 * n - 1), np.ones(1)
    for k in range(n):  # sum of C(n-1+k, k) y^k, with y = (2 - z - 1/z) / 4
        polynomial += math.comb(n - 1 + k, k) * np.pad(power, n - 1 - k)
        power = np.convolve(power, np.array([-1, 2, -1]) / 4)
    inside = [root for root in np.roots(polynomial) if abs(root) < 1]
    groups = [[r] for r in inside if abs(r.imag) < 1e-9]
    groups += [[r, r.conjugate()] for r in inside if r.imag > 1e-9]
    frequency = np.linspace(0.01, 3.1, 300)

    def bend(h: np.ndarray) -> float:
        """How far the phase is from a straight line."""
        phase = np.unwrap(np.angle(np.exp(-1j * np.outer(frequency, np.arange(12))) @ h))
        slope = (phase @ frequency) / (frequency @ frequency)
        return float(((phase - slope * frequency) ** 2).sum())

    filters = []
    for inverted in itertools.product([False, True], repeat=len(groups)):
        roots = [1 / r if i else r for g, i in zip(groups, inverted, strict=True) for r in g]
        h = np.real(np.poly([*roots, *[-1] * n]))
        filters.append(h * math.sqrt(2) / h.sum())
    best = sorted(filters, key=bend)[:2]  # a filter and its mirror image
    assert min(abs(h - np.array(SYM6)).max() for h in best) < 1e-9


# --- the warp


def test_a_warp_that_moves_nothing_gives_the_image_back() -> None:
    images = real()
    one, none = torch.eye(2).double().expand(4, 2, 2), torch.zeros(4, 2).double()
    assert (warp(images, one, none) - images).abs().max() < 1e-11
    assert (warp(images.float(), one, none) - images).abs().max() < 3e-6


def test_an_image_that_is_not_moved_stays_the_same_to_the_last_bit() -> None:
    images = real(2).float()
    both = parameters(2, angle=[0.0, 0.7])
    moved, _ = augment(images, both)
    assert torch.equal(moved[0], images[0])
    assert not torch.equal(moved[1], images[1])


def test_flips_are_exact() -> None:
    images = real(4)
    flipped, labels = augment(images, parameters(4, mirror=[0, 1, 0, 1], upend=[0, 0, 1, 1]))
    assert torch.equal(flipped[1], images[1].flip(-1))
    assert torch.equal(flipped[2], images[2].flip(-2))
    assert torch.equal(flipped[3], images[3].flip(-1, -2))
    assert labels[:, :2].tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]


def test_a_shift_by_whole_pixels_is_exact_and_goes_on_as_a_reflection() -> None:
    images = real()
    moved, _ = augment(images, parameters(4, shift=[1.0, 0.0]))  # 0.125 of 32 px: 4 to the right
    assert (moved[..., 4:] - images[..., :-4]).abs().max() < 1e-10
    assert (moved[..., :4] - images[..., 1:5].flip(-1)).abs().max() < 1e-10
    moved, _ = augment(images, parameters(4, shift=[0.0, -0.5]))  # 2 up
    assert (moved[..., :-2, :] - images[..., 2:, :]).abs().max() < 1e-10


@pytest.mark.parametrize("quarter", [1, 2, 3, -1])
def test_quarter_turns_are_those_of_rot90_but_for_interpolation(quarter: int) -> None:
    angle = parameters(4, angle=quarter * math.pi / 2)
    images = real()
    turned, _ = augment(images, angle)
    error = (turned - torch.rot90(images, quarter, (2, 3))).square().mean().sqrt()
    assert error < 0.08 * images.std()
    smooth = blob(4, -3, wide=3, high=3)
    turned, _ = augment(smooth, parameters(1, angle=quarter * math.pi / 2))
    # Linear interpolation between half pixels errs by (1/2)^2 / 8 of the curvature, 1/9, each way.
    assert (turned - torch.rot90(smooth, quarter, (2, 3))).abs().max() < 2 * 0.25 / 8 / 9


ROOT = math.sqrt(2)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"angle": math.pi / 4}, blob(3 / ROOT, -3 / ROOT)),
        ({"scale": 2.5}, blob(3 * ROOT, 0, wide=2 * ROOT, high=2 * ROOT)),
        ({"stretch": 2.5}, blob(3 * ROOT, 0, wide=2 * ROOT, high=2 / ROOT)),
        ({"stretch": 2.5, "axis": math.pi / 2}, blob(3 / ROOT, 0, wide=2 / ROOT, high=2 * ROOT)),
        ({"shift": [-0.6, 0.3]}, blob(3 - 0.6 * 4, 0.3 * 4)),
        ({"mirror": True, "shift": [1.0, 0.0]}, blob(1, 0)),
        ({"scale": 2.5, "angle": math.pi / 2}, blob(0, -3 * ROOT, wide=2 * ROOT, high=2 * ROOT)),
        ({"angle": math.pi / 2, "shift": [1.0, 0.0]}, blob(4, -3)),
    ],
)
def test_a_blob_goes_where_the_formulas_say(given: dict, expected: Tensor) -> None:
    moved, _ = augment(blob(3, 0), parameters(1, **given))
    # Linear interpolation between half pixels: (1/2)^2 / 8 of the curvature, 1/4, in x and in y.
    assert (moved - expected).abs().max() < 2 * 0.25 / 8 / 4 + 0.01


def test_places_beyond_the_margin_are_still_reflections() -> None:
    bright = torch.ones(1, 1, 8, 8).double()
    moved, _ = augment(bright, parameters(1, scale=-12.0, angle=0.5))
    assert (moved - 1).abs().max() < 1e-9


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (6, 9)])
def test_any_shape_of_image_can_be_warped(shape: tuple[int, int]) -> None:
    image = torch.rand(1, 3, *shape)
    moved, _ = augment(image, parameters(1, angle=0.3, shift=[0.2, 0.1]))
    assert moved.shape == image.shape
    assert moved.isfinite().all()


def test_the_inverse_map_undoes_scale_then_rotation_then_stretch_then_shift() -> None:
    drawn = augment_parameters(0, range(50), 1.0)
    matrix, shift = inverse_map(drawn, torch.zeros(50, 1, 10, 20))
    p = drawn
    for b in range(50):
        angle, axis = p.angle[b].item(), p.axis[b].item()

        def turn(a: float) -> np.ndarray:
            return np.array([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]])

        grow = 2 ** (0.2 * p.scale[b].item())
        along = 2 ** (0.2 * p.stretch[b].item())
        place = np.array([3.0, -2.0])
        new = turn(axis) @ np.diag([along, 1 / along]) @ turn(-axis) @ turn(angle) @ (grow * place)
        new = new + 0.125 * p.shift[b].numpy() * [20, 10]
        old = matrix[b].numpy() @ (new - shift[b].numpy())
        assert old == pytest.approx(place, abs=1e-9)


# --- the draws and the label


def test_the_label_is_laid_out_as_edm_has_it() -> None:
    one = parameters(
        1, mirror=True, upend=True, scale=0.3, angle=0.4, stretch=0.5, axis=0.6, shift=[0.7, 0.8]
    )
    expected = [
        *(1, 1, 0.3, math.cos(0.4) - 1, math.sin(0.4)),
        *(0.5 * math.cos(0.6), 0.5 * math.sin(0.6), 0.7, 0.8),
    ]
    assert augment_labels(one)[0].tolist() == pytest.approx(expected, rel=1e-6)
    assert augment_labels(one).dtype == torch.float32
    assert augment_labels(parameters(3)).tolist() == [[0.0] * 9] * 3


def test_each_kind_has_the_probability_asked_for() -> None:
    drawn = augment_parameters(1, range(4000), 0.12)
    kinds = {
        "mirror": (drawn.mirror, 0.5),
        "upend": (drawn.upend, 0.06),
        "scale": (drawn.scale != 0, 0.12),
        "angle": (drawn.angle != 0, 0.12),
        "stretch": (drawn.stretch != 0, 0.12),
        "axis": (drawn.axis != 0, 0.06),
        "shift": ((drawn.shift != 0).all(1), 0.12),
    }
    for name, (happens, probability) in kinds.items():
        spread = math.sqrt(probability * (1 - probability) / 4000)
        assert abs(happens.double().mean() - probability) < 4 * spread, name
    assert abs(moves(drawn).double().mean() - (1 - 0.88**4)) < 0.03


def test_amounts_are_normal_and_angles_uniform() -> None:
    drawn = augment_parameters(2, range(4000), 1.0)
    for amount in (drawn.scale, drawn.stretch, drawn.shift[:, 0], drawn.shift[:, 1]):
        assert abs(amount.mean()) < 0.06
        assert abs(amount.std() - 1) < 0.06
    assert drawn.angle.abs().max() < math.pi
    assert abs(drawn.angle.std() - math.pi / math.sqrt(3)) < 0.06


def test_a_draw_depends_on_the_number_of_the_image_alone() -> None:
    together = augment_parameters(7, range(20), 0.5)
    for n in range(20):
        alone = augment_parameters(7, [n], 0.5)
        assert all(torch.equal(a[0], t[n]) for a, t in zip(alone, together, strict=True))
    images = real(20)
    whole, _ = augment(images, together)
    one, _ = augment(images[13:14], augment_parameters(7, [13], 0.5))
    assert (whole[13] - one[0]).abs().max() < 1e-12


def test_probability_zero_does_nothing() -> None:
    images = real(4)
    same, labels = augment(images, augment_parameters(0, range(4), 0.0))
    assert torch.equal(same, images)
    assert not labels.any()
