"""What a finished request is told about its routes."""

from typing import Any

from ..config import ElasticConfig
from ..patterns import build_pattern
from ..sparsity import count_causal_pairs, count_read_pairs, effective_sparsity_ratio
from .policy import RoutePlan

KEY = "elastic_attention"


def report_request(
    config: ElasticConfig,
    plan: RoutePlan,
    *,
    prompt_tokens: int,
    new_tokens: int,
    num_sparse: int | None,
    element_bytes: int,
) -> dict[str, Any]:
    """The facts of one request, as plain JSON values.

    Args:
        new_tokens: generated tokens; the last one is never fed back, so it reads nothing.
        num_sparse: sparse (layer, KV head) pairs, None where the request stayed dense.
        element_bytes: of a number in the cache.

    Returns:
        As `Handle.report`: prompt_tokens; routed; msr, esr_prefill, esr_decode (ratios, None without such queries);
        kv_bytes_read, kv_bytes_skipped (bytes that generated tokens read, and did not read).
    """
    pattern, num_heads = (
        build_pattern(config.sparse_pattern),
        len(config.routed_layers) * config.base_model.num_kv_heads,
    )
    stop = prompt_tokens + max(0, new_tokens - 1)
    pair_bytes = 2 * config.base_model.head_dim * element_bytes
    facts: dict[str, Any] = {"prompt_tokens": prompt_tokens, "routed": num_sparse is not None}
    facts["msr"] = (num_sparse or 0) / num_heads
    for phase, first, last in (("prefill", 0, prompt_tokens), ("decode", prompt_tokens, stop)):
        causal = num_heads * count_causal_pairs(first, last)
        dense_stop = min(max(plan.sparse_from, first), last)
        read = num_heads * count_causal_pairs(first, dense_stop)
        read += count_read_pairs(pattern, dense_stop, last, num_heads=num_heads, num_sparse=num_sparse or 0)
        facts[f"esr_{phase}"] = effective_sparsity_ratio(read, causal)
    # `read` and `causal` are those of the generated tokens now.
    return facts | {"kv_bytes_read": read * pair_bytes, "kv_bytes_skipped": (causal - read) * pair_bytes}
