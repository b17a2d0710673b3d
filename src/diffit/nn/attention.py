"""Softmax attention, the one function of this library for it; position bias; local windows."""

import math
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from diffit.nn.linear import Linear

OnMap = Callable[[Tensor], None]

CHUNK = 1 << 19
"""Scores computed at a time by the chunked form: 2 MiB in float32, which stay in the cache."""

KEEP_BYTES = 256 << 20
"""Maps of a layer with a learned bias, up to this size, are kept for the backward pass."""

BIAS_CACHE_BYTES = 512 << 20
"""All gathered position biases together that inference keeps (512 px XL would need 1.9 GB)."""


def attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, on_map: OnMap | None = None
) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v.

    Args:
        q, k, v: (B, heads, N, d).
        bias: (heads, N, N) or (B, heads, N, N), first query, then key; in any float dtype.
        on_map: receives the (B, heads, N, N) attention weights; makes them explicit.

    Returns:
        (B, heads, N, d), laid out so that joining the heads copies nothing.
    """
    if bias is not None:
        bias = bias.to(q.dtype)
    if (
        not torch.compiler.is_compiling()
        and (found := getattr(_listening, "found", None)) is not None
    ):
        found.append(_largest_score(q, k, bias))
    if on_map is not None:
        weights = attention_map(q, k, bias)
        on_map(weights.detach())
        return weights.to(v.dtype) @ v
    if attention_form(q, bias) == "chunked":
        mixed: Tensor = _ChunkedAttention.apply(q, k, v, bias)  # type: ignore[no-untyped-call]
        return mixed
    # Fused kernels take masks of two or four axes; with three they fall back to a slow form.
    mask = bias[None] if bias is not None and bias.ndim == 3 else bias
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


_listening = threading.local()


@contextmanager
def largest_logits() -> Iterator[list[Tensor]]:
    """Collect the largest logit, q k^T / sqrt(d) + bias, of each attention of this thread.

    Logits that grow without end precede a loss that breaks out (arXiv:2302.05442, section 3.1).
    Each score is computed once more for it, some at a time, in float32.

    Yields:
        A list that each call of `attend` outside of compiled code adds a () tensor to.
    """
    found: list[Tensor] = []
    _listening.found = found
    try:
        yield found
    finally:
        del _listening.found


@torch.no_grad()
def _largest_score(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    found = []
    with torch.autocast(q.device.type, enabled=False):
        for part in _parts(q, k):
            scores = (q[part].float() * q.shape[-1] ** -0.5) @ k[part].float().mT
            if bias is not None:
                scores += bias[part[1]] if bias.ndim == 3 else bias[part]
            found.append(scores.amax())
    return torch.stack(found).amax()


def attention_map(q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
    """(B, heads, N, N) weights softmax(q k^T / sqrt(d) + bias), in float32."""
    scores = (q.float() * q.shape[-1] ** -0.5) @ k.float().mT
    return torch.softmax(scores if bias is None else scores + bias.float(), dim=-1)


def attention_form(q: Tensor, bias: Tensor | None) -> Literal["fused", "chunked"]:
    """The faster of two exact forms of attention; the one place where they are chosen.

    Fused kernels win everywhere but in two cases on the CPU: they have no gradient for a learned
    bias, and their bfloat16 products do without oneDNN's. Measured with PyTorch 2.13 on one core
    of an EPYC 9005, 8 images, 6 heads, 256 tokens of width 64, fused against chunked, in ms:
    float32 forward 10.3 / 11.0; float32 forward and backward with a learned bias 42.6 / 32.7;
    bfloat16 forward 10.4 / 5.1, forward and backward 42.8 / 13.5.
    """
    if q.device.type != "cpu" or torch.compiler.is_compiling():
        return "fused"
    learned = bias is not None and bias.requires_grad and torch.is_grad_enabled()
    return "chunked" if learned or q.dtype == torch.bfloat16 else "fused"


class _ChunkedAttention(torch.autograd.Function):
    """Explicit softmax attention, some heads at a time, so that the scores stay in the cache."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        out = torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format)
        out = out.transpose(1, 2)
        size = math.prod(q.shape[:-1]) * k.shape[-2] * q.element_size()
        # Without a bias to learn a fused kernel would keep no map: no more memory than that.
        keep = ctx.needs_input_grad[3] and size <= KEEP_BYTES
        kept = []
        with torch.autocast("cpu", enabled=False):
            for part in _parts(q, k):
                weights = _weights(q[part].contiguous(), k[part].contiguous(), bias, part)
                out[part] = weights @ v[part].contiguous()
                if keep:
                    kept.append(weights)
        ctx.save_for_backward(q, k, v, bias, out, *kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        q, k, v, bias, out, *kept = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        grad_bias = _zeros_for_sum(bias) if ctx.needs_input_grad[3] else None
        # sum_j weights_ij dL/dweights_ij, without another N x N product (arXiv:2205.14135, B.4)
        shared = (grad * out).sum(dim=-1, keepdim=True)
        with torch.autocast("cpu", enabled=False):
            for i, part in enumerate(_parts(q, k)):
                # Copied once here, or else in each of the products.
                qi, ki, vi, up = (t[part].contiguous() for t in (q, k, v, grad))
                weights = kept[i] if kept else _weights(qi, ki, bias, part)
                grad_v[part] = weights.mT @ up
                grad_scores = (up @ vi.mT).sub_(shared[part]).mul_(weights)
                grad_q[part] = (grad_scores @ ki).mul_(scale)
                grad_k[part] = (grad_scores.mT @ qi).mul_(scale)
                if grad_bias is not None:
                    _add_bias_gradient(grad_bias, grad_scores, part)
        return grad_q, grad_k, grad_v, None if grad_bias is None else grad_bias.to(bias.dtype)


Part = tuple[slice, slice]


def _parts(q: Tensor, k: Tensor) -> Iterator[Part]:
    """Slices (images, heads) that have about `CHUNK` scores, at least one head of one image."""
    batch, heads = q.shape[:2]
    each = q.shape[-2] * k.shape[-2]
    if heads * each > CHUNK:
        step = max(1, CHUNK // each)
        for image in range(batch):
            for head in range(0, heads, step):
                yield slice(image, image + 1), slice(head, head + step)
        return
    step = CHUNK // (heads * each)
    for image in range(0, batch, step):
        yield slice(image, image + step), slice(0, heads)


def _weights(q: Tensor, k: Tensor, bias: Tensor | None, part: Part) -> Tensor:
    """Weights of one part, whose queries and keys are handed in; the bias is the whole one."""
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if bias is not None:
        scores += bias[part[1]] if bias.ndim == 3 else bias[part]
    return torch.softmax(scores, dim=-1)


def _zeros_for_sum(bias: Tensor) -> Tensor:
    # A sum over many images in bfloat16 would stand still at 256 times its summands.
    return torch.zeros_like(bias, dtype=torch.promote_types(bias.dtype, torch.float32))


def _add_bias_gradient(grad_bias: Tensor, grad_scores: Tensor, part: Part) -> None:
    if grad_bias.ndim == 4:
        grad_bias[part] = grad_scores
    elif len(grad_scores) == 1:
        grad_bias[part[1]] += grad_scores[0]
    else:
        grad_bias[part[1]] += grad_scores.sum(dim=0, dtype=grad_bias.dtype)


class RelativeBias(nn.Module):
    """A learned number for each head and each displacement between two tokens of a grid.

    For query (a, b) and key (a', b') of an h x w grid the bias of a head is the entry
    (a - a' + h - 1)(2w - 1) + (b - b' + w - 1) of its column of the table, the layout of Swin and
    of the published DiffiT checkpoints.

    Args:
        grid: (rows, columns) of the token grid.
        heads: number of attention heads.
    """

    def __init__(self, grid: tuple[int, int], heads: int) -> None:
        super().__init__()
        self.grid = grid
        self.table = nn.Parameter(torch.empty((2 * grid[0] - 1) * (2 * grid[1] - 1), heads))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, dtype: torch.dtype, change: Tensor | None = None) -> Tensor:
        """The (heads, N, N) bias, or (B, heads, N, N) with a (B, *table) ``change`` added to it."""
        if change is not None:
            return gather_bias(self.table + change, self.grid).to(dtype)
        if self.table.requires_grad and torch.is_grad_enabled():
            return gather_bias(self.table, self.grid).to(dtype)
        return _cache.get(self, dtype)


def gather_bias_among(table: Tensor, grid: tuple[int, int], places: Tensor) -> Tensor:
    """(T, heads) table to the (B, heads, n, n) bias between the cells ``places`` of each image.

    Args:
        table: T = (2h-1)(2w-1) displacements, as in `RelativeBias`.
        grid: (h, w).
        places: (B, n) int64, row-major numbers of cells.
    """
    whole = gather_bias(table, grid)
    cells, (batch, n) = whole.shape[-1], places.shape
    # Pairs of an image are all different: their gradients are scattered, not summed entry by entry.
    pairs = (places[:, :, None] * cells + places[:, None]).flatten(1)[:, None]
    found = whole.flatten(1)[None].expand(batch, -1, -1).gather(2, pairs.expand(-1, len(whole), -1))
    return found.view(batch, len(whole), n, n)


def gather_bias(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """(..., (2h-1)(2w-1), heads) table to the (..., heads, N, N) bias, N = h w.

    Rows and columns are gathered one after the other, so that no N x N index is ever needed.
    """
    h, w = grid
    square = table.mT.reshape(*table.shape[:-2], -1, 2 * h - 1, 2 * w - 1)
    square = square.index_select(-1, _differences(w, table.device))
    square = square.index_select(-2, _differences(h, table.device))
    bias: Tensor = rearrange(square, "... (a c) (b d) -> ... (a b) (c d)", a=h, b=w)
    return bias


def _differences(side: int, device: torch.device) -> Tensor:
    """(side * side,) int64: a - a' + side - 1 for all a, then a'."""
    place = torch.arange(side, device=device)
    return (place[:, None] - place + side - 1).flatten()


@dataclass(frozen=True)
class _Entry:
    bias: Tensor
    source: Tensor
    version: int
    table: Tensor

    def fits(self, table: Tensor, dtype: torch.dtype) -> bool:
        same = self.source is table and self.version == table._version and self.bias.dtype == dtype
        if not same or self.bias.device != table.device:
            return False
        # Writing through `.data` does not raise the version; on the CPU comparing costs nothing.
        return table.device.type != "cpu" or torch.equal(self.table, table)


class _BiasCache:
    """Gathered biases of inference, one for each module, within a bound in bytes."""

    def __init__(self) -> None:
        self.entries: WeakKeyDictionary[RelativeBias, _Entry] = WeakKeyDictionary()
        self.lock = threading.Lock()

    def get(self, module: RelativeBias, dtype: torch.dtype) -> Tensor:
        table = module.table
        if torch.compiler.is_compiling() or table.is_inference() or table.is_meta:
            return gather_bias(table, module.grid).to(dtype)
        with self.lock:
            entry = self.entries.pop(module, None)
            if entry is None or not entry.fits(table, dtype):
                entry = _gathered(module, dtype)
            if self._bytes() + entry.bias.nbytes <= BIAS_CACHE_BYTES:
                self.entries[module] = entry
            return entry.bias

    def _bytes(self) -> int:
        return sum(entry.bias.nbytes for entry in self.entries.values())


def _gathered(module: RelativeBias, dtype: torch.dtype) -> _Entry:
    table = module.table
    # A tensor made in inference mode could not be used later where gradients are taken.
    with torch.inference_mode(False), torch.no_grad():
        bias = gather_bias(table, module.grid).to(dtype).contiguous()
        return _Entry(bias, table, table._version, table.detach().clone())


_cache = _BiasCache()


def partition(tokens: Tensor, grid: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """(B, N, C) row-major tokens of a grid to (B, G, n, C): G windows, row-major, of n tokens."""
    return rearrange(
        tokens,
        "b (gh wh gw ww) c -> b (gh gw) (wh ww) c",
        gh=grid[0] // window[0],
        wh=window[0],
        ww=window[1],
        gw=grid[1] // window[1],
    )


def merge(windows: Tensor, grid: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """The inverse of `partition`: (B, G, n, C) to (B, N, C)."""
    return rearrange(
        windows,
        "b (gh gw) (wh ww) c -> b (gh wh gw ww) c",
        gh=grid[0] // window[0],
        wh=window[0],
    )


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, N, 3 C), inside the axes (q/k/v, head, channel), to three (B, heads, N, d) views."""
    batch, tokens, width = qkv.shape
    split = qkv.view(batch, tokens, 3, heads, width // (3 * heads))
    q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def join_heads(mixed: Tensor) -> Tensor:
    """(B, heads, N, d) to (B, N, heads * d)."""
    return mixed.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Plain multi-head self-attention, as DiT has it.

    Args:
        width: channels C of a token; a multiple of ``heads``.
        heads: number of attention heads.
        qkv_bias: learned biases of queries, keys and values.
        extra: how many of the first tokens stand for no place of the image, such as a class token.
    """

    def __init__(self, width: int, *, heads: int, qkv_bias: bool = True, extra: int = 0) -> None:
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.extra = extra
        self.on_map: OnMap | None = None
        self.qkv = Linear(width, 3 * width, bias=qkv_bias)
        self.out = Linear(width, width)

    def forward(
        self, tokens: Tensor, time: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """Attend.

        Args:
            tokens: (B, N, C).
            time: ignored, so that any block may hold this layer.
            bias: added to the scores, as `attend` takes it; None for none.

        Returns:
            (B, N, C).
        """
        q, k, v = split_heads(self.qkv(tokens), self.heads)
        record = self._record if self.on_map is not None else None
        mixed: Tensor = self.out(join_heads(attend(q, k, v, bias, on_map=record)))
        return mixed

    def _record(self, weights: Tensor) -> None:
        """Hand on the weights among places, of which each row is scaled to a sum of 1."""
        if self.on_map is not None:
            among = weights[:, :, self.extra :, self.extra :]
            self.on_map(among / among.sum(-1, keepdim=True) if self.extra else weights)


def check_heads(width: int, heads: int) -> None:
    """ValueError unless ``heads`` divide ``width``."""
    if width % heads:
        raise ValueError(f"width ({width}) must be a multiple of heads ({heads})")


@contextmanager
def record_attention(
    network: nn.Module, names: Collection[str] | None = None
) -> Iterator[dict[str, Tensor]]:
    """Collect the attention maps of a forward pass, by the name of the attention module.

    Args:
        network: any module that holds `TMSA` or `SelfAttention` layers.
        names: record these modules alone; all by default.

    Yields:
        A dictionary that each forward pass fills with (B, heads, N, N) float32 weights, row i the
        attention paid by token i. N counts the whole grid, row-major; outside the window of a
        token its weights are 0. Attention to tokens that stand for no place (a class, a noise
        level) is left out, and the rest scaled to a sum of 1. Recorded layers use the explicit
        form of attention.
    """
    maps: dict[str, Tensor] = {}
    layers = {n: m for n, m in network.named_modules() if hasattr(m, "on_map")}
    chosen = layers if names is None else {name: layers[name] for name in names}
    for name, layer in chosen.items():
        layer.on_map = lambda weights, name=name: maps.__setitem__(name, weights)
    try:
        yield maps
    finally:
        for layer in chosen.values():
            layer.on_map = None
