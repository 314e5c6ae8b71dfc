"""A tiny served model, its engines, and what the transformers path generates for the same request."""

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from elastic_attention import attach
from elastic_attention.serving.requests import read_route_request
from tiny_models import VOCAB, elastic_config, make_model

BLOCK, SINK, WINDOW, HEADS = 32, 32, 64, 2
LIMIT = 1024


@dataclass
class Served:
    """A model with routers on the disk, and the same attached."""

    model_folder: Path
    routers: Path
    model: Any
    handle: Any


def make_folder(folder: Path, granularity: str = "head") -> Served:
    """Write a tiny random Qwen3, always the same, and untrained routers."""
    model = make_model("qwen3", head_dim=32, hidden_size=64, num_attention_heads=4, num_key_value_heads=HEADS)
    model.save_pretrained(folder / "model")
    torch.manual_seed(1)
    sizes = dict(block_size=BLOCK, num_sink_tokens=SINK, local_window=WINDOW, granularity=granularity)
    handle = attach(model, elastic_config(model, **sizes))
    handle.save_pretrained(folder / "routers")
    return Served(folder / "model", folder / "routers", model, handle)


class Engines:
    """At most one engine lives at a time; asking for the same settings gives the same one."""

    def __init__(self, served: Served) -> None:
        self.served, self._settings, self._engine = served, None, None

    def __call__(self, *, serving: dict[str, Any] | None = None, is_stock: bool = False, **options: Any) -> Any:
        """An `LLM` with these settings of the plugin (`is_stock`: without the plugin) and of vLLM."""
        from vllm import LLM

        from elastic_attention.serving.vllm import register

        register()
        settings = (serving, is_stock, options)
        if self._settings != settings:
            self.close()
            elastic = {"elastic_attention": {"routers": str(self.served.routers)} | (serving or {})}
            plain = dict(model=str(self.served.model_folder), skip_tokenizer_init=True, dtype="float32")
            defaults = plain | dict(enforce_eager=True, max_model_len=LIMIT, seed=0)
            if not is_stock:
                defaults["additional_config"] = elastic
            self._engine, self._settings = LLM(**(defaults | options)), settings
        return self._engine

    def close(self) -> None:
        """Free the engine."""
        from vllm.distributed import cleanup_dist_env_and_memory

        if self._engine is not None:
            self._engine.llm_engine.engine_core.shutdown()
            self._engine = self._settings = None
            gc.collect()
            cleanup_dist_env_and_memory()


def make_prompts(lengths: list[int], seed: int = 7) -> list[list[int]]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCAB, (n,), generator=generator).tolist() for n in lengths]


def make_params(new: int, **extra: Any) -> Any:
    """Greedy sampling of `new` tokens with the options of a request."""
    from vllm import SamplingParams

    return SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False, extra_args=extra or None)


def run_engine(engine: Any, prompts: list[list[int]], params: Any) -> list[tuple[list[int], dict[str, Any]]]:
    """(tokens, report) of each prompt; the report is None without the plugin."""
    outputs = engine.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
    return [(list(o.outputs[0].token_ids), (o.kv_transfer_params or {}).get("elastic_attention")) for o in outputs]


def read_routes(engine: Any, count: int) -> list[Any]:
    """Routes (requests, L, G of the rank) of the first `count` requests of a new engine, as each rank holds them."""
    return engine.collective_rpc(lambda worker: worker._engine.books.routes[:count].tolist())


def run_reference(
    served: Served, prompt: list[int], new: int, *, policy: str = "deferred", first_chunk: int = 128, **extra: Any
) -> tuple[list[int], dict[str, Any]]:
    """(tokens, report) of the transformers path under the same policy."""
    handle, asked = served.handle, read_route_request(extra, served.handle.config)
    handle.prefill_policy, handle.first_chunk_tokens, handle.budget = policy, first_chunk, asked.budget
    handle.set_routes(asked.routes)
    # Only a prompt that comes in chunks is dense until its end under "deferred".
    chunk = {"deferred": max(1, len(prompt) // 2), "first_chunk": first_chunk, "probe": None}[policy]
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        output = served.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            do_sample=False,
            prefill_chunk_size=None if asked.routes is not None else chunk,
        )
    handle.set_routes(None)
    report = handle.report()
    return output[0, len(prompt) :].tolist(), {key: report[key][0] for key in ("msr", "routed", "esr_decode")}
