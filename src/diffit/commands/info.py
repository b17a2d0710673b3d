"""`diffit info WHAT`: what a preset, a configuration file, a run or a checkpoint is."""

from pathlib import Path
from typing import Annotated, Any, cast

import torch
import tyro
from pydantic import BaseModel
from torch import nn

from diffit.checkpoint import checkpoints, newest, weights_in
from diffit.codecs import AutoencoderConfig
from diffit.config import Settings, parse, read_yaml
from diffit.errors import CheckpointError
from diffit.hub import find, is_hub_folder, read_folder, verify_folder
from diffit.hub.card import figures
from diffit.hub.folder import HubConfig
from diffit.model import ModelConfig
from diffit.networks import Network, NetworkConfig, build_network
from diffit.networks.count import count_macs, count_norms, count_parameters, count_time_parameters
from diffit.nn.linears import DenseConfig, LinearConfig, use_linears_
from diffit.nn.packed import TernaryPackedConfig
from diffit.nn.swap import linears_in
from diffit.nn.ternary import TernaryConfig
from diffit.sealed import CONFIG, STATE, DamagedError, read_state, verify
from diffit.training.console import duration
from diffit.training.folder import is_run
from diffit.training.presets import read_config
from diffit.training.settings import RunConfig


class Args(Settings):
    """Say what a checkpoint, a run or a preset is."""

    what: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="WHAT")]
    """A preset, a configuration file, the folder of a run, a checkpoint, a hub-style folder or a
    hub id."""
    norms: bool = False
    """Also what other norms would cost in the transformer blocks: norms that know the noise level,
    or read it from a token."""


def run(args: Args) -> None:
    """Print one fact per line."""
    path = find(args.what)
    facts: dict[str, str] = {}
    if is_hub_folder(path):
        content = read_folder(path)
        config = _of_hub(content)
        facts |= _passed_on(path, content)
    elif path.is_dir():
        config = _config_in(path)
        facts |= _stored(path)
    else:
        config = read_config(args.what)
    facts = {name: text for name, text in (_described(config) | facts).items() if text}
    if args.norms:
        facts |= _norms(config.model.network)
    width = max(map(len, facts))
    for name, text in facts.items():
        print(f"{name:{width}}  {text}")


def _config_in(folder: Path) -> RunConfig:
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} is no run and no checkpoint: it has no {CONFIG}")
    settings = read_yaml(folder / CONFIG)
    settings.setdefault("data", {"path": ""})  # an exported model has no data
    return parse(RunConfig, settings, source=str(folder / CONFIG))


def _of_hub(content: HubConfig) -> RunConfig:
    settings = {"model": content.model, "sampling": content.sampling, "data": {"path": ""}}
    return RunConfig.model_validate(settings)


def _passed_on(folder: Path, content: HubConfig) -> dict[str, str]:
    """What a hub-style folder says of a model beside how it is built."""
    card = content.card
    limits = f": {card.restriction}" if card.restriction else ""
    facts = {
        "data": str(card.provenance.get("data") or "not told"),
        "training": f"{images:,} images" if (images := card.provenance.get("images")) else "",
        "averages": "",
        "weights": f"{sum(n.bytes for n in content.files.values()):,} bytes in "
        + ", ".join(name for name in content.files if name.endswith(".safetensors")),
        "licence": (card.licence or "not named") + limits,
        "source": card.source,
    }
    for passport in card.passports:
        for name, value, span, samples, reference, how in figures(passport):
            interval = f" ({span})" if span else ""
            drawn = f", {how}" if how else ""
            facts[name] = f"{value}{interval}, {samples} samples against {reference}{drawn}"
    try:
        verify_folder(folder, content)
    except DamagedError as error:
        facts["damaged"] = str(error)
    return facts


def _described(config: RunConfig) -> dict[str, str]:
    model, train = config.model, config.train
    network, built = model.network, _built(model.network)
    rows, columns = network.shape[1:]
    names = ", ".join(model.class_names[:10]) + (" ..." if len(model.class_names) > 10 else "")
    classes = f"{network.classes} {f'({names})' if names else ''}" if network.classes else "none"
    return {
        "network": f"{network.name}, {rows} x {columns}, channels {network.channels}",
        "parameters": f"{count_parameters(built):,}",
        "time": f"{count_time_parameters(built):,} of them carry the noise level",
        "linear": _linear(model),
        "cost": f"{_readable(count_macs(network))} multiplications a forward pass and image",
        **_images(model),
        "formulation": _differing(model.formulation),
        **({"restores": model.task} if model.task else {}),
        "classes": classes.strip(),
        "data": config.data.path or "not named yet",
        "training": f"{train.images:,} images in batches of {train.batch}, {train.optimizer}, "
        f"learning rate {train.lr:g}, {train.precision}",
        "averages": ", ".join(train.ema.names) or "none",
        "sampling": _differing(config.sampling, "sampler", "steps"),
    }


def _linear(model: ModelConfig) -> str:
    """What the linear layers of the blocks are, how much of the model, and its size with them."""
    kind, network = model.linear, _built(model.network)
    count, before = count_parameters(network), linears_in(network)
    names = list(before)
    if not isinstance(kind, DenseConfig):
        names = use_linears_(network, _packed(kind))
    share = sum(before[name].weight.numel() for name in names) / count
    size = sum(tensor.nbytes for tensor in network.state_dict().values())
    when = " once packed" if isinstance(kind, TernaryConfig) else ""
    return (
        f"{kind.name}, {100 * share:.4g} % of the parameters; "
        f"{8 * size / count:.3g} bits a parameter{when}, {_readable(size)}B"
    )


def _packed(kind: LinearConfig) -> LinearConfig:
    """The kind that ternary layers become when they are packed; others stay."""
    if not isinstance(kind, TernaryConfig):
        return kind
    return TernaryPackedConfig(skip=kind.skip, granularity=kind.granularity, group=kind.group)


def _norms(network: NetworkConfig) -> dict[str, str]:
    """Parameters of each kind of norm, in a transformer block and in all of them."""
    # The widest blocks: of a network of several resolutions those of its transformer.
    built = cast(Network, _built(network))
    widths = [width for block in built.blocks() if (width := _width(block))]
    top = max(widths)
    count = widths.count(top)
    return {
        f"norms {kind}": f"{each:,} a block of width {top}, {count * each:,} in {count} blocks"
        for kind, each in count_norms(top).items()
    }


def _width(block: nn.Module) -> int:
    """Channels of a block's tokens, as its attention reads them; 0 if it has none."""
    layers = ("attention.qkv", "attention.query")
    readers = (m for name, m in block.named_modules() if name.endswith(layers))
    return next((int(reader.in_features) for reader in readers), 0)


def _images(model: ModelConfig) -> dict[str, str]:
    """What a model of latents makes images with, as far as its configuration says."""
    codec = model.codec
    if not isinstance(codec, AutoencoderConfig):
        return {}
    rows, columns = model.network.shape[1:]
    facts = {"codec": f"autoencoder {codec.path}"}
    if codec.factor is not None:
        facts["codec"] += f" ({codec.kind}), scale {codec.scale}, shift {codec.shift}"
        facts["images"] = f"{rows * codec.factor} x {columns * codec.factor} pixels"
    return facts


def _stored(folder: Path) -> dict[str, str]:
    """What is known of a folder that holds trained weights."""
    facts = {}
    if is_run(folder):
        found = newest(folder)
        facts["checkpoints"] = ", ".join(p.name for p in checkpoints(folder)) or "none yet"
        if found.damaged:
            facts["damaged"] = "; ".join(found.damaged.values())
        if found.folder is None:
            return facts
        folder = found.folder
    if not (folder / STATE).exists():
        raise CheckpointError(f"{folder} is no checkpoint: it has no {STATE}")
    state = read_state(folder)
    try:
        verify(folder)
    except DamagedError as error:
        facts["damaged"] = str(error)
    first, *others = weights_in(folder)
    facts["weights"] = ", ".join([f"{first} (by default)", *others])
    if "images" in state:
        facts["trained"] = f"{state['images']:,} images"
    if "seconds" in state:
        facts["trained"] += f" in {duration(state['seconds'])}"
    return facts


def _built(network: NetworkConfig) -> nn.Module:
    """The network, without memory for its weights."""
    with torch.device("meta"):
        return build_network(network)


def _readable(count: int) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.4g} {letter}"
    return str(count)


def _differing(settings: BaseModel, *always: str) -> str:
    """The name of a kind of settings, and those values that are not its defaults."""
    kind = type(settings).model_fields
    name: Any = getattr(settings, "name", None)
    values = {
        field: getattr(settings, field)
        for field in kind
        if field != "name"
        and (field in always or getattr(settings, field) != kind[field].get_default())
    }
    listed = [f"{field} {value}" for field, value in values.items()]
    return ", ".join([name, *listed] if name else listed)
