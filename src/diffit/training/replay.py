"""A recorded step computed again, image by image, wherever there is PyTorch."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffit import sealed
from diffit.config import parse, read_yaml
from diffit.errors import CheckpointError, ConfigError
from diffit.sealed import CONFIG, STATE
from diffit.training.distill import open_teacher
from diffit.training.inputs import Inputs
from diffit.training.prepare import build_objective
from diffit.training.settings import RunConfig
from diffit.training.state import fresh_state
from diffit.training.step import Gradients, arithmetic


@dataclass(frozen=True)
class Image:
    """One image of a recorded batch.

    Attributes:
        number: in the run.
        sigma: its noise level.
        label: number of classes where the label was dropped; None without classes.
        loss: computed again.
        recorded: the loss in the run.
        norm: of the gradient of this image's loss alone.
    """

    number: int
    sigma: float
    label: int | None
    loss: float
    recorded: float
    norm: float


@dataclass(frozen=True)
class Replay:
    """A recorded step and what became of it here.

    Attributes:
        why: what broke out.
        seen: images before the step.
        images: of its batch.
        norm: of the gradient of their mean loss, computed again.
        recorded: that norm in the run.
    """

    why: str
    seen: int
    images: tuple[Image, ...]
    norm: float
    recorded: float


def replay(folder: Path, *, device: str | torch.device = "cpu") -> Replay:
    """Compute a step that `diffit.training.recorder` has written, without taking it.

    Raises:
        CheckpointError: if the folder is none, or is damaged.
    """
    config, content = _read(folder)
    device = torch.device(device)
    inputs = _inputs(folder, device)
    train = config.train
    with arithmetic(device, tf32=train.tf32, threads=train.threads):
        state = fresh_state(config, device)
        state.model.network.load_state_dict(sealed.read_tensors(folder, "model"))
        if state.scale and content["loss_scale"]:
            state.scale.factor = content["loss_scale"]
        objective = build_objective(state, config, open_teacher(config, device))
        whole = objective.gradients(inputs, micro_batch=train.micro_batch)
        alone = [objective.gradients(inputs.part(i, 1)) for i in range(len(inputs.number))]
    return Replay(
        why=content["why"],
        seen=content["images"],
        images=tuple(_images(inputs, alone, [float(x) for x in content["losses"]])),
        norm=whole.norm,
        recorded=float(content["gradient_norm"]),
    )


def _read(folder: Path) -> tuple[RunConfig, dict]:
    if not (folder / STATE).is_file() or not (folder / "inputs.safetensors").is_file():
        raise CheckpointError(
            f"--replay {folder} is no recorded step; name a folder inside RUN/spikes"
        )
    sealed.verify(folder)
    try:
        return parse(RunConfig, read_yaml(folder / CONFIG), source=str(folder / CONFIG)), (
            sealed.read_state(folder)
        )
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def _inputs(folder: Path, device: torch.device) -> Inputs:
    found = sealed.read_tensors(folder, "inputs")
    stays = ("sigma", "position", "number")  # on the CPU, as `Inputs` has them
    given: dict[str, Tensor | None] = {
        name: (found[name] if name in stays else found[name].to(device)) if name in found else None
        for name in Inputs._fields
    }
    return Inputs(**given)  # type: ignore[arg-type]


def _images(inputs: Inputs, alone: list[Gradients], recorded: list[float]) -> list[Image]:
    labels = [None] * len(alone) if inputs.label is None else inputs.label.tolist()
    return [
        Image(
            number=int(inputs.number[i]),
            sigma=float(inputs.sigma[i]),
            label=labels[i],
            loss=float(gradients.losses[0]),
            recorded=recorded[i],
            norm=gradients.norm,
        )
        for i, gradients in enumerate(alone)
    ]
