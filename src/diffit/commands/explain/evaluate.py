"""`diffit explain evaluate`: accuracy, certificates and explanations, attacked or not, in all ways.

Everything is measured in parts of some images each, which are kept in OUT/parts once finished.
"""

import sys
import time
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import tyro
from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from diffit.commands.explain.arguments import Opened, Parts, check_images, grid_of, open_parts
from diffit.commands.explain.evaluate_report import write_reports
from diffit.commands.explain.examples import LabelledSet
from diffit.commands.explain.labels import Match, begin
from diffit.commands.explain.maps import check_k
from diffit.commands.explain.measuring import (
    OTHER_SEED,
    PLAIN,
    Attack,
    Subject,
    Way,
    attack,
    measure_adaptive,
    measure_attacked,
    measure_certified,
    measure_radii,
)
from diffit.commands.explain.progress import Bar
from diffit.commands.explain.store import Store
from diffit.commands.explain.tables import Parted, farewell, sum_up
from diffit.config import Settings
from diffit.errors import UsageError
from diffit.explain.units import Units, from_pm1, in_both, to_pm1
from diffit.training.console import duration
from diffit.training.folder import locked

FORMAT, PLAN = "diffit-explained-1", "evaluation.json"
CHUNK = 25
"""Images of a part."""
SIGMAS = (0.12, 0.25)
EPS = ("8/255", "16/255", "32/255", "0.2")
"""For pixels in [0, 1]."""


class Evaluate(Settings):
    """Measure a classifier plain, behind noise, and behind noise and denoiser: one report.

    Accuracy on clean and attacked images, certified accuracy, how much explanations change under
    attack, perturbation tests, radii of explanations, time. Interrupted? The same command
    continues.
    """

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """A folder, zip or npz of images with classes, or a set such as builtin:digits-test."""
    parts: tyro.conf.OmitArgPrefixes[Parts]
    out: Path
    """Folder for the report, its pictures and tables."""
    units: Units
    """What sigmas, eps and radii are measured in: 01 for pixels in [0, 1], pm1 for [-1, 1]."""
    sigmas: tuple[PositiveFloat, ...] = ()
    """Noise levels; by default 0.12 and 0.25 for pixels in [0, 1]."""
    eps: tuple[str, ...] = ()
    """Largest changes of a pixel by the attack, such as 8/255; by default 8/255, 16/255, 32/255 and
    0.2 for pixels in [0, 1]."""
    attack: Attack = "pgd"
    """What the attack on the plain classifier aims at: pgd at its label, push-out and kl at the
    first of the methods, whose map is to lose its top or to be any other."""
    attack_steps: PositiveInt = Field(default=20, le=10_000)
    """Gradient steps of an attack, each a fifth of eps long."""
    adaptive: int = Field(default=4, ge=0, le=10_000)
    """Noisy copies in each step of the attack that knows the defence, at the middle noise level; 0
    leaves it out."""
    methods: tuple[str, ...] = ("raw-attention", "rollout")
    """Explanations that are compared."""
    samples: PositiveInt = Field(default=64, le=1_000_000)
    """Noisy copies behind a label or a map."""
    k: PositiveInt = 4
    """Explanations are compared by their k most relevant tokens."""
    radius_samples: PositiveInt = Field(default=256, le=10_000_000)
    """Noisy copies behind the radii of explanations."""
    eta: float = Field(default=0.05, gt=0, lt=1)
    """Probability that such a radius is wrong."""
    n0: PositiveInt = Field(default=100, le=10_000_000)
    """Noisy copies that choose a class to be certified."""
    n: PositiveInt = Field(default=1000, le=10_000_000)
    """Fresh copies that are counted for it."""
    alpha: float = Field(default=0.001, gt=0, lt=0.5)
    """Probability that a label's certificate is wrong."""
    every: PositiveInt = 1
    """Take every so-many-th image of the set."""
    limit: PositiveInt = 200
    """Take so many images at most; a repeated command may take more."""
    match: Match = "name"
    """How classes of the set are found among the classifier's: by name, or by their order."""

    @field_validator("eps")
    @classmethod
    def check_eps(cls, eps: tuple[str, ...]) -> tuple[str, ...]:
        """Fractions or decimals above 0."""
        for word in eps:
            try:
                above = float(Fraction(word)) > 0
            except (ValueError, ZeroDivisionError, OverflowError):
                above = False
            if not above:
                raise ValueError(f"eps {word!r} must be a number above 0 such as 8/255 or 0.03")
        return eps

    @field_validator("methods")
    @classmethod
    def check_methods(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        """At least one, none twice."""
        if not methods or len(set(methods)) < len(methods):
            raise ValueError("name at least one method, and none twice")
        return methods

    @model_validator(mode="after")
    def check_names(self) -> Self:
        """Results are kept by the names of their noise levels."""
        names = [way.name for way in self.ways(denoiser=False)]
        if len(set(names)) < len(names):
            raise ValueError("two sigmas differ by less than their first six digits; drop one")
        return self

    @model_validator(mode="after")
    def check_strengths(self) -> Self:
        """No attack may reach every image there is."""
        for word, eps in self.strengths.items():
            if eps >= 2:
                raise ValueError(
                    f"eps {word!r} in units {self.units} reaches every image there is; the "
                    "literature's 8/255 is 0.0314 in units 01"
                )
        return self

    @property
    def levels(self) -> list[float]:
        """Noise levels for pixels in [-1, 1], rising."""
        if self.sigmas:
            return sorted({to_pm1(sigma, self.units) for sigma in self.sigmas})
        return [to_pm1(sigma, "01") for sigma in SIGMAS]

    @property
    def strengths(self) -> dict[str, float]:
        """Name of each attack to its eps for pixels in [-1, 1]."""
        words, units = (self.eps, self.units) if self.eps else (EPS, "01")
        return {word: to_pm1(float(Fraction(word)), units) for word in words}

    def ways(self, *, denoiser: bool) -> list[Way]:
        """All ways of looking at an image: plain, behind noise, behind noise and denoiser."""
        kinds = [("noise", False), ("denoised", True)][: 1 + denoiser]
        return [PLAIN] + [
            Way(f"{kind} {from_pm1(level, self.units):g}", level, denoised)
            for kind, denoised in kinds
            for level in self.levels
        ]


class Task(NamedTuple):
    """One part of the measurement.

    Attributes:
        stage: what is measured.
        way: whose; for the stage "attacked" all at once.
        eps: name of the attack, "0" for none.
        images: which of those that are looked at.
    """

    stage: str
    way: Way
    eps: str
    images: range

    @property
    def name(self) -> str:
        """Of the file that keeps it."""
        places = f"{self.images.start:05}-{self.images.stop:05}"
        return "_".join((self.stage, self.way.key, self.eps.replace("/", "-"), places))


def run_evaluate(args: Evaluate) -> None:
    """Measure what is missing, then sum up, draw and write."""
    started = time.monotonic()
    if args.parts.processes > 1:
        raise UsageError(
            "evaluate works in one process, with PyTorch's threads; leave --processes out"
        )
    opened = open_parts(args.parts)
    subject = Subject.of(opened, args.parts, args.methods)
    check_k(args.k, opened, args.parts)
    examples = LabelledSet(
        args.data,
        channels=opened.channels,
        size=args.parts.size,
        classes=opened.classifier.class_names,
        by=args.match,
        every=args.every,
        limit=args.limit,
    )
    check_images(opened, examples.shape)
    tasks = plan_tasks(args, opened, len(examples))
    for way in args.ways(denoiser=opened.model is not None)[1:]:
        subject.smoothed(way)  # refuses noise levels that the denoiser does not know
    with locked(args.out):
        plan = {"format": FORMAT, "asked": asked_of(args), **opened.identity()}
        begin(args.out, plan, PLAN)
        store = Store(args.out)
        try:
            found = measure_all(args, subject, examples, tasks, store)
        except KeyboardInterrupt:
            print("diffit: nothing is lost; repeat the command to continue", file=sys.stderr)
            raise
        ways = args.ways(denoiser=opened.model is not None)
        strengths = {"0": 0.0, **args.strengths}
        results = {
            **plan,
            "images": len(examples),
            **sum_up(found, ways, strengths, [e.label for e in examples.examples()], args.k),
        }
        written = write_reports(args.out, results, examples, subject, found)
    for line in farewell(results, written, duration(time.monotonic() - started)):
        print(line)


def plan_tasks(args: Evaluate, opened: Opened, images: int) -> list[Task]:
    """All parts, in the order in which they are measured."""
    chunks = [range(i, min(i + CHUNK, images)) for i in range(0, images, CHUNK)]
    ways = args.ways(denoiser=opened.model is not None)
    smoothed = ways[1:]
    best = smoothed[len(args.levels) :] or smoothed  # with the denoiser, if there is one
    middle = best[len(best) // 2]
    plans: list[tuple[str, Way, str]] = [("attacked", PLAIN, eps) for eps in ("0", *args.strengths)]
    plans += [("certified", way, "0") for way in smoothed]
    plans += [("radii", middle, "0")]
    if args.adaptive:
        plans += [("adaptive", middle, eps) for eps in args.strengths]
    return [Task(*plan, chunk) for plan in plans for chunk in chunks]


def measure_all(
    args: Evaluate, subject: Subject, examples: LabelledSet, tasks: list[Task], store: Store
) -> Parted:
    """What each part says, the missing ones measured now."""
    found: Parted = {}
    with Bar("measuring", len(tasks), sum(store.has(task.name) for task in tasks)) as bar:
        for done, task in enumerate(tasks, start=1):
            part = store(task.name, partial(measure, args, subject, examples, task))
            found.setdefault((task.stage, task.way.name, task.eps), []).append(part)
            bar.reach(done)
    return found


def measure(args: Evaluate, subject: Subject, examples: LabelledSet, task: Task) -> Any:
    """One part, as JSON has it."""
    some = [examples[i] for i in task.images]
    eps = args.strengths.get(task.eps, 0.0)
    match task.stage:
        case "attacked":
            ways = args.ways(denoiser=subject.opened.model is not None)
            attacked = attack(subject, some, eps, steps=args.attack_steps, name=args.attack)
            seed = OTHER_SEED if eps else 0
            return measure_attacked(subject, ways, some, attacked, m=args.samples, seed=seed)
        case "certified":
            return measure_certified(
                subject, task.way, some, n0=args.n0, n=args.n, alpha=args.alpha
            )
        case "radii":
            return measure_radii(
                subject, task.way, some, kept(args.k, subject), m=args.radius_samples, eta=args.eta
            )
    return measure_adaptive(
        subject, task.way, some, eps, steps=args.attack_steps, copies=args.adaptive, m=args.samples
    )


def kept(k: int, subject: Subject) -> list[tuple[int, float]]:
    """The explanations whose radii are stated: so many tokens, of which a share stays."""
    rows, columns = grid_of(subject.opened.classifier, subject.parts.grid)
    more = [(2 * k, 0.5)] if 2 * k < rows * columns else []
    return [(k, 0.75), (k, 0.5), *more]


def asked_of(args: Evaluate) -> dict[str, Any]:
    """The settings that results depend on, every length in both units."""
    skipped = {"parts", "out", "sigmas", "eps", "limit"}
    asked = args.model_dump(mode="json", exclude=skipped)
    parts = {"steps", "sampler", "seed", "size", "precision", "grid"}
    asked |= args.parts.model_dump(mode="json", include=parts)
    asked["sigmas"] = [in_both(level) for level in args.levels]
    asked["eps"] = {name: in_both(eps) for name, eps in args.strengths.items()}
    return asked
