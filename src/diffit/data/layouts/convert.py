"""Latents from one layout to another: bit for bit where the form is the same, else said."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from diffit.data.example import Follow
from diffit.data.latent_range import pixels_mistaken, scale_mistaken, statistics
from diffit.data.latent_writer import (
    PER_SHARD,
    begin,
    finish,
    publish,
    refuse_taken,
    shard_name,
    write_tensors,
)
from diffit.data.latents import LatentSet, Statistics
from diffit.data.layouts import LAYOUTS
from diffit.data.layouts.forms import losses
from diffit.errors import DataError

WORDS = {"-1..1": "[-1, 1]", "0..1": "[0, 1]"}


class Written(NamedTuple):
    """What a conversion did."""

    images: int
    lost: tuple[str, ...]
    """What the new layout does not keep, in sentences."""


def write_cache(
    latents: LatentSet,
    out: Path,
    *,
    codec: Callable[[Statistics], dict[str, Any]],
    dtype: Literal["float16", "float32"] | None = None,
    versions: dict[str, str] | None = None,
    follow: Follow = iter,
) -> Written:
    """Latents as a cache of this library, the numbers as they are; an interrupted call goes on.

    Args:
        latents: of any layout.
        out: a free name.
        codec: the autoencoder's settings, which may depend on the statistics.
        dtype: of the new numbers; None: as they are.
        versions: to be noted.
        follow: shows progress over the shards.
    """
    facts = latents.facts
    facts = facts._replace(dtype=np.dtype(dtype) if dtype else facts.dtype)
    plan = {"source": str(latents.path.absolute()), "images": facts.images, "form": facts.form,
            "dtype": facts.dtype.name}  # fmt: skip
    partial = begin(out, plan)
    shards = -(-facts.images // PER_SHARD)
    for number in follow(range(shards)):
        path = partial / shard_name(number)
        if not path.exists():
            write_tensors(path, _shard(latents, number, facts.dtype))
    source = f"converted from {latents.path}"
    finish(partial, facts, shards, codec=codec, source=source, versions=versions or {})
    publish(partial, out)
    rounded = facts.dtype != latents.facts.dtype and facts.dtype == np.float16
    return Written(facts.images, ("values are rounded to float16",) if rounded else ())


def write_layout(
    latents: LatentSet, out: Path, layout: str, *, scale: float, follow: Follow = iter
) -> Written:
    """Latents in the layout of another project; ``out`` appears when it is whole.

    Args:
        latents: of any layout.
        out: a free name; `.zip` makes a zip where the layout has that.
        layout: one of `LAYOUTS`.
        scale: the factor to put into the numbers, where the layout has it in them.
        follow: shows progress over the images.
    """
    target = LAYOUTS[layout]
    refuse_taken(out)
    if target.pixels != latents.facts.pixels:
        raise DataError(
            f"{layout} latents are made of pixels in {WORDS[target.pixels]}, but those of "
            f"{latents.path} of pixels in {WORDS[latents.facts.pixels]}; encode the images again "
            "instead of mixing the two"
        )
    if target.labelled and not latents.classes:
        raise DataError(f"the layout {layout} needs labels, which {latents.path} has not")
    lost = losses(latents, target.form, scale=scale)
    if latents.facts.mirrored and layout in ("edm2", "repa", "fast-dit"):
        lost.append("this layout has no place for the latents of mirrored images")
    partial = out.with_name(f"{out.stem}.partial{out.suffix}")
    _remove(partial)
    try:
        target.write(latents, partial, scale=scale, follow=follow)
        partial.replace(out)
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror}") from None
    finally:
        _remove(partial)
    return Written(latents.facts.images, tuple(lost))


def refuse_mistaken(
    latents: LatentSet, scale: float | tuple[float, ...] | None, *, way_out: str
) -> None:
    """DataError if latents are not in the range that their layout, or their codec, promises.

    Args:
        latents: whose statistics are looked at.
        scale: the codec's; None if it is not known.
        way_out: what to do about it.
    """
    found = statistics(latents)
    promised = latents.facts.pixels
    if pixels_mistaken(found, promised):
        other = WORDS["0..1" if promised == "-1..1" else "-1..1"]
        means = ", ".join(f"{value:.2f}" for value in found.mean)
        raise DataError(
            f"{latents.path} should be made of pixels in {WORDS[promised]}, but its channel means "
            f"({means}) are those of pixels in {other}: EDM2 and REPA differ in this, under the "
            f"same names; {way_out}"
        )
    sentence = "" if scale is None else scale_mistaken(found, scale)
    if sentence:
        raise DataError(f"{latents.path}: {sentence}; {way_out}")


def _shard(latents: LatentSet, number: int, dtype: np.dtype) -> dict[str, np.ndarray]:
    first = number * PER_SHARD
    places = range(first, min(first + PER_SHARD, latents.facts.images))
    arrays = {"moments": _rows(latents, places, dtype, mirrored=False)}
    if latents.facts.mirrored:
        arrays["moments_flip"] = _rows(latents, places, dtype, mirrored=True)
    arrays["index"] = np.array(places, dtype=np.int64)
    if latents.classes:
        arrays["labels"] = np.array([latents.label(i) for i in places], dtype=np.int64)
    return arrays


def _rows(latents: LatentSet, places: range, dtype: np.dtype, *, mirrored: bool) -> np.ndarray:
    rows = np.stack([latents.storage.stored(i, mirrored=mirrored) for i in places])
    with np.errstate(over="ignore"):
        values = rows.astype(dtype)
    if not np.isfinite(values).all():
        raise DataError(f"{latents.path} has values beyond {dtype}; keep --dtype float32")
    return values


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
