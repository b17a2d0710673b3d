"""Which layers bear to be rounded: what error of the network each of them would cause alone."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffit import draws
from diffit.data.example import Follow
from diffit.data.images import write_atomic
from diffit.deploy.probe import Probe, answer
from diffit.distributed import double
from diffit.model import Model

Layers = Mapping[str, nn.Module]
"""Layers by their dotted name in the network."""


def layer_errors(
    model: Model,
    probe: Probe,
    layers: Layers,
    rounded: Layers,
    *,
    notes: Path | None = None,
    key: str = "",
    follow: Follow = iter,
) -> dict[str, float]:
    """`level_errors`, averaged over the levels of a probe.

    Args:
        notes: a file that remembers the levels that are done, so that a killed command goes on.
        key: what the notes must be of to be of use.
        follow: wraps the numbers of the levels, to show progress.
    """
    known = _read_notes(notes, key)
    for level in follow(range(len(probe))):
        if str(level) not in known:
            known[str(level)] = level_errors(model, probe, level, layers, rounded)
            if notes is not None:
                write_atomic(notes, json.dumps({"key": key, "levels": known}).encode())
    return {
        name: sum(known[str(level)][name] for level in range(len(probe))) / len(probe)
        for name in layers
    }


def level_errors(
    model: Model, probe: Probe, level: int, layers: Layers, rounded: Layers, *, seed: int = 0
) -> dict[str, float]:
    """The square of the relative error of the network's output that each layer would cause alone.

    To first order, and of all layers from one forward and one backward pass: if d is the error of a
    layer's own output and J the Jacobian of the network with respect to it, then for random signs
    v, E[(v' J d)^2] = |J d|^2, and v' J is what backpropagation gives. An image is a draw of v.

    Args:
        model: in full precision, its weights frozen, as `load` gives it.
        probe: images and noise levels.
        level: which of them.
        layers: those of the network.
        rounded: what would take their places, by the same names.
        seed: of the signs.
    """
    batch = len(probe.clean)
    dots: dict[str, Tensor] = {}
    given = probe[level]
    with _errors_watched(layers, rounded, dots, batch), torch.enable_grad():
        raw = answer(model, given._replace(x=given.x.detach().requires_grad_())).raw
        signs = draws.normal(
            seed, range(level * batch, (level + 1) * batch), "signs", raw.shape[1:]
        )
        (raw * signs.sign().to(raw)).sum().backward()  # type: ignore[no-untyped-call]
    size = float(raw.detach().to(double(raw.device)).square().sum())
    return {
        name: float(dots[name].square().sum()) / size if name in dots else 0.0 for name in layers
    }


@contextmanager
def _errors_watched(
    layers: Layers, rounded: Layers, dots: dict[str, Tensor], batch: int
) -> Iterator[None]:
    """While it lasts, backward passes add v' J d of each layer and image to ``dots``."""

    def watch(name: str) -> Callable[..., Tensor]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            with torch.no_grad():
                error = rounded[name](inputs[0].detach()) - output
            if not output.requires_grad:  # it depends on the noise level alone
                output = output.detach().requires_grad_()

            def add(gradient: Tensor) -> None:
                kind = double(gradient.device)
                found = _by_image(gradient.to(kind) * error.to(kind), batch)
                dots[name] = dots[name] + found if name in dots else found

            output.register_hook(add)  # type: ignore[no-untyped-call]
            return output.clone()  # who gets it may change it in place, and lose the hook

        return hook

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_hook(watch(name)).remove)
        yield


def _by_image(products: Tensor, batch: int) -> Tensor:
    """(B,) sums over each image; where images share a row, the sum over all as the first of B."""
    whole = len(products) % batch == 0
    sums: Tensor = products.reshape(batch if whole else 1, -1).sum(1)
    return sums if whole else F.pad(sums, (0, batch - 1))


def _read_notes(notes: Path | None, key: str) -> dict[str, dict[str, float]]:
    try:
        content = json.loads(notes.read_text("utf-8")) if notes is not None else {}
    except (OSError, ValueError):
        return {}
    levels = content.get("levels") if isinstance(content, dict) else None
    return levels if isinstance(levels, dict) and content.get("key") == key else {}


def keep_dense(
    errors: Mapping[str, float], weights: Mapping[str, int], *, budget: float
) -> list[str]:
    """The layers to leave as they are, so that the errors of all others stay within a budget.

    Errors of different layers are taken as independent, so that their squares add up. Those that
    cost the most error for each weight that is rounded go first.

    Args:
        errors: squared error of each layer.
        weights: numbers in each layer.
        budget: what the squares of the rest may add up to.
    """
    left = sum(errors.values())
    dense = []
    for name in sorted(errors, key=lambda name: -errors[name] / weights[name]):
        if left <= budget:
            break
        dense.append(name)
        left -= errors[name]
    return dense
