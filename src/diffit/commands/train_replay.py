"""`diffit train --replay RUN/spikes/STEP`: a step that broke out, image by image."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from diffit.config import Settings
from diffit.distributed import pick_device
from diffit.training.replay import replay

SHOWN = 20
"""Images in the table, those with the largest gradients."""


class ReplayArgs(Settings):
    """Compute a recorded step again and show which images it broke out over; nothing is trained."""

    replay: Path
    """Folder inside RUN/spikes."""
    device: str = "cpu"
    """auto, cpu, cuda, cuda:1 or mps."""


def show_replay(args: ReplayArgs) -> None:
    """Print the step and its worst images."""
    found = replay(args.replay, device=pick_device(args.device))
    worst = sorted(found.images, key=lambda image: (image.norm == image.norm, -image.norm))
    table = Table("image of the run", "sigma", "label", "loss", "in the run", "gradient norm")
    for image in worst[:SHOWN]:
        label = "" if image.label is None else str(image.label)
        table.add_row(
            f"{image.number:,}", f"{image.sigma:.4g}", label, f"{image.loss:.4g}",
            f"{image.recorded:.4g}", f"{image.norm:.4g}",
        )  # fmt: skip
    console = Console(highlight=False)
    console.print(f"broke out at {found.seen:,} images: {found.why}", markup=False, soft_wrap=True)
    console.print(table)
    if len(worst) > SHOWN:
        console.print(f"and {len(worst) - SHOWN} images with smaller gradients")
    console.print(f"gradient norm {found.norm:.6g} here, {found.recorded:.6g} in the run")
