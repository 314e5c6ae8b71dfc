"""Prefill of whole sequences by warps with roles: one group loads, two multiply, each half of the rows of a tile.

Triton splits the work itself (`warp_specialize`), which on Hopper GPUs takes a plain shape of kernel: one loop over the
tiles of a program, no branch with two arms, tiles that come through descriptors of two dimensions. While one group
takes exponentials the other multiplies, and the next tile's keys are on their way while this one's results are stored.
Shape letters: B batch, T queries, S keys, H query heads, G KV heads, D head dim.
"""

from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ...config import StreamingConfig
from .. import modes as mode_numbers
from ..arguments import count_tiles, find_strides, is_describable, make_outputs, scale_for_base_two
from ..device import on_its_device
from .sweep import LOWEST
from .tiles import LN_2, find_window

_FULL = tl.constexpr(mode_numbers.FULL)
_ROWS = 128  # of a tile of queries, and of a tile of keys


def can_specialize(q: Tensor, k: Tensor, v: Tensor, config: StreamingConfig) -> bool:
    """Whether this kernel takes these tensors on this GPU; the caller vouches for whole sequences without lists."""
    return (
        q.element_size() == 2
        and q.shape[-1] in (64, 128)
        and config.block_size % _ROWS == 0
        and takes_roles(q.device)
        and all(_can_flatten(x) for x in (q, k, v))
        and all(ends_in_zeros(x, _ROWS) for x in (k, v))
    )


def takes_roles(device: torch.device) -> bool:
    """Whether Triton gives roles to warps there: NVIDIA capability 9, in the release whose compiler was tried."""
    if device.type != "cuda" or torch.version.hip is not None or not triton.__version__.startswith("3.6."):
        return False
    return torch.cuda.get_device_capability(device)[0] == 9


def _can_flatten(x: Tensor) -> bool:
    """Whether heads lie side by side in a row, or a whole number of rows apart, as elements of the batch do."""
    batch, head, row, _ = find_strides(x)
    is_row = x.shape[0] == 1 or batch % row == 0
    return is_describable(x) and is_row and (x.shape[1] == 1 or head % row == 0 or head < row)


def ends_in_zeros(x: Tensor, rows: int) -> bool:
    """Whether what a tile of x (B, G, S, D) reads behind the last key is 0, not memory of others: 0 * nan is nan."""
    _, head, row, _ = find_strides(x)
    return x.shape[2] % rows == 0 or (x.shape[0] == 1 and (x.shape[1] == 1 or head < row))


@dataclass(frozen=True, slots=True)
class Table:
    """A tensor (B, H, T, D) as a table of two dimensions: its sizes, elements from row to row; rows between elements
    of the batch, rows between heads, columns between heads."""

    rows: int
    columns: int
    row_step: int
    batch_rows: int
    head_rows: int
    head_columns: int


def flatten(x: Tensor) -> Table:
    """x (B, H, T, D) as a table, for the copy engine of a group that takes half a tile."""
    elements, heads, length, width = x.shape
    batch, head, row, _ = find_strides(x)
    batch_rows = batch // row if elements > 1 else 0
    head_rows = head // row if heads > 1 else 0
    head_columns = head if heads > 1 and not head_rows else 0
    rows = (elements - 1) * batch_rows + (heads - 1) * head_rows + length
    return Table(rows, (heads - 1) * head_columns + width, row, batch_rows, head_rows, head_columns)


def _describe(x: Tensor, table: Table, rows: int) -> TensorDescriptor:
    return TensorDescriptor(x, [table.rows, table.columns], [table.row_step, 1], [rows, x.shape[-1]])


@on_its_device
def launch_specialized(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    modes: Tensor,
    config: StreamingConfig,
    scale: float,
    programs: int,
    rows: int = 128,
) -> tuple[Tensor, Tensor]:
    """`attend_triton` of what `can_specialize`, in so many programs, of which a multiprocessor holds one, and in tiles
    of so many rows."""
    factor = scale_for_base_two(scale)
    num_q_heads, num_queries, head_dim = q.shape[1:]
    num_kv_heads, num_keys = k.shape[1:3]
    out, lse = make_outputs(q)
    num_tiles = count_tiles(num_queries, num_keys, None, rows)
    num_programs = min(programs, num_tiles * num_q_heads * len(q))
    tables = [flatten(x) for x in (q, k, v)]
    steps = [n for t in tables for n in (t.batch_rows, t.head_rows, t.head_columns)]
    copy_context().run(
        _launch,
        (num_programs,),
        *(_describe(k, tables[1], rows), _describe(v, tables[2], rows), q, out, lse, modes),
        *(tables[0].rows, tables[0].columns, tables[0].row_step),
        *steps,
        out.stride(2),
        num_queries,
        num_keys,
        len(q) * num_kv_heads,
        num_kv_heads,
        num_tiles,
        num_programs,
        factor,
        GROUP=num_q_heads // num_kv_heads,
        SINK=config.num_sink_tokens,
        LOCAL=config.local_window,
        BLOCK=config.block_size,
        D=head_dim,
        ROWS=rows,
        num_warps=4,
        num_stages=2,
    )
    return out, lse


def _launch(grid: tuple[int], *args: Any, **kwargs: Any) -> None:
    # The descriptor made on the device wants a little memory; what the caller told Triton to take it from stays.
    triton.set_allocator(lambda size, _, __: torch.empty(size, dtype=torch.int8, device=args[2].device))
    _prefill_in_roles[grid](*args, **kwargs)


@triton.jit(
    do_not_specialize=[
        "q_rows", "q_columns", "q_batch", "q_head", "q_column", "k_batch", "k_head", "k_column",
        "v_batch", "v_head", "v_column", "T", "S", "num_rows", "num_kv_heads", "num_tiles", "num_programs",
    ]
)  # fmt: skip
def _prefill_in_roles(
    k_desc, v_desc, q, out, lse, modes, q_rows, q_columns, q_row, q_batch, q_head, q_column, k_batch, k_head, k_column,
    v_batch, v_head, v_column, out_row, T, S, num_rows, num_kv_heads, num_tiles, num_programs, scale,
    GROUP: tl.constexpr, SINK: tl.constexpr, LOCAL: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    num_full = 0
    for row in tl.range(0, num_rows):
        num_full += (tl.load(modes + row) == _FULL).to(tl.int32)
    # Each group loads its half of the queries: the compiler halves this descriptor, not one made by the host.
    q_desc = tl.make_tensor_descriptor(q, [q_rows, q_columns], [q_row, 1], [ROWS, D])
    inner = tl.arange(0, ROWS)
    columns = tl.arange(0, D)
    for turn in tl.range(tl.program_id(0), num_tiles * num_rows * GROUP, num_programs, warp_specialize=True):
        row, lane, behind = place_turn(turn, modes, num_full, num_rows, num_tiles, num_programs, GROUP)
        batch, kv_head = row // num_kv_heads, row % num_kv_heads
        head = kv_head * GROUP + lane
        is_full = tl.load(modes + row) == _FULL
        diagonal = (S - 1) // ROWS - behind
        first = diagonal * ROWS
        opens, _ = find_window(first, ROWS, ROWS, LOCAL, BLOCK)
        before = tl.minimum(SINK // ROWS, opens)
        jump = tl.where(is_full, 0, opens - before)
        q_tile = q_desc.load([batch * q_batch + head * q_head + first - (S - T), head * q_column])
        k_first, k_left = batch * k_batch + kv_head * k_head, kv_head * k_column
        v_first, v_left = batch * v_batch + kv_head * v_head, kv_head * v_column
        acc = tl.zeros([ROWS, D], tl.float32)
        highest = tl.full([ROWS], LOWEST, tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        for i in tl.range(0, diagonal + 1 - jump):
            tile = i + tl.where(i < before, 0, jump)
            k_tile = k_desc.load([k_first + tile * ROWS, k_left])
            scores = tl.dot(q_tile, k_tile.T)
            # Waited for here, so that the compiler mixes all that follows: a wait parts it in two.
            v_tile = v_desc.load([v_first + tile * ROWS, v_left])
            # No branch is allowed here, and only half of these comparisons is not known to the compiler.
            reach = inner + tl.where(tile < diagonal, ROWS, 0)
            scores = tl.where(reach[:, None] >= inner[None, :], scores, float("-inf"))
            new_highest = tl.maximum(highest, tl.max(scores, 1) * scale)
            weights = tl.math.exp2(scores * scale - new_highest[:, None])
            shrink = tl.math.exp2(highest - new_highest)
            acc = acc * shrink[:, None]
            added = tl.sum(weights, 1)
            acc = tl.dot(weights.to(v_tile.dtype), v_tile, acc)
            total = total * shrink + added
            highest = new_highest
        rows = first - (S - T) + inner
        is_real = (rows >= 0) & (rows < T)
        base = batch.to(tl.int64) * T
        result = (acc * (1.0 / total)[:, None]).to(out.dtype.element_ty)
        pointers = out + base * out_row + head * D + rows.to(tl.int64)[:, None] * out_row + columns[None, :]
        tl.store(pointers, result, mask=is_real[:, None])
        lse_base = lse + base * num_kv_heads * GROUP + head.to(tl.int64) * T
        tl.store(lse_base + rows, (highest + tl.math.log2(total)) * LN_2, mask=is_real)


@triton.jit
def place_turn(turn, modes, num_full, num_rows, num_tiles, num_programs, GROUP: tl.constexpr):
    """Which tile comes when: full heads before the others, long tiles before short ones, every second round backwards,
    so that equal shares of the turns are equal shares of the work.

    Returns:
        row of `modes`, query head of its group, tiles behind this one.
    """
    round_ = turn // num_programs
    is_backward = (round_ % 2 == 1) & (round_ < num_tiles * num_rows * GROUP // num_programs)
    turn = tl.where(is_backward, (2 * round_ + 1) * num_programs - 1 - turn, turn)
    full_turns = num_full * GROUP * num_tiles
    is_full = turn < full_turns
    turn = tl.where(is_full, turn, turn - full_turns)
    width = tl.where(is_full, num_full, num_rows - num_full) * GROUP
    rank = turn % width // GROUP
    found = 0
    passed = 0
    for row in tl.range(0, num_rows):
        fits = (tl.load(modes + row) == _FULL) == is_full
        found = tl.where(fits & (passed == rank), row, found)
        passed += fits.to(tl.int32)
    return found, turn % GROUP, turn // width
