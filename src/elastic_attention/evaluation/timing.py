"""Times that compare: device events, interleaved repeats, medians, cold caches."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

_FLUSH_BYTES = 256 * 2**20  # several times the L2 cache
_FLUSHES = 10  # half a millisecond: a busy host needs that long to launch a call

Run = Callable[[int], object]
"""A run to be timed; its argument counts the calls, so that it can take turns among its inputs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Milliseconds of one call: the median, the quartiles around it, and how often it was measured."""

    median: float
    low: float
    high: float
    repeats: int

    def as_row(self) -> dict[str, float]:
        """The keys of a record's row."""
        return {"milliseconds": self.median, "low": self.low, "high": self.high, "repeats": self.repeats}


def time_interleaved(
    runs: Mapping[str, Run], *, device: torch.device, repeats: int, max_seconds: float = math.inf
) -> dict[str, Timing]:
    """Time runs that are warm: each repeat calls every run once, in an order of its own, so that neither a slow moment
    nor the heat of the run before falls on one of them alone.

    On CUDA the times come from device events around a call; before each one the L2 cache is overwritten, so often that
    the host gets ahead of the device. Elsewhere they come from the host's clock. After `max_seconds`, but not before
    the third repeat, no new repeat begins.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs.items())
    is_cuda = device.type == "cuda"
    flush = torch.empty(_FLUSH_BYTES if is_cuda else 0, dtype=torch.int8, device=device)
    started = time.perf_counter()
    for repeat in range(repeats):
        if repeat >= 3 and time.perf_counter() - started > max_seconds:
            break
        events: dict[str, tuple[torch.cuda.Event, torch.cuda.Event]] = {}
        random.Random(repeat).shuffle(order)
        for name, run in order:
            if is_cuda:
                for _ in range(_FLUSHES):
                    flush.zero_()
                events[name] = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
                events[name][0].record()
                run(repeat)
                events[name][1].record()
            else:
                begun = time.perf_counter()
                run(repeat)
                times[name].append((time.perf_counter() - begun) * 1e3)
        if is_cuda:
            torch.cuda.synchronize(device)
        for name, (begin, end) in events.items():
            times[name].append(begin.elapsed_time(end))
    return {name: _summarize(values) for name, values in times.items()}


def time_graphs(runs: Mapping[str, Run], *, device: torch.device, repeats: int, calls: int = 10) -> dict[str, Timing]:
    """Time short runs without the host's share: on CUDA, `calls` calls of each are one graph that is replayed.

    Raises:
        RuntimeError: a run cannot be captured, because it waits for the device.
    """
    if device.type == "cuda":
        graphs = {name: capture_calls(run, calls) for name, run in runs.items()}
        series: dict[str, Run] = {name: partial(_replay, graph) for name, graph in graphs.items()}
    else:
        series = {name: partial(_call_in_turn, run, calls) for name, run in runs.items()}
    timings = time_interleaved(series, device=device, repeats=repeats)
    return {
        name: Timing(median=t.median / calls, low=t.low / calls, high=t.high / calls, repeats=t.repeats)
        for name, t in timings.items()
    }


def capture_calls(run: Run, calls: int) -> torch.cuda.CUDAGraph:
    """One CUDA graph of `calls` calls, after two warm ones on another stream."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for i in range(2):
            run(i)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(calls):
            run(i)
    return graph


def _replay(graph: torch.cuda.CUDAGraph, _: int) -> None:
    graph.replay()


def _call_in_turn(run: Run, calls: int, _: int) -> None:
    for i in range(calls):
        run(i)


def _summarize(values: Sequence[float]) -> Timing:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return Timing(median=middle, low=low, high=high, repeats=len(values))
