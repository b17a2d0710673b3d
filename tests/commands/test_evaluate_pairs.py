"""`diffit evaluate --pairs` as a user runs it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from diffit.cli import main
from diffit.data.images import write_png
from diffit.evaluation.images import psnr, ssim


def write(folder: Path, side: int, noise: float, count: int = 2) -> None:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(count):
        clean = generator.integers(0, 256, (3, side, side))
        moved = clean + noise * generator.standard_normal(clean.shape)
        write_png(folder / f"{i}.png", moved.round().clip(0, 255).astype(np.uint8))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    write(tmp_path / "a", 24, 20)
    write(tmp_path / "b", 24, 0)
    return str(tmp_path / "a"), str(tmp_path / "b")


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["evaluate", *argv]) == 2
    return capsys.readouterr().err


def test_averages_are_over_images_under_the_convention(folders, tmp_path, capsys):
    out = tmp_path / "pairs.json"
    argv = ["--convention", "super-resolution", "--factor", "4", "--out", str(out)]
    assert main(["evaluate", folders[0], "--pairs", folders[1], *argv]) == 0
    record = json.loads(out.read_text())
    a, b = (_images(Path(folder)) for folder in folders)
    rule = {"convention": "super-resolution", "factor": 4}
    assert record["means"]["PSNR"] == pytest.approx(float(psnr(a, b, **rule).mean()))
    assert record["means"]["SSIM"] == pytest.approx(float(ssim(a, b, **rule).mean()))
    assert "MS-SSIM" not in record["means"]
    assert record["convention"]["channel"] == "y"
    said = capsys.readouterr().out
    assert "convention super-resolution: y, 4 pixels of border cut" in said
    assert "MS-SSIM is left out: MS-SSIM needs images of at least 176 x 176" in said


def test_equal_images_have_no_finite_psnr(folders, tmp_path, capsys):
    out = tmp_path / "pairs.json"
    assert main(["evaluate", folders[0], "--pairs", folders[0], "--out", str(out)]) == 0
    assert json.loads(out.read_text())["means"]["PSNR"] is None
    assert "infinite: a pair is equal" in capsys.readouterr().out


def test_what_is_no_pair_is_refused(folders, tmp_path, capsys):
    a, b = folders
    assert "is no folder" in refused(capsys, a, "--pairs", str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    assert "holds no images" in refused(capsys, a, "--pairs", str(tmp_path / "empty"))
    write(tmp_path / "more", 24, 0, count=3)
    message = refused(capsys, a, "--pairs", str(tmp_path / "more"))
    assert "has no image '2.png'; pairs have the same file names" in message
    write(tmp_path / "large", 32, 0)
    assert "a pair has one size" in refused(capsys, a, "--pairs", str(tmp_path / "large"))
    message = refused(capsys, a, "--pairs", b, "--convention", "sr")
    assert "there is no convention 'sr'" in message
    message = refused(capsys, a, "--pairs", b, "--convention", "super-resolution")
    assert "give it with --factor" in message
    assert "must be 1 or more" in refused(capsys, a, "--pairs", b, "--factor", "0")
    message = refused(capsys, a, "--pairs", b, "--metrics", "fd")
    assert "--pairs is measured alone" in message


def _images(folder: Path) -> torch.Tensor:
    from diffit.data.images import read_image

    return torch.stack([torch.from_numpy(read_image(p).copy()) for p in sorted(folder.iterdir())])
