"""What any server tells Prometheus about routes."""

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram

RATIOS = tuple(i / 20 for i in range(1, 21))


class RouteMetrics:
    """Histograms of MSR and ESR, and bytes that decoding did not read, over finished requests."""

    def __init__(self, registry: CollectorRegistry) -> None:
        made: dict[str, Any] = {"registry": registry}
        self.msr = Histogram("elastic_msr", "Share of KV heads that went sparse.", buckets=RATIOS, **made)
        self.esr = Histogram(
            "elastic_esr", "Share of query-key pairs that were skipped.", ["phase"], buckets=RATIOS, **made
        )
        self.skipped_bytes = Counter(
            "elastic_skipped_kv_bytes", "Bytes of keys and values that generated tokens did not read.", **made
        )

    def note(self, report: Mapping[str, Any]) -> None:
        """Count a finished request, from its report."""
        self.msr.observe(report["msr"])
        for phase in ("prefill", "decode"):
            if report[f"esr_{phase}"] is not None:
                self.esr.labels(phase).observe(report[f"esr_{phase}"])
        self.skipped_bytes.inc(report["kv_bytes_skipped"])
