"""Both GPU records in one process: the cells that say most come first, until the time is used up.

    python benchmarks/gpu_records.py --results results --max-seconds 360

A second call goes on where the records stand; what there was no time for is listed in them under `skipped`. Every step
is a command of `gpu_kernels.py` or `gpu_model.py` that can be run by itself.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gpu_kernels
import gpu_model

_MODULES = {"gpu_kernels": gpu_kernels, "gpu_model": gpu_model}
_QWEN, _LLAMA = "--model qwen3-8b --fused", "--model llama-3.1-8b --fused"


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One command.

    Attributes:
        module: "gpu_kernels" or "gpu_model"; the name of its record as well.
        longest: seconds that its longest cell takes on an H200; later than that before the end it begins nothing.
        options: of the command.
    """

    name: str
    module: str
    longest: int
    options: str


STEPS = (
    Step(
        name="kernels",
        module="gpu_kernels",
        longest=45,
        options="--heads 32/8/128 --batches 1 --lengths 32768 131072 8192 --hybrid-lengths 32768 131072 "
        "--ratios 0 .25 .5 .75 1 --repeats 6 --cell-seconds 5",
    ),
    Step(
        name="prefill",
        module="gpu_model",
        longest=22,
        options=f"{_QWEN} --only prefill --lengths 131072 --dense fa3 'sdpa flash' --pairs fa-ssa "
        "--ratios .7 .5 .85 1 0",
    ),
    Step(
        name="decode",
        module="gpu_model",
        longest=4,
        options=f"{_QWEN} --only decode --dense fa3 --ratios .7 .5 .85 0 1 "
        "--decode-cells 131072/4 131072/1 65536/8 262144/1",
    ),
    Step(
        name="pairs",
        module="gpu_model",
        longest=9,
        options=f"{_QWEN} --only prefill --lengths 131072 --dense fa3 --pairs fa-xa xa-ssa fa-ta "
        "--densities .05 .15 .3",
    ),
    Step(
        name="short",
        module="gpu_model",
        longest=6,
        options=f"{_QWEN} --only prefill --lengths 32768 8192 16384 65536 --dense fa3 --pairs fa-ssa --repeats 2",
    ),
    Step(
        name="short pairs",
        module="gpu_model",
        longest=5,
        options=f"{_QWEN} --only prefill --lengths 32768 --dense fa3 --pairs xa-ssa fa-xa fa-ta "
        "--pair-ratios .7 .5 .85 1 0 --densities .15 --repeats 2",
    ),
    Step(
        name="llama",
        module="gpu_model",
        longest=12,
        options=f"{_LLAMA} --only decode prefill --lengths 131072 --dense fa3 --pairs fa-ssa --ratios .7 .5 .85 1 0 "
        "--decode-cells 131072/4 131072/1 65536/8 262144/1",
    ),
    Step(name="batches", module="gpu_model", longest=15, options=f"{_QWEN} --only batches --dense fa3"),
    Step(name="llama batches", module="gpu_model", longest=15, options=f"{_LLAMA} --only batches --dense fa3"),
    Step(
        name="256K",
        module="gpu_model",
        longest=40,
        options=f"{_QWEN} --only prefill --lengths 262144 --dense fa3 --pairs fa-ssa xa-ssa --ratios .7 1 .85 .5 0 "
        "--densities .15",
    ),
    Step(
        name="llama short",
        module="gpu_model",
        longest=6,
        options=f"{_LLAMA} --only prefill --lengths 65536 32768 16384 8192 --dense fa3 --pairs fa-ssa",
    ),
    Step(
        name="llama pairs",
        module="gpu_model",
        longest=9,
        options=f"{_LLAMA} --only prefill --lengths 131072 --dense fa3 --pairs fa-xa xa-ssa fa-ta "
        "--densities .15 .05 .3",
    ),
    Step(
        name="llama 256K",
        module="gpu_model",
        longest=40,
        options=f"{_LLAMA} --only prefill --lengths 262144 --dense fa3 --pairs fa-ssa xa-ssa --ratios .7 "
        "--densities .15",
    ),
    Step(
        name="shapes",
        module="gpu_kernels",
        longest=6,
        options="--only prefill --heads 16/8/128 --batches 1 --lengths 32768 --peers dense "
        "--ratios 0 .5 .75 1 --repeats 5 --cell-seconds 3",
    ),
    Step(
        name="batch4",
        module="gpu_kernels",
        longest=6,
        options="--only prefill --heads 32/8/128 --batches 4 --lengths 4096 32768 --peers dense "
        "--ratios 0 .5 .75 1 --repeats 5 --cell-seconds 3",
    ),
    Step(
        name="small heads",
        module="gpu_kernels",
        longest=6,
        options="--only prefill --heads 32/8/64 --batches 1 --lengths 32768 131072 65536 8192 --peers dense "
        "--ratios 0 .5 .75 1 --repeats 5 --cell-seconds 2",
    ),
    Step(
        name="longer",
        module="gpu_kernels",
        longest=30,
        options="--only prefill --heads 32/8/128 --batches 1 --lengths 65536 262144 16384 4096 --dense fa3 "
        "--peers dense --ratios 0 .5 .75 1 --repeats 4 --cell-seconds 2",
    ),
    Step(
        name="unfused",
        module="gpu_model",
        longest=13,
        options="--model qwen3-8b --only prefill decode --lengths 131072 --dense fa3 --pairs fa-ssa --ratios .7 "
        "--decode-cells 131072/4",
    ),
)


def run_steps(
    steps: Sequence[Step],
    results: Path,
    *,
    max_seconds: float,
    began: float | None = None,
    backends: Sequence[str] = gpu_kernels.BACKENDS,
    model_backend: str = "auto",
) -> int:
    """Run the steps; returns the number of those that failed. A step without time lists its cells as skipped."""
    began, num_failed = time.perf_counter() if began is None else began, 0
    for step in steps:
        left = max_seconds - (time.perf_counter() - began) - step.longest
        arguments = ["--backend", model_backend]
        if step.module == "gpu_kernels":
            gpu_model.forget_model()
            arguments = ["--backends", *backends]
        arguments += [*shlex.split(step.options), "--json", str(results / f"{step.module}.json"), "--add"]
        started = time.perf_counter()
        try:
            code = _MODULES[step.module].main([*arguments, "--max-seconds", str(max(0.0, left))])
        except Exception:  # whatever it is, the other steps are worth having
            traceback.print_exc()
            code = 1
        num_failed += code != 0
        print(f"step {step.name}: exit code {code}, {time.perf_counter() - started:.1f} s", flush=True)
    return num_failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the plan; returns the exit code."""
    began = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the records")
    parser.add_argument("--max-seconds", type=float, default=360.0, help="begin nothing new that would end later")
    parser.add_argument("--backends", nargs="*", default=list(gpu_kernels.BACKENDS), help="of the kernels")
    parser.add_argument("--model-backend", default="auto", help="of the whole model")
    parser.add_argument("--steps", nargs="*", choices=[step.name for step in STEPS], help="only these")
    options = parser.parse_args(arguments)
    steps = [step for step in STEPS if options.steps is None or step.name in options.steps]
    num_failed = run_steps(
        steps,
        options.results,
        max_seconds=options.max_seconds,
        began=began,
        backends=options.backends,
        model_backend=options.model_backend,
    )
    return int(num_failed > 0)


if __name__ == "__main__":
    sys.exit(main())
