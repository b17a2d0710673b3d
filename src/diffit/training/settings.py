"""Everything that says what a training run does; saved with the run, it suffices to repeat it."""

from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from diffit.config import Settings
from diffit.data import DataConfig
from diffit.data.pairs import TaskConfig
from diffit.generation import SamplingConfig
from diffit.model import ModelConfig
from diffit.training.ema import AverageConfig
from diffit.training.optim import Decayed, Law
from diffit.training.parallel import ParallelConfig


class TrainConfig(Settings):
    """How a model is trained. Every length is a number of images."""

    images: PositiveInt = 20_000_000
    """Length of the run in images."""
    minutes: float | None = None
    """Stop after this much time in training, if the images are not reached before."""
    batch: int = Field(default=256, gt=0, le=1 << 20)
    """Images of one step."""
    micro_batch: PositiveInt | None = None
    """Images computed at once; less than the batch needs less memory and gives the same step."""
    seed: int = 0
    """Follows into the initial weights, the order of images, and every draw."""
    init_from: str = ""
    """Checkpoint whose weights the run starts from; what does not fit is listed."""

    teacher: str = ""
    """Checkpoint of the same data whose estimates the model learns beside the clean images."""
    teacher_share: float | None = Field(default=None, gt=0, le=1)
    """How much of the loss is the distance to the teacher; 0.5 by default."""

    optimizer: Literal["adam", "adamw"] = "adamw"
    lr: float = Field(default=2e-4, gt=0)
    """Highest learning rate."""
    warmup: int = Field(default=0, ge=0)
    """Images over which the learning rate rises linearly."""
    decay: Law = "constant"
    """How the learning rate falls after the warm-up."""
    decay_from: int = Field(default=0, ge=0)
    """Images after which it falls, with step at once; for inverse-sqrt the reference length."""
    lr_end: float = Field(default=0.0, ge=0, le=1)
    """Share of the learning rate that is left at the end, or after the step."""
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    """Shrinks weights towards 0, with AdamW apart from the gradient."""
    weight_decay_on: Decayed = "matrices"
    """What it acts on: weights of linear and convolution layers alone, or all parameters."""
    clip: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient; none is no limit."""

    ema: AverageConfig = AverageConfig(constant=(0.9999,))
    loss_weight: Literal["none", "min-snr", "p2"] = "none"
    """Weight of the loss as a function of the noise level."""
    loss_gamma: float | None = Field(default=None, gt=0)
    """Gamma of min-snr (5 by default) or p2 (1 by default)."""
    coarse_weights: tuple[NonNegativeFloat, ...] | None = None
    """Loss weights of a network's coarser resolutions, the coarsest first; by default DiMR's."""
    label_dropout: float = Field(default=0.1, ge=0, le=1)
    """Share of images trained without their label, for classifier-free guidance."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """fp32, or automatic mixed precision in bf16 or (with a loss scale) fp16."""
    tf32: bool = False
    """Allow TF32 products on NVIDIA cards; faster, with 10 bits of mantissa."""
    parallel: ParallelConfig = ParallelConfig()
    compile: bool = False
    """Compile the network's blocks with torch.compile."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass, block by block, instead of keeping them."""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads of PyTorch; 0 leaves its own choice."""

    log_every: PositiveInt = 10_000
    """Images between two lines of metrics."""
    checkpoint_every: PositiveInt = 500_000
    """Images between two checkpoints."""
    keep_last: PositiveInt = 2
    """How many of the newest checkpoints stay."""
    keep_every: int = Field(default=0, ge=0)
    """Checkpoints at multiples of this many images stay for ever; 0 keeps none."""
    upload: str = ""
    """Folder elsewhere, such as s3://bucket/run, that each checkpoint is copied to in the
    background, by fsspec; what is removed here stays there."""
    snapshot_every: int = Field(default=1_000_000, ge=0)
    """Images between two pictures of samples and of the curve; 0 draws them at the end alone."""
    snapshot_images: int = Field(default=64, gt=0, le=10_000)
    """Images in the picture of samples."""
    max_bad_steps: PositiveInt = 10
    """Steps in a row with a non-finite loss or gradient after which the run gives up."""
    on_spike: Literal["note", "skip", "rewind"] = "note"
    """What to do if loss or gradient norm break out of what is usual, beside writing the step down:
    take it; skip it; or go back to the newest checkpoint and pass over the batch."""
    spike_at: float = Field(default=10.0, gt=0)
    """How far that is: robust deviations above the median logarithm of the last 128 steps."""
    tensorboard: bool = True
    """Write metrics for TensorBoard too, where it is installed."""
    wandb: str = ""
    """Project to write metrics to at Weights & Biases; empty is none."""

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.minutes is not None and self.minutes <= 0:
            raise ValueError(f"train.minutes {self.minutes} must be more than 0")
        if self.micro_batch is not None and self.micro_batch > self.batch:
            raise ValueError(
                f"train.micro_batch {self.micro_batch} is more than train.batch {self.batch}"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"train.betas {self.betas} must lie in 0 <= beta < 1")
        if self.decay == "inverse-sqrt" and not self.decay_from:
            raise ValueError(
                "train.decay inverse-sqrt needs train.decay_from, its reference length"
            )
        if self.decay == "step" and not (self.decay_from and self.lr_end):
            raise ValueError(
                "train.decay step needs train.decay_from, after how many images the rate drops, "
                "and train.lr_end, to which share of it"
            )
        if self.parallel.gather == "bf16" and self.precision != "bf16":
            raise ValueError("train.parallel.gather bf16 needs train.precision bf16")
        if self.teacher_share and not self.teacher:
            raise ValueError("train.teacher_share needs train.teacher, a checkpoint to learn from")
        return self


class RunConfig(Settings):
    """A training run: what is trained, on which data, how, and how it is then sampled."""

    model: ModelConfig
    data: DataConfig
    train: TrainConfig = TrainConfig()
    sampling: SamplingConfig = SamplingConfig()
    task: TaskConfig = TaskConfig()


CHANGEABLE = frozenset(
    {
        "train.images", "train.minutes", "train.micro_batch", "train.max_bad_steps",
        "train.on_spike", "train.spike_at",
        "train.compile", "train.activation_checkpointing", "train.threads",
        "train.log_every", "train.checkpoint_every", "train.keep_last", "train.keep_every",
        "train.upload",
        "train.snapshot_every", "train.snapshot_images", "train.tensorboard", "train.wandb",
        "train.parallel", "data.workers", "data.memory", "data.stream.cache",
        "data.stream.cache_gib", "data.stream.retries", "data.stream.timeout",
        "data.stream.max_bad", "data.stream.max_bad_shards", "train.ema.default", "sampling",
    }
)  # fmt: skip
"""What may differ when a run is resumed: nothing that the trained weights depend on but length, and
what becomes of steps that break out."""


def changes(before: RunConfig, after: RunConfig) -> list[str]:
    """Names of the settings that differ, such as `train.lr`."""
    return sorted(_differences(before.model_dump(), after.model_dump(), ""))


def changeable(name: str) -> bool:
    """Whether a setting may differ when a run is resumed."""
    return any(name == free or name.startswith(free + ".") for free in CHANGEABLE)


def _differences(before: object, after: object, name: str) -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            found
            for key in {*before, *after}
            for found in _differences(
                before.get(key), after.get(key), f"{name}.{key}" if name else str(key)
            )
        ]
    return [] if before == after else [name]
