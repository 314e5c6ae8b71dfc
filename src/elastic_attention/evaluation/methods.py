"""Who decides the routes in a quality comparison. One method = one line in a plan."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import ElasticConfig
from ..models.checkpoint import load_adapter, read_static_routes
from ..models.handle import Handle
from ..router import RouteNoise

RouteSource = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """One row of a comparison.

    Attributes:
        name: "dense", "all_sparse", "routed", "static" or "random".
        target: suite-mean MSR that a method was trained or drawn for, None where it does not apply.
        folder: adapter of "routed" (None = the handle's own routers), or the exported mask of "static".
        decode: how generated rows read the cache, "sparse" or "full".
        note: tells apart runs that agree in everything else, such as "main" or "cache".
    """

    name: str
    target: float | None = None
    folder: str | None = None
    decode: str = "sparse"
    note: str = ""

    @property
    def label(self) -> str:
        """Name, target and note in one word, such as routed@0.800."""
        target = "" if self.target is None else f"@{self.target:.3f}"
        return self.name + target + (f"-{self.note}" if self.note else "")


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
