"""Models of this library in the layout of another code, as files that it loads."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from diffit.codecs import AutoencoderConfig
from diffit.convert.certificate import Certificate, compare, parameters_of
from diffit.convert.diffusers_dit import CLASSES
from diffit.convert.families import find
from diffit.convert.family import check_layers, copies_of
from diffit.convert.reference import network_of, to_reference
from diffit.convert.weights import DIFFUSERS, sha256
from diffit.diffusion.formulation import DDPMConfig, build_formulation
from diffit.errors import CheckpointError
from diffit.model import Model, ModelConfig
from diffit.networks import Network
from diffit.sealed import appearing

Layout = Literal["reference", "diffusers"]

BETAS = {"linear": ("linear", 1e-4, 0.02), "scaled-linear": ("scaled_linear", 0.00085, 0.012)}
"""Our schedules -> name, first and last beta in diffusers."""


def export(
    model: Model, folder: Path, layout: Layout, *, approximate: bool = False
) -> tuple[Certificate, list[str]]:
    """Write a model for another code, whole or not at all.

    Args:
        model: with its weights.
        folder: a new folder. ``"reference"`` puts `model.safetensors` there, under the names of
            the code that trains such networks, with its arguments in `config.json`;
            ``"diffusers"`` a pipeline folder, with the autoencoder if it is a local one.
        layout: which of the two.
        approximate: let diffusers compute a DiT with its own time features and eps.

    Returns:
        The certificate of what was written, which is also in the folder, and what is left to do.

    Raises:
        CheckpointError: the layout has no room for such a network.
    """
    network: Any = model.network
    note, todo = "", []
    if layout == "diffusers":
        scheduler = _scheduler(model.config)
    try:
        if layout == "diffusers" and approximate:
            network, note = _as_diffusers(network, model)
        family, tensors, args = to_reference(
            network, "diffusers-dit" if layout == "diffusers" else None
        )
    except ValueError as error:
        dense = model.config.linear.name == "dense"  # else no approximation helps
        hint = _hint(network) if layout == "diffusers" and dense else ""
        raise CheckpointError(f"{error}{hint}") from None
    with appearing(folder) as part:
        if layout == "reference":
            file = part / "model.safetensors"
            _write_json(part / "config.json", {"family": family, "arguments": args})
        else:
            file = part / "transformer" / f"{DIFFUSERS}.safetensors"
            todo = _write_pipeline(part, model.config, args, scheduler)
        save_file(_apart(tensors), file)
        certificate = _certify(network, model, family, tensors, args, file)
        certificate = certificate.model_copy(update={"note": note})
        _write_json(part / "certificate.json", certificate.model_dump(mode="json"))
    return certificate, todo


def _certify(
    network: Network,
    model: Model,
    family: str,
    tensors: Mapping[str, Tensor],
    args: Mapping[str, Any],
    file: Path,
) -> Certificate:
    module = find(family)
    formulation = build_formulation(model.config.formulation)
    dropped = module.derived(network.config).keys() | copies_of(module, network.config).keys()
    return Certificate(
        family=family,
        source=module.SOURCE,
        file=file.name,
        weights=str(model.provenance.get("weights") or ""),
        sha256=sha256(file),
        parameters=parameters_of(network.config),
        mapped=len(tensors.keys() - dropped),
        dropped=len(tensors.keys() & dropped),
        comparison=compare(network, module, tensors, args, formulation),
    )


def _as_diffusers(network: Any, model: Model) -> tuple[Network, str]:
    """The same weights, computed as diffusers does, and how much that changes."""
    if network.config.name != "dit":
        return network, ""
    check_layers("diffusers", find("diffusers-dit"), network)
    config = network.config.model_copy(update={"time_embedding": "diffusers", "mlp_eps": 1e-5})
    other = network_of(config, network.state_dict())
    formulation = build_formulation(model.config.formulation)
    x = torch.randn(2, *config.shape, generator=torch.Generator().manual_seed(0))
    time = formulation.time(formulation.training_sigma(torch.tensor([0.9, 0.1]).double())).float()
    label = torch.zeros(2, dtype=torch.int64) if config.classes else None
    with torch.inference_mode():
        ours, theirs = network(x, time, label), other(x, time, label)
    gap = float((ours - theirs).abs().max() / ours.abs().max())
    return other, (
        "diffusers computes another function of these weights (time features and an eps differ): "
        f"outputs change by up to {gap:.2g} of the largest"
    )


def _hint(network: Any) -> str:
    if network.config.name == "dit" and network.config.time_embedding == "dit":
        return (
            ": diffusers counts time at frequencies 10000^(-k/127), DiT at 10000^(-k/128); "
            "--approximate writes it all the same and says how much changes"
        )
    return "; diffusers has the plain DiT alone"


def _scheduler(config: ModelConfig) -> dict[str, Any]:
    formulation = config.formulation
    if not isinstance(formulation, DDPMConfig) or formulation.schedule not in BETAS:
        raise CheckpointError(
            f"the pipeline of diffusers needs formulation ddpm with a linear schedule, not "
            f"{formulation.name}"
        )
    if formulation.time != "index":
        raise CheckpointError(
            f"the pipeline of diffusers counts time as index, not {formulation.time}"
        )
    name, first, last = BETAS[formulation.schedule]
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": formulation.steps,
        "beta_schedule": name,
        "beta_start": first,
        "beta_end": last,
        "clip_sample": False,
        "prediction_type": {"eps": "epsilon", "v": "v_prediction"}[formulation.predict],
    }


def _write_pipeline(
    part: Path, config: ModelConfig, args: Mapping[str, Any], scheduler: Mapping[str, Any]
) -> list[str]:
    """All but the weights; what the user has still to do."""
    (part / "transformer").mkdir()
    _write_json(part / "transformer" / "config.json", {"_class_name": CLASSES[0], **args})
    (part / "scheduler").mkdir()
    _write_json(part / "scheduler" / "scheduler_config.json", scheduler)
    index: dict[str, Any] = {
        "_class_name": "DiTPipeline",
        "transformer": ["diffusers", CLASSES[0]],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if config.class_names:
        index["id2label"] = {str(i): name for i, name in enumerate(config.class_names)}
    _write_json(part / "model_index.json", index)
    codec = config.codec
    path = codec.path if isinstance(codec, AutoencoderConfig) else ""
    if path and Path(path).is_dir():
        shutil.copytree(path, part / "vae")
        return []
    which = path or "the autoencoder that it was trained with"
    return [f"put {which} into vae/, which diffusers wants beside the transformer"]


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, no two of which share memory, as safetensors wants them."""
    taken: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        own = tensor.contiguous()
        if own.untyped_storage().data_ptr() in taken:
            own = own.clone()
        taken.add(own.untyped_storage().data_ptr())
        apart[name] = own
    return apart


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
