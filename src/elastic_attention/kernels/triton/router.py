"""The Attention Router of one layer as one launch: pooled keys, both MLPs and the decision, without the host.

One program decides one KV head of one sequence, so every program reads all weights; they are small enough to come
from the L2 cache after the first. Tiles of weights are loaded one step ahead of their use.

Shape letters: B batch, m pooled tokens, G KV heads, D head dim.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device import on_its_device

_TILE = 8192  # elements of a weight tile
_NUM_WARPS = 8
_KEY_ROWS = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterWeights:
    """Weights and biases of one layer's router, float32, contiguous, (out, in) as in `nn.Linear`.

    Attributes:
        task_in, task_out: task MLP, D -> hidden -> width.
        route_in, route_mid, route_out: router MLP, width -> hidden -> width -> 2; output row 1 is sparse.
    """

    task_in: Tensor
    task_in_bias: Tensor
    task_out: Tensor
    task_out_bias: Tensor
    route_in: Tensor
    route_in_bias: Tensor
    route_mid: Tensor
    route_mid_bias: Tensor
    route_out: Tensor
    route_out_bias: Tensor

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "RouterWeights":
        """Take the tensors of `AttentionRouter.state_dict()`; they are shared where they are float32 already."""
        places = dict(task_in="task_mlp.0", task_out="task_mlp.2", route_in="router_mlp.0", route_mid="router_mlp.2")
        places["route_out"] = "router_mlp.4"
        found = {}
        for name, place in places.items():
            found[name], found[f"{name}_bias"] = state[f"{place}.weight"], state[f"{place}.bias"]
        return cls(**{name: tensor.detach().float().contiguous() for name, tensor in found.items()})


@on_its_device
def route_fused(keys: Tensor, counts: Tensor, weights: RouterWeights, budget: float = 0.0) -> tuple[Tensor, Tensor]:
    """Decide every KV head of a layer in one launch (Elastic Attention, section 3.1). The host reads nothing.

    Args:
        keys: (B, m, G, D), any float dtype, before RoPE; the last dimension contiguous.
        counts: (B, m), how often each key counts in the mean; 0 leaves a slot out whatever it holds.
        weights: on the device of `keys`.
        budget: added to the sparse logits; larger = sparser.

    Returns:
        routes (B, G) bool, True = sparse; logits (B, G, 2) float32, class 1 = sparse, with the budget.

    Raises:
        ValueError: the shapes do not fit together.
    """
    batch, num_pooled, num_kv_heads, head_dim = keys.shape
    if counts.shape != keys.shape[:2] or weights.task_in.shape[1] != head_dim or keys.stride(3) != 1:
        raise ValueError(
            f"keys {tuple(keys.shape)} with strides {keys.stride()}, counts {tuple(counts.shape)} and routers for "
            f"head dim {weights.task_in.shape[1]} do not fit; keys are (B, m, G, D) with D contiguous, counts (B, m)."
        )
    routes = torch.empty(batch, num_kv_heads, dtype=torch.bool, device=keys.device)
    logits = torch.empty(batch, num_kv_heads, 2, dtype=torch.float32, device=keys.device)
    _route[(batch * num_kv_heads,)](
        keys,
        counts,
        *(getattr(weights, item.name) for item in fields(weights)),
        routes,
        logits,
        float(budget),
        num_pooled,
        num_kv_heads,
        *keys.stride()[:3],
        *counts.stride(),
        HEAD_DIM=head_dim,
        TASK_HIDDEN=weights.task_in.shape[0],
        TASK_WIDTH=weights.task_out.shape[0],
        ROUTE_HIDDEN=weights.route_in.shape[0],
        ROUTE_WIDTH=weights.route_mid.shape[0],
        HEAD_DIM_UP=_round_up(head_dim),
        TASK_WIDTH_UP=_round_up(weights.task_out.shape[0]),
        ROUTE_WIDTH_UP=_round_up(weights.route_mid.shape[0]),
        TILE=_TILE,
        KEY_ROWS=_KEY_ROWS,
        num_warps=_NUM_WARPS,
    )
    return routes, logits


def _round_up(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


@triton.jit
def _load_weights(weights, rows, columns, NUM_ROWS: tl.constexpr, NUM_COLUMNS: tl.constexpr):
    is_there = (rows < NUM_ROWS)[:, None] & (columns < NUM_COLUMNS)[None, :]
    return tl.load(weights + rows[:, None] * NUM_COLUMNS + columns[None, :], mask=is_there, other=0.0)


@triton.jit
def _feed_forward(
    x,
    weights_in,
    bias_in,
    weights_out,
    bias_out,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    OUT: tl.constexpr,
    WIDTH_UP: tl.constexpr,
    OUT_UP: tl.constexpr,
    TILE: tl.constexpr,
):
    """weights_out @ silu(weights_in @ x + bias_in) + bias_out, hidden units in chunks; x [WIDTH_UP] -> [OUT_UP]."""
    CHUNK: tl.constexpr = TILE // max(WIDTH_UP, OUT_UP)
    inputs, outputs, offset = tl.arange(0, WIDTH_UP), tl.arange(0, OUT_UP), tl.arange(0, CHUNK)
    first = _load_weights(weights_in, offset, inputs, HIDDEN, WIDTH)
    second = _load_weights(weights_out, outputs, offset, OUT, HIDDEN)
    y = tl.load(bias_out + outputs, mask=outputs < OUT, other=0.0)
    for start in range(0, HIDDEN, CHUNK):
        units = start + offset
        bias = tl.load(bias_in + units, mask=units < HIDDEN, other=0.0)
        next_first = _load_weights(weights_in, units + CHUNK, inputs, HIDDEN, WIDTH)
        next_second = _load_weights(weights_out, outputs, units + CHUNK, OUT, HIDDEN)
        hidden = tl.sum(first * x[None, :], axis=1) + bias
        y += tl.sum(second * (hidden * tl.sigmoid(hidden))[None, :], axis=1)
        first, second = next_first, next_second
    return y


@triton.jit
def _route(
    keys,
    counts,
    task_in,
    task_in_bias,
    task_out,
    task_out_bias,
    route_in,
    route_in_bias,
    route_mid,
    route_mid_bias,
    route_out,
    route_out_bias,
    routes,
    logits,
    budget,
    num_pooled,
    num_kv_heads,
    key_stride_b,
    key_stride_m,
    key_stride_g,
    count_stride_b,
    count_stride_m,
    HEAD_DIM: tl.constexpr,
    TASK_HIDDEN: tl.constexpr,
    TASK_WIDTH: tl.constexpr,
    ROUTE_HIDDEN: tl.constexpr,
    ROUTE_WIDTH: tl.constexpr,
    HEAD_DIM_UP: tl.constexpr,
    TASK_WIDTH_UP: tl.constexpr,
    ROUTE_WIDTH_UP: tl.constexpr,
    TILE: tl.constexpr,
    KEY_ROWS: tl.constexpr,
):
    program = tl.program_id(0)
    b, g = (program // num_kv_heads).to(tl.int64), program % num_kv_heads
    keys += b * key_stride_b + g * key_stride_g
    columns = tl.arange(0, HEAD_DIM_UP)
    pooled, total = tl.zeros([HEAD_DIM_UP], tl.float32), 0.0
    for start in range(0, num_pooled, KEY_ROWS):
        rows = start + tl.arange(0, KEY_ROWS)
        count = tl.load(counts + b * count_stride_b + rows * count_stride_m, mask=rows < num_pooled, other=0)
        count = count.to(tl.float32)
        is_there = (rows < num_pooled)[:, None] & (columns < HEAD_DIM)[None, :]
        key = tl.load(keys + rows[:, None] * key_stride_m + columns[None, :], mask=is_there, other=0.0).to(tl.float32)
        # A slot that does not count may hold anything, NaN included.
        pooled += tl.sum(tl.where(count[:, None] != 0, key * count[:, None], 0.0), axis=0)
        total += tl.sum(count)
    pooled = pooled / tl.maximum(total, 1.0)
    task = _feed_forward(
        pooled, task_in, task_in_bias, task_out, task_out_bias,
        HEAD_DIM, TASK_HIDDEN, TASK_WIDTH, HEAD_DIM_UP, TASK_WIDTH_UP, TILE,
    )  # fmt: skip
    width = _feed_forward(
        task, route_in, route_in_bias, route_mid, route_mid_bias,
        TASK_WIDTH, ROUTE_HIDDEN, ROUTE_WIDTH, TASK_WIDTH_UP, ROUTE_WIDTH_UP, TILE,
    )  # fmt: skip
    width = width * tl.sigmoid(width)
    units = tl.arange(0, ROUTE_WIDTH_UP)
    full_weights = tl.load(route_out + units, mask=units < ROUTE_WIDTH, other=0.0)
    sparse_weights = tl.load(route_out + ROUTE_WIDTH + units, mask=units < ROUTE_WIDTH, other=0.0)
    full = tl.sum(width * full_weights) + tl.load(route_out_bias)
    sparse = tl.sum(width * sparse_weights) + tl.load(route_out_bias + 1) + budget
    tl.store(logits + 2 * program, full)
    tl.store(logits + 2 * program + 1, sparse)
    tl.store(routes + program, sparse > full)
