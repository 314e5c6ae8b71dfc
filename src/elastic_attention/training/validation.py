"""Held-out checks during training: how right the answers are and how sparse inference makes the model."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .data.batch import PackedBatch
from .tally import Tally

if TYPE_CHECKING:
    from .engine import Engine

FIELDS = ("loss", "accuracy", "exact", "msr")


def validate(engine: "Engine", packs: Iterable[PackedBatch]) -> dict[str, dict[str, dict[str, Any]]]:
    """Measure held-out packs as inference routes them; ranks share them.

    Returns:
        {"categories": name -> facts, "tasks": name -> facts}. Facts: "samples"; "loss", cross-entropy of an answer's
        token; "accuracy", share of the answers' tokens that are greedy predictions; "exact", share of the answers that
        are in whole; "msr", model sparsity ratio. A category also has "low", "high", its interval, and "outside", how
        far its mean MSR lies outside of it.
    """
    held = list(packs)
    groups = {
        "categories": Tally(sorted({c for p in held for c in p.categories}), FIELDS, engine.device),
        "tasks": Tally(sorted({t for p in held for t in p.tasks}), FIELDS, engine.device),
    }
    for first in range(0, len(held), engine.world_size):
        turn = held[first : first + engine.world_size]
        # Sharded ranks work together, so one without a pack goes along with another's.
        has_pack = engine.rank < len(turn)
        pack = (turn[engine.rank] if has_pack else turn[0]).to(engine.device)
        values = engine.measure(pack)
        if has_pack:
            groups["categories"].add(pack.categories, **values)
            groups["tasks"].add(pack.tasks, **values)
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for group, tally in groups.items():
        tally.table = engine.total(tally.table)
        means = tally.means()
        result[group] = {
            name: {"samples": count, **{field: means[field][name] for field in FIELDS}}
            for name, count in tally.counts().items()
        }
    for name, facts in result["categories"].items():
        if interval := engine.recipe.intervals.get(name):
            outside = max(interval.low - facts["msr"], facts["msr"] - interval.high, 0.0)
            facts |= {"low": interval.low, "high": interval.high, "outside": outside}
    return result
