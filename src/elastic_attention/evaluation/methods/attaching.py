"""A method on a model: which adapter, mask or pattern is attached, and whether it is one of the method."""

from typing import Any

import torch

from ...attention.plan import choose_for
from ...config import ElasticConfig
from ...errors import AdapterError
from ...models.attach import attach
from ...models.budget import check_budget
from ...models.handle import Handle
from .base import Method
from .registry import find_method


def attach_method(
    method: Method, model: Any, *, routers: str | None = None, backend: str = "auto", budget: float = 0.0
) -> Handle:
    """Attach to a model that is not attached; `Handle.detach` undoes it.

    Args:
        routers: adapter folder or hub id of "routed" without a folder of its own (None takes those that ship with the
            package); methods without sizes of their own (dense, all_sparse, random) take those of sink and window.
        budget: `Handle.budget` of routed heads.

    Raises:
        ElasticAttentionError: an unknown method, one that lacks its folder or target, or a folder of another method.
        ValueError: a budget that is no finite number.
    """
    budget = check_budget(budget)  # before anything is on the model
    kind = find_method(method)
    is_routed = kind.needs == "adapter" or method.name == "routed"
    source: Any
    if is_routed or kind.needs == "mask":
        source = method.folder or routers
    elif kind.pattern is not None:
        source = ElasticConfig.for_model(model, sparse_pattern=kind.pattern)
    else:
        source = routers or ElasticConfig.for_model(model)
    handle = attach(model, source, decode=kind.decode or method.decode, backend=backend)
    is_right = kind.fits(handle.config) and (not kind.needs or handle.has_given_routes == (kind.needs == "mask"))
    if kind.needs in ("adapter", "mask") and not is_right:
        handle.detach()
        raise AdapterError(
            f"{source} is no {kind.needs} of {method.name!r} ({kind.summary}); write routed=FOLDER for any adapter, "
            "static=FOLDER for any mask."
        )
    handle.budget = budget if is_routed else 0.0
    return handle


def check_method(method: Method, model: Any, *, routers: str | None = None, backend: str = "auto") -> None:
    """Learn beforehand whether the model can read as a method says; it is itself again afterwards.

    Raises:
        ElasticAttentionError: as `attach_method`.
        BackendUnavailable: the backend cannot run what the method reads, on this device and in this dtype.
    """
    handle = attach_method(method, model, routers=routers, backend=backend)
    try:
        config, base = handle.config, handle.config.base_model
        like = {"dtype": handle.model.dtype, "device": handle.model.device}
        q = torch.empty(1, base.num_q_heads, 1, base.head_dim, **like)
        k = torch.empty(1, base.num_kv_heads, 1, base.head_dim, **like)
        choose_for(backend, q, k, k, config.sparse_pattern, config.full_pattern)
    finally:
        handle.detach()
