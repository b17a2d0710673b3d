import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffit.data import open_dataset
from diffit.data.images import write_png
from diffit.data.inspect import survey
from diffit.errors import DataError

RNG = np.random.default_rng(4)


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    """Two classes of images of many kinds, a copy, two broken files and litter."""
    for name in ("big cats", "dogs"):
        (tmp_path / name).mkdir()
    cats, dogs = tmp_path / "big cats", tmp_path / "dogs"
    write_png(cats / "1.png", noise(3, 40, 50))
    (cats / "2.png").write_bytes((cats / "1.png").read_bytes())
    Image.open(cats / "1.png").save(cats / "3.bmp")  # the same pixels in another format
    write_png(cats / "4.png", noise(1, 70, 70))
    Image.fromarray(noise(70, 70, 4), "RGBA").save(dogs / "1.png")
    Image.fromarray(noise(70, 70, 3)).quantize(16).save(dogs / "2.png")
    Image.fromarray(noise(70, 70).astype(np.uint16) * 257).save(dogs / "3.png")
    Image.fromarray(noise(70, 70, 4), "CMYK").save(dogs / "4.jpg")
    (dogs / "5.png").write_bytes(b"text")
    (dogs / "6.jpg").write_bytes((dogs / "4.jpg").read_bytes()[:-100])
    (dogs / "notes.txt").write_text("x")
    (dogs / ".DS_Store").write_text("x")
    return tmp_path


def test_everything_in_a_folder_is_counted(messy: Path) -> None:
    found = survey(str(messy))
    assert found.layout == "one sub-folder per class"
    assert found.images == 8
    assert found.classes == {"big cats": 4, "dogs": 4}
    assert found.sizes == Counter({(70, 70): 5, (50, 40): 3})
    assert found.pixels == Counter(
        {"RGB": 3, "grey": 1, "RGB with transparency": 1, "palette": 1, "16-bit grey": 1, "CMYK": 1}
    )
    assert found.others == Counter({".txt": 1})
    assert found.hidden == 1


def test_images_with_the_same_pixels_are_duplicates_in_any_format(messy: Path) -> None:
    assert survey(str(messy)).duplicates == [
        ["big cats/1.png", "big cats/2.png", "big cats/3.bmp"],
    ]


def test_unreadable_files_are_listed_with_their_reasons(messy: Path) -> None:
    unreadable = survey(str(messy)).unreadable
    assert list(unreadable) == ["dogs/5.png", "dogs/6.jpg"]
    assert "is no image that can be read" in unreadable["dogs/5.png"]
    assert "is damaged: image file is truncated" in unreadable["dogs/6.jpg"]


def test_the_suggested_settings_open_the_set(messy: Path) -> None:
    found = survey(str(messy))
    assert found.settings == {"path": str(messy), "channels": 3, "size": 32}
    assert found.memory == 8 * 3 * 32 * 32
    dataset = open_dataset(**found.settings)
    assert dataset.shape == (3, 32, 32)
    assert dataset[0].image.shape == (3, 32, 32)


def test_notes_say_what_an_owner_should_know(messy: Path) -> None:
    notes = "\n".join(survey(str(messy)).notes)
    assert "2 of the images are grey; channels: 3 repeats them" in notes
    assert "1 have transparency, which becomes white" in notes
    assert "training stops at an unreadable file" in notes
    assert "2 classes have fewer than 10 images, such as 'big cats'" in notes


def test_few_small_images_are_enlarged_rather_than_all_made_small(tmp_path: Path) -> None:
    for i in range(40):
        write_png(tmp_path / f"{i}.png", noise(3, 64, 80) if i else noise(3, 9, 9))
    found = survey(str(tmp_path))
    assert found.settings["size"] == 64
    assert "1 images are smaller than 64 px and will be enlarged" in found.notes


def test_a_set_that_is_refused_says_why_and_how_to_open_it(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", noise(3, 8, 8))
    (tmp_path / "sub").mkdir()
    write_png(tmp_path / "sub" / "b.png", noise(3, 8, 8))
    found = survey(str(tmp_path))
    assert "holds images both directly and in sub-folders" in found.refusal
    assert found.settings["labels"] is False
    assert len(open_dataset(**found.settings)) == 2


def test_a_set_without_one_readable_image_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"text")
    found = survey(str(tmp_path))
    assert found.images == 0
    assert found.sheet is None
    assert "none of the images can be read" in found.notes


def test_arrays_are_inspected_as_well(tmp_path: Path) -> None:
    images = noise(5, 8, 8, 3)
    images[4] = images[1]
    np.savez(tmp_path / "set.npz", arr_0=images, arr_1=np.array([0, 1, 1, 3, 3]))
    found = survey(str(tmp_path / "set.npz"))
    assert found.classes == {"0": 1, "1": 2, "2": 0, "3": 2}
    assert found.duplicates == [["image 1", "image 4"]]
    assert found.settings == {"path": str(tmp_path / "set.npz")}
    assert found.memory == images.nbytes


def test_the_embedded_digits_are_what_they_are() -> None:
    found = survey("builtin:digits")
    assert found.images == sum(found.classes.values()) == 1498
    assert found.sizes == Counter({(8, 8): 1498})
    assert not found.duplicates
    assert not found.notes


def test_the_contact_sheet_shows_images_from_all_over_the_set(tmp_path: Path) -> None:
    for i in range(100):
        write_png(tmp_path / f"{i:03d}.png", np.full((3, 16, 16), 2 * i, np.uint8))
    sheet = survey(str(tmp_path)).sheet
    assert sheet is not None
    shown = sheet[0, 48::98, 48::98]
    assert shown[:-1].flatten().tolist() == [4 * i for i in range(len(shown[:-1].flatten()))]
    assert sheet.max() == 255  # the lines between


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images"):
        survey(str(tmp_path))


def test_progress_is_shown_image_by_image(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", noise(3, 8, 8))
    seen = []
    survey(str(tmp_path), follow=lambda numbers: (seen.append(i) or i for i in numbers))
    assert seen == [0]


def test_what_is_found_can_be_written_as_json(messy: Path, capsys) -> None:
    from diffit.commands.data import Inspect, run_inspect

    run_inspect(Inspect(path=str(messy), sheet=None, as_json=True))
    found = json.load(io.StringIO(capsys.readouterr().out))
    assert found["images"] == 8
    assert found["sizes"] == [[70, 70, 5], [50, 40, 3]]
    assert found["sheet"] is None
