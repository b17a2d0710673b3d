"""Any image classifier of transformers, by its own code, with attention where it shows some.

Attention is shown by the library's eager form alone, and has a use here where every token attends
to every other: in ViTs such as DINOv2, but not within windows as in Swin.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffit.errors import CheckpointError
from diffit.explain.classifier import (
    Classifier,
    Trace,
    as_classifier,
    check_normalisation,
    fit,
    normalise,
)
from diffit.explain.transformers_folder import Facts, need_transformers

MAX_PREFIX = 64
"""Class, distillation and register tokens; more of them are no prefix."""


class EagerModel:
    """A network of transformers that shows its attention; see `wrap_model`."""

    def __init__(
        self,
        model: nn.Module,
        shape: tuple[int, int, int],
        class_names: tuple[str, ...],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        grid: tuple[int, int],
        prefix: int,
        name: str,
    ) -> None:
        self.model = model
        self.shape, self.class_names = shape, class_names
        self.mean, self.std = mean, std
        self.grid, self.prefix = grid, prefix
        self.name = name

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) images in [-1, 1] to (B, K) logits."""
        return self.traced(images).logits

    def traced(self, images: Tensor) -> Trace:
        """The logits, and the attention of every layer, which the eager form computes anyway."""
        pixels = normalise(fit(images, self.shape), self.mean, self.std)
        out = _forward(self.model, pixels)
        return Trace(out.logits, tuple(out.attentions))


def open_model(folder: Path, facts: Facts) -> Classifier:
    """The classifier in a folder, by transformers' own code; nothing of the folder is run."""
    transformers = need_transformers()
    kinds = transformers.AutoModelForImageClassification
    try:
        model = _quietly(
            transformers, lambda: kinds.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, trust_remote_code=False,
                attn_implementation="eager",
            )
        )  # fmt: skip
    except Exception as error:  # the library raises whatever its parts do
        first = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"{facts.name} cannot be read as an image classifier of transformers: {first}"
        ) from None
    return wrap_model(
        model.float().eval().requires_grad_(False), size=facts.size, mean=facts.mean,
        std=facts.std, name=facts.name,
    )  # fmt: skip


def wrap_model(
    model: Any,
    *,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    class_names: Sequence[str] | None = None,
    name: str = "",
) -> Classifier:
    """A loaded image classifier of transformers as a `Classifier`.

    Args:
        model: a `...ForImageClassification`, in evaluation mode; loaded with
            ``attn_implementation="eager"`` if it shall show its attention.
        size: (height, width) of the images that it is given.
        mean, std: of its image processor, for images in [0, 1].
        class_names: K names; by default those of its configuration.
        name: what messages call it; by default its kind.

    Returns:
        A classifier that shows its attention if the model does so between all of its tokens.

    Raises:
        CheckpointError: the model takes no such images, or gives no logits.
    """
    config = model.config
    shape = (int(getattr(config, "num_channels", 3)), *size)
    name = name or str(getattr(config, "model_type", type(model).__name__))
    check_normalisation(mean, std, channels=shape[0])
    tried = _try(model, shape, name)
    facts = Facts(config.to_dict(), size, (), (), name)
    if class_names is None:
        labels = {str(i): label for i, label in (config.id2label or {}).items()}
        facts = facts._replace(config={"id2label": labels})
        class_names = facts.class_names(tried.logits.shape[1])
    found = _tokens(tried.attentions, config, size)
    if found is None:
        return as_classifier(
            lambda pixels: _forward(model, pixels).logits, shape=shape, class_names=class_names,
            mean=mean, std=std, name=name,
        )  # fmt: skip
    grid, prefix = found
    names = tuple(class_names)
    return EagerModel(model, shape, names, tuple(mean), tuple(std), grid, prefix, name)


def _forward(model: Any, pixels: Tensor) -> Any:
    weights = next(model.parameters())
    return model(pixel_values=pixels.to(weights.dtype), output_attentions=True)


def _try(model: Any, shape: tuple[int, int, int], name: str) -> Any:
    """What the model gives for one grey image."""
    grey = torch.zeros(1, *shape, device=next(model.parameters()).device)
    try:
        with torch.no_grad():
            out = _forward(model, grey)
    except Exception as error:  # the library raises whatever its parts do
        first = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{name} takes no images of {shape}: {first}") from None
    logits = getattr(out, "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise CheckpointError(f"{name} gives no logits; name a model that classifies images")
    return out


def _tokens(
    attentions: Any, config: Any, size: tuple[int, int]
) -> tuple[tuple[int, int], int] | None:
    """Grid and prefix of a model whose tokens attend to all others; None for other models."""
    patch = getattr(config, "patch_size", None)
    sides: Any = tuple(patch) if isinstance(patch, list | tuple) else (patch, patch)
    if not attentions or not all(isinstance(side, int) and side > 0 for side in sides):
        return None
    grid = (size[0] // sides[0], size[1] // sides[1])
    # Attention within windows is smaller than the grid, or differs from stage to stage.
    shapes = {tuple(maps.shape[2:]) for maps in attentions if maps is not None}
    if len(shapes) != 1 or any(maps is None or maps.ndim != 4 for maps in attentions):
        return None
    rows, columns = shapes.pop()
    prefix = rows - grid[0] * grid[1]
    return (grid, prefix) if rows == columns and 0 <= prefix <= MAX_PREFIX else None


def _quietly(transformers: Any, load: Any) -> Any:
    """``load()`` without the library's own bars and warnings."""
    logging = transformers.utils.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return load()
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
