"""Inception's structure, with random weights: shapes, counts, pools, files."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from diffit.errors import CheckpointError
from diffit.evaluation.features import load_inception
from diffit.evaluation.inception import Conv, Inception, MixedE, average_pool, fold

TORCHVISION_WITHOUT_AUXILIARY_HEAD = 23_834_568
"""Parameters of torchvision's `inception_v3` of 1000 classes, which has the same convolutions."""


@pytest.fixture(scope="module")
def network() -> Inception:
    torch.manual_seed(0)
    return Inception().eval()


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.rand(1, 3, 299, 299, generator=torch.Generator().manual_seed(1)) * 2 - 1


def unfused(network: Inception) -> dict[str, torch.Tensor]:
    """A state dict in pytorch-fid's layout whose batch norms, folded, give ``network``."""
    state: dict[str, torch.Tensor] = {}
    for name, layer in network.named_modules():
        if isinstance(layer, Conv):
            n = layer.out_channels
            gamma, variance = torch.rand(n) + 0.5, torch.rand(n) + 0.1
            mean, scale = torch.randn(n), gamma / torch.sqrt(variance + 1e-3)
            state[f"{name}.conv.weight"] = layer.weight.detach() / scale[:, None, None, None]
            state[f"{name}.bn.weight"] = gamma
            state[f"{name}.bn.bias"] = layer.bias.detach() + mean * scale
            state[f"{name}.bn.running_mean"] = mean
            state[f"{name}.bn.running_var"] = variance
            state[f"{name}.bn.num_batches_tracked"] = torch.tensor(0)
    state["fc.weight"] = network.fc.weight.detach()
    state["fc.bias"] = network.fc.bias.detach()
    return state


def test_counts_are_the_published_ones(network):
    convolutions = [m for m in network.modules() if isinstance(m, Conv)]
    weights = sum(c.weight.numel() for c in convolutions)
    channels = sum(c.out_channels for c in convolutions)
    assert len(convolutions) == 94
    # There a layer has a scale and a shift instead of a bias, and the last layer 1000 classes.
    assert weights + 2 * channels + 1000 * 2049 == TORCHVISION_WITHOUT_AUXILIARY_HEAD
    assert sum(p.numel() for p in Inception(partial=True).parameters()) == 10_653_472


def test_shapes_of_all_that_one_pass_gives(network, pixels):
    with torch.no_grad():
        taps = network(pixels)
    assert {name: tuple(pool.shape) for name, pool in taps.pools.items()} == {
        "64": (1, 64), "192": (1, 192), "768": (1, 768), "mixed_7a": (1, 1280), "2048": (1, 2048),
    }  # fmt: skip
    assert taps.spatial.shape == (1, 17 * 17 * 7)
    assert taps.logits.shape == (1, 1008)
    expected = F.linear(taps.pools["2048"], network.fc.weight)
    torch.testing.assert_close(taps.logits, expected.detach(), atol=1e-5, rtol=1e-5)


def test_spatial_features_are_the_first_seven_channels_of_the_1x1_branch(network, pixels):
    seen = {}
    hook = network.Mixed_6d.branch1x1.register_forward_hook(
        lambda _, __, output: seen.update(output=output)
    )
    with torch.inference_mode():
        taps = network(pixels)
    hook.remove()
    spatial = taps.spatial.reshape(1, 17, 17, 7)  # TensorFlow's order: positions, then channels
    for channel in range(7):
        assert torch.equal(spatial[..., channel], seen["output"][:, channel])


def test_average_pool_leaves_the_padding_out():
    x = torch.arange(20.0).reshape(1, 1, 4, 5)
    pooled = average_pool(x)
    for row in range(4):
        for column in range(5):
            around = x[0, 0, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            assert pooled[0, 0, row, column] == pytest.approx(float(around.mean()))


def test_the_last_block_pools_by_maximum_and_the_one_before_by_average(network):
    x = torch.randn(1, 2048, 8, 8)
    assert not network.Mixed_7b.maximum
    assert network.Mixed_7c.maximum
    assert torch.equal(network.Mixed_7b.pool(x), average_pool(x))
    peaks = network.Mixed_7c.pool(x)
    assert torch.equal(peaks[0, :, 0, 0], x[0, :, :2, :2].amax((1, 2)))
    assert torch.equal(peaks[0, :, 4, 4], x[0, :, 3:6, 3:6].amax((1, 2)))


def test_the_branches_of_the_last_blocks_lie_in_the_graphs_order():
    block = MixedE(8, maximum=True).eval()
    x = torch.randn(1, 8, 5, 5)
    three = block.branch3x3_1(x)
    with torch.inference_mode():
        out = block(x)
        parts = out.split((320, 384, 384, 384, 384, 192), 1)
        torch.testing.assert_close(parts[0], block.branch1x1(x))
        torch.testing.assert_close(parts[1], block.branch3x3_2a(three))
        torch.testing.assert_close(parts[2], block.branch3x3_2b(three))
        torch.testing.assert_close(parts[5], block.branch_pool(F.max_pool2d(x, 3, 1, 1)))


def test_folding_a_batch_norm_changes_nothing():
    conv, norm = nn.Conv2d(5, 9, 3, bias=False), nn.BatchNorm2d(9, eps=1e-3).eval()
    for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        nn.init.uniform_(value, 0.2, 2.0)
    state = {f"a.conv.{k}": v for k, v in conv.state_dict().items()}
    state |= {f"a.bn.{k}": v for k, v in norm.state_dict().items()}
    folded = fold(state | {"AuxLogits.conv0.weight": torch.zeros(1)})
    assert sorted(folded) == ["a.bias", "a.weight"]
    x = torch.randn(2, 5, 8, 8)
    torch.testing.assert_close(
        F.conv2d(x, folded["a.weight"], folded["a.bias"]), norm(conv(x)), atol=1e-5, rtol=1e-5
    )


def test_pytorch_fids_layout_and_a_folded_file_load_alike(network, pixels, tmp_path):
    state = unfused(network)
    assert len(state) == 566  # as many entries as the published file has
    torch.save(state, tmp_path / "whole.pth")
    save_file(network.state_dict(), tmp_path / "folded.safetensors")
    with torch.inference_mode():
        expected = network(pixels)
        for name in ("whole.pth", "folded.safetensors"):
            loaded, digest = load_inception(tmp_path / name)
            assert not loaded.partial
            assert len(digest) == 64
            taps = loaded(pixels)
            torch.testing.assert_close(
                taps.pools["2048"], expected.pools["2048"], atol=1e-5, rtol=1e-4
            )


def test_a_partial_file_gives_the_features_it_has(network, pixels, tmp_path):
    state = {
        name: value.half() if name.endswith("weight") else value
        for name, value in network.state_dict().items()
        if not name.startswith(("Mixed_7b", "Mixed_7c", "fc"))
    }
    save_file(state, tmp_path / "partial.safetensors")
    loaded, _ = load_inception(tmp_path / "partial.safetensors")
    with torch.inference_mode():
        taps, expected = loaded(pixels), network(pixels)
    assert list(taps.pools) == ["64", "192", "768", "mixed_7a"]
    assert taps.logits is None
    torch.testing.assert_close(taps.pools["768"], expected.pools["768"], atol=1e-3, rtol=1e-2)


def test_a_file_with_a_missing_or_misshapen_layer_is_refused(network, tmp_path):
    state = network.state_dict()
    missing = {k: v for k, v in state.items() if k != "Mixed_5c.branch_pool.weight"}
    save_file(missing, tmp_path / "missing.safetensors")
    with pytest.raises(CheckpointError, match=r"Mixed_5c\.branch_pool\.weight"):
        load_inception(tmp_path / "missing.safetensors")
    # The released torchvision network has 1000 outputs: it is another network.
    save_file(state | {"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="does not fit Inception-v3 of 2015"):
        load_inception(tmp_path / "other.safetensors")
