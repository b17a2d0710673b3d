"""What a user of `diffit explain` may get wrong, and the one line that answers it."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffit.checkpoint import save_model
from diffit.cli import main
from diffit.model import build_model
from explained import write_classifier, write_denoiser
from tiny import tiny_run

SET = "builtin:digits-test"
CLASSIFIER = "--classifier vit --device cpu"
PARTS = f"{CLASSIFIER} --denoiser denoiser"
NOISE = "--sigma 0.25 --units 01"
COMMANDS = {
    "explain": "explain needs one of: demo, train-classifier, predict, certify, map, region, ...",
    "explain preddict": "there is no command diffit explain 'preddict'; did you mean 'predict'?",
    # --- units and noise
    f"explain predict {SET}:0 {PARTS} --sigma 0.25": "explain predict: --units must be given",
    f"explain predict {SET}:0 {PARTS} --units 01": "explain predict: --sigma must be given",
    f"explain predict {SET}:0 {PARTS} --sigma 0.25 --units 255": "explain predict: invalid choice "
    "'255' for argument '--units'; choose from 01, pm1",
    f"explain predict {SET}:0 {PARTS} --sigma 0 --units 01": "explain predict: sigma is 0.0; it "
    "must be greater than 0",
    f"explain predict {SET}:0 {PARTS} --sigma 99 --units 01": "the denoiser works from noise 0.002 "
    "to 80, for pixels in [-1, 1], and was asked for 198 (for pixels in [0, 1]: 99); choose a "
    "sigma inside",
    f"explain predict {SET}:0 {PARTS} --sigma nan --units 01": "...sigma is nan...",
    f"explain predict {SET}:0 {CLASSIFIER} {NOISE} --steps 3": "--steps are those of a denoiser; "
    "name one with --denoiser",
    # --- images
    f"explain predict {PARTS} {NOISE}": "explain predict: images: name an image "
    "file, or an image of a set such as builtin:digits-test:3",
    f"explain predict nowhere.png {PARTS} {NOISE}": "nowhere.png cannot be read: No such file or "
    "directory",
    f"explain predict text.png {PARTS} {NOISE}": "text.png is no image that can be read (...)",
    f"explain predict cut.png {PARTS} {NOISE}": "cut.png is damaged: ...",
    f"explain predict {SET} {PARTS} {NOISE}": f"{SET} is a set of images; name one of them, such "
    f"as {SET}:0",
    f"explain predict {SET}:999 {PARTS} {NOISE}": f"{SET}:999: {SET} has 299 images, the last is "
    "number 298",
    f"explain predict wide.png {PARTS} {NOISE}": "the denoiser works on images of 8 x 8 and these "
    "are 8 x 12; add --size 8: noise and radii belong to that size",
    f"explain predict wide.png {SET}:0 {PARTS} {NOISE}": "the images differ in size; add --size to "
    "crop and resize all of them",
    # --- classifier and denoiser
    f"explain predict {SET}:0 --classifier nowhere --device cpu {NOISE}": "there is "
    "nothing at 'nowhere'; name a folder of `diffit explain train-classifier`, ...",
    f"explain predict {SET}:0 --classifier empty --device cpu {NOISE}": "empty ...",
    f"explain predict {SET}:0 --classifier cut-vit --device cpu {NOISE}": "cut-vit...",
    f"explain predict {SET}:0 {CLASSIFIER} --denoiser nowhere {NOISE}": "nowhere does not exist; "
    "name a checkpoint or the folder of a run",
    f"explain predict {SET}:0 --classifier colour-vit --device cpu --denoiser denoiser {NOISE}":
    "the denoiser works on images of 1 channels and colour-vit looks at 3; use two that were made "
    "for the same images",
    f"explain predict wide.png --classifier colour-vit --device cpu --denoiser denoiser {NOISE}":
    "the denoiser works on images of 1 channels and colour-vit looks at 3; use two that were made "
    "for the same images",
    f"explain predict {SET}:0 {CLASSIFIER} --denoiser labelled {NOISE}": "this denoiser must be "
    "told the class of every image, ...",
    f"explain predict {SET}:0 {PARTS} {NOISE} --device tpu": "--device tpu is unknown; choose "
    "auto, cpu, cuda or mps",
    f"explain predict {SET}:0 {CLASSIFIER} --denoiser vit {NOISE}": "--denoiser vit is a "
    "classifier; name a model of images",
    f"explain predict {SET}:0 {PARTS} {NOISE} --out nowhere/p.json": "--out nowhere/p.json: there "
    "is no folder nowhere; make it first",
    f"explain predict {SET}:0 {PARTS} {NOISE} --out photos": "--out photos is a folder; name a "
    "file",
    # --- certify
    f"explain certify {PARTS} {NOISE} --out new": "explain certify: DATA must be given",
    f"explain certify {SET} {PARTS} {NOISE}": "explain certify: --out must be given",
    f"explain certify photos {PARTS} {NOISE} --out new": "photos has no classes, which are needed "
    "to tell right from wrong; `diffit explain predict` needs none",
    f"explain certify cats {PARTS} {NOISE} --out new": "class 'cat' of cats is none of the "
    "classifier's (choose from 0, 1, ...); if they are the same in the same order, add --match "
    "order",
    f"explain certify cats {PARTS} {NOISE} --out new --match order": "cats has 2 classes, the "
    "classifier 10; by order they must be as many",
    f"explain certify {SET} {PARTS} {NOISE} --out photos": "--out photos holds other files (...); "
    "name a new folder",
    f"explain certify {SET} {PARTS} {NOISE} --out text.png": "--out text.png cannot be made: File "
    "exists; name another folder",
    f"explain certify {SET} {PARTS} --sigma 0.5 --units 01 --out begun": "--out begun was begun "
    "with sigma {'01': 0.25, 'pm1': 0.5}, now it is {'01': 0.5, 'pm1': 1.0}; repeat the first "
    "command or name a new folder",
    f"explain certify {SET} {CLASSIFIER} {NOISE} --out begun --n 16 --n0 8": "--out begun was "
    "begun with another denoiser; name a new folder",
    f"explain certify {SET} {PARTS} {NOISE} --out broken": "broken/certificates.json is damaged; "
    "name a new folder with --out",
    f"explain certify {SET} {PARTS} {NOISE} --out new --n 0": "explain certify: n is 0; it must be "
    "greater than 0",
    f"explain certify {SET} {PARTS} {NOISE} --out new --alpha 0.5": "explain certify: alpha is "
    "0.5; it must be less than 0.5",
    f"explain certify {SET} {PARTS} {NOISE} --out begun --n 16 --n0 8 --sampler ddim": "--out "
    "begun was begun with sampler heun, now it is ddim; ...",
    f"explain certify {SET} {PARTS} {NOISE} --out begun --n 16 --n0 8 --match order": "--out begun "
    "was begun with match name, now it is order; ...",
    f"explain certify {SET} {PARTS} {NOISE} --out edited": "edited/certificates.json is damaged; "
    "name a new folder with --out",
    # --- maps
    f"explain map {SET}:0 {PARTS} {NOISE} --out map.jpg": "--out map.jpg must end in .png",
    f"explain map {SET}:0 {PARTS} {NOISE} --out m.png --method rolout": "there is no explanation "
    "method 'rolout'; did you mean 'rollout'?",
    f"explain map {SET}:0 {PARTS} {NOISE} --out m.png --target cat": "--target 'cat' is no class "
    "of the classifier (choose from 0, 1, ...), and neither smoothed nor each",
    f"explain map {SET}:0 {PARTS} {NOISE} --out m.png --k 16": "--k 16 must be less than the 16 "
    "entries of a map",
    f"explain region {SET}:0 {PARTS} {NOISE} --beta 0": "explain region: beta is 0.0; it must be "
    "greater than 0",
    f"explain region {SET}:0 {PARTS} {NOISE} --order 1": "explain region: order is 1.0; it must be "
    "greater than 1",
    f"explain region {SET}:0 {PARTS} {NOISE} --target smoothed --alpha 0.7": "explain region: "
    "alpha is 0.7; it must be less than 0.5",
    f"explain region {SET}:0 {PARTS} {NOISE} --out nowhere/r.json": "--out nowhere/r.json: there "
    "is no folder nowhere; make it first",
    f"explain map {SET}:0 {PARTS} {NOISE} --out nowhere/m.png": "--out nowhere/m.png: there is no "
    "folder nowhere; make it first",
    f"explain map {f'{SET}:0 ' * 101}{PARTS} {NOISE} --out m.png": "one picture shows 100 images "
    "at most; these are 101",
    # --- evaluate
    f"explain evaluate {SET} {PARTS} --out new --units 01 --alpha 0.5": "explain evaluate: alpha "
    "is 0.5; it must be less than 0.5",
    f"explain evaluate {SET} {PARTS} --out new --units 01 --methods": "explain evaluate: methods: "
    "name at least one method, and none twice",
    f"explain evaluate {SET} {PARTS} --out new --units 01 --methods rollout rollout": "explain "
    "evaluate: methods: name at least one method, and none twice",
    f"explain evaluate {SET} {PARTS} --out new --units 01 --sigmas 0.25 0.2500000001": "explain "
    "evaluate: two sigmas differ by less than their first six digits; drop one",
    f"explain evaluate {SET} {PARTS} --out new --units 01 --attack fgsm": "explain evaluate: "
    "invalid choice 'fgsm' for argument '--attack'; choose from kl, pgd, push-out",
    f"explain evaluate {SET} {PARTS} --out new --units 01 --eps 1e400": "explain evaluate: eps "
    "'1e400' must be a number above 0 such as 8/255 or 0.03",
    f"explain evaluate {SET} {PARTS} --out new --units 01 --eps 1e-400": "explain evaluate: eps "
    "'1e-400' must be a number above 0 such as 8/255 or 0.03",
    f"explain evaluate {SET} {PARTS} --out new": "explain evaluate: --units must be given",
    f"explain evaluate {SET} {PARTS} --out new --units 01 --eps 8/0": "explain evaluate: eps "
    "'8/0' must be a number above 0 such as 8/255 or 0.03",
    f"explain evaluate {SET} {PARTS} --out new --units 01 --eps much": "explain evaluate: eps "
    "'much' must be a number above 0 such as 8/255 or 0.03",
    f"explain evaluate {SET} {PARTS} --out new --units 01 --eps 3": "explain evaluate: eps '3' "
    "in units 01 reaches every image there is; the literature's 8/255 is 0.0314 in units 01",
    f"explain evaluate {SET} {PARTS} --out new --units 01 --methods lrp": "there is no explanation "
    "method 'lrp'; ...",
    f"explain evaluate {SET} {PARTS} --out new --units 01 --sigmas 99": "the denoiser works from "
    "noise ...",
    f"explain evaluate {SET} {PARTS} --out new --units 01 --processes 2": "evaluate works in one "
    "process, with PyTorch's threads; leave --processes out",
    # --- plot
    "explain plot": "explain plot: files: name tables (.tsv) of `certify` or "
    "results (.json) of `evaluate`",
    "explain plot nowhere.tsv": "nowhere.tsv does not exist...",
    "explain plot theirs.tsv": "theirs.tsv does not say whether its radii are those of pixels in "
    "[0, 1] or in [-1, 1]; add --units 01 or --units pm1 (the literature's are 01)",
    "explain plot text.png --units 01": "text.png is no table of certificates: ...",
    "explain plot theirs.tsv --units 01 --out curves.pdf": "--out curves.pdf must end in .png",
    "explain plot other.json": "other.json holds no results of `diffit explain evaluate`",
    "explain plot none.json": "none.json holds no results of `diffit explain evaluate`",
    "explain plot list.json": "list.json holds no results of `diffit explain evaluate`",
    "explain plot halved.json": "halved.json holds no results of `diffit explain evaluate`",
    "explain plot theirs.tsv --units 01 --out nowhere/c.png": "--out nowhere/c.png: there is no "
    "folder nowhere; make it first",
    # --- demo
    "explain demo --out photos": "--out photos holds other files; name a new folder",
    "explain demo --out text.png": "--out text.png is a file; name a new folder",
    # --- train-classifier
    "explain train-classifier": "explain train-classifier: --out must be given",
    "explain train-classifier --out new --data.path nowhere": "there is nothing to "
    "read at 'nowhere'; name a folder, zip or npz",
    "explain train-classifier --out new --device cpu --train.noise 0.5 --train.denoiser vit":
    "train.denoiser vit is a classifier; name a model of images",
    "explain train-classifier --out new --device cpu --train.noise 0.5 --train.denoiser labelled":
    "this denoiser must be told the class of every image, ...",
    "explain train-classifier --out photos": "--out photos exists and is no training of a "
    "classifier; name a new folder",
}  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with everything that the commands above name."""
    root = tmp_path_factory.mktemp("bad")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        write_classifier(Path("vit"))
        write_classifier(Path("colour-vit"), channels=3)
        write_classifier(Path("cut-vit"))
        weights = Path("cut-vit/model.safetensors")
        weights.write_bytes(weights.read_bytes()[:-9])
        write_denoiser(Path("denoiser"))
        labelled = tiny_run(network={"null_class": False}, label_dropout=0.0)
        tensors = build_model(labelled.model).network.state_dict()
        save_model(Path("labelled"), labelled, {"model": tensors}, {"images": 0})
        Path("empty").mkdir()
        Path("text.png").write_text("no image")
        for name, size in {"photos/a.png": (8, 8), "wide.png": (12, 8)}.items():
            write_image(Path(name), size)
        for kind in ("cat", "dog"):
            write_image(Path("cats") / kind / "a.png", (8, 8))
        Path("cut.png").write_bytes(Path("wide.png").read_bytes()[:60])
        Path("theirs.tsv").write_text(
            "idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t1\t1\t0.5\t1\t0:00:03.2\n"
        )
        Path("other.json").write_text(json.dumps({"attacks": 3}))
        Path("none.json").write_text(json.dumps({"attacks": [], "asked": {"k": 4}}))
        Path("list.json").write_text(json.dumps([3]))
        halved = {"attacks": [{"eps": {"01": 0.1}, "accuracy": 1}], "asked": {"k": 4}}
        Path("halved.json").write_text(json.dumps(halved))
        begin = f"explain certify {SET} {PARTS} {NOISE} --out begun --limit 1 --n 16 --n0 8"
        assert main(shlex.split(begin)) == 0
        Path("edited").mkdir()
        edited = {"asked": {}, "classifier": "mine", "denoiser": None}
        Path("edited/certificates.json").write_text(json.dumps(edited))
        Path("broken").mkdir()
        Path("broken/certificates.json").write_text("{")
    return root


def write_image(path, size):
    path.parent.mkdir(exist_ok=True, parents=True)
    noise = np.random.default_rng(0).integers(0, 256, size[::-1], dtype=np.uint8)
    Image.fromarray(noise).save(path)


def fits(answer, expected):
    place = 0
    for piece in expected.split("..."):
        if (place := answer.find(piece, place)) < 0:
            return False
        place += len(piece)
    return answer.startswith(expected.split("...")[0])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_mistake_is_answered_in_one_line(command, prepared, monkeypatch, capsys):
    monkeypatch.chdir(prepared)
    before = sorted(path for path in prepared.rglob("*"))
    assert main(shlex.split(command)) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    answer = shown.err.removeprefix("diffit: ").strip()
    assert fits(answer, COMMANDS[command]), answer
    assert sorted(path for path in prepared.rglob("*") if path.name != "lock") == [
        path for path in before if path.name != "lock"
    ]
