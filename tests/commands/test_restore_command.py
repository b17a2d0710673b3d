import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from diffit.cli import main
from diffit.data.builtin import open_builtin
from diffit.data.images import read_image, write_png

MODEL = Path(__file__).parent.parent / "fixtures" / "smoothed_digits" / "denoiser"
QUICK = ["--steps", "4", "--threads", "1"]


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    folder = tmp_path / "digits"
    folder.mkdir()
    for i, image in enumerate(open_builtin("digits-test", labels=False)[k].image for k in range(3)):
        write_png(folder / f"{i}.png", np.asarray(image))
    return folder


def restore(image: Path, out: Path, *options: str) -> int:
    return main(["restore", str(image), "--model", str(MODEL), "--out", str(out), *QUICK, *options])


def figures(out: Path) -> list[dict]:
    return json.loads((out / "restore.json").read_text())["images"]


def refusal(capsys: pytest.CaptureFixture[str], *args: str | Path) -> str:
    assert main(["restore", *map(str, args)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("diffit: ")
    assert said.count("\n") == 1
    return said


def files(out: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(out)): p.read_bytes()
        for p in sorted(out.rglob("*"))
        if p.is_file() and p.suffix in (".png", ".npy", ".webp")
    }


def test_a_folder_is_degraded_restored_and_compared(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert restore(digits, out, "--task", "inpaint-box", "--degrade", "--samples", "3") == 0
    said = capsys.readouterr().out
    assert "0: 4 evaluations" in said
    assert str(out / "restored") in said
    records = figures(out)
    assert [record["name"] for record in records] == ["0", "1", "2"]
    for record in records:
        assert record["consistency"] < 1e-6
        assert record["metrics"]["PSNR"] > record["baseline"]["PSNR"]
        assert "SSIM" not in record["metrics"]  # its window is larger than a digit
        assert record["spread"] > 0
    for kind in ("restored", "mean", "spread", "compare", "measured"):
        assert (out / kind / "1.png").is_file()
    assert (out / "samples" / "2-2.png").is_file()
    assert read_image(out / "restored" / "0.png").shape == (1, 8, 8)


def test_what_is_known_stays_and_what_was_written_can_be_restored_again(
    digits: Path, tmp_path: Path
) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    assert restore(digits / "0.png", first, "--task", "inpaint-box", "--degrade") == 0
    mask = first / "measured" / "0-mask.png"
    shown = first / "measured" / "0.png"
    assert restore(shown, again, "--mask", str(mask)) == 0
    known = read_image(mask)[0] > 0
    for out in (first, again):
        restored = read_image(out / "restored" / "0.png")[0]
        assert np.array_equal(restored[known], read_image(digits / "0.png")[0][known])
    # The same seed and the same measurement give the same answer.
    assert files(first)["restored/0.png"] == files(again)["restored/0.png"]


def test_a_measurement_that_is_no_picture_is_an_array(digits: Path, tmp_path: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    assert restore(digits / "1.png", first, "--task", "cs2", "--degrade") == 0
    array = first / "measured" / "1.npy"
    assert restore(array, again, "--task", "cs2") == 0
    assert files(first)["restored/1.png"] == files(again)["restored/1.png"]


def test_a_small_image_is_enlarged_and_a_larger_one_is_done_in_tiles(
    digits: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert restore(digits / "0.png", out, "--task", "sr3", "--video") == 0
    record = figures(out)[0]
    assert record["size"] == [1, 24, 24]
    assert record["tiles"] == 16
    assert 0 < record["seam"] < 2
    assert read_image(out / "restored" / "0.png").shape == (1, 24, 24)
    assert (out / "video" / "0.webp").stat().st_size > 0
    # How many tiles are computed at once changes nothing that can be seen.
    few = tmp_path / "few"
    assert restore(digits / "0.png", few, "--task", "sr3", "--batch", "3") == 0
    whole, parts = (read_image(o / "restored" / "0.png").astype(int) for o in (out, few))
    assert np.abs(whole - parts).max() <= 1


def test_a_kernel_is_taken_from_a_file(digits: Path, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel.npy"
    np.save(kernel, np.ones((3, 1)))
    out = tmp_path / "out"
    options = ["--task", "deblur-gauss", "--degrade", "--kernel", str(kernel)]
    assert restore(digits / "0.png", out, *options, "--sigma-noise", "0.02") == 0
    record = figures(out)[0]
    assert record["sigma_y"] == pytest.approx(0.04)
    assert record["metrics"]["PSNR"] > 15


def test_options_reach_the_method(digits: Path, tmp_path: Path) -> None:
    image, out = digits / "0.png", tmp_path / "out"
    options = ["--task", "sr2", "--degrade", "--options", "eta=0.5,travel_repeat=2"]
    assert restore(image, out, *options) == 0
    assert figures(out)[0]["nfe"] > 4  # time travel takes more than the four levels


def test_a_killed_run_is_continued_with_the_same_bytes(digits: Path, tmp_path: Path) -> None:
    options = ["--task", "sr2", "--degrade", "--samples", "2"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert restore(digits, whole, *options) == 0
    command = [sys.executable, "-m", "diffit", "restore", str(digits), "--model", str(MODEL)]
    command += ["--out", str(broken), *QUICK, *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ)
    while process.poll() is None and not list((broken / "records").glob("*.json")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert restore(digits, broken, *options) == 0
    assert files(broken) == files(whole)


def test_what_is_there_is_not_done_again_and_what_was_changed_is(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert restore(digits, out, "--task", "sr2", "--degrade") == 0
    before = files(out)
    (out / "restored" / "1.png").write_bytes(b"")
    capsys.readouterr()
    assert restore(digits, out, "--task", "sr2", "--degrade") == 0
    assert "2 of them are there already" in capsys.readouterr().out
    assert files(out) == before
    assert restore(digits, out, "--task", "sr4", "--degrade") == 2
    assert "was begun with another task" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--task", "sr22"], "there is no task 'sr22'; did you mean 'sr2'?"),
        (["--task", "sr2", "--method", "dnm"], "no method 'dnm'; did you mean 'ddnm'?"),
        (["--task", "sr3", "--degrade"], "3"),
        (["--task", "bits"], "no task"),
        ([], "give --task"),
        (["--task", "inpaint-box"], "say with --mask"),
        (["--task", "deblur-motion"], "say with --kernel"),
        (["--task", "quantize-3", "--degrade"], "needs a linear operator; take dps"),
        (["--task", "sr2", "--options", "etta=1"], "no option 'etta'; did you mean 'eta'?"),
        (["--task", "sr2", "--options", "eta=much"], "must be a number"),
        (["--task", "sr2", "--label", "3"], "without classes"),
        (["--task", "sr2", "--overlap", "7"], "cannot overlap by 7 pixels; give 0 to 4"),
        (["--task", "sr2", "--kernel", "kernel.npy", "--mask", "mask.png"], "keep the one"),
        (["--task", "sr2", "--mask", "mask.png"], "--mask is for inpainting"),
        (["--task", "denoise-25", "--kernel", "odd.npy"], "--kernel is for deblurring"),
        (["--mask", "mask.png"], "give a mask of the size of the image"),
        (["--task", "deblur-gauss", "--kernel", "zero.npy"], "sums to zero"),
        (["--task", "deblur-gauss", "--kernel", "even.npy"], "odd sides"),
        (["--task", "derain"], "no operator"),
    ],
)
def test_a_mistake_is_one_sentence(
    options: list[str],
    sentence: str,
    digits: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    half = np.zeros((1, 4, 4), np.uint8)
    half[:, :2] = 255
    write_png(tmp_path / "mask.png", half)
    np.save("zero.npy", np.array([[1.0, -2.0, 1.0]]))
    np.save("odd.npy", np.ones((3, 3)))
    np.save("even.npy", np.ones((2, 2)))
    said = refusal(capsys, digits / "0.png", "--model", MODEL, "--out", "out", *options)
    assert sentence in said
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.full((1, 4, 4), np.nan), "not finite"),
        (np.full((1, 4, 4), 200.0), "scale images of 0 to 255"),
        (np.full((1, 4), 0.5), "shape"),
        (np.array(["text"]), "no real numbers"),
    ],
)
def test_a_measurement_that_cannot_be_one_is_refused(
    array: np.ndarray, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "y.npy"
    np.save(path, array)
    out = tmp_path / "out"
    assert sentence in refusal(capsys, path, "--model", MODEL, "--task", "sr2", "--out", out)


def test_files_that_are_none_are_refused(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = ["--model", MODEL, "--task", "sr2", "--out", tmp_path / "out"]
    assert "does not exist" in refusal(capsys, tmp_path / "none.png", *rest)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no images" in refusal(capsys, empty, *rest)
    broken = tmp_path / "broken.npy"
    broken.write_bytes(b"\x93NUMPY")
    assert "no .npy array" in refusal(capsys, broken, *rest)
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes((digits / "0.png").read_bytes()[:60])
    assert "damaged.png" in refusal(capsys, damaged, *rest)
    shutil.copy(digits / "0.png", digits / "0.bmp")
    assert "two inputs are called '0'" in refusal(capsys, digits, *rest)
    full = tmp_path / "full"
    full.mkdir()
    (full / "letter.txt").write_text("mine")
    rest[-1] = full
    assert "holds other files" in refusal(capsys, digits / "1.png", *rest)
