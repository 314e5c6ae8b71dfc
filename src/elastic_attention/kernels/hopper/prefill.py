"""One launch for all heads and sequences: a scheduler, a producer, two or three consumer warpgroups each."""

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from ...config import StreamingConfig
from ..arguments import count_tiles, find_strides, make_outputs, name_lists, name_spans, scale_for_base_two
from ..block_lists import BlockLists
from ..device import on_its_device
from ..spans import Spans
from .consumer import consume
from .layout import Descriptors, Launch, Shape, Sizes, Tensors, allocate
from .producer import produce
from .schedule import TILE, WIDE
from .scheduler import plan
from .wide import consume_wide

# By the number of consumers: of the launch, of a consumer, of the producer. 64K registers are for 12 or 16 warps; the
# producer gives most of its share to the consumers.
REGISTERS = {2: (168, 232, 40), 3: (128, 160, 32)}
STAGES = 2  # buffers for keys and for values each
SORTED_HEADS = (32, 256)  # few sizes, because each is a kernel of its own and takes seconds to compile


@gluon.jit
def _consume_upper(launched, SHAPE: gl.constexpr):
    consume(launched, SHAPE, 0)


@gluon.jit
def _consume_lower(launched, SHAPE: gl.constexpr):
    consume(launched, SHAPE, 1)


@gluon.jit
def _consume_first(launched, SHAPE: gl.constexpr):
    consume_wide(launched, SHAPE, 0)


@gluon.jit
def _consume_second(launched, SHAPE: gl.constexpr):
    consume_wide(launched, SHAPE, 1)


@gluon.jit
def _consume_third(launched, SHAPE: gl.constexpr):
    consume_wide(launched, SHAPE, 2)


@gluon.jit(
    do_not_specialize=[
        "num_queries", "num_keys", "num_q_heads", "num_kv_heads", "num_sequences", "num_tiles",
        "list_rows", "list_room", "num_sink_tokens", "local_window", "block",
    ]
)  # fmt: skip
def hybrid_prefill(
    q_desc, k_desc, v_desc, o_desc, out, lse, modes, counter, list_counts, list_indices, dense_rows,
    query_starts, query_lengths, key_starts, key_lengths, num_queries, num_keys, num_q_heads, num_kv_heads,
    num_sequences, num_tiles, list_rows, list_room, scale, num_sink_tokens, local_window, block,
    SHAPE: gl.constexpr, CONSUMER: gl.constexpr, PRODUCER: gl.constexpr,
):  # fmt: skip
    """See `launch`."""
    descs = Descriptors(q_desc, k_desc, v_desc, o_desc)
    tensors = Tensors(
        out, lse, modes, counter, list_counts, list_indices, dense_rows,
        query_starts, query_lengths, key_starts, key_lengths,
    )  # fmt: skip
    sizes = Sizes(
        num_queries, num_keys, num_q_heads, num_kv_heads, num_sequences, num_tiles, list_rows, list_room, scale,
        num_sink_tokens, local_window, block,
    )  # fmt: skip
    buffers, barriers = allocate(descs, SHAPE)
    fence_async_shared()
    launched = Launch(descs, buffers, barriers, tensors, sizes)
    if SHAPE.consumers == 2:
        gl.warp_specialize(
            [
                (_consume_upper, (launched, SHAPE)),
                (_consume_lower, (launched, SHAPE)),
                (produce, (launched, SHAPE)),
                (plan, (launched, SHAPE)),
            ],
            [4, 1, 1],
            [CONSUMER, PRODUCER, PRODUCER],
        )
    else:
        gl.warp_specialize(
            [
                (_consume_first, (launched, SHAPE)),
                (_consume_second, (launched, SHAPE)),
                (_consume_third, (launched, SHAPE)),
                (produce, (launched, SHAPE)),
                (plan, (launched, SHAPE)),
            ],
            [4, 4, 1, 1],
            [CONSUMER, CONSUMER, PRODUCER, PRODUCER],
        )


@on_its_device
def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    modes: Tensor,
    config: StreamingConfig,
    scale: float,
    spans: Spans | None,
    lists: BlockLists | None,
    dense_rows: Tensor | None,
    *,
    is_hidden: bool = False,
) -> tuple[Tensor, Tensor]:
    """As `attend_hopper`, unchecked; `is_hidden`: as `attend_hidden`, all modes STREAMING."""
    num_q_heads, num_queries, head_dim = q.shape[1:]
    num_kv_heads, num_keys = k.shape[1:3]
    out, lse = make_outputs(q)
    factor = scale_for_base_two(scale)
    if not out.numel():
        return out, lse
    # The kernel writes rows that read something and belong to a sequence; packed ones may leave gaps.
    is_packed = spans is not None and spans.is_packed
    if is_packed:
        out.zero_()
    if is_packed or is_hidden:
        lse.fill_(float("-inf"))
    counter = find_counter(q.device)
    num_sequences = len(modes)
    shape = choose_shape(head_dim, config, spans, lists, dense_rows, num_sequences * num_kv_heads, is_hidden)
    num_tiles = count_tiles(num_queries, num_keys, spans, TILE if shape.consumers == 2 else WIDE)
    num_items = num_sequences * num_q_heads * num_tiles
    grid = min(num_items, torch.cuda.get_device_properties(q.device).multi_processor_count)
    list_counts, list_indices, list_rows, list_room = name_lists(lists, counter)
    hybrid_prefill[(grid,)](
        *(describe(q, TILE // 2), describe(k, TILE), describe(v, TILE), describe(out, TILE // 2)),
        *(out, lse, modes.contiguous(), counter, list_counts, list_indices),
        dense_rows if dense_rows is not None else counter,
        *name_spans(spans, counter),
        *(num_queries, num_keys, num_q_heads, num_kv_heads, num_sequences, num_tiles, list_rows, list_room, factor),
        *(config.num_sink_tokens, config.local_window, config.block_size),
        *(shape, *REGISTERS[shape.consumers][1:]),
        num_warps=4,
        maxnreg=REGISTERS[shape.consumers][0],
    )
    return out, lse


def choose_shape(
    head_dim: int,
    config: StreamingConfig,
    spans: Spans | None,
    lists: BlockLists | None,
    dense_rows: Tensor | None,
    num_heads: int,
    is_hidden: bool = False,
) -> Shape:
    """What the compiler must know of a call."""
    is_plain = spans is None and lists is None and dense_rows is None and not is_hidden
    consumers = 3 if is_plain and head_dim == 64 and config.block_size == TILE else 2
    return Shape(
        head_dim=head_dim,
        key_stages=STAGES,
        value_stages=STAGES,
        has_edges=config.block_size % TILE != 0 or dense_rows is not None,
        is_ragged=spans is not None,
        is_packed=spans is not None and spans.is_packed,
        has_lists=lists is not None,
        has_dense_rows=dense_rows is not None,
        is_hidden=is_hidden,
        sorted_heads=next((room for room in SORTED_HEADS if num_heads <= room), 0),
        consumers=consumers,
    )


def describe(x: Tensor, rows: int) -> TensorDescriptor:
    """A descriptor of x (B, H, T, D), any strides, in tiles of `rows` rows and all columns."""
    layout = gl.NVMMASharedLayout(swizzle_byte_width=min(128, 2 * x.shape[-1]), element_bitwidth=16, rank=4)
    return TensorDescriptor(x, list(x.shape), find_strides(x), [1, 1, rows, x.shape[-1]], layout)


_counters: dict[tuple[torch.device, int], Tensor] = {}


def find_counter(device: torch.device) -> Tensor:
    """The counter of work items of the present stream: zero between launches, because the kernel winds it back."""
    if torch.cuda.is_current_stream_capturing():  # a graph may run on any stream
        return torch.zeros(1, dtype=torch.int32, device=device)
    key = device, torch.cuda.current_stream(device).cuda_stream
    if key not in _counters:
        _counters[key] = torch.zeros(1, dtype=torch.int32, device=device)
    return _counters[key]
