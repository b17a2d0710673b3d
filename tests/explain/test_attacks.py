"""Attacks: closed forms of linear classifiers, the ball, seeds, and what each objective moves."""

import pytest
import torch
import torch.nn.functional as F

from diffit import draws
from diffit.config import parse
from diffit.errors import ConfigError, DataError, UsageError
from diffit.explain.attacks import (
    AttackConfig,
    ascend,
    attack,
    label_odds,
    odds_against,
    smoothed_odds,
)
from diffit.explain.attribution import token_maps
from diffit.explain.attribution.maps import positive_share
from diffit.explain.ball import Ball
from diffit.explain.classifier import as_classifier
from diffit.explain.measures.robustness import kl, overlap
from diffit.explain.smoothing import Path, Smoothing
from diffit.explain.vit import ViTConfig, build_vit

NAMES = ["pgd", "adaptive", "push-out", "kl", "uniform", "gaussian"]
SHAPE = (1, 4, 4)


def images(count=3, shape=SHAPE):
    return (0.5 * draws.normal(3, range(count), "images", shape)).clamp(-1, 1).double()


def vit():
    """A ViT of 16 tokens in float64, with weights large enough that it attends to something."""
    network = build_vit(
        ViTConfig(size=8, channels=1, patch=2, width=16, depth=2, heads=2, classes=4)
    )
    return network.double().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def peaked():
    network = vit()
    for name, weight in network.named_parameters():
        if "qkv" in name or name in ("head.weight", "pos_embed", "patch_embed.proj.weight"):
            weight.mul_(12)
    return network


def linear(weight):
    """Logits (0, <weight, x>)."""

    def function(x):
        score = (x * weight).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(score), score], 1)

    return as_classifier(function, shape=tuple(weight.shape), class_names=("no", "yes"))


def config(name="pgd", **fields):
    return AttackConfig(**{"name": name, "eps": 0.1, "units": "pm1", **fields})


def shrink(x, sigma):
    """The exact denoiser of images drawn from N(0, 1)."""
    return x / (1 + float(sigma) ** 2)


SMOOTHING = Smoothing(sigma=0.3, denoise=shrink, seed=5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_linear_classifier_is_attacked_to_the_end_of_the_ball(norm):
    weight = draws.normal(0, [0], "w", SHAPE)[0].double()
    x = images() * 0.5  # no pixel reaches the end of its range
    found = attack(config(norm=norm, steps=100), linear(weight), x, torch.ones(3).long())
    way = weight.sign() if norm == "linf" else weight / weight.norm()
    assert torch.allclose(found, x - 0.1 * way, atol=1e-7)


def test_steps_of_a_fifth_reach_the_edge_in_the_default_ten():
    weight = torch.ones(SHAPE, dtype=torch.float64)
    x = torch.zeros(1, *SHAPE, dtype=torch.float64)
    found = attack(config(), linear(weight), x, torch.zeros(1).long())
    assert torch.allclose(found, x + 0.1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", NAMES)
def test_every_attack_stays_in_the_ball_and_in_the_range(peaked, name, norm):
    x = images(3, (1, 8, 8)).float()
    x[0] = -1  # at the edge of the range
    moved = attack(config(name, norm=norm, eps=0.3, steps=3), peaked, x, smoothing=SMOOTHING) - x
    assert float((moved + x).abs().max()) <= 1
    far = moved.flatten(1).norm(dim=1, p=float("inf") if norm == "linf" else 2)
    assert far.max() <= 0.3 + 1e-6
    assert far.min() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_an_attack_follows_from_seed_and_number_and_from_no_other_image(peaked, name):
    x = images(3, (1, 8, 8))
    settings = config(name, steps=2, copies=3)
    together = attack(settings, peaked, x, smoothing=SMOOTHING, numbers=[7, 8, 9])
    for i in range(3):
        alone = attack(settings, peaked, x[i : i + 1], smoothing=SMOOTHING, numbers=[7 + i])
        assert torch.allclose(together[i : i + 1], alone, atol=1e-9)
    other = config(name, steps=2, copies=3, seed=1)
    assert not torch.allclose(
        together, attack(other, peaked, x, smoothing=SMOOTHING, numbers=[7, 8, 9])
    )


def test_pgd_raises_the_loss_more_than_noise_does(peaked):
    x = images(8, (1, 8, 8))
    labels = peaked(x).argmax(1)
    loss = label_odds(peaked, labels)
    plain, noisy = loss(x, 0), loss(attack(config("uniform"), peaked, x), 0)
    attacked = loss(attack(config(), peaked, x), 0)
    assert (attacked > plain).all()
    assert (attacked > noisy).all()


def test_a_certain_prediction_still_has_a_slope():
    weight = torch.full(SHAPE, 10.0)
    x = torch.full((1, *SHAPE), 0.9)  # a logit of 144: its cross entropy is flat, even in float64
    found = attack(config(), linear(weight), x, torch.ones(1).long())
    assert torch.allclose(found, x - 0.1)


def test_the_odds_rise_with_the_cross_entropy():
    logits = draws.normal(0, range(5), "logits", (4,)).double()
    labels = torch.tensor([0, 1, 2, 3, 0])
    loss = F.cross_entropy(logits, labels, reduction="none")
    assert torch.allclose(F.softplus(odds_against(logits, labels)), loss, atol=1e-12)


def shares(network, method, x, labels):
    return positive_share(token_maps(method, network, x, labels))


# Grad-CAM and the others of gradients need second-order ones through the attention.
@pytest.mark.parametrize("method", ["raw-attention", "rollout", "generic-relevance"])
def test_the_top_of_an_explanation_is_pushed_out(peaked, method):
    x = images(6, (1, 8, 8))
    labels = peaked(x).argmax(1)
    before = shares(peaked, method, x, labels)
    after = {
        name: shares(peaked, method, attack(config(name, method=method), peaked, x, labels), labels)
        for name in ("push-out", "uniform")
    }
    assert (
        overlap(before, after["push-out"], 4).mean() <= overlap(before, after["uniform"], 4).mean()
    )
    left = {
        name: (w * (before >= before.topk(4).values[:, -1:])).sum(1) for name, w in after.items()
    }
    assert (left["push-out"] < left["uniform"]).all()


@pytest.mark.parametrize("method", ["raw-attention", "gradient-input"])
def test_kl_moves_an_explanation_further_than_noise_does(peaked, method):
    x = images(6, (1, 8, 8))
    labels = peaked(x).argmax(1)
    before = shares(peaked, method, x, labels).clamp_min(1e-12)
    after = [
        shares(peaked, method, attack(config(name, method=method), peaked, x, labels), labels)
        for name in ("kl", "uniform")
    ]
    moved, noise = (kl(before, w.clamp_min(1e-12)) for w in after)
    assert (moved > noise).all()


def test_the_adaptive_loss_is_that_of_the_mean_probability():
    weight = draws.normal(0, [0], "w", SHAPE)[0].double()
    x, labels = images(2), torch.tensor([0, 1])
    objective = smoothed_odds(linear(weight), labels, SMOOTHING, copies=5, numbers=[3, 4])
    found = objective(x, 2)
    for i in range(2):
        noise = SMOOTHING.noise(SHAPE, 3 + i, "attack", range(10, 15)).double()
        shown = shrink(x[i] + 0.3 * noise, 0.3).clamp(-1, 1)
        probability = linear(weight)(shown).softmax(1)[:, labels[i]].mean()
        expected = torch.log((1 - probability) / probability)
        assert float(found[i]) == pytest.approx(float(expected), abs=1e-12)


def test_the_adaptive_attack_beats_the_plain_one_behind_the_denoiser():
    """The denoiser mirrors images, so that an attack that does not know it goes the wrong way."""
    weight = torch.ones(SHAPE, dtype=torch.float64)
    weight[..., 2:] = -1
    mirrored = Smoothing(sigma=0.1, denoise=lambda x, sigma: x.flip(-1), seed=5)
    x, labels = torch.zeros(1, *SHAPE, dtype=torch.float64), torch.ones(1).long()
    judge = smoothed_odds(linear(weight), labels, mirrored, copies=64, numbers=[0])
    plain = attack(config(), linear(weight), x, labels)
    adaptive = attack(config("adaptive"), linear(weight), x, labels, smoothing=mirrored)
    assert judge(plain, 99) < judge(x, 99) < judge(adaptive, 99)


def test_each_step_draws_fresh_noise_apart_from_that_of_the_evaluation():
    seen = []

    def denoise(x, sigma):
        seen.append(x.detach().clone())
        return x

    smoothing = Smoothing(sigma=0.3, denoise=denoise, seed=0)
    weight = torch.ones(SHAPE, dtype=torch.float64)
    x = torch.zeros(1, *SHAPE, dtype=torch.float64)
    attack(config("adaptive", steps=3, copies=20), linear(weight), x, smoothing=smoothing)
    noise = torch.cat(seen).flatten(1)
    assert len(noise) == 60
    assert len(torch.unique(noise[:, 0].float())) == 60
    judged = smoothing.noise(SHAPE, 0, "estimation", range(60)).flatten(1)
    assert not torch.isin(0.3 * judged[:, 0], noise[:, 0].float()).any()


def test_what_the_denoiser_clips_still_has_a_slope():
    smoothing = Smoothing(sigma=0.1, denoise=lambda x, sigma: 3 * x, seed=0)
    weight = torch.ones(SHAPE, dtype=torch.float64)
    x = torch.full((1, *SHAPE), -0.9, dtype=torch.float64)
    found = attack(
        config("adaptive"), linear(weight), x, torch.zeros(1).long(), smoothing=smoothing
    )
    assert torch.allclose(found, x + 0.1)


def test_the_uniform_control_fills_the_ball():
    x = torch.zeros(400, 1, 2, 2, dtype=torch.float64)
    cube = attack(config("uniform", eps=0.5), linear(x[0]), x)
    assert float(cube.std()) == pytest.approx(0.5 / 3**0.5, rel=0.05)
    ball = attack(config("uniform", norm="l2", eps=0.5), linear(x[0]), x).flatten(1).norm(dim=1)
    assert float(ball.mean()) == pytest.approx(0.5 * 4 / 5, rel=0.05)  # d / (d + 1)


def test_the_ball_is_left_nowhere_and_entered_by_the_nearest_point():
    x = torch.zeros(1, 1, 1, 2, dtype=torch.float64)
    far = torch.tensor([3.0, 4.0], dtype=torch.float64).reshape(1, 1, 1, 2)
    assert Ball("l2", 0.5).project(far, x).flatten().tolist() == pytest.approx([0.3, 0.4])
    assert Ball("linf", 0.5).project(far, x).flatten().tolist() == [0.5, 0.5]
    near = 0.01 * far
    for norm in ("l2", "linf"):
        assert torch.equal(Ball(norm, 0.5).project(near, x), near)
        assert torch.equal(Ball(norm, 0.5).steepest(0 * far), 0 * far)


def test_eps_is_stated_in_the_units_of_the_user():
    assert AttackConfig(eps=8 / 255, units="01").ball.eps == pytest.approx(16 / 255)
    assert AttackConfig(eps=8 / 255, units="pm1").ball.eps == 8 / 255


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({"eps": 0}, ConfigError, "eps"),
        ({"eps": -0.1}, ConfigError, "eps"),
        ({"eps": float("nan")}, ConfigError, "eps"),
        ({"eps": 8}, ConfigError, "reaches every image"),
        ({"units": "255"}, ConfigError, "units"),
        ({"name": "fgsm"}, ConfigError, "name"),
        ({"norm": "l1"}, ConfigError, "norm"),
        ({"steps": 0}, ConfigError, "steps"),
        ({"method": "raw-atention"}, UsageError, "did you mean 'raw-attention'?"),
    ],
)
def test_settings_that_are_no_attack_are_refused(settings, error, sentence):
    with pytest.raises(error) as found:
        parse(AttackConfig, {"eps": 0.1, "units": "01", **settings}, source="attack")
    assert sentence in str(found.value)


BLIND = as_classifier(lambda x: torch.zeros(len(x), 2), shape=SHAPE, class_names=("a", "b"))
CUT = as_classifier(
    lambda x: F.one_hot(x.detach().flatten(1).argmax(1) % 2, 2).double().requires_grad_(),
    shape=SHAPE,
    class_names=("a", "b"),
)
SICK = as_classifier(
    lambda x: x.flatten(1)[:, :2] / 0 * 0, shape=SHAPE, class_names=("a", "b"), name="sick"
)


@pytest.mark.parametrize(
    ("name", "classifier", "changed", "error", "sentence"),
    [
        ("pgd", BLIND, {}, UsageError, "gives no gradient"),
        ("pgd", CUT, {}, UsageError, "gives no gradient"),
        ("pgd", SICK, {}, DataError, "gradient of image 0 of the batch is not finite"),
        ("adaptive", CUT, {}, UsageError, "say which with sigma and denoiser"),
        ("kl", BLIND, {}, UsageError, "shows no attention"),
        ("pgd", BLIND, {"images": images() * 9}, DataError, "must lie in [-1, 1]"),
        ("uniform", BLIND, {"images": images()[0]}, DataError, "(B, C, H, W)"),
        ("pgd", BLIND, {"labels": torch.tensor([0, 1, 2])}, DataError, "knows classes 0 to 1"),
        ("pgd", BLIND, {"labels": torch.tensor([0])}, DataError, "one class for each image"),
    ],
)
def test_what_cannot_be_attacked_is_refused_in_a_sentence(
    name, classifier, changed, error, sentence
):
    given = {"images": images(), "labels": None, **changed}
    with pytest.raises(error) as found:
        attack(config(name), classifier, **given)
    assert sentence in str(found.value)


def test_an_attack_goes_through_the_denoiser_once_even_if_evaluation_takes_more_steps():
    path = Path(torch.tensor([0.3, 0.1, 0.0]), "heun")
    weight = torch.ones(SHAPE, dtype=torch.float64)
    found = [
        attack(
            config("adaptive"),
            linear(weight),
            images(),
            smoothing=Smoothing(sigma=0.3, denoise=shrink, path=each),
        )
        for each in (None, path)
    ]
    assert torch.equal(*found)


def test_the_objective_of_ascend_may_be_any_function():
    target = images(1)
    found = ascend(
        lambda x, step: -(x - target).square().flatten(1).sum(1), torch.zeros_like(target),
        Ball("linf", 1.0), steps=120, step=0.02, seed=0, numbers=[0],
    )  # fmt: skip
    assert float((found - target).abs().max()) <= 0.02
