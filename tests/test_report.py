"""The HTML report: self-contained, escaped, well-formed, and its curves drawn to scale."""

import base64
import io
import math
import re
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from diffit import report

NASTY = "<script>alert('1')</script> & \"two\""


class Checker(HTMLParser):
    """Collects every address and text of a page, and sees that tags are closed in order."""

    VOID = frozenset(("meta", "img", "path", "polyline"))

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    assert not checker.open
    return checker


def whole_page(text: str = "words") -> str:
    image = np.zeros((3, 8, 8), np.uint8)
    return report.page(
        text,
        text,
        [
            report.tiles([report.Tile(text, text, text)]),
            report.section(
                text,
                report.curve({text: [(0, 1), (5, 0.1)], "b": [(1, 2)]}, x=text, y=text),
                report.pictures([(image, text)]),
                report.matrix([text], [(text, [image])]),
                report.table([text, text], [[text, text]]),
                report.commands([text, text]),
                report.details(text, text),
                note=text,
            ),
        ],
    )


def test_the_page_is_well_formed() -> None:
    page = read(whole_page())
    assert page.tags[0] == "html"
    assert {"svg", "img", "table", "pre", "details", "h1", "h2"} <= set(page.tags)


def test_nothing_comes_from_outside() -> None:
    html = whole_page()
    assert all(a.startswith("data:image/png;base64,") for a in read(html).addresses)
    assert not re.search(r"https?:|@import|url\(|<link|<script", html)


def test_every_text_is_escaped() -> None:
    page = read(whole_page(NASTY))
    assert "script" not in page.tags
    assert page.text.count(NASTY) >= 14


def test_light_dark_and_small_screens_are_thought_of() -> None:
    html = whole_page()
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html
    assert "overflow-x: auto" in html


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 5, 7)])
def test_pictures_come_back_from_their_address(shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    (address,) = read(report.pictures([(image, "")])).addresses
    data = base64.b64decode(address.partition(",")[2])
    back = np.asarray(Image.open(io.BytesIO(data)))
    assert np.array_equal(back if shape[0] == 1 else back.transpose(2, 0, 1), image.squeeze())


def points_of(svg: str) -> list[list[tuple[float, float]]]:
    lines = re.findall(r'<polyline[^>]*points="([^"]*)"', svg)
    return [[tuple(map(float, p.split(","))) for p in line.split()] for line in lines]


def test_a_power_of_ten_is_the_same_height_everywhere() -> None:
    (line,) = points_of(report.curve({"": [(0, 10), (1, 1), (2, 0.1), (4, 0.01)]}, x="", y=""))
    drops = [b[1] - a[1] for a, b in pairwise(line)]
    assert drops == pytest.approx([drops[0]] * 3, abs=0.2)
    steps = [b[0] - a[0] for a, b in pairwise(line)]
    assert steps == pytest.approx([steps[0], steps[0], 2 * steps[0]], abs=0.2)


def test_points_that_are_not_finite_are_left_out() -> None:
    data = [(0, 1.0), (1, math.nan), (2, math.inf), (3, 0.0), (4, 0.5)]
    (line,) = points_of(report.curve({"": data}, x="", y=""))
    assert len(line) == 2


def test_an_empty_curve_says_so() -> None:
    assert "nothing to draw" in report.curve({"loss": []}, x="", y="")


@pytest.mark.parametrize("value", [1e-12, 0.3, 7.0, 4e9])
def test_a_flat_curve_of_one_point_is_drawn(value: float) -> None:
    assert points_of(report.curve({"": [(0, value)]}, x="", y=""))


@pytest.mark.parametrize(("low", "high"), [(0.1, 10), (0.2, 0.31), (1e-5, 1e5), (0.97, 1.02)])
def test_ticks_of_the_logarithmic_axis_are_few_and_inside(low: float, high: float) -> None:
    labels = re.findall(
        r'text-anchor="end">([^<]*)<', report.curve({"": [(0, low), (1, high)]}, x="", y="")
    )
    assert 2 <= len(labels) <= 10
    assert len(set(labels)) == len(labels)


def test_heat_runs_from_dark_to_light() -> None:
    picture = report.heat(np.array([[0.0, 0.25, 0.5, 1.0]])).astype(int)
    assert picture.shape == (3, 1, 4)
    assert (np.diff(picture.sum(0)[0]) > 0).all()
    assert report.heat(np.zeros((2, 2))).max() < 64


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (7, "7"), (1234, "1,234"), (0.25, "0.25"), (250_000, "250k"), (999_999, "1000k"),
     (3_200_000, "3.2M"), (561_035_232, "561M"), (2e9, "2G")],
)  # fmt: skip
def test_numbers_are_short(number: float, text: str) -> None:
    assert report.count(number) == text
