"""Generation: exact images from exact denoisers, and what an image does and does not depend on."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffit.codecs import Pixels
from diffit.diffusion.denoiser import Denoiser, over
from diffit.diffusion.formulation import (
    DDPMConfig,
    EDMConfig,
    FlowConfig,
    FormulationConfig,
    VPConfig,
    build_formulation,
)
from diffit.draws import generator
from diffit.errors import UsageError
from diffit.generation import generate, label_tensor, units
from diffit.model import Model, ModelConfig, build_model
from diffit.networks import DiffiTConfig
from diffit.samplers import SAMPLERS, ImageNoise
from diffit.samplers.heun import euler
from diffit.sampling import LEVEL_OPTIONS, OPTIONS, SamplingConfig
from oracle import Gaussian

MEANS, NULL, STD = (-0.5, 0.1, 0.4), -0.1, 0.1
SHAPE = (1, 8, 8)


class Classes(nn.Module):
    """The network that makes D exact for pixels from N(mean of the class, STD^2)."""

    def __init__(self, formulation, means: tuple[float, ...], null: float) -> None:
        super().__init__()
        self.formulation = formulation
        self.means = nn.Parameter(torch.tensor([*means, null], dtype=torch.float64))

    def forward(self, x, time, label=None, image=None, *, augment=None, keys=None):
        sigma = torch.exp(4 * time.double())  # EDM's noise is log(sigma) / 4
        skip, out, inp, _ = self.formulation.scalings(sigma)
        seen = x / over(inp, x)
        if label is None:
            label = torch.full((len(x),), len(self.means) - 1)
        mean = self.means[label].reshape(-1, 1, 1, 1)
        clean = mean + over(STD**2 / (STD**2 + sigma**2), x) * (seen - mean)
        return (clean - over(skip, x) * seen) / over(out, x)


def exact(means: tuple[float, ...] = MEANS, null: float = NULL) -> Model:
    config = ModelConfig(
        network=DiffiTConfig(size=8, channels=1, classes=len(means), widths=(8,), blocks=(1,)),
        formulation=EDMConfig(),
    )
    formulation = build_formulation(config.formulation)
    return Model(Denoiser(Classes(formulation, means, null), formulation), Pixels(), config)


def tiny(formulation: FormulationConfig | None = None, *, classes: int = 3, seed: int = 0) -> Model:
    """A DiffiT with random weights, none of them zero."""
    formulation = formulation or EDMConfig()
    learned = getattr(formulation, "learned_variance", False)
    network = DiffiTConfig(
        size=8, channels=1, classes=classes, widths=(16, 16), blocks=(1, 1), heads=2, window=4,
        time_width=32, time_features=16, groups=4, learned_variance=learned,
    )  # fmt: skip
    model = build_model(ModelConfig(network=network, formulation=formulation), seed=seed)
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.network.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=source))
    return model


def start(seeds: range, sigma: float = 80.0) -> Tensor:
    rows = [generator(s, 0, "sample").standard_normal(SHAPE, dtype="float32") for s in seeds]
    return sigma * torch.from_numpy(np.stack(rows)).double()


def pixels(clean: Tensor) -> Tensor:
    return ((clean + 1) * 127.5).round().clamp(0, 255)


def gap(images: Tensor, expected: Tensor) -> float:
    return (images.double() - pixels(expected)).abs().max().item()


def test_images_are_where_the_flow_leads() -> None:
    images = generate(exact(), range(5), labels=[0, 1, 2, 1, 0], steps=60)
    x = start(range(5))
    for i, label in enumerate([0, 1, 2, 1, 0]):
        assert gap(images[i], Gaussian(MEANS[label], STD).solution(x[i], 80.0, 0.0)) <= 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_draws_the_class_it_is_asked_for(name: str) -> None:
    if SAMPLERS[name].wants_estimate:
        model, steps = tiny(DDPMConfig()), 5
        assert generate(model, range(2), labels=1, sampler=name, steps=steps).shape == (2, 1, 8, 8)
        return
    steps = 400 if name == "ncsn" else 40  # Langevin steps alone want levels that lie close
    images = generate(exact(), range(40), labels=2, sampler=name, steps=steps).double() / 127.5 - 1
    # 2560 pixels: the standard error of the mean is 0.002; 40 steps leave some error themselves.
    assert images.mean().item() == pytest.approx(MEANS[2], abs=0.02)
    assert images.std().item() == pytest.approx(STD, rel=0.25)


def test_no_label_draws_from_the_null_class() -> None:
    images = generate(exact(), range(3), steps=60)
    assert gap(images, Gaussian(NULL, STD).solution(start(range(3)), 80.0, 0.0)) <= 1
    mixed = generate(exact(), range(3), labels=[None, 1, None], steps=60)
    assert torch.equal(mixed[[0, 2]], images[[0, 2]])


def test_guidance_moves_the_mean_away_from_the_null_class() -> None:
    # D is linear in the mean: guiding Gaussians of one width guides their means.
    images = generate(exact(), range(3), labels=0, steps=60, guidance=1.5)
    mean = NULL + 1.5 * (MEANS[0] - NULL)
    assert gap(images, Gaussian(mean, STD).solution(start(range(3)), 80.0, 0.0)) <= 1


def test_autoguidance_moves_the_mean_away_from_the_reference() -> None:
    other = exact(means=(-0.3, 0.0, 0.5))
    images = generate(exact(), range(3), labels=0, steps=60, guidance=2.0, reference=other)
    mean = -0.3 + 2 * (MEANS[0] + 0.3)
    assert gap(images, Gaussian(mean, STD).solution(start(range(3)), 80.0, 0.0)) <= 1


def test_autoguidance_needs_no_classes() -> None:
    model, other = tiny(classes=0), tiny(classes=0, seed=1)
    plain = generate(model, range(2), steps=4)
    assert not torch.equal(plain, generate(model, range(2), steps=4, guidance=2, reference=other))
    assert torch.equal(plain, generate(model, range(2), steps=4, guidance=1, reference=other))


def test_guidance_outside_its_interval_does_nothing() -> None:
    plain = generate(exact(), range(2), labels=0, steps=20)
    aside = SamplingConfig(
        steps=20, guidance=3, guidance_schedule="interval", guidance_low=90, guidance_high=99
    )
    assert torch.equal(generate(exact(), range(2), labels=0, settings=aside), plain)
    everywhere = SamplingConfig(steps=20, guidance=3, guidance_schedule="interval")
    assert torch.equal(
        generate(exact(), range(2), labels=0, settings=everywhere),
        generate(exact(), range(2), labels=0, steps=20, guidance=3),
    )


def test_power_cosine_guides_less_than_its_weight() -> None:
    def mean(settings: SamplingConfig) -> float:
        return generate(exact(), range(4), labels=0, settings=settings).double().mean().item()

    plain = mean(SamplingConfig())
    cosine = mean(SamplingConfig(guidance=2, guidance_schedule="power-cosine", guidance_power=2))
    full = mean(SamplingConfig(guidance=2))
    assert full < cosine - 2 < plain - 4


def test_only_the_first_channels_are_guided_when_asked() -> None:
    network = DiffiTConfig(
        size=8, channels=3, classes=2, widths=(8,), blocks=(1,), heads=2, groups=4
    )
    model = build_model(ModelConfig(network=network))
    with torch.no_grad():
        for weight in model.network.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    settings = SamplingConfig(sampler="euler", steps=1, guidance=3, guidance_channels=2)
    plain = generate(model, [0], labels=1, sampler="euler", steps=1)
    images = generate(model, [0], labels=1, settings=settings)
    assert torch.equal(images[:, 2], plain[:, 2])
    assert not torch.equal(images[:, :2], plain[:, :2])


def test_estimates_are_clipped_when_asked() -> None:
    model = exact(means=(3.0,), null=0.0)
    seen: list[float] = []
    settings = SamplingConfig(clip=True, steps=6)
    generate(
        model, [0], labels=0, settings=settings, on_step=lambda _, x: seen.append(float(x.max()))
    )
    assert max(seen) == 1.0


def noise_of(model: Model, monkeypatch: pytest.MonkeyPatch, batch: int | None) -> Tensor:
    """The first state of each image, as the denoiser sees it."""
    first: list[Tensor] = []
    forward = Denoiser.forward

    def spy(self, x, sigma, *args, **kwargs):
        if float(sigma) == 80.0:
            first.append(x.clone())
        return forward(self, x, sigma, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Denoiser, "forward", spy)
        generate(model, range(10), labels=1, sampler="euler", steps=3, batch=batch)
    return torch.cat(first)[:10]


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_batches_of_any_size_start_from_the_same_noise(
    batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # bit for bit, and that of the seeds alone
    assert torch.equal(noise_of(tiny(), monkeypatch, batch), start(range(10)))


def test_batches_of_any_size_agree_up_to_rounding() -> None:
    model = tiny()
    labels = [i % 3 for i in range(65)]
    one, seven, all_, fixed = (
        generate(model, range(65), labels=labels, steps=6, guidance=1.5, batch=batch).int()
        for batch in (1, 7, 64, None)
    )
    for other in (seven, all_, fixed):
        assert (one - other).abs().max() <= 1
        assert (one != other).float().mean() < 1e-3


def test_states_of_any_batch_differ_by_float32_rounding_alone() -> None:
    def last(batch: int) -> Tensor:
        final: dict[int, Tensor] = {}
        count = 0

        def keep(sigma: float, clean: Tensor) -> None:
            nonlocal count
            if sigma < 0.01:
                final[count] = clean
                count += 1

        model = tiny()
        generate(model, range(14), labels=0, sampler="euler", steps=8, batch=batch, on_step=keep)
        return torch.cat(list(final.values()))

    apart = (last(1) - last(7)).abs().max().item()
    assert apart < 2e-5  # measured 1.4e-6: the network's rounding, not grown by the sampler


def test_units_depend_on_neither_count_nor_what_else_is_drawn() -> None:
    model = tiny()
    whole = generate(model, range(20), labels=0, steps=4)
    assert torch.equal(generate(model, range(11), labels=0, steps=4), whole[:11])
    assert torch.equal(generate(model, range(8, 20), labels=0, steps=4), whole[8:])
    assert torch.equal(generate(model, [0], labels=0, steps=4)[0], whole[0])


def test_the_sampler_noise_of_an_image_is_its_own() -> None:
    model = tiny()
    settings = SamplingConfig(sampler="heun", steps=6, churn=20)
    both = generate(model, [3, 4], labels=0, settings=settings, batch=2).int()
    alone = generate(model, [4], labels=0, settings=settings, batch=1).int()
    assert (both[1] - alone[0]).abs().max() <= 1


def test_equal_seeds_give_equal_images_and_others_others() -> None:
    images = generate(tiny(), [5, 6, 5], labels=0, steps=4)
    assert torch.equal(images[0], images[2])
    assert not torch.equal(images[0], images[1])


@pytest.mark.parametrize(
    ("count", "size", "fill", "expected"),
    [
        (5, 2, True, [([0, 1], 2), ([2, 3], 2), ([4, 4], 1)]),
        (5, 2, False, [([0, 1], 2), ([2, 3], 2), ([4], 1)]),
        (1, 4, True, [([0, 0, 0, 0], 1)]),
        (4, 4, True, [([0, 1, 2, 3], 4)]),
        (0, 4, True, []),
    ],
)
def test_units_cover_every_place_once(count, size, fill, expected) -> None:
    assert [tuple(unit) for unit in units(count, size, fill=fill)] == expected


def test_no_seeds_give_no_images() -> None:
    images = generate(tiny(), [])
    assert images.shape == (0, 1, 8, 8)
    assert images.dtype == torch.uint8


def test_each_evaluation_is_told() -> None:
    told: list[float] = []
    generate(tiny(), [0], labels=0, steps=5, on_step=lambda sigma, _: told.append(sigma))
    assert len(told) == SAMPLERS["heun"].evaluations(5)
    assert told[0] == 80.0


def test_ending_above_zero_decodes_the_published_state() -> None:
    config = ModelConfig(
        network=DiffiTConfig(size=8, channels=1, widths=(8,), blocks=(1,)), formulation=VPConfig()
    )
    model = build_model(config)
    settings = SamplingConfig(
        sampler="euler", levels="uniform", steps=2, sigma_min=2.0, to_zero=False
    )
    sigmas, states = settings.sigmas(model.formulation), []
    model.codec.decode = lambda x: states.append(x) or torch.zeros(1)  # type: ignore[method-assign]
    generate(model, [3], settings=settings)
    noise = ImageNoise([3], SHAPE, torch.device("cpu"), torch.float64)
    start = noise() * model.formulation.prior_std(sigmas[0])
    x = euler(model.denoiser, start, sigmas)
    assert sigmas[-1].item() == pytest.approx(2)
    torch.testing.assert_close(states[0][:1], x * (1 + sigmas[-1] ** 2) ** -0.5)


def test_the_model_recommends_and_the_caller_decides() -> None:
    model = tiny()
    model.sampling = SamplingConfig(sampler="ddim", levels="log-uniform", steps=3, eta=0.5)
    own = generate(model, [0], labels=0)
    assert torch.equal(own, generate(model, [0], labels=0, settings=model.sampling))
    # eta means nothing to Heun: it is left behind with the sampler it was meant for
    assert torch.equal(
        generate(model, [0], labels=0, sampler="heun"),
        generate(model, [0], labels=0, settings=SamplingConfig(steps=3)),
    )


@pytest.mark.parametrize(
    ("approximation", "largest"),
    [
        ({"guidance_every": 2}, 3),
        ({"guidance_skip": 0.05}, 3),
        ({"reuse_every": 2}, 20),
        ({"reuse_every": 3, "reuse_share": 1.0, "guidance_every": 3}, 60),
    ],
)
def test_approximations_stay_near_and_follow_from_the_seed(approximation, largest) -> None:
    how = SamplingConfig(steps=12, guidance=1.5, guidance_schedule="power-cosine", guidance_power=2)
    near = SamplingConfig(**{**how.model_dump(), **approximation})
    assert near.approximate
    assert near.exact() == how.model_copy(update={"reuse_share": near.reuse_share})
    assert not how.approximate
    model = tiny()
    exact = generate(model, range(11), labels=1, settings=how).int()
    images = generate(model, range(11), labels=1, settings=near).int()
    assert 0 < (exact - images).abs().float().mean() < largest
    assert torch.equal(generate(model, range(3), labels=1, settings=near).int(), images[:3])
    assert torch.equal(generate(model, range(11), labels=1, settings=how).int(), exact)


def test_reusing_the_difference_to_the_reference_costs_less_the_more_steps_there_are() -> None:
    def cost(steps: int) -> int:
        full = SamplingConfig(steps=steps, guidance=1.5)
        drawn = [
            generate(exact(), range(3), labels=0, settings=settings).int()
            for settings in (full, full.changed(guidance_every=2))
        ]
        return int((drawn[0] - drawn[1]).abs().max())

    assert cost(60) > 1 >= cost(240)


@pytest.mark.parametrize("config", [VPConfig(), FlowConfig(), DDPMConfig(learned_variance=False)])
def test_every_formulation_is_sampled_with_the_defaults(config: FormulationConfig) -> None:
    assert generate(tiny(config), range(2), labels=1, steps=4).shape == (2, 1, 8, 8)


def test_low_precision_stays_near() -> None:
    model = tiny()
    settings = SamplingConfig(steps=4, precision="bf16")
    low = generate(model, range(4), labels=0, settings=settings).int()
    full = generate(model, range(4), labels=0, steps=4).int()
    assert not torch.equal(low, full)
    assert (low - full).abs().float().mean() < 8


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"labels": 3}, "label 3 is none of this model's 0 to 2"),
        ({"labels": [0, -1]}, "label -1 is none of this model's 0 to 2"),
        ({"labels": [0]}, "there are 1 labels for 2 seeds"),
        ({"sampler": "huen"}, "sampler 'huen' is unknown; did you mean 'heun'?"),
        ({"steps": 0}, "steps"),
        ({"guidance": -1.0}, "guidance"),
        ({"batch": 0}, "batch is 0"),
        ({"sampler": "ancestral-learned"}, "needs a learned variance"),
        ({"settings": SamplingConfig(guidance_channels=2)}, "guidance_channels is 2; this model"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match="(?s)" + sentence.replace("?", r"\?")):
        generate(tiny(), range(2), **arguments)


def test_models_without_classes_take_no_labels_and_no_guidance() -> None:
    model = tiny(classes=0)
    with pytest.raises(ValueError, match="trained without classes"):
        generate(model, [0], labels=0)
    with pytest.raises(ValueError, match="guidance needs a model with classes"):
        generate(model, [0], guidance=2)
    assert label_tensor(model, None, 3) is None


def test_a_reference_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="they must agree"):
        generate(tiny(), [0], labels=0, guidance=2, reference=tiny(classes=2))


def test_levels_that_the_model_cannot_have_are_refused() -> None:
    settings = SamplingConfig(sampler="ddim", levels="respaced")
    with pytest.raises(UsageError, match="no discrete levels"):
        generate(tiny(), [0], settings=settings)
    with pytest.raises(UsageError, match="'flow' has no option 'rho'"):
        generate(tiny(), [0], settings=SamplingConfig(levels="flow", rho=7))


@pytest.mark.parametrize("name", OPTIONS)
def test_options_that_a_sampler_does_not_understand_are_refused_by_name(name: str) -> None:
    words = {"variance": "large", "variant": "bh1", "predictor": "ancestral", "corrector": "ald"}
    value = {**words, "order": 2, "corrections": 1}.get(name, 0.5)
    owner = next(key for key, sampler in SAMPLERS.items() if name in sampler.options)
    assert getattr(SamplingConfig(sampler=owner, **{name: value}), name) == value
    with pytest.raises(ValueError, match=f"sampler 'euler' has no option '{name}'"):
        SamplingConfig(sampler="euler", **{name: value})


def test_every_option_of_every_sampler_and_level_list_is_a_setting() -> None:
    from diffit.diffusion.schedule import LEVELS

    assert set(OPTIONS) == {option for s in SAMPLERS.values() for option in s.options}
    assert set(LEVEL_OPTIONS.values()) == {o for _, options in LEVELS.values() for o in options}
    kinds = SamplingConfig.model_fields["levels"].annotation
    assert all(kind in repr(kinds) for kind in LEVELS)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"guidance_power": 3}, "guidance_power is for guidance_schedule 'power-cosine' alone"),
        ({"guidance_high": 3}, "guidance_high is for guidance_schedule 'interval' alone"),
        (
            {"guidance_schedule": "interval", "guidance_low": 3, "guidance_high": 3},
            "must be above guidance_low",
        ),
    ],
)
def test_guidance_settings_of_another_schedule_are_refused(settings: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SamplingConfig(**settings)


def test_diverging_samples_are_refused_not_drawn_black() -> None:
    model = tiny()
    with torch.no_grad():
        next(model.network.parameters()).fill_(math.nan)
    with pytest.raises(ValueError, match="not finite"):
        generate(model, [0], labels=0, steps=2)
