"""Make the embedded data sets from scikit-learn's distribution: digits and patches.

    python tools/make_assets.py src/diffit/assets

Run once by a developer, in an environment that has scikit-learn; the package itself needs only
the results. Licences and authors: src/diffit/assets/LICENSES.md.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image

SIDE = 32
FACTORS = (2, 3, 4)
"""Reductions of the photographs, so that 32 pixels show a roof or a blossom and not a tile."""
STRIDE = 3
HELD_OUT = {"china": (0.38, 0.61), "flower": (0.56, 0.79)}
"""Columns of each photograph that training patches never touch; test patches lie inside."""
MIN_CONTRAST = 14.0
"""Smallest standard deviation of a patch: sky and blurred leaves alone teach nothing."""
TRAIN, TEST = 1800, 200
"""Patches kept of each photograph."""
TEST_EVERY = 6
"""Of the digits every sixth is held out, so that all writers occur in both parts."""


def digits() -> dict[str, np.ndarray]:
    """Images (1797, 8, 8) uint8 with 0..16 stretched to 0..255, labels, and what is held out."""
    data = load_digits()
    images = np.rint(data.images * 255 / 16).astype(np.uint8)
    held_out = np.arange(len(images)) % TEST_EVERY == TEST_EVERY - 1
    return {"images": images, "labels": data.target.astype(np.uint8), "held_out": held_out}


def corners(level: np.ndarray, name: str, *, held_out: bool) -> np.ndarray:
    """(N, 2) row and column of the patches of one level that have enough contrast."""
    height, width, _ = level.shape
    low, high = (round(edge * width) for edge in HELD_OUT[name])
    found = []
    for row in range(0, height - SIDE + 1, STRIDE):
        for column in range(0, width - SIDE + 1, STRIDE):
            inside = low <= column and column + SIDE <= high
            outside = column + SIDE <= low or column >= high
            patch = level[row : row + SIDE, column : column + SIDE].mean(axis=2)
            if (inside if held_out else outside) and patch.std() >= MIN_CONTRAST:
                found.append((row, column))
    return np.array(found)


def patches() -> tuple[Image.Image, dict[str, np.ndarray]]:
    """One sheet with all levels of both photographs, and where in it the patches are."""
    photographs = [Image.fromarray(load_sample_image(f"{name}.jpg")) for name in HELD_OUT]
    levels = [[photo.reduce(factor) for factor in FACTORS] for photo in photographs]
    sheet = Image.new("RGB", (sum(level.width for level in levels[0]), 2 * levels[0][0].height))
    table = []
    for label, (name, row_of_levels) in enumerate(zip(HELD_OUT, levels, strict=True)):
        kept: dict[bool, list[np.ndarray]] = {False: [], True: []}
        left, top = 0, label * levels[0][0].height
        for level in row_of_levels:
            sheet.paste(level, (left, top))
            for held_out, places in kept.items():
                found = corners(np.asarray(level), name, held_out=held_out)
                places.append(found + np.array([top, left]))
            left += level.width
        for held_out, places in kept.items():
            every = np.concatenate(places)
            count = TEST if held_out else TRAIN
            print(name, "test" if held_out else "train", len(every), "->", count)
            chosen = every[np.linspace(0, len(every) - 1, count).round().astype(int)]
            table += [(row, column, label, held_out) for row, column in chosen]
    rows = np.array(table)
    return sheet, {
        "corners": rows[:, :2].astype(np.int16),
        "labels": rows[:, 2].astype(np.uint8),
        "held_out": rows[:, 3].astype(bool),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    np.savez_compressed(folder / "digits.npz", **digits())
    sheet, table = patches()
    sheet.save(folder / "patches.png", optimize=True)
    np.savez_compressed(folder / "patches.npz", **table)


if __name__ == "__main__":
    main()
