"""A folder of drawn images: the plan is written first, so that any interruption can be continued.

    OUT/samples.json        the plan: everything needed to draw the images again
    OUT/images/000000.png   image i, from seed + i and label i
    OUT/images/dataset.json the labels, in EDM's layout, once all images are there
    OUT/grid.png            the first images side by side

Image i is computed in unit i // unit, at place i % unit, among the same neighbours whatever the
count: its bytes depend on nothing else of the plan, nor on processes or interruptions.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import diffit
from diffit.config import Settings
from diffit.data.images import grid, read_image, to_png, write_atomic
from diffit.data.pack import pack
from diffit.errors import DataError, UsageError
from diffit.generation import Watch, draw, label_tensor
from diffit.model import Model
from diffit.sampling import SamplingConfig

FORMAT = "diffit-samples-1"
RECORD = "samples.json"
IN_GRID = 256
FREE = frozenset(("count", "command"))
"""What may differ when a folder is continued; the count may only grow."""


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
    """Image i has label i modulo their number; empty for models without classes."""
    classes: tuple[str, ...]
    """What the labels mean."""
    sampling: SamplingConfig
    device: str
    threads: int
    """CPU threads: sums are split among them, and round differently."""
    versions: dict[str, str]
    count: int
    command: str
    """What was typed."""

    def label(self, i: int) -> int | None:
        """The label of image i."""
        return self.labels[i % len(self.labels)] if self.labels else None


def weights_of(model: Model) -> Weights:
    """What a loaded model says of itself."""
    origin = model.provenance
    return Weights(
        checkpoint=str(Path(origin["checkpoint"]).resolve()),
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


def begin(out: Path, plan: Plan) -> None:
    """Write the plan, or find that ``out`` continues the same one; UsageError if it cannot."""
    try:
        (out / "images").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out} cannot be made: {error.strerror}") from None
    before = read_plan(out)
    begun = before is not None and any((out / "images").glob("*.png"))
    if before is None:
        if strange := [p.name for p in out.iterdir() if p.name != "images" and not _ours(p)]:
            raise UsageError(
                f"--out {out} holds other files ({sorted(strange)[0]}); name a new folder"
            )
        if any(not _ours(p) for p in (out / "images").iterdir()):
            raise UsageError(f"--out {out} holds images but no {RECORD}; name a new folder")
    elif begun:
        refuse_other(out, before, plan)
    clear_leftovers(out)
    if before is None or not begun or before.count < plan.count:
        text = json.dumps(plan.model_dump(mode="json", exclude_none=True), indent=1) + "\n"
        write_atomic(out / RECORD, text.encode())


def clear_leftovers(out: Path) -> None:
    """Remove what an interruption left half written."""
    for path in out.rglob(".*.partial"):
        path.unlink(missing_ok=True)


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
                f"--out {out} was begun with {name} {old.get(name)}, not {new.get(name)}; "
                "repeat that command or name a new folder"
            )
    if plan.count < before.count:
        raise UsageError(
            f"--out {out} is for {before.count} images, more than {plan.count}; "
            "name a new folder for fewer"
        )


def missing(out: Path, plan: Plan, model: Model) -> list[int]:
    """The units of which an image is not there, or not whole."""
    unit, shape = plan.sampling.unit, image_shape(model)
    lost = {i // unit for i in range(plan.count) if not _intact(image_path(out, i), shape)}
    return sorted(lost)


def draw_unit(
    model: Model,
    unit: int,
    plan: Plan,
    out: Path,
    *,
    reference: Model | None = None,
    on_step: Watch | None = None,
) -> None:
    """Draw one unit of the plan and write those of its images that are asked for."""
    size = plan.sampling.unit
    places = range(unit * size, (unit + 1) * size)
    labels = label_tensor(model, [plan.label(i) for i in places], size)
    images = draw(
        model,
        [plan.seed + i for i in places],
        labels,
        plan.sampling,
        reference=reference,
        on_step=on_step,
    )
    for i, image in zip(places, images.numpy(), strict=True):
        if i < plan.count:
            write_atomic(image_path(out, i), to_png(image))


def image_path(out: Path, i: int) -> Path:
    """Where image i lies."""
    return out / "images" / f"{i:06d}.png"


def images_of(out: Path, places: Iterable[int]) -> Iterator[np.ndarray]:
    """Drawn images, each (C, H, W) uint8."""
    for i in places:
        yield read_image(image_path(out, i))


def write_index(out: Path, plan: Plan) -> None:
    """EDM's `dataset.json`: with it the drawn images are a data set."""
    content: dict[str, Any] = {"labels": None}
    if plan.labels and None not in plan.labels:
        names = [image_path(out, i).name for i in range(plan.count)]
        content["labels"] = [[name, plan.label(i)] for i, name in enumerate(names)]
        content["classes"] = plan.classes
    write_atomic(out / "images" / "dataset.json", (json.dumps(content) + "\n").encode())


def write_grid(out: Path, plan: Plan) -> Path:
    """Up to `IN_GRID` images side by side, small ones enlarged; a column for each label if few."""
    turns = len(plan.labels)
    columns = turns if 4 <= turns <= 20 and plan.count >= turns else None
    shown = min(plan.count, IN_GRID // (columns or 1) * (columns or 1))
    images = np.stack(list(images_of(out, range(shown))))
    scale = max(1, 64 // max(images.shape[2:]))
    write_atomic(out / "grid.png", to_png(grid(images, columns=columns, scale=scale)))
    return out / "grid.png"


def write_npz(out: Path, plan: Plan) -> Path:
    """`samples.npz` in ADM's layout, one image in memory at a time."""
    path = out / "samples.npz"
    partial = path.with_name(f".{path.name}.partial")
    c, h, w = next(images_of(out, [0])).shape
    # Stored with the default date: equal images make equal files.
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (plan.count, h, w, c)}
            np.lib.format.write_array_header_1_0(file, header)
            for image in images_of(out, range(plan.count)):
                file.write(np.ascontiguousarray(image.transpose(1, 2, 0)).tobytes())
        if plan.labels and None not in plan.labels:
            labels = np.array([plan.label(i) for i in range(plan.count)], dtype=np.int64)
            with archive.open(zipfile.ZipInfo("arr_1.npy"), "w") as file:
                np.lib.format.write_array(file, labels)
    partial.replace(path)
    return path


def write_zip(out: Path, plan: Plan) -> Path:
    """`samples.zip` in EDM's layout."""
    path = out / "samples.zip"
    path.unlink(missing_ok=True)
    pack(str(out / "images"), path)
    return path


def _digest(model: Model) -> str:
    digest = hashlib.blake2b()
    for name, tensor in sorted(model.network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _intact(path: Path, shape: tuple[int, int, int]) -> bool:
    if not path.exists():
        return False
    try:
        return read_image(path).shape == shape
    except DataError:
        return False


def _ours(path: Path) -> bool:
    return path.name.endswith(".partial")


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
        else:
            flat[name] = value
    return flat


def available_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
