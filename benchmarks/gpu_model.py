"""A whole model of 8B shape with random weights: prefill and decode, dense against elastic; writes a record.

    python benchmarks/gpu_model.py --model qwen3-8b --json results/gpu_model.json
    python benchmarks/gpu_model.py --model llama-3.1-8b --lengths 131072 --json results/gpu_model.json --add

Times do not depend on what the weights say, so nothing is downloaded; the weights are drawn on the device. Routes are
given (`handle.set_routes`), at the wanted ratios, drawn once over all layers and heads. The bound of a prefill is
Amdahl's: the best dense run's time outside of attention, plus its attention time by the visited fraction. The bound
of a decode step is the bytes it must read over the measured copy rate.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import peers
import torch
import transformers
from model_decode import (
    SEED,
    Clock,
    ModelBench,
    draw_routes,
    measure_decode,
    measure_largest_batch,
    name_dense,
)
from sections import Rows, add_shared_options, run_sections
from torch import Tensor
from transformers import AttentionInterface

from elastic_attention import ElasticConfig, attach
from elastic_attention.errors import ElasticAttentionError
from elastic_attention.evaluation.session import choose_device
from elastic_attention.models.attention_function import IMPLEMENTATION
from elastic_attention.patterns import build_pattern
from elastic_attention.sparsity import count_causal_pairs, count_read_pairs

_LLAMA = dict(hidden_size=4096, num_attention_heads=32, num_key_value_heads=8, head_dim=128)
_TINY = dict(hidden_size=48, num_attention_heads=6, num_key_value_heads=2, head_dim=16, num_hidden_layers=3)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3-8b": (
        "Qwen3Config",
        _LLAMA | dict(num_hidden_layers=36, intermediate_size=12288, vocab_size=151_936, rms_norm_eps=1e-6),
    ),
    "llama-3.1-8b": (
        "LlamaConfig",
        _LLAMA | dict(num_hidden_layers=32, intermediate_size=14336, vocab_size=128_256, rms_norm_eps=1e-5),
    ),
    "tiny": ("Qwen3Config", _TINY | dict(intermediate_size=64, vocab_size=97)),
}
RATIOS = (0.0, 0.5, 0.7, 0.85, 1.0)
LENGTHS = (131072, 32768, 8192, 65536, 16384, 262144)
DECODE_CELLS = ((131072, 1), (131072, 4), (65536, 8), (262144, 1))


def build_model(name: str, device: torch.device, max_positions: int) -> Any:
    """The model with random weights, made on `device` in bfloat16 (float32 on a CPU)."""
    kind, sizes = MODELS[name]
    config = getattr(transformers, kind)(**sizes, max_position_embeddings=max_positions, tie_word_embeddings=False)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(SEED)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval().requires_grad_(False)


def register_dense(device: torch.device, clock: Clock) -> tuple[list[str], list[peers.Missing]]:
    """Make the dense kernels known to transformers, each timed by `clock`; their names, and what is missing."""
    kernels, missing = peers.find_dense(device)
    for kernel in kernels:
        attend = kernel.prepare(torch.empty(0))
        attend_one = functools.partial(_decode_fa3, peers.load_fa3()) if kernel.name == "fa3" else _decode_sdpa
        AttentionInterface.register(
            name_dense(kernel.name), functools.partial(_attend_dense, clock, attend, attend_one)
        )
    return [kernel.name for kernel in kernels], missing


def time_elastic(clock: Clock) -> None:
    """Let `clock` time the attention of attached models as well, the books of the cache included."""
    attend = AttentionInterface()[IMPLEMENTATION]

    def attend_timed(module: Any, query: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        if query.shape[2] == 1:
            return attend(module, query, *args, **kwargs)
        begin = clock.mark()
        result = attend(module, query, *args, **kwargs)
        clock.marks.append((begin, clock.mark()))
        return result

    AttentionInterface.register(IMPLEMENTATION, attend_timed)


def _attend_dense(
    clock: Clock,
    attend: Callable[..., Tensor],
    attend_one: Callable[..., Tensor],
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if query.shape[2] == 1:  # a decode step may be inside a graph, where marks have no place
        return attend_one(query, key, value).transpose(1, 2), None
    begin = clock.mark()
    out = attend(query, key, value)
    clock.marks.append((begin, clock.mark()))
    return out.transpose(1, 2), None


def _decode_fa3(module: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    # Zero splits let the library choose.
    out = module.flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)), causal=True, num_splits=0, pack_gqa=True)
    return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)


def _decode_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    # The query heads of a KV head as queries: no key is repeated.
    rows = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])
    return torch.nn.functional.scaled_dot_product_attention(rows, k, v).reshape(q.shape)


def visited_fraction(routes: Tensor, pattern: Any, tokens: int) -> float:
    """Query-key pairs that a prefill reads over causal pairs."""
    read = count_read_pairs(pattern, 0, tokens, num_heads=routes.numel(), num_sparse=int(routes.sum()))
    return read / (routes.numel() * count_causal_pairs(0, tokens))


def measure_prefill(bench: ModelBench, handle: Any) -> None:
    """Prefill into a new cache up to the logits of the last token, all kinds in turn."""
    pattern, (layers, heads, _) = build_pattern(handle.config.sparse_pattern), bench.shape
    routes = {ratio: draw_routes(ratio, layers, heads) for ratio in bench.options.ratios}
    runs: dict[str, Callable[[Tensor], dict[str, Any]]] = {}
    for name in bench.dense:
        runs[f"dense {name}"] = functools.partial(_prefill_dense, bench, handle, name)
    for ratio, given in routes.items():
        runs[f"elastic {ratio}"] = functools.partial(_prefill_elastic, bench, handle, given)
    if bench.options.router_ratio is not None:
        given = draw_routes(bench.options.router_ratio, layers, heads)
        runs["router"] = functools.partial(_prefill_routed, bench, handle, given)
        routes[bench.options.router_ratio] = given
    for tokens in bench.options.lengths:
        if bench.is_late("prefill", tokens=tokens):
            continue
        ids = _draw_ids(bench, tokens)
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
        for repeat in range(bench.options.repeats):
            if repeat and bench.is_late("prefill", tokens=tokens, repeat=repeat):
                break
            for name, run in runs.items():
                try:
                    if not repeat:
                        run(ids[:, : min(tokens, bench.options.warm_tokens)])
                    found[name].append(run(ids))
                except (RuntimeError, ValueError, TypeError, ElasticAttentionError) as error:
                    bench.note_missing("prefill", name, error, tokens=tokens)
                gc.collect()
        bench.add("rows", *_make_prefill_rows(bench, found, routes, pattern, tokens))
        bench.save()


def _make_prefill_rows(
    bench: ModelBench, found: dict[str, Rows], routes: dict[float, Tensor], pattern: Any, tokens: int
) -> Rows:
    medians = {
        name: {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        for name, rows in found.items()
        if rows
    }
    dense = {name: row for name, row in medians.items() if name.startswith("dense")}
    best = min(dense, key=lambda name: dense[name]["seconds"], default=None)
    made = []
    for name, row in medians.items():
        side, _, rest = name.partition(" ")
        ratio = bench.options.router_ratio if side == "router" else None if side == "dense" else float(rest)
        visited = 1.0 if ratio is None else visited_fraction(routes[ratio], pattern, tokens)
        entry = {"tokens": tokens, "batch": 1, "kernel": rest if side == "dense" else side}
        entry |= {"msr": 0.0 if ratio is None else float(routes[ratio].float().mean()), "visited_fraction": visited}
        entry |= row | {"tokens_per_second": tokens / row["seconds"], "repeats": len(found[name])}
        entry["kv_bytes_dense"] = tokens * bench.dense_bytes_per_token
        entry["kv_ratio"] = entry["kv_bytes"] / entry["kv_bytes_dense"]
        if best is not None:
            other = dense[best]["seconds"] - dense[best]["attention_seconds"]
            bound = other + dense[best]["attention_seconds"] * visited
            entry |= {"best_dense": best.removeprefix("dense "), "dense_seconds": dense[best]["seconds"]}
            entry |= {"speedup": dense[best]["seconds"] / row["seconds"], "bound_seconds": bound}
            entry["bound_share"] = bound / row["seconds"]
        made.append(entry)
    return made


def _draw_ids(bench: ModelBench, tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(bench.model.config.vocab_size, (1, tokens), generator=generator).to(bench.device)


def _time_forward(bench: ModelBench, ids: Tensor) -> tuple[dict[str, Any], Any]:
    """Seconds, peak memory and attention seconds of one prefill; and its cache."""
    is_cuda = bench.device.type == "cuda"
    if is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    bench.clock.take()
    with torch.inference_mode():
        begin = bench.clock.mark()
        cache = bench.model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
        end = bench.clock.mark()
    if is_cuda:
        torch.cuda.synchronize()
    row = {"seconds": bench.clock.seconds_between(begin, end), "attention_seconds": bench.clock.take()}
    return row | {"peak_bytes": torch.cuda.max_memory_allocated() if is_cuda else 0}, cache


def _prefill_dense(bench: ModelBench, handle: Any, name: str, ids: Tensor) -> dict[str, Any]:
    with handle.disabled():
        bench.model.set_attn_implementation(name_dense(name))
        row, _ = _time_forward(bench, ids)
    return row | {"kv_bytes": ids.shape[1] * bench.dense_bytes_per_token}


def _prefill_elastic(bench: ModelBench, handle: Any, routes: Tensor, ids: Tensor) -> dict[str, Any]:
    handle.set_routes(routes)
    row, _ = _time_forward(bench, ids)
    return row | {"kv_bytes": sum(handle.report()["kv_bytes"])}


def _prefill_routed(bench: ModelBench, handle: Any, routes: Tensor, ids: Tensor) -> dict[str, Any]:
    """The routers run as they would, and then the given routes are taken."""
    on_device = routes.to(bench.device)

    def decide(layer: int, pooled: Tensor) -> Tensor:
        handle.decide(layer, pooled)
        return on_device[layer].expand(len(pooled), -1)

    handle.set_routes(None)
    with handle.routed_by(decide, is_sampling=False):
        row, _ = _time_forward(bench, ids)
    return row | {"kv_bytes": sum(handle.report()["kv_bytes"])}


SECTIONS: dict[str, Callable[[ModelBench, Any], None]] = {
    "prefill": measure_prefill,
    "decode": measure_decode,
    "batch": measure_largest_batch,
}


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shared_options(parser, list(SECTIONS))
    parser.add_argument("--model", choices=list(MODELS), default="qwen3-8b")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--fused", action="store_true", help="fused norms, rotations and gates on both sides")
    parser.add_argument("--dense", nargs="*", help="only these dense kernels, such as fa3 'sdpa cudnn'")
    parser.add_argument("--lengths", type=int, nargs="*", default=list(LENGTHS))
    parser.add_argument("--ratios", type=float, nargs="*", default=list(RATIOS))
    parser.add_argument("--router-ratio", type=float, help="one more run at this ratio in which the routers run too")
    parser.add_argument("--repeats", type=int, default=3)
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
    clock = Clock(device=device)
    dense, missing = register_dense(device, clock)
    longest = max([*options.lengths, *(tokens for tokens, _ in options.decode_cells), options.batch_tokens])
    model = build_model(options.model, device, longest + 64)
    if options.fused:
        from fused_model import fuse_elementwise

        fuse_elementwise(model)
    handle = attach(model, ElasticConfig.for_model(model), backend=options.backend)
    time_elastic(clock)
    chosen = [name for name in dense if options.dense is None or name in options.dense]
    bench = ModelBench(options=options, device=device, began=began, model=model, clock=clock, dense=chosen)
    bench.open_record(
        command="benchmarks/gpu_model.py",
        config={"pattern": dataclasses.asdict(handle.config.sparse_pattern), "backend": options.backend},
        model=bench.name,
        data="random tokens and weights",
        versions=peers.list_versions(),
    )
    for entry in missing:
        bench.note_missing("dense", entry.name, entry.reason)
    run_sections(bench, {name: functools.partial(SECTIONS[name], bench, handle) for name in options.only})
    return 0


if __name__ == "__main__":
    sys.exit(main())
