"""Two measurements side by side: what differs between them, and what that does to the figures."""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from diffit.evaluation.passport import Figure, Passport

Weight = Literal["incomparable", "shifts", "model", "harmless"]
MEANING: dict[Weight, str] = {
    "incomparable": "makes the figures incomparable",
    "shifts": "shifts the figures without any change of the model",
    "model": "is a difference of what was drawn, which the figures are meant to show",
    "harmless": "should not matter",
}
"""What a difference does, the gravest first."""
ABOUT_DRAWING = {"weights", "reference", "seed", "labels", "classes", "sampling", "versions"}


class Difference(NamedTuple):
    """One thing in which two measurements differ."""

    what: str
    first: str
    second: str
    weight: Weight
    why: str
    """What it does, in a sentence."""


class Pair(NamedTuple):
    """One figure of both measurements."""

    first: Figure
    second: Figure

    @property
    def gap(self) -> float:
        """Second minus first."""
        return self.second.value - self.first.value

    @property
    def verdict(self) -> str:
        """Whether the intervals settle which is better; for figures measured the same way."""
        if self.gap == 0:
            return "equal"
        a, b = self.first.interval, self.second.interval
        if a is None or b is None:
            return "no intervals: a gap of chance cannot be told from a real one"
        if a.low <= b.high and b.low <= a.high:
            return "the intervals overlap: the gap may be chance"
        lower = self.gap < 0
        better = "second" if lower == (self.first.better == "lower") else "first"
        return f"the {better} is better, beyond its interval"


class Comparison(NamedTuple):
    """What two passports have in common and in what they differ."""

    pairs: list[Pair]
    alone: list[str]
    """Figures that only one of them has."""
    differences: list[Difference]

    @property
    def conclusion(self) -> str:
        """The one sentence to remember."""
        weights = {difference.weight for difference in self.differences}
        if not self.pairs:
            return "They have no figure in common."
        if "incomparable" in weights:
            first = next(d for d in self.differences if d.weight == "incomparable")
            return f"The figures do not compare: {first.what} differs ({first.why})."
        if "shifts" in weights:
            causes = ", ".join(d.what for d in self.differences if d.weight == "shifts")
            return f"Part of each gap may come from the measurement itself: {causes}."
        if "model" in weights:
            causes = ", ".join(d.what for d in self.differences if d.weight == "model")
            return f"Measured the same way; the gaps come from what was drawn: {causes}."
        same = any(difference.what == "samples" for difference in self.differences)
        if any(pair.gap for pair in self.pairs) and not same:
            return "Nothing recorded explains the gaps; the images themselves differ."
        if any(pair.gap for pair in self.pairs):
            return "The same images, measured the same way: the gaps are rounding."
        return "The measurements agree."


def compare_passports(first: Passport, second: Passport) -> Comparison:
    """All that differs, the gravest first."""
    ours = {(f.metric, f.features, f.protocol): f for f in first.figures}
    theirs = {(f.metric, f.features, f.protocol): f for f in second.figures}
    if not ours.keys() & theirs.keys():
        # Other features or protocols: side by side all the same, since that is what is asked.
        ours, theirs = _by_metric(first), _by_metric(second)
    pairs = [Pair(figure, theirs[key]) for key, figure in ours.items() if key in theirs]
    alone = [f.name for key, f in ours.items() if key not in theirs]
    alone += [f.name for key, f in theirs.items() if key not in ours]
    found = [
        *_of_features(first, second),
        *_of_images(first, second),
        *_of_figures(pairs),
        *_of_drawing(first.generation, second.generation),
        *_of_versions(first, second),
    ]
    order = list(MEANING)
    unique = list(dict.fromkeys(found))
    return Comparison(pairs, alone, sorted(unique, key=lambda d: order.index(d.weight)))


def _by_metric(passport: Passport) -> dict[tuple[str, str, str], Figure]:
    found: dict[tuple[str, str, str], Figure] = {}
    for figure in passport.figures:
        found.setdefault((figure.metric, "", ""), figure)
    return found


def _of_features(first: Passport, second: Passport) -> Iterator[Difference]:
    ours = {(f.name, f.protocol): f for f in first.features}
    theirs = {(f.name, f.protocol): f for f in second.features}
    if not ours.keys() & theirs.keys():
        a, b = first.features[0], second.features[0]
        if a.name != b.name:
            yield Difference(
                "features", a.name, b.name, "incomparable", "distances live in other spaces"
            )
        if a.protocol != b.protocol and a.resize != b.resize:  # ADM and EDM resize alike
            yield Difference(
                "protocol", f"{a.protocol}: {a.resize}", f"{b.protocol}: {b.resize}",
                "incomparable", "images were resized in other ways before the network saw them",
            )  # fmt: skip
    for key in ours.keys() & theirs.keys():
        if ours[key].hash != theirs[key].hash:
            yield Difference(
                f"weights of {key[0]}", ours[key].hash[:12], theirs[key].hash[:12],
                "incomparable", "the features come from another file of weights",
            )  # fmt: skip


def _of_images(first: Passport, second: Passport) -> Iterator[Difference]:
    a, b = first.reference, second.reference
    if a.hash != b.hash:
        both = a.kind == b.kind == "images"
        yield Difference(
            "reference", _images(a.path, a.kind, a.count), _images(b.path, b.kind, b.count),
            "incomparable" if both else "shifts",
            "the samples were held against other images"
            if both
            else "these may or may not be the same images: files of statistics do not say",
        )  # fmt: skip
    a, b = first.samples, second.samples
    if a.shape != b.shape:
        yield Difference(
            "image size", str(a.shape), str(b.shape), "incomparable", "other sizes look sharper"
        )
    if a.count != b.count and None not in (a.count, b.count):
        fewer = "first" if (a.count or 0) < (b.count or 0) else "second"
        yield Difference(
            "samples", str(a.count), str(b.count), "shifts",
            f"distances of fewer images are biased upward, here those of the {fewer}; measure both "
            "on as many",
        )  # fmt: skip
    elif a.hash == b.hash:
        yield Difference("samples", a.path, b.path, "harmless", "they are the same images")


def _of_figures(pairs: list[Pair]) -> Iterator[Difference]:
    for a, b in pairs:
        if a.settings != b.settings:
            yield Difference(
                f"settings of {a.name}", _settings(a), _settings(b), "shifts",
                "the figure is defined another way",
            )  # fmt: skip
        if a.reference != b.reference and None not in (a.reference, b.reference):
            yield Difference(
                f"reference images of {a.name}", str(a.reference), str(b.reference), "shifts",
                "neighbourhoods and biases depend on how many there are",
            )  # fmt: skip


def _of_drawing(first: dict[str, Any], second: dict[str, Any]) -> Iterator[Difference]:
    ours, theirs = (_flat({k: g[k] for k in g.keys() & ABOUT_DRAWING}) for g in (first, second))
    if bool(first) != bool(second):
        yield Difference(
            "record of drawing", "there" if first else "none", "there" if second else "none",
            "model", "only one of them says how its samples were drawn",
        )  # fmt: skip
        return
    for name in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(name), theirs.get(name)
        if a == b:
            continue
        if name == "labels":
            yield Difference(
                "labels", _labels(a), _labels(b), "shifts",
                "other shares of the classes change every figure",
            )  # fmt: skip
        elif name.startswith(("versions", "weights.checkpoint")):
            yield Difference(name, str(a), str(b), "harmless", "bytes may differ, figures hardly")
        elif name == "seed":
            yield Difference(
                "seed", str(a), str(b), "shifts", "other draws of the same model: a gap of chance"
            )
        else:
            yield Difference(name, str(a), str(b), "model", "the images were drawn another way")


def _of_versions(first: Passport, second: Passport) -> Iterator[Difference]:
    for name in sorted(first.versions.keys() | second.versions.keys()):
        a, b = first.versions.get(name, "?"), second.versions.get(name, "?")
        if a != b:
            yield Difference(f"version of {name}", a, b, "harmless", "rounding alone")


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, dict):
            inner = "" if name == "sampling" else f"{prefix}{name}."
            flat |= _flat(value, inner)
        else:
            flat[prefix + name] = value
    return flat


def _images(path: str, kind: str, count: int | None) -> str:
    return f"{path} ({kind}, {'?' if count is None else count} images)"


def _settings(figure: Figure) -> str:
    return ", ".join(f"{name} {value}" for name, value in figure.settings.items()) or "none"


def _labels(labels: Any) -> str:
    if not isinstance(labels, list) or not labels:
        return "none"
    shown = ", ".join(map(str, labels[:5]))
    return f"{len(labels)} in turn: {shown}{', ...' if len(labels) > 5 else ''}"
