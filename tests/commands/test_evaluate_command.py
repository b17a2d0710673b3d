"""`diffit evaluate` as a user runs it, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from diffit.cli import main
from diffit.data import open_dataset
from diffit.data.images import write_png
from diffit.evaluation.inception import Inception
from diffit.evaluation.passport import read_passport

DIGITS = ["--features", "digits-cnn"]
QUICK = [*DIGITS, "--reference", "builtin:digits", "--draws", "5"]


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> Path:
    """What `diffit sample` writes, with held-out digits in place of drawn ones."""
    out = tmp_path_factory.mktemp("run") / "samples"
    (out / "images").mkdir(parents=True)
    digits = open_dataset("builtin:digits-test")
    examples = [digits[i] for i in range(40)]
    for i, example in enumerate(examples):
        write_png(out / "images" / f"{i:06d}.png", example.image)
    names = [[f"{i:06d}.png", example.label] for i, example in enumerate(examples)]
    index = {"labels": names, "classes": list(digits.classes)}
    (out / "images" / "dataset.json").write_text(json.dumps(index))
    record = {"seed": 7, "count": 40, "sampling": {"sampler": "heun", "steps": 12, "guidance": 1.5}}
    (out / "samples.json").write_text(json.dumps(record))
    write_png(out / "grid.png", np.zeros((1, 30, 30), np.uint8))
    return out


@pytest.fixture(scope="module")
def partial_weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "partial.safetensors"
    save_file(Inception(partial=True).state_dict(), path)
    return path


def refused(capsys, *argv: str | Path) -> str:
    """The one line that a mistake is answered with."""
    assert main(["evaluate", *map(str, argv)]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()
    assert captured.out == ""
    return line


def test_a_folder_of_samples_gets_a_table_and_a_passport(samples, tmp_path, capsys):
    out = tmp_path / "passport.json"
    assert main(["evaluate", str(samples), *QUICK, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for name in ("FD (digits-cnn)", "KID (digits-cnn)", "coverage (digits-cnn)", "note: "):
        assert name in printed
    assert "FID" not in printed.replace("not comparable to FID", "")
    passport = read_passport(out)
    assert passport.value("accuracy") >= 0.95
    assert passport.generation["sampling"] == {"sampler": "heun", "steps": 12, "guidance": 1.5}
    assert (passport.samples.count, passport.reference.count) == (40, 1498)
    assert passport.samples.path == str(samples)
    assert passport.reference.path == "builtin:digits"
    assert set(passport.versions) >= {"diffit", "torch", "numpy", "python"}


def test_the_record_is_found_from_the_images_too(samples, tmp_path):
    out = tmp_path / "passport.json"
    argv = ["evaluate", str(samples / "images"), *QUICK, "--metrics", "fd", "--out", str(out)]
    assert main(argv) == 0
    passport = read_passport(out)
    assert passport.generation["seed"] == 7
    assert [figure.metric for figure in passport.figures] == ["fd"]


def test_images_from_an_npz_give_the_same_figures_as_from_files(samples, tmp_path):
    digits = open_dataset("builtin:digits-test")
    stack = np.stack([digits[i].image.transpose(1, 2, 0) for i in range(40)])
    np.savez(tmp_path / "samples.npz", arr_0=stack)
    figures = []
    for i, source in enumerate((samples, tmp_path / "samples.npz")):
        out = tmp_path / f"{i}.json"
        assert (
            main(["evaluate", str(source), *QUICK, "--metrics", "fd", "kid", "--out", str(out)])
            == 0
        )
        figures.append(read_passport(out))
    assert figures[0].figures == figures[1].figures
    assert figures[0].samples.hash == figures[1].samples.hash
    assert figures[1].generation == {}


def test_written_statistics_serve_as_a_reference(samples, tmp_path, capsys):
    stats, out = tmp_path / "digits.npz", tmp_path / "passport.json"
    assert main(["evaluate", "builtin:digits", *DIGITS, "--write-statistics", str(stats)]) == 0
    assert "wrote statistics of 1498 images" in capsys.readouterr().out
    argv = ["evaluate", str(samples), *DIGITS, "--reference", str(stats), "--out", str(out)]
    assert main(argv) == 0
    direct = tmp_path / "direct.json"
    assert main(["evaluate", str(samples), *QUICK, "--out", str(direct)]) == 0
    passport = read_passport(out)
    assert passport.value("fd") == pytest.approx(read_passport(direct).value("fd"), rel=1e-9)
    assert passport.reference.kind == "statistics"


def test_statistics_of_the_samples_are_written_beside_a_comparison(samples, tmp_path, capsys):
    stats = tmp_path / "ours.npz"
    argv = ["evaluate", str(samples), *QUICK, "--metrics", "fd", "--layout", "edm"]
    assert main([*argv, "--write-statistics", str(stats)]) == 0
    assert "wrote statistics of 40 images" in capsys.readouterr().out
    with np.load(stats) as table:
        assert table["mu"].shape == (64,)
        assert table["sigma"].shape == (64, 64)


def test_an_early_layer_of_inception_is_measured_under_its_own_name(
    samples, partial_weights, tmp_path, capsys
):
    out = tmp_path / "passport.json"
    few = tmp_path / "few.npz"
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    np.savez(few, arr_0=images)
    argv = ["evaluate", str(few), "--reference", str(few), "--features", "inception-64"]
    argv += ["--weights", str(partial_weights), "--metrics", "fd", "kid", "--out", str(out)]
    assert main([*argv, "--protocol", "adm", "--draws", "0"]) == 0
    passport = read_passport(out)
    assert [figure.name for figure in passport.figures] == ["FD-64", "KID (inception-64)"]
    assert passport.value("fd") == pytest.approx(0, abs=1e-9)
    assert "samples and reference are the same images" in passport.notes
    assert passport.features[0].protocol == "adm"
    assert "without half-pixel centres" in passport.features[0].resize


def test_adms_layout_is_written_with_positions_and_examples(tmp_path, capsys):
    torch.manual_seed(0)
    save_file(Inception().state_dict(), tmp_path / "whole.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "few.npz", arr_0=images)
    argv = ["evaluate", str(tmp_path / "few.npz"), "--weights", str(tmp_path / "whole.safetensors")]
    argv += ["--protocol", "adm", "--layout", "adm"]
    stats, out = tmp_path / "stats.npz", tmp_path / "passport.json"
    assert main([*argv, "--write-statistics", str(stats)]) == 0
    with np.load(stats) as table:
        assert table["sigma"].shape == (2048, 2048)
        assert table["sigma_s"].shape == (2023, 2023)
        assert np.array_equal(table["arr_0"], images)
    argv += ["--reference", str(stats), "--metrics", "fd", "--draws", "0", "--out", str(out)]
    assert main(argv) == 0
    passport = read_passport(out)
    assert passport.figures[0].name == "FID"
    assert passport.value("fd") == pytest.approx(0, abs=1e-9)
    assert "last blocks unverified" in passport.notes
    assert "last blocks unverified" in capsys.readouterr().out


def test_adms_reference_file_gives_its_statistics_and_its_images(samples, tmp_path):
    digits = open_dataset("builtin:digits")
    stack = np.stack([digits[i].image.transpose(1, 2, 0) for i in range(50)])
    mean, covariance = np.zeros(64), np.eye(64)
    reference, out = tmp_path / "reference.npz", tmp_path / "passport.json"
    np.savez(reference, mu=mean, sigma=covariance, arr_0=stack)
    argv = ["evaluate", str(samples), *DIGITS, "--reference", str(reference), "--draws", "0"]
    assert main([*argv, "--out", str(out)]) == 0
    counts = {f.metric: f.reference for f in read_passport(out).figures}
    assert counts["fd"] is None
    assert counts["recall"] == 50


def test_every_option_is_explained(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for option in ("SAMPLES", "--reference", "--features", "--kid-subset", "--write-statistics"):
        assert option in text


def test_missing_pieces_are_named(samples, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DIFFIT_CACHE", str(tmp_path))
    assert "nothing to compare with; name real images with --reference" in refused(capsys, samples)
    assert "--download to fetch 91 MiB" in refused(capsys, samples, "--reference", "builtin:digits")
    assert "there is nothing to read at 'nowhere'" in refused(capsys, "nowhere", *QUICK)
    assert "there is nothing to read at 'nowhere'" in refused(
        capsys, samples, *DIGITS, "--reference", "nowhere"
    )
    assert "'digit-cnn' is unknown; did you mean 'digits-cnn'?" in refused(
        capsys, samples, "--reference", "builtin:digits", "--features", "digit-cnn"
    )
    assert "weights.pth does not exist" in refused(
        capsys, samples, "--reference", "builtin:digits", "--weights", tmp_path / "weights.pth"
    )
    assert "invalid choice" in refused(capsys, samples, *QUICK, "--metrics", "fid")
    assert "--device gpu is unknown" in refused(capsys, samples, *QUICK, "--device", "gpu")


def test_options_that_contradict_each_other_are_refused(samples, tmp_path, capsys):
    (tmp_path / "there.json").touch()
    (tmp_path / "there.npz").touch()
    new = tmp_path / "new.npz"
    assert "there.json exists already; name a new file" in refused(
        capsys, samples, *QUICK, "--out", tmp_path / "there.json"
    )
    assert "there.npz exists already; name a new file" in refused(
        capsys, samples, *QUICK, "--write-statistics", tmp_path / "there.npz"
    )
    assert "there is no folder" in refused(
        capsys, samples, *QUICK, "--out", tmp_path / "no" / "passport.json"
    )
    assert "must end in .npz" in refused(
        capsys, samples, *QUICK, "--write-statistics", tmp_path / "stats.json"
    )
    assert "--layout adm holds statistics of Inception" in refused(
        capsys, samples, *QUICK, "--write-statistics", new, "--layout", "adm"
    )
    assert "--weights is for inception; digits-cnn does not take it" in refused(
        capsys, samples, *QUICK, "--weights", new
    )
    assert "--protocol adm is for inception" in refused(
        capsys, samples, *QUICK, "--protocol", "adm"
    )
    assert "--out is for a comparison" in refused(
        capsys, samples, *DIGITS, "--write-statistics", new, "--out", tmp_path / "p.json"
    )
    assert not new.exists()


def test_sets_that_do_not_go_together_are_refused(samples, partial_weights, tmp_path, capsys):
    assert "the reference is 32 x 32 with 3 channels" in refused(
        capsys, samples, *DIGITS, "--reference", "builtin:patches"
    )
    np.savez(tmp_path / "three.npz", arr_0=np.zeros((3, 8, 8, 1), np.uint8))
    assert "it needs 4 samples or more, and there are only 3" in refused(
        capsys, tmp_path / "three.npz", *QUICK, "--metrics", "precision"
    )
    assert "--kid-subset 1000 is more than the 40 images" in refused(
        capsys, samples, *QUICK, "--kid-subset", "1000"
    )
    assert "accuracy (digits-cnn) cannot be measured: the samples have no labels" in refused(
        capsys, tmp_path / "three.npz", *QUICK, "--metrics", "accuracy"
    )
    assert "ends at Mixed_7a and gives no 2048 features" in refused(
        capsys, samples, "--reference", "builtin:digits", "--weights", partial_weights
    )
    (tmp_path / "empty").mkdir()
    assert "holds no images" in refused(capsys, tmp_path / "empty", *QUICK)


def test_reference_statistics_that_do_not_fit_are_refused(samples, tmp_path, capsys):
    def against(**arrays: np.ndarray) -> str:
        np.savez(tmp_path / "stats.npz", **arrays)
        return refused(capsys, samples, *DIGITS, "--reference", tmp_path / "stats.npz", *more)

    more: list[str] = []
    wide, small = {"mu": np.zeros(2048), "sigma": np.eye(2048)}, np.eye(64)
    assert "statistics of 2048 dimensions, digits-cnn gives 64" in against(**wide)
    assert "values that are not finite" in against(mu=np.full(64, np.nan), sigma=small)
    assert "statistics are named mu and sigma" in against(mu=np.zeros(64))
    more = ["--metrics", "recall"]
    assert "the reference holds statistics alone" in against(mu=np.zeros(64), sigma=small)
    assert "is a pickle, which can run code" in refused(
        capsys, samples, *DIGITS, "--reference", tmp_path / "edm2.pkl"
    )


def test_an_unfinished_folder_of_samples_is_refused(samples, tmp_path, capsys):
    out = tmp_path / "samples"
    (out / "images").mkdir(parents=True)
    write_png(out / "images" / "000000.png", np.zeros((1, 8, 8), np.uint8))
    (out / "samples.json").write_text('{"count": 40}')
    assert "holds 1 of 40 images; let `diffit sample` finish it first" in refused(
        capsys, out, *QUICK
    )
    (out / "samples.json").write_text("{")
    assert "samples.json is no valid JSON" in refused(capsys, out, *QUICK)


def test_a_damaged_image_is_named(samples, tmp_path, capsys):
    digits = open_dataset("builtin:digits-test")
    for i in range(8):
        write_png(tmp_path / f"{i}.png", digits[i].image)
    data = (tmp_path / "5.png").read_bytes()
    (tmp_path / "5.png").write_bytes(data[: len(data) // 2])
    assert "5.png" in refused(capsys, tmp_path, *QUICK)
