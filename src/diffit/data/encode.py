"""Images through an autoencoder, once: the cache of latents that training reads.

Images are encoded in parts of 32 (`encode_parts`), by one process or several, of one command or
several; each part is a file that appears whole. Whatever ends the work, the same call goes on from
the parts that are there. The bytes of a cache depend on the images, the autoencoder and the
settings, never on the number of processes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from diffit.claims import turn
from diffit.data.encode_parts import PER_PART, Encoder, Job, encode_parts, part_path
from diffit.data.example import Dataset, Follow
from diffit.data.images import grid, write_png
from diffit.data.latent_writer import (
    PER_SHARD,
    begin,
    finish,
    lock_of,
    publish,
    read_tensors,
    shard_name,
    verify,
    write_tensors,
)
from diffit.data.latents import Facts, LatentSet, Statistics, open_cache
from diffit.data.pack import digest_of
from diffit.errors import DataError

CHECKED = 8
"""Images that are decoded again at the end, for the picture and its PSNR."""


class Encoded(NamedTuple):
    """A finished cache, and how well the autoencoder keeps the images."""

    latents: LatentSet
    psnr: float
    """Mean over the images in `check.png`, in dB."""


def encode(
    dataset: Dataset,
    out: Path,
    *,
    make: Callable[[], Encoder],
    posterior: bool,
    channels: int,
    factor: int,
    codec: Callable[[Statistics], dict[str, Any]],
    finished: Callable[[dict[str, Any]], Encoder],
    plan: dict[str, Any],
    dtype: Literal["float16", "float32"] = "float16",
    mirrored: bool = False,
    processes: int = 1,
    device: str = "cpu",
    threads: int = 1,
    source: str = "",
    versions: dict[str, str] | None = None,
    follow: Follow = iter,
) -> Encoded:
    """Encode every image of a data set into the new folder ``out``.

    Args:
        dataset: images (3, H, W).
        out: a free name; work is done in `OUT.partial`.
        make: gives the autoencoder in each process.
        posterior: whether it has one; else its latents alone are stored.
        channels, factor: its channels c, and pixels of an image for each of the latent.
        codec: the settings to store, which may depend on the statistics.
        finished: the autoencoder with these settings, for the picture.
        plan: what an interrupted call must have in common with the one that goes on.
        dtype: of the stored numbers.
        mirrored: encode each image mirrored as well.
        processes, device, threads: what computes.
        source, versions: to be noted.
        follow: shows progress over the parts.
    """
    facts = _facts(dataset, channels, factor, posterior=posterior, dtype=dtype, mirrored=mirrored)
    whole_plan = {**plan, "dtype": dtype, "mirrored": mirrored, "images": len(dataset),
                  "names": digest_of(dataset), "threads": threads, "device": device}  # fmt: skip
    partial = begin(out, whole_plan)
    job = Job(dataset, make, partial, facts, device, threads)
    shards = -(-len(dataset) // PER_SHARD)
    parts = range(-(-len(dataset) // PER_PART))
    todo = [part for part in parts if not _is_there(job, part)]
    encode_parts(job, todo, lambda part: _is_there(job, part), processes, follow)
    with turn(lock_of(out)):
        if out.exists():  # another process, which had parts of it, was first
            latents = open_cache(out)
            return Encoded(latents, _checked(latents, dataset, finished, device))
        for number in range(shards):
            _merge(job, number)
        finish(partial, facts, shards, codec=codec, source=source, versions=versions or {})
        # Before the cache has its name: afterwards the call is not repeated if it is killed.
        psnr = _checked(open_cache(partial), dataset, finished, device)
        return Encoded(publish_checked(partial, out), psnr)


def _checked(
    latents: LatentSet,
    dataset: Dataset,
    finished: Callable[[dict[str, Any]], Encoder],
    device: str,
) -> float:
    assert latents.index is not None
    return draw_check(latents, dataset, finished(latents.index.codec), device)


def publish_checked(partial: Path, out: Path) -> LatentSet:
    """Give a cache its name once every shard has been read back."""
    latents = publish(partial, out)
    for sentence in verify(latents):
        if sentence:
            raise DataError(sentence)
    return latents


def draw_check(latents: LatentSet, dataset: Dataset, encoder: Encoder, device: str) -> float:
    """Write `check.png`, originals above what their latents are decoded to; their mean PSNR."""
    import torch

    count = len(latents)
    places = [k * count // min(CHECKED, count) for k in range(min(CHECKED, count))]
    originals = np.stack([dataset[i].image for i in places])
    means = np.stack([latents[i].image[: latents.shape[0]] for i in places])
    decoded = encoder.decode(encoder.to_model(torch.from_numpy(means).float().to(device)))
    pictures = np.concatenate([originals, decoded.cpu().numpy()])
    scale = max(1, 64 // pictures.shape[-1])
    write_png(latents.path / "check.png", grid(pictures, columns=len(places), scale=scale))
    errors = np.square(originals.astype(np.float64) - decoded.cpu().numpy()).mean((1, 2, 3))
    return float((10 * np.log10(255**2 / np.maximum(errors, 1e-10))).mean())


def _facts(
    dataset: Dataset,
    channels: int,
    factor: int,
    *,
    posterior: bool,
    dtype: str,
    mirrored: bool,
) -> Facts:
    _, height, width = dataset.shape
    if height % factor or width % factor:
        below = max(factor, min(height, width) // factor * factor)
        raise DataError(
            f"images are {height} x {width}; this autoencoder takes multiples of {factor}, so set "
            f"--size {below}"
        )
    return Facts(
        images=len(dataset),
        shape=(channels, height // factor, width // factor),
        form="mean-std" if posterior else "point",
        pixels="-1..1",
        dtype=np.dtype(dtype),
        mirrored=mirrored,
        classes=tuple(dataset.classes),
    )


def _parts_of(shard: int, count: int) -> range:
    first = shard * PER_SHARD // PER_PART
    last = -(-min((shard + 1) * PER_SHARD, count) // PER_PART)
    return range(first, last)


def _is_there(job: Job, part: int) -> bool:
    """Whether a part is there: on its own, in a finished shard, or in a finished cache."""
    shard = shard_name(part * PER_PART // PER_SHARD)
    own = part_path(job.folder, part)
    return own.exists() or (job.folder / shard).exists() or not job.folder.exists()


def _merge(job: Job, shard: int) -> None:
    """The parts of a shard as one file; then they are removed."""
    path = job.folder / shard_name(shard)
    paths = [part_path(job.folder, part) for part in _parts_of(shard, len(job.dataset))]
    if not path.exists():
        parts = []
        for part in paths:
            arrays = read_tensors(part)
            if arrays is None:
                part.unlink(missing_ok=True)
                raise DataError(
                    f"{part} was damaged and has been removed; run the same command again"
                )
            parts.append(arrays)
        write_tensors(path, {name: np.concatenate([p[name] for p in parts]) for name in parts[0]})
    for part in paths:
        part.unlink(missing_ok=True)


__all__ = ["Encoded", "Encoder", "draw_check", "encode"]
