"""Draw one photograph as every task of restoration degrades it.

    python tools/task_sheet.py photo.png docs/images/tasks.png

Run once by a developer; the documentation shows the result.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from diffit import draws
from diffit.data.images import read_image, to_pillow
from diffit.restoration.degrade.fields import resized
from diffit.restoration.tasks import TASKS

SIDE, COLUMNS, LINE, GAP = 96, 8, 17, 4
COLOURS = 256
"""Of the picture's palette: noise does not compress, and a page should load quickly."""


def square(path: Path) -> Tensor:
    """The right end of a photograph, in [-1, 1]."""
    image = torch.from_numpy(read_image(path, channels=3)).float() / 127.5 - 1
    side = min(image.shape[1:])
    return resized(image[:, :side, -side:], SIDE, SIDE).clamp(-1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photo", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    clean = square(args.photo)
    cells = {"(clean)": clean}
    for name, task in TASKS.items():
        cells[name] = task.degrade(clean, draws.generator(3, 0, "sheet"))
    rows = -(-len(cells) // COLUMNS)
    size = (COLUMNS * (SIDE + GAP) + GAP, rows * (SIDE + LINE) + GAP)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for i, (name, image) in enumerate(cells.items()):
        left, top = GAP + i % COLUMNS * (SIDE + GAP), GAP + i // COLUMNS * (SIDE + LINE)
        sheet.paste(to_pillow(((image + 1) * 127.5).round().byte()), (left, top))
        draw.text((left + SIDE / 2, top + SIDE + 1), name, fill="black", font=font, anchor="ma")
    sheet.quantize(COLOURS, dither=Image.Dither.NONE).save(args.out, optimize=True)
    print(f"{args.out}: {len(TASKS)} tasks, {args.out.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
