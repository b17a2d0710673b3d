"""Features unit by unit: processes, cache, what is shared."""

import os
import pickle
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diffit.data import Arrays, open_dataset
from diffit.errors import UsageError
from diffit.evaluation import EvaluationConfig, evaluate, open_features
from diffit.evaluation.cache import FeatureCache
from diffit.evaluation.extraction import Reader, read_units
from diffit.evaluation.features import Extractor, Features
from diffit.evaluation.measuring import Request, measure_all

DIGITS = open_dataset("builtin:digits-test")
FEATURES = open_features("digits-cnn")


class Counting:
    """An extractor that counts its images: a costly one, so that the cache keeps its features."""

    def __init__(self) -> None:
        self.images = 0

    def __call__(self, images: torch.Tensor) -> Features:
        self.images += len(images)
        return FEATURES.function(images)


def counting() -> tuple[Counting, Extractor]:
    function = Counting()
    return function, replace(FEATURES, function=function, costly=True)


def test_two_processes_give_what_one_gives():
    request = Request(FEATURES, keep=299, groups=10)
    (one,) = measure_all(DIGITS, [request], batch=50)
    (two,) = measure_all(DIGITS, [request], batch=50, processes=2)
    assert one.hash == two.hash
    assert torch.equal(one.labels, two.labels)
    torch.testing.assert_close(one.kept, two.kept, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(one.pool.covariance, two.pool.covariance, rtol=1e-6, atol=1e-8)


def test_a_mapped_file_is_named_to_other_processes_not_copied(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", arr_0=pixels)
    images = open_dataset(tmp_path / "images.npz")
    sent = pickle.dumps(images)
    assert len(sent) < 2000 < pixels.nbytes
    again = pickle.loads(sent)  # noqa: S301
    assert all(np.array_equal(again[i].image, images[i].image) for i in range(50))


def test_an_extractor_that_cannot_be_opened_elsewhere_stays_in_one_process():
    _, extractor = counting()
    reader = Reader(DIGITS, [replace(extractor, recipe=None)], [False])
    with pytest.raises(ValueError, match="without a recipe"):
        list(read_units(reader, size=50, processes=2))


def test_extractors_of_one_identity_run_once():
    function, extractor = counting()
    twin = replace(extractor, protocol="edm", rule=extractor.protocol)
    other = replace(extractor, rule="another")
    list(read_units(Reader(DIGITS, [extractor, twin, other], [False] * 3), size=100))
    assert extractor.identity == twin.identity != other.identity
    assert function.images == 2 * 299


def test_the_second_measurement_computes_nothing_and_finds_the_same(tmp_path):
    cache = FeatureCache(tmp_path)
    function, extractor = counting()
    (first,) = measure_all(DIGITS, [Request(extractor, keep=299)], cache=cache)
    assert function.images == 299
    (second,) = measure_all(DIGITS, [Request(extractor, keep=299)], cache=cache)
    assert function.images == 299
    assert torch.equal(first.kept, second.kept)
    assert torch.equal(first.predicted, second.predicted)
    # The same images in another set are known too; others, or another batch, are not.
    changed = np.stack([DIGITS[i].image.transpose(1, 2, 0) for i in range(299)])
    changed[10] = 255 - changed[10]
    measure_all(Arrays(changed, None), [Request(extractor)], cache=cache)
    assert function.images == 299 + 64


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_a_damaged_file_is_computed_again(tmp_path, damage):
    cache = FeatureCache(tmp_path)
    function, extractor = counting()
    request = Request(extractor, keep=299)
    (first,) = measure_all(DIGITS, [request], batch=299, cache=cache)
    (file,) = tmp_path.glob("*/*.safetensors")
    whole = file.read_bytes()
    middle = len(whole) - 1000
    file.write_bytes({
        "cut": whole[:middle],
        "flip": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "empty": b"",
        "other": b"{}" * 100,
    }[damage])  # fmt: skip
    (again,) = measure_all(DIGITS, [request], batch=299, cache=cache)
    assert function.images == 2 * 299
    assert torch.equal(first.kept, again.kept)
    assert file.read_bytes() == whole


def test_the_oldest_files_go_first(tmp_path):
    cache = FeatureCache(tmp_path)
    features = Features(torch.zeros(10, 100), None, None)
    for number in range(5):
        cache.write(str(number), [b"x"] * 10, features)
        for file in tmp_path.glob("*/*.safetensors"):
            os.utime(file, (file.stat().st_mtime - 10,) * 2)
    assert cache.read("0", [b"x"] * 10) is not None  # now the last to go
    size = next(iter(tmp_path.glob("*/*.safetensors"))).stat().st_size
    cache.trim(2 * size)
    left = [number for number in range(5) if cache.read(str(number), [b"x"] * 10)]
    assert len(left) == 2
    assert 0 in left


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    cache = FeatureCache(tmp_path / "file" / "features")
    function, extractor = counting()
    for count in (1, 2):
        measure_all(DIGITS, [Request(extractor)], cache=cache)
        assert function.images == count * 299


def test_several_extractors_share_one_passport():
    other = replace(FEATURES, protocol="another", rule="another")
    config = EvaluationConfig(draws=0)
    passport = evaluate(
        DIGITS, open_dataset("builtin:digits"), features=[FEATURES, other], config=config
    )
    assert [(f.metric, f.protocol) for f in passport.figures if f.metric in ("fd", "kid")] == [
        ("fd", "area"), ("kid", "area"), ("fd", "another"), ("kid", "another"),
    ]  # fmt: skip
    assert passport.value("fd") == passport.value("fd", "another")
    assert sum(f.metric == "precision" for f in passport.figures) == 1
    assert any("do not compare with each other" in note for note in passport.notes)
    (only,) = evaluate(
        DIGITS, open_dataset("builtin:digits"), features=FEATURES,
        config=EvaluationConfig(metrics=("precision",), draws=0),
    ).figures  # fmt: skip
    assert only.value == passport.value("precision")


def test_statistics_serve_one_protocol_alone():
    known = measure_all(DIGITS, [Request(FEATURES)])[0].statistics(FEATURES)
    with pytest.raises(UsageError, match="statistics are of one resizing alone"):
        evaluate(DIGITS, known, features=[FEATURES, FEATURES])


@pytest.mark.parametrize(("metric", "message"), [
    ("is", "IS .* cannot be measured: digits-cnn gives no scores"),
    ("sfd", "cannot be measured: digits-cnn has no spatial features"),
])  # fmt: skip
def test_figures_of_inception_alone_are_refused_elsewhere(metric, message):
    with pytest.raises(UsageError, match=message):
        evaluate(DIGITS, DIGITS, features=FEATURES, config=EvaluationConfig(metrics=(metric,)))


def test_workers_end_with_a_parent_that_was_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "from diffit.data import open_dataset\n"
        "from diffit.evaluation import open_features\n"
        "from diffit.evaluation.extraction import Reader, read_units\n"
        "import multiprocessing, sys, time\n"
        "if __name__ == '__main__':\n"
        "    images, features = open_dataset('builtin:digits'), open_features('digits-cnn')\n"
        "    reader = Reader(images, [features], [False])\n"
        "    units = read_units(reader, size=2, processes=2)\n"
        "    next(units)\n"
        "    print(*(p.pid for p in multiprocessing.active_children()), flush=True)\n"
        "    time.sleep(60)\n",
        encoding="utf-8",
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        children = [int(word) for word in parent.stdout.readline().split()]
        parent.kill()
    assert len(children) == 2
    deadline = time.monotonic() + 20
    while any(_runs(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_runs(child) for child in children)


def _runs(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    # A zombie that nobody has waited for has ended all the same.
    status = Path(f"/proc/{number}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")
