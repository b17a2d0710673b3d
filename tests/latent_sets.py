"""Small sets of images and latents, made on the spot."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from diffit.data.images import write_png
from diffit.data.latent_writer import begin, finish, publish, shard_name
from diffit.data.latents import Facts, LatentSet

CODEC = {
    "name": "autoencoder", "path": "somewhere", "kind": "kl", "channels": 4, "factor": 4,
    "scale": 0.5, "shift": 0.25, "weights_hash": "a" * 64,
}  # fmt: skip


def image_folder(folder: Path, *, classes: int = 2, each: int = 5, side: int = 16) -> Path:
    """Sub-folders of coloured noise."""
    rng = np.random.default_rng(0)
    for label in range(classes):
        (folder / f"class-{label}").mkdir(parents=True, exist_ok=True)
        for i in range(each):
            pixels = rng.integers(0, 256, (3, side, side), dtype=np.uint8)
            write_png(folder / f"class-{label}" / f"{i}.png", pixels)
    return folder


def values(count: int, shape=(4, 4, 4), *, form="mean-std", seed=0, mean=0.0) -> np.ndarray:
    """Stored numbers of ``count`` latents, float32."""
    rng = np.random.default_rng(seed)
    c, h, w = shape
    means = (2 * rng.standard_normal((count, c, h, w)) + mean).astype(np.float32)
    if form == "point":
        return means
    stds = rng.uniform(0.01, 0.2, (count, c, h, w)).astype(np.float32)
    return np.concatenate([means, stds if form == "mean-std" else 2 * np.log(stds)], axis=1)


def cache(
    folder: Path, *, count=10, shape=(4, 4, 4), form="mean-std", mirrored=True, classes=("a", "b"),
    dtype="float32", pixels="-1..1", codec=None, per_shard=4, scaled_by=1.0, numbers=None,
) -> LatentSet:  # fmt: skip
    """A cache of random latents, in several shards."""
    facts = Facts(count, shape, form, pixels, np.dtype(dtype), mirrored, tuple(classes), scaled_by)
    plain = values(count, shape, form=form) if numbers is None else numbers
    partial = begin(folder, {})
    for k, first in enumerate(range(0, count, per_shard)):
        rows = slice(first, min(first + per_shard, count))
        arrays = {"moments": plain[rows].astype(dtype), "index": np.arange(count)[rows]}
        if mirrored:
            flipped = values(count, shape, form=form, seed=1)
            arrays["moments_flip"] = flipped[rows].astype(dtype)
        if classes:
            arrays["labels"] = (np.arange(count) % len(classes))[rows].astype(np.int64)
        save_file(arrays, partial / shard_name(k))
    finish(
        partial, facts, -(-count // per_shard), codec=lambda _: codec or CODEC, source="test",
        versions={},
    )  # fmt: skip
    return publish(partial, folder)
