"""Loading a model and its tokenizer by name."""

from pathlib import Path
from typing import Any

from .embedded import resolve_model
from .released_patterns import strip_infllm
from .tensor_folder import read_json


def load_model(name: str, *, dtype: str = "bfloat16", device: str | None = None) -> tuple[Any, Any]:
    """A frozen causal language model in eval mode, and its tokenizer.

    Args:
        name: folder, hub id, or "smollm2" for the embedded default.
        dtype: "bfloat16", "float16" or "float32".
        device: None = the GPU if there is one, else the CPU.

    Returns:
        (model, tokenizer).
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = resolve_model(name)
    more = {} if (config := find_stock_config(path)) is None else {"config": config}
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model: Any = AutoModelForCausalLM.from_pretrained(
        path, dtype=getattr(torch, dtype), attn_implementation="sdpa", **more
    )
    return model.to(place).eval(), AutoTokenizer.from_pretrained(path, **more)


def find_stock_config(path: str) -> Any | None:
    """The stock configuration of an InfLLM-V2 folder, whose own model type transformers does not know; else None.

    What its heads read is an adapter of its own: `elastic-attn convert`.
    """
    from transformers import AutoConfig

    file = Path(path) / "config.json"
    data = read_json(file) if file.is_file() else {}
    stock = strip_infllm(data.get("model_type"))
    if stock is None:
        return None
    left_out = ("model_type", "architectures", "sparse_config", "auto_map")
    return AutoConfig.for_model(stock, **{key: value for key, value in data.items() if key not in left_out})


def new_cache(model: Any) -> Any:
    """An empty cache for `model`, as `generate` would make it."""
    from transformers import DynamicCache

    return DynamicCache(config=model.config)
