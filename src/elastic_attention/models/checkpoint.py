"""Adapter folders: `elastic_config.json` and `elastic_routers.safetensors`, or `static_routes.safetensors`.

Nothing else is read, nothing is pickled.
"""

import json
import os
import secrets
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import FORMAT_VERSION, ElasticConfig
from ..errors import AdapterError, RouterMismatch
from ..router import RouterStack
from ..settings import from_dict, to_dict

CONFIG_FILE = "elastic_config.json"
WEIGHTS_FILE = "elastic_routers.safetensors"
STATIC_FILE = "static_routes.safetensors"


def save_adapter(
    folder: str | Path, config: ElasticConfig, routers: RouterStack, dtype: torch.dtype | None = None
) -> None:
    """Write an adapter; a failure leaves the files that were there.

    Args:
        folder: made if missing.
        dtype: store the weights in this dtype, default theirs.

    Raises:
        AdapterError: `folder` is a file.
    """
    from safetensors.torch import save

    target = make_folder(folder)
    state = {
        name: (t if dtype is None else t.to(dtype)).detach().cpu().contiguous()
        for name, t in routers.state_dict().items()
    }
    text = json.dumps(to_dict(config), indent=2, sort_keys=True) + "\n"
    write_together(target, {WEIGHTS_FILE: save(state, metadata={"format": "pt"}), CONFIG_FILE: text.encode()})


def save_static_routes(
    folder: str | Path, head_is_sparse: Tensor, scores: dict[str, Tensor], facts: dict[str, Any]
) -> None:
    """Write one mask for all inputs; a failure leaves the file that was there.

    Args:
        folder: made if missing.
        head_is_sparse: (L, G) bool, L counts all layers of the model.
        scores: what the mask was made from, by name.
        facts: where it comes from, plain JSON values.

    Raises:
        AdapterError: `folder` is a file.
    """
    from safetensors.torch import save

    tensors = {name: t.detach().cpu().contiguous() for name, t in {"head_is_sparse": head_is_sparse, **scores}.items()}
    data = save(tensors, metadata={"format": "pt", "facts": json.dumps(facts, sort_keys=True)})
    write_together(make_folder(folder), {STATIC_FILE: data})


def read_static_routes(folder: str | Path) -> Tensor:
    """The (L, G) bool mask of a folder that `save_static_routes` wrote; True = sparse. `Handle.set_routes` takes it.

    Raises:
        AdapterError: it is missing or damaged.
    """
    return read_static_adapter(folder)[0]


def read_static_adapter(folder: str | Path) -> tuple[Tensor, dict[str, Any]]:
    """The mask as `read_static_routes` gives it, and the facts that it was saved with.

    Raises:
        AdapterError: the file is missing or damaged.
    """
    path = Path(folder) / STATIC_FILE
    if not path.is_file():
        raise AdapterError(f"{folder} has no {STATIC_FILE}; name the folder of a static run or of a converted mask.")
    mask = _read_tensors(path).get("head_is_sparse")
    if mask is None or mask.dtype != torch.bool or mask.ndim != 2:
        raise AdapterError(f"{path} holds no bool tensor `head_is_sparse` (L, G); export or convert the mask again.")
    from safetensors import safe_open

    with safe_open(path, framework="pt") as reader:
        text = (reader.metadata() or {}).get("facts", "{}")
    try:
        facts = json.loads(text)
    except ValueError as error:
        raise AdapterError(f"{path}: its facts are no JSON ({error}); export or convert the mask again.") from error
    return mask, facts if isinstance(facts, dict) else {}


def make_folder(folder: str | Path) -> Path:
    """The folder, made if missing.

    Raises:
        AdapterError: it is a file.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise AdapterError(f"{target} is a file; name a folder for the adapter.")
    target.mkdir(parents=True, exist_ok=True)
    return target


def write_together(folder: Path, files: dict[str, bytes]) -> None:
    """Write several files of a folder; they are renamed only once all of them are on the disk.

    Args:
        folder: where, must exist.
        files: name -> content, renamed in this order.
    """
    staged = {name: folder / f".{name}.{secrets.token_hex(6)}" for name in files}
    try:
        for name, data in files.items():
            with open(staged[name], "xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        for name, temporary in staged.items():
            os.replace(temporary, folder / name)
    except BaseException:
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)
        raise


def load_adapter(source: str | Path, revision: str | None = None) -> tuple[ElasticConfig, RouterStack]:
    """Read an adapter from a folder or, if there is no such folder, from a hub repository.

    Raises:
        AdapterError: missing, damaged or unknown files; the message names the file and the remedy.
    """
    folder = locate_folder(source, (CONFIG_FILE, WEIGHTS_FILE), kind="adapter", revision=revision)
    config = _read_config(folder / CONFIG_FILE)
    with torch.device("meta"):  # sizes are checked against the file before memory is taken
        routers = RouterStack(config.router, config.routed_layers, config.granularity)
    _load_weights(folder / WEIGHTS_FILE, routers)
    return config, routers


def push_adapter(
    repo_id: str, config: ElasticConfig, save: Callable[[str | Path], None], *, private: bool | None = None
) -> str:
    """Upload what `save` writes into a folder, with a model card, to the hub; returns the commit's address."""
    from huggingface_hub import HfApi

    api = HfApi()
    with tempfile.TemporaryDirectory() as folder:
        save(folder)
        (Path(folder) / "README.md").write_text(_model_card(repo_id, config), encoding="utf-8")
        api.create_repo(repo_id, exist_ok=True, private=private)
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload routers").commit_url)


def names_folder(source: str) -> bool:
    """Is it written as a path? What is not may be a hub id."""
    return Path(source).is_absolute() or source.startswith((".", "~")) or source.count("/") > 1


def locate_folder(source: str | Path, patterns: Sequence[str], *, kind: str, revision: str | None = None) -> Path:
    """A local folder as it is; otherwise the snapshot of a hub repository.

    Args:
        patterns: files to fetch, the one that tells what the folder is first.
        kind: "adapter" or "model", for the message.

    Raises:
        AdapterError: there is no such folder, and no such repository could be fetched.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if names_folder(str(source)) or folder.exists() or "/" not in str(source):
        raise AdapterError(f"There is no {kind} folder {folder}; pass a folder with {patterns[0]} or a hub id.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise AdapterError(f"{source} is no local folder and could not be fetched from the hub: {error}") from error


def _read_config(path: Path) -> ElasticConfig:
    if not path.is_file():
        raise AdapterError(
            f"{path.parent} has no {CONFIG_FILE}; is it an adapter folder? Save one with save_pretrained."
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise AdapterError(f"{path} is no valid JSON ({error}); fetch or save the adapter again.") from error
    if isinstance(data, dict) and data.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
        raise AdapterError(
            f"{path} has format_version {data['format_version']!r}, this version reads {FORMAT_VERSION}; "
            "upgrade elastic-attention."
        )
    try:
        return from_dict(ElasticConfig, data)
    except (ValueError, TypeError) as error:
        raise AdapterError(f"{path}: {error}") from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterError(f"{path} is damaged or truncated ({error}); fetch or save the adapter again.") from error


def _load_weights(path: Path, routers: RouterStack) -> None:
    if not path.is_file():
        raise AdapterError(f"{path.parent} has no {WEIGHTS_FILE}; fetch or save the adapter again.")
    state = _read_tensors(path)
    wanted = {name: tuple(t.shape) for name, t in routers.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in state.items()}
    if wanted != found:
        difference = sorted(set(wanted.items()) ^ set(found.items()))[:4]
        raise RouterMismatch(
            f"{path} does not hold the routers that {CONFIG_FILE} describes; first differences: {difference}."
        )
    if wrong := [f"{name} ({t.dtype})" for name, t in state.items() if not t.is_floating_point()]:
        raise AdapterError(f"{path} holds weights that are no floats: {wrong[:3]}; fetch or save the adapter again.")
    if bad := [name for name, t in state.items() if not bool(torch.isfinite(t.float()).all())]:
        raise AdapterError(
            f"{path} holds NaN or infinite weights in {bad[:3]}; the training run that made it diverged."
        )
    routers.load_state_dict({name: t.float() for name, t in state.items()}, assign=True)


def _model_card(repo_id: str, config: ElasticConfig) -> str:
    base: Any = config.base_model
    return (
        f"---\nbase_model: {base.name}\nlibrary_name: elastic-attention\n"
        "tags: [sparse-attention, long-context]\n---\n\n"
        f"# Attention routers for {base.name}\n\n"
        f"Routers decide per prompt and KV head between full and sparse attention.\n\n"
        f"- full: `{config.full_pattern}`\n- sparse: `{config.sparse_pattern}`\n\n"
        "```python\nfrom elastic_attention import attach\n"
        f'handle = attach(model, "{repo_id}")\n```\n'
    )
