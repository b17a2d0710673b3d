"""Random damage and random words: the program answers each with success or with one refusal.

Checkpoints, runs, data sets, statistics and configurations are damaged at random, command lines
are made of random words, and the command must end in time, with exit code 0 or 2 and never with a
traceback. Try number n of a kind is the same on every machine.

60 tries of each kind by default, 2000 with DIFFIT_SOAK=full. With DIFFIT_FIGURES=FOLDER the figures
are written to `FOLDER/fuzz.json`.
"""

import contextlib
import io
import json
import os
import platform
import random
import shlex
import shutil
import signal
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffit import sealed
from diffit.checkpoint import checkpoints
from diffit.cli import main
from diffit.config import write_yaml
from tiny import tiny_run

pytestmark = pytest.mark.soak

TRIES = 2000 if os.environ.get("DIFFIT_SOAK") == "full" else 60
PATIENCE_S = 60

DRAW = "--out new --count 2 --steps 2 --unit 2 --threads 1 --device cpu"
MEASURE = "--features digits-cnn --draws 3 --device cpu"
VALUES = [
    "0", "1", "-1", "2", "3.5", "nan", "inf", "-inf", "1e999", "1e-320", "9" * 25, "9" * 5000, "",
    " ", "none", "None", "true", "no", "all", "heun", "ddim", "a,b", "0-3", "--", "-", "../..",
    "/dev/null", "/dev/zero/x", "config.yaml", "checkpoint", "run", "folder", "set.zip", "set.npz",
    "builtin:digits", "builtin:", "[1, 2]", "{}", "*", "~", "~nobody/x", "日本", "é\n", "\x1b[31m",
    "a" * 300, "cpu", "cuda:99", "new", "new/x", ".png", "karras", "interval", "1 2 3",
]  # fmt: skip
WORDS = {
    "sample checkpoint": (
        "--count --labels --seed --weights --reference --device --processes --threads --npz --zip "
        "--trajectory --sampler --steps --levels --sigma-min --sigma-max --rho --shift --sections "
        "--guidance --guidance-schedule --guidance-power --guidance-low --guidance-high --eta "
        "--guidance-channels --variance --churn --churn-min --churn-max --churn-noise --order "
        "--variant --corrections --snr --clip --precision --unit --out",
        DRAW,
    ),
    "train config.yaml": (
        "--train.lr --train.seed --train.batch --train.micro-batch --train.minutes --train.betas "
        "--train.ema.constant --train.ema.power --train.clip --train.decay --train.warmup "
        "--train.loss-weight --train.loss-gamma --train.precision --train.label-dropout "
        "--train.init-from --data.path --data.size --data.channels --data.labels --data.augment "
        "--data.background --data.memory --model.network.heads --model.network.widths "
        "--model.network.window --model.network.dropout --model.formulation.sigma-data "
        "--model.formulation.mean --sampling.sampler --sampling.steps --device --resume --quiet",
        "--out new --train.images 16 --train.batch 8 --train.micro-batch 8 --device cpu",
    ),
    "evaluate folder": (
        "--reference --features --protocol --weights --size --channels --metrics --keep "
        "--kid-subset --batch --seed --out --write-statistics --layout --device",
        MEASURE,
    ),
    "data inspect folder": ("--sheet --json", ""),
    "data pack folder new.zip": ("--size --channels --labels --background --skip-unreadable", ""),
    "info run": ("--zip", ""),
    "": ("sample train evaluate data inspect pack info demo --help -h --version help", "--nothing"),
}
"""Beginning of a command line: options to try, and what keeps the work small."""


class Hang(BaseException):
    """A command has not ended in time; no `except Exception` may swallow it."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One good thing of each kind."""
    root = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        write_yaml(Path("config.yaml"), tiny_run(images=32, ema={"constant": [0.9]}))
        assert main(shlex.split("train config.yaml --out run --device cpu --quiet")) == 0
        shutil.copytree(checkpoints(Path("run"))[-1], "checkpoint")
        dice = np.random.default_rng(0)
        images = dice.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
        for i, image in enumerate(images):
            place = Path("folder", str(i % 2), f"{i}.{'jpg' if i < 4 else 'png'}")
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place)
        assert main(shlex.split("data pack folder set.zip")) == 0
        np.savez("set.npz", arr_0=images, arr_1=np.arange(12) % 3)
        np.savez_compressed("packed.npz", images=images)
        assert main(shlex.split(f"evaluate folder --write-statistics s.npz {MEASURE}")) == 0
    return root


# --- damage


def damaged(data: bytes, dice: random.Random) -> bytes:
    """Bytes with one to four random changes."""
    for _ in range(dice.randint(1, 4)):
        place, length = dice.randrange(len(data) + 1), dice.choice([1, 2, 7, 64])
        head, tail = data[:place], data[place + length :]
        match dice.randrange(6):
            case 0:
                data = head  # truncated
            case 1:
                data = head + tail  # a piece lost
            case 2:
                data = head + dice.randbytes(length) + data[place:]  # a piece too much
            case 3:
                data = head + bytes(length) + tail
            case 4 if place < len(data):
                flipped = data[place] ^ (1 << dice.randrange(8))
                data = head + bytes([flipped]) + data[place + 1 :]
            case _:
                data = head + dice.randbytes(length) + tail
    return data


def damage_one_file(folder: Path, dice: random.Random) -> Path:
    """Damage, remove, empty or replace one file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = dice.choice(files)
    match dice.randrange(10):
        case 0:
            path.unlink()
        case 1:
            path.write_bytes(b"")
        case 2:
            path.write_bytes(dice.choice(files).read_bytes())
        case _:
            path.write_bytes(damaged(path.read_bytes(), dice))
    return path


def seal_again(folder: Path) -> None:
    """Make the checksums of a damaged checkpoint match, as only malice would."""
    with contextlib.suppress(OSError, ValueError):
        state = json.loads((folder / sealed.STATE).read_text(encoding="utf-8"))
        if isinstance(state, dict):
            state["files"] = {
                file.name: {"bytes": file.stat().st_size, "blake2b": sealed.checksum(file)}
                for file in folder.iterdir()
                if file.name != sealed.STATE
            }
            state["blake2b"] = sealed._digest(state)
            (folder / sealed.STATE).write_text(json.dumps(state), encoding="utf-8")


def zip_again(path: Path, dice: random.Random) -> None:
    """Damage a member of an archive whose own checksums match, as only malice would."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = dice.choice([*members])
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, damaged(content, dice) if member == name else content)


# --- kinds of tries: each damages something in the working folder and returns a command line


def try_checkpoint(dice: random.Random) -> str:
    damage_one_file(Path("checkpoint"), dice)
    if dice.random() < 0.5:
        seal_again(Path("checkpoint"))
    return dice.choice([f"sample checkpoint {DRAW}", "info checkpoint"])


def try_run(dice: random.Random) -> str:
    damage_one_file(Path("run"), dice)
    resume = "train --resume run --train.images 48 --device cpu --quiet"
    return dice.choice([resume, resume, f"sample run {DRAW}", "info run"])


def try_data(dice: random.Random) -> str:
    name = dice.choice(["folder", "set.zip", "set.npz", "packed.npz"])
    path = Path(name)
    if name == "folder":
        damage_one_file(path, dice)
    elif dice.random() < 0.5:
        zip_again(path, dice)
    else:
        path.write_bytes(damaged(path.read_bytes(), dice))
    pack = f"data pack {name} new.zip" + dice.choice(["", " --size 4", " --skip-unreadable"])
    return dice.choice([pack, f"data inspect {name} --sheet new.png"])


def try_statistics(dice: random.Random) -> str:
    path = Path("s.npz")
    if dice.random() < 0.7:
        zip_again(path, dice)
    else:
        path.write_bytes(damaged(path.read_bytes(), dice))
    return f"evaluate folder --reference s.npz {MEASURE}"


def try_settings(dice: random.Random) -> str:
    path = Path("config.yaml")
    text = path.read_text(encoding="utf-8")
    for _ in range(dice.choice([1, 1, 1, 2, 3])):
        lines = text.split("\n")
        place = dice.randrange(len(lines))
        name, colon, _value = lines[place].partition(":")
        match dice.randrange(6):
            case 0:
                del lines[place]
            case 1:
                lines.insert(place, dice.choice(lines))
            case 2:
                lines[place] = "  " + lines[place]
            case _ if colon:
                odd = dice.choice([*VALUES, "[]", "[[]]", "&a [*a]", "*a", "!!binary aaaa", "|"])
                lines[place] = f"{name}: {odd}"
        text = "\n".join(lines)
    data = text.encode()
    path.write_bytes(damaged(data, dice) if dice.random() < 0.2 else data)
    return dice.choice(
        ["info config.yaml", "info config.yaml", "train config.yaml --out new --data.path nowhere"]
    )


def try_words(dice: random.Random) -> str:
    begin = dice.choice([*WORDS])
    options, small = WORDS[begin]
    words = []
    for _ in range(dice.choice([1, 1, 1, 2, 3])):
        words.append(dice.choice(options.split()))
        words += [shlex.quote(dice.choice(VALUES)) for _ in range(dice.choice([0, 1, 1, 1, 2]))]
    return " ".join([begin, *words, small])


KINDS: dict[str, Callable[[random.Random], str]] = {
    "damaged checkpoints": try_checkpoint,
    "damaged runs": try_run,
    "damaged data": try_data,
    "damaged statistics": try_statistics,
    "odd configurations": try_settings,
    "random words": try_words,
}


# --- the trial


@contextlib.contextmanager
def working_folder(prepared: Path, parent: Path) -> Iterator[None]:
    """A fresh copy of all good things as the current folder."""
    work = parent / "work"
    shutil.copytree(prepared, work)
    with contextlib.chdir(work):
        yield
    shutil.rmtree(work)


def outcome(command: str) -> str:
    """`accepted` or `refused`; anything else says what went wrong."""
    out, err = io.StringIO(), io.StringIO()
    signal.alarm(PATIENCE_S)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code: object = main(shlex.split(command))
    except SystemExit as end:
        code = end.code or 0
    except Hang:
        return "hangs"
    except BaseException:
        return traceback.format_exc()
    finally:
        signal.alarm(0)
    if code == 0:
        return "accepted"
    lines = err.getvalue().splitlines()
    if code == 2 and lines and all(line.startswith("diffit: ") for line in lines):
        return "refused"
    return f"exit code {code}: {err.getvalue()}"


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs an alarm to notice what hangs")
def test_nothing_ends_in_a_traceback(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ring(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    monkeypatch.setenv("DIFFIT_CACHE", str(tmp_path / "cache"))
    began = time.monotonic()
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    failures = []
    try:
        for kind, make in KINDS.items():
            for number in range(TRIES):
                with working_folder(prepared, tmp_path):
                    command = make(random.Random(f"{kind} {number}"))
                    found = outcome(command)
                known = found in ("accepted", "refused")
                counts[kind][found if known else "failed"] += 1
                if not known:
                    failures.append(f"{kind} {number}: {command}\n{found[-1500:]}")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not failures, f"{len(failures)} failures\n\n" + "\n\n".join(failures[:5])
    write_figures(counts, time.monotonic() - began)


def write_figures(counts: dict[str, Counter[str]], seconds: float) -> None:
    folder = os.environ.get("DIFFIT_FIGURES")
    if not folder:
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    content = {
        "what": "random damage to checkpoints, runs, data, statistics and configurations, and "
        "random command lines; each ended with success or a refusal in plain sentences, without "
        "a traceback, a hang or another exit code",
        "tries": sum(sum(found.values()) for found in counts.values()),
        "outcomes": {kind: dict(sorted(found.items())) for kind, found in counts.items()},
        "seconds": round(seconds, 1),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.platform(),
    }
    text = json.dumps(content, indent=1) + "\n"
    (Path(folder) / "fuzz.json").write_text(text, encoding="utf-8")
