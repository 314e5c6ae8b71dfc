"""`attach`: put routers on a model without changing it."""

from pathlib import Path
from typing import Any

from ..config import ElasticConfig
from ..errors import AlreadyAttached, RouterMismatch
from ..router import RouterStack
from .attention_function import IMPLEMENTATION
from .checkpoint import load_adapter
from .families import check_queries, count_kv_heads, describe_model, find_attention_modules, unwrap_model
from .handle import Handle, find_handle
from .pretrained import find_pretrained
from .routing import POLICIES
from .static_adapter import configure_static, find_static_mask


def attach(
    model: Any,
    source: str | Path | ElasticConfig | None = None,
    *,
    decode: str = "sparse",
    prefill_policy: str = "deferred",
    first_chunk_tokens: int = 2048,
    backend: str = "auto",
    revision: str | None = None,
    reroute_on_append: bool = False,
) -> Handle:
    """Attach routers to a model. `generate` and `forward` then route heads; `Handle.detach` restores the model.

    Args:
        model: a PreTrainedModel or PeftModel of the Llama kind.
        source: adapter folder, hub id, or a configuration for untrained routers; None takes the routers that ship
            with the package for this model. A folder with a static mask (of a static run, or converted) counts too:
            its routes are those of every sequence, whatever its length.
        decode: "sparse": sparse heads keep and read sink + window only; "full": they keep and read all keys.
        prefill_policy: when a chunked prefill decides: "deferred" (dense until the prompt ends), "first_chunk" (from
            the first `first_chunk_tokens` tokens), "probe" (from a pass over the first and last tokens beforehand).
        first_chunk_tokens: N of "first_chunk".
        backend: "auto" or one of "hopper", "triton", "cpu" and "reference"; whether it can run here shows at the first
            forward, which raises BackendUnavailable where it cannot.
        revision: of a hub repository.
        reroute_on_append: later prompts of a sequence may turn full heads into streaming ones.

    Returns:
        The handle.

    Raises:
        UnsupportedModel: the model cannot be routed; names what is missing.
        AlreadyAttached: it carries routers already.
        AdapterError, RouterMismatch: the adapter is missing, damaged or of another model, or none ships for this one.
        BackendUnavailable: there is no backend of this name.
        ValueError: an unknown `decode` or `prefill_policy`, or a `first_chunk_tokens` below 1.
    """
    for name, value, known in (("decode", decode, ("sparse", "full")), ("prefill_policy", prefill_policy, POLICIES)):
        if value not in known:
            raise ValueError(f"{name}={value!r} is unknown; use one of {list(known)}.")
    if first_chunk_tokens < 1:
        raise ValueError(f"first_chunk_tokens={first_chunk_tokens} must be at least 1.")
    inner = unwrap_model(model)
    base, routed, _ = describe_model(inner)
    if find_handle(inner) is not None or inner.config._attn_implementation == IMPLEMENTATION:
        raise AlreadyAttached(
            f"This {type(inner).__name__} carries routers already; call detach() on its handle first."
        )
    static = None
    if isinstance(source, ElasticConfig):
        config, routers = source, RouterStack(source.router, source.routed_layers, source.granularity)
    elif source is not None and (mask := find_static_mask(source, revision)) is not None:
        static, config = mask[0], configure_static(inner, *mask)
        routers = RouterStack(config.router, config.routed_layers, config.granularity)
    else:
        config, routers = load_adapter(source if source is not None else find_pretrained(base), revision)
    if problems := _check_heads(inner, config):
        name = config.base_model.name or config.base_model.model_type
        raise RouterMismatch(f"These routers were made for {name} and do not fit: " + "; ".join(problems) + ".")
    if config.granularity == "layer":
        check_queries(inner)
    routers.to(inner.device).requires_grad_(False)
    return Handle(
        model,
        config,
        routers,
        decode=decode,
        prefill_policy=prefill_policy,
        first_chunk_tokens=first_chunk_tokens,
        backend=backend,
        reroute_on_append=reroute_on_append,
        static=static,
    )


def _check_heads(model: Any, config: ElasticConfig) -> list[str]:
    """What of `config` does not fit `model`, as sentences."""
    modules = find_attention_modules(unwrap_model(model))
    base, problems = config.base_model, []
    for name, wanted, found in (
        ("KV heads", base.num_kv_heads, {count_kv_heads(m) for m in modules.values()}),
        ("head dim", base.head_dim, {int(m.head_dim) for m in modules.values()}),  # type: ignore[arg-type]
        ("routed layers", tuple(config.routed_layers), {tuple(modules)}),
    ):
        if found != {wanted}:
            problems.append(f"{name}: routers want {wanted}, the model has {' or '.join(map(str, sorted(found)))}")
    return problems
