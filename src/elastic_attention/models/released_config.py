"""The config.json of the released Elastic and Flux checkpoints, as far as it concerns routing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import BaseModel, SparsePattern, StreamingConfig, TriangleConfig, XAttentionConfig
from ..errors import AdapterError
from .tensor_folder import read_json

_ARCHITECTURES = {"PawQwen3ForCausalLM": "qwen3", "PawLlamaForCausalLM": "llama"}
_BLOCK = 128  # the block of the released kernels; sizes are rounded up to it


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleasedConfig:
    """What a released checkpoint says about itself.

    Attributes:
        base: shape of the backbone, without a name.
        sparse_pattern, full_pattern: from toggle_type and retrieval_mode.
        pooled_tokens: at each end of the prompt.
        has_softmax: two logits (True) or one (False) by `use_softmax`; None if it does not say.
        has_routers: False where `enable_ada_sparsity` turns the routers off and static masks count.
        suggested_msr: of static masks, None if it does not say.
    """

    base: BaseModel
    sparse_pattern: SparsePattern
    full_pattern: str | XAttentionConfig
    pooled_tokens: int
    has_softmax: bool | None
    has_routers: bool
    suggested_msr: float | None


def read_released_config(path: Path) -> ReleasedConfig:
    """Parse a config.json.

    Raises:
        AdapterError: another kind of checkpoint, or a missing, unknown or wrong value; the message names it.
    """
    data = read_json(path)
    names = data.get("architectures")
    architecture = str(names[0]) if isinstance(names, list) and names else ""
    if architecture not in _ARCHITECTURES or data.get("model_type") != _ARCHITECTURES[architecture]:
        raise AdapterError(
            f"{path} says architectures={names!r} and model_type={data.get('model_type')!r}; Elastic and Flux "
            f"checkpoints say one of {_ARCHITECTURES}. A stock model has no routers to convert. MoBA checkpoints are "
            "stock models too: say pattern='moba' (--pattern moba) for one."
        )
    sparse, full = _read_patterns(path, data)
    if (pooling := data.get("pooling_mode", "ctx_q")) != "ctx_q":
        raise AdapterError(f"{path}: pooling_mode={pooling!r} is not supported; only 'ctx_q' is known.")
    return ReleasedConfig(
        base=read_shape(path, _ARCHITECTURES[architecture]),
        sparse_pattern=sparse,
        full_pattern=full,
        pooled_tokens=_read_size(path, data, "pool_size", 100),
        has_softmax=_read_flag(path, data, "use_softmax"),
        has_routers=_read_flag(path, data, "enable_ada_sparsity") is not False,
        suggested_msr=_read_ratio(path, data, "suggested_sparsity"),
    )


def read_shape(path: Path, model_type: str) -> BaseModel:
    """The shape of the backbone that a config.json describes, without a name.

    Raises:
        AdapterError: a size is missing or wrong.
    """
    data = read_json(path)
    q_heads = _read_size(path, data, "num_attention_heads")
    return BaseModel(
        name=None,
        revision=None,
        model_type=model_type,
        num_layers=_read_size(path, data, "num_hidden_layers"),
        num_q_heads=q_heads,
        num_kv_heads=_read_size(path, data, "num_key_value_heads"),
        head_dim=_read_size(path, data, "head_dim", _read_size(path, data, "hidden_size") // q_heads),
    )


def _read_patterns(path: Path, data: dict[str, Any]) -> tuple[SparsePattern, str | XAttentionConfig]:
    toggle, retrieval = data.get("toggle_type"), data.get("retrieval_mode", "full")  # PruLong knows no other mode
    if toggle not in ("streaming", "xattn", "triangle"):
        raise AdapterError(
            f"{path}: toggle_type={toggle!r} is not supported; known are 'streaming', 'xattn' and 'triangle'."
        )
    if retrieval not in ("full", "xattn"):
        raise AdapterError(f"{path}: retrieval_mode={retrieval!r} is not supported; known are 'full' and 'xattn'.")
    if retrieval == "xattn" and toggle != "streaming":
        raise AdapterError(
            f"{path}: retrieval_mode='xattn' with toggle_type={toggle!r} is not supported; 'xattn' needs 'streaming'."
        )
    if (block := data.get("block_size", _BLOCK)) != _BLOCK:
        raise AdapterError(f"{path}: block_size={block!r} is not supported; the released kernels use {_BLOCK}.")
    if (norm := data.get("xattn_norm", 1)) != 1:
        raise AdapterError(f"{path}: xattn_norm={norm!r} is not supported; only 1 is known.")
    threshold = _read_ratio(path, data, "xattn_threshold")
    # The released inference lowers the threshold to 0.8; 0.9 is what the routers were trained with.
    stride = _read_size(path, data, "xattn_stride", 16)
    try:
        xattention = XAttentionConfig(stride=stride, threshold=0.9 if threshold is None else threshold)
    except ValueError as error:
        raise AdapterError(f"{path}: {error}") from error
    if toggle == "xattn":
        return xattention, "full"
    sizes = {
        ours: -(-_read_size(path, data, theirs) // _BLOCK) * _BLOCK
        for ours, theirs in (("num_sink_tokens", "sink_size"), ("local_window", "local_window_size"))
    }
    if toggle == "triangle":
        last = _read_size(path, data, "triangle_n_last", 128)
        return TriangleConfig(**sizes, block_size=_BLOCK, num_last_queries=last), "full"
    return StreamingConfig(**sizes, block_size=_BLOCK), xattention if retrieval == "xattn" else "full"


def _read_size(path: Path, data: dict[str, Any], key: str, default: int | None = None) -> int:
    value = data.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise AdapterError(f"{path}: {key} must be a positive integer, got {data.get(key)!r}; mend the file.")
    return value


def _read_flag(path: Path, data: dict[str, Any], key: str) -> bool | None:
    value = data.get(key)
    if value is not None and not isinstance(value, bool):
        raise AdapterError(f"{path}: {key} must be true or false, got {value!r}; mend the file.")
    return value


def _read_ratio(path: Path, data: dict[str, Any], key: str) -> float | None:
    value = data.get(key)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0.0 <= value <= 1.0:
        raise AdapterError(f"{path}: {key} must be a ratio in [0, 1], got {value!r}; mend the file.")
    return float(value)
