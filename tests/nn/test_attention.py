"""Attention: two forms and one result; the orientation of the bias; windows; recorded maps."""

import pytest
import torch
from torch import nn

from diffit.nn import attention
from diffit.nn.attention import (
    RelativeBias,
    SelfAttention,
    attend,
    attention_form,
    gather_bias,
    gather_bias_among,
    merge,
    partition,
    record_attention,
)
from diffit.nn.tmsa import TMSA


def heads(batch=3, count=2, tokens=12, width=5, dtype=torch.float64):
    torch.manual_seed(0)
    return [torch.randn(batch, count, tokens, width, dtype=dtype) for _ in range(3)]


def by_definition(q, k, v, bias=0.0):
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / q.shape[-1] ** 0.5 + bias
    return torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)


@pytest.mark.parametrize("shape", [(2, 12, 12), (3, 2, 12, 12)], ids=["shared", "per sample"])
def test_both_forms_follow_the_definition(shape):
    q, k, v = heads()
    bias = torch.randn(shape, dtype=torch.float64)
    expected = by_definition(q, k, v, bias)
    torch.testing.assert_close(attend(q, k, v, bias), expected)
    learned = bias.clone().requires_grad_()
    assert attention_form(q, learned) == "chunked"
    torch.testing.assert_close(attend(q, k, v, learned).detach(), expected)
    torch.testing.assert_close(attend(q, k, v), by_definition(q, k, v))


@pytest.mark.parametrize("chunk", [1, 200, 600, 1 << 20], ids=lambda c: f"chunk={c}")
@pytest.mark.parametrize("keep", [0, 1 << 30], ids=["redone", "kept"])
@pytest.mark.parametrize("shape", [(2, 12, 12), (3, 2, 12, 12)], ids=["shared", "per sample"])
def test_gradients_of_the_chunked_form_are_exact(monkeypatch, chunk, keep, shape):
    monkeypatch.setattr(attention, "CHUNK", chunk)
    monkeypatch.setattr(attention, "KEEP_BYTES", keep)
    inputs = [*heads(), torch.randn(shape, dtype=torch.float64)]
    inputs = [t.requires_grad_() for t in inputs]
    out, expected = attend(*inputs), by_definition(*inputs)
    torch.testing.assert_close(out, expected)
    toward = torch.randn_like(out)
    ours = torch.autograd.grad(out, inputs, toward)
    theirs = torch.autograd.grad(expected, inputs, toward)
    for mine, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, right)


def test_bfloat16_stays_close_to_float32():
    q, k, v = heads(dtype=torch.float32)
    bias = torch.randn(2, 12, 12)
    low = [t.bfloat16().requires_grad_() for t in (q, k, v, bias)]
    out = attend(*low)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), by_definition(q, k, v, bias), atol=0.05, rtol=0.05)
    out.float().pow(2).sum().backward()
    assert all(t.grad.isfinite().all() for t in low)


def test_bias_is_indexed_by_query_first_then_key():
    grid, count = (2, 3), 15
    table = torch.arange(count, dtype=torch.float32)[:, None]
    bias = gather_bias(table, grid)[0]
    places = [(a, b) for a in range(grid[0]) for b in range(grid[1])]
    for i, (a, b) in enumerate(places):
        for j, (c, d) in enumerate(places):
            assert bias[i, j] == (a - c + grid[0] - 1) * 5 + (b - d + grid[1] - 1)


def test_bias_of_a_batch_of_tables_is_the_bias_of_each():
    tables = torch.randn(4, 15, 2)
    for table, bias in zip(tables, gather_bias(tables, (2, 3)), strict=True):
        assert torch.equal(gather_bias(table, (2, 3)), bias)


def gathered_afresh(position):
    return gather_bias(position.table.detach(), position.grid)


@torch.no_grad()
def test_inference_gathers_the_bias_once():
    position = RelativeBias((4, 4), 2)
    first = position(torch.float32)
    assert position(torch.float32) is first
    assert position(torch.bfloat16).dtype == torch.bfloat16


def optimiser_step(position):
    position.table.grad = torch.ones_like(position.table)
    torch.optim.AdamW([position.table], lr=0.1).step()


CHANGES = {
    "optimiser step": optimiser_step,
    "load_state_dict": lambda p: p.load_state_dict({"table": torch.randn(49, 2)}),
    "assigned": lambda p: p.load_state_dict({"table": torch.randn(49, 2)}, assign=True),
    "through .data": lambda p: p.table.data.mul_(2),
    "new .data": lambda p: setattr(p.table, "data", torch.randn(49, 2)),
    "moved to float64": lambda p: p.double(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_table_is_gathered_again(change):
    position = RelativeBias((4, 4), 2)
    with torch.no_grad():
        before = position(torch.float64).clone()
    CHANGES[change](position)
    with torch.no_grad():
        after = position(torch.float64)
    torch.testing.assert_close(after, gathered_afresh(position).double())
    assert change.startswith("moved") or not torch.equal(before, after)


def test_training_gathers_with_gradient_after_inference():
    position = RelativeBias((4, 4), 2)
    with torch.inference_mode():
        position(torch.float32)
    position(torch.float32).sum().backward()
    assert position.table.grad.sum() == pytest.approx(2 * 16 * 16)
    frozen = position.requires_grad_(False)(torch.float32)
    q = torch.randn(1, 2, 16, 4, requires_grad=True)
    attend(q, q, q, frozen).sum().backward()


@torch.no_grad()
def test_the_cache_keeps_to_its_bound(monkeypatch):
    monkeypatch.setattr(attention, "BIAS_CACHE_BYTES", 0)
    position = RelativeBias((4, 4), 2)
    assert position(torch.float32) is not position(torch.float32)
    torch.testing.assert_close(position(torch.float32), gathered_afresh(position))


def test_no_index_is_in_the_state_dict():
    assert set(RelativeBias((4, 4), 2).state_dict()) == {"table"}
    assert not list(RelativeBias((4, 4), 2).buffers())


def test_windows_are_cut_and_joined_without_loss():
    tokens = torch.arange(2 * 24 * 3).view(2, 24, 3)
    windows = partition(tokens, (4, 6), (2, 3))
    assert windows.shape == (2, 4, 6, 3)
    # the second window holds rows 0-1, columns 3-5
    assert windows[0, 1, :, 0].tolist() == [3 * i for i in (3, 4, 5, 9, 10, 11)]
    assert torch.equal(merge(windows, (4, 6), (2, 3)), tokens)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.plain = SelfAttention(8, heads=2)
        self.timed = TMSA(8, 4, heads=2, grid=(4, 4), window=(2, 2))

    def forward(self, tokens, time):
        return self.timed(self.plain(tokens), time)


def test_recorded_maps_are_those_that_act():
    torch.manual_seed(0)
    network, tokens, time = Pair(), torch.randn(3, 16, 8), torch.randn(3, 4)
    fused = network(tokens, time)
    with record_attention(network) as maps:
        explicit = network(tokens, time)
    torch.testing.assert_close(explicit, fused)
    assert set(maps) == {"plain", "timed"}
    for weights in maps.values():
        assert weights.shape == (3, 2, 16, 16)
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 16))
    # token 0 sees its window of 2 x 2 alone
    assert maps["timed"][0, 0, 0].nonzero().flatten().tolist() == [0, 1, 4, 5]
    v = network.plain.qkv(tokens)[..., 16:].view(3, 16, 2, 4)
    mixed = torch.einsum("bhij,bjhd->bihd", maps["plain"], v).flatten(2)
    torch.testing.assert_close(network.plain.out(mixed), network.plain(tokens))


def test_recording_can_be_restricted_and_ends():
    network, tokens, time = Pair(), torch.randn(1, 16, 8), torch.randn(1, 4)
    with record_attention(network, ["timed"]) as maps:
        network(tokens, time)
    assert set(maps) == {"timed"}
    maps.clear()
    network(tokens, time)
    assert not maps


def test_width_must_suit_the_heads():
    with pytest.raises(ValueError, match=r"width \(10\) must be a multiple of heads \(4\)"):
        SelfAttention(10, heads=4)


def test_bfloat16_without_a_bias_has_the_right_gradients():
    inputs = [t.requires_grad_() for t in heads(dtype=torch.float32)]
    low = [t.detach().bfloat16().requires_grad_() for t in inputs]
    toward = torch.randn(3, 2, 12, 5)
    ours = torch.autograd.grad(attend(*low), low, toward.bfloat16())
    theirs = torch.autograd.grad(by_definition(*inputs), inputs, toward)
    for mine, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.float(), right, atol=0.05, rtol=0.05)


def test_the_bias_gradient_of_many_bfloat16_windows_is_summed_in_float32():
    q, k, v = (torch.ones(2048, 1, 2, 4, dtype=torch.bfloat16) for _ in range(3))
    v[:, :, 0] = 2  # attention to token 0 gains as much as attention to token 1 loses
    bias = torch.zeros(1, 2, 2, dtype=torch.bfloat16, requires_grad=True)
    attend(q, k, v, bias).sum().backward()
    assert bias.grad[0].tolist() == [[2048.0, -2048.0]] * 2


def test_bias_among_some_cells_is_that_of_the_grid():
    torch.manual_seed(0)
    table = torch.randn(5 * 7, 2, requires_grad=True)
    whole = gather_bias(table, (3, 4))
    places = torch.tensor([[0, 5, 11, 3], [7, 7, 2, 0]])
    among = gather_bias_among(table, (3, 4), places)
    assert among.shape == (2, 2, 4, 4)
    for one, cells in zip(among, places, strict=True):
        assert torch.equal(one, whole[:, cells][:, :, cells])
    (gradient,) = torch.autograd.grad(among.sum(), table)
    assert gradient.sum() == among.numel()


def test_a_bias_from_outside_is_added_to_the_scores():
    torch.manual_seed(0)
    layer, tokens = SelfAttention(8, heads=2), torch.randn(2, 3, 8)
    shut = torch.zeros(2, 3, 3)
    shut[:, :, 1:] = float("-inf")  # all attend to the first token alone
    value = layer.qkv(tokens)[:, :1, 16:]
    torch.testing.assert_close(layer(tokens, None, shut), layer.out(value).expand(-1, 3, -1))


def test_tokens_of_no_place_are_left_out_of_the_record():
    torch.manual_seed(0)
    layer, tokens = SelfAttention(8, heads=2, extra=1), torch.randn(2, 5, 8)
    twin = SelfAttention(8, heads=2)
    twin.load_state_dict(layer.state_dict())
    with record_attention(layer) as maps, record_attention(twin) as whole:
        assert torch.equal(layer(tokens), twin(tokens))
    among = whole[""][:, :, 1:, 1:]
    torch.testing.assert_close(maps[""], among / among.sum(-1, keepdim=True))


def test_queries_keys_and_values_need_no_bias():
    assert SelfAttention(8, heads=2, qkv_bias=False).qkv.bias is None
