"""Folders with one mask for all inputs, as `attach` takes them."""

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import ElasticConfig, SparsePattern, XAttentionConfig
from ..errors import AdapterError, RouterMismatch
from ..settings import from_dict
from .checkpoint import CONFIG_FILE, STATIC_FILE, WEIGHTS_FILE, locate_folder, read_static_adapter
from .released_patterns import parse_pattern

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Patterns:
    sparse_pattern: SparsePattern | None = None
    full_pattern: str | XAttentionConfig = "full"


def find_static_mask(source: str | Path, revision: str | None) -> tuple[Tensor, dict[str, Any]] | None:
    """The mask (L, G) bool of a folder or hub repository and its facts; None if it holds no mask, but routers.

    Raises:
        AdapterError: there is nothing there, or it is damaged.
    """
    folder = locate_folder(source, (CONFIG_FILE, WEIGHTS_FILE, STATIC_FILE), kind="adapter", revision=revision)
    is_static = (folder / STATIC_FILE).is_file() and not (folder / CONFIG_FILE).is_file()
    return read_static_adapter(folder) if is_static else None


def configure_static(model: Any, mask: Tensor, facts: dict[str, Any]) -> ElasticConfig:
    """The configuration to attach a mask (L, G) bool with; its patterns are those that the facts name.

    Raises:
        AdapterError: the facts name no known pattern.
        RouterMismatch: the mask is for a model of another shape.
    """
    names = {name: facts[name] for name in ("sparse_pattern", "full_pattern") if name in facts}
    try:
        compared = parse_pattern(names.get("sparse_pattern"))
        patterns = from_dict(_Patterns, names if compared is None else {})
    except (ValueError, TypeError) as error:
        raise AdapterError(f"The facts of {STATIC_FILE} are malformed: {error}") from error
    pattern: Any = patterns.sparse_pattern if compared is None else compared
    config = ElasticConfig.for_model(model, sparse_pattern=pattern, full_pattern=patterns.full_pattern)
    shape = (config.base_model.num_layers, config.base_model.num_kv_heads)
    if tuple(mask.shape) != shape:
        raise RouterMismatch(f"This mask is {tuple(mask.shape)}, the model has (layers, KV heads) = {shape}.")
    if pattern is None:
        _logger.warning("The mask does not say what sparse heads read; taking %s.", config.sparse_pattern)
    return dataclasses.replace(config, training=facts)  # which `Handle.save_pretrained` writes again
