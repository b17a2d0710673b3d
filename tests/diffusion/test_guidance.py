"""Guidance: its weights' values, what it calls, and the doubled batch."""

import json

import pytest
import torch
from safetensors import safe_open

from conftest import FIXTURES
from diffit.convert import from_reference
from diffit.diffusion.denoiser import Denoiser, Estimate
from diffit.diffusion.formulation import DDPMConfig, build_formulation
from diffit.diffusion.guidance import (
    constant,
    guide,
    guide_estimate,
    interval,
    paired,
    paired_estimate,
    power_cosine,
    unless_near_one,
)

SIGMA = torch.tensor(2.0, dtype=torch.float64)
X = torch.randn(3, 4, 2, 2, dtype=torch.float64)


def main(x, sigma):
    return 2 * x


def reference(x, sigma):
    return -x


def never(x, sigma):
    raise AssertionError("the reference is not needed here")


def test_weight_moves_from_reference_through_main():
    for w in (0.0, 0.5, 1.0, 4.0):
        guided = guide(main, reference, weight=constant(w))(X, SIGMA)
        torch.testing.assert_close(guided, -X + w * 3 * X)


def test_first_channels_alone():
    guided = guide(main, reference, weight=constant(2.0), channels=3)(X, SIGMA)
    torch.testing.assert_close(guided[:, :3], 5 * X[:, :3])
    assert torch.equal(guided[:, 3:], 2 * X[:, 3:])


def test_reference_is_skipped_where_the_weight_is_one():
    assert torch.equal(guide(main, never, weight=constant(1.0))(X, SIGMA), 2 * X)
    band = interval(3.0, 0.5, 1.5)
    assert torch.equal(guide(main, never, weight=band)(X, SIGMA), 2 * X)
    with pytest.raises(AssertionError):
        guide(main, never, weight=band)(X, SIGMA / 2)


def test_levels_of_each_image_have_weights_of_their_own():
    sigma = torch.tensor([0.1, 1.0, 9.0], dtype=torch.float64)
    guided = guide(main, reference, weight=interval(3.0, 0.5, 1.5))(X, sigma)
    torch.testing.assert_close(guided, torch.stack([2 * X[0], 8 * X[1], 2 * X[2]]))


def test_estimate_keeps_the_variance_of_main():
    fraction = torch.rand_like(X)
    estimate = guide_estimate(
        lambda x, sigma: Estimate(2 * x, fraction), reference, weight=constant(2.0), channels=3
    )
    clean, kept = estimate(X, SIGMA)
    assert torch.equal(clean, guide(main, reference, weight=constant(2.0), channels=3)(X, SIGMA))
    assert kept is fraction


@pytest.mark.parametrize("sigma", [SIGMA, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)])
@pytest.mark.parametrize("w", [1.0, 1.7])
def test_doubled_batch_equals_two_batches(w, sigma):
    """A denoiser with labels, 5 standing for none, at one level or one for each image."""

    def denoise(x, sigma, label):
        shift = label.reshape(-1, 1, 1, 1) / (1 + torch.as_tensor(sigma).reshape(-1, 1, 1, 1))
        return 0.3 * x + shift

    def estimate(x, sigma, label):
        return Estimate(denoise(x, sigma, label), label.reshape(-1, 1, 1, 1).expand_as(x))

    label = torch.tensor([0, 2, 4])
    null = torch.full((3,), 5)
    two = guide(
        lambda x, s: denoise(x, s, label), lambda x, s: denoise(x, s, null), weight=constant(w)
    )
    one = paired(denoise, label, null=5, weight=constant(w))
    torch.testing.assert_close(one(X, sigma), two(X, sigma))
    clean, fraction = paired_estimate(estimate, label, null=5, weight=constant(w))(X, sigma)
    torch.testing.assert_close(clean, two(X, sigma))
    assert torch.equal(fraction, label.reshape(-1, 1, 1, 1).expand_as(X))


def test_power_cosine_has_the_published_values():
    row = build_formulation(DDPMConfig())
    steps = torch.tensor([0, 100, 200, 300, 400, 500, 600, 700, 800, 999])
    weight = power_cosine(4.4, 4.0, row.progress)(row.levels[steps])
    expected = [4.4, 3.5007, 2.2237, 1.4611, 1.1390, 1.0327, 1.0055, 1.0006, 1.0, 1.0]
    assert weight.tolist() == pytest.approx(expected, abs=5e-5)


def test_interval_includes_its_ends():
    sigma = torch.tensor([0.19, 0.2, 1.0, 1.6, 1.61], dtype=torch.float64)
    assert interval(2.5, 0.2, 1.6)(sigma).tolist() == [1, 2.5, 2.5, 2.5, 1]


@pytest.mark.parametrize(
    ("family", "file", "source", "key"),
    [
        ("diffit", "diffit_latent_tiny", "input", "output_cfg"),
        ("diffit", "diffit_latent_tiny", "input", "output_cfg_b"),
        ("dit", "dit_tiny", "cfg", "cfg.output"),
    ],
)
def test_guided_noise_is_that_of_the_references(family, file, source, key):
    with safe_open(FIXTURES / f"{file}.safetensors", "pt") as handle:
        meta = handle.metadata()
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    state = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    args = json.loads(meta["constructor"])
    row = build_formulation(DDPMConfig())
    denoiser = Denoiser(from_reference(family, state, args), row)
    cfg = json.loads(meta["cfg_b" if key.endswith("_b") else "cfg"])
    weight = constant(cfg["cfg_scale"])
    if "scale_pow" in cfg:
        weight = power_cosine(cfg["cfg_scale"], cfg["scale_pow"], row.progress)
    # The references double the batch; its second half is the same images without class.
    sigma = row.levels[tensors[f"{source}.t"][:2]]
    signal = row.signal(sigma).reshape(-1, 1, 1, 1)
    x = tensors[f"{source}.x"][:2].double() / signal
    label = tensors[f"{source}.y"][:2]
    with torch.no_grad():
        guided = guide_estimate(
            lambda x, s: denoiser.estimate(x, s, label), denoiser, weight=weight, channels=3
        )
        clean, fraction = guided(x, sigma)
    noise = (x - clean) / sigma.reshape(-1, 1, 1, 1)
    found = torch.cat([noise, 2 * fraction - 1], 1).float()
    torch.testing.assert_close(found, tensors[key][:2], atol=2e-5, rtol=1e-5)


def counted(answer):
    calls = []

    def denoise(x, sigma, *label):
        calls.append(float(sigma))
        return answer(x)

    return denoise, calls


def test_a_reference_that_is_asked_at_every_third_level_keeps_its_difference() -> None:
    main, _ = counted(lambda x: 2 * x)
    reference, asked = counted(lambda x: x - 1)
    denoise = guide(main, reference, weight=constant(3.0), every=3)
    levels = torch.tensor([9.0, 8.0, 7.0, 6.0], dtype=torch.float64)
    x = torch.tensor([[1.0], [5.0], [2.0], [4.0]], dtype=torch.float64)
    answers = [denoise(x[i : i + 1], levels[i]).item() for i in range(4)]
    # main + 2 (main - reference): the difference is 2 at x = 1, and 5 at x = 4
    assert answers == [2 + 4, 10 + 4, 4 + 4, 8 + 10]
    assert asked == [9.0, 6.0]


def test_paired_guidance_doubles_the_batch_at_every_second_level_alone() -> None:
    rows = []

    def denoise(x, sigma, label):
        rows.append(len(x))
        return x + label[:, None]

    guided = paired(denoise, torch.tensor([0, 1]), null=4, weight=constant(2.0), every=2)
    x = torch.zeros(2, 1, dtype=torch.float64)
    first = guided(x, torch.tensor(2.0))
    second = guided(x + 10, torch.tensor(1.0))
    assert rows == [4, 2]
    # label - 4 is the difference: label + 1 (label - 4)
    assert first.flatten().tolist() == [-4, -2]
    assert second.flatten().tolist() == [6, 8]


def test_weights_near_one_are_one() -> None:
    weight = unless_near_one(lambda sigma: 1 + sigma, 0.125)
    assert weight(torch.tensor([-0.0625, 0.125, 0.25])).tolist() == [1, 1, 1.25]
