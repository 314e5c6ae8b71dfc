"""Routers that learn on standardised inputs get their mean and covariance from the first packs of the run."""

from itertools import islice

import torch
from torch import Tensor

from .data.steps import PackedSteps, stream_steps
from .engine import Engine
from .sources.routers import HeadRouters

_STEPS = 4


@torch.no_grad()
def fit_inputs(engine: Engine, steps: PackedSteps) -> None:
    """Fit `HeadRouters.scaling` to the first steps of a run; nothing to do for sources without one."""
    source = engine.source
    if not isinstance(source, HeadRouters) or source.scaling is None:
        return
    found: dict[int, list[Tensor]] = {index: [] for index in source.layers}
    heads = engine.handle.config.base_model.num_kv_heads

    def look(index: int, pooled: Tensor) -> Tensor:
        found[index].append(source.read(pooled).double())
        return torch.zeros(len(pooled), heads, dtype=torch.bool, device=pooled.device)

    for packs in islice(stream_steps(steps, 0), _STEPS):
        for pack in packs:
            engine.run_with(look, pack.to(engine.device))
    read = torch.stack([torch.cat(found[index]) for index in source.layers])  # (L, S, G, D)
    flat = read.flatten(1, 2)
    source.scaling.fit(engine.count(read.shape[1]), engine.total(read.sum(1)), engine.total(flat.mT @ flat))
