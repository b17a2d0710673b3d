"""What a user may get wrong, and the one line that answers it.

Every case runs the real command inside a folder of prepared things, and must end with exit code 2,
exactly one line on stderr, nothing on stdout, and every file of the folder as it was. In an answer
`...` stands for any text.
"""

import io
import json
import os
import pickle
import re
import shlex
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffit.checkpoint import checkpoints, load, save_model
from diffit.cli import main
from diffit.config import write_yaml
from tiny import tiny_run

COMMANDS = {
    # words of the command line: the answer
    "smaple": "there is no command 'smaple'; did you mean 'sample'?",
    "--sample": "there is no command '--sample'; did you mean 'sample'?",
    "''": "there is no command ''; choose from ..., data, demo, ...",
    "data": "data needs one of: inspect, pack, index, encode, convert-latents",
    "data unpack x": "there is no command diffit data 'unpack'; did you mean 'pack'?",
    "data inspect": "data inspect: PATH must be given",
    "data pack photos": "data pack: OUT must be given",
    "info": "info: WHAT must be given",
    "info a b": "info: unrecognized options: b",
    "evaluate": "evaluate: SAMPLES must be given",
    "train": "train needs a configuration file or a preset as its first argument; ...",
    "sample": "sample needs a checkpoint or a run as its first argument",
    # --- training
    "train tiny-difit --out new": "there is no file and no preset 'tiny-difit'; did you mean "
    "'tiny-diffit'?",
    "train nowhere.yaml --out new": "nowhere.yaml does not exist; name a YAML file or a preset",
    "train photos --out new": "photos cannot be read: Is a directory",
    "train config.yaml": "train config.yaml: --out must be given",
    "train config.yaml --out": "train config.yaml: --out needs a value",
    "train config.yaml --out new --train.learning-rate 1": "train config.yaml: unrecognized "
    "options: --train.learning-rate, 1...",
    "train config.yaml --out new --train.lrr 1": "train config.yaml: unrecognized options: "
    "--train.lrr, 1; did you mean --train.lr?",
    "train config.yaml --out new --train.lr fast": "train config.yaml: --train.lr: 'fast' is no "
    "number",
    "train config.yaml --out new --train.lr nan": "train config.yaml: train.lr is nan; it must be "
    "a finite number",
    "train config.yaml --out new --train.lr": "train config.yaml: --train.lr needs a value",
    "train config.yaml --out new --train.images 0": "train config.yaml: train.images is 0; it must "
    "be greater than 0",
    "train config.yaml --out new --train.batch -8": "train config.yaml: train.batch is -8; it must "
    "be greater than 0",
    "train config.yaml --out new --train.batch 99999999999": "train config.yaml: train.batch is "
    "99999999999; it must be less than or equal to 1048576",
    "train config.yaml --out new --train.minutes 0": "train config.yaml: train.minutes 0.0 must be "
    "more than 0",
    "train config.yaml --out new --train.optimizer sgd": "train config.yaml: invalid choice 'sgd' "
    "for argument '--train.optimizer'; choose from adam, adamw",
    "train config.yaml --out new --train.init-from nowhere": "nowhere does not exist; name a "
    "checkpoint or the folder of a run",
    "train config.yaml --out new --train.init-from photos": "photos is no checkpoint, and no run "
    "that has written one",
    "train config.yaml --out new --device cuda:99": "--device cuda:99: ...",
    "train config.yaml --out new --device tpu": "--device tpu is unknown; choose auto, cpu, cuda "
    "or mps",
    "train config.yaml --out run": "--out run holds a run already; continue it with `diffit train "
    "--resume run` or name a new folder",
    "train config.yaml --out photos": "--out photos exists and is no run; name a new folder",
    "train config.yaml --out config.yaml": "--out config.yaml exists and is no run; name a new "
    "folder",
    "train config.yaml --out config.yaml/new": "--out config.yaml/new cannot be made: Not a "
    "directory; name another folder",
    "train --resume": "train: --resume needs the folder of a run",
    "train --resume nowhere": "--resume nowhere is no folder of a run; name one that `diffit "
    "train` made",
    "train --resume checkpoint": "--resume checkpoint is no folder of a run; name one that `diffit "
    "train` made",
    "train --resume run --out new": "train: --resume goes on in run; leave --out out",
    "train --resume run --model.network.heads 4": "model.network.heads cannot change when a run is "
    "resumed, since its weights depend on it; start another run with --train.init-from run",
    "train --resume edited": "model.network.widths cannot change when a run is resumed, since its "
    "weights depend on it; start another run with --train.init-from edited",
    "train --resume damaged-run --quiet": "no checkpoint of damaged-run is intact, so it cannot be "
    "resumed; start a new run",
    # --- sampling
    "sample nowhere": "nowhere does not exist; name a checkpoint or the folder of a run",
    "sample photos": "photos is no checkpoint, and no run that has written one",
    "sample model.pt": "model.pt is damaged, or no file of PyTorch; fetch it again",
    "sample checkpoint --count 0": "sample checkpoint: count is 0; it must be greater than 0",
    "sample checkpoint --count 2.5": "sample checkpoint: --count: '2.5' is no whole number",
    "sample checkpoint --count": "sample checkpoint: --count needs a value",
    "sample checkpoint --steps 0": "sample checkpoint: steps is 0; it must be greater than 0",
    "sample checkpoint --seed one": "sample checkpoint: --seed: 'one' is no whole number",
    "sample checkpoint --cout 3": "sample checkpoint: unrecognized options: --cout, 3; did you "
    "mean --count?",
    "sample checkpoint --processes 0": "sample checkpoint: processes is 0; it must be greater "
    "than 0",
    "sample checkpoint --threads 100000": "sample checkpoint: threads is 100000; it must be less "
    "than or equal to 1024",
    "sample checkpoint --sampler huen": "sample checkpoint: sampler 'huen' is unknown; did you "
    "mean 'heun'?",
    "sample checkpoint --sampler ddim --churn 1": "sample checkpoint: sampler 'ddim' has no option "
    "'churn'; it knows eta",
    "sample checkpoint --sampler ancestral-learned": "sampler 'ancestral-learned' needs a learned "
    "variance, which this model has not; take 'ancestral'",
    "sample checkpoint --levels respaced": "formulation 'edm' has no discrete levels to choose "
    "from; take the level list 'karras'",
    "sample checkpoint --sigma-min 5 --sigma-max 2": "levels from 2 down to 5: it must be 0 < low "
    "< high",
    "sample checkpoint --guidance -1": "sample checkpoint: guidance is -1.0; it must be greater "
    "than or equal to 0",
    "sample checkpoint --guidance-schedule cosine": "sample checkpoint: invalid choice 'cosine' "
    "for argument '--guidance-schedule'; did you mean 'power-cosine'?",
    "sample checkpoint --guidance-power 2": "sample checkpoint: guidance_power is for "
    "guidance_schedule 'power-cosine' alone",
    "sample checkpoint --labels 10": "--labels 10: this model has the classes 0 to 9",
    "sample checkpoint --labels 7-3": "--labels 7-3: this model has the classes 0 to 9",
    "sample checkpoint --labels 3-": "--labels '3-': there is no such class; did you mean '3'?",
    "sample checkpoint --labels cat": "--labels 'cat': there is no such class; choose from 0, 1, "
    "2, 3, 4, 5, 6, 7, 8, 9",
    "sample checkpoint --labels 1,,2": "--labels '': there is no such class; ...",
    f"sample checkpoint --labels {'9' * 5000}": "--labels '999...': there is no such class; ...",
    "sample unlabelled --labels 3": "--labels 3: this model was trained without classes; leave it "
    "out",
    "sample unlabelled --guidance 2": "guidance needs a model with classes, or a reference model "
    "to guide away from; leave it at 1",
    "sample checkpoint --weights ema-0.5": "checkpoint has no weights 'ema-0.5'; there are: "
    "ema-0.9, model",
    "sample checkpoint --weights ../model": "checkpoint has no weights '../model'; there are: ...",
    "sample checkpoint --reference nowhere": "nowhere does not exist; name a checkpoint or the "
    "folder of a run",
    "sample checkpoint --device mps": "--device mps: this PyTorch sees no Apple GPU; use --device "
    "cpu",
    "sample checkpoint --out config.yaml": "--out config.yaml cannot be made: Not a directory",
    "sample checkpoint --out run": "--out run holds other files (checkpoints); name a new folder",
    "sample checkpoint --out drawn --steps 2 --threads 1 --seed 5": "--out drawn was "
    "begun with seed 0, not 5; repeat that command or name a new folder",
    "sample checkpoint --out drawn --steps 2 --threads 1 --count 1": "--out drawn is "
    "for 2 images, more than 1; name a new folder for fewer",
    # --- damaged checkpoints
    "sample truncated": "truncated is damaged: ema-0.9.safetensors has ... bytes instead of ...",
    "sample flipped": "flipped is damaged: the checksum of ema-0.9.safetensors does not match",
    "sample incomplete": "incomplete is damaged: ema-0.9.safetensors is missing",
    "sample without-config": "without-config is damaged: config.yaml is missing",
    "sample edited-config": "edited-config is damaged: the checksum of config.yaml does not match",
    "sample edited-state": "edited-state is damaged: state.json is not as it was written",
    "sample broken-state": "broken-state is damaged: state.json cannot be read",
    "sample empty-state": "empty-state is no checkpoint: its state.json lists no files",
    "sample from-the-future": "from-the-future has format 99, but this version of diffit reads "
    "format 1; use the version that wrote it (9.0)",
    "sample other-widths": "other-widths: tensor '...' has shape (...), but its configuration "
    "wants (...)",
    "sample other-depth": "other-depth lacks tensor '...'; it belongs to another network",
    "sample damaged-run": "no checkpoint of damaged-run is intact: damaged-run/checkpoints/"
    "000000000032 is damaged: ema-0.9.safetensors has 1 bytes instead of ...",
    "info photos": "photos is no run and no checkpoint: it has no config.yaml",
    "info model.pt": "model.pt is no text file; name a YAML file",
    "info broken-state": "broken-state is damaged: state.json cannot be read",
    # --- data
    "data inspect nowhere": "there is nothing to read at 'nowhere'; name a folder, zip or npz",
    "data inspect builtin:digit": "there is no builtin:digit; did you mean 'digits'?",
    "data inspect photos/0/0.png": "photos/0/0.png is one image; name the folder that holds all of "
    "them",
    "data inspect empty": "empty holds no images (PNG, JPEG, WebP, BMP, GIF, TIFF or PPM); name a "
    "folder or zip that does",
    "data inspect texts": "texts holds no images (PNG, JPEG, WebP, BMP, GIF, TIFF or PPM), only 1 "
    "other files such as a.txt",
    "data inspect photos --sheet sheet.jpg": "--sheet sheet.jpg must end in .png",
    "data inspect photos --sheet nowhere/sheet.png": "nowhere/sheet.png cannot be written: No such "
    "file or directory",
    "data pack photos set.tar": "set.tar must end in .zip",
    "data pack photos good.zip": "good.zip exists already; name a new file or remove it",
    "data pack photos nowhere/set.zip": "there is no folder nowhere; make it first",
    "data pack photos set.zip --size 0": "data pack: size is 0; it must be greater than or equal "
    "to 1",
    "data pack photos set.zip --channels 4": "data pack: invalid choice '4' for argument "
    "'--channels'; choose from 1, 3",
    "data pack photos begun.zip": "begun.zip.partial/plan.json is damaged; remove "
    "begun.zip.partial",
    "data pack mixed set.zip": "mixed holds images both directly and in sub-folders (cat/b.png); "
    "separate them, or take them all without labels (data.labels: false)",
    "data pack looping set.zip": "looping/again is a link to a folder that holds it; remove it",
    "data pack escaping.zip set.zip": "escaping.zip holds the path '../a.png'; repack it",
    "data pack bomb.zip set.zip": "bomb.zip:a.png is larger than 256 MiB; scale it down first",
    "data pack cut.zip set.zip": "cut.zip is no zip archive, or a truncated one",
    "data pack text.npz set.zip": "text.npz is no npz file, or a damaged one",
    "data pack pickled.npz set.zip": "pickled.npz: arr_0 holds Python objects, which could run "
    "code; save numbers",
    "data pack floats.npz set.zip": "floats.npz: arr_0 is float32; images must be uint8, 0 to 255",
    "data pack first.npz set.zip": "first.npz: arr_0 is 3 x 3 x 8 x 8; it must be images x height "
    "x width x 1 or 3",
    "data pack unlike.npz set.zip": "unlike.npz: arr_1 is 2 int64; it must be one integer for each "
    "of the 3 images (or set data.labels: false)",
    "data pack bad-index set.zip": "bad-index/dataset.json is no valid JSON",
    "data pack lost-index set.zip": "lost-index/dataset.json names b.png, which is not there",
    "train config.yaml --out new --data.path nowhere": "there is nothing to read at 'nowhere'; "
    "name a folder, zip or npz",
    "train config.yaml --out new --data.path texts": "texts holds no images ...",
    "train config.yaml --out new --data.path huge": "huge/a.png has more than 89 million pixels; "
    "scale it down first",
    "train config.yaml --out new --data.path cut-image": "cut-image/a.png is damaged: ...",
    "train config.yaml --out new --data.path photos": "model.network.classes is 10, but photos has "
    "2 classes; set --model.network.classes 2",
    "train config.yaml --out new --data.path flat": "model.network.classes is 10, but flat has 0 "
    "classes; set --model.network.classes 0",
    "train config.yaml --out new --data.size 16": "the images are 16 x 16 pixels of 1 channel, but "
    "model.network takes 8 x 8 pixels of 1 channel; set data.size and data.channels, or the "
    "network's",
    "train config.yaml --out new --data.channels 3": "the images are 8 x 8 pixels of 3 channels, "
    "but model.network takes 8 x 8 pixels of 1 channel; ...",
    # --- evaluation
    "evaluate flat": "there is nothing to compare with; name real images with --reference, or a "
    "file for the statistics of SAMPLES with --write-statistics",
    "evaluate flat --reference builtin:digits": "the Inception weights are not on this machine; "
    "add --download to fetch ...",
    "evaluate flat --reference builtin:digits --weights model.pt": "model.pt cannot be read as "
    "weights: it is damaged, or holds more than tensors; fetch it again",
    "evaluate flat --reference builtin:digits --weights other.pth": "other.pth does not fit "
    "Inception-v3 of 2015 (...); take https://...",
    "evaluate flat --reference builtin:digits --weights nowhere.pth": "nowhere.pth does not exist; "
    "name a .safetensors or .pth file of weights",
    "evaluate flat --reference builtin:digits --features digits": "--features 'digits' is unknown; "
    "did you mean 'digits-cnn'?",
    "evaluate flat --reference builtin:digits --features digits-cnn --metrics fid": "evaluate: "
    "invalid choice 'fid' for argument '--metrics'; did you mean 'fd'?",
    "evaluate flat --reference builtin:digits --features digits-cnn --protocol adm": "--protocol "
    "adm is for inception; digits-cnn has one resizing",
    "evaluate flat --reference builtin:digits --features digits-cnn --keep 1": "evaluate: keep is "
    "1; it must be greater than or equal to 6",
    "evaluate flat --reference builtin:digits --features digits-cnn --draws 1": "evaluate: draws "
    "is 1; an interval needs 2 or more, and 0 leaves it out",
    "evaluate flat --reference builtin:digits --features digits-cnn --size 0": "evaluate: size is "
    "0; it must be greater than or equal to 1",
    "evaluate flat --reference builtin:digits --features digits-cnn --metrics coverage": "coverage "
    "(digits-cnn) cannot be measured: it needs 6 samples or more, and there are only 3",
    "evaluate flat --reference builtin:digits --features digits-cnn --metrics accuracy": "accuracy "
    "(digits-cnn) cannot be measured: the samples have no labels; draw them with labels or put "
    "them into class folders",
    "evaluate flat --reference builtin:patches --features digits-cnn": "the samples are 8 x 8 with "
    "1 channel, the reference is 32 x 32 with 3 channels; bring the reference to the samples' with "
    "--size and --channels",
    "evaluate flat --reference builtin:digits --features digits-cnn --out config.yaml": "--out "
    "config.yaml exists already; name a new file",
    "evaluate flat --reference builtin:digits --features digits-cnn --out nowhere/p.json": "--out "
    "nowhere/p.json: there is no folder nowhere; make it first",
    "evaluate flat --features digits-cnn --write-statistics statistics.txt": "--write-statistics "
    "statistics.txt must end in .npz",
    "evaluate flat --reference nan.npz --features digits-cnn": "nan.npz: mu and sigma hold values "
    "that are not finite; make them again",
    "evaluate flat --reference absurd.npz --features digits-cnn": "absurd.npz: mu and sigma hold "
    "values above 1e+30; make them again",
    "evaluate flat --reference four.npz --features digits-cnn": "four.npz holds statistics of 4 "
    "dimensions, digits-cnn gives 64; use statistics of the same features, or images as the "
    "reference",
    "evaluate flat --reference lopsided.npz --features digits-cnn": "lopsided.npz: sigma is not "
    "symmetric, so it is no covariance",
    "evaluate flat --reference statistics.pkl --features digits-cnn": "statistics.pkl is a pickle, "
    "which can run code when read; open it with the program that made it and save mu and sigma "
    "with numpy.savez",
    "demo --minutes 0": "demo: minutes is 0.0; it must be greater than 0",
    "demo --out config.yaml": "--out config.yaml is a file; name a new folder",
    "demo --out photos": "--out photos holds other files; name a new folder",
}

SETTINGS = {
    # one line of a good configuration, what it became: the answer
    ("heads: 2", "heds: 2"): "unknown setting 'model.network.heds'; did you mean 'heads'?",
    ("train:", "trian:"): "unknown setting 'trian'; did you mean 'train'?",
    ("heads: 2", "heads: two"): "model.network.heads is 'two'; it must be a valid integer; ...",
    ("heads: 2", "heads: yes"): "model.network: heads is true; it must be a number",
    ("heads: 2", "heads: [2]"): "model.network.heads is [2]; it must be a valid integer",
    ("heads: 2", "heads: 2.5"): "model.network.heads is 2.5; it must be a valid integer, got a "
    "number with a fractional part",
    ("heads: 2", "heads: 2\n    heads: 4"): None,  # answered for the whole file, see below
    ("heads: 2", "heads: 1" + "0" * 99): "model.network.heads is 1000...; it must be less than or "
    "equal to 16384",
    ("heads: 2", "heads: 3"): "model.network: widths (16, 16) must be multiples of heads 3",
    ("size: 8", "size: 9"): "model.network: size 9 is no multiple of 2, as the 2 levels of widths "
    "need; choose one, or fewer levels",
    ("window: 4", "window: 3"): "model.network: window 3 does not divide the side 8 of level 0; "
    "choose a divisor of 8",
    ("mlp_ratio: 2.0", "mlp_ratio: 0.001"): "model.network: mlp_ratio 0.001 leaves width 16 no "
    "hidden unit; raise it",
    ("name: diffit", "name: difit"): "model.network.name 'difit' is unknown; did you mean "
    "'diffit'?",
    ("name: edm", "name: emd"): "model.formulation.name 'emd' is unknown; did you mean 'edm'?",
    ("sampler: heun", "sampler: huen"): "sampling: sampler 'huen' is unknown; did you mean 'heun'?",
    ("eta: null", "eta: 0.5"): "sampling: sampler 'heun' has no option 'eta'; it knows churn, "
    "churn_min, churn_max, churn_noise",
    ("lr: 0.001", "lr: -1"): "train.lr is -1; it must be greater than 0",
    ("lr: 0.001", "lr: .nan"): "train.lr is nan; it must be a finite number",
    ("lr: 0.001", "lr: 1.0e+400"): "train.lr is inf; it must be a finite number",
    ("- 0.999", "- 1.5"): "train.betas (0.9, 1.5) must lie in 0 <= beta < 1",
    ("micro_batch: 8", "micro_batch: 32"): "train.micro_batch 32 is more than train.batch 16",
    ("sigma_min: 0.002", "sigma_min: 200"): "model.formulation: sigma_min (200) must be below "
    "sigma_max (80)",
    ("class_names: []", "class_names: [a, b]"): "model.class_names has 2 names, but "
    "model.network.classes is 10",
}

FILES = {
    # content of a configuration file: the answer
    b"": "odd.yaml: setting 'model' is missing; setting 'data' is missing",
    b"- model\n- data\n": "odd.yaml must hold `name: value` lines, not a list",
    b"\x80\x81\xff": "odd.yaml is no text file; name a YAML file",
    b"model:\n  network: [1,\ndata: }\n": "odd.yaml is no valid YAML, see line 3",
    b"model:\n\tnetwork: 1\n": "odd.yaml is no valid YAML, see line 2",
    b"model: 3\ndata: {path: x}\n": "odd.yaml: model is 3; it must hold `name: value` lines",
    b"data: {path: x}\nmodel: !!python/object/apply:os.system ['touch new']\n": "odd.yaml is no "
    "valid YAML, see line 2",
    b"a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (i, i, b", ".join([b"*%c" % (i - 1)] * 10)) for i in b"bcdefghi")
    + b"model: *i\n": "odd.yaml stands for too many values; write it without aliases",
    b"[" * 3000: "odd.yaml is no valid YAML",
    b"data: {path: x}\nmodel: {network: {name: dit}}\ndata: {}\n": "odd.yaml sets 'data' twice, "
    "see line 3",
    b"#" * (1 << 20) + b"\n": "odd.yaml is larger than 1 MiB; this is not a configuration file",
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the commands above name."""
    root = tmp_path_factory.mktemp("bad")
    write_yaml(root / "config.yaml", tiny_run(images=32, ema={"constant": [0.9]}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main(shlex.split("train config.yaml --out run --device cpu --quiet")) == 0
        (checkpoint,) = checkpoints(Path("run"))
        copy(checkpoint, Path("checkpoint"))
        draw = "sample checkpoint --out drawn --count 2 --steps 2 --threads 1 --device cpu"
        assert main(shlex.split(draw)) == 0
        prepare_checkpoints()
        prepare_runs()
        prepare_images()
        prepare_arrays()
    return root


def copy(source: Path, target: Path, **files: bytes | None) -> Path:
    """A copy of a folder; keywords replace the content of files, or remove them."""
    for path in source.rglob("*"):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            place.write_bytes(path.read_bytes())
    for name, content in files.items():
        place = target / name.replace("__", ".")
        place.unlink() if content is None else place.write_bytes(content)
    return target


def prepare_checkpoints() -> None:
    good = Path("checkpoint")
    state, config = (good / "state.json").read_bytes(), (good / "config.yaml").read_bytes()
    weights = (good / "ema-0.9.safetensors").read_bytes()
    for name, content in {
        "truncated": weights[:-7],
        "flipped": weights[:-50] + bytes([weights[-50] ^ 4]) + weights[-49:],
        "incomplete": None,
    }.items():
        copy(good, Path(name), **{"ema-0.9__safetensors": content})
    copy(good, Path("without-config"), config__yaml=None)
    copy(good, Path("edited-config"), config__yaml=config.replace(b"heads: 2", b"heads: 4"))
    copy(good, Path("edited-state"), state__json=state.replace(b'"images": 32', b'"images": 99'))
    copy(good, Path("broken-state"), state__json=state[:50])
    copy(good, Path("empty-state"), state__json=b"{}")
    tensors = {"model": load(good).network.state_dict()}
    save_model(Path("from-the-future"), tiny_run(), tensors, {"format": 99, "diffit": "9.0"})
    save_model(Path("other-widths"), tiny_run(network={"time_width": 64}), tensors, {})
    save_model(Path("other-depth"), tiny_run(network={"blocks": [1, 2]}), tensors, {})
    unlabelled = tiny_run(network={"classes": 0})
    rest = {k: t for k, t in tensors["model"].items() if not k.startswith("label.")}
    save_model(Path("unlabelled"), unlabelled, {"model": rest}, {"images": 1})
    Path("model.pt").write_bytes(pickle.dumps({"weights": [1, 2, 3]}))


def prepare_runs() -> None:
    name = checkpoints(Path("run"))[0].name
    damaged = copy(Path("run"), Path("damaged-run"))
    (damaged / "checkpoints" / name / "ema-0.9.safetensors").write_bytes(b"x")
    config = Path("run/config.yaml").read_bytes().replace(b"- 16\n    - 16", b"- 32\n    - 32")
    copy(Path("run"), Path("edited"), config__yaml=config)


def png(**options: object) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "PNG", **options)
    return buffer.getvalue()


def put(**files: bytes) -> None:
    """Write files; `__` in a keyword is a slash, the ending .png where there is none."""
    for name, content in files.items():
        path = Path(name.replace("__", "/") + ("" if "." in name else ".png"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def prepare_images() -> None:
    Path("empty").mkdir()
    put(**{"photos__0__0": png(), "photos__1__0": png(), "texts__a.txt": b"text"})
    put(**{f"flat__{i}": png() for i in range(3)}, mixed__a=png(), mixed__cat__b=png())
    put(**{"looping__0__a": png(), "cut-image__a": png()[:60], "huge__a": bomb()})
    Path("looping/again").symlink_to(Path("looping").absolute())
    put(**{"bad-index__a": png(), "bad-index__dataset.json": b'{"labels": ['})
    index = json.dumps({"labels": [["a.png", 0], ["b.png", 1]]}).encode()
    put(**{"lost-index__a": png(), "lost-index__dataset.json": index})
    put(**{"begun.zip.partial__plan.json": b"[1, 2]"})
    for name, member in {"good": "a.png", "escaping": "../a.png", "bomb": "a.png"}.items():
        with zipfile.ZipFile(f"{name}.zip", "w") as archive:
            archive.writestr(member, png())
    data = bytearray(Path("bomb.zip").read_bytes())
    place = data.index(b"PK\x01\x02") + 24  # the announced size in the central directory
    data[place : place + 4] = struct.pack("<I", 1 << 31)
    put(**{"bomb.zip": bytes(data), "cut.zip": Path("good.zip").read_bytes()[:-30]})


def bomb() -> bytes:
    """A PNG that announces 3.6 thousand million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def prepare_arrays() -> None:
    images, unit = np.zeros((3, 8, 8, 3), np.uint8), np.eye(4)
    np.savez("pickled.npz", arr_0=np.array([{"run": "code"}], dtype=object))
    np.savez("floats.npz", arr_0=images.astype(np.float32))
    np.savez("first.npz", arr_0=images.transpose(0, 3, 1, 2))
    np.savez("unlike.npz", arr_0=images, arr_1=np.zeros(2, np.int64))
    np.savez("nan.npz", mu=np.full(4, np.nan), sigma=unit)
    np.savez("absurd.npz", mu=np.full(4, 1e200), sigma=unit)
    np.savez("four.npz", mu=np.zeros(4), sigma=unit)
    np.savez("lopsided.npz", mu=np.zeros(4), sigma=np.triu(np.ones((4, 4))))
    put(**{"text.npz": b"this is text", "statistics.pkl": pickle.dumps({"mu": [0.0]})})
    torch.save({"weight": torch.zeros(3)}, "other.pth")


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file below a folder: what a refusal must leave alone."""
    files = {path: path.lstat() for path in folder.rglob("*") if not path.is_dir()}
    return {str(path): (status.st_size, status.st_mtime_ns) for path, status in files.items()}


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command answers; the folder it runs in must stay as it is."""
    before = state_of(Path.cwd())
    assert main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("diffit: ")
    assert shown.err.count("\n") == 1
    assert state_of(Path.cwd()) == before
    return shown.err.strip().removeprefix("diffit: ")


def fits(answer: str, expected: str) -> bool:
    return bool(re.fullmatch(re.escape(expected).replace(r"\.\.\.", ".*"), answer))


@pytest.fixture(autouse=True)
def _here(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(prepared)
    monkeypatch.setenv("DIFFIT_CACHE", str(prepared / "cache"))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[:80])
def test_commands(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(command)
    if words[:1] == ["sample"] and len(words) > 1 and "--out" not in words:
        words += ["--out", "new"]
    answer = refusal(words, capsys)
    assert fits(answer, COMMANDS[command]), answer


@pytest.mark.parametrize("change", SETTINGS, ids=" -> ".join)
def test_settings(
    change: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = Path("config.yaml").read_text()
    assert change[0] in good
    odd = tmp_path / "odd.yaml"
    odd.write_text(good.replace(*change, 1))
    answer = refusal(["train", str(odd), "--out", "new"], capsys)
    expected = SETTINGS[change]
    if expected is None:
        assert fits(answer, f"{odd} sets 'heads' twice, see line ...")
    else:
        assert fits(answer, f"{odd}: {expected}"), answer


@pytest.mark.parametrize("content", FILES, ids=lambda content: repr(content[:30]))
def test_configuration_files(
    content: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("odd.yaml").write_bytes(content)
    answer = refusal(["train", "odd.yaml", "--out", "new"], capsys)
    assert fits(answer, FILES[content]), answer


@pytest.mark.parametrize(
    "command",
    ["smaple", "train config.yaml --out new --train.lr nan", "sample flipped --out new"],
)
def test_no_traceback_from_the_program_itself(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "diffit", *shlex.split(command)], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert fits(done.stderr, f"diffit: {COMMANDS.get(command.removesuffix(' --out new'), '...')}\n")
    assert done.stderr.count("\n") == 1


def test_a_name_that_is_no_text_is_quoted_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "two\\nlines" in refusal(["sample", "two\nlines"], capsys)
    odd = os.fsdecode(b"b\xffd")  # Linux allows any bytes
    command = [sys.executable, "-m", "diffit", "data", "inspect", odd]
    done = subprocess.run(command, capture_output=True, text=True)
    answer = "diffit: there is nothing to read at 'b\\udcffd'; name a folder, zip or npz\n"
    assert (done.returncode, done.stderr) == (2, answer)


@pytest.mark.parametrize("name", ["metrics.jsonl", "environment.json"])
def test_damaged_notes_of_a_run_are_named(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy(Path("run"), tmp_path / "run")
    (run / name).write_bytes(b"\xff{\n")
    assert main(["train", "--resume", str(run), "--train.images", "64", "--quiet"]) == 2
    assert fits(capsys.readouterr().err, f"diffit: {run / name} is damaged; remove it...\n")
    (run / name).unlink()
    assert main(["train", "--resume", str(run), "--train.images", "64", "--quiet"]) == 0


def test_no_memory_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exhaust(*_: object) -> None:
        torch.empty(1 << 60)

    monkeypatch.setattr("diffit.commands.info.run", exhaust)
    answer = "there is not enough memory; ask for fewer or smaller images at once"
    assert refusal(["info", "run"], capsys) == answer


def test_refused_settings_of_a_sampler_leave_the_folder_free(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = shlex.split("sample checkpoint --count 2 --steps 2 --threads 1 --device cpu --out")
    assert main([*draw, str(tmp_path / "new"), "--guidance", "1e300"]) == 2
    assert "values that are not finite; try other settings" in capsys.readouterr().err
    assert main([*draw, str(tmp_path / "new"), "--guidance", "2"]) == 0
    assert len(list((tmp_path / "new" / "images").glob("*.png"))) == 2
