"""Noisy copies of an image, made clean again, and what is summed up of them."""

import json
import math
from pathlib import Path

import pytest
import torch

from diffit.diffusion.formulation import DDPMConfig, EDMConfig, build_formulation
from diffit.diffusion.schedule import levels
from diffit.errors import DataError
from diffit.explain.classifier import as_classifier
from diffit.explain.smoothing import BLOCK, MANY, Job, Smoothed, Smoothing, normalised
from diffit.explain.smoothing import Path as Steps
from diffit.explain.units import to_pm1
from oracle import Gaussian

RECORDED = json.loads((Path(__file__).parents[1] / "fixtures" / "smoothing.json").read_text())
SHAPE = (1, 4, 4)


def image(seed=0):
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def linear(classes=3):
    weight = torch.randn(classes, 16, generator=torch.Generator().manual_seed(5))
    names = [str(k) for k in range(classes)]
    return as_classifier(lambda x: x.flatten(1) @ weight.T.to(x), shape=SHAPE, class_names=names)


def shares(images, labels):
    """Maps of 4 tokens that depend on the class."""
    return (images.flatten(1) + labels[:, None]).reshape(-1, 4, 4).exp().sum(2)


def test_a_copy_has_its_noise_whatever_else_is_drawn():
    smoothing = Smoothing(0.5)
    whole = smoothing.noise(SHAPE, 3, "maps", range(100))
    for copies in (range(1), range(7, 8), range(15, 17), range(5, 70), range(96, 100)):
        part = smoothing.noise(SHAPE, 3, "maps", copies)
        assert torch.equal(part, whole[copies.start : copies.stop])


def test_the_noise_of_large_images_does_not_depend_on_the_threads_that_draw_it():
    before = torch.get_num_threads()
    drawn = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            drawn.append(Smoothing(0.5).noise((3, 96, 96), 1, "maps", range(5, 60)))
    finally:
        torch.set_num_threads(before)
    assert 4 * BLOCK * 3 * 96 * 96 >= MANY
    assert torch.equal(*drawn)


def test_no_two_seeds_images_copies_or_purposes_share_their_noise():
    drawn = [
        Smoothing(0.5, seed=seed).noise(SHAPE, number, purpose, range(40))
        for seed in (0, 1)
        for number in (0, 1, 2**32 - 1)
        for purpose in ("prediction", "selection", "estimation", "maps")
    ]
    rows = torch.cat(drawn).flatten(1)
    assert len(torch.unique(rows, dim=0)) == len(rows) == 2 * 3 * 4 * 40
    assert rows.mean().abs() < 0.03
    assert rows.std() == pytest.approx(1, abs=0.02)


def test_the_noise_has_the_standard_deviation_that_is_stated():
    smoothing = Smoothing(to_pm1(0.25, "01"))
    noise = smoothing.noisy(image(), 0, "maps", range(2000)) - image()
    assert noise.std() == pytest.approx(0.5, abs=0.01)


def test_without_a_denoiser_the_classifier_sees_the_noisy_image():
    noisy = Smoothing(2.0).noisy(image(), 0, "maps", range(8))
    assert torch.equal(Smoothing(2.0).shown(noisy), noisy)
    assert noisy.abs().max() > 1


def test_one_shot_denoising_is_the_clipped_estimate_at_exactly_sigma():
    oracle, told = Gaussian(0.3, 0.7), []

    def denoise(x, sigma):
        told.append(float(sigma))
        return oracle(x, sigma)

    noisy = Smoothing(0.5).noisy(image(), 0, "maps", range(8))
    expected = oracle(noisy, torch.tensor(0.5))
    assert torch.equal(Smoothing(0.5, denoise).shown(noisy), expected.clamp(-1, 1))
    assert torch.equal(Smoothing(0.5, denoise, clip=False).shown(noisy), expected)
    Smoothing(0.5, denoise, oversmooth=3.0).shown(noisy)
    assert told == [0.5, 0.5, 1.5]


def test_denoising_in_many_steps_solves_the_flow():
    oracle, formulation = Gaussian(0.1, 0.4), build_formulation(EDMConfig())
    path = Steps(levels("karras", 60, formulation, high=0.5), "heun")
    smoothing = Smoothing(0.5, oracle, path=path, clip=False)
    noisy = smoothing.noisy(image().double(), 0, "maps", range(8))
    expected = oracle.solution(noisy, 0.5, 0.0)
    torch.testing.assert_close(smoothing.shown(noisy), expected, atol=2e-3, rtol=0)
    assert Smoothing(0.5, oracle, path=path).shown(noisy).abs().max() <= 1


def test_a_stochastic_path_gives_each_copy_its_own_noise_in_any_unit():
    path = Steps(torch.tensor([0.5, 0.3, 0.1, 0.0], dtype=torch.float64), "ancestral")
    smoothing = Smoothing(0.5, Gaussian(), path=path)

    def shown(copies):
        noisy = smoothing.noisy(image(), 2, "maps", copies)
        return smoothing.shown(noisy, 2, "maps", copies)

    whole = shown(range(24))
    torch.testing.assert_close(shown(range(10, 13)), whole[10:13], atol=0, rtol=0)
    assert len(torch.unique(whole.flatten(1), dim=0)) == 24
    first = smoothing.noisy(image(), 0, "", range(5))
    assert torch.equal(smoothing.shown(first), smoothing.shown(first, 0, "", range(5)))


@pytest.mark.parametrize(
    ("name", "schedule", "steps"),
    [("linear_1000", "linear", 1000), ("cosine_1000", "cosine", 1000),
     ("cosine_4000", "cosine", 4000)],
)  # fmt: skip
def test_the_noise_level_is_matched_exactly_where_others_round_it_up(name, schedule, steps):
    """The recorded rule takes the next level of the schedule; this library the level itself."""
    config = DDPMConfig(schedule=schedule, steps=steps, learned_variance=False)
    formulation = build_formulation(config)
    for case in RECORDED["timestep_matching"][name]:
        sigma = torch.tensor(to_pm1(case["sigma01"], "01"), dtype=torch.float64)
        assert float(sigma) == case["target_sigma_pm1"]
        assert math.ceil(float(formulation.time(sigma))) == case["t"]
        level = float(formulation.levels[case["t"]])
        assert level == pytest.approx(case["sigma_at_t"], rel=1e-9)
        assert float(sigma) <= level


def released_demo_time(delta: float) -> int:
    """The time rule of the published demo: a trap, since it takes one step's noise for all."""
    per_step = 1 - 1 / (1 + delta**2) - 1e-4
    return max(0, min(1000, round(1 + 999 / 0.0199 * per_step)))


def test_the_released_demo_tells_the_network_of_far_more_noise_than_it_adds():
    formulation = build_formulation(DDPMConfig(learned_variance=False))
    for case in RECORDED["opt_t_released_demo"]:
        number, of = map(int, case["delta"].split("/"))
        assert released_demo_time(number / of) == case["t_per_step_beta_rule"]
    sigma = 16 / 255  # what it adds, to images in [-1, 1]
    assert float(formulation.levels[released_demo_time(sigma)]) > 10 * sigma


@pytest.mark.parametrize("unit", [1, 7, 64])
def test_votes_and_maps_do_not_depend_on_how_many_are_computed_at_once(unit):
    def sums(unit):
        smoothed = Smoothed(linear(), Smoothing(0.5, Gaussian(), unit=unit), shares)
        parts = [range(first, min(first + unit, 130)) for first in range(0, 130, unit)]
        votes = [smoothed.unit(Job(image(), 4, "estimation", part)) for part in parts]
        maps = [smoothed.unit(Job(image(), 4, "maps", part, 1)) for part in parts]
        return sum(v.counts for v in votes), sum(v.probabilities for v in votes), maps

    counts, probabilities, maps = sums(unit)
    expected_counts, expected_probabilities, expected_maps = sums(130)
    assert counts.tolist() == expected_counts.tolist()
    assert probabilities == pytest.approx(expected_probabilities, rel=1e-6)
    assert sum(m.total for m in maps) == pytest.approx(expected_maps[0].total, rel=1e-6)
    assert sum(m.squares for m in maps) == pytest.approx(expected_maps[0].squares, rel=1e-6)


def test_maps_become_laws_over_their_entries():
    maps = torch.tensor([[1.0, 3.0], [-1.0, 2.0], [-1.0, -2.0], [0.0, 0.0], [1e-320, 0.0]])
    expected = torch.tensor([[0.25, 0.75], [0.0, 1.0], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    assert torch.equal(normalised(maps.double()), expected.double())
    assert normalised(torch.rand(3, 4, 5)).shape == (3, 20)


def test_moments_are_those_of_all_maps():
    smoothed = Smoothed(linear(), Smoothing(0.5), shares)
    sums = smoothed.unit(Job(image(), 0, "maps", range(50), 1))
    noisy = smoothed.smoothing.noisy(image(), 0, "maps", range(50))
    maps = normalised(shares(noisy, torch.ones(50)))
    moments = sums.moments()
    assert moments.mean == pytest.approx(maps.mean(0).numpy())
    assert moments.variance == pytest.approx(maps.var(0).numpy())
    assert moments.mean.sum() == pytest.approx(1)
    assert (sums.shape, moments.n) == ((4,), 50)


def test_each_copy_may_be_explained_for_the_class_it_is_taken_for():
    smoothed = Smoothed(linear(), Smoothing(1.0), shares)
    noisy = smoothed.smoothing.noisy(image(), 0, "maps", range(50))
    labels = linear()(noisy).argmax(1)
    assert len(labels.unique()) > 1
    sums = smoothed.unit(Job(image(), 0, "maps", range(50)))
    assert sums.total == pytest.approx(normalised(shares(noisy, labels)).sum(0).numpy())


def test_maps_may_need_gradients():
    def by_gradient(images, labels):
        images = images.detach().requires_grad_()
        chosen = linear()(images).gather(1, labels[:, None]).sum()
        return (images * torch.autograd.grad(chosen, images)[0]).sum(1)

    smoothed = Smoothed(linear(), Smoothing(0.5, Gaussian()), by_gradient)
    sums = smoothed.unit(Job(image(), 0, "maps", range(8), 0))
    assert sums.shape == (4, 4)
    assert sums.total.sum() == pytest.approx(8)


def test_low_precision_computes_the_same_votes_nearly():
    counts = [
        Smoothed(linear(), Smoothing(0.5, precision=precision))
        .unit(Job(image(), 0, "estimation", range(400))).counts
        for precision in ("fp32", "bf16")
    ]  # fmt: skip
    assert abs(counts[0] - counts[1]).max() < 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma": 0.0}, "sigma is 0; it must be above 0"),
        ({"sigma": float("nan")}, "sigma is nan"),
        ({"oversmooth": -1.0}, "oversmooth is -1"),
        ({"unit": 0}, "unit is 0"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Smoothing(**{"sigma": 0.5, **change})


def test_an_image_number_beyond_the_streams_is_refused():
    with pytest.raises(ValueError, match="must lie between 0 and"):
        Smoothing(0.5).noise(SHAPE, 1 << 32, "maps", range(1))


def test_answers_that_are_not_finite_are_refused():
    broken = as_classifier(lambda x: x.flatten(1)[:, :2] / 0, shape=SHAPE, class_names="ab")
    with pytest.raises(DataError, match="values that are not finite"):
        Smoothed(broken, Smoothing(0.5)).unit(Job(image(), 0, "estimation", range(4)))
    nothing = Smoothed(linear(), Smoothing(0.5), lambda images, labels: images.flatten(1) / 0)
    with pytest.raises(DataError, match="explanation of a noisy image"):
        nothing.unit(Job(image(), 0, "maps", range(4), 0))


def test_maps_without_a_method_are_refused():
    with pytest.raises(ValueError, match="need `explain`"):
        Smoothed(linear(), Smoothing(0.5)).unit(Job(image(), 0, "maps", range(4), 0))
