"""Several processes: the same bytes as one, an early end, and a death on the way."""

import threading
from functools import partial

import pytest
import torch
from smoothed_models import at, deadly, missing, opened

from diffit.errors import CheckpointError, UsageError
from diffit.explain.processes import in_processes
from diffit.explain.smoothed import certify, mean_map, predict, votes


def test_two_processes_find_the_same_bytes_as_one():
    smoothed = opened(0.5)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with in_processes(partial(opened, 0.5), 2) as run:
            for number, distance in enumerate((0.0, 0.4, 1.0)):
                image = at(distance)
                *_, one = votes(smoothed, image, 300, "estimation", number=number)
                *_, two = votes(smoothed, image, 300, "estimation", number=number, run=run)
                assert one.probabilities.tobytes() == two.probabilities.tobytes()
                assert certify(smoothed, image, number=number) == certify(
                    smoothed, image, number=number, run=run
                )
                assert predict(smoothed, image) == predict(smoothed, image, run=run)
            one_map, two_map = (
                mean_map(smoothed, at(0.4), 1),
                mean_map(smoothed, at(0.4), 1, run=run),
            )
        assert one_map.moments.mean.tobytes() == two_map.moments.mean.tobytes()
        assert one_map.moments.variance.tobytes() == two_map.moments.variance.tobytes()
    finally:
        torch.set_num_threads(threads)


def test_a_process_that_dies_is_one_sentence_and_leaves_nothing_behind():
    before = threading.active_count()
    with (
        pytest.raises(UsageError, match="has died, perhaps for want of memory"),
        in_processes(deadly, 1) as run,
    ):
        certify(opened(0.5), at(0.4), run=run)
    assert threading.active_count() <= before


def test_what_a_process_cannot_open_is_one_sentence(capfd):
    with (
        pytest.raises(CheckpointError, match="the denoiser has gone"),
        in_processes(missing, 1) as run,
    ):
        certify(opened(0.5), at(0.4), run=run)
    assert "Traceback" not in capfd.readouterr().err


def test_no_process_is_refused():
    with (
        pytest.raises(UsageError, match="0 processes compute nothing"),
        in_processes(partial(opened, 0.5), 0),
    ):
        pass
