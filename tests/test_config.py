"""Settings and YAML: what is read is what was written, and each mistake has its sentence."""

from pathlib import Path
from typing import Annotated, Literal, Self

import pytest
from pydantic import Field, model_validator

from diffit.config import Settings, nearest, parse, read_yaml, to_yaml, write_yaml
from diffit.errors import ConfigError


class Small(Settings):
    name: Literal["small"] = "small"
    width: int = Field(8, ge=1)


class Wide(Settings):
    name: Literal["wide"] = "wide"
    width: int = 64
    depth: int = 2

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.width % self.depth:
            raise ValueError(f"width {self.width} is no multiple of depth {self.depth}")
        return self


class Train(Settings):
    lr: float = 1e-4
    precision: Literal["float32", "bfloat16"] = "float32"
    decays: tuple[float, ...] = (0.99,)


class Run(Settings):
    network: Annotated[Small | Wide, Field(discriminator="name")] = Small()
    train: Train = Train()
    title: str | None = None


def refusal(data: dict) -> str:
    with pytest.raises(ConfigError) as error:
        parse(Run, data, source="run.yaml")
    text = str(error.value)
    assert text.startswith("run.yaml: ")
    assert "\n" not in text
    return text.removeprefix("run.yaml: ")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"netwrok": {}}, "unknown setting 'netwrok'; did you mean 'network'?"),
        ({"train": {"lrr": 1}}, "unknown setting 'train.lrr'; did you mean 'lr'?"),
        (
            {"network": {"name": "smal"}},
            "network.name 'smal' is unknown; did you mean 'small'?",
        ),
        ({"network": {"width": 3}}, "network needs a 'name' that says which kind it is"),
        (
            {"network": {"name": "wide", "depht": 3}},
            "unknown setting 'network.depht'; did you mean 'depth'?",
        ),
        (
            {"network": {"name": "small", "width": 0}},
            "network.width is 0; it must be greater than or equal to 1",
        ),
        (
            {"network": {"name": "wide", "width": 3}},
            "network: width 3 is no multiple of depth 2",
        ),
        ({"train": {"lr": "fast"}}, "train.lr is 'fast'; it must be a valid number"),
        ({"train": {"lr": float("nan")}}, "train.lr is nan; it must be a finite number"),
        (
            {"train": {"precision": "int8"}},
            "train.precision is 'int8'; it must be one of 'float32', 'bfloat16'",
        ),
        ({"train": {"decays": [0.5, "x"]}}, "train.decays.1 is 'x'; it must be a valid number"),
        ({"train": 3}, "train is 3; it must hold `name: value` lines"),
        ({"train": {"lr": True}}, "train: lr is true; it must be a number"),
    ],
)
def test_each_mistake_has_its_sentence(data: dict, sentence: str) -> None:
    assert refusal(data).startswith(sentence)


def test_two_mistakes_are_told_at_once() -> None:
    text = refusal({"titel": "x", "train": {"lr": None}})
    assert "'titel'" in text
    assert "train.lr" in text


def test_long_values_are_shortened_in_messages() -> None:
    assert len(refusal({"train": {"lr": "x" * 5000}})) < 200


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Run().title = "other"  # type: ignore[misc]


def test_a_written_file_reads_back_as_the_same_settings(tmp_path: Path) -> None:
    run = Run(network=Wide(width=6, depth=3), train=Train(lr=1 / 3, decays=(0.5, 1e-7)), title="é")
    write_yaml(tmp_path / "run.yaml", run)
    assert parse(Run, read_yaml(tmp_path / "run.yaml"), source="run.yaml") == run


def test_numbers_without_a_dot_are_numbers(tmp_path: Path) -> None:
    # YAML 1.1 reads `2e-4` as a text; people write it all the time.
    (tmp_path / "run.yaml").write_text("train: {lr: 2e-4}")
    assert parse(Run, read_yaml(tmp_path / "run.yaml"), source="run.yaml").train.lr == 2e-4


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("# nothing\n")
    assert parse(Run, read_yaml(tmp_path / "run.yaml"), source="run.yaml") == Run()


def test_yaml_shows_every_field() -> None:
    assert to_yaml(Run()).splitlines()[:3] == ["network:", "  name: small", "  width: 8"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"train: {lr: 1", "is no valid YAML, see line 1"),
        (b"a: 1\n\tb: 2", "is no valid YAML, see line 2"),
        (b"train:\n  lr: 1\n  lr: 2\n", "sets 'lr' twice, see line 3"),
        (b"title: a\ntrain: {}\ntitle: b\n", "sets 'title' twice, see line 3"),
        (b"- 1\n- 2\n", "must hold `name: value` lines, not a list"),
        (b"just words", "must hold `name: value` lines, not a str"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "is no text file"),
        (b"a: 1\n---\nb: 2\n", "is no valid YAML, see line 2"),
        (b"day: 2024-13-45", "is no valid YAML"),
        (b"a: !!python/object/apply:os.system ['true']", "is no valid YAML, see line 1"),
        (b"[" * 5000, "is no valid YAML"),
        (b" " * (1 << 20) + b" ", "is larger than 1 MiB"),
    ],
)
def test_files_that_are_no_settings_are_refused(
    tmp_path: Path, content: bytes, sentence: str
) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        read_yaml(path)
    assert str(error.value).startswith(f"{path} {sentence}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("levels", [0, 9])
def test_aliases_without_end_are_refused_before_they_are_followed(
    levels: int, tmp_path: Path
) -> None:
    lines = ["title: &a0 [*a0]" if levels == 0 else "a0: &a0 [x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    (tmp_path / "run.yaml").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match="stands for too many values; write it without aliases"):
        read_yaml(tmp_path / "run.yaml")


def test_a_few_aliases_are_fine(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("a: &a {x: 1}\nb: {<<: *a, y: 2}\n")
    assert read_yaml(tmp_path / "run.yaml")["b"] == {"x": 1, "y": 2}


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist; name a YAML file or a preset"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)


def test_keys_that_are_no_names_are_refused() -> None:
    assert "unknown setting '1'; names of settings are words" in refusal({1: 2})


def test_a_long_list_of_mistakes_is_cut_short() -> None:
    text = refusal({f"k{i}": 0 for i in range(9)})
    assert text.count("unknown setting") == 5
    assert text.endswith("; and 4 more mistakes")


def test_nearest_offers_one_name_or_all() -> None:
    assert nearest("huen", ["heun", "ddim"]) == "did you mean 'heun'?"
    assert nearest("zzz", ["heun", "ddim"]) == "choose from ddim, heun"
    assert nearest("zzz", []) == "there is nothing to choose from"
