"""The totals of a demo: what the rows say together."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .units import to_number

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoSummary:
    """Totals over the demo's rows. A field is None where the rows do not hold what it needs."""

    num_rows: int
    num_right: int
    num_judged_dense: int
    num_right_dense: int
    mean_msr: float | None
    kv_bytes: float | None
    kv_bytes_dense: float | None
    prefill_seconds: float | None
    prefill_seconds_dense: float | None

    @property
    def kv_saved_ratio(self) -> float | None:
        """Share of the dense KV bytes that the elastic cache does not hold."""
        return None if not self.kv_bytes_dense or self.kv_bytes is None else 1 - self.kv_bytes / self.kv_bytes_dense

    @property
    def prefill_speed_up(self) -> float | None:
        """Dense prefill seconds over elastic prefill seconds, both summed over the rows."""
        return (
            self.prefill_seconds_dense / self.prefill_seconds
            if self.prefill_seconds_dense and self.prefill_seconds
            else None
        )


def summarise_demo(rows: Sequence[Row]) -> DemoSummary:
    """Add up the demo's rows. Pairs of elastic and dense values count only where a row has both."""
    judged_dense = [row for row in rows if row.get("correct_dense") is not None]
    kv_bytes, kv_bytes_dense = _sum_pairs(rows, "kv_bytes")
    seconds, seconds_dense = _sum_pairs(rows, "prefill_seconds")
    return DemoSummary(
        num_rows=len(rows),
        num_right=sum(bool(row.get("correct")) for row in rows),
        num_judged_dense=len(judged_dense),
        num_right_dense=sum(bool(row["correct_dense"]) for row in judged_dense),
        mean_msr=average(row.get("msr") for row in rows),
        kv_bytes=kv_bytes,
        kv_bytes_dense=kv_bytes_dense,
        prefill_seconds=seconds,
        prefill_seconds_dense=seconds_dense,
    )


def average(values: Iterable[object]) -> float | None:
    """Mean of the values that are numbers; None if there are none."""
    present = [number for value in values if (number := to_number(value)) is not None]
    return sum(present) / len(present) if present else None


def _sum_pairs(rows: Sequence[Row], key: str) -> tuple[float | None, float | None]:
    pairs = [(to_number(row.get(key)), to_number(row.get(f"{key}_dense"))) for row in rows]
    both = [(elastic, dense) for elastic, dense in pairs if elastic is not None and dense is not None]
    if not both:
        return None, None
    return sum(elastic for elastic, _ in both), sum(dense for _, dense in both)
