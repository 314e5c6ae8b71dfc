"""Throughput of training routers on a frozen backbone of 8B shape with random weights; writes a record.

    python benchmarks/training_throughput.py --json one.json
    torchrun --nproc-per-node 8 benchmarks/training_throughput.py --sequence 1 2 4 8 --ways ours \\
        --add one.json --json results/training_throughput.json

The loads are packs of `--tokens`: "mixed" packs samples of an eighth of that length and longer, "single" is one sample.
A step is one pack a data-parallel group, with its optimiser step; the slowest process counts. Times do not depend on
what the weights say. Fresh routers send about half of the heads each way. Cells with the same packs must agree on the
loss, or nothing more is measured.

Model FLOPs are those that the loss and its gradient need: products with frozen weights forward and once backward (they
get no gradient), four products a causal pair in the backward of attention, on the pairs that a head's route reads, and
two in its forward, on all pairs, since the gradient of a route needs both paths. What recomputation costs is apart.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from model_bench import MODELS, SEED, build_model
from training_loads import RESPONSE_TOKENS, draw_pack, make_pack
from training_rates import (
    CELL,
    PAPER,
    PEAK_FLOPS,
    Row,
    add_scaling,
    count_flops,
    estimate_hours,
    measure_matmul,
    wait_for,
)
from training_reference import use_reference

from elastic_attention.errors import ElasticAttentionError
from elastic_attention.evaluation.oracle import OracleMismatch
from elastic_attention.evaluation.session import choose_device, describe_device
from elastic_attention.records import build_record, read_record, write_record
from elastic_attention.training.data.batch import PackedBatch
from elastic_attention.training.parallel.config import ParallelConfig
from elastic_attention.training.parallel.engine import ParallelEngine
from elastic_attention.training.parallel.ranks import Ranks, choose_local_device, join_ranks
from elastic_attention.training.parallel.sharding import find_layers
from elastic_attention.training.recipe import Interval, Recipe

WAYS, LOADS, MEMORIES = ("ours", "reference"), ("mixed", "single"), ("layers", "attention", "all")
LOSS_TOLERANCE = 1e-2


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), default="qwen3-8b")
    parser.add_argument("--layers", type=int, help="fewer than the model has, for a shake-out")
    parser.add_argument("--tokens", type=int, default=65_536, help="of a pack")
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument(
        "--memory", nargs="+", choices=MEMORIES, default=["attention"],
        help="what a layer keeps for the backward besides its input: nothing and runs again (layers), what attention "
        "gave (attention), or everything (all); the reference keeps nothing",
    )  # fmt: skip
    parser.add_argument(
        "--whole-layers", nargs="+", type=int, default=[0],
        help="layers that keep everything where others do not; one number, or one for each of --sequence",
    )  # fmt: skip
    parser.add_argument(
        "--fast-gradients", nargs="+", type=int, choices=(0, 1), default=[0],
        help="1: cuDNN computes those of full heads, not the same to the last bit each time",
    )  # fmt: skip
    parser.add_argument(
        "--compiled", nargs="+", type=int, choices=(0, 1), default=[0], help="1: torch.compile fuses norms and MLPs"
    )
    parser.add_argument("--sequence", nargs="+", type=int, default=[1], help="processes that share a pack")
    parser.add_argument("--weights", type=int, default=0, help="processes that share the weights, 0 = all")
    parser.add_argument(
        "--warm-up",
        nargs="+",
        type=int,
        default=[1],
        help="steps before the timed ones; one number, or one for each load",
    )
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a cell")
    parser.add_argument("--profile", type=Path, help="write the kernels of one more step of each cell here")
    parser.add_argument("--max-seconds", type=float, default=math.inf, help="begin no cell after this")
    parser.add_argument("--device")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--add", nargs="*", type=Path, default=[], help="records whose other cells this one takes over")
    options = parser.parse_args(arguments)
    if len(options.whole_layers) not in (1, len(options.sequence)):
        parser.error(f"--whole-layers takes one number or {len(options.sequence)}, as many as --sequence.")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cells one after the other; the record is whole after each of them."""
    options, began = parse_options(arguments), time.perf_counter()
    device = torch.device(choose_local_device(str(choose_device(options.device))))
    with _start_processes(device):
        bench = TrainingBench(options, device, began)
        for load, sequence in itertools.product(options.loads, options.sequence):
            with join_ranks(ParallelConfig(sequence=sequence, weights=options.weights), device) as ranks:
                bench.run(ranks, sequence, load)
    return 0


@contextlib.contextmanager
def _start_processes(device: torch.device) -> Iterator[None]:
    """One process group for all degrees of sequence parallelism."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    yield
    dist.destroy_process_group()


class TrainingBench:
    """The model, the loads, and the rows found so far."""

    def __init__(self, options: argparse.Namespace, device: torch.device, began: float) -> None:
        self.options, self.device, self.began = options, device, began
        self.rows: list[Row] = []
        self.skipped: list[Row] = []
        self.matmul_flops = measure_matmul(device)
        self.model = build_model(options.model, device, layers=options.layers)
        self.loads = {name: draw_pack(name, options.tokens) for name in options.loads}

    def run(self, ranks: Ranks, sequence: int, load: str) -> None:
        """All cells of one load and one way to share packs."""
        for way, settings in self.list_engines(sequence):
            engine = ParallelEngine(build_recipe(self.options, sequence, **settings), self.model, ranks)
            use_reference(way == "reference")
            values = (
                self.options.model, len(find_layers(self.model)), self.options.tokens, ranks.world_size, sequence,
                self.options.weights or ranks.world_size, load, way,
            )  # fmt: skip
            cell = dict(zip(CELL, values, strict=False)) | settings
            if ranks.agree(time.perf_counter() - self.began > self.options.max_seconds):
                self.skipped.append(cell | {"reason": "the time is up"})
            else:
                self.try_measuring(engine, ranks, cell)
            if ranks.is_first:
                self.save()
            engine.close()
            use_reference(False)

    def list_engines(self, sequence: int) -> Iterator[tuple[str, Row]]:
        """Ways and their settings, the last entries of `CELL`. The reference shares no packs and keeps nothing."""
        names, options = CELL[-4:], self.options
        for is_compiled, way in itertools.product(map(bool, options.compiled), options.ways):
            if way == "ours":
                whole = options.whole_layers[-1]
                if len(options.whole_layers) > 1:
                    whole = options.whole_layers[options.sequence.index(sequence)]
                for memory, fast in itertools.product(options.memory, options.fast_gradients):
                    yield way, dict(zip(names, (memory, whole, is_compiled, bool(fast)), strict=True))
            elif sequence == 1:
                yield way, dict(zip(names, ("layers", 0, is_compiled, False), strict=True))

    def try_measuring(self, engine: ParallelEngine, ranks: Ranks, cell: Row) -> None:
        """`measure`; a cell that cannot run here is named in the record and does not take the others along."""
        try:
            self.measure(engine, ranks, cell)
        except RuntimeError as error:  # too little memory, or a kernel that is missing
            self.skipped.append(cell | {"reason": " ".join(str(error).split())[:300]})
            print(self.skipped[-1], flush=True)
            torch.cuda.empty_cache()

    def measure(self, engine: ParallelEngine, ranks: Ranks, cell: Row) -> None:
        """Time the steps of a cell."""
        lengths, seconds = self.loads[cell["load"]], []
        warm_up = dict(zip(self.options.loads, self.options.warm_up * len(self.loads), strict=False))[cell["load"]]
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for step in range(warm_up + self.options.steps):
            pack = make_pack(lengths, engine.model.config.vocab_size, step, ranks).to(self.device)
            ranks.meet()
            wait_for(self.device)
            start = time.perf_counter()
            values = take_step(engine, step, pack)
            wait_for(self.device)
            seconds.append(time.perf_counter() - start)
        slowest = [max(ranks.collect(int(s * 1e6))) / 1e6 for s in seconds[warm_up:]]
        peak = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0
        row = cell | {
            "samples": lengths, "seconds": statistics.fmean(slowest), "seconds_of_steps": slowest,
            "first_seconds": seconds[0], "peak_bytes": max(ranks.collect(peak)), "loss": values["loss"],
            "msr": statistics.fmean(values["msr"].values()),
        }  # fmt: skip
        self.rows.append(row | self.describe_rates(row, ranks))
        check_losses(self.rows)
        if ranks.is_first:
            text = " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in self.rows[-1].items())
            print(text, flush=True)
        if self.options.profile is not None:
            self.profile(engine, pack, ranks, cell)

    def profile(self, engine: ParallelEngine, pack: PackedBatch, ranks: Ranks, cell: Row) -> None:
        """Write which kernels a step of the first process spends its time in."""
        with torch.profiler.profile() as profiler:
            take_step(engine, 0, pack)
            wait_for(self.device)
        if not ranks.is_first:
            return
        order = "self_device_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=70)
        with self.options.profile.open("a", encoding="utf-8") as file:
            file.write(f"{cell}\n{table}\n")

    def describe_rates(self, row: Row, ranks: Ranks) -> Row:
        """What follows from the seconds of a step."""
        needed, again = count_flops(self.model, row["samples"], row["msr"], row["memory"], row["whole_layers"])
        per_gpu = ranks.data_size / (row["seconds"] * ranks.world_size)  # packs a second and GPU
        return {
            "tokens_per_second": row["tokens"] * ranks.data_size / row["seconds"],
            "tokens_per_second_per_gpu": row["tokens"] * per_gpu,
            "model_flops_per_pack": needed,
            "recomputed_flops_per_pack": again,
            "model_flops_per_second_per_gpu": needed * per_gpu,
            "share_of_peak": needed * per_gpu / PEAK_FLOPS,
            "share_of_matmul": needed * per_gpu / self.matmul_flops,
            "share_of_peak_with_recomputation": (needed + again) * per_gpu / PEAK_FLOPS,
        }

    def save(self) -> None:
        """Write the record as far as it has come."""
        options = self.options
        if options.json is None:
            return
        added = [read_record(path)["metrics"] for path in options.add]
        rows = merge_cells([row for metrics in added for row in metrics["rows"]], self.rows)
        skipped = merge_cells([cell for metrics in added for cell in metrics["skipped"]], self.skipped)
        add_scaling(rows)
        record = build_record(
            "benchmarks/training_throughput.py",
            config=_describe_options(options) | {"peak_flops": PEAK_FLOPS, "response_tokens": RESPONSE_TOKENS},
            model=f"{options.model}, random weights",
            data=f"random tokens, packs of {options.tokens}",
            device=describe_gpus(self.device, max((row["gpus"] for row in rows), default=1)),
            seed=SEED,
            n=len(rows),
            metrics={
                "rows": rows,
                "hours": estimate_hours(rows),
                "skipped": [cell for cell in skipped if merge_cells([cell], rows) != rows],
                "matmul_flops_per_second": self.matmul_flops,
                "paper": PAPER,
            },
            seconds=time.perf_counter() - self.began,
            bytes=max((row["peak_bytes"] for row in rows), default=0),
        )
        write_record(options.json, record)


def describe_gpus(device: torch.device, most: int) -> str:
    """The devices in words; `most` is how many worked together at most."""
    return describe_device(device).replace("1 GPU", f"1 to {most} GPUs") if most > 1 else describe_device(device)


def merge_cells(old: list[Row], new: list[Row]) -> list[Row]:
    """The new ones, behind the old ones that none of them replaces."""
    taken = {tuple(row[key] for key in CELL) for row in new}
    return [row for row in old if tuple(row[key] for key in CELL) not in taken] + new


def check_losses(rows: list[Row]) -> None:
    """The same packs have the same loss, however it is computed and shared.

    Raises:
        OracleMismatch: two cells differ by more than a route or two that fell the other way in bfloat16.
    """
    last = rows[-1]
    for row in rows:
        is_same = row["load"] == last["load"] and row["gpus"] // row["sequence"] == last["gpus"] // last["sequence"]
        if is_same and not math.isclose(row["loss"], last["loss"], rel_tol=LOSS_TOLERANCE):
            cells = [{key: one[key] for key in (*CELL, "loss")} for one in (row, last)]
            raise OracleMismatch(f"Two cells disagree on the loss of the same packs: {cells[0]} and {cells[1]}.")


def take_step(engine: ParallelEngine, step: int, pack: PackedBatch) -> Row:
    """A step of one pack."""
    engine.start_step(step)
    engine.accumulate(pack)
    return engine.finish_step()


def build_recipe(
    options: argparse.Namespace,
    sequence: int,
    *,
    memory: str,
    whole_layers: int,
    is_compiled: bool,
    fast_gradients: bool,
) -> Recipe:
    """The run that a cell takes some steps of."""
    return Recipe(
        model=options.model,
        steps=1000,
        intervals={"sensitive": Interval(low=0.6, high=0.7), "robust": Interval(low=0.8, high=1.0)},
        recompute_layers=memory != "all",
        keep_attention=memory == "attention",
        whole_layers=0 if memory == "all" else whole_layers,
        fast_gradients=fast_gradients,
        fuse_layers=is_compiled,
        parallel=ParallelConfig(sequence=sequence, weights=options.weights),
        precision="bfloat16" if torch.cuda.is_available() else "float32",
    )


def _describe_options(options: argparse.Namespace) -> Row:
    hidden = ("json", "add", "profile")
    return {k: None if v == math.inf else v for k, v in vars(options).items() if k not in hidden}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ElasticAttentionError as error:
        sys.exit(f"error: {error}")
