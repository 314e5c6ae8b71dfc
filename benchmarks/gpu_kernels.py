"""Every GPU kernel beside its peers in one run; writes a record.

    python benchmarks/gpu_kernels.py --json results/gpu_kernels.json
    python benchmarks/gpu_kernels.py --only prefill --lengths 32768 131072 --json results/gpu_kernels.json --add

Before anything is timed, every backend is compared with the float64 oracle; if one differs, nothing is reported and
the exit code is 1. What cannot run here stands in the record under `missing`, what there was no time for under
`skipped`. The record is written after every shape, and `--add` goes on where it stands: what it holds is not measured
again.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import gpu_decode
import gpu_parts
import peers
import torch
from gpu_parts import PATTERN
from sections import KernelBench, Rows, add_shared_options, run_sections
from torch import Tensor

from elastic_attention import hybrid_attention
from elastic_attention.errors import BackendUnavailable
from elastic_attention.evaluation.bench_gpu import Kernel, measure_prefill, own_kernel
from elastic_attention.evaluation.oracle import OracleMismatch, check_against_oracle
from elastic_attention.evaluation.session import choose_device
from elastic_attention.evaluation.shapes import AttentionShape
from elastic_attention.evaluation.timing import Run, time_interleaved
from elastic_attention.paging.verbs import verbs_for

try:
    import triton
    import triton.language as tl
except ImportError:  # no read-only rate and no fused router then; the record says so
    triton = None

RATIOS = (0.0, 0.3, 0.5, 0.7, 0.75, 1.0)
LENGTHS = (32768, 131072, 8192, 65536, 4096, 16384, 262144)
HEADS = ((32, 8, 128), (16, 8, 128), (32, 8, 64))
BACKENDS = ("hopper", "triton")


def measure_ceilings(bench: KernelBench) -> None:
    """Copy rate, read-only rate and matrix rate: what every other number is read against."""
    if not bench.is_due("ceilings"):
        return
    device, scale = bench.device, bench.options.ceiling_scale
    size, side = 2**31 // scale, max(64, 8192 // scale)
    source = torch.randn(size, device=device, dtype=bench.dtype)
    target = torch.empty_like(source)
    left, right = (torch.randn(side, side, device=device, dtype=bench.dtype) for _ in range(2))
    count = source.numel() * source.element_size()
    runs: dict[str, Run] = {"copy": lambda _: target.copy_(source), "matmul": lambda _: left @ right}
    if triton is not None and device.type == "cuda":
        for block, warps in ((2048, 4), (4096, 8), (8192, 8), (16384, 16)):
            out = torch.empty(size // block, dtype=torch.int32, device=device)
            runs[f"read {block}"] = functools.partial(_launch_read, source, out, block, warps)
    else:
        bench.note_missing("ceilings", "read", "needs triton and a GPU")
    for run in runs.values():
        run(0)
    times = time_interleaved(runs, device=device, repeats=bench.options.repeats)
    rows = [
        {"name": "copy", "terabytes_per_second": 2 * count / times["copy"].median / 1e9},
        {"name": "matmul", "teraflops": 2 * side**3 / times["matmul"].median / 1e9},
    ]
    reads = [timing.median for name, timing in times.items() if name.startswith("read")]
    if reads:
        rows.append({"name": "read", "terabytes_per_second": count / min(reads) / 1e9})
    bench.add("ceilings", *rows)


if triton is not None:

    @triton.jit
    def _read_kernel(source, out, BLOCK: tl.constexpr):
        offsets = tl.program_id(0).to(tl.int64) * (BLOCK // 2) + tl.arange(0, BLOCK // 2)
        tl.store(out + tl.program_id(0), tl.max(tl.load(source + offsets), axis=0))


def _launch_read(source: Tensor, out: Tensor, block: int, warps: int, _: int) -> None:
    _read_kernel[(source.numel() // block,)](source.view(torch.int32), out, BLOCK=block, num_warps=warps)


def measure_prefill_section(bench: KernelBench) -> None:
    """Prefill on every shape; the hybrid peers on the first heads and batch 1 only, where their plans fit."""
    options = bench.options
    dense, missing = bench.find_dense()
    own = [own_kernel(name, PATTERN) for name in bench.backends]
    hybrid: list[Kernel] = []
    if "hybrid" in options.peers:
        hybrid, more = peers.find_hybrid(PATTERN, own[0] if own else None)
        missing += more
    for entry in missing:
        bench.note_missing("prefill", entry.name, entry.reason)
    for shape in _list_shapes(options):
        if not bench.is_due("prefill", **shape.as_row()):
            continue
        kernels = own + (dense if "dense" in options.peers else [])
        is_main = shape.batch == 1 and (shape.num_q_heads, shape.num_kv_heads, shape.head_dim) == HEADS[0]
        if is_main and shape.tokens in options.hybrid_lengths:
            kernels += hybrid
        try:
            rows, failures = measure_prefill(
                shape, kernels, options.ratios, pattern=PATTERN, device=bench.device, dtype=bench.dtype,
                repeats=options.repeats, max_seconds=options.cell_seconds,
            )  # fmt: skip
        except torch.OutOfMemoryError as error:
            bench.note_missing("prefill", "inputs", error, **shape.as_row())
            continue
        reference = next((row["teraflops"] for row in rows if row["kernel"] == "fa3"), None)
        for row in rows:
            row["fa3_share"] = row["teraflops"] / reference if reference else None
        bench.add("rows", *rows)
        for row in failures:
            bench.note_missing("prefill", row.pop("kernel"), row.pop("reason"), **row)
        bench.save()


def _list_shapes(options: argparse.Namespace) -> Iterator[AttentionShape]:
    for heads in options.heads:
        for batch in options.batches:
            for tokens in options.lengths:
                q_heads, kv_heads, head_dim = heads
                yield AttentionShape(
                    tokens=tokens, batch=batch, num_q_heads=q_heads, num_kv_heads=kv_heads, head_dim=head_dim
                )


def count_launches(bench: KernelBench) -> None:
    """Device kernels of one `hybrid_attention` and one decode call, heads of both kinds, from a profiler trace."""
    if bench.device.type != "cuda":
        bench.note_missing("launches", "trace", "needs a GPU")
        return
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    shape = AttentionShape(tokens=bench.options.trace_tokens)
    q, k, v = shape.draw(bench.device, bench.dtype)
    routes = shape.spread_sparse(0.5).to(bench.device)
    calls: dict[str, Callable[[], object]] = {
        name: functools.partial(hybrid_attention, q, k, v, routes, pattern=PATTERN, backend=name)
        for name in bench.backends
    }
    cell = gpu_decode.DecodeCell(shape=shape, routes=shape.spread_sparse(0.5), bench=bench)
    calls["paged"] = functools.partial(gpu_decode.plan_paged(cell, verbs_for(bench.device)), 0)
    for name, call in calls.items():
        if not bench.is_due("launches", kernel=name):
            continue
        for _ in range(2):
            call()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
            call()
            torch.cuda.synchronize()
        kernels = [event.name[:120] for event in trace.events() if event.device_type == DeviceType.CUDA]
        row = {"kernel": name, "msr": 0.5, "launches": len(kernels), "names": sorted(kernels)}
        bench.add("launches", shape.as_row() | row)


SECTIONS: dict[str, Callable[[KernelBench], None]] = {
    "ceilings": measure_ceilings,
    "launches": count_launches,
    "router": gpu_parts.measure_router,
    "decode": gpu_decode.measure_decode,
    "prefill": measure_prefill_section,
    "blended": gpu_parts.measure_blended,
    "xattention": gpu_parts.measure_xattention,
}


def find_backends(
    names: Sequence[str], device: torch.device, heads: Sequence[Sequence[int]]
) -> tuple[list[str], Rows, Rows]:
    """The backends that can run here, each compared with the oracle on every kind of heads that it takes.

    Returns:
        Names, the comparisons, and what cannot run with its reason.

    Raises:
        OracleMismatch: one differs.
    """
    found: dict[str, None] = {}
    checks, missing = [], []
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for name in names:
        for q_heads, kv_heads, head_dim in heads:
            cell = {"group_size": q_heads // kv_heads, "head_dim": head_dim}
            try:
                error = check_against_oracle(PATTERN, **cell, dtype=dtype, device=device, backend=name)
            except (BackendUnavailable, ImportError) as problem:
                missing.append({"section": "oracle", "name": name, "reason": str(problem)[:300], **cell})
                continue
            checks.append({"kernel": name, **cell, "error": error})
            found[name] = None
    return list(found), checks, missing


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shared_options(parser, list(SECTIONS))
    parser.add_argument("--cell-seconds", type=float, default=10.0, help="for the repeats of one shape")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--backends", nargs="*", default=list(BACKENDS))
    parser.add_argument("--peers", nargs="*", choices=["dense", "hybrid"], default=["dense", "hybrid"])
    parser.add_argument("--dense", nargs="*", help="only these dense kernels, such as fa3 'sdpa cudnn'")
    parser.add_argument("--lengths", type=int, nargs="*", default=list(LENGTHS))
    parser.add_argument("--hybrid-lengths", type=int, nargs="*", default=[32768, 131072])
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 4])
    parser.add_argument("--ratios", type=float, nargs="*", default=list(RATIOS))
    parser.add_argument("--heads", type=_parse_heads, nargs="*", default=list(HEADS), help="such as 32/8/128")
    parser.add_argument("--decode-lengths", type=int, nargs="*", default=[32768, 131072])
    parser.add_argument("--decode-batches", type=int, nargs="*", default=[1, 4, 8])
    parser.add_argument("--decode-ratios", type=float, nargs="*", default=[0.0, 0.5, 0.75])
    parser.add_argument("--blended-lengths", type=int, nargs="*", default=[8192, 32768])
    parser.add_argument("--xattention-lengths", type=int, nargs="*", default=[32768, 131072])
    parser.add_argument("--densities", type=float, nargs="*", default=[0.05, 0.15, 0.30])
    parser.add_argument("--router-batches", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--router-layers", type=int, default=36)
    parser.add_argument("--trace-tokens", type=int, default=32768)
    parser.add_argument("--ceiling-scale", type=int, default=1, help="divides the sizes behind the ceilings")
    return parser.parse_args(arguments)


def _parse_heads(text: str) -> tuple[int, ...]:
    heads = tuple(int(part) for part in text.split("/"))
    if len(heads) != 3:
        raise argparse.ArgumentTypeError(f"{text!r} must be query heads/KV heads/head dim, such as 32/8/128")
    return heads


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sections; returns the exit code."""
    options = parse_options(arguments)
    device = choose_device(options.device)
    began = time.perf_counter()
    try:
        backends, checks, missing = find_backends(options.backends, device, options.heads)
    except OracleMismatch as error:
        print(error, file=sys.stderr)
        return 1
    bench = KernelBench(options=options, device=device, began=began, backends=backends)
    bench.open_record(
        command="benchmarks/gpu_kernels.py",
        config={"pattern": dataclasses.asdict(PATTERN)},
        model=None,
        data="random normal queries, keys and values",
        versions=peers.list_versions(),
    )
    bench.add("oracle", *checks)
    bench.add("missing", *missing)
    try:
        run_sections(bench, {name: functools.partial(SECTIONS[name], bench) for name in options.only})
    except OracleMismatch as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
