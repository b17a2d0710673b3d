"""The plan of a folder of drawn images: written first, so that anything can be continued.

    OUT/samples.json        the plan: everything needed to draw the images again
    OUT/images/000000.png   image i, from seed + i and label i; from 1000 on in sub-folders
    OUT/units/000000.txt    unit 0 is drawn: the checksums of its images, see `diffit.work`
    OUT/checksums.txt       all of them, for `sha256sum -c`, and what else `diffit.products` makes

Image i is computed in unit i // unit, at place i % unit, among the same neighbours whatever the
count: its bytes depend on nothing else of the plan, nor on processes or interruptions.
"""

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import diffit
from diffit.claims import turn
from diffit.codecs import Autoencoder, CodecConfig, PixelsConfig
from diffit.config import Settings
from diffit.data.images import read_image
from diffit.draws import integers
from diffit.errors import DataError, UsageError
from diffit.model import Model
from diffit.sampling import SamplingConfig

FORMAT = "diffit-samples-2"
RECORD = "samples.json"
PER_FOLDER = 1000
FREE = frozenset(("count", "command", "receipt"))
"""What may differ when a folder is continued; the count may only grow."""
SHOWN = 60
"""Characters of a setting that a message shows."""


class Weights(Settings):
    """Which weights were used."""

    checkpoint: str
    name: str
    hash: str
    """BLAKE2b of their file, or of the tensors; the path may change, this may not."""


class Plan(Settings):
    """Everything that the bytes of a folder of images follow from."""

    format: str = FORMAT
    weights: Weights
    reference: Weights | None = None
    """For autoguidance."""
    seed: int
    """Image i is drawn from seed + i."""
    labels: tuple[int | None, ...]
    """The labels that are drawn; empty for models without classes."""
    label_order: Literal["turns", "uniform"] = "turns"
    """Image i has label i modulo their number, or one that its seed picks at random."""
    classes: tuple[str, ...]
    """What the labels mean."""
    sampling: SamplingConfig
    codec: CodecConfig = PixelsConfig()
    """Settings of the codec that made pixels of the drawn."""
    device: str
    threads: int
    """CPU threads: sums are split among them, and round differently."""
    versions: dict[str, str]
    count: int
    command: str
    """What was typed."""
    receipt: dict[str, Any] | None = None
    """What approximations of the sampling cost and gain, see `diffit.evaluation.receipt`."""

    def label(self, i: int) -> int | None:
        """The label of image i."""
        if not self.labels:
            return None
        if self.label_order == "uniform":
            i = int(integers(self.seed + i, [0], "label", len(self.labels)))
        return self.labels[i % len(self.labels)]

    def units(self) -> range:
        """The units that the images are computed in."""
        return range(-(-self.count // self.sampling.unit))

    def places(self, unit: int) -> range:
        """The images of one unit that are asked for."""
        size = self.sampling.unit
        return range(unit * size, min((unit + 1) * size, self.count))


def weights_of(model: Model) -> Weights:
    """What a loaded model says of itself."""
    origin = model.provenance
    return Weights(
        # Links are kept: the cache of the hub links names to files called by their hash.
        checkpoint=str(Path(origin["checkpoint"]).absolute()),
        name=origin["weights"],
        # An average that is blended while it is read has no file of its own.
        hash=origin["blake2b"] or _digest(model),
    )


def image_shape(model: Model) -> tuple[int, int, int]:
    """(C, H, W) of the images that a model draws, in pixels."""
    channels, height, width = model.shape
    factor = model.codec.factor
    decoded = channels if model.codec.channels is None else 3
    return decoded, height * factor, width * factor


def class_names(model: Model) -> tuple[str, ...]:
    """What the labels mean; their numbers where nobody has named them."""
    return model.config.class_names or tuple(map(str, range(model.classes)))


def versions() -> dict[str, str]:
    """The versions that bytes depend on."""
    return {"diffit": diffit.__version__, "torch": torch.__version__}


def set_rounding(model: Model, rounding: Literal["nearest", "down"]) -> None:
    """Let the codec of ``model`` turn values into 0..255 by another rule."""
    model.set_codec(model.config.codec.model_copy(update={"rounding": rounding}))


def settle_codec(model: Model) -> None:
    """Read the autoencoder of a model of latents, now rather than after its first image.

    Its hash is noted in the model's configuration; CheckpointError if it cannot be used.
    """
    if isinstance(model.codec, Autoencoder):
        model.set_codec(model.codec.identified())
        model.codec.module(model.device)


def begin(out: Path, plan: Plan) -> None:
    """Write the plan, or find that ``out`` continues the same one; UsageError if it cannot."""
    if read_plan(out) is None and out.is_dir():
        _refuse_strangers(out)
    try:
        for name in ("images", "units"):
            (out / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out} cannot be made: {error.strerror}") from None
    with turn(out / "units" / "plan.claim"):
        before = read_plan(out)
        begun = before is not None and any((out / "images").rglob("*.png"))
        if before is not None and begun:
            refuse_other(out, before, plan)
        if before is None or not begun or before.count < plan.count:
            known = before.receipt if before is not None and begun else None
            write_plan(out, plan.model_copy(update={"receipt": known}))


def write_plan(out: Path, plan: Plan) -> None:
    """Write `samples.json`."""
    text = json.dumps(plan.model_dump(mode="json", exclude_none=True), indent=1) + "\n"
    write_here(out / RECORD, text.encode())


def _refuse_strangers(out: Path) -> None:
    """UsageError if a folder without a plan holds anything but empty folders of ours."""
    others = {path.name for path in out.iterdir()} - {"images", "units"}
    # What a killed process left of its very first file is nobody's.
    if strange := sorted(name for name in others if not name.endswith(".partial")):
        raise UsageError(f"--out {out} holds other files ({strange[0]}); name a new folder")
    if (out / "images").is_dir() and any((out / "images").iterdir()):
        raise UsageError(f"--out {out} holds images but no {RECORD}; name a new folder")


def read_plan(out: Path) -> Plan | None:
    """The plan in a folder, None if there is none yet; UsageError if it is damaged."""
    try:
        return Plan.model_validate_json((out / RECORD).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError):
        raise UsageError(f"{out / RECORD} is damaged; name a new folder") from None


def refuse_other(out: Path, before: Plan, plan: Plan) -> None:
    """UsageError unless the images of ``before`` belong to ``plan`` as well."""
    old, new = _flat(before), _flat(plan)
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            raise UsageError(
                f"--out {out} was begun with {name} {_short(old.get(name))}, not "
                f"{_short(new.get(name))}; repeat that command or name a new folder"
            )
    if plan.count < before.count:
        raise UsageError(
            f"--out {out} is for {before.count} images, more than {plan.count}; "
            "name a new folder for fewer"
        )


def image_path(out: Path, i: int) -> Path:
    """Where image i lies."""
    return out / "images" / numbered(i, ".png")


def numbered(i: int, suffix: str) -> str:
    """`000012.png`; from 1000 on `00001/001000.png`, since huge folders are slow to list."""
    name = f"{i:06d}{suffix}"
    return name if i < PER_FOLDER else f"{i // PER_FOLDER:05d}/{name}"


def partial_path(path: Path) -> Path:
    """Where a file is written before it gets its name.

    One process of a machine at a time writes a file of these folders, see `diffit.work`: so what a
    killed one left half written is overwritten by whoever repeats its work.
    """
    return path.with_name(f".{path.name}.{platform.node()}.partial")


def write_here(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all; DataError if the disk does not let us."""
    partial = partial_path(path)
    try:
        path.parent.mkdir(exist_ok=True)
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise DataError(f"{path} cannot be written: {error.strerror}") from None


def images_of(out: Path, places: Iterable[int]) -> Iterator[np.ndarray]:
    """Drawn images, each (C, H, W) uint8."""
    for i in places:
        yield read_image(image_path(out, i))


def _digest(model: Model) -> str:
    digest = hashlib.blake2b()
    for name, tensor in sorted(model.network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _flat(plan: Plan) -> dict[str, Any]:
    """What must agree, by the names that a user knows."""
    data = plan.model_dump(mode="json", exclude=set(FREE))
    flat: dict[str, Any] = {}
    for name, value in data.items():
        if name in ("weights", "reference") and value is not None:
            # A checkpoint may have moved; what counts is its content.
            flat[name] = f"{value['name']} ({value['hash'][:8]})"
        elif name in ("sampling", "versions"):
            flat |= value
        elif name == "codec":
            # Its weights may have moved as well; their hash is among the settings.
            flat |= {f"codec {key}": v for key, v in value.items() if key != "path"}
        else:
            flat[name] = value
    return flat


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."


def available_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
