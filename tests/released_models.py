"""Synthetic checkpoints with the names, shapes and config keys of the released Elastic and Flux models."""

import json

import torch
from safetensors.torch import save_file

from tiny_models import make_model

LAYERS, HEAD_DIM, KV_HEADS = 3, 16, 2
MODULES = (("cls_feat_extractor", 0), ("cls_feat_extractor", 2), *(("cls_router_head_agnostic", i) for i in (0, 2, 4)))
ROUTER = "model.layers.{}.self_attn.mask_allocator.{}.{}.{}"


def widths_of(method, num_logits=2, d=HEAD_DIM):
    """Inputs and outputs of the five linear maps."""
    scale = 2 if method == "flux" else 1
    return [d, 4 * scale * d, scale * d, 4 * d, d, num_logits]


def router_tensors(method, num_logits=2, dtype=torch.bfloat16, seed=5):
    """Router tensors of all layers under their released names."""
    generator = torch.Generator().manual_seed(seed)
    widths, tensors = widths_of(method, num_logits), {}
    for layer in range(LAYERS):
        for (module, i), fan_in, fan_out in zip(MODULES, widths, widths[1:], strict=False):
            for kind, shape in (("weight", (fan_out, fan_in)), ("bias", (fan_out,))):
                values = torch.randn(shape, generator=generator) * 0.5
                tensors[ROUTER.format(layer, module, i, kind)] = values.to(dtype)
    return tensors


def extra_tensors():
    """What the released training leaves in a checkpoint and inference ignores."""
    extras = {"model.sparsity_lambda_1": torch.zeros(1), "model.sparsity_lambda1_task": torch.zeros(5)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}.self_attn."
        extras[prefix + "attn_mask_log_alphas"] = torch.full((KV_HEADS,), 4.5)
        extras[prefix + "mask_allocator.log_temp"] = torch.zeros(())
        extras[prefix + "mask_allocator.task_embedding.weight"] = torch.zeros(4, HEAD_DIM)
    return extras


def release_config(method, family="qwen3", **changes):
    """config.json; a change to None removes the key."""
    config = make_model(family).config.to_dict()
    config["architectures"] = [{"qwen3": "PawQwen3ForCausalLM", "llama": "PawLlamaForCausalLM"}[family]]
    config |= {
        "toggle_type": "streaming",
        "retrieval_mode": "full",
        "sink_size": 128,
        "local_window_size": 2048,
        "pooling_mode": "ctx_q",
        "use_softmax": True,
    }
    config |= {"pool_size": 150} if method == "flux" else {"enable_ada_sparsity": True, "enable_lambda_task": True}
    return {key: value for key, value in (config | changes).items() if value is not None}


def backbone_tensors(family="qwen3"):
    """The stock names of the backbone."""
    return {name: tensor.clone() for name, tensor in make_model(family).state_dict().items()}


def write_release(folder, method="elastic", *, family="qwen3", num_logits=2, shards=3, tensors=None, **config):
    """A checkpoint folder; `shards` 1 is a single file without an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(release_config(method, family, **config)))
    if tensors is None:
        tensors = backbone_tensors(family) | router_tensors(method, num_logits) | extra_tensors()
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    weight_map, names = {}, sorted(tensors)
    for i in range(shards):
        shard = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file({name: tensors[name] for name in names[i::shards]}, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names[i::shards], shard)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def released_is_full(tensors, layer, states, pool, method):
    """The released inference: (B, T, heads, D) keys or queries before RoPE -> (B, heads) or (B, 1), True = full.

    Means over both ends, whether they overlap or not; argmax of a softmax, class 1 = full; a sigmoid above one half.
    """
    pooled = torch.cat([states[:, :pool], states[:, -pool:]], dim=1).mean(1)
    x = pooled.mean(1, keepdim=True) if method == "flux" else pooled
    for module, i in MODULES:
        weight, bias = (tensors[ROUTER.format(layer, module, i, kind)].float() for kind in ("weight", "bias"))
        x = torch.nn.functional.linear(x, weight, bias)
        if (module, i) not in (MODULES[1], MODULES[4]):
            x = torch.nn.functional.silu(x)
    return torch.sigmoid(x[..., 0]) > 0.5 if x.shape[-1] == 1 else x.softmax(-1).argmax(-1) == 1
