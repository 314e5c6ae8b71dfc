"""The router tensors of released Elastic and Flux checkpoints, under our names and with our polarity."""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import RouterConfig
from ..errors import AdapterError
from .released_config import ReleasedConfig
from .tensor_folder import TensorFolder

_ROUTER = re.compile(
    r"model\.layers\.(\d+)\.self_attn\.mask_allocator\."
    r"(cls_feat_extractor|cls_router_head_agnostic)\.(\d+)\.(weight|bias)"
)
_LOG_ALPHA = re.compile(r"model\.layers\.(\d+)\.self_attn\.attn_mask_log_alphas")
_LEFT_OUT = re.compile(
    r"model\.layers\.\d+\.self_attn\.mask_allocator\.(log_temp|task_embedding\.weight)|model\.sparsity_lambda\w*"
)
_BACKBONE = re.compile(
    r"(lm_head|model\.embed_tokens|model\.norm)\.weight|model\.layers\.\d+\.((input|post_attention)_layernorm\.weight"
    r"|mlp\.(gate|up|down)_proj\.(weight|bias)|self_attn\.([qkvo]_proj\.(weight|bias)|[qk]_norm\.weight))"
)
_NAMES = {"cls_feat_extractor": "task_mlp", "cls_router_head_agnostic": "router_mlp"}
_LINEARS = (("task_mlp", 0), ("task_mlp", 2), ("router_mlp", 0), ("router_mlp", 2), ("router_mlp", 4))
_LAST = "router_mlp.4"


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleasedRouters:
    """Routers as our adapter stores them.

    Attributes:
        router: sizes, read from the shapes.
        granularity: "head" (Elastic) or "layer" (Flux).
        state: adapter tensors by name, output row 1 = sparse.
        dtype: of the checkpoint.
        is_sigmoid: the checkpoint has one logit.
    """

    router: RouterConfig
    granularity: str
    state: dict[str, Tensor]
    dtype: torch.dtype
    is_sigmoid: bool


def refuse_unknown_tensors(tensors: TensorFolder) -> None:
    """Raise AdapterError for tensors that neither a stock backbone nor a known router has."""
    known = (_ROUTER, _LOG_ALPHA, _LEFT_OUT, _BACKBONE)
    if unknown := sorted(n for n in tensors.names if not any(p.fullmatch(n) for p in known)):
        raise AdapterError(
            f"{tensors.root} holds {len(unknown)} tensors that no known Elastic, Flux or PruLong checkpoint has, such "
            f"as {unknown[:3]}; what they do is unknown, so the checkpoint is refused."
        )


def has_routers(tensors: TensorFolder) -> bool:
    """Does the checkpoint hold any router tensor?"""
    return any(_ROUTER.fullmatch(name) for name in tensors.names)


def read_routers(tensors: TensorFolder, config: ReleasedConfig) -> ReleasedRouters:
    """Read the routers of every layer, nothing else.

    Raises:
        AdapterError: tensors are missing, have wrong shapes, or are not finite; the message names one.
    """
    names = _find_routers(tensors, config.base.num_layers)
    widths, num_logits = _read_widths(tensors, names[0], config)
    task_hidden, task_width, router_hidden, router_width = widths
    head_dim = config.base.head_dim
    granularity = {head_dim: "head", 2 * head_dim: "layer"}.get(task_width)
    if granularity is None:
        raise AdapterError(
            f"{tensors.root}: the feature extractor ends in {task_width} features for heads of {head_dim}; Elastic has "
            f"{head_dim}, Flux {2 * head_dim}, anything else is unknown."
        )
    sizes = (head_dim, task_hidden, task_width, router_hidden, router_width, num_logits)
    inputs = {"task_mlp.0": 0, "task_mlp.2": 1, "router_mlp.0": 2, "router_mlp.2": 3, _LAST: 4}
    state, dtypes = {}, set()
    for layer, places in names.items():
        for place, name in places.items():
            module, kind = place.rsplit(".", 1)
            rows, columns = sizes[inputs[module] + 1], sizes[inputs[module]]
            tensor = _read_tensor(tensors, name, (rows, columns) if kind == "weight" else (rows,))
            dtypes.add(tensor.dtype)
            state[f"layers.{layer}.{place}"] = _flip(tensor) if module == _LAST else tensor
    return ReleasedRouters(
        router=RouterConfig(
            head_dim=head_dim,
            task_hidden=task_hidden,
            task_width=task_width,
            router_hidden=router_hidden,
            router_width=router_width,
            pooled_tokens=config.pooled_tokens,
            count_overlap_twice=True,  # the released code joins both ends without looking
        ),
        granularity=granularity,
        state=state,
        dtype=dtypes.pop() if len(dtypes) == 1 else torch.float32,
        is_sigmoid=num_logits == 1,
    )


def read_log_alphas(tensors: TensorFolder) -> Tensor | None:
    """PruLong's log alpha of every (layer, KV head), (L, G) float32, larger = fuller; None if there are none.

    Raises:
        AdapterError: layers are missing, or differ in shape, or hold no finite numbers.
    """
    found = {int(m[1]): name for name in tensors.names if (m := _LOG_ALPHA.fullmatch(name))}
    if not found:
        return None
    if missing := sorted(set(range(max(found) + 1)) - set(found)):
        raise AdapterError(f"{tensors.root} has no attn_mask_log_alphas of the layers {missing}; fetch it again.")
    shape = tensors.shape(found[0])
    return torch.stack([_read_tensor(tensors, found[i], shape).float().flatten() for i in sorted(found)])


def _find_routers(tensors: TensorFolder, num_layers: int) -> dict[int, dict[str, str]]:
    """layer -> our name inside the layer -> the tensor's name."""
    names: dict[int, dict[str, str]] = {}
    for name in tensors.names:
        if m := _ROUTER.fullmatch(name):
            names.setdefault(int(m[1]), {})[f"{_NAMES[m[2]]}.{m[3]}.{m[4]}"] = name
    wanted = {f"{mlp}.{i}.{kind}" for mlp, i in _LINEARS for kind in ("weight", "bias")}
    if wrong := sorted(set(names) ^ set(range(num_layers))):
        raise AdapterError(
            f"{tensors.root}: routers and config.json (num_hidden_layers={num_layers}) disagree about the layers "
            f"{wrong}; fetch the checkpoint again."
        )
    for layer, places in sorted(names.items()):
        if places.keys() != wanted:
            raise AdapterError(
                f"{tensors.root}: the router of layer {layer} lacks {sorted(wanted - set(places))} and has in excess "
                f"{sorted(set(places) - wanted)}; fetch the checkpoint again."
            )
    return dict(sorted(names.items()))


def _read_widths(
    tensors: TensorFolder, places: dict[str, str], config: ReleasedConfig
) -> tuple[tuple[int, int, int, int], int]:
    shapes = [tensors.shape(places[f"{mlp}.{i}.weight"]) for mlp, i in _LINEARS]
    if any(len(shape) != 2 or 0 in shape for shape in shapes):
        raise AdapterError(f"{tensors.root}: router weights must be matrices, got the shapes {shapes}.")
    *widths, num_logits = (shape[0] for shape in shapes)
    if num_logits not in (1, 2):
        raise AdapterError(f"{tensors.root}: the router of layer 0 has {num_logits} logits; known are 2 and 1.")
    if config.has_softmax is not None and config.has_softmax != (num_logits == 2):
        raise AdapterError(
            f"{tensors.root}: use_softmax={config.has_softmax} in config.json, but the router has {num_logits} "
            "logits; one of the two files belongs to another checkpoint."
        )
    return (widths[0], widths[1], widths[2], widths[3]), num_logits


def _read_tensor(tensors: TensorFolder, name: str, shape: tuple[int, ...]) -> Tensor:
    if (found := tensors.shape(name)) != shape:
        raise AdapterError(f"{tensors.root}: {name} has the shape {found}, expected {shape}; fetch it again.")
    tensor = tensors.read(name)
    if not tensor.is_floating_point() or not bool(torch.isfinite(tensor.float()).all()):
        raise AdapterError(
            f"{tensors.root}: {name} holds NaN, infinities or no floats ({tensor.dtype}); the training run diverged or "
            "the file is damaged."
        )
    return tensor


def _flip(tensor: Tensor) -> Tensor:
    """Their class 1 is full, our row 1 is sparse; one logit z of a sigmoid is the pair [z, 0]."""
    return tensor.flip(0) if len(tensor) == 2 else torch.cat([tensor, torch.zeros_like(tensor)])
