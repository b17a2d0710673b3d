"""Work units: drawn once by whoever comes, twice where nobody can know, and always checked."""

import hashlib
import subprocess
from pathlib import Path

import pytest

from diffit import work
from diffit.claims import claim
from diffit.model import Model, build_model
from diffit.samples import Plan, Weights, image_path, numbered, partial_path, write_here
from diffit.sampling import SamplingConfig
from diffit.work import (
    OvertakenError,
    check,
    checksums,
    claimed,
    count_notes,
    draw_unit,
    is_drawn,
    missing,
    sweep,
    unit_path,
)
from tiny import tiny_run


def plan_of(count: int, **changes: object) -> Plan:
    content = {
        "weights": Weights(checkpoint="x", name="model", hash="0"),
        "seed": 0,
        "labels": (0, 1, 2),
        "classes": ("a", "b", "c"),
        "sampling": SamplingConfig(steps=2, unit=4),
        "device": "cpu",
        "threads": 1,
        "versions": {},
        "count": count,
        "command": "",
    }
    return Plan(**{**content, **changes})


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    (tmp_path / "units").mkdir()
    return tmp_path


@pytest.fixture(scope="module")
def model() -> Model:
    return build_model(tiny_run().model)


def note(out: Path, plan: Plan, unit: int) -> None:
    write_here(unit_path(out, unit), b"line\n" * len(plan.places(unit)))


def test_units_cover_every_image_once() -> None:
    plan = plan_of(10)
    assert [list(plan.places(unit)) for unit in plan.units()] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8, 9],
    ]  # fmt: skip


def test_no_folder_holds_more_than_a_thousand() -> None:
    assert numbered(999, ".png") == "000999.png"
    assert numbered(1000, ".png") == "00001/001000.png"
    assert numbered(1_234_567, ".png") == "01234/1234567.png"


def test_a_unit_is_drawn_when_its_note_covers_what_is_asked_for(out: Path) -> None:
    few, more = plan_of(10), plan_of(11)
    note(out, few, 2)
    assert is_drawn(out, few, 2)
    assert not is_drawn(out, more, 2)
    assert missing(out, few, few.units()) == [0, 1]
    assert missing(out, more, more.units()) == [0, 1, 2]
    assert count_notes(out) == 1


def test_all_units_are_handed_out_in_order(out: Path) -> None:
    plan, seen = plan_of(20), []
    note(out, plan, 1)
    for unit in claimed(out, plan, plan.units()):
        assert unit_path(out, unit, ".claim").exists()
        seen.append(unit)
        note(out, plan, unit)
    assert seen == [0, 2, 3, 4]
    assert not list(out.rglob("*.claim"))


def test_what_a_living_process_draws_is_left_to_it(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, waits, seen = plan_of(12), [], []
    with claim(unit_path(out, 0, ".claim")):

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            note(out, plan, 0)  # as that process would

        monkeypatch.setattr(work.time, "sleep", sleep)
        for unit in claimed(out, plan, plan.units()):
            seen.append(unit)
            note(out, plan, unit)
    assert seen == [1, 2]
    assert len(waits) == 1


def test_what_a_killed_process_began_comes_in_its_turn(out: Path) -> None:
    with pytest.raises(KeyboardInterrupt), claim(unit_path(out, 0, ".claim")):
        raise KeyboardInterrupt
    plan, seen = plan_of(12), []
    for unit in claimed(out, plan, plan.units()):
        seen.append(unit)
        note(out, plan, unit)
    assert seen == [0, 1, 2]


def test_what_another_machine_began_comes_last(out: Path) -> None:
    plan, seen = plan_of(12), []
    unit_path(out, 0, ".claim").write_text("another machine")
    for unit in claimed(out, plan, plan.units()):
        seen.append(unit)
        note(out, plan, unit)
    assert seen == [1, 2, 0]
    assert not list(out.rglob("*.claim"))


def test_who_is_overtaken_stops(out: Path, model: Model) -> None:
    plan = plan_of(4)
    told = []

    def on_step(sigma: float, _: object) -> None:
        told.append(sigma)
        note(out, plan, 0)

    with pytest.raises(OvertakenError):
        draw_unit(model, 0, plan, out, on_step=on_step)
    assert len(told) == 1
    assert not list((out / "images").iterdir())


def test_checksums_are_those_of_the_files_and_of_sha256sum(out: Path, model: Model) -> None:
    plan = plan_of(6)
    for unit in plan.units():
        draw_unit(model, unit, plan, out)
    lines = "".join(checksums(out, plan))
    assert lines == "".join(
        f"{hashlib.sha256(image_path(out, i).read_bytes()).hexdigest()}  images/{i:06d}.png\n"
        for i in range(6)
    )
    done = subprocess.run(["sha256sum", "--check", "-"], input=lines, cwd=out, text=True)
    assert done.returncode == 0


def test_a_unit_that_has_changed_is_found_and_its_note_removed(out: Path, model: Model) -> None:
    plan = plan_of(12)
    for unit in plan.units():
        draw_unit(model, unit, plan, out)
    assert check(out, plan, plan.units()) == []
    path = image_path(out, 5)
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    image_path(out, 8).unlink()
    assert check(out, plan, plan.units()) == [1, 2]
    assert missing(out, plan, plan.units()) == [1, 2]


def test_only_what_the_dead_left_is_swept(out: Path) -> None:
    plan = plan_of(12)
    parts = [partial_path(image_path(out, i)) for i in (1, 5)]
    for part in parts:
        part.write_bytes(b"half")
    with pytest.raises(KeyboardInterrupt), claim(unit_path(out, 0, ".claim")):
        raise KeyboardInterrupt
    with claim(unit_path(out, 1, ".claim")):  # lives
        sweep(out, plan)
    assert [part.exists() for part in parts] == [False, True]
    assert not unit_path(out, 0, ".claim").exists()


def test_labels_come_in_turn_or_by_seed() -> None:
    turns, uniform = plan_of(12), plan_of(12, label_order="uniform")
    assert [turns.label(i) for i in range(5)] == [0, 1, 2, 0, 1]
    drawn = [uniform.label(i) for i in range(3000)]
    # 1000 of each are expected, with a standard deviation of 26
    assert all(900 < drawn.count(label) < 1100 for label in range(3))
    later = plan_of(12, label_order="uniform", seed=7)
    assert [later.label(i) for i in range(20)] == drawn[7:27]
