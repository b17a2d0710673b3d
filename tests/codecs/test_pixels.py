import pytest
import torch

from diffit.codecs import Pixels, PixelsConfig, build_codec
from diffit.config import parse
from diffit.errors import ConfigError

EVERY = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)


def test_pixels_are_scaled_to_minus_one_to_one() -> None:
    encoded = Pixels().encode(EVERY)
    assert encoded.dtype == torch.float32
    assert torch.equal(encoded, EVERY.float() / 127.5 - 1)
    assert (encoded.min(), encoded.max()) == (-1, 1)


@pytest.mark.parametrize("rounding", ["nearest", "down"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_value_comes_back(rounding, dtype) -> None:
    codec = build_codec(PixelsConfig(rounding=rounding))
    assert torch.equal(codec.decode(codec.encode(EVERY).to(dtype)), EVERY)


def test_rounding_is_to_the_nearest_or_down() -> None:
    levels = torch.tensor([10.4, 10.51, 10.9, 254.9]).double()
    x = (levels / 127.5 - 1).reshape(1, 1, 2, 2)
    assert Pixels().decode(x).flatten().tolist() == [10, 11, 11, 255]
    assert Pixels(PixelsConfig(rounding="down")).decode(x).flatten().tolist() == [10, 10, 10, 254]


def test_values_out_of_range_are_clipped() -> None:
    x = torch.tensor([-1e9, -1.01, 1.01, 1e9]).reshape(1, 1, 2, 2)
    assert Pixels().decode(x).flatten().tolist() == [0, 0, 255, 255]


def test_half_precision_is_decoded_in_single() -> None:
    x = Pixels().encode(EVERY).half()
    assert (Pixels().decode(x).int() - EVERY.int()).abs().max() <= 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_no_pixel(value: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        Pixels().decode(torch.full((1, 1, 2, 2), value))


def test_only_bytes_are_encoded() -> None:
    with pytest.raises(ValueError, match=r"images must be uint8, not torch\.float32"):
        Pixels().encode(EVERY.float())


def test_pixels_keep_channels_and_size() -> None:
    assert Pixels().channels is None
    assert Pixels().factor == 1


def test_an_unknown_rounding_is_refused() -> None:
    with pytest.raises(ConfigError, match="rounding is 'up'; it must be one of 'nearest', 'down'"):
        parse(PixelsConfig, {"rounding": "up"}, source="model.yaml")
