"""Latent DiffiT with rotary embedding, norms of queries and keys, SwiGLU and RMS norm."""

import pytest
import torch
from pydantic import ValidationError

from diffit.networks import LatentDiffiTConfig, build_network
from diffit.networks.count import count_macs, count_parameters
from diffit.nn.attention import record_attention

V2 = {"position": "rotary", "qk_norm": True, "mlp": "swiglu", "norm": "rms"}
XL = LatentDiffiTConfig(classes=1000, learned_variance=True, **V2)


def small(**changes):
    torch.manual_seed(0)
    settings = {"size": 8, "width": 32, "depth": 2, "heads": 4, "classes": 3, **V2, **changes}
    network = build_network(LatentDiffiTConfig(**settings)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def inputs(height=8, width=8):
    torch.manual_seed(1)
    return torch.randn(3, 4, height, width), torch.rand(3) * 4, torch.tensor([0, 1, 2])


def test_xl_has_the_weights_and_cost_of_the_release():
    with torch.device("meta"):
        assert count_parameters(build_network(XL)) == 560_651_744
    assert count_macs(XL) / 1e9 == pytest.approx(118.5, abs=0.05)


def test_every_weight_gets_a_gradient_and_there_is_no_table():
    network = small()
    network(*inputs()).square().sum().backward()
    assert not [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not [n for n in network.state_dict() if n == "position" or n.endswith(".table")]


@pytest.mark.parametrize("setting", V2)
def test_each_setting_acts_alone(setting):
    whole = {n: t for n, t in small().state_dict().items() if "norm" not in n}
    default = LatentDiffiTConfig.model_fields[setting].default
    changed = small(**{setting: default})
    same = {n: t for n, t in whole.items() if n in changed.state_dict()}
    changed.load_state_dict(
        {n: t for n, t in same.items() if t.shape == changed.state_dict()[n].shape}, strict=False
    )
    assert (changed(*inputs()) - small()(*inputs())).abs().max() > 1e-3


def test_rectangles_batches_and_keys():
    network, (x, time, label) = small(size=(8, 16), dropout=0.4), inputs(8, 16)
    whole = network(x, time, label)
    alone = torch.cat([network(x[i : i + 1], time[i : i + 1], label[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(alone, whole, atol=1e-5, rtol=1e-4)
    assert (network(x, time, label, keys=torch.arange(3)) - whole).abs().max() > 1e-3


def test_bfloat16_runs_under_autocast_and_whole():
    network, (x, time, label) = small(), inputs()
    expected = network(x, time, label)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = network(x, time, label)
    assert (out.float() - expected).norm() < 0.05 * expected.norm()
    whole = network.bfloat16()(x.bfloat16(), time, label)
    assert (whole.float() - expected).norm() < 0.1 * expected.norm()


def test_recorded_attention_leaves_the_output():
    network = small()
    with torch.no_grad(), record_attention(network) as maps:
        explicit = network(*inputs())
    torch.testing.assert_close(explicit, network(*inputs()), atol=1e-5, rtol=1e-4)
    assert len(maps) == 2


REFUSED = [
    ({"width": 24}, "heads of 6 channels cannot turn on a grid"),
    ({"time_into": "bias"}, "position 'rotary' does not go with time_into 'bias'"),
    ({"time_into": "mlp"}, "mlp 'swiglu' does not go with time_into 'mlp'"),
    ({"time_into": "norm", "mlp": "gelu"}, "norm 'rms' does not go with time_into 'norm'"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_impossible_combinations_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        small(**changes)
