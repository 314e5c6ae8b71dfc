"""A demo record and a quality record, small."""

from typing import Any

import pytest
from made_records import NUM_LAYERS, make_demo_row, make_record


@pytest.fixture
def demo() -> dict[str, Any]:
    rows = [
        make_demo_row("needle", correct_dense=True, answer_dense="7421"),
        make_demo_row("copying", answer="oops", correct=False, correct_dense=True, answer_dense="7421", msr=0.25),
    ]
    head_maps = {"needle": [[0, 1, 1]] * NUM_LAYERS, "copying": [[1, 1, 1]] * (NUM_LAYERS - 1) + [[None] * 3]}
    return make_record("demo", {"rows": rows, "head_maps": head_maps})


@pytest.fixture
def quality() -> dict[str, Any]:
    def point(method: str, msr: float, score: float, **changes: Any) -> dict[str, Any]:
        interval = {"score_low": score - 0.02, "score_high": score + 0.02}
        relative = {
            "relative_score": score / 0.8,
            "relative_low": score / 0.8 - 0.01,
            "relative_high": score / 0.8 + 0.01,
        }
        row = {
            "method": method,
            "target": None,
            "decode": "sparse",
            "msr": msr,
            "esr_prefill": msr * 0.9,
            "score": score,
        }
        return row | interval | relative | changes

    rows = [
        point("dense", 0.0, 0.8),
        point("all_sparse", 1.0, 0.3),
        point("routed", 0.7, 0.79, target=0.7),
        point("routed", 0.9, 0.75, target=0.9),
        point("routed", 0.9, 0.77, decode="full"),
        point("random", 0.7, 0.5, target=0.7),
    ]
    by_kind = [
        {"kind": "needle", "category": "sensitive", "n": 400, "dense": 1.0, "all_sparse": 0.0, "routed": 0.98,
         "static@0.700": 0.8, "random@0.700": 0.3, "msr routed": 0.66, "routed-cache-full": 0.5, "msr dense": 0.0},
        {"kind": "prose", "category": "robust", "n": 400, "dense": 0.6, "all_sparse": 0.6, "routed": 0.6,
         "static@0.700": 0.6, "random@0.700": 0.5, "msr routed": 0.9, "msr dense": 0.0},
        {"kind": "riddle", "category": "robust", "n": 400, "dense": 0.2, "all_sparse": 0.1, "routed": 0.2,
         "static": 0.2, "random": 0.1, "msr": 0.95},
    ]  # fmt: skip
    return make_record("benchmarks/quality.py", {"rows": rows, "by_kind": by_kind})
