"""`diffit hub export`, `push` and `pull`: pass models on with licence, card and measurements."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from pydantic import field_validator

from diffit.checkpoint import load
from diffit.config import Settings
from diffit.errors import UsageError
from diffit.evaluation.passport import read_passport
from diffit.fetch import parse_id
from diffit.hub import Card, export, is_hub_folder, pull, push, read_folder
from diffit.hub.folder import HubConfig

PRECISIONS = {"as-is": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


class Export(Settings):
    """Write a model as a hub-style folder: configuration, safetensors, model card."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run, a checkpoint, a hub-style folder or a hub id."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """New folder; an older hub-style folder is replaced."""
    weights: str = ""
    """Set of weights, such as model or ema-0.9999; by default the recommended one."""
    dtype: Literal["as-is", "fp32", "bf16", "fp16"] = "as-is"
    """Precision of the stored weights."""
    name: str = ""
    """What the card calls the model in commands, such as owner/name."""
    title: str = ""
    """Heading of the card."""
    summary: str = ""
    """What the model is, in a sentence or two."""
    licence: str = ""
    """Licence of the weights, such as apache-2.0 or cc-by-nc-4.0."""
    licence_url: str = ""
    """Where its text is."""
    licence_note: str = ""
    """What it restricts, in a sentence."""
    source: str = ""
    """Where the weights come from: an address, a paper, a run."""
    passport: tuple[Path, ...] = ()
    """Measurements of this model, as `diffit evaluate` writes them."""
    max_shard_size: str = "5GB"
    """Weights are split into files of up to this size: 500MB, 5GB."""

    @field_validator("max_shard_size")
    @classmethod
    def check_size(cls, text: str) -> str:
        if not re.fullmatch(r"[1-9]\d{0,5}(KB|MB|GB)", text):
            raise ValueError(f"max_shard_size is {text!r}; write a size such as 500MB or 5GB")
        return text

    @property
    def shard_bytes(self) -> int:
        """`max_shard_size` as a number."""
        return int(self.max_shard_size[:-2]) * UNITS[self.max_shard_size[-2:]]


class Push(Settings):
    """Upload a hub-style folder; the repository is made if there is none."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Written by `diffit hub export`."""
    repo: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="REPO")]
    """owner/name."""
    private: bool = False
    """Make a new repository private."""


class Pull(Settings):
    """Fetch a model that diffit wrote into a folder, and verify it."""

    repo: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="REPO")]
    """owner/name, or owner/name@revision."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """New folder."""


def run_export(args: Export) -> None:
    """Load, describe, write."""
    passports = [read_passport(path).model_dump(mode="json") for path in args.passport]
    model = load(args.model, weights=args.weights or None)
    place = Path(model.provenance["checkpoint"])
    card = read_folder(place).card if is_hub_folder(place) else Card()
    said = {
        field: getattr(args, field)
        for field in ("title", "summary", "licence", "licence_url", "licence_note", "source")
        if getattr(args, field)
    }
    card = card.model_copy(update={**said, "passports": (*card.passports, *passports)})
    content = export(
        model,
        args.out,
        card=card,
        dtype=PRECISIONS[args.dtype],
        name=args.name,
        shard_bytes=args.shard_bytes,
    )
    print(f"{args.out}: {_described(content)}")
    if not card.licence:
        print("no licence is named; others may not use the model without one: --licence apache-2.0")


def run_push(args: Push) -> None:
    """Verify and upload."""
    print(f"{args.repo}: {push(args.folder, args.repo, private=args.private)}")


def run_pull(args: Pull) -> None:
    """Fetch, verify, copy."""
    source = parse_id(args.repo)
    if source is None or source.file is not None:
        raise UsageError(f"{args.repo} is no repository; write owner/name or owner/name@revision")
    print(f"{args.out}: {_described(pull(source, args.out))}")


def _described(content: HubConfig) -> str:
    weights = [note.bytes for name, note in content.files.items() if name.endswith("tensors")]
    size, files = sum(weights) / 1e6, f"{len(weights)} file{'s' * (len(weights) > 1)}"
    licence = content.card.licence or "no licence"
    return f"{content.model.network.name}, {size:.1f} MB of weights in {files}, {licence}"


VERBS: dict[str, tuple[type[Settings], Any]] = {
    "export": (Export, run_export),
    "push": (Push, run_push),
    "pull": (Pull, run_pull),
}
"""`diffit hub VERB`: its arguments and what it does."""
