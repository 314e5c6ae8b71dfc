"""A whole model of 8B shape with random weights: prefill and decode, dense against elastic; writes a record.

    python benchmarks/gpu_model.py --model qwen3-8b --fused --json results/gpu_model.json
    python benchmarks/gpu_model.py --model llama-3.1-8b --lengths 131072 --json results/gpu_model.json --add

Times do not depend on what the weights say, so nothing is downloaded; the weights are drawn on the device. The routers
run and are timed, but the routes that are taken are given: at the wanted ratios, drawn once over all layers and heads.
The bound of a prefill is
Amdahl's: the best dense run's time outside of attention, plus its attention time by the visited fraction. The bound
of a decode step is the bytes it must read over the measured copy rate.

The record is written after every row. `--add` goes on where it stands: what it holds is not measured again.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import peers
import torch
from model_bench import MODELS, PAIRS, Clock, ModelBench, build_model, make_config, register_dense
from model_decode import measure_decode, measure_largest_batch
from model_prefill import measure_prefill
from sections import add_shared_options, run_sections

from elastic_attention.evaluation.session import choose_device

RATIOS = (0.0, 0.5, 0.7, 0.85, 1.0)
LENGTHS = (131072, 32768, 8192, 65536, 16384, 262144)
DECODE_CELLS = ((131072, 1), (131072, 4), (65536, 8), (262144, 1))
SECTIONS: dict[str, Callable[[ModelBench], None]] = {
    "prefill": measure_prefill,
    "decode": measure_decode,
    "batches": measure_largest_batch,
}
_load_model = functools.lru_cache(maxsize=1)(build_model)


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shared_options(parser, list(SECTIONS))
    parser.add_argument("--model", choices=list(MODELS), default="qwen3-8b")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--fused", action="store_true", help="fused norms, rotations and gates on both sides")
    parser.add_argument("--dense", nargs="*", help="only these dense kernels, such as fa3 'sdpa cudnn'")
    parser.add_argument("--lengths", type=int, nargs="*", default=list(LENGTHS))
    parser.add_argument("--ratios", type=float, nargs="*", default=list(RATIOS), help="sparse heads of FA-SSA")
    parser.add_argument("--pairs", nargs="*", choices=PAIRS, default=list(PAIRS), help="full and sparse patterns")
    parser.add_argument("--pair-ratios", type=float, nargs="*", default=[0.7], help="sparse heads of the other pairs")
    parser.add_argument("--densities", type=float, nargs="*", default=[0.05, 0.15, 0.30], help="blocks of XA")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--warm-tokens", type=int, default=4096)
    parser.add_argument("--decode-cells", type=_parse_cell, nargs="*", default=list(DECODE_CELLS), help="tokens/batch")
    parser.add_argument("--steps", type=int, default=20, help="timed decode steps")
    parser.add_argument("--batch-tokens", type=int, default=131072, help="length behind the largest batch")
    parser.add_argument("--batch-ratio", type=float, default=0.7, help="sparsity behind the largest batch")
    parser.add_argument("--copy-bytes", type=int, default=2**32)
    return parser.parse_args(arguments)


def _parse_cell(text: str) -> tuple[int, int]:
    tokens, _, batch = text.partition("/")
    if not (tokens.isdecimal() and batch.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} must be tokens/batch, such as 131072/4")
    return int(tokens), int(batch)


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the model, run the sections; returns the exit code."""
    options, began = parse_options(arguments), time.perf_counter()
    device = choose_device(options.device)
    if not gc.get_freeze_count():  # a collection between two runs need not look at what was imported
        gc.freeze()
    clock = Clock(device=device)
    dense, missing = register_dense(device, clock)
    has_time = options.max_seconds > 0  # without any, the cells are only listed as skipped
    model = _load_model(options.model, device) if has_time else build_model(options.model, torch.device("meta"))
    with _fuse(model) if options.fused and has_time else nullcontext():
        chosen = [name for name in dense if options.dense is None or name in options.dense]
        bench = ModelBench(options=options, device=device, began=began, model=model, clock=clock, dense=chosen)
        pattern = make_config(model, "fa-ssa", None).sparse_pattern
        bench.open_record(
            command="benchmarks/gpu_model.py",
            config={"pattern": dataclasses.asdict(pattern), "backend": options.backend},
            model=bench.name,
            data="random tokens and weights",
            versions=peers.list_versions(),
        )
        for entry in missing:
            bench.note_missing("dense", entry.name, entry.reason)
        run_sections(bench, {name: functools.partial(SECTIONS[name], bench) for name in options.only})
    return 0


def _fuse(model: Any) -> Any:
    from fused_model import fused_elementwise

    return fused_elementwise(model)


def forget_model() -> None:
    """Free the model that the last call of `main` built; the next call with the same name would have reused it."""
    _load_model.cache_clear()


if __name__ == "__main__":
    sys.exit(main())
