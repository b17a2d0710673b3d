"""The picture of what quantising did."""

import warnings

from diffit.deploy.quantize_report import LayerRow, LevelRow, Report, draw


def test_a_model_that_nothing_changed_is_drawn_without_a_warning(tmp_path):
    report = Report(
        source="runs/x", weights="ema", linear={"name": "ternary-packed"}, data="builtin:digits",
        images=8, calibration=0, target=None, error=0.0, bits=2.3,
        levels=tuple(LevelRow(sigma=sigma, clean=0.0, raw=0.0) for sigma in (0.1, 1.0, 10.0)),
        layers=(LayerRow(name="column.0.out", weights=256, kind="ternary-packed"),),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(report, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
