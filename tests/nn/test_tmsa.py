"""TMSA is attention whose projections see the tokens and the time token joined."""

import pytest
import torch

from diffit.nn.attention import partition
from diffit.nn.tmsa import TMSA


def layer(**settings):
    torch.manual_seed(0)
    return TMSA(8, 6, heads=2, grid=(4, 4), **settings).double()


def inputs():
    torch.manual_seed(1)
    return torch.randn(3, 16, 8).double(), torch.randn(3, 6).double()


def test_it_equals_attention_of_the_joined_tokens():
    tmsa, (tokens, time) = layer(), inputs()
    joined = torch.cat([tokens, time[:, None].expand(-1, 16, -1)], dim=-1)
    weight = torch.cat([tmsa.qkv.weight, tmsa.qkv_time.weight], dim=1)
    qkv = joined @ weight.T + tmsa.qkv.bias + tmsa.qkv_time.bias
    q, k, v = qkv.view(3, 16, 3, 2, 4).permute(2, 0, 3, 1, 4)
    scores = q @ k.mT / 4**0.5 + tmsa.position(torch.float64)
    mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(tmsa(tokens, time), tmsa.out(mixed))


def test_windows_do_not_see_each_other():
    tmsa, (tokens, time) = layer(window=(2, 2)), inputs()
    changed = tokens.clone()
    changed[:, 15] += 1  # the last window: tokens 10, 11, 14, 15
    moved = (tmsa(changed, time) - tmsa(tokens, time)).abs().amax(dim=(0, 2)) > 0
    assert moved.nonzero().flatten().tolist() == [10, 11, 14, 15]


def test_each_window_is_attention_of_its_own_with_the_same_time():
    local, (tokens, time) = layer(window=(2, 4)), inputs()
    alone = TMSA(8, 6, heads=2, grid=(2, 4)).double()
    alone.load_state_dict(local.state_dict())
    halves = [alone(half, time) for half in tokens.split(8, dim=1)]
    torch.testing.assert_close(local(tokens, time), torch.cat(halves, dim=1))


def test_cut_tokens_give_the_cut_result():
    tmsa, (tokens, time) = layer(window=(2, 2)), inputs()
    cut = tmsa(partition(tokens, (4, 4), (2, 2)), time)
    torch.testing.assert_close(cut, partition(tmsa(tokens, time), (4, 4), (2, 2)))


@pytest.mark.parametrize("time_into", ["qkv", "bias", "separate"])
def test_time_acts_in_every_variant_that_takes_it(time_into):
    tmsa, (tokens, time) = layer(time_into=time_into, window=(2, 2)), inputs()
    change = (tmsa(tokens, time + 1) - tmsa(tokens, time)).abs()
    assert change.amax(dim=(1, 2)).min() > 1e-4
    same = layer(time_into=time_into, window=(2, 2))(tokens[:1], time[:1])
    torch.testing.assert_close(same, tmsa(tokens, time)[:1])


@pytest.mark.parametrize("time_into", ["mlp", "norm", "td-rms", "td-ln"])
def test_time_does_not_act_where_it_enters_elsewhere(time_into):
    tmsa, (tokens, time) = layer(time_into=time_into), inputs()
    assert torch.equal(tmsa(tokens, time + 1), tmsa(tokens, time))


def test_separate_attention_adds_the_value_of_the_time_token():
    tmsa, (tokens, time) = layer(time_into="separate"), inputs()
    shift = (tmsa.value_time(time) - tmsa.value_time(time * 0)) @ tmsa.out.weight.T
    torch.testing.assert_close(
        tmsa(tokens, time) - tmsa(tokens, time * 0), shift[:, None] + 0 * tokens
    )


def test_time_in_the_bias_moves_attention_alone():
    tmsa, (tokens, time) = layer(time_into="bias"), inputs()
    constant = tokens[:, :1].expand(-1, 16, -1)  # with equal values attention changes nothing
    torch.testing.assert_close(tmsa(constant, time), tmsa(constant, time + 1))


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="window 3 x 3 does not tile a grid of 4 x 4"):
        layer(window=(3, 3))
    with pytest.raises(ValueError, match="needs position 'bias'"):
        layer(time_into="bias", position="none")


def test_without_a_bias_places_do_not_act():
    tmsa, (tokens, time) = layer(position="none"), inputs()
    order = torch.randperm(16)
    torch.testing.assert_close(tmsa(tokens[:, order], time), tmsa(tokens, time)[:, order])


def test_norms_of_queries_and_keys_take_their_length_away():
    tmsa, (tokens, time) = layer(position="none", qk_norm=True), inputs()
    before = tmsa(tokens, time)
    with torch.no_grad():
        for projection in (tmsa.qkv, tmsa.qkv_time):
            projection.weight[:16] *= 7  # queries and keys
            projection.bias[:16] *= 7
    torch.testing.assert_close(tmsa(tokens, time), before, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        tmsa.q_norm.weight *= 3
    assert (tmsa(tokens, time) - before).abs().max() > 1e-3
