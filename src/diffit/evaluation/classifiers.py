"""Small classifiers that ship with the package, so that evaluation works on any machine.

They were trained on the embedded images by `tools/train_classifiers.py`. Their features are no
substitute for Inception's: figures on them carry the classifier's name and compare with no paper.
"""

import json
from importlib.resources import files
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from diffit.config import Settings
from diffit.errors import CheckpointError
from diffit.evaluation.resize import area, resize
from diffit.fetch import file_sha256

NAMES = ("digits-cnn", "patches-cnn")


class ClassifierConfig(Settings):
    """Shape of a small classifier; stored in its file."""

    size: int
    """Height and width that it looks at; images are brought there by area averages."""
    channels: int
    """1: grey, the mean of the colours; 3: colour."""
    widths: tuple[int, ...]
    """Channels of the stages; each stage but the last halves the image."""
    features: int
    """Dimensions of the features before the last layer."""
    classes: tuple[str, ...]
    accuracy: float
    """Accuracy on images that were held out of its training."""
    data: str
    """What it was trained on."""


class Classifier(nn.Module):
    """(B, C, H, W) uint8 images to (B, D) features and (B, K) logits."""

    scale: Tensor

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        stages: list[nn.Module] = []
        width = config.channels
        for out in config.widths:
            stages += [nn.Conv2d(width, out, 3, padding=1), nn.GroupNorm(8, out), nn.GELU()]
            stages += [nn.Conv2d(out, out, 3, padding=1), nn.GroupNorm(8, out), nn.GELU()]
            stages += [nn.MaxPool2d(2)]
            width = out
        self.stages = nn.Sequential(*stages[:-1])
        side = config.size >> (len(config.widths) - 1)
        self.pooled = min(side, 2)
        self.hidden = nn.Linear(width * self.pooled**2, config.features)
        self.out = nn.Linear(config.features, len(config.classes))
        # Brings the features' mean variance on the training images to 1, for readable distances.
        self.register_buffer("scale", torch.ones(()))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) uint8 of any size and 1 or 3 channels to features and logits."""
        x = self.stages(self.prepare(images))
        x = F.adaptive_avg_pool2d(x, self.pooled).flatten(1)
        hidden = self.hidden(x)
        return hidden * self.scale, self.out(F.gelu(hidden))

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 images as this classifier sees them: float32 in [-1, 1], its size and channels."""
        x = resize(images, self.config.size, area) / 127.5 - 1
        if self.config.channels == 1:
            return x.mean(1, keepdim=True)
        return x.expand(-1, self.config.channels, -1, -1)


def shipped(name: str) -> Path:
    """Where the package keeps the weights of the classifier ``name``."""
    return Path(str(files("diffit") / "assets" / f"{name}.safetensors"))


def load_classifier(path: Path) -> tuple[Classifier, str]:
    """A classifier in evaluation mode, and the sha256 of its file."""
    try:
        with safe_open(path, "pt") as file:
            config = ClassifierConfig.model_validate(json.loads(file.metadata()["config"]))
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        network = Classifier(config)
        network.load_state_dict(state)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; install the package again") from None
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is no classifier of this package ({error})") from None
    return network.eval(), file_sha256(path)
