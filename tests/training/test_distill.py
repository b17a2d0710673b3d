"""Distillation: what a teacher says in the student's space, its share of the loss, and refusals."""

import pytest
import torch

from diffit.checkpoint import checkpoints, save_model
from diffit.config import Settings, parse, read_yaml
from diffit.data.loader import Batch
from diffit.diffusion.denoiser import over
from diffit.diffusion.loss import denoising_loss, noisy
from diffit.errors import CheckpointError, ConfigError
from diffit.model import ModelConfig, build_model
from diffit.nn.ternary import TernaryConfig
from diffit.sealed import read_state
from diffit.training.distill import Teacher, open_teacher
from diffit.training.inputs import draw_inputs
from diffit.training.loop import train
from diffit.training.settings import RunConfig
from diffit.training.step import Objective
from tiny import tiny_run

CPU = torch.device("cpu")
NAMES = tuple("0123456789")
FORMULATIONS = ["edm", "flow", "ddpm"]


class Exported(Settings):
    model: ModelConfig


def config(formulation="edm", **network):
    learned = {"learned_variance": True} if formulation == "ddpm" else {}
    model = tiny_run(network=network).model.model_dump()
    model["network"] |= learned
    return ModelConfig.model_validate(
        model | {"formulation": {"name": formulation}, "class_names": NAMES}
    )


def stirred(config, seed):
    model = build_model(config, seed=seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def stored(path, config):
    model = stirred(config, 1)
    save_model(path, Exported(model=config), {"model": model.network.state_dict()}, {})
    return model


def inputs_for(model, count=6):
    image = torch.randint(0, 256, (count, *model.shape), dtype=torch.uint8)
    number = torch.arange(count)
    return draw_inputs(
        Batch(image, number % 10, number), model, seed=0, label_dropout=0.5, augmentation=0.5
    )


@pytest.mark.parametrize("theirs", FORMULATIONS)
@pytest.mark.parametrize("ours", FORMULATIONS)
def test_a_lesson_taken_to_heart_makes_the_estimate_of_the_teacher(ours, theirs):
    student, teacher = stirred(config(ours), 0), stirred(config(theirs), 1)
    teacher.network.eval()
    inputs = inputs_for(student)
    raw = Teacher(teacher, 0.5).lesson(student.denoiser, inputs).prediction
    x = noisy(inputs.clean, inputs.noise, inputs.sigma).double()
    skip, out, *_ = student.formulation.scalings(inputs.sigma)
    expected = teacher.denoiser(x, inputs.sigma, inputs.label, augment=inputs.augment)
    found = over(skip, x) * x + over(out, x) * raw.double()
    # The network's own space is kept in float32, and noise of sigma is a part of the estimate.
    assert ((found - expected).abs() < 3e-6 * (1 + over(inputs.sigma, x))).all()


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_the_gradient_is_that_of_the_weighted_sum_of_two_distances(share):
    student, teacher = stirred(config(), 0), stirred(config(), 1)
    inputs = inputs_for(student)
    teacher = Teacher(teacher, share)
    lesson = teacher.lesson(student.denoiser, inputs)
    Objective(student, teacher=teacher).losses(inputs).mean().backward()
    found = [p.grad.clone() for p in student.network.parameters()]
    student.network.zero_grad()
    keys = {"label": inputs.label, "augment": inputs.augment, "keys": inputs.keys}
    plain = denoising_loss(student.denoiser, inputs.clean, inputs.noise, inputs.sigma, **keys).mse
    x = noisy(inputs.clean, inputs.noise, inputs.sigma)
    raw = student.denoiser.raw(x, inputs.sigma, **keys)
    taught = (raw - lesson.prediction).square().flatten(1).mean(1)
    ((1 - share) * plain + share * taught).mean().backward()
    for p, gradient in zip(student.network.parameters(), found, strict=True):
        torch.testing.assert_close(gradient, p.grad, atol=1e-5, rtol=1e-4)


def test_a_copy_of_the_teacher_has_nothing_to_learn_from_it_alone():
    plain = config(dropout=0.0)
    student, teacher = stirred(plain, 1), stirred(plain, 1)
    losses = Objective(student, teacher=Teacher(teacher, 1.0)).losses(inputs_for(student))
    assert losses.max() < 1e-9


def test_the_mse_stays_that_of_the_images():
    student, teacher = stirred(config(), 0), stirred(config(), 1)
    inputs = inputs_for(student)
    lesson = Teacher(teacher, 0.5).lesson(student.denoiser, inputs)
    given = student.denoiser, inputs.clean, inputs.noise, inputs.sigma, inputs.label
    plain, taught = denoising_loss(*given), denoising_loss(*given, lesson=lesson)
    assert torch.equal(plain.mse, taught.mse)
    assert not torch.allclose(plain.total, taught.total)


def run_of(teacher, **changes):
    run = tiny_run(images=96, checkpoint_every=32, teacher=str(teacher), **changes)
    ternary = run.model.model_copy(update={"linear": TernaryConfig()})
    return run.model_copy(update={"model": ternary})


def sums(run):
    files = read_state(checkpoints(run)[-1])["files"]
    return {name: note["blake2b"] for name, note in files.items() if name != "config.yaml"}


def test_a_ternary_student_resumes_bit_for_bit_though_its_teacher_trains_on(tmp_path):
    train(tiny_run(images=32, keep_last=9), tmp_path / "teacher", quiet=True)
    student = run_of(tmp_path / "teacher")
    train(student, tmp_path / "straight", quiet=True)
    part = student.model_copy(update={"train": student.train.model_copy(update={"images": 48})})
    train(part, tmp_path / "halved", quiet=True)
    longer = tiny_run(images=64, keep_last=9)
    train(longer, tmp_path / "teacher", resume=True, quiet=True)
    saved = read_yaml(tmp_path / "halved" / "config.yaml")
    assert saved["train"]["teacher"].endswith("checkpoints/000000000032")
    saved["train"]["images"] = 96
    train(parse(RunConfig, saved, source="saved"), tmp_path / "halved", resume=True, quiet=True)
    assert sums(tmp_path / "halved") == sums(tmp_path / "straight")
    train(run_of(tmp_path / "teacher"), tmp_path / "other", quiet=True)
    assert sums(tmp_path / "other")["model.safetensors"] != sums(tmp_path / "straight")[
        "model.safetensors"]  # fmt: skip


@pytest.mark.parametrize(
    ("theirs", "sentence"),
    [
        ({"size": 16}, "takes 16 x 16 of 1 channel, but model.network 8 x 8 of 1 channel"),
        ({"channels": 3}, "takes 8 x 8 of 3 channels, but"),
        ({"augment": False}, "cannot be told what was done to an image; set data.augment 0"),
        ({"null_class": False}, "has learned no null class; set train.label_dropout 0"),
    ],
)
def test_a_teacher_that_cannot_be_told_what_the_student_is_told_is_refused(
    tmp_path, theirs, sentence
):
    stored(tmp_path / "x", config(**theirs))
    run = tiny_run(teacher=str(tmp_path / "x"))
    named = run.model.model_copy(update={"class_names": NAMES})
    with pytest.raises(ConfigError, match=sentence):
        open_teacher(run.model_copy(update={"model": named}), CPU)


def test_a_teacher_of_other_classes_is_refused(tmp_path):
    stored(tmp_path / "x", config())
    run = tiny_run(teacher=str(tmp_path / "x"))
    named = run.model.model_copy(update={"class_names": tuple("abcdefghij")})
    with pytest.raises(ConfigError, match=r"knows 10 classes \(0, 1, 2, 3, 4, ...\), but this"):
        open_teacher(run.model_copy(update={"model": named}), CPU)


def test_a_teacher_whose_weights_are_not_finite_is_refused(tmp_path):
    made = build_model(config())
    with torch.no_grad():
        next(made.network.parameters()).fill_(torch.nan)
    save_model(
        tmp_path / "x", Exported(model=made.config), {"model": made.network.state_dict()}, {}
    )
    run = tiny_run(teacher=str(tmp_path / "x"))
    named = run.model.model_copy(update={"class_names": NAMES})
    with pytest.raises(CheckpointError, match="has weights that are not finite; take another one"):
        open_teacher(run.model_copy(update={"model": named}), CPU)


def test_a_teacher_that_is_none_leaves_no_folder(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        train(tiny_run(teacher=str(tmp_path / "nowhere")), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
