"""Settings of a run: mistakes are refused, differences between two runs are named."""

import pytest

from diffit.config import parse, read_yaml, write_yaml
from diffit.errors import ConfigError
from diffit.training.settings import RunConfig, changeable, changes
from tiny import tiny_run


def test_settings_survive_the_file(tmp_path):
    write_yaml(tmp_path / "c.yaml", tiny_run())
    assert parse(RunConfig, read_yaml(tmp_path / "c.yaml"), source="file") == tiny_run()


def test_differences_are_named_as_the_user_writes_them():
    before = tiny_run()
    assert changes(before, before) == []
    after = tiny_run(images=7, ema={"constant": [0.5]}, network={"widths": [16, 32]})
    assert changes(before, after) == [
        "model.network.widths",
        "train.ema.constant",
        "train.ema.half_life",
        "train.ema.power",
        "train.images",
    ]


@pytest.mark.parametrize(
    ("name", "free"),
    [
        ("train.images", True), ("train.minutes", True), ("sampling.steps", True),
        ("train.keep_last", True), ("data.workers", True), ("train.lr", False),
        ("train.batch", False), ("train.seed", False), ("data.path", False),
        ("model.network.classes", False), ("train.ema.constant", False),
    ],
)  # fmt: skip
def test_only_what_no_weight_depends_on_may_change(name, free):
    assert changeable(name) == free


@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        ({"batch": 0}, "train.batch is 0; "),
        ({"batch": 2.5}, "train.batch is 2.5; "),
        ({"images": -1}, "train.images is -1; "),
        ({"micro_batch": 17}, "train.micro_batch 17 is more than train.batch 16"),
        ({"lr": 0}, "train.lr is 0; "),
        ({"lr": float("nan")}, "train.lr is nan; "),
        ({"lr": "fast"}, "train.lr is 'fast'; "),
        ({"betas": [0.9, 1.0]}, "train.betas .* must lie in 0 <= beta < 1"),
        ({"decay": "inverse-sqrt"}, "needs train.decay_from"),
        ({"decay": "step", "lr_end": 0.2}, "step needs train.decay_from, after how many"),
        ({"decay": "step", "decay_from": 100}, "and train.lr_end, to which share"),
        ({"teacher_share": 0.5}, "train.teacher_share needs train.teacher"),
        ({"teacher": "x", "teacher_share": 1.5}, "train.teacher_share is 1.5; "),
        ({"decay": "exponential"}, "train.decay is 'exponential'; it must be one of"),
        ({"minutes": 0}, "train.minutes 0.0 must be more than 0"),
        ({"label_dropout": 1.5}, "train.label_dropout is 1.5; "),
        ({"precision": "fp8"}, "train.precision is 'fp8'; it must be one of"),
        ({"optimizer": "sgd"}, "train.optimizer is 'sgd'; "),
        ({"max_bad_steps": 0}, "train.max_bad_steps is 0; "),
        ({"bach": 3}, "unknown setting 'train.bach'; did you mean 'batch'"),
        ({"ema": {"constant": [2]}}, "train.ema.constant 2.0 must lie in 0 <= decay < 1"),
        ({"clip": -1}, "train.clip is -1; "),
    ],
)
def test_mistakes_are_one_sentence(train, sentence):
    with pytest.raises(ConfigError, match=sentence) as error:
        tiny_run(**train)
    assert "\n" not in str(error.value)
