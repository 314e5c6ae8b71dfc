"""Released checkpoints without routers: a base model that was trained with one pattern on all heads, MoBA or InfLLM-V2.

Such a checkpoint is a stock model under stock names. What is added to it is what its heads read: as an adapter with one
mask for all inputs, every head sparse. MoBA leaves no trace in a checkpoint; InfLLM-V2 leaves its sizes and a model
type of its own.
"""

from pathlib import Path
from typing import Any

import torch

from ..errors import AdapterError
from ..patterns import ComparedPattern, InfllmConfig, MobaConfig
from ..settings import from_dict, to_dict
from .checkpoint import save_static_routes
from .released_config import read_shape
from .released_routers import has_routers, refuse_unknown_tensors
from .tensor_folder import TensorFolder, read_json

PATTERNS: dict[str, type[MobaConfig] | type[InfllmConfig]] = {"moba": MobaConfig, "infllm": InfllmConfig}
_INFLLM_TYPE = "infllmv2_"
# Names of the released code, ours.
_MOBA_SIZES = {"moba_chunk_size": "block_size", "moba_topk": "num_blocks"}
_INFLLM_SIZES = {
    "block_size": "block_size",
    "window_size": "local_window",
    "topk": "num_blocks",
    "init_blocks": "num_sink_blocks",
    "kernel_size": "pooled_tokens",
    "kernel_stride": "pooling_stride",
    "dense_len": "dense_tokens",
}


def strip_infllm(model_type: object) -> str | None:
    """The stock type behind one of an InfLLM-V2 checkpoint, such as qwen3; None for other types."""
    is_infllm = isinstance(model_type, str) and model_type.startswith(_INFLLM_TYPE)
    return str(model_type).removeprefix(_INFLLM_TYPE) if is_infllm else None


def read_released_pattern(path: Path, wanted: str | None = None) -> ComparedPattern | None:
    """The pattern that all heads of a checkpoint read; None if it is one with routers or gates.

    Args:
        path: its config.json.
        wanted: "moba" or "infllm", the pattern of a checkpoint that does not say it.

    Raises:
        AdapterError: sizes are unknown or wrong, or the file says another pattern than `wanted`.
    """
    data = read_json(path)
    told = _find_name(data)
    if told is None and wanted is None:
        return None
    if told is not None and wanted not in (None, told):
        raise AdapterError(f"{path} says that its heads read the pattern {told!r}, not {wanted!r}; leave it out.")
    if (told or wanted) == "moba":
        return _build(path, MobaConfig, {ours: data[name] for name, ours in _MOBA_SIZES.items() if name in data})
    table = data.get("sparse_config") or {}
    if not isinstance(table, dict) or set(table) - set(_INFLLM_SIZES) - {"use_nope"}:
        raise AdapterError(f"{path}: sparse_config has to be a table of {list(_INFLLM_SIZES)}, got {table!r:.200}.")
    if table.get("use_nope"):
        raise AdapterError(f"{path}: sparse_config.use_nope={table['use_nope']!r} is not supported, only false is.")
    sizes = {ours: table[name] for name, ours in _INFLLM_SIZES.items() if name in table}
    if isinstance(sizes.get("dense_tokens"), int):
        sizes["dense_tokens"] -= 1  # the released code is dense below dense_len, ours up to dense_tokens
    return _build(path, InfllmConfig, sizes)


def convert_pattern(
    folder: Path, pattern: ComparedPattern, destination: str | Path, facts: dict[str, Any]
) -> dict[str, Any]:
    """Write the adapter of a checkpoint whose heads all read `pattern`; what it returns is as in `convert_checkpoint`.

    Raises:
        AdapterError: the checkpoint holds routers or unknown tensors; nothing was written.
    """
    tensors, config = TensorFolder(folder), folder / "config.json"
    refuse_unknown_tensors(tensors)
    if has_routers(tensors):
        raise AdapterError(f"{folder} holds routers, so it is no checkpoint of the pattern {pattern.kind!r} alone.")
    model_type = str(read_json(config).get("model_type"))
    shape = read_shape(config, strip_infllm(model_type) or model_type)
    facts = {
        "kind": pattern.kind,
        "granularity": "head",
        "layers": shape.num_layers,
        "base_model": to_dict(shape),
        "sparse_pattern": to_dict(pattern),
        "full_pattern": "full",
        "msr": 1.0,
        "projections": None,
        "notes": [
            "All heads read the pattern; it was trained into the model: load the backbone from this checkpoint.",
            "It runs in plain PyTorch, for quality and not for speed; decoding reads every key.",
        ],
        **facts,
    }
    head_is_sparse = torch.ones(shape.num_layers, shape.num_kv_heads, dtype=torch.bool)
    save_static_routes(destination, head_is_sparse, {}, facts)
    return facts


def parse_pattern(value: Any) -> ComparedPattern | None:
    """A pattern as `to_dict` writes it; None if it is of another kind.

    Raises:
        ValueError: a key is unknown or has a wrong value.
    """
    kind = PATTERNS.get(str(value.get("kind"))) if isinstance(value, dict) else None
    return None if kind is None else from_dict(kind, {name: item for name, item in value.items() if name != "kind"})


def _find_name(data: dict[str, Any]) -> str | None:
    if strip_infllm(data.get("model_type")) is not None or "sparse_config" in data:
        return "infllm"
    implementations = data.get("attn_implementation"), data.get("_attn_implementation")
    return "moba" if "moba" in implementations or any(name in data for name in _MOBA_SIZES) else None


def _build(path: Path, kind: type[MobaConfig] | type[InfllmConfig], sizes: dict[str, Any]) -> ComparedPattern:
    try:
        return from_dict(kind, sizes)
    except ValueError as error:
        raise AdapterError(f"{path}: {error}") from error
