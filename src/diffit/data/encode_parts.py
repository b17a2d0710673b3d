"""The parts of a cache of latents: who encodes which, one process or several, here or elsewhere.

    OUT.partial/part-000012.safetensors   images 384 to 415, whole or not at all
    OUT.partial/part-000012.claim         a process encodes it, or died over it

Any number of commands for one output share its parts by claiming them, also on several machines
that share the folder. What is encoded twice is the same, byte for byte.
"""

import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from diffit.claims import PAUSE, claim
from diffit.data.example import Dataset, Follow
from diffit.data.files import printable
from diffit.data.image_set import ImageSet
from diffit.data.latent_writer import refuse_not_finite, write_tensors
from diffit.data.latents import Facts
from diffit.data.shards import ShardSet
from diffit.data.workers import end_with_parent
from diffit.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

PER_PART = 32
"""Images that are lost at most when a process is killed."""


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


def part_path(folder: Path, number: int) -> Path:
    return folder / f"part-{number:06d}.safetensors"


def encode_parts(
    job: Job, todo: Sequence[int], done: Callable[[int], bool], processes: int, follow: Follow
) -> None:
    """Return when all parts are there, made by this call or by others.

    Args:
        job: what to encode.
        todo: numbers of the parts.
        done: whether a part is there, on its own or in a finished shard.
        processes: how many of this call work at it.
        follow: shows progress.
    """
    several = processes > 1 and len(todo) > 1
    finished = _until_done(job, todo, done, _in_processes if several else _here, processes)
    try:
        for _ in follow(range(len(todo))):
            next(finished)
    finally:
        finished.close()


Work = Callable[[Job, Sequence[int], int, bool], Generator[tuple[int, bool], None, None]]
"""(job, parts, processes, whether to leave alone what other machines have claimed) to the parts,
each with whether it is there."""


def _until_done(
    job: Job, todo: Sequence[int], done: Callable[[int], bool], work: Work, processes: int
) -> Generator[None, None, None]:
    """Yields once for every part that is there.

    First those that nobody has claimed; then those of other machines, since none can tell a slow
    one from a dead one; then it waits for those that other processes of this machine encode.
    """
    left, patient = list(todo), True
    while left:
        there = [number for number in left if done(number)]
        yield from (None for _ in there)
        wanted = [number for number in left if number not in set(there)]
        left = []
        for number, finished in work(job, wanted, processes, patient):
            if finished:
                yield
            else:
                left.append(number)
        if left and not patient:
            time.sleep(PAUSE)
        patient = False


def _here(
    job: Job, todo: Sequence[int], processes: int, patient: bool
) -> Generator[tuple[int, bool], None, None]:
    import torch

    before, encoder = torch.get_num_threads(), None
    torch.set_num_threads(job.threads)
    try:
        for number in todo:
            encoder = encoder or job.make()
            yield number, _claimed(job, encoder, number, patient)
    finally:
        torch.set_num_threads(before)


def _claimed(job: Job, encoder: Encoder, number: int, patient: bool) -> bool:
    """Encode a part unless another process does; whether it is there."""
    path = part_path(job.folder, number)
    try:
        with claim(path.with_suffix(".claim")) as holder:
            if holder == "busy" or (holder == "elsewhere" and patient):
                return False
            if not path.exists():
                encode_part(job, encoder, number)
    except DataError:
        if job.folder.exists():
            raise  # else another process has finished the whole cache
    return True


def _in_processes(
    job: Job, todo: Sequence[int], processes: int, patient: bool
) -> Generator[tuple[int, bool], None, None]:
    if not todo:
        return
    pool = ProcessPoolExecutor(
        min(processes, len(todo)),
        # spawn: a forked copy of a process with threads may hang.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin_worker,
        initargs=(job,),
    )
    try:
        for finished in as_completed([pool.submit(_work, number, patient) for number in todo]):
            number, there, sentence = finished.result()
            if sentence:
                raise DataError(sentence)
            yield number, there
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


def _work(number: int, patient: bool) -> tuple[int, bool, str]:
    """Encode a part; whether it is there, and a sentence if that cannot be."""
    global _encoder
    from diffit.errors import DiffitError

    if _job is None:
        raise RuntimeError("a worker was asked before it had its job")
    try:
        _encoder = _encoder or _job.make()
        return number, _claimed(_job, _encoder, number, patient), ""
    except (DiffitError, ValueError) as error:
        return number, False, str(error)


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
    write_tensors(part_path(job.folder, number), arrays)


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
    if isinstance(dataset, ShardSet):
        shard, place = dataset.locate(i)
        return dataset.open(shard).shown(place)
    return f"image {i}"
