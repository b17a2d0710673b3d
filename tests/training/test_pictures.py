"""Pictures of progress: samples beside real images of the same label, and the curve."""

import numpy as np
import pytest

from diffit.data import open_dataset
from diffit.data.images import read_image
from diffit.training.loop import train
from diffit.training.pictures import draw_curve, draw_pictures, real_images, smooth
from tiny import tiny_run


def test_a_run_draws_samples_beside_real_images(tmp_path):
    config = tiny_run(images=32, snapshot_images=20)
    sampling = config.sampling.model_copy(update={"steps": 2})
    config = config.model_copy(update={"sampling": sampling})
    train(config, tmp_path / "run", on_snapshot=draw_pictures, quiet=True)
    folder = tmp_path / "run" / "snapshots" / "000000000032"
    samples, real, beside = (
        read_image(folder / f"{name}.png") for name in ("samples", "real", "beside")
    )
    # Two rows of ten classes, each pixel eight wide, two pixels between.
    assert samples.shape == real.shape == (1, 2 * 64 + 2, 10 * 64 + 9 * 2)
    assert np.array_equal(beside[..., : real.shape[-1]], real)
    assert np.array_equal(beside[..., -samples.shape[-1] :], samples)
    assert read_image(tmp_path / "run" / "loss.png").shape[0] == 3


def test_real_images_have_the_labels_of_the_samples():
    data = open_dataset("builtin:digits")
    labels = [3, 1, 3, 9]
    found = real_images(data, 4, labels).numpy()
    by_label = {label: [] for label in range(10)}
    for i in range(len(data)):
        image, label = data[i]
        by_label[label].append(image)
    for image, label in zip(found, labels, strict=True):
        assert any(np.array_equal(image, other) for other in by_label[label])
    assert not np.array_equal(found[0], found[2])


@pytest.mark.parametrize("labels", [None, [0, 5, 5, 5, 5]])
def test_a_small_set_fills_the_picture_as_far_as_it_goes(labels):
    class Few:
        classes, shape = (), (1, 2, 2)

        def __len__(self):
            return 2

        def __getitem__(self, i):
            return np.full((1, 2, 2), i, np.uint8), 0

    assert real_images(Few(), 5, labels).shape == (5, 1, 2, 2)


def test_the_curve_is_drawn_and_a_run_without_lines_has_none(tmp_path):
    draw_curve([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    lines = [{"images": i, "loss": 1 / i, "loss_by_level": [1.0, None]} for i in range(1, 9)]
    draw_curve(lines, tmp_path / "loss.png")
    assert read_image(tmp_path / "loss.png").std() > 0


def test_smoothing_keeps_a_constant_and_has_no_bias_at_the_start():
    assert smooth([2.0] * 50) == pytest.approx([2.0] * 50)
    assert smooth([1.0, 3.0])[0] == 1.0
