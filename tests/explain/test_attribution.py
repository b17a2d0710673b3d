"""Every method: recorded maps, closed forms, and that no image's map depends on another image."""

from functools import partial

import pytest
import torch
from reference_vit import recorded, reference_vit

from diffit import draws
from diffit.errors import DataError, UsageError
from diffit.explain.attribution import (
    METHODS,
    cell_sums,
    display,
    get_method,
    positive_share,
    to_grid,
    token_maps,
    upsample,
)
from diffit.explain.attribution.attention import (
    class_row,
    class_row_of_product,
    raw_attention,
    rollout,
)
from diffit.explain.attribution.generic import attribution_rollout, generic_relevance
from diffit.explain.attribution.gradcam import gradcam
from diffit.explain.attribution.gradients import gradient_input, integrated_gradients, smoothgrad
from diffit.explain.classifier import as_classifier
from diffit.explain.smoothing import Job, Smoothed, Smoothing
from diffit.explain.vit import ViTConfig, build_vit

TINY = ViTConfig(size=8, channels=1, patch=2, width=16, depth=3, heads=2, classes=4)
LABELS = torch.tensor([3, 1, 0])


@pytest.fixture(scope="module")
def vit():
    # Larger weights than at the start of a training, so that attention and gradients are lively.
    vit = build_vit(TINY, seed=1).double()
    with torch.no_grad():
        for weight in vit.parameters():
            weight.mul_(4)
    return vit


@pytest.fixture
def images():
    return draws.normal(0, range(3), "images", (1, 8, 8)).double().clamp(-1, 1)


def linear(weight: torch.Tensor):
    """A classifier with one class, whose logit is <weight, image>."""
    return as_classifier(
        lambda x: (weight * x).sum((1, 2, 3))[:, None], shape=(1, 8, 8), class_names=("a",)
    )


RECORDED = {
    "raw_attention_last": lambda *a: raw_attention(*a),
    "attention_rollout_start0": lambda *a: rollout(*a),
    "attention_rollout_start1": lambda *a: rollout(*a, start=1),
    "gradcam_last_attention": lambda *a: display(gradcam(*a)),
}


@pytest.mark.parametrize("key", RECORDED)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-6), (torch.float32, 1e-3)])
def test_maps_are_those_of_the_reference(key, dtype, bound):
    images, labels = recorded()["images"].to(dtype), recorded()["out/class_index"]
    maps = RECORDED[key](reference_vit().to(dtype), images, labels)
    # Where all heads speak against the class the reference divides 0 by 0; ours is 0.
    expected = recorded()[f"out/{key}"].nan_to_num(0)
    assert ((maps - expected).abs().amax(1) <= bound * expected.abs().amax(1)).all()


@pytest.mark.parametrize("name", METHODS)
def test_an_image_is_explained_alike_in_any_batch(vit, images, name):
    run = METHODS[name].run
    alone = [run(vit, images[i : i + 1], LABELS[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(run(vit, images, LABELS), torch.cat(alone), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_the_table_says_what_a_method_gives(vit, images, name):
    method = METHODS[name]
    with torch.no_grad():  # as commands run
        maps = method.run(vit, images, LABELS)
        others = method.run(vit, images, (LABELS + 1) % 4)
    assert maps.shape == ((3, 16) if method.gives == "tokens" else (3, 8, 8))
    assert not maps.requires_grad
    assert (maps.min() < 0) == method.signed
    assert torch.equal(maps, others) == (not method.by_class)
    assert method.certifiable == (not method.signed)


@pytest.mark.parametrize("name", METHODS)
def test_maps_can_be_differentiated_by_the_images(vit, images, name):
    """The slope of a map along a direction is that of finite differences."""
    run = METHODS[name].run
    weights, way = torch.linspace(-1, 1, 16), draws.normal(1, range(3), "way", (1, 8, 8)).double()

    def objective(step: float, *, create_graph: bool = False) -> torch.Tensor:
        maps = run(vit, start + step * way, LABELS, create_graph=create_graph)
        cells = maps if maps.ndim == 2 else cell_sums(maps, vit.grid)
        return (cells * weights).sum()

    start = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(objective(0, create_graph=True), start)
    start = start.detach()
    step = 1e-6
    expected = (objective(step) - objective(-step)) / (2 * step)
    torch.testing.assert_close((slope * way).sum(), expected, rtol=1e-3, atol=1e-5)


def test_gradients_of_gradients_pass_through_fused_attention(images):
    frozen = build_vit(TINY).requires_grad_(False)
    images = images.float().requires_grad_()
    maps = gradient_input(frozen, images, LABELS, create_graph=True)
    (slope,) = torch.autograd.grad(maps.square().sum(), images)
    assert slope.abs().sum() > 0


def stacked(vit, images, weigh):
    """Attention and its gradients by a loop over images, as a check of the batched form."""
    found = []
    for image, label in zip(images, LABELS, strict=True):
        trace = vit.traced(image[None].requires_grad_())
        slopes = torch.autograd.grad(trace.logits[0, label], trace.attentions)
        found.append([weigh(a[0], g[0]) for a, g in zip(trace.attentions, slopes, strict=True)])
    return found


def test_generic_relevance_is_the_recursion_of_the_paper(vit, images):
    maps = generic_relevance(vit, images, LABELS)
    layers = stacked(vit, images, lambda a, g: (a * g).clamp(min=0).mean(0))
    for found, own in zip(maps, layers, strict=True):
        relevance = torch.eye(17, dtype=torch.float64)
        for layer in own:
            relevance = relevance + layer @ relevance
        torch.testing.assert_close(found, relevance[0, 1:])


def test_attribution_rollout_takes_the_loudest_head(vit, images):
    maps = attribution_rollout(vit, images, LABELS, start=1)
    layers = stacked(vit, images, lambda a, g: (0.5 * a * g).amax(0).clamp(min=0))
    for found, own in zip(maps, layers, strict=True):
        product = torch.eye(17, dtype=torch.float64)
        for layer in own[1:]:
            layer = layer + torch.eye(17)
            product = (layer / layer.sum(1, keepdim=True)) @ product
        torch.testing.assert_close(found, product[0, 1:])


def test_a_start_beyond_the_last_layer_is_the_last_layer(vit, images):
    assert torch.equal(rollout(vit, images, LABELS, start=9), rollout(vit, images, LABELS, start=2))
    with pytest.raises(ValueError, match="start is -1"):
        rollout(vit, images, LABELS, start=-1)


def test_maps_of_a_linear_classifier_are_known(images):
    weight = draws.normal(3, [0], "weight", (1, 8, 8)).double()
    classifier, labels = linear(weight), torch.zeros(3, dtype=torch.int64)
    torch.testing.assert_close(gradient_input(classifier, images, labels), (weight * images)[:, 0])
    black = integrated_gradients(classifier, images, labels, steps=1)
    torch.testing.assert_close(black, (weight * (images + 1))[:, 0])
    expected = weight.abs().sum(1).expand(3, -1, -1)
    torch.testing.assert_close(smoothgrad(classifier, images, labels, samples=2), expected)


def incompleteness(vit, images, steps: int) -> float:
    """How far integrated gradients are from summing to the change of the logit."""
    maps = integrated_gradients(vit, images, LABELS, steps=steps)
    ends = vit(images) - vit(torch.full_like(images, -1))
    change = ends.gather(1, LABELS[:, None])[:, 0]
    return (maps.sum((1, 2)) - change).abs().max().item()


def test_integrated_gradients_sum_to_the_change_of_the_logit():
    vit, images = reference_vit(), recorded()["images"]
    coarse, fine = incompleteness(vit, images, 64), incompleteness(vit, images, 128)
    assert fine < 1e-3
    assert coarse / fine == pytest.approx(4, rel=0.05)


def test_smoothgrad_follows_from_its_seed(vit, images):
    first, again, other = (smoothgrad(vit, images, LABELS, seed=s) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    still = smoothgrad(vit, images, LABELS, samples=1, sigma=0)
    torch.testing.assert_close(
        still, (gradient_input(vit, images, LABELS) / images[:, 0]).abs(), rtol=1e-6, atol=1e-9
    )


def test_images_of_another_size_are_explained_at_the_size_that_is_looked_at(vit):
    large = draws.normal(0, range(2), "large", (1, 20, 12)).double()
    for name, method in METHODS.items():
        maps = method.run(vit, large, LABELS[:2])
        assert maps.shape == ((2, 16) if method.gives == "tokens" else (2, 8, 8)), name


def test_any_map_becomes_one_number_for_each_token(vit, images):
    maps = token_maps("gradient-input", vit, images, LABELS)
    signed = gradient_input(vit, images, LABELS)
    expected = signed[:, :2, :2].sum((1, 2)).clamp(min=0)
    torch.testing.assert_close(maps[:, 0], expected)
    assert maps.shape == (3, 16)
    assert torch.equal(token_maps("rollout", vit, images, LABELS), rollout(vit, images, LABELS))


def test_a_classifier_without_tokens_is_explained_on_a_grid_of_the_users(images):
    classifier, labels = linear(torch.ones(1, 8, 8)), torch.zeros(3, dtype=torch.int64)
    maps = token_maps("smoothgrad", classifier, images, labels, grid=(2, 4))
    torch.testing.assert_close(maps, torch.full((3, 8), 8.0, dtype=torch.float64))
    with pytest.raises(UsageError, match="has no image tokens"):
        token_maps("smoothgrad", classifier, images, labels)
    with pytest.raises(UsageError, match="shows no attention"):
        token_maps("rollout", classifier, images, labels)
    with pytest.raises(ValueError, match="no grid of 3 x 3"):
        token_maps("smoothgrad", classifier, images, labels, grid=(3, 3))


def test_wrong_requests_are_refused_in_a_sentence(vit, images):
    with pytest.raises(UsageError, match="no explanation method 'rolout'; did you mean 'rollout'"):
        get_method("rolout")
    with pytest.raises(ValueError, match=r"labels must lie in 0 \.\. 3"):
        gradcam(vit, images, torch.tensor([0, 1, 4]))
    with pytest.raises(ValueError, match=r"give int64 \(3,\)"):
        METHODS["full-lrp"].run(vit, images, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="its grid cannot be chosen"):
        token_maps("rollout", vit, images, LABELS, grid=(2, 2))
    with pytest.raises(ValueError, match="steps is 0"):
        integrated_gradients(vit, images, LABELS, steps=0)
    with pytest.raises(ValueError, match="samples is 0"):
        smoothgrad(vit, images, LABELS, samples=0)
    with pytest.raises(DataError, match="gave a map that is not finite"):
        token_maps("rollout", vit, images * torch.nan, LABELS)


def test_a_classifier_without_gradients_is_refused(images):
    closed = as_classifier(
        lambda x: x.detach().mean((2, 3)), shape=(1, 8, 8), class_names=("a",), name="a table"
    )
    with pytest.raises(UsageError, match="a table lets no gradient through"):
        gradient_input(closed, images, torch.zeros(3, dtype=torch.int64))


def test_token_maps_are_drawn_between_the_centres_of_the_cells():
    picture = upsample(to_grid(torch.tensor([[0.0, 1.0, 0.0, 1.0]]), (2, 2)), (4, 4))
    expected = torch.tensor([0, 0.25, 0.75, 1]).expand(1, 4, 4)
    torch.testing.assert_close(picture, expected)
    with pytest.raises(ValueError, match="a grid"):
        to_grid(torch.zeros(1, 5), (2, 2))


def test_display_uses_the_whole_range_of_each_image():
    maps = torch.tensor([[1.0, 2.0, 5.0], [7.0, 7.0, 7.0]])
    torch.testing.assert_close(display(maps), torch.tensor([[0, 0.25, 1], [0, 0, 0]]))


def test_positive_shares_are_probabilities():
    shares = positive_share(torch.tensor([[1.0, -5.0, 3.0, 0.0], [-1.0, 0.0, 0.0, 0.0]]))
    torch.testing.assert_close(shares, torch.tensor([[0.25, 0, 0.75, 0], [0.25, 0.25, 0.25, 0.25]]))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_smoothed(vit, images, name):
    def sums(*ranges: range):
        explain = partial(token_maps, name, vit)
        smoothed = Smoothed(vit, Smoothing(sigma=0.5), explain)
        jobs = [Job(images[0], 0, "maps", copies, label=1) for copies in ranges]
        return sum(job.total for job in smoothed.run(iter(jobs)))

    together = sums(range(8))
    assert together.sum() == pytest.approx(8)
    assert together.min() >= 0
    # A copy's map depends neither on the unit it is computed in nor on the others.
    assert sums(range(5), range(5, 8)) == pytest.approx(together, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_no_image_has_no_map(vit, images, name):
    assert len(METHODS[name].run(vit, images[:0], LABELS[:0])) == 0


def test_without_a_class_token_all_rows_count_alike():
    first, last = draws.normal(0, range(2), "layers", (2, 5, 5)).double()
    torch.testing.assert_close(class_row(last, 0), last.mean(1))
    found = class_row_of_product([first, last], 0)
    torch.testing.assert_close(found, (last @ first).mean(1))
