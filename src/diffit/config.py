"""Settings: frozen pydantic models, read from YAML, refused in one sentence per mistake."""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from diffit.errors import ConfigError

MAX_YAML_BYTES = 1 << 20
MAX_YAML_VALUES = 100_000
"""Aliases let some lines stand for billions of values; more than this is no configuration."""
MAX_SENTENCES = 5
"""Mistakes that one message lists."""


class Settings(BaseModel):
    """The one base class of all settings: frozen, and unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def refuse_truth_for_numbers(cls, data: Any) -> Any:
        """YAML reads `yes` and `on` as true, which Python would take for the number 1."""
        for name, value in data.items() if isinstance(data, dict) else ():
            if isinstance(value, bool) and name in cls.model_fields:
                kinds = set(_plain_types(cls.model_fields[name].annotation))
                if kinds & {int, float} and bool not in kinds:
                    raise ValueError(f"{name} is {str(value).lower()}; it must be a number")
        return data


S = TypeVar("S", bound=Settings)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; ConfigError if it is no such file."""
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise ConfigError(f"{path} is larger than 1 MiB; this is not a configuration file")
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None and _values(root, {}) > MAX_YAML_VALUES:
            raise ConfigError(f"{path} stands for too many values; write it without aliases")
        data = yaml.safe_load(text)
        twice = _repeated_key(root)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; name a YAML file or a preset") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no text file; name a YAML file") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{path} is no valid YAML{_place(error)}") from None
    if twice is not None:
        # YAML lets the last one win, which would silently ignore a line that the user wrote.
        raise ConfigError(f"{path} sets {twice.value!r} twice, see line {_line(twice)}")
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold `name: value` lines, not a {type(data).__name__}")
    return data


def write_yaml(path: Path, settings: Settings) -> None:
    """Write settings so that `parse(type(settings), read_yaml(path))` gives them back."""
    path.write_text(to_yaml(settings), encoding="utf-8")


def to_yaml(settings: Settings) -> str:
    """The settings as a YAML text, every field resolved."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def parse(kind: type[S], data: Mapping[str, Any], *, source: str) -> S:
    """``data`` as settings; ConfigError with one sentence per mistake, each naming ``source``."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise ConfigError(explain(error, kind, source=source)) from None


def explain(
    error: ValidationError, kind: type[Settings], *, source: str, path: tuple[str, ...] = ()
) -> str:
    """A pydantic error as plain sentences with the names that the user wrote.

    ``path`` says where in the user's settings ``kind`` stands, () for the whole.
    """
    mistakes = error.errors()
    places = [mistake["loc"] for mistake in mistakes]
    # A list is blamed for the lack of those of its items that are wrong themselves.
    own = [m for m in mistakes if not any(p[: len(m["loc"])] == m["loc"] != p for p in places)]
    sentences = [*dict.fromkeys(_sentence(kind, mistake, path) for mistake in own)]
    more = len(sentences) - MAX_SENTENCES
    rest = [f"and {more} more mistakes"] if more > 0 else []
    return f"{source}: " + "; ".join([*sentences[:MAX_SENTENCES], *rest])


def nearest(word: str, choices: Iterator[str] | list[str]) -> str:
    """`, did you mean X?` for the closest of ``choices``, or a list of them."""
    names = sorted(choices)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return "choose from " + ", ".join(names) if names else "there is nothing to choose from"


def _sentence(kind: type[Settings], mistake: Any, prefix: tuple[str, ...]) -> str:
    location, value = tuple(mistake["loc"]), mistake.get("input")
    owner, path = _owner(kind, location)
    name = ".".join((*prefix, *path))
    match mistake["type"]:
        case "extra_forbidden":
            valid = list(owner.model_fields) if owner else []
            return f"unknown setting {name!r}; {nearest(path[-1], valid)}"
        case "missing":
            return f"setting {name!r} is missing"
        case "invalid_key":
            return f"unknown setting {name!r}; names of settings are words"
        case "model_type" | "model_attributes_type" | "dict_type" if name:
            return f"{name} is {_short(value)}; it must hold `name: value` lines"
        case "union_tag_invalid":
            tags = [tag.strip(" '") for tag in mistake["ctx"]["expected_tags"].split(",")]
            given = mistake["ctx"]["tag"]
            field = mistake["ctx"]["discriminator"].strip("'")
            return f"{name}.{field} {given!r} is unknown; {nearest(str(given), tags)}"
        case "union_tag_not_found":
            field = mistake["ctx"]["discriminator"].strip("'")
            return f"{name} needs a {field!r} that says which kind it is"
        case "literal_error":
            choices = mistake["ctx"]["expected"].replace(" or ", ", ")
            return f"{name} is {value!r}; it must be one of {choices}"
        case "value_error":
            text = str(mistake["ctx"]["error"])
            return text if not name or name in text else f"{name}: {text}"
    text = (
        mistake["msg"]
        .replace("Input should be", "it must be")
        .replace(", unable to", "; unable to")
    )
    text = text[0].lower() + text[1:]
    return f"{name} is {_short(value)}; {text}" if name else text


def _owner(
    kind: type[Settings], location: tuple[Any, ...]
) -> tuple[type[Settings] | None, list[str]]:
    """The settings class that owns the last part of a location, and its path as written."""
    owner: type[Settings] | None = kind
    annotation: Any = kind
    path: list[str] = []
    for part in location:
        models = list(models_in(annotation))
        tagged = [m for m in models if _tag(m) == part]
        if tagged and not any(part in m.model_fields for m in models):
            annotation = tagged[0]  # pydantic puts the tag of a union into the location
            continue
        owner = next((m for m in models if part in m.model_fields), models[0] if models else None)
        path.append(str(part))
        field = owner.model_fields.get(part) if owner and isinstance(part, str) else None
        if field is not None:
            annotation = field.annotation
        elif isinstance(part, int):
            annotation = next(iter(get_args(annotation)), None)
    return owner, path


def models_in(annotation: Any) -> Iterator[type[Settings]]:
    """The settings classes inside a type annotation, such as the members of a union."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
    elif get_origin(annotation) in (Union, UnionType, Annotated, tuple, list, dict):
        for inner in get_args(annotation):
            yield from models_in(inner)


def _plain_types(annotation: Any) -> Iterator[Any]:
    """The types that a value may have by itself, such as int and None of `Side | None`."""
    if get_origin(annotation) in (Union, UnionType):
        for inner in get_args(annotation):
            yield from _plain_types(inner)
    elif get_origin(annotation) is Annotated:
        yield from _plain_types(get_args(annotation)[0])
    else:
        yield annotation


def _tag(model: type[Settings]) -> Any:
    field = model.model_fields.get("name")
    return field.default if field is not None else None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _place(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f", see line {mark.line + 1}" if mark is not None else ""


def _values(node: yaml.Node, known: dict[int, float]) -> float:
    """How many values a node stands for with its aliases written out; inf if it holds itself."""
    if id(node) not in known:
        known[id(node)] = float("inf")  # until all below are counted: what leads back has no end
        parts = []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            parts = node.value
        known[id(node)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(node)]


def _repeated_key(root: yaml.Node | None) -> yaml.ScalarNode | None:
    """The first key that stands twice in one mapping of a YAML document."""
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in seen:  # an alias may lead back to its own parent
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            names = [key.value for key in keys]
            for i, key in enumerate(keys):
                if key.value in names[:i]:
                    return key
            waiting += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
    return None


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
