"""Routes as a function of pooled keys, for scoring without `generate` (`quality`)."""

from collections.abc import Callable

import torch
from torch import Tensor

from ...config import ElasticConfig
from ...models.checkpoint import load_adapter, read_static_routes
from ...models.handle import Handle
from ...router import RouteNoise
from .base import Method

RouteSource = Callable[[int, Tensor], Tensor]


def prepare_source(method: Method, handle: Handle) -> Callable[[Tensor], RouteSource]:
    """What `Handle.routed_by` wants, as a function of the sample ids (B,) of a batch; random routes depend on them.

    Raises:
        ValueError: an unknown method, one that lacks its folder or target, or routers that read something else than
            the handle pools.
    """
    heads = handle.config.base_model.num_kv_heads
    if method.name in ("dense", "all_sparse"):
        is_sparse = method.name == "all_sparse"
        return lambda ids: lambda index, pooled: torch.full((len(pooled), heads), is_sparse)
    if method.name == "random" and method.target is not None:
        share = method.target
        return lambda ids: (
            lambda index, pooled: (
                RouteNoise(seed=0, step=0, sample_ids=ids.cpu()).uniform(index, heads, 1)[..., 0] < share
            )
        )
    if method.name == "static" and method.folder:
        mask = read_static_routes(method.folder)
        return lambda ids: lambda index, pooled: mask[index].expand(len(pooled), -1)
    if method.name == "routed" and not method.folder:
        return lambda ids: handle.decide
    if method.name == "routed" and method.folder:
        config, routers = load_adapter(method.folder)
        _check_inputs(method, config, handle.config)
        routers.to(handle.model.device)
        return lambda ids: lambda index, pooled: routers[index](pooled, layer=index)
    raise ValueError(f"method {method} cannot run; static needs a folder, random a target.")


def _check_inputs(method: Method, config: ElasticConfig, attached: ElasticConfig) -> None:
    """Routers of a folder are fed by the handle, so both must pool the same."""
    wanted, found = (
        (c.granularity, c.router.pooled_tokens, c.router.count_overlap_twice, c.sparse_pattern)
        for c in (config, attached)
    )
    if wanted != found:
        raise ValueError(
            f"{method.folder} holds routers for (granularity, pooled tokens, overlap twice, pattern) = {wanted}; "
            f"the handle has {found}. Use attach(model, {method.folder!r})."
        )
