"""vLLM with and without the plugin on a model of 8B shape with random weights: time to the first token, and decoding.

    python benchmarks/vllm_engine.py --json results/vllm_engine.json
    python benchmarks/vllm_engine.py --shape tiny --cells 300x2 --new-tokens 8 --json engine.json

Ways, each in a process of its own: "stock" (vLLM alone), "off" (the plugin, all heads full: what it costs) and
"elastic" (the plugin, routes given at `--msr`, drawn once: prompts are sparse too). Cells: tokens x requests.
Prompts are random and never the same twice; the prefix cache is off. TTFT is the time until all requests of a cell have
their first token; decoding is what the further tokens take.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WAYS = ("stock", "off", "elastic")
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
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS))
    parser.add_argument("--msr", type=float, default=0.7)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def write_model(folder: Path, shape: dict[str, int]) -> None:
    """A Llama's configuration without weights, and untrained routers for it."""
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
    save_adapter(folder / "routers", adapter, RouterStack(router, layers))


def measure_way(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one way; in a process of its own."""
    from vllm import LLM, SamplingParams

    shape, chooser = SHAPES[options.shape], random.Random(WAYS.index(options.way))
    cells = [tuple(map(int, cell.split("x"))) for cell in options.cells]
    longest = max(tokens for tokens, _ in cells) + options.new_tokens + 1
    plugin = {} if options.way == "stock" else {"elastic_attention": {"routers": str(options.folder / "routers")}}
    llm = LLM(
        str(options.folder / "model"),
        skip_tokenizer_init=True,
        load_format="dummy",
        dtype=options.dtype,
        max_model_len=longest,
        max_num_seqs=max(count for _, count in cells),
        enable_prefix_caching=False,
        additional_config=plugin,
    )
    heads = shape["num_hidden_layers"] * shape["num_key_value_heads"]
    digits = ["1"] * round(options.msr * heads) + ["0"] * (heads - round(options.msr * heads))
    random.Random(0).shuffle(digits)
    extra = {"off": {"elastic_routes": "off"}, "elastic": {"elastic_routes": "".join(digits)}}.get(options.way)

    def run(tokens: int, count: int, new: int) -> float:
        prompts = [[chooser.randrange(1, shape["vocab_size"]) for _ in range(tokens)] for _ in range(count)]
        params = SamplingParams(
            temperature=0, max_tokens=new, min_tokens=new, ignore_eos=True, detokenize=False, extra_args=extra
        )
        started = time.perf_counter()
        llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
        return time.perf_counter() - started

    rows = []
    for tokens, count in cells:
        run(min(tokens, 2048), count, 4)
        first = min(run(tokens, count, 1) for _ in range(options.repeats))
        whole = min(run(tokens, count, options.new_tokens + 1) for _ in range(options.repeats))
        step = (whole - first) / options.new_tokens
        row = {"way": options.way, "tokens": tokens, "requests": count, "ttft_seconds": first, "step_seconds": step}
        rows.append(row | {"decoded_per_second": count / step})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Measure all ways one after the other, and write the record after each."""
    from elastic_attention.records import build_record, write_record

    options, started, rows = parse_options(), time.perf_counter(), []
    if options.way is not None:
        options.json.write_text(json.dumps(measure_way(options)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder, SHAPES[options.shape])
        for way in options.ways:
            part = folder / f"{way}.json"
            child = ["--way", way, "--folder", name, "--json", str(part)]
            command = [sys.executable, __file__, *sys.argv[1:], *child]
            if subprocess.run(command).returncode:
                print(f"{way} failed", file=sys.stderr)
                continue
            rows += json.loads(part.read_text())
            stock = {(row["tokens"], row["requests"]): row for row in rows if row["way"] == "stock"}
            for row in rows:
                base = stock.get((row["tokens"], row["requests"]))
                if base is not None:
                    row["ttft_speedup"] = base["ttft_seconds"] / row["ttft_seconds"]
                    row["decode_speedup"] = base["step_seconds"] / row["step_seconds"]
            record = build_record(
                "vllm engine",
                config={"shape": options.shape, "msr": options.msr, "new_tokens": options.new_tokens},
                model={"name": options.shape, "dtype": options.dtype},
                data="random tokens",
                device="vLLM's",
                seed=0,
                n=len(rows),
                metrics={"rows": rows},
                seconds=time.perf_counter() - started,
                bytes=None,
            )
            write_record(options.json, record)


if __name__ == "__main__":
    main()
