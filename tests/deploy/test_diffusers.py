"""The pipeline draws what our samplers draw, with schedulers of diffusers; what does not fit is
refused by name."""

import importlib
import sys

import diffusers
import pytest
import torch
from PIL import Image
from torch import nn

from diffit.deploy.diffusers import DenoiserModel, DiffiTPipeline
from diffit.diffusion.formulation import DDPMConfig, EDMConfig, FlowConfig, VEConfig, VPConfig
from diffit.diffusion.guidance import constant, paired, paired_estimate
from diffit.diffusion.schedule import levels
from diffit.errors import UsageError
from diffit.model import ModelConfig, build_model
from diffit.networks import DiTConfig
from diffit.samplers import SAMPLERS
from diffit.sampling import SamplingConfig

NAMES = ("cat, house cat", "dog", "owl")


def model(formulation=None, *, classes=3, channels=3, names=NAMES):
    formulation = formulation or DDPMConfig(learned_variance=True)
    network = DiTConfig(
        size=8, channels=channels, patch=2, width=32, depth=2, heads=2, classes=classes,
        learned_variance=getattr(formulation, "learned_variance", False),
    )  # fmt: skip
    config = ModelConfig(
        network=network, formulation=formulation, class_names=names if classes == 3 else ()
    )
    built = build_model(config, seed=1)
    torch.manual_seed(0)
    for weight in built.network.parameters():
        nn.init.normal_(weight, std=0.1)
    return built


@pytest.fixture(scope="module")
def ddpm():
    return model()


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise(count=2, channels=3, seed=0):
    return torch.randn(count, channels, 8, 8, generator=torch.Generator().manual_seed(seed))


LABEL = torch.tensor([0, 2])
LINEAR = {"num_train_timesteps": 1000, "clip_sample": False, "beta_start": 1e-4, "beta_end": 0.02}
EVEN = {**LINEAR, "timestep_spacing": "linspace"}


def drawn(built, sampler, sigmas, *, guidance=3.0, learned=False, next_noise=None, **options):
    """Our own sampler from the same start."""
    pair, ask = (paired_estimate, built.denoiser.estimate) if learned else (paired, built.denoiser)
    denoise = pair(ask, LABEL, null=3, weight=constant(guidance))
    x = built.formulation.prior_std(sigmas[0]) * noise().double()
    return SAMPLERS[sampler].run(denoise, x, sigmas, noise=next_noise, **options)


def close(result, expected, tolerance=1e-5):
    return (result - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("predict", ["epsilon", "sample", "v_prediction"])
def test_ddim_is_our_ddim_whatever_it_wants_predicted(ddpm, predict):
    scheduler = diffusers.DDIMScheduler(**LINEAR, prediction_type=predict)
    pipe = quiet(DiffiTPipeline(ddpm, scheduler))
    result = pipe([0, 2], 3.0, 10, latents=noise(), output_type="latent").images
    expected = drawn(ddpm, "ddim", levels("ddim", 10, ddpm.formulation))
    assert close(result, expected)


def test_the_default_scheduler_walks_the_models_own_levels(ddpm):
    pipe = quiet(DiffiTPipeline(ddpm))
    result = pipe([0, 2], 3.0, 10, latents=noise(), output_type="latent").images
    assert close(result, drawn(ddpm, "ddim", levels("ddim", 10, ddpm.formulation)))


def test_ddpm_with_a_learned_variance_is_our_ancestral_sampler(ddpm):
    scheduler = diffusers.DDPMScheduler(**EVEN, variance_type="learned_range")
    pipe = quiet(DiffiTPipeline(ddpm, scheduler))
    generator = torch.Generator().manual_seed(5)
    result = pipe(
        [0, 2], 3.0, 10, generator, latents=noise(), output_type="latent"
    ).images  # fmt: skip
    stream = torch.Generator().manual_seed(5)
    expected = drawn(
        ddpm, "ancestral-learned", levels("respaced", 10, ddpm.formulation), learned=True,
        next_noise=lambda: torch.randn(2, 3, 8, 8, generator=stream).double(),
    )  # fmt: skip
    assert close(result, expected)


def test_flow_matching_is_our_euler_sampler():
    built = model(FlowConfig())
    pipe = quiet(DiffiTPipeline(built))
    result = pipe([0, 2], 3.0, 10, latents=noise(), output_type="latent").images
    t = torch.as_tensor(pipe.scheduler.sigmas).double().clamp(max=0.999)
    assert close(result, drawn(built, "euler", t / (1 - t)), 2e-3)  # it starts at t = 1, we at .999
    shifted = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe.scheduler = shifted
    assert pipe([0, 2], 3.0, 10, latents=noise(), output_type="latent").images.isfinite().all()


@pytest.mark.parametrize("config", [EDMConfig(), EDMConfig(sigma_data=1.0), VEConfig()])
def test_edm_euler_is_our_euler_sampler(config):
    built = model(config)
    pipe = quiet(DiffiTPipeline(built))
    result = pipe([0, 2], 3.0, 10, latents=noise(), output_type="latent").images
    sigmas = torch.as_tensor(pipe.scheduler.sigmas).double()
    assert close(result, drawn(built, "euler", sigmas), 2e-4)  # its prior has variance 1 + sigma^2


@pytest.mark.parametrize(
    ("kind", "spacing", "own"),
    [
        ("DPMSolverMultistepScheduler", "linspace", "respaced"),
        ("DPMSolverSinglestepScheduler", "linspace", "respaced"),
        ("UniPCMultistepScheduler", "linspace", "respaced"),
        ("DEISMultistepScheduler", "linspace", "respaced"),
        ("EulerDiscreteScheduler", "linspace", "respaced"),
        ("HeunDiscreteScheduler", "linspace", "respaced"),
        ("LMSDiscreteScheduler", "linspace", "respaced"),
        ("PNDMScheduler", "leading", "ddim"),
    ],
)
def test_every_solver_ends_where_the_flow_ends(ddpm, kind, spacing, own):
    """All of them solve the same equation: with many steps they agree with our own solver."""
    pipe = quiet(DiffiTPipeline(ddpm))
    pipe.scheduler = getattr(diffusers, kind).from_config(
        pipe.scheduler.config, timestep_spacing=spacing
    )
    result = pipe([0, 2], 1.0, 100, latents=noise(), output_type="latent").images
    exact = drawn(ddpm, "heun", levels(own, 100, ddpm.formulation), guidance=1.0)
    assert (result - exact).std() < 0.03 * exact.std()


FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


@pytest.mark.parametrize(
    ("config", "scheduler"),
    [
        (EDMConfig(), diffusers.EDMDPMSolverMultistepScheduler(sigma_data=1.0)),
        (FlowConfig(), diffusers.FlowMatchHeunDiscreteScheduler()),
        (FlowConfig(), diffusers.DPMSolverMultistepScheduler(**FLOW)),
        (FlowConfig(), diffusers.UniPCMultistepScheduler(**FLOW)),
    ],
)
def test_solvers_of_edm_and_flow_end_where_the_flow_ends(config, scheduler):
    built = model(config)
    pipe = quiet(DiffiTPipeline(built, scheduler))
    result = pipe([0, 2], 1.0, 200, latents=noise(), output_type="latent").images
    exact = drawn(built, "heun", levels("karras", 200, built.formulation), guidance=1.0)
    assert (result - exact).std() < 0.03 * exact.std()


def test_ddim_that_trails_starts_at_the_highest_level(ddpm):
    scheduler = diffusers.DDIMScheduler(**LINEAR, timestep_spacing="trailing")
    pipe = quiet(DiffiTPipeline(ddpm, scheduler))
    result = pipe([0, 2], 3.0, 10, latents=noise(), output_type="latent").images
    chosen = ddpm.formulation.levels[torch.arange(99, 1000, 100)].flip(0)
    assert close(result, drawn(ddpm, "ddim", torch.cat([chosen, torch.zeros(1).double()])))


@pytest.mark.parametrize("kind", ["EulerAncestralDiscreteScheduler", "SASolverScheduler"])
def test_stochastic_solvers_follow_their_generator(ddpm, kind):
    pipe = quiet(DiffiTPipeline(ddpm))
    pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config)
    first, second, other = (
        pipe([0, 2], 1.0, 20, torch.Generator().manual_seed(seed), output_type="latent").images
        for seed in (1, 1, 2)
    )
    assert first.isfinite().all()
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("config", [VPConfig(), EDMConfig(), FlowConfig(), VEConfig()])
def test_models_of_every_formulation_and_without_classes_draw(config):
    pipe = quiet(DiffiTPipeline(model(config, classes=0)))
    images = pipe(num_inference_steps=3, batch_size=2, output_type="np").images
    assert images.shape == (2, 8, 8, 3)
    assert 0 <= images.min() <= images.max() <= 1


def test_images_come_in_the_form_asked_for(ddpm):
    pipe = quiet(DiffiTPipeline(ddpm))
    forms = {
        form: pipe([1, 1], 1.0, 2, latents=noise(), output_type=form).images
        for form in ("pil", "np", "pt", "latent")
    }
    assert isinstance(forms["pil"][0], Image.Image)
    assert forms["pil"][0].size == (8, 8)
    assert forms["pt"].shape == forms["latent"].shape == (2, 3, 8, 8)
    assert (forms["pt"].permute(0, 2, 3, 1).numpy() == forms["np"]).all()
    assert (ddpm.codec.decode(forms["latent"]).float() / 255 == forms["pt"]).all()
    (images,) = pipe([1, 1], 1.0, 2, latents=noise(), output_type="pt", return_dict=False)
    assert torch.equal(images, forms["pt"])


def test_an_image_follows_from_its_generator(ddpm):
    pipe = quiet(DiffiTPipeline(ddpm))

    def images(*seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipe([1] * len(seeds), 2.0, 3, generators, output_type="latent").images

    assert torch.allclose(images(3, 4)[1], images(4)[0], atol=1e-5)


def test_labels_have_names(ddpm):
    pipe = quiet(DiffiTPipeline(ddpm))
    assert pipe.get_label_ids(["dog", "house cat", "cat, house cat"]) == [1, 0, 0]
    assert pipe.get_label_ids("owl") == [2]
    with pytest.raises(ValueError, match="'cow' is no class of this model; it knows cat"):
        pipe.get_label_ids(["cow"])


def test_guidance_is_as_the_model_recommends_unless_given(ddpm):
    built = model()
    built.sampling = SamplingConfig(guidance=3.0)
    pipe = quiet(DiffiTPipeline(built))
    own = pipe([0, 2], None, 3, latents=noise(), output_type="latent").images
    assert torch.equal(own, pipe([0, 2], 3.0, 3, latents=noise(), output_type="latent").images)
    assert not torch.equal(own, pipe([0, 2], 1.0, 3, latents=noise(), output_type="latent").images)


def test_a_callback_sees_and_changes_every_step(ddpm):
    pipe, seen = quiet(DiffiTPipeline(ddpm)), []

    def watch(pipeline, i, step, state):
        seen.append((i, int(step), state["latents"].shape))
        return {"latents": torch.zeros_like(state["latents"])} if i == 2 else None

    result = pipe([0, 2], 1.0, 3, output_type="latent", callback_on_step_end=watch).images
    assert [i for i, _, _ in seen] == [0, 1, 2]
    assert not result.any()


def test_a_saved_pipeline_is_a_hub_folder_and_comes_back(ddpm, tmp_path):
    quiet(DiffiTPipeline(ddpm)).save_pretrained(tmp_path / "x")
    pipe = quiet(DiffiTPipeline.from_pretrained(tmp_path / "x", torch_dtype=torch.bfloat16))
    assert pipe.model.denoiser.dtype == torch.bfloat16
    pipe.to(torch.float32)
    again = quiet(DiffiTPipeline.from_pretrained(tmp_path / "x"))
    ours = quiet(DiffiTPipeline(ddpm))
    results = [
        p([0, 2], 1.0, 2, latents=noise(), output_type="latent").images for p in (again, ours)
    ]
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("formulation", "scheduler", "answer"),
    [
        (DDPMConfig(), diffusers.FlowMatchEulerDiscreteScheduler(),
         "walks the straight paths of flow matching, but this model is ddpm; take DDIMScheduler"),
        (EDMConfig(), diffusers.DDIMScheduler(timestep_spacing="trailing"),
         r"goes up to noise level .*, but this model \(edm\) was trained up to 80; take EDMEuler"),
        (DDPMConfig(learned_variance=False), diffusers.DDPMScheduler(variance_type="learned_range"),
         "has variance_type 'learned_range', but this model has learned no variance"),
        (DDPMConfig(), diffusers.DDPMScheduler(variance_type="learned"),
         "has variance_type 'learned'; the networks of this library"),
        (DDPMConfig(), diffusers.LCMScheduler(), "LCMScheduler is not among the schedulers that"),
        (DDPMConfig(), diffusers.DDIMScheduler(rescale_betas_zero_snr=True), "noise level inf"),
        (FlowConfig(), diffusers.UniPCMultistepScheduler(use_flow_sigmas=True),
         "has prediction_type 'epsilon'; it must be flow_prediction"),
        (DDPMConfig(), diffusers.EulerDiscreteScheduler(prediction_type="sample"),
         "has prediction_type 'sample'; it must be epsilon or v_prediction"),
    ],
)  # fmt: skip
def test_schedulers_that_do_not_fit_are_refused_by_name(formulation, scheduler, answer):
    pipe = quiet(DiffiTPipeline(model(formulation), scheduler))
    with pytest.raises(UsageError, match=f"^{type(scheduler).__name__}") as caught:
        pipe([0], 1.0, 1000 if "inf" in answer else 10)
    assert caught.match(answer)


def test_wrong_arguments_are_refused(ddpm):
    pipe = quiet(DiffiTPipeline(ddpm))
    with pytest.raises(ValueError, match="label 3 is none of this model's 0 to 2"):
        pipe([3])
    with pytest.raises(ValueError, match="output_type is 'jpg'; it must be pil, np, pt, latent"):
        pipe([0], output_type="jpg")
    with pytest.raises(ValueError, match=r"latents have shape \(2, 3, 8, 8\); they must have"):
        pipe([0], latents=noise())
    bare = quiet(DiffiTPipeline(model(classes=0)))
    with pytest.raises(ValueError, match="there is no guidance; leave it at 1"):
        bare(guidance_scale=2.0)


class NoVAE(nn.Module):
    """Latents are pixels."""

    config = type("Config", (), {"scaling_factor": 1.0})
    device = torch.device("cpu")

    def decode(self, latents):
        return type("Output", (), {"sample": latents})


def test_a_ddpm_network_serves_the_dit_pipeline_of_diffusers():
    built = model(classes=1000, channels=4)
    scheduler = diffusers.DDIMScheduler(**LINEAR)
    theirs = quiet(diffusers.DiTPipeline(DenoiserModel(built), NoVAE(), scheduler))
    ours = quiet(DiffiTPipeline(built, diffusers.DDIMScheduler(**LINEAR)))
    result = theirs([207, 3], 3.0, torch.Generator().manual_seed(0), 10, output_type="pt").images
    latents = ours([207, 3], 3.0, 10, torch.Generator().manual_seed(0), output_type="latent").images
    assert close(result, (latents / 2 + 0.5).clamp(0, 1), 1e-4)
    with pytest.raises(UsageError, match="this model is edm and is told the time as 'log4'"):
        DenoiserModel(model(EDMConfig()))


def test_without_diffusers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.delitem(sys.modules, "diffit.deploy.diffusers")
    with pytest.raises(UsageError, match=r"pipelines need diffusers.*pip install \"diffit-torch"):
        importlib.import_module("diffit.deploy.diffusers")
