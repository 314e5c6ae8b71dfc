"""vLLM with and without the plugin on a model of 8B shape with random weights: time to the first token, and decoding.

    python benchmarks/vllm_engine.py --json results/vllm_engine.json
    python benchmarks/vllm_engine.py --shape tiny --cells 300x2 --block-size 64 --new-tokens 8 --json engine.json

Ways, each in a process of its own: "stock" (vLLM alone), "off" (the plugin, all heads full: what it costs), "elastic"
(the plugin, routes given at `--msr`, drawn once: prompts are sparse too) and "deferred" (the plugin's default policy:
routers that make this share of the layers sparse decide at the end of a dense prompt). Cells: tokens x requests.
Prompts are random and never the same twice; the prefix cache is off, and all ways have blocks of the same size and the
same CUDA graphs. TTFT is the time until all requests of a cell have their first token; decoding is what the steps take
from there until the first of them is done, `--new-tokens` at least. A cell is measured again until it took `--least`
seconds; the best time counts. `--add` keeps what the record says of other cells and other numbers of ranks; a cell is
always of one run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WAYS = ("stock", "off", "elastic", "deferred")
CELLS = "131072x1 131072x4 65536x1 65536x8 32768x1 32768x8 32768x24"
SHAPES: dict[str, dict[str, int]] = {
    "8b": dict(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=128256,
        max_position_embeddings=140_000,
    ),
    "tiny": dict(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=512,
        max_position_embeddings=4096,
    ),
}


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="8b")
    parser.add_argument("--cells", nargs="*", default=CELLS.split())
    parser.add_argument("--few-cells", nargs="*", help='of the ways "off" and "deferred"; default: all')
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS))
    parser.add_argument("--msr", type=float, default=0.7)
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--least", type=float, default=8.0, help="seconds of measuring a cell")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--ranks", type=int, default=1, help="GPUs that share the heads (tensor parallel)")
    parser.add_argument("--graphs", default="FULL_DECODE_ONLY", help="vLLM's cudagraph_mode, of all ways")
    parser.add_argument("--compile", type=int, default=0, help="vLLM's compilation mode, of all ways")
    parser.add_argument("--block-size", type=int, default=128)
    parser.add_argument("--chunk", type=int, default=8192, help="tokens of a step")
    parser.add_argument("--memory", type=float, default=0.93, help="part of the device's memory")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--add", action="store_true", help="keep the record's other cells and ranks")
    parser.add_argument("--cache-gib", type=float, help="KV cache instead of what fits into --memory")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no cell of a way begins later than this")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.new_tokens < 1:
        parser.error(f"--new-tokens {options.new_tokens} must be at least 1.")
    return options


def write_model(folder: Path, shape: dict[str, int], msr: float) -> None:
    """A Llama's configuration without weights, and routers that make this share of its layers sparse for all inputs."""
    import torch

    from elastic_attention.config import BaseModel, ElasticConfig, RouterConfig, StreamingConfig
    from elastic_attention.models.checkpoint import save_adapter
    from elastic_attention.router import RouterStack

    kind = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16"}
    rope = {"rope_theta": 500000.0, "rope_type": "default"}
    config = kind | shape | {"rms_norm_eps": 1e-5, "rope_theta": 500000.0, "rope_parameters": rope}
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(config | {"hidden_act": "silu"}))
    base = BaseModel(
        name="random",
        revision=None,
        model_type="llama",
        num_layers=shape["num_hidden_layers"],
        num_q_heads=shape["num_attention_heads"],
        num_kv_heads=shape["num_key_value_heads"],
        head_dim=shape["head_dim"],
    )
    sizes = (128, 2048, 128) if shape["head_dim"] == 128 else (64, 128, 64)
    pattern = StreamingConfig(num_sink_tokens=sizes[0], local_window=sizes[1], block_size=sizes[2])
    router = RouterConfig.for_head_dim(base.head_dim)
    layers = tuple(range(base.num_layers))
    adapter = ElasticConfig(base_model=base, routed_layers=layers, router=router, sparse_pattern=pattern)
    routers = RouterStack(router, layers)
    for layer in layers:
        last = routers[layer].router_mlp[-1]
        last.weight.data.zero_()
        is_sparse = int((layer + 1) * msr) > int(layer * msr)  # spread evenly
        last.bias.data[:] = torch.tensor([0.0, 1.0] if is_sparse else [1.0, 0.0])
    save_adapter(folder / "routers", adapter, routers)


def measure_way(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one way; in a process of its own."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    import vllm
    from vllm import LLM, SamplingParams

    shape, chooser, began = pick_shape(options), random.Random(WAYS.index(options.way)), time.perf_counter()
    chosen = options.cells if options.way in ("stock", "elastic") else options.few_cells or options.cells
    cells = [tuple(map(int, cell.split("x"))) for cell in chosen]
    new_tokens = {(tokens, count): count_new(options, tokens, count) for tokens, count in cells}
    plugin = {} if options.way == "stock" else {"elastic_attention": {"routers": str(options.folder / "routers")}}
    sizes = sorted({1, *(count for _, count in cells)})
    graphs = {"mode": options.compile, "cudagraph_mode": options.graphs, "cudagraph_capture_sizes": sizes}
    llm = LLM(
        str(options.folder / "model"),
        skip_tokenizer_init=True,
        load_format="dummy",
        dtype=options.dtype,
        tensor_parallel_size=options.ranks,
        max_model_len=max(tokens + new_tokens[tokens, count] for tokens, count in cells) + 1,
        max_num_seqs=max(sizes),
        enable_prefix_caching=False,
        block_size=options.block_size,
        max_num_batched_tokens=options.chunk,
        gpu_memory_utilization=options.memory,
        kv_cache_memory_bytes=None if options.cache_gib is None else int(options.cache_gib * 2**30),
        compilation_config=graphs,
        additional_config=plugin,
    )
    heads = shape["num_hidden_layers"] * shape["num_key_value_heads"]
    digits = ["1"] * round(options.msr * heads) + ["0"] * (heads - round(options.msr * heads))
    random.Random(0).shuffle(digits)
    extra = {"off": {"elastic_routes": "off"}, "elastic": {"elastic_routes": "".join(digits)}}.get(options.way)
    numbers = itertools.count()

    def run(tokens: int, count: int, new: int) -> tuple[float, float]:
        """(seconds until all have their first token, seconds of a step from there until the first is done)."""
        params = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False, extra_args=extra)
        prompts = [[chooser.randrange(1, shape["vocab_size"]) for _ in range(tokens)] for _ in range(count)]
        done = {str(next(numbers)): 0 for _ in prompts}
        engine, clock = llm.llm_engine, time.perf_counter
        started = clock()
        for name, prompt in zip(done, prompts, strict=True):
            engine.add_request(name, {"prompt_token_ids": prompt}, params)
        first, at_first, last, at_last = 0.0, {}, 0.0, {}
        while engine.has_unfinished_requests():
            for output in engine.step():
                name = next(name for name in done if output.request_id.split("-")[0] == name)
                done[name] = len(output.outputs[0].token_ids)
            if not first and min(done.values()) > 0:
                first, at_first = clock(), dict(done)
            if first and not last and max(done.values()) >= new:
                last, at_last = clock(), dict(done)
        steps = max(at_last[name] - at_first[name] for name in done)
        return first - started, (last - first) / steps

    rows = []
    for tokens, count in cells:
        if time.perf_counter() - began > options.seconds:
            break
        run(min(tokens, 2048), count, count_new(options, min(tokens, 2048), count))
        times, start = [], time.perf_counter()
        while not times or time.perf_counter() - start < options.least:
            times.append(run(tokens, count, new_tokens[tokens, count]))
        first, step = min(first for first, _ in times), min(step for _, step in times)
        row = {"way": options.way, "ranks": options.ranks, "tokens": tokens, "requests": count}
        row |= {"ttft_seconds": first, "step_seconds": step, "decoded_per_second": count / step, "repeats": len(times)}
        row |= {"device": name_device(), "vllm": vllm.__version__}
        rows.append(row)
        print(json.dumps(rows[-1]), flush=True)
        options.json.write_text(json.dumps(rows))
    return rows


def count_new(options: argparse.Namespace, tokens: int, count: int) -> int:
    """New tokens of a request, so that `--new-tokens` are left for the first of them when the last prompt is read."""
    return options.new_tokens + count * -(-tokens // options.chunk) + 1


def name_device() -> str:
    """The GPU, or the CPU."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def pick_shape(options: argparse.Namespace) -> dict[str, int]:
    """The shape that was asked for."""
    return SHAPES[options.shape] | ({"num_hidden_layers": options.layers} if options.layers else {})


def gather_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows that all ways have written so far, with their speedups over vLLM alone."""
    parts = [folder / f"{way}.json" for way in WAYS]
    rows = [row for part in parts if part.exists() for row in json.loads(part.read_text())]
    stock = {(row["tokens"], row["requests"]): row for row in rows if row["way"] == "stock"}
    for row in rows:
        base = stock.get((row["tokens"], row["requests"]))
        if base is not None:
            row["ttft_speedup"] = base["ttft_seconds"] / row["ttft_seconds"]
            row["decode_speedup"] = base["step_seconds"] / row["step_seconds"]
    return rows


def read_other_cells(options: argparse.Namespace) -> tuple[list[dict[str, Any]], float]:
    """Rows of the record whose cells are not measured now on as many ranks, and the seconds that it took."""
    if not options.json.exists():
        return [], 0.0
    record = json.loads(options.json.read_text())
    rows = [{"ranks": 1} | row for row in record["metrics"]["rows"]]  # rows of one rank did not always say so
    measured = {(options.ranks, cell) for cell in options.cells}
    others = [row for row in rows if (row["ranks"], f"{row['tokens']}x{row['requests']}") not in measured]
    return others, record["seconds"]


def main() -> None:
    """Measure all ways one after the other, and write the record after each."""
    from elastic_attention.records import build_record, write_record

    options, started = parse_options(), time.perf_counter()
    kept, spent = read_other_cells(options) if options.add and options.way is None else ([], 0.0)
    if options.way is not None:
        measure_way(options)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder, pick_shape(options), options.msr)
        for way in options.ways:
            child = ["--way", way, "--folder", name, "--json", str(folder / f"{way}.json")]
            command = [sys.executable, __file__, *sys.argv[1:], *child]
            if subprocess.run(command).returncode:
                print(f"{way} failed", file=sys.stderr, flush=True)
            rows = kept + gather_rows(folder)
            keys = ("msr", "new_tokens", "least", "block_size", "chunk", "graphs", "compile")
            record = build_record(
                "benchmarks/vllm_engine.py",
                config={"shape": options.shape} | {key: getattr(options, key) for key in keys},
                model={"name": options.shape, "dtype": options.dtype},
                data="random tokens",
                device=rows[0]["device"] if rows else "none",
                seed=0,
                n=len(rows),
                metrics={"rows": rows},
                seconds=spent + time.perf_counter() - started,
                bytes=None,
            )
            record["versions"] |= {"vllm": rows[0]["vllm"]} if rows else {}
            write_record(options.json, record)


if __name__ == "__main__":
    main()
