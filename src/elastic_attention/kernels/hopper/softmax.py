"""Running softmax of 64 rows in base 2 that takes the maximum of a row once, and again only when it has to.

Any reference near the maximum of a row gives the same softmax. The first key tile sets it to the true maximum. A later
tile looks at the sums of its weights, which it needs anyhow: while they are moderate, so is every weight, and neither
a maximum nor a correction of earlier results is computed. Where a sum is too large, its warp takes the true maximum
and does the tile again. That is exact for any scores, and saves a ninth of the time.

Column 8 a + 2 b + c of a row lies in thread b of four, so a thread holds 64 scores, two each of one row and of another
in turn. Sums and references are (64, 4), one for each thread: the sums are parts of the row's, the references equal.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .layout import HALF, ROWS

# Sums up to which a reference is good enough, far above what it leads to and far below what weights may be.
_LIMITS = {"f16x2": "0f46800000", "bf16x2": "0f5D800000"}  # 2 ** 14, 2 ** 60


def _write_weights(kind: str) -> str:
    """PTX of one thread: $0 to $31 weights in pairs, $32 + i sums, $96 + i growth of the reference; $160 + i exponents.

    It is one piece because the exponents must outlive the branch, without a copy where it is not taken. Of the sums
    and growths only two each are used; the assembler drops the others.
    """
    lines = ["{ .reg .pred p; .reg .f32 w0, w1, s0, s1, g0, g1, t; .reg .f32 y<64>;"]

    def weigh(name: str) -> None:
        for i in range(0, 64, 2):
            row = i // 2 % 2
            lines.append(f"ex2.approx.ftz.f32 w0, {name.format(i)}; ex2.approx.ftz.f32 w1, {name.format(i + 1)};")
            lines.append(f"cvt.rn.{kind}.f32 ${i // 2}, w1, w0; add.f32 w0, w0, w1;")
            lines.append(f"mov.f32 s{row}, w0;" if i < 4 else f"add.f32 s{row}, s{row}, w0;")

    for i in range(64):
        lines.append(f"mov.f32 y{i}, ${160 + i};")
    weigh("y{}")
    lines.append("mov.f32 g0, 0f00000000; mov.f32 g1, 0f00000000;")
    lines.append(
        f"max.f32 t, s0, s1; setp.gt.f32 p, t, {_LIMITS[kind]}; vote.sync.any.pred p, p, 0xffffffff; @!p bra.uni done;"
    )
    for i in range(64):
        lines.append(f"max.f32 g{i // 2 % 2}, g{i // 2 % 2}, y{i};")
    for row in range(2):
        for distance in (2, 1):
            lines.append(f"shfl.sync.bfly.b32 t, g{row}, {distance}, 0x1f, 0xffffffff; max.f32 g{row}, g{row}, t;")
    for i in range(64):
        lines.append(f"sub.f32 y{i}, y{i}, g{i // 2 % 2};")
    weigh("y{}")
    lines.append("done:")
    for i in range(64):
        lines.append(f"mov.f32 ${32 + i}, s{i // 2 % 2}; mov.f32 ${96 + i}, g{i // 2 % 2};")
    return " ".join([*lines, "}"])


def _write_shrink(count: int) -> str:
    """PTX of one thread: accumulators $i times 2 ** -growth in place, growth in $2 count + i; nothing if none grew."""
    first, second = f"${2 * count}", f"${2 * count + 2}"
    lines = ["{ .reg .pred p; .reg .f32 f0, f1, t;", f"max.f32 t, {first}, {second};"]
    lines.append("setp.gt.f32 p, t, 0f00000000; vote.sync.any.pred p, p, 0xffffffff; @!p bra.uni done;")
    lines.append(f"neg.f32 f0, {first}; neg.f32 f1, {second}; ex2.approx.ftz.f32 f0, f0; ex2.approx.ftz.f32 f1, f1;")
    lines += [f"mul.f32 ${i}, ${i}, f{i // 2 % 2};" for i in range(count)]
    return " ".join([*lines, "done: }"])


_WEIGHTS_BF16 = gl.constexpr(_write_weights("bf16x2"))
_WEIGHTS_FP16 = gl.constexpr(_write_weights("f16x2"))
_TYPES_BF16 = gl.constexpr((gl.bfloat16, gl.float32, gl.float32))
_TYPES_FP16 = gl.constexpr((gl.float16, gl.float32, gl.float32))
_WEIGHTS_REGISTERS = gl.constexpr(",".join(["=r"] * 32 + ["=f"] * 128 + ["f"] * 64))
_SHRINK_64 = gl.constexpr(_write_shrink(64))
_SHRINK_64_REGISTERS = gl.constexpr(",".join(["=f"] * 64 + [str(i) for i in range(64)] + ["f"] * 64))
_SHRINK_32 = gl.constexpr(_write_shrink(32))
_SHRINK_32_REGISTERS = gl.constexpr(",".join(["=f"] * 32 + [str(i) for i in range(32)] + ["f"] * 32))


@gluon.jit
def _take_first(a, b):
    return a


@gluon.jit
def _spread(rows, like):
    """(64, 4) -> (64, C) in the layout of `like`: every thread uses its own number for all its columns."""
    COLUMNS: gl.constexpr = like.shape[1]
    four = like.reshape([HALF, COLUMNS // 8, 4, 2])
    LAYOUT: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(3, four.type.layout))
    wide = gl.expand_dims(gl.expand_dims(gl.convert_layout(rows, LAYOUT), 1), 3)
    return gl.convert_layout(gl.broadcast(wide, four)[0].reshape([HALF, COLUMNS]), like.type.layout)


@gluon.jit
def _split_rows(scores):
    return scores.reshape([HALF, ROWS // 8, 4, 2])


@gluon.jit
def find_highest(scores, scale):
    """The maximum of each row, (64, 4)."""
    parts = gl.max(gl.max(_split_rows(scores), 3), 1)
    highest, _ = gl.broadcast(gl.max(parts, 1)[:, None] * scale, parts)
    return highest


@gluon.jit
def weigh(scores, highest, scale):
    """Weights under a given reference, and their sums."""
    weights = gl.exp2(scores * scale - _spread(highest, scores))
    return weights, gl.sum(gl.sum(_split_rows(weights), 3), 1)


@gluon.jit
def weigh_next(scores, highest, scale, DTYPE: gl.constexpr):
    """Weights and sums of another key tile, and by how much the reference grows for it."""
    exponents = scores * scale - _spread(highest, scores)
    PTX: gl.constexpr = _WEIGHTS_BF16 if DTYPE == gl.bfloat16 else _WEIGHTS_FP16
    TYPES: gl.constexpr = _TYPES_BF16 if DTYPE == gl.bfloat16 else _TYPES_FP16
    weights, sums, growth = gl.inline_asm_elementwise(
        PTX, _WEIGHTS_REGISTERS, [exponents], dtype=TYPES, is_pure=True, pack=64
    )
    sums = gl.reduce(gl.reduce(_split_rows(sums), 3, _take_first), 1, _take_first)
    growth = gl.reduce(gl.reduce(_split_rows(growth), 3, _take_first), 1, _take_first)
    return weights, sums, growth


@gluon.jit
def shrink(acc, growth):
    """acc (64, D) * 2 ** -growth (64, 4), for which nothing is done in a warp where no reference has grown."""
    D: gl.constexpr = acc.shape[1]
    PTX: gl.constexpr = _SHRINK_64 if D == 128 else _SHRINK_32
    REGISTERS: gl.constexpr = _SHRINK_64_REGISTERS if D == 128 else _SHRINK_32_REGISTERS
    return gl.inline_asm_elementwise(
        PTX, REGISTERS, [acc, _spread(growth, acc)], dtype=gl.float32, is_pure=True, pack=D // 2
    )
