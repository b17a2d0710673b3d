"""How much a changed network changes the denoiser."""

from fractions import Fraction

import pytest
import torch

from diffit.config import parse
from diffit.data import open_dataset
from diffit.deploy.probe import Answer, Gap, Probe, answers, gaps, overall
from diffit.errors import DataError
from diffit.model import ModelConfig, build_model
from tiny import NETWORK


def model(**settings):
    config = parse(ModelConfig, {"network": {**NETWORK, "dropout": 0.0}, **settings}, source="test")
    made = build_model(config)
    with torch.no_grad():
        for number, weight in enumerate(made.network.parameters()):
            weight.add_(0.05 * torch.randn(weight.shape, generator=_source(number)))
    return made


def _source(seed):
    return torch.Generator().manual_seed(seed)


def digits():
    return open_dataset("builtin:digits")


def probe(made, images=4, levels=3, **choice):
    return Probe.of(made, digits(), images=images, levels=levels, **choice)


def test_levels_are_spread_as_in_training():
    made = model(formulation={"name": "flow"})
    found = probe(made, levels=4)
    middles = torch.tensor([1, 3, 5, 7], dtype=torch.float64) / 8
    assert torch.equal(found.sigmas, made.formulation.training_sigma(middles).sort().values)


def test_probes_are_the_same_every_time_and_others_have_other_images():
    made = model()
    one, again = probe(made), probe(made)
    other = probe(made, offset=Fraction(1, 3))
    assert torch.equal(one.clean, again.clean)
    assert torch.equal(one.noise, again.noise)
    assert not (one.clean[:, None] == other.clean).flatten(2).all(2).any()


def test_more_images_than_there_are():
    made = model()

    class Few:
        classes, shape = digits().classes, digits().shape

        def __len__(self):
            return 3

        def __getitem__(self, i):
            return digits()[i]

    assert len(Probe.of(made, Few(), images=8, levels=1, offset=Fraction(1, 3)).clean) == 3


def test_answers_are_those_of_the_denoiser():
    made = model()
    found = probe(made)
    for level, said in enumerate(answers(made, found)):
        given = found[level]
        with torch.no_grad():
            torch.testing.assert_close(said.clean, made.denoiser(*given))
            assert torch.equal(said.raw, made.denoiser.raw(*given))


def test_errors_are_relative():
    made = model()
    found = probe(made)
    exact = list(answers(made, found))
    assert [gap[1:] for gap in gaps(made, found, exact)] == [(0.0, 0.0)] * 3
    off = [Answer(said.clean / 1.1, said.raw / 1.25) for said in exact]
    for gap, sigma in zip(gaps(made, found, off), found.sigmas, strict=True):
        assert gap == (pytest.approx(float(sigma)), pytest.approx(0.1), pytest.approx(0.25))


def test_one_number_for_all_levels():
    assert overall([Gap(1.0, 9.0, 0.3), Gap(2.0, 9.0, 0.4)]) == pytest.approx(0.125**0.5)


def test_images_of_another_size_are_refused():
    with pytest.raises(DataError, match="the images are 3 x 32 x 32 for this model, which works"):
        Probe.of(model(), open_dataset("builtin:patches"), images=1, levels=1)


def test_labels_that_the_model_does_not_know_are_no_class():
    made = model(network={**NETWORK, "dropout": 0.0, "classes": 3})
    label = probe(made, images=30).label
    assert label.max() == 3
    assert {0, 1, 2, 3} == set(label.tolist())
