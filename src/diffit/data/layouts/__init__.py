"""The latent files of other projects, and ours, as one kind of data set.

| layout | what a file holds | pixels | mirrored |
|---|---|---|---|
| `diffit` | any of the forms below, in shards | as noted in it | if asked for |
| `edm2` | mean and standard deviation | [0, 1] | no |
| `repa` | mean and standard deviation | [-1, 1] | no |
| `fast-dit` | a drawn latent, times 0.18215 | [-1, 1] | no |
| `lightningdit` | drawn latents | [-1, 1] | yes |
| `mar` | mean and log-variance | [-1, 1] | yes |
| `uvit` | mean and log-variance | [-1, 1] | as further images |
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from diffit.data.files import Files, Zip
from diffit.data.labels import INDEX
from diffit.data.latents import Form, LatentSet, Pixels, Storage, is_cache, open_cache
from diffit.data.layouts.fast_dit import SCALE, FastDiT, is_fast_dit, write_fast_dit
from diffit.data.layouts.lightningdit import LightningDiT, is_lightningdit, write_lightningdit
from diffit.data.layouts.mar import MAR, is_mar, write_mar
from diffit.data.layouts.mean_std import REPA, open_edm2, open_repa, write_edm2, write_repa
from diffit.data.layouts.uvit import UViT, is_uvit, write_uvit
from diffit.errors import DataError

CACHE = "diffit"


class Layout(NamedTuple):
    """How one project keeps latents."""

    read: Callable[[Path], Storage]
    write: Callable[..., None]
    form: Form
    pixels: Pixels
    labelled: bool
    """Whether it has no place for images without labels."""
    autoencoder: str
    """Hub id of the autoencoder that it is made with; empty where that is none of diffusers'."""
    scale: float
    """Of that autoencoder."""


LAYOUTS: dict[str, Layout] = {
    "edm2": Layout(
        open_edm2, write_edm2, "mean-std", "0..1", False, "stabilityai/sd-vae-ft-mse", SCALE
    ),
    "repa": Layout(
        open_repa, write_repa, "mean-std", "-1..1", True, "stabilityai/sd-vae-ft-mse", SCALE
    ),
    "fast-dit": Layout(
        FastDiT, write_fast_dit, "point", "-1..1", True, "stabilityai/sd-vae-ft-ema", SCALE
    ),
    "lightningdit": Layout(LightningDiT, write_lightningdit, "point", "-1..1", True, "", 1.0),
    "mar": Layout(MAR, write_mar, "mean-logvar", "-1..1", True, "", 0.2325),
    "uvit": Layout(
        UViT, write_uvit, "mean-logvar", "-1..1", False, "stabilityai/sd-vae-ft-ema", SCALE
    ),
}
"""Of other projects. The EDM2 and REPA layouts differ in nothing but the range of the pixels."""


def recognise(path: Path) -> str | None:
    """The layout of the latents at ``path``, None if these are none; reads some names alone."""
    if is_cache(path):
        return CACHE
    if path.suffix.lower() == ".zip" or not path.is_dir():
        return None  # a zip is recognised when its names are read: `holds_mean_std`
    if (path / REPA / INDEX).is_file():
        return "repa"
    if (path / INDEX).is_file() and next(path.glob("*/*.npy"), None):
        return "edm2"
    checks: dict[str, Callable[[Path], Any]] = {
        "fast-dit": is_fast_dit, "lightningdit": is_lightningdit, "uvit": is_uvit, "mar": is_mar,
    }  # fmt: skip
    try:
        return next((name for name, check in checks.items() if check(path)), None)
    except OSError:
        return None


def layout_of(path: str) -> str | None:
    """The layout of the latents at ``path``, None if there are none; reads the names of a zip."""
    place = Path(path).expanduser()
    try:
        if place.suffix.lower() == ".zip" and place.is_file():
            return "edm2" if holds_mean_std(Zip(place)) else None
        return recognise(place)
    except OSError:
        return None


def holds_mean_std(files: Files) -> bool:
    """Whether files are latents as EDM2 and REPA keep them, and no images."""
    return not files.images and any(name.endswith(".npy") for name in files.others)


def open_latents(path: str | Path, layout: str | None = None, *, labels: bool = True) -> LatentSet:
    """Latents of any layout; DataError if these are none.

    Args:
        path: a folder or zip.
        layout: `diffit` or one of `LAYOUTS`; None: recognised by the names of the files. What
            EDM2 writes and what REPA writes can only be told apart by the folder `vae-sd` above.
        labels: whether to give out labels, where there are any.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise DataError(f"there is nothing to read at {str(place)!r}; name a folder of latents")
    name = layout or layout_of(str(place))
    if name is None:
        known = ", ".join(LAYOUTS)
        raise DataError(f"{place} holds no latents in a known layout ({known}); see --from")
    if name == CACHE:
        if not is_cache(place):
            raise DataError(f"{place} is no cache of latents: it has no latents.json")
        return open_cache(place, labels=labels)
    if place.is_file() and place.suffix.lower() != ".zip":
        raise DataError(f"{place} is one file; name the folder or zip that holds all latents")
    return LatentSet(LAYOUTS[name].read(place), labels=labels)
