"""An index for shards that others made: how many images each holds, and which classes there are."""

from collections.abc import Sequence
from pathlib import Path

from diffit.data import remote
from diffit.data.copies import Place
from diffit.data.example import Follow
from diffit.data.images import write_atomic
from diffit.data.latent_writer import checksum
from diffit.data.shard_index import INDEX, Shard, ShardIndex, to_json
from diffit.data.shard_paths import find_shards
from diffit.data.shards import ShardSet
from diffit.data.stream_config import StreamConfig
from diffit.errors import DataError


def index_shards(
    path: str,
    out: Path,
    *,
    classes: Sequence[str] = (),
    config: StreamConfig = StreamConfig(),  # noqa: B008  (frozen)
    follow: Follow = iter,
) -> ShardIndex:
    """Read every shard at ``path`` once, and write ``out``.

    Args:
        path: shards, as of `open_dataset`.
        out: a free name ending in `shards.json`; shards in its folder or below are named relative
            to it, so that all can be moved together.
        classes: names of the labels; by default those that the files tell, or their numbers.
        config: how shards are read.
        follow: shows progress over the shards.
    """
    if out.name != INDEX:
        raise DataError(f"{out} must be called {INDEX}, by which it is recognised")
    if out.exists():
        raise DataError(f"{out} exists already; remove it first")
    found = find_shards(path, config)
    if found.known is not None:
        raise DataError(f"{path} has an index already")
    dataset = ShardSet(path, found.places, found.kind, labels=False, size=1, channels=3,
                       config=config)  # fmt: skip
    shards, highest, named = [], -1, tuple(classes)
    for j in follow(range(len(found.places))):
        opened = dataset.open(j)
        labels = [opened.label(i) for i in range(len(opened))]
        highest = max([highest, *labels])
        named = named or dataset.named_classes(j)
        shards.append(_shard(found.places[j], dataset, j, len(opened), out))
    if highest >= 0 and not named:
        named = tuple(map(str, range(highest + 1)))
    if highest >= len(named):
        raise DataError(f"there are labels up to {highest}, but {len(named)} names of classes")
    index = ShardIndex(
        images=sum(shard.images for shard in shards),
        classes=named if highest >= 0 else (),
        shards=tuple(shards),
        source=f"an index of {path}",
    )
    write_atomic(out, to_json(index))
    return index


def _shard(place: Place, dataset: ShardSet, j: int, images: int, out: Path) -> Shard:
    if not remote.is_remote(place.address):
        path, folder = Path(place.address).resolve(), out.parent.resolve()
        if not path.is_relative_to(folder):
            raise DataError(f"{path} does not lie below {folder}; write {INDEX} beside the shards")
        name = path.relative_to(folder).as_posix()
        return Shard(file=name, images=images, bytes=path.stat().st_size, blake2b=checksum(path))
    if dataset.kind == "parquet":  # the copy that is here was unpacked
        size = remote.size_of(place.address, patience=dataset.copies.patience)
        if size is None:
            raise DataError(f"{place.address}: the server does not tell its size; copy it first")
        return Shard(file=place.address, images=images, bytes=size)
    copy = dataset.copies.bring(j)
    return Shard(
        file=place.address, images=images, bytes=copy.stat().st_size, blake2b=checksum(copy)
    )
