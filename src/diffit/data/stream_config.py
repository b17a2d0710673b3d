"""How shards are read."""

from pydantic import Field

from diffit.config import Settings


class StreamConfig(Settings):
    """How shards are found, fetched and read; of no meaning for other data sets."""

    window: int = Field(default=4, ge=1, le=4096)
    """Shards whose images are shuffled among each other. A process reads from so many at a time."""
    lanes: int = Field(default=1, ge=1, le=65536)
    """With as many lanes as processes, or a multiple, each process needs other shards than the
    rest: worth it where processes run on several machines, each of which fetches its own."""
    max_bad: int = Field(default=0, ge=0)
    """Images that cannot be read, for which a process takes the next ones instead of stopping."""
    max_bad_shards: int = Field(default=0, ge=0)
    """Shards that have vanished or are damaged, which a process passes over instead of stopping."""
    cache: str = ""
    """Folder for copies of shards that lie elsewhere, or of parquet files; by default
    `shards` in $DIFFIT_CACHE or ~/.cache/diffit."""
    cache_gib: float = Field(default=32.0, gt=0)
    """Size of that folder in GiB; the shards in use stay in any case."""
    retries: int = Field(default=8, ge=0, le=100)
    """Attempts in a row that may bring nothing before a fetch is given up."""
    timeout: float = Field(default=30.0, gt=0, le=3600)
    """Seconds without a byte after which an attempt is given up."""
    classes: int | None = Field(default=None, ge=1, le=100_000)
    """How many classes there are, where neither an index nor the files tell."""
    image_column: str = ""
    """Column of a table that holds the images, where there are several."""
    label_column: str = ""
    """Column of a table that holds the labels, where there are several."""
