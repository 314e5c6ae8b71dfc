"""What a consumer warpgroup leaves behind: the normalised rows of a tile and their log-sum-exp."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, tma

from .layout import FIRST_ROW, HALF, HEAD, ROW, STOP_ROW, read_field
from .steps import NONE

LN_2 = gl.constexpr(0.6931471805599453)


@gluon.jit
def write_results(launched, slot, acc, total, highest, SHAPE: gl.constexpr, WHO: gl.constexpr):
    """Divide by the totals and store, the rows of nobody as 0 and -inf."""
    records = launched.buffers.records
    num_queries = launched.sizes.num_queries
    num_q_heads = launched.sizes.num_q_heads
    D: gl.constexpr = SHAPE.head_dim
    ACC_ROWS: gl.constexpr = gl.SliceLayout(1, acc.type.layout)
    row = read_field(records, slot, ROW) + WHO * HALF
    head = read_field(records, slot, HEAD)
    first_row = 0
    stop_row = num_queries
    if SHAPE.is_ragged:
        first_row = read_field(records, slot, FIRST_ROW)
        stop_row = read_field(records, slot, STOP_ROW)
    rows = row + gl.arange(0, HALF, layout=ACC_ROWS)
    is_real = (rows >= first_row) & (rows < stop_row)
    is_kept = is_real
    sums = gl.convert_layout(gl.sum(total, 1), ACC_ROWS)
    log_total = gl.convert_layout(gl.max(highest, 1), ACC_ROWS) * LN_2 + gl.log(sums)
    result = acc * (1.0 / sums)[:, None]
    if SHAPE.is_ragged:
        result = gl.where(is_real[:, None], result, 0.0)
        log_total = gl.where(is_real, log_total, NONE)
        if not SHAPE.is_packed:
            is_kept = (rows >= 0) & (rows < num_queries)
    # Unsigned, because a sign would take a register in the loop over keys.
    line = head.to(gl.uint32).to(gl.uint64) * num_queries.to(gl.uint32)
    gl.store(launched.tensors.lse + line + rows, log_total, mask=is_kept)
    result = result.to(launched.descs.out.dtype)
    element = head // num_q_heads
    q_head = head - element * num_q_heads
    # The copy engine leaves out rows behind the tensor, but must not start before it.
    is_whole = row >= 0
    if SHAPE.is_packed:
        is_whole = (row >= first_row) & (row + HALF <= stop_row)
    if is_whole:
        _store_whole(launched.descs.out, launched.buffers.out, result, element, q_head, row, WHO, D)
    else:
        base = launched.tensors.out + (element.to(gl.int64) * num_queries * num_q_heads + q_head) * D
        _store_real(base, num_q_heads * D, rows, is_kept, result, D)


@gluon.jit
def _store_whole(o_desc, o_s, result, element, q_head, row, WHO: gl.constexpr, D: gl.constexpr):
    """Through the copy engine, which goes on by itself and leaves out rows that the tensor does not have."""
    tma.store_wait(0)
    o_s.index(WHO).reshape([HALF, D]).store(result)
    fence_async_shared()
    tma.async_copy_shared_to_global(o_desc, [element, q_head, row, 0], o_s.index(WHO))


@gluon.jit
def _store_real(base, stride, rows, is_kept, result, D: gl.constexpr):
    """Row by row, for a tile that shares its rows with another sequence."""
    columns = gl.arange(0, D, layout=gl.SliceLayout(0, result.type.layout))[None, :]
    gl.store(base + rows.to(gl.int64)[:, None] * stride + columns, result, mask=is_kept[:, None] & (columns >= 0))
