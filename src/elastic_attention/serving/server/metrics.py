"""What a server tells Prometheus."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ..metrics import RouteMetrics

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class ServerMetrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("elastic_requests", "Requests by how they ended.", ["end"], **made)
        self.active = Gauge("elastic_requests_active", "Requests that are answered or wait.", **made)
        self.prompt_tokens = Counter("elastic_prompt_tokens", "Prompt tokens.", **made)
        self.new_tokens = Counter("elastic_new_tokens", "Generated tokens.", **made)
        self.first_token = Histogram("elastic_first_token_seconds", "Time to the first text.", buckets=SECONDS, **made)
        self.routes = RouteMetrics(self.registry)

    def note_refusal(self) -> None:
        """Count a request that was turned away."""
        self.requests.labels("refused").inc()

    def note_report(self, report: dict[str, Any], new_tokens: int) -> None:
        """Count a finished answer."""
        self.prompt_tokens.inc(report["prompt_tokens"])
        self.new_tokens.inc(new_tokens)
        self.routes.note(report)

    def show(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)

    def summarize(self) -> dict[str, float]:
        """The counters as plain numbers: elastic_requests_total by how they ended, prompt and new tokens."""
        return {
            "_".join(
                [sample.name.removeprefix("elastic_").removesuffix("_total"), *sample.labels.values()]
            ): sample.value
            for metric in self.registry.collect()
            if metric.type == "counter"
            for sample in metric.samples
            if sample.name.endswith("_total")
        }
