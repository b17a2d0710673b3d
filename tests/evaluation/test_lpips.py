"""LPIPS on backbones of random weights: its layout, its invariants, its refusals."""

import pytest
import torch
from torch import Tensor, nn

from diffit.errors import CheckpointError, DataError, UsageError
from diffit.evaluation.lpips import BACKBONES, LEAST, features, load_heads, open_lpips

WIDTHS = {
    "alex": (64, 192, 384, 256, 256),
    "vgg": (64, 128, 256, 512, 512),
    "squeeze": (64, 128, 256, 384, 384, 512, 512),
}
ALEX = ((0, 3, 64, 11), (3, 64, 192, 5), (6, 192, 384, 3), (8, 384, 256, 3), (10, 256, 256, 3))
VGG = (
    (0, 3, 64), (2, 64, 64), (5, 64, 128), (7, 128, 128), (10, 128, 256), (12, 256, 256),
    (14, 256, 256), (17, 256, 512), (19, 512, 512), (21, 512, 512), (24, 512, 512),
    (26, 512, 512), (28, 512, 512),
)  # fmt: skip
FIRES = (
    (3, 64, 16, 64), (4, 128, 16, 64), (6, 128, 32, 128), (7, 256, 32, 128), (9, 256, 48, 192),
    (10, 384, 48, 192), (11, 384, 64, 256), (12, 512, 64, 256),
)  # fmt: skip


def state_dict(backbone: str) -> dict[str, Tensor]:
    """Random weights with torchvision's names and shapes."""
    generator, state = torch.Generator().manual_seed(0), {}

    def add(name: str, inside: int, outside: int, side: int) -> None:
        shape = (outside, inside, side, side)
        state[f"{name}.weight"] = (
            torch.randn(shape, generator=generator) / (inside * side**2) ** 0.5
        )
        state[f"{name}.bias"] = torch.randn(outside, generator=generator) / 10

    if backbone == "alex":
        for index, inside, outside, side in ALEX:
            add(f"features.{index}", inside, outside, side)
    elif backbone == "vgg":
        for index, inside, outside in VGG:
            add(f"features.{index}", inside, outside, 3)
    else:
        add("features.0", 3, 64, 3)
        for index, inside, narrow, wide in FIRES:
            add(f"features.{index}.squeeze", inside, narrow, 1)
            add(f"features.{index}.expand1x1", narrow, wide, 1)
            add(f"features.{index}.expand3x3", narrow, wide, 3)
    return state


@pytest.fixture(scope="module", params=BACKBONES)
def network(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("lpips") / f"{request.param}.pth"
    torch.save(state_dict(request.param), path)
    return open_lpips(path, request.param)


def images(side: int) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def test_heads_are_not_negative_and_fit_the_layers(network):
    backbone = network.name.removeprefix("lpips-")
    assert [head.shape[1] for head in network.heads] == list(WIDTHS[backbone])
    assert all((head >= 0).all() for head in network.heads)
    taps = features(images(64), backbone, network.weights)
    assert [tap.shape[1] for tap in taps] == list(WIDTHS[backbone])


def test_the_distance_is_one_of_images(network):
    a, b = images(40), images(40).flip(0)
    assert network(a, a).tolist() == [0, 0]
    torch.testing.assert_close(network(a, b), network(b, a))
    torch.testing.assert_close(network(a[:1], b[:1]), network(a, b)[:1], rtol=1e-4, atol=1e-6)
    near = network(a, (a + 0.02).clamp(0, 1))
    assert (near < network(a, b)).all()
    levels = (a * 255).round().to(torch.uint8)
    torch.testing.assert_close(network(levels, b), network(levels / 255, b))


def test_the_smallest_images_have_a_distance_and_smaller_ones_are_refused(network):
    least = LEAST[network.name.removeprefix("lpips-")]
    assert network(images(least), images(least).flip(0)).isfinite().all()
    small = images(least - 1)
    with pytest.raises(DataError, match=f"needs images of at least {least} x {least} pixels"):
        network(small, small)


def test_alexnet_is_walked_as_torchvision_has_it():
    state = state_dict("alex")
    convolutions = {i: nn.Conv2d(a, b, k, s, p) for (i, a, b, k), s, p in zip(
        ALEX, (4, 1, 1, 1, 1), (2, 2, 1, 1, 1), strict=True)}  # fmt: skip
    layers: list[nn.Module] = []
    for index, convolution in convolutions.items():
        convolution.load_state_dict(
            {kind: state[f"features.{index}.{kind}"] for kind in ("weight", "bias")}
        )
        layers += [convolution, nn.ReLU()]
        if index in (0, 3):
            layers.append(nn.MaxPool2d(3, 2))
    x = images(64)
    torch.testing.assert_close(features(x, "alex", state)[-1], nn.Sequential(*layers)(x))


def test_lpips_refusals(tmp_path):
    path = tmp_path / "vgg.pth"
    torch.save(state_dict("vgg"), path)
    with pytest.raises(UsageError, match="no LPIPS backbone 'resnet'; choose from alex"):
        open_lpips(path, "resnet")
    with pytest.raises(CheckpointError, match=r"does not fit: features.3.weight is missing"):
        open_lpips(path, "alex")
    strange = state_dict("alex")
    strange["features.3.weight"] = strange["features.3.weight"][:, :32]
    torch.save(strange, tmp_path / "narrow.pth")
    with pytest.raises(CheckpointError, match="its layers have other shapes"):
        open_lpips(tmp_path / "narrow.pth", "alex")
    network = open_lpips(path, "vgg")
    with pytest.raises(DataError, match="cannot be compared by LPIPS"):
        network(images(32), images(40))
    with pytest.raises(DataError, match="not finite"):
        network(images(32) * torch.nan, images(32))
    assert len(load_heads("vgg")) == 5
