"""Any model of this library as a pipeline of diffusers, with any of its schedulers that fits.

The pipeline asks D(x, sigma, label), the same function as every sampler here, and translates: the
scheduler's sample to x, its time step to sigma, the clean image to what the scheduler wants a
network to say. Our samplers are no schedulers: several ask D more than once a step, which a
scheduler cannot, and diffusers has its own of the same methods.
"""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import torch
from torch import Tensor, nn

from diffit.checkpoint import load
from diffit.deploy.levels import (
    Level,
    check_levels,
    check_scheduler,
    default_scheduler,
    levels_of,
    prediction,
)
from diffit.diffusion.guidance import paired, paired_estimate
from diffit.errors import UsageError
from diffit.generation import label_tensor
from diffit.hub import Card, export
from diffit.model import Model
from diffit.sampling import SamplingConfig

try:
    from diffusers import DiffusionPipeline
    from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
    from diffusers.utils.torch_utils import randn_tensor
except ImportError:
    raise UsageError(
        'pipelines need diffusers, which is not installed; run: pip install "diffit-torch[latent]"'
    ) from None

Callback = Callable[["DiffiTPipeline", int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None]
OUTPUTS = ("pil", "np", "pt", "latent")


class DiffiTPipeline(DiffusionPipeline):  # type: ignore[misc]
    """A model as diffusers uses one: `pipe(class_labels=[207], guidance_scale=4).images`.

    Args:
        model: from `diffit.load`; or `DiffiTPipeline.from_pretrained(what)`.
        scheduler: by default one that walks the model's own noise levels. Another one replaces it
            as usual: ``pipe.scheduler = DPMSolverMultistepScheduler.from_config(
            pipe.scheduler.config)``.
    """

    model_cpu_offload_seq = "denoiser"
    scheduler: Any

    def __init__(self, model: Model, scheduler: Any = None) -> None:
        super().__init__()
        self.register_modules(
            denoiser=model.denoiser, scheduler=scheduler or default_scheduler(model.formulation)
        )
        self.model = model
        names = model.config.class_names
        self.labels = {name: number for number, name in enumerate(names)}
        """Name of each class -> its number; ImageNet's names count one by one as well."""
        for number, name in enumerate(names):
            for part in name.split(", "):
                self.labels.setdefault(part, number)

    @classmethod
    def _get_signature_keys(cls, obj: Any) -> tuple[set[str], set[str]]:
        # diffusers takes the constructor's arguments for its parts; ours takes a model apart.
        return {"denoiser", "scheduler"}, set()

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.model.device

    @classmethod
    def from_pretrained(cls, what: str | Path, **options: Any) -> Self:
        """The pipeline of a run, a checkpoint, a hub-style folder or a hub id.

        ``options`` are those of `diffit.load`; `torch_dtype` is its `dtype`.
        """
        dtype = options.pop("torch_dtype", options.pop("dtype", None))
        return cls(load(what, dtype=dtype, **options))

    def save_pretrained(self, folder: str | Path, *, card: Card | None = None) -> None:
        """Write the model as a hub-style folder; the scheduler is not part of it."""
        export(self.model, Path(folder), card=card or Card())

    def get_label_ids(self, names: str | Sequence[str]) -> list[int]:
        """The numbers of classes; ValueError for a name that the model does not know."""
        listed = [names] if isinstance(names, str) else list(names)
        for name in listed:
            if name not in self.labels:
                known = ", ".join(list(self.labels)[:10]) or "no names at all"
                raise ValueError(f"{name!r} is no class of this model; it knows {known} ...")
        return [self.labels[name] for name in listed]

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int | None] | int | None = None,
        guidance_scale: float | None = None,
        num_inference_steps: int = 50,
        generator: torch.Generator | list[torch.Generator] | None = None,
        *,
        batch_size: int = 1,
        latents: Tensor | None = None,
        eta: float = 0.0,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
    ) -> Any:
        """Draw images.

        Args:
            class_labels: one class for each image; None for no class.
            guidance_scale: 1 is no guidance; by default what the model recommends.
            num_inference_steps: steps of the scheduler.
            generator: of the noise; a list has one for each image.
            batch_size: how many images, where ``class_labels`` does not say.
            latents: (B, C, H, W) unit-normal noise to start from, in place of the generator's.
            eta: of DDIM.
            output_type: `pil`; `np`, (B, H, W, C) in [0, 1]; `pt`, (B, C, H, W) in [0, 1]; or
                `latent`, what the network draws, before it is decoded.
            return_dict: False for a tuple.
            callback_on_step_end: called as in diffusers, with `latents` alone; what it answers
                under that name replaces them.

        Raises:
            UsageError: a scheduler that does not fit the model.
            ValueError: labels or an output that the model does not have.
        """
        if output_type not in OUTPUTS:
            raise ValueError(f"output_type is {output_type!r}; it must be {', '.join(OUTPUTS)}")
        listed = [class_labels] if isinstance(class_labels, int) else class_labels
        count = batch_size if listed is None else len(listed)
        label = label_tensor(self.model, listed, count)
        check_scheduler(self.scheduler, self.model.formulation)
        self.scheduler.set_timesteps(num_inference_steps, device=self.model.device)
        levels = levels_of(self.scheduler, self.model.formulation)
        check_levels(levels, self.scheduler, self.model.formulation)
        answer = self._answer(label, guidance_scale)
        options = self._step_options(generator, eta)
        sample = self._start(count, generator, latents)
        for i, step in enumerate(self.progress_bar(self.scheduler.timesteps)):
            if hasattr(self.scheduler, "scale_model_input"):  # where some count their steps
                self.scheduler.scale_model_input(sample, step)
            output = answer(sample, levels[i])
            sample = self.scheduler.step(output, step, sample, **options).prev_sample
            if callback_on_step_end is not None:
                changed = callback_on_step_end(self, i, step, {"latents": sample}) or {}
                sample = changed.get("latents", sample)
        images = self._finished(sample, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _answer(self, label: Tensor | None, scale: float | None) -> Callable[..., Tensor]:
        """(sample, level) to what the scheduler wants, guidance inside."""
        settings = (self.model.sampling or SamplingConfig()).changed(guidance=scale)
        if settings.guidance != 1 and label is None:
            raise ValueError("this model has no classes, so there is no guidance; leave it at 1")
        denoiser, learned = self.model.denoiser, self._learned()
        ask: Any = denoiser.estimate if learned else denoiser
        if label is not None:
            label = label.to(self.model.device)
        if settings.guidance != 1 and label is not None:
            pair: Any = paired_estimate if learned else paired
            ask = pair(
                ask,
                label,
                null=self.model.classes,
                weight=settings.weight(self.model.formulation),
                channels=settings.guidance_channels,
            )
        else:
            ask = _with_label(ask, label)

        def answer(sample: Tensor, level: Level) -> Tensor:
            x = sample.float() / level.signal
            found = ask(x, torch.tensor(level.sigma, dtype=torch.float64))
            clean, fraction = found if learned else (found, None)
            output = prediction(self.scheduler, clean, sample.float(), level)
            # DDPMScheduler takes the learned variance as channels in [-1, 1].
            return output if fraction is None else torch.cat([output, 2 * fraction - 1], 1)

        return answer

    def _learned(self) -> bool:
        return bool(self.scheduler.config.get("variance_type") == "learned_range")

    def _step_options(self, generator: Any, eta: float) -> dict[str, Any]:
        known = inspect.signature(self.scheduler.step).parameters
        options = {"generator": generator, "eta": eta}
        return {name: value for name, value in options.items() if name in known}

    def _start(self, count: int, generator: Any, latents: Tensor | None) -> Tensor:
        shape = (count, *self.model.shape)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=self.model.device)
        elif tuple(latents.shape) != shape:
            raise ValueError(f"latents have shape {tuple(latents.shape)}; they must have {shape}")
        start = latents.to(self.model.device, torch.float32)
        return start * getattr(self.scheduler, "init_noise_sigma", 1.0)

    def _finished(self, sample: Tensor, output_type: str) -> Any:
        if output_type == "latent":
            return sample
        images = self.model.codec.decode(sample).cpu()
        if output_type == "pt":
            return images.float() / 255
        array = images.permute(0, 2, 3, 1).float().numpy() / 255
        return array if output_type == "np" else self.numpy_to_pil(array)


class DenoiserModel(nn.Module):
    """The network of a DDPM model, called as diffusers calls its transformers.

    It fits `diffusers.DiTPipeline` where the model has 1000 classes: 1000 is "no class" there.
    UsageError for a model of another formulation, whose network is told another time.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        time = getattr(model.config.formulation, "time", "")
        if model.formulation.name != "ddpm" or time != "index":
            raise UsageError(
                f"this model is {model.formulation.name} and is told the time as {time!r}; models "
                "of diffusers are ddpm and told the index: take DiffiTPipeline"
            )
        self.network = model.network
        channels, height, width = model.shape
        self.config = SimpleNamespace(
            sample_size=height if height == width else (height, width),
            in_channels=channels,
            out_channels=channels * (2 if model.formulation.learned_variance else 1),
            num_embeds_ada_norm=model.classes,
        )

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the network."""
        return next(self.network.parameters()).dtype

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """(B, C, H, W) sample of DDPM, (B,) index, (B,) label to `.sample`, the raw prediction."""
        time = timestep.to(hidden_states.device, torch.float32).expand(len(hidden_states))
        raw = self.network(hidden_states, time, class_labels)
        return SimpleNamespace(sample=raw) if return_dict else (raw,)


def _with_label(function: Callable[..., Any], label: Tensor | None) -> Callable[..., Any]:
    return lambda x, sigma: function(x, sigma, label)
