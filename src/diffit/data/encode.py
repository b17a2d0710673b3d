"""Images through an autoencoder, once: the cache of latents that training reads.

Images are encoded in parts of 32, by one process or several; each part is a file that appears
whole. Whatever ends the work, the same call goes on from the parts that are there. The bytes of a
cache depend on the images, the autoencoder and the settings, never on the number of processes.
"""

import hashlib
import multiprocessing
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np

from diffit.data.example import Dataset, Follow
from diffit.data.files import printable
from diffit.data.image_set import ImageSet
from diffit.data.images import grid, write_png
from diffit.data.latent_writer import (
    PER_SHARD,
    begin,
    finish,
    publish,
    read_tensors,
    refuse_not_finite,
    shard_name,
    verify,
    write_tensors,
)
from diffit.data.latents import Facts, LatentSet, Statistics
from diffit.data.workers import end_with_parent
from diffit.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

PER_PART = 32
"""Images that are lost at most when a process is killed."""
CHECKED = 8
"""Images that are decoded again at the end, for the picture and its PSNR."""


class Encoder(Protocol):
    """What is needed of an autoencoder."""

    def moments(self, images: "Tensor") -> "Tensor":
        """(B, 3, H, W) uint8 to (B, 2c, h, w) mean and standard deviation."""

    def decode(self, x: "Tensor") -> "Tensor":
        """(B, c, h, w) in the model's space to uint8 images."""

    def to_model(self, latents: "Tensor") -> "Tensor":
        """(latents - shift) * scale."""


@dataclass(frozen=True)
class Job:
    """What a process must know to encode a part.

    Attributes:
        dataset: images of one size, in colour.
        make: gives the autoencoder; called once in each process.
        folder: where parts are written.
        facts: what the latents will be.
        device: where the autoencoder computes.
        threads: CPU threads of one process; rounding may depend on it.
        batch: images that are handed to the autoencoder at once.
    """

    dataset: Dataset
    make: Callable[[], Encoder]
    folder: Path
    facts: Facts
    device: str = "cpu"
    threads: int = 1
    batch: int = PER_PART


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
                  "names": _digest(dataset), "threads": threads, "device": device}  # fmt: skip
    partial = begin(out, whole_plan)
    job = Job(dataset, make, partial, facts, device, threads)
    shards = -(-len(dataset) // PER_SHARD)
    _encode_parts(job, _todo(job, shards), processes, follow)
    for number in range(shards):
        _merge(job, number)
    index = finish(partial, facts, shards, codec=codec, source=source, versions=versions or {})
    latents = publish_checked(partial, out)
    psnr = draw_check(latents, dataset, finished(index.codec), device)
    return Encoded(latents, psnr)


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


def _digest(dataset: Dataset) -> str:
    names = dataset.files.images if isinstance(dataset, ImageSet) else []
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()


def _part_path(folder: Path, number: int) -> Path:
    return folder / f"part-{number:06d}.safetensors"


def _parts_of(shard: int, count: int) -> range:
    first = shard * PER_SHARD // PER_PART
    last = -(-min((shard + 1) * PER_SHARD, count) // PER_PART)
    return range(first, last)


def _todo(job: Job, shards: int) -> list[int]:
    """The parts that are neither there nor in a finished shard."""
    return [
        part
        for shard in range(shards)
        if not (job.folder / shard_name(shard)).exists()
        for part in _parts_of(shard, len(job.dataset))
        if not _part_path(job.folder, part).exists()
    ]


def _encode_parts(job: Job, todo: Sequence[int], processes: int, follow: Follow) -> None:
    several = processes > 1 and len(todo) > 1
    parts = _in_processes(job, todo, processes) if several else _here(job, todo)
    try:
        for _ in follow(range(len(todo))):
            next(parts)
    finally:
        parts.close()


def _here(job: Job, todo: Sequence[int]) -> Generator[None, None, None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(job.threads)
    try:
        encoder = job.make() if todo else None
        for number in todo:
            encode_part(job, encoder, number)  # type: ignore[arg-type]
            yield
    finally:
        torch.set_num_threads(before)


def _in_processes(job: Job, todo: Sequence[int], processes: int) -> Generator[None, None, None]:
    pool = ProcessPoolExecutor(
        min(processes, len(todo)),
        # spawn: a forked copy of a process with threads may hang.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin_worker,
        initargs=(job,),
    )
    try:
        for done in as_completed([pool.submit(_work, number) for number in todo]):
            sentence = done.result()
            if sentence:
                raise DataError(sentence)
            yield
    except BrokenProcessPool:
        raise DataError(
            "a process that encodes has died, perhaps for want of memory; repeat the command to "
            "go on, with fewer --processes"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_job: Job | None = None  # of this worker process
_encoder: Encoder | None = None


def _begin_worker(job: Job) -> None:
    global _job
    _job = job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(job.threads)


def _work(number: int) -> str:
    """Encode a part; a sentence if that cannot be done."""
    global _encoder
    from diffit.errors import DiffitError

    if _job is None:
        raise RuntimeError("a worker was asked before it had its job")
    try:
        _encoder = _encoder or _job.make()
        encode_part(_job, _encoder, number)
    except (DiffitError, ValueError) as error:
        return str(error)
    return ""


def encode_part(job: Job, encoder: Encoder, number: int) -> None:
    """Encode images ``number * PER_PART`` and following, and write them as one file."""
    first = number * PER_PART
    places = range(first, min(first + PER_PART, len(job.dataset)))
    images = np.stack([job.dataset[i].image for i in places])
    arrays = {"moments": _moments(job, encoder, images, places)}
    if job.facts.mirrored:
        arrays["moments_flip"] = _moments(job, encoder, images[..., ::-1], places)
    arrays["index"] = np.array(places, dtype=np.int64)
    if job.facts.classes:
        arrays["labels"] = np.array([job.dataset.label(i) for i in places], dtype=np.int64)
    write_tensors(_part_path(job.folder, number), arrays)


def _moments(job: Job, encoder: Encoder, images: np.ndarray, places: range) -> np.ndarray:
    import torch

    pixels = torch.from_numpy(np.ascontiguousarray(images)).to(job.device)
    rows = [encoder.moments(part).cpu() for part in torch.split(pixels, job.batch)]
    values = torch.cat(rows).numpy()[:, : job.facts.stored_shape[0]]
    limit = float(np.finfo(job.facts.dtype).max)
    for i, row in zip(places, values, strict=True):
        refuse_not_finite(np.where(np.abs(row) > limit, np.inf, row), _name(job.dataset, i))
    return values.astype(job.facts.dtype)


def _name(dataset: Dataset, i: int) -> str:
    if isinstance(dataset, ImageSet):
        return printable(dataset.files.images[i])
    return f"image {i}"


def _merge(job: Job, shard: int) -> None:
    """The parts of a shard as one file; then they are removed."""
    path = job.folder / shard_name(shard)
    paths = [_part_path(job.folder, part) for part in _parts_of(shard, len(job.dataset))]
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
