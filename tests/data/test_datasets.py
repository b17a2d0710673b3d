import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from diffit.config import parse
from diffit.data import DataConfig, Dataset, open_data, open_dataset
from diffit.data.images import to_png, write_png
from diffit.errors import ConfigError

RNG = np.random.default_rng(2)
IMAGES = RNG.integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)
NAMES = ["cat/1.png", "cat/2.png", "cat/3.PNG", "ein Hund/ä 1.png", "ein Hund/ä 2.png", "fox/0.png"]
LABELS = [0, 0, 0, 1, 1, 2]
CLASSES = ("cat", "ein Hund", "fox")


def folder(root: Path, names: list[str] = NAMES) -> Path:
    for name, image in zip(names, IMAGES, strict=False):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_png(root / name, image)
    return root


def archive(path: Path, names: list[str], index: object = None) -> Path:
    with zipfile.ZipFile(path, "w") as out:
        for name, image in zip(names, IMAGES, strict=False):
            out.writestr(name, to_png(image))
        if index is not None:
            out.writestr("dataset.json", json.dumps(index))
    return path


def content(dataset: Dataset) -> tuple[np.ndarray, list[int | None]]:
    examples = [dataset[i] for i in range(len(dataset))]
    assert [e.label for e in examples] == [dataset.label(i) for i in range(len(dataset))]
    return np.stack([e.image for e in examples]), [e.label for e in examples]


def assert_is_the_set(dataset: Dataset, classes: tuple[str, ...] = CLASSES) -> None:
    images, labels = content(dataset)
    assert (images == IMAGES).all()
    assert labels == LABELS
    assert dataset.classes == classes
    assert dataset.shape == (3, 8, 8)


def test_sub_folders_are_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    assert_is_the_set(open_dataset(folder(tmp_path)))


def test_a_zip_of_class_folders_is_the_same_set(tmp_path: Path) -> None:
    assert_is_the_set(open_dataset(archive(tmp_path / "set.zip", NAMES)))


@pytest.mark.parametrize("names", [None, list(CLASSES)])
def test_the_labels_of_an_edm_zip_come_from_its_index(tmp_path: Path, names) -> None:
    files = [f"00000/img{i:08d}.png" for i in range(6)]
    index = {"labels": [list(pair) for pair in zip(files, LABELS, strict=True)][::-1]}
    index |= {} if names is None else {"classes": names}
    dataset = open_dataset(archive(tmp_path / "set.zip", files, index))
    assert_is_the_set(dataset, ("0", "1", "2") if names is None else CLASSES)


def test_an_index_without_labels_means_none(tmp_path: Path) -> None:
    dataset = open_dataset(archive(tmp_path / "set.zip", NAMES, {"labels": None}))
    assert content(dataset)[1] == [None] * 6
    assert dataset.classes == ()


def test_a_flat_folder_has_no_labels_and_the_order_of_its_names(tmp_path: Path) -> None:
    dataset = open_dataset(folder(tmp_path, [f"{i}.png" for i in range(6)]))
    images, labels = content(dataset)
    assert (images == IMAGES).all()
    assert labels == [None] * 6


def test_without_labels_any_tree_of_folders_is_one_set(tmp_path: Path) -> None:
    names = ["0.png", "1/a.png", "1/b/c/d.png", "2.png", "3/x.png", "4.png"]
    images, labels = content(open_dataset(folder(tmp_path, names), labels=False))
    assert (images == IMAGES).all()
    assert labels == [None] * 6


def test_litter_of_operating_systems_is_passed_over(tmp_path: Path) -> None:
    folder(tmp_path)
    for name in (".DS_Store", "cat/Thumbs.db", "cat/._1.png", "__MACOSX/cat/._1.png", ".x/y.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(b"litter")
    dataset = open_dataset(tmp_path)
    assert_is_the_set(dataset)
    assert dataset.files.hidden == 5


def test_links_are_followed(tmp_path: Path) -> None:
    folder(tmp_path / "real")
    (tmp_path / "set").mkdir()
    for name in CLASSES:
        (tmp_path / "set" / name).symlink_to(tmp_path / "real" / name)
    assert_is_the_set(open_dataset(tmp_path / "set"))
    (tmp_path / "set" / "cat again").symlink_to(tmp_path / "real" / "cat")
    assert len(open_dataset(tmp_path / "set")) == 9


@pytest.mark.parametrize("index", [None, {"labels": None}])
def test_the_zip_of_a_folder_is_read_like_the_folder(tmp_path: Path, index) -> None:
    path = archive(tmp_path / "set.zip", [f"my set/{name}" for name in NAMES])
    with zipfile.ZipFile(path, "a") as out:
        out.writestr("my set/README.md", "about")
        out.writestr("LICENSE", "about")
        if index is not None:
            labels = {"labels": list(zip(NAMES, LABELS, strict=True)), "classes": CLASSES}
            out.writestr("my set/dataset.json", json.dumps(labels))
    assert_is_the_set(open_dataset(path))


def test_a_name_that_is_no_utf8_can_be_read_and_named(tmp_path: Path) -> None:
    odd = os.path.join(os.fsencode(tmp_path), b"caf\xe9")
    try:
        os.mkdir(odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    write_png(Path(os.fsdecode(odd)) / "1.png", IMAGES[0])
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("caf\\udce9",)
    assert (dataset[0].image == IMAGES[0]).all()


def test_images_are_cropped_and_resized_when_a_size_is_given(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", RNG.integers(0, 256, (3, 9, 20), dtype=np.uint8))
    write_png(tmp_path / "b.png", RNG.integers(0, 256, (1, 50, 30), dtype=np.uint8))
    dataset = open_dataset(tmp_path, size=8)
    assert dataset.shape == (3, 8, 8)
    assert content(dataset)[0].shape == (2, 3, 8, 8)


def test_one_coloured_image_makes_a_set_coloured(tmp_path: Path) -> None:
    for i in range(10):
        write_png(tmp_path / f"{i}.png", IMAGES[0] if i == 7 else IMAGES[0][:1])
    images, _ = content(open_dataset(tmp_path))
    assert images.shape == (10, 3, 8, 8)
    assert (images[0] == IMAGES[0][0]).all()


def test_rectangular_images_of_one_size_keep_it(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", RNG.integers(0, 256, (3, 9, 20), dtype=np.uint8))
    assert open_dataset(tmp_path).shape == (3, 9, 20)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("keys", [("arr_0", "arr_1"), ("images", "labels")])
def test_an_npz_is_a_set(tmp_path: Path, save, keys) -> None:
    arrays = dict(zip(keys, (IMAGES.transpose(0, 2, 3, 1), np.array(LABELS)), strict=True))
    save(tmp_path / "set.npz", **arrays)
    assert_is_the_set(open_dataset(tmp_path / "set.npz"), ("0", "1", "2"))


def test_a_stored_npz_is_mapped_and_a_fortran_array_too(tmp_path: Path) -> None:
    images = np.asfortranarray(IMAGES.transpose(0, 2, 3, 1))
    np.savez(tmp_path / "set.npz", arr_0=images)
    dataset = open_dataset(tmp_path / "set.npz")
    assert isinstance(dataset._images, np.memmap)
    assert (content(dataset)[0] == IMAGES).all()


def test_grey_arrays_need_no_channel_axis(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", arr_0=IMAGES[:, 0])
    dataset = open_dataset(tmp_path / "set.npz", size=4)
    assert dataset.shape == (1, 4, 4)
    assert content(dataset)[0].shape == (6, 1, 4, 4)


def test_a_zip_survives_the_way_to_another_process(tmp_path: Path) -> None:
    dataset = open_dataset(archive(tmp_path / "set.zip", NAMES))
    assert_is_the_set(pickle.loads(pickle.dumps(dataset)))  # noqa: S301


def test_a_configuration_opens_what_it_says(tmp_path: Path) -> None:
    config = parse(DataConfig, {"path": str(folder(tmp_path)), "channels": 1}, source="x")
    assert open_data(config).shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("setting", "answer"),
    [
        ({"size": 0}, "size is 0; it must be greater than or equal to 1"),
        ({"size": 5000}, "size is 5000; it must be less than or equal to 4096"),
        ({"channels": 4}, "channels is 4; it must be one of 1, 3"),
        ({"augment": 1.5}, "augment is 1.5; it must be less than or equal to 1"),
        ({"background": "red"}, "background is 'red'; it must be one of 'white', 'black'"),
        ({"workers": -1}, "workers is -1; it must be greater than or equal to 0"),
        ({"flips": True}, "unknown setting 'flips'; did you mean 'flip'?"),
    ],
)
def test_a_wrong_setting_is_refused(setting: dict, answer: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse(DataConfig, {"path": "x", **setting}, source="train.yaml")
    assert str(refusal.value) == f"train.yaml: {answer}"
