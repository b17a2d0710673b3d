"""Passports come back from their files as they were written."""

import json

import pytest

from diffit.errors import DataError
from diffit.evaluation.intervals import Interval
from diffit.evaluation.passport import (
    FeatureInfo,
    Figure,
    Images,
    Passport,
    read_generation,
    read_passport,
    versions,
    write_passport,
)

PASSPORT = Passport(
    figures=(
        Figure(
            name="KID (digits-cnn)",
            metric="kid",
            features="digits-cnn",
            protocol="area",
            value=-0.25,
            interval=Interval(low=-0.5, high=0.125, method="by hand"),
            samples=10,
            reference=20,
            better="lower",
            settings={"subsets": 3},
        ),
    ),
    samples=Images(path="runs/a", kind="images", count=10, shape=(1, 8, 8), hash="aa"),
    reference=Images(path="r.npz", kind="statistics", count=None, shape=None, hash="bb"),
    features=(FeatureInfo(name="digits-cnn", dims=64, hash="cc", protocol="area", resize="to 8"),),
    generation={"seed": 3, "sampling": {"steps": 18, "sampler": "heun", "guidance": 1.5}},
    seed=0,
    versions=versions(),
    notes=("a note",),
)


def test_a_passport_comes_back_as_it_was(tmp_path):
    path = tmp_path / "passport.json"
    write_passport(path, PASSPORT)
    assert read_passport(path) == PASSPORT
    assert PASSPORT.value("kid") == -0.25
    assert [p.name for p in path.parent.iterdir()] == ["passport.json"]
    with pytest.raises(KeyError):
        PASSPORT.value("fd")


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "passport.json"
    with pytest.raises(DataError, match="does not exist"):
        read_passport(path)
    path.write_text("{")
    with pytest.raises(DataError, match="no valid JSON"):
        read_passport(path)
    path.write_text("[1]")
    with pytest.raises(DataError, match="must hold a JSON object"):
        read_passport(path)
    path.write_text('{"format": "diffit-passport-9"}')
    with pytest.raises(DataError, match="no passport of format diffit-passport-2"):
        read_passport(path)
    data = PASSPORT.model_dump(mode="json")
    data["figures"][0]["value"] = "low"
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match=r"damaged passport, see 'figures\.0\.value'"):
        read_passport(path)


def test_a_passport_that_cannot_be_written_says_so(tmp_path):
    with pytest.raises(DataError, match="cannot be written: No such file or directory"):
        write_passport(tmp_path / "absent" / "passport.json", PASSPORT)


def test_how_samples_were_drawn_is_read_where_it_was_recorded(tmp_path):
    assert read_generation(None) == {}
    (tmp_path / "samples.json").write_text('{"seed": 4}')
    assert read_generation(tmp_path / "samples.json") == {"seed": 4}
