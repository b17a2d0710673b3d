"""Configurations by name: those that ship with the package, and a user's own files."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from diffit.config import nearest, parse, read_yaml
from diffit.errors import ConfigError
from diffit.training.settings import RunConfig


def presets() -> dict[str, str]:
    """Name of each preset -> what its first comment says it is."""
    folder = files("diffit") / "presets"
    found = {p.name.removesuffix(".yaml"): p for p in folder.iterdir() if p.name.endswith(".yaml")}
    return {name: _first_comment(found[name].read_text("utf-8")) for name in sorted(found)}


def read_config(name: str) -> RunConfig:
    """The run that a YAML file or a preset describes; ConfigError if it is neither."""
    known = presets()
    if name in known:
        text = (files("diffit") / "presets" / f"{name}.yaml").read_text("utf-8")
        content: dict[str, Any] = yaml.safe_load(text)
        return parse(RunConfig, content, source=f"preset {name}")
    path = Path(name)
    if not path.exists() and path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"there is no file and no preset {name!r}; {nearest(name, [*known])}")
    return parse(RunConfig, read_yaml(path), source=name)


def _first_comment(text: str) -> str:
    return text.partition("\n")[0].removeprefix("# ")
