"""What the training of a classifier does; saved with the run, it suffices to repeat it.

The defaults suit the built-in digits and a minute of one core.
"""

from typing import Self

from pydantic import Field, PositiveInt, model_validator

from diffit.config import Settings
from diffit.data import DataConfig


class ClassifierNetwork(Settings):
    """Shape of the vision transformer; size, channels and classes follow from the data."""

    patch: PositiveInt = 2
    """Side of a patch in pixels."""
    width: PositiveInt = 64
    depth: PositiveInt = 4
    heads: PositiveInt = 4
    mlp_ratio: float = Field(default=2.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class ClassifierTrain(Settings):
    """How a classifier is trained. Every length is a number of images."""

    images: PositiveInt = 200_000
    """Length of the run in images."""
    batch: int = Field(default=128, gt=0, le=1 << 16)
    """Images of one step."""
    seed: int = 0
    """Follows into the initial weights, the order of images, and every draw."""
    lr: float = Field(default=3e-3, gt=0)
    """Highest learning rate of AdamW; it falls to 0 along a cosine."""
    warmup: int = Field(default=5_000, ge=0)
    """Images over which the learning rate rises linearly."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Shrinks the weights of linear layers towards 0."""
    clip: float | None = Field(default=1.0, gt=0)
    """Largest norm of the gradient; none is no limit."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Share of the target that is spread over all classes."""
    shift: int = Field(default=1, ge=0, le=64)
    """Images move by up to so many pixels each way; what comes in is black."""
    noise: float = Field(default=0.0, ge=0)
    """Highest standard deviation of Gaussian noise on images, for pixels in [-1, 1]."""
    noise_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the images that get noise, of a level uniform between 0 and the highest."""
    denoiser: str = ""
    """Checkpoint of a denoiser that noisy images pass through, once, before they are learnt."""
    ema: float = Field(default=0.99, ge=0, lt=1)
    """Decay per step of the moving average of the weights, which is what is kept and measured."""
    threads: int = Field(default=1, ge=0, le=1024)
    """CPU threads of PyTorch; 0 leaves its own choice."""
    log_every: PositiveInt = 10_000
    """Images between two lines of metrics."""
    checkpoint_every: PositiveInt = 50_000
    """Images between two checkpoints, from which a killed run goes on."""

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.denoiser and not self.noise:
            raise ValueError(
                "train.denoiser has nothing to remove: set train.noise, the highest noise level"
            )
        return self


class ClassifierRun(Settings):
    """A training run: which images, which network, how."""

    data: DataConfig = DataConfig(path="builtin:digits")
    held_out: str = ""
    """Images that measure the accuracy: a folder, zip or npz. By default the held-out part of a
    built-in set; of others every tenth image, which is then not trained on."""
    network: ClassifierNetwork = ClassifierNetwork()
    train: ClassifierTrain = ClassifierTrain()
