"""Routers that ship with the package, found by the shape of the model they belong to."""

import json
from pathlib import Path

from ..config import BaseModel
from ..errors import AdapterError
from .checkpoint import CONFIG_FILE

_FOLDER = Path(__file__).parent.parent / "pretrained"
_SHAPE = ("model_type", "num_layers", "num_q_heads", "num_kv_heads", "head_dim")


def list_pretrained() -> list[str]:
    """Names of the adapters inside the package."""
    return sorted(path.parent.name for path in _FOLDER.glob(f"*/{CONFIG_FILE}"))


def find_pretrained(base: BaseModel) -> Path:
    """Folder of the shipped adapter for a model of this shape.

    Raises:
        AdapterError: none ships for it.
    """
    for name in list_pretrained():
        wanted = json.loads((_FOLDER / name / CONFIG_FILE).read_text(encoding="utf-8"))["base_model"]
        if all(wanted[key] == getattr(base, key) for key in _SHAPE):
            return _FOLDER / name
    raise AdapterError(
        f"No routers ship for {base.name or base.model_type}; pass an adapter folder, a hub id, or "
        f"ElasticConfig.for_model(model) for untrained routers. Shipped: {list_pretrained()}."
    )
