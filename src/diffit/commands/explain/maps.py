"""`diffit explain map` and `region`: smoothed explanations, and how far they hold."""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from diffit.commands.explain.arguments import (
    PIXELS,
    Noise,
    Opened,
    Parts,
    check_images,
    check_out,
    grid_of,
    open_parts,
    running,
    smooth,
)
from diffit.commands.explain.examples import Example, Images, read_examples, to_tensor
from diffit.commands.explain.pictures import Row, draw_maps
from diffit.commands.explain.progress import Bar
from diffit.config import Settings, nearest
from diffit.data.images import write_atomic
from diffit.errors import UsageError
from diffit.explain.attribution import display, get_method, to_grid, upsample
from diffit.explain.bounds import Bound, Top
from diffit.explain.overlap import overlap
from diffit.explain.region import (
    FaithfulRegion,
)
from diffit.explain.results import as_json
from diffit.explain.smoothed import Run, certify, mean_map, predict, region
from diffit.explain.smoothing import Smoothed
from diffit.explain.units import Units, from_pm1

VOTES = 200
"""Copies that choose the class to explain, where the user has named none."""

MOST = 100
"""Images in one picture; matplotlib draws some four times as many."""


class Map(Settings):
    """Explain images, with and without smoothing: overlays, and where the noisy copies differ."""

    images: Images
    """Image files, or images of a set such as builtin:digits-test:3."""
    parts: tyro.conf.OmitArgPrefixes[Parts]
    noise: tyro.conf.OmitArgPrefixes[Noise]
    out: Path
    """PNG file for the picture; a JSON file of the same name gets the maps."""
    method: str = "transformer-attribution"
    """raw-attention, rollout, gradcam, transformer-attribution, ...: see the documentation."""
    samples: PositiveInt = Field(default=64, le=1_000_000)
    """Noisy copies whose maps are averaged."""
    target: str = "smoothed"
    """The class to explain: its name; smoothed, the one most copies are taken for; or each, which
    explains every copy for its own."""
    k: PositiveInt = 4
    """How many of the most relevant tokens are compared."""


class Region(Settings):
    """The faithful region of an image: within which radius its explanation and prediction hold."""

    image: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")]
    """An image file, or an image of a set such as builtin:digits-test:3."""
    parts: tyro.conf.OmitArgPrefixes[Parts]
    noise: tyro.conf.OmitArgPrefixes[Noise]
    method: str = "transformer-attribution"
    """raw-attention, rollout, gradcam, transformer-attribution, ...: see the documentation."""
    samples: PositiveInt = Field(default=4_000, le=100_000_000)
    """Noisy copies whose maps are averaged."""
    target: str = "each"
    """The class to explain: its name; each, which explains every copy for its own class; or
    smoothed, the one most copies are taken for: the region then ends where its label does."""
    k: PositiveInt = 4
    """The explanation is its k most relevant tokens."""
    beta: float = Field(default=0.5, gt=0, le=1)
    """Share of them that must stay."""
    gamma: PositiveFloat = 0.5
    """Largest Renyi divergence that the class probabilities may move by."""
    order: float = Field(default=2.0, gt=1)
    """Order of that divergence."""
    eta: float = Field(default=0.05, gt=0, lt=1)
    """Probability that the radius of the explanation is wrong."""
    of: Top = "reported"
    """Whose top k stays: the one that is reported here, or that of the smoothed map itself, which
    takes more copies to be found."""
    bound: Bound = "bernstein"
    """Inequality behind the confidence box: bernstein or hoeffding."""
    n0: PositiveInt = Field(default=100, le=10_000_000)
    """Target smoothed: noisy copies that choose the class."""
    n: PositiveInt = Field(default=1000, le=10_000_000)
    """Target smoothed: fresh copies that certify it."""
    alpha: float = Field(default=0.001, gt=0, lt=0.5)
    """Target smoothed: probability that the label's certificate is wrong."""
    out: Path | None = None
    """JSON file for the result."""


def run_map(args: Map) -> None:
    """Explain each image twice, draw, and write the numbers."""
    if args.out.suffix.lower() != ".png":
        raise UsageError(f"--out {args.out} must end in .png")
    if len(args.images) > MOST:
        raise UsageError(f"one picture shows {MOST} images at most; these are {len(args.images)}")
    check_out(args.out)
    opened, examples, images = _open(args.parts, args.images)
    smoothed = smooth(opened, args.parts, args.noise.level, method=args.method)
    check_k(args.k, opened, args.parts)
    found = []
    with (
        Bar("explaining", len(examples)) as bar,
        running(args.parts, args.noise.level, args.method) as run,
    ):
        for example, image in zip(examples, images, strict=True):
            found.append(_explain(args, opened, smoothed, example, image, run))
            bar.tell(1)
    draw_maps(args.out, _heads(args, opened), [one.pop("row") for one in found])
    results = {
        "asked": {**args.noise.stated(), "method": args.method, "samples": args.samples,
                  "target": args.target, "k": args.k, "steps": args.parts.steps},
        "grid": list(grid_of(opened.classifier, args.parts.grid)),
        **opened.identity(),
        "images": found,
    }  # fmt: skip
    numbers = args.out.with_suffix(".json")
    write_atomic(numbers, (json.dumps(results, indent=1) + "\n").encode())
    for one in found:
        print(
            f"{one['name']}: {one['explained']}; top {args.k} with and without smoothing share "
            f"{one['overlap']:.0%}"
        )
    print(f"  picture  {args.out}\n  maps     {numbers}")


def run_region(args: Region) -> None:
    """Estimate the map, then say how far it and the prediction hold."""
    check_out(args.out)
    opened, (example,), (image,) = _open(args.parts, (args.image,))
    smoothed = smooth(opened, args.parts, args.noise.level, method=args.method)
    check_k(args.k, opened, args.parts)
    label_certificate = None
    total = args.samples + (args.n0 + args.n if args.target == "smoothed" else 0)
    with (
        Bar("averaging maps", total) as bar,
        running(args.parts, args.noise.level, args.method) as run,
    ):
        how: dict[str, Any] = {"number": example.number, "run": run, "tell": bar.tell}
        if args.target == "smoothed":
            label_certificate = certify(
                smoothed, image, n0=args.n0, n=args.n, alpha=args.alpha, **how
            )
            label: int | None = label_certificate.selected
        else:
            label = named_class(args.target, opened)
        found = mean_map(smoothed, image, label, m=args.samples, **how)
    result = region(
        smoothed, found, dimensions=image.numel(), k=args.k, beta=args.beta, gamma=args.gamma,
        order=args.order, eta=args.eta, of=args.of, bound=args.bound, number=example.number,
        label=label_certificate, by_class=get_method(args.method).by_class,
    )  # fmt: skip
    if args.out is not None:
        results = {
            "image": example.name, **args.noise.stated(), "method": args.method,
            "target": args.target, **as_json(result),
            **opened.identity(),
        }  # fmt: skip
        write_atomic(args.out, (json.dumps(results, indent=1) + "\n").encode())
    for line in _told(args, result, opened):
        print(line)


def named_class(target: str, opened: Opened) -> int | None:
    """The number of a class, None for "each"; UsageError if there is none of that name."""
    names = opened.classifier.class_names
    if target == "each":
        return None
    if target not in names:
        raise UsageError(
            f"--target {target!r} is no class of the classifier ({nearest(target, [*names])}), "
            "and neither smoothed nor each"
        )
    return names.index(target)


def check_k(k: int, opened: Opened, parts: Parts) -> None:
    """UsageError unless a map has more than k entries."""
    rows, columns = grid_of(opened.classifier, parts.grid)
    if k >= rows * columns:
        raise UsageError(f"--k {k} must be less than the {rows * columns} entries of a map")


def spread(maps: Tensor, grid: tuple[int, int], image: np.ndarray) -> np.ndarray:
    """(T,) relevances as (H, W) of an image, scaled to 0 .. 1 for a picture."""
    wide = upsample(to_grid(maps[None], grid), (image.shape[1], image.shape[2]))
    return display(wide)[0].numpy()


def _open(parts: Parts, names: tuple[str, ...]) -> tuple[Opened, list[Example], Tensor]:
    opened = open_parts(parts)
    examples = read_examples(
        names,
        channels=opened.channels,
        size=parts.size,
        classes=opened.classifier.class_names,
    )
    images = to_tensor(examples)
    check_images(opened, examples[0].shape)
    return opened, examples, images.to(opened.device)


def _explain(
    args: Map,
    opened: Opened,
    smoothed: Smoothed,
    example: Example,
    image: Tensor,
    run: Run | None,
) -> dict[str, Any]:
    """The maps of one image as numbers, and as a row of the picture."""
    classifier, number = opened.classifier, example.number
    names = classifier.class_names
    plain_label = int(classifier(image[None]).argmax())
    label, said = plain_label, ""
    if args.target == "smoothed":
        votes = predict(smoothed, image, n=VOTES, number=number, run=run)
        label = max(range(len(names)), key=lambda c: votes.counts[c])
        said = f"{votes.counts[label]} of {sum(votes.counts)} noisy copies are taken for it"
    elif (chosen := named_class(args.target, opened)) is not None:
        label = chosen
    constant = None if args.target == "each" else label
    found = mean_map(smoothed, image, constant, m=args.samples, number=number, run=run)
    if smoothed.explain is None:
        raise ValueError("maps need a method")
    plain = smoothed.explain(image[None], torch.tensor([label], device=image.device))[0]
    plain = plain.detach().cpu().double()
    grid = grid_of(classifier, args.parts.grid)
    noisy = smoothed.smoothing.noisy(image, number, "maps", range(1))
    shown = smoothed.smoothing.shown(noisy, number, "maps", range(1))
    row = Row(
        f"{example.name}\n{names[label]}",
        [
            (example.image, None),
            *(((_pixels(noisy), None),) if opened.model is None else
              ((_pixels(noisy), None), (_pixels(shown), None))),
            (example.image, spread(plain, grid, example.image)),
            (example.image, spread(found.mean, grid, example.image)),
            (example.image, spread(found.std, grid, example.image)),
        ],
    )  # fmt: skip
    return {
        "name": example.name,
        "number": number,
        "explained": _explained(args, names[label], said),
        "class": None if constant is None else names[label],
        "plain_prediction": names[plain_label],
        "plain": (plain / max(float(plain.sum()), 1e-300)).tolist(),
        "smoothed": found.mean.tolist(),
        "std": found.std.tolist(),
        "overlap": overlap(plain.numpy(), found.moments.mean, args.k),
        "row": row,
    }


def _explained(args: Map, name: str, said: str) -> str:
    if not get_method(args.method).by_class:
        return f"{args.method} is the same for every class"
    if args.target == "each":
        return "each copy explained for its own class"
    return f"explained for {name}" + (f" ({said})" if said else "")


def _heads(args: Map, opened: Opened) -> list[str]:
    denoised = [] if opened.model is None else ["denoised"]
    return ["image", "noisy", *denoised, "its map", "smoothed", "varies"]


def _pixels(images: Tensor) -> np.ndarray:
    """The first of (B, C, H, W) images in [-1, 1] as uint8."""
    pixels: np.ndarray = ((images[0].clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy()
    return pixels


def _told(args: Region, result: FaithfulRegion, opened: Opened) -> list[str]:
    units, found, label = args.noise.units, result.map, result.label
    places = grid_of(opened.classifier, args.parts.grid)[1]
    top = " ".join(f"({t // places}, {t % places})" for t in found.top)
    needed = "no number of copies would do" if found.needed is None else f"{found.needed:,} copies"
    lines = [
        f"faithful within an l2 radius of {_length(result.radius_l2, units)} ({PIXELS[units]})",
        f"  explanation  {_length(found.radius_l2, units)}: {args.beta:.0%} of the top {found.k} "
        f"stay; {found.form}, order {found.order:g}, {found.direction}, eta {found.eta:g}, "
        f"{found.m:,} copies",
        f"  prediction   {_length(result.prediction_radius_l2, units)}: the class probabilities "
        f"move by {result.gamma:g} at most, order {result.alpha:g}",
    ]
    if label is not None:
        name = "abstains" if label.label is None else opened.classifier.class_names[label.label]
        lines.append(
            f"  label        {_length(label.radius_l2, units)}: {name}, alpha {label.alpha:g}, "
            f"{label.n:,} copies"
        )
    return [
        *lines,
        f"  binds        {result.binds}",
        f"  top {found.k}        {top} (row, column)",
        f"  a radius above 0 takes {needed}, if mean and variance stay",
        f"  {found.explained}",
        *([f"  record       {args.out}"] if args.out is not None else []),
    ]


def _length(length: float, units: Units) -> str:
    return f"{from_pm1(length, units):.4f}" if np.isfinite(length) else "any"
