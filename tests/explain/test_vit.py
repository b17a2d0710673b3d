"""The ViT computes what the reference does, on both paths, and survives its folder."""

from pathlib import Path

import pytest
import torch
from reference_vit import recorded, reference_vit

from diffit.config import parse
from diffit.errors import CheckpointError, ConfigError, DataError, UsageError
from diffit.explain.classifier import as_classifier, fit, is_attentive, need_attention, normalise
from diffit.explain.classifier_folder import (
    ClassifierCard,
    is_classifier,
    load_classifier,
    read_card,
    save_classifier,
)
from diffit.explain.vit import ViT, ViTConfig, build_vit

TINY = ViTConfig(size=8, channels=1, patch=2, width=16, depth=2, heads=2, classes=4)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_logits_and_attention_are_those_of_the_reference():
    trace = reference_vit().traced(recorded()["images"])
    torch.testing.assert_close(trace.logits, recorded()["logits"], rtol=1e-9, atol=1e-12)
    maps = torch.stack(trace.attentions, dim=1)
    torch.testing.assert_close(maps, recorded()["out/attention_all"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("distillation", ["none", "token", "head"])
def test_both_paths_compute_the_same_logits(images, distillation):
    vit = build_vit(TINY.model_copy(update={"distillation": distillation})).double()
    trace = vit.traced(images)
    torch.testing.assert_close(vit(images), trace.logits, rtol=1e-10, atol=1e-12)
    assert trace.attentions[0].shape == (3, 2, vit.prefix + 16, vit.prefix + 16)
    rows = trace.attentions[1].sum(-1)
    torch.testing.assert_close(rows, torch.ones_like(rows))


def test_gradients_reach_the_attention_maps_even_of_a_frozen_network(images):
    vit = build_vit(TINY).requires_grad_(False)
    trace = vit.traced(images.requires_grad_())
    (slope,) = torch.autograd.grad(trace.logits.sum(), trace.attentions[0])
    assert slope.abs().sum() > 0


def test_an_image_is_classified_alike_in_any_batch(images):
    vit = build_vit(TINY).double()
    alone = torch.cat([vit(image[None]) for image in images])
    torch.testing.assert_close(vit(images), alone, rtol=1e-10, atol=1e-12)


def test_dropout_follows_from_the_key_of_an_image_alone(images):
    vit = build_vit(TINY.model_copy(update={"dropout": 0.5}))
    keys = torch.tensor([7, 8, 9])
    together = vit(images, keys)
    torch.testing.assert_close(vit(images[1:2], keys[1:2]), together[1:2])
    assert not torch.allclose(vit(images), together)


def test_the_start_follows_from_the_seed():
    first, again, other = (build_vit(TINY, seed=seed).head.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_normalisation_is_stated_for_pixels_in_0_1():
    images = torch.rand(2, 3, 4, 4)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(normalise(images * 2 - 1, mean, std), expected)


def test_images_of_the_right_size_are_not_resized(images):
    assert fit(images, (1, 8, 8)) is images
    constant = fit(torch.full((1, 1, 20, 12), 0.25), (1, 8, 8))
    torch.testing.assert_close(constant, torch.full((1, 1, 8, 8), 0.25))


def test_images_of_other_channels_are_refused(images):
    with pytest.raises(DataError, match="looks at images of 3 channels"):
        fit(images, (3, 8, 8))


def test_any_function_is_a_classifier(images):
    def brightness(x: torch.Tensor) -> torch.Tensor:
        mean = x.mean((1, 2, 3))
        return torch.stack([-mean, mean], 1)

    classifier = as_classifier(
        brightness, shape=(1, 8, 8), class_names=("dark", "bright"), mean=(0,), std=(1,)
    )
    assert classifier.classes == 2
    # It sees pixels in [0, 1].
    torch.testing.assert_close(classifier(images)[:, 1], ((images + 1) / 2).mean((1, 2, 3)))
    assert not is_attentive(classifier)
    with pytest.raises(UsageError, match="this classifier shows no attention"):
        need_attention(classifier)


def test_a_function_that_gives_no_logits_is_refused(images):
    classifier = as_classifier(lambda x: x.mean((1, 2, 3)), shape=(1, 8, 8), class_names=("a",))
    with pytest.raises(DataError, match=r"gave \(3,\) for 3 images"):
        classifier(images)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"patch": 3}, "size 8 is no multiple of patch 3"),
        ({"heads": 3}, "must be a multiple of heads"),
        ({"classes": 0, "class_names": []}, "0 class_names for 0 classes"),
        ({"classes": 2, "class_names": ["a"]}, "1 class_names for 2 classes"),
        ({"std": [0]}, "each must be above 0"),
        ({"mean": [0.1, 0.2]}, "mean has 2 numbers"),
        ({"width": 10**9}, "width is 1000000000"),
    ],
)
def test_wrong_settings_are_refused_in_a_sentence(wrong, sentence):
    data = TINY.model_dump(exclude={"class_names"})
    with pytest.raises(ConfigError, match=sentence):
        parse(ViTConfig, {**data, **wrong}, source="test")


def test_names_give_the_number_of_classes_and_the_number_gives_names():
    shape = {"size": 8, "patch": 2}
    assert ViTConfig(**shape, class_names=("cat", "dog")).classes == 2
    assert ViTConfig(**shape, classes=2).class_names == ("0", "1")


def save(folder: Path) -> ViT:
    vit = build_vit(TINY, seed=3)
    card = ClassifierCard(vit=TINY, data="builtin:digits", accuracy=0.5, held_out=10)
    save_classifier(folder, vit, card, state={"images": 5})
    return vit


def test_a_saved_classifier_is_read_back(tmp_path, images):
    vit = save(tmp_path / "c")
    again = load_classifier(tmp_path / "c")
    assert torch.equal(vit(images), again(images))
    assert read_card(tmp_path / "c").accuracy == 0.5
    assert not any(p.requires_grad for p in again.parameters())
    save(tmp_path / "c")  # replaces the older one


def test_a_damaged_folder_is_refused(tmp_path):
    save(tmp_path / "c")
    weights = tmp_path / "c" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="is damaged"):
        load_classifier(tmp_path / "c")


def test_an_edited_configuration_is_refused(tmp_path):
    save(tmp_path / "c")
    config = tmp_path / "c" / "config.yaml"
    config.write_text(config.read_text().replace("accuracy: 0.5", "accuracy: 0.9"))
    with pytest.raises(CheckpointError, match=r"config\.yaml does not match"):
        read_card(tmp_path / "c")


def test_other_folders_are_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    assert not is_classifier(tmp_path / "photos")
    with pytest.raises(CheckpointError, match=r"it has no state\.json"):
        load_classifier(tmp_path / "photos")
    with pytest.raises(CheckpointError, match="exists and is no classifier"):
        save(tmp_path / "photos")


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    vit = build_vit(TINY)
    with torch.no_grad():
        vit.head.bias[0] = torch.nan
    with pytest.raises(ValueError, match=r"head\.bias is not finite"):
        save_classifier(tmp_path / "c", vit, ClassifierCard(vit=TINY))
    assert not (tmp_path / "c").exists()
