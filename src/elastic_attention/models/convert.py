"""Checkpoints of other projects become our adapters, without loading a backbone.

Routers come from Elastic and Flux checkpoints, static masks from DuoAttention tables and PruLong gates; MoBA and
InfLLM-V2 checkpoints are a base model plus a pattern, and the pattern becomes a mask of sparse heads. Only names,
shapes and the few tensors that are needed are read; everything is checked before the first byte is written.
"""

import re
from pathlib import Path
from typing import Any

import torch

from ..config import BaseModel, ElasticConfig
from ..errors import AdapterError
from ..router import RouterStack
from ..settings import to_dict
from .checkpoint import locate_folder, save_adapter, save_static_routes
from .families import name_publicly
from .released_config import ReleasedConfig, read_released_config
from .released_patterns import PATTERNS, convert_pattern, read_released_pattern
from .released_routers import has_routers, read_routers, refuse_unknown_tensors
from .static_masks import TABLE_FILE, StaticMask, read_gates, read_table
from .tensor_folder import TensorFolder

_PATTERNS = ("config.json", "*.safetensors", "*.safetensors.index.json", TABLE_FILE)
_PROJECTION = re.compile(r"model\.layers\.\d+\.self_attn\.[qkv]_proj\.(weight|bias)")


def convert_checkpoint(
    source: str | Path,
    destination: str | Path,
    *,
    base: str | Path | None = None,
    msr: float | None = None,
    pattern: str | None = None,
) -> dict[str, Any]:
    """Convert a checkpoint or a mask.

    Args:
        source: folder or hub id of an Elastic, Flux, PruLong, MoBA or InfLLM-V2 checkpoint; a DuoAttention folder or
            its .tsv table; a .safetensors file with PruLong's log alphas.
        destination: folder of the adapter; made if missing.
        base: folder or hub id of the stock model; its q, k and v projections are compared with the checkpoint's.
        msr: share of the heads that a static mask makes sparse. None: what the file suggests, else its threshold.
        pattern: "moba" or "infllm", what all heads of a checkpoint were trained to read that does not say it itself.

    Returns:
        Facts: "source", "kind" (elastic, flux, prulong, duo_attention, table, moba, infllm), "granularity", "layers",
        "base_model", "sparse_pattern", "full_pattern", "msr" (of static masks), "projections" (None, or what the
        comparison found) and "notes" (sentences).

    Raises:
        AdapterError: the source is unknown, damaged or incomplete; nothing was written.
    """
    if msr is not None and not 0.0 <= msr <= 1.0:
        raise AdapterError(f"msr={msr} must be a ratio in [0, 1].")
    if pattern not in (None, *PATTERNS):
        raise AdapterError(f"pattern={pattern!r} is unknown; use one of {list(PATTERNS)}.")
    if Path(destination).is_file():
        raise AdapterError(f"{destination} is a file; name a folder for the adapter.")
    path = Path(source).expanduser()
    if not path.is_file():
        path = locate_folder(source, _PATTERNS, kind="model")
        if not (path / TABLE_FILE).is_file():
            facts = {"source": name_publicly(str(source))}
            if (found := read_released_pattern(path / "config.json", pattern)) is not None:
                if msr is not None or base is not None:
                    raise AdapterError(
                        f"{path}: its pattern was trained into all of its heads; leave out msr and base."
                    )
                return convert_pattern(path, found, destination, facts)
            return _convert_folder(path, destination, base, msr, facts)
        path = path / TABLE_FILE
    if pattern is not None:
        raise AdapterError(f"{path} is a mask of its own; leave out pattern={pattern!r}.")
    if base is not None:
        raise AdapterError(f"{path} is a mask without projections; leave out base={str(base)!r}.")
    facts = {"source": path.name}
    if path.suffix == ".tsv":
        return _write_mask(read_table(path), destination, msr, facts)
    if path.suffix != ".safetensors":
        raise AdapterError(f"{path} is neither a folder nor a .tsv or .safetensors file, so it cannot be converted.")
    gates = read_gates(TensorFolder(path))
    if gates is None:
        raise AdapterError(f"{path} holds no log alphas; name the folder of a checkpoint or a file with one (L, G).")
    return _write_mask(gates, destination, msr, facts)


def _convert_folder(
    folder: Path, destination: str | Path, base: str | Path | None, msr: float | None, facts: dict[str, Any]
) -> dict[str, Any]:
    config = read_released_config(folder / "config.json")
    tensors = TensorFolder(folder)
    refuse_unknown_tensors(tensors)
    is_routed = config.has_routers and has_routers(tensors)
    gates = None if is_routed else read_gates(tensors)
    if not is_routed and gates is None:
        raise AdapterError(f"{folder} holds neither routers nor log alphas, so there is nothing to convert.")
    if is_routed and msr is not None:
        raise AdapterError(f"msr={msr} is for static masks, {folder} holds routers; leave it out.")
    projections = None if base is None else _compare_projections(tensors, _open_base(base))
    name = None if base is None else name_publicly(str(base))
    facts |= {"projections": projections}
    if gates is None:
        return _write_routers(tensors, config, destination, name, facts)
    shape = (config.base.num_layers, config.base.num_kv_heads)
    if tuple(gates.scores.shape) != shape:
        raise AdapterError(
            f"{folder}: log alphas are {tuple(gates.scores.shape)}, config.json says (layers, KV heads) = {shape}; one "
            "of the files belongs to another checkpoint."
        )
    facts |= {"base_model": _describe(config.base, name), "sparse_pattern": to_dict(config.sparse_pattern)}
    return _write_mask(gates, destination, config.suggested_msr if msr is None else msr, facts)


def _write_routers(
    tensors: TensorFolder, config: ReleasedConfig, destination: str | Path, name: str | None, facts: dict[str, Any]
) -> dict[str, Any]:
    found = read_routers(tensors, config)
    kind = {"head": "elastic", "layer": "flux"}[found.granularity]
    facts = {
        "kind": kind,
        "granularity": found.granularity,
        "layers": config.base.num_layers,
        "base_model": _describe(config.base, name),
        "sparse_pattern": to_dict(config.sparse_pattern),
        "full_pattern": config.full_pattern if isinstance(config.full_pattern, str) else to_dict(config.full_pattern),
        "msr": None,
        **facts,
    }
    facts["notes"] = _take_notes(kind, found.is_sigmoid, facts["projections"])
    elastic = ElasticConfig(
        base_model=BaseModel(**facts["base_model"]),
        routed_layers=tuple(range(config.base.num_layers)),
        router=found.router,
        sparse_pattern=config.sparse_pattern,
        full_pattern=config.full_pattern,
        granularity=found.granularity,
        training={"converted": {key: facts[key] for key in ("source", "kind", "projections", "notes")}},
    )
    with torch.device("meta"):
        routers = RouterStack(elastic.router, elastic.routed_layers, elastic.granularity)
    routers.load_state_dict({key: tensor.float() for key, tensor in found.state.items()}, assign=True)
    save_adapter(destination, elastic, routers, dtype=found.dtype)
    return facts


def _write_mask(mask: StaticMask, destination: str | Path, msr: float | None, more: dict[str, Any]) -> dict[str, Any]:
    head_is_sparse = mask.cut(msr)
    facts = {
        "kind": mask.kind,
        "granularity": "head",
        "layers": len(head_is_sparse),
        "base_model": None,
        "sparse_pattern": None if mask.pattern is None else to_dict(mask.pattern),
        "full_pattern": "full",
        "msr": head_is_sparse.float().mean().item(),
        "projections": None,
        **more,
    }
    facts["notes"] = [
        "One mask for all inputs: attach and --routers take its folder, Handle.set_routes takes the mask.",
        f"Cut at the threshold {mask.threshold}." if msr is None else f"Cut at the share {msr} of sparse heads.",
    ]
    if facts["sparse_pattern"] is None:
        facts["notes"].append("The file does not say what sparse heads read; use the pattern it was made for.")
    save_static_routes(destination, head_is_sparse, {"scores": mask.scores}, facts)
    return facts


def _describe(base: BaseModel, name: str | None) -> dict[str, Any]:
    return to_dict(base) | {"name": name}


def _take_notes(kind: str, is_sigmoid: bool, projections: dict[str, Any] | None) -> list[str]:
    notes = ["Output rows were swapped: their class 1 is full, ours is sparse."]
    if is_sigmoid:
        notes.append("One logit z of a sigmoid became the rows [z, 0]; the released code adds noise to z at inference.")
        if kind == "elastic":
            notes.append("It also normalises z over the heads of a layer, which is not reproduced: routes can differ.")
    if projections is None:
        notes.append("q, k and v projections were not compared with a base model.")
        if kind == "flux":
            notes.append("Flux's public script trains them: load the backbone from this checkpoint, or name the base.")
    elif projections["different"]:
        notes.append("q, k or v projections differ from the base: load the backbone from this checkpoint.")
    else:
        notes.append("q, k and v projections equal the base: the routers can be attached to it.")
    return notes


def _open_base(base: str | Path) -> TensorFolder:
    return TensorFolder(locate_folder(base, _PATTERNS[:3], kind="model"))


def _compare_projections(tensors: TensorFolder, base: TensorFolder) -> dict[str, Any]:
    """Compare q, k and v tensor by tensor, in the lower precision of the two."""
    names = sorted(name for name in tensors.names if _PROJECTION.fullmatch(name))
    if wrong := sorted({name for name in base.names if _PROJECTION.fullmatch(name)} ^ set(names)):
        raise AdapterError(f"{base.root} is not the base of {tensors.root}: only one of them has {wrong[:3]}.")
    different, largest = [], 0.0
    for name in names:
        if tensors.shape(name) != base.shape(name):
            raise AdapterError(
                f"{base.root} is not the base of {tensors.root}: {name} is {base.shape(name)} there, "
                f"{tensors.shape(name)} here."
            )
        ours, theirs = tensors.read(name), base.read(name)
        dtype = min(ours.dtype, theirs.dtype, key=lambda d: d.itemsize)
        distance = (ours.to(dtype).float() - theirs.to(dtype).float()).abs().max().item()
        if distance != 0.0:
            different.append(name)
            largest = max(largest, distance)
    return {"compared": len(names), "different": len(different), "largest": largest, "examples": different[:3]}
