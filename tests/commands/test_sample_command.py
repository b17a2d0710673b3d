"""`diffit sample` as a user runs it: the same bytes whatever happens, and one line per mistake."""

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
import torch
from PIL import Image

from diffit.checkpoint import save_model
from diffit.cli import main
from diffit.config import parse
from diffit.data import open_dataset
from diffit.generation import generate
from diffit.model import build_model
from diffit.protocols import PROTOCOLS
from diffit.samples import partial_path, read_plan
from diffit.sampling import SamplingConfig
from diffit.training.settings import RunConfig
from tiny import tiny_run

SMALL = ["--steps", "3", "--threads", "1"]


def make_checkpoint(folder: Path, *, seed: int = 0, classes: int = 10, channels: int = 1) -> Path:
    """A DiffiT with random weights; its checkpoint recommends heun with guidance 1.5."""
    config = tiny_run(network={"classes": classes, "channels": channels})
    sampling = SamplingConfig(steps=4, guidance=1.5 if classes else 1.0, churn=1.0, unit=4)
    names = ("zero", "one", "two", *"3456789") if classes else ()
    named = config.model.model_copy(update={"class_names": names})
    config = config.model_copy(update={"sampling": sampling, "model": named})
    model = build_model(config.model, seed=seed)
    source = torch.Generator().manual_seed(seed)
    tensors = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=source)
        for name, tensor in model.network.state_dict().items()
    }
    twice = {name: 2 * tensor for name, tensor in tensors.items()}
    save_model(folder, config, {"model": tensors, "ema-1": twice}, {"images": 7})
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("sample") / "checkpoint")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint without classes."""
    return make_checkpoint(tmp_path_factory.mktemp("sample") / "plain", classes=0, channels=3)


def sample(checkpoint: Path, out: Path, *options: str) -> int:
    return main(["sample", str(checkpoint), "--out", str(out), *SMALL, *options])


def contents(out: Path) -> dict[str, bytes]:
    """Every file but the record, which says which command was typed."""
    files = [p for p in out.rglob("*") if p.is_file() and p.name != "samples.json"]
    return {str(p.relative_to(out)): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def whole(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images, drawn without interruption."""
    out = tmp_path_factory.mktemp("sample") / "whole"
    assert sample(checkpoint, out, "--count", "10") == 0
    return out


def test_images_are_those_of_the_library(checkpoint: Path, whole: Path) -> None:
    import diffit

    model = diffit.load(checkpoint)
    drawn = generate(model, range(10), labels=range(10), steps=3)
    files = open_dataset(whole / "images")
    assert files.classes == model.config.class_names
    for i in range(10):
        assert np.array_equal(files[i].image, drawn[i].numpy())
        assert files[i].label == i


def test_everything_is_there(whole: Path) -> None:
    images = [f"images/{i:06d}.png" for i in range(10)]
    notes = [f"units/{unit:06d}.txt" for unit in range(3)]
    others = ["images/dataset.json", "grid.png", "checksums.txt"]
    assert sorted(contents(whole)) == sorted([*images, *notes, *others])
    assert Image.open(whole / "grid.png").size == (10 * 66 - 2, 64)


def test_the_record_suffices_to_draw_again(whole: Path, tmp_path: Path) -> None:
    record = json.loads((whole / "samples.json").read_text())
    plan = read_plan(whole)
    assert plan is not None
    assert plan.sampling.churn == 1.0  # recommended by the checkpoint
    assert plan.sampling.steps == 3  # asked for
    assert record["versions"]["torch"] == torch.__version__
    sampling = record["sampling"]
    options = [f"--{k.replace('_', '-')}={v}" for k, v in sampling.items() if type(v) is not bool]
    again = [
        "sample", record["weights"]["checkpoint"], "--weights", record["weights"]["name"],
        "--seed", str(record["seed"]), "--count", str(record["count"]),
        "--threads", str(record["threads"]), "--device", record["device"],
        "--labels", ",".join(map(str, record["labels"])), *options, "--out", str(tmp_path / "x"),
    ]  # fmt: skip
    assert main(again) == 0
    assert contents(tmp_path / "x") == contents(whole)


def test_two_processes_write_the_same_bytes(checkpoint: Path, whole: Path, tmp_path: Path) -> None:
    assert sample(checkpoint, tmp_path / "x", "--count", "10", "--processes", "2") == 0
    assert contents(tmp_path / "x") == contents(whole)


def test_a_folder_may_grow(
    checkpoint: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x"
    assert sample(checkpoint, out, "--count", "3") == 0
    assert len(open_dataset(out / "images")) == 3
    assert sample(checkpoint, out, "--count", "10") == 0
    assert contents(out) == contents(whole)
    assert read_plan(out).count == 10  # type: ignore[union-attr]
    assert sample(checkpoint, out, "--count", "9") == 2
    assert "is for 10 images, more than 9" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [b"", b"\x89PNG\r\n", None])
def test_what_is_lost_or_damaged_is_drawn_again(
    checkpoint: Path, whole: Path, tmp_path: Path, damage: bytes | None
) -> None:
    out = tmp_path / "x"
    assert sample(checkpoint, out, "--count", "10") == 0
    hurt = out / "images" / "000005.png"
    other = (out / "images" / "000001.png").stat().st_mtime_ns
    hurt.unlink() if damage is None else hurt.write_bytes(damage)
    partial_path(out / "images" / "000006.png").write_bytes(b"half")
    assert sample(checkpoint, out, "--count", "10") == 0
    assert contents(out) == contents(whole)
    assert (out / "images" / "000001.png").stat().st_mtime_ns == other  # its unit was whole


def start(checkpoint: Path, out: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "diffit", "sample", str(checkpoint), "--out", str(out)]
    return subprocess.Popen(
        [*command, *SMALL, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(path: Path, process: subprocess.Popen) -> None:
    for _ in range(1200):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError(f"{path} never came")


def unwatched(processes: int) -> list[str]:
    return ["--count", "200", "--processes", str(processes), "--guidance", "1.2"]


@pytest.fixture(scope="module")
def two_hundred(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "two-hundred"
    assert sample(checkpoint, out, *unwatched(1)) == 0
    return out


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_is_continued(
    checkpoint: Path, two_hundred: Path, tmp_path: Path, processes: int
) -> None:
    out = tmp_path / "x"
    process = start(checkpoint, out, *unwatched(processes))
    wait_for(out / "images" / "000009.png", process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    done = len(list((out / "images").glob("0*.png")))
    assert 0 < done < 200
    assert not (out / "grid.png").exists()
    assert sample(checkpoint, out, *unwatched(1)) == 0
    assert contents(out) == contents(two_hundred)


@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_says_how_to_continue_and_leaves_nobody_behind(
    checkpoint: Path, tmp_path: Path, processes: int
) -> None:
    out = tmp_path / "x"
    process = start(checkpoint, out, *unwatched(processes))
    wait_for(out / "images" / "000009.png", process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "of 200 images are still to be drawn; repeat the command to continue" in errors
    assert "Traceback" not in errors
    assert not left_running(process.pid)
    assert not list(out.rglob("*.partial"))


def left_running(group: int) -> list[str]:
    """What still runs of a process group after a moment."""
    for _ in range(100):
        listed = subprocess.run(
            ["ps", "-o", "stat=,args=", "-g", str(group)], capture_output=True, text=True
        ).stdout.splitlines()
        alive = [line for line in listed if not line.startswith("Z")]
        if not alive:
            return []
        time.sleep(0.1)
    return alive


def test_a_worker_that_dies_is_reported(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "x"
    process = start(checkpoint, out, *unwatched(2))
    wait_for(out / "images" / "000009.png", process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        process.communicate()
        pytest.skip("the children of a process cannot be listed here")
    # the first child is multiprocessing's resource tracker or a worker, the last one a worker
    os.kill(int(children.read_text().split()[-1]), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "a worker process ended before its work was done" in errors
    assert "Traceback" not in errors


def test_npz_and_zip_hold_the_same_images(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "x"
    assert sample(checkpoint, out, "--count", "5", "--labels", "2,one", "--npz", "--zip") == 0
    with np.load(out / "samples.npz") as arrays:
        assert arrays["arr_0"].shape == (5, 8, 8, 1)
        assert arrays["arr_0"].dtype == np.uint8
        assert arrays["arr_1"].tolist() == [2, 1, 2, 1, 2]
        for kind in ("images", "samples.zip"):
            files = open_dataset(out / kind)
            assert [files[i].label for i in range(5)] == [2, 1, 2, 1, 2]
            images = np.stack([files[i].image for i in range(5)])
            assert np.array_equal(images.transpose(0, 2, 3, 1), arrays["arr_0"])
    first = contents(out)
    assert sample(checkpoint, out, "--count", "5", "--labels", "2,one", "--npz", "--zip") == 0
    assert contents(out) == first


def test_models_without_classes_and_with_colours(plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "x"
    assert sample(plain, out, "--count", "3", "--npz", "--trajectory") == 0
    with np.load(out / "samples.npz") as arrays:
        assert arrays["arr_0"].shape == (3, 8, 8, 3)
        assert "arr_1" not in arrays
    assert open_dataset(out / "images").classes == ()
    assert Image.open(out / "trajectory.png").size[0] > 200


def pngs(out: Path) -> list[bytes]:
    return [p.read_bytes() for p in sorted((out / "images").glob("*.png"))]


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("3", (3,)),
        ("0-2", (0, 1, 2)),
        ("zero,9", (0, 9)),
        ("one", (1,)),
        ("all", tuple(range(10))),
        ("none", (None,)),
        (" 1 , two ", (1, 2)),
    ],
)
def test_labels_are_numbers_ranges_or_names(
    text: str, labels: tuple, checkpoint: Path, tmp_path: Path
) -> None:
    assert sample(checkpoint, tmp_path / "x", "--count", "1", "--labels", text, "--steps=1") == 0
    assert read_plan(tmp_path / "x").labels == labels  # type: ignore[union-attr]


def test_weights_and_reference_matter(checkpoint: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", seed=1)
    assert sample(checkpoint, tmp_path / "a", "--count", "4") == 0
    assert sample(checkpoint, tmp_path / "b", "--count", "4", "--weights", "ema-1") == 0
    assert sample(checkpoint, tmp_path / "c", "--count", "4", "--reference", str(other)) == 0
    assert pngs(tmp_path / "a") != pngs(tmp_path / "b")
    assert pngs(tmp_path / "a") != pngs(tmp_path / "c")
    plan = read_plan(tmp_path / "c")
    assert plan is not None
    assert plan.reference is not None
    assert plan.reference.checkpoint == str(other)


def test_another_sampler_forgets_what_was_recommended_for_the_first(
    checkpoint: Path, tmp_path: Path
) -> None:
    assert sample(checkpoint, tmp_path / "x", "--count", "1", "--sampler", "ddim") == 0
    plan = read_plan(tmp_path / "x")
    assert plan is not None
    assert (plan.sampling.churn, plan.sampling.guidance) == (None, 1.5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--seed", "1"], "was begun with seed 0, not 1"),
        (["--steps", "4"], "was begun with steps 3, not 4"),
        (["--guidance", "2"], "was begun with guidance 1.5, not 2.0"),
        (["--labels", "3"], "was begun with labels"),
        (["--threads", "2"], "was begun with threads 1, not 2"),
        (["--unit", "5"], "was begun with unit 4, not 5"),
        (["--weights", "ema-1"], "was begun with weights model"),
    ],
)
def test_another_plan_in_a_folder_is_refused(
    options: list[str],
    sentence: str,
    checkpoint: Path,
    whole: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = contents(whole)
    assert sample(checkpoint, whole, "--count", "10", *options) == 2
    assert sentence in capsys.readouterr().err
    assert contents(whole) == before


def test_a_moved_checkpoint_continues_its_folder(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "x"
    assert sample(checkpoint, out, "--count", "2") == 0
    moved = shutil.copytree(checkpoint, tmp_path / "moved")
    assert sample(moved, out, "--count", "3") == 0
    assert len(pngs(out)) == 3


REFUSED = [
    ([], "needs a checkpoint or a run as its first argument"),
    (["--count", "3"], "needs a checkpoint or a run as its first argument"),
    (["nowhere"], "nowhere does not exist"),
    (["{file}"], "is a file, not a folder"),
    (["{empty}"], "is no checkpoint"),
    (["{checkpoint}", "extra"], "unrecognized options: extra"),
    (["{checkpoint}", "--cuont", "3"], "did you mean --count?"),
    (["{checkpoint}", "--count", "0"], "count is 0; it must be greater than 0"),
    (["{checkpoint}", "--count", "-3"], "count is -3; it must be greater than 0"),
    (["{checkpoint}", "--count", "many"], "--count: 'many' is no whole number"),
    (["{checkpoint}", "--count"], "--count needs a value"),
    (["{checkpoint}", "--steps", "0"], "steps is 0; it must be greater than 0"),
    (["{checkpoint}", "--steps", "2.5"], "--steps: '2.5' is no whole number"),
    (["{checkpoint}", "--sampler", "huen"], "sampler 'huen' is unknown; did you mean 'heun'?"),
    (["{checkpoint}", "--sampler", "ddim", "--churn", "3"], "sampler 'ddim' has no option 'churn'"),
    (["{checkpoint}", "--eta", "0.5"], "sampler 'heun' has no option 'eta'"),
    (["{checkpoint}", "--sampler", "ddim", "--eta", "2"], "eta is 2.0; it must be less than or"),
    (["{checkpoint}", "--sampler", "ancestral-learned"], "needs a learned variance"),
    (["{checkpoint}", "--levels", "respaced"], "has no discrete levels"),
    (["{checkpoint}", "--levels", "spaced"], "invalid choice 'spaced' for argument '--levels'"),
    (["{checkpoint}", "--levels", "flow", "--rho", "7"], "level list 'flow' has no option 'rho'"),
    (["{checkpoint}", "--sigma-max", "0.001"], "it must be 0 < low < high"),
    (["{checkpoint}", "--guidance", "-1"], "guidance is -1.0; it must be greater than or equal"),
    (["{checkpoint}", "--guidance", "nan"], "guidance is nan; it must be a finite number"),
    (["{checkpoint}", "--guidance-power", "2"], "guidance_power is for guidance_schedule"),
    (["{checkpoint}", "--guidance-channels", "2"], "guidance_channels is 2; this model has 1"),
    (["{checkpoint}", "--labels", "10"], "this model has the classes 0 to 9"),
    (["{checkpoint}", "--labels", "5-3"], "this model has the classes 0 to 9"),
    (["{checkpoint}", "--labels", "ones"], "there is no such class; did you mean 'one'?"),
    (["{checkpoint}", "--labels", "1,,2"], "there is no such class"),
    (["{plain}", "--labels", "1"], "this model was trained without classes"),
    (["{plain}", "--guidance", "2"], "guidance needs a model with classes"),
    (["{checkpoint}", "--reference", "{plain}"], "they must agree"),
    (["{checkpoint}", "--reference", "nowhere"], "nowhere does not exist"),
    (["{checkpoint}", "--weights", "ema-2"], "has no weights 'ema-2'; there are: model, ema-1"),
    (["{checkpoint}", "--device", "tpu"], "--device tpu is unknown"),
    (["{checkpoint}", "--processes", "0"], "processes is 0; it must be greater than 0"),
    (["{checkpoint}", "--threads", "-1"], "threads is -1; it must be greater than or equal to 0"),
    (["{checkpoint}", "--unit", "0"], "unit is 0; it must be greater than 0"),
    (["{checkpoint}", "--precision", "int8"], "invalid choice 'int8'"),
    (["{checkpoint}", "--out", "{file}"], "cannot be made"),
    (["{checkpoint}", "--out", "{full}"], "holds other files (notes.txt); name a new folder"),
    (["{checkpoint}", "--out", "{broken}"], "samples.json is damaged"),
]


@pytest.mark.parametrize(("args", "sentence"), REFUSED, ids=[" ".join(a) for a, _ in REFUSED])
def test_each_mistake_is_one_line_and_exit_code_2(
    args: list[str],
    sentence: str,
    checkpoint: Path,
    plain: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "full", "broken"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "full" / "notes.txt").write_text("x")
    (tmp_path / "broken" / "samples.json").write_text("{")
    places = {"checkpoint": checkpoint, "plain": plain} | {
        name: tmp_path / name for name in ("file", "empty", "full", "broken")
    }
    assert main(["sample", *(arg.format(**places) for arg in args)]) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err
    assert shown.err.startswith("diffit: ")
    assert shown.err.count("\n") == 1
    assert not shown.out


def test_more_threads_than_cores_are_pointed_out(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", str(checkpoint), "--out", str(tmp_path / "x"), "--steps", "1",
                 "--count", "1", "--threads", "999"]) == 0  # fmt: skip
    assert "are more than the" in capsys.readouterr().err
    assert torch.get_num_threads() < 999


def test_diverging_samplers_are_answered(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample(checkpoint, tmp_path / "x", "--count", "1", "--guidance", "1e300") == 2
    assert "not finite" in capsys.readouterr().err


def test_a_full_disk_is_answered(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_bytes = Path.write_bytes

    def fails(self: Path, data: bytes) -> int:
        if "000002" in self.name:
            raise OSError(28, "No space left on device")
        return write_bytes(self, data)

    monkeypatch.setattr(Path, "write_bytes", fails)
    assert sample(checkpoint, tmp_path / "x", "--count", "4") == 2
    assert "cannot be written: No space left on device" in capsys.readouterr().err
    monkeypatch.undo()
    assert sample(checkpoint, tmp_path / "x", "--count", "4") == 0


def test_help_shows_what_the_checkpoint_recommends(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["sample", str(checkpoint), "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert (
        "Weight of the guidance; 1 is none, above 1 pushes towards the class. (default: 1.5)"
        in (shown)
    )


def test_a_small_network_draws_with_one_thread(checkpoint: Path, tmp_path: Path) -> None:
    assert main(["sample", str(checkpoint), "--out", str(tmp_path / "x"), "--steps", "1",
                 "--count", "1"]) == 0  # fmt: skip
    plan = read_plan(tmp_path / "x")
    assert plan is not None
    assert plan.threads == 1


PROTOCOL = ["--protocol", "official-256", "--steps", "4", "--threads", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A latent-shaped checkpoint with learned variance, as published models have it."""
    network = {"name": "latent-diffit", "size": 4, "channels": 3, "patch": 2, "depth": 1,
               "width": 16, "heads": 2, "classes": 5, "learned_variance": True}  # fmt: skip
    model = {"network": network, "formulation": {"name": "ddpm", "learned_variance": True}}
    config = parse(RunConfig, {"model": model, "data": {"path": "builtin:digits"}}, source="test")
    folder = tmp_path_factory.mktemp("sample") / "learned"
    tensors = build_model(config.model).network.state_dict()
    source = torch.Generator().manual_seed(0)
    for tensor in tensors.values():
        tensor += 0.05 * torch.randn(tensor.shape, generator=source)
    save_model(folder, config, {"model": tensors}, {"images": 0})
    return folder


def test_the_official_protocol_is_one_command(
    learned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x"
    assert main(["sample", str(learned), "--out", str(out), "--count", "9", *PROTOCOL]) == 0
    assert "meant for images of 256 pixels; this model draws 4 x 4" in capsys.readouterr().err
    plan = read_plan(out)
    assert plan is not None
    how = plan.sampling
    assert (how.sampler, how.levels, how.steps) == ("ancestral-learned", "respaced", 4)
    assert (how.guidance, how.guidance_schedule, how.guidance_power) == (4.4, "power-cosine", 4)
    assert (how.guidance_channels, plan.codec.rounding) == (3, "down")
    with np.load(out / "samples.npz") as arrays:
        assert arrays["arr_0"].shape == (9, 4, 4, 3)
        assert arrays["arr_1"].tolist() == [plan.label(i) for i in range(9)]
        assert arrays["arr_1"].tolist() != [i % 5 for i in range(9)]


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        (["--guidance", "3"], "guidance", 3.0),
        (["--sampler", "ddim"], "levels", None),
        (["--precision", "bf16"], "precision", "bf16"),
    ],
)
def test_an_option_replaces_its_part_of_a_protocol(
    options: list[str], name: str, value: object, learned: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x"
    command = ["sample", str(learned), "--out", str(out), "--count", "1", *PROTOCOL, *options]
    assert main([*command, "--no-npz", "--labels", "2"]) == 0
    plan = read_plan(out)
    assert plan is not None
    assert getattr(plan.sampling, name) == value
    assert plan.sampling.guidance_channels == 3
    assert (plan.labels, plan.label_order) == ((2,), "turns")
    assert not (out / "samples.npz").exists()


def test_protocols_are_valid_and_differ_where_they_should() -> None:
    for name, protocol in PROTOCOLS.items():
        assert SamplingConfig(**protocol.sampling.model_dump()) == protocol.sampling
        official = name.startswith("official")
        assert (protocol.sampling.steps, protocol.sampling.guidance_channels) == (
            (250, 3) if official else (30, None)
        )
        # 1 + x on three of four channels acts like 1 + 3/4 x on all of them
        pair = PROTOCOLS[f"official-{protocol.side}"].sampling.guidance
        if not official:
            assert protocol.sampling.guidance == pytest.approx(1 + 0.75 * (pair - 1), abs=0.005)


def test_rounding_down_cuts_the_fraction_off(checkpoint: Path, tmp_path: Path) -> None:
    assert sample(checkpoint, tmp_path / "a", "--count", "4") == 0
    for processes in ("1", "2"):
        out = tmp_path / processes
        assert sample(checkpoint, out, "--count", "4", "--rounding", "down",
                      "--processes", processes) == 0  # fmt: skip
    near, down = (open_dataset(tmp_path / name / "images") for name in ("a", "1"))
    gaps = np.concatenate([near[i].image.astype(int) - down[i].image for i in range(4)])
    assert set(np.unique(gaps)) == {0, 1}
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_parts_are_drawn_apart_and_put_together(
    checkpoint: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("1/2", "2/2"):
        out = tmp_path / part[0]
        assert sample(checkpoint, out, "--count", "10", "--part", part) == 0
        assert not (out / "checksums.txt").exists()
    shown = capsys.readouterr().out
    assert "10 images, part 1/2, heun" in shown
    assert "4 images of part 1/2" in shown
    assert "6 of 10 are still to be drawn by others" in shown
    shutil.copytree(tmp_path / "2", tmp_path / "1", dirs_exist_ok=True)
    assert sample(checkpoint, tmp_path / "1", "--count", "10") == 0
    assert "10 of them are there already" in capsys.readouterr().out
    assert contents(tmp_path / "1") == contents(whole)


def test_the_last_part_in_a_shared_folder_finishes_it(
    checkpoint: Path, whole: Path, tmp_path: Path
) -> None:
    for part in ("3/3", "1/3", "2/3"):
        assert sample(checkpoint, tmp_path / "x", "--count", "10", "--part", part) == 0
    assert contents(tmp_path / "x") == contents(whole)


def test_commands_that_share_a_folder_share_the_work(
    checkpoint: Path, two_hundred: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x"
    both = [start(checkpoint, out, *unwatched(1), "--npz") for _ in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    with np.load(out / "samples.npz") as arrays:
        assert len(arrays["arr_0"]) == 200
    (out / "samples.npz").unlink()
    assert contents(out) == contents(two_hundred)


def test_large_folders_are_data_sets(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "x"
    options = ["--count", "1003", "--unit", "64", "--sampler", "euler", "--steps", "1", "--npz"]
    assert sample(checkpoint, out, *options) == 0
    assert (out / "images" / "00001" / "001002.png").exists()
    images = open_dataset(out / "images")
    with np.load(out / "samples.npz") as arrays:
        order = sorted(range(1003), key=lambda i: images.files.images[i].split("/")[-1])
        assert np.array_equal(arrays["arr_0"][1002, :, :, 0], images[order[1002]].image[0])
        assert [images.label(i) for i in order] == arrays["arr_1"].tolist()


def test_a_disk_that_loses_images_is_named(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from diffit.commands import sample as command

    monkeypatch.setattr(command, "check_units", lambda *_: [1])
    assert sample(checkpoint, tmp_path / "x", "--count", "6") == 2
    assert "do not stay as they are written (unit 1); check the disk" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3"])
def test_what_is_no_part_is_refused(
    part: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample(checkpoint, tmp_path / "x", f"--part={part}") == 2
    assert f"--part {part!r} is no part; write 2/8" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_an_unknown_protocol_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample(checkpoint, tmp_path / "x", "--protocol", "official") == 2
    assert "did you mean 'official-" in capsys.readouterr().err


def test_an_approximate_run_carries_its_receipt(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x"
    options = ["--reuse-every", "2", "--guidance-every", "2"]
    assert sample(checkpoint, out, "--count", "5", *options) == 0
    assert "times as fast; over 16 seeds pixels differ by" in capsys.readouterr().out
    receipt = json.loads((out / "samples.json").read_text())["receipt"]
    assert receipt["pairs"] == 16
    assert receipt["rms"] > 0
    assert receipt["features"] == "digits-cnn"
    assert sample(checkpoint, out, "--count", "9", *options, "--processes", "2") == 0
    assert "times as fast" not in capsys.readouterr().out
    assert json.loads((out / "samples.json").read_text())["receipt"] == receipt
    assert sample(checkpoint, out, "--count", "9") == 2
    assert "was begun with guidance_every 2, not 1" in capsys.readouterr().err


def test_an_exact_run_carries_none(whole: Path) -> None:
    assert "receipt" not in json.loads((whole / "samples.json").read_text())
