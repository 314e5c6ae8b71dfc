"""Loading a model and its tokenizer by name."""

import os
from pathlib import Path
from typing import Any

import torch

from ..errors import ElasticAttentionError
from .checkpoint import names_folder
from .embedded import resolve_model
from .released_patterns import strip_infllm
from .tensor_folder import read_json

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(name: str, *, dtype: str = "bfloat16", device: str | None = None) -> tuple[Any, Any]:
    """A causal language model in eval mode, and its tokenizer.

    Args:
        name: folder, hub id, or "smollm2" for the embedded default.
        dtype: "bfloat16", "float16" or "float32".
        device: None = the GPU if there is one, else the CPU.

    Returns:
        (model, tokenizer).

    Raises:
        ElasticAttentionError: an unknown `dtype`, or a checkpoint that lacks weights of the model.
        FileNotFoundError: a path where there is no folder.
        DownloadError: the embedded model can neither be found nor fetched.
        Exception: of any type, from transformers, which finds no model of this name or cannot load it.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    kind, path = read_dtype(dtype), os.path.expanduser(resolve_model(name))
    if (names_folder(path) or Path(path).exists()) and not Path(path).is_dir():
        raise FileNotFoundError(f"There is no model folder {name}; check the path.")
    more = {} if (config := find_stock_config(path)) is None else {"config": config}
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    options: Any = {"dtype": kind, "attn_implementation": "sdpa", "ignore_mismatched_sizes": True, **more}
    loaded: Any = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, **options)
    model, facts = loaded
    # Transformers would draw them at random and only warn.
    if absent := sorted({*facts["missing_keys"], *(key for key, *_ in facts["mismatched_keys"])}):
        raise ElasticAttentionError(
            f"The checkpoint of {name} lacks weights that its config.json asks for ({len(absent)} of them), first "
            f"{absent[0]}; fetch or save the model again."
        )
    return model.to(place).eval(), AutoTokenizer.from_pretrained(path, **more)


def read_dtype(name: str) -> torch.dtype:
    """The precision of this name.

    Raises:
        ElasticAttentionError: an unknown name.
    """
    if name not in DTYPES:
        raise ElasticAttentionError(f"dtype {name!r} is unknown; use one of {', '.join(DTYPES)}.")
    return DTYPES[name]


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
