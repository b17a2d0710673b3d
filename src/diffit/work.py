"""Work units of a folder of drawn images: which are drawn, who draws which, whether all is well.

    OUT/units/000012.txt     unit 12 is drawn; a line for each of its images, as `sha256sum` has it
    OUT/units/000012.claim   a process draws it, or died over it

Processes, on any number of machines that share the folder, take units by claiming them. What is
drawn twice, by a slow machine and an impatient one, is the same, byte for byte.
"""

import contextlib
import hashlib
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path

from diffit.claims import PAUSE, claim
from diffit.data.images import to_png
from diffit.errors import DataError
from diffit.generation import Watch, draw, label_tensor
from diffit.model import Model
from diffit.samples import Plan, image_path, numbered, partial_path, write_here


def unit_path(out: Path, unit: int, suffix: str = ".txt") -> Path:
    """The note of a unit, or its claim."""
    return out / "units" / numbered(unit, suffix)


def is_drawn(out: Path, plan: Plan, unit: int) -> bool:
    """Whether the note of a unit covers all of its images that the plan asks for."""
    return len(_note(out, unit)) >= len(plan.places(unit))


def missing(out: Path, plan: Plan, units: Iterable[int]) -> list[int]:
    """Those of the units that are not drawn yet."""
    return [unit for unit in units if not is_drawn(out, plan, unit)]


def count_notes(out: Path) -> int:
    """How many units have a note."""
    return sum(1 for _ in (out / "units").rglob("*.txt"))


def claimed(out: Path, plan: Plan, units: Sequence[int]) -> Generator[int]:
    """The units that this process shall draw, one after the other, until all of them are drawn.

    First those that nobody has claimed; then those of other machines, since none can tell a slow
    one from a dead one; then it waits for those that other processes of this machine are drawing.
    """
    left, alone = list(units), True
    while left:
        passed = []
        for unit in left:
            if is_drawn(out, plan, unit):
                continue
            path = unit_path(out, unit, ".claim")
            path.parent.mkdir(exist_ok=True)
            with claim(path) as holder:
                if holder == "busy" or (holder == "elsewhere" and alone):
                    passed.append(unit)
                    continue
                if not is_drawn(out, plan, unit):  # its last holder may just have finished
                    yield unit
                path.unlink(missing_ok=True)
        if not alone and len(passed) == len(left):
            time.sleep(PAUSE)
        left, alone = passed, False


class OvertakenError(Exception):
    """Another process has drawn this unit in the meantime."""


def draw_unit(
    model: Model,
    unit: int,
    plan: Plan,
    out: Path,
    *,
    reference: Model | None = None,
    on_step: Watch | None = None,
) -> None:
    """Draw one unit of the plan, write those of its images that are asked for, then its note.

    OvertakenError as soon as another process has.
    """

    def watch(sigma: float, clean: object) -> None:
        if is_drawn(out, plan, unit):
            raise OvertakenError
        if on_step is not None:
            on_step(sigma, clean)  # type: ignore[arg-type]

    size = plan.sampling.unit
    places = range(unit * size, (unit + 1) * size)
    labels = label_tensor(model, [plan.label(i) for i in places], size)
    seeds = [plan.seed + i for i in places]
    images = draw(model, seeds, labels, plan.sampling, reference=reference, on_step=watch)
    lines = []
    for i, image in zip(plan.places(unit), images.numpy(), strict=False):
        png = to_png(image)
        write_here(image_path(out, i), png)
        lines.append(_line(out, i, png))
    write_here(unit_path(out, unit), "".join(lines).encode())


def check(out: Path, plan: Plan, units: Iterable[int]) -> list[int]:
    """Read all images of drawn units; the units that are not as they were, and no longer noted."""
    bad = []
    for unit in units:
        note = _note(out, unit)[: len(plan.places(unit))]
        if note != [_line_of_file(out, i) for i in plan.places(unit)]:
            bad.append(unit)
            unit_path(out, unit).unlink(missing_ok=True)
    return bad


def checksums(out: Path, plan: Plan) -> Iterator[str]:
    """A line for each image, as they were noted when they were drawn."""
    for unit in plan.units():
        yield from _note(out, unit)[: len(plan.places(unit))]


def sweep(out: Path, plan: Plan) -> None:
    """Remove what dead processes of this machine left half written."""
    for path in (out / "units").rglob("*.claim"):
        if not path.stem.isdigit():
            continue
        with claim(path) as holder:
            if holder == "ours":
                for i in plan.places(int(path.stem)):
                    partial_path(image_path(out, i)).unlink(missing_ok=True)
                partial_path(path.with_suffix(".txt")).unlink(missing_ok=True)


def _note(out: Path, unit: int) -> list[str]:
    try:
        return unit_path(out, unit).read_text("utf-8").splitlines(keepends=True)
    except (FileNotFoundError, UnicodeDecodeError):
        return []
    except OSError as error:
        raise DataError(f"{unit_path(out, unit)} cannot be read: {error.strerror}") from None


def _line(out: Path, i: int, png: bytes) -> str:
    name = image_path(out, i).relative_to(out).as_posix()
    return f"{hashlib.sha256(png).hexdigest()}  {name}\n"


def _line_of_file(out: Path, i: int) -> str | None:
    with contextlib.suppress(OSError):
        return _line(out, i, image_path(out, i).read_bytes())
    return None
