"""Blur kernels: their sums, widths and directions, and what is refused in a file."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffit import draws
from diffit.data.images import write_png
from diffit.errors import DataError, UsageError
from diffit.restoration import kernels

MADE: dict[str, Callable[[], Tensor]] = {
    "gaussian": lambda: kernels.gaussian(15, 2.0),
    "uniform": lambda: kernels.uniform(5),
    "anisotropic": lambda: kernels.anisotropic(21, 4.0, 1.0, 0.5),
    "motion": lambda: kernels.motion(15, stream(0)),
    "motion-line": lambda: kernels.motion(15, stream(0), intensity=0),
    "motion-tiny": lambda: kernels.motion(3, stream(0), intensity=1),
}


def stream(seed: int) -> np.random.Generator:
    return draws.generator(seed, 0, "kernel")


def moments(kernel: Tensor) -> Tensor:
    """(2, 2) covariance of (x, y)."""
    y, x = (torch.arange(side, dtype=torch.float64) - side // 2 for side in kernel.shape)
    grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))])
    mean = (grid * kernel).sum((1, 2))
    centred = grid - mean[:, None, None]
    return torch.einsum("ahw,bhw,hw->ab", centred, centred, kernel)


@pytest.mark.parametrize("name", MADE)
def test_kernels_are_positive_and_sum_to_1(name: str) -> None:
    kernel = MADE[name]()
    assert kernel.dtype == torch.float64
    assert (kernel >= 0).all()
    assert kernel.sum() == pytest.approx(1)


def test_a_gaussian_has_its_width() -> None:
    assert torch.allclose(moments(kernels.gaussian(25, 2.0)), 4 * torch.eye(2).double(), atol=1e-3)


def test_an_anisotropic_kernel_is_long_along_its_angle() -> None:
    angle = 0.6
    covariance = moments(kernels.anisotropic(41, 4.0, 1.5, angle))
    along = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    across = torch.tensor([-math.sin(angle), math.cos(angle)], dtype=torch.float64)
    assert along @ covariance @ along == pytest.approx(16, rel=0.01)
    assert across @ covariance @ across == pytest.approx(2.25, rel=0.01)


def test_motion_follows_from_the_seed_and_fills_its_frame() -> None:
    kernel = kernels.motion(31, stream(0))
    assert torch.equal(kernel, kernels.motion(31, stream(0)))
    assert not torch.equal(kernel, kernels.motion(31, stream(1)))
    reached = kernel.nonzero()
    extent = reached.max(0).values - reached.min(0).values
    assert extent.max() >= 29


def test_motion_without_jolts_is_a_straight_line() -> None:
    eigenvalues = torch.linalg.eigvalsh(moments(kernels.motion(31, stream(0), intensity=0)))
    assert eigenvalues[0] < 0.6
    assert eigenvalues[1] > 50


@pytest.mark.parametrize("make", [kernels.uniform, lambda n: kernels.gaussian(n, 1.0)])
def test_even_sides_are_refused(make: Callable[[int], Tensor]) -> None:
    with pytest.raises(ValueError, match="a kernel's side is odd, not 4"):
        make(4)


def test_kernels_are_read_from_pictures_and_arrays_and_sum_to_1(tmp_path: Path) -> None:
    levels = np.zeros((1, 3, 5), np.uint8)
    levels[0, 1, 1:4] = 85
    write_png(tmp_path / "kernel.png", levels)
    np.save(tmp_path / "kernel.npy", levels[0].astype(np.float32))
    expected = torch.zeros(3, 5, dtype=torch.float64)
    expected[1, 1:4] = 1 / 3
    for name in ("kernel.png", "kernel.npy"):
        assert torch.allclose(kernels.read_kernel(tmp_path / name), expected)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 3)), "kernel.npy: the blur kernel sums to zero"),
        (np.array([[1.0, -1, 0]]), "the blur kernel sums to zero, so that it would erase"),
        (np.ones((4, 3)), "of 4 x 3 has no centre; give odd sides"),
        (np.full((3, 3), np.nan), "holds numbers that are not finite"),
        (np.ones(3), r"has shape \(3,\); a blur kernel has a height and a width"),
        (np.ones((1025, 1)), r"has shape \(1025, 1\); a blur kernel"),
        (np.array([["a"]]), "is no array of numbers; save one with numpy.save"),
        (np.array([[1j]]), "is no array of numbers"),
        (np.array([[{}]], dtype=object), "is no array of numbers"),
    ],
)
def test_kernels_that_no_blur_has_are_refused(
    array: np.ndarray, message: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "kernel.npy", array, allow_pickle=True)
    with pytest.raises(UsageError, match=message):
        kernels.read_kernel(tmp_path / "kernel.npy")


def test_a_damaged_kernel_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "kernel.npy"
    np.save(path, np.ones((31, 31)))
    whole = path.read_bytes()
    for data in (whole[:-8], whole[:40], b"PK\x03\x04", b"\x93NUMPY\x01\x00"):
        path.write_bytes(data)
        with pytest.raises(UsageError, match="is no array of numbers"):
            kernels.read_kernel(path)


def test_an_array_that_is_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "kernel.npy"
    np.save(path, np.ones((31, 31)))
    path.write_bytes(path.read_bytes().replace(b"(31, 31)", b"(9**9,1)"))
    with pytest.raises(UsageError, match="is no array of numbers"):
        kernels.read_kernel(path)
    np.save(path, np.ones((31, 31)))
    path.write_bytes(path.read_bytes().replace(b"(31, 31), }   ", b"(31, 99999), }"))
    with pytest.raises(UsageError, match="is no array of numbers"):
        kernels.read_kernel(path)


def test_a_kernel_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        kernels.read_kernel(tmp_path / "kernel.npy")
    with pytest.raises(DataError, match="cannot be read: No such file"):
        kernels.read_kernel(tmp_path / "kernel.png")
