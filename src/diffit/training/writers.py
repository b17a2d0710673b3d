"""Metrics for TensorBoard and Weights & Biases, where they are installed."""

import importlib.util
from pathlib import Path
from typing import Any, Protocol

from diffit.errors import ConfigError


class Writer(Protocol):
    """A further place for the numbers of a run."""

    def write(self, images: int, numbers: dict[str, float]) -> None:
        """Note numbers, ``images`` into the run."""

    def close(self) -> None:
        """Bring everything to its place."""


def open_writers(run: Path, *, start: int, tensorboard: bool, wandb: str) -> list[Writer]:
    """The writers that are asked for; ConfigError if W&B is and is not installed.

    Args:
        run: folder of the run.
        start: images seen when the run begins or is resumed.
        tensorboard: write TensorBoard events, if it is installed.
        wandb: project at Weights & Biases; empty is none.
    """
    refuse_missing(wandb)
    writers: list[Writer] = []
    if tensorboard and importlib.util.find_spec("tensorboard"):
        writers.append(TensorBoard(run / "tensorboard", start=start))
    if wandb:
        writers.append(WeightsAndBiases(run, project=wandb))
    return writers


def refuse_missing(wandb: str) -> None:
    """ConfigError if W&B is asked for and is not installed."""
    if wandb and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            f"train.wandb {wandb!r} needs Weights & Biases; "
            "install it with: pip install 'diffit-torch[wandb]'"
        )


class TensorBoard:
    """TensorBoard events in a folder of the run."""

    def __init__(self, folder: Path, *, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Events past the resumed image count are hidden, as their lines are cut elsewhere.
        self.writer: Any = SummaryWriter(str(folder), purge_step=start + 1)

    def write(self, images: int, numbers: dict[str, float]) -> None:
        """Note numbers, ``images`` into the run."""
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, images)
        self.writer.flush()

    def close(self) -> None:
        """Bring everything to the disk."""
        self.writer.close()


class WeightsAndBiases:
    """A run at Weights & Biases, continued under the same id when the run is resumed."""

    def __init__(self, run: Path, *, project: str) -> None:
        import wandb

        self.run: Any = wandb.init(
            project=project, id=run.name, name=run.name, dir=str(run), resume="allow"
        )

    def write(self, images: int, numbers: dict[str, float]) -> None:
        """Note numbers, ``images`` into the run."""
        self.run.log(numbers, step=images)

    def close(self) -> None:
        """Bring everything to its place."""
        self.run.finish()
