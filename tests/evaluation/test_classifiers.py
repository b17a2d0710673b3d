"""The shipped classifiers: what their files claim is measured here again."""

import json

import pytest
import torch
from safetensors.torch import save_file

from diffit.data import open_dataset
from diffit.errors import CheckpointError
from diffit.evaluation.classifiers import NAMES, load_classifier, shipped


def everything(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    dataset = open_dataset(name)
    examples = [dataset[i] for i in range(len(dataset))]
    images = torch.stack([torch.from_numpy(e.image) for e in examples])
    return images, torch.tensor([e.label for e in examples])


@pytest.mark.parametrize(("name", "least"), [("digits", 0.985), ("patches", 0.985)])
def test_the_held_out_accuracy_is_the_one_in_the_file(name, least):
    network, _ = load_classifier(shipped(f"{name}-cnn"))
    images, labels = everything(f"builtin:{name}-test")
    with torch.inference_mode():
        _, logits = network(images)
    accuracy = float((logits.argmax(1) == labels).float().mean())
    assert accuracy == pytest.approx(network.config.accuracy, abs=1e-6)
    assert accuracy >= least
    assert network.config.classes == open_dataset(f"builtin:{name}").classes


@pytest.mark.parametrize("name", NAMES)
def test_the_files_are_small_and_the_features_have_unit_variance(name):
    assert shipped(name).stat().st_size < 1 << 20
    network, _ = load_classifier(shipped(name))
    images, _ = everything(f"builtin:{name.removesuffix('-cnn')}")
    with torch.inference_mode():
        features, _ = network(images[::3])
    assert 64 <= features.shape[1] <= 128
    assert float(features.var(0).mean()) == pytest.approx(1, rel=0.1)
    # More than the directions that tell the classes apart: features also see style.
    spectrum = torch.linalg.svdvals(features - features.mean(0)).square()
    assert float(spectrum.sum() ** 2 / spectrum.square().sum()) > 3
    assert int((spectrum > 1e-3 * spectrum[0]).sum()) > 15


def test_digits_of_any_size_and_colour_are_seen_alike():
    network, _ = load_classifier(shipped("digits-cnn"))
    images, _ = everything("builtin:digits-test")
    large = images[:20].repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)
    with torch.inference_mode():
        small_features, _ = network(images[:20])
        large_features, _ = network(large)
    torch.testing.assert_close(small_features, large_features, atol=1e-4, rtol=1e-4)


def test_noise_is_far_from_digits_and_digits_are_near():
    network, _ = load_classifier(shipped("digits-cnn"))
    images, _ = everything("builtin:digits")
    noise = torch.randint(0, 256, images.shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        real, fake = network(images)[0], network(noise.to(torch.uint8))[0]
    assert float((real.mean(0) - fake.mean(0)).square().sum()) > 1


def test_a_file_that_is_no_classifier_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is missing; install the package again"):
        load_classifier(tmp_path / "absent.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="no classifier of this package"):
        load_classifier(tmp_path / "other.safetensors")
    config = {"size": 8, "channels": 1, "widths": [8], "features": 4, "classes": ["a"]}
    meta = {"config": json.dumps(config | {"accuracy": 1.0, "data": ""})}
    save_file({"a": torch.zeros(1)}, tmp_path / "empty.safetensors", meta)
    with pytest.raises(CheckpointError, match="no classifier of this package"):
        load_classifier(tmp_path / "empty.safetensors")
