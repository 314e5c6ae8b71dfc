"""Decode attention over pages: one new token a sequence, rows of any length, one launch whatever the routes are.

A row is a (sequence, KV head); its query heads are the rows of one matrix product. The tiles of all rows form one
list that the programs share equally, so a program may work on several rows and a row on several programs. Programs
that share a row leave partial results, and the last one to arrive merges them. Everything that changes from step to
step is read from device memory and the grid never changes, so one CUDA graph serves every length and every route.

Shape letters: B batch, H query heads, G KV heads, D head dim, P pages of the pool.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ...config import StreamingConfig
from ..device import on_its_device
from .paging import STREAMING, find_slot
from .shapes import has_descriptors
from .sweep import LOWEST

LEAST_PAGE = 16  # tokens: what a matrix product takes at least
_INTERPRETED_PROGRAMS = 7  # without a GPU: few, so that rows are shared and programs cross rows


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeShape:
    """How the work is cut.

    Attributes:
        tile: tokens that are read at once; divides a page.
        warps: warps of a program.
        stages: tiles in flight, the one in use included.
        programs: programs of a multiprocessor.
        chunk: partial results that are merged at once.
        row_cost: what beginning a row costs, in tiles.
        has_engine: tiles are loaded by the copy engine.
    """

    tile: int
    warps: int = 4
    stages: int = 3
    programs: int = 1
    chunk: int = 16
    row_cost: int = 3
    has_engine: bool = False


@cache
def choose_decode_shape(
    device: torch.device, dtype: torch.dtype, head_dim: int, group_size: int, page_size: int
) -> DecodeShape:
    """Enough keys and values in flight to keep the memory busy, and no more registers than there are."""
    width = triton.next_power_of_2(head_dim)
    row_bytes, part = width * dtype.itemsize, width * triton.next_power_of_2(group_size)
    if dtype.itemsize > 2:  # multiplied by the ordinary units, from registers
        tile = min(64, page_size, max(16, 2048 // width))
        return DecodeShape(tile=tile, warps=8, stages=_limit_stages(3), chunk=min(16, max(2, 8192 // part)))
    if not has_descriptors(device):
        tile, chunk = min(128, page_size, 16384 // row_bytes), min(16, max(2, 8192 // part))
        return DecodeShape(tile=tile, stages=_limit_stages(3), programs=2, chunk=chunk)
    tile, chunk = min(128, page_size, 32768 // row_bytes), min(32, max(2, 16384 // part))
    if tile * row_bytes == 32768:
        return DecodeShape(tile=tile, chunk=chunk, has_engine=True)
    stages = max(3, min(5, 1 + 32768 // (tile * row_bytes)))
    return DecodeShape(tile=tile, stages=stages, programs=2, chunk=chunk, has_engine=True)


def _limit_stages(stages: int) -> int:
    """AMD GPUs have 64 KB of shared memory."""
    return 2 if torch.version.hip else stages


class DecodeWorkspace:
    """Partial results of programs that share a row, and how many of them have arrived.

    One serves all layers of a model, one after the other; not two streams at the same time.

    Args:
        batch, num_q_heads, num_kv_heads, head_dim: of the calls to come.
    """

    def __init__(
        self, batch: int, num_q_heads: int, num_kv_heads: int, head_dim: int, device: torch.device, num_programs: int
    ) -> None:
        rows, heads = batch * num_kv_heads, triton.next_power_of_2(num_q_heads // num_kv_heads)
        self.num_programs = num_programs
        # Program i leaves its part of row r in place i + r; both only grow along the list, so no place is used twice.
        self.parts = torch.empty(
            num_programs + rows, heads, triton.next_power_of_2(head_dim), dtype=torch.float32, device=device
        )
        self.sums = torch.empty(num_programs + rows, heads, dtype=torch.float32, device=device)
        self.arrived = torch.zeros(rows, dtype=torch.int32, device=device)

    @classmethod
    def for_queries(cls, q: Tensor, num_kv_heads: int, page_size: int = 128) -> "DecodeWorkspace":
        """The workspace of `decode_paged` for queries like q (B, H, 1, D)."""
        batch, num_q_heads, _, head_dim = q.shape
        programs = _INTERPRETED_PROGRAMS
        if q.device.type == "cuda":
            shape = choose_decode_shape(q.device, q.dtype, head_dim, num_q_heads // num_kv_heads, page_size)
            programs = torch.cuda.get_device_properties(q.device).multi_processor_count * shape.programs
        return cls(batch, num_q_heads, num_kv_heads, head_dim, q.device, programs)


def decode_paged(
    q: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    table: Tensor,
    lengths: Tensor,
    modes: Tensor,
    config: StreamingConfig,
    scale: float,
    *,
    workspace: DecodeWorkspace | None = None,
) -> Tensor:
    """Attention of the newest token of each sequence, whose key is stored already. One launch; no host sync.

    Args:
        q: (B, H, 1, D) float32, float16 or bfloat16, the last dimension contiguous; D a multiple of 16 up to 256.
        key_pages, value_pages: (P, page_size, D), contiguous; page_size a power of two from `LEAST_PAGE` on. What lies
            in slots that hold no token is never used, but must be finite.
        table: (B * G, max_pages) int32, pages of each row (`paging` says which slot holds which token).
        lengths: (B,) int32, tokens of each sequence.
        modes: (B, G) int32, FULL or STREAMING.
        config: what STREAMING rows hold.
        scale: factor of the scores.
        workspace: `DecodeWorkspace.for_queries`; None = a new one, which a CUDA graph would clear at each replay.

    Returns:
        (B, H, 1, D) in the dtype of q; zeros for a sequence without tokens.
    """
    num_kv_heads, page_size = modes.shape[1], key_pages.shape[1]
    shape = choose_decode_shape(q.device, q.dtype, q.shape[3], q.shape[1] // num_kv_heads, page_size)
    workspace = workspace or DecodeWorkspace.for_queries(q, num_kv_heads, page_size)
    return launch_decode(q, key_pages, value_pages, table, lengths, modes, config, scale, workspace, shape)


@on_its_device
def launch_decode(
    q: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    table: Tensor,
    lengths: Tensor,
    modes: Tensor,
    config: StreamingConfig,
    scale: float,
    workspace: DecodeWorkspace,
    shape: DecodeShape,
) -> Tensor:
    """`decode_paged` with a given cut of the work."""
    batch, num_q_heads, _, head_dim = q.shape
    num_kv_heads, page_size = modes.shape[1], key_pages.shape[1]
    width = triton.next_power_of_2(head_dim)
    out = torch.empty_like(q)
    sources = [key_pages, value_pages]
    if shape.has_engine:
        sizes = [len(key_pages) * page_size, head_dim], [head_dim, 1], [shape.tile, width]
        sources = [TensorDescriptor(x, *sizes) for x in sources]
    # So that `programs` of them fit a multiprocessor of an NVIDIA GPU; others have no such option.
    registers = 65536 // (shape.programs * shape.warps * 32) // 8 * 8
    limit = {} if torch.version.hip else {"maxnreg": min(registers, 255)}
    _decode[(workspace.num_programs,)](
        q, *sources, table, lengths, modes, out, workspace.parts, workspace.sums, workspace.arrived,
        batch * num_kv_heads, table.shape[1], scale * math.log2(math.e), *q.stride()[:2], *out.stride()[:2],
        G=num_kv_heads, GROUP=num_q_heads // num_kv_heads, HEADS=max(16, workspace.parts.shape[1]),
        PART_HEADS=workspace.parts.shape[1], D=head_dim, WIDTH=width, PAGE=page_size, TILE=shape.tile,
        SINK=config.num_sink_tokens, WINDOW=config.local_window, BLOCK=config.block_size,
        ROWS=triton.next_power_of_2(batch * num_kv_heads), CHUNK=shape.chunk, ROW_COST=shape.row_cost,
        STAGES=shape.stages, ENGINE=shape.has_engine, num_warps=shape.warps, **limit,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["num_rows", "max_pages"])
def _decode(
    q, key_source, value_source, table, lengths, modes, out, parts, sums, arrived,
    num_rows, max_pages, scale, q_stride_b, q_stride_h, out_stride_b, out_stride_h,
    G: tl.constexpr, GROUP: tl.constexpr, HEADS: tl.constexpr, PART_HEADS: tl.constexpr, D: tl.constexpr,
    WIDTH: tl.constexpr, PAGE: tl.constexpr, TILE: tl.constexpr, SINK: tl.constexpr, WINDOW: tl.constexpr,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, ROW_COST: tl.constexpr, STAGES: tl.constexpr,
    ENGINE: tl.constexpr,
):  # fmt: skip # type: ignore[no-untyped-def]
    # The list: a row takes ROW_COST places for its beginning and one for each tile.
    rows = tl.arange(0, ROWS)
    is_row = rows < num_rows
    held = tl.load(lengths + rows // G, mask=is_row, other=0)
    mode = tl.load(modes + rows, mask=is_row, other=0)
    held = tl.where(mode == STREAMING, tl.minimum(held, SINK + WINDOW), held)
    cost = tl.where(is_row, tl.maximum(tl.cdiv(held, TILE), 1) + ROW_COST, 0)
    ends = tl.cumsum(cost, 0)
    total = tl.sum(cost, 0)
    share = tl.cdiv(total, tl.num_programs(0))
    program = tl.program_id(0)
    first = program * share
    last = tl.minimum(first + share, total)
    if first < last:
        first_row = tl.sum((ends <= first).to(tl.int32), 0)
        last_row = tl.sum((ends < last).to(tl.int32), 0)
        for row in range(first_row, last_row + 1):
            end = tl.sum(tl.where(rows == row, ends, 0), 0)
            begin = end - tl.sum(tl.where(rows == row, cost, 0), 0) + ROW_COST
            start = tl.maximum(first, begin) - begin
            stop = tl.minimum(last, end) - begin
            if start < stop:
                b = row // G
                q_base = q + b * q_stride_b + row % G * GROUP * q_stride_h
                acc, total_weight, highest = _read_tiles(
                    q_base, q_stride_h, key_source, value_source, table + row * max_pages,
                    tl.load(lengths + b), tl.load(modes + row), start, stop, scale,
                    GROUP, HEADS, D, WIDTH, PAGE, TILE, SINK, WINDOW, BLOCK, STAGES, ENGINE,
                )  # fmt: skip
                heads, columns = tl.arange(0, HEADS), tl.arange(0, WIDTH)
                acc = acc / tl.where(total_weight == 0, 1.0, total_weight)[:, None]
                out_base = out + b * out_stride_b + row % G * GROUP * out_stride_h
                if (start == 0) & (stop == end - begin):
                    is_real = (heads < GROUP)[:, None] & (columns < D)[None, :]
                    out_pointers = out_base + heads[:, None] * out_stride_h + columns[None, :]
                    tl.store(out_pointers, acc.to(out.dtype.element_ty), mask=is_real)
                else:
                    place = program + row
                    is_kept = heads < PART_HEADS
                    lse = tl.where(total_weight == 0, LOWEST, highest + tl.math.log2(total_weight))
                    tl.store(sums + place * PART_HEADS + heads, lse, mask=is_kept)
                    part_pointers = parts + (place * PART_HEADS + heads)[:, None] * WIDTH + columns[None, :]
                    tl.store(part_pointers, acc, mask=is_kept[:, None])
                    tl.debug_barrier()  # the part is complete before one thread says so
                    first_program = begin // share
                    count = (end - 1) // share - first_program + 1
                    if tl.atomic_add(arrived + row, 1, sem="acq_rel") == count - 1:
                        _merge_parts(
                            parts, sums, first_program + row, count, out_base, out_stride_h,
                            GROUP, PART_HEADS, D, WIDTH, CHUNK,
                        )  # fmt: skip
                        tl.store(arrived + row, 0)  # ready for the next launch


@triton.jit
def _read_tiles(
    q_base, q_stride_h, key_source, value_source, pages, length, mode, start, stop, scale,
    GROUP: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, PAGE: tl.constexpr,
    TILE: tl.constexpr, SINK: tl.constexpr, WINDOW: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
    ENGINE: tl.constexpr,
):  # fmt: skip # type: ignore[no-untyped-def]
    """Running softmax, in base 2, of a row's query heads over its tiles [start, stop)."""
    is_full_ring = (mode == STREAMING) & (length > SINK + WINDOW)
    held = tl.where(is_full_ring, SINK + WINDOW, length)
    newest = find_slot(length - 1, is_full_ring, SINK, WINDOW)
    # Once the ring has turned, the rest of the newest token's block holds a block that left the window.
    block_end = tl.where(is_full_ring, (newest // BLOCK + 1) * BLOCK, 0)
    heads, columns, tokens = tl.arange(0, HEADS), tl.arange(0, WIDTH), tl.arange(0, TILE)
    is_real = (heads < GROUP)[:, None] & (columns < D)[None, :]
    q_tile = tl.load(q_base + heads[:, None] * q_stride_h + columns[None, :], mask=is_real, other=0.0)
    highest = tl.full([HEADS], LOWEST, tl.float32)
    total = tl.zeros([HEADS], tl.float32)
    acc = tl.zeros([HEADS, WIDTH], tl.float32)
    page = tl.load(pages + start * TILE // PAGE)
    for tile in tl.range(start, stop, num_stages=STAGES):
        next_page = tl.load(pages + tl.minimum(tile + 1, stop - 1) * TILE // PAGE)  # one step before it is needed
        slot = tile * TILE + tokens
        is_held = (slot < held) & ((slot <= newest) | (slot >= block_end))
        token = page * PAGE + tile * TILE % PAGE
        if ENGINE:
            k_tile = key_source.load([token, 0])
            v_tile = value_source.load([token, 0])
        else:
            offset = (token.to(tl.int64) + tokens)[:, None] * D + columns[None, :]
            is_there = is_held[:, None] & (columns < D)[None, :]
            k_tile = tl.load(key_source + offset, mask=is_there, other=0.0)
            v_tile = tl.load(value_source + offset, mask=is_there, other=0.0)
        scores = tl.dot(q_tile, k_tile.T, input_precision="ieee") * scale
        scores = tl.where(is_held[None, :], scores, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.math.exp2(scores - new_highest[:, None])
        shrink = tl.math.exp2(highest - new_highest)
        total = total * shrink + tl.sum(weights, 1)
        acc = tl.dot(weights.to(v_tile.dtype), v_tile, acc * shrink[:, None], input_precision="ieee")
        highest = new_highest
        page = next_page
    return acc, total, highest


@triton.jit
def _merge_parts(
    parts, sums, first, count, out_base, out_stride_h,
    GROUP: tl.constexpr, PART_HEADS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip # type: ignore[no-untyped-def]
    """Merge `count` parts from place `first` on and write the row's output."""
    SIZE: tl.constexpr = PART_HEADS * WIDTH
    heads, columns = tl.arange(0, PART_HEADS), tl.arange(0, SIZE)
    highest = tl.full([PART_HEADS], LOWEST, tl.float32)
    total = tl.zeros([PART_HEADS], tl.float32)
    acc = tl.zeros([SIZE], tl.float32)
    for start in range(0, count, CHUNK):
        place = start + tl.arange(0, CHUNK)
        is_there = (place < count)[:, None]
        place = (first + place)[:, None]
        # Other multiprocessors wrote these: past the level-1 cache.
        part = tl.load(parts + place * SIZE + columns[None, :], mask=is_there, other=0.0, cache_modifier=".cg")
        lse = tl.load(sums + place * PART_HEADS + heads[None, :], mask=is_there, other=LOWEST, cache_modifier=".cg")
        new_highest = tl.maximum(highest, tl.max(lse, 0))
        weights = tl.math.exp2(lse - new_highest[None, :])
        shrink = tl.math.exp2(highest - new_highest)
        spread = tl.broadcast_to(weights[:, :, None], [CHUNK, PART_HEADS, WIDTH]).reshape(CHUNK, SIZE)
        kept = tl.broadcast_to(shrink[:, None], [PART_HEADS, WIDTH]).reshape(SIZE)
        acc = acc * kept + tl.sum(part * spread, 0)
        total = total * shrink + tl.sum(weights, 0)
        highest = new_highest
    acc = acc / tl.broadcast_to(total[:, None], [PART_HEADS, WIDTH]).reshape(SIZE)
    is_real = (columns // WIDTH < GROUP) & (columns % WIDTH < D)
    pointers = out_base + columns // WIDTH * out_stride_h + columns % WIDTH
    tl.store(pointers, acc.to(out_base.dtype.element_ty), mask=is_real)
