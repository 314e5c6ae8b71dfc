"""What the GPU benchmarks share: rows by section, a time limit, and records that grow over several runs."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from elastic_attention.errors import ElasticAttentionError
from elastic_attention.evaluation.oracle import OracleMismatch
from elastic_attention.evaluation.session import describe_device, measure_peak_bytes
from elastic_attention.records import build_record, read_record, write_record

Rows = list[dict[str, Any]]

_CELL = ("model", "tokens", "batch", "heads", "kv_heads", "head_dim")
_NAMES = ("section", "name", "kernel")
_NAMED_SECTIONS = ("missing", "launches", "oracle", "ceilings", "batches")


@dataclass(kw_only=True)
class Bench:
    """A run: its options, its device, and the rows it has found, by section."""

    options: argparse.Namespace
    device: torch.device
    began: float = field(default_factory=time.perf_counter)
    rows: dict[str, Rows] = field(default_factory=dict)
    before: dict[str, Any] | None = None  # the record that this run adds to
    facts: dict[str, Any] = field(default_factory=dict)  # what `build_record` needs besides the rows

    def add(self, section: str, *rows: dict[str, Any]) -> None:
        """Keep and print rows."""
        self.rows.setdefault(section, []).extend(rows)
        for row in rows:
            text = " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items())
            print(f"{section}: {text}", flush=True)

    def note_missing(self, section: str, name: str, reason: object, **cell: Any) -> None:
        """Say that something cannot run here, and why."""
        text = " ".join(str(reason).split())[:300]
        if isinstance(reason, BaseException):
            text = f"{type(reason).__name__}: {text}"
        self.add("missing", {"section": section, "name": name, "reason": text, **cell})

    def open_record(self, **facts: Any) -> None:
        """Say what the record is about, and read the one that `--add` adds to.

        Args:
            facts: command, config, model, data and versions of the record.
        """
        path, self.facts = self.options.json, facts
        if path is not None and self.options.add and path.exists():
            self.before = read_record(path)

    def save(self) -> None:
        """Write the record to `--json` as far as it has come; the file is whole at any time."""
        if self.options.json is None:
            return
        run: dict[str, Any] = {"sections": self.options.only, "seconds": time.perf_counter() - self.began}
        run["versions"] = self.facts["versions"]
        runs, rows, models, peak = [run], self.rows, [self.facts["model"]], measure_peak_bytes(self.device) or 0
        if self.before is not None:
            metrics = self.before["metrics"]
            old = {name: found for name, found in metrics.items() if isinstance(found, list) and name != "runs"}
            runs, rows = [*metrics.get("runs", []), run], merge_rows(old, rows)
            models, peak = [self.before["model"], *models], max(peak, self.before["bytes"] or 0)
        named = dict.fromkeys(name for model in models if model for name in model.split(", "))
        record = build_record(
            self.facts["command"],
            config=self.facts["config"] | {"options": _plain(self.options)},
            model=", ".join(named) or None,
            data=self.facts["data"],
            device=describe_device(self.device),
            seed=0,
            n=sum(map(len, rows.values())),
            metrics={"rows": [], **rows},
            seconds=sum(entry["seconds"] for entry in runs),
            bytes=peak,
        )
        # Each run says when and from which commit; the rows of one shape always come from one run.
        run |= {"commit": record["package"]["commit"], "created": record["created"]}
        write_record(self.options.json, record | {"metrics": record["metrics"] | {"runs": runs}})

    def is_late(self, section: str, **cell: Any) -> bool:
        """Is the time used up? Then the cell is listed as skipped."""
        if time.perf_counter() - self.began < self.options.max_seconds:
            return False
        self.add("skipped", {"section": section, **cell})
        return True


@dataclass(kw_only=True)
class KernelBench(Bench):
    """A run and the backends of ours that can run here."""

    backends: list[str]

    @property
    def dtype(self) -> torch.dtype:
        """Of the inputs: bfloat16 on a GPU."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32


def run_sections(bench: Bench, sections: dict[str, Callable[[], None]]) -> None:
    """Run sections one after the other; one that fails is named in the record and does not take the others along.

    Raises:
        OracleMismatch: a kernel is wrong, so nothing of this run is worth keeping.
    """
    for name, run in sections.items():
        try:
            run()
        except OracleMismatch:
            raise
        except (RuntimeError, ValueError, TypeError, AttributeError, ImportError, ElasticAttentionError) as error:
            bench.note_missing(name, "section", error)
        bench.save()


def add_shared_options(parser: argparse.ArgumentParser, sections: list[str]) -> None:
    """Options that both benchmarks have."""
    parser.add_argument("--only", nargs="*", choices=sections, default=sections)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--add", action="store_true", help="keep what the record already holds of other shapes")
    parser.add_argument("--max-seconds", type=float, default=math.inf, help="begin nothing new after this")
    parser.add_argument("--device")


def merge_rows(old: dict[str, Rows], new: dict[str, Rows]) -> dict[str, Rows]:
    """Section by section the old rows of shapes that the new ones do not cover, then the new ones.

    What was skipped before and is measured now is skipped no more.
    """

    def key_of(section: str, row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row.get(key) for key in (_CELL + _NAMES if section in _NAMED_SECTIONS else _CELL))

    merged: dict[str, Rows] = {}
    for section in dict.fromkeys((*old, *new)):
        taken = {key_of(section, row) for row in new.get(section, [])}
        kept = [row for row in old.get(section, []) if key_of(section, row) not in taken]
        merged[section] = kept + new.get(section, [])
    place = {"prefill": "rows"}
    merged["skipped"] = [
        row
        for row in merged.get("skipped", [])
        if not any(_covers(found, row) for found in merged.get(place.get(row["section"], row["section"]), []))
    ]
    return merged


def _covers(found: dict[str, Any], skipped: dict[str, Any]) -> bool:
    return all(found.get(key) == skipped[key] for key in _CELL if key in skipped)


def _plain(options: argparse.Namespace) -> dict[str, Any]:
    """The options without endless numbers and without folders."""
    finite = {k: v for k, v in vars(options).items() if not (isinstance(v, float) and math.isinf(v))}
    return {k: v.name if isinstance(v, Path) else v for k, v in finite.items()}
