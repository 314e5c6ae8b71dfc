"""From scores of samples to the rows of a quality record."""

from collections.abc import Sequence
from typing import Any

from .intervals import bootstrap_macro, group_by_kind
from .methods import Method
from .quality import SampleScore

MASTERED = 0.5


def summarize_methods(results: Sequence[tuple[Method, Sequence[SampleScore]]]) -> dict[str, Any]:
    """Metrics of a quality record: rows by method, by_kind by kind and method. Methods may score part of the samples.

    Kinds that the dense model does not master (score below .50) are listed in by_kind, marked, and left out of the
    macro averages.
    """
    dense = next(scores for method, scores in results if method.name == "dense")
    dense_scores = {(s.kind, s.index): s.score for s in dense}
    base = group_by_kind([s.kind for s in dense], [s.score for s in dense])
    mastered = [kind for kind, values in base.items() if float(values.mean()) >= MASTERED]
    if not mastered:
        raise ValueError(f"The dense model masters none of the kinds {sorted(base)} (score {MASTERED} or more).")
    rows, by_kind = [], {kind: _kind_row(kind, dense, kind in mastered) for kind in base}
    for method, scores in results:
        groups = group_by_kind([s.kind for s in scores], [s.score for s in scores])
        paired = group_by_kind([s.kind for s in scores], [dense_scores[s.kind, s.index] for s in scores])
        macro = bootstrap_macro({k: groups[k] for k in mastered}, {k: paired[k] for k in mastered})
        counted = [s for s in scores if s.kind in mastered]
        names = ("score", "relative_score"), ("score_low", "relative_low"), ("score_high", "relative_high")
        row: dict[str, Any] = {
            "method": method.name,
            "target": method.target,
            "decode": method.decode,
            "n": len(counted),
            "msr": _mean([s.msr for s in counted]),
            "esr_prefill": _mean([s.esr_prefill for s in counted]),
        }
        for i, (score, relative) in enumerate(names):
            row |= {score: macro["score"][i], relative: macro["relative"][i]}
        row["msr_by_category"] = {
            c: _mean([s.msr for s in counted if s.category == c]) for c in sorted({s.category for s in counted})
        }
        rows.append(row)
        for kind, values in groups.items():
            by_kind[kind][method.label] = float(values.mean())
            by_kind[kind][f"msr {method.label}"] = _mean([s.msr for s in scores if s.kind == kind])
    return {"rows": rows, "by_kind": list(by_kind.values()), "mastered": mastered}


def _kind_row(kind: str, dense: Sequence[SampleScore], is_mastered: bool) -> dict[str, Any]:
    samples = [s for s in dense if s.kind == kind]
    return {"kind": kind, "category": samples[0].category, "n": len(samples), "is_mastered": is_mastered}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
