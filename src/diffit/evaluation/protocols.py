"""Reference statistics on disk, in the layouts of ADM, pytorch-fid and EDM.

All are npz files with the mean `mu` and the covariance `sigma` (divided by n - 1) of Inception's
2048 features. ADM's have the spatial features' `mu_s` and `sigma_s` and example images `arr_0` as
well. None says which resizing was used. Files written here carry one more entry, `diffit`, which
does, and which other programs pass over.
"""

import json
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from diffit.data import Dataset
from diffit.data.arrays import UNREADABLE
from diffit.errors import DataError, UsageError
from diffit.evaluation.features import Extractor
from diffit.evaluation.moments import Gaussian
from diffit.fetch import file_sha256

Layout = Literal["adm", "pytorch-fid", "edm"]
OWN_KEY = "diffit"
MAX_DIMS = 16_384
"""A covariance beyond this is a damaged or hostile file: it would take 2 GiB."""
MAX_VALUE = 1e30
"""Larger numbers come of no features, and overflow in their products."""
MAX_EXAMPLES = 10_000
"""Images that ADM's reference files hold for precision and recall."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Moments of a reference set's features, and what is known about their origin."""

    pool: Gaussian
    spatial: Gaussian | None = None
    layout: str = ""
    count: int | None = None
    """How many images they are of; None if the file does not say."""
    features: str = ""
    """Name of the extractor, empty if unknown; so are the two below."""
    features_hash: str = ""
    protocol: str = ""
    path: str = ""
    hash: str = ""
    """sha256 of the file."""
    images: Dataset | None = None
    """Example images, for the figures that statistics cannot give."""


def is_statistics(path: Path) -> bool:
    """Whether an npz holds statistics, beside images or not."""
    return path.suffix.lower() == ".npz" and "mu" in _names(path)


def has_examples(path: Path) -> bool:
    """Whether a file of statistics holds example images too, as ADM's do."""
    return "arr_0" in _names(path)


def read_statistics(path: Path) -> Statistics:
    """Statistics in any of the layouts; DataError says what is wrong with the file."""
    if path.suffix.lower() in (".pkl", ".pickle"):
        raise DataError(
            f"{path} is a pickle, which can run code when read; open it with the program that "
            "made it and save mu and sigma with numpy.savez"
        )
    names = _names(path)
    if "mu" not in names or "sigma" not in names:
        have = ", ".join(sorted(names)) or "nothing"
        raise DataError(f"{path} holds {have}; statistics are named mu and sigma")
    arrays = _read(path, names & {"mu", "sigma", "mu_s", "sigma_s", OWN_KEY})
    own = _own(path, arrays)
    spatial = None
    if {"mu_s", "sigma_s"} <= names:
        spatial = _gaussian(path, arrays["mu_s"], arrays["sigma_s"], "mu_s and sigma_s")
    return Statistics(
        pool=_gaussian(path, arrays["mu"], arrays["sigma"], "mu and sigma"),
        spatial=spatial,
        layout=own.get("layout") or ("adm" if spatial is not None else ""),
        count=own.get("count"),
        features=own.get("features", ""),
        features_hash=own.get("features_hash", ""),
        # ADM's layout is known by its spatial statistics, and its resizing with it.
        protocol=own.get("protocol") or ("adm" if spatial is not None else ""),
        path=str(path),
        hash=file_sha256(path),
    )


def write_statistics(
    path: Path,
    statistics: Statistics,
    layout: Layout,
    *,
    images: Dataset | None = None,
) -> None:
    """Write statistics; the file appears only when complete.

    Args:
        statistics: what to write; the ADM layout wants spatial statistics.
        images: for the ADM layout, from which up to 10,000 examples are copied, evenly spread.
    """
    arrays = {"mu": _plain(statistics.pool.mean), "sigma": _plain(statistics.pool.covariance)}
    if layout == "adm":
        if statistics.spatial is None or images is None:
            raise ValueError("the ADM layout needs spatial statistics and example images")
        arrays["mu_s"] = _plain(statistics.spatial.mean)
        arrays["sigma_s"] = _plain(statistics.spatial.covariance)
    about = {
        "layout": layout,
        "count": statistics.count,
        "features": statistics.features,
        "features_hash": statistics.features_hash,
        "protocol": statistics.protocol,
    }
    arrays[OWN_KEY] = np.array(json.dumps(about))
    partial = path.with_name(f"{path.name}.part")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)
            if layout == "adm" and images is not None:
                _write_examples(archive, images)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)


def check_fits(statistics: Statistics, extractor: Extractor) -> None:
    """UsageError unless the statistics can be of the features that ``extractor`` gives."""
    where = statistics.path or "the reference"
    if statistics.features and statistics.features != extractor.name:
        raise UsageError(
            f"{where} holds statistics of {statistics.features}, not of {extractor.name}; "
            f"add --features {statistics.features}"
        )
    dims = len(statistics.pool.mean)
    if dims != extractor.dims:
        raise UsageError(
            f"{where} holds statistics of {dims} dimensions, {extractor.name} gives "
            f"{extractor.dims}; use statistics of the same features, or images as the reference"
        )
    if statistics.features_hash and statistics.features_hash != extractor.hash:
        raise UsageError(
            f"{where} was made with other weights of {extractor.name} "
            f"({statistics.features_hash[:12]}, these are {extractor.hash[:12]}); make it again"
        )
    if statistics.protocol and not _same_resizing(statistics.protocol, extractor.protocol):
        raise UsageError(
            f"{where} was made with the {statistics.protocol} resizing; "
            f"add --protocol {statistics.protocol}"
        )


def _same_resizing(first: str, second: str) -> bool:
    return first == second or {first, second} == {"adm", "edm"}


def _names(path: Path) -> set[str]:
    """Names of the arrays in an npz; DataError if it is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except zipfile.BadZipFile:
        raise DataError(f"{path} is no npz file, or a damaged one") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def _read(path: Path, names: set[str]) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                small = info.file_size <= 8 * MAX_DIMS**2
                if info.filename.removesuffix(".npy") in names and not small:
                    raise DataError(
                        f"{path}: {info.filename} takes {info.file_size >> 20} MiB; statistics "
                        f"have at most {MAX_DIMS} dimensions"
                    )
        with np.load(path, allow_pickle=False) as table:
            arrays = {name: table[name] for name in names}
    except (*UNREADABLE, KeyError, zipfile.BadZipFile, OSError) as error:
        reason = " ".join(str(error).split())[:100]
        raise DataError(f"{path} cannot be read as statistics: {reason}") from None
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # numpy hands out bytes where it finds no header
            raise DataError(f"{path} cannot be read as statistics: {name} is no array")
    return arrays


def _own(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    if OWN_KEY not in arrays:
        return {}
    try:
        about = json.loads(str(arrays[OWN_KEY]))
    except ValueError:
        about = None
    kinds: dict[str, Any] = {"count": int | None}
    if not isinstance(about, dict) or not all(
        isinstance(value, kinds.get(key, str)) for key, value in about.items()
    ):
        raise DataError(f"{path}: its entry {OWN_KEY!r} is damaged; make the statistics again")
    return about


def _gaussian(path: Path, mean: np.ndarray, covariance: np.ndarray, names: str) -> Gaussian:
    dims = mean.shape[-1] if mean.ndim else 0
    if mean.shape != (dims,) or covariance.shape != (dims, dims) or dims == 0:
        raise DataError(
            f"{path}: {names} are {_shape(mean)} and {_shape(covariance)}; they must be D and D x D"
        )
    if mean.dtype.kind not in "fiu" or covariance.dtype.kind not in "fiu":
        raise DataError(f"{path}: {names} hold {mean.dtype} and {covariance.dtype}, not numbers")
    mean, covariance = mean.astype(np.float64), covariance.astype(np.float64)
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise DataError(f"{path}: {names} hold values that are not finite; make them again")
    if max(np.abs(mean).max(), np.abs(covariance).max()) > MAX_VALUE:
        raise DataError(f"{path}: {names} hold values above {MAX_VALUE:g}; make them again")
    scale = float(np.abs(covariance).max())
    if not np.allclose(covariance, covariance.T, rtol=0, atol=1e-4 * scale):
        raise DataError(f"{path}: {names.split()[-1]} is not symmetric, so it is no covariance")
    if (np.diagonal(covariance) < -1e-6 * scale).any():
        raise DataError(f"{path}: {names.split()[-1]} has negative variances; make it again")
    return Gaussian(torch.from_numpy(mean), torch.from_numpy((covariance + covariance.T) / 2))


def _write_examples(archive: zipfile.ZipFile, images: Dataset) -> None:
    """The member arr_0, (N, H, W, 3) uint8, written image by image."""
    count = min(len(images), MAX_EXAMPLES)
    _, height, width = images.shape
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, height, width, 3)}
    with archive.open("arr_0.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for image in _spread(images, count):
            file.write(np.ascontiguousarray(image).tobytes())


def _spread(images: Dataset, count: int) -> Iterator[np.ndarray]:
    for i in range(count):
        pixels = images[i * len(images) // count].image.transpose(1, 2, 0)
        yield np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def _plain(values: Tensor) -> np.ndarray:
    return np.asarray(values.cpu().numpy(), dtype=np.float64)


def _shape(array: np.ndarray) -> str:
    return " x ".join(map(str, array.shape)) or "a single number"
