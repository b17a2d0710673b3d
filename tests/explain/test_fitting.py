"""Which classifiers, denoisers, noise levels and images go together."""

import pytest
import torch

from diffit.config import parse
from diffit.errors import UsageError
from diffit.explain.classifier import as_classifier
from diffit.explain.fitting import check_fit, check_sigma, denoise_of, path_of, smoothing_of
from diffit.model import Model, ModelConfig, build_model, empty_model

DIT = {"name": "dit", "size": 8, "channels": 1, "patch": 4, "width": 16, "depth": 1, "heads": 2}
LATENT = {"name": "autoencoder", "path": "nowhere", "channels": 1}


def model(*, formulation=None, codec=None, empty=True, **network) -> Model:
    settings = {"network": {**DIT, "learned_variance": False, **network}}
    settings |= {"formulation": formulation} if formulation else {}
    settings |= {"codec": codec} if codec else {}
    config = parse(ModelConfig, settings, source="test")
    return empty_model(config) if empty else build_model(config)


def classifier(*shape):
    return as_classifier(lambda x: x.flatten(1)[:, :2], shape=shape, class_names="ab", name="judge")


def test_what_was_made_for_the_same_images_goes_together():
    assert check_fit(classifier(1, 8, 8), model(), (1, 8, 8)) is None
    assert check_fit(classifier(1, 8, 8), None, (1, 8, 8)) is None


def test_a_classifier_that_resizes_is_said():
    note = check_fit(classifier(1, 16, 16), model(), (1, 8, 8))
    assert note == "radii belong to images of 8 x 8; judge resizes the denoised ones to 16 x 16"
    assert "the noisy ones" in check_fit(classifier(1, 16, 16), None, (1, 8, 8))


@pytest.mark.parametrize(
    ("shape", "denoiser", "image", "message"),
    [
        ((3, 8, 8), {}, (3, 8, 8), "denoiser works on images of 1 channels and judge looks at 3"),
        ((3, 8, 8), None, (1, 8, 8), "judge looks at images of 3 channels and these have 1"),
        ((1, 8, 8), {}, (1, 16, 16), "denoiser works on images of 8 x 8 and these are 16 x 16"),
        ((1, 8, 8), {"codec": LATENT}, (1, 8, 8), "works on latents, where a radius would say"),
    ],
)
def test_what_does_not_go_together_is_refused(shape, denoiser, image, message):
    with pytest.raises(UsageError, match=message):
        check_fit(classifier(*shape), None if denoiser is None else model(**denoiser), image)


@pytest.mark.parametrize("sigma", [0.002, 81.0])
def test_noise_that_the_denoiser_does_not_know_is_refused_in_both_units(sigma):
    with pytest.raises(UsageError, match=rf"asked for {sigma:g} \(for pixels in \[0, 1\]: "):
        check_sigma(model(), sigma)


def test_the_levels_of_a_discrete_schedule_are_its_ends():
    ddpm = model(formulation={"name": "ddpm", "learned_variance": False})
    check_sigma(ddpm, 0.5)
    with pytest.raises(UsageError, match=r"from noise 0\.0100005 to"):
        check_sigma(ddpm, 0.005)


def test_a_denoiser_of_classes_is_told_of_none():
    conditional = model(classes=3, empty=False)
    torch.manual_seed(0)
    for weight in conditional.network.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    x, sigma = torch.randn(2, 1, 8, 8), torch.tensor(0.5, dtype=torch.float64)
    none, first = (conditional.denoiser(x, sigma, torch.full((2,), k)) for k in (3, 0))
    assert torch.equal(denoise_of(conditional)(x, sigma), none)
    assert not torch.equal(none, first)


def test_a_denoiser_that_must_know_the_class_is_refused():
    with pytest.raises(UsageError, match="must be told the class of every image"):
        denoise_of(model(classes=3, null_class=False))


def test_a_denoiser_of_latents_is_refused():
    with pytest.raises(UsageError, match="smoothing needs one of pixels"):
        denoise_of(model(codec=LATENT))


def test_a_path_walks_from_sigma_to_zero():
    path = path_of(model(), 0.5, 4, "ddim")
    assert path.sigmas[0] == 0.5
    assert path.sigmas[-1] == 0
    assert (path.sigmas.diff() < 0).all()
    assert len(path.sigmas) == 5


def test_smoothing_of_a_model_denoises_in_one_step_or_in_several():
    small = model(empty=False)
    noisy = torch.randn(2, 1, 8, 8)
    one = smoothing_of(small, 0.5, seed=4)
    assert (one.path, one.seed, one.sigma) == (None, 4, 0.5)
    several = smoothing_of(small, 0.5, steps=3, oversmooth=2.0)
    assert several.path.sigmas[0] == 1.0
    for smoothing in (one, several):
        assert smoothing.shown(noisy).shape == noisy.shape
    assert smoothing_of(None, 0.5).denoise is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: path_of(model(), 0.5, 4, "ancestral-learned"), "take 'ancestral'"),
        (lambda: path_of(model(), 0.5, 4, "hein"), "there is no sampler 'hein'"),
        (lambda: path_of(model(), 0.5, 0), "steps is 0"),
        (lambda: smoothing_of(None, 0.5, steps=3), "3 steps need a denoiser"),
        (lambda: smoothing_of(model(), 50.0, oversmooth=2.0), "asked for 100"),
    ],
)
def test_paths_that_cannot_be_walked_are_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()
