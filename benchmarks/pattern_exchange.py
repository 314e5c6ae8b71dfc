"""Routers asked with another sparse pattern than they were trained with: sparse heads read a triangle.

    python benchmarks/pattern_exchange.py ADAPTER OUTPUT

A triangle is the streaming pattern whose last queries of the prompt read every key; decoding stays as it was.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from elastic_attention.config import StreamingConfig, TriangleConfig
from elastic_attention.models.checkpoint import load_adapter, save_adapter


def exchange_pattern(folder: Path, output: Path) -> Path:
    """The adapter of `folder`, trained with a streaming pattern, with the triangle of the same sizes, in `output`.

    Raises:
        ValueError: its pattern is another one.
        AdapterError: as `load_adapter`.
    """
    config, routers = load_adapter(folder)
    pattern = config.sparse_pattern
    if not isinstance(pattern, StreamingConfig):
        raise ValueError(f"{folder} was trained with {pattern}; only a streaming pattern becomes a triangle.")
    sizes = {field.name: getattr(pattern, field.name) for field in dataclasses.fields(pattern) if field.init}
    save_adapter(output, dataclasses.replace(config, sparse_pattern=TriangleConfig(**sizes)), routers)
    return output


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args(arguments)
    print(exchange_pattern(options.adapter, options.output))


if __name__ == "__main__":
    main()
