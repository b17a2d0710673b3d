"""Where the batches of a run come from: a set at hand, or shards that are fetched meanwhile."""

from collections.abc import Callable, Sequence
from typing import Any

from diffit.data import Dataset, LatentSet, Mixture, ShardSet
from diffit.data.loader import Loader
from diffit.data.stream import StreamLoader
from diffit.distributed import gather, rank, world
from diffit.training.settings import RunConfig


def open_loader(
    config: RunConfig,
    dataset: Dataset,
    *,
    start: int,
    streams: Sequence[dict[str, Any]] = (),
) -> Loader | StreamLoader:
    """This process's part of the batches of a run.

    Args:
        config: of the run.
        dataset: its images.
        start: number of the first image.
        streams: where each process stood in its shards before; as of `positions`.
    """
    if isinstance(dataset, ShardSet | Mixture):
        return StreamLoader(
            dataset,
            batch=config.train.batch,
            seed=config.train.seed,
            start=start,
            flip=config.data.flip,
            workers=config.data.workers,
            rank=rank(),
            world=world(),
            states=streams,
            config=config.data.stream,
        )
    return Loader(
        dataset,
        batch=config.train.batch,
        seed=config.train.seed,
        start=start,
        flip=config.data.flip,
        workers=config.data.workers,
        memory=config.data.memory << 20,
        rank=rank(),
        world=world(),
    )


def positions(loader: Loader | StreamLoader, seen: int) -> list[dict[str, Any]]:
    """Where each process stands in its shards behind ``seen`` images; all processes ask together.

    Nothing for other data sets, whose order follows from the number of the image.
    """
    return gather(loader.state(seen)) if isinstance(loader, StreamLoader) else []


def passed_over(loader: Loader | StreamLoader) -> list[str]:
    """What any process could not read since the last call; all processes ask together."""
    if not isinstance(loader, StreamLoader):
        return []
    return [note for notes in gather(loader.notes()) for note in notes]


def index_of(config: RunConfig, dataset: Dataset) -> Callable[[int], int | None]:
    """Number of an image in the run -> its number in the data set; None where nobody can tell."""
    # A loader of its own: the other one may be at work in another thread.
    alone = config.model_copy(
        update={"data": config.data.model_copy(update={"workers": 0, "memory": 0})}
    )
    return open_loader(alone, dataset, start=0).index


def described(config: RunConfig, dataset: Dataset) -> str:
    """What is trained on, in a few words."""
    name = config.data.path or f"a mixture of {len(config.data.mix)} sets"
    sets = dataset.sources if isinstance(dataset, Mixture) else (dataset,)
    unknown = [s.shards for s in sets if isinstance(s, ShardSet) and s.counts is None]
    if unknown:
        return f"{name} of {sum(unknown):,} shards of unknown length"
    kind = "latents" if isinstance(dataset, LatentSet) else "images"
    return f"{name} of {len(dataset):,} {kind}"
