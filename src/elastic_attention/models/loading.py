"""Loading a model and its tokenizer by name."""

from typing import Any

from .embedded import resolve_model


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
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    return model.to(place).eval(), AutoTokenizer.from_pretrained(path)


def new_cache(model: Any) -> Any:
    """An empty cache for `model`, as `generate` would make it."""
    from transformers import DynamicCache

    return DynamicCache(config=model.config)
