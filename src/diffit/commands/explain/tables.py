"""What the parts of an evaluation say in all: shares and means over the images, as tables."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from diffit.commands.explain.measuring import ORDERS, Way
from diffit.explain.measures.curve import Row, certified_accuracy
from diffit.explain.measures.perturbation import FRACTIONS, area
from diffit.explain.measures.robustness import overlap
from diffit.explain.units import Units, from_pm1, in_both

Parted = dict[tuple[str, str, str], list[Any]]
"""(stage, name of the way, name of the attack) to its parts, in the order of the images."""

RADII = (0.0, 0.25, 0.5, 0.75)
"""l2 radii in tables, for pixels in [0, 1]."""


def sum_up(
    found: Parted,
    ways: Sequence[Way],
    strengths: dict[str, float],
    labels: Sequence[int | None],
    k: int,
) -> dict[str, Any]:
    """The results of an evaluation.

    Args:
        found: the parts.
        ways: all ways of looking at an image.
        strengths: name of each attack to its eps for pixels in [-1, 1], "0" being none.
        labels: true class of each image.
        k: maps are compared by their k most relevant tokens.
    """
    attacked = {eps: _joined(found["attacked", "plain", eps]) for eps in strengths}
    return {
        "attacks": [
            {
                "name": name,
                "eps": in_both(eps),
                "accuracy": {
                    way: share(given, labels) for way, given in attacked[name]["labels"].items()
                },
                "overlap": _overlaps(attacked["0"], attacked[name], k) if eps else {},
                "blanked": _areas(attacked[name]),
            }
            for name, eps in strengths.items()
        ],
        "adaptive": [
            {
                "name": name,
                "eps": in_both(strengths[name]),
                "way": way,
                "accuracy": share([label for part in parts for label in part], labels),
            }
            for (stage, way, name), parts in found.items()
            if stage == "adaptive"
        ],
        "certified": [
            certified(way, [one for part in found["certified", way.name, "0"] for one in part])
            for way in ways
            if ("certified", way.name, "0") in found
        ],
        "radii": [
            line
            for way in ways
            if ("radii", way.name, "0") in found
            for line in radii(way, [one for part in found["radii", way.name, "0"] for one in part])
        ],
        "seconds_per_image": _mean_seconds(found["attacked", "plain", "0"]),
    }


def share(found: Sequence[int], labels: Sequence[int | None]) -> float:
    """Share of the labels that are right."""
    return sum(a == b for a, b in zip(found, labels, strict=True)) / len(labels)


def certified(way: Way, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the certificates of one way say, radii for pixels in [0, 1]."""
    rows = rows_of(found, "01")
    return {
        "way": way.name,
        "sigma": in_both(way.level),
        "denoised": way.denoised,
        "smoothed_accuracy": sum(one["selected"] == one["true"] for one in found) / len(found),
        "abstained": sum(row.predict == -1 for row in rows) / len(rows),
        "certified_accuracy": dict(
            zip(map(str, RADII), certified_accuracy(rows, RADII), strict=True)
        ),
        "largest_radius": in_both(max(one["radius_l2"]["pm1"] for one in found)),
        "seconds_per_image": sum(one["seconds"] for one in found) / len(found),
    }


def rows_of(found: Sequence[dict[str, Any]], units: Units) -> list[Row]:
    """Certificates as rows of a table."""
    return [
        Row(
            idx=one["number"],
            label=one["true"],
            predict=-1 if one["label"] is None else one["label"],
            radius=from_pm1(one["radius_l2"]["pm1"], units),
            correct=one["label"] == one["true"],
            seconds=one["seconds"],
        )
        for one in found
    ]


def radii(way: Way, found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each method and explanation the radii of its point estimates, and with confidence."""
    lines = []
    kinds = dict.fromkeys((one["method"], one["k"], one["beta"]) for one in found)
    for method, k, beta in kinds:
        mine = [o for o in found if (o["method"], o["k"], o["beta"]) == (method, k, beta)]
        point = [o for o in mine if o["of"] == "point"]
        sure = [o for o in mine if o["of"] != "point"]
        needed = [o["needed"] if o["needed"] is not None else float("inf") for o in sure]
        middle = median(needed)
        lines.append(
            {
                "way": way.name,
                "method": method,
                "k": k,
                "beta": beta,
                "form": point[0]["form"],
                "samples": point[0]["m"],
                "median_of_estimates": in_both(median(_length(o) for o in point)),
                "eta": sure[0]["eta"],
                "certain_above_0": sum(_length(o) > 0 for o in sure) / len(sure),
                "median_samples_needed": None if middle == float("inf") else int(middle),
            }
        )
    return lines


def farewell(results: dict[str, Any], written: dict[str, Path], spent: str) -> list[str]:
    """What is printed at the end: the tables, and where everything is."""
    lines = [f"{results['images']} images ({spent})", ""]
    for title, head, rows in tables(results):
        lines += [title, *aligned([head, *rows]), ""]
    return [*lines, *(f"  {name:9} {path}" for name, path in written.items())]


def tables(results: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, head and rows of every table of the report."""
    found = [_certified_table(results), _attack_table(results)]
    found += [_overlap_table(results, m) for m in results["asked"]["methods"]]
    found += [_blanked_table(results), _radius_table(results), _time_table(results)]
    return [table for table in found if table[2]]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines of text, the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        others = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)][1:]
        lines.append("  ".join([row[0].ljust(widths[0]), *others]))
    return lines


def _certified_table(results: dict[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    rows = [
        [
            entry["way"],
            f"{entry['smoothed_accuracy']:.3f}",
            *(f"{value:.3f}" for value in entry["certified_accuracy"].values()),
            f"{entry['largest_radius']['01']:.3f}",
            f"{entry['abstained']:.3f}",
        ]
        for entry in results["certified"]
    ]
    head = ["way", "accuracy", *(f"r {radius:g}" for radius in RADII), "largest r", "abstains"]
    return "certified accuracy by l2 radius (pixels in [0, 1])", head, rows


def _attack_table(results: dict[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    ways = list(results["attacks"][0]["accuracy"])
    rows = [
        [way, *(f"{attack['accuracy'][way]:.3f}" for attack in results["attacks"])] for way in ways
    ]
    for way in dict.fromkeys(entry["way"] for entry in results["adaptive"]):
        known = {e["name"]: f"{e['accuracy']:.3f}" for e in results["adaptive"] if e["way"] == way}
        cells = [known.get(attack["name"], "") for attack in results["attacks"]]
        rows.append([f"{way}, attack knows it", *cells])
    head = ["way", "clean", *(attack["name"] for attack in results["attacks"][1:])]
    attack = {"pgd": "PGD"}.get(results["asked"]["attack"], results["asked"]["attack"])
    return f"accuracy under {attack} on the plain classifier, by l-infinity eps", head, rows


def _overlap_table(results: dict[str, Any], method: str) -> tuple[str, list[str], list[list[str]]]:
    attacks = results["attacks"][1:]
    ways = attacks[0]["overlap"].get(method, {}) if attacks else {}
    rows = [[way, *(f"{attack['overlap'][method][way]:.3f}" for attack in attacks)] for way in ways]
    k = results["asked"]["k"]
    head = ["way", *(attack["name"] for attack in attacks)]
    return f"{method}: overlap of the top {k} before and after the attack", head, rows


def _blanked_table(results: dict[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    attacks = results["attacks"]
    rows = [
        [
            f"{method}, {way}, {order}",
            *(f"{attack['blanked'][method][way][order]:.3f}" for attack in attacks),
        ]
        for method, ways in attacks[0]["blanked"].items()
        for way in ways
        for order in ORDERS
    ]
    head = ["explanation", "clean", *(attack["name"] for attack in attacks[1:])]
    return "perturbation test: area (positive: lower is better, negative: higher)", head, rows


def _radius_table(results: dict[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    rows = [
        [
            f"{entry['method']}, {entry['way']}",
            f"{entry['k']}",
            f"{entry['beta']:g}",
            f"{entry['median_of_estimates']['01']:.4f}",
            f"{entry['certain_above_0']:.3f}",
            "-" if entry["median_samples_needed"] is None
            else f"{entry['median_samples_needed']:,}",
        ]
        for entry in results["radii"]
    ]  # fmt: skip
    m, eta = results["asked"]["radius_samples"], results["asked"]["eta"]
    head = ["explanation", "k", "beta", "median estimate", "certain share", "copies needed"]
    title = f"l2 radius of explanations (pixels in [0, 1]), {m} copies, eta {eta:g}"
    return title, head, rows


def _time_table(results: dict[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    rows = [[way, f"{1000 * seconds:.1f}"] for way, seconds in results["seconds_per_image"].items()]
    m = results["asked"]["samples"]
    return f"ms of processor time an image, {m} copies, all methods", ["way", "ms"], rows


def _joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Parts of the stage "attacked" as one, image after image."""
    ways = list(parts[0]["labels"])
    methods = list(parts[0]["maps"][ways[0]])
    return {
        "labels": {way: [x for part in parts for x in part["labels"][way]] for way in ways},
        "maps": {
            way: {m: [x for part in parts for x in part["maps"][way][m]] for m in methods}
            for way in ways
        },
        "blanked": {
            way: {
                m: {o: [x for part in parts for x in part["blanked"][way][m][o]] for o in ORDERS}
                for m in methods
            }
            for way in ways
        },
    }


def _overlaps(
    clean: dict[str, Any], attacked: dict[str, Any], k: int
) -> dict[str, dict[str, float]]:
    """Method, then way, to the mean overlap of the top k of clean and attacked maps."""
    ways = clean["maps"]
    methods = next(iter(ways.values()))
    return {
        method: {
            way: float(
                overlap(
                    torch.tensor(ways[way][method], dtype=torch.float64),
                    torch.tensor(attacked["maps"][way][method], dtype=torch.float64),
                    k,
                ).mean()
            )
            for way in ways
        }
        for method in methods
    }


def _areas(attacked: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Method, way, order to the area under the accuracy as pixels are blanked."""
    ways = attacked["blanked"]
    methods = next(iter(ways.values()))
    return {
        method: {
            way: {
                order: area(torch.tensor(ways[way][method][order]).double().mean(0), FRACTIONS)
                for order in ORDERS
            }
            for way in ways
        }
        for method in methods
    }


def _mean_seconds(parts: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {
        way: sum(part["seconds"][way] for part in parts) / len(parts) for way in parts[0]["seconds"]
    }


def _length(one: dict[str, Any]) -> float:
    length = one["radius_l2"]["pm1"]
    return float("inf") if length == "infinite" else float(length)
