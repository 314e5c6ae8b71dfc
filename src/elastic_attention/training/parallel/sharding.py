"""Sharing the frozen layers of a model (FSDP2): each process stores a part, and a layer is whole while it runs."""

from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard


def find_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers of a model: the modules that hold an attention module."""
    return [
        module
        for module in model.modules()
        if any(hasattr(child, "layer_idx") and hasattr(child, "num_key_value_groups") for child in module.children())
    ]


def shard_layers(model: Any, device_type: str, size: int) -> None:
    """Spread the weights of each decoder layer over groups of `size` processes that follow each other.

    The weights are frozen, so there are no gradients to reduce and groups need nothing of each other. Embeddings and
    output layer stay whole on every process: the loss reads them outside of the model.

    Args:
        model: transformers model, the same on every process; it stays sharded, and one that is already is left alone.
        device_type: "cuda" or "cpu".
        size: divides the number of processes; 0 = all of them.
    """
    size = size or dist.get_world_size()
    if size == 1 or isinstance(model.base_model, FSDPModule):
        return
    shape = dist.get_world_size() // size, size
    mesh = init_device_mesh(device_type, shape, mesh_dim_names=("replica", "shard"))["shard"]
    layers = find_layers(model)
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    inside = {id(p) for layer in layers for p in layer.parameters()}
    body = model.base_model
    # The common root lets a layer's weights travel while the one before it computes.
    fully_shard(body, mesh=mesh, ignored_params={p for p in body.parameters() if id(p) not in inside})
