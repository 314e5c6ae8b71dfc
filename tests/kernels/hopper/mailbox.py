"""The smallest program in which `racecheck` sees a race where there is none: a warp hands numbers to another.

    compute-sanitizer --tool racecheck python tests/kernels/hopper/mailbox.py

The writer stores a number and arrives at one barrier in shared memory, the reader waits there, loads the number and
arrives at another, for which the writer waits before it stores again. Arrivals release and waits acquire, so every two
accesses are ordered, and the sum is right. The tool (2025.3) names each load and store all the same: it does not follow
such barriers. The work record of the hopper kernel is passed on in the same way, and named in the same way.
"""

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

NUMBERS = 20


@gluon.jit
def _rest(box, is_full, is_free, out, count):
    """The warps that a program has besides."""


@gluon.jit
def _read(box, is_full, is_free, out, count):
    LANES: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    total = 0
    for i in range(count):
        mbarrier.wait(is_full, i & 1)
        total += gl.max(box.load(LANES), 0)
        mbarrier.arrive(is_free, count=1)
    gl.store(out, total)


@gluon.jit
def _write(box, is_full, is_free, out, count):
    LANES: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    for i in range(count):
        mbarrier.wait(is_free, (i & 1) ^ 1)
        box.store(gl.full([1], i, gl.int32, LANES))
        mbarrier.arrive(is_full, count=1)


@gluon.jit
def pass_numbers(out, count):
    box = gl.allocate_shared_memory(gl.int32, [1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    barriers = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(2):
        mbarrier.init(barriers.index(i), count=1)
    given = (box, barriers.index(0), barriers.index(1), out, count)
    gl.warp_specialize([(_rest, given), (_read, given), (_write, given)], [1, 1], [40, 40])


if __name__ == "__main__":
    total = torch.zeros((), dtype=torch.int32, device="cuda")
    pass_numbers[(1,)](total, NUMBERS, num_warps=4, maxnreg=168)
    assert total.item() == sum(range(NUMBERS)), total.item()
    print("the sum is right")
