"""What differs between model families: where attention modules are, and how their keys look before RoPE."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import BaseModel
from ..errors import UnsupportedModel
from .embedded import FOLDER_NAME, HUB_ID

_REFUSED_ARGUMENTS = {
    "softcap": "logit soft-capping",
    "s_aux": "learned attention sinks",
    "position_bias": "a position bias",
    "dropout": "attention dropout",
}


def unwrap_model(model: Any) -> Any:
    """The PreTrainedModel inside `model`, which may be a PeftModel.

    Raises:
        UnsupportedModel: `model` is neither, or it was compiled.
    """
    if hasattr(model, "_orig_mod"):
        raise UnsupportedModel("This model came out of torch.compile; attach to the model itself, then compile it.")
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not (isinstance(inner, nn.Module) and hasattr(inner, "set_attn_implementation") and hasattr(inner, "config")):
        raise UnsupportedModel(
            f"{type(model).__name__} is no transformers model; pass a PreTrainedModel or a PeftModel around one."
        )
    return inner


def find_attention_modules(model: nn.Module) -> dict[int, nn.Module]:
    """Self-attention modules that read all keys, by layer index. Sliding-window layers are left out.

    Raises:
        UnsupportedModel: no layer can be routed; the message names what was missing.
    """
    candidates: list[Any] = [
        m for m in model.modules() if getattr(m, "layer_idx", None) is not None and hasattr(m, "num_key_value_groups")
    ]
    if not candidates:
        raise UnsupportedModel(
            f"{type(model).__name__} has no attention module with `layer_idx` and `num_key_value_groups`; "
            "only models of the Llama kind can be attached."
        )
    routed = {int(m.layer_idx): m for m in candidates if not _is_sliding(m)}
    if not routed:
        raise UnsupportedModel(
            f"Every attention layer of {type(model).__name__} has a sliding window; there is nothing to route."
        )
    for index, module in routed.items():
        _check_module(index, module)
    return dict(sorted(routed.items()))


def _is_sliding(module: Any) -> bool:
    """Does this layer read a window or a chunk only? Families note it on the module, by layer, or for all layers."""
    if not getattr(module, "is_sliding", True):  # EXAONE 4 notes the window on its full layers too
        return False
    if hasattr(module, "sliding_window"):
        return bool(module.sliding_window)
    if kinds := getattr(module.config, "layer_types", None):
        return kinds[module.layer_idx] in ("sliding_attention", "chunked_attention")
    return bool(getattr(module.config, "sliding_window", None))


def _check_module(index: int, module: nn.Module) -> None:
    if not (hasattr(module, "k_proj") or hasattr(module, "qkv_proj")):
        raise UnsupportedModel(f"Layer {index} ({type(module).__name__}) has neither `k_proj` nor `qkv_proj`.")
    if not hasattr(module, "head_dim"):
        raise UnsupportedModel(f"Layer {index} ({type(module).__name__}) has no `head_dim`.")
    for name, meaning in (("attn_logit_softcapping", "logit soft-capping"), ("sinks", "learned attention sinks")):
        if getattr(module, name, None) is not None:
            raise UnsupportedModel(
                f"Layer {index} ({type(module).__name__}) uses {meaning} (`{name}`), which is not implemented."
            )
    keys, values = (getattr(getattr(module, name, None), "out_features", None) for name in ("k_proj", "v_proj"))
    if None not in (keys, values) and keys != values:
        raise UnsupportedModel(
            f"Layer {index} ({type(module).__name__}) has values of another width than its keys, {values} beside "
            f"{keys} in all heads, which is not implemented."
        )
    if getattr(module, "is_kv_shared_layer", False):
        raise UnsupportedModel(f"Layer {index} ({type(module).__name__}) reuses the keys of another layer.")


def refuse_arguments(arguments: dict[str, Any]) -> None:
    """Raise UnsupportedModel for attention arguments that change the result and are not implemented here."""
    for name, meaning in _REFUSED_ARGUMENTS.items():
        if arguments.get(name) is not None:
            raise UnsupportedModel(
                f"The model asks for {meaning} (`{name}`), which routed attention does not implement."
            )


def count_kv_heads(module: nn.Module) -> int:
    """G of an attention module."""
    config: Any = module.config
    return int(getattr(module, "num_key_value_heads", None) or config.num_key_value_heads)


def describe_model(model: Any) -> tuple[BaseModel, tuple[int, ...], int]:
    """Shape of a model, the layers that can be routed, and its context length in tokens."""
    inner = unwrap_model(model)
    modules = find_attention_modules(inner)
    text = inner.config.get_text_config()
    first: Any = next(iter(modules.values()))
    base = BaseModel(
        name=name_publicly(getattr(inner.config, "_name_or_path", "")),
        revision=getattr(inner.config, "_commit_hash", None),
        model_type=text.model_type,
        num_layers=text.num_hidden_layers,
        num_q_heads=text.num_attention_heads,
        num_kv_heads=count_kv_heads(first),
        head_dim=int(first.head_dim),
    )
    return base, tuple(modules), int(getattr(text, "max_position_embeddings", 8192))


def name_publicly(name: str) -> str | None:
    """A hub id as it is, a folder by its last part: where it lies on this disk is nobody else's business.

    The folder of the embedded model goes by its hub id.
    """
    if not Path(name).is_dir():
        return name
    folder = Path(name).name
    return HUB_ID if folder == FOLDER_NAME else folder or None


def keys_before_rope(module: Any, hidden_states: Tensor) -> Tensor:
    """Keys as a head router wants them: projected, normalised where the model does so, not yet rotated.

    Args:
        module: the attention module.
        hidden_states: (B, m, hidden).

    Returns:
        (B, m, G, D) in the model's dtype.
    """
    return _project(module, hidden_states, "k")


def queries_before_rope(module: Any, hidden_states: Tensor) -> Tensor:
    """Queries as a layer router wants them: (B, m, H, D), otherwise like `keys_before_rope`.

    Raises:
        UnsupportedModel: there is no such projection, or it gives more than queries, such as a gate.
    """
    return _project(module, hidden_states, "q")


def check_queries(model: Any) -> None:
    """Try the query projections that layer routers read, one token each, so that `attach` refuses what a forward would.

    Raises:
        UnsupportedModel: as in `queries_before_rope`.
    """
    width = model.config.get_text_config().hidden_size
    with torch.no_grad():
        for module in find_attention_modules(model).values():
            queries_before_rope(module, torch.zeros(1, 1, width, dtype=model.dtype, device=model.device))


def _project(module: Any, hidden_states: Tensor, letter: str) -> Tensor:
    head_dim, num_kv_heads = int(module.head_dim), count_kv_heads(module)
    num_q_heads = num_kv_heads * int(module.num_key_value_groups)
    heads, offset = (num_q_heads, 0) if letter == "q" else (num_kv_heads, num_q_heads * head_dim)
    if hasattr(module, f"{letter}_proj"):
        states = getattr(module, f"{letter}_proj")(hidden_states)
    elif hasattr(module, "qkv_proj"):  # one fused projection, queries first (Phi-3)
        states = module.qkv_proj(hidden_states).narrow(-1, offset, heads * head_dim)
    else:
        raise UnsupportedModel(f"{type(module).__name__} has neither `{letter}_proj` nor `qkv_proj` for its router.")
    if states.shape[-1] != heads * head_dim:
        raise UnsupportedModel(
            f"`{letter}_proj` of {type(module).__name__} gives {states.shape[-1]} features for {heads} heads of "
            f"{head_dim}; a router cannot tell which of them it should read."
        )
    norm: Any = getattr(module, f"{letter}_norm", None)
    is_flat = norm is not None and _norm_width(norm) == heads * head_dim and heads > 1
    if is_flat:  # OLMo-2 normalises over all heads at once
        states = norm(states)
    states = states.unflatten(-1, (heads, head_dim))
    return states if norm is None or is_flat else norm(states)


def _norm_width(norm: nn.Module) -> int:
    weight = getattr(norm, "weight", None)
    return int(torch.tensor(weight.shape).prod()) if weight is not None else 0
