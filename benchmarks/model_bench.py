"""What the benchmarks of a whole model share: the models, the clock, routes, the pairs of patterns, dense kernels."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import peers
import torch
import transformers
from sections import Bench, Rows
from torch import Tensor
from transformers import AttentionInterface

from elastic_attention import ElasticConfig, attach
from elastic_attention.config import StreamingConfig, TriangleConfig, XAttentionConfig
from elastic_attention.models.attention_function import IMPLEMENTATION

SEED = 0
_LLAMA = dict(hidden_size=4096, num_attention_heads=32, num_key_value_heads=8, head_dim=128)
_TINY = dict(hidden_size=48, num_attention_heads=6, num_key_value_heads=2, head_dim=16, num_hidden_layers=3)
_LONG = dict(max_position_embeddings=2**18 + 64)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3-8b": (
        "Qwen3Config",
        _LLAMA | _LONG | dict(num_hidden_layers=36, intermediate_size=12288, vocab_size=151_936, rms_norm_eps=1e-6),
    ),
    "llama-3.1-8b": (
        "LlamaConfig",
        _LLAMA | _LONG | dict(num_hidden_layers=32, intermediate_size=14336, vocab_size=128_256, rms_norm_eps=1e-5),
    ),
    "tiny": ("Qwen3Config", _TINY | dict(max_position_embeddings=4160, intermediate_size=64, vocab_size=97)),
}
# What full heads and what sparse heads read: everything (FA), XAttention (XA), streaming (SSA), triangle (TA).
PAIRS = ("fa-ssa", "fa-xa", "xa-ssa", "fa-ta")


@dataclass(kw_only=True)
class Clock:
    """Time that attention takes inside a forward: pairs of marks, on the device where there is one."""

    device: torch.device
    marks: list[tuple[Any, Any]] = field(default_factory=list)

    def mark(self) -> Any:
        """Now, in the order of the device's work."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds_between(self, begin: Any, end: Any) -> float:
        """Seconds from one mark to another; both must have passed."""
        return begin.elapsed_time(end) / 1e3 if self.device.type == "cuda" else end - begin

    def take(self) -> float:
        """Seconds within all pairs since the last call."""
        total = sum(self.seconds_between(*pair) for pair in self.marks)
        self.marks = []
        return total


@dataclass(kw_only=True)
class ModelBench(Bench):
    """A run on one model. `dense`: names of the dense kernels to stand beside."""

    model: Any
    clock: Clock
    dense: list[str]

    def add(self, section: str, *rows: dict[str, Any]) -> None:
        """Keep and print rows; each names the model."""
        super().add(section, *({"model": self.name, **row} for row in rows))

    def holds(self, section: str, **cell: Any) -> bool:
        """Does the record hold this cell of this model already?"""
        return super().holds(section, model=self.name, **cell)

    def complete(self, sections: dict[str, Rows]) -> None:
        """Set every row beside its bound and the best dense one of its cell, from whichever run."""
        rates = [row["terabytes_per_second"] for row in sections.get("ceilings", []) if row["name"] == "copy"]
        for row in sections.get("decode", []):
            row["bound_seconds"] = row["needed_bytes"] / max(rates) / 1e12
        for name, keys in (("rows", ("model", "tokens")), ("decode", ("model", "tokens", "batch"))):
            cells: dict[tuple[Any, ...], Rows] = {}
            for row in sections.get(name, []):
                cells.setdefault(tuple(row[key] for key in keys), []).append(row)
            for rows in cells.values():
                _compare_rows(rows)

    @property
    def name(self) -> str:
        """The model's name, with what was done to it."""
        return self.options.model + (" fused" if self.options.fused else "")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Layers, KV heads, head dim."""
        config = self.model.config
        return config.num_hidden_layers, config.num_key_value_heads, config.head_dim

    @property
    def dense_bytes_per_token(self) -> int:
        """Keys and values of one token in the base model's cache."""
        layers, heads, head_dim = self.shape
        return layers * heads * head_dim * 2 * self.model.dtype.itemsize

    def restart_peak(self) -> None:
        """Drop what nobody holds any more and let the peak start anew; the memory stays with the allocator."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def free(self) -> None:
        """Give the memory back that no tensor holds any more."""
        self.restart_peak()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def measure_peak(self) -> int:
        """Most bytes on the device since `restart_peak`; 0 without one."""
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0

    @contextlib.contextmanager
    def attached(self, pair: str = "fa-ssa", density: float | None = None) -> Iterator[Any]:
        """The model with untrained routers and the patterns of `pair`, its attention timed; yields the handle."""
        handle = attach(self.model, make_config(self.model, pair, density), backend=self.options.backend)
        time_elastic(self.clock)
        try:
            yield handle
        finally:
            handle.detach()


def _compare_rows(rows: Rows) -> None:
    """Speed-up over the best dense run; for a prefill Amdahl's bound as well (see `gpu_model`)."""
    dense = [row for row in rows if row["pair"] is None]
    best = min(dense, key=lambda row: row["seconds"], default=None)
    if best is None:
        return
    for row in rows:
        row |= {"best_dense": best["kernel"], "dense_seconds": best["seconds"]}
        row["speedup"] = best["seconds"] / row["seconds"]
        if "attention_seconds" in row:
            other = best["seconds"] - best["attention_seconds"]
            row["bound_seconds"] = other + best["attention_seconds"] * row["visited_fraction"]
        row["bound_share"] = row["bound_seconds"] / row["seconds"]


def build_model(name: str, device: torch.device, *, layers: int | None = None) -> Any:
    """The model with random weights, made on `device` in bfloat16 (float32 on a CPU); None = all of its layers."""
    kind, sizes = MODELS[name]
    fewer = {} if layers is None else {"num_hidden_layers": layers}
    config = getattr(transformers, kind)(**sizes | fewer, tie_word_embeddings=False)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(SEED)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval().requires_grad_(False)


def make_config(model: Any, pair: str, density: float | None) -> ElasticConfig:
    """Untrained routers with the patterns of `pair`; `density` forces how many blocks XAttention keeps."""
    plain = ElasticConfig.for_model(model)
    streaming = plain.sparse_pattern
    assert isinstance(streaming, StreamingConfig)
    if pair == "fa-ssa":
        return plain
    if pair == "fa-ta":
        return dataclasses.replace(plain, sparse_pattern=TriangleConfig(**dataclasses.asdict(streaming)))
    chosen = XAttentionConfig(block_size=streaming.block_size, stride=min(16, streaming.block_size), density=density)
    if pair == "fa-xa":
        return dataclasses.replace(plain, sparse_pattern=chosen)
    return dataclasses.replace(plain, full_pattern=chosen)


def draw_routes(ratio: float, layers: int, heads: int) -> Tensor:
    """(layers, heads) bool with the number of sparse heads nearest to `ratio` of all, drawn over all places."""
    count = round(ratio * layers * heads)
    order = torch.randperm(layers * heads, generator=torch.Generator().manual_seed(SEED))
    return (order < count).view(layers, heads)


def name_dense(kernel: str) -> str:
    """The name of a dense kernel among transformers' attention functions.

    "flash" must not be in it: transformers would look for a kernel of that name to download.
    """
    return "dense_" + kernel.replace("flash", "fa2").replace(" ", "_")


def register_dense(device: torch.device, clock: Clock) -> tuple[list[str], list[peers.Missing]]:
    """Make the dense kernels known to transformers, each timed by `clock`; their names, and what is missing."""
    kernels, missing = peers.find_dense(device)
    for kernel in kernels:
        attend = kernel.prepare(torch.empty(0))
        attend_one = functools.partial(_decode_fa3, peers.load_fa3(device)) if kernel.name == "fa3" else _decode_sdpa
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
