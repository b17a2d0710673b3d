import numpy as np
import pytest

from diffit.data import open_dataset


def images(name: str) -> np.ndarray:
    dataset = open_dataset(name)
    return np.stack([dataset[i].image for i in range(len(dataset))])


def labels(name: str) -> np.ndarray:
    dataset = open_dataset(name)
    return np.array([dataset.label(i) for i in range(len(dataset))])


def test_the_digits_are_those_of_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.datasets")
    data = sklearn.load_digits()
    held_out = np.arange(1797) % 6 == 5
    for name, part in (("builtin:digits", ~held_out), ("builtin:digits-test", held_out)):
        # 17 levels, 0..16, stretched to 0..255: dividing gives the original counts back.
        assert (np.rint(images(name)[:, 0] / 255 * 16) == data.images[part]).all()
        assert (labels(name) == data.target[part]).all()


def test_the_digits_use_the_whole_range() -> None:
    values = np.unique(images("builtin:digits"))
    assert len(values) == 17
    assert (values[0], values[-1]) == (0, 255)


@pytest.mark.parametrize(
    ("name", "count", "shape", "classes"),
    [
        ("builtin:digits", 1498, (1, 8, 8), 10),
        ("builtin:digits-test", 299, (1, 8, 8), 10),
        ("builtin:patches", 3600, (3, 32, 32), 2),
        ("builtin:patches-test", 400, (3, 32, 32), 2),
    ],
)
def test_the_sets_are_what_they_are_said_to_be(name, count, shape, classes) -> None:
    dataset = open_dataset(name)
    assert (len(dataset), dataset.shape, len(dataset.classes)) == (count, shape, classes)
    assert set(labels(name)) == set(range(classes))
    assert dataset[0].image.shape == shape
    assert len(np.unique(images(name).reshape(count, -1), axis=0)) == count


def test_no_pixel_of_a_test_patch_is_in_a_training_patch() -> None:
    from diffit.data.builtin import SIDE, _table

    table = _table("patches.npz")
    for label in (0, 1):
        seen = {False: set(), True: set()}
        for held_out in (False, True):
            chosen = (table["labels"] == label) & (table["held_out"] == held_out)
            for _, column in table["corners"][chosen]:
                # Whole columns are held out, level by level, so that columns tell.
                seen[held_out] |= set(range(column, column + SIDE))
        assert not seen[False] & seen[True]


def test_patches_have_contrast() -> None:
    grey = images("builtin:patches").mean(axis=1)
    assert grey.reshape(len(grey), -1).std(axis=1).min() > 13.9


def test_a_set_can_be_resized_converted_and_stripped_of_labels() -> None:
    dataset = open_dataset("builtin:digits", size=16, channels=3, labels=False)
    assert dataset.shape == (3, 16, 16)
    assert dataset.classes == ()
    assert dataset[3].image.shape == (3, 16, 16)
    assert dataset[3].label is None
