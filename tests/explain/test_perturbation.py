"""Perturbation tests: the recorded areas of the reference, and a classifier that counts pixels."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from conftest import FIXTURES
from diffit.errors import DataError
from diffit.explain.measures.perturbation import FRACTIONS, area, perturbation_test, removal_ranks
from diffit.explain.units import images_to_pm1


@pytest.fixture(scope="module")
def recorded():
    # Recorded from Transformer-Explainability c3e578f in float64, with random weights.
    return load_file(FIXTURES / "faithful_attribution.safetensors")


def tiny_vit(recorded):
    """The classifier of the fixture, written down again: images in [-1, 1] to logits."""
    w = {name.removeprefix("weights/"): t for name, t in recorded.items()}
    _, patch, width, depth, heads, *_ = recorded["config"].tolist()

    def norm(x, name):
        return F.layer_norm(x, (width,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def attention(x, name):
        q, k, v = linear(x, f"{name}.qkv").unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return linear(mixed.transpose(1, 2).flatten(2), f"{name}.proj")

    def classify(images):
        kernel, bias = w["patch_embed.proj.weight"], w["patch_embed.proj.bias"]
        x = F.conv2d(images, kernel, bias, stride=patch).flatten(2).mT
        x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], 1) + w["pos_embed"]
        for i in range(depth):
            x = x + attention(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn")
            hidden = F.gelu(linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1"))
            x = x + linear(hidden, f"blocks.{i}.mlp.fc2")
        return linear(norm(x, "norm")[:, 0], "head")

    return classify


@pytest.mark.parametrize(("order", "name"), [("positive", "pos"), ("negative", "neg")])
def test_the_recorded_areas_are_met(recorded, order, name):
    found = perturbation_test(
        tiny_vit(recorded),
        images_to_pm1(recorded["pert/images01"]),
        recorded["pert/relevance"].reshape(3, 32, 32),
        recorded["logits"].argmax(1),
        order=order,
    )
    assert torch.allclose(found.accuracy, recorded[f"pert/{name}_accuracy"], rtol=0, atol=1e-12)
    assert found.auc == pytest.approx(float(recorded[f"pert/{name}_auc"]), abs=1e-9)
    # Where equal pixels lie at the border, the reference's choice among them is torch.topk's.
    clear = [i for i, f in enumerate(FRACTIONS) if not tied(recorded["pert/relevance"], f, order)]
    expected = recorded[f"pert/{name}_prob"][clear]
    assert len(clear) >= 5
    assert torch.allclose(found.probability.mean(0)[clear], expected, rtol=1e-9, atol=1e-12)


def tied(relevance, fraction, order):
    """Whether the last pixel to go and the first to stay are equal, in any image."""
    count = int(fraction * relevance.shape[1])
    ordered = relevance.sort(dim=1, descending=order == "positive").values
    return bool((ordered[:, count - 1] == ordered[:, count]).any())


def bright(images):
    """Class 1 while more than a quarter of the pixels is white."""
    white = (images == 1).float().mean((1, 2, 3))
    return torch.stack([torch.full_like(white, 0.25), white], dim=1)


def test_accuracy_falls_when_the_pixels_that_matter_are_gone():
    images = torch.full((1, 1, 10, 10), -1.0)
    images[..., :5] = 1  # half of it is white, and the map knows it
    truth = torch.ones(1, dtype=torch.int64)
    relevance = (images[:, 0] + 1) / 2
    fall = perturbation_test(bright, images, relevance, truth, order="positive")
    assert fall.accuracy.tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert fall.auc == pytest.approx((0.1 + 0.05) / 0.8)
    hold = perturbation_test(bright, images, relevance, truth, order="negative")
    assert hold.accuracy.tolist() == [1, 1, 1, 1, 1, 1, 1, 0, 0]


def test_a_constant_curve_has_its_own_height_as_area():
    assert area(torch.full((4,), 0.3), [0.1, 0.2, 0.5, 0.9]) == pytest.approx(0.3)


def test_among_equal_pixels_the_first_goes_first():
    relevance = torch.tensor([[[1.0, 2.0], [2.0, 1.0]]])
    assert removal_ranks(relevance, "positive").tolist() == [[2, 0, 1, 3]]
    assert removal_ranks(relevance, "negative").tolist() == [[0, 2, 3, 1]]


def test_three_tenths_of_ten_pixels_are_three():
    counts = []

    def classify(images):
        counts.append(int((images == -1).sum()))
        return torch.zeros(1, 2)

    images, map_, label = torch.zeros(1, 1, 1, 10), torch.rand(1, 1, 10), torch.zeros(1).long()
    fractions = [0.1, 0.2, 0.3, 0.6, 0.7, 0.9, 0.95]
    perturbation_test(classify, images, map_, label, order="positive", fractions=fractions)
    assert counts == [1, 2, 3, 6, 7, 9, 9]


IMAGES, MAP, LABEL = torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2), torch.zeros(1).long()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"relevance": torch.zeros(1, 4)}, "one value per pixel"),
        ({"relevance": MAP / 0}, "not finite"),
        ({"labels": LABEL[:0]}, "0 labels"),
        ({"fractions": [0.5, 0.4]}, "rising"),
        ({"fractions": [0.5]}, "two or more"),
        ({"fractions": [0.5, 1.0]}, "between 0 and 1"),
        ({"order": "both"}, "choose positive or negative"),
    ],
)
def test_what_cannot_be_tested_is_refused_in_a_sentence(changed, sentence):
    given = {"images": IMAGES, "relevance": MAP, "labels": LABEL, "order": "positive", **changed}
    with pytest.raises(DataError) as error:
        perturbation_test(bright, **given)
    assert sentence in str(error.value)
