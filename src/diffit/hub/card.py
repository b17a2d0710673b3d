"""What is said of a model beside its weights, and the model card that says it to people."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from pydantic import Field, field_validator

from diffit.config import Settings
from diffit.model import ModelConfig
from diffit.sampling import SamplingConfig

HUB_LICENCES = (
    "afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bsd-2-clause", "bsd-3-clause",
    "bsl-1.0", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0",
    "cc-by-nc-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0",
    "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0",
    "creativeml-openrail-m", "gpl-2.0", "gpl-3.0", "isc", "lgpl-2.1", "lgpl-3.0", "mit",
    "mpl-2.0", "openrail", "openrail++", "unlicense", "wtfpl", "zlib",
)  # fmt: skip
"""Names that the Hugging Face hub knows; any other is written there as "other" with its name."""


TAGS = ("diffit", "diffusion", "vision-transformer")


class Card(Settings):
    """What is said of a model beside its weights; all of it may be left out."""

    title: str = ""
    """What the model is called; by default the name of its folder."""
    summary: str = ""
    """What it is, in a sentence or two."""
    licence: str = ""
    """Licence of the weights: apache-2.0, cc-by-nc-4.0, or any other name."""
    licence_url: str = ""
    """Where its text is."""
    licence_note: str = ""
    """What it restricts, in words; known by itself for non-commercial Creative Commons."""
    source: str = ""
    """Where the weights come from: an address, a paper, a run."""
    provenance: dict[str, Any] = Field(default_factory=dict)
    """How they came here: weights, images seen, hashes; whatever JSON holds."""
    certificate: dict[str, Any] = Field(default_factory=dict)
    """Of converted weights: how they were compared with their source."""
    passports: tuple[dict[str, Any], ...] = ()
    """Measurements, each as `diffit evaluate` writes it."""

    @field_validator("passports")
    @classmethod
    def check_passports(cls, passports: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        for number, passport in enumerate(passports):
            try:
                list(figures(passport))
            except (KeyError, TypeError, AttributeError, ValueError):
                raise ValueError(f"passports.{number} is no record of a measurement") from None
        return passports

    @property
    def restriction(self) -> str:
        """What the licence restricts, in one sentence without a stop; empty if nothing is known."""
        if self.licence_note:
            return self.licence_note.rstrip(".")
        parts = self.licence.lower().split("-")
        limits = [text for part, text in _CREATIVE_COMMONS.items() if part in parts]
        return "; ".join(limits) if parts[0] == "cc" else ""


_CREATIVE_COMMONS = {"nc": "for non-commercial use only", "nd": "may not be passed on changed"}


def render(card: Card, config: ModelConfig, sampling: SamplingConfig, *, name: str) -> str:
    """The text of README.md, in the hub's form: YAML front matter, then Markdown."""
    sections = [
        f"# {_line(card.title or name)}",
        _line(card.summary) or _summary(config),
        _facts(card, config),
        "## Licence\n\n" + _licence(card),
        "## Sampling\n\n" + _usage(config, sampling, name),
        *_labels(config),
        *_measurements(card),
        *_mapping("Certificate", card.certificate),
        *_mapping("Provenance", card.provenance),
    ]
    front = yaml.safe_dump(_front_matter(card, config), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n" + "\n\n".join(sections) + "\n"


def _front_matter(card: Card, config: ModelConfig) -> dict[str, Any]:
    labels = ["class-conditional"] if config.network.classes else []
    front: dict[str, Any] = {}
    if card.licence.lower() in HUB_LICENCES:
        front["license"] = card.licence.lower()
    elif card.licence:
        front |= {"license": "other", "license_name": card.licence}
        front |= {"license_link": card.licence_url} if card.licence_url else {}
    return front | {
        "library_name": "diffit",
        "pipeline_tag": "unconditional-image-generation",
        "tags": list(dict.fromkeys([*TAGS, config.network.name, *labels])),
    }


def _summary(config: ModelConfig) -> str:
    kind = "class-conditional" if config.network.classes else "unconditional"
    return (
        f"A {kind} diffusion model: network `{config.network.name}`, formulation "
        f"`{config.formulation.name}`."
    )


def _facts(card: Card, config: ModelConfig) -> str:
    channels, height, width = config.network.shape
    rows = {
        "network": f"{config.network.name}, {height} x {width}, channels {channels}",
        "formulation": config.formulation.name,
        "works on": "pixels" if config.codec.name == "pixels" else f"{config.codec.name} latents",
        "classes": str(config.network.classes or "none"),
        "source": _line(card.source),
    }
    return _table(("", ""), [(key, text) for key, text in rows.items() if text])


def _licence(card: Card) -> str:
    if not card.licence:
        return "No licence was named. Ask those who made the weights what you may do with them."
    name = _line(card.licence)
    linked = f"[{name}]({card.licence_url})" if card.licence_url else name
    restriction = _line(card.restriction)
    return f"{linked}" + (f": **{restriction}**." if restriction else ".")


def _usage(config: ModelConfig, sampling: SamplingConfig, name: str) -> str:
    given = sampling.model_dump(exclude_defaults=True)
    shown = {"sampler": sampling.sampler, "steps": sampling.steps, "guidance": sampling.guidance}
    rows = [(f"`{key}`", str(value)) for key, value in (shown | given).items()]
    labels = ", labels=[0] * 8" if config.network.classes else ""
    return f"""```sh
diffit sample {name} --out samples --count 16
```

```python
import diffit

model = diffit.load("{name}")
images = diffit.generate(model, range(8){labels})  # (8, C, H, W) uint8
```

Unless told otherwise, images are drawn so:

{_table(("setting", "value"), rows)}"""


def _labels(config: ModelConfig) -> Iterator[str]:
    if not config.network.classes:
        return
    names = config.class_names
    listed = ", ".join(f"{i} {_line(text)}" for i, text in enumerate(names))
    if names in ((), tuple(map(str, range(len(names))))):
        listed = f"0 to {config.network.classes - 1}."
    elif len(names) > 20:
        listed = f"<details><summary>{len(names)} classes</summary>\n\n{listed}\n\n</details>"
    yield f"## Labels\n\n{listed}"


def _measurements(card: Card) -> Iterator[str]:
    rows = [row for passport in card.passports for row in figures(passport)]
    if rows:
        header = ("figure", "value", "interval", "samples", "reference", "drawn with")
        yield (
            "## Measurements\n\n" + _table(header, rows) + "\n\nThe full records, with the hashes "
            "of features and images, are in `config.json` under `card.passports`."
        )


def figures(passport: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """One row for each figure of a passport: name, value, interval, samples, reference, drawing."""
    reference = (passport.get("reference") or {}).get("path", "")
    drawn = passport.get("generation") or {}
    sampling = drawn.get("sampling") or drawn
    how = f"{sampling['sampler']} in {sampling['steps']} steps" if "steps" in sampling else ""
    if sampling.get("guidance", 1) != 1:
        how += f", guidance {sampling['guidance']:g}"
    for figure in passport.get("figures", ()):
        interval = figure.get("interval") or {}
        span = f"{interval['low']:.4g} to {interval['high']:.4g}" if interval else ""
        value = f"{figure['value']:.4g}"
        protocol = figure.get("protocol")
        name = f"{figure['name']} ({protocol})" if protocol else figure["name"]
        yield name, value, span, f"{figure['samples']:,}", reference, how


def _mapping(title: str, values: Mapping[str, Any]) -> Iterator[str]:
    rows = [(key, str(value)) for key, value in values.items() if value is not None]
    if rows:
        yield f"## {title}\n\n" + _table(("", ""), rows)


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_cell, cells)) + " |" for cells in lines)


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")


def _line(text: str) -> str:
    """Text that cannot leave its line."""
    return re.sub(r"\s+", " ", text).strip()
