"""Relevance propagation: the recorded maps of the reference, and what each rule conserves."""

import pytest
import torch
from reference_vit import recorded, reference_vit

from diffit.errors import UsageError
from diffit.explain.attribution import METHODS
from diffit.explain.attribution.lrp_rules import (
    BALANCED,
    PLAIN,
    branch,
    divide,
    linear_joint,
    linear_plain,
    pixels,
    product,
    residual_balanced,
    residual_plain,
)
from diffit.explain.attribution.relevance import (
    attention_relevance,
    full_lrp,
    lrp_rollout,
    partial_lrp,
    transformer_attribution,
)
from diffit.explain.classifier import as_classifier
from diffit.explain.vit import ViTConfig, build_vit

RECORDED = {
    "partial_lrp_last": lambda *a: partial_lrp(*a),
    "full_lrp": lambda *a: full_lrp(*a),
    "full_lrp_relprop_ours": lambda *a: full_lrp(*a, rules=BALANCED),
    "lrp_rollout_start0": lambda *a: lrp_rollout(*a),
    "transformer_attribution_start0": lambda *a: transformer_attribution(*a, start=0),
    "transformer_attribution_start1": lambda *a: transformer_attribution(*a, start=1),
}


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("key", RECORDED)
def test_maps_are_those_of_the_reference(key):
    # The reference takes one image at a time; here all three go together.
    maps = RECORDED[key](reference_vit(), recorded()["images"], recorded()["out/class_index"])
    assert distance(maps, recorded()[f"out/{key}"]) < 1e-8


@pytest.mark.parametrize("key", RECORDED)
def test_maps_are_close_to_the_reference_in_single_precision(key):
    images, labels = recorded()["images"].float(), recorded()["out/class_index"]
    maps = RECORDED[key](reference_vit().float(), images, labels)
    # Plain rules divide by sums of opposite signs: rounding of the forward pass grows 10,000-fold.
    assert distance(maps, recorded()[f"out/{key}"]) < (3e-3 if key == "full_lrp" else 1e-3)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def total(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1).sum(1)


def test_division_by_nothing_gives_nothing():
    a = torch.tensor([1.0, 1.0, 1.0, -2.0], dtype=torch.float64)
    b = torch.tensor([0.0, -1e-9, 2.0, 4.0], dtype=torch.float64, requires_grad=True)
    quotient = divide(a, b)
    torch.testing.assert_close(quotient, a.new_tensor([0, 0, 0.5, -0.5]), rtol=1e-8, atol=0)
    (slope,) = torch.autograd.grad(quotient.sum(), b)
    assert torch.isfinite(slope).all()


def test_linear_rules_share_out_what_they_are_given():
    x, weight, relevance = draw(2, 3, 64), draw(5, 64, seed=1), draw(2, 3, 5, seed=2)
    joint = linear_joint(relevance, x, weight)
    torch.testing.assert_close(total(joint), total(relevance), rtol=1e-6, atol=1e-6)
    # The plain rule gives all of it to each sign of x.
    plain = linear_plain(relevance, x, weight)
    torch.testing.assert_close(total(plain), 2 * total(relevance), rtol=1e-6, atol=1e-6)


def test_linear_rules_agree_where_the_input_has_one_sign():
    x, weight, relevance = draw(2, 8).abs(), draw(5, 8, seed=1), draw(2, 5, seed=2)
    joint, plain = linear_joint(relevance, x, weight), linear_plain(relevance, x, weight)
    torch.testing.assert_close(joint, plain)
    raising = weight.clamp(min=0)
    share = (x[0] * raising) / (x[0] @ raising.mT)[:, None] * relevance[0][:, None]
    torch.testing.assert_close(joint[0], share.sum(0), rtol=1e-7, atol=1e-9)


def test_factors_of_a_product_get_half_each():
    x, y, relevance = draw(2, 4, 3, 5), draw(2, 4, 5, 6, seed=1), draw(2, 4, 3, 6, seed=2)
    for factor in product(relevance, x, y):
        torch.testing.assert_close(total(factor), total(relevance) / 2, rtol=1e-5, atol=1e-5)


def test_terms_of_a_sum_share_in_proportion():
    a, b, relevance = draw(2, 3, 4), draw(2, 3, 4, seed=1), draw(2, 3, 4, seed=2)
    first, second = residual_plain(relevance, a, b)
    torch.testing.assert_close(first, relevance * a / (a + b), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(first + second, relevance, rtol=1e-5, atol=1e-7)


def test_balanced_terms_keep_the_total_of_each_image():
    a, b, relevance = draw(2, 3, 4), draw(2, 3, 4, seed=1), draw(2, 3, 4, seed=2)
    plain = [total(part).abs() for part in residual_plain(relevance, a, b)]
    balanced = [total(part) for part in residual_balanced(relevance, a, b)]
    for found, size in zip(balanced, plain, strict=True):
        expected = size / (plain[0] + plain[1]) * total(relevance)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_what_was_used_twice_gets_both_parts():
    x, first, second = draw(2, 3), draw(2, 3, seed=1), draw(2, 3, seed=2)
    torch.testing.assert_close(branch(x, first, second), first + second, rtol=1e-6, atol=1e-6)


def test_pixels_share_what_the_patches_are_given():
    image, weight, relevance = draw(2, 3, 8, 8), draw(6, 3, 4, 4, seed=1), draw(2, 6, 2, 2, seed=2)
    found = pixels(relevance, image, weight)
    assert found.shape == image.shape
    torch.testing.assert_close(total(found), total(relevance), rtol=1e-6, atol=1e-6)


TINY = ViTConfig(size=8, channels=1, patch=2, width=16, depth=3, heads=2, classes=4)


def start(distillation: str) -> tuple:
    vit = build_vit(TINY.model_copy(update={"distillation": distillation}), seed=1).double()
    return vit, draw(2, 1, 8, 8).clamp(-1, 1), torch.tensor([3, 1])


def test_only_layers_asked_for_are_walked():
    vit, images, labels = start("none")
    tape = vit.record(images)
    whole = attention_relevance(vit, tape, labels, PLAIN)
    late = attention_relevance(vit, tape, labels, PLAIN, start=2)
    assert (len(whole), len(late)) == (3, 1)
    assert torch.equal(whole[2], late[0])


def test_a_silent_distillation_head_takes_no_relevance():
    vit, images, labels = start("head")
    torch.nn.init.zeros_(vit.head_dist.weight)
    alone, _, _ = start("token")
    alone.load_state_dict({k: v for k, v in vit.state_dict().items() if "head_dist" not in k})
    for method in (full_lrp, lrp_rollout, partial_lrp):
        torch.testing.assert_close(
            method(vit, images, labels), method(alone, images, labels), rtol=1e-5, atol=1e-8
        )


@pytest.mark.parametrize("name", [name for name, m in METHODS.items() if "LRP" in m.needs])
def test_relevance_is_never_computed_in_low_precision(name):
    vit, images, labels = start("none")
    vit, images = vit.float(), images.float()
    expected = METHODS[name].run(vit, images, labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(METHODS[name].run(vit, images, labels), expected)


def test_two_prefix_tokens_are_no_places_of_the_image():
    vit, images, labels = start("head")
    assert transformer_attribution(vit, images, labels).shape == (2, 16)
    assert full_lrp(vit, images, labels).shape == (2, 8, 8)


@pytest.mark.parametrize("name", [name for name, m in METHODS.items() if "LRP" in m.needs])
def test_layers_without_rules_are_refused(name):
    other = as_classifier(
        lambda x: x.mean((2, 3)), shape=(1, 8, 8), class_names=("a",), name="my network"
    )
    with pytest.raises(UsageError, match="my network has layers without relevance rules"):
        METHODS[name].run(other, draw(1, 1, 8, 8), torch.tensor([0]))
