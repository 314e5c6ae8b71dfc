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
from peers import Missing, find_dense

from elastic_attention.errors import ElasticAttentionError
from elastic_attention.evaluation.bench_gpu import Kernel
from elastic_attention.evaluation.oracle import OracleMismatch
from elastic_attention.evaluation.session import describe_device, measure_peak_bytes
from elastic_attention.records import build_record, read_record, write_record

Rows = list[dict[str, Any]]

# What a row is about; the rest of it is what was found.
_IDENTITY: tuple[str, ...] = ("model", "section", "name", "kernel", "pair", "density", "msr", "phase")
_IDENTITY += ("tokens", "batch", "heads", "kv_heads", "group_size", "head_dim")
_NO_RESULTS = ("missing", "skipped", "ceilings")
_PLACES = {"prefill": "rows"}  # sections whose rows have another name in the record


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
        """Say what the record is about, and read the one that `--add` goes on with.

        Args:
            facts: command, config, model, data and versions of the record.
        """
        path, self.facts = self.options.json, facts
        if path is not None and self.options.add and path.exists():
            self.before = read_record(path)

    def holds(self, section: str, **cell: Any) -> bool:
        """Has a row of this cell been measured, now or by an earlier run of the record?"""
        old = self.before["metrics"].get(section, []) if self.before is not None else []
        return any(_agrees(row, cell) for row in [*old, *self.rows.get(section, [])])

    def complete(self, sections: dict[str, Rows]) -> None:
        """Fill in what follows from several rows, whichever run they are from; nothing by default."""

    def save(self) -> None:
        """Write the record to `--json` as far as it has come; the file is whole at any time."""
        if self.options.json is None:
            return
        run: dict[str, Any] = {"options": _plain(self.options), "seconds": time.perf_counter() - self.began}
        run["versions"] = self.facts["versions"]
        metrics = self.before["metrics"] if self.before is not None else {}
        old = {name: found for name, found in metrics.items() if isinstance(found, list) and name != "runs"}
        runs = [*metrics.get("runs", []), run]
        new = {name: [row | {"run": len(runs) - 1} for row in found] for name, found in self.rows.items()}
        rows, peak = merge_rows(old, new), measure_peak_bytes(self.device) or 0
        self.complete(rows)
        if self.before is not None:
            peak = max(peak, self.before["bytes"] or 0)
        measured = [row for name, found in rows.items() if name not in _NO_RESULTS for row in found]
        models = dict.fromkeys(row["model"] for row in measured if row.get("model"))
        record = build_record(
            self.facts["command"],
            config=self.facts["config"],
            model=", ".join(models) or None,
            data=self.facts["data"],
            device=describe_device(self.device),
            seed=0,
            n=len(measured),
            metrics={"rows": [], **rows},
            seconds=sum(entry["seconds"] for entry in runs),
            bytes=peak,
        )
        # Every row names its run, and a run says with which options, when, and from which commit.
        run |= {"commit": record["package"]["commit"], "created": record["created"]}
        write_record(self.options.json, record | {"metrics": record["metrics"] | {"runs": runs}})

    def is_due(self, section: str, **cell: Any) -> bool:
        """Is this cell still to be measured? One that the time is used up for is listed as skipped."""
        if self.holds(_PLACES.get(section, section), **cell):
            return False
        if time.perf_counter() - self.began < self.options.max_seconds:
            return True
        self.add("skipped", {"section": section, **cell})
        return False


@dataclass(kw_only=True)
class KernelBench(Bench):
    """A run and the backends of ours that can run here."""

    backends: list[str]

    @property
    def dtype(self) -> torch.dtype:
        """Of the inputs: bfloat16 on a GPU."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def find_dense(self) -> tuple[list[Kernel], list[Missing]]:
        """The dense kernels that `--dense` leaves, and what is missing."""
        kernels, missing = find_dense(self.device)
        return [k for k in kernels if self.options.dense is None or k.name in self.options.dense], missing


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
        except (
            RuntimeError,
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
            ImportError,
            ElasticAttentionError,
        ) as error:
            bench.note_missing(name, "section", error)
        bench.save()


def add_shared_options(parser: argparse.ArgumentParser, sections: list[str]) -> None:
    """Options that both benchmarks have."""
    parser.add_argument("--only", nargs="*", choices=sections, default=sections)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--add", action="store_true", help="go on with the record; what it holds is not measured again")
    parser.add_argument("--max-seconds", type=float, default=math.inf, help="begin nothing new after this")
    parser.add_argument("--device")


def merge_rows(old: dict[str, Rows], new: dict[str, Rows]) -> dict[str, Rows]:
    """Section by section the old rows and the new ones; of two rows about the same, the new one.

    What was skipped or missing before and is there now is named no more.
    """

    def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row.get(key) for key in _IDENTITY)

    merged: dict[str, Rows] = {}
    for section in dict.fromkeys((*old, *new)):
        taken = {key_of(row) for row in new.get(section, [])}
        merged[section] = [row for row in old.get(section, []) if key_of(row) not in taken] + new.get(section, [])
    there = {name: list(found) for name, found in merged.items() if name not in ("missing", "skipped")}
    merged["missing"] = [row for row in merged.get("missing", []) if not _is_there(there, row)]
    for row in merged["missing"]:
        there.setdefault(_PLACES.get(row["section"], row["section"]), []).append(row | {"kernel": row["name"]})
    merged["skipped"] = [row for row in merged.get("skipped", []) if not _is_there(there, row)]
    return merged


def _is_there(sections: dict[str, Rows], absent: dict[str, Any]) -> bool:
    """Is what `absent` says was skipped or missing among the rows all the same?"""
    cell = {key: value for key, value in absent.items() if key in _IDENTITY and key not in ("section", "name")}
    if "name" in absent:
        cell["kernel"] = absent["name"]
    return any(_agrees(row, cell) for row in sections.get(_PLACES.get(absent["section"], absent["section"]), []))


def _agrees(row: dict[str, Any], cell: dict[str, Any]) -> bool:
    return all(row.get(key) == value for key, value in cell.items())


def _plain(options: argparse.Namespace) -> dict[str, Any]:
    """The options without endless numbers and without folders."""
    finite = {k: v for k, v in vars(options).items() if not (isinstance(v, float) and math.isinf(v))}
    return {k: v.name if isinstance(v, Path) else v for k, v in finite.items()}
