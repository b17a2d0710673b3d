"""A checkpoint in the official layout, converted by the command, draws what the release drew."""

import json
from pathlib import Path

import pytest
import torch

from convert.files import recorded, write
from diffit import generation
from diffit.checkpoint import load
from diffit.cli import main
from diffit.diffusion.guidance import paired_estimate


class Recorded:
    """Stands in for the noise of seeds: the start, then the recorded draws."""

    def __init__(self, start, draws):
        self.draws = iter([start, *draws])

    def __call__(self, *_):
        return self

    def draw(self):
        return next(self.draws).double()


class Bare:
    """A codec that leaves what was drawn as it is."""

    factor, channels = 8, 4

    def decode(self, x):
        return x


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The fixtures of DiffiT and DiT, through `diffit convert` and `diffit.load`."""
    folder = tmp_path_factory.mktemp("converted")
    found = {}
    for family, options in (("diffit", []), ("dit", ["--heads", "4"])):
        tensors, state, meta = recorded(family)
        source = write(folder / f"{family}_8.safetensors", state)
        words = ["convert", str(source), "--out", str(folder / family), *options]
        assert main(words) == 0
        found[family] = load(folder / family), tensors, meta
    return found


def draw(monkeypatch, model, tensors, **changes):
    """`generation.draw`, as `diffit sample` calls it, from the recorded noise."""
    noise = tensors["sampling.ddpm.noise"]
    source = Recorded(tensors["sampling.z"], noise)
    monkeypatch.setattr(generation, "ImageNoise", lambda *_: source.draw)
    monkeypatch.setattr(model, "codec", Bare())
    settings = model.sampling.changed(steps=len(noise), **changes)
    label = tensors["sampling.y"][: len(tensors["sampling.z"])]
    generation.check(model, settings)
    return generation.draw(model, range(len(label)), label, settings)


@pytest.mark.parametrize("family", ["diffit", "dit"])
@pytest.mark.parametrize(
    ("name", "changes"), [("ddpm", {}), ("ddim", {"sampler": "ddim", "levels": "ddim"})]
)
def test_whole_runs_are_those_of_the_release(monkeypatch, models, family, name, changes):
    model, tensors, _ = models[family]
    expected = tensors[f"sampling.{name}.output"]
    if family == "dit" and name == "ddim":
        changes = changes | {"levels": "respaced"}  # as it was recorded
    drawn = draw(monkeypatch, model, tensors, **changes)
    gap = (drawn - expected).abs().max() / expected.abs().max()
    assert gap < 1e-5


def test_the_recommended_sampling_is_the_releases(models):
    model, _, meta = models["diffit"]
    sampling, cfg = model.sampling, meta["cfg"]
    assert (sampling.sampler, sampling.steps) == ("ancestral-learned", 250)
    assert (sampling.guidance, sampling.guidance_power) == (cfg["cfg_scale"], cfg["scale_pow"])
    assert (sampling.guidance_schedule, sampling.guidance_channels) == ("power-cosine", 3)
    model, _, meta = models["dit"]
    assert (model.sampling.guidance, model.sampling.guidance_channels) == (
        meta["cfg"]["cfg_scale"], meta["cfg"]["guided_channels"],
    )  # fmt: skip


def test_guided_noise_is_the_releases(models):
    model, tensors, _ = models["diffit"]
    weight = model.sampling.weight(model.formulation)
    for i in range(2):
        sigma = model.formulation.levels[tensors["input.t"][i]]
        x = tensors["input.x"][i : i + 1].double() * (1 + sigma**2).sqrt()
        guided = paired_estimate(
            model.denoiser.estimate, tensors["input.y"][i : i + 1], null=5, weight=weight,
            channels=model.sampling.guidance_channels,
        )  # fmt: skip
        noise = (x - guided(x, sigma).clean) / sigma
        expected = tensors["output_cfg"][i : i + 1, :4].double()
        torch.testing.assert_close(noise, expected, atol=2e-5, rtol=1e-5)


def test_the_certificate_is_in_the_folder_twice_and_the_licence_is_carried(models):
    model, _, _ = models["diffit"]
    folder = Path(model.provenance["checkpoint"])
    certificate = json.loads((folder / "certificate.json").read_text())
    card = json.loads((folder / "config.json").read_text())["card"]
    assert certificate["mapped"] == 32
    assert certificate["dropped"] == 2
    assert certificate["comparison"]["float64_relative"] < 1e-12
    assert certificate["comparison"]["float32_relative"] < 1e-5
    assert card["certificate"]["sha256"] == certificate["sha256"]
    assert model.provenance["licence"] == card["licence"] == "cc-by-nc-sa-4.0"
    assert "non-commercial" in card["licence_note"]
