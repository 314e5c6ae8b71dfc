"""Long-context samples to train and evaluate routers: `generate` makes one, `render` turns it into tokens.

Pure Python; a tokenizer is passed in. One kind = one function + one line in `registry.KINDS`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elastic_attention.tasks.corpora import Corpora, build_corpora, corpora_digest, load_corpora, load_document
    from elastic_attention.tasks.drawing import SPLITS
    from elastic_attention.tasks.registry import KINDS, TRAINED_KINDS, Kind, generate
    from elastic_attention.tasks.sample import Sample, render, to_row

__all__ = [
    "KINDS",
    "SPLITS",
    "TRAINED_KINDS",
    "Corpora",
    "Kind",
    "Sample",
    "build_corpora",
    "corpora_digest",
    "generate",
    "load_corpora",
    "load_document",
    "render",
    "to_row",
]

HOMES = {
    "Corpora": "corpora",
    "build_corpora": "corpora",
    "corpora_digest": "corpora",
    "load_corpora": "corpora",
    "load_document": "corpora",
    "SPLITS": "drawing",
    "KINDS": "registry",
    "TRAINED_KINDS": "registry",
    "Kind": "registry",
    "generate": "registry",
    "Sample": "sample",
    "render": "sample",
    "to_row": "sample",
}


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that `python -m` on a submodule runs it once."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
